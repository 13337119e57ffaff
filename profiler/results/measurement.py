"""A measurement: the raw numbers of one case. Statistics are derived from it (``stats.py``), never stored.

The peak of a case is also split into its measured parts and an unaccounted remainder:

    process at the peak = framework + weights + cache + activations + graph pool + left mapped + unaccounted

This is for the phase with the higher peak. On a GPU the remainder contains what the allocator reserved but did not
use; on a CPU, the model's Python objects, free blocks in the heap, and tables that kernels build from weights.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import compress
from typing import Any, Literal, overload

from profiler.case import CODES, Case
from profiler.case import PHASES as PHASES
from profiler.case import Phase as Phase
from profiler.units import printable

SCHEMA = 1
Outcome = Literal["ok", "oom", "skipped", "failed", "timeout"]
TaskVerdict = Literal["passed", "wrong", "cut", "failed"]
TASK_VERDICTS: tuple[TaskVerdict, ...] = ("passed", "wrong", "cut", "failed")

PLAIN = " on plain torch"
SHARED_PREFILL = "shared-prefill"  # code of the caution: the prefill of another case, which is the same one
SHARED_DECODE = "shared-decode"  # the same for the first decode steps of another case


@dataclass(frozen=True, slots=True)
class Sample:
    """One timed repetition of one phase. All of them are stored, but only some count: see ``Repetitions.of``."""

    phase: Phase
    seconds: float  # wall time, from before the first launch until the device has finished
    tokens: int  # batch × context (prefill) or batch × steps (decode), as counted from what was processed
    step_s: tuple[float, ...] = ()  # decode: seconds of each step
    cpu_s: float | None = None  # process CPU time over the same window
    wait_s: float | None = None  # seconds in which its threads were ready to run but had no core
    device_s: float | None = None  # CUDA: between events at both ends of the window, on the device's own clock
    drain_s: float | None = None  # CUDA: seconds of device work left when the host had launched everything
    warmup: bool = False  # a warm-up run: stored, but in no statistic
    invalid: str | None = None  # why it does not count, such as throttling: stored, but in no statistic
    ended_s: float | None = None  # on a monotonic clock: differences show the gaps between repetitions
    sm_mhz: float | None = None  # GPU: median clock while it ran
    temperature_c: float | None = None  # GPU: highest
    capped: float | None = None  # GPU: share of the time in which the power limit lowered the clocks


SAMPLE_DEFAULTS = {each.name: each.default for each in fields(Sample)}  # defaults of the fields, in order


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes. ``None`` if the phase did not run or the counter does not exist."""

    weights_bytes: int | None = None  # sum of the storages of parameters and buffers
    unquantized_bytes: int | None = None  # part of it that the quantization left in a plain dtype
    cache_bytes: int | None = None  # storages behind the cache at the end of decode: depth context + steps
    retained_bytes: int | None = None  # kept alive after prefill by the cache's tensors, but not part of them
    baseline_bytes: int | None = None  # the process before the model is loaded: interpreter, framework, context
    load_peak_bytes: int | None = None
    prefill_peak_bytes: int | None = None
    decode_peak_bytes: int | None = None
    process_peak_bytes: int | None = None  # decides whether the case fits
    reserved_bytes: int | None = None  # CUDA: the allocator's segments
    # The parts of a phase's peak (run/loop.py). Rows from before 2026-11 have none of them.
    growing_cache_bytes: int | None = None  # the parts of cache_bytes: layers that keep every token,
    window_cache_bytes: int | None = None  # that keep the last ones,
    recurrent_bytes: int | None = None  # and those that keep a state
    prefill_cache_bytes: int | None = None  # storages behind the cache after prefill, including retained ones
    prefill_activation_bytes: int | None = None  # what the phase uses at its peak and frees at its end
    decode_activation_bytes: int | None = None
    graph_pool_bytes: int | None = None  # CUDA: memory of captured graphs
    framework_bytes: int | None = None  # interpreter, libraries, CUDA context: everything that is not a tensor
    left_mapped_bytes: int | None = None  # CPU: checkpoint files that stay mapped although no weight is in them
    phases_process_bytes: int | None = None  # peak of the process over both phases, without loading
    device_bytes: int | None = None  # CUDA: used by all processes

    @property
    def phases_peak_bytes(self) -> int | None:
        """The higher peak of prefill and decode."""
        return max(filter(None, (self.prefill_peak_bytes, self.decode_peak_bytes)), default=None)


