"""A backend without a model: a simulated clock with stated costs, stated sizes, and faults on demand.

It makes every number of a row exact and every failure repeatable, without torch and without sleeping. Its behavior
comes from the model's config, so a ``config.json`` in a folder is a complete script:

    {"fake": {"prefill_s_per_token": 1e-4, "step_s": 0.01, "weights_bytes": 1073741824,
              "faults": [{"kind": "signal", "value": 11, "when": "decode", "context": 2048}]}}

Generations count tokens, and take simulated time and memory. Most faults are real: signals, allocations, hangs.
"""

from __future__ import annotations

import math
import mmap
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from profiler.backends.base import Backend, Beat, CacheState, ModelInfo, OutOfMemory
from profiler.case import Case, Source
from profiler.decode_path import PATHS
from profiler.devices.base import Consumed, FigureOrReason, Lap, Meter, Overview, Peak, Pressure, Reading, Watcher
from profiler.errors import ProfileError
from profiler.foreign import json_value
from profiler.results.measurement import Caution, DecodePath
from profiler.units import MIB, bytes_text, printable

BASELINE_BYTES = 64 * MIB  # of the simulated process before its model is loaded
STAGES = ("load", "prefill", "fill", "decode")
PIECE = 16 * MIB  # a real allocation grows by this much, so that it meets a limit and does not jump over it
OVERRIDES = "PROFILER_FAKE"  # variable with fields of the script as JSON, so that two processes may differ
NO_POWER: FigureOrReason = (None, "the script states no power")


class FakeMeter:
    """The simulated device, whose clock and memory change only when told to."""

    def __init__(self, capacity_bytes: int | None = None) -> None:
        self.seconds = 0.0
        self.held = self.highest = BASELINE_BYTES
        self.capacity = capacity_bytes
        self.waited_s: float | None = None
        self.disturbances = Pressure(at_s=0.0)
        self._powered: list[tuple[float, float, float]] = []  # start, end and watts of each phase

    def work(self, seconds: float, watts: float | None) -> None:
        """Let time pass while the device draws so much power; ``None`` if the script states none."""
        if watts is not None:
            self._powered.append((self.seconds, self.seconds + seconds, watts))
        self.seconds += seconds

    def joules(self, span: tuple[float, float]) -> float:
        """Energy between two moments."""
        return sum(
            max(0.0, min(until, span[1]) - max(start, span[0])) * watts for start, until, watts in self._powered
        )

    def hold(self, size: int) -> None:
        """Allocate bytes, or free them if ``size`` is negative. Raises OutOfMemory above the capacity."""
        if self.capacity is not None and self.held + size > self.capacity:
            raise OutOfMemory(
                f"no room for {bytes_text(size)}: {bytes_text(self.held)} of {self.capacity:,} B are in use"
            )
        self.held += size
        self.highest = max(self.highest, self.held)

    def now(self) -> float:
        return self.seconds

    def window(self) -> FakeWindow:
        return FakeWindow(self)

    def timestamp(self) -> object:
        return self.seconds

    def elapsed(self, timestamps: Sequence[object]) -> list[float]:
        return [after - before for before, after in pairwise(timestamps)]  # type: ignore[operator]

    def reset_peak(self) -> None:
        self.highest = self.held

    def peak(self) -> Peak:
        return Peak(None, None, process_bytes=self.highest, framework_bytes=BASELINE_BYTES)

    def pressure(self) -> Pressure:
        return replace(self.disturbances, at_s=self.seconds)


class FakeWindow:
    """A window of simulated time, in which the process computes all the time."""

    def __init__(self, meter: FakeMeter) -> None:
        self._meter = meter
        self._start, self._waited = meter.seconds, meter.waited_s

    def close(self) -> Lap:
        seconds, waited = self._meter.seconds - self._start, self._meter.waited_s
        wait_s = None if waited is None or self._waited is None else waited - self._waited
        return Lap(seconds, cpu_s=seconds, wait_s=wait_s)


