"""What is predicted of the models of a report, on the machine of a side, without weights and without torch.

A stored row has a model's name and not its shapes. So a model is predicted only if the catalog knows its name and the
weights that were measured take as many bytes as the catalog's shapes say: another model of that name does not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from profiler.case import Case, digest
from profiler.errors import ProfileError
from profiler.models import catalog, families
from profiler.models.geometry import CacheBytes, Geometry
from profiler.paths import EAGER
from profiler.predict import engines
from profiler.predict.beside import BACKENDS
from profiler.predict.estimate import mean_depth
from profiler.predict.machine import Machine
from profiler.predict.prediction import Prediction, Predictor
from profiler.quants.base import DTYPE_BYTES
from profiler.reports.base.page import place
from profiler.reports.base.page.side import Fact, Side

SAME = 0.02  # of the weights' bytes: buffers and tied tables differ by less, other sizes of a family by far more


@dataclass
class Forecast:
    """Predictions for one side; each model and format is worked out once."""

    machine: Machine | None
    dtype: str  # of what is not quantized
    shapes: dict[str, Geometry]  # of the models that can be predicted
    missing: dict[str, str]  # why others cannot, in words
    path: str = EAGER  # how decode steps of what was not measured are thought to run: as those of most rows
    _known: dict[tuple[str, str, str, str], Predictor | None] = field(default_factory=dict)

    @classmethod
    def of(cls, side: Side) -> Forecast:
        """For the models of ``side`` on its device."""
        device = place.found(side.environment)
        dtypes = [fact.case.dtype for fact in side.facts if fact.case.quant not in DTYPE_BYTES]
        dtype = max(set(dtypes), key=dtypes.count) if dtypes else side.facts[0].case.dtype
        run = Counter([fact.case.path for fact in side.facts]).most_common(1)[0][0]
        found = cls(None if device is None else Machine(device), dtype, {}, {}, run)
        for model in side.models:
            reason = found._add(model, side.of[model])
            if reason is not None:
                found.missing[model] = reason
        return found

    def predict(self, model: str, quant: str, context: int, batch: int) -> Prediction | None:
        """A case; None where the model, the format or the context has no rule."""
        predictor = self._predictor(model, quant, self._dtype(quant), self.path)
        if predictor is None or not 0 < context <= predictor.geometry.max_position:
            return None
        return predictor.predict(context, batch)

    def largest_context(self, fact: Fact) -> int | None:
        """Tokens of each sequence up to which the case of a row still fits."""
        predictor = self._of(fact)
        return None if predictor is None else predictor.largest_context(fact.case.batch)

    def needed(self, fact: Fact) -> tuple[tuple[float, float], ...] | None:
        """Bytes and FLOPs that prefill and a middle decode step of a row cannot do without: copies do not count."""
        predictor = self._of(fact)
        if predictor is None:
            return None
        case = fact.case
        works = predictor.works(case.context, mean_depth(case), case.batch)
        return tuple((done.needed_bytes, done.needed_flops) for done in works)

    def cache(self, model: str, like: Case, context: int) -> CacheBytes:
        """Of a model whose shapes are known, by kind of layer, in the dtype and for the sequences of ``like``."""
        return self.shapes[model].cache_bytes(context, like.batch, DTYPE_BYTES[like.dtype])

    def longest(self, models: Sequence[str]) -> int:
        """Most positions that any of ``models`` has; 0 if none is known."""
        return max((self.shapes[model].max_position for model in models if model in self.shapes), default=0)

    def parameters(self, model: str) -> int | None:
        """Of a model whose shapes are known."""
        return self.shapes[model].parameters if model in self.shapes else None

    def _dtype(self, quant: str) -> str:
        return quant if quant in DTYPE_BYTES else self.dtype

    def _of(self, fact: Fact) -> Predictor | None:
        return self._predictor(fact.model, fact.case.quant, fact.case.dtype, fact.case.path)

    def _predictor(self, model: str, quant: str, dtype: str, path: str) -> Predictor | None:
        name = (model, quant, dtype, path)
        if name not in self._known:
            self._known[name] = None
            if self.machine is not None and model in self.shapes:
                engine = engines.find(engines.DEFAULT)
                with suppress(ProfileError, KeyError):  # a format or a dtype that no rule covers
                    self._known[name] = Predictor(
                        self.shapes[model], engine, engine.check(quant), self.machine, dtype, path
                    )
        return self._known[name]

    def _add(self, model: str, facts: Sequence[Fact]) -> str | None:
        """Take up a model, or say in words why it cannot be predicted."""
        if self.machine is None:
            return "the rows do not say which device they were measured on"
        if not any(fact.case.backend in BACKENDS for fact in facts):
            return "no rules describe what ran it"
        name = catalog.find(model)
        if name is None:
            return "not a model of the catalog, whose shapes are known here"
        config = catalog.raw_config(name)
        self.shapes[model] = families.geometry(config)
        reason = self._doubt(model, facts, digest(config))
        if reason is not None:
            del self.shapes[model]
            self._known = {key: known for key, known in self._known.items() if key[0] != model}
        return reason

    def _doubt(self, model: str, facts: Sequence[Fact], model_id: str) -> str | None:
        """Why the rows may be of another model than the catalog's; ``model_id`` is that of its config."""
        sure = any(fact.case.weights == "synthetic" and fact.case.model_id == model_id for fact in facts)
        for fact in facts:
            weights = fact.memory.weights_bytes
            predictor = self._of(fact)
            if weights is None or predictor is None:
                continue
            if abs(predictor.storage.device_bytes / weights - 1) > SAME:
                return "its weights are not those of the catalog's model of that name"
            sure = True
        return None if sure else "no row says how large its weights are, and a name alone is not enough"
