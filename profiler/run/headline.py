"""The default grid of `profile sweep`: the headline pair, sized to the machine.

Of each headline family, it is the first choice (``choice.Choices``) whose grid fits the free memory and the time
budget, and if there is time also in ``EXTRA``. The cheapest runs first, so that the first row appears soon.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from profiler import registry
from profiler.case import Task
from profiler.cost import engines
from profiler.cost.cases import host_of
from profiler.cost.machine import Machine
from profiler.devices.base import DeviceInfo
from profiler.models import families, hub
from profiler.quants.base import Quant
from profiler.run import choice
from profiler.run import plan as run_plan
from profiler.run.repetitions import Effort
from profiler.units import bytes_text, seconds_text

EXTRA = "nf4"  # the second quantization, if there is time for it
CONTEXTS = ("128", "512")
STEPS = ("8",)
REPS = 2
BUDGET_S = 300.0
HEADROOM = 0.05  # of the memory: a first run should not fill it completely
FIRST_ROW_S = 60.0  # how long the first row may take
Grid = Callable[[str, Quant], list[Task]]
ModelPair = tuple[str, Quant]  # catalog name, quantization


@dataclass(frozen=True, slots=True)
class HeadlineBudget:
    """What the choice has to stay within."""

    device: DeviceInfo
    effort: Effort
    available_bytes: int
    budget_s: float

    @property
    def bound_bytes(self) -> int:
        """Memory that the pair may use."""
        return int(self.available_bytes * (1 - HEADROOM))


@dataclass(frozen=True, slots=True)
class HeadlineChoice:
    """The models with their quantizations, and a one-line reason."""

    pairs: tuple[ModelPair, ...]
    words: str


@dataclass(frozen=True, slots=True)
class PlannedPair:
    """A model in a quantization, and the plan of its grid."""

    name: str
    quant: Quant
    plan: run_plan.SweepPlan
    peak_bytes: float  # the largest of its cases
    first_row_s: float  # to load the model and measure its cheapest case
    reads: bool  # whether it decodes as fast as people read


class _Pairs:
    """Plans the grid of each pair once."""

    def __init__(self, limits: HeadlineBudget, grid: Grid) -> None:
        self.limits, self._grid = limits, grid
        self._planned: dict[tuple[str, str], PlannedPair] = {}
        self._engine, host = engines.find(engines.DEFAULT), host_of(limits.device, None)
        room = min(limits.available_bytes, choice.with_room(Machine(host)).target.memory_bytes)
        self._machine, self._host = Machine(replace(host, memory_bytes=room)), host

    def plan(self, name: str, quant: Quant, reads: bool = True) -> PlannedPair:
        """The grid of a model in a quantization, planned."""
        if (name, quant.name) not in self._planned:
            limits, tasks = self.limits, self._grid(name, quant)
            made = run_plan.make(tasks, limits.device, limits.effort, limits.available_bytes)
            each = [run_plan.plan_case(task, self._host, limits.effort) for task in tasks]
            self._planned[name, quant.name] = PlannedPair(
                name, quant, made, max(map(_peak, each)),
                min(task.load_s + task.run_s for task in each), reads,
            )  # fmt: skip
        return self._planned[name, quant.name]

    def _choices(self, prefix: str, asked: Sequence[Quant]) -> choice.Choices:
        return choice.Choices(prefix, self._engine, self._machine, tuple(quant.name for quant in asked))

    def ranking(self, prefix: str, asked: Sequence[Quant]) -> Iterator[PlannedPair]:
        """The choices of a family that fit the free memory, the best first."""
        for found in self._choices(prefix, asked).ranking():
            quant = _quant(found.quant)
            if quant.unavailable(self.limits.device) is None:
                pair = self.plan(found.name, quant, found.reads)
                if self.fits(pair):
                    yield pair

    def smallest(self, prefix: str, asked: Sequence[Quant]) -> PlannedPair:
        """The smallest of a family, for a machine on which no choice fits memory and time."""
        name, quant = self._choices(prefix, asked).smallest()
        return self.plan(name, _quant(quant), False)

    def shrinks(self, name: str, quant: Quant) -> bool:
        """Whether the quantization makes the model really smaller."""
        geometry = families.geometry(hub.shipped_config(name))
        return choice.shrinks(choice.predictor(geometry, self._engine, quant.name, self._machine))

    def fits(self, pair: PlannedPair) -> bool:
        """Whether every case can run and is likely to fit."""
        return not pair.plan.skipped and pair.peak_bytes <= self.limits.bound_bytes


def choose(limits: HeadlineBudget, grid: Grid, asked: Sequence[Quant] = ()) -> HeadlineChoice:
    """The pair for this machine. ``grid`` gives the tasks of a model in a quantization; ``asked``: those of -q."""
    pairs, share = _Pairs(limits, grid), limits.budget_s / len(choice.FAMILIES)
    found = {
        family: next((pair for pair in pairs.ranking(prefix, asked) if pair.plan.seconds <= share), None)
        or pairs.smallest(prefix, asked)
        for family, prefix in choice.FAMILIES.items()
    }
    absent = [family for family, pair in found.items() if not pairs.fits(pair)]
    if len(absent) < len(found):
        found = {family: pair for family, pair in found.items() if family not in absent}
    if min(pair.first_row_s for pair in found.values()) > FIRST_ROW_S:  # the last family starts with a quicker one
        last = next(reversed(found))
        quick = (p for p in pairs.ranking(choice.FAMILIES[last], asked) if p.first_row_s <= FIRST_ROW_S)
        found[last] = next(quick, None) or pairs.smallest(choice.FAMILIES[last], asked)
    chosen = list(found.values())
    extra = [
        pairs.plan(pair.name, quant, pair.reads)
        for quant in asked or (_quant(EXTRA),)
        for pair in chosen
        if quant.name != pair.quant.name and (asked or pairs.shrinks(pair.name, quant))
    ]
    if asked or (all(map(pairs.fits, extra)) and _seconds(chosen + extra) <= limits.budget_s):
        chosen += extra
    return HeadlineChoice(tuple((pair.name, pair.quant) for pair in chosen), _words(chosen, list(found), pairs))


def _seconds(chosen: Sequence[PlannedPair]) -> float:
    return sum(pair.plan.seconds for pair in chosen)


def _words(chosen: Sequence[PlannedPair], families: Sequence[str], pairs: _Pairs) -> str:
    """What was chosen and why; if it does not fit, what it would need."""
    limits = pairs.limits
    models = registry.listed([f"{pair.name} {pair.quant.name}" for pair in chosen])
    free, budget = bytes_text(limits.available_bytes), seconds_text(limits.budget_s)
    refused = next((reason for pair in chosen if (reason := pair.quant.unavailable(limits.device))), None)
    if refused is not None:
        return f"without -m, this sweep would measure {models}, but {refused}"
    if not all(map(pairs.fits, chosen)):
        largest = max(chosen, key=lambda pair: pair.peak_bytes)
        return (
            f"without -m, this sweep measures {models}, which may not all fit on {limits.device.name} ({free} free):"
            f" {largest.name} {largest.quant.name} needs about {bytes_text(largest.peak_bytes)}"
        )
    seconds = _seconds(chosen)
    if seconds > limits.budget_s:
        return (
            f"without -m, this sweep measures {models}; they need about {seconds_text(seconds)}, more than the budget"
            f" of {budget}, so cases run cheapest first until it is used up"
        )
    reads = f", decode as fast as people read ({choice.READING_TPS} t/s)" if all(p.reads for p in chosen) else ""
    absent = " and ".join(family for family in choice.FAMILIES if family not in families)
    return (
        f"without -m, this sweep measures {models}: the largest {' and '.join(families)} that fit on"
        f" {limits.device.name} ({free} free){reads} and finish within {budget}; estimated {seconds_text(seconds)}"
        f"{f'. No {absent} fits' if absent else ''}"
    )


def _peak(planned: Task) -> float:
    """The estimated peak in bytes."""
    assert planned.estimate is not None
    return planned.estimate.peak.value


def _quant(name: str) -> Quant:
    found: Quant = registry.load("quants", name, "quantization").QUANT
    return found
