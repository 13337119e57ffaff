"""Fits efficiencies, as shares of a device's ceilings, to measured rows: robust least squares on log seconds with
priors.

Each parameter has a cause that several devices share. Factors of generations and of devices have priors at 1, so that
a device with few rows follows its generation, and a generation with few rows its vendor. A prior keeps a parameter
without rows at its known value; its width says how far rows may move it.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from published_rows import Row

from profiler.cost.rates import MANY_LAYERS, group
from profiler.cost.roofline import Rates

HUBER = 0.15  # log units: the influence of a row does not grow beyond this error
STEPS = 12
SMALL_STEP = 0.03  # log units
TURNED = 0.5  # the part of its step that a parameter takes after it turned around, as at the kink of a limit
# Of an engine: below, rates hardly follow, and steps would jump.
LEAST = {("overlap",): 1.02, ("cache",): 0.85, ("unfused",): 1.0, ("many_layers",): 1.0}
MOST = {("many_layers",): MANY_LAYERS}
BANDWIDTH = "bandwidth"
COPIES = "copies"  # in the content: paths that have the value of a parameter too, by its own path
GENERATION_WIDTH, DEVICE_WIDTH = {BANDWIDTH: 1.12}, {BANDWIDTH: 1.08}  # of shares of the bandwidth
GENERATION_OTHER, DEVICE_OTHER = 1.5, 1.2  # of shares of the peak
Content = dict[str, Any]
Phase = str
PHASES: tuple[Phase, ...] = ("decode", "prefill")


@dataclass(frozen=True, slots=True)
class Parameter:
    """A number in the file, by its path; ``width`` of its prior is a factor."""

    path: tuple[str, ...]
    prior: float
    width: float

    def read(self, content: Mapping[str, Any], otherwise: float | None = None) -> float:
        found: Any = content
        for key in self.path:
            if key not in found and otherwise is not None:
                return otherwise
            found = found[key]
        return float(found)

    def write(self, content: Content, value: float) -> None:
        for path in (self.path, *content.get(COPIES, {}).get(self.path, ())):
            found: Any = content
            for key in path[:-1]:
                found = found.setdefault(key, {})
            found[path[-1]] = value

    def concerns(self, row: Row) -> bool:
        """Whether the rate of a row can depend on it."""
        first, *rest = self.path
        devices = row.target.members or (row.target,)
        if first == "engine":
            name, *rest = rest
            return name in (row.engine.name, row.engine.like) and (
                len(rest) == 1
                or rest[0] in ("slower", "unpack")
                or rest[1] in {*(device.vendor for device in devices), "other"}
            )
        if first == "generation":
            return rest[0] in (BANDWIDTH, row.engine.name) and any(rest[1] == device.generation for device in devices)
        if first == "device":
            return rest[0] in (BANDWIDTH, row.engine.name) and any(rest[1] == device.name for device in devices)
        if rest == ["of_kind", "datacenter"]:
            return any(device.kind == "datacenter" for device in devices)
        if first == "links":
            return row.target.count > 1
        if first == "format":
            return any(group(line.scheme) == rest[0] for line in row.storage.read)
        if first in (BANDWIDTH, "launch", "multiply"):
            return rest[-1] in {*(device.vendor for device in devices), "other"}
        return True


def _engine(name: str, **known: tuple[float, float] | dict[str, tuple[float, float]]) -> list[Parameter]:
    found = []
    for key, value in known.items():
        each = value.items() if isinstance(value, dict) else [("", value)]
        for vendor, (prior, width) in each:
            path = ("engine", name, key, *([vendor] if vendor else []))
            found.append(Parameter(path, prior, width))
    return found


SHARED = (
    Parameter((BANDWIDTH, "NVIDIA"), 0.85, 1.1),  # streaming kernels reach it on every generation
    Parameter((BANDWIDTH, "AMD"), 0.75, 1.2),
    Parameter((BANDWIDTH, "Apple"), 0.75, 1.2),
    Parameter((BANDWIDTH, "Intel"), 0.6, 1.3),
    Parameter(("format", "iq"), 0.80, 1.3),
    Parameter(("format", "nvfp4"), 1.0, 1.15),
    Parameter(("launch", "cycles_per_layer", "NVIDIA"), 150e3, 1.8),
    Parameter(("launch", "of_kind", "datacenter"), 1.3, 1.6),
    Parameter(("launch", "seconds_per_layer", "Apple"), 80e-6, 1.8),
    Parameter(("launch", "seconds_per_layer", "AMD"), 130e-6, 1.8),
    Parameter(("multiply", "per_slot", "other"), 0.115, 1.4),
    Parameter(("multiply", "per_slot", "AMD"), 0.06, 1.8),
    Parameter(("multiply", "per_slot", "Apple"), 0.115, 1.6),
    Parameter(("slower", "nvfp4"), 1.2, 1.3),
    Parameter(("slower", "int4"), 1.1, 1.3),
)
LINKS = (
    Parameter(("links", "sum_s", "NVIDIA"), 15e-6, 1.6),  # NCCL's, over PCIe
    Parameter(("links", "sum_s", "peer"), 8e-6, 1.6),  # kernels of vLLM and TensorRT-LLM in one shot: vLLM PR 2192
    Parameter(("links", "sum_s", "Apple"), 160e-6, 1.6),
    Parameter(("links", "share", "consumer"), 0.4, 1.6),
    Parameter(("links", "share", "other"), 0.7, 1.5),
    Parameter(("links", "pipelined", "other"), 0.6, 1.3),
    Parameter(("links", "pipelined", "mlx"), 0.9, 1.2),  # no device waits between passes
)
SEVERAL = {"NVIDIA": (3.0, 1.6), "AMD": (13.0, 1.8), "Apple": (2.0, 1.6)}
ENGINES = (
    *_engine(
        "llama.cpp",
        overlap=(1.3, 1.3),
        cache={"NVIDIA": (1.1, 1.4), "AMD": (1.5, 1.8), "Apple": (1.5, 1.6)},
        unfused=(1.5, 1.6),
        activations={"other": (1.0, 1.6)},
        sequence_s=(30e-6, 2.0),
        expert_layers=(0.5, 1.8),
        many_layers=(1.7, 1.5),  # products of one token are fused with what follows, those of more are not: mmvq.cu
        prefill={"NVIDIA": (0.5, 1.6), "AMD": (0.5, 1.8), "Apple": (0.70, 1.4)},
        plain={"NVIDIA": (1.25, 1.6), "AMD": (0.9, 1.6), "Apple": (1.05, 1.2)},
        attention=SEVERAL,
        wide={"AMD": (0.22, 1.5)},
        scaled={"NVIDIA": (6.0, 1.5), "AMD": (2.5, 1.6)},
        state_token_s={"NVIDIA": (0.35e-6, 1.6), "AMD": (1e-6, 1.6)},
        experts={"NVIDIA": (4.0, 1.8), "AMD": (4.0, 1.8), "Apple": (2.0, 1.8)},
        idle_rows={"NVIDIA": (48.0, 2.0), "AMD": (48.0, 2.0), "Apple": (32.0, 2.0)},
    ),
    *_engine(
        "llamafile",
        bandwidth=(0.9, 1.2),
        launch=(1.3, 1.6),
        prefill={"NVIDIA": (0.4, 1.6), "AMD": (0.35, 1.8), "Apple": (0.60, 1.4)},
    ),
    *_engine(
        "llama.cpp-vulkan",
        bandwidth=(0.95, 1.2),
        cache=(1.5, 1.8),
        activations={"other": (1.0, 1.6)},
        expert_layers=(0.5, 1.8),
        prefill={"NVIDIA": (0.5, 1.6), "AMD": (0.25, 1.8), "Intel": (0.16, 1.8)},
        attention=(8.0, 1.8),
        experts=(3.0, 1.8),
    ),
    Parameter(
        ("engine", "llama.cpp", "slower", "mxfp4 Blackwell"), 0.72, 1.1
    ),  # prefill 1.27 times as fast: PR 17906
    Parameter(("engine", "llama.cpp-vulkan", "slower", "bf16"), 3.0, 2.0),
    *_engine(
        "mlx",
        bandwidth=(1.05, 1.2),
        cache=(1.2, 1.6),
        unfused=(1.5, 1.6),
        launch=(0.8, 1.8),
        activations={"other": (1.0, 1.6)},
        expert_layers=(0.5, 1.8),
        prefill=(0.75, 1.4),
        attention=(2.0, 1.6),
        experts=(3.0, 1.8),
    ),
    *_engine(
        "vllm",
        bandwidth=(1.0, 1.15),
        overlap=(2.0, 1.4),
        cache=(1.2, 1.5),
        launch=(1.0, 2.0),
        pass_s=(1e-3, 2.0),
        activations={"other": (1.0, 1.6)},
        sequence_s=(30e-6, 2.0),
        expert_layers=(0.5, 2.0),
        prefill={"NVIDIA": (0.5, 1.5), "AMD": (0.4, 1.6)},
        attention=(2.0, 1.6),
        experts=(3.0, 1.8),
        idle_rows=(32.0, 2.0),
    ),
    Parameter(("engine", "vllm", "slower", "fp8 Blackwell"), 2.0, 1.4),
    # Tuned kernels reach 154 TFLOP/s with experts and 356 without: forums.developer.nvidia.com 359960.
    Parameter(("engine", "vllm", "slower", "experts Blackwell SoC"), 1.5, 1.3),
    Parameter(("engine", "vllm", "slower", "fp8 Blackwell SoC"), 4.0, 1.4),
    *_engine(
        "tensorrt-llm",
        bandwidth=(1.0, 1.15),
        launch=(1.0, 2.0),
        sequence_s=(15e-6, 2.0),
        prefill={"NVIDIA": (0.55, 1.5)},
    ),
    *_engine(
        "transformers",
        call_s={"other": (9e-6, 1.5)},
        cache={"other": (1.5, 1.5)},
        unpack={"int4": (7.7, 1.5)},
        prefill={"NVIDIA": (0.75, 1.5)},  # between 0.6 and the 0.89 that our row of an H200 needs: benchmarks/gpu.md
        attention={"other": (3.0, 1.6)},
    ),
)
PARAMETERS = (*SHARED, *LINKS, *ENGINES)


def levels(rows: Iterable[Row]) -> list[Parameter]:
    """Factors of the generations and devices of ``rows``, on shares of the bandwidth and of each engine's peak."""
    found: dict[tuple[str, ...], Parameter] = {}
    for row in rows:
        for device in row.target.members or (row.target,):
            for what in (BANDWIDTH, row.engine.name):
                for level, name, widths, other in (
                    ("generation", device.generation, GENERATION_WIDTH, GENERATION_OTHER),
                    ("device", device.name, DEVICE_WIDTH, DEVICE_OTHER),
                ):
                    path = (level, what, name)
                    found.setdefault(path, Parameter(path, 1.0, widths.get(what, other)))
    return list(found.values())


