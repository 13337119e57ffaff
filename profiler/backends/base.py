"""What a backend defines: its traits, and a session that loads a model and serves its cases in turn.

``backends/NAME/__init__.py`` has ``BACKEND``, the traits that commands, plans, rows and tables look up. It imports no
framework. ``backends/NAME/session.py`` has ``open_session(case, source, beat) -> Session``, which workers call.
Without a framework, one file ``backends/NAME.py`` may have both.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from profiler.case import Case, Source
from profiler.decode_path import EAGER
from profiler.devices.base import Meter, Watcher
from profiler.results.measurement import Caution, DecodePath, Memory, Phase, Sample

Beat = Callable[[str], None]
"""Called at every sign of progress with a few words (``prefill 2048/8192``); it must be cheap."""


class OutOfMemory(Exception):
    """The device or the memory limit refused an allocation. The message says which and how much."""


class ShapeMismatch(Exception):
    """A phase did not process what the case asks for."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """What is true of a loaded model whatever the case."""

    weights_bytes: int  # sum of the storages of parameters and buffers, each once
    unquantized_bytes: int  # part of it that the quantization left in a plain dtype; 0 for a plain dtype
    threads: int | None  # CPU threads the backend computes with
    cautions: tuple[Caution, ...]
    left_mapped_bytes: int | None = None  # CPU: of checkpoint files, read to pack weights and mapped still


@dataclass(frozen=True, slots=True)
class CacheState:
    """The cache as its own objects describe it."""

    length: int  # tokens, as the first attention layer counts them
    storage_bytes: int  # storages behind the cache, each once
    retained_bytes: int  # part of them that no tensor of the cache reaches (views into longer storages)
    growing_bytes: int  # the parts of storage_bytes: of layers that keep every token
    window_bytes: int  # of layers that keep the last tokens only
    recurrent_bytes: int  # of layers that keep a state
    pool_bytes: int | None = None  # beside the cache: what captured graphs keep for their intermediate results


class Trial(Protocol):
    """One case on a loaded model: its inputs and its cache. Starts with an empty cache."""

    tokens: list[list[int]]  # decoded since the last prefill, fill or restore; one list a step, one token a sequence

    def prefill(self) -> int:
        """Drop the cache, then process ``context`` tokens of each sequence; returns tokens processed."""

    def fill(self) -> None:
        """Write a random cache of ``context`` tokens instead (``Case.fill == "synthetic"``)."""

    def save(self) -> None:
        """Remember the cache as it is now."""

    def restore(self) -> None:
        """Make the cache what it was at ``save``."""

    def release(self) -> None:
        """Forget the saved cache, so that it counts in no peak; the current one stays."""

    def step(self) -> None:
        """One greedy decode step for the whole batch, feeding back its own tokens. Does not wait for the device."""

    def cache(self) -> CacheState:
        """Length and bytes of the cache now."""

    def path(self) -> DecodePath | None:
        """What the decode path came to; ``None`` for the backend's own. Asked once the case has run."""

    def cautions(self) -> tuple[Caution, ...]:
        """What a reader of the row must know about how this case ran. Asked once it has."""


class Session(Protocol):
    """One loaded model, which serves its cases in turn."""

    meter: Meter
    watcher: Watcher  # of the device, while repetitions run

    @property
    def loaded(self) -> Loaded:
        """What is loaded, as it is now."""

    def begin(self, case: Case) -> Trial:
        """Make the inputs of a case. The trial before must not be used any more."""

    def close(self) -> None:
        """Free the model."""


class TimedCase(Protocol):
    """One case that a program of the backend repeats and times itself, such as llama-bench."""

    @property
    def threads(self) -> int | None:
        """CPU threads that the program used, once it has run."""

    def repeat(self, phase: Phase, count: int, most_s: float) -> Generator[Sequence[Sample], None, None]:
        """Repetitions of a phase, in groups as the program prints them. Closing the generator ends the program.

        At first about ``count`` are wanted, and then more until the caller closes it; none should start after they
        have taken ``most_s`` seconds in total.
        """

    def memory(self) -> Memory:
        """Peaks of the phases that ran, and the parts that the program reports."""

    def path(self) -> DecodePath | None:
        """What computed. Called once the case has run."""

    def cautions(self) -> tuple[Caution, ...]:
        """Cautions about how this case ran. Called once it has run."""


class TimedSession(Protocol):
    """A model whose cases are ``TimedCase``s (``Backend.times_itself``)."""

    meter: Meter
    watcher: Watcher  # observes the device while repetitions run
    loaded: Loaded

    def begin(self, case: Case) -> TimedCase:
        """Prepare a case. Raises OutOfMemory, ProfileError."""

    def close(self) -> None:
        """Free the model."""


class Opener(Protocol):
    """The function ``open_session`` of a backend. Importing its module imports the framework."""

    def __call__(self, case: Case, source: Source, beat: Beat) -> Session:
        """Load the model of ``case``. Raises OutOfMemory, ProfileError."""


def _takes_all(case: Case) -> str | None:
    return None


@dataclass(frozen=True, slots=True, eq=False)
class Backend:
    """The traits of a backend. A collection that is ``None`` means that the backend takes every value."""

    engine: str = "transformers"  # the name of the engine in ``cost/engines`` that plans and predicts its cases
    predicted: bool = True  # whether that engine describes it well enough to show predictions next to measurements
    made_up: str | None = None  # what its device is, in words, if the device does not exist and no figure is real
    meter: Callable[[str], Meter] | None = None  # its own clock and memory; None: those of ``profiler/devices``
    own_step: bool = False  # whether it runs our own decode step, so that the default path depends on the device
    paths: tuple[str, ...] = (EAGER,)  # decode paths; the first is the default unless ``own_step``
    quants: Collection[str] | None = None
    dtypes: Collection[str] | None = None
    fills: Collection[str] | None = None
    weights: Collection[str] | None = None  # real, synthetic
    kinds: Collection[str] | None = None  # kinds of devices
    refuses: Callable[[Case], str | None] = _takes_all  # why it cannot run a case that all of these allow, in words
    versions: Callable[[], Mapping[str, str]] = dict  # versions that rows record in addition to the usual libraries
    microbenchmark: str | None = None  # the module that `profile calibrate` runs
    times_itself: bool = False  # whether its sessions are ``TimedSession``s, which give samples and not steps
    gguf: bool = False  # whether it runs GGUF files as they are stored, and nothing else
    ubatch: int | None = None  # default tokens per prefill pass; None: that of the kind of device
    options: Mapping[str, Callable[[str], str]] = field(default_factory=dict)
    """Axes that only this backend has, by the name of the option, each with a parser that raises ValueError
    (``Case.options``)."""

    def refusal(self, case: Case) -> str | None:
        """Why it cannot run ``case``, in words; ``None`` if it can."""
        asked: tuple[tuple[str, str, Collection[str] | None], ...] = (
            ("quantization", case.quant, self.quants),
            ("dtype", case.dtype, self.dtypes),
            ("decode path", case.path, self.paths),
            ("cache fill", case.fill, self.fills),
            ("weights", case.weights, self.weights),
            ("device", case.device.partition(":")[0], self.kinds),
        )
        for what, value, taken in asked:
            if taken is not None and value not in taken:
                return f"backend {case.backend} has no {what} {value}, only {', '.join(taken)}"
        return self.refuses(case)
