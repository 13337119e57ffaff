"""A worker process as its parent sees it: environment, process group, message pipes, and cause of death.

The environment contains what libraries need to run, and no credentials. A worker parses untrusted files and downloads
nothing, so it needs neither a token nor the network.

**Cause of death**, when we did not end it, by priority: the kernel's OOM kill, an out-of-memory message of the
worker, the signal, the exit code. A SIGKILL counts as an OOM kill only if a kernel counter confirms it, since any
process may send one.
"""

from __future__ import annotations

import os
import re
import resource
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import Any

from profiler import folders
from profiler.devices.cgroup import oom_kills
from profiler.devices.cpu import process_bytes
from profiler.results.environment import SPEED, heap, is_secret
from profiler.results.measurement import Outcome
from profiler.run.protocol import LineBuffer, LoadCost, ProtocolError, encode, prepare_message
from profiler.units import printable

PLACES = re.compile(  # what libraries need in addition to the variables that change speed
    "CXX|HF_HOME|HF_HUB_CACHE|HOME|HOSTNAME|HUGGINGFACE_HUB_CACHE|LANG|LANGUAGE|LLAMA_CPP_DIR|LOGNAME|PATH|PROFILER_SYNTHETIC_LIMIT"
    "|SHELL|TERM|TMPDIR|TZ|USER|VIRTUAL_ENV|(LC|TRANSFORMERS|XDG)_.*"
    "|PYTHON(PATH|HOME|USERBASE|NOUSERSITE|PLATLIBDIR|PYCACHEPREFIX|DONTWRITEBYTECODE|SAFEPATH)"
)
TEXT = {"PYTHONIOENCODING": "utf-8:backslashreplace"}  # the encoding in which the parent reads a worker's output
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}

LAST_LINES = 5  # of the output, in which a message counts as the cause of death; earlier ones may be warnings
_OUT_OF_MEMORY = re.compile(r"out of memory|bad_alloc|MemoryError|cannot allocate memory|can't allocate memory", re.I)
_FATAL = re.compile(r"what\(\):|error|assert|fatal|abort", re.I)  # messages of C++ libraries that end the process

# -P: a file in the current folder must not shadow a library
WORKER = ("-P", "-m", "profiler.run.worker")
COMMAND = (sys.executable, *WORKER)
CHUNK = 1 << 16  # bytes per read: the capacity of a pipe
TAIL = 8 * 1024  # bytes of the worker's output that are kept
DEAD_S = 10.0  # after SIGKILL a process is gone at once, unless it hangs in the kernel
TICKS = os.sysconf("SC_CLK_TCK")


