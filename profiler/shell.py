"""Commands that people are told to run: lists of words until they are shown, and then quoted for a POSIX shell.

Every command line that we print is made here, so that it can be copied and pasted whatever a folder is called. A word
that only the reader can know, such as a git revision, is a *blank*: a word in capitals that comes with what it stands
for. Nothing is ever cut to a length, since half a command is another command.
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
    """One command line. ``str`` of it is what a person pastes."""

    words: tuple[str, ...]
    blanks: Mapping[str, str] = field(default_factory=dict)  # a word in capitals → what to put in its place

    def __post_init__(self) -> None:
        for blank in self.blanks:
            if not _BLANK.fullmatch(blank) or blank not in self.words:
                raise ValueError(f"{blank} is not a blank of {self.words}")

    def __str__(self) -> str:
        return " ".join(map(quote, self.words))


def command(*words: str | Iterable[str], **blanks: str) -> Command:
    """A command of words and lists of words; ``REV="a git revision"`` says what the blank REV stands for."""
    return Command(
        tuple(word for each in words for word in ((each,) if isinstance(each, str) else tuple(each))), blanks
    )


def quote(word: str) -> str:
    """One word for a POSIX shell, on one line, without anything in it that would move a terminal's cursor.

    Characters that must not be shown are written as bytes in ``$'…'``, which bash, zsh, ksh and POSIX.1-2024 know.
    """
    if all(_shown(character) for character in word):
        return shlex.quote(word)
    return "$'" + "".join(map(_escaped, word)) + "'"


def _escaped(character: str) -> str:
    if character in "\\'":
        return f"\\{character}"
    if _shown(character):
        return character
    # Three octal digits end by themselves, whatever follows them; a byte that is no UTF-8 is a lone surrogate here.
    errors = "surrogateescape" if "\udc80" <= character <= "\udcff" else "surrogatepass"
    return "".join(f"\\{byte:03o}" for byte in character.encode("utf-8", errors))


def _shown(character: str) -> bool:
    return character.isprintable() and printable(character) == character
