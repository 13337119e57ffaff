"""llama.cpp: GGUF weights, caches of a fixed size, a compute buffer reserved for the largest pass.

Rules read at commits 007dbbf3 (2026-08, ``src/llama-quant.cpp``, in ``gguf_mix``) and 02c28f53 (2026-09,
``src/llama-kv-cache-iswa.cpp``), and from logs of builds b8240 to b10809.

- The token embedding and Gemma's per-layer embeddings stay on the host, where rows are looked up. If the output head
  is tied to the embedding, the device holds a second copy of it.
- A sliding layer holds ``window + ubatch`` cells, padded to 256 and limited to the context; a full layer holds the
    context padded to 256. A layer that shares another layer's cache holds none.
- A CPU maps the file, holds weights of some types a second time in another layout, and touches only a part of the
  reserved buffers.
- A gated-delta layer keeps ``kernel - 1`` columns of its convolution and its state, both in fp32.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from itertools import accumulate, pairwise
from pathlib import Path

from profiler.cost.engines.base import (
    BUILD_BLANK,
    GGUF,
    Engine,
    EngineRequest,
    Named,
    Placement,
    Serving,
    Terms,
    spread,
)
from profiler.cost.engines.transformers import swept
from profiler.cost.interval import Interval, exact
from profiler.cost.machine import Machine
from profiler.cost.storage import Held, Storage, as_stored, bounds_of, storage, with_head
from profiler.cost.work import PassRules
from profiler.devices.target import Target
from profiler.errors import ProfileError
from profiler.models import families, gguf, gguf_mix, gguf_tensors, gguf_write
from profiler.models.geometry import Geometry
from profiler.models.layers import Attention, Execution
from profiler.models.stored import Stored
from profiler.registry import unknown
from profiler.shell import Command, command, quote
from profiler.units import GIB, MIB

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
CONTEXT = {  # of a GPU: CUDA context and the backend's pools; Metal and Vulkan take less. From logs of one process.
    "NVIDIA": spread(450 * MIB, 200 * MIB, 900 * MIB),
    "other": spread(250 * MIB, 60 * MIB, 700 * MIB),
}
# On a CPU, the resident memory of the process besides weights, cache and the buffers below: libraries, graphs and the
# vocabulary. From llama-bench and llama-batched-bench b9993 with vocabularies of 49,152 and 262,144 tokens.
PROCESS, VOCABULARY_BYTES, PROCESS_BOUNDS = 24 * MIB, 136, (0.6, 2.0)
# Types that the CPU backend copies into another layout (ggml-cpu/repack.cpp), while the file stays mapped.
REPACKED = {
    "avx2": frozenset({"q4_0", "q4_k", "iq4_nl", "mxfp4"}),
    "avx512f": frozenset({"q2_k"}),
    "asimd": frozenset({"q4_0", "q4_k", "q5_k", "q6_k", "q8_0", "iq4_nl", "mxfp4"}),
}
MULTIPLIED = ("attention", "delta", "mlp", "experts", "head")  # parts that are repacked
QUANTIZED_INPUT = 34 / 32  # bytes of an activation that is multiplied by quantized weights
OLLAMA_KV = ("f16", "q8_0", "q4_0")  # values of OLLAMA_KV_CACHE_TYPE (docs/faq.md)
GENERATED = 128  # tokens that llama-bench decodes by default
LINKED = "FILE.gguf"  # stands for a link to a file whose path llama.cpp's programs cannot take
CONVERT = ("python3", "convert_hf_to_gguf.py")
CONVERTED = ("f32", "f16", "bf16", "q8_0")  # values of its --outtype
MIX_BOUNDS = (0.95, 1.08)  # files of one mix differ by the llama.cpp version and the importance matrix that made them
# The flash attention of ROCm uses the matrix units of these generations for heads of up to 128 only (PR 22880).
MATRIX_HEADS, NARROW = 128, ("RDNA3", "RDNA3.5", "RDNA4")
# The widest heads of the vector kernels of a step (ggml-cuda/fattn-vec.cuh). Full layers of Gemma 4 have wider ones.
STEP_HEADS = 256
# Bytes that a score of a prefill moves without flash attention: it is written in fp32, read and written by the
# softmax, and read for the weighted sum; except with Metal, that sum first gets a copy in 16 bits.
SCORE_BYTES = {"Apple": 16.0, "other": 20.0}
MASK_BYTES = 2  # the attention mask in f16: one entry per cache cell for each token of a pass


class LlamaCpp(Engine):
    """See the module."""

    name = like = "llama.cpp"
    version = "commit 007dbbf3 (2026-08)"
    usual_quants = ("q4_k_m",)
    default_kv = "f16"
    smaller_kv = "q8_0"
    chunk_option = "-ub"
    outdated_quants = frozenset({"q4_0", "q4_1", "q5_0", "q5_1"})  # since the k-quants
    makers = frozenset(CONTEXT) - {"other"} | {"CPU"}
    reads = frozenset({GGUF})
    ignores_windows = frozenset({"mistral", "mixtral", "phi3", "qwen2", "qwen3", "qwen3_moe"})
    drafts = drafts_in_own_context = True
    unquantized = "f16"
    pipelines_passes = computes_on_host = multiplies_in_int8 = mixes_makers = True
    quants = tuple(gguf_mix.MIXES)
    flash = True  # --flash-attn auto, the default since August 2025
    narrow: tuple[str, ...] = NARROW

    def check(self, quant: str) -> str:
        return gguf_mix.mix(quant)

    def storage(self, geometry: Geometry, quant: str, dtype: str, repacks: bool = False) -> Storage:
        held = (_held(Held(t.weight, t.layer, t.count, t.type, t.nbytes)) for t in gguf_mix.tensors(geometry, quant))
        return storage(with_head(geometry, held, copied=True), None if quant in gguf_mix.PLAIN else MIX_BOUNDS)

    def stored(self, geometry: Geometry, checkpoint_format: Stored, dtype: str, repacks: bool = False) -> Storage:
        """Every tensor of the file; for a checkpoint of another kind, its size if converted without quantizing."""
        held = map(_held, as_stored(geometry, checkpoint_format))
        return storage(with_head(geometry, held, copied=True), bounds_of(checkpoint_format))

    def timed(self, quant: str, checkpoint_format: Stored | None, target: Target) -> bool:
        known = {*gguf_mix.MIXES.values(), *gguf_tensors.FALLBACK.values()}
        return checkpoint_format is None or all(weight.scheme in known for weight in checkpoint_format.weights)

    def memory(self, geometry: Geometry, storage: Storage, request: EngineRequest, target: Target) -> Terms:
        on_cpu = target.vendor == "CPU"
        buffers = (_touched if on_cpu else self._buffers)(geometry, storage, request)
        framework = CONTEXT.get(target.vendor, CONTEXT["other"])
        weights, host = storage.known(storage.device_bytes), storage.known(storage.host_bytes)
        if on_cpu:  # one memory, which holds a tied table once
            tied = storage.part_bytes("head") if geometry.tied else 0
            weights, host = storage.known(storage.device_bytes + storage.host_bytes - tied), exact(0)
            process = PROCESS + VOCABULARY_BYTES * geometry.vocab
            framework = spread(process, *(process * bound for bound in PROCESS_BOUNDS))
        return Terms(
            weights=weights,
            repacked=storage.known(_repacked_bytes(storage, target)) if on_cpu else exact(0),
            cache=exact(cache_bytes(geometry, request)),
            prefill=buffers,
            decode=buffers,
            framework=framework,
            host=host,
            prefill_reason=f"buffers for a chunk of {_rows(request)} tokens, reserved at the start",
            decode_reason="the same buffers",
        )

    def measuring_bytes(self, geometry: Geometry, request: EngineRequest, steps: int, target: Target) -> int:
        """The cells of the decoded tokens; and llama-bench, which measures one sequence, copies the cache for it."""
        longer = replace(request, context=request.context + steps)
        copies = request.batch == 1 and target.vendor == "CPU"
        copied = cells_bytes(geometry, request, ubatch=0, pad=1) if copies else 0
        return cache_bytes(geometry, longer) - cache_bytes(geometry, request) + copied

    def prefill_rules(self, geometry: Geometry, request: EngineRequest, target: Target | None = None) -> PassRules:
        flash = self.flash if request.flash is None else request.flash
        return PassRules(
            ubatch=request.ubatch or UBATCH,
            cache_bytes=kv_bytes(request),
            how=Execution(skips_masked=flash, trims_shared=False),
            shared_passes=True,
            moved_bytes=4.0,
            matrix_heads=MATRIX_HEADS if flash and target and target.generation in self.narrow else None,
            step_heads=None if target and target.vendor == "CPU" else STEP_HEADS,
            score_bytes=0.0 if flash else SCORE_BYTES.get(target.vendor if target else "", SCORE_BYTES["other"]),
        )

    def verify(self, model: Named, request: EngineRequest, machine: Machine, placed: Placement) -> Command | None:
        """The sweep of the file itself, or of one with random weights; llama-batched-bench where no sweep runs."""
        target = machine.target
        several = target.count > 1
        if request.mtp:  # the programs that measure do not draft
            return None
        if not swept(target) or (several and machine.split != "layer"):
            return _batched(model, request, machine, placed)
        named, blanks = _measured(model, request.quant)
        if model.build == BUILD_BLANK and target.local:
            blanks = {BUILD_BLANK: "the folder of a build of llama.cpp, since none is found here", **blanks}
        kv = request.kv if _quantized(request) else None
        whole = placed.layers + 1 - placed.on_host
        return command(
            ("profile", "sweep", "--backend", self.name),
            ("--llama-cpp", model.build) if model.build and target.local else (),
            named,
            ("-c", str(request.context), "-b", str(request.batch)),
            ("--ubatch", str(request.ubatch)) if request.ubatch else (),
            ("--kv", kv, "--flash-attn", "on") if kv else (),
            ("--gpu-layers", str(whole)) if placed.on_host and target.vendor != "CPU" else (),
            ("--n-cpu-moe", str(placed.experts_on_host)) if placed.experts_on_host else (),
            ("--tensor-split", _shares(machine, placed).replace(",", "/")) if several else (),
            ("--device", target.local) if target.local else (),
            **blanks,
        )

    def serve(self, model: Named, request: EngineRequest, machine: Machine, placed: Placement) -> Serving:
        file, blanks = _file(model, request.quant)
        slots = ("-np", str(request.batch))  # four by default, each with its own window and recurrent states
        cells = str(request.batch * request.context)
        options = _options(request, machine, placed)
        drafts = ("--spec-type", "draft-mtp", "--spec-draft-n-max", str(request.mtp)) if request.mtp else ()
        server = command("llama-server", "-m", file, "-c", cells, slots, options, drafts, **blanks)
        if request.mtp or (machine.target.count > 1 and machine.split != "layer"):
            return Serving(server, ())  # the others draft with a model of its own, and share out whole layers
        settings = (
            ("LM Studio", _lm_studio(request, machine, placed)),
            ("Ollama", _ollama(request, machine, placed)),
        )
        return Serving(server, settings)

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


def _touched(geometry: Geometry, storage: Storage, request: EngineRequest) -> Interval:
    """The part of the buffers that a pass writes on a CPU: those that are only reserved take no memory.

    Of each token, a feed-forward layer has three vectors of the hidden and three of the inner width at once, and the
    inner one again for the matrix product. Only the last token of a sequence has logits.
    """
    tokens = _rows(request)
    chosen, width = storage.expert_rows
    activations = 4 * (3 * geometry.hidden + 3 * storage.widest + 3 * chosen * max(width, geometry.hidden))
    rows = tokens * (activations + QUANTIZED_INPUT * max(storage.widest, chosen * width))
    mask = tokens * request.context * MASK_BYTES
    logits = 4 * request.batch * geometry.vocab
    return spread(rows + mask + logits, rows / 2 + logits, 2 * (rows + mask + logits))


def _rows(request: EngineRequest) -> int:
    """Tokens of one pass, of all sequences."""
    return min(request.ubatch or UBATCH, request.context * request.batch)


def _repacked_bytes(storage: Storage, target: Target) -> int:
    """Bytes of the weights that a CPU holds a second time, in the layout in which it multiplies them."""
    types = frozenset().union(*(REPACKED.get(feature, frozenset()) for feature in target.features))
    return sum(line.nbytes for line in storage.lines if line.part in MULTIPLIED and line.scheme in types)


def _gpu_layers(machine: Machine, placed: Placement) -> int:
    """``-ngl``: the output counts as a layer, and is on the GPU with the last ones."""
    return 0 if machine.target.vendor == "CPU" else placed.layers + 1 - placed.on_host


def _options(request: EngineRequest, machine: Machine, placed: Placement) -> tuple[str, ...]:
    """The options of llama.cpp's programs that the prediction assumes. A quantized V needs flash attention."""
    kv = request.kv if _quantized(request) else None
    several = machine.target.count > 1
    return (
        *("-ngl", str(_gpu_layers(machine, placed))),
        *(("-ncmoe", str(placed.experts_on_host)) if placed.experts_on_host else ()),
        *(("-ub", str(request.ubatch)) if request.ubatch else ()),
        *(("-ctk", kv, "-ctv", kv, "-fa", "on") if kv else ()),
        *(("-sm", machine.split, "-ts", _shares(machine, placed)) if several else ()),
    )


