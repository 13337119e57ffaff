"""Measured ceilings and rates of a device of this machine, stored in a file named by the device's fingerprint.

A ceiling is the best result of several kernels and thread counts, so that no real program exceeds it: an MBU or MFU
above 1 is a bug of ours. Rates are what PyTorch's own kernels sustain; predictions are based on them.

On a shared machine one minute may be a third slower than the next. The last few calibrations are therefore stored and
combined: the best of each ceiling, the median of each rate.
"""

from __future__ import annotations

import json
import math
import os
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from profiler import files, folders
from profiler.case import digest
from profiler.devices.base import DeviceInfo
from profiler.errors import ProfileError
from profiler.foreign import read_json
from profiler.models.layers import GatedDelta

SCHEMA = 7
# What is timed. A change here changes the meaning of stored figures, so it needs a new SCHEMA and a reader for the
# old one.
STEP_LAYERS = 12  # of the small Llama model whose decode step is timed
STEP_PRODUCTS = 7 * STEP_LAYERS + 1  # linear layers in that model, output head included
DELTA = GatedDelta(key_heads=8, value_heads=8, key_dim=128, value_dim=128, kernel=4)
DELTA_TOKENS = 512
KEPT = 5  # calibrations that are stored for each device
BETWEEN_NEEDS = 3  # calibrations needed to estimate the process-to-process variation
DERIVED = ("runs", "between")  # fields derived from several calibrations, not stored
USUAL_LAYER = (4e6, 2048.0, 1.0)  # of a typical linear layer: bytes, output features, count
BEST = {"read_bytes_s": max, "copy_bytes_s": max, "flops": max}
PACKAGES = ("torch", "bitsandbytes")  # packages whose kernels are measured
WORK_S = ("step_s", "elementwise_s", "fresh_byte_s", "delta_s", "convolutions", "attention")  # CPU rates in seconds


class LayerKernel(NamedTuple):
    """The kernel that multiplies a linear layer: PyTorch's or bitsandbytes' for a quantization, or our own."""

    quant: str
    own: bool = False  # our matvec kernel, which decode steps use

    def __str__(self) -> str:
        return f"{self.quant}, our kernel" if self.own else self.quant


@dataclass(frozen=True, slots=True)
class LayerCost:
    """The cost of a linear layer for one number of tokens: ``bytes × byte_s + output features × row_s + call_s``.

    All in seconds.
    """

    byte_s: float
    row_s: float
    call_s: float

    @property
    def usual_s(self) -> float:
        """Seconds of a typical layer."""
        nbytes, rows, count = USUAL_LAYER
        return nbytes * self.byte_s + rows * self.row_s + count * self.call_s

    def divided(self, by: float) -> LayerCost:
        """The cost on a device that is ``by`` times as fast."""
        return LayerCost(self.byte_s / by, self.row_s / by, self.call_s / by)


@dataclass(frozen=True)
class LinearLayer:
    """The measured costs of linear layers with one kernel."""

    costs: Mapping[int, LayerCost]  # by tokens in the pass
    head: Mapping[int, float] = field(default_factory=dict)  # slowdown of an output head ÷ ``costs``, by tokens
    start_s: float | None = None  # GPU: time to launch one layer from Python, which overlaps with the GPU's work

    @cached_property
    def points(self) -> list[tuple[float, LayerCost]]:
        """Costs with the logarithm of their tokens, sorted."""
        return [(math.log(tokens), self.costs[tokens]) for tokens in sorted(self.costs)]

    def seconds(self, tokens: float, nbytes: float, rows: float, count: float, head: bool = False) -> float:
        """Seconds for ``count`` layers with ``nbytes`` and ``rows`` output features in total.

        Between measured numbers of tokens, the logarithm of the time is interpolated linearly in the logarithm of the
        tokens. Beyond the largest one, time is proportional to tokens, because arithmetic is then the limit.
        """

        def at(cost: LayerCost, factor: float = 1.0) -> float:
            return (nbytes * cost.byte_s + rows * cost.row_s) * factor + count * cost.call_s

        longer = self._head(tokens) if head else 1.0
        place = math.log(max(tokens, 1.0))
        last_place, last = self.points[-1]
        if place >= last_place:
            return longer * at(last, math.exp(place - last_place))
        for (left, low), (right, high) in pairwise(self.points):
            if place <= right:
                share = max(0.0, place - left) / (right - left)
                return float(longer * at(low) ** (1 - share) * at(high) ** share)
        return longer * at(last)

    def _head(self, tokens: float) -> float:
        """The factor at the nearest measured number of tokens."""
        if not self.head:
            return 1.0
        return self.head[min(self.head, key=lambda known: abs(math.log(known / max(tokens, 1.0))))]

    def divided(self, by: float) -> LinearLayer:
        """The costs on a device that is ``by`` times as fast."""
        costs = {tokens: cost.divided(by) for tokens, cost in self.costs.items()}
        return replace(self, costs=costs, start_s=None if self.start_s is None else self.start_s / by)


