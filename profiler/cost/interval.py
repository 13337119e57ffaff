"""A predicted figure: a value, how far off it may be, and what it rests on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Basis = Literal["exact", "calibrated", "fitted", "prior"]
ORDER: tuple[Basis, ...] = ("exact", "calibrated", "fitted", "prior")  # a sum rests on the weakest of its terms


@dataclass(frozen=True, slots=True)
class Interval:
    """``low <= value <= high``, in the unit of what it predicts."""

    value: float
    low: float
    high: float
    basis: Basis

    def __add__(self, other: Interval) -> Interval:
        """Both at once. The bounds add as if both erred the same way: errors of one model are not independent."""
        return Interval(
            self.value + other.value,
            self.low + other.low,
            self.high + other.high,
            max(self.basis, other.basis, key=ORDER.index),
        )

    def scaled(self, factor: float) -> Interval:
        """``factor`` times as much."""
        return Interval(self.value * factor, self.low * factor, self.high * factor, self.basis)

    def to_json(self) -> dict[str, Any]:
        """``value``, ``low``, ``high`` and ``basis``."""
        return {"value": self.value, "low": self.low, "high": self.high, "basis": self.basis}


def exact(value: float) -> Interval:
    """A figure that follows from shapes alone."""
    return Interval(value, value, value, "exact")


def prior(value: float, spread: float) -> Interval:
    """An assumption that may be off by the factor ``spread`` either way."""
    return Interval(value, value / spread, value * spread, "prior")
