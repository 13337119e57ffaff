"""GGUF files in a folder: the models among them, the parts of a split model, and projectors beside it.

``llama-gguf-split`` names the parts ``NAME-00001-of-00003.gguf``. The first has all metadata, each has some of the
tensors, and llama.cpp loads them all when it is given the first.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from profiler.case import BESIDE, ModelNote, Source
from profiler.errors import NotFound, ProfileError
from profiler.models import gguf
from profiler.models.gguf import GgufHeader, GgufTensor
from profiler.units import printable

PART = re.compile(r"(?P<name>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.IGNORECASE | re.DOTALL)
PROJECTOR = re.compile(r"mmproj", re.IGNORECASE)  # the part of a multimodal model that reads images or sound
COUNT = "split.count"
MOST_PARTS = 1000
GgufPart = tuple[Path, GgufHeader]


def files(name: str) -> list[str]:
    """``name`` itself, or the paths of the models in the folder of that name. Raises NotFound if it has none."""
    folder = Path(os.path.expanduser(name))
    if not folder.is_dir():
        return [name]
    found = [str(path) for path in sorted(folder.glob("*.gguf")) if _is_model(path.name)]
    if not found:
        raise NotFound(f"folder {printable(name)} has no .gguf file of a model")
    return found


def parts(path: Path) -> list[GgufPart]:
    """The file and its header, or all parts of a split model. Raises ProfileError if one of them is missing."""
    first = gguf.header(path)
    count, match = first.metadata.get(COUNT, 1), PART.fullmatch(path.name)
    if count in (0, 1):
        return [(path, first)]
    shown = printable(path.name)
    if not isinstance(count, int) or not 1 < count <= MOST_PARTS:
        raise ProfileError(f"{shown} is one of {printable(count)} parts, which is not a number of parts")
    if match is None or int(match["count"]) != count or int(match["number"]) != 1:
        raise ProfileError(
            f"{shown} is one of {count} parts of a split file, and not the first",
            f"Name the first part, NAME-00001-of-{count:05}.gguf.",
        )
    found = [(path, first)]
    for number in range(2, count + 1):
        part = path.with_name(f"{match['name']}-{number:05}-of-{match['count']}{path.suffix}")
        if not part.is_file():
            raise ProfileError(f"part {number} of {count} is missing beside {shown}: {printable(part.name)}")
        found.append((part, gguf.header(part)))
    return found


def joined(parts: Sequence[GgufPart]) -> GgufHeader:
    """The header of the whole model: the metadata of the first part and the tensors of all, without their offsets."""
    (_, first), *others = parts
    if not others:
        return first
    tensors: dict[str, GgufTensor] = dict(first.tensors)
    for part, header in others:
        twice = tensors.keys() & header.tensors.keys()
        if twice:
            raise ProfileError(f"{printable(part.name)} has a tensor of another part again: {printable(min(twice))}")
        tensors |= header.tensors
    metadata = {name: value for name, value in first.metadata.items() if name != COUNT}
    return GgufHeader(metadata, tensors, first.data)


def beside(file: Path) -> tuple[ModelNote, ...]:
    """A note on projectors in the folder of a model's file."""
    found = [path.name for path in sorted(file.parent.glob("*.gguf")) if path != file and PROJECTOR.search(path.name)]
    if not found:
        return ()
    text = f"the projector {printable(found[0], 60)} beside it is not read: only text is measured"
    return (ModelNote(text, BESIDE),)


def not_unpacked(source: Source) -> str | None:
    """Why a backend that unpacks GGUF files cannot read this one; ``None`` if it can."""
    match = PART.fullmatch(Path(source.location).name) if source.kind == "gguf" else None
    if match is None:
        return None
    return (
        f"it is split into {int(match['count'])} parts; merge them: llama-gguf-split --merge FIRST.gguf MERGED.gguf"
    )


def _is_model(name: str) -> bool:
    part = PART.fullmatch(name)
    return PROJECTOR.search(name) is None and (part is None or int(part["number"]) == 1)
