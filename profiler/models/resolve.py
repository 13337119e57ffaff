"""From what a person types to a model: a catalog name, a folder, a ``.gguf`` file or a hub id.

An existing path comes first, then the catalog, then the hub. Nothing heavy is read or fetched: a config, the headers
of local weights, at most one small file from the hub.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from profiler.case import digest
from profiler.errors import NotFound, ProfileError
from profiler.models import catalog, config, families, gguf_config, gguf_file, hub, safetensors_file
from profiler.models.geometry import Geometry
from profiler.models.source import Source
from profiler.units import bytes_text, printable

WITHOUT_WEIGHTS = "Without --weights real it is measured with random values in the same shapes."
GGUF_SLACK = 0.02  # rope tables, and the K/V weights that Gemma 4 stores for layers that do not use them


@dataclass(frozen=True, slots=True)
class Model:
    """A model as found. ``real_id`` is set exactly when its real weights are here and whole."""

    name: str  # for people; printable
    source: Source
    geometry: Geometry
    model_id: str  # content hash of the config
    real_id: str | None  # content hash of the weights
    no_weights: str | None  # why there are no real weights here, in words
    cautions: tuple[str, ...]

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
    path = _existing(name)
    if path is not None:
        return _gguf(path) if path.is_file() else _folder(path)
    known = catalog.find(name)
    if known is not None:
        return _catalog(known)
    if name.count("/") == 1 and not name.startswith((".", "/", "~")) and not name.endswith((".gguf", "/")):
        return _hub(name, offline)
    raise _no_such(name)


def _existing(name: str) -> Path | None:
    """The absolute path that ``name`` means, if there is something; bare catalog names are never shadowed by chance
    files, because only folders and .gguf files count."""
    try:
        path = Path(name).expanduser()
        if name and (path.is_dir() or path.is_file()):
            return path.absolute()
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
    if os.sep in name or name.endswith(".gguf"):
        return NotFound(f"no such file, folder or hub id: {shown}")
    near = catalog.nearest(name)
    meant = f"Did you mean {' or '.join(near)}? " if near else ""
    others = f"profile models lists all {len(catalog.names())}. Or a folder, a .gguf file, a hub id owner/name."
    return NotFound(f"unknown model: {shown}", f"{meant}{others}")


def _catalog(name: str) -> Model:
    note = catalog.NOTES.get(name)
    return _model(
        name,
        Source("catalog", name, None, catalog.raw_config(name)),
        no_weights="a catalog entry is only a config; give a folder, a .gguf file or a hub id",
        cautions=(note,) if note else (),
    )


def _folder(path: Path) -> Model:
    name = _shown(path.name)
    if not (path / "config.json").is_file():
        raise NotFound(f"folder {name} has no config.json", "For GGUF give the .gguf file itself.")
    raw = config.read(path / "config.json")
    tensors = safetensors_file.verify(path)
    model = _model(
        name,
        Source("folder", str(path), None, raw),
        real_id=safetensors_file.content_id(path) if tensors else None,
        no_weights=None if tensors else safetensors_file.why_missing(path),
    )
    safetensors_file.check_embedding(tensors, model.geometry.vocab, model.geometry.hidden)
    return model


def _gguf(path: Path) -> Model:
    name = _shown(path.stem)
    if path.suffix != ".gguf":
        raise ProfileError(f"{_shown(path.name)} is neither a folder nor a .gguf file")
    header = gguf_file.header(path)
    try:
        raw, names = gguf_config.named_config(header)
    except ProfileError as error:
        raise type(error)(f"{name}: {error.message}", error.hint) from None
    model = _model(
        name,
        Source("gguf", str(path), None, raw),
        names=names,
        real_id=safetensors_file.files_id([path]),
    )
    _check_count(header, model.geometry, name)
    return model


def _check_count(header: gguf_file.GgufHeader, geometry: Geometry, name: str) -> None:
    """ProfileError if the file's tensors are not the model that its metadata describes."""
    count = len(geometry.layers)
    extra = tuple(f"blk.{n}." for n in range(count, count + 8))  # multi-token prediction
    stored = sum(tensor.parameters for tensor in header.tensors.values() if not tensor.name.startswith(extra))
    if abs(stored - geometry.parameters) > GGUF_SLACK * geometry.parameters:
        raise ProfileError(
            f"{name}: its tensors hold {stored:,} parameters, its metadata describes {geometry.parameters:,}"
        )


def _hub(name: str, offline: bool | None) -> Model:
    """A snapshot that is here with its weights is used as it is, without asking for a newer one: a row that was
    measured today must not turn synthetic tomorrow because somebody mended a README."""
    repository, revision = hub.split(name)
    snapshot = hub.downloaded_snapshot(repository, revision)
    if snapshot is None:
        raw, commit = hub.raw_config(repository, revision, offline)
        source = Source("hub", repository, commit, raw)
        return _model(_shown(name), source, no_weights="its weights are not in the hub's cache")
    tensors = safetensors_file.verify(snapshot)
    source = Source("hub", repository, snapshot.name, config.read(snapshot / "config.json"))
    model = _model(_shown(name), source, real_id=snapshot.name)
    safetensors_file.check_embedding(tensors, model.geometry.vocab, model.geometry.hidden)
    return model


def _model(
    name: str,
    source: Source,
    *,
    names: Mapping[str, str] = MappingProxyType({}),
    real_id: str | None = None,
    no_weights: str | None = None,
    cautions: tuple[str, ...] = (),
) -> Model:
    try:
        geometry = families.geometry(source.config, "GGUF" if source.kind == "gguf" else "config.json", names)
    except families.Unserved as error:
        raise families.Unserved(f"{name}: {error.message}{_holds(source)}", error.hint) from None
    except ProfileError as error:
        raise type(error)(f"{name}: {error.message}", error.hint) from None
    return Model(
        name=name,
        source=source,
        geometry=geometry,
        model_id=digest(source.config),
        real_id=real_id,
        no_weights=no_weights,
        cautions=(*geometry.cautions, *_stored_format(source.config), *cautions),
    )


def _holds(source: Source) -> str:
    """What is stored here of a model that there is no rule for, in words."""
    folder = Path(source.location) if source.kind == "folder" else None
    if source.kind == "hub":
        folder = hub.downloaded_snapshot(source.location, source.revision)
    try:
        tensors = safetensors_file.verify(folder) if folder else {}
    except ProfileError as error:
        return f"; {error.message}"
    stored = sum(tensor.end - tensor.begin for tensor in tensors.values())
    count = families.counted(len(tensors), "tensor")
    return f"; its weights are {stored:,} bytes ({bytes_text(stored)}) in {count}" if tensors else ""


def _stored_format(raw: Mapping[str, Any]) -> tuple[str, ...]:
    """A caution if the checkpoint's own weights are quantized already."""
    scheme = raw.get("quantization_config")
    if not isinstance(scheme, dict):
        return ()
    method = printable(scheme.get("quant_method", "unnamed"), 40)
    return (f"the checkpoint's weights are stored quantized ({method})",)


def _shown(name: str) -> str:
    return printable(name, 80) or "model"
