"""From what a person types to a model: a catalog name, a folder, a ``.gguf`` file or a hub id.

An existing path comes first, then the catalog, then the hub. Nothing heavy is read or fetched: a config, the headers
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
from profiler.units import bytes_text, printable

WITHOUT_WEIGHTS = "Without --weights real it is measured with random values in the same shapes."
BESIDE = ("config.json", "model.safetensors", "model.safetensors.index.json")


@dataclass(frozen=True)
class Model:
    """A model as found. ``checkpoint`` is set exactly when its real weights are here and whole."""

    name: str  # for people; printable
    source: Source
    geometry: Geometry
    model_id: str  # content hash of the config
    checkpoint: Checkpoint | None
    no_weights: str | None  # why there are no real weights here, in words
    remarks: tuple[ModelNote, ...]

    @property
    def cautions(self) -> tuple[str, ...]:
        """The remarks in words."""
        return tuple(remark.text for remark in self.remarks)

    @cached_property
    def real_id(self) -> str | None:
        """Content hash of the weights, None where there are none. Reads what ``identity`` says that it covers."""
        return None if self.checkpoint is None else self.checkpoint.content_id()

    @property
    def stored(self) -> Stored | None:
        """How its weights are stored, where there are headers to tell."""
        return None if self.checkpoint is None else self.checkpoint.stored

    def id_for(self, weights: str) -> str:
        """Identity of the model with ``real`` or ``synthetic`` weights, as ``Case.model_id`` wants it."""
        if weights == "synthetic":
            return self.model_id
        if self.real_id is None:
            raise ProfileError(f"{self.name}: no real weights: {self.no_weights}", WITHOUT_WEIGHTS)
        return digest([self.model_id, self.real_id])


def resolve(name: str, *, offline: bool | None = None) -> Model:
    """The model that ``name`` means. ``offline``: no request leaves this machine; None: as the environment says.

    NotFound with the nearest names if there is none; ProfileError for a config without a rule, or broken weights.
    """
    try:
        return _resolved(name, offline)
    except OSError as error:
        raise ProfileError(
            f"{printable(name)} cannot be read: {describe(error)}",
            "Ask its owner for access.",
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
    """The absolute path that ``name`` means, if there is something. A chance file that is no GGUF file does not stand
    in the way of a catalog name."""
    try:
        path = Path(os.path.expanduser(name))  # Path.expanduser would take a folder called ~ for the home
        if name and (path.is_dir() or (path.is_file() and (gguf.is_gguf(path) or hub.find(name) is None))):
            return path.absolute()
    except PermissionError:
        if os.sep in name:
            raise ProfileError(f"{printable(name)} may not be read by this user") from None
    except (OSError, ValueError, RuntimeError):  # too long, a NUL byte, no such user
        pass
    return None


def _no_such(name: str) -> NotFound:
    """The error for a name that means nothing, with what may have been meant."""
    shown = printable(name)
    _, _, address = name.partition("://")
    if address:
        parts = address.split("/")[1:3]
        meant = f": {printable('/'.join(parts), 80)}" if len(parts) == 2 and all(parts) else ""
        return NotFound(f"{shown} is a URL", f"Give the hub id owner/name{meant}.")
    if name.endswith("/") and name.count("/") == 2 and not name.startswith((".", "/", "~")):
        return NotFound(f"there is no folder {shown}", f"For the hub give owner/name: {printable(name[:-1])}.")
    if name.rstrip("/").casefold() in hub.names():  # as the shell completes the name of a folder
        model = printable(name.rstrip("/").casefold())
        return NotFound(f"there is no folder {shown}", f"For the catalog's model give its name alone: {model}.")
    if os.sep in name or name.casefold().endswith(".gguf"):
        return NotFound(f"no such file, folder or hub id: {shown}")
    near = hub.nearest(name)
    meant = f"Did you mean {' or '.join(near)}? " if near else ""
    others = f"profile models lists all {len(hub.names())}. Or a folder, a .gguf file, a hub id owner/name."
    return NotFound(f"unknown model: {shown}", f"{meant}{others}")


def _catalog(name: str) -> Model:
    note = hub.NOTES.get(name)
    return _model(
        name,
        Source("catalog", name, None, hub.shipped_config(name)),
        no_weights=lambda: "a catalog entry is only a config; give a folder, a .gguf file or a hub id",
        cautions=(note,) if note else (),
    )


def _folder(path: Path) -> Model:
    name = _shown(path.name)
    if not (path / "config.json").is_file() and (path / ADAPTER).is_file():
        raise NotFound(
            f"folder {name} holds an adapter ({ADAPTER}), which is no model by itself",
            "Merge it into its base model with peft's merge_and_unload, save that, and give the folder.",
        )
    if not (path / "config.json").is_file():
        raise NotFound(f"folder {printable(path)} has no config.json", "For GGUF give the .gguf file itself.")
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
        raise ProfileError(f"{printable(path)} may not be read by this user", "Ask its owner for permission.")
    if not gguf.is_gguf(path) and path.suffix.casefold() != ".gguf":
        hint = "Give its folder, in which config.json lies." if path.name in BESIDE else None
        raise ProfileError(f"{printable(path)} is neither a folder nor a GGUF file", hint)
    header = gguf.header(path)
    try:
        raw, names = gguf_config.named_config(header)
    except ProfileError as error:
        raise type(error)(f"{name}: {error.message}", error.hint) from None
    return _model(name, Source("gguf", str(path), None, raw), names=names, find=partial(of_gguf, path, header))


def _hub(name: str, offline: bool | None) -> Model:
    """A snapshot that is here with its weights is used as it is, without asking for a newer one: a row that was
    measured today must not turn synthetic tomorrow because somebody mended a README."""
    repository, revision = hub.split(name)
    snapshot = hub.downloaded_snapshot(repository, revision)
    if snapshot is None:
        raw, commit = hub.raw_config(repository, revision, offline)
        source = Source("hub", repository, commit, raw)
        return _model(_shown(name), source, no_weights=lambda: "its weights are not in the hub's cache")
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
    """``find`` looks for the weights that a geometry needs, ``no_weights`` says why there are none."""
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
        remarks=(
            *map(ModelNote, (*geometry.cautions, *_of_storage(checkpoint, source.config), *cautions)),
            *(checkpoint.remarks if checkpoint else ()),
        ),
    )


def _holds(source: Source) -> str:
    """What is stored here of a model that there is no rule for, in words."""
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
    """What to know of how the weights are stored: a quantization, and why codes are no values."""
    stated = schemes.of(raw)
    said = [] if stated is None else [f"the checkpoint's weights are stored quantized ({stated.name})"]
    if checkpoint is not None and checkpoint.stored.trouble is not None:
        said.append(checkpoint.stored.trouble)
    return tuple(said)


def _shown(name: str) -> str:
    return printable(name, 80) or "model"