@dataclass(frozen=True, slots=True)
class PhaseEnergy:
    """Energy of a device while a phase was repeated, from two sources; ``None`` where the reason says why."""

    repetitions: int
    seconds: float  # of all repetitions
    window_s: float  # in which the device was watched, including the gaps between repetitions
    tokens: int  # prompt tokens (prefill) or output tokens (decode) of all repetitions
    counter_j: float | None = None  # from the device's energy counter
    counter_reason: str | None = None
    power_j: float | None = None  # from its power, read 25 times a second
    power_reason: str | None = None
    invalid: str | None = None  # why it says nothing about the device (throttled)


@dataclass(frozen=True, slots=True)
class Energy:
    """Energy of the phases that ran. Figures are derived in ``energy.py``."""

    source: str | None = None  # nvml-counter | nvml-power | rapl-counter: the source of the figure
    scope: str | None = None  # gpu-board | cpu-package: what the energy covers
    prefill: PhaseEnergy | None = None
    decode: PhaseEnergy | None = None
    idle_w: float | None = None  # with the model loaded and idle
    idle_reason: str | None = None

    @property
    def from_counter(self) -> bool:
        """Whether the figure comes from the energy counter; otherwise from integrated power."""
        return self.source is None or self.source.endswith("counter")

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Energy:
        """The inverse of ``asdict``, with or without nulls."""
        parts: dict[str, Any] = {phase: PhaseEnergy(**part) for phase in PHASES if (part := content.get(phase))}
        return cls(**(content | parts))


@dataclass(frozen=True, slots=True)
class Caution:
    """A reason to distrust a number. ``code`` is stable, ``text`` is for the user."""

    code: str
    text: str
    help: str | None = None  # the option or action that helps


@dataclass(frozen=True, slots=True)
class DecodePath:
    """How ``--path static`` or ``graph`` ran. ``None``: does not apply, or unknown."""

    ran: str  # the path that ran
    reason: str | None = None  # why it is not the requested one
    kernels: str | None = None  # what computes matrix–vector products, or why PyTorch does
    graphs: int = 0
    nodes_per_token: int | None = None  # kernels in one captured step
    prepare_s: float = 0.0  # warm-up, capture or compilation: excluded from all measurements
    cache_needed_bytes: int | None = None  # K and V that a step at the end needs: shared ones count once
    cache_read_bytes: int | None = None  # K and V that it reads: buckets are padded
    machine: str | None = None  # state of the machine that caused a fallback (``decode_path.machine_state``)

    @property
    def on_plain_torch(self) -> bool:
        """Whether our own kernels were unavailable."""
        return self.kernels is not None and self.kernels.startswith("plain torch")


