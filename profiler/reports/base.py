"""What a person sees of measurements: columns, figures with the digits they deserve, and notes.

A file ``reports/NAME.py`` is the output format ``NAME`` of ``-o`` and gives ``render(run, measurements) -> str``: the
whole text, ending in a newline unless it is empty. A format that cannot hold every row also gives
``left_out(measurements) -> str | None``, the sentence that says so on stderr.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from profiler import registry
from profiler.results import stats
from profiler.results.measurement import Measurement, Phase
from profiler.results.redact import redact
from profiler.units import UNKNOWN, bytes_text, printable, significant

UNSPREAD_DIGITS = 2  # of a figure measured once: nothing says how far the next one would be
MOST_DIGITS = 4
LONGEST = 100_000  # characters of outside text that are looked at
NOTE_LENGTH = 400  # characters of one note
PHASES: tuple[Phase, ...] = ("prefill", "decode")
CASES_NAMED = 4  # cases a note names before "and n more"; the rows carry its number anyway


def rendered(output: str, run: str | None, measurements: Sequence[Measurement]) -> tuple[str, str | None]:
    """Text of the rows in a format, and what that format had to leave out. Raises NotFound for an unknown format."""
    report = registry.load("reports", output, "output format")
    left_out = getattr(report, "left_out", None)
    return report.render(run, measurements), left_out(measurements) if left_out else None


def plain(text: object, limit: int = 200) -> str:
    """Outside text on one line, without control characters and secrets."""
    clean = printable(" ".join(str(text).split()), LONGEST)  # before redact: a control character may hide a token
    return printable(redact(clean), limit)


@dataclass(frozen=True, slots=True)
class Column:
    """One column. ``worth`` orders what goes first when a table is too wide: the least; 9 always stays."""

    title: str
    cell: Callable[[Measurement], str]
    worth: int
    words: str = ""  # of a setting: how its value reads in the heading when all rows share it
    right: bool = True


@dataclass(slots=True)
class Note:
    """A caution or a reason, once for all the rows it is true of."""

    number: int  # from 1, in order of first need
    text: str
    help: str | None
    cases: list[str] = field(default_factory=list)

    def named_cases(self, total: int) -> str:
        """The cases in words."""
        if len(self.cases) == total and total > 1:
            return "all cases"
        more = len(self.cases) - CASES_NAMED
        return ", ".join(self.cases[:CASES_NAMED]) + (f" and {more} more" if more > 0 else "")


def notes(measurements: Sequence[Measurement]) -> tuple[list[Note], list[list[int]]]:
    """Notes in order of first need, and the numbers (from 1) of each row's notes; reasons before cautions."""
    found: dict[tuple[str, str | None], Note] = {}
    numbers: list[list[int]] = []
    models = len({measurement.case.model for measurement in measurements})
    for measurement in measurements:
        mine: list[int] = []
        for remark in dict.fromkeys(_remarks(measurement)):
            note = found.setdefault(remark, Note(len(found) + 1, *remark))
            note.cases.append(_label(measurement, models))
            mine.append(note.number)
        numbers.append(sorted(mine))
    return list(found.values()), numbers


def figures(numbers: Sequence[Sequence[int]], measurements: Sequence[Measurement]) -> list[Column]:
    """The columns that are always meant, most telling first; ``numbers`` as from ``notes``."""
    noted = {
        id(measurement): " ".join(map(str, mine)) for measurement, mine in zip(measurements, numbers, strict=True)
    }
    columns = [
        Column("quant", lambda m: plain(m.case.quant), 9, right=False),
        *(column for column in SETTINGS if len({column.cell(m) for m in measurements}) > 1),
        Column("context", lambda m: f"{m.case.context:,}", 9),
        Column("batch", lambda m: f"{m.case.batch:,}", 9),
        Column("prefill t/s", lambda m: rate_cell(m, "prefill"), 9),
        Column("decode t/s", lambda m: rate_cell(m, "decode"), 9),
        Column("TTFT", _ttft_cell, 5),
        Column("ms/token", _token_cell, 3),
        Column("weights", lambda m: bytes_text(m.memory.weights_bytes), 4),
        Column("cache", lambda m: bytes_text(m.memory.cache_bytes), 2),
        Column("peak", lambda m: bytes_text(m.memory.process_peak_bytes), 6),
        Column("reps", _reps_cell, 1),
    ]
    if any(measurement.outcome != "ok" for measurement in measurements):
        columns.append(Column("outcome", lambda m: m.outcome, 9, right=False))
    if any(noted.values()):
        columns.append(Column("notes", lambda m: noted[id(m)], 9, right=False))
    return columns


