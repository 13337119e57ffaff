"""A cell measured by itself, without another side: what a baseline is made of, and is compared with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from profiler import registry
from profiler.gate import exact, reference, step, stored
from profiler.gate.advice import COMMAND, FrontEnd, settle
from profiler.gate.baseline import Baseline, Entry, Session, write
from profiler.gate.bench import Bench
from profiler.gate.block import Block, Clock, clock_of
from profiler.gate.pairs import Rule
from profiler.gate.side import Side
from profiler.gate.verdict import Verdict
from profiler.measure.supervisor import Job
from profiler.results import decoded
from profiler.results.difference import differences
from profiler.results.measurement import Measurement, Phase

BLOCKS = 6  # in two processes: an interval needs some, and one process may be slow from start to end


@dataclass(frozen=True, slots=True)
class Cell:
    """What was measured. ``rows`` ends with the one that failed, if one did."""

    name: str
    job: Job
    environment: Mapping[str, Any]
    rows: tuple[Measurement, ...]
    times: Mapping[str, tuple[float, ...]] = field(default_factory=dict)  # metric → median seconds of each block
    reference_s: float | None = None

    @property
    def failed(self) -> Measurement | None:
        """The row that did not end well."""
        return next((row for row in self.rows if row.outcome != "ok"), None)

    @property
    def clock(self) -> Clock:
        return clock_of(self.job.case.device)

    def entry(self) -> Entry:
        """For a baseline. All rows must be ok."""
        first = self.rows[0]
        at = datetime.now(UTC).isoformat(timespec="seconds")
        sessions: tuple[Session, ...] = ()
        steps = {decoded.step(row) for row in self.rows}
        if len(self.rows) > 1 and len(steps) == 1:  # one block says nothing of times, nor do those of two programs
            sessions = (Session(at, self.clock, dict(self.times), self.reference_s),)
        return Entry(
            self.job.case, exact.facts(first), self.environment, first.threads, sessions, decoded.step(first)
        )


def measure(
    name: str,
    job: Job,
    bench: Bench,
    side: Side,
    environment: Mapping[str, Any],
    metrics: Sequence[Phase],
    count: int = BLOCKS,
) -> Cell:
    """Blocks of one cell, from two processes in turns; it ends with the first that fails."""
    bench.start((side, side))
    blocks: list[Block] = []
    for number in range(count):
        blocks.append(bench.block(number % 2, job))
        if blocks[-1].row.outcome != "ok":
            break
    clock = clock_of(job.case.device)
    times: dict[str, tuple[float, ...]] = {}
    for metric in metrics:
        known = [block.seconds(metric, clock) for block in blocks if block.spoilt(clock) is None]
        if known and None not in known:
            times[metric] = tuple(value for value in known if value is not None)
    rows = tuple(block.row for block in blocks)
    timed = count > 1 and not _invented(job)
    return Cell(name, job, environment, rows, times, reference.seconds() if timed else None)


def against(
    cell: Cell, baseline: Baseline, rule: Rule, metrics: Sequence[Phase], front: FrontEnd = COMMAND
) -> list[Verdict]:
    """The verdicts on a cell. One that failed, or that the baseline does not know, is a FAIL."""
    if cell.failed is not None:
        return [Verdict(cell.name, "case", "FAIL", f"{cell.failed.outcome}: {cell.failed.reason}")]
    entry = baseline.cells.get(cell.name)
    if entry is None:
        reason = "it is not in the baseline: new, or under another name"
        return [Verdict(cell.name, "case", "FAIL", reason, front.if_meant)]
    changed = _changed(entry, cell)
    if changed:
        reason = f"it is another case than the baseline's: {', '.join(changed)}"
        return [Verdict(cell.name, "case", "INCOMPARABLE", reason, front.if_meant)]
    same = not differences(entry.environment, cell.environment)
    other_step = step.unlike_baseline(entry.step, cell.rows)
    facts = exact.facts(cell.rows[0])
    found = exact.verdicts(cell.name, entry.facts, facts, "the baseline", same, front.if_meant, other_step)
    for metric in metrics:
        if other_step and metric == "decode":
            found.append(Verdict(cell.name, f"decode_{cell.clock}_s", "INCOMPARABLE", other_step, step.ADVICE))
            continue
        now = stored.Now(
            cell.times.get(metric, ()), cell.clock, cell.environment, cell.rows[0].threads, cell.reference_s
        )
        found.append(stored.verdict(cell.name, metric, entry, now, rule, front, settle(cell.job)))
    return found


def fallbacks(cells: Iterable[Cell]) -> list[str]:
    """Cases that ran another decode step than was asked for, in words."""
    found = (step.fallback(row) for cell in cells for row in cell.rows if row.outcome == "ok")
    return list(dict.fromkeys(text for text in found if text))


def missing(baseline: Baseline, measured: Sequence[str], front: FrontEnd = COMMAND) -> list[Verdict]:
    """A FAIL for each cell of the baseline that was not measured: deleted, renamed, or not selected."""
    reason = "it is in the baseline and was not measured: deleted, renamed, or not selected"
    advice = f"measure all of it; or, if it is meant, delete the baseline and add {front.accept}"
    return [Verdict(name, "case", "FAIL", reason, advice) for name in baseline.cells if name not in measured]


def adds_up(cell: Cell, baseline: Baseline) -> bool:
    """Whether a cell is what the baseline has, measured once more: then its times are one more session."""
    entry = baseline.cells.get(cell.name)
    if entry is None or _changed(entry, cell) or differences(entry.environment, cell.environment):
        return False
    if step.unlike_baseline(entry.step, cell.rows):
        return False
    return entry.threads == cell.rows[0].threads and not any(
        verdict.word == "FAIL"
        for verdict in exact.verdicts(cell.name, entry.facts, exact.facts(cell.rows[0]), "the baseline")
    )


def accept(path: Path, known: Baseline, cells: Sequence[Cell]) -> dict[str, str]:
    """Write ``cells``, none of which failed, into the baseline ``known`` at ``path``. Says of each how it was taken.

    Raises ProfileError where the file cannot be written.
    """
    same = {each.name: adds_up(each, known) for each in cells}
    write(path, known.accepted({each.name: each.entry() for each in cells}, same))
    return {name: "accepted as one more session" if more else "accepted" for name, more in same.items()}


def _changed(entry: Entry, cell: Cell) -> list[str]:
    """The fields in which the cases differ, ``context 512 → 1024``; the shown name of the model is none."""
    before, now = entry.case, cell.job.case
    if before.key == now.key:
        return []
    names = [name for name in before.__slots__ if name != "model"]
    return [
        f"{name} {getattr(before, name)} → {getattr(now, name)}"
        for name in names
        if getattr(before, name) != getattr(now, name)
    ]


def _invented(job: Job) -> bool:
    """Whether the machine is the backend's own invention, which no reference work runs on."""
    return hasattr(registry.load("backends", job.case.backend, "backend"), "meter")
