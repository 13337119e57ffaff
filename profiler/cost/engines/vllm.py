"""vLLM: weights as in the checkpoint, and a pool of cache pages that fills the available memory.

Rules read at version 0.26 (its own logs and the checkpoints it loads) and 0.21 (memory of sliding layers):

- bf16: everything. fp8: linear layers and experts, one scale per row; embeddings, router and head stay in bf16.
- nvfp4: as in NVIDIA's Model Optimizer checkpoints of Gemma 4 and Qwen 3.5: feed-forward layers and experts (4 bits,
    an 8-bit scale per 16 weights), attention stays in bf16. Other checkpoints quantize more and are smaller.
- int4 (AWQ, GPTQ, AutoRound): linear layers and experts, groups of 128 with a 16-bit scale and a 4-bit zero.
- int8 (W8A8): as fp8. mxfp4: the experts of gpt-oss, 4 bits and an 8-bit scale per 32 weights.
- A sliding layer holds its window and the tokens of a pass; 16 tokens a page. Gated-delta states are fp32, the
  convolution's in the compute dtype. Gemma 4 models that share K and V store V's projection as a copy of K's.
- CUDA graphs and the profiling run use what ``--gpu-memory-utilization`` leaves; the prediction is the least memory
    that serves the case.
"""

from __future__ import annotations

import math

from profiler.cost.engines.base import GGUF, SAFETENSORS, Engine, EngineRequest, Named, Placement, Terms, spread
from profiler.cost.interval import Interval, exact
from profiler.cost.machine import Machine, Split
from profiler.cost.storage import Held, Part, Storage, as_stored, bounds_of, part_of, storage, with_head
from profiler.cost.work import PassRules
from profiler.devices.target import BEFORE_AMPERE, Target
from profiler.models import gguf_tensors
from profiler.models.geometry import Geometry
from profiler.models.layers import Attention, Execution, Layer, Weight
from profiler.models.stored import Stored
from profiler.registry import unknown
from profiler.shell import Command, command
from profiler.units import MIB

UBATCH = 8192  # --max-num-batched-tokens of the server
PAGE = 16
BYTES = {"bf16": 2.0, "fp16": 2.0}
PACKED: dict[str, tuple[float, set[Part]]] = {
    "int8": (1.0, {"attention", "delta", "mlp", "experts"}),
    "fp8": (1.0, {"attention", "delta", "mlp", "experts"}),
    "nvfp4": (0.5 + 1 / 16, {"mlp", "experts"}),
    "mxfp4": (0.5 + 1 / 32, {"experts"}),
    "int4": (0.5 + 2.5 / 128, {"attention", "delta", "mlp", "experts"}),
}
FORMAT_BOUNDS = (0.75, 1.02)  # checkpoints of one quantization differ in which weights they quantize
DTYPES = ("fp32", "fp64", *BYTES)  # dtypes of a checkpoint; vLLM computes in 16 bits
NAMES = {"awq": "int4", "gptq": "int4", "autoround": "int4", "w4a16": "int4", "w8a8": "int8"}
KV_BYTES = {"auto": 2.0, "bf16": 2.0, "fp8": 1.0, "int8": 1.0}
# Options of ``vllm bench latency``: vllm/benchmarks/latency.py, vllm/engine/arg_utils.py, vllm/config/cache.py.
WHILE_LOADING = {
    "bf16": ("--dtype", "bfloat16"),
    "fp16": ("--dtype", "float16"),
    "fp8": ("--quantization", "fp8"),
}
KV_DTYPES = {"bf16": "bfloat16", "fp8": "fp8", "int8": "int8_per_token_head"}
PARALLEL = {"tensor": "--tensor-parallel-size", "layer": "--pipeline-parallel-size"}
LOADS = ("folder", "hub", "gguf")  # kinds of sources
CHECKPOINT = "CHECKPOINT"
GENERATED = 128  # --output-len
POOL, SPARE = 0.9, 0.01  # --gpu-memory-utilization (0.9 or 0.92 by version), and the memory for generated tokens
# docs/getting_started/installation/gpu.cuda.inc.md and docs/features/quantization/README.md; int4 is GPTQ there.
BEFORE_VOLTA = ("Kepler", "Maxwell", "Pascal")
FRAMEWORK = spread(1800 * MIB, 900 * MIB, 4000 * MIB)  # context, NCCL, captured graphs
HOST = spread(3000 * MIB, 1500 * MIB, 8000 * MIB)


