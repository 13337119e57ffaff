"""The GGUF files of a folder that are models: one for each quantization, without projectors and further parts."""

from __future__ import annotations

import os
import re
from pathlib import Path

from profiler.errors import NotFound
from profiler.units import printable

PART = re.compile(r"-(?P<number>\d{5})-of-\d{5}\.gguf$", re.IGNORECASE)
PROJECTOR = re.compile(r"mmproj", re.IGNORECASE)  # the part of a multimodal model that reads images or sound


def files(name: str) -> list[str]:
    """``name`` itself, or the paths of the models in the folder of that name. Raises NotFound if it has none."""
    folder = Path(os.path.expanduser(name))
    if not folder.is_dir():
        return [name]
    found = [str(path) for path in sorted(folder.glob("*.gguf")) if _is_model(path.name)]
    if not found:
        raise NotFound(f"folder {printable(name)} has no .gguf file of a model")
    return found


def projectors(file: Path) -> list[Path]:
    """Projectors beside a model's file, which nothing here loads."""
    return [path for path in sorted(file.parent.glob("*.gguf")) if path != file and PROJECTOR.search(path.name)]


def _is_model(name: str) -> bool:
    part = PART.search(name)
    return PROJECTOR.search(name) is None and (part is None or int(part["number"]) == 1)
