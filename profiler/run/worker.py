"""The process that holds a model: ``python -m profiler.run.worker TASKS MESSAGES PARENT`` (two pipes, a pid).

It loads the model of its first task and measures one task after the other. It exits when there are no more tasks, or
after the first row that is not ok, since the state of the model and its device is then unknown. If the parent dies,
the kernel kills this process, and a guard process kills the rest of its process group.

**Memory limit.** RLIMIT_DATA, not RLIMIT_AS: a CUDA build of PyTorch reserves many times the machine's memory as
address space. The kernel counts private writable mappings when they are created, not when they are touched, and does
not count files or shared memory. For those the supervisor watches the resident size and kills the worker. That is the
only limit of programs that time themselves: llama.cpp maps half a GiB for the logits of a batch and touches one row.

**No orphans.** The kernel kills the worker itself (``PR_SET_PDEATHSIG``), so the worker cannot clean up; nor could
one of its threads while C code holds the interpreter lock. Therefore a small process in the worker's group waits for
the profiler's exit and kills the group.

**Causes.** An exception becomes one line together with its innermost cause, since libraries wrap the original error:

    RuntimeError: the weights could not be converted; caused by ValueError: 17 is not a multiple of 32

The innermost cause is what the user can fix, so a length limit never cuts it off.
"""

from __future__ import annotations

import atexit
import ctypes
import errno
import gc
import importlib
import os
import resource
import select
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from select import POLLOUT, poll
from typing import Any, cast

from profiler import backends, devices, folders
from profiler.backends.base import Opener, OutOfMemory, Session, TimedSession
from profiler.case import Case, Task
from profiler.devices import allowance
from profiler.devices.base import Meter, kind_of
from profiler.devices.cpu import process_bytes
from profiler.errors import ProfileError, flat
from profiler.results.encoding import collector_paused
from profiler.results.measurement import PHASES, Caution, Measurement, Memory, Outcome, Phase
from profiler.run import quality
from profiler.run.loop import KnownPhases, largest, measure, measure_timed, peak_bytes
from profiler.run.protocol import MAX_REASON_CHARACTERS, LineBuffer, LoadCost, ProtocolError, encode, read_task
from profiler.run.repetitions import Effort, Repeater
from profiler.units import bytes_text, printable

MAX_CAUSES = 8  # exceptions of one chain that are considered
OUTER, INNER = 280, 180  # characters of the two exceptions that are reported: the first one and its innermost cause
ALONE = OUTER + INNER  # characters of an exception without a cause
PLACE = 120  # characters of a source line in a message

PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
FIRST_TO_GO = "1000"  # oom_score_adj: the kernel kills this process before the one that holds the results
SentTask = tuple[Task, Effort, int | None]  # a task, how thoroughly to measure it, and the limit of the host memory
BEAT_S = 0.1  # minimum time between beats of one phase: each costs a system call and wakes the parent


def guard_group(parent: int) -> None:
    """Fork a process that kills this one's whole group with SIGKILL when ``parent`` exits.

    Must be called by the leader of a group before it has threads. The guard lives until the group is killed, which is
    how a parent ends every worker. Raises OSError.
    """
    group, ended = os.getpid(), os.pidfd_open(parent)
    if os.fork():
        os.close(ended)
        return
    try:
        for number in (signal.SIGINT, signal.SIGTERM):  # the worker handles a polite end
            signal.signal(number, signal.SIG_IGN)
        _close_all_but(ended)  # its copies of the pipes would hide that the worker has closed them
        select.select([ended], [], [])
        os.killpg(group, signal.SIGKILL)
    finally:
        os._exit(1)  # it must never continue as a second worker


def _close_all_but(kept: int) -> None:
    end = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    os.closerange(0, kept)
    os.closerange(kept + 1, end if end != resource.RLIM_INFINITY else 1 << 20)


def limit_memory(max_bytes: int) -> None:
    """Limit this process's resident memory to about ``max_bytes``.

    Pages that are mapped but not touched yet (thread stacks, arenas) are added, since they are not memory yet, and
    resident file pages are subtracted. Call it again as those change; the hard limit stays, so the limit may rise.
    """
    mapped, anonymous, resident = (process_bytes(field) for field in ("VmData", "RssAnon", "VmRSS"))
    untouched, files = max(0, mapped - anonymous), resident - anonymous
    _set(max(0, max_bytes - files + untouched))


