"""Sessions of the backend ``hf``: a loaded transformers model, and the generations that run on it.

``HfGeneration`` prefills in chunks and decodes greedily with transformers as shipped. ``StaticGeneration``, for
``--path static`` and ``--path graph``, prefills the same way and then runs our static-shape decode step.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from transformers import DynamicCache, PretrainedConfig, PreTrainedModel

from profiler import devices, quants
from profiler.backends.base import Beat, CacheState, ModelInfo, OutOfMemory
from profiler.backends.hf import cache as caches
from profiler.backends.hf.load import load, loading_errors
from profiler.backends.hf.memory import MEMORY_WORDS, memory_errors
from profiler.case import Case, Source
from profiler.decode_path import EAGER, SHORT_OF_MEMORY, machine_state
from profiler.devices import allowance
from profiler.devices.allowance import Allowance
from profiler.devices.base import Meter, Watcher, kind_of
from profiler.devices.cpu import mapped_weights_bytes
from profiler.errors import ProfileError
from profiler.kernels.graph import CompiledRunner, CudaGraphRunner
from profiler.kernels.runner import RunnerStats, StaticRunner
from profiler.kernels.state import SavedState
from profiler.kernels.versions import untested, with_cache
from profiler.models import scheme
from profiler.results.measurement import Caution, DecodePath
from profiler.units import bytes_text, printable

NO_LIBRARY = "ErrorHandlerMockBNBNativeLibrary"  # bitsandbytes' stand-in for a native library that did not load
# Quantized weights, as they are named by bitsandbytes, by AWQ and GPTQ, and by compressed-tensors.
QUANTIZED_NAMES = ("weight", "qweight", "weight_packed")
PLAIN_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
NOT_FINITE_LOGITS: WeakKeyDictionary[PreTrainedModel, bool] = WeakKeyDictionary()  # of models that were checked
SEED_TOKENS = 8  # a random cache takes its shapes and its scale from a real one of this many tokens

NOT_FINITE = "the model's logits are NaN or infinite: its tokens mean nothing, and its speed may not be typical"
BETTER = {torch.float16: "-q bf16 or -q fp32, whose range is larger"}  # by the dtype in which it happens

EXTRA_STEPS = 1  # the measuring loop takes one more step, to find the peak


def open_session(case: Case, source: Source, beat: Beat) -> HfSession:
    """Load the model of ``case``. Raises OutOfMemory, ProfileError."""
    allowed = allowance.at_start()
    torch.set_num_threads(case.threads or min(torch.get_num_threads(), allowed.threads))
    # The meter is created before the model, because it subtracts the memory that is in use at that time.
    kind_of(case.device).select(case.device)
    meter = devices.meter(case.device)
    with memory_errors(), loading_errors(case.model):
        model = load(case, source, meter, beat)
        request_only_logits(model.config)
        if case.weights == "real" and model.dtype == torch.float16:  # the only dtype with a smaller range than others
            refuse_overflow(model)
    cautions = (*source_cautions(source, case), *quota_cautions(allowed))
    return HfSession(model, meter, devices.watcher(case.device), beat, cautions)


def request_only_logits(config: PretrainedConfig) -> None:
    """Switch off extra outputs that a config may still request from training: hidden states of all layers would count
    as memory of a prefill. ``return_dict`` must be on, or transformers cannot run the model at all.
    """
    for part in (config, config.get_text_config()):
        part.output_hidden_states = part.output_attentions = False
        part.return_dict = True


class HfSession:
    """A loaded model, with the meter and the watcher of its device."""

    def __init__(
        self, model: PreTrainedModel, meter: Meter, watcher: Watcher, beat: Beat, cautions: tuple[Caution, ...]
    ) -> None:
        self.model, self.meter, self.watcher = model, meter, watcher
        self._beat, self._cautions = beat, cautions
        self.scored: dict[str, Any] = {}  # windows of text that this model was compared on (``quality.measure``)

    @property
    def info(self) -> ModelInfo:
        """Facts about the model, read anew each time: bitsandbytes repacks some weights in the first forward pass."""
        return describe(self.model, self._cautions)

    def begin(self, case: Case) -> HfGeneration:
        with memory_errors():
            if case.path == EAGER:
                return HfGeneration(self.model, case, self._beat)
            return StaticGeneration(self.model, case, self._beat)

    def close(self) -> None:
        self.watcher.close()
        del self.model
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


class HfGeneration:
    """Runs a case with transformers as shipped: seeded random token ids, a growing cache, greedy decoding."""

    def __init__(self, model: PreTrainedModel, case: Case, beat: Beat) -> None:
        self.model, self.case, self.beat = model, case, beat
        self.device = torch.device(case.device)
        random = torch.Generator().manual_seed(case.seed)
        shape = (case.batch, case.context)
        vocabulary = model.config.get_text_config().vocab_size
        self.ids = torch.randint(vocabulary, shape, generator=random).to(self.device)
        self.kv = DynamicCache(config=model.config.get_text_config())
        self.next: torch.Tensor | None = None
        self.steps: list[torch.Tensor] = []
        self.saved: list[caches.SavedCache] | None = None
        self.saved_next: torch.Tensor | None = None

    @property
    def tokens(self) -> list[list[int]]:
        """Tokens decoded since the last prefill, fill or restore. Waits for the device."""
        return torch.cat(self.steps, dim=1).T.tolist() if self.steps else []

    def prefill(self) -> int:
        self._reset()
        done = 0
        while done < self.case.context:
            self.beat(f"prefill {done}/{self.case.context}")
            ids = self.ids[:, done : done + self.case.ubatch]
            self._forward(ids)
            done += ids.shape[1]
        return done * self.case.batch

    def fill(self) -> None:
        self._reset()
        self._forward(self.ids[:, :SEED_TOKENS])
        with memory_errors(), torch.inference_mode():
            caches.randomize(self.kv, self.case.context, self.case.seed)

    def save(self) -> None:
        with memory_errors(), torch.inference_mode():
            self.saved, self.saved_next = caches.save(self.kv), self.next
        self.steps = []

    def restore(self) -> None:
        if self.saved is None:
            raise RuntimeError("restore without save")
        with torch.inference_mode():
            caches.restore(self.kv, self.saved)
        self.next = self.saved_next
        self.steps = []

    def release(self) -> None:
        self.saved = self.saved_next = None

    def step(self) -> None:
        self.steps.append(self._forward(self.next))

    def skip(self, steps: int) -> None:
        raise RuntimeError("a growing cache takes its steps")

    def cache(self) -> CacheState:
        return caches.state(self.kv)

    def path(self) -> DecodePath | None:
        return None

    def cautions(self) -> tuple[Caution, ...]:
        """A caution if the model's logits are NaN or infinite. A short pass after its first case checks that."""
        if self.model not in NOT_FINITE_LOGITS:
            cache = DynamicCache(config=self.model.config.get_text_config())
            try:
                with memory_errors(), torch.inference_mode():
                    ids = self.ids[:1, :SEED_TOKENS]
                    logits = self.model(input_ids=ids, **with_cache(cache), logits_to_keep=1).logits
                    NOT_FINITE_LOGITS[self.model] = not bool((logits < torch.inf).all())  # -inf rules a token out
            except OutOfMemory:  # the case itself has fitted
                return ()
        found = Caution("not-finite", NOT_FINITE, BETTER.get(self.model.dtype))
        return (found,) if NOT_FINITE_LOGITS[self.model] else ()

    def _reset(self) -> None:
        self.kv = DynamicCache(config=self.model.config.get_text_config())
        self.next = None
        self.steps = []

    def _forward(self, ids: torch.Tensor | None) -> torch.Tensor:
        """Run the model over ``ids [batch, tokens]`` after what the cache holds, and choose the next token."""
        with memory_errors(), torch.inference_mode():
            output = self.model(input_ids=ids, **with_cache(self.kv), logits_to_keep=1)
            self.next = output.logits[:, -1:].argmax(dim=-1)
        return self.next


