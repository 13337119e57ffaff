"""Models of a list that cannot be used. They do not stop the others."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import TypeVar

from profiler.errors import ProfileError
from profiler.units import printable

Taken = TypeVar("Taken")
REFUSED = 1  # the exit code if some models were refused and others ran


@dataclass(frozen=True, slots=True)
class Refusal:
    """One model of a list, and why it cannot be used."""

    name: str  # as the user typed it
    error: ProfileError

    @property
    def text(self) -> str:
        """One line with the cause and the model as the user typed it, because several files may share a name."""
        shown, said = printable(self.name), self.error.message
        for prefix in (shown, PurePath(self.name).name, PurePath(self.name).stem):
            said = said.removeprefix(f"{printable(prefix)}: ")
        named = re.search(rf"(?<![\w.-]){re.escape(shown)}(?![\w-])", said)  # not as part of another word
        text = said if named else f"{shown}: {said}"
        return f"{text}. {self.error.hint}" if self.error.hint else text


def accepted(names: Sequence[str], take: Callable[[str], Taken]) -> tuple[list[Taken], tuple[Refusal, ...]]:
    """The results of ``take`` for each name, and the names for which it raises ProfileError.

    Raises that error if nothing is left.
    """
    taken: list[Taken] = []
    refused: list[Refusal] = []
    for name in names:
        try:
            taken.append(take(name))
        except ProfileError as error:
            refused.append(Refusal(name, error))
    if refused and not taken:
        raise combined_error(refused)
    return taken, tuple(refused)


def combined_error(refused: Iterable[Refusal]) -> ProfileError:
    """The error to raise if every model was refused."""
    every = list(refused)
    first = every[0].error
    if len({refusal.error.message for refusal in every}) == 1:
        return first
    texts = "; ".join(refusal.text.rstrip(".") for refusal in every)
    return ProfileError(f"none of the {len(every)} models can be used: {texts}")


def refusal_lines(refused: Sequence[Refusal]) -> list[str]:
    """Lines for stderr, one per refused model."""
    return [f"refused: {refusal.text}" for refusal in refused]
