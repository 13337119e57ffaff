"""What a backend gives: ``open(job, beat) -> Session``. A session holds one loaded model and serves its cases in turn."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from profiler.case import Case
from profiler.devices.base import Meter
from profiler.results.measurement import Caution

Beat = Callable[[str], None]
"""Called at every sign of progress with a few words (``prefill 2048/8192``); it must be cheap."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where a model's config and weights are. All a worker needs to know; plain JSON."""

    kind: str  # catalog | folder | gguf | hub
    location: str  # catalog name, absolute path, hub id
    revision: str | None
    config: Mapping[str, Any]  # the raw config.json


class OutOfMemory(Exception):
    """The device or the memory limit refused an allocation. The message says which and how much."""


class ShapeMismatch(Exception):
    """A phase did not process what the case asks for."""


class Session(Protocol):
    """One loaded model. Order of calls: ``begin(case)``, then ``prefill`` or ``fill``, ``save``, ``decode`` …"""

    meter: Meter

    def weights(self) -> tuple[int, int]:
        """Bytes of all storages, and the part that a quantization left in a plain dtype."""

    def cautions(self) -> tuple[Caution, ...]:
        """What is true of this loaded model whatever the case."""

    def begin(self, case: Case) -> None:
        """Make the inputs of the case and drop everything of the last one."""

    def prefill(self) -> int:
        """Process exactly ``context`` tokens of each sequence into an empty cache; returns tokens processed."""

    def fill(self) -> None:
        """Write a random cache of ``context`` tokens instead (``Case.fill == "synthetic"``)."""

    def save(self) -> None:
        """Remember the cache as it is now: every ``restore`` starts decode from here."""

    def restore(self, last: bool) -> None:
        """Bring the saved cache back. ``last``: give the saved copy away, so that it is not counted as peak."""

    def step(self) -> None:
        """One greedy decode step for the whole batch, feeding back its own tokens."""

    def length(self) -> int:
        """Tokens in the cache, as the cache counts them."""

    def cache_bytes(self) -> tuple[int, int]:
        """Bytes of the storages behind the cache, and the part not reachable through the cache's own tensors."""

    def tokens(self) -> list[list[int]]:
        """Tokens decoded since the last ``restore``, one list a sequence."""

    def close(self) -> None:
        """Free the model."""