def source_cautions(source: Source, case: Case) -> tuple[Caution, ...]:
    """A caution if the weights are not measured in the form in which the source stores them."""
    stated = scheme.of(source.config) if case.weights == "real" and source.kind != "gguf" else None
    if stated is not None and case.quant != stated.name:
        text = f"unpacked from {stated.name} to {case.quant}: size and speed are not those of {stated.name}"
        return (Caution("unpacked", text),)
    if source.kind != "gguf":
        return ()
    text = f"unpacked from a GGUF file to {case.quant} and run in PyTorch: size and speed are not llama.cpp's"
    return (Caution("gguf", text),)


def refuse_overflow(model: PreTrainedModel) -> None:
    """Raise ProfileError if a weight or a scale is not finite, since the largest value of fp16 is 65,504."""
    for name, module in model.named_modules():
        for tensor in _own_tensors(module):
            if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                raise ProfileError(f"{name}: some weights are larger than fp16 can hold", "Use -q bf16 or -q fp32.")


def quota_cautions(allowed: Allowance) -> tuple[Caution, ...]:
    """A caution if a CPU quota applies, since figures without it would be higher."""
    if allowed.quota is None:
        return ()
    threads = torch.get_num_threads()
    better = f"--threads {allowed.threads}" if threads > allowed.threads else None
    return (Caution("cpu-quota", allowed.quota_text(threads), better),)


