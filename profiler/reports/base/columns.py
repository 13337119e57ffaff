"""The columns of a table, what all its rows share, and what its figures mean."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from profiler.case import Case
from profiler.reports.base.cells import PHASES, energy_cell, rate_cell, repetitions, reps_cell, token_cell, ttft_cell
from profiler.reports.base.text import plain
from profiler.results import stats
from profiler.results.measurement import Measurement
from profiler.units import UNKNOWN, bytes_text

STAYS = 9  # worth of a column that no width drops
FAKE = "fake"  # the backend whose figures are made up: nobody may take a copied table for a measurement


@dataclass(frozen=True, slots=True)
class Column:
    """One column. ``worth`` orders what goes first when a table is too wide: the least; STAYS always stays."""

    title: str
    cell: Callable[[Any], str]  # of a measurement; of a setting, of anything that has a case
    worth: int
    words: str = ""  # of a setting: how its value reads in the heading when all rows share it
    usual: str | None = None  # of a setting: a value that goes without saying there
    right: bool = True


def figures(numbers: Sequence[Sequence[int]], measurements: Sequence[Measurement]) -> list[Column]:
    """The columns that are always meant, most telling first; ``numbers`` as from ``notes``."""
    noted = {
        id(measurement): " ".join(map(str, mine)) for measurement, mine in zip(measurements, numbers, strict=True)
    }
    columns = [
        Column("quant", lambda m: plain(m.case.quant), STAYS, right=False),
        *(column for column in SETTINGS if len({column.cell(m) for m in measurements}) > 1),
        Column("context", lambda m: f"{m.case.context:,}", STAYS),
        Column("batch", lambda m: f"{m.case.batch:,}", STAYS),
        Column("prefill t/s", lambda m: rate_cell(m, "prefill"), STAYS),
        Column("decode t/s", lambda m: rate_cell(m, "decode"), STAYS),
        Column("TTFT", ttft_cell, 5),
        Column("ms/token", token_cell, 3),
        Column("weights", lambda m: bytes_text(m.memory.weights_bytes), 4),
        Column("cache", lambda m: bytes_text(m.memory.cache_bytes), 2),
        Column("peak", lambda m: bytes_text(m.memory.process_peak_bytes), 6),
        *(ENERGY if any(measurement.energy is not None for measurement in measurements) else ()),
        Column("reps", reps_cell, STAYS if any(map(_fell_short, measurements)) else 1),
    ]
    if any(measurement.outcome != "ok" for measurement in measurements):
        columns.append(Column("outcome", lambda m: m.outcome, STAYS, right=False))
    if any(noted.values()):
        columns.append(Column("notes", lambda m: noted[id(m)], STAYS, right=False))
    return columns


def heading(run: str | None, measurements: Sequence[Measurement]) -> list[str]:
    """What is true of all rows: the run, the device and the settings they share."""
    parts = ["FAKE FIGURES"] if any(m.case.backend == FAKE for m in measurements) else []
    parts += [f"run {plain(run)}"] if run else []
    devices = dict.fromkeys(device_title(m) for m in measurements)
    parts += [title for title in devices if title]
    for column in SETTINGS:
        values = {column.cell(m) for m in measurements}
        if len(values) == 1 and not values & {UNKNOWN, column.usual}:
            parts.append(column.words.format(values.pop()))
    return parts


def legend(measurements: Sequence[Measurement]) -> str | None:
    """What ± and a range mean, and joules, where a row has them."""
    summaries = [summary for m in measurements for phase in PHASES if (summary := stats.rate(m, phase))]
    parts = []
    if any(summary.low is not None for summary in summaries):
        parts.append("t/s: median of the repetitions, all sequences together")
        parts.append("±: longer arm of the 95 % interval of that median, which may be asymmetric")
    if any(summary.between for summary in summaries):
        parts.append("it counts how much processes differ")
    if any(summary.wide for summary in summaries):
        parts.append("(a–b): the interval itself")
    scopes = dict.fromkeys(m.energy.scope for m in measurements if m.energy and m.energy.scope)
    if scopes:
        whose = " or of ".join(SCOPES.get(scope, plain(scope)) for scope in scopes)
        parts.append(f"J: energy per prompt token and per output token of {whose}, idle power included")
    return "; ".join(parts) or None


class OfDevice(Protocol):
    """A row, or what is known of one."""

    @property
    def case(self) -> Case: ...

    @property
    def environment(self) -> dict[str, Any]: ...


def device_title(measurement: OfDevice) -> str:
    """``AMD EPYC 7763 (64.0 GiB)`` as the environment has it, else the device's name."""
    device: dict[str, Any] = measurement.environment.get("device") or {}
    title, memory = plain(device.get("title") or measurement.case.device), device_memory(measurement)
    return title if memory is None else f"{title} ({bytes_text(memory)})"


def device_memory(measurement: OfDevice) -> int | None:
    """Bytes of memory of the device a row was measured on."""
    device: dict[str, Any] = measurement.environment.get("device") or {}
    memory = device.get("memory_bytes")
    return memory if isinstance(memory, int) else None


def _fell_short(measurement: Measurement) -> bool:
    """Whether a phase was not repeated as often as was asked."""
    asked = measurement.asked.get("reps")
    return asked is not None and any(count != asked for count in repetitions(measurement))


SCOPES = {  # what energy is of, and what it is not of
    "gpu-board": "the GPU's board alone",
    "cpu-package": "the CPU alone, without memory and the rest",
    FAKE: "a device that is made up",
}
ENERGY = (  # where somebody asked for it, or it was free
    Column("J/prompt", lambda m: energy_cell(m, "prefill"), 7),
    Column("J/token", lambda m: energy_cell(m, "decode"), 7),
)
SETTINGS = (  # in the heading where all rows agree, else columns
    Column("source", lambda m: plain(m.case.weights), 7, words="{} weights", right=False),
    Column("compute", lambda m: plain(m.case.dtype), 8, words="compute {}", right=False),
    Column("device", lambda m: plain(m.case.device), 8, words="{}", right=False),
    Column("backend", lambda m: plain(m.case.backend), 8, words="{}", right=False),
    Column("path", lambda m: plain(m.case.path), 8, words="{}", right=False),
    Column("fill", lambda m: plain(m.case.fill), 7, words="{} fill", usual="prefill", right=False),
    Column("steps", lambda m: f"{m.case.steps:,}", 7, words="{} steps"),
)
