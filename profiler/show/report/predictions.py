"""Predictions for the models of a report, on the device that its rows were measured on.

A run stores the configs of its models, and a config has the shapes. Rows without one, such as those of a file, have
only the model's name. So such a model is predicted only if its name is in the catalog and the measured size of its
weights matches the catalog's shapes; another model of the same name would differ.

The rows themselves correct the predictions, as they do those of ``fit``, so that a predicted case does not contradict
the measured ones beside it.
"""

from __future__ import annotations

import heapq
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from profiler import backends, devices
from profiler.case import UNSTATED, Case, digest
from profiler.cost import engines
from profiler.cost.cases import is_placed, kv_of, mean_depth
from profiler.cost.learned import MAX_ROWS_READ, NOTHING, Learned, from_rows
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
from profiler.show.report.models import CaseGroup
from profiler.show.report.selection import CaseResult, MachineRows

Configs = Mapping[str, Mapping[str, Any]]  # the config of a model by its id, as a run stores it

# Relative difference in bytes. Buffers and tied tables differ by less, other sizes of a family by far more.
SAME = 0.02
SIZE = re.compile(r"(?<![a-z0-9.])(\d{1,4}(?:\.\d{1,3})?)([mb])(?![a-z0-9])", re.IGNORECASE)  # 135M, 30B-A3B
NAMED = {"m": 1e6, "b": 1e9}
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
    rows: Sequence[CaseResult] = ()  # which correct predictions
    _known: dict[tuple[str | int | None, ...], Predictor | None] = field(default_factory=dict)
    _taught: dict[int | None, Learned] = field(default_factory=dict)  # by threads
    doubted: set[str] = field(default_factory=set)  # models that may differ from the catalog's of the same name
    counts: dict[str, int] = field(default_factory=dict)  # parameters of models that are not in ``shapes``

    @classmethod
    def of(cls, machine: MachineRows, configs: Configs = MappingProxyType({})) -> Forecast:
        """Predictions for the models of a machine."""
        device = place_found(machine.environment)
        dtypes, paths = Counter[str](), Counter[str]()
        for group, results in machine.groups.items():
            if group.case.server is not None or group.is_gguf:  # which state neither
                continue
            paths[group.case.path] += len(results)
            if group.case.quant not in DTYPE_BYTES:
                dtypes[group.case.dtype] += len(results)
        own = [result.case.dtype for result in machine.results if result.case.server is None]
        dtype = dtypes.most_common(1)[0][0] if dtypes else next(iter(own), PLAIN_DTYPE)
        path = paths.most_common(1)[0][0] if paths else EAGER
        found = cls(None if device is None else Machine(device), dtype, {}, {}, path, machine.ok)
        for model in machine.models:
            groups = {group: rows for group, rows in machine.groups.items() if group.model == model}
            own_rows = {group: rows for group, rows in groups.items() if group.case.server is None}
            reason = found._add(model, own_rows, configs)
            if reason is not None:
                found.missing[model] = reason
            if model not in found.shapes and (count := _counted(groups, configs)) is not None:
                found.counts[model] = count
        return found

    def predict(
        self, model: str, quant: str, context: int, batch: int, like: Case | None = None
    ) -> Prediction | None:
        """The prediction of a case; None if its model, quantization or context is not supported.

        ``like``: a measured case with the same engine and options; None: transformers without any.
        """
        engine = engines.DEFAULT if like is None else _engine(like)
        if engine is None or (like is not None and is_placed(like)):
            return None
        threads = None if like is None else like.threads
        predictor = self._predictor(model, quant, self._dtype(quant), self.path, engine, threads)
        if predictor is None or not 0 < context <= predictor.geometry.max_position:
            return None
        return predictor.predict(context, batch, None if like is None else kv_of(like))

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
        width = DTYPE_BYTES.get(like.dtype, DTYPE_BYTES[PLAIN_DTYPE])
        return self.shapes[model].cache_bytes(context, like.batch, width)

    def longest(self, models: Sequence[str]) -> int:
        """The largest context that any of ``models`` supports; 0 if none is known."""
        return max((self.shapes[model].max_position for model in models if model in self.shapes), default=0)

    def parameters(self, model: str) -> int | None:
        """The number of parameters of a model; None if it is not known."""
        return self.shapes[model].parameters if model in self.shapes else self.counts.get(model)

    def _dtype(self, quant: str) -> str:
        return quant if quant in DTYPE_BYTES else self.dtype

    def _of(self, model: str, case: Case) -> Predictor | None:
        engine = _engine(case)  # a server's rows are predicted by run/serving.py when they are measured
        if engine is None:
            return None
        return self._predictor(model, case.quant, case.dtype, case.path, engine, case.threads)

    def _predictor(
        self, model: str, quant: str, dtype: str, path: str, engine: str, threads: int | None
    ) -> Predictor | None:
        name = (model, quant, dtype, path, engine, threads)
        if name not in self._known:
            self._known[name] = None
            if self.machine is not None and model in self.shapes:
                found = engines.find(engine)
                dtype = PLAIN_DTYPE if dtype == UNSTATED else dtype
                with suppress(ProfileError, KeyError):  # an unsupported quantization or dtype
                    self._known[name] = Predictor(
                        self.shapes[model],
                        found,
                        found.check(quant),
                        self.machine,
                        dtype,
                        path,
                        learned=self._learned(threads),
                    )
        return self._known[name]

    def _learned(self, threads: int | None) -> Learned:
        """What the newest rows with this number of threads teach."""
        if threads not in self._taught:
            mine = (result for result in self.rows if result.case.threads == threads)
            newest = heapq.nlargest(MAX_ROWS_READ, mine, key=lambda result: result.started_at or "")
            info = _info(newest[0].environment) if newest else None
            target = None if self.machine is None else self.machine.target
            rows = (result.measurement for result in newest)
            self._taught[threads] = NOTHING if info is None or target is None else from_rows(rows, info, target)
        return self._taught[threads]

    def _add(self, model: str, groups: Mapping[CaseGroup, Sequence[CaseResult]], configs: Configs) -> str | None:
        """Add a model, or return why it cannot be predicted."""
        if self.machine is None:
            return "the rows do not say which device they were measured on"
        names = dict.fromkeys(group.case.backend for group in groups)
        if not any(_engine(group.case) for group in groups):
            which = f"backend {plain(', '.join(names))}" if names else "server"
            return f"the {which} cannot be predicted"
        stored = _stored_shapes(groups, configs)
        if stored is not None:
            self.shapes[model] = stored
            return None
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