def describe(model: PreTrainedModel, cautions: tuple[Caution, ...] = ()) -> ModelInfo:
    """The bytes of a loaded model, counted from its tensors, with ``cautions`` and those about its weights."""
    storages: dict[int, int] = {}
    plain: dict[str, int] = {}
    for name, module in model.named_modules():
        for tensor in _own_tensors(module):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in storages and not _is_quantized(module):
                part = _part(name, module, tensor)
                plain[part] = plain.get(part, 0) + storage.nbytes()
            storages[storage.data_ptr()] = storage.nbytes()
    if text := untested():
        cautions = (Caution("untested-version", text), *cautions)
    total, left = sum(storages.values()), sum(plain.values())
    mapped = _left_mapped_bytes(model)
    if left == total:
        return ModelInfo(total, 0, torch.get_num_threads(), cautions, mapped)
    parts = ", ".join(f"{name} {bytes_text(size)}" for name, size in sorted(plain.items(), key=lambda item: -item[1]))
    text = f"{bytes_text(left)} of {bytes_text(total)} of weights are not quantized: {parts}"
    cautions = (Caution("unquantized", text), *_library_cautions(model), *cautions)
    return ModelInfo(total, left, torch.get_num_threads(), cautions, mapped)


def _library_cautions(model: PreTrainedModel) -> tuple[Caution, ...]:
    """A caution if bitsandbytes runs without its native library, which it does silently on a CPU."""
    bitsandbytes = sys.modules.get("bitsandbytes")
    if bitsandbytes is None or model.device.type != "cpu":  # other libraries quantized the model
        return ()
    cextension = bitsandbytes.cextension
    if type(cextension.lib).__name__ != NO_LIBRARY:
        return ()
    try:
        cextension.get_native_library()
        reason = "it loads only now"
    except Exception as error:  # whatever the loader raises is the reason
        reason = printable(" ".join(str(error).split()) or type(error).__name__, 200)
    text = f"bitsandbytes runs on plain torch, without its native library: {reason}"
    return (Caution("bitsandbytes-torch", text, "reinstall bitsandbytes"),)


def _left_mapped_bytes(model: PreTrainedModel) -> int | None:
    """Bytes of checkpoint pages that were read to quantize weights and are still mapped; ``None`` if unknown.

    A file stays mapped only if some weights are used straight from it, so it is in the model's own dtype. That gives
    the bytes of the quantized weights in the file, of which at most the resident pages count.
    """
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is not None and quantizer.pre_quantized:  # nothing was quantized while loading
        return 0 if sys.platform == "linux" else None
    if sys.platform != "linux" or any(parameter.device.type != "cpu" for parameter in model.parameters()):
        return None
    mapped = mapped_weights_bytes()
    quantized = sum(
        module.in_features * module.out_features * model.dtype.itemsize
        for module in model.modules()
        if isinstance(module, nn.Linear) and _is_quantized(module)
    )
    return None if mapped is None else min(mapped, quantized)


def _is_quantized(module: nn.Module) -> bool:
    """Whether a module's weight is quantized, by whatever library."""
    if type(module).__name__ in quants.packed_modules():
        return True
    return any(
        tensor.dtype not in PLAIN_DTYPES
        for tensor in (getattr(module, name, None) for name in QUANTIZED_NAMES)
        if isinstance(tensor, torch.Tensor)
    )


def _own_tensors(module: nn.Module) -> Iterator[torch.Tensor]:
    """A module's own parameters and buffers, and the tensors that its quantization keeps in other objects."""
    yield from module.parameters(recurse=False)
    yield from module.buffers(recurse=False)
    packed = quants.packed_modules().get(type(module).__name__)
    if packed is not None:
        yield from packed.tensors(module)


