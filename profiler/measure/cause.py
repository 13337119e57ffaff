"""An exception in one line: what it says, and what lies beneath, since libraries wrap what went wrong.

    RuntimeError: the weights could not be converted; caused by ValueError: 17 is not a multiple of 32

The innermost cause is what a person can mend, so it is never what a limit on the length cuts off.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from pathlib import Path

from profiler.errors import ProfileError
from profiler.units import printable

MOST = 8  # exceptions of one chain that are looked at
OUTER, INNER = 280, 180  # characters of each of the two that are told
ALONE = OUTER + INNER  # and of one that has nothing beneath it
PLACE = 120  # of a line of somebody's source


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
