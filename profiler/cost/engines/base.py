"""What an engine gives. A file ``cost/engines/NAME.py`` defines one ``ENGINE``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from profiler.case import Source
from profiler.cost.calibrated import Counts
from profiler.cost.interval import Interval
from profiler.cost.machine import Machine
from profiler.cost.storage import Storage
from profiler.cost.work import Manner
from profiler.decode_path import EAGER
from profiler.devices.target import Target
from profiler.models.geometry import Geometry
from profiler.models.stored import Stored
from profiler.shell import Command
from profiler.units import printable

MIB = 1024**2


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """What is asked of an engine, beside the model and the device."""

    quant: str
    context: int  # tokens of each sequence in the cache
    batch: int
    dtype: str = "bf16"  # of what is not quantized, and of the activations
    kv: str | None = None  # format of K and V; None: the engine's default
    ubatch: int | None = None  # tokens of a sequence per prefill pass; None: the engine's default
    path: str = EAGER  # how decode steps of transformers run: see ``profiler.decode_path``


@dataclass(frozen=True, slots=True)
class Named:
    """A model as a person named it: what a command that measures it has to say."""

    argument: str  # for the options of ``profile`` that take a model
    source: Source
    as_stored: bool = True  # nobody asked for another quantization than that of its file

    @property
    def title(self) -> str:
        """For a sentence."""
        return printable(self.argument)


@dataclass(frozen=True, slots=True)
class Terms:
    """Bytes on the device, per term, and what stays on the host."""

    weights: Interval
    cache: Interval  # of the case's context, all sequences
    prefill: Interval  # activations, logits, copies while the prompt is worked on
    decode: Interval  # and in a step
    framework: Interval  # the runtime itself: context, libraries, allocator
    host: Interval
    prefill_reason: str  # what most of it is, in words
    decode_reason: str

    @property
    def buffers(self) -> Interval:
        """Of the phase that takes more."""
        return self.prefill if self.peak_phase == "prefill" else self.decode

    @property
    def peak_phase(self) -> str:
        """``prefill`` or ``decode``: when the device is fullest."""
        return "prefill" if self.prefill.value >= self.decode.value else "decode"

    @property
    def reason(self) -> str:
        """What sets the peak beside weights and cache, in words."""
        return self.prefill_reason if self.peak_phase == "prefill" else self.decode_reason

    @property
    def loaded(self) -> Interval:
        """With the model loaded and nothing asked of it."""
        return self.weights + self.framework

    @property
    def peak(self) -> Interval:
        """All of it at once: what decides whether a case fits."""
        return self.weights + self.cache + self.buffers + self.framework


class Engine(Protocol):
    """An inference framework. Nothing here imports it."""

    name: str  # as people write it
    version: str  # which version's rules these are
    default_quant: str
    default_kv: str
    makers: frozenset[str]  # whose devices ``memory`` treats apart from all others
    counts: Counts | None  # of an engine whose kernels `profile calibrate` times

    @property
    def quants(self) -> Sequence[str]:
        """The formats with a rule, as people type them."""

    def check(self, quant: str) -> str:
        """``quant`` as spelled here. NotFound with the nearest names for one without a rule."""

    def storage(self, geometry: Geometry, quant: str, dtype: str, repacks: bool = False) -> Storage:
        """The weights as this engine stores them, on a device that ``repacks`` or not. ProfileError if it cannot."""

    def stored(self, geometry: Geometry, stored: Stored, dtype: str, repacks: bool = False) -> Storage:
        """The weights of a checkpoint that is run as it is stored; what is not quantized is in ``dtype``."""

    def timed(self, quant: str, stored: Stored | None, target: Target) -> bool:
        """Whether the speed of its products in a quantization was ever measured or fitted; or with the formats of
        ``stored``, a checkpoint that is run as it is stored."""

    def memory(self, geometry: Geometry, storage: Storage, setting: EngineRequest, target: Target) -> Terms:
        """The peak and its terms."""

    def load_peak(self, geometry: Geometry, storage: Storage, dtype: str, target: Target) -> Interval | None:
        """Bytes held while a checkpoint is loaded, where that may exceed every later moment; ``None``: no rule."""

    def left_mapped(self, storage: Storage, dtype: str, target: Target) -> Interval:
        """Bytes of a checkpoint file that were read to quantize weights and still count for the process."""

    def manner(self, geometry: Geometry, setting: EngineRequest, target: Target | None = None) -> Manner:
        """How it goes through a pass of a prefill, on a GPU where no ``target`` is given."""

    def step_manner(self, geometry: Geometry, setting: EngineRequest, target: Target) -> Manner:
        """How it goes through a decode step."""

    def runs(self, path: str, quant: str, dtype: str, target: Target) -> str:
        """The decode path that is run where ``path`` is asked for."""

    def verify(self, model: Named, setting: EngineRequest, machine: Machine) -> Command | None:
        """The command that measures this case on that machine; ``None`` if there is none. What we do not know, such
        as the name of a file that does not exist yet, is a blank of it, never a guess."""


def spread(value: float, low: float, high: float) -> Interval:
    """A prior with bounds of its own."""
    return Interval(value, low, high, "prior")
