"""What a device of this machine was measured to do, kept in a file under the device's fingerprint.

Ceilings are the best of several kernels and thread counts, so that no real program beats them: a fraction above 1 of
one is a bug of ours. Rates are what PyTorch's own kernels reach in a long run, and what predictions are made of.

On a shared machine a minute may be a third slower than the next, so the last calibrations are kept and taken
together: of ceilings the best, of rates the middle one.
"""

from __future__ import annotations

import json
import math
import os
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

from profiler import files, folders
from profiler.case import digest
from profiler.devices.base import DeviceInfo
from profiler.errors import ProfileError
from profiler.foreign import read_json

SCHEMA = 6
LIKE = {"fp4": "nf4", "nf4-dq": "nf4"}  # formats that take the kernels of another
KEPT = 5  # calibrations, the last ones
BETWEEN_NEEDS = 3  # of them, to tell how much processes differ
DERIVED = ("runs", "between")  # of several, and in no file
USUAL_LAYER = (4e6, 2048.0, 1.0)  # bytes, output features, number: by what it takes, products are compared
BEST = {"read_bytes_s": max, "copy_bytes_s": max, "flops": max}
PACKAGES = ("torch", "bitsandbytes")  # whose kernels were measured
WORK_S = (  # fields that are seconds
    *("call_s", "activation_s", "fresh_byte_s", "delta_flop_s", "convolutions", "attention", "products", "host_s"),
)


@dataclass(frozen=True, slots=True)
class Cost:
    """Of a linear layer at one number of tokens: ``bytes × byte_s + output features × row_s + call_s`` seconds."""

    byte_s: float
    row_s: float
    call_s: float


@dataclass(frozen=True)
class Ceilings:
    """Bytes per second, FLOP per second, seconds. ``None`` where there is no such thing."""

    title: str
    fingerprint: str
    measured_at: str
    seconds: float  # that measuring took
    process_bytes: int  # of a worker before it loads a model; 0 where the system does not say
    # Ceilings.
    read_bytes_s: float  # streaming, best kernel and thread count
    copy_bytes_s: float  # read and written bytes together
    flops: Mapping[str, float]  # matrix products, by dtype
    # Rates.
    graph_call_s: float | None  # what a GPU takes for one small operator of a step, however it is started
    call_s: Mapping[str, float]  # one small operator, called from Python; by dtype, fp32 and the device's own
    activation_s: Mapping[str, float]  # per byte that element-wise operators of a prefill read and write, likewise
    fresh_byte_s: float  # per byte of memory that is mapped anew for a result
    delta_flop_s: float  # per FLOP of a gated delta rule in a pass
    convolutions: Mapping[str, Mapping[str, float]]
    """Depthwise, by dtype: seconds per channel (``channel_s``), and more for each further sequence (``sequence_s``)
    and each token of a pass (``token_s``)."""
    attention: Mapping[str, Mapping[str, float]]
    """By dtype: ``step_byte_s`` per byte of K and V that a step appends to and reads, ``pass_flop_s`` in a pass, and
    where there is one ``own_byte_s`` per byte that a decode step of ours reads."""
    products: Mapping[str, Mapping[str, Mapping[str, float]]]
    """The ``Cost`` of a linear layer by format and by tokens in the pass (as text). ``fp32 rows`` (``rows_of``) are
    those of the loops of our own decode step on a CPU."""
    tall: Mapping[str, Mapping[str, float]]  # how much longer an output head takes than other layers, likewise
    host_s: Mapping[str, float]  # a linear layer, started from Python; by format, of a GPU, which works meanwhile
    how: Mapping[str, str] = field(default_factory=dict)  # kernel and threads behind a figure
    runs: int = 1  # calibrations that it is made of
    between: Mapping[str, float] | None = None
    """By phase, how much processes that do the same differ, standard deviation ÷ median: as these calibrations do.
    ``None`` of fewer than three."""

    @cached_property
    def points(self) -> Mapping[str, list[tuple[float, Cost]]]:
        """Costs by format, sorted: (log tokens, cost)."""
        return {
            scheme: sorted(
                ((math.log(int(tokens)), Cost(**cost)) for tokens, cost in costs.items()), key=lambda point: point[0]
            )
            for scheme, costs in self.products.items()
        }

    def call(self, dtype: str) -> float:
        """Seconds of one small operator; fp32's for a dtype that was not measured."""
        return self.call_s.get(dtype, self.call_s["fp32"])

    def activation(self, dtype: str) -> float:
        """Seconds per byte of element-wise operators, likewise."""
        return self.activation_s.get(dtype, self.activation_s["fp32"])

    def product_s(
        self, scheme: str, tokens: float, nbytes: float, rows: float, count: float, head: bool = False
    ) -> float | None:
        """Seconds for ``count`` linear layers of ``nbytes`` and ``rows`` output features, all together.

        Between measured numbers of tokens straight in logarithms; beyond the last in proportion to tokens: by then
        arithmetic binds. ``None`` for a format not measured.
        """
        points = self.points.get(LIKE.get(scheme, scheme))
        if not points:
            return None

        def at(cost: Cost, factor: float = 1.0) -> float:
            return (nbytes * cost.byte_s + rows * cost.row_s) * factor + count * cost.call_s

        longer = self._tall(scheme, tokens) if head else 1.0
        place = math.log(max(tokens, 1.0))
        last_place, last = points[-1]
        if place >= last_place:
            return longer * at(last, math.exp(place - last_place))
        for (left, low), (right, high) in pairwise(points):
            if place <= right:
                share = max(0.0, place - left) / (right - left)
                return float(longer * at(low) ** (1 - share) * at(high) ** share)
        return longer * at(last)

    def running(self, share: float) -> Ceilings:
        """Of the same CPU where a quota lets the process run for this ``share`` of the time.

        Calibrations under a quota are of the time in which it runs.
        """
        if share >= 1:
            return self
        slower = {name: _divided(getattr(self, name), share) for name in WORK_S}
        faster = {name: _divided(getattr(self, name), 1 / share) for name in BEST}
        return replace(self, **slower, **faster)

    def _tall(self, scheme: str, tokens: float) -> float:
        """At the nearest number of tokens that was measured."""
        known = self.tall.get(scheme)
        if not known:
            return 1.0
        return known[min(known, key=lambda name: abs(math.log(int(name) / max(tokens, 1.0))))]