def _limit(case: Case, max_bytes: int | None) -> None:
    """Apply ``--max-memory`` to this process, unless other programs do the work."""
    if max_bytes is not None and not backends.find(case.backend).times_itself:
        limit_memory(max_bytes)


def lift_limit() -> None:
    """Raise the limit as far as possible: reporting that an allocation failed needs memory too."""
    _set(resource.getrlimit(resource.RLIMIT_DATA)[1])


def _set(soft: int) -> None:
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    if hard != resource.RLIM_INFINITY:
        soft = min(soft, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def one_line(error: BaseException, typed: bool = True) -> str:
    """One line with the exception and its innermost cause. ``typed``: the line begins with the exception's class.

    An explicit cause (``raise … from cause``) is reported as "caused by". An exception that was only being handled at
    the time may be the cause or an earlier failed attempt, so it is reported as "after".
    """
    link, inner = _innermost(error)
    if inner is None or (isinstance(error, ProfileError) and link == "after"):  # its message already says it
        return _text(error, typed, ALONE)
    outer, beneath = _text(error, typed, OUTER), _text(inner, True, INNER)
    words = flat(inner)
    if beneath in outer or (words and words in outer):
        return outer
    return f"{outer.rstrip('.')}; {link} {beneath}"


def chain(error: BaseException) -> Iterator[tuple[str, BaseException]]:
    """An exception and its causes, outermost first, each with its link to the one before."""
    seen: set[int] = set()
    link: str = ""
    current: BaseException | None = error
    while current is not None and id(current) not in seen and len(seen) < MAX_CAUSES:
        seen.add(id(current))
        yield link, current
        if isinstance(current, BaseExceptionGroup):
            link, current = "caused by", current.exceptions[0]
        elif current.__cause__ is not None:
            link, current = "caused by", current.__cause__
        elif not current.__suppress_context__:
            link, current = "after", current.__context__
        else:
            current = None


def _innermost(error: BaseException) -> tuple[str, BaseException | None]:
    """The last explicit cause; without one, the exception that was being handled."""
    link, inner = "", None
    for word, each in list(chain(error))[1:]:
        if word == "after" and inner is not None:
            break
        link, inner = word, each
    return link, inner


def _text(error: BaseException, typed: bool, limit: int) -> str:
    words = flat(error) or ("" if isinstance(error, ProfileError) else _place(error))
    notes = " ".join(" ".join(getattr(error, "__notes__", ())).split())
    text = printable(f"{words} ({notes})" if notes else words, limit)
    if not typed or isinstance(error, ProfileError):
        return text or type(error).__name__
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _place(error: BaseException) -> str:
    """Where an exception without a message was raised, and the source line: useful for ``assert``."""
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return ""
    last = frames[-1]
    where = "/".join(Path(last.filename).parts[-2:])
    return printable(f"raised in {where}, line {last.lineno}: {last.line or last.name}", PLACE)


class Wire:
    """The worker's end of the pipe to its parent."""

    def __init__(self, fd: int) -> None:
        self.phase = "start"
        self._fd = fd
        self._last = 0.0
        self._room = poll()
        self._room.register(fd, POLLOUT)

    def beat(self, text: str) -> None:
        """A sign of life. New phases are sent at once; other beats are rate-limited, and dropped if nobody reads."""
        phase, now = text.partition(" ")[0] or self.phase, time.monotonic()
        if phase == self.phase and now - self._last < BEAT_S:
            return
        self.phase, self._last = phase, now
        if self._room.poll(0):  # there is room for a page, so a short line does not block
            os.write(self._fd, encode({"type": "beat", "text": printable(text)}))

    def send(self, message: dict[str, Any]) -> None:
        """A message that must arrive. Raises ProtocolError if it cannot be written as one line."""
        line = memoryview(encode(message))
        while line:
            line = line[os.write(self._fd, line) :]


def main(tasks_fd: int, messages_fd: int, parent: int) -> None:
    """Serve the parent until it has no more tasks."""
    die_with(parent)
    guard_group(parent)
    for fd in (tasks_fd, messages_fd):
        os.set_inheritable(fd, False)
    with suppress(OSError):  # a hardened machine may refuse; then the kernel chooses what to kill
        Path("/proc/self/oom_score_adj").write_text(FIRST_TO_GO)
    allowance.at_start()  # before a backend's libraries pin this thread
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core dump of a 60 GB process could fill the disk
    serve(read_tasks(tasks_fd), Wire(messages_fd))


def die_with(parent: int) -> None:
    """Have the kernel kill this process when ``parent`` exits, which may have happened before the request."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def opener(name: str) -> Opener:
    """``backends.opener`` without collecting garbage meanwhile, which takes a fifth of the time. What an import
    creates stays, so later collections do not look at it either.
    """
    with collector_paused():
        found = backends.opener(name)
    gc.freeze()
    return found


def read_tasks(fd: int) -> Iterator[SentTask]:
    """The tasks that the parent sends, until it closes the pipe. Before them, it may name a backend to import."""
    lines = LineBuffer(finite=False)
    while chunk := os.read(fd, 1 << 16):
        for message in lines.feed(chunk):
            if "prepare" in message:
                with suppress(Exception):  # it goes wrong again with the first task, which reports it
                    opener(message["prepare"])
            else:
                yield read_task(message)


def serve(tasks: Iterator[SentTask], wire: Wire) -> None:
    """Load the model of the first task, then measure every task and send its row."""
    session: Session | TimedSession | None = None
    cost = LoadCost()
    measured: set[str] = set()  # keys of cases
    settled: set[Phase] = set()
    known: KnownPhases = {}
    failed: str | None = None  # why there is no reference for the quality
    for task, effort, max_memory_bytes in tasks:
        try:
            if session is None:
                failed = quality.prepare(task.case, task.source, effort.quality, wire.beat)
                session, cost = load(task, max_memory_bytes, wire)
                wire.send({"type": "loaded", "load": cost.to_json()})
            _limit(task.case, max_memory_bytes)
            if effort.agreement is not None:
                row = agreement_row(session, task, effort.agreement, wire)
            else:
                repeater = Repeater(effort, wire.beat, task.case.key in measured, settled)
                row = with_load_cost(measure_with(session, task.case, repeater, known), cost)
                row = quality.add(row, session, task.source, effort.quality, failed, wire.beat)
            measured.add(task.case.key)
            settled.update(phase for phase in PHASES if phase in row.stopped)
        except Exception as error:
            lift_limit()
            row = failure(error, task.case, max_memory_bytes, wire.phase)
        if send_row(row, wire) != "ok":
            return
    if session is not None:
        session.close()


def measure_with(session: Session | TimedSession, case: Case, repeater: Repeater, known: KnownPhases) -> Measurement:
    """Measure a case with the loop that its backend needs. ``known``: what was measured before, for a quick look."""
    if backends.find(case.backend).times_itself:
        return measure_timed(cast(TimedSession, session), case, repeater)
    effort = repeater.effort
    shares = effort.quick and not effort.energy and not repeater.measured_before
    return measure(cast(Session, session), case, repeater, known if shares else None)


def agreement_row(session: Any, task: Task, wanted: Mapping[str, Any], wire: Wire) -> Measurement:
    """A row without samples, whose ``quality`` is what a gate compares. Raises ProfileError."""
    module = importlib.import_module(backends.find(task.case.backend).agreement or "")
    found = module.measure(session, task.case, task.source, wanted, wire.beat)
    return Measurement(task.case, {}, "ok", quality=found)


def load(task: Task, max_memory_bytes: int | None, wire: Wire) -> tuple[Session | TimedSession, LoadCost]:
    """The loaded model of ``task``, and what loading it took. The memory baseline includes the framework."""
    wire.beat("load")
    opened = opener(task.case.backend)
    before = meter_of(task.case)
    before.reset_peak()
    baseline, start = before.peak().process_bytes, before.now()
    _limit(task.case, max_memory_bytes)
    session = opened(task.case, task.source, wire.beat)
    seconds, peak = session.meter.now() - start, session.meter.peak()
    memory = Memory(
        weights_bytes=session.info.weights_bytes,
        unquantized_bytes=session.info.unquantized_bytes,
        baseline_bytes=baseline,
        load_peak_bytes=peak_bytes(peak),
    )
    return session, LoadCost(seconds, memory, peak.process_bytes)


def meter_of(case: Case) -> Meter:
    """The meter of the case's device, unless the backend has its own."""
    own = backends.find(case.backend).meter
    return devices.meter(case.device) if own is None else own(case.device)


def with_load_cost(row: Measurement, cost: LoadCost) -> Measurement:
    """A measured row, with the cost of loading its model. To rows of failed cases the parent adds it."""
    memory = replace(
        row.memory,
        baseline_bytes=cost.memory.baseline_bytes,
        load_peak_bytes=cost.memory.load_peak_bytes,
        process_peak_bytes=largest(row.memory.process_peak_bytes, cost.process_peak_bytes),
    )
    cautions = (*row.cautions, *load_peak(memory), *(Caution("cache", text) for text in folders.notes()))
    return replace(row, memory=memory, cautions=cautions, load_s=cost.load_s)


def load_peak(memory: Memory) -> list[Caution]:
    """A caution if loading took more memory than either phase: the peak then says nothing about the case."""
    phases = largest(memory.prefill_peak_bytes, memory.decode_peak_bytes)
    if phases is None or memory.load_peak_bytes is None or memory.load_peak_bytes <= phases:
        return []
    text = f"loading the model set the peak; prefill and decode stayed below {bytes_text(phases)}"
    return [Caution("load-peak", text)]


def failure(error: Exception, case: Case, max_memory_bytes: int | None, phase: str) -> Measurement:
    """The row of a case that raised: out of memory, or failed. The parent knows what loading took."""
    outcome: Outcome = "failed"
    if is_out_of_memory(error):
        words = " ".join(str(error).split()) or type(error).__name__
        limit = _limit_in_words(max_memory_bytes) if kind_of(case.device).is_host else ""
        outcome, reason = "oom", f"out of memory in {phase}{limit}: {words}"
    elif isinstance(error, ProfileError):
        reason = one_line(error)
    elif reached := _limit_reached(error):
        what, hint = reached
        words = what if allowance.is_thread_refused(error) else printable(one_line(error), OUTER)
        reason = f"{phase} failed: {words}. {hint}"
    else:
        reason = f"{phase} failed: {one_line(error)}"
    return Measurement(case, {}, outcome, printable(reason, MAX_REASON_CHARACTERS))


def _limit_reached(error: Exception) -> tuple[str, str] | None:
    """The limit of the system that caused ``error``, and what to do."""
    causes = (allowance.exhausted(each) for link, each in chain(error) if link != "after")
    return next((found for found in causes if found is not None), None)


def _limit_in_words(max_memory_bytes: int | None) -> str:
    """The memory limit of this process as a part of a sentence; empty if there is none."""
    if max_memory_bytes is not None:
        return f" under --max-memory {bytes_text(max_memory_bytes)}"
    limit = allowance.memory_limit()
    return "" if limit is None else f" with {bytes_text(limit.nbytes)} allowed by {limit.where}"


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out, even if that error was wrapped. Backends convert their framework's error to
    OutOfMemory."""
    named = (each for link, each in chain(error) if link != "after")
    return any(
        isinstance(each, OutOfMemory | MemoryError) or (isinstance(each, OSError) and each.errno == errno.ENOMEM)
        for each in named
    )


def send_row(row: Measurement, wire: Wire) -> Outcome:
    """Send a row, or a row that says why it could not be sent; returns the outcome that was sent."""
    try:
        wire.send({"type": "row", "row": row.to_json()})
    except ProtocolError as error:
        reason = f"the result cannot be passed on: {error}"
        row = Measurement(row.case, {}, "failed", reason)
        wire.send({"type": "row", "row": row.to_json()})
    return row.outcome


def end() -> None:
    """Exit without taking PyTorch's hundreds of modules apart, which takes 1.5 s; whoever registered is called."""
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]))
    end()
