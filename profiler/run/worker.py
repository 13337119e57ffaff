"""The process that holds a model: ``python -m profiler.run.worker TASKS MESSAGES PARENT`` (two pipes, a pid).

It loads the model of its first task and measures one task after the other. It exits when there are no more tasks, or
after the first row that is not ok, since the state of the model and its device is then unknown. If the parent dies,
the kernel kills this process, and a guard process kills its children.

**Memory limit.** RLIMIT_DATA, not RLIMIT_AS: a CUDA build of PyTorch reserves address ranges many times the machine's
memory. The kernel counts private writable mappings when they are made, not when they are touched, and does not count
files or shared memory; for those the supervisor watches the resident size and kills.

**No orphans.** The kernel ends the worker itself (``PR_SET_PDEATHSIG``), and then nothing in it can act any more; nor
could a thread of it while C code holds the interpreter. So a small process of the worker's own group waits for the
profiler's end.

**Causes.** An exception becomes one line, with what lies beneath it, since libraries wrap what went wrong:

    RuntimeError: the weights could not be converted; caused by ValueError: 17 is not a multiple of 32

The innermost cause is what a person can mend, so it is never what a limit on the length cuts off.
"""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import select
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from select import POLLOUT, poll
from typing import Any

from profiler import backends, folders, registry
from profiler.backends.base import OutOfMemory, Session
from profiler.case import Case
from profiler.devices import allowance
from profiler.devices.base import Meter, kind_of
from profiler.devices.cpu import process_bytes
from profiler.errors import ProfileError
from profiler.results.measurement import Caution, Measurement, Memory, Outcome
from profiler.run.loop import headline, largest, measure
from profiler.run.protocol import LineBuffer, Load, ProtocolError, WorkerTask, encode
from profiler.units import bytes_text, printable

MOST = 8  # exceptions of one chain that are looked at
OUTER, INNER = 280, 180  # characters of each of the two that are told
ALONE = OUTER + INNER  # and of one that has nothing beneath it
PLACE = 120  # of a line of somebody's source

PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
FIRST_TO_GO = "1000"  # oom_score_adj: the kernel takes this process before the one that holds the results
BEAT_S = 0.1  # beats of one phase are at least this far apart: each costs a system call and wakes the parent
MAX_REASON = 500  # characters


def guard_group(parent: int) -> None:
    """Fork a process that ends this one's whole group with SIGKILL when ``parent`` ends.

    To be called by the leader of a group, before it has threads. The guard lives until the group is killed, which is
    how a parent ends every worker. Raises OSError.
    """
    group, ended = os.getpid(), os.pidfd_open(parent)
    if os.fork():
        os.close(ended)
        return
    try:
        for number in (signal.SIGINT, signal.SIGTERM):  # a polite end is the worker's affair
            signal.signal(number, signal.SIG_IGN)
        _close_all_but(ended)  # its copies of the pipes would hide that the worker has closed them
        select.select([ended], [], [])
        os.killpg(group, signal.SIGKILL)
    finally:
        os._exit(1)  # whatever happened, it is no second worker


def _close_all_but(kept: int) -> None:
    end = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    os.closerange(0, kept)
    os.closerange(kept + 1, end if end != resource.RLIM_INFINITY else 1 << 20)


def limit_memory(max_bytes: int) -> None:
    """Let this process's resident memory grow to about ``max_bytes`` and no further.

    What is mapped but untouched now (thread stacks, arenas) is allowed on top, since it is not memory yet, and the
    resident pages of files are taken off. To be called again as those change; the hard limit stays, so it may rise.
    """
    mapped, anonymous, resident = (process_bytes(field) for field in ("VmData", "RssAnon", "VmRSS"))
    untouched, files = max(0, mapped - anonymous), resident - anonymous
    _set(max(0, max_bytes - files + untouched))


def lift_limit() -> None:
    """As high as it may be: the words that say an allocation failed need memory too."""
    _set(resource.getrlimit(resource.RLIMIT_DATA)[1])