class Vllm(Engine):
    """See the module."""

    name = like = "vllm"
    version = "0.26"
    usual_quants = ("bf16",)
    default_kv = "auto"
    smaller_kv = "fp8"
    chunk_option = "--max-num-batched-tokens"
    default_split: Split = "tensor"
    drafts = sums_in_fp32 = True
    reads = frozenset({SAFETENSORS, GGUF})
    quants = (*BYTES, *PACKED)

    def check(self, quant: str) -> str:
        spelled = NAMES.get(quant.casefold(), quant.casefold())
        if spelled not in self.quants:
            raise unknown("quantization of vllm", quant, (*self.quants, *NAMES))
        return spelled

    def unavailable(self, target: Target, quant: str) -> str | None:
        if target.generation in BEFORE_VOLTA:
            return f"{self.name} needs compute capability 7.0 (Volta), and {target.name} is older"
        if target.generation == "Volta" and quant in PACKED and quant != "int4":
            return f"{self.name} has no kernels for {quant} on Volta ({target.name})"
        if quant in target.unsupported_dtypes:
            return f"{self.name} does not run {quant} on {target.name}: use {target.default_dtype}"
        return None

    def storage(self, geometry: Geometry, quant: str, dtype: str, repacks: bool = False) -> Storage:
        held = [_held(weight, None, 1, quant) for weight in geometry.outside]
        held += [_held(weight, layer, count, quant) for layer, count in geometry.groups for weight in layer.weights]
        held += [_held(weight, layer, count, quant) for layer, count, weight in _copied_values(geometry)]
        return storage(with_head(geometry, held, copied=False), FORMAT_BOUNDS if quant in PACKED else None)

    def stored(self, geometry: Geometry, checkpoint_format: Stored, dtype: str, repacks: bool = False) -> Storage:
        """As the checkpoint has them; what is not quantized is computed in ``dtype``."""
        held = [
            _held(item.weight, item.layer, item.count, dtype) if item.scheme in DTYPES else item
            for item in as_stored(geometry, checkpoint_format)
            if not gguf_tensors.is_unread(item.weight, item.layer)  # vLLM does not load it
        ]
        held += [_held(weight, layer, count, dtype) for layer, count, weight in _copied_values(geometry)]
        return storage(with_head(geometry, held, copied=False), bounds_of(checkpoint_format))

    def timed(self, quant: str, checkpoint_format: Stored | None, target: Target) -> bool:
        return checkpoint_format is None or all(
            weight.scheme in (*DTYPES, *PACKED) for weight in checkpoint_format.weights
        )

    def memory(self, geometry: Geometry, storage: Storage, request: EngineRequest, target: Target) -> Terms:
        return Terms(
            weights=storage.weights,
            cache=exact(cache_bytes(geometry, request)),
            prefill=(buffers := self._buffers(geometry, storage, request)),
            decode=buffers,
            framework=FRAMEWORK,
            host=HOST,
            prefill_reason=f"a chunk of {self._tokens(request):,} tokens",
            decode_reason="the buffers of the largest chunk, which stay reserved",
        )

    def prefill_rules(self, geometry: Geometry, request: EngineRequest, target: Target | None = None) -> PassRules:
        return PassRules(
            request.ubatch or UBATCH,
            kv_bytes(request),
            how=Execution(trims_shared=False),
            shared_passes=True,
            moved_bytes=2.0,
        )

    def verify(self, model: Named, request: EngineRequest, machine: Machine, placed: Placement) -> Command | None:
        if placed.on_host or placed.experts_on_host or request.mtp:
            return None
        checkpoint, how, blanks = _checkpoint(model, request.quant)
        kv = KV_DTYPES.get((request.kv or "auto").casefold())
        most = model.longest or request.context + GENERATED
        tokens = max(1, min(request.context, most - GENERATED))
        generated = min(GENERATED, most - tokens)
        share = math.ceil((placed.used + SPARE) * 100) / 100
        return command(
            ("vllm", "bench", "latency", "--model", checkpoint, *how),
            ("--input-len", str(tokens), "--output-len", str(generated), "--batch-size", str(request.batch)),
            (
                "--max-model-len",
                str(tokens + generated),
            ),  # by default, the pool must hold the model's longest context
            ("--gpu-memory-utilization", f"{min(share, 1):g}") if share > POOL else (),
            ("--kv-cache-dtype", kv) if kv else (),
            (PARALLEL[machine.split], str(machine.target.count)) if machine.target.count > 1 else (),
            **blanks,
        )

    def _tokens(self, request: EngineRequest) -> int:
        return min(request.ubatch or UBATCH, request.context * request.batch)

    def _buffers(self, geometry: Geometry, storage: Storage, request: EngineRequest) -> Interval:
        tokens = self._tokens(request)
        chosen, width = storage.expert_rows
        value = 2 * tokens * (4 * geometry.hidden + 3 * storage.widest + 3 * chosen * max(width, geometry.hidden))
        logits = request.batch * geometry.vocab * 4
        return spread(value + 2 * logits, value / 3 + logits, 2.5 * value + 3 * logits)


