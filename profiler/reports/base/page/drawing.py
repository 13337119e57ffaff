"""A Vega-Lite specification as a picture, offline: Vega runs inside ``vl-convert`` and reaches for nothing.

It runs in a process of its own: V8 takes a refused allocation for a bug and ends the process by a trap, and what ends
must not be the one that holds a report.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from profiler.errors import ProfileError
from profiler.reports.base.page.plots import Spec
from profiler.units import printable

# A specification in JSON on each line, a picture or what is wrong on each line.
PROGRAM = """
import json, resource, sys
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
import vl_convert
for line in sys.stdin.buffer:
    try:
        answer = {"svg": vl_convert.vegalite_to_svg(json.loads(line), allowed_base_urls=[])}
    except Exception as error:
        answer = {"error": f"{type(error).__name__}: {error}"}
    sys.stdout.buffer.write(json.dumps(answer).encode() + b"\\n")
    sys.stdout.buffer.flush()
"""
FAILED = "the charts cannot be drawn"
WITHOUT = "profile report without --html and --md needs no charts."

_open: list[
    _Pen | None
] = []  # the drawing process of each ``kept`` that is entered; none yet where nothing was drawn


def svg(spec: Spec) -> str:
    """SVG 1.1, in the light colours of ``theme``. The first one takes a second: Vega starts. Raises ProfileError."""
    if not _open:
        with kept():
            return svg(spec)
    pen = _open[-1] = _open[-1] or _Pen()
    return pen.draw(spec)


@contextmanager
def kept() -> Iterator[None]:
    """Have all drawings inside come from one process."""
    _open.append(None)
    try:
        yield
    finally:
        pen = _open.pop()
        if pen is not None:
            pen.close()


class _Pen:
    """The process that draws."""

    def __init__(self) -> None:
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", PROGRAM],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        except OSError as error:
            raise ProfileError(f"{FAILED}: no process can be started: {error.strerror}", WITHOUT) from None

    def draw(self, spec: Spec) -> str:
        orders, answers = self._process.stdin, self._process.stdout
        assert orders is not None and answers is not None  # asked for above
        try:
            orders.write(json.dumps(spec).encode() + b"\n")
            orders.flush()
            line = answers.readline()
        except BrokenPipeError:
            line = b""
        if not line.endswith(b"\n"):
            raise ProfileError(f"{FAILED}: {self._ending()}", f"{self._remedy()} {WITHOUT}")
        answer: dict[str, Any] = json.loads(line)
        if "svg" not in answer:
            raise ProfileError(f"{FAILED}: vl-convert: {printable(answer['error'])}", WITHOUT)
        return str(answer["svg"])

    def _ending(self) -> str:
        code = self._process.wait()
        if code >= 0:
            return f"vl-convert, which draws them, does not start (exit code {code})"
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        return f"vl-convert, which draws them, was ended by {name}, as it is where memory is refused"

    def _remedy(self) -> str:
        if self._process.returncode > 0:
            return "Install it again: pip install --force-reinstall vl-convert-python."
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        if limit == resource.RLIM_INFINITY:
            return "Free some memory."
        return f"It reserves far more address space than this limit (ulimit -v {limit // 1024}): raise it."

    def close(self) -> None:
        self._process.kill()  # it has nothing to tidy up
        self._process.communicate()
