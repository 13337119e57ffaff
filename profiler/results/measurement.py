"""A measurement: the raw numbers of one case. Statistics are derived from it (``stats.py``), never stored.

The peak of a case is also taken apart: what its measured parts add up to, and what is left over.

    process at the peak = framework + weights + cache + activations + graph pool + left mapped + unaccounted

of the phase whose peak is the higher one. On a GPU the remainder holds what the allocator reserved and did not use;
on a CPU the model's Python objects, what the heap keeps between blocks, and tables that kernels made of weights.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import compress
from typing import Any, Literal, overload

from profiler.case import Case
from profiler.units import printable

SCHEMA = 1
Outcome = Literal["ok", "oom", "skipped", "failed", "timeout"]
Phase = Literal["prefill", "decode"]

PLAIN = " on plain torch"


@dataclass(frozen=True, slots=True)
class Sample:
    """One timed repetition of one phase. The record keeps all of them; only some count, see ``Measurement.of``."""

    phase: Phase
    seconds: float  # wall, from before the first launch to after the last sync
    tokens: int  # batch × context (prefill) or batch × steps (decode), as counted from what was processed
    step_s: tuple[float, ...] = ()  # decode: seconds of each step
    cpu_s: float | None = None  # process CPU time over the same window
    wait_s: float | None = None  # seconds its threads were ready and got no core
    device_s: float | None = None  # CUDA: between events at both ends of the window, on the device's own clock
    drain_s: float | None = None  # CUDA: seconds the device still worked when the host had launched everything
    warmup: bool = False  # run before the device was warm: kept in the record, in no statistic
    invalid: str | None = None  # why it is no figure of this device, in words (throttled): likewise
    ended_s: float | None = None  # on a monotonic clock of no known origin: differences say how repetitions lie
    sm_mhz: float | None = None  # GPU: median clock while it ran
    temperature_c: float | None = None  # GPU: highest
    capped: float | None = None  # GPU: share of the time in which the power limit held the clocks down


USUAL = {each.name: each.default for each in fields(Sample)}  # of a sample, in the order of the constructor


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes. ``None`` where the phase did not run or the counter does not exist."""

    weights_bytes: int | None = None  # true sum of the storages of parameters and buffers
    unquantized_bytes: int | None = None  # part of it that the quantization left in a plain dtype
    cache_bytes: int | None = None  # storages behind the cache at the end of decode: depth context + steps
    retained_bytes: int | None = None  # beyond the cache's own tensors, kept alive by them after prefill
    baseline_bytes: int | None = None  # the process before the model: interpreter, framework, context
    load_peak_bytes: int | None = None
    prefill_peak_bytes: int | None = None
    decode_peak_bytes: int | None = None
    process_peak_bytes: int | None = None  # the figure that decides whether it fits
    reserved_bytes: int | None = None  # CUDA: the allocator's segments
    # The peak of a phase taken apart. Rows of before 2026-11 have none of it.
    growing_cache_bytes: int | None = None  # the parts of cache_bytes: layers that keep every token,
    window_cache_bytes: int | None = None  # that keep the last ones,
    recurrent_bytes: int | None = None  # and that keep a state
    prefill_cache_bytes: int | None = None  # storages behind the cache after prefill, retained ones included
    prefill_activation_bytes: int | None = None  # what the phase takes at its peak and gives back when it ends
    decode_activation_bytes: int | None = None
    graph_pool_bytes: int | None = None  # CUDA: kept by captured graphs
    framework_bytes: int | None = None  # interpreter, libraries, the CUDA context: what is no tensor
    left_mapped_bytes: int | None = None  # CPU: of checkpoint files that stay mapped though no weight is in them
    phases_process_bytes: int | None = None  # the process at the peak of both phases, without that of loading
    device_bytes: int | None = None  # CUDA: used by all programs


@dataclass(frozen=True, slots=True)
class PhaseEnergy:
    """What a device took while a phase was repeated, by two ways of telling; ``None`` where the reason says why."""

    repetitions: int
    seconds: float  # of all repetitions
    window_s: float  # for which the device was watched: what lies between repetitions as well
    tokens: int  # prompt tokens (prefill) or output tokens (decode) of all repetitions
    counter_j: float | None = None  # by the device's energy counter
    counter_reason: str | None = None
    power_j: float | None = None  # by its power, read 25 times a second
    power_reason: str | None = None
    invalid: str | None = None  # why it is no figure of this device, in words (throttled)