class Repetitions(Sequence[Sample]):
    """All samples of a row in the order of measurement, and views of the samples of a phase.

    Rows from a store hold them by column and create Sample objects on access, because a report may read a hundred
    thousand rows and show sixty; creating all their samples took longer than everything else. Views are cached.
    """

    __slots__ = ("_cached", "_columns", "_made", "_step_s")

    def __init__(self, samples: Iterable[Sample] = ()) -> None:
        self._made: tuple[Sample, ...] | None = tuple(samples)
        self._columns: Mapping[str, Sequence[Any]] | None = None
        self._step_s: Callable[[], Sequence[tuple[float, ...]]] | None = None
        self._cached: dict[Any, Any] | None = None

    @classmethod
    def by_column(
        cls, columns: Mapping[str, Sequence[Any]], step_s: Callable[[], Sequence[tuple[float, ...]]]
    ) -> Repetitions:
        """Samples from ``columns`` (as the property ``columns`` returns them), and a function for the step times."""
        found = cls.__new__(cls)
        found._made, found._columns, found._step_s, found._cached = None, columns, step_s, None
        return found

    @property
    def columns(self) -> Mapping[str, Sequence[Any]]:
        """For each field that any sample has, a list with its value in every sample. ``step_s`` has numbers of
        steps."""
        if self._columns is None:
            every = {name: [getattr(sample, name) for sample in self] for name in SAMPLE_DEFAULTS}
            every["step_s"] = list(map(len, every["step_s"]))
            self._columns = {
                name: values
                for name, values in every.items()
                if any(value != SAMPLE_DEFAULTS[name] for value in values)
            }
        return self._columns

    def cached(self, key: Any, compute: Callable[[], Any]) -> Any:
        """``compute()``, called once for each ``key``, for what follows from the samples."""
        if self._cached is None:
            self._cached = {}
        if key not in self._cached:
            self._cached[key] = compute()
        return self._cached[key]

    def of(self, phase: Phase) -> tuple[Sample, ...]:
        """The repetitions of one phase that count, in order: without warm-ups and invalid ones."""
        counted: tuple[Sample, ...] = self.cached(
            ("of", phase),
            lambda: tuple(sample for sample in self.record(phase) if not sample.warmup and sample.invalid is None),
        )
        return counted

    def record(self, phase: Phase) -> tuple[Sample, ...]:
        """All repetitions of one phase in order, including warm-ups and invalid ones."""
        every: tuple[Sample, ...] = self.cached(
            ("record", phase), lambda: tuple(sample for sample in self if sample.phase == phase)
        )
        return every

    def timed(self, phase: Phase, warmups: bool = False) -> list[tuple[float, int]]:
        """Seconds and tokens of each repetition that counts, in order; with ``warmups``, of each that is valid."""
        found: list[tuple[float, int]] = self.cached(("timed", phase, warmups), lambda: self._timed(phase, warmups))
        return found

    def seconds(self, phase: Phase, warmups: bool = False) -> list[float]:
        """Seconds of each repetition that counts, in order; with ``warmups``, of each that is valid."""
        return [seconds for seconds, _ in self.timed(phase, warmups)]

    def column(self, name: str, phase: Phase) -> list[Any]:
        """The field ``name`` of each repetition that counts, in order."""
        return self._column(name, phase, warmups=False)

    def has(self, name: str) -> bool:
        """Whether any sample has the field ``name``; most samples leave most fields out."""
        return name in self.columns

    @property
    def counted(self) -> tuple[Sequence[Phase], Sequence[float], Sequence[int]] | None:
        """Phase, seconds and tokens of all repetitions that count, without creating Samples; None if any is
        invalid."""
        columns = self.columns
        if "invalid" in columns or not columns:
            return None if columns else ((), (), ())
        found = columns["phase"], columns["seconds"], columns["tokens"]
        if "warmup" not in columns:
            return found
        counts = list(map(operator.not_, columns["warmup"]))
        phases, seconds, tokens = (list(compress(column, counts)) for column in found)
        return phases, seconds, tokens

    def _timed(self, phase: Phase, warmups: bool) -> list[tuple[float, int]]:
        every = None if warmups and self.has("warmup") else self.counted
        if every is not None:
            return [(seconds, tokens) for which, seconds, tokens in zip(*every, strict=True) if which == phase]
        columns = {name: self._column(name, phase, warmups) for name in ("seconds", "tokens")}
        return [*zip(columns["seconds"], columns["tokens"], strict=True)]

    def _column(self, name: str, phase: Phase, warmups: bool) -> list[Any]:
        places = self.cached(("places", phase, warmups), lambda: self._places(phase, warmups))
        values = self._values(name)
        return [values[place] for place in places]

    def _places(self, phase: Phase, warmups: bool) -> list[int]:
        """Indices of the samples that count."""
        places = [place for place, which in enumerate(self._values("phase")) if which == phase]
        for name in ("invalid",) if warmups else ("invalid", "warmup"):
            if self.has(name):
                values = self._values(name)
                places = [place for place in places if not values[place] and values[place] != ""]
        return places

    def _values(self, name: str) -> Sequence[Any]:
        """The field ``name`` of all samples."""
        if name == "step_s":
            return self._step_s() if self._step_s is not None else [sample.step_s for sample in self]
        return self.columns.get(name) or [SAMPLE_DEFAULTS[name]] * len(self)

    @property
    def _samples(self) -> tuple[Sample, ...]:
        if self._made is None:
            self._made = tuple(map(Sample, *map(self._values, SAMPLE_DEFAULTS)))
        return self._made

    @overload
    def __getitem__(self, place: int) -> Sample: ...
    @overload
    def __getitem__(self, place: slice) -> tuple[Sample, ...]: ...
    def __getitem__(self, place: int | slice) -> Sample | tuple[Sample, ...]:
        return self._samples[place]

    def __len__(self) -> int:
        return len(self.columns["seconds"]) if self._made is None else len(self._made)

    def __iter__(self) -> Iterator[Sample]:
        return iter(self._samples)

    def __eq__(self, other: object) -> bool:
        return self._samples == (other._samples if isinstance(other, Repetitions) else other)

    def __hash__(self) -> int:
        return hash(self._samples)

    def __repr__(self) -> str:
        return repr(self._samples)

    def __reduce__(self) -> tuple[type[Repetitions], tuple[tuple[Sample, ...]]]:
        return Repetitions, (self._samples,)


