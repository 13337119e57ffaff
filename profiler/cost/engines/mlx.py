"""MLX (mlx-lm, and servers on it such as LM Studio's): weights in groups of 64, one process on Apple's shared memory.

Rules read in the sources of mlx 0.31 (quantized layers) and mlx-lm 0.31 (loading, caches, generation):

- ``2bit`` to ``8bit``: linear layers, experts, embeddings and the head, with a 16-bit scale and bias per 64 weights.
  ``mxfp4`` and ``nvfp4`` have an 8-bit scale per 32 or 16 weights. Norms, routers and convolutions stay in 16 bits.
- A prompt is processed in steps of 2,048 tokens. K and V grow by 256 tokens at a time; a sliding layer holds its
  window and, during a prompt, the tokens of a step. Gated-delta states are fp32.
- The tied embedding is the head, so it is stored once.
- To grow, K and V of a layer are copied. Peaks of 95 runs of nine models on an M3 Ultra (benchmarks/accuracy.md) have
  weights, cache, 1.65 times the cache of one layer, and half a GiB.
"""

from __future__ import annotations

from profiler.cost.engines.base import SAFETENSORS, Engine, EngineRequest, Terms, spread
from profiler.cost.interval import exact
from profiler.cost.storage import Held, Storage, as_stored, bounds_of, storage, with_head
from profiler.cost.work import PassRules
from profiler.devices.target import Target
from profiler.models.geometry import Geometry
from profiler.models.layers import Attention, Execution, Layer, Weight
from profiler.models.scheme import MLX
from profiler.models.stored import Stored
from profiler.registry import unknown
from profiler.units import MIB

STEP = 2048  # tokens of a prompt that are processed at once
# The widest heads for which mlx 0.31 has fused kernels, in steps and in prompts (scaled_dot_product_attention.cpp).
STEP_HEADS, PROMPT_HEADS = 256, 128
SCORE_BYTES = 12.0  # that a score of wider heads moves in a prompt, in 16 bits: product, mask, softmax, weighted sum
GROWTH = 256  # tokens by which a cache grows
PLAIN = {"bf16": 2.0, "fp16": 2.0}
BITS = {f"{bits}bit": bits + 32 / 64 for bits in (2, 3, 4, 5, 6, 8)} | {"mxfp4": 4 + 8 / 32, "nvfp4": 4 + 8 / 16}
PACKED_ROLES = ("linear", "experts", "embedding", "head")
DTYPES = ("fp32", "fp64", *PLAIN)
KV_BYTES = {"bf16": 2.0, "fp16": 2.0, "8bit": 1 + 4 / 64, "4bit": 0.5 + 4 / 64}
NAMES = {"q2": "2bit", "q3": "3bit", "q4": "4bit", "q5": "5bit", "q6": "6bit", "q8": "8bit", "f16": "fp16"}
MIXED_BOUNDS = (0.97, 1.12)  # published checkpoints keep some layers in more bits
GROWN_COPIES = 1.65  # of the cache of one layer
KERNELS = 460 * MIB  # buffers of kernels and of the random numbers of sampling, whatever the model
PROCESS = spread(250 * MIB, 100 * MIB, 800 * MIB)  # Python and Metal's libraries; buffers are cached and reused


