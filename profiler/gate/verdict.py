"""What a gate says of one metric of one cell, and of all of them together."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from profiler.gate.pairs import Evidence

Word = Literal["PASS", "FAIL", "INCONCLUSIVE", "INCOMPARABLE"]

EXIT: dict[Word, int] = {"PASS": 0, "FAIL": 1, "INCONCLUSIVE": 3, "INCOMPARABLE": 4}
GRAVITY: tuple[Word, ...] = ("PASS", "INCONCLUSIVE", "INCOMPARABLE", "FAIL")  # of several, the last one here counts


@dataclass(frozen=True, slots=True)
class Verdict:
    """One metric of one cell. Ratios are candidate ÷ base, so above 1 is worse; unknown is None."""

    cell: str  # the cell's name to people: a case's label, or a test's id
    metric: str
    word: Word
    reason: str  # in words; of a PASS too
    advice: str | None = None  # what to do
    command: str | None = None  # the command that does it, to paste
    ratio: float | None = None
    low: float | None = None  # bounds that the decision rests on, each one-sided
    high: float | None = None
    pairs: int | None = None
    delta: float | None = None  # slowdown that counts as a regression
    noise: float | None = None  # s: standard deviation of one A/A pair, in logarithms
    detectable: float | None = None  # slowdown that nine of ten such gates find
    before: float | None = None  # exact metrics: the base's or baseline's figure
    now: float | None = None
    evidence: Evidence | None = None
    confirmation: Evidence | None = None  # of the pairs that had to fail again

    def to_json(self) -> dict[str, Any]:
        """Plain JSON content."""
        return asdict(self)


def worst(verdicts: Iterable[Verdict]) -> Word:
    """The word of all together. Nothing at all is no PASS: a gate that measured nothing has failed."""
    return max((verdict.word for verdict in verdicts), key=GRAVITY.index, default="FAIL")


def exit_code(word: Word, inconclusive_fails: bool = True) -> int:
    """0 PASS · 1 FAIL · 3 inconclusive · 4 incomparable."""
    return 0 if word == "INCONCLUSIVE" and not inconclusive_fails else EXIT[word]