def _divided(value: Any, by: float) -> Any:
    """A number, or each of a mapping."""
    return {name: _divided(each, by) for name, each in value.items()} if isinstance(value, Mapping) else value / by


def rows_of(scheme: str) -> str:
    """What products of this format are called where loops of ours multiply."""
    return f"{scheme} rows"


def fingerprint(device: DeviceInfo, packages: Sequence[str] | None = None) -> str:
    """Changes when the device, its driver, what this process may use of it or the measured packages do.

    ``packages``: versions of ``PACKAGES`` as they once were; None: as they are now.
    """
    versions = [_version(name) for name in PACKAGES] if packages is None else list(packages)
    parts = [device.kind, device.title, device.cores, sorted(device.features), device.uuid, device.driver, versions]
    return digest([*parts, device.mark] if device.mark else parts)


def folder() -> Path:
    """Beside the results: in the folder of ``$PROFILER_STORE``, else in the user data folder."""
    named = os.environ.get("PROFILER_STORE")
    return folders.expanded(named).parent / "ceilings" if named else folders.data() / "ceilings"


def load(device: DeviceInfo, packages: Sequence[str] | None = None) -> Ceilings | None:
    """What was measured of ``device``; ``None`` if nothing was, or if something about it has changed since.

    ``packages`` as for ``fingerprint``.
    """
    mark = fingerprint(device, packages)
    try:
        found = _runs(folder() / f"{mark}.json", mark)
    except ProfileError:  # no home: nothing can have been kept
        return None
    return together(found) if found else None


def _runs(path: Path, mark: str) -> list[Ceilings]:
    """Calibrations that a file holds, the oldest first; those that cannot be read are as if they had never been."""
    try:
        contents = read_json(path)
    except ProfileError:
        return []
    known = contents if isinstance(contents, list) else []
    found = [_readable(content) for content in known if isinstance(content, dict)]
    return [one for one in found if one is not None and one.fingerprint == mark]


def _readable(content: Mapping[str, Any]) -> Ceilings | None:
    """``parse`` of a file that anything may have written: ``None`` too where a part is of another shape."""
    try:
        found = parse(content)
        by_tokens = () if found is None else (*found.products.values(), *found.tall.values())
        if not all(map(_counts_tokens, by_tokens)):
            return None
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError):
        return None
    return found


def _counts_tokens(by_tokens: Mapping[str, Any]) -> bool:
    return all(int(name) > 0 for name in by_tokens)


def together(found: Sequence[Ceilings]) -> Ceilings:
    """Several calibrations of one device, the newest last: of ceilings the best, of rates the median.

    Costs of products belong together: those of the run in which a usual layer takes the median.
    """
    newest = found[-1]

    def middle(name: str) -> Any:
        return _combined([getattr(one, name) for one in found], BEST.get(name, statistics.median))

    own = ("title", "fingerprint", "measured_at", "seconds", "products", "how", "runs", "between")
    return replace(
        newest,
        **{name: middle(name) for name in Ceilings.__dataclass_fields__ if name not in own},
        products=_usual([one.products for one in found]),
        how=max(found, key=lambda one: one.read_bytes_s).how,
        runs=len(found),
        between=_between(found),
    )


