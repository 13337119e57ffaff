"""The rows of a report by machine, the newest of each case, with derived values that are computed once."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from operator import attrgetter
from typing import Any

from profiler import backends
from profiler.case import IDENTITY, Case
from profiler.cost.prediction import TIGHT_BYTES, TIGHT_SHARE
from profiler.results import energy, quality, stats
from profiler.results.cautions import cautions
from profiler.results.measurement import Caution, Measurement, Memory, Phase
from profiler.results.quality import KlScale
from profiler.results.stats import MedianRange, Summary
from profiler.run.choice import bits
from profiler.show.columns import (
    BASES,
    SETTINGS,
    Column,
    device_memory,
    device_title,
    figure,
    is_gguf,
    noisy_text,
    plain,
    server_title,
)
from profiler.show.report.blocks import Tone
from profiler.show.report.models import CaseGroup, tell_models_apart
from profiler.units import UNKNOWN

_CASE = attrgetter(*IDENTITY)
_SIZE = attrgetter("case.context", "case.batch", "case.steps")
_SETTINGS = attrgetter(  # including the fields that ``SETTINGS`` show
    "model",
    "model_id",
    "quant",
    "weights",
    "dtype",
    "device",
    "backend",
    "path",
    "fill",
    "steps",
    "options",
    "threads",
)
NAMED = (  # settings that tell groups of one model and quantization apart
    *SETTINGS,
    Column("threads", lambda m: f"threads={m.case.threads}" if m.case.threads else UNKNOWN, 8, words="{}"),
)
ENGINE = ("backend", "server")  # settings that name the engine


@dataclass(slots=True, eq=False)
class CaseResult:
    """The values of a row that every section uses, computed once. Rates are tokens per second; unknown is None.

    A report may have 100,000 rows, and every field makes each of them larger. Values that few rows need are
    properties.
    """

    case: Case
    group: CaseGroup
    environment: dict[str, Any]
    outcome: str
    ok: bool
    reason: str | None
    started_at: str | None
    memory: Memory
    prefill_tps: float | None  # medians
    decode_tps: float | None
    median_range: MedianRange | None  # of decode's rates
    expected: Mapping[str, Any]  # the prediction made before it ran
    energy: Mapping[str, Any] | None
    cautions: tuple[Caution, ...]  # empty for a row without a result
    scale: KlScale | None  # of its KL divergence; None if it has none
    kl: float | None  # its mean
    reload: Callable[[], Measurement]

    @property
    def model(self) -> str:
        return self.group.model

    @property
    def series(self) -> str:
        return self.group.series

    @property
    def keys(self) -> tuple[str, str]:
        return self.group.keys

    @property
    def engine(self) -> str:
        """What ran the case: a server with its version, or the backend's engine."""
        backend = backends.of_row(self.case.backend)
        own = self.case.backend if backend is None or backend.simulated else backend.engine
        return server_title(self.environment) or plain(own)

    @property
    def measurement(self) -> Measurement:
        """The whole row, read again from the store: a page needs few of many, so they are not kept."""
        return self.reload()

    @property
    def peak_bytes(self) -> int | None:
        return self.memory.process_peak_bytes

    @property
    def limit_bytes(self) -> int | None:
        """Memory of the device."""
        return device_memory(self)

    @property
    def prefill(self) -> Summary | None:
        """The rate of prefill with its interval."""
        return stats.rate(self.measurement, "prefill")

    @property
    def decode(self) -> Summary | None:
        """The rate of decode with its interval."""
        return stats.rate(self.measurement, "decode")

    @property
    def least_tps(self) -> float:
        """A lower bound for the lower end of decode's interval."""
        if self.median_range is None:
            return 0.0
        between = (self.expected.get("between") or {}).get("decode")
        return self.median_range.median * math.exp(-self.median_range.reach(between))

    @property
    def comparable(self) -> bool:
        """Whether decode was measured precisely enough to compare its median."""
        if any(caution.code == "decode-busy" for caution in self.cautions):
            return False
        if self.median_range is None or self.median_range.near:
            return self.median_range is not None
        decode = self.decode
        return decode is not None and not decode.wide

    @property
    def ceiling_s(self) -> Mapping[str, float] | None:
        """Seconds of a prefill and of a step at the ceilings behind MFU and MBU; None if no ceiling is known.

        Rows of older versions have the seconds at the ceilings of each operator, if the device was calibrated.
        """
        used = self.expected.get("utilization")
        return {"prefill": used["prefill_s"], "step": used["step_s"]} if used else self.expected.get("ceiling_s")

    @property
    def ceiling_basis(self) -> str | None:
        """Where the ceilings come from, in words."""
        used = self.expected.get("utilization")
        basis = used["basis"] if used else "calibrated" if self.ceiling_s else None
        return basis and BASES.get(basis, plain(basis))

    @property
    def bound(self) -> str | None:
        """What is predicted to limit decode."""
        return self.expected.get("decode_bound")

    @property
    def shares(self) -> Mapping[Phase, float | None]:
        """Time at the ceiling ÷ measured time: MFU of prefill, MBU of decode; empty if no ceiling is known."""
        at = self.ceiling_s
        return stats.shares(self.case, at, self.prefill_tps, self.decode_tps) if at else {}

    @property
    def sequence_tps(self) -> float | None:
        """Median decode rate of one sequence."""
        return self.decode_tps and self.decode_tps / stats.sequences(self.case)

    @property
    def ttft(self) -> Summary | None:
        """Seconds to the first token."""
        return stats.ttft(self.measurement)

    @property
    def verdict(self) -> Tone:
        """The verdict on the measured peak, with the thresholds of predictions; ``none`` if the peak is unknown."""
        if not self.ok:
            return "no" if self.outcome == "oom" else "none"
        if self.peak_bytes is None or self.limit_bytes is None:
            return "none"
        left = self.limit_bytes - self.peak_bytes
        return "tight" if left < max(TIGHT_SHARE * self.limit_bytes, TIGHT_BYTES) else "fits"