def heading(run: str | None, measurements: Sequence[Measurement]) -> list[str]:
    """What is true of all rows: the run, the device and the settings they share."""
    parts = [f"run {plain(run)}"] if run else []
    devices = dict.fromkeys(device_title(m) for m in measurements)
    parts += [title for title in devices if title]
    for column in SETTINGS:
        values = {column.cell(m) for m in measurements}
        if len(values) == 1 and UNKNOWN not in values:
            parts.append(column.words.format(values.pop()))
    return parts


def legend(measurements: Sequence[Measurement]) -> str | None:
    """What ± means, where a row has one."""
    summaries = [stats.rate(m, phase) for m in measurements for phase in PHASES]
    if not any(summary and summary.low is not None for summary in summaries):
        return None
    return "t/s: median of the repetitions, all sequences together; ±: 95 % interval of that median"


def rate_cell(measurement: Measurement, phase: Phase) -> str:
    """``1,230 ±4%``: the median rate and the longer arm of its interval."""
    summary = stats.rate(measurement, phase)
    if summary is None:
        return UNKNOWN
    return f"{figure(summary.median, summary.relative_half)}{_arm(summary.relative_half)}"


def figure(value: float, relative_half: float | None) -> str:
    """``value`` to the digits that its interval supports: to the place of the interval's leading digit.

    One place more where that digit is 1 or 2 (the rule of the Particle Data Group's Review, §5.3, in short).
    """
    return significant(value, _digits(value, relative_half))


def device_title(measurement: Measurement) -> str:
    """``AMD EPYC 7763`` as the environment has it, else the device's name."""
    device: dict[str, Any] = measurement.environment.get("device") or {}
    return plain(device.get("title") or measurement.case.device)


def _digits(value: float, relative_half: float | None) -> int:
    if relative_half is None:
        return UNSPREAD_DIGITS
    if relative_half == 0:
        return MOST_DIGITS
    half = value * relative_half
    place = math.floor(math.log10(half))
    if half / 10**place < 3:
        place -= 1
    return min(MOST_DIGITS, max(1, math.floor(math.log10(value)) - place + 1))


def _arm(relative_half: float | None) -> str:
    if relative_half is None:
        return ""
    percent = relative_half * 100
    if percent < 0.05:
        return " ±<0.1%"
    return f" ±{percent:.1f}%" if percent < 0.95 else f" ±{percent:,.0f}%"


def _ttft_cell(measurement: Measurement) -> str:
    summary = stats.ttft(measurement)
    if summary is None:
        return UNKNOWN
    if summary.median < 1:
        return f"{figure(summary.median * 1000, summary.relative_half)} ms"
    return f"{figure(summary.median, summary.relative_half)} s"


def _token_cell(measurement: Measurement) -> str:
    """Milliseconds a sequence waits for a token: median over steps where they were timed, else over repetitions."""
    rate = stats.rate(measurement, "decode")
    if rate is None:
        return UNKNOWN
    steps = stats.steps(measurement)
    seconds = steps.p50_s if steps else measurement.case.batch / rate.median
    return figure(seconds * 1000, rate.relative_half)


def _reps_cell(measurement: Measurement) -> str:
    """``3``, or ``1+3`` where prefill and decode were not repeated as often."""
    shown = [count for count in (len(measurement.of(phase)) for phase in PHASES) if count]
    return "+".join(str(count) for count in (shown if len(set(shown)) > 1 else shown[:1])) or UNKNOWN


def _label(measurement: Measurement, models: int) -> str:
    """``Case.label``, without the model where there is only one."""
    case = measurement.case
    return plain(case.label) if models > 1 else f"{plain(case.quant)} c={case.context} b={case.batch}"


def _remarks(measurement: Measurement) -> list[tuple[str, str | None]]:
    """Text and help of everything to be said of a row."""
    remarks: list[tuple[str, str | None]] = []
    if measurement.outcome != "ok":
        reason = measurement.reason or "no reason was recorded"
        remarks.append((plain(f"{measurement.outcome}: {reason}", NOTE_LENGTH), None))
    remarks += [
        (plain(caution.text, NOTE_LENGTH), plain(caution.help) if caution.help else None)
        for caution in measurement.cautions
    ]
    return remarks


SETTINGS = (  # in the heading where all rows agree, else columns
    Column("source", lambda m: plain(m.case.weights), 7, words="{} weights", right=False),
    Column("dtype", lambda m: plain(m.case.dtype), 8, words="{}", right=False),
    Column("device", lambda m: plain(m.case.device), 8, words="{}", right=False),
    Column("backend", lambda m: plain(m.case.backend), 8, words="{}", right=False),
    Column("path", lambda m: plain(m.case.path), 8, words="{}", right=False),
    Column("fill", lambda m: plain(m.case.fill), 7, words="{} fill", right=False),
    Column("steps", lambda m: f"{m.case.steps:,}", 7, words="{} steps"),
)