def _lm_studio(request: EngineRequest, machine: Machine, placed: Placement) -> str:
    """The fields of the dialog that loads a model."""
    first = placed.experts_on_host
    layers = min(_gpu_layers(machine, placed), placed.layers)
    return "; ".join(
        (
            f"Context Length {request.context * request.batch}",
            f"Max Concurrent Predictions {request.batch}",
            f"GPU Offload {layers} of {placed.layers} layers",
            *((f"force MoE weights of {first} layer{'s' * (first != 1)} onto CPU",) if first else ()),
            *((f"Flash Attention on, K and V Cache Quantization Type {request.kv}",) if _quantized(request) else ()),
        )
    )


def _ollama(request: EngineRequest, machine: Machine, placed: Placement) -> str:
    """Variables of its server, and the parameter of a Modelfile."""
    if placed.experts_on_host:
        return "it cannot keep only the experts in host memory"
    if _quantized(request) and request.kv not in OLLAMA_KV:
        return f"it has no KV cache of type {request.kv}, only {', '.join(OLLAMA_KV)}"
    variables = {"OLLAMA_CONTEXT_LENGTH": request.context, "OLLAMA_NUM_PARALLEL": request.batch}
    kv = f" OLLAMA_FLASH_ATTENTION=1 OLLAMA_KV_CACHE_TYPE={request.kv}" if _quantized(request) else ""
    set_up = " ".join(f"{name}={value}" for name, value in variables.items())
    return f"{set_up}{kv} for its server; PARAMETER num_gpu {_gpu_layers(machine, placed)} in the Modelfile"