@dataclass(slots=True, eq=False)
class MachineRows:
    """The rows of one machine: by model in order of first appearance, by quantization, and by size."""

    title: str
    results: Sequence[CaseResult]
    batch: int = 1  # the most frequent one, for figures over context; the smallest if several are
    groups: dict[CaseGroup, list[CaseResult]] = field(default_factory=dict)  # in order of first appearance
    ok: list[CaseResult] = field(default_factory=list)  # rows with a result
    of: dict[str, list[CaseResult]] = field(default_factory=dict)  # rows with a result by model; all models
    at: dict[int, list[CaseResult]] = field(default_factory=dict)  # rows with a result by batch
    weighed: list[CaseResult] = field(default_factory=list)  # rows with a result and a known peak
    noted: list[CaseResult] = field(default_factory=list)  # rows with a result and cautions
    calibrated: list[CaseResult] = field(default_factory=list)  # rows with a result and a ceiling
    scored: list[CaseResult] = field(default_factory=list)  # rows with a result and a KL divergence
    ended: list[CaseResult] = field(default_factory=list)  # rows without a result

    def __post_init__(self) -> None:
        for result in self.results:
            self.groups.setdefault(result.group, []).append(result)
            if not result.ok:
                self.ended.append(result)
                continue
            self.ok.append(result)
            self.at.setdefault(result.case.batch, []).append(result)
            if result.memory.process_peak_bytes is not None:
                self.weighed.append(result)
            if result.cautions:
                self.noted.append(result)
            if result.ceiling_s:
                self.calibrated.append(result)
            if result.scale is not None:
                self.scored.append(result)
        _name(self.groups)
        self.of = {group.model: [] for group in self.groups}
        for result in self.ok:
            self.of[result.model].append(result)
        counts = Counter({batch: len(mine) for batch, mine in self.at.items()})
        counts = counts or Counter(result.case.batch for result in self.results)
        self.batch = min(counts, key=lambda batch: (-counts[batch], batch))

    @property
    def models(self) -> list[str]:
        return list(self.of)

    @property
    def fewest(self) -> Sequence[CaseResult]:
        """Rows with a result at the smallest batch."""
        return self.at[min(self.at)] if self.at else ()

    @property
    def at_batch(self) -> Sequence[CaseResult]:
        """All rows at the most frequent batch, those without a result included."""
        return [result for result in self.results if result.case.batch == self.batch]

    def palette(self, names: Iterable[str]) -> dict[str, int]:
        """Color numbers of series, the same for a series in every chart of this machine."""
        series = list(dict.fromkeys(group.series for group in self.groups))
        return {name: series.index(name) for name in names}

    @property
    def environment(self) -> dict[str, Any]:
        """The environment of the newest row; a server's says less about the machine than any other."""
        return max(self.results, key=lambda row: (row.case.server is None, row.started_at or "")).environment


