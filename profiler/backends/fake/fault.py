"""What can go wrong with a worker, each on demand. Most of it is real: signals, allocations, hangs."""

from __future__ import annotations

import math
import mmap
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from profiler.backends.base import OutOfMemory
from profiler.case import Case

if TYPE_CHECKING:
    from profiler.backends.fake.session import FakeTrial

MIB = 1024**2
PHASES = ("load", "prefill", "fill", "decode")
PIECE = 16 * MIB  # a real allocation grows by this, so that a limit is met and not jumped over


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that goes wrong in one phase, of every case or of those with this context and batch."""

    kind: str  # a key of FAULTS
    when: str = "prefill"  # one of PHASES
    value: Any = None
    context: int | None = None
    batch: int | None = None
    calls: list[int] | None = None  # the first and the last call it strikes, from 1: a prefill, or a decode step

    def strikes(self, case: Case, when: str, call: int) -> bool:
        """Whether this fault is meant for this call of this phase of this case."""
        first, last = self.calls or (1, call)
        mine = self.context in (None, case.context) and self.batch in (None, case.batch)
        return self.when == when and mine and first <= call <= last

    def happen(self, trial: FakeTrial) -> None:
        """Do the damage."""
        FAULTS[self.kind](self.value, trial)


def _refuse(value: Any, trial: FakeTrial) -> None:
    raise OutOfMemory(str(value or "refused by the script"))


def _raise(value: Any, trial: FakeTrial) -> None:
    raise RuntimeError(str(value))


def _signal(value: Any, trial: FakeTrial) -> None:
    os.kill(os.getpid(), value)


def _exit(value: Any, trial: FakeTrial) -> None:
    print(f"giving up with {value}", file=sys.stderr, flush=True)
    os._exit(value)


def _hang(value: Any, trial: FakeTrial) -> None:
    while True:
        signal.pause()


def _hang_deaf(value: Any, trial: FakeTrial) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _hang(value, trial)


def _spin(value: Any, trial: FakeTrial) -> None:
    while True:
        pass


def _allocate(value: Any, trial: FakeTrial) -> None:
    """Really take ``value`` MiB of private memory, which RLIMIT_DATA sees."""
    held = [bytearray(b"\1") * PIECE for _ in range(value * MIB // PIECE)]
    del held


def _allocate_shared(value: Any, trial: FakeTrial) -> None:
    """Really take ``value`` MiB that RLIMIT_DATA does not see, and keep them until somebody notices."""
    with mmap.mmap(-1, value * MIB) as area:
        for start in range(0, len(area), mmap.PAGESIZE):
            area[start] = 1
        _hang(value, trial)


def _print(value: Any, trial: FakeTrial) -> None:
    """``value`` MiB on stderr, then one line on stdout, where a library's chatter must do no harm."""
    for _ in range(value):
        os.write(2, b"x" * (MIB - 1) + b"\n")
    print('{"type": "row"}', flush=True)


def _fork_child(value: Any, trial: FakeTrial) -> None:
    subprocess.Popen(["sleep", str(value)])


def _compile(value: Any, trial: FakeTrial) -> None:
    """Wait for a program that computes for ``value`` real seconds, as for a compiler."""
    busy = f"import time; end = time.monotonic() + {float(value)}\nwhile time.monotonic() < end: pass"
    subprocess.run([sys.executable, "-c", busy], check=True)


def _miscount(value: Any, trial: FakeTrial) -> None:
    trial.length += value


def _nan(value: Any, trial: FakeTrial) -> None:
    trial.meter.elapsed = lambda marks: [math.nan] * (len(marks) - 1)  # type: ignore[method-assign]


def _throttle(value: Any, trial: FakeTrial) -> None:
    """The device slows down by ``value`` virtual seconds, and says so."""
    trial.meter.seconds += value or 0.0
    trial.watcher.complaint = "thermal slowdown"


def _wait(value: Any, trial: FakeTrial) -> None:
    """Another program holds the core for ``value`` virtual seconds."""
    trial.meter.seconds += value
    trial.meter.waited_s = (trial.meter.waited_s or 0.0) + value


FAULTS: dict[str, Callable[[Any, FakeTrial], None]] = {
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
