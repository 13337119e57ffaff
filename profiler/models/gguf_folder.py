"""The GGUF files of models in a folder, without projectors and without later parts of split files."""

from __future__ import annotations

import os
from pathlib import Path

from profiler.case import Source
from profiler.errors import NotFound
from profiler.models.gguf import PART
from profiler.units import printable


def files(name: str) -> list[str]:
    """``name`` itself, or the paths of the models in the folder of that name. Raises NotFound if it has none."""
    folder = Path(os.path.expanduser(name))
    if not folder.is_dir():
        return [name]
    found = [str(path) for path in sorted(folder.glob("*.gguf")) if _is_model(path.name)]
    if not found:
        raise NotFound(f"folder {printable(name)} has no .gguf file of a model")
    return found


def not_unpacked(source: Source) -> str | None:
    """Why a backend that unpacks GGUF files cannot read this one; ``None`` if it can."""
    match = PART.fullmatch(Path(source.location).name) if source.kind == "gguf" else None
    if match is None:
        return None
    count = int(match["of"][4:9])
    return f"it is split into {count} parts; merge them: llama-gguf-split --merge FIRST.gguf MERGED.gguf"


def _is_model(name: str) -> bool:
    part = PART.fullmatch(name)
    return "mmproj" not in name.casefold() and (part is None or int(part["number"]) == 1)
