"""Workers that are forks of the tests' process, where starting an interpreter is not what a test is about.

A fresh interpreter spends a quarter of a CPU second on imports before its first order; a fork has them already and
takes a few milliseconds. Everything else is as in production: a process with its own session, pipes, environment and
guard, which the same supervisor starts, watches, kills and waits for. Workers of another interpreter or of other code
(the sides of a gate) are still started for real.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import subprocess
import sys
import traceback
import warnings
from collections.abc import Mapping, Sequence
from io import FileIO, TextIOWrapper
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest

from fakes import forked
from profiler import backends
from profiler.run import process, worker

COMMAND = process.COMMAND  # tests of rogues put another one there
QUIET = (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning)  # as Python without pytest


def install(patch: pytest.MonkeyPatch) -> None:
    """Have the supervisor fork its workers until ``patch`` is undone."""
    backends.opener("fake")  # once here rather than in every fork
    stand_in = SimpleNamespace(**{name: getattr(subprocess, name) for name in subprocess.__all__} | {"Popen": start})
    patch.setattr(process, "subprocess", stand_in)


def start(command: Sequence[str], **options: Any) -> Any:
    """What ``subprocess.Popen`` gives, for a worker that runs the code of this process."""
    length = len(COMMAND)
    same_code = options["env"].get("PYTHONPATH") == os.environ.get("PYTHONPATH")
    if tuple(command[:length]) != COMMAND or not same_code:
        return subprocess.Popen(command, **options)
    return Forked([int(word) for word in command[length:]], options["env"], options["pass_fds"])


class Forked:
    """The part of ``subprocess.Popen`` that a supervisor uses."""

    def __init__(self, arguments: list[int], environ: Mapping[str, str], kept: Sequence[int]) -> None:
        self.returncode: int | None = None
        reading, writing = os.pipe2(os.O_CLOEXEC)
        ready, begun = os.pipe2(os.O_CLOEXEC)
        self.pid = forked.fork()
        if self.pid == 0:
            _be_the_worker(arguments, environ, kept, writing, begun)
        os.close(writing)
        os.close(begun)
        os.read(ready, 1)  # its group is there to be killed, as when Popen returns
        os.close(ready)
        self.stdout = FileIO(reading, "rb")

    def wait(self) -> int:
        if self.returncode is None:
            self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.returncode

    def kill(self) -> None:
        if self.returncode is None:
            os.kill(self.pid, signal.SIGKILL)


def _be_the_worker(
    arguments: list[int], environ: Mapping[str, str], kept: Sequence[int], output: int, begun: int
) -> NoReturn:
    """In the child: what a fresh interpreter would begin with, and then the worker."""
    code = 1
    try:
        os.setsid()
        _fresh_signals()
        os.write(begun, b"!")
        _fresh_files(output, kept)
        os.environ.clear()
        os.environ.update(environ)
        warnings.resetwarnings()
        for category in QUIET:
            warnings.simplefilter("ignore", category)
        worker.main(*arguments)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)


def _fresh_signals() -> None:
    faulthandler.disable()
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _fresh_files(output: int, kept: Sequence[int]) -> None:
    nothing = os.open(os.devnull, os.O_RDONLY)
    for number, file in ((0, nothing), (1, output), (2, output)):
        os.dup2(file, number)
    open_files = map(int, os.listdir("/proc/self/fd"))
    for number in sorted(set(open_files) - {0, 1, 2, *kept}):
        try:
            os.close(number)
        except OSError:  # the folder just listed
            continue
    for name, number in (("stdout", 1), ("stderr", 2)):
        raw = FileIO(number, "w", closefd=False)
        setattr(sys, name, TextIOWrapper(raw, "utf-8", "backslashreplace", write_through=True))  # type: ignore[arg-type]