def _set(soft: int) -> None:
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    if hard != resource.RLIM_INFINITY:
        soft = min(soft, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def said(error: BaseException, typed: bool = True) -> str:
    """One line: the exception and the innermost one beneath it. Without ``typed`` the first goes without its class.

    A cause that was named (``raise … from cause``) is told as such; one that was only being handled at the time may
    be a cause or an attempt that failed before, so it is told as what came before.
    """
    link, inner = _innermost(error)
    if inner is None or (isinstance(error, ProfileError) and link == "after"):  # it has been put into words
        return _text(error, typed, ALONE)
    outer, beneath = _text(error, typed, OUTER), _text(inner, True, INNER)
    words = " ".join(str(inner).split())
    if beneath in outer or (words and words in outer):
        return outer
    return f"{outer.rstrip('.')}; {link} {beneath}"


def chain(error: BaseException) -> Iterator[tuple[str, BaseException]]:
    """An exception and those beneath it, outermost first, each with how it hangs on the one before."""
    seen: set[int] = set()
    link: str = ""
    current: BaseException | None = error
    while current is not None and id(current) not in seen and len(seen) < MOST:
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
    """The last of the causes that were named; where none was, the one that was being handled."""
    link, inner = "", None
    for word, each in list(chain(error))[1:]:
        if word == "after" and inner is not None:
            break
        link, inner = word, each
    return link, inner


def _text(error: BaseException, typed: bool, limit: int) -> str:
    words = " ".join(str(error).split()) or ("" if isinstance(error, ProfileError) else _place(error))
    notes = " ".join(" ".join(getattr(error, "__notes__", ())).split())
    text = printable(f"{words} ({notes})" if notes else words, limit)
    if not typed or isinstance(error, ProfileError):
        return text or type(error).__name__
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _place(error: BaseException) -> str:
    """Of an exception without a word: where it was raised, and the line that did it. ``assert`` says so much."""
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
        """A sign of life. A new phase is told at once; the rest is thinned out, and dropped when nobody reads."""
        phase, now = text.partition(" ")[0] or self.phase, time.monotonic()
        if phase == self.phase and now - self._last < BEAT_S:
            return
        self.phase, self._last = phase, now
        if self._room.poll(0):  # room for one page, so a short line goes through whole and does not wait
            os.write(self._fd, encode({"type": "beat", "text": printable(text)}))

    def send(self, message: dict[str, Any]) -> None:
        """A message that must arrive. Raises ProtocolError when it cannot be written as one line."""
        line = memoryview(encode(message))
        while line:
            line = line[os.write(self._fd, line) :]


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A loaded model, and what loading it took."""

    session: Session
    load: Load
    load_peak_bytes: int | None  # of the whole process


def main(tasks_fd: int, messages_fd: int, parent: int) -> None:
    """Serve the parent until it has no more tasks."""
    die_with(parent)
    guard_group(parent)
    for fd in (tasks_fd, messages_fd):
        os.set_inheritable(fd, False)
    with suppress(OSError):  # a hardened machine may refuse; the order of killing is then the kernel's
        Path("/proc/self/oom_score_adj").write_text(FIRST_TO_GO)
    allowance.at_start()  # before a backend's libraries pin this thread
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the core of a 60 GB process fills somebody's disk
    serve(read_tasks(tasks_fd), Wire(messages_fd))


def die_with(parent: int) -> None:
    """Have the kernel kill this process when ``parent`` ends; it may have ended before we could ask."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def read_tasks(fd: int) -> Iterator[WorkerTask]:
    """The tasks that the parent sends, until it closes the pipe."""
    lines = LineBuffer(finite=False)
    while chunk := os.read(fd, 1 << 16):
        for message in lines.feed(chunk):
            yield WorkerTask.from_json(message)


def serve(tasks: Iterator[WorkerTask], wire: Wire) -> None:
    """Load once, then a row for every task."""
    model: LoadedModel | None = None
    measured: set[str] = set()  # keys of cases
    for task in tasks:
        try:
            if model is None:
                model = load(task, wire)
                wire.send({"type": "loaded", "load": model.load.to_json()})
            if task.max_memory_bytes is not None:
                limit_memory(task.max_memory_bytes)
            row = measure(model.session, task.case, task.effort, wire.beat, task.case.key in measured)
            row = with_load(row, model)
            measured.add(task.case.key)
        except Exception as error:
            lift_limit()
            row = failure(error, task, wire.phase)
        if send_row(row, wire) != "ok":
            return
    if model is not None:
        model.session.close()


def load(task: WorkerTask, wire: Wire) -> LoadedModel:
    """The model of ``task``, timed and weighed. The baseline is taken once the framework is imported."""
    wire.beat("load")
    opened = backends.opener(task.case.backend)
    before = meter_of(task.case)
    before.reset_peak()
    baseline, start = before.peak().process_bytes, before.now()
    if task.max_memory_bytes is not None:
        limit_memory(task.max_memory_bytes)
    session = opened(task.case, task.source, wire.beat)
    seconds, peak = session.meter.now() - start, session.meter.peak()
    memory = Memory(
        weights_bytes=session.loaded.weights_bytes,
        unquantized_bytes=session.loaded.unquantized_bytes,
        baseline_bytes=baseline,
        load_peak_bytes=headline(peak),
    )
    return LoadedModel(session, Load(seconds, memory), peak.process_bytes)


def meter_of(case: Case) -> Meter:
    """The meter of the case's device, unless the backend brings its own."""
    own = backends.find(case.backend).meter
    if own is not None:
        return own(case.device)
    meter: Meter = registry.load("devices", case.device.partition(":")[0], "device").meter(case.device)
    return meter


def with_load(row: Measurement, model: LoadedModel) -> Measurement:
    """The ok row of one case together with what loading its model took."""
    memory = replace(
        row.memory,
        baseline_bytes=model.load.memory.baseline_bytes,
        load_peak_bytes=model.load.memory.load_peak_bytes,
        process_peak_bytes=largest(row.memory.process_peak_bytes, model.load_peak_bytes),
    )
    cautions = (*row.cautions, *load_peak(memory), *(Caution("cache", text) for text in folders.notes()))
    return replace(row, memory=memory, cautions=cautions, load_s=model.load.load_s)


def load_peak(memory: Memory) -> list[Caution]:
    """A caution when loading took more memory than both phases: the peak is then no figure of the case."""
    phases = largest(memory.prefill_peak_bytes, memory.decode_peak_bytes)
    if phases is None or memory.load_peak_bytes is None or memory.load_peak_bytes <= phases:
        return []
    text = f"loading the model set the peak; prefill and decode stayed below {bytes_text(phases)}"
    return [Caution("load-peak", text)]


def failure(error: Exception, task: WorkerTask, phase: str) -> Measurement:
    """The row of a case that raised: out of memory, or failed. The parent knows what loading took."""
    outcome: Outcome = "failed"
    if is_out_of_memory(error):
        words = " ".join(str(error).split()) or type(error).__name__
        limit = task.max_memory_bytes if kind_of(task.case.device).is_host else None
        under = "" if limit is None else f" under --max-memory {bytes_text(limit)}"
        outcome, reason = "oom", f"out of memory in {phase}{under}: {words}"
    elif isinstance(error, ProfileError):
        reason = said(error)
    else:
        reason = f"{phase} failed: {said(error)}"
    return Measurement(task.case, {}, outcome, printable(reason, MAX_REASON))


def is_out_of_memory(error: Exception) -> bool:
    """Whether an allocation was refused, whoever has wrapped it since. Backends turn their framework's error into
    OutOfMemory.
    """
    named = (each for link, each in chain(error) if link != "after")
    return any(
        isinstance(each, OutOfMemory | MemoryError) or (isinstance(each, OSError) and each.errno == errno.ENOMEM)
        for each in named
    )


def send_row(row: Measurement, wire: Wire) -> Outcome:
    """Send a row, or the row that says why it could not be sent; returns the outcome that was."""
    try:
        wire.send({"type": "row", "row": row.to_json()})
    except ProtocolError as error:
        reason = f"the result cannot be passed on: {error}"
        row = Measurement(row.case, {}, "failed", reason)
        wire.send({"type": "row", "row": row.to_json()})
    return row.outcome


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]))
