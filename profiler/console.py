"""stdout and stderr in any state: with any encoding, full, closed, or without a reader.

Characters that the encoding lacks are replaced by ASCII ones. If stdout cannot be written, the command ends with one
line on stderr. A failure of stderr is ignored, since it cannot be reported.
"""

from __future__ import annotations

import codecs
import errno
import io
import os
import select
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

import click

from profiler.errors import ProfileError
from profiler.units import printable

ASCII = "profile-ascii"  # the name of our encoding error handler
INSTEAD = {
    "–": "-", "—": "-", "−": "-", "─": "-", "│": "|", "·": "-", "…": "...", "×": "x", "±": "+-", "≈": "~", "≤": "<=",
    "≥": ">=", "→": "->", "←": "<-", "÷": "/", "µ": "u", "μ": "u", "‘": "'", "’": "'", "“": '"', "”": '"', "•": "*",
    "°": " deg", "²": "^2", "³": "^3", "≠": "!=", "∞": "inf", "\u00a0": " ", "\u202f": " ", "\u2011": "-",
    "█": "#", "▏": "|", "━": "-", "╸": "-", "╺": "-",
}  # fmt: skip
NARROWEST, WIDEST, USUAL = 20, 1000, (80, 24)


class OutputLost(ProfileError):
    """stdout cannot be written. Other effects of the command, such as stored rows, are complete."""

    exit_code = 1


class Stream(io.TextIOBase):
    """An unbuffered text stream over one of the process's own streams.

    It has no ``buffer``, because click would write UTF-8 to it if the encoding is ASCII.
    """

    def __init__(self, inner: TextIO, lost: type[OutputLost] | None) -> None:
        """``lost`` is raised if the text cannot be written, unless the reader has gone; ``None``: errors are
        ignored.
        """
        self._inner, self._lost = inner, lost
        self._name = "stdout" if lost else "stderr"
        self._encoding = getattr(inner, "encoding", None) or "utf-8"
        self._encode = codecs.getincrementalencoder(self._encoding)(ASCII).encode  # UTF-16: one byte order mark
        try:
            self._fd: int | None = inner.fileno()
        except (OSError, ValueError, AttributeError):
            self._fd = None  # a stand-in in a test

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._encoding

    @property
    def errors(self) -> str:  # type: ignore[override]
        return ASCII

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        with suppress(OSError, ValueError):
            return self._inner.isatty()
        return False

    def fileno(self) -> int:
        return self._inner.fileno()

    def write(self, text: str) -> int:
        try:
            self._put(text)
        except BrokenPipeError:
            if self._lost is not None:
                raise
        except (OSError, ValueError) as error:  # ValueError: closed within this process
            if self._lost is not None:
                raise self._lost(*_words(self._name, error)) from None
        return len(text)

    def _put(self, text: str) -> None:
        if self._fd is None:
            self._inner.write(text.encode(self._encoding, ASCII).decode(self._encoding))
            self._inner.flush()
            return
        rest = memoryview(self._encode(text))
        while rest:
            try:
                rest = rest[os.write(self._fd, rest) :]
            except BlockingIOError:  # another process has made the shared file non-blocking
                select.select([], [self._fd], [])


@contextmanager
def guarded() -> Iterator[None]:
    """Replace ``sys.stdout`` and ``sys.stderr`` by such streams; closed ones are first opened on /dev/null."""
    _open_standard_files()
    before = sys.stdout, sys.stderr
    for stream in before:
        with suppress(OSError, ValueError):
            stream.flush()
    sys.stdout, sys.stderr = Stream(before[0], OutputLost), Stream(before[1], None)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def say(text: str) -> None:
    """Print one line on stderr."""
    click.echo(text, err=True)


def tell(text: str | None) -> None:
    """``say``, unless the text is None."""
    if text is not None:
        say(text)


def width() -> int | None:
    """Width of the terminal in columns, within the limits for tables; ``None`` if stdout is not a terminal."""
    return size()[0] if sys.stdout.isatty() else None


def size() -> tuple[int, int]:
    """Columns and lines of the terminal, within sensible limits."""
    columns, lines = shutil.get_terminal_size(USUAL)
    return min(max(columns, NARROWEST), WIDEST), min(max(lines, 1), WIDEST)


def _open_standard_files() -> None:
    """Open file descriptors 0 to 2 if they are closed, so that the store never gets one that somebody prints to.

    stdout is opened read-only, so that writing to it still fails.
    """
    for number, flags in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            with suppress(OSError):
                os.open(os.devnull, flags)  # returns the lowest free number, which is this one
    streams: Any = sys
    if sys.stdout is None:
        streams.stdout = io.TextIOWrapper(io.FileIO(1, "w", closefd=False), "utf-8", write_through=True)
    if sys.stderr is None:
        streams.stderr = io.TextIOWrapper(io.FileIO(2, "w", closefd=False), "utf-8", write_through=True)


def _words(name: str, error: Exception) -> tuple[str, str | None]:
    number = error.errno if isinstance(error, OSError) else errno.EBADF
    if number == errno.EBADF:
        return f"{name} is closed, so the output is lost", "Redirect it to /dev/null if you do not need it."
    reason = error.strerror if isinstance(error, OSError) else None
    hint = "Free some space, or redirect it." if number in (errno.ENOSPC, errno.EDQUOT) else None
    return f"{name} cannot be written: {printable(reason or error)}", hint


def _ascii(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    missing = error.object[error.start : error.end]
    return "".join(INSTEAD.get(c) or c.encode("ascii", "backslashreplace").decode() for c in missing), error.end


codecs.register_error(ASCII, _ascii)