def worker_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables of ``environ`` that a worker gets, by an allow-list; hub libraries are set to stay offline.

    Compiled code is cached in folders that only this user can access; they are created here.
    """
    allowed = {
        name: value
        for name, value in environ.items()
        if (SPEED.fullmatch(name) or PLACES.fullmatch(name)) and not is_secret(name)
    }
    return heap(environ) | allowed | folders.compilers(environ) | TEXT | OFFLINE


def _cpu_limit() -> str:
    """The limit on CPU time, which the kernel enforces with SIGKILL, as the end of a sentence; empty without one."""
    seconds = resource.getrlimit(resource.RLIMIT_CPU)[1]
    return "" if seconds == resource.RLIM_INFINITY else f"; it may use {seconds} s of CPU time (ulimit -t)"


def cause(returncode: int, oom_killed: bool, output: list[str], phase: str) -> tuple[Outcome, str]:
    """Outcome and reason of a worker that we did not end.

    ``returncode`` is negative for a signal; ``output`` are the last lines it printed; ``phase`` is what it was doing.
    """
    if returncode == -signal.SIGKILL and oom_killed:
        return (
            "oom",
            f"the kernel's OOM killer ended the worker in {phase}: the memory of the machine or group was full",
        )
    if returncode == -signal.SIGKILL:
        by = "neither by this program nor by the OOM killer"
        return "failed", f"the worker was killed by SIGKILL in {phase}, {by}{_cpu_limit()}"
    no_memory = [line for line in output[-LAST_LINES:] if _OUT_OF_MEMORY.search(line)]
    if no_memory and returncode != 0:
        return "oom", f"out of memory in {phase}: {printable(no_memory[-1])}"
    if returncode < 0:
        fatal = [line for line in output[-LAST_LINES:] if _FATAL.search(line)]
        last = f": {printable(fatal[-1])}" if fatal else ""
        return "failed", f"the worker was killed by {_signal_name(-returncode)} in {phase}{last}"
    last = f": {printable(output[-1])}" if output else ""
    return "failed", f"the worker exited in {phase} with code {returncode} and without a result{last}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"  # real-time signals have no name


@dataclass(frozen=True, slots=True)
class Launch:
    """How to start a worker with another interpreter or other code."""

    python: tuple[str, ...]  # an interpreter, optionally behind wrappers that exec it (env, taskset)
    environ: Mapping[str, str] = field(default_factory=dict)  # additional environment variables


class WorkerProcess:
    """Starts a worker in a session of its own, so that Ctrl-C does not reach it. Raises OSError.

    ``wait`` is the only place where the parent blocks while a case runs, and it sleeps in the kernel. ``wake_fd``
    ends that wait early.
    """

    def __init__(self, environ: Mapping[str, str], wake_fd: int | None, launch: Launch | None = None) -> None:
        self.load: LoadCost | None = None  # known once the model is loaded
        self.broken: str | None = None  # why its messages cannot be read any more
        self.closed = False  # it has closed its end of the pipe
        self.exited = False
        self._oom_kills = oom_kills()
        self._lines = LineBuffer()
        self._heard: list[dict[str, Any]] = []
        self._printed = bytearray()
        self._unsent = b""
        with ExitStack() as opened:
            self._start(environ, launch, opened)
            self._pid_fd = os.pidfd_open(self.pid)
            opened.callback(os.close, self._pid_fd)
            self._selector = opened.enter_context(selectors.DefaultSelector())
            self._listen(self._pid_fd, self._note_exit)
            self._listen(self._messages, self._read_message)
            self._listen(self._output, self._read_output)
            if wake_fd is not None:
                self.wake_by(wake_fd)
            self._opened = opened.pop_all()

    def _start(self, environ: Mapping[str, str], launch: Launch | None, opened: ExitStack) -> None:
        command = COMMAND if launch is None else (*launch.python, *WORKER)
        with ExitStack() as theirs:
            tasks, self._tasks = _pipe(theirs, opened)
            self._messages, messages = _pipe(opened, theirs)
            self._process = subprocess.Popen(
                [*command, str(tasks.fileno()), str(messages.fileno()), str(os.getpid())],
                bufsize=0,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env={**environ, **(launch.environ if launch else folders.child_environ(environ))},
                pass_fds=(tasks.fileno(), messages.fileno()),
                start_new_session=True,
            )
        opened.callback(self._process.kill)  # has no effect on a process that has been waited for
        assert isinstance(self._process.stdout, FileIO)  # requested above
        self.pid, self._output = self._process.pid, opened.enter_context(self._process.stdout)
        for file in (self._tasks, self._messages, self._output):
            os.set_blocking(file.fileno(), False)

    def _listen(self, file: int | FileIO, handler: Callable[[], object], events: int = selectors.EVENT_READ) -> None:
        self._selector.register(file, events, handler)

    def wake_by(self, wake_fd: int) -> None:
        """End ``wait`` early when ``wake_fd`` becomes readable."""
        self._listen(wake_fd, lambda: os.read(wake_fd, CHUNK))

    def send(self, message: Mapping[str, Any]) -> None:
        """Hand over a message without waiting for the worker to read it. Raises ProtocolError if it is too long."""
        self._unsent += encode(message, finite=False)
        self._listen(self._tasks, self._write_tasks, selectors.EVENT_WRITE)

    def wait(self, seconds: float) -> list[dict[str, Any]]:
        """The messages that have arrived, or an empty list after ``seconds``.

        It returns early, even without a message, if the worker prints or exits, or if ``wake_fd`` is readable.
        """
        for key, _ in self._selector.select(seconds):
            key.data()
        heard, self._heard = self._heard, []
        return heard

    def _note_exit(self) -> None:
        """Record the exit. The last output, at most a chunk, was ready before it and is read in the same ``wait``."""
        self._selector.unregister(self._pid_fd)
        self.exited = True

    def _read_message(self) -> None:
        chunk = self._messages.read(CHUNK)  # None: nothing yet; empty: end of file
        if chunk is None:
            return
        try:
            self._heard += self._lines.feed(chunk)
        except ProtocolError as error:
            self.broken = f"the worker sent {error}"
        self.closed = not chunk
        if self.closed or self.broken:
            self._selector.unregister(self._messages)

    def _read_output(self) -> None:
        chunk = self._output.read(CHUNK)
        if chunk:
            self._printed = (self._printed + chunk)[-TAIL:]
        elif chunk is not None:
            self._selector.unregister(self._output)

    def _write_tasks(self) -> None:
        with suppress(BrokenPipeError):  # it died; that is noticed elsewhere
            self._unsent = self._unsent[self._tasks.write(self._unsent) or 0 :]
            if self._unsent:
                return
        self._forget(self._tasks)

    def _forget(self, file: FileIO) -> None:
        with suppress(KeyError):  # already unregistered
            self._selector.unregister(file)

    @property
    def usable(self) -> bool:
        """Whether it can take a task."""
        return not (self.exited or self.closed or self.broken)

    def output(self) -> list[str]:
        """The last lines it printed, on stdout or stderr."""
        return [line for line in self._printed.decode("utf-8", "replace").splitlines() if line.strip()]

    def oom_killed(self) -> bool:
        """Whether the kernel has killed any process for lack of memory since this worker started."""
        now = oom_kills()
        return now is not None and self._oom_kills is not None and now > self._oom_kills

    def resident_bytes(self) -> int | None:
        """The resident memory now of the worker, or of a program that it has started if that is larger; None when it
        is gone.
        """
        sizes = []
        with suppress(OSError):
            children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
            for pid in (self.pid, *map(int, children)):
                with suppress(OSError):
                    sizes.append(process_bytes("VmRSS", pid))
        return max(sizes, default=None)

    def cpu_s(self) -> float | None:
        """CPU seconds of all its threads so far; None when it is gone."""
        try:
            with open(f"/proc/{self.pid}/stat", "rb") as stat:
                fields = stat.read().rpartition(b")")[2].split()
        except OSError:
            return None
        return (int(fields[11]) + int(fields[12])) / TICKS

    def group_cpu_s(self) -> float:
        """CPU seconds of the worker and everything it started, including processes that have ended.

        It reads every process of the machine, so call it only after the worker has been silent for long.
        """
        ticks = 0
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):
                fields = stat.read_bytes().rpartition(b")")[2].split()
                ticks += sum(map(int, fields[11:15])) if int(fields[2]) == self.pid else 0
        return ticks / TICKS

    def wait_exit(self, seconds: float) -> bool:
        """Whether it has ended, after at most ``seconds``; its output is read meanwhile."""
        deadline = time.monotonic() + seconds
        while not self.exited and (left := deadline - time.monotonic()) > 0:
            self.wait(left)
        return self.exited

    def finish(self, grace_s: float) -> bool:
        """Close its pipe of tasks and let it end by itself; then ``stop`` it. Returns whether it is gone."""
        self._forget(self._tasks)
        self._tasks.close()
        self.wait_exit(grace_s)
        return self.stop(grace_s)

    def stop(self, grace_s: float) -> bool:
        """End its whole process group: SIGTERM, then SIGKILL after ``grace_s`` seconds. Returns whether it is gone.

        No other method works afterwards, except ``returncode``.
        """
        if not self.exited and grace_s > 0:
            self._signal(signal.SIGTERM)
            self.wait_exit(grace_s)
        # Also ends processes that the worker left behind: its pid stays reserved until it has been waited for.
        self._signal(signal.SIGKILL)
        if self.wait_exit(DEAD_S):
            self._process.wait()
        self._opened.close()
        return self.exited

    @property
    def returncode(self) -> int:
        """Exit code, or the negative signal number. Waits for the end."""
        return self._process.wait()

    def _signal(self, number: signal.Signals) -> None:
        if self._process.returncode is None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, number)


class SpareWorker:
    """A worker that imports a backend's libraries before there is a task for it. Its ``with`` block ends it unless
    somebody took it.
    """

    def __init__(self) -> None:
        self._worker: WorkerProcess | None = None

    def __enter__(self) -> SpareWorker:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def start(self, backend: str) -> None:
        """Start it. What goes wrong here goes wrong again with the first task, which reports it."""
        with suppress(OSError):
            self._worker = WorkerProcess(worker_environment(os.environ), None)
            self._worker.send(prepare_message(backend))
            self._worker.wait(0)

    def take(self, wake_fd: int) -> WorkerProcess | None:
        """The worker, which then belongs to the caller; ``None`` if there is none, or if it has died."""
        worker, self._worker = self._worker, None
        if worker is None:
            return None
        worker.wait(0)
        if not worker.usable:
            worker.stop(grace_s=0)
            return None
        worker.wake_by(wake_fd)
        return worker

    def stop(self) -> None:
        """End it, if it was not taken."""
        if self._worker is not None:
            worker, self._worker = self._worker, None
            worker.stop(grace_s=0)


def _pipe(reader: ExitStack, writer: ExitStack) -> tuple[FileIO, FileIO]:
    """A pipe whose ends these stacks close."""
    read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
    return reader.enter_context(FileIO(read_fd, "rb")), writer.enter_context(FileIO(write_fd, "wb"))
