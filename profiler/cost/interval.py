"""A predicted figure: its value, its bounds, and the basis of both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Basis = Literal["exact", "learned", "calibrated", "fitted", "prior"]
ORDER: tuple[Basis, ...] = ("exact", "learned", "calibrated", "fitted", "prior")  # a sum has the weakest of its terms


@dataclass(frozen=True, slots=True)
class Interval:
    """``low <= value <= high``, in the unit of the predicted figure."""

    value: float
    low: float
    high: float
    basis: Basis
    rows: int = 0  # learned: measured on this machine in similar cases

    @property
    def basis_text(self) -> str:
        """The basis in words."""
        rows = f"{self.rows} row{'s' * (self.rows != 1)}"
        return f"learned from {rows} here" if self.basis == "learned" else self.basis

    def __add__(self, other: Interval) -> Interval:
        """The sum. Bounds add as if both errors had the same sign, since errors of one model are not independent."""
        return Interval(
            self.value + other.value,
            self.low + other.low,
            self.high + other.high,
            max(self.basis, other.basis, key=ORDER.index),
            max(self.rows, other.rows),
        )

    def scaled(self, factor: float) -> Interval:
        """The interval times ``factor``."""
        return Interval(self.value * factor, self.low * factor, self.high * factor, self.basis, self.rows)

    def to_json(self) -> dict[str, Any]:
        """``value``, ``low``, ``high`` and ``basis``; ``rows`` of a learned figure."""
        content = {"value": self.value, "low": self.low, "high": self.high, "basis": self.basis}
        return content | ({"rows": self.rows} if self.basis == "learned" else {})


def exact(value: float) -> Interval:
    """A figure that follows from shapes alone."""
    return Interval(value, value, value, "exact")


def prior(value: float, spread: float) -> Interval:
    """An assumption that may be off by the factor ``spread`` in either direction."""
    return Interval(value, value / spread, value * spread, "prior")
