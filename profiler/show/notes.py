"""The notes below a table: cautions and reasons, each once for all rows that it applies to."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from profiler.case import Case
from profiler.results.cautions import cautions
from profiler.results.measurement import Measurement
from profiler.show.columns import plain

NOTE_LENGTH = 400  # characters of a note
CASES_NAMED = 4  # cases that a note names before "and n more"; the rows have its number as well
DOUBTS = (  # endings of the codes of cautions that doubt a figure
    "-busy",
    "-cpu-pressure",
    "-invalid",
    "-throttled",
    "-swap",
    "-cold",
    "-above-ceiling",
    "spread",
    "not-finite",
)


class HasCase(Protocol):
    """Anything with a case, such as a row."""

    @property
    def case(self) -> Case: ...


FIGURE = re.compile(r"(?<![\w.])\d+(?:,\d{3})*(?:\.\d+)?(?!\w|\.\d)")  # in a caution; no part of a name


@dataclass(slots=True)
class Note:
    """A caution or a reason, shown once for all rows that it applies to."""

    number: int  # from 1, in order of first use
    text: str
    help: str | None
    rank: int = 0  # 0: why a case has no figures, 1: doubts about figures, 2: anything else
    cases: list[HasCase] = field(default_factory=list)

    def named_cases(self, measurements: Sequence[HasCase], total: Counter[str] | None = None) -> str:
        """The names of the cases; only a model's name if the note applies to all of its cases.

        ``total`` is ``rows_of_models(measurements)``, for callers with many notes.
        """
        total = rows_of_models(measurements) if total is None else total
        if len(self.cases) == len(measurements) > 1:
            return "all cases"
        mine = Counter(measurement.case.model for measurement in self.cases)
        named: list[str] = []
        for case in (measurement.case for measurement in self.cases):
            whole = len(total) > 1 and mine[case.model] == total[case.model] > 1
            alone = f"{case.quant} {case.prompt or f'c={case.context}'} b={case.batch}"
            named.append(plain(case.model if whole else case.label if len(total) > 1 else alone))
        named = list(dict.fromkeys(named))
        more = len(named) - CASES_NAMED
        return ", ".join(named[:CASES_NAMED]) + (f" and {more} more" if more > 0 else "")


def rows_of_models(measurements: Sequence[HasCase]) -> Counter[str]:
    """The number of rows of each model, by name."""
    return Counter(measurement.case.model for measurement in measurements)


def notes(measurements: Sequence[Measurement]) -> tuple[list[Note], list[list[int]]]:
    """Notes in order of first use, and the numbers (from 1) of each row's notes; reasons come before cautions.

    Cautions that differ only in figures are one note, with the range of each figure.
    """
    found: dict[tuple[str, str | None], Note] = {}
    figures: dict[int, list[list[str]]] = {}  # by number: those of each row
    numbers: list[list[int]] = []
    for measurement in measurements:
        mine: list[int] = []
        for text, help, rank in dict.fromkeys(_note_texts(measurement)):
            words = FIGURE.sub("\0", text) if rank else text
            note = found.setdefault((words, help), Note(len(found) + 1, words, help, rank))
            figures.setdefault(note.number, []).append(FIGURE.findall(text) if rank else [])
            note.cases.append(measurement)
            mine.append(note.number)
        numbers.append(sorted(mine))
    for note in found.values():
        note.text = ranged(note.text, figures[note.number])
    _refer(list(found.values()), measurements)
    return list(found.values()), numbers


def ranged(words: str, alike: Sequence[Sequence[str]]) -> str:
    """``a chunk holds 1.5–1.9 tokens``: ``words``, with the ends of each figure's range where ``\\0`` stands."""
    ends = []
    for values in zip(*alike, strict=True):
        ordered = sorted(dict.fromkeys(values), key=lambda value: float(value.replace(",", "")))
        ends.append(ordered[0] if len(ordered) == 1 else f"{ordered[0]}–{ordered[-1]}")
    first, *rest = words.split("\0") if ends else [words]
    return first + "".join(f"{end}{part}" for end, part in zip(ends, rest, strict=True))


def few(found: Sequence[Note], numbers: Sequence[Sequence[int]], most: int | None) -> tuple[list[Note], list[str]]:
    """At most ``most`` notes, the most important ones, numbered anew, and the cells of the column for notes.

    A cell counts the notes of its row that are left out: ``1 3 +2``. None: all notes.
    """
    kept = sorted(sorted(found, key=lambda note: (note.rank, -len(note.cases)))[:most], key=lambda note: note.number)
    places = {note.number: place for place, note in enumerate(kept, start=1)}
    cells = []
    for mine in numbers:
        shown = [str(places[number]) for number in mine if number in places]
        cells.append(" ".join([*shown, *([f"+{len(mine) - len(shown)}"] if len(mine) > len(shown) else [])]))
    return [replace(note, number=places[note.number]) for note in kept], cells


def _refer(found: Sequence[Note], measurements: Sequence[Measurement]) -> None:
    """Let the note of a skipped case refer to the note of the failed case that caused it."""
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


def _note_texts(measurement: Measurement) -> list[tuple[str, str | None, int]]:
    """Text, help and rank of all notes on a row."""
    texts: list[tuple[str, str | None, int]] = []
    if measurement.outcome != "ok":
        reason = measurement.reason or "no reason was recorded"
        texts.append((plain(f"{measurement.outcome}: {reason}", NOTE_LENGTH), None, 0))
    texts += [
        (
            plain(caution.text, NOTE_LENGTH),
            plain(caution.help) if caution.help else None,
            1 if caution.code.endswith(DOUBTS) else 2,
        )
        for caution in cautions(measurement)
    ]
    return texts