def _checkpoint(model: Named, quant: str) -> tuple[str, tuple[str, ...], dict[str, str]]:
    """The value of ``--model``, the options that make it ``quant``, and a placeholder if there is no such checkpoint.

    vLLM quantizes to fp8 while it loads; other quantizations must be stored in the checkpoint.
    """
    stored = "quantization_config" in model.source.config or model.source.kind == "gguf"
    if model.source.kind in LOADS and (model.as_stored if stored else quant in WHILE_LOADING):
        hub = model.source.kind == "hub"
        revision = ("--revision", model.source.revision) if hub and model.source.revision else ()
        how = () if stored else WHILE_LOADING[quant]
        return model.source.location if hub else model.argument, (*revision, *how), {}
    weights = "weights" if quant in WHILE_LOADING else f"weights in {quant}"
    meant = f"a folder or Hugging Face id with the {weights} of {model.title}"
    return CHECKPOINT, WHILE_LOADING.get(quant, ()), {CHECKPOINT: meant}


def _held(weight: Weight, layer: Layer | None, count: int, quant: str) -> Held:
    size, scheme = BYTES.get(quant, 2.0), quant if quant in BYTES else "bf16"
    extra = 0
    if quant in PACKED and part_of(weight, layer) in PACKED[quant][1] and not weight.expert_bias:
        size, scheme = PACKED[quant][0], quant
        extra = 4 * weight.parameters // weight.shape[-1] if quant in ("fp8", "int8") else 0
    return Held(weight, layer, count, scheme, round(weight.parameters * size + extra) * count)


def _copied_values(geometry: Geometry) -> list[tuple[Layer, int, Weight]]:
    """Gemma 4 layers with keys but no value projection: their values get a copy of the keys' projection."""
    found = []
    for layer, count in geometry.groups:
        names = {weight.name.rpartition(".")[0]: weight for weight in layer.weights}
        key = names.get("self_attn.k_proj")
        if key is not None and "self_attn.v_proj" not in names:
            found.append((layer, count, key))
    return found


def kv_bytes(request: EngineRequest) -> float:
    """Bytes per element of K and V. Raises NotFound for a type without a rule."""
    kv = (request.kv or "auto").casefold()
    if kv not in KV_BYTES:
        raise unknown("KV cache type of vllm", kv, KV_BYTES)
    return KV_BYTES[kv]


def cache_bytes(geometry: Geometry, request: EngineRequest) -> int:
    """Bytes of the pages and states that the case needs."""
    pass_tokens = min(request.ubatch or UBATCH, request.context)
    each, total = kv_bytes(request), 0.0
    for layer, count in geometry.groups:
        mixer = layer.mixer
        if not isinstance(mixer, Attention):
            total += count * (4 * mixer.recurrent_elements + 2 * mixer.channels * (mixer.kernel - 1))
        elif mixer.owns_cache:
            most = request.context if mixer.window is None else min(request.context, mixer.window - 1 + pass_tokens)
            total += count * 2 * mixer.kv_heads * mixer.head_dim * -(-most // PAGE) * PAGE * each
    return round(total * request.batch)


class LikeVllm(Vllm):
    """A server with the same rules of memory; which command measures a case with it is not known here."""

    def __init__(self, name: str, version: str, chunk_option: str) -> None:
        self.name, self.version, self.chunk_option = name, version, chunk_option

    def verify(self, model: Named, request: EngineRequest, machine: Machine, placed: Placement) -> None:
        """No rule."""


class TensorRt(LikeVllm):
    """TensorRT-LLM, which NVIDIA makes for its own GPUs (nvidia.github.io/TensorRT-LLM, Supported Hardware)."""

    reads = frozenset({SAFETENSORS})

    def unavailable(self, target: Target, quant: str) -> str | None:
        if target.vendor not in ("NVIDIA", "other") or target.generation in BEFORE_AMPERE:
            return f"{self.name} runs on NVIDIA GPUs since Ampere, not on {target.name}"
        return None


ENGINE = Vllm()
RULES = "by the rules of vllm 0.26"
RELATED = (
    LikeVllm("sglang", RULES, "--chunked-prefill-size"),
    TensorRt("tensorrt-llm", RULES, "--max_num_tokens"),
)
