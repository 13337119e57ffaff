"""Predictions for the models of a report, on the device that its rows were measured on.

A stored row has a model's name but not its shapes. So a model is predicted only if its name is in the catalog and the
measured size of its weights matches the catalog's shapes; another model of the same name would differ.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from profiler import backends, devices
from profiler.case import Case, digest
from profiler.cost import engines
from profiler.cost.cases import mean_depth
from profiler.cost.machine import Machine
from profiler.cost.prediction import Prediction, Predictor
from profiler.decode_path import EAGER
from profiler.devices import calibration, target
from profiler.devices.base import DeviceInfo, Slice
from profiler.devices.target import Target
from profiler.errors import ProfileError
from profiler.models import families, hub
from profiler.models.geometry import CacheBytes, Geometry
from profiler.quants.base import DTYPE_BYTES
from profiler.show.columns import plain
from profiler.show.report.selection import CaseGroup, CaseResult, MachineRows

# Relative difference in bytes. Buffers and tied tables differ by less, other sizes of a family by far more.
SAME = 0.02
PLAIN_DTYPE = "bf16"  # if no row states one


def place_found(environment: Mapping[str, Any]) -> Target | None:
    """The device of an environment; None if its kind, name or memory was not recorded.

    It has the ceilings that were measured with the driver and packages of the rows, not with those installed now.
    Without them, a CPU is described by its cores and a GPU by its data sheet.
    """
    info = _info(environment)
    if info is None:
        return None
    libraries: dict[str, Any] = environment.get("libraries") or {}
    torch, *others = (str(libraries.get(name) or "") for name in calibration.PACKAGES)
    choices = [target.of(info, [version, *others]) for version in (torch.partition("+")[0], torch)]
    return next((choice for choice in choices if choice.ceilings), choices[0])


def _info(environment: Mapping[str, Any]) -> DeviceInfo | None:
    device: dict[str, Any] = environment.get("device") or {}
    kind, title, memory = device.get("kind"), device.get("title"), device.get("memory_bytes")
    if not (isinstance(kind, str) and isinstance(title, str) and isinstance(memory, int) and memory > 0):
        return None
    cores = (environment.get("cpu") or {}).get("cores")
    limits: dict[str, Any] = environment.get("limits") or {}
    quota, confined = limits.get("cores"), limits.get("cpus")
    return DeviceInfo(
        name=str(device.get("name") or kind),
        kind=kind,
        title=title,
        memory_bytes=memory,
        free_bytes=memory,
        default_dtype="fp32",  # not used: rows have their own
        cores=cores if kind == "cpu" and isinstance(cores, int) else None,
        features=tuple(str(feature) for feature in device.get("features") or ()),
        uuid=_uuid(device.get("uuid_hash")),
        driver=device.get("driver"),
        threads=_count(limits.get("threads")) if kind == "cpu" else None,
        physical=_count(limits.get("physical")),
        quota=float(quota) if isinstance(quota, int | float) and 0 < quota < (_count(cores) or 1) else None,
        confined=tuple(confined) if isinstance(confined, list) else None,
        slice=_slice(device.get("slice")),
    )


def _slice(content: object) -> Slice | None:
    """The recorded slice of a card; None for a whole card or for invalid content."""
    with suppress(TypeError):
        part = Slice(**content) if isinstance(content, dict) else None
        if part is not None and isinstance(part.memory_share, float) and isinstance(part.of_bytes, int):
            return part
    return None


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and value > 0 else None


def _uuid(hashed: object) -> str | None:
    """The UUID for a stored hash, if the card is in this machine."""
    if hashed is None:
        return None
    here, _ = devices.listed()
    return next((device.uuid for device in here if device.uuid and digest(device.uuid) == hashed), None)


@dataclass
class Forecast:
    """Predictions for one machine; each model and quantization is computed once."""

    machine: Machine | None
    dtype: str  # of unquantized weights
    shapes: dict[str, Geometry]  # of the models that can be predicted
    missing: dict[str, str]  # model → why it cannot be predicted
    path: str = EAGER  # the decode path for predictions: the one of most rows
    _known: dict[tuple[str, str, str, str], Predictor | None] = field(default_factory=dict)
    doubted: set[str] = field(default_factory=set)  # models that may only bear the name of the catalog's

    @classmethod
    def of(cls, machine: MachineRows) -> Forecast:
        """Predictions for the models of a machine."""
        device = place_found(machine.environment)
        dtypes, paths = Counter[str](), Counter[str]()
        for group, results in machine.groups.items():
            if group.case.server is not None:  # which states neither
                continue
            paths[group.case.path] += len(results)
            if group.case.quant not in DTYPE_BYTES:
                dtypes[group.case.dtype] += len(results)
        own = [result.case.dtype for result in machine.results if result.case.server is None]
        dtype = dtypes.most_common(1)[0][0] if dtypes else next(iter(own), PLAIN_DTYPE)
        path = paths.most_common(1)[0][0] if paths else EAGER
        found = cls(None if device is None else Machine(device), dtype, {}, {}, path)
        for model in machine.models:
            reason = found._add(
                model,
                {
                    group: rows
                    for group, rows in machine.groups.items()
                    if group.model == model and group.case.server is None
                },
            )
            if reason is not None:
                found.missing[model] = reason
        return found

    def predict(self, model: str, quant: str, context: int, batch: int) -> Prediction | None:
        """The prediction of a case; None if its model, quantization or context is not supported."""
        predictor = self._predictor(model, quant, self._dtype(quant), self.path)
        if predictor is None or not 0 < context <= predictor.geometry.max_position:
            return None
        return predictor.predict(context, batch)

    def largest_context(self, result: CaseResult) -> int | None:
        """The largest context, in tokens, at which the case of a row still fits."""
        predictor = self._of(result.model, result.case)
        return None if predictor is None else predictor.largest_context(result.case.batch)

    def needed(self, result: CaseResult) -> tuple[tuple[float, float], ...] | None:
        """Bytes and FLOPs that prefill and an average decode step of a row require, without copies."""
        case = result.case
        predictor = self._of(result.model, case)
        if predictor is None:
            return None
        works = predictor.works(case.context, mean_depth(case), case.batch)
        return tuple((done.needed_bytes, done.needed_flops) for done in works)

    def cache(self, model: str, like: Case, context: int) -> CacheBytes:
        """The cache of a known model by kind of layer, with the dtype and batch of ``like``."""
        return self.shapes[model].cache_bytes(context, like.batch, DTYPE_BYTES[like.dtype])

    def longest(self, models: Sequence[str]) -> int:
        """The largest context that any of ``models`` supports; 0 if none is known."""
        return max((self.shapes[model].max_position for model in models if model in self.shapes), default=0)

    def parameters(self, model: str) -> int | None:
        """The number of parameters of a model; None if its shapes are unknown."""
        return self.shapes[model].parameters if model in self.shapes else None

    def _dtype(self, quant: str) -> str:
        return quant if quant in DTYPE_BYTES else self.dtype

    def _of(self, model: str, case: Case) -> Predictor | None:
        if case.server is not None:  # run/serving.py predicts its rows when they are measured
            return None
        return self._predictor(model, case.quant, case.dtype, case.path)

    def _predictor(self, model: str, quant: str, dtype: str, path: str) -> Predictor | None:
        name = (model, quant, dtype, path)
        if name not in self._known:
            self._known[name] = None
            if self.machine is not None and model in self.shapes:
                engine = engines.find(engines.DEFAULT)
                with suppress(ProfileError, KeyError):  # an unsupported quantization or dtype
                    self._known[name] = Predictor(
                        self.shapes[model], engine, engine.check(quant), self.machine, dtype, path
                    )
        return self._known[name]

    def _add(self, model: str, groups: Mapping[CaseGroup, Sequence[CaseResult]]) -> str | None:
        """Add a model, or return why it cannot be predicted."""
        if self.machine is None:
            return "the rows do not say which device they were measured on"
        names = dict.fromkeys(group.case.backend for group in groups)
        if not any((backend := backends.of_row(name)) is not None and backend.predicted for name in names):
            which = f"backend {plain(', '.join(names))}" if names else "server"
            return f"the {which} cannot be predicted"
        name = hub.find(model)
        if name is None:
            return "its rows do not contain its shapes, and no model in the catalog has this name"
        config = hub.shipped_config(name)
        self.shapes[model] = families.geometry(config)
        reason = self._doubt(model, groups, digest(config))
        if reason is not None:
            del self.shapes[model]
            self.doubted.add(model)
            self._known = {key: known for key, known in self._known.items() if key[0] != model}
        return reason

    def _doubt(self, model: str, groups: Mapping[CaseGroup, Sequence[CaseResult]], model_id: str) -> str | None:
        """Why the rows may be of another model than the catalog's, whose config has the id ``model_id``."""
        sure = any(group.case.weights == "synthetic" and group.case.model_id == model_id for group in groups)
        for group, results in groups.items():
            predictor = self._of(model, group.case)
            if predictor is None:
                continue
            for weights in {size for result in results if (size := result.memory.weights_bytes)}:
                if abs(predictor.storage.device_bytes / weights - 1) > SAME:
                    return "its weights differ in size from the catalog's model of that name"
                sure = True
        return None if sure else "no row has the size of its weights, and the name alone is not sufficient"
