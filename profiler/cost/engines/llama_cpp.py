"""llama.cpp: GGUF weights, caches of a fixed size, a compute buffer reserved for the largest pass.

Rules read at commits 007dbbf3 (2026-08, ``src/llama-quant.cpp``, in ``gguf_mix``) and 02c28f53 (2026-09,
``src/llama-kv-cache-iswa.cpp``), and from logs of builds b8240 to b10809.

- The token embedding and Gemma's per-layer embeddings stay on the host, where rows are looked up. If the output head
  is tied to the embedding, the device holds a second copy of it.
- A sliding layer holds ``window + ubatch`` cells, padded to 256 and limited to the context; a full layer holds the
    context padded to 256. A layer that shares another layer's cache holds none.
- A gated-delta layer keeps ``kernel - 1`` columns of its convolution and its state, both in fp32.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from profiler.cost import gguf_mix
from profiler.cost.calibrated import Counts
from profiler.cost.engines.base import MIB, EngineRequest, Named, Terms, spread
from profiler.cost.interval import Interval, exact
from profiler.cost.machine import Machine
from profiler.cost.storage import Held, Storage, as_stored, bounds_of, storage, with_head
from profiler.cost.work import Manner
from profiler.decode_path import EAGER
from profiler.devices.target import Target
from profiler.models import gguf, gguf_tensors
from profiler.models.geometry import Geometry
from profiler.models.layers import Attention, Execution
from profiler.models.stored import Stored
from profiler.registry import unknown
from profiler.shell import Command, command, quote

UBATCH = 512  # --ubatch-size
PAD = 256  # cells
KV_BYTES = {
    "f32": 4.0,
    "f16": 2.0,
    "bf16": 2.0,
    "q8_0": 34 / 32,
    "q5_1": 24 / 32,
    "q5_0": 22 / 32,
    "q4_1": 20 / 32,
    "q4_0": 18 / 32,
    "iq4_nl": 18 / 32,
}
STATE_BYTES = 4
CONTEXT = {  # CUDA context and the backend's pools; Metal and Vulkan take less. From logs of one process per card.
    "NVIDIA": spread(450 * MIB, 200 * MIB, 900 * MIB),
    "CPU": spread(120 * MIB, 40 * MIB, 300 * MIB),
    "other": spread(250 * MIB, 60 * MIB, 700 * MIB),
}
GENERATED = 128  # tokens that llama-bench decodes by default
SPLIT_MODES = {"layer": "layer", "tensor": "row"}
CONVERT = ("python3", "convert_hf_to_gguf.py")
CONVERTED = ("f32", "f16", "bf16", "q8_0")  # values of its --outtype
MIX_BOUNDS = (0.95, 1.08)  # files of one mix differ by the llama.cpp version and the importance matrix that made them
MASK_BYTES = 2  # the attention mask in f16: one entry per cache cell for each token of a pass


class LlamaCpp:
    """See the module."""

    name = "llama.cpp"
    version = "commit 007dbbf3 (2026-08)"
    default_quant = "q4_k_m"
    default_kv = "f16"
    makers = frozenset(CONTEXT) - {"other"}
    counts: Counts | None = None
    quants = tuple(gguf_mix.MIXES)

    def check(self, quant: str) -> str:
        return gguf_mix.mix(quant)

    def storage(self, geometry: Geometry, quant: str, dtype: str, repacks: bool = False) -> Storage:
        held = (
            Held(t.weight, t.layer, t.count, t.type, t.nbytes, on_host=t.weight.role == "embedding")
            for t in gguf_mix.tensors(geometry, quant)
        )
        return storage(with_head(geometry, held, copied=True), None if quant in gguf_mix.PLAIN else MIX_BOUNDS)

    def stored(self, geometry: Geometry, stored: Stored, dtype: str, repacks: bool = False) -> Storage:
        """Every tensor of the file; for a checkpoint of another kind, its size if converted without quantizing."""
        held = (replace(item, on_host=item.weight.role == "embedding") for item in as_stored(geometry, stored))
        return storage(with_head(geometry, held, copied=True), bounds_of(stored))

    def timed(self, quant: str, stored: Stored | None, target: Target) -> bool:
        known = {*gguf_mix.MIXES.values(), *gguf_tensors.FALLBACK.values()}
        return stored is None or all(weight.scheme in known for weight in stored.weights)

    def memory(self, geometry: Geometry, storage: Storage, request: EngineRequest, target: Target) -> Terms:
        buffers = self._buffers(geometry, storage, request)
        device, host = storage.device_bytes, storage.host_bytes
        if target.vendor == "CPU":  # one memory, which holds a tied table once
            device, host = device + host - (storage.part_bytes("head") if geometry.tied else 0), 0
        return Terms(
            weights=storage.known(device),
            cache=exact(cache_bytes(geometry, request)),
            prefill=buffers,
            decode=buffers,
            framework=CONTEXT.get(target.vendor, CONTEXT["other"]),
            host=storage.known(host),
            prefill_reason=f"buffers for a chunk of {self._ubatch(request)} tokens, reserved at the start",
            decode_reason="the same buffers",
        )

    def load_peak(self, geometry: Geometry, storage: Storage, dtype: str, target: Target) -> None:
        """No rule: weights are mapped, or read directly to the device."""

    def left_mapped(self, storage: Storage, dtype: str, target: Target) -> Interval:
        return exact(0)  # nothing is quantized during loading

    def runs(self, path: str, quant: str, dtype: str, target: Target) -> str:
        return EAGER

    def step_manner(self, geometry: Geometry, request: EngineRequest, target: Target) -> Manner:
        return self.manner(geometry, request, target)

    def manner(self, geometry: Geometry, request: EngineRequest, target: Target | None = None) -> Manner:
        return Manner(ubatch=self._ubatch(request), cache_bytes=kv_bytes(request), how=Execution(trims_shared=False))

    def verify(self, model: Named, request: EngineRequest, machine: Machine) -> Command:
        file, blanks = _file(model, request.quant)
        context, batch = str(request.context), str(request.batch)
        kv = ("-ctk", request.kv, "-ctv", request.kv) if request.kv not in (None, "f16") else ()
        split = ("-sm", SPLIT_MODES[machine.split]) if machine.target.count > 1 else ()
        sizes: tuple[str, ...] = ("-p", context, "-n", str(GENERATED), "-d", f"0,{context}")
        tool = "llama-bench"
        if request.batch > 1:  # llama-bench measures one sequence
            tool, cells = "llama-batched-bench", str(request.batch * (request.context + GENERATED))
            sizes = ("-c", cells, "-npp", context, "-ntg", str(GENERATED), "-npl", batch)
        return command(tool, "-m", file, sizes, kv, split, **blanks)

    def _ubatch(self, request: EngineRequest) -> int:
        return min(request.ubatch or UBATCH, request.context)

    def _buffers(self, geometry: Geometry, storage: Storage, request: EngineRequest) -> Interval:
        """The largest tensors alive at once in a pass. Logs show 38 to 154 MiB for a dense 27B, 808 MiB for a 9B.

        Low: hidden states of a pass. High: also logits of a whole pass, as servers with several slots reserve.
        """
        tokens = self._ubatch(request)
        chosen, width = storage.expert_rows
        rows = tokens * 4
        mask = tokens * request.context * MASK_BYTES
        activations = rows * (4 * geometry.hidden + 2 * storage.widest + 2 * chosen * max(width, geometry.hidden))
        logits = rows * geometry.vocab
        return spread(
            activations + mask + 0.15 * logits, rows * 2 * geometry.hidden, 2 * activations + 2 * mask + logits
        )


def _file(model: Named, quant: str) -> tuple[str, dict[str, str]]:
    """The GGUF file to measure: the one that was named, or a placeholder with instructions to make one."""
    source, kind = model.source, quant.upper().replace("-", "_")
    if source.kind == "gguf" and (
        model.as_stored or gguf_tensors.file_type(gguf.header(Path(source.location))) == quant
    ):
        if "," not in model.argument:
            return model.argument, {}
        return "FILE.gguf", {"FILE.gguf": f"a link to {quote(model.argument)}: llama-bench takes a comma for a list"}
    blank = f"MODEL-{kind}.gguf"
    if source.kind == "gguf":
        made = command("llama-quantize", "--allow-requantize", model.argument, blank, kind)
        return blank, {blank: f"what this makes: {made}"}
    if source.kind == "folder":
        direct = quant in CONVERTED
        first = (blank, quant) if direct else ("MODEL-F16.gguf", "f16")
        made = command(*CONVERT, source.location, "--outfile", first[0], "--outtype", first[1])
        then = "" if direct else f" && {command('llama-quantize', first[0], blank, kind)}"
        return blank, {blank: f"what this makes, in a checkout of llama.cpp: {made}{then}"}
    return blank, {blank: f"a GGUF file of {model.title} in {kind}"}


def kv_bytes(request: EngineRequest) -> float:
    """Bytes per element of K and V. Raises NotFound for a type without a rule."""
    kv = (request.kv or "f16").casefold()
    if kv not in KV_BYTES:
        raise unknown("KV cache type of llama.cpp", kv, KV_BYTES)
    return KV_BYTES[kv]


def cache_bytes(geometry: Geometry, request: EngineRequest) -> int:
    """Bytes of the cache and of all states, which llama.cpp reserves at startup."""
    cells = -(-request.context // PAD) * PAD
    ubatch = min(request.ubatch or UBATCH, request.context)
    each = kv_bytes(request)
    total = 0.0
    for layer, count in geometry.groups:
        mixer = layer.mixer
        if not isinstance(mixer, Attention):
            conv = mixer.channels * (mixer.kernel - 1)
            total += count * STATE_BYTES * (mixer.recurrent_elements + conv)
        elif mixer.owns_cache:
            window = mixer.window
            held = cells if window is None else min(cells, -(-(window + ubatch) // PAD) * PAD)
            total += count * 2 * mixer.kv_heads * mixer.head_dim * held * each
    return round(total * request.batch)


ENGINE = LlamaCpp()