def _quantized(request: EngineRequest) -> bool:
    """Whether K and V have another type than llama.cpp gives them by default."""
    return request.kv not in (None, "f16")


def _held(item: Held) -> Held:
    """Tables are on the host. Weights that are loaded but never read are on the device, and count as tables there."""
    if gguf_tensors.is_unread(item.weight, item.layer):
        return replace(item, weight=replace(item.weight, role="embedding"), layer=None)
    return replace(item, on_host=True) if item.weight.role == "embedding" else item


def _batched(model: Named, request: EngineRequest, machine: Machine, placed: Placement) -> Command:
    """llama-batched-bench prefills ``context`` tokens and decodes after them. llama-bench would need two runs, or
    room for the context twice.
    """
    file, blanks = _file(model, request.quant)
    cells = request.batch * (request.context + GENERATED)
    sizes = ("-npp", str(request.context), "-ntg", str(GENERATED), "-npl", str(request.batch))
    return command(
        "llama-batched-bench", "-m", file, "-c", str(cells), sizes, _options(request, machine, placed), **blanks
    )


def _measured(model: Named, quant: str) -> tuple[tuple[str, ...], dict[str, str]]:
    """The model of a sweep: a file in this quantization, else random weights if we can write such a file."""
    file, blanks = _file(model, quant)
    if blanks and file != LINKED:
        with suppress(ProfileError):
            gguf_write.architecture(families.geometry(model.source.config).model_type)
            return ("-m", model.argument, "-q", quant, "--weights", "synthetic"), {}
    return ("-m", file), blanks


