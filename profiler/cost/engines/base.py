"""What an engine says about itself.

A file ``cost/engines/NAME.py`` defines one ``ENGINE``, and optionally ``RELATED``: engines that share its rules and
differ in their speed.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from profiler.case import Source
from profiler.cost.calibrated import OperatorCounts
from profiler.cost.interval import Interval, exact
from profiler.cost.machine import Machine, Split
from profiler.cost.storage import Storage
from profiler.cost.work import PassRules
from profiler.decode_path import EAGER
from profiler.devices.target import Target
from profiler.models.geometry import Geometry
from profiler.models.layers import Experts
from profiler.models.stored import Stored
from profiler.shell import Command
from profiler.units import printable

NO_BYTES = exact(0)
SAFETENSORS, GGUF = "safetensors", "gguf"  # kinds of checkpoints: see ``Engine.reads``


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """What an engine is asked to run, apart from the model and the device."""

    quant: str
    context: int  # tokens of each sequence in the cache
    batch: int
    dtype: str = "bf16"  # of unquantized weights and of activations
    kv: str | None = None  # type of K and V; None: the engine's default
    ubatch: int | None = None  # tokens per sequence in one prefill pass; None: the engine's default
    path: str = EAGER  # decode path of transformers: see ``profiler.decode_path``
    mtp: int = 0  # tokens that a step drafts with the model's multi-token-prediction layers
    flash: bool | None = None  # flash attention; None: the engine's default


BUILD_BLANK = "DIR"  # stands for the folder of a build that nobody has named


@dataclass(frozen=True, slots=True)
class Named:
    """A model as the user named it, for the command that measures it."""

    argument: str  # for the options of ``profile`` that take a model
    source: Source
    as_stored: bool = True  # the user asked for no other quantization than that of the file
    measurable: bool = True  # `profile sweep` can run the weights as they are predicted
    build: str | None = None  # folder of the engine's programs, where a sweep does not find them by itself
    longest: int | None = None  # tokens that the model supports

    @property
    def title(self) -> str:
        """The name for use in a sentence."""
        return printable(self.argument)


@dataclass(frozen=True, slots=True)
class Terms:
    """Bytes on the device by term, and what stays on the host."""

    weights: Interval
    cache: Interval  # for the case's context, all sequences
    prefill: Interval  # activations, logits and copies during prefill
    decode: Interval  # the same during a decode step
    framework: Interval  # the runtime itself: context, libraries, allocator
    host: Interval
    prefill_reason: str  # what takes most of it, as a message
    decode_reason: str
    repacked: Interval = NO_BYTES  # weights that are held a second time, in another layout

    @property
    def buffers(self) -> Interval:
        """Buffers of the phase that needs more."""
        return self.prefill if self.peak_phase == "prefill" else self.decode

    @property
    def peak_phase(self) -> str:
        """``prefill`` or ``decode``, whichever sets the peak."""
        return "prefill" if self.prefill.value >= self.decode.value else "decode"

    @property
    def reason(self) -> str:
        """A message that says what sets the peak besides weights and cache."""
        return self.prefill_reason if self.peak_phase == "prefill" else self.decode_reason

    @property
    def loaded(self) -> Interval:
        """The memory with the model loaded and idle."""
        return self.weights + self.repacked + self.framework

    @property
    def needed(self) -> Interval:
        """The peak without what the system can take back: pages of a mapped file whose weights were repacked. Decides
        whether a case fits."""
        return self.weights + self.cache + self.buffers + self.framework

    @property
    def peak(self) -> Interval:
        """All terms together, as a process shows it."""
        return self.loaded + self.cache + self.buffers


@dataclass(frozen=True, slots=True)
class Placement:
    """Where the layers are if a model does not fit on the device: whole layers of it, and experts, in host memory."""

    layers: int  # of the model
    on_host: int = 0  # whole layers in host memory
    experts_on_host: int = 0  # first layers whose experts are in host memory, counting those without experts
    used: float = 0.0  # share of the memory of the fullest device that the case needs; 0: unknown
    later: float = 1.0  # bytes of one of the other layers relative to one of those, with their K and V


def placement(
    geometry: Geometry, storage: Storage, offloaded_bytes: float, used: float = 0.0, cache_bytes: float = 0.0
) -> Placement:
    """The fewest layers that free ``offloaded_bytes``: experts first, since each token reads few of them."""
    count, left = len(geometry.layers), offloaded_bytes
    with_experts = [index for index, layer in enumerate(geometry.layers) if isinstance(layer.mlp, Experts)]
    sparse = len(with_experts)
    experts = sum(line.nbytes for line in storage.read if line.experts is not None)
    others = sum(line.nbytes for line in storage.read if line.experts is None and line.part != "head")
    moved = 0
    if sparse and left > 0:
        moved = min(sparse, math.ceil(left * sparse / experts))
        left -= moved * experts / sparse
    whole = min(count, math.ceil(left * count / others)) if left > 0 else 0
    first = with_experts[moved - 1] + 1 if moved else 0
    later = 1.0
    if moved < sparse:
        each = experts / sparse * (sparse - moved) / (count - first)
        later += each / ((others + cache_bytes) / count)
    return Placement(count, whole, first, used, later)


@dataclass(frozen=True, slots=True)
class Serving:
    """How to run a case as it was predicted: the command of a server, and the same for other programs."""

    command: Command
    settings: tuple[tuple[str, str], ...]  # the name of a program, and its settings in words


class Engine(ABC):
    """An inference engine. Predicting does not import it.

    The attributes with a value and the methods with a body describe an engine without rules of its own for them.
    """

    name: str  # as users write it
    like: str  # the engine whose rules it shares: its own name, unless it is in ``RELATED``
    version: str  # the version that the rules were read from
    usual_quants: tuple[str, ...]  # what people usually run, without -q; the most usual first
    default_kv: str
    smaller_kv: str | None = None  # a type of K and V that takes less memory
    chunk_option: str | None = None  # what sets the tokens of a prefill pass; None: unknown
    outdated_quants: frozenset[str] = frozenset()  # another of the same size loses less, so no page advises them
    makers: frozenset[str] = frozenset()  # vendors whose devices ``memory`` treats differently
    operator_counts: OperatorCounts | None = None  # for an engine whose kernels `profile calibrate` times
    paths: tuple[str, ...] = (EAGER,)  # its decode paths
    reads: frozenset[str] = frozenset({SAFETENSORS})  # checkpoints that it runs as they are stored
    loads_with_transformers = False  # keeps a checkpoint's dtype, unpacks what it cannot run, and is what we sweep
    default_split: Split = "layer"
    mixes_makers = False  # runs one model on devices of several makers
    pipelines_passes = False  # with layers on several devices, starts a pass while later devices work on the last one
    computes_on_host = False  # multiplies small batches with weights in host memory there, instead of copying those
    copies_experts_whole = False  # copies all experts of a layer in host memory, also those that no token chose
    drafts = False  # decodes with multi-token-prediction layers
    drafts_in_own_context = False  # with buffers of its own for that
    unquantized = "bf16"  # its name of 16-bit weights
    multiplies_in_int8 = False  # multiplies packed weights in 8 bits
    sums_in_fp32 = False  # adds up products of fp16 in fp32, which GeForce cards do at half their rate
    ignores_windows: frozenset[str] = frozenset()  # families in whose sliding layers it attends to every token

    @property
    def pipelining(self) -> str | None:
        """Its name, if it pipelines passes."""
        return self.name if self.pipelines_passes else None

    @property
    @abstractmethod
    def quants(self) -> Sequence[str]:
        """The quantizations that have a rule, as users type them."""

    @abstractmethod
    def check(self, quant: str) -> str:
        """``quant`` in the engine's spelling. Raises NotFound with the nearest names if it has no rule."""

    def unavailable(self, target: Target, quant: str) -> str | None:
        """Why the engine cannot run on one device in ``quant``, which is checked; ``None`` if it can, or if we do not
        know."""
        return None

    @abstractmethod
    def storage(self, geometry: Geometry, quant: str, dtype: str, repacks: bool = False) -> Storage:
        """The weights as this engine stores them; ``repacks`` as in ``Quant``. Raises ProfileError if it cannot."""

    @abstractmethod
    def stored(self, geometry: Geometry, checkpoint_format: Stored, dtype: str, repacks: bool = False) -> Storage:
        """The weights of a checkpoint that runs as it is stored; unquantized weights are in ``dtype``."""

    @abstractmethod
    def timed(self, quant: str, checkpoint_format: Stored | None, target: Target) -> bool:
        """Whether the speed of matrix products in ``quant``, or in the types of a checkpoint that runs as it is
        stored, was ever measured or fitted for this engine."""

    @abstractmethod
    def memory(self, geometry: Geometry, storage: Storage, request: EngineRequest, target: Target) -> Terms:
        """The memory terms and their peak."""

    @abstractmethod
    def prefill_rules(self, geometry: Geometry, request: EngineRequest, target: Target | None = None) -> PassRules:
        """How the engine runs a prefill pass on ``target``; None: on a GPU."""

    def step_rules(self, geometry: Geometry, request: EngineRequest, target: Target) -> PassRules:
        """How the engine runs a decode step."""
        return self.prefill_rules(geometry, request, target)

    def load_peak(self, geometry: Geometry, storage: Storage, dtype: str, target: Target) -> Interval | None:
        """Bytes held while a checkpoint loads, if that may exceed every later peak; ``None``: no rule, because
        weights are mapped, or read directly to the device."""
        return None

    def left_mapped(self, storage: Storage, dtype: str, target: Target) -> Interval:
        """Bytes of a checkpoint file that were read for quantizing and are still charged to the process."""
        return exact(0)

    def measuring_bytes(self, geometry: Geometry, request: EngineRequest, steps: int, target: Target) -> int:
        """What the programs that measure a case with ``steps`` decode steps hold besides ``memory``."""
        return 0

    def as_run(self, geometry: Geometry) -> Geometry:
        """The model as this engine runs it: without the windows that it ignores."""
        return geometry.without_windows() if geometry.model_type in self.ignores_windows else geometry

    def remarks(self, geometry: Geometry) -> tuple[str, ...]:
        """What a user should know about how this engine runs the model."""
        if self.as_run(geometry) is geometry:
            return ()
        return (f"{self.name} ignores the sliding window of this family: it holds and attends to every token",)

    def runs(self, path: str, quant: str, dtype: str, target: Target, family: str = "") -> str:
        """The decode path that runs if ``path`` is requested. ``family``: the model type, if it is known."""
        return path if path in self.paths else self.paths[0]

    def verify(self, model: Named, request: EngineRequest, machine: Machine, placed: Placement) -> Command | None:
        """The command that measures this case on that machine; ``None`` if there is none. Unknown parts, such as the
        name of a file that does not exist yet, become placeholders."""
        return None

    def serve(self, model: Named, request: EngineRequest, machine: Machine, placed: Placement) -> Serving | None:
        """How to run this case on that machine for use; ``None`` if we do not know. Placeholders as in ``verify``."""
        return None


def spread(value: float, low: float, high: float) -> Interval:
    """An assumed value with its own bounds."""
    return Interval(value, low, high, "prior")
