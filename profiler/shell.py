"""Commands that we print for users: lists of words, quoted for a POSIX shell when they are shown.

Every command line that we print is built here, so that it can be copied and pasted whatever a folder is called. A
word that only the user can fill in, such as a git revision, is a *blank*: a word in capitals with an explanation.
Commands are never truncated, because a part of a command is another command.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from profiler.units import printable

_BLANK = re.compile(r"[A-Z][A-Z0-9_]*(?:-[A-Z0-9_]+)*(?:\.[a-z]+)?")  # REV, MODEL-Q4_K_M.gguf


@dataclass(frozen=True, slots=True)
class Command:
    """One command line. ``str()`` gives the text to paste."""

    words: tuple[str, ...]
    blanks: Mapping[str, str] = field(default_factory=dict)  # a blank → what to put in its place

    def __post_init__(self) -> None:
        for blank in self.blanks:
            if not _BLANK.fullmatch(blank) or blank not in self.words:
                raise ValueError(f"{blank} is not a blank of {self.words}")

    def __str__(self) -> str:
        return " ".join(map(quote, self.words))


def command(*words: str | Iterable[str], **blanks: str) -> Command:
    """Build a command from words and lists of words; ``REV="a git revision"`` explains the blank REV."""
    return Command(
        tuple(word for each in words for word in ((each,) if isinstance(each, str) else tuple(each))), blanks
    )


def quote(word: str) -> str:
    """Quote one word for a POSIX shell, on one line and without terminal control characters.

    Characters that must not be shown are written as bytes in ``$'…'``, which bash, zsh, ksh and POSIX.1-2024 support.
    """
    if all(_shown(character) for character in word):
        return shlex.quote(word)
    return "$'" + "".join(map(_escaped, word)) + "'"


def _escaped(character: str) -> str:
    if character in "\\'":
        return f"\\{character}"
    if _shown(character):
        return character
    # Three octal digits need no terminator; a byte that is not UTF-8 is a lone surrogate here.
    errors = "surrogateescape" if "\udc80" <= character <= "\udcff" else "surrogatepass"
    return "".join(f"\\{byte:03o}" for byte in character.encode("utf-8", errors))


def _shown(character: str) -> bool:
    return character.isprintable() and printable(character) == character
