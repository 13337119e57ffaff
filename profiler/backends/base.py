"""What a backend defines: its traits, and a session that loads a model and runs cases on it, one after the other.

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
    """An allocation failed, on the device or because of a memory limit. The message says which, and how much."""


class ShapeMismatch(Exception):
    """A phase processed another number of tokens than the case specifies."""


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a backend reports about a loaded model, the same for all of its cases."""

    weights_bytes: int  # storage of all parameters and buffers; shared storage counts once
    unquantized_bytes: int  # the part that the quantization left in a plain dtype; 0 for a plain dtype
    threads: int | None  # CPU threads that the backend computes with
    cautions: tuple[Caution, ...]
    left_mapped_bytes: int | None = None  # CPU: pages of checkpoint files that were quantized and are still mapped


@dataclass(frozen=True, slots=True)
class CacheState:
    """Length and memory of a cache, read from its own tensors. Growing, window and recurrent layers add up to
    ``storage_bytes``.
    """

    length: int  # tokens per sequence, as the attention layers count them
    storage_bytes: int  # storage behind the cache's tensors; shared storage counts once
    retained_bytes: int  # the part that no tensor of the cache covers: views keep longer storage alive
    growing_bytes: int  # of layers that keep every token
    window_bytes: int  # of layers that keep only the last tokens
    recurrent_bytes: int  # of layers that keep a recurrent state
    pool_bytes: int | None = None  # in addition: memory that captured graphs keep for intermediate results


class Generation(Protocol):
    """The sequences of one case on a loaded model, with their inputs and a cache, which is empty at first."""

    tokens: list[list[int]]
    """The tokens decoded since the last ``prefill``, ``fill`` or ``restore``: a list per step, with one token per
    sequence."""

    def prefill(self) -> int:
        """Empty the cache, then process ``context`` tokens of each sequence. Returns the number of tokens of all
        sequences.
        """

    def fill(self) -> None:
        """Fill the cache with random values for ``context`` tokens instead (``Case.fill == "synthetic"``)."""

    def save(self) -> None:
        """Save the state of the cache."""

    def restore(self) -> None:
        """Restore the cache to its state at ``save``."""

    def release(self) -> None:
        """Free what ``save`` saved, so that it is part of no peak. The cache itself stays."""

    def step(self) -> None:
        """One greedy decode step for all sequences, from the tokens of the step before. Does not wait for the
        device.
        """

    def skip(self, steps: int) -> None:
        """Bring a cache of a fixed size to its state after ``steps`` more decode steps, whatever their tokens."""

    def cache(self) -> CacheState:
        """Length and memory of the cache now."""

    def path(self) -> DecodePath | None:
        """How decode ran; ``None`` if the backend has only one way. Called after the case has run."""

    def cautions(self) -> tuple[Caution, ...]:
        """Cautions about how this case ran. Called after it has run."""


class Session(Protocol):
    """A loaded model, which runs its cases one after the other."""

    meter: Meter
    watcher: Watcher  # observes the device while repetitions run

    @property
    def info(self) -> ModelInfo:
        """Facts about the model, read anew each time: the first pass may change how weights are stored."""

    def begin(self, case: Case) -> Generation:
        """Create the inputs of a case. Generations of earlier cases can no longer be used."""

    def close(self) -> None:
        """Free the model."""


class TimedCase(Protocol):
    """One case that a program of the backend repeats and times itself, such as llama-bench."""

    @property
    def threads(self) -> int | None:
        """CPU threads that the program used, once it has run."""

    @property
    def together(self) -> bool:
        """Whether each repetition has both phases, so that one window of time is that of both."""

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
    info: ModelInfo

    def begin(self, case: Case) -> TimedCase:
        """Prepare a case. Raises OutOfMemory, ProfileError."""

    def close(self) -> None:
        """Free the model."""


class Opener(Protocol):
    """The function ``open_session`` of a backend. Importing its module imports the framework."""

    def __call__(self, case: Case, source: Source, beat: Beat) -> Session:
        """Load the model of ``case``. Raises OutOfMemory, ProfileError."""