@dataclass(frozen=True, slots=True)
class Energy:
    """Energy of the phases that ran. Figures are derived in ``energy.py``."""

    source: str | None = None  # nvml-counter | nvml-power | rapl-counter: which of the two is the figure
    scope: str | None = None  # gpu-board | cpu-package: what it is of
    prefill: PhaseEnergy | None = None
    decode: PhaseEnergy | None = None
    idle_w: float | None = None  # with the model loaded and nothing running
    idle_reason: str | None = None

    @property
    def counts(self) -> bool:
        """Whether the device's counter is the figure; else its power, integrated."""
        return self.source is None or self.source.endswith("counter")

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Energy:
        """The inverse of ``asdict``, nulls or none."""
        parts = {phase: PhaseEnergy(**part) for phase in ("prefill", "decode") if (part := content.get(phase))}
        return cls(**(content | parts))


@dataclass(frozen=True, slots=True)
class Caution:
    """A reason not to take a number at face value. ``code`` is stable, ``text`` is for people."""

    code: str
    text: str
    help: str | None = None  # the option that helps


@dataclass(frozen=True, slots=True)
class DecodePath:
    """What became of ``--path static`` or ``graph``. ``None``: does not apply, or cannot be known."""

    ran: str  # the path that really ran
    reason: str | None = None  # why it is not the one that was asked for
    kernels: str | None = None  # what computes matrix–vector products, or why plain torch does
    graphs: int = 0
    nodes_per_token: int | None = None  # kernels of one captured step
    prepare_s: float = 0.0  # warm-up, capture or compilation: in no measurement
    cache_needed_bytes: int | None = None  # keys and values that a step at the end needs: once, whoever shares them
    cache_read_bytes: int | None = None  # and those it reads: buckets are padded
    machine: str | None = None  # it fell back because of the machine in this state (``decode_path.machine_state``)

    @property
    def on_plain_torch(self) -> bool:
        """Whether our own loops or kernels could not be had."""
        return self.kernels is not None and self.kernels.startswith("plain torch")


class Repetitions(Sequence[Sample]):
    """The samples of a stored row, by column as the store keeps them. They are made when one is looked at.

    A report reads a hundred thousand rows and shows sixty; making a million samples took it longer than all the rest.
    ``columns`` has a list for each field that some sample states, all of one length; instead of step times it has how
    many each sample took, and ``step_s`` gives them when it is called.
    """

    __slots__ = ("_made", "_step_s", "columns")

    def __init__(
        self, columns: Mapping[str, Sequence[Any]], step_s: Callable[[], Sequence[tuple[float, ...]]]
    ) -> None:
        self.columns, self._step_s = columns, step_s
        self._made: tuple[Sample, ...] | None = None

    def column(self, name: str) -> Sequence[Any]:
        """The field ``name`` of all samples."""
        if name == "step_s":
            return self._step_s()
        return self.columns.get(name) or [USUAL[name]] * len(self)

    @property
    def _samples(self) -> tuple[Sample, ...]:
        if self._made is None:
            self._made = tuple(map(Sample, *map(self.column, USUAL)))
        return self._made

    @overload
    def __getitem__(self, place: int) -> Sample: ...
    @overload
    def __getitem__(self, place: slice) -> tuple[Sample, ...]: ...
    def __getitem__(self, place: int | slice) -> Sample | tuple[Sample, ...]:
        return self._samples[place]

    def __len__(self) -> int:
        return len(self.columns["seconds"])

    def __iter__(self) -> Iterator[Sample]:
        return iter(self._samples)

    def __eq__(self, other: object) -> bool:
        return self._samples == (other._samples if isinstance(other, Repetitions) else other)

    def __hash__(self) -> int:
        return hash(self._samples)

    def __repr__(self) -> str:
        return repr(self._samples)

    def __reduce__(self) -> tuple[type[tuple[Sample, ...]], tuple[tuple[Sample, ...]]]:
        return tuple, (self._samples,)