Layers = Mapping[LayerKernel, LinearLayer]


@dataclass(frozen=True)
class Ceilings:
    """One calibration, or several combined: ceilings and rates. Bytes per second, FLOP per second, seconds.

    ``None`` if a figure does not apply to the device.
    """

    title: str
    fingerprint: str
    measured_at: str
    seconds: float  # duration of the calibration
    process_bytes: int  # of a worker before it loads a model; 0 if unknown
    # Ceilings.
    read_bytes_s: float  # streaming, best kernel and thread count
    copy_bytes_s: float  # bytes read plus bytes written
    flops: Mapping[str, float]  # matrix products, by dtype
    # Rates: seconds as measured. The predictor decides which operators, and how many, they consist of.
    graph_step_s: float | None  # ``step_s`` as a CUDA graph, in the default dtype: the time of the GPU itself
    step_s: Mapping[str, float]
    """A decode step of the small Llama without its linear layers, by dtype: fp32 and the device's default."""
    elementwise_s: Mapping[str, float]
    """Element-wise operators of a prefill, per layer and byte of hidden states, by the same dtypes."""
    fresh_byte_s: float  # extra seconds per byte written to freshly mapped pages
    delta_s: float  # a gated delta rule, ``DELTA``, over one sequence of ``DELTA_TOKENS``
    convolutions: Mapping[str, Mapping[str, float]]
    """Depthwise convolutions, by dtype: seconds per channel (``channel_s``), plus those for each further sequence
    (``sequence_s``) and for each token of a pass (``token_s``)."""
    attention: Mapping[str, Mapping[str, float]]
    """By dtype: ``step_byte_s`` per byte of K and V in a decode step that appends to the cache and reads it,
    ``pass_flop_s`` per FLOP of a prefill pass and, where our decode step runs, ``own_byte_s`` per byte that it
    reads."""
    layers: Layers
    how: Mapping[str, str] = field(default_factory=dict)  # kernel and number of threads that gave a figure
    runs: int = 1  # number of combined calibrations
    between: Mapping[str, float] | None = None
    """Process-to-process variation by phase (standard deviation ÷ median), from these calibrations. ``None`` for
    fewer than ``BETWEEN_NEEDS``."""

    def step(self, dtype: str) -> float:
        """``step_s``; the value of fp32 for a dtype that was not measured."""
        return self.step_s.get(dtype, self.step_s["fp32"])

    def elementwise(self, dtype: str) -> float:
        """``elementwise_s``; the value of fp32 for a dtype that was not measured."""
        return self.elementwise_s.get(dtype, self.elementwise_s["fp32"])

    def linear(self, quant: str, own: bool = False) -> LinearLayer | None:
        """Linear layers of a quantization; ``None`` if it was not measured."""
        return self.layers.get(LayerKernel(quant, own))

    def at_duty_cycle(self, share: float) -> Ceilings:
        """The ceilings of the same CPU when a quota lets the process run for this ``share`` of the time.

        Under a quota, a calibration measures only the time in which the process runs.
        """
        if share >= 1:
            return self
        slower = {name: _divided(getattr(self, name), share) for name in WORK_S}
        faster = {name: _divided(getattr(self, name), 1 / share) for name in BEST}
        return replace(
            self, **slower, **faster, layers={name: each.divided(share) for name, each in self.layers.items()}
        )


