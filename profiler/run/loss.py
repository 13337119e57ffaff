"""What quantizations are known to lose, for a goal such as ``20 tok/s at 64k, kl<0.05``.

The KL divergence of a model in an engine and a quantization is known from rows that ``--quality`` measured here, of
any device; otherwise from a published table (``quality/published.py``). Each is compared with the limit by itself.
Two of them are compared with each other only if they have the same ``scale``.

A row is of a model if its weights are the model's or if its reference is, as those of other GGUF files are that were
made from it. A model of the catalog has no weights here, so rows count that have its name and its number of
parameters.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from profiler import backends
from profiler.case import options_of
from profiler.cost.engines.base import Engine
from profiler.errors import StoreError
from profiler.models.resolve import Model
from profiler.quality import published
from profiler.settings import existing_results
from profiler.units import printable

if TYPE_CHECKING:  # what reads rows takes as long to import as all of a prediction
    from profiler.results.measurement import Measurement
    from profiler.results.quality import KlScale

MAX_ROWS_READ = 10_000  # of the store, the newest
SAME_PARAMETERS = 0.01  # tied weights and parts for pictures are stored or not


@dataclass(frozen=True, slots=True)
class KnownLoss:
    """The KL divergence of a quantization in nats. ``low`` and ``high``: its 95% interval, if it was measured."""

    value: float
    low: float | None
    high: float | None
    measured: bool
    source: str  # where it is from, in words
    scale: str  # equal for figures that may be compared
    tokens: int | None = None

    def row(self) -> dict[str, Any]:
        """As plain JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class KnownLosses:
    """The rows with a divergence, the newest first."""

    rows: Sequence[Measurement]

    @classmethod
    def of_store(cls, path: Path | None) -> KnownLosses:
        """Those of a store; ``path`` is None for the default one. Without rows if it cannot be read."""
        from profiler.results.store import Store

        place = existing_results(path)
        if place is None:
            return cls(())
        try:
            with Store.read_only(place) as store:
                found = store.newest(MAX_ROWS_READ)
                return cls(
                    [row for row in found if row.outcome == "ok" and row.quality and row.quality.get("blocks")]
                )
        except StoreError:
            return cls(())

    def of(self, model: Model, engine: Engine) -> Mapping[str, KnownLoss]:
        """What is known of a model in an engine, by quantization."""
        return _published(model, engine) | _measured(self.rows, model, engine)


def _published(model: Model, engine: Engine) -> dict[str, KnownLoss]:
    """Figures of the scale that has most quantizations; of several files, the one that loses most."""
    if model.source.kind != "catalog":  # a file that only has the name of the published model
        return {}
    scales: dict[str, dict[str, KnownLoss]] = {}
    for each in published.shipped():
        if (each.model, each.engine, each.definition) != (model.name, engine.name, published.MEAN):
            continue
        source = f"published ({each.file}; {each.scale}; {each.source})"
        known = scales.setdefault(each.scale, {})
        if each.quant not in known or known[each.quant].value < each.value:
            known[each.quant] = KnownLoss(each.value, None, None, False, source, f"published {each.scale}")
    return max(scales.values(), key=len, default={})


def _measured(rows: Iterable[Measurement], model: Model, engine: Engine) -> dict[str, KnownLoss]:
    """The newest figures; those of the scale that has most quantizations, where several scales have one."""
    from profiler.results import quality

    scales: list[tuple[KlScale, dict[str, Measurement]]] = []
    own = model.id_for("real") if model.checkpoint is not None else None
    for row in rows:
        scale = quality.scale(row.quality)
        if scale is None or not _is_of(row, scale, own, model) or _engine(row) != engine.name:
            continue
        kv = options_of(row.case.options).get("kv", engine.default_kv)
        if scale.packed is not None or kv != engine.default_kv:
            continue  # a loss beside that of another quantization, or by the cache, too
        known = next((known for other, known in scales if quality.unlike(scale, other) is None), None)
        if known is None:
            known = {}
            scales.append((scale, known))
        known.setdefault(row.case.quant, row)
    losses: dict[str, KnownLoss] = {}
    for number, (scale, known) in enumerate(sorted(scales, key=lambda each: -len(each[1])), 1):
        tokens = sum(scale.tokens)
        source = (
            f"measured here over {tokens:,} tokens of {printable(scale.title, 60)} in windows of {scale.window:,},"
            f" from {printable(scale.dtype, 20)}"
        )
        for quant, row in known.items():
            if quant not in losses:
                found = quality.mean_kl(quality.blocks(row.quality or {}))
                same = f"{source}, scale {number}"  # two sets of texts may have one name
                losses[quant] = KnownLoss(found.value, found.low, found.high, True, source, same, tokens)
    return losses


def _is_of(row: Measurement, scale: KlScale, own: str | None, model: Model) -> bool:
    if own is not None:
        return own in (row.case.model_id, scale.reference)
    count = row.checkpoint.get("parameters")
    if model.source.kind != "catalog" or row.case.model != model.name or not isinstance(count, int):
        return False
    return abs(count - model.geometry.parameters) <= SAME_PARAMETERS * model.geometry.parameters


def _engine(row: Measurement) -> str | None:
    backend = backends.of_row(row.case.backend)
    return None if backend is None or backend.simulated else backend.engine