class Mlx(Engine):
    """See the module."""

    name = like = "mlx"
    version = "0.31"
    usual_quants = ("4bit",)
    default_kv = "bf16"
    smaller_kv = "8bit"
    chunk_option = "--prefill-step-size"
    reads = frozenset({SAFETENSORS, MLX})
    ignores_windows = frozenset({"gemma2", "mistral", "mixtral", "phi3", "qwen2", "qwen3", "qwen3_moe"})
    pipelines_passes = True
    quants = (*PLAIN, *BITS)

    def check(self, quant: str) -> str:
        spelled = NAMES.get(quant.casefold(), quant.casefold().removeprefix("mlx-").removeprefix("mlx ").strip())
        if spelled not in self.quants:
            raise unknown("quantization of mlx", quant, self.quants)
        return spelled

    def unavailable(self, target: Target, quant: str) -> str | None:
        if target.vendor in ("AMD", "Intel"):  # it has backends for Metal, CUDA and the CPU
            return f"{self.name} runs on Apple's chips, NVIDIA GPUs and CPUs, not on {target.name}"
        return None

    def storage(self, geometry: Geometry, quant: str, dtype: str, repacks: bool = False) -> Storage:
        held = (
            Held(weight, layer, count, *_stored(weight, quant, count))
            for layer, count in ((None, 1), *geometry.groups)
            for weight in (layer.weights if layer is not None else geometry.outside)
        )
        return storage(with_head(geometry, held, copied=False), MIXED_BOUNDS if quant in BITS else None)

    def stored(self, geometry: Geometry, checkpoint_format: Stored, dtype: str, repacks: bool = False) -> Storage:
        """As the checkpoint has them; what is not quantized is computed in 16 bits."""
        held = (
            Held(item.weight, item.layer, item.count, *_stored(item.weight, "bf16", item.count))
            if item.scheme in DTYPES
            else item
            for item in as_stored(geometry, checkpoint_format)
        )
        return storage(with_head(geometry, held, copied=False), bounds_of(checkpoint_format))

    def timed(self, quant: str, checkpoint_format: Stored | None, target: Target) -> bool:
        if checkpoint_format is None or not checkpoint_format.packed:
            return True
        return checkpoint_format.scheme is not None and checkpoint_format.scheme.method == MLX

    def memory(self, geometry: Geometry, storage: Storage, request: EngineRequest, target: Target) -> Terms:
        tokens = request.batch * min(request.ubatch or STEP, request.context)
        chosen, width = storage.expert_rows
        rows = tokens * (4 * geometry.hidden + 3 * storage.widest + 2 * chosen * max(width, geometry.hidden))
        logits = request.batch * geometry.vocab * 4
        more = KERNELS + GROWN_COPIES * max(_layer_bytes(layer, request) for layer, _ in geometry.groups)
        return Terms(
            weights=storage.weights,
            cache=exact(cache_bytes(geometry, request)),
            prefill=spread(more + rows + logits, more / 2 + rows / 2, 1.5 * more + 5 * rows + 2 * logits),
            decode=spread(more + 2 * logits, more / 2 + logits, 1.5 * more + 4 * logits),
            framework=PROCESS,
            host=exact(0),
            prefill_reason=f"a step of {tokens:,} tokens",
            decode_reason="logits",
        )

    def prefill_rules(self, geometry: Geometry, request: EngineRequest, target: Target | None = None) -> PassRules:
        """Arrays are computed when they are needed, and a pass evaluates only caches, as mlx_lm does."""
        how = Execution(trims_shared=True)
        return PassRules(
            request.ubatch or STEP,
            kv_bytes(request),
            how=how,
            step_heads=STEP_HEADS,
            fused_heads=PROMPT_HEADS,
            score_bytes=SCORE_BYTES,
            moved_bytes=2.0,
        )


def _stored(weight: Weight, quant: str, count: int) -> tuple[str, int]:
    """Storage type and bytes of ``count`` weights. All packed types are read alike, as ``int4``."""
    if quant not in BITS or weight.role not in PACKED_ROLES or weight.expert_bias:
        return ("bf16" if quant in BITS else quant), weight.parameters * 2 * count
    return "int4", round(weight.parameters * BITS[quant] / 8) * count


def kv_bytes(request: EngineRequest) -> float:
    """Bytes per element of K and V. Raises NotFound for a type without a rule."""
    kv = (request.kv or "bf16").casefold()
    if kv not in KV_BYTES:
        raise unknown("KV cache type of mlx", kv, KV_BYTES)
    return KV_BYTES[kv]


def cache_bytes(geometry: Geometry, request: EngineRequest) -> int:
    """Bytes of K, V and states of all sequences at the case's context."""
    total = 0.0
    for layer, count in geometry.groups:
        mixer = layer.mixer
        if not isinstance(mixer, Attention):
            state = 4 * mixer.recurrent_elements + 2 * mixer.channels * (mixer.kernel - 1)
            total += count * state * request.batch
        else:
            total += count * _layer_bytes(layer, request)
    return round(total)


def _layer_bytes(layer: Layer, request: EngineRequest) -> float:
    """Bytes of K and V of one layer, all sequences; 0 for one without."""
    mixer = layer.mixer
    if not isinstance(mixer, Attention) or not mixer.owns_cache:
        return 0.0
    grown = -(-request.context // GROWTH) * GROWTH
    step = min(request.ubatch or STEP, request.context)
    held = grown if mixer.window is None else min(grown, mixer.window - 1 + step)
    return request.batch * 2 * mixer.kv_heads * mixer.head_dim * held * kv_bytes(request)


ENGINE = Mlx()