def _refuses_none(case: Case) -> str | None:
    return None


def _always(case: Case) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class InstalledBuild:
    """One of several builds of an engine's programs on this machine."""

    folder: str
    program: str  # the path of one that measures
    variables: Mapping[str, str]  # environment variables that make a worker use it
    versions: Mapping[str, str]  # as ``Backend.versions``
    libraries: tuple[str, ...] = ()  # paths of the engine's shared libraries that it loads


@dataclass(frozen=True, slots=True)
class Completion:
    """What a model generates greedily after one prompt."""

    tokens: tuple[int, ...]
    texts: tuple[str, ...]  # of each token
    logprobs: tuple[Mapping[int, float], ...]  # of the most likely tokens at each place: token → ln p; may be empty


@dataclass(frozen=True, slots=True, eq=False)
class Backend:
    """The traits of a backend. A collection that is ``None`` means that the backend supports every value."""

    engine: str = "transformers"  # the name of the engine in ``cost/engines`` that plans and predicts its cases
    predicted: bool = True  # whether that engine describes it well enough to show predictions next to measurements
    simulated: str | None = None  # what its device is, in words, if it is simulated and no figure is real
    meter: Callable[[str], Meter] | None = None  # its own clock and memory meter; None: those of ``profiler/devices``
    own_step: bool = False  # whether it runs our own decode step, so that the default path depends on the device
    paths: tuple[str, ...] = (EAGER,)  # decode paths; the first is the default unless ``own_step``
    quants: Collection[str] | None = None
    dtypes: Collection[str] | None = None
    fills: Collection[str] | None = None
    weights: Collection[str] | None = None  # real, synthetic
    kinds: Collection[str] | None = None  # kinds of devices
    refuses: Callable[[Case], str | None] = _refuses_none  # why it cannot run a case that the fields above allow
    versions: Callable[[], Mapping[str, str]] = dict  # versions that rows record in addition to the usual libraries
    microbenchmark: str | None = None  # the module that `profile calibrate` runs
    ceilings: str | None = None  # the module that measures only the two ceilings of MBU and MFU
    quality: str | None = None  # the module that compares its logits with a reference's (``profiler/run/quality.py``)
    agreement: str | None = (
        None  # the module that compares the logits of two versions for a gate (``gate/numerics.py``)
    )
    server_command: str | None = None  # the command that measures it, if it is a running server: no worker opens it
    has_cpu_time: Callable[[Case], bool] = _always  # whether the repetitions of a case on a CPU have CPU times
    find_build: Callable[[str | None], InstalledBuild] | None = None  # the build in a folder, or the usual one
    build_command: str = ""  # that makes such a build in a checkout of the engine
    complete: Callable[[Case, Source, InstalledBuild], Sequence[Completion]] | None = None  # by one of its builds
    imports_slowly: bool = False  # whether its libraries take seconds, in which a sweep can plan
    times_itself: bool = False  # whether its sessions are ``TimedSession``s, which give samples and not steps
    gguf: bool = False  # whether it runs GGUF files as they are stored, and nothing else
    ubatch: int | None = None  # default tokens per prefill pass; None: that of the kind of device
    options: Mapping[str, Callable[[str], str]] = field(default_factory=dict)
    """Axes that only this backend has, by the name of the option, each with a parser that raises ValueError
    (``Case.options``)."""

    def refusal(self, case: Case) -> str | None:
        """Why it cannot run ``case``, in words; ``None`` if it can."""
        values: tuple[tuple[str, str, Collection[str] | None], ...] = (
            ("quantization", case.quant, self.quants),
            ("dtype", case.dtype, self.dtypes),
            ("decode path", case.path, self.paths),
            ("cache fill", case.fill, self.fills),
            ("weights", case.weights, self.weights),
            ("device", case.device.partition(":")[0], self.kinds),
        )
        for what, value, supported in values:
            if supported is not None and value not in supported:
                return f"backend {case.backend} does not support {what} {value}, only {', '.join(supported)}"
        return self.refuses(case)
