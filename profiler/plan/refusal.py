"""Models of a list that cannot be used, each with its reason, so that the others go on without them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import TypeVar

from profiler.errors import ProfileError
from profiler.units import printable

Taken = TypeVar("Taken")
REFUSED = 1  # the exit code where others went on


@dataclass(frozen=True, slots=True)
class Refusal:
    """One model of a list, and what is wrong with it."""

    name: str  # as a person typed it
    error: ProfileError

    @property
    def text(self) -> str:
        """In one line: the model by the name that was typed, which tells files of one name apart, and the cause."""
        shown, said = printable(self.name), self.error.message
        for prefix in (shown, PurePath(self.name).name, PurePath(self.name).stem):
            said = said.removeprefix(f"{printable(prefix)}: ")
        named = re.search(rf"(?<![\w.-]){re.escape(shown)}(?![\w-])", said)  # not as a part of another word
        text = said if named else f"{shown}: {said}"
        return f"{text}. {self.error.hint}" if self.error.hint else text


def accepted(names: Sequence[str], take: Callable[[str], Taken]) -> tuple[list[Taken], tuple[Refusal, ...]]:
    """What ``take`` makes of each name, and the names that it raises ProfileError for.

    Raises that error where nothing is left.
    """
    taken: list[Taken] = []
    refused: list[Refusal] = []
    for name in names:
        try:
            taken.append(take(name))
        except ProfileError as error:
            refused.append(Refusal(name, error))
    if refused and not taken:
        raise together(refused)
    return taken, tuple(refused)


def together(refused: Iterable[Refusal]) -> ProfileError:
    """The one error to raise where every model was refused."""
    every = list(refused)
    first = every[0].error
    if len({refusal.error.message for refusal in every}) == 1:
        return first
    texts = "; ".join(refusal.text.rstrip(".") for refusal in every)
    return ProfileError(f"none of the {len(every)} models can be used: {texts}")


def lines(refused: Sequence[Refusal]) -> list[str]:
    """For stderr, one for each."""
    return [f"refused: {refusal.text}" for refusal in refused]
