"""transformers with bitsandbytes, eager, as `profile sweep` runs it: chunks of tokens in, one row of logits out.

Rules read at transformers 5.23 (``cache_utils.py``, ``integrations/sdpa_attention.py``,
``integrations/bitsandbytes.py``, ``models/gemma4``) and bitsandbytes 0.50:

- bitsandbytes packs modules whose type is exactly ``nn.Linear``, except the head: tables, fused experts (a 3-D
  parameter) and convolutions stay in the compute dtype.
- After a prefill a sliding layer's K and V are *views* of all tokens of the last pass and the window before it; the
  whole storage lives until the first decode step (``DynamicSlidingWindowLayer.update``).
- A growing layer is copied to append, so one layer exists twice for a moment, and a step goes over it thrice.
- Heads beyond 256 wide take no flash kernel: K and V are repeated for every query head
  (``use_gqa_in_sdpa``), for one layer at a time. A windowed layer's mask has a cell for each pair.
- Layers that share K and V send only the last token of a pass through a prefill.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from profiler import quants, registry
from profiler.case import PREFILL_CHUNK
from profiler.cost.calibrated import Counts, timed_layer
from profiler.cost.engines.base import MIB, EngineRequest, Named, Terms, spread
from profiler.cost.interval import Interval, exact
from profiler.cost.machine import Machine
from profiler.cost.storage import Held, Storage, as_stored, bounds_of, storage, with_head
from profiler.cost.work import GROWING_TOUCHES, STATE_TOUCHES, Calls, Manner
from profiler.decode_path import EAGER, GRAPH, STATIC
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

FLASH_WIDTH = 256  # widest head that takes a flash kernel on CUDA
# Operators of a layer that are no views, counted with a TorchDispatchMode on meta tensors (transformers 5.23); of a
# gated-delta layer without flash-linear-attention 94 in a step, 118 + 9 for each chunk of 64 tokens in a prefill.
LAYER_CALLS = {"gemma4": 99.0, "gemma3": 77.0, "qwen3": 50.0, "llama": 48.0, "": 60.0}
# The same of our own step; on a GPU norms, attention (which takes as long as six of the others) and the delta rule
# are kernels of ours.
STEP_CALLS = {
    "CPU": {"gemma4": 100.0, "gemma3": 84.0, "qwen3_5": 70.0, "qwen3": 56.0, "llama": 50.0, "delta": 62.0, "": 70.0},
    "other": {"gemma4": 43.0, "gemma3": 35.0, "qwen3_5": 40.0, "qwen3": 33.0, "llama": 31.0, "delta": 30.0, "": 39.0},
}
STEP_OUTSIDE_CALLS = 45.0
CHECKPOINT_DTYPES = (*DTYPE_BYTES, "fp64")
OWN_DTYPES = ("fp32", "bf16")  # that kernels of our own step compute in; others take torch's, over buckets
PADDED = 1.5  # of a bucket, which is between one and two times what is filled
# How often a step on a GPU moves the experts of each token, those that two tokens share twice: by a kernel of ours,
# or by transformers' ``batched_mm``, which copies them first.
EXPERT_COPIES = {True: 1.0, False: 3.0}
OUTSIDE_CALLS = 30.0  # of the layers
ELEMENTWISE = (
    75.0  # 38 (Qwen 3) to 52 (Gemma 4) tensors of the hidden width written a layer, and as many read at least
)
COUNTS = Counts(STEP_LAYERS * LAYER_CALLS["llama"] + OUTSIDE_CALLS, ELEMENTWISE, GROWING_TOUCHES)
DELTA_TENSORS = 24  # seen: 400 MiB for 2,048 tokens of Qwen 3.5 0.8B, torch_chunk_gated_delta_rule
EAGER_STATE_TOUCHES = 20.0  # times that the element-wise operators of a shipped step read or write a recurrent state
SCORE_BYTES = 4
MASK_BYTES = 2
PROCESS = {  # interpreter, torch (a build for CPUs or for CUDA), transformers, bitsandbytes; on CUDA its context and
    # the libraries' workspaces
    "CPU": spread(600 * MIB, 360 * MIB, 850 * MIB),
    "other": spread(700 * MIB, 400 * MIB, 1500 * MIB),
}
WARM = (20 * MIB, 35 * MIB, 120 * MIB)  # what the first passes and packing weights leave in a process's heap
HEAP_HOLES = 2.0  # seen 1.6 to 3: glibc's heap over what lives in it; fewer above 32 MiB a tensor, which it maps
STORED_BYTES = 2  # of a parameter in most checkpoints
STILL_UNPACKED = 0.6  # of the weights, when the last is packed: they are read ahead; seen 0.1 to 1
FRAGMENTED = 1.03  # the caching allocator's segments, over what lives in them


class Transformers:
    """See the module."""

    name = "transformers"
    version = "5.23"
    default_quant = "bf16"
    default_kv = "the compute dtype"
    makers = frozenset(PROCESS) - {"other"}
    counts: Counts | None = COUNTS

    @property
    def quants(self) -> tuple[str, ...]:
        return tuple(registry.names("quants"))

    def check(self, quant: str) -> str:
        if quant.casefold().replace("_", "-") not in self.quants:
            raise unknown("quantization of transformers", quant, self.quants)
        return quant.casefold().replace("_", "-")

    def storage(self, geometry: Geometry, quant: str, dtype: str, repacks: bool = False) -> Storage:
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

    def stored(self, geometry: Geometry, stored: Stored, dtype: str, repacks: bool = False) -> Storage:
        """Packed weights as the checkpoint has them, unless bitsandbytes packs them anew; others in ``dtype``."""
        known = {scheme: quants.find(scheme) for scheme in {item.scheme for item in stored.weights}}

        def loaded(item: Held) -> Held:
            if item.scheme in CHECKPOINT_DTYPES:
                return replace(item, scheme=dtype, nbytes=plain_bytes(item.weight, dtype))
            ours = known[item.scheme]
            if repacks and ours is not None and ours.kernels.fused(item.weight):
                return replace(item, nbytes=ours.weight_bytes(item.weight, dtype, True), fused=True)
            return item

        held = map(loaded, as_stored(geometry, stored))
        return storage(with_head(geometry, held, copied=False), bounds_of(stored))

    def timed(self, quant: str, stored: Stored | None, target: Target) -> bool:
        """On a calibrated device what was timed there counts, elsewhere the prior of the quantization."""
        if stored is not None and stored.scheme is not None and stored.scheme.method == BITSANDBYTES:
            return True
        ours = quants.find(quant) if stored is None else stored.scheme and checkpoint.of_ours(stored.scheme)
        if not ours:
            return False
        if not ours.roles:
            return True
        timed = ours.kernels.prior if target.ceilings is None else timed_layer(target.ceilings, ours.name)
        return timed is not None

    def memory(self, geometry: Geometry, storage: Storage, setting: EngineRequest, target: Target) -> Terms:
        if setting.kv is not None:
            raise ProfileError("transformers keeps K and V in the compute dtype", "Leave --kv out.")
        width = DTYPE_BYTES[setting.dtype]
        held = geometry.cache_bytes(setting.context, setting.batch, width).total
        packed = _packed_products(geometry, storage, setting, target, setting.batch * self._chunk(setting, target))
        step = (
            self._decode_bytes(geometry, storage, setting, width)
            if setting.path == EAGER
            else _step_bytes(geometry, storage, setting, width, target)
        )
        reason = "copying a layer's cache to append to it" if setting.path == EAGER else "logits"
        return Terms(
            weights=storage.weights,
            cache=exact(held),
            prefill=self._prefill_bytes(geometry, storage, setting, target) + packed,
            decode=packed + step,
            framework=_process(target),
            host=exact(0) if target.unified else spread(1500 * MIB, 900 * MIB, 4000 * MIB),
            prefill_reason=f"a chunk of {self._chunk(setting, target):,} tokens"
            + (" and what it leaves in sliding-window layers" if _slides(geometry) else ""),
            decode_reason="multiplying quantized weights" if packed.value > step.value else reason,
        )

    def load_peak(self, geometry: Geometry, storage: Storage, dtype: str, target: Target) -> Interval | None:
        """Host memory while a checkpoint of 16-bit weights is loaded on a CPU, in bytes.

        The file's pages are mapped and count until all of it is copied; the system can take them back.
        """
        if target.vendor != "CPU":
            return None
        width = DTYPE_BYTES[dtype]
        packed = [line for line in storage.lines if line.packed]
        unpacked = sum(line.elements for line in packed)
        if width == STORED_BYTES:  # what is not packed is mapped as it is, and read when first used
            read = sum(line.nbytes for line in packed) + STORED_BYTES * unpacked
            return exact(read) + _process(target) + Interval(0, 0, storage.device_bytes, "prior")
        stored = geometry.parameters * STORED_BYTES
        ahead = Interval(STILL_UNPACKED * width * unpacked, 0, width * unpacked, "prior")
        return exact(storage.device_bytes + stored) + _process(target) + ahead

    def left_mapped(self, storage: Storage, dtype: str, target: Target) -> Interval:
        """Bytes of a checkpoint on a CPU that were packed and still count for the process.

        Weights that are not packed stay in the mapped file where it has their dtype, and so does the rest of it. The
        system takes those pages back when it needs them: no part of what decides whether a model fits.
        """
        if target.vendor != "CPU" or DTYPE_BYTES[dtype] != STORED_BYTES:
            return exact(0)
        read = STORED_BYTES * sum(line.elements for line in storage.lines if line.packed)
        return Interval(read, 0, read, "prior")

    def runs(self, path: str, quant: str, dtype: str, target: Target) -> str:
        """No CUDA graph may hold what waits for the device, as LLM.int8() does."""
        ours = quants.find(quant)
        captured = ours is None or ours.kernels.in_graphs
        return STATIC if path == GRAPH and not captured and target.vendor != "CPU" else path

    def step_manner(self, geometry: Geometry, setting: EngineRequest, target: Target) -> Manner:
        shipped = self.manner(geometry, setting, target)
        if setting.path == EAGER:
            return shipped
        assert shipped.calls is not None
        on_cpu, ours = target.vendor == "CPU", setting.dtype in OWN_DTYPES
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

    def manner(self, geometry: Geometry, setting: EngineRequest, target: Target | None = None) -> Manner:
        return Manner(
            ubatch=_ubatch(setting, target),
            cache_bytes=DTYPE_BYTES[setting.dtype],
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
                element_bytes=DTYPE_BYTES[setting.dtype],
            ),
        )

    def verify(self, model: Named, setting: EngineRequest, machine: Machine) -> Command | None:
        target = machine.target
        if target.count > 1 or not swept(target):
            return None
        own = model.as_stored and "quantization_config" in model.source.config  # which a sweep takes by itself
        quant = ("-q", setting.quant) if setting.quant in self.quants and not own else ()
        sizes = ("-c", str(setting.context), "-b", str(setting.batch))
        usual = (
            None
            if target.kind == "described"
            else self.runs(usual_path(target), setting.quant, setting.dtype, target)
        )
        path = ("--path", setting.path) if setting.path != usual else ()
        device = ("--device", target.local) if target.local else ()
        return command("profile", "sweep", "-m", model.argument, quant, sizes, path, device)

    def _chunk(self, setting: EngineRequest, target: Target) -> int:
        return min(_ubatch(setting, target), setting.context)

    def _prefill_bytes(
        self, geometry: Geometry, storage: Storage, setting: EngineRequest, target: Target
    ) -> Interval:
        """Beside weights and cache: views, mask, repeated K and V, hidden states, expert rows, logits."""
        chunk = self._chunk(setting, target)
        width, rows = DTYPE_BYTES[setting.dtype], setting.batch * chunk
        views = retained_bytes(geometry, setting, chunk, width, min(chunk, setting.context))
        mask = rows * setting.context * MASK_BYTES
        layer = max((_layer_kv(layer.mixer, setting, width) for layer, _ in geometry.groups), default=0)
        chosen, expert = storage.expert_rows
        holes = HEAP_HOLES if target.vendor == "CPU" else 1.0
        hidden = holes * rows * width * (6 * geometry.hidden + 3 * storage.widest)
        routed = rows * chosen * (3 * expert * width + geometry.hidden * SCORE_BYTES)
        batched = _batched_experts_bytes(geometry, storage, rows, width)
        logits = setting.batch * geometry.vocab * (width + 4)
        delta = rows * max((_delta_bytes(layer.mixer) for layer, _ in geometry.groups), default=0)
        sure = views + rows * width * 2 * geometry.hidden + logits + batched
        value = views + mask + layer + hidden + max(routed, batched) + logits + delta
        return spread(value * FRAGMENTED, sure, 1.6 * (value - views - batched) + views + batched * FRAGMENTED)

    def _decode_bytes(self, geometry: Geometry, storage: Storage, setting: EngineRequest, width: int) -> Interval:
        layer = max((_layer_kv(layer.mixer, setting, width) for layer, _ in geometry.groups), default=0)
        logits = setting.batch * geometry.vocab * (width + 4)
        batched = exact(_batched_experts_bytes(geometry, storage, setting.batch, width))
        return batched + spread(layer + logits, logits, 2 * layer + 2 * logits)


def _slides(geometry: Geometry) -> bool:
    """Whether a prefill leaves more in caches than they hold: see ``retained_bytes``."""
    mixers = (layer.mixer for layer in geometry.layers)
    return any(isinstance(each, Attention) and each.window is not None and each.owns_cache for each in mixers)


def swept(target: Target) -> bool:
    """Whether ``profile sweep`` runs on such a device, as far as its maker tells."""
    return target.local is not None or target.vendor not in ("AMD", "Apple", "Intel")


def usual_path(target: Target) -> str:
    """How a sweep runs decode steps there."""
    return target.device_kind.step_path(target.local is not None)


def _ubatch(setting: EngineRequest, target: Target | None) -> int:
    """Tokens of a sequence in one prefill pass, however short the context."""
    return setting.ubatch or (PREFILL_CHUNK if target is None else target.device_kind.prefill_chunk)


def _by_family(counted: Mapping[str, float], geometry: Geometry) -> float:
    """The count of a layer; that of the empty name for a family without one."""
    return next(count for start, count in counted.items() if geometry.model_type.startswith(start))


def _step_bytes(geometry: Geometry, storage: Storage, setting: EngineRequest, width: int, target: Target) -> Interval:
    """Beside a cache that is written in place: logits, and copies of chosen experts where no kernel is ours."""
    logits = setting.batch * geometry.vocab * (width + 4)
    chosen, inner = storage.expert_rows
    copied = (
        0
        if target.vendor == "CPU" or setting.dtype in OWN_DTYPES
        else setting.batch * chosen * 3 * inner * geometry.hidden * width
    )
    batched = exact(_batched_experts_bytes(geometry, storage, setting.batch, width))
    return batched + spread(1.5 * logits + copied, logits, 3 * logits + 2 * copied)


def _batched_experts_bytes(geometry: Geometry, storage: Storage, rows: int, width: int) -> int:
    """What Llama 4's experts hold at once for ``rows`` tokens, since every token goes to every expert.

    ``Llama4TextMoe.forward`` repeats the tokens for each expert, and ``Llama4TextExperts`` multiplies them in one
    ``bmm``. The peak is either the activation (routed input, gate and up, the activated gate, and the product with
    it) or the second product (routed input, gate and up, that product, and the output).
    """
    experts, inner = storage.batched_experts
    return experts * rows * width * max(geometry.hidden + 4 * inner, 2 * geometry.hidden + 3 * inner)


def _process(target: Target) -> Interval:
    """What runs beside the model: measured on this machine's CPU, else as seen elsewhere."""
    known = target.ceilings
    if target.vendor != "CPU" or known is None or not known.process_bytes:
        return PROCESS.get(target.vendor, PROCESS["other"])
    low, usual, high = (known.process_bytes + warm for warm in WARM)
    return Interval(usual, low, high, "calibrated")


