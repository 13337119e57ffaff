"""A command in a fork of this process, in which something of the environment may be broken first.

A fork costs a few milliseconds where a fresh interpreter costs a fifth of a second, and whatever the fault does to
file descriptors, limits, users and variables ends with it.
"""

from __future__ import annotations

import io
import os
import selectors
import signal
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

LIMIT_S = 10.0
CRASHED = 70  # something else than SystemExit came out of the command


@dataclass(frozen=True)
class Ended:
    """How a command ended: exit code (negative: a signal), and the bytes it printed."""

    code: int
    out: bytes
    err: bytes

    @property
    def said(self) -> str:
        """stderr as text."""
        return self.err.decode("utf-8", "replace")


def fork() -> int:
    """``os.fork``; the thread that receives orders for pytest-xdist, which 3.12 warns of, holds nothing we use."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


class Command:
    """``profile ARGUMENTS`` that runs while the test goes on: the part of ``subprocess.Popen`` that tests need.

    Not for tests that hold a connection to the same SQLite file, which a fork would take for its own.
    """

    def __init__(self, arguments: Sequence[str]) -> None:
        self.returncode: int | None = None
        import_module(f"profiler.commands.{arguments[0]}")  # once here rather than in every fork
        (out, theirs), (err, their_err) = os.pipe(), os.pipe()
        self.pid = fork()
        if self.pid == 0:
            _be_the_command(arguments, _hear_ctrl_c, "utf-8", False, theirs, their_err)
        os.close(theirs)
        os.close(their_err)
        self.stdout, self.stderr = io.FileIO(out), io.FileIO(err)

    def poll(self) -> int | None:
        return self._wait(os.WNOHANG)

    def send_signal(self, number: signal.Signals) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def communicate(self, timeout: float) -> tuple[str, str]:
        """What is still to come on stdout and stderr, once the command has ended."""
        heard = {self.stdout: b"", self.stderr: b""}
        deadline = time.monotonic() + timeout
        with selectors.DefaultSelector() as selector:
            for file in heard:
                selector.register(file, selectors.EVENT_READ)
            while selector.get_map():
                ready = selector.select(deadline - time.monotonic())
                assert ready, f"the command hung for {timeout} s"
                for key, _ in ready:
                    chunk = os.read(key.fd, 1 << 16)
                    heard[key.fileobj] += chunk  # type: ignore[index]
                    if not chunk:
                        selector.unregister(key.fileobj)
        self._wait()
        for file in heard:
            file.close()
        out, err = (each.decode("utf-8") for each in heard.values())
        return out, err

    def _wait(self, flags: int = 0) -> int | None:
        if self.returncode is None:
            done, status = os.waitpid(self.pid, flags)
            self.returncode = os.waitstatus_to_exitcode(status) if done else None
        return self.returncode


def _hear_ctrl_c() -> None:
    """A shell has its background jobs ignore Ctrl-C, the tests among them, and their forks would inherit that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def run(
    arguments: Sequence[str],
    fault: Callable[[], None] = lambda: None,
    encoding: str = "utf-8",
    terminal: bool = False,
) -> Ended:
    """``profile ARGUMENTS`` after ``fault()``; ``terminal``: both outputs say that they are one."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = fork()
        if child == 0:
            _be_the_command(arguments, fault, encoding, terminal, out.fileno(), err.fileno())
        status = _wait(child)
        out.seek(0)
        err.seek(0)
        return Ended(os.waitstatus_to_exitcode(status), out.read(), err.read())


def _wait(child: int) -> int:
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    raise AssertionError(f"the command hung after {LIMIT_S} s: {os.waitpid(child, 0)}")


class _Terminal(io.TextIOWrapper):
    def isatty(self) -> bool:
        return True


def _be_the_command(
    arguments: Sequence[str], fault: Callable[[], None], encoding: str, terminal: bool, out: int, err: int
) -> None:
    """In the child: never returns."""
    import sys

    code = CRASHED
    try:
        for number, file in ((0, os.open(os.devnull, os.O_RDONLY)), (1, out), (2, err)):
            os.dup2(file, number)
        report = os.dup(2)  # for what goes wrong in here, whatever the fault does
        os.dup2(report, 250)
        os.closerange(3, 250)
        fault()
        kind = _Terminal if terminal else io.TextIOWrapper
        for name, number in (("stdout", 1), ("stderr", 2)):
            try:
                os.fstat(number)
                stream = kind(io.FileIO(number, "w", closefd=False), encoding=encoding, write_through=True)
            except OSError:
                stream = None  # as Python does with a closed one
            setattr(sys, name, stream)
        from profiler.cli import main

        try:
            main.main(list(arguments))
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
    except BaseException:
        os.write(250, traceback.format_exc().encode())
        code = CRASHED
    finally:
        os._exit(code)


def as_nobody() -> None:
    """Give up being root: a user id that no passwd entry has."""
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(54321)
        os.setuid(54321)


def common_folder() -> Path:
    """A new folder that every user may read; pytest's own are for its user alone."""
    folder = Path(tempfile.mkdtemp(prefix="profile-tests-"))
    folder.chmod(0o755)
    return folder
