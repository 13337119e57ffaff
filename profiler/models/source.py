"""Where a model's config and weights are: all that a worker needs to know of a name that a person typed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

FILES = ("folder", "gguf")  # kinds whose location is a path


@dataclass(frozen=True, slots=True)
class Source:
    """Plain JSON content."""

    kind: str  # catalog | folder | gguf | hub
    location: str  # catalog name, absolute path, hub id
    revision: str | None
    config: Mapping[str, Any]  # the raw config.json

    def argument(self, typed: str | None = None) -> str:
        """What a command line names this model by: what was ``typed``, if that is known, else where it is.

        A path is always recognizable as one, so that a folder called like a model of the catalog, or like an option,
        is never taken for that.
        """
        if self.kind in FILES:
            return _path(typed or self.location, self.kind)
        if typed is not None:
            return typed
        return f"{self.location}@{self.revision}" if self.kind == "hub" and self.revision else self.location


def _path(typed: str, kind: str) -> str:
    path = os.path.expanduser(typed)
    if path.partition(os.sep)[0] not in ("", ".", ".."):
        path = os.path.join(".", path)
    ends_open = path != path.rstrip() and kind == "folder"  # blanks around a word of a list are dropped
    return os.path.join(path, "") if ends_open else path
