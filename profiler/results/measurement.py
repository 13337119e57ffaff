"""A measurement: the raw numbers of one case. Statistics are derived from it (``stats.py``), never stored."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from profiler.case import Case

SCHEMA = 1

Outcome = Literal["ok", "oom", "skipped", "failed", "timeout"]
Phase = Literal["prefill", "decode"]


@dataclass(frozen=True, slots=True)
class Sample:
    """One timed repetition of one phase."""

    phase: Phase
    seconds: float  # wall, from before the first launch to after the last sync
    tokens: int  # batch × context (prefill) or batch × steps (decode), as counted from what was processed
    step_s: tuple[float, ...] = ()  # decode: seconds of each step
    cpu_s: float | None = None  # process CPU time over the same window
    wait_s: float | None = None  # seconds its threads were ready and got no core
    energy_j: float | None = None


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


@dataclass(frozen=True, slots=True)
class Caution:
    """A reason not to take a number at face value. ``code`` is stable, ``text`` is for people."""

    code: str
    text: str
    help: str | None = None  # the option that helps


@dataclass(frozen=True, slots=True)
class Measurement:
    """One row. ``samples`` are empty unless ``outcome`` is ok; ``reason`` is words for every other outcome."""

    case: Case
    environment: dict[str, Any]
    outcome: Outcome
    reason: str | None = None
    samples: tuple[Sample, ...] = ()
    memory: Memory = Memory()
    cautions: tuple[Caution, ...] = ()
    load_s: float | None = None
    threads: int | None = None  # CPU threads the backend computed with
    started_at: str | None = None  # UTC, ISO 8601
    asked: dict[str, Any] = field(default_factory=dict)  # reps and max_phase_s that were asked for

    def of(self, phase: Phase) -> tuple[Sample, ...]:
        """The repetitions of one phase, in order."""
        return tuple(sample for sample in self.samples if sample.phase == phase)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON content: exactly what the store keeps."""
        return asdict(self)

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Measurement:
        """The inverse of ``to_json``."""
        row = dict(row)
        row["case"] = Case.from_row(row["case"])
        row["samples"] = tuple(Sample(**s | {"step_s": tuple(s["step_s"])}) for s in row["samples"])
        row["memory"] = Memory(**row["memory"])
        row["cautions"] = tuple(Caution(**caution) for caution in row["cautions"])
        return cls(**row)
