"""Multi-token prediction: decode steps that verify tokens which a small layer of the model drafted.

A step drafts k tokens one after the other, each through the draft layer and the output head, and then runs the model
once on the k drafts and the token before them. It keeps the drafts up to the first one that the model rejects, and
one more token. If each is accepted with the chance a, that is (1 − a^(k+1)) / (1 − a) tokens (arXiv:2211.17192,
equation 1). The chance depends on the text and on the sampling, so it is the user's assumption.

llama.cpp (build 9993, ``common/speculative.cpp``) drafts in a second context with its own cache and buffers, and
keeps k older states of each gated-delta layer, to which a rejection returns. vLLM keeps as many states.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from profiler.cost.engines.base import Engine, EngineRequest, Terms
from profiler.cost.interval import Interval, exact
from profiler.cost.storage import Held, Storage, bounds_of, storage
from profiler.devices.target import Target
from profiler.errors import ProfileError
from profiler.models.geometry import Geometry
from profiler.models.gguf_tensors import DRAFTING
from profiler.models.layers import RECURRENT_BYTES, GatedDelta
from profiler.models.stored import Stored
from profiler.units import printable

MAX_DRAFTED = 16
LOGIT_BYTES = 4
SPREAD = 1.25  # on a range: no published row decodes with drafts, so the sum of the parts was never fitted


@dataclass(frozen=True, slots=True)
class Speculation:
    """How many tokens a step drafts, and the chance of each that the model accepts it."""

    drafted: int
    acceptance: float

    @property
    def tokens_per_step(self) -> float:
        """The expected number of tokens of a sequence per step: 1 to ``drafted`` + 1."""
        return math.fsum(self.acceptance**position for position in range(self.drafted + 1))

    def __str__(self) -> str:
        return (
            f"a step yields {self.tokens_per_step:.2f} tokens on average if each of the {self.drafted} drafted tokens"
            f" is accepted with a chance of {self.acceptance:.0%}, which is your assumption (--acceptance)"
        )


def speculation(drafted: int | None, acceptance: float | None) -> Speculation | None:
    """From the values of ``--mtp`` and ``--acceptance``. Raises ProfileError if only one is given, or is invalid."""
    if drafted is None:
        if acceptance is not None:
            raise ProfileError("--acceptance needs --mtp", "Add the number of drafted tokens, such as --mtp 2.")
        return None
    if not 1 <= drafted <= MAX_DRAFTED:
        raise ProfileError(f"--mtp {drafted}: the number of drafted tokens must be from 1 to {MAX_DRAFTED}")
    if acceptance is None:
        raise ProfileError(
            "--mtp needs --acceptance, the share of drafted tokens that the model accepts",
            "For example: --mtp 2 --acceptance 0.7. It depends on the text; servers print it.",
        )
    if not 0 <= acceptance <= 1:  # also for NaN
        raise ProfileError(f"--acceptance {acceptance}: must be from 0 to 1")
    return Speculation(drafted, acceptance)


@dataclass(frozen=True, slots=True)
class Draft:
    """The draft layers of a model as an engine stores them; ``read`` also has the output head, which they share."""

    geometry: Geometry
    stored: Storage
    read: Storage
    in_file: bool  # whether the model's weights already include it

    def added_to(
        self, terms: Terms, whole: Geometry, engine: Engine, request: EngineRequest, target: Target
    ) -> Terms:
        """The memory of the model with its draft layers, their cache, and the states for a rejection."""
        own = engine.memory(self.geometry, self.stored, request, target)
        logits = exact(request.mtp * request.batch * whole.vocab * LOGIT_BYTES)
        more = own.buffers if engine.drafts_in_own_context else logits
        return replace(
            terms,
            weights=terms.weights if self.in_file else terms.weights + own.weights,
            cache=terms.cache + own.cache + exact(request.mtp * request.batch * _state_bytes(whole)),
            prefill=terms.prefill + more,
            decode=terms.decode + more,
        )


def draft(
    model: Geometry, main: Storage, engine: Engine, quant: str, dtype: str, checkpoint_format: Stored | None
) -> Draft:
    """The draft layers of ``model``. Raises ProfileError if it has none, or if the engine does not use them."""
    geometry = model.draft
    if geometry is None:
        raise ProfileError(
            "--mtp: this model has no multi-token-prediction layer",
            "Checkpoints of Qwen 3.5 and later have one (mtp_num_hidden_layers in config.json).",
        )
    if not engine.drafts:
        raise ProfileError(
            f"--mtp: {printable(engine.name)} does not decode with multi-token-prediction layers",
            "Use --engine llama.cpp, vllm or sglang.",
        )
    found = [] if checkpoint_format is None else list(_in_file(geometry, checkpoint_format))
    if found:
        assert checkpoint_format is not None
        stored = storage(found, bounds_of(checkpoint_format))
    else:  # checkpoints that are quantized leave these layers in 16 bits
        stored = engine.storage(geometry, quant if checkpoint_format is None else engine.unquantized, dtype)
    head = tuple(line for line in main.read if line.part == "head")
    return Draft(geometry, stored, replace(stored, lines=(*stored.lines, *head)), bool(found))


def _in_file(geometry: Geometry, checkpoint_format: Stored) -> list[Held]:
    """The draft layers' tensors of a GGUF file. The experts among them are read as those of a layer."""
    layer = geometry.layers[0]
    return [
        Held(item.weight, layer if item.weight.role == "experts" else None, 1, item.scheme, item.nbytes)
        for item in checkpoint_format.weights
        if item.weight.name.startswith(DRAFTING)
    ]


def _state_bytes(geometry: Geometry) -> int:
    """Bytes of the recurrent states of one sequence."""
    mixers = ((layer.mixer, count) for layer, count in geometry.groups)
    return sum(
        count * RECURRENT_BYTES * mixer.recurrent_elements for mixer, count in mixers if isinstance(mixer, GatedDelta)
    )


def spread_of(seconds: Interval) -> Interval:
    """The seconds of a step with drafts, with a wider range."""
    return Interval(seconds.value, seconds.low / SPREAD, seconds.high * SPREAD, "prior")
