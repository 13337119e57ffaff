"""One run of a program of llama.cpp: its lines as they come, its peak memory, and the reason if it fails.

The program belongs to the worker's process group, which the supervisor ends as a whole, and the kernel kills it when
the worker dies (``PR_SET_PDEATHSIG``). Its log goes nowhere but into the reason of a failure.
"""

from __future__ import annotations

import ctypes
import os
import re
import resource
import selectors
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from io import FileIO
from typing import Any, NamedTuple

from profiler.backends.base import OutOfMemory
from profiler.devices import base, cgroup, nvml
from profiler.devices.base import DeviceInfo, Peak, Pressure
from profiler.devices.cpu import HostClock, process_bytes
from profiler.errors import ProfileError
from profiler.folders import describe
from profiler.units import printable

PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
CPUCLOCK_SCHED = 2  # <linux/posix-timers.h>: with a process id, the clock of its CPU time
POLL_S = 0.2  # between two looks at the memory of a program that prints nothing
CHUNK = 1 << 16
KEPT_LINES = 400  # of the log; the verbose log of loading a model has about 300 after its first error
LONGEST_LINE = 1 << 20  # bytes; a row of llama-bench has a thousand
MAX_REASON = 300  # characters
BAD_INSTRUCTION = (  # a virtual machine may show AMX and refuse it, so that a build made on it fails as well
    "this machine cannot run an instruction that the build of llama.cpp uses; rebuild it with -DGGML_NATIVE=OFF"
)

OUT_OF_MEMORY = re.compile(
    r"out of memory|OutOfDeviceMemory|bad_alloc|insufficient memory|cannot allocate memory"
    r"|(failed|unable) to allocate|allocating .* failed|alloc_buffer.*failed",
    re.IGNORECASE,
)
CAUSES = (  # the first line that matches the first of these that any line matches is the cause
    re.compile(r"GGML_ASSERT|GGML_ABORT|CUDA error|what\(\):|unknown model architecture"),
    re.compile(r"\berror\b|\bE \b|invalid|not supported|unsupported|requires", re.IGNORECASE),
    re.compile(r"failed|unable|cannot|can't|abort", re.IGNORECASE),
)
HARMLESS = re.compile(r"^(llama_model_loader: - kv|usage:|\s*-)|is not marked as EOG|EOG|control-looking")
STAMP = re.compile(r"^\d+(\.\d{2,3}){2,3} [A-Z] ")  # what the log of the newer programs begins with


class OutputLine(NamedTuple):
    """A line that the program printed."""

    at_s: float  # on the clock of ``time.perf_counter``
    cpu_s: float | None  # CPU seconds of the program's threads until then; None if it has ended
    is_result: bool  # on stdout; the log is on stderr
    text: str


class ProgramFailed(ProfileError):
    """A program of llama.cpp ended without a result. The message says why."""


class Program:
    """A started program. Read its ``lines``, then call ``end``; ``stop`` ends it at any time.

    ``look(pid)`` is called a few times a second while the program lives. Raises ProfileError if it cannot start.
    """

    def __init__(
        self, command: Sequence[str], environ: Mapping[str, str], look: Callable[[int], None] = lambda pid: None
    ) -> None:
        self.name = title(command)
        self.peak_bytes: int | None = None  # VmHWM: the most resident memory so far
        self.started_s = self._looked_s = time.perf_counter()
        self._look = look
        self._log: deque[str] = deque(maxlen=KEPT_LINES)
        self._kills = cgroup.oom_kills()
        self._own_peak = process_bytes("VmHWM")  # what ru_maxrss of a child begins with
        self._status: int | None = None  # of its end, as ``subprocess`` has it; None while it lives
        parent = os.getpid()
        try:
            self._process = subprocess.Popen(
                command,
                bufsize=0,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=dict(environ),
                preexec_fn=lambda: die_with(parent),
            )
        except OSError as error:
            raise ProgramFailed(f"{printable(command[0])} cannot be started: {describe(error)}") from None

    def lines(self) -> Iterator[OutputLine]:
        """Every line until the program closes its output."""
        self._measure()  # of a program that ends before it is heard, this is all that is known
        with selectors.DefaultSelector() as selector:
            rests: dict[FileIO, bytes] = {}
            for pipe in (self._process.stdout, self._process.stderr):
                assert isinstance(pipe, FileIO)  # requested above
                selector.register(pipe, selectors.EVENT_READ)
                rests[pipe] = b""
            while rests:
                ready = [key.fileobj for key, _ in selector.select(POLL_S)]
                now, cpu = time.perf_counter(), self._cpu_s()
                self._measure()
                for file in ready:
                    assert isinstance(file, FileIO)
                    chunk = os.read(file.fileno(), CHUNK)
                    *whole, rest = (rests[file] + chunk).split(b"\n")
                    if not chunk:
                        whole, rest = [rest] if rest else [], b""
                        selector.unregister(file)
                        del rests[file]
                    elif len(rest) > LONGEST_LINE:
                        rest = b""
                    if chunk:
                        rests[file] = rest
                    yield from self._taken(now, cpu, file is self._process.stdout, whole)

    def _taken(
        self, at_s: float, cpu_s: float | None, is_result: bool, lines: Sequence[bytes]
    ) -> Iterator[OutputLine]:
        for raw in lines:
            text = raw.decode("utf-8", "replace")
            if not is_result or not text.startswith("{"):
                self._log.append(text)
            yield OutputLine(at_s, cpu_s, is_result, text)

    def _cpu_s(self) -> float | None:
        """CPU seconds of all its threads so far, by the kernel's clock of the process."""
        try:
            return time.clock_gettime(~self._process.pid << 3 | CPUCLOCK_SCHED)
        except OSError:
            return None

    def _measure(self) -> None:
        """Its peak so far. A process that is about to end has no memory any more, so ``stop`` asks the kernel too."""
        with suppress(OSError):
            self._raise_peak(process_bytes("VmHWM", self._process.pid))
        if time.perf_counter() - self._looked_s >= POLL_S:
            self._look(self._process.pid)
            self._looked_s = time.perf_counter()

    def _raise_peak(self, nbytes: int) -> None:
        self.peak_bytes = max(self.peak_bytes or 0, nbytes)

    def end(self) -> None:
        """Wait for its end. Raises OutOfMemory or ProgramFailed unless it ended well."""
        if self.failed:
            raise self.failure()

    def stop(self) -> None:
        """Kill it, if it still runs."""
        if self._status is None:
            os.kill(self._process.pid, signal.SIGKILL)  # ``Popen.kill`` would wait for it without its peak
        self._wait()

    @property
    def failed(self) -> bool:
        """Whether it ended with an error. Waits for its end."""
        self._wait()
        return self._status != 0

    def failure(self) -> Exception:
        """Why it has no result: OutOfMemory or ProgramFailed. Waits for its end."""
        self._wait()
        log = [STAMP.sub("", line).strip() for line in self._log]
        refused = next((line for line in log if OUT_OF_MEMORY.search(line)), None)
        if self._status == -signal.SIGKILL and self._kills is not None and (cgroup.oom_kills() or 0) > self._kills:
            return OutOfMemory(f"the kernel's OOM killer ended {self.name}: the machine or group was full")
        if refused is not None and self._status:
            return OutOfMemory(printable(f"{self.name}: {refused}", MAX_REASON))
        cause = BAD_INSTRUCTION if self._status == -signal.SIGILL else cause_of(log)
        text = f"{self.name} {_ended(self._status or 0)}"
        return ProgramFailed(printable(f"{text}: {cause}" if cause else f"{text}, and printed no reason", MAX_REASON))

    def _wait(self) -> None:
        if self._status is not None:
            return
        _, status, usage = os.wait4(self._process.pid, 0)
        self._status = self._process.returncode = os.waitstatus_to_exitcode(status)
        highest = usage.ru_maxrss * 1024
        if highest > self._own_peak:  # a fork starts with the peak of its parent
            self._raise_peak(highest)
        for file in (self._process.stdout, self._process.stderr):
            if file is not None:
                file.close()