def priors(content: Content) -> Content:
    """``content`` with every parameter at its prior."""
    changed = copy.deepcopy(content)
    for parameter in PARAMETERS:
        parameter.write(changed, parameter.prior)
    return changed


def predicted(row: Row, content: Content, phase: Phase) -> float:
    """Seconds of a phase of a row."""
    return Timed([row], [phase]).predict(content, [0])[0]


def _machine(row: Row) -> tuple[Any, ...]:
    """What the rates of a row depend on."""
    shape = row.model if row.target.count > 1 else ""
    return row.target, row.machine.split, row.engine.name, row.request.dtype, shape


class Timed:
    """Observations with precomputed work, so that a fit can predict them many times."""

    def __init__(self, rows: Sequence[Row], phases: Sequence[Phase] = PHASES) -> None:
        known = [(row, phase) for row in rows for phase in phases if row.counts(phase)]
        self.rows = [row for row, _ in known]
        self.phases = [phase for _, phase in known]
        self.parts = [row.parts(phase) for row, phase in known]
        self.tokens = [row.tokens(phase) for row, phase in known]
        self.measured = np.array([row.seconds(phase) for row, phase in known], dtype=float)
        self.log = np.log(self.measured)
        same: dict[Any, int] = {}  # small keys, because hashing a target takes longer than its rates
        self.keys = [same.setdefault(_machine(row), len(same)) for row in self.rows]

    def predict(self, content: Content, which: Sequence[int] | None = None) -> list[float]:
        """Seconds of the observations with the indices ``which``; of all without them."""
        rates: dict[Any, Rates] = {}
        found = []
        for index in range(len(self.rows)) if which is None else which:
            row, key = self.rows[index], self.keys[index]
            if key not in rates:
                rates[key] = row.rates(content)
            each = rates[key]
            total = 0.0
            for part in self.parts[index]:
                seconds = sum(times * row.timed(each, done, content) for times, done in part.works)
                total += part.tokens / seconds
            found.append(self.tokens[index] * len(self.parts[index]) / total)
        return found


