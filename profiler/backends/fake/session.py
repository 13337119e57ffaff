"""The fake model and its trials: they count tokens, and take virtual time and virtual memory."""

from __future__ import annotations

import random
import time

from profiler.backends.base import Beat, CacheState, Loaded, OutOfMemory
from profiler.backends.fake.fault import PHASES
from profiler.backends.fake.meter import BASELINE_BYTES, FakeMeter, FakeWatcher
from profiler.backends.fake.script import Script
from profiler.case import Case
from profiler.devices.base import Meter, Watcher
from profiler.results.measurement import Caution, DecodePath


class FakeTrial:
    """One case: counts tokens, takes virtual time and virtual memory, and fails where the script says so."""

    def __init__(self, case: Case, script: Script, meter: FakeMeter, watcher: FakeWatcher, beat: Beat) -> None:
        self.case, self.script, self.meter, self.watcher, self.beat = case, script, meter, watcher, beat
        self.tokens: list[list[int]] = []
        self.length = 0
        self.saved: int | None = None
        self.random = random.Random(case.key)
        self.calls = dict.fromkeys(PHASES, 0)  # of this case so far

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
        """Give all memory of this case back."""
        self.release()
        self._become(0)

    def strike(self, when: str) -> None:
        """Let the faults of this phase happen."""
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
    """The loaded model: virtual weights, and one trial at a time."""

    def __init__(self, script: Script, beat: Beat) -> None:
        self.script, self.beat = script, beat
        self.machine = FakeMeter(script.capacity_bytes)
        self.meter: Meter = self.machine
        self.lookout = FakeWatcher(self.machine, script.idle_w)
        self.watcher: Watcher = self.lookout
        self.loaded = Loaded(script.weights_bytes, script.unquantized_bytes, threads=None, cautions=())
        self.trial: FakeTrial | None = None

    def begin(self, case: Case) -> FakeTrial:
        if self.trial is not None:
            self.trial.drop()
        self.trial = FakeTrial(case, self.script, self.machine, self.lookout, self.beat)
        return self.trial

    def close(self) -> None:
        self.machine.held = BASELINE_BYTES
