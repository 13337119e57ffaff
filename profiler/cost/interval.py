"""A predicted figure: its value, its bounds, and the basis of both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Basis = Literal["exact", "calibrated", "fitted", "prior"]
ORDER: tuple[Basis, ...] = ("exact", "calibrated", "fitted", "prior")  # a sum has the weakest basis of its terms


@dataclass(frozen=True, slots=True)
class Interval:
    """``low <= value <= high``, in the unit of the predicted figure."""

    value: float
    low: float
    high: float
    basis: Basis

    def __add__(self, other: Interval) -> Interval:
        """The sum. Bounds add as if both errors had the same sign, since errors of one model are not independent."""
        return Interval(
            self.value + other.value,
            self.low + other.low,
            self.high + other.high,
            max(self.basis, other.basis, key=ORDER.index),
        )

    def scaled(self, factor: float) -> Interval:
        """The interval times ``factor``."""
        return Interval(self.value * factor, self.low * factor, self.high * factor, self.basis)

    def to_json(self) -> dict[str, Any]:
        """``value``, ``low``, ``high`` and ``basis``."""
        return {"value": self.value, "low": self.low, "high": self.high, "basis": self.basis}


def exact(value: float) -> Interval:
    """A figure that follows from shapes alone."""
    return Interval(value, value, value, "exact")


def prior(value: float, spread: float) -> Interval:
    """An assumption that may be off by the factor ``spread`` in either direction."""
    return Interval(value, value / spread, value * spread, "prior")