@dataclass(frozen=True)
class QuickCeilings:
    """The two ceilings of MBU and MFU, measured within seconds; too uncertain for predictions."""

    title: str
    fingerprint: str
    measured_at: str
    seconds: float
    read_bytes_s: float
    flops: Mapping[str, float]  # matrix products, by dtype
    basis: str = "quick"  # calibrated: they are part of a calibration

    def at_duty_cycle(self, share: float) -> QuickCeilings:
        """These ceilings on a CPU that may work for this share of the time, as ``Ceilings.at_duty_cycle``."""
        return replace(self, read_bytes_s=self.read_bytes_s * share, flops=_divided(self.flops, 1 / share))


def _divided(value: Any, by: float) -> Any:
    """A number, or each value of a mapping, divided by ``by``."""
    return {name: _divided(each, by) for name, each in value.items()} if isinstance(value, Mapping) else value / by


def fingerprint(device: DeviceInfo, packages: Sequence[str] | None = None) -> str:
    """A hash of the device, its driver, the part of it that this process may use, and the measured packages.

    ``packages``: the versions of ``PACKAGES`` to use; None: the installed ones.
    """
    versions = [_version(name) for name in PACKAGES] if packages is None else list(packages)
    parts = [device.kind, device.title, device.cores, sorted(device.features), device.uuid, device.driver, versions]
    return digest([*parts, device.confinement] if device.confinement else parts)


def folder() -> Path:
    """Next to the default store: in the folder of ``$PROFILER_STORE``, else in the user data folder.

    Calibrations belong to the machine, not to a store, so ``--store`` does not change which are used.
    """
    named = os.environ.get("PROFILER_STORE")
    return folders.expanded(named).parent / "ceilings" if named else folders.data() / "ceilings"


def load(device: DeviceInfo, packages: Sequence[str] | None = None) -> Ceilings | None:
    """The measured ceilings of ``device``; ``None`` if there are none or its fingerprint has changed.

    ``packages`` as for ``fingerprint``.
    """
    try:
        if not folder().is_dir():  # looking up the versions of packages takes longer than a prediction
            return None
        mark = fingerprint(device, packages)
        found = _runs(folder() / f"{mark}.json", mark)
    except ProfileError:  # no home folder, so nothing is stored
        return None
    return combined(found) if found else None


def load_quick(device: DeviceInfo) -> QuickCeilings | None:
    """The two ceilings of ``device``, whatever its threads: of its calibrations, else as a sweep measured them."""
    device = whole(device)
    if (known := load(device)) is not None:
        about = known.title, known.fingerprint, known.measured_at, known.seconds
        return QuickCeilings(*about, known.read_bytes_s, known.flops, "calibrated")
    mark = fingerprint(device)
    try:
        content = read_json(_quick_path(mark))
    except ProfileError:
        return None
    found = parse_quick(content) if isinstance(content, Mapping) else None
    return found if found is not None and found.fingerprint == mark else None


def whole(device: DeviceInfo) -> DeviceInfo:
    """``device`` with one thread per core, as by default: fewer threads do not make it a slower device."""
    return replace(device, threads=device.physical)


def save_quick(ceilings: QuickCeilings) -> None:
    """Store the two ceilings of a device. Raises ProfileError if the folder cannot be written."""
    path = _quick_path(ceilings.fingerprint)
    with _storing(path):
        files.write(path, json.dumps(asdict(ceilings), indent=1))


def parse_quick(content: Mapping[str, Any]) -> QuickCeilings | None:
    """Two stored ceilings; ``None`` if a figure is missing or impossible."""
    try:
        found = QuickCeilings(**{one.name: content[one.name] for one in fields(QuickCeilings) if one.name != "basis"})
        numbers = [found.seconds, found.read_bytes_s, *found.flops.values()]
    except (AttributeError, KeyError, TypeError):
        return None
    return found if found.flops and all(map(_is_number, numbers)) and min(numbers) > 0 else None


def _quick_path(mark: str) -> Path:
    return folder() / f"{mark}.quick.json"


def _runs(path: Path, mark: str) -> list[Ceilings]:
    """The calibrations in a file, oldest first. Unreadable ones are ignored."""
    try:
        contents = read_json(path)
    except ProfileError:
        return []
    known = contents if isinstance(contents, list) else []
    found = [parse(content) for content in known if isinstance(content, dict)]
    return [one for one in found if one is not None and one.fingerprint == mark]


