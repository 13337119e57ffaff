"""Notes below a table: every caution and reason once, with the cases it is true of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from profiler.case import Case
from profiler.reports.base.text import plain
from profiler.results.cautions import cautions
from profiler.results.measurement import Measurement

NOTE_LENGTH = 400  # characters of one note
CASES_NAMED = 4  # cases a note names before "and n more"; the rows carry its number anyway


class HasCase(Protocol):
    """A row, or what is known of one."""

    @property
    def case(self) -> Case: ...


@dataclass(slots=True)
class Note:
    """A caution or a reason, once for all the rows it is true of."""

    number: int  # from 1, in order of first need
    text: str
    help: str | None
    cases: list[HasCase] = field(default_factory=list)

    def named_cases(self, measurements: Sequence[HasCase], total: Counter[str] | None = None) -> str:
        """The cases in words; a model's name alone where it is true of all of its cases.

        ``total``: ``rows_of_models(measurements)``, from those who name many notes.
        """
        total = rows_of_models(measurements) if total is None else total
        if len(self.cases) == len(measurements) > 1:
            return "all cases"
        mine = Counter(measurement.case.model for measurement in self.cases)
        named: list[str] = []
        for case in (measurement.case for measurement in self.cases):
            whole = len(total) > 1 and mine[case.model] == total[case.model] > 1
            alone = f"{case.quant} c={case.context} b={case.batch}"
            named.append(plain(case.model if whole else case.label if len(total) > 1 else alone))
        named = list(dict.fromkeys(named))
        more = len(named) - CASES_NAMED
        return ", ".join(named[:CASES_NAMED]) + (f" and {more} more" if more > 0 else "")


def rows_of_models(measurements: Sequence[HasCase]) -> Counter[str]:
    """How many rows each model has, by name."""
    return Counter(measurement.case.model for measurement in measurements)


def notes(measurements: Sequence[Measurement]) -> tuple[list[Note], list[list[int]]]:
    """Notes in order of first need, and the numbers (from 1) of each row's notes; reasons before cautions."""
    found: dict[tuple[str, str | None], Note] = {}
    numbers: list[list[int]] = []
    for measurement in measurements:
        mine: list[int] = []
        for remark in dict.fromkeys(_remarks(measurement)):
            note = found.setdefault(remark, Note(len(found) + 1, *remark))
            note.cases.append(measurement)
            mine.append(note.number)
        numbers.append(sorted(mine))
    _refer(list(found.values()), measurements)
    return list(found.values()), numbers


def _refer(found: Sequence[Note], measurements: Sequence[Measurement]) -> None:
    """A case that was skipped because of another one's end points to the note of that end."""
    causes = {
        plain(m.reason, NOTE_LENGTH): plain(f"{m.outcome}: {m.reason}", NOTE_LENGTH)
        for m in measurements
        if m.reason and m.outcome not in ("ok", "skipped")
    }
    numbers = {note.text: note.number for note in found}
    for note in found:
        if not note.text.startswith("skipped: "):
            continue
        parts = note.text.split(": ")
        for place in range(1, len(parts)):  # the longest first
            cause = ": ".join(parts[place:])
            if cause in causes:
                note.text = f"{note.text.removesuffix(cause)}see note {numbers[causes[cause]]}"
                break


def _remarks(measurement: Measurement) -> list[tuple[str, str | None]]:
    """Text and help of everything to be said of a row."""
    remarks: list[tuple[str, str | None]] = []
    if measurement.outcome != "ok":
        reason = measurement.reason or "no reason was recorded"
        remarks.append((plain(f"{measurement.outcome}: {reason}", NOTE_LENGTH), None))
    remarks += [
        (plain(caution.text, NOTE_LENGTH), plain(caution.help) if caution.help else None)
        for caution in cautions(measurement)
    ]
    return remarks