class FakeWatcher:
    """Reports what the script states. A fault sets ``complaint``, the reason why the current repetition is invalid.

    Energy is watts times simulated seconds; it is unknown if the script states no watts.
    """

    def __init__(self, meter: FakeMeter, idle_w: float | None) -> None:
        self.complaint: str | None = None
        self._meter, self._idle_w = meter, idle_w

    def begin(self, energy: bool) -> None:
        self.complaint = None

    def start(self) -> None:
        self.complaint = None

    def stop(self, seconds: float) -> Reading:
        return Reading(invalid=self.complaint, ended_s=self._meter.seconds)

    def consumed(self, spans: Sequence[tuple[float, float]]) -> Consumed | None:
        counter: FigureOrReason = (
            (sum(map(self._meter.joules, spans)), None) if self._idle_w is not None else NO_POWER
        )
        return Consumed("fake-counter", "fake", counter, (None, "a simulated device reports no power"))

    def idle_w(self) -> FigureOrReason:
        return NO_POWER if self._idle_w is None else (self._idle_w, None)

    def overview(self) -> Overview:
        return Overview()

    def close(self) -> None:
        """There is nothing to release."""


BACKEND = Backend(
    predicted=False,
    simulated="a simulated device",
    meter=lambda device: FakeMeter(),
    paths=PATHS,
)


def open_session(case: Case, source: Source, beat: Beat) -> FakeSession:
    """Load nothing, in ``load_s`` simulated seconds. Raises ProfileError for an invalid script."""
    session = FakeSession(Script.read(source.config), beat)
    beat("load")
    session.begin(case).strike("load")
    session.machine.hold(session.script.weights_bytes + session.script.load_extra_bytes)
    session.machine.hold(-session.script.load_extra_bytes)
    session.machine.seconds += session.script.load_s
    return session


class FakeGeneration:
    """Counts tokens, takes simulated time and memory, and fails where the script says so."""

    def __init__(self, case: Case, script: Script, meter: FakeMeter, watcher: FakeWatcher, beat: Beat) -> None:
        self.case, self.script, self.meter, self.watcher, self.beat = case, script, meter, watcher, beat
        self.tokens: list[list[int]] = []
        self.length = 0
        self.saved: int | None = None
        self.random = random.Random(case.key)
        self.calls = dict.fromkeys(STAGES, 0)  # of this case so far

    def prefill(self) -> int:
        self._become(0)
        self._admit()
        chunk = self.case.batch * min(self.case.ubatch, self.case.context) * self.script.activation_bytes_per_token
        self.meter.hold(chunk)
        for done in range(0, self.case.context, self.case.ubatch):
            self._become(min(done + self.case.ubatch, self.case.context))
            self.beat(f"prefill {self.length}/{self.case.context}")
        self.strike("prefill")
        self.meter.hold(-chunk)
        processed = self.case.batch * self.length
        self._take(processed * self.script.prefill_s_per_token, self.script.prefill_w)
        return processed

    def fill(self) -> None:
        self._admit()
        self._become(self.case.context)
        self.strike("fill")

    def save(self) -> None:
        self.release()
        self.meter.hold(self._bytes(self.length))
        self.saved = self.length

    def restore(self) -> None:
        if self.saved is None:
            raise RuntimeError("restore without a save")
        self._become(self.saved)

    def release(self) -> None:
        if self.saved is not None:
            self.meter.hold(-self._bytes(self.saved))
            self.saved = None

    def step(self) -> None:
        self.strike("decode")
        depth = self.case.batch * self.length
        self._take(self.script.step_s + depth * self.script.step_s_per_cached_token, self.script.decode_w)
        self._become(self.length + 1, keep_tokens=True)
        self.tokens.append([self.random.randrange(32_000) for _ in range(self.case.batch)])

    def skip(self, steps: int) -> None:
        self._become(self.length + steps)

    def cache(self) -> CacheState:
        held = self._bytes(self.length)
        growing, window = (held, 0) if self.script.window is None else (0, held)
        return CacheState(self.length, held, 0, growing, window, recurrent_bytes=0)

    def path(self) -> DecodePath | None:
        how = self.script.path
        return None if how is None else DecodePath(**how)

    def cautions(self) -> tuple[Caution, ...]:
        return ()

    def drop(self) -> None:
        """Free all memory of this case."""
        self.release()
        self._become(0)

    def strike(self, when: str) -> None:
        """Let the faults of this call of a phase happen."""
        self.calls[when] += 1
        for fault in self.script.faults:
            if fault.strikes(self.case, when, self.calls[when]):
                fault.happen(self)

    def _admit(self) -> None:
        limit, tokens = self.script.oom_above_tokens, self.case.batch * self.case.context
        if limit is not None and tokens > limit:
            raise OutOfMemory(f"{tokens} tokens, and there is room for {limit}")

    def _become(self, length: int, keep_tokens: bool = False) -> None:
        self.meter.hold(self._bytes(length) - self._bytes(self.length))
        self.length = length
        if not keep_tokens:
            self.tokens = []

    def _bytes(self, length: int) -> int:
        kept = length if self.script.window is None else min(length, self.script.window)
        return self.case.batch * kept * self.script.cache_bytes_per_token

    def _take(self, seconds: float, watts: float) -> None:
        factor = 1 + self.script.noise * self.random.gauss(0, 1) if self.script.noise else 1.0
        self.meter.work(seconds * max(factor, 0.1), None if self.script.idle_w is None else watts)
        if self.script.pause_s:
            time.sleep(self.script.pause_s)