def _between(found: Sequence[Ceilings]) -> dict[str, float] | None:
    """The usual standard deviation, in logarithms, of a layer's time: each calibration is a process of its own.

    Of one token for decode; for prefill of the most tokens that all formats were measured with. ``None`` where
    fewer than ``BETWEEN_NEEDS`` calibrations have a format in common.
    """
    schemes = {
        name for name in set.intersection(*(set(one.products) for one in found)) if not name.endswith(rows_of(""))
    }
    tokens = [set(one.products[scheme]) for one in found for scheme in schemes]
    if len(found) < BETWEEN_NEEDS or not tokens or not (several := set.intersection(*tokens)):
        return None

    def spread(tokens: str) -> float:
        taken = ([_usual_s(one.products[scheme][tokens]) for one in found] for scheme in schemes)
        return statistics.median([statistics.stdev(map(math.log, each)) for each in taken if min(each) > 0] or [0.0])

    return {"prefill": spread(max(several, key=int)), "decode": spread(min(several, key=int))}


def _combined(values: Sequence[Any], rule: Callable[[Sequence[float]], float]) -> Any:
    """Numbers by ``rule``, mappings key by key, as the last one has them."""
    if isinstance(values[-1], Mapping):
        return {key: _combined([each[key] for each in values if key in each], rule) for key in values[-1]}
    known = [value for value in values if value is not None]
    return rule(known) if known else None


def _usual_s(cost: Mapping[str, float]) -> float:
    """Seconds of a usual layer."""
    return sum(a * b for a, b in zip(USUAL_LAYER, (cost["byte_s"], cost["row_s"], cost["call_s"]), strict=True))


def _usual(found: Sequence[Mapping[str, Mapping[str, Mapping[str, float]]]]) -> dict[str, dict[str, Any]]:
    def middle(costs: list[Mapping[str, float]]) -> Mapping[str, float]:
        return sorted(costs, key=_usual_s)[(len(costs) - 1) // 2]

    return {
        scheme: {
            tokens: middle([each[scheme][tokens] for each in found if tokens in each.get(scheme, {})])
            for tokens in costs
        }
        for scheme, costs in found[-1].items()
    }


def save(ceilings: Ceilings, fresh: bool = False) -> Path:
    """Keep it beside the last ones, with ``fresh`` alone. ProfileError if the folder cannot be written."""
    path = folder() / f"{ceilings.fingerprint}.json"
    runs = [*([] if fresh else _runs(path, ceilings.fingerprint)), ceilings][-KEPT:]
    with _keeping(path):
        files.write(path, json.dumps([{"schema": SCHEMA} | asdict(one) for one in runs], indent=1))
    return path


def check_folder() -> None:
    """ProfileError if ``save`` would fail."""
    path = folder() / "ceilings.json"
    with _keeping(path):
        files.check(path)


@contextmanager
def _keeping(path: Path) -> Iterator[None]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except (OSError, ProfileError) as error:
        why = error.message if isinstance(error, ProfileError) else folders.describe(error)
        raise ProfileError(f"cannot keep the ceilings: {why}", "PROFILER_STORE names another folder.") from None


def parse(content: Mapping[str, Any]) -> Ceilings | None:
    """One stored calibration; ``None`` if a newer or older profiler wrote it, or a figure cannot be."""
    known = {name: value for name, value in content.items() if name not in ("schema", *DERIVED)}
    if content.get("schema") != SCHEMA or set(known) != set(Ceilings.__dataclass_fields__) - set(DERIVED):
        return None
    by_dtype = ("call_s", "activation_s")
    rates = (*by_dtype, "flops", "attention", "tall", "host_s")
    if not all(isinstance(known[name], Mapping) for name in (*rates, "convolutions", "products", "how")):
        return None
    if not all("fp32" in known[name] for name in by_dtype):
        return None
    costs = [cost for tokens in known["products"].values() for cost in tokens.values()]
    if any(set(cost) != set(Cost.__dataclass_fields__) for cost in costs):
        return None
    positive = [known[name] for name in ("read_bytes_s", "copy_bytes_s", "delta_flop_s", "seconds")]
    positive += [value for name in rates for value in _leaves(known[name])]
    if not all(_is_number(value) and value > 0 for value in positive):
        return None
    others = [known["process_bytes"], known["fresh_byte_s"]]
    others += [*_leaves(known["products"]), *_leaves(known["convolutions"])]
    if not all(_is_number(value) and value >= 0 for value in others):
        return None
    return Ceilings(**known)


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