def _file(model: Named, quant: str) -> tuple[str, dict[str, str]]:
    """The GGUF file to measure: the one that was named, or a placeholder with instructions to make one."""
    source, kind = model.source, quant.upper().replace("-", "_")
    if source.kind == "gguf" and (
        model.as_stored or gguf_tensors.file_type(gguf.model_header(Path(source.location))) == quant
    ):
        if "," not in model.argument:
            return model.argument, {}
        return LINKED, {LINKED: f"a link to {quote(model.argument)}: llama-bench takes a comma for a list"}
    blank = f"MODEL-{kind}.gguf"
    if source.kind == "gguf":
        made = command("llama-quantize", "--allow-requantize", model.argument, blank, kind)
        return blank, {blank: f"made by: {made}"}
    if source.kind == "folder":
        direct = quant in CONVERTED
        first = (blank, quant) if direct else ("MODEL-F16.gguf", "f16")
        made = command(*CONVERT, source.location, "--outfile", first[0], "--outtype", first[1])
        then = "" if direct else f" && {command('llama-quantize', first[0], blank, kind)}"
        return blank, {blank: f"made in a checkout of llama.cpp by: {made}{then}"}
    return blank, {blank: f"a GGUF file of {model.title} in {kind}"}


def kv_bytes(request: EngineRequest) -> float:
    """Bytes per element of K and V. Raises NotFound for a type without a rule."""
    kv = (request.kv or "f16").casefold()
    if kv not in KV_BYTES:
        raise unknown("KV cache type of llama.cpp", kv, KV_BYTES)
    return KV_BYTES[kv]