class ProgramMeter(HostClock):
    """The clock of this process, and the peak memory of the programs that it starts.

    On a GPU the memory is what NVML reports for the program's process; where it does not tell processes apart, the
    growth of the whole card's memory.
    """

    def __init__(self, device: DeviceInfo | None = None) -> None:
        self._uuid = None if device is None else device.uuid
        self._highest: int | None = None
        self._before: int | None = None  # in use on the card, by everybody

    def look(self, pid: int) -> None:
        """Read the device memory of a program that runs."""
        if self._uuid is None:
            return
        held = self._asked(nvml.process_bytes, self._uuid, pid)
        if held is None and self._before is not None:
            used = self._asked(nvml.used_bytes, self._uuid)
            held = None if used is None else max(0, used - self._before)
        self._highest = max(filter(None, (self._highest, held)), default=None)

    def add(self, peak_bytes: int | None) -> None:
        """A program has ended with this peak of host memory."""
        if self._uuid is None:
            self._highest = max(filter(None, (self._highest, peak_bytes)), default=None)

    def _asked(self, question: Callable[..., int | None], *about: Any) -> int | None:
        try:
            return nvml.within(nvml.PATIENCE_S, question, *about)
        except nvml.Missing:
            return None

    def reset_peak(self) -> None:
        self._highest = None
        self._before = None if self._uuid is None else self._asked(nvml.used_bytes, self._uuid)

    def peak(self) -> Peak:
        return Peak(None, None, self._highest)

    def pressure(self) -> Pressure:
        """Programs that have ended count as this process."""
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return replace(base.read(), own_s=time.process_time() + used.ru_utime + used.ru_stime)


def cause_of(log: Sequence[str]) -> str | None:
    """The line of a log that says why the program failed: the most telling one, else the last."""
    told = [line for line in log if line and not HARMLESS.search(line)]
    for pattern in CAUSES:
        for line in told:
            if pattern.search(line):
                return line
    return told[-1] if told else None


def title(command: Sequence[str]) -> str:
    """The name of a program in messages: that of the script, if it is one of Python."""
    script = next((word for word in command[1:3] if word.endswith(".py")), command[0])
    return os.path.basename(script)


def answer(command: Sequence[str], environ: Mapping[str, str], seconds: float) -> str:
    """Everything that a short call such as ``--help`` prints. Raises ProfileError if it does not work or end."""
    name = printable(title(command))
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=dict(environ),
            timeout=seconds,
            check=False,
        )
    except OSError as error:
        raise ProgramFailed(f"{printable(command[0])} cannot be started: {describe(error)}") from None
    except subprocess.TimeoutExpired:
        raise ProgramFailed(f"{name} {command[-1]} did not end within {seconds:g} s") from None
    return done.stdout.decode("utf-8", "replace")


def _ended(status: int) -> str:
    if status < 0:
        with suppress(ValueError):
            return f"was killed by {signal.Signals(-status).name}"
        return f"was killed by signal {-status}"
    return f"ended with code {status}" if status else "ended without a result"


def die_with(parent: int) -> None:
    """In the new process: die with the worker, and leave no core file behind."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)
