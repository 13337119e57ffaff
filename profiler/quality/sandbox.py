"""Runs Python code that a model wrote, in a sandbox without network, files, other processes or much of anything.

``sandboxed.py`` builds it from the namespaces of Linux. There is no weaker form: where it cannot be built, code does
not run, and ``unavailable`` says why. docs/endpoint.md says what it keeps out and what it does not.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from profiler.errors import ProfileError
from profiler.foreign import BadContent, Budget, json_value
from profiler.quality import sandboxed
from profiler.units import printable

WALL_S = 30.0  # many times the CPU time that it may take: on a busy machine, right code must not be too late
MAX_OUTPUT = sandboxed.LIMITS[resource.RLIMIT_FSIZE]
LINE = Budget(nbytes=sandboxed.MAX_LINE + 1, depth=32)
VISIBLE = ("/usr", "/lib", "/lib32", "/lib64", "/nix/store", "/etc/ld.so.cache")  # libraries, not data
TOO_LONG = "it takes too long"


class SandboxError(ProfileError):
    """The sandbox could not be built, or failed: that says nothing about the code."""


@dataclass(frozen=True, slots=True)
class CallResult:
    """What one call gave: a value in the form of JSON, or the exception.

    ``raised``: the names of its class and of all classes above it, the class first; empty without an exception.
    """

    value: Any = None
    raised: tuple[str, ...] = ()
    text: str = ""


@dataclass(frozen=True, slots=True)
class CodeRun:
    """The results of the calls in their order, and why there are not more, if there are not."""

    results: tuple[CallResult, ...]
    failure: str | None = None


@cache
def unavailable() -> str | None:
    """Why code cannot run here; None if it can. Found out by running some."""
    try:
        ran = run("def answer():\n    return 42", "answer", [[]])
    except SandboxError as error:
        return error.message
    return None if ran.results == (CallResult(42),) else f"the sandbox does not work: {ran.failure}"


def run(code: str, function: str, calls: Sequence[Sequence[Any]]) -> CodeRun:
    """Run ``code`` and then ``function`` with each of the lists of arguments. Raises SandboxError."""
    if not sys.platform.startswith("linux"):
        raise SandboxError("running code needs the namespaces of Linux")
    content = json.dumps({"code": code, "function": function, "calls": calls})
    # Files and not pipes, since the size of a file that the code writes has a limit.
    with tempfile.TemporaryFile() as asked, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as told:
        asked.write(content.encode("utf-8", "replace"))
        asked.seek(0)
        with tempfile.TemporaryDirectory(prefix="profile-sandbox-") as top:
            os.chmod(top, 0o755)
            late = _finished(_command(top), asked, out, told)
        out.seek(0)
        told.seek(0)
        lines = out.read(MAX_OUTPUT).decode("utf-8", "replace").splitlines()
        if not lines:
            said = printable(" ".join(told.read(1000).decode("utf-8", "replace").split()), 200)
            raise SandboxError(f"the sandbox could not be built: {said or 'it did not start in time'}")
    return _read(lines, len(calls), late)


def _command(top: str) -> list[str]:
    """The program that builds a sandbox in the folder ``top``."""
    interpreter = os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)
    own = [os.path.realpath(each) for each in (sys.base_prefix, sys.base_exec_prefix)]
    home = os.path.realpath(Path.home())
    if exposed := next((each for each in own if f"{home}/".startswith(f"{each.rstrip('/')}/")), None):
        raise SandboxError(f"Python is installed in {exposed}, so that code could read the home folder")
    folders = [each for each in dict.fromkeys((*VISIBLE, *own)) if os.path.lexists(each)]
    inside = [each for each in folders if not any(each.startswith(f"{other}/") for other in folders)]
    return [sys.executable, "-I", "-S", sandboxed.__file__, "build", str(os.getpid()), top, interpreter, *inside]


def _finished(command: Sequence[str], asked: Any, out: Any, told: Any) -> bool:
    """Run ``command`` to its end; whether it took too long and was killed."""
    process = subprocess.Popen(command, stdin=asked, stdout=out, stderr=told, env={}, cwd="/", start_new_session=True)
    try:
        process.wait(WALL_S)
        return False
    except subprocess.TimeoutExpired:
        return True
    finally:  # also after Ctrl-C
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _read(lines: Sequence[str], calls: int, late: bool) -> CodeRun:
    """What the code said. It may have written anything, so a line that is not ours is a failure of the code."""
    results: list[CallResult] = []
    for line in lines[1:]:
        try:
            said = json_value(line, LINE)
        except BadContent:
            said = None
        if not isinstance(said, dict) or not {"value", "raised", "failed"} & said.keys():
            return CodeRun(tuple(results), "it wrote among its results")
        if "failed" in said:
            return CodeRun((), printable(said["failed"], 200))
        raised = said.get("raised")
        names = tuple(map(str, raised)) if isinstance(raised, list) else ()
        results.append(CallResult(said.get("value"), names, str(said.get("text", ""))))
    if len(results) < calls:
        return CodeRun(tuple(results), TOO_LONG if late else "it takes too much time or memory, or ends the program")
    return CodeRun(tuple(results[:calls]))
