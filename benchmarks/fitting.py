"""Fits efficiencies, as shares of a device's ceilings, to measured rows: robust least squares on log seconds with
priors.

There are few parameters, each for a cause that several devices share. A prior keeps a parameter without rows at its
known value; its width says how far rows may move it.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from published_rows import Row

from profiler.cost import rates as cost_rates

HUBER = 0.15  # log units: the influence of a row does not grow beyond this error
STEPS = 12
Content = dict[str, Any]
Phase = str


@dataclass(frozen=True, slots=True)
class Parameter:
    """A number in the file, by its path; ``width`` of its prior is a factor."""

    path: tuple[str, ...]
    prior: float
    width: float

    def read(self, content: Mapping[str, Any]) -> float:
        found: Any = content
        for key in self.path:
            found = found[key]
        return float(found)

    def write(self, content: Content, value: float) -> None:
        found: Any = content
        for key in self.path[:-1]:
            found = found[key]
        found[self.path[-1]] = value


DECODE = (
    Parameter(("bandwidth", "NVIDIA"), 0.85, 1.1),  # streaming kernels reach it on every generation
    Parameter(("bandwidth", "AMD"), 0.82, 1.1),  # from the tier C rows of the 780M and 7900 XT
    Parameter(("bandwidth", "Apple"), 0.75, 1.2),
    Parameter(("format", "iq"), 0.80, 1.3),
    Parameter(("format", "nvfp4"), 1.0, 1.15),
    Parameter(("launch", "cycles_per_layer", "NVIDIA"), 150e3, 1.8),
    Parameter(("launch", "seconds_per_layer", "Apple"), 80e-6, 1.8),
    Parameter(("launch", "seconds_per_layer", "AMD"), 130e-6, 1.8),
    Parameter(("multiply", "per_slot", "other"), 0.115, 1.4),
    Parameter(("multiply", "per_slot", "AMD"), 0.06, 1.8),
    Parameter(("engine", "llama.cpp", "expert_layers"), 0.5, 1.8),
    Parameter(("engine", "vllm", "bandwidth"), 1.0, 1.15),
    Parameter(("engine", "vllm", "launch"), 1.0, 2.0),
    Parameter(("engine", "vllm", "expert_layers"), 0.5, 2.0),
)
PREFILL = (
    Parameter(("engine", "llama.cpp", "prefill", "NVIDIA"), 0.35, 1.8),
    Parameter(("engine", "llama.cpp", "prefill", "AMD"), 0.45, 1.8),
    Parameter(("engine", "llama.cpp", "prefill", "Apple"), 0.70, 1.8),
    Parameter(("engine", "vllm", "prefill", "NVIDIA"), 0.45, 1.8),
    Parameter(("prefill", "expert_flops"), 2.0, 1.5),
    Parameter(("prefill", "slower", "cache"), 2.0, 1.5),
    Parameter(("prefill", "slower", "fp8"), 1.3, 1.5),
    Parameter(("prefill", "slower", "nvfp4"), 1.2, 1.3),
)


def priors(content: Content) -> Content:
    """``content`` with every parameter at its prior."""
    changed = copy.deepcopy(content)
    for parameter in (*DECODE, *PREFILL):
        parameter.write(changed, parameter.prior)
    return changed


def predicted(row: Row, content: Content, phase: Phase) -> float:
    """Seconds: a decode step, or the whole prefill."""
    rates = cost_rates.rates(row.target, row.engine.name, "bf16", content)
    return rates.split(row.decode_work() if phase == "decode" else row.prefill_work()).total


def measured(row: Row, phase: Phase) -> float | None:
    """Seconds as published."""
    if phase == "decode":
        return 1 / row.decode_tps
    return row.request.context / row.prefill_tps if row.prefill_tps else None


class Timed:
    """Rows with precomputed work, so that a fit can predict them many times."""

    def __init__(self, rows: Sequence[Row], phase: Phase) -> None:
        self.rows = [row for row in rows if measured(row, phase) is not None]
        self.work = [row.decode_work() if phase == "decode" else row.prefill_work() for row in self.rows]
        self.log = np.log([measured(row, phase) for row in self.rows]) if self.rows else np.zeros(0)

    def predict(self, content: Content) -> np.ndarray:
        """Log seconds of all rows."""
        rates = {
            key: cost_rates.rates(row.target, row.engine.name, "bf16", content)
            for row in self.rows
            if (key := (row.target.name, row.engine.name))
        }
        pairs = zip(self.rows, self.work, strict=True)
        return np.log([rates[row.target.name, row.engine.name].split(w).total for row, w in pairs])


def weights(rows: Sequence[Row]) -> np.ndarray:
    """Weights that grow only with the square root of a device's number of rows."""
    counts = Counter((row.target.name, row.engine.name) for row in rows)
    return np.array([1 / np.sqrt(counts[row.target.name, row.engine.name]) for row in rows])


def fit(
    rows: Sequence[Row], start: Content, phase: Phase, note: Callable[[str], None] = lambda text: None
) -> Content:
    """``start`` with the parameters of ``phase`` fitted to ``rows``."""
    parameters = DECODE if phase == "decode" else PREFILL
    timed = Timed(rows, phase)
    content = copy.deepcopy(start)
    prior = np.log([parameter.prior for parameter in parameters])
    stiffness = 1 / np.log([parameter.width for parameter in parameters])
    at = prior.copy()
    if not timed.rows:
        return content
    base = weights(timed.rows)
    for _ in range(STEPS):
        residual = _write(content, parameters, at, timed) - timed.log
        slope = np.stack([(_moved(content, parameters, at, i, timed) - timed.log - residual) / 1e-3
                          for i in range(len(at))], axis=1)  # fmt: skip
        robust = base * np.minimum(1, HUBER / np.maximum(np.abs(residual), 1e-9)) / HUBER**2
        matrix = slope.T @ (robust[:, None] * slope) + np.diag(stiffness**2)
        pull = slope.T @ (robust * residual) + stiffness**2 * (at - prior)
        step = np.clip(np.linalg.solve(matrix, pull), -0.3, 0.3)
        at = at - step
        note(f"largest step {np.abs(step).max():.4f}")
        if np.abs(step).max() < 1e-3:
            break
    _write(content, parameters, at, timed)
    return content


def _write(content: Content, parameters: Sequence[Parameter], at: np.ndarray, timed: Timed) -> np.ndarray:
    for parameter, value in zip(parameters, np.exp(at), strict=True):
        parameter.write(content, float(value))
    return timed.predict(content)


def _moved(content: Content, parameters: Sequence[Parameter], at: np.ndarray, index: int, timed: Timed) -> np.ndarray:
    moved = at.copy()
    moved[index] += 1e-3
    shifted = _write(content, parameters, moved, timed)
    _write_back(content, parameters, at)
    return shifted


def _write_back(content: Content, parameters: Sequence[Parameter], at: np.ndarray) -> None:
    for parameter, value in zip(parameters, np.exp(at), strict=True):
        parameter.write(content, float(value))