NO_SAMPLES = Repetitions()  # of a row without a result


class _Reloadable:
    """A slot for the function that reads a row again."""

    __slots__ = ("_reload",)
    _reload: Callable[[], Measurement]


@dataclass(frozen=True, slots=True)
class Measurement(_Reloadable):
    """One row. ``samples`` is empty unless ``outcome`` is ok; ``reason`` explains every other outcome."""

    case: Case
    environment: dict[str, Any]
    outcome: Outcome
    reason: str | None = None
    samples: Repetitions = NO_SAMPLES  # may be given as any sequence
    memory: Memory = Memory()
    energy: Energy | None = None  # if it was requested or is available
    cautions: tuple[Caution, ...] = ()
    load_s: float | None = None
    threads: int | None = None  # CPU threads that the backend used
    started_at: str | None = None  # UTC, ISO 8601
    asked: dict[str, Any] = field(default_factory=dict)  # the requested reps or precision, and max_phase_s
    stopped: dict[str, str] = field(default_factory=dict)  # by phase, why no further repetition ran (run/repetitions)
    expected: dict[str, Any] = field(default_factory=dict)  # the prediction, made before it ran (cost/cases.py)
    decode_path: DecodePath | None = None  # None: transformers without patches
    checkpoint: dict[str, Any] = field(default_factory=dict)  # content of the weights' files, and what is used
    serving: dict[str, Any] | None = None  # the requests to a server (run/serving.py); None: no server was measured
    case_s: float | None = None  # from sending the case to a worker until its row arrived
    start_s: float | None = None  # part of it: starting the worker and its libraries; None: it was running already
    quality: dict[str, Any] | None = None  # against a reference (results/quality.py); None: it was not requested

    def __post_init__(self) -> None:
        if type(self.samples) is not Repetitions:
            object.__setattr__(self, "samples", Repetitions(self.samples))

    @property
    def reload(self) -> Callable[[], Measurement]:
        """A function that returns this row again, from its store if it has one, so that the row need not be kept."""
        try:
            return self._reload
        except AttributeError:
            return lambda: self

    def reloaded_by(self, read: Callable[[], Measurement]) -> None:
        """Let ``reload`` read this row with ``read``, which works as long as the store is open."""
        object.__setattr__(self, "_reload", read)

    def to_json(self) -> dict[str, Any]:
        """The row as JSON, exactly as the store keeps it."""
        return asdict(replace(self, samples=NO_SAMPLES)) | {"samples": tuple(map(asdict, self.samples))}

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Measurement:
        """The inverse of ``to_json``."""
        row = dict(row)
        row["case"] = Case.from_row(row["case"])
        row["samples"] = Repetitions(Sample(**s | {"step_s": tuple(s["step_s"])}) for s in row["samples"])
        row["memory"] = Memory(**row["memory"])
        row["cautions"] = tuple(Caution(**caution) for caution in row["cautions"])
        row["decode_path"] = DecodePath(**path) if (path := row.get("decode_path")) else None
        row["energy"] = Energy.from_json(row["energy"]) if row.get("energy") else None
        return cls(**row)