def machines(
    measurements: Iterable[Measurement], others: Iterable[tuple[str, Iterable[Measurement]]] = ()
) -> list[MachineRows]:
    """Machines in the order of their first row. If a case has several rows, the newest successful one counts.

    ``others`` are the rows of files, each with its name. They are machines of their own even if they are of the same
    device, because somebody who names a file wants to see it beside the rest.

    Only the values that every section needs are kept of each row, because a store may have more rows than fit in
    memory.
    """
    found: dict[tuple[Any, ...], _Cases] = {}
    kept: list[dict[str, Any]] = []
    for source, rows in (("", measurements), *others):
        places: dict[tuple[int, str], _Cases] = {}
        for row in rows:
            place = id(row.environment), row.case.backend  # many rows share an environment, and ``kept`` holds it
            cases = places.get(place)
            if cases is None:
                cases = places[place] = found.setdefault((source, *_identity(row)), _Cases(source))
                kept.append(row.environment)
            cases.add(row)
    tell_models_apart([group for cases in found.values() for group in cases.groups.values()])
    titles = Counter[str]()
    machines = []
    for cases in found.values():
        results = cases.in_order()
        simulated = backends.simulated(results[0].case.backend) is not None
        title = device_title(results[0]) + ", simulated" * simulated
        title += f", {cases.source}" if cases.source else ""
        titles[title] += 1
        machines.append(MachineRows(title if titles[title] == 1 else f"{title} #{titles[title]}", results))
    return machines


class _Cases:
    """The rows of one machine while they are read."""

    def __init__(self, source: str) -> None:
        self.source = source  # the name of the file that they are from; empty: the store
        # By the fields of a case that its key is a hash of: hashing takes far longer.
        self.results: dict[tuple[Any, ...], CaseResult] = {}
        self.groups: dict[tuple[Any, ...], CaseGroup] = {}

    def add(self, row: Measurement) -> None:
        """Add a row unless there is a better one of its case."""
        key = _CASE(row.case)
        known = self.results.get(key)
        if known is not None and known.ok and row.outcome != "ok":
            return
        settings = _SETTINGS(row.case)
        group = self.groups.get(settings)
        if group is None:
            names = row.case.model, row.case.quant
            group = self.groups[settings] = CaseGroup(row.case, names, _parameters(row), is_gguf(row))
        self.results[key] = _result(row, group)

    def in_order(self) -> list[CaseResult]:
        """Results by model in order of first appearance, by quantization with most bits first, then by size.

        Quantizations are not in the order of their rows, in which files are sorted by name, and what was measured
        again comes last.
        """
        by_names: dict[tuple[str, str], list[CaseResult]] = {}
        for result in self.results.values():
            by_names.setdefault(result.group.names, []).append(result)
        models, quants = (dict(zip(dict.fromkeys(names), count())) for names in zip(*by_names, strict=True))

        def place(names: tuple[str, str]) -> tuple[int, int, int]:
            model, quant = names
            return models[model], -bits(quant), quants[quant]

        ordered = sorted(by_names, key=place)
        return [result for name in ordered for result in sorted(by_names[name], key=_SIZE)]


def _result(row: Measurement, group: CaseGroup) -> CaseResult:
    medians = stats.medians(row)
    prefill, decode = medians["prefill"], medians["decode"]
    ok = row.outcome == "ok"
    noted = cautions(row, medians) if ok else ()
    joules = energy.content(row)
    scale = quality.scale(row.quality) if ok else None
    return CaseResult(
        row.case, group, row.environment, row.outcome, ok, row.reason, row.started_at, row.memory,
        prefill and prefill.median, decode and decode.median, decode, row.expected, joules, noted, scale,
        quality.quick_kl(row.quality) if scale is not None and row.quality else None, row.reload,
    )  # fmt: skip


def _parameters(row: Measurement) -> int | None:
    """The number of parameters in the files of the weights."""
    count = row.checkpoint.get("parameters")
    return count if isinstance(count, int) and count > 0 else None