def combined(found: Sequence[Ceilings]) -> Ceilings:
    """Combine calibrations of one device, newest last: the best of each ceiling, the median of each rate.

    The costs of a kernel's linear layers at one number of tokens come from a single calibration, the one in which a
    typical layer takes the median time.
    """
    newest = found[-1]

    def middle(name: str) -> Any:
        return _by_rule([getattr(one, name) for one in found], BEST.get(name, statistics.median))

    own = ("title", "fingerprint", "measured_at", "seconds", "layers", "how", "runs", "between")
    return replace(
        newest,
        **{name: middle(name) for name in Ceilings.__dataclass_fields__ if name not in own},
        layers={
            kernel: _usual([one.layers[kernel] for one in found if kernel in one.layers]) for kernel in newest.layers
        },
        how=max(found, key=lambda one: one.read_bytes_s).how,
        runs=len(found),
        between=_between(found),
    )


def _between(found: Sequence[Ceilings]) -> dict[str, float] | None:
    """The standard deviation of the logarithm of a layer's time, from calibrations that each ran in its own process.

    For decode it is taken at the fewest tokens with which all quantizations were measured, for prefill at the most.
    ``None`` for fewer than ``BETWEEN_NEEDS`` calibrations, or if they share no quantization.
    """
    several = [name for name in set.intersection(*(set(one.layers) for one in found)) if not name.own]
    costs = [[one.layers[name].costs for one in found] for name in several]
    tokens = [set(each) for of_quant in costs for each in of_quant]
    if len(found) < BETWEEN_NEEDS or not tokens or not (common := set.intersection(*tokens)):
        return None

    def spread(tokens: int) -> float:
        taken = ([each[tokens].usual_s for each in of_quant] for of_quant in costs)
        return statistics.median([statistics.stdev(map(math.log, each)) for each in taken if min(each) > 0] or [0.0])

    return {"prefill": spread(max(common)), "decode": spread(min(common))}


def _by_rule(values: Sequence[Any], rule: Callable[[Sequence[float]], float]) -> Any:
    """Combine numbers by ``rule``, and mappings key by key; the last value decides which keys there are."""
    if isinstance(values[-1], Mapping):
        return {key: _by_rule([each[key] for each in values if key in each], rule) for key in values[-1]}
    known = [value for value in values if value is not None]
    return rule(known) if known else None


