"""Leave-one-device-out validation: each device is predicted from a fit to the others. Gives errors and coverage."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import fitting
import numpy as np
from published_rows import Row

COVER = 0.90


@dataclass(frozen=True, slots=True)
class Judged:
    """One row, predicted from other devices. Seconds of a step, or of the whole prefill."""

    row: Row
    measured: float
    predicted: float
    low: float
    high: float

    @property
    def error(self) -> float:
        """Predicted ÷ measured rate − 1, so positive means predicted too fast."""
        return self.measured / self.predicted - 1

    @property
    def covered(self) -> bool:
        """Whether the 90% interval contains the measured value."""
        return self.low <= self.measured <= self.high


def judge(rows: Sequence[Row], start: fitting.Content, phase: str) -> list[Judged]:
    """All rows that have the phase, each predicted without its device. ``start`` has every parameter at its prior."""
    rows = [row for row in rows if fitting.measured(row, phase) is not None]
    bare: list[tuple[Row, float, float]] = []
    for device in sorted({row.target.name for row in rows}):
        others = [row for row in rows if row.target.name != device]
        content = fitting.fit(others, start, phase)
        own = (row for row in rows if row.target.name == device)
        bare += [(row, _measured(row, phase), fitting.predicted(row, content, phase)) for row in own]
    judged = []
    for row, seconds, predicted in bare:
        low, high = spread([entry for entry in bare if entry[0].target.name != row.target.name])
        judged.append(Judged(row, seconds, predicted, predicted * low, predicted * high))
    return judged


def spread(entries: Sequence[tuple[Row, float, float]]) -> tuple[float, float]:
    """Factors on predicted seconds that contain 90%. Devices have equal weight, since it is for new devices."""
    ratios = np.array([math.log(seconds / predicted) for _, seconds, predicted in entries])
    rows = Counter(row.target.name for row, _, _ in entries)
    weights = np.array([1 / rows[row.target.name] for row, _, _ in entries])
    order = np.argsort(ratios)
    share = (np.cumsum(weights[order]) - weights[order] / 2) / weights.sum()
    tail = (1 - COVER) / 2
    low, high = np.interp([tail, 1 - tail], share, ratios[order])
    return math.exp(min(low, -0.01)), math.exp(max(high, 0.01))


def _measured(row: Row, phase: str) -> float:
    seconds = fitting.measured(row, phase)
    assert seconds is not None
    return seconds