def _name(groups: Collection[CaseGroup]) -> None:
    """Name the model and the series of each group.

    A series is named by the settings that distinguish rows of one model and quantization. A dtype that follows from
    the quantization is left out, and so is a number of steps that all rows with the same other settings share.
    """
    by_names: dict[tuple[str, str], list[CaseGroup]] = {}
    for group in groups:
        by_names.setdefault(group.names, []).append(group)
    distinguishing = [
        column
        for column in NAMED
        if any(len({column.cell(group) for group in mine}) > 1 for mine in by_names.values())
    ]
    cells = {group: {column: column.cell(group) for column in distinguishing} for group in groups}
    steps: dict[tuple[str, ...], set[int]] = {}  # by everything else
    for group in groups:
        steps.setdefault(_but_steps(group, cells[group]), set()).add(group.case.steps)
    for group in groups:
        group.model, quant = (plain(name, 60) or "(no name)" for name in group.names)
        several = len(steps[_but_steps(group, cells[group])]) > 1
        named = {
            column.title: column.words.format(cell) if column.title == "steps" else cell
            for column, cell in cells[group].items()
            if cell != UNKNOWN and (several or column.title != "steps")
        }
        words = [word for word in dict.fromkeys([quant, group.case.server, *named.values()]) if word]
        group.series = " ".join(words)
        prompt = group.case.prompt and plain(group.case.prompt)
        group.settings = " ".join(word for word in words if word != prompt)
        apart = (word for title, word in named.items() if word and title not in ENGINE)
        group.beside = " ".join(dict.fromkeys([quant, *apart]))


def _but_steps(group: CaseGroup, cells: Mapping[Column, str]) -> tuple[str, ...]:
    return (*group.names, *(cell for column, cell in cells.items() if column.title != "steps"))


def _identity(row: Measurement) -> tuple[Any, ...]:
    """The identity of a machine, which does not include its software or its free memory."""
    device, cpu = row.environment.get("device") or {}, row.environment.get("cpu") or {}
    recorded = tuple(str(device.get(name)) for name in ("kind", "title", "memory_bytes", "uuid_hash"))
    return (backends.simulated(row.case.backend) is not None, *recorded, str(cpu.get("title")), str(cpu.get("cores")))


def rate(summary: Summary | None) -> str:
    """The median rate with the digits that its interval supports."""
    return UNKNOWN if summary is None else figure(summary.median, summary.relative_half)


def ranged(summary: Summary | None) -> str:
    """``14.2 (13.8–14.7)``: the median rate with its 95% interval, if it has one that says something."""
    if summary is None:
        return UNKNOWN
    if summary.wide:
        return noisy_text(summary)
    if summary.low is None or summary.high is None:
        return f"{rate(summary)} (measured once)"
    ends = (figure(end, summary.relative_half) for end in (summary.low, summary.high))
    return f"{rate(summary)} ({'–'.join(ends)})"


def tps(summary: Summary | None) -> str:
    """``14.2 (13.8–14.7) t/s``, ``9.0 t/s (measured once)``."""
    text, once = ranged(summary), " (measured once)"
    return f"{text.removesuffix(once)} t/s{once if text.endswith(once) else ''}"


def case(result: CaseResult) -> str:
    """``gemma-4-e2b nf4 c=4096 b=1``, including other settings that distinguish it."""
    if result.case.prompt is None:
        return f"{result.model} {result.series} c={result.case.context} b={result.case.batch}"
    return f"{result.model} {result.group.settings} with the prompt {prompt(result)} b={result.case.batch}"


def prompt(result: CaseResult) -> str:
    """The name of the written prompt that a server was sent."""
    return plain(result.case.prompt, 40)


def tokens_text(count: int) -> str:
    """``1 token``, ``32,768 tokens``."""
    return f"{count:,} token{'s' * (count != 1)}"


def joined(parts: Iterable[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    *some, last = parts
    return f"{', '.join(some)} and {last}" if some else last


def several(names: Sequence[str], most: int) -> str:
    """At most ``most`` names, and how many more there are."""
    more = len(names) - most
    return joined(names) if more <= 0 else f"{', '.join(names[:most])} and {more:,} more"
