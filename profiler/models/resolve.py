"""Finds the model that a user names: a catalog name, a folder, a ``.gguf`` file or a hub id.

An existing path comes first, then the catalog, then the hub. This reads and downloads little: a config, the headers
of local weights, at most one small file from the hub.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from profiler.case import ModelNote, Source, digest
from profiler.errors import NotFound, ProfileError
from profiler.folders import describe
from profiler.models import config, families, gguf, gguf_config, hub, safetensors
from profiler.models import scheme as schemes
from profiler.models.checkpoint import ADAPTER, Checkpoint, of_folder, of_gguf, why_missing
from profiler.models.geometry import Geometry
from profiler.models.stored import Stored
from profiler.registry import did_you_mean
from profiler.units import bytes_text, printable

WITHOUT_WEIGHTS = "Without --weights real, the model is measured with random values of the same shapes."
CHECKPOINT_FILES = ("config.json", "model.safetensors", "model.safetensors.index.json")


@dataclass(frozen=True)
class Model:
    """A resolved model. ``checkpoint`` is set if its real weights are on this machine and complete."""

    name: str  # for display
    source: Source
    geometry: Geometry
    model_id: str  # content hash of the config
    checkpoint: Checkpoint | None
    no_weights: str | None  # why there are no real weights
    notes: tuple[ModelNote, ...]

    @property
    def cautions(self) -> tuple[str, ...]:
        """The texts of the notes."""
        return tuple(note.text for note in self.notes)

    @cached_property
    def real_id(self) -> str | None:
        """Content hash of the weights; None without weights. Reads what ``files.content_id`` covers."""
        return None if self.checkpoint is None else self.checkpoint.content_id()

    @property
    def stored(self) -> Stored | None:
        """How the weights are stored; None without weights."""
        return None if self.checkpoint is None else self.checkpoint.stored

    def id_for(self, weights: str) -> str:
        """The identity of the model with ``real`` or ``synthetic`` weights, for ``Case.model_id``."""
        if weights == "synthetic":
            return self.model_id
        if self.real_id is None:
            raise ProfileError(f"{self.name}: no real weights: {self.no_weights}", WITHOUT_WEIGHTS)
        return digest([self.model_id, self.real_id])


def resolve(name: str, *, offline: bool | None = None) -> Model:
    """The model that ``name`` means. ``offline``: send no request; None: as the environment says.

    NotFound, with the nearest names, if there is none. ProfileError for an unsupported config or damaged weights.
    """
    try:
        return _resolved(name, offline)
    except OSError as error:
        raise ProfileError(
            f"{printable(name)} cannot be read: {describe(error)}",
            "Ask its owner for read permission.",
        ) from error


def _resolved(name: str, offline: bool | None) -> Model:
    path = _existing(name)
    if path is not None:
        return _folder(path) if path.is_dir() else _gguf(path)
    known = hub.find(name)
    if known is not None:
        return _catalog(known)
    if name.count("/") == 1 and not name.startswith((".", "/", "~")) and not name.casefold().endswith((".gguf", "/")):
        return _hub(name, offline)
    raise _no_such(name)


def _existing(name: str) -> Path | None:
    """The absolute path that ``name`` means, if it exists.

    A file that happens to have the name of a catalog entry counts only if it is a GGUF file.
    """
    try:
        path = Path(os.path.expanduser(name))  # unlike Path.expanduser, it expands only a leading ~
        if name and (path.is_dir() or (path.is_file() and (gguf.is_gguf(path) or hub.find(name) is None))):
            return Path(os.path.realpath(path)) if ".." in path.parts else path.absolute()
    except PermissionError:
        if os.sep in name:
            raise ProfileError(f"no permission to read {printable(name)}") from None
    except (OSError, ValueError, RuntimeError):  # too long, a NUL byte, no such user
        pass
    return None


def _no_such(name: str) -> NotFound:
    """The error for an unknown name, with suggestions."""
    shown = printable(name)
    _, _, address = name.partition("://")
    if address:
        parts = address.split("/")[1:3]
        meant = f": {printable('/'.join(parts), 80)}" if len(parts) == 2 and all(parts) else ""
        return NotFound(f"{shown} is a URL", f"Pass the Hugging Face id owner/name{meant}.")
    if name.endswith("/") and name.count("/") == 2 and not name.startswith((".", "/", "~")):
        return NotFound(f"there is no folder {shown}", f"For Hugging Face, pass owner/name: {printable(name[:-1])}.")
    if name.rstrip("/").casefold() in hub.names():  # the shell completed the name of a folder
        model = printable(name.rstrip("/").casefold())
        return NotFound(f"there is no folder {shown}", f"For the model in the catalog, pass its name alone: {model}.")
    if os.sep in name or name.casefold().endswith(".gguf"):
        return NotFound(f"no such file, folder or Hugging Face id: {shown}")
    near = hub.nearest(name)
    others = (
        f"profile models lists all {len(hub.names())}. You can also pass a folder, a .gguf file or a Hugging Face id."
    )
    return NotFound(f"unknown model: {shown}", f"{did_you_mean(near)}{others}")


def _catalog(name: str) -> Model:
    note = hub.NOTES.get(name)
    return _model(
        name,
        Source("catalog", name, None, hub.shipped_config(name)),
        no_weights=lambda: "a catalog entry has no weights; pass a folder, a .gguf file or a Hugging Face id",
        cautions=(note,) if note else (),
    )


def _folder(path: Path) -> Model:
    name = _shown(path.name)
    if not (path / "config.json").is_file() and (path / ADAPTER).is_file():
        raise NotFound(
            f"folder {name} holds only an adapter ({ADAPTER}), not a model",
            "Merge it into its base model with peft's merge_and_unload, save the result, and pass that folder.",
        )
    if not (path / "config.json").is_file():
        raise NotFound(f"folder {printable(path)} has no config.json", "For GGUF, pass the .gguf file itself.")
    raw = config.read(path / "config.json")
    return _model(
        name,
        Source("folder", str(path), None, raw),
        find=partial(of_folder, path, raw),
        no_weights=partial(why_missing, path),
    )


def _gguf(path: Path) -> Model:
    name = _shown(path.stem)
    if not os.access(path, os.R_OK):
        raise ProfileError(f"no permission to read {printable(path)}", "Ask its owner for read permission.")
    if not gguf.is_gguf(path) and path.suffix.casefold() != ".gguf":
        hint = "Pass the folder that contains it." if path.name in CHECKPOINT_FILES else None
        raise ProfileError(f"{printable(path)} is neither a folder nor a GGUF file", hint)
    header = gguf.header(path)
    try:
        raw, names = gguf_config.named_config(header)
    except ProfileError as error:
        raise type(error)(f"{name}: {error.message}", error.hint) from None
    return _model(name, Source("gguf", str(path), None, raw), names=names, find=partial(of_gguf, path, header))


def _hub(name: str, offline: bool | None) -> Model:
    """The model of a hub id. Downloaded weights are used without asking for a newer revision: otherwise a model that
    was measured with real weights today could be measured with synthetic ones after a README changed on the hub.
    """
    repository, revision = hub.split(name)
    snapshot = hub.downloaded_snapshot(repository, revision)
    if snapshot is None:
        raw, commit = hub.raw_config(repository, revision, offline)
        source = Source("hub", repository, commit, raw)
        return _model(_shown(name), source, no_weights=partial(hub.why_not_downloaded, repository, revision))
    raw = config.read(snapshot / "config.json")
    source = Source("hub", repository, snapshot.name, raw)
    return _model(
        _shown(name), source, find=partial(of_folder, snapshot, raw), no_weights=partial(why_missing, snapshot)
    )


def _model(
    name: str,
    source: Source,
    *,
    find: Callable[[Geometry], Checkpoint | None] = lambda geometry: None,
    no_weights: Callable[[], str | None] = lambda: None,
    names: Mapping[str, str] = MappingProxyType({}),
    cautions: tuple[str, ...] = (),
) -> Model:
    """Build the model. ``find`` looks for the weights of a geometry, ``no_weights`` says why there are none."""
    try:
        geometry = families.geometry(source.config, "GGUF" if source.kind == "gguf" else "config.json", names)
        checkpoint = find(geometry)
    except families.Unserved as error:
        raise families.Unserved(f"{name}: {error.message}{_holds(source)}", error.hint) from None
    except ProfileError as error:
        raise type(error)(f"{name}: {error.message}", error.hint) from None
    return Model(
        name=name,
        source=source,
        geometry=geometry,
        model_id=digest(source.config),
        checkpoint=checkpoint,
        no_weights=None if checkpoint else no_weights(),
        notes=(
            *map(ModelNote, (*geometry.cautions, *_of_storage(checkpoint, source.config), *cautions)),
            *(checkpoint.notes if checkpoint else ()),
        ),
    )


def _holds(source: Source) -> str:
    """The size of the stored weights, for the error about an unsupported family."""
    folder = Path(source.location) if source.kind == "folder" else None
    if source.kind == "hub":
        folder = hub.downloaded_snapshot(source.location, source.revision)
    try:
        tensors = safetensors.verify(folder) if folder else {}
    except ProfileError as error:
        return f"; {error.message}"
    stored = sum(tensor.end - tensor.begin for tensor in tensors.values())
    count = families.counted(len(tensors), "tensor")
    return f"; its weights are {stored:,} bytes ({bytes_text(stored)}) in {count}" if tensors else ""


def _of_storage(checkpoint: Checkpoint | None, raw: Mapping[str, Any]) -> tuple[str, ...]:
    """Notes on how the weights are stored: the quantization, and why its codes cannot be read as values."""
    stated = schemes.of(raw)
    said = [] if stated is None else [f"the checkpoint's weights are stored quantized ({stated.name})"]
    if checkpoint is not None and checkpoint.stored.trouble is not None:
        said.append(checkpoint.stored.trouble)
    return tuple(said)


def _shown(name: str) -> str:
    return printable(name, 80) or "model"
