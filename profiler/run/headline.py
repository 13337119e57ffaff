"""The default grid of `profile sweep`: the headline pair, sized to the machine.

The pair is the largest Gemma 4 and the largest Qwen 3.5 of the catalog that fit on the device and in the time budget,
each in the device's default dtype or else in the first smaller quantization that fits. The cheapest runs first, so
that the first row appears soon.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from profiler import registry
from profiler.case import Task
from profiler.cost.cases import host_of
from profiler.devices.base import DeviceInfo
from profiler.devices.target import Target
from profiler.models import families, hub
from profiler.quants.base import Quant
from profiler.run import plan as run_plan
from profiler.run.repetitions import Effort
from profiler.units import bytes_text, seconds_text

PAIR = {"Gemma 4": "gemma-4-", "Qwen 3.5": "qwen3.5-"}
SMALLER = ("bf16", "nf4")  # quantizations to try if no model of a family fits in the default dtype
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
    def host(self) -> Target:
        """The device with what is known about its speed."""
        return host_of(self.device, None)


@dataclass(frozen=True, slots=True)
class HeadlineChoice:
    """The models with their quantizations, and a one-line reason."""

    pairs: tuple[ModelPair, ...]
    words: str


def choose(limits: HeadlineBudget, grid: Grid, asked: Sequence[Quant] = ()) -> HeadlineChoice:
    """The pair for this machine. ``grid`` gives the tasks of a model in a quantization; ``asked`` fixes it."""
    formats = tuple(asked) or _formats(limits.device)
    share = limits.budget_s / len(PAIR)
    chosen = [_largest(prefix, formats, limits, grid, share) for prefix in PAIR.values()]
    if min(_first_row_s(pair, limits, grid) for pair in chosen) > FIRST_ROW_S:
        chosen[-1] = _quick(chosen[-1], list(PAIR.values())[-1], limits, grid)
    more = asked or (_quant(EXTRA),)
    extra = [(name, quant) for quant in more for name, first in chosen if quant.name != first.name]
    if asked or _fits(chosen + extra, limits, grid):
        chosen += extra
    return HeadlineChoice(tuple(chosen), _words(chosen, limits, grid))


def _formats(device: DeviceInfo) -> tuple[Quant, ...]:
    return tuple(_quant(name) for name in dict.fromkeys((device.default_dtype, *SMALLER)))


def _largest(prefix: str, formats: Sequence[Quant], limits: HeadlineBudget, grid: Grid, seconds: float) -> ModelPair:
    """The largest model of a family that fits in memory and in ``seconds``, in the first possible quantization.

    If none does, the smallest in the first quantization that fits in memory; the budget then cuts the grid.
    """
    names = _by_size(prefix)
    for quant in formats:
        for name in names:
            if _seconds([(name, quant)], limits, grid) <= seconds:
                return name, quant
    held = (quant for quant in formats if _holds(grid(names[-1], quant), limits))
    return names[-1], next(held, formats[0])


def _quick(pair: ModelPair, prefix: str, limits: HeadlineBudget, grid: Grid) -> ModelPair:
    """The largest model of a family, no larger than ``pair``'s, with an early first row; else the smallest."""
    name, quant = pair
    names = _by_size(prefix)
    smaller = names[names.index(name) :]
    quick = ((other, quant) for other in smaller if _first_row_s((other, quant), limits, grid) <= FIRST_ROW_S)
    return next(quick, (smaller[-1], quant))


def _by_size(prefix: str) -> list[str]:
    """The catalog models of a family, largest first."""
    names = [name for name in hub.names() if name.startswith(prefix)]
    return sorted(names, key=lambda name: families.geometry(hub.shipped_config(name)).parameters, reverse=True)


def _seconds(pairs: Sequence[ModelPair], limits: HeadlineBudget, grid: Grid) -> float:
    """Estimated seconds for the grids of ``pairs``; infinite if a case cannot run or is unlikely to fit."""
    tasks = [task for name, quant in pairs for task in grid(name, quant)]
    if not _holds(tasks, limits):
        return float("inf")
    return run_plan.make(tasks, limits.device, limits.effort, limits.available_bytes).seconds


def _holds(tasks: Sequence[Task], limits: HeadlineBudget) -> bool:
    plan = run_plan.make(tasks, limits.device, limits.effort, limits.available_bytes)
    bound = limits.available_bytes * (1 - HEADROOM)
    return not plan.skipped and all(_peak(task) <= bound for task in plan.tasks)


def _fits(pairs: Sequence[ModelPair], limits: HeadlineBudget, grid: Grid) -> bool:
    return _seconds(pairs, limits, grid) <= limits.budget_s


def _first_row_s(pair: ModelPair, limits: HeadlineBudget, grid: Grid) -> float:
    """Seconds to load a model and measure its cheapest case."""
    host = limits.host
    tasks = [run_plan.plan_case(task, host, limits.effort) for task in grid(*pair)]
    return min(task.load_s + task.run_s for task in tasks)


def _words(pairs: Sequence[ModelPair], limits: HeadlineBudget, grid: Grid) -> str:
    """What was chosen and why; if it does not fit, what it would need."""
    models = registry.listed([f"{name} {quant.name}" for name, quant in pairs])
    free, budget = bytes_text(limits.available_bytes), seconds_text(limits.budget_s)
    refused = next((reason for _, quant in pairs if (reason := quant.unavailable(limits.device))), None)
    if refused is not None:
        return f"without -m, this sweep would measure {models}, but {refused}"
    tasks = [task for pair in pairs for task in grid(*pair)]
    if not _holds(tasks, limits):
        planned = [run_plan.plan_case(task, limits.host, limits.effort) for task in tasks]
        largest = max(planned, key=_peak)
        needed = bytes_text(_peak(largest))
        return (
            f"without -m, this sweep measures {models}, which may not all fit on {limits.device.name} ({free} free):"
            f" {largest.case.model} {largest.case.quant} needs about {needed}"
        )
    seconds = _seconds(pairs, limits, grid)
    if seconds > limits.budget_s:
        return (
            f"without -m, this sweep measures {models}; they need about {seconds_text(seconds)}, more than the budget"
            f" of {budget}, so cases run cheapest first until it is used up"
        )
    return (
        f"without -m, this sweep measures {models}: the largest Gemma 4 and Qwen 3.5 that fit on"
        f" {limits.device.name} ({free} free) and finish within {budget}; estimated {seconds_text(seconds)}"
    )


def _peak(planned: Task) -> float:
    """The estimated peak in bytes."""
    assert planned.estimate is not None
    return planned.estimate.peak.value


def _quant(name: str) -> Quant:
    found: Quant = registry.load("quants", name, "quantization").QUANT
    return found
