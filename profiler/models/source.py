"""Where a model's config and weights are: all that a worker needs to know of a name that a person typed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Source:
    """Plain JSON content."""

    kind: str  # catalog | folder | gguf | hub
    location: str  # catalog name, absolute path, hub id
    revision: str | None
    config: Mapping[str, Any]  # the raw config.json