@dataclass(frozen=True, slots=True)
class RunModel:
    """What a run says about one of its models: the name, the notes, and the files of the weights.

    A run can reuse a row that another run measured under another name, or with other files next to the weights.
    ``describe`` replaces these parts of the row by those of the run that is read. Everything else belongs to the
    measurement and stays as it was stored, including ``asked`` (the effort that was requested then) and ``expected``
    (the prediction that was made then).
    """

    model_id: str
    name: str  # for display
    notes: tuple[Caution, ...] = ()  # with codes of ``case.CODES``
    checkpoint: dict[str, Any] = field(default_factory=dict)  # as in ``Measurement``
    config: dict[str, Any] = field(default_factory=dict)  # its config.json, from which its shapes follow

    def describe(self, row: Measurement) -> Measurement:
        """``row`` of this model with this run's name, notes and checkpoint; a server's row has its own."""
        if row.case.server is not None:
            return row
        others = tuple(caution for caution in row.cautions if caution.code not in CODES)
        case = row.case if row.case.model == self.name else replace(row.case, model=self.name)
        return replace(row, case=case, cautions=(*self.notes, *others), checkpoint=self.checkpoint)


def peak_phase(memory: Memory) -> Phase | None:
    """The phase with the higher peak; None if neither is known."""
    prefill, decode = memory.prefill_peak_bytes, memory.decode_peak_bytes
    if prefill is None and decode is None:
        return None
    return "prefill" if (prefill or 0) >= (decode or 0) else "decode"


def parts(memory: Memory) -> dict[str, int | None]:
    """Bytes of each part at the peak of ``peak_phase``; None for unmeasured parts. Empty without a peak."""
    phase = peak_phase(memory)
    if phase is None:
        return {}
    in_prefill = phase == "prefill"
    return {
        "weights": memory.weights_bytes,
        "framework": memory.framework_bytes,
        "cache": memory.prefill_cache_bytes if in_prefill else memory.cache_bytes,
        "activations": memory.prefill_activation_bytes if in_prefill else memory.decode_activation_bytes,
        "graph pool": memory.graph_pool_bytes or 0,
        "checkpoint, left mapped": memory.left_mapped_bytes or 0,
    }


def unaccounted_bytes(memory: Memory) -> int | None:
    """Bytes at the peak that no part explains, negative if the parts add up to more; None: unknown."""
    known = [size for size in parts(memory).values() if size is not None]
    if memory.phases_process_bytes is None or not known or len(known) < len(parts(memory)):
        return None
    return memory.phases_process_bytes - sum(known)


def step(row: Measurement) -> str:
    """The decode step that ran: ``static``, ``eager``, ``static on plain torch``. Without a record, the requested
    path."""
    found = row.decode_path
    return row.case.path if found is None else found.ran + PLAIN * found.on_plain_torch


def in_words(row: Measurement) -> str:
    """The decode step that ran, with the reason if it is not the requested one."""
    found = row.decode_path
    reason = found and (found.reason or (found.kernels if found.on_plain_torch else None))
    return f"{step(row)} ({printable(reason, 200)})" if reason else step(row)


def difference(a: Measurement, b: Measurement, names: tuple[str, str]) -> str | None:
    """A message if two rows ran different decode steps; ``None`` if they ran the same one."""
    if step(a) == step(b):
        return None
    return f"different decode steps ran: {names[0]} {in_words(a)}, {names[1]} {in_words(b)}"
