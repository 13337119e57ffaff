"""transformers with bitsandbytes, eager, as `profile sweep` runs it: chunks of tokens in, one row of logits out.

Rules read at transformers 5.23 (``cache_utils.py``, ``integrations/sdpa_attention.py``,
``integrations/bitsandbytes.py``, ``models/gemma4``) and bitsandbytes 0.50:

- bitsandbytes packs modules whose type is exactly ``nn.Linear``, except the head: tables, fused experts (a 3-D
  parameter) and convolutions stay in the compute dtype.
- After a prefill a sliding layer's K and V are *views* of all tokens of the last pass and the window before it; the
  whole storage lives until the first decode step (``DynamicSlidingWindowLayer.update``).
- To append, a growing layer's cache is copied: the layer exists twice for a moment, and a step moves it three times.
- Heads beyond 256 wide take no flash kernel: K and V are repeated for every query head
    (``use_gqa_in_sdpa``), one layer at a time. The mask of a sliding layer has one entry per query and key.
- In layers that share K and V, only the last token of a prefill pass is computed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from profiler import quants, registry
from profiler.case import PREFILL_CHUNK
from profiler.cost.calibrated import OperatorCounts, timed_layer
from profiler.cost.engines.base import Engine, EngineRequest, Named, Placement, Terms, spread
from profiler.cost.interval import Interval, exact
from profiler.cost.machine import Machine
from profiler.cost.storage import DERIVED, Held, Storage, as_stored, bounds_of, storage, with_head
from profiler.cost.work import GROWING_TOUCHES, STATE_TOUCHES, Calls, PassRules
from profiler.decode_path import EAGER, GRAPH, PATHS, STATIC
from profiler.devices.calibration import STEP_LAYERS
from profiler.devices.target import Target
from profiler.errors import ProfileError
from profiler.models.geometry import Geometry
from profiler.models.layers import RECURRENT_BYTES, Attention, Execution, GatedDelta
from profiler.models.scheme import BITSANDBYTES
from profiler.models.stored import Stored
from profiler.quants import checkpoint
from profiler.quants.base import DTYPE_BYTES, Quant, plain_bytes
from profiler.registry import unknown
from profiler.shell import Command, command
from profiler.units import MIB

FLASH_WIDTH = 256  # widest head that takes a flash kernel on CUDA
# Operators of a layer that are not views, counted with a TorchDispatchMode on meta tensors (transformers 5.23); a
# gated-delta layer without flash-linear-attention has 94 in a step and 118 + 9 per chunk of 64 tokens in a prefill.
LAYER_CALLS = {"gemma4": 99.0, "gemma3": 77.0, "qwen3": 50.0, "llama": 48.0, "qwen2": 48.0, "mistral": 48.0, "": 60.0}
# The same for our own step. On a GPU we have kernels for norms, the delta rule and attention (which takes as long as
# six of the others).
STEP_CALLS = {
    "CPU": {"gemma4": 100.0, "gemma3": 84.0, "qwen3_5": 70.0, "qwen3": 56.0, "llama": 50.0, "delta": 62.0, "": 70.0},
    "other": {"gemma4": 43.0, "gemma3": 35.0, "qwen3_5": 40.0, "qwen3": 33.0, "llama": 31.0, "delta": 30.0, "": 39.0},
}
STEP_OUTSIDE_CALLS = 45.0
EAGER_ONLY = frozenset(
    {"gpt_oss"}
)  # its attention sinks are not part of PyTorch's attention, which our step replaces
CHECKPOINT_DTYPES = (*DTYPE_BYTES, "fp64")
OWN_DTYPES = ("fp32", "bf16")  # dtypes of our own attention kernels; others use PyTorch's, over padded buckets
OF_CHECKPOINTS = ("awq", "gptq")  # predicted by name, although only a checkpoint can be stored in them
FOUR_BITS, FOUR_BIT_BYTES = "int4", 0.5 + 2.5 / 128
PADDED = 1.5  # bucket size ÷ filled size, which is between one and two
# How often a step on a GPU moves the experts of each token (an expert that two tokens share counts twice): with our
# kernel, or with transformers' ``batched_mm``, which copies them first.
EXPERT_COPIES = {True: 1.0, False: 3.0}
OUTSIDE_CALLS = 30.0  # outside the layers
ELEMENTWISE = (
    75.0  # 38 (Qwen 3) to 52 (Gemma 4) tensors of the hidden width written per layer, and at least as many read
)
COUNTS = OperatorCounts(STEP_LAYERS * LAYER_CALLS["llama"] + OUTSIDE_CALLS, ELEMENTWISE, GROWING_TOUCHES)
DELTA_TENSORS = 24  # measured: 400 MiB for 2,048 tokens of Qwen 3.5 0.8B, torch_chunk_gated_delta_rule
EAGER_STATE_TOUCHES = 20.0  # reads and writes of a recurrent state by the operators of the unpatched step
SCORE_BYTES = 4
MASK_BYTES = 2
PROCESS = {  # interpreter, torch (CPU or CUDA build), transformers, bitsandbytes; on CUDA also the context and the
    # libraries' workspaces
    "CPU": spread(600 * MIB, 360 * MIB, 850 * MIB),
    "other": spread(700 * MIB, 400 * MIB, 1500 * MIB),
}
BITSANDBYTES_BYTES = 47 * MIB  # of it: what importing bitsandbytes adds
WARM = (20 * MIB, 35 * MIB, 120 * MIB)  # what the first passes and packing leave in the heap of a process
HEAP_HOLES = 2.0  # glibc's heap ÷ what is allocated in it: measured 1.6 to 3; less above 32 MiB, where it maps
STORED, STORED_BYTES = "bf16", 2  # dtype of most checkpoints, and bytes per parameter; older ones are in fp16
STILL_UNPACKED = 0.6  # share of weights not yet packed at the last one, as they are read ahead; measured 0.1 to 1
# The same for weights in the mapped file, which are packed in fp32: Gemma 3 270M and SmolLM2 in int8, nf4, nf4-dq and
# fp4 (8 rows).
IN_FP32 = (0.5, 0.0, 1.6)
FRAGMENTED = 1.03  # segments of the caching allocator ÷ what is allocated in them


class Transformers(Engine):
    """See the module."""

    name = like = "transformers"
    version = "5.23"
    usual_quants = ("bf16", "nf4")
    default_kv = "the compute dtype"
    chunk_option = "--ubatch"
    makers = frozenset(PROCESS) - {"other"}
    operator_counts = COUNTS
    paths = PATHS
    loads_with_transformers = copies_experts_whole = sums_in_fp32 = True

    @property
    def quants(self) -> tuple[str, ...]:
        return (*registry.names("quants"), *OF_CHECKPOINTS)

    def check(self, quant: str) -> str:
        if quant.casefold().replace("_", "-") not in self.quants:
            raise unknown("quantization of transformers", quant, self.quants)
        return quant.casefold().replace("_", "-")

    def unavailable(self, target: Target, quant: str) -> str | None:
        if target.generation == "Kepler":
            return f"{self.name} does not run on {target.name}: PyTorch needs CUDA 12, which dropped Kepler"
        return None

    def storage(self, geometry: Geometry, quant: str, dtype: str, repacks: bool = False) -> Storage:
        if quant in OF_CHECKPOINTS:
            return _packed_in_four_bits(geometry, dtype)
        scheme: Quant = registry.load("quants", quant, "quantization").QUANT
        plain = scheme.dtype or dtype
        held = (
            Held(
                weight,
                layer,
                count,
                quant if weight.role in scheme.roles else plain,
                scheme.weight_bytes(weight, plain, repacks) * count,
                fused=repacks and scheme.kernels.fused(weight),
            )
            for layer, count in ((None, 1), *geometry.groups)
            for weight in (layer.weights if layer is not None else geometry.outside)
        )
        return storage(with_head(geometry, held, copied=False))

    def stored(self, geometry: Geometry, checkpoint_format: Stored, dtype: str, repacks: bool = False) -> Storage:
        """Packed weights as in the checkpoint, unless bitsandbytes repacks them; others in ``dtype``."""
        known = {scheme: quants.find(scheme) for scheme in {item.scheme for item in checkpoint_format.weights}}

        def loaded(item: Held) -> Held:
            if item.scheme in CHECKPOINT_DTYPES:
                return replace(item, scheme=dtype, nbytes=plain_bytes(item.weight, dtype))
            ours = known[item.scheme]
            if repacks and ours is not None and ours.kernels.fused(item.weight):
                return replace(item, nbytes=ours.weight_bytes(item.weight, dtype, True), fused=True)
            return item

        held = map(loaded, as_stored(geometry, checkpoint_format))
        return storage(with_head(geometry, held, copied=False), bounds_of(checkpoint_format))

    def timed(self, quant: str, checkpoint_format: Stored | None, target: Target) -> bool:
        """On a calibrated device, whether it was timed there; elsewhere, whether the quantization has a prior."""
        if (
            checkpoint_format is not None
            and checkpoint_format.scheme is not None
            and checkpoint_format.scheme.method == BITSANDBYTES
        ):
            return True
        if checkpoint_format is None and quant in OF_CHECKPOINTS:
            return target.ceilings is None
        ours = (
            quants.find(quant)
            if checkpoint_format is None
            else checkpoint_format.scheme and checkpoint.quant_of_scheme(checkpoint_format.scheme)
        )
        if not ours:
            return False
        if not ours.roles:
            return True
        timed = ours.kernels.prior if target.ceilings is None else timed_layer(target.ceilings, ours.name)
        return timed is not None

    def memory(self, geometry: Geometry, storage: Storage, request: EngineRequest, target: Target) -> Terms:
        if request.kv is not None:
            raise ProfileError(
                "--kv needs --engine llama.cpp or vllm", "transformers keeps K and V in the compute dtype."
            )
        width = DTYPE_BYTES[request.dtype]
        held = geometry.cache_bytes(request.context, request.batch, width).total
        packed = _packed_products(geometry, storage, request, target, request.batch * self._chunk(request, target))
        step = (
            self._decode_bytes(geometry, storage, request, width)
            if request.path == EAGER
            else _step_bytes(geometry, storage, request, width, target)
        )
        reason = "copying a layer's cache to append to it" if request.path == EAGER else "logits"
        return Terms(
            weights=storage.weights,
            cache=exact(held),
            prefill=self._prefill_bytes(geometry, storage, request, target) + packed,
            decode=packed + step,
            framework=_process(target, storage),
            host=exact(0) if target.unified else spread(1500 * MIB, 900 * MIB, 4000 * MIB),
            prefill_reason=f"a chunk of {self._chunk(request, target):,} tokens"
            + (" and what it leaves in sliding-window layers" if _slides(geometry) else ""),
            decode_reason="multiplying quantized weights" if packed.value > step.value else reason,
        )

    def load_peak(self, geometry: Geometry, storage: Storage, dtype: str, target: Target) -> Interval | None:
        """Host memory while a checkpoint of 16-bit weights is loaded on a CPU, in bytes.

        The file's pages are mapped and count until all of it is copied, although the system can reclaim them. Weights
        in fp16 are converted if the checkpoint is in bf16, and else mapped like those in bf16.
        """
        if target.vendor != "CPU":
            return None
        width = DTYPE_BYTES[dtype]
        packed = [line for line in storage.lines if line.packed]
        unpacked = sum(line.elements for line in packed)
        # Weights that are neither packed nor converted are mapped from the file and read when first used.
        read = sum(line.nbytes for line in packed) + STORED_BYTES * unpacked
        if dtype == STORED:
            ahead = spread(*(share * DTYPE_BYTES["fp32"] * unpacked for share in IN_FP32))
            mapped = Interval(0, 0, storage.device_bytes, "prior")
            return exact(read) + _process(target, storage) + mapped + ahead
        copied = storage.device_bytes + geometry.parameters * STORED_BYTES
        least = read if width == STORED_BYTES else copied
        ahead = Interval(STILL_UNPACKED * width * unpacked, 0, width * unpacked, "prior")
        return Interval(copied, least, copied, "prior") + _process(target, storage) + ahead

    def left_mapped(self, storage: Storage, dtype: str, target: Target) -> Interval:
        """Bytes of a checkpoint on a CPU that were packed and are still charged to the process.

        Unpacked weights stay in the mapped file if it has their dtype, and the rest of the file stays mapped too. The
        system reclaims those pages when it needs them, so they do not affect whether a model fits.
        """
        if target.vendor != "CPU" or DTYPE_BYTES[dtype] != STORED_BYTES:
            return exact(0)
        read = STORED_BYTES * sum(line.elements for line in storage.lines if line.packed)
        return Interval(read, 0, read, "prior")

    def runs(self, path: str, quant: str, dtype: str, target: Target, family: str = "") -> str:
        """A CUDA graph cannot contain operators that wait for the device, as LLM.int8() does. Families without
        PyTorch's attention run eager.
        """
        if family in EAGER_ONLY:
            return EAGER
        ours = quants.find(quant)
        captured = ours is None or ours.kernels.in_graphs
        return STATIC if path == GRAPH and not captured and target.vendor != "CPU" else path

    def remarks(self, geometry: Geometry) -> tuple[str, ...]:
        if geometry.model_type not in EAGER_ONLY:
            return ()
        return ("decodes with transformers' own step (--path eager), because ours does not support attention sinks",)

    def step_rules(self, geometry: Geometry, request: EngineRequest, target: Target) -> PassRules:
        shipped = self.prefill_rules(geometry, request, target)
        if request.path == EAGER:
            return shipped
        assert shipped.calls is not None
        on_cpu, ours = target.vendor == "CPU", request.dtype in OWN_DTYPES
        counted = STEP_CALLS["CPU" if on_cpu or not ours else "other"]
        calls = replace(
            shipped.calls,
            layer=_by_family(counted, geometry),
            delta_step=counted["delta"],
            outside=STEP_OUTSIDE_CALLS,
            state_touches=STATE_TOUCHES,
        )
        read = 1.0 if ours else PADDED
        return replace(
            shipped, cache_touches=read, calls=calls, expert_copies=None if on_cpu and ours else EXPERT_COPIES[ours]
        )

    def prefill_rules(self, geometry: Geometry, request: EngineRequest, target: Target | None = None) -> PassRules:
        return PassRules(
            ubatch=_ubatch(request, target),
            cache_bytes=DTYPE_BYTES[request.dtype],
            cache_touches=GROWING_TOUCHES,
            how=Execution(skips_masked=False, trims_shared=True, every_expert=True),
            calls=Calls(
                layer=_by_family(LAYER_CALLS, geometry),
                delta_step=94,
                delta_pass=118,
                delta_chunk=9,
                outside=OUTSIDE_CALLS,
                elementwise=ELEMENTWISE,
                state_touches=EAGER_STATE_TOUCHES,
                element_bytes=DTYPE_BYTES[request.dtype],
            ),
        )

    def verify(self, model: Named, request: EngineRequest, machine: Machine, placed: Placement) -> Command | None:
        target = machine.target
        if target.count > 1 or not swept(target) or placed.on_host or placed.experts_on_host:
            return None
        own = model.as_stored and "quantization_config" in model.source.config  # a sweep uses it without -q
        if request.quant in OF_CHECKPOINTS and not own:
            return None  # a sweep measures such a checkpoint, and cannot make one
        quant = ("-q", request.quant) if request.quant in self.quants and not own else ()
        sizes = ("-c", str(request.context), "-b", str(request.batch))
        usual = (
            None
            if target.kind == "described"
            else self.runs(usual_path(target), request.quant, request.dtype, target)
        )
        path = ("--path", request.path) if request.path != usual else ()
        device = ("--device", target.local) if target.local else ()
        return command("profile", "sweep", "-m", model.argument, quant, sizes, path, device)

    def _chunk(self, request: EngineRequest, target: Target) -> int:
        return min(_ubatch(request, target), request.context)

    def _prefill_bytes(
        self, geometry: Geometry, storage: Storage, request: EngineRequest, target: Target
    ) -> Interval:
        """Memory besides weights and cache: views, mask, repeated K and V, hidden states, expert rows, logits."""
        chunk = self._chunk(request, target)
        width, rows = DTYPE_BYTES[request.dtype], request.batch * chunk
        views = retained_bytes(geometry, request, chunk, width, min(chunk, request.context))
        mask = rows * request.context * MASK_BYTES
        layer = max((_layer_kv(layer.mixer, request, width) for layer, _ in geometry.groups), default=0)
        chosen, expert = storage.expert_rows
        holes = HEAP_HOLES if target.vendor == "CPU" else 1.0
        hidden = holes * rows * width * (6 * geometry.hidden + 3 * storage.widest)
        routed = rows * chosen * (3 * expert * width + geometry.hidden * SCORE_BYTES)
        batched = _batched_experts_bytes(geometry, storage, rows, width)
        logits = request.batch * geometry.vocab * (width + 4)
        delta = rows * max((_delta_bytes(layer.mixer) for layer, _ in geometry.groups), default=0)
        sure = views + rows * width * 2 * geometry.hidden + logits + batched
        value = views + mask + layer + hidden + max(routed, batched) + logits + delta
        return spread(value * FRAGMENTED, sure, 1.6 * (value - views - batched) + views + batched * FRAGMENTED)

    def _decode_bytes(self, geometry: Geometry, storage: Storage, request: EngineRequest, width: int) -> Interval:
        layer = max((_layer_kv(layer.mixer, request, width) for layer, _ in geometry.groups), default=0)
        logits = request.batch * geometry.vocab * (width + 4)
        batched = exact(_batched_experts_bytes(geometry, storage, request.batch, width))
        return batched + spread(layer + logits, logits, 2 * layer + 2 * logits)


def _slides(geometry: Geometry) -> bool:
    """Whether a prefill leaves more in the caches than they hold: see ``retained_bytes``."""
    mixers = (layer.mixer for layer in geometry.layers)
    return any(isinstance(each, Attention) and each.window is not None and each.owns_cache for each in mixers)


def _packed_in_four_bits(geometry: Geometry, dtype: str) -> Storage:
    """AWQ and GPTQ: linear layers in 4 bits, with a 16-bit scale and a 4-bit zero for every 128 weights of a row."""
    held = (
        Held(weight, layer, count, FOUR_BITS, round(weight.parameters * FOUR_BIT_BYTES) * count)
        if weight.role == "linear" and layer is not None
        else Held(weight, layer, count, dtype, plain_bytes(weight, dtype) * count)
        for layer, count in ((None, 1), *geometry.groups)
        for weight in (layer.weights if layer is not None else geometry.outside)
    )
    return storage(with_head(geometry, held, copied=False), DERIVED)


def swept(target: Target) -> bool:
    """Whether ``profile sweep`` runs on devices of these makers."""
    return target.local is not None or not {"AMD", "Apple", "Intel"} & set(target.makers)


def usual_path(target: Target) -> str:
    """The default decode path of a sweep on such a device."""
    return target.device_kind.step_path(target.local is not None)


def _ubatch(request: EngineRequest, target: Target | None) -> int:
    """Tokens per sequence in one prefill pass, whatever the context."""
    return request.ubatch or (PREFILL_CHUNK if target is None else target.device_kind.prefill_chunk)


def _by_family(counted: Mapping[str, float], geometry: Geometry) -> float:
    """The count for a layer of the family; the entry with the empty name covers other families."""
    return next(count for start, count in counted.items() if geometry.model_type.startswith(start))


def _step_bytes(geometry: Geometry, storage: Storage, request: EngineRequest, width: int, target: Target) -> Interval:
    """With a cache written in place: logits, and copies of chosen experts where we have no kernel."""
    logits = request.batch * geometry.vocab * (width + 4)
    chosen, inner = storage.expert_rows
    copied = (
        0
        if target.vendor == "CPU" or request.dtype in OWN_DTYPES
        else request.batch * chosen * 3 * inner * geometry.hidden * width
    )
    batched = exact(_batched_experts_bytes(geometry, storage, request.batch, width))
    return batched + spread(1.5 * logits + copied, logits, 3 * logits + 2 * copied)


def _batched_experts_bytes(geometry: Geometry, storage: Storage, rows: int, width: int) -> int:
    """Peak bytes of Llama 4's experts for ``rows`` tokens; every token goes to every expert.

    ``Llama4TextMoe.forward`` repeats the tokens for each expert, and ``Llama4TextExperts`` multiplies them in one
    ``bmm``. The peak is either at the activation (routed input, gate and up, the activated gate, and the product with
    it) or at the second matrix product (routed input, gate and up, that product, and the output).
    """
    experts, inner = storage.batched_experts
    return experts * rows * width * max(geometry.hidden + 4 * inner, 2 * geometry.hidden + 3 * inner)


def _process(target: Target, storage: Storage) -> Interval:
    """Memory of the process itself: measured for this machine's CPU, otherwise typical values. Both are of a process
    with bitsandbytes, which only quantized weights need.
    """
    known, absent = target.ceilings, BITSANDBYTES_BYTES if storage.plain else 0
    if target.vendor != "CPU" or known is None or not known.process_bytes:
        return PROCESS.get(target.vendor, PROCESS["other"]) + exact(-absent)
    low, usual, high = (known.process_bytes + warm - absent for warm in WARM)
    return Interval(usual, low, high, "calibrated")


def _packed_products(
    geometry: Geometry, storage: Storage, request: EngineRequest, target: Target, rows: int
) -> Interval:
    """Temporary memory for multiplying packed weights on a CPU, in either phase. Measured, not derived."""
    ours = quants.find(request.quant)
    if target.vendor != "CPU" or ours is None or ours.kernels.cpu_scratch is None:
        return exact(0)
    low, usual, high = ours.kernels.cpu_scratch(rows, 4 * geometry.hidden * storage.widest, target.features)
    return spread(usual, low, high)


def _delta_bytes(mixer: object) -> int:
    """Bytes per token of a chunked gated-delta prefill: fp32 tensors of all value heads that are alive at once."""
    return (
        DELTA_TENSORS * RECURRENT_BYTES * mixer.value_heads * mixer.value_dim if isinstance(mixer, GatedDelta) else 0
    )


def _layer_kv(mixer: object, request: EngineRequest, width: int) -> int:
    """A copy of one layer's K and V, plus K and V repeated for every head if the layer needs that."""
    if not isinstance(mixer, Attention):
        return 0
    once = request.batch * width * mixer.read_elements(request.context)
    repeated = once * mixer.heads // mixer.kv_heads if mixer.head_dim > FLASH_WIDTH else 0
    return once + repeated


def retained_bytes(
    geometry: Geometry, request: EngineRequest, chunk: int, width: int, last: int | None = None
) -> int:
    """Bytes that views keep alive after a pass of ``last`` tokens, in excess of the sliding layers' cache.

    Without ``last``: after the prefill, whose last pass may be a short one. The peak is that of a full pass.
    """
    total = 0
    last = (request.context - 1) % chunk + 1 if last is None else last
    for layer, count in geometry.groups:
        mixer = layer.mixer
        if isinstance(mixer, Attention) and mixer.window is not None and mixer.owns_cache:
            stored = min(request.context, mixer.window - 1 + last)
            total += count * 2 * mixer.kv_heads * mixer.head_dim * max(0, stored - mixer.held(request.context))
    return total * request.batch * width


ENGINE = Transformers()
