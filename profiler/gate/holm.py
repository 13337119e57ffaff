"""Several cells and metrics at once: Holm's step-down procedure over all that were declared.

Ten tests at 5 % find something by chance in four gates of ten. Holm (1979) holds the odds of even one false alarm at
the level of the whole. Each look has its own share of that level, and what was rejected at an earlier look passes its
share on (Ye, Li, Liu & Yao 2013, "A group sequential Holm procedure").
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


def holm(p: Mapping[K, float], alpha: float) -> set[K]:
    """The hypotheses that are rejected, at ``alpha`` for all of them together."""
    rejected: set[K] = set()
    for place, (name, value) in enumerate(sorted(p.items(), key=lambda item: item[1])):
        if value > alpha / (len(p) - place):
            break
        rejected.add(name)
    return rejected


class Family(Generic[K]):
    """The declared hypotheses, with the p of each as far as it is known: what is not measured yet is not rejected."""

    def __init__(self, names: Iterable[K], level: float) -> None:
        self.level = level
        self._p: dict[K, float] = dict.fromkeys(names, 1.0)

    def note(self, name: K, p: float) -> None:
        """The p of a hypothesis at its latest look."""
        self._p[name] = p

    def failed(self, name: K) -> None:
        """It was rejected for good: its share goes to the others."""
        self._p[name] = 0.0

    def rejected(self) -> set[K]:
        """Those that are rejected now."""
        return holm(self._p, self.level)