def cache_bytes(geometry: Geometry, request: EngineRequest) -> int:
    """Bytes of the cache and of all states, which llama.cpp reserves at startup."""
    return cells_bytes(geometry, request, min(request.ubatch or UBATCH, request.context), PAD)


def cells_bytes(geometry: Geometry, request: EngineRequest, ubatch: int, pad: int) -> int:
    """Bytes of states and of the cells for the context, padded to ``pad``. Sliding layers hold their window and
    ``ubatch`` more cells."""
    cells = -(-request.context // pad) * pad
    each = kv_bytes(request)
    total = 0.0
    for layer, count in geometry.groups:
        mixer = layer.mixer
        if not isinstance(mixer, Attention):
            conv = mixer.channels * (mixer.kernel - 1)
            total += count * STATE_BYTES * (mixer.recurrent_elements + conv)
        elif mixer.owns_cache:
            window = mixer.window
            held = cells if window is None else min(cells, -(-(window + ubatch) // pad) * pad)
            total += count * 2 * mixer.kv_heads * mixer.head_dim * held * each
    return round(total * request.batch)


def _shares(machine: Machine, placed: Placement) -> str:
    """The value of ``--tensor-split``: layers by the memory of devices that differ, in GiB, or the same on each.

    With the experts of the first layers in host memory, the first device takes more layers, so that each is as full.
    The output counts as a layer of the last one.
    """
    members = machine.target.members if machine.split == "layer" else ()
    shares = [round(member.memory_bytes / GIB) for member in members] or [1] * machine.target.count
    if placed.experts_on_host:
        first, later = placed.experts_on_host, placed.later
        whole, ends = first + (placed.layers - first) * later, [0]
        for share in accumulate(shares):
            light = share / sum(shares) * whole
            ends.append(round(light if light <= first else first + (light - first) / later))
        ends[-1] = placed.layers + 1
        shares = [end - begin for begin, end in pairwise(ends)]
    return ",".join(map(str, shares))


class LlamaCppBuild(LlamaCpp):
    """Another build with the same rules. ``llama.cpp`` is the usual one: for CUDA, ROCm, Metal or the CPU, by the
    device's maker."""

    def __init__(self, name: str, flash: bool = True) -> None:
        self.name, self.flash, self.narrow = name, flash, ()


ENGINE = LlamaCpp()
RELATED = (LlamaCppBuild("llama.cpp-vulkan"), LlamaCppBuild("llamafile", flash=False))