class FakeSession:
    """The loaded model: simulated weights, and one generation at a time."""

    def __init__(self, script: Script, beat: Beat) -> None:
        self.script, self.beat = script, beat
        self.machine = FakeMeter(script.capacity_bytes)
        self.meter: Meter = self.machine
        self.lookout = FakeWatcher(self.machine, script.idle_w)
        self.watcher: Watcher = self.lookout
        self.info = ModelInfo(script.weights_bytes, script.unquantized_bytes, threads=None, cautions=())
        self.generation: FakeGeneration | None = None

    def begin(self, case: Case) -> FakeGeneration:
        if self.generation is not None:
            self.generation.drop()
        self.generation = FakeGeneration(case, self.script, self.machine, self.lookout, self.beat)
        return self.generation

    def close(self) -> None:
        self.machine.held = BASELINE_BYTES


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that goes wrong in one phase, of every case or of cases with this context and batch."""

    kind: str  # a key of FAULTS
    when: str = "prefill"  # one of STAGES
    value: Any = None
    context: int | None = None
    batch: int | None = None
    calls: list[int] | None = None  # the first and the last call that fails, from 1: of prefills, or of decode steps

    def strikes(self, case: Case, when: str, call: int) -> bool:
        """Whether this call of this phase of this case fails."""
        first, last = self.calls or (1, call)
        mine = self.context in (None, case.context) and self.batch in (None, case.batch)
        return self.when == when and mine and first <= call <= last

    def happen(self, generation: FakeGeneration) -> None:
        """Cause the fault."""
        FAULTS[self.kind](self.value, generation)


def _refuse(value: Any, generation: FakeGeneration) -> None:
    raise OutOfMemory(str(value or "refused by the script"))


def _raise(value: Any, generation: FakeGeneration) -> None:
    raise RuntimeError(str(value))


def _signal(value: Any, generation: FakeGeneration) -> None:
    os.kill(os.getpid(), value)


def _exit(value: Any, generation: FakeGeneration) -> None:
    print(f"giving up with {value}", file=sys.stderr, flush=True)
    os._exit(value)


def _hang(value: Any, generation: FakeGeneration) -> None:
    while True:
        signal.pause()


def _hang_deaf(value: Any, generation: FakeGeneration) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _hang(value, generation)


def _spin(value: Any, generation: FakeGeneration) -> None:
    while True:
        pass


def _allocate(value: Any, generation: FakeGeneration) -> None:
    """Really allocate ``value`` MiB of private memory, which RLIMIT_DATA limits."""
    held = [bytearray(b"\1") * PIECE for _ in range(value * MIB // PIECE)]
    del held


def _allocate_shared(value: Any, generation: FakeGeneration) -> None:
    """Really allocate ``value`` MiB that RLIMIT_DATA does not limit, and keep them until the worker is killed."""
    with mmap.mmap(-1, value * MIB) as area:
        for start in range(0, len(area), mmap.PAGESIZE):
            area[start] = 1
        _hang(value, generation)


def _print(value: Any, generation: FakeGeneration) -> None:
    """Print ``value`` MiB on stderr and a line on stdout, as a library might; neither may disturb the protocol."""
    for _ in range(value):
        os.write(2, b"x" * (MIB - 1) + b"\n")
    print('{"type": "row"}', flush=True)


def _fork_child(value: Any, generation: FakeGeneration) -> None:
    subprocess.Popen(["sleep", str(value)])


def _compile(value: Any, generation: FakeGeneration) -> None:
    """Wait for a program that computes for ``value`` real seconds, such as a compiler."""
    busy = f"import time; end = time.monotonic() + {float(value)}\nwhile time.monotonic() < end: pass"
    subprocess.run([sys.executable, "-c", busy], check=True)


def _miscount(value: Any, generation: FakeGeneration) -> None:
    generation.length += value


def _nan(value: Any, generation: FakeGeneration) -> None:
    generation.meter.elapsed = lambda timestamps: [math.nan] * (len(timestamps) - 1)  # type: ignore[method-assign]


def _throttle(value: Any, generation: FakeGeneration) -> None:
    """The device slows down by ``value`` simulated seconds, and its watcher says so."""
    generation.meter.seconds += value or 0.0
    generation.watcher.complaint = "thermal slowdown"


def _wait(value: Any, generation: FakeGeneration) -> None:
    """Another program uses the core for ``value`` simulated seconds."""
    generation.meter.seconds += value
    generation.meter.waited_s = (generation.meter.waited_s or 0.0) + value


FAULTS: dict[str, Callable[[Any, FakeGeneration], None]] = {
    "oom": _refuse,
    "error": _raise,
    "signal": _signal,
    "exit": _exit,
    "hang": _hang,
    "hang-deaf": _hang_deaf,
    "spin": _spin,
    "allocate": _allocate,
    "allocate-shared": _allocate_shared,
    "print": _print,
    "child": _fork_child,
    "compile": _compile,
    "miscount": _miscount,
    "nan": _nan,
    "throttle": _throttle,
    "wait": _wait,
}


@dataclass(frozen=True, slots=True)
class Script:
    """Costs in simulated seconds and sizes in simulated bytes. The defaults describe a small model and machine."""

    load_s: float = 1.0
    prefill_s_per_token: float = 1e-4  # of every sequence
    step_s: float = 0.01  # one decode step of the whole batch
    step_s_per_cached_token: float = 0.0  # in addition, for each cached token of every sequence
    noise: float = 0.0  # relative standard deviation of a phase, seeded by the case
    idle_w: float | None = None  # simulated watts; None: energy is unknown
    prefill_w: float = 200.0  # while it computes
    decode_w: float = 100.0
    path: Mapping[str, Any] | None = None  # how decode ran: fields of ``DecodePath``
    pause_s: float = 0.0  # real seconds slept in each prefill and step, to have something to interrupt
    weights_bytes: int = 1024 * MIB
    load_extra_bytes: int = 0  # in addition to the weights, while they are loaded
    unquantized_bytes: int = 0
    cache_bytes_per_token: int = 16 * 1024
    window: int | None = None  # tokens after which the cache stops growing
    activation_bytes_per_token: int = 64 * 1024  # of every sequence, while a prefill chunk runs
    capacity_bytes: int | None = None  # the most that the process can allocate
    oom_above_tokens: int | None = None  # batch × context
    faults: tuple[Fault, ...] = ()

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> Script:
        """The script in a config, with defaults for absent fields. Raises ProfileError for unknown ones."""
        try:
            fields = dict(config.get("fake") or {}) | json_value(os.environ.get(OVERRIDES) or "{}")
            faults = tuple(Fault(**fault) for fault in fields.pop("faults", ()))
            script = cls(**fields, faults=faults)
        except (TypeError, ValueError) as error:
            raise ProfileError(f"the config's 'fake' section is not a script: {printable(error)}") from None
        for fault in faults:
            if fault.kind not in FAULTS:
                raise ProfileError(f"unknown fault {printable(fault.kind)}", f"Known: {', '.join(FAULTS)}.")
            if fault.when not in STAGES:
                raise ProfileError(f"unknown phase {printable(fault.when)}", f"Known: {', '.join(STAGES)}.")
        return script