def weights(timed: Timed) -> np.ndarray:
    """Weights of observations: by trust, and growing only with the square root of a device's number of rows."""
    keys = [(row.target.title, row.engine.name, phase) for row, phase in zip(timed.rows, timed.phases, strict=True)]
    counts = Counter(keys)
    return np.array([row.weight / math.sqrt(counts[key]) for row, key in zip(timed.rows, keys, strict=True)])


class Fit:
    """A fit to observations, that can be repeated without some of them."""

    def __init__(self, timed: Timed, start: Content, note: Callable[[str], None] = lambda text: None) -> None:
        self.timed, self.start, self.note = timed, start, note
        self.parameters = [*PARAMETERS, *levels(timed.rows)]
        self.concerned = [
            np.array([index for index, row in enumerate(timed.rows) if parameter.concerns(row)], dtype=int)
            for parameter in self.parameters
        ]
        self.prior = np.log([parameter.prior for parameter in self.parameters])
        self.stiffness = 1 / np.log([parameter.width for parameter in self.parameters])
        self.base = weights(timed)
        self.least = np.log([LEAST.get(parameter.path[2:3], 1e-9) for parameter in self.parameters])
        self.most = np.log([MOST.get(parameter.path[2:3], 1e9) for parameter in self.parameters])

    def content(self, at: np.ndarray) -> Content:
        """The file's content with the parameters at ``at``."""
        content = copy.deepcopy(self.start)
        for parameter, value in zip(self.parameters, np.exp(at), strict=True):
            parameter.write(content, float(value))
        return content

    def known(self, content: Content) -> np.ndarray:
        """Parameters as in ``content``; at their priors if it has none."""
        found = [parameter.read(content, otherwise=parameter.prior) for parameter in self.parameters]
        return np.clip(np.log(found), self.least, self.most)

    def slopes(self, at: np.ndarray, logs: np.ndarray) -> np.ndarray:
        """Change of each observation's log seconds with each parameter."""
        content = self.content(at)
        slopes = np.zeros((len(logs), len(at)))
        for column, (parameter, rows) in enumerate(zip(self.parameters, self.concerned, strict=True)):
            if not len(rows):
                continue
            parameter.write(content, math.exp(at[column] + 1e-3))
            slopes[rows, column] = (np.log(self.timed.predict(content, rows)) - logs[rows]) / 1e-3
            parameter.write(content, math.exp(at[column]))
        return slopes

    def equations(
        self, at: np.ndarray, residual: np.ndarray, slopes: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The matrix and the right side of a step of Gauss and Newton, and the robust weights of the observations."""
        robust = self.base * np.minimum(1, HUBER / np.maximum(np.abs(residual), 1e-9)) / HUBER**2
        matrix = slopes.T @ (robust[:, None] * slopes) + np.diag(self.stiffness**2)
        return matrix, slopes.T @ (robust * residual) + self.stiffness**2 * (at - self.prior), robust

    def step(self, at: np.ndarray, residual: np.ndarray, slopes: np.ndarray) -> np.ndarray:
        """The step, with a limit on each parameter."""
        matrix, pull, _ = self.equations(at, residual, slopes)
        return np.clip(np.linalg.solve(matrix, pull), -0.4, 0.4)

    def run(self, at: np.ndarray | None = None, steps: int = STEPS) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Parameters, log seconds and slopes after a fit to all observations, from the priors or ``at``."""
        at = self.prior.copy() if at is None else at
        logs = np.log(self.timed.predict(self.content(at)))
        damping, last = np.ones(len(at)), np.zeros(len(at))
        for _ in range(steps):
            slopes = self.slopes(at, logs)
            wanted = self.step(at, logs - self.timed.log, slopes)
            damping = np.where(wanted * last < 0, damping * TURNED, damping)
            step = at - np.clip(at - damping * wanted, self.least, self.most)
            at, last = at - step, wanted
            logs = np.log(self.timed.predict(self.content(at)))
            largest = self.parameters[int(np.abs(step).argmax())]
            error = np.abs(logs - self.timed.log).mean()
            self.note(f"largest step {np.abs(step).max():.4f} of {'.'.join(largest.path)}, mean error {error:.4f}")
            if np.abs(step).max() < SMALL_STEP:
                break
        return at, logs, self.slopes(at, logs)

    def without(self, at: np.ndarray, logs: np.ndarray, slopes: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        """Gives the parameters of a fit without some observations, by their indices: the solution of the equations
        around the fit to all, without those observations. Factors that only they support return to their priors."""
        residual = logs - self.timed.log
        matrix, pull, robust = self.equations(at, residual, slopes)

        def solve(left_out: np.ndarray) -> np.ndarray:
            own, weight = slopes[left_out], robust[left_out]
            without = matrix - own.T @ (weight[:, None] * own)
            found = at - np.linalg.solve(without, pull - own.T @ (weight * residual[left_out]))
            return np.clip(found, self.least, self.most)

        return solve
