"""How long to measure: a number of repetitions, or as many as a precision takes, within a time."""

from __future__ import annotations

from dataclasses import dataclass

PRECISION = 0.02  # of the median: half of what a person would call a difference between two formats
FEWEST = 5  # repetitions before precision may end a phase: stopping at three would cover 91 % instead of 95 %
MOST = 20  # and at which it gives up: at the next step, 40, the interval is narrower by a third only
MAX_PHASE_S = 60.0


@dataclass(frozen=True, slots=True)
class Effort:
    """``reps`` repetitions of each phase; None: until the 95 % interval of its rate, by the repetitions
    alone, is within ``precision``.

    Precision decides from ``FEWEST`` repetitions on and gives up after ``MOST``. No repetition starts once those of
    its phase have taken ``max_phase_s`` seconds together.
    """

    reps: int | None = None
    max_phase_s: float = MAX_PHASE_S
    precision: float = PRECISION  # longer arm of the interval ÷ median
    energy: bool = False  # measure it as well: ten seconds more of a phase that is short

    @property
    def fewest(self) -> int:
        """Repetitions below which a phase has been cut short."""
        return FEWEST if self.reps is None else self.reps

    @property
    def most(self) -> int:
        """Repetitions after which a phase ends in any case."""
        return MOST if self.reps is None else self.reps

    @property
    def asked(self) -> dict[str, float]:
        """What a row keeps of it."""
        wanted = {"precision": self.precision} if self.reps is None else {"reps": self.reps}
        return wanted | {"max_phase_s": self.max_phase_s} | ({"energy": True} if self.energy else {})