def _packed_products(
    geometry: Geometry, storage: Storage, setting: EngineRequest, target: Target, rows: int
) -> Interval:
    """What multiplying packed weights takes for a moment on a CPU, whatever the phase: seen, not counted."""
    ours = quants.find(setting.quant)
    if target.vendor != "CPU" or ours is None or ours.kernels.cpu_scratch is None:
        return exact(0)
    low, usual, high = ours.kernels.cpu_scratch(rows, 4 * geometry.hidden * storage.widest, target.features)
    return spread(usual, low, high)


def _delta_bytes(mixer: object) -> int:
    """For each token of a chunked gated-delta prefill: tensors of all value heads in fp32 that live at once."""
    return (
        DELTA_TENSORS * RECURRENT_BYTES * mixer.value_heads * mixer.value_dim if isinstance(mixer, GatedDelta) else 0
    )


def _layer_kv(mixer: object, setting: EngineRequest, width: int) -> int:
    """One layer's K and V once more, and repeated for every head where that is what happens."""
    if not isinstance(mixer, Attention):
        return 0
    once = setting.batch * width * mixer.read_elements(setting.context)
    repeated = once * mixer.heads // mixer.kv_heads if mixer.head_dim > FLASH_WIDTH else 0
    return once + repeated


def retained_bytes(
    geometry: Geometry, setting: EngineRequest, chunk: int, width: int, last: int | None = None
) -> int:
    """Bytes that views keep alive after a pass of ``last`` tokens, over what the sliding layers' cache itself holds.

    Without ``last``: after the prefill, whose last pass may be a short one. Its peak is that of a full pass.
    """
    total = 0
    last = (setting.context - 1) % chunk + 1 if last is None else last
    for layer, count in geometry.groups:
        mixer = layer.mixer
        if isinstance(mixer, Attention) and mixer.window is not None and mixer.owns_cache:
            stored = min(setting.context, mixer.window - 1 + last)
            total += count * 2 * mixer.kv_heads * mixer.head_dim * max(0, stored - mixer.held(setting.context))
    return total * setting.batch * width


ENGINE = Transformers()