class _Derived:
    """Room for what is worked out of a row and asked for again and again: its rows are frozen, so it stays true."""

    __slots__ = ("_again", "_known")
    _known: dict[Any, Any]
    _again: Callable[[], Measurement]


@dataclass(frozen=True, slots=True)
class Measurement(_Derived):
    """One row. ``samples`` are empty unless ``outcome`` is ok; ``reason`` is words for every other outcome."""

    case: Case
    environment: dict[str, Any]
    outcome: Outcome
    reason: str | None = None
    samples: Sequence[Sample] = ()  # a tuple, or ``Repetitions``
    memory: Memory = Memory()
    energy: Energy | None = None  # where it was asked for
    cautions: tuple[Caution, ...] = ()
    load_s: float | None = None
    threads: int | None = None  # CPU threads the backend computed with
    started_at: str | None = None  # UTC, ISO 8601
    asked: dict[str, Any] = field(default_factory=dict)  # reps or precision, and max_phase_s, that were asked for
    stopped: dict[str, str] = field(default_factory=dict)  # by phase, why no further repetition ran (run/repetitions)
    expected: dict[str, Any] = field(default_factory=dict)  # as predicted before it ran (cost/estimate.py)
    decode_path: DecodePath | None = None  # None: transformers as shipped
    checkpoint: dict[str, Any] = field(default_factory=dict)  # what the weights' files hold and the model takes

    def known(self, question: Any, answer: Callable[[], Any]) -> Any:
        """``answer()``, worked out once for each ``question``."""
        try:
            known = self._known
        except AttributeError:
            known = {}
            object.__setattr__(self, "_known", known)
        if question not in known:
            known[question] = answer()
        return known[question]

    @property
    def again(self) -> Callable[[], Measurement]:
        """What gives this row once more: its store where it has one, so that the row itself need not be kept."""
        try:
            return self._again
        except AttributeError:
            return lambda: self

    def kept_in(self, store: Callable[[], Measurement]) -> None:
        """``store`` reads this row again, as long as the store is open."""
        object.__setattr__(self, "_again", store)

    def of(self, phase: Phase) -> tuple[Sample, ...]:
        """The repetitions of one phase that count, in order: no warm-ups, none that is invalid."""
        counted: tuple[Sample, ...] = self.known(
            ("of", phase),
            lambda: tuple(sample for sample in self.record(phase) if not sample.warmup and sample.invalid is None),
        )
        return counted

    def record(self, phase: Phase) -> tuple[Sample, ...]:
        """All repetitions of one phase in order, with its warm-ups and those that do not count."""
        every: tuple[Sample, ...] = self.known(
            ("record", phase), lambda: tuple(sample for sample in self.samples if sample.phase == phase)
        )
        return every

    def timed(self, phase: Phase, warmups: bool = False) -> list[tuple[float, int]]:
        """Seconds and tokens of each repetition that counts, in order; with ``warmups``, of each that is valid."""
        found: list[tuple[float, int]] = self.known(("timed", phase, warmups), lambda: self._timed(phase, warmups))
        return found

    def seconds(self, phase: Phase, warmups: bool = False) -> list[float]:
        """The same without tokens."""
        return [seconds for seconds, _ in self.timed(phase, warmups)]

    def column(self, name: str, phase: Phase) -> list[Any]:
        """The field ``name`` of each repetition that counts, in order."""
        return self._column(name, phase, warmups=False)

    @property
    def stated(self) -> Set[str]:
        """The fields that some sample states; most leave most of theirs out."""
        if isinstance(self.samples, Repetitions):
            return self.samples.columns.keys()
        return {name for name in USUAL if self.states(name)}

    def states(self, name: str) -> bool:
        """Whether any sample states the field ``name``."""
        if isinstance(self.samples, Repetitions):
            return name in self.samples.columns
        return any(getattr(sample, name) != USUAL[name] for sample in self.samples)

    @property
    def counted(self) -> tuple[Sequence[Phase], Sequence[float], Sequence[int]] | None:
        """Phase, seconds and tokens of all repetitions that count; None where each has to be looked at."""
        if not isinstance(self.samples, Repetitions):
            return None
        columns = self.samples.columns
        if "invalid" in columns:
            return None
        found = columns["phase"], columns["seconds"], columns["tokens"]
        if "warmup" not in columns:
            return found
        counts = list(map(operator.not_, columns["warmup"]))
        phases, seconds, tokens = (list(compress(column, counts)) for column in found)
        return phases, seconds, tokens

    def _timed(self, phase: Phase, warmups: bool) -> list[tuple[float, int]]:
        every = None if warmups and self.states("warmup") else self.counted
        if every is not None:
            return [(seconds, tokens) for which, seconds, tokens in zip(*every, strict=True) if which == phase]
        columns = {name: self._column(name, phase, warmups) for name in ("seconds", "tokens")}
        return [*zip(columns["seconds"], columns["tokens"], strict=True)]

    def _column(self, name: str, phase: Phase, warmups: bool) -> list[Any]:
        places = self.known(("places", phase, warmups), lambda: self._places(phase, warmups))
        if not self.states(name):
            return [USUAL[name]] * len(places)
        values = self._values(name)
        return [values[place] for place in places]

    def _places(self, phase: Phase, warmups: bool) -> list[int]:
        """Which samples count."""
        places = [place for place, which in enumerate(self._values("phase")) if which == phase]
        for name in ("invalid",) if warmups else ("invalid", "warmup"):
            if self.states(name):
                values = self._values(name)
                places = [place for place in places if not values[place] and values[place] != ""]
        return places

    def _values(self, name: str) -> Sequence[Any]:
        """The field ``name`` of all samples."""
        if isinstance(self.samples, Repetitions):
            return self.samples.column(name)
        return [getattr(sample, name) for sample in self.samples]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON content: exactly what the store keeps."""
        return asdict(replace(self, samples=tuple(self.samples)))

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Measurement:
        """The inverse of ``to_json``."""
        row = dict(row)
        row["case"] = Case.from_row(row["case"])
        row["samples"] = tuple(Sample(**s | {"step_s": tuple(s["step_s"])}) for s in row["samples"])
        row["memory"] = Memory(**row["memory"])
        row["cautions"] = tuple(Caution(**caution) for caution in row["cautions"])
        row["decode_path"] = DecodePath(**path) if (path := row.get("decode_path")) else None
        row["energy"] = Energy.from_json(row["energy"]) if row.get("energy") else None
        return cls(**row)


def peak_phase(memory: Memory) -> Phase | None:
    """The phase that takes more at its peak; None where neither is known."""
    prefill, decode = memory.prefill_peak_bytes, memory.decode_peak_bytes
    if prefill is None and decode is None:
        return None
    return "prefill" if (prefill or 0) >= (decode or 0) else "decode"


def parts(memory: Memory) -> dict[str, int | None]:
    """Bytes of each part at the peak of ``peak_phase``; None where one was not measured. Empty without a peak."""
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
    """What the process held at the peak beyond its parts, negative where they are counted too high; None: unknown."""
    known = [size for size in parts(memory).values() if size is not None]
    if memory.phases_process_bytes is None or not known or len(known) < len(parts(memory)):
        return None
    return memory.phases_process_bytes - sum(known)


def step(row: Measurement) -> str:
    """``static``, ``eager``, ``static on plain torch``. A row that says nothing ran what was asked for."""
    found = row.decode_path
    return row.case.path if found is None else found.ran + PLAIN * found.on_plain_torch


def in_words(row: Measurement) -> str:
    """The step, with the reason why it is not the one that was asked for, where there is one."""
    found = row.decode_path
    reason = found and (found.reason or (found.kernels if found.on_plain_torch else None))
    return f"{step(row)} ({printable(reason, 200)})" if reason else step(row)


def difference(a: Measurement, b: Measurement, names: tuple[str, str]) -> str | None:
    """That rows with these names ran different steps, in words; ``None`` if they ran the same one."""
    if step(a) == step(b):
        return None
    return f"different decode steps ran: {names[0]} {in_words(a)}, {names[1]} {in_words(b)}"
