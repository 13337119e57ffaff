"""How much memory a case takes on its device.

    peak = weights + cache + activations + framework

Weights and cache follow from shapes and are exact for what is stored; the bounds of the others are wide, and on
purpose: a case is left out of a sweep only when even ``peak.low`` does not fit.
"""

from __future__ import annotations

from dataclasses import dataclass

from profiler.case import Case
from profiler.devices.base import DeviceInfo
from profiler.models.geometry import Geometry
from profiler.models.weight import Role
from profiler.predict.interval import Interval, exact
from profiler.quants.base import DTYPE_BYTES, Quant
from profiler.units import bytes_text

MIB = 1024**2
LOGIT_BYTES = 4  # the sampler takes logits in fp32
FRAMEWORK = {
    # The process beside the model: interpreter, torch and transformers (CPU), or the CUDA context and the libraries'
    # workspaces (CUDA). Seen between the bounds on CPU builds; on cards from Turing to Blackwell.
    "cpu": Interval(600 * MIB, 250 * MIB, 1200 * MIB, "prior"),
    "cuda": Interval(600 * MIB, 150 * MIB, 1500 * MIB, "prior"),
}
WORTH_SAYING = 0.25  # of the weights: from here on what is left unquantized decides how large the model is
ROLES: dict[Role, str] = {
    "embedding": "embeddings",
    "head": "output head",
    "linear": "linear layers",
    "experts": "fused experts",
    "router": "routers",
    "conv": "convolutions",
    "vector": "norms and biases",
}


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes, per term."""

    weights: Interval  # as stored, scales included
    cache: Interval  # at the end of decode
    activations: Interval
    framework: Interval

    @property
    def peak(self) -> Interval:
        """All of it at once: what decides whether a case fits."""
        return self.weights + self.cache + self.activations + self.framework


def predict(case: Case, geometry: Geometry, quant: Quant, device: DeviceInfo) -> Memory:
    """The memory of a case, in bytes."""
    return Memory(
        weights=exact(weights_bytes(geometry, quant, case.dtype)),
        cache=_cache(case, geometry),
        activations=_activations(case, geometry),
        framework=FRAMEWORK.get(device.kind, FRAMEWORK["cpu"]),
    )


def weights_bytes(geometry: Geometry, quant: Quant, dtype: str) -> int:
    """Bytes of all stored weights, scales included."""
    return sum(quant.weight_bytes(weight, dtype) * count for weight, count in geometry.counted_weights())


def unquantized_bytes(geometry: Geometry, quant: Quant, dtype: str) -> dict[Role, int]:
    """Bytes of the weights that a scheme leaves in ``dtype``, by role, largest first; empty for a plain dtype."""
    if not quant.roles:
        return {}
    found: dict[Role, int] = {}
    for weight, count in geometry.counted_weights():
        if weight.role not in quant.roles:
            found[weight.role] = found.get(weight.role, 0) + count * quant.weight_bytes(weight, dtype)
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def unquantized_words(geometry: Geometry, quant: Quant, dtype: str) -> str | None:
    """``nf4 leaves 117 GiB of fused experts in fp32``; None where that is no large part of the weights."""
    left = unquantized_bytes(geometry, quant, dtype)
    total = sum(left.values())
    if total < WORTH_SAYING * weights_bytes(geometry, quant, dtype):
        return None
    parts = " and ".join(ROLES[role] for role, size in left.items() if size >= total / 10)
    return f"{quant.name} leaves {bytes_text(total)} of {parts} in {dtype}"


def _cache(case: Case, geometry: Geometry) -> Interval:
    """One cache is exact; decode that is repeated keeps a copy to start again from, wherever it cannot be cropped."""
    held = geometry.cache_bytes(case.context + case.steps, case.batch, DTYPE_BYTES[case.dtype]).total
    return Interval(2 * held, held, 3 * held, "prior")


def _activations(case: Case, geometry: Geometry) -> Interval:
    """The widest layer's inputs and outputs for one chunk, and the logits of one token a sequence.

    Low: hidden states in and out, and the logits once. High: a math attention kernel that writes out the scores of
    every head in fp32, which transformers falls back to for head dimensions that no flash kernel takes.
    """
    width = DTYPE_BYTES[case.dtype]
    tokens = case.batch * min(case.context, case.ubatch)
    widest = max(
        (max(weight.shape) for weight, _ in geometry.counted_weights() if weight.role == "linear"), default=0
    )
    logits = case.batch * geometry.vocab * LOGIT_BYTES
    heads = max((getattr(layer.mixer, "heads", 0) for layer, _ in geometry.groups), default=0)
    scores = heads * tokens * case.context * 4
    return Interval(
        value=tokens * width * (4 * geometry.hidden + 3 * widest) + 2 * logits,
        low=tokens * width * 2 * geometry.hidden + logits,
        high=tokens * width * (8 * geometry.hidden + 6 * widest) + 3 * logits + 2 * scores,
        basis="prior",
    )