def _usual(found: Sequence[LinearLayer]) -> LinearLayer:
    """Combine several measurements of one kernel, the newest last: the median of each cost."""

    def middle(costs: list[LayerCost]) -> LayerCost:
        return sorted(costs, key=lambda cost: cost.usual_s)[(len(costs) - 1) // 2]

    last = found[-1]
    starts = [each.start_s for each in found if each.start_s is not None]
    return LinearLayer(
        costs={n: middle([each.costs[n] for each in found if n in each.costs]) for n in last.costs},
        head=_by_rule([each.head for each in found], statistics.median),
        start_s=statistics.median(starts) if starts and last.start_s is not None else None,
    )


def save(ceilings: Ceilings, fresh: bool = False) -> Path:
    """Store a calibration after earlier ones of the device or, with ``fresh``, instead of them. Returns the file.

    Raises ProfileError if the folder cannot be written.
    """
    path = folder() / f"{ceilings.fingerprint}.json"
    runs = [*([] if fresh else _runs(path, ceilings.fingerprint)), ceilings][-KEPT:]
    with _storing(path):
        files.write(path, json.dumps([to_json(one) for one in runs], indent=1))
    return path


def check_folder() -> None:
    """Raise ProfileError if ``save`` would fail."""
    path = folder() / "ceilings.json"
    with _storing(path):
        files.check(path)


@contextmanager
def _storing(path: Path) -> Iterator[None]:
    """Create the folder, and turn errors into a ProfileError that says what to do."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except (OSError, ProfileError) as error:
        why = error.message if isinstance(error, ProfileError) else folders.describe(error)
        raise ProfileError(f"the ceilings cannot be stored: {why}", "PROFILER_STORE names another folder.") from None


def to_json(ceilings: Ceilings) -> dict[str, Any]:
    """One calibration in the form that is stored; ``parse`` reads it."""
    known = {one.name: getattr(ceilings, one.name) for one in fields(ceilings) if one.name not in DERIVED}
    return {"schema": SCHEMA} | known | {"layers": layers_json(ceilings.layers)}


def layers_json(layers: Layers) -> list[dict[str, Any]]:
    """One record per kernel. Files call its quantization ``scheme``."""
    return [{"scheme": kernel.quant, "own": kernel.own} | asdict(layer) for kernel, layer in layers.items()]


def parse(content: Mapping[str, Any]) -> Ceilings | None:
    """One stored calibration; ``None`` if its schema is unknown or a figure in it is impossible."""
    try:
        version = content.get("schema")
        if version == 6:
            return _parse(_from_6(content))
        return _parse(content) if version == SCHEMA else None
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError):
        return None


# Schema 6 stored times divided by these counts: operators of a step, those without its linear layers, tensors of the
# hidden width that the operators of a layer read and write, FLOPs of the gated delta rule.
COUNTS_6 = {"step": 12 * 48 + 30, "graph_step": 12 * 48 + 30 - 85, "elementwise": 75, "delta": 671_088_640}
OWN_6 = " rows"  # in schema 6, the suffix of a quantization that our own kernel multiplied


def _from_6(content: Mapping[str, Any]) -> dict[str, Any]:
    """Schema 6 as schema 7: times as they were measured, and kernels as a quantization and ``own``."""
    new = {"schema": SCHEMA, **content}
    costs, head, starts = new.pop("products"), new.pop("tall"), new.pop("host_s")
    graph_call_s = new.pop("graph_call_s")
    return new | {
        "step_s": {dtype: value * COUNTS_6["step"] for dtype, value in new.pop("call_s").items()},
        "graph_step_s": None if graph_call_s is None else graph_call_s * COUNTS_6["graph_step"],
        "elementwise_s": {d: value * COUNTS_6["elementwise"] for d, value in new.pop("activation_s").items()},
        "delta_s": new.pop("delta_flop_s") * COUNTS_6["delta"],
        "layers": [
            {
                "scheme": name.removesuffix(OWN_6),
                "own": name.endswith(OWN_6),
                "costs": by_tokens,
                "head": head.get(name, {}),
                "start_s": starts.get(name),
            }
            for name, by_tokens in costs.items()
        ],
    }


def _parse(content: Mapping[str, Any]) -> Ceilings | None:
    known = {name: value for name, value in content.items() if name not in ("schema", *DERIVED)}
    by_dtype = ("step_s", "elementwise_s")
    if not all("fp32" in known[name] for name in by_dtype):
        return None
    layers = {LayerKernel(each["scheme"], each["own"]): _layer(each) for each in known["layers"]}
    positive = [known[name] for name in ("read_bytes_s", "copy_bytes_s", "delta_s", "seconds")]
    positive += [value for name in (*by_dtype, "flops", "attention") for value in _leaves(known[name])]
    positive += [value for layer in layers.values() for value in layer.head.values()]
    positive += [
        value for value in (known["graph_step_s"], *(layer.start_s for layer in layers.values())) if value is not None
    ]
    others = [known["process_bytes"], known["fresh_byte_s"], *_leaves(known["convolutions"])]
    others += [value for layer in layers.values() for cost in layer.costs.values() for value in asdict(cost).values()]
    numbers = all(map(_is_number, (*positive, *others)))
    if not numbers or min(positive) <= 0 or min(others) < 0 or not isinstance(known["how"], Mapping):
        return None
    return Ceilings(**known | {"layers": layers})


def _layer(record: Mapping[str, Any]) -> LinearLayer:
    """A record of ``layers_json``. Raises ValueError, KeyError, TypeError or AttributeError for anything else."""
    costs = {int(tokens): LayerCost(**cost) for tokens, cost in record["costs"].items()}
    head = {int(tokens): factor for tokens, factor in record["head"].items()}
    if (
        not isinstance(record["scheme"], str)
        or not isinstance(record["own"], bool)
        or not costs
        or min(*costs, *head, 1) < 1
    ):
        raise ValueError("it is not a linear layer")
    return LinearLayer(costs, head, record["start_s"])


def _leaves(tree: Mapping[str, Any]) -> Iterator[Any]:
    for value in tree.values():
        if isinstance(value, Mapping):
            yield from _leaves(value)
        else:
            yield value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _version(name: str) -> str:
    from importlib.metadata import PackageNotFoundError, version  # slow to import, and only local devices need it

    try:
        return version(name)
    except PackageNotFoundError:
        return ""