def _part(name: str, module: nn.Module, tensor: torch.Tensor) -> str:
    if isinstance(module, nn.Embedding):
        return "per-layer embeddings" if "per_layer" in name else "embeddings"
    if isinstance(module, nn.Linear):
        return "output head" if name.endswith("lm_head") else "linear layers"
    if tensor.dim() == 3 and not isinstance(module, nn.Conv1d):
        return "fused experts"
    return "norms and other small weights"


def runner_for(model: PreTrainedModel, path: str) -> StaticRunner:
    """The runner for ``--path static`` or ``--path graph`` on the model's device."""
    if path == "static":
        return StaticRunner(model)
    return CudaGraphRunner(model) if model.device.type == "cuda" else CompiledRunner(model)


def _fallback_state(stats: RunnerStats) -> str:
    """The state of the machine that caused a fallback. A row is measured again once it has changed; after a lack of
    memory in any case, because nothing shows whether there is enough memory now.
    """
    short = any(words in (stats.reason or "") for words in MEMORY_WORDS)
    return SHORT_OF_MEMORY if short else machine_state()


class StaticGeneration(HfGeneration):
    """Runs a case with our decode step. ``save`` moves the cache into static buffers and captures or compiles the
    step; if the step does not support the model, decode runs as in ``HfGeneration``.
    """

    def __init__(self, model: PreTrainedModel, case: Case, beat: Beat) -> None:
        super().__init__(model, case, beat)
        self.runner: StaticRunner | None = None
        self.start: SavedState | None = None
        self.refused: str | None = None  # why the static step does not support this model

    @property
    def tokens(self) -> list[list[int]]:
        if self.runner is None:
            return super().tokens
        state = self.runner.state
        tokens: list[list[int]] = state.out[:, 1 : 1 + state.length - state.context].T.tolist()
        return tokens

    def save(self) -> None:
        if self.runner is None and self.refused is None:
            self.beat(f"{self.case.path} step: preparing")
            assert self.next is not None, "nothing is prefilled"
            self._adopt()
        if self.runner is None:
            super().save()
        else:
            self.start = self.runner.state.save()

    def _adopt(self) -> None:
        """Move the cache into a runner, or note in ``refused`` why none supports it."""
        runner = runner_for(self.model, self.case.path)
        assert self.next is not None
        try:
            with memory_errors():
                runner.adopt(self.kv, self.next, self.case.steps + EXTRA_STEPS)
        except ProfileError as error:
            self.refused = error.message
        else:
            self.runner = runner

    def restore(self) -> None:
        if self.runner is None:
            super().restore()
        elif self.start is None:
            raise RuntimeError("restore without save")
        else:
            self.runner.state.restore(self.start)

    def release(self) -> None:
        super().release()
        self.start = None

    def step(self) -> None:
        if self.runner is None:
            super().step()
            return
        with memory_errors():
            self.runner.enqueue(1)

    def skip(self, steps: int) -> None:
        if self.runner is None:
            super().skip(steps)
        else:
            self.runner.state.skip(steps)

    def cache(self) -> CacheState:
        if self.runner is None:
            return super().cache()
        return caches.state(self.runner.state.cache, self.runner.state.length, self.stats().pool_bytes)

    def stats(self) -> RunnerStats:
        """The path that actually runs, and how it was prepared."""
        if self.runner is None:
            return RunnerStats(EAGER, self.refused)
        return self.runner.stats()

    def path(self) -> DecodePath:
        stats = self.stats()
        how = (stats.path, stats.reason, stats.kernels, stats.graphs, stats.nodes_per_token, stats.prepare_s)
        if self.runner is None:
            return DecodePath(*how)
        needed, read = self.runner.state.read_bytes()
        return DecodePath(*how, needed, read, _fallback_state(stats) if stats.fault else None)

    def cautions(self) -> tuple[Caution, ...]:
        """Cautions about a fallback, and about arithmetic that differs from the quantization's own."""
        stats = self.stats()
        found = list(super().cautions())
        if stats.path != self.case.path:
            found.append(Caution("path", f"path {stats.path} instead of {self.case.path}: {stats.reason}"))
        if stats.kernels and DecodePath(stats.path, kernels=stats.kernels).on_plain_torch:
            found.append(Caution("plain-torch", f"decode on {stats.kernels}"))
        elif stats.kernels and (ours := quants.find(self.case.quant)) and ours.kernels.own_caution:
            found.append(Caution(*ours.kernels.own_caution))
        return tuple(found)

    def _reset(self) -> None:
        super()._reset()
        self.runner = self.start = self.refused = None