def _engine(case: Case) -> str | None:
    """The engine that predicts a row's case; None for a server, and for a backend that is not predicted."""
    backend = backends.of_row(case.backend)
    return backend.engine if case.server is None and backend is not None and backend.predicted else None


def _stored_shapes(groups: Iterable[CaseGroup], configs: Configs) -> Geometry | None:
    """The shapes of a model by the config that a run stored."""
    for config in (configs[group.case.model_id] for group in groups if group.case.model_id in configs):
        with suppress(ProfileError):  # a family that only a newer version serves
            return families.geometry(config)
    return None


def _counted(groups: Mapping[CaseGroup, Sequence[CaseResult]], configs: Configs) -> int | None:
    """The parameters of a model by its config, its files, the size of unquantized weights, or, for a server's model,
    by its name.
    """
    shapes = _stored_shapes(groups, configs)
    if shapes is not None:
        return shapes.parameters
    stated = [group.parameters for group in groups if group.parameters]
    sizes = [
        round(result.memory.weights_bytes / DTYPE_BYTES[group.case.quant])
        for group, results in groups.items()
        if group.case.quant in DTYPE_BYTES
        for result in results
        if result.ok and result.memory.weights_bytes
    ]
    named = [
        round(float(size[1]) * NAMED[size[2].casefold()])
        for group in groups
        if group.case.server is not None and (size := SIZE.search(group.case.model))
    ]
    return max(stated or sizes or named, default=None)
