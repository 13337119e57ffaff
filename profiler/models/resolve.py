"""From what a person types to a model: a catalog name, a folder, a ``.gguf`` file or a hub id.

An existing path comes first, then the catalog, then the hub. Nothing heavy is read or fetched: a config, the headers
of local weights, at most one small file from the hub.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from profiler.case import digest
from profiler.errors import NotFound, ProfileError
from profiler.models import (
    catalog,
    config,
    families,
    gguf_config,
    gguf_file,
    gguf_stored,
    hub,
    safetensors_file,
    scheme,
    stored,
)
from profiler.models.geometry import Geometry
from profiler.models.safetensors_file import Tensor
from profiler.models.source import Source
from profiler.models.stored import Stored
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
    stored: Stored | None = None  # how its weights are stored, where there are headers to tell

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
        tensors=tensors,
    )
    safetensors_file.check_embedding(tensors, model.geometry.vocab, model.geometry.hidden)
    return model


def _gguf(path: Path) -> Model:
    name = _shown(path.stem)
    if path.suffix != ".gguf":
        raise ProfileError(f"{_shown(path.name)} is neither a folder nor a .gguf file")
    header = gguf_file.header(path)
    model = _model(
        name,
        Source("gguf", str(path), None, gguf_config.config(header)),
        real_id=safetensors_file.files_id([path]),
        gguf=header,
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
    model = _model(_shown(name), source, real_id=snapshot.name, tensors=tensors)
    safetensors_file.check_embedding(tensors, model.geometry.vocab, model.geometry.hidden)
    return model


def _model(
    name: str,
    source: Source,
    *,
    real_id: str | None = None,
    no_weights: str | None = None,
    cautions: tuple[str, ...] = (),
    tensors: Mapping[str, Tensor] | None = None,
    gguf: gguf_file.GgufHeader | None = None,
) -> Model:
    try:
        geometry = families.geometry(source.config)
        held = _stored(geometry, source.config, tensors, gguf)
    except ProfileError as error:
        raise type(error)(f"{name}: {error.message}", error.hint) from None
    return Model(
        name=name,
        source=source,
        geometry=geometry,
        model_id=digest(source.config),
        real_id=real_id,
        no_weights=no_weights,
        cautions=(*geometry.cautions, *_of_storage(held, source.config), *cautions),
        stored=held,
    )


def _stored(
    geometry: Geometry,
    raw: Mapping[str, Any],
    tensors: Mapping[str, Tensor] | None,
    gguf: gguf_file.GgufHeader | None,
) -> Stored | None:
    if gguf is not None:
        return gguf_stored.from_gguf(geometry, gguf)
    return stored.from_safetensors(geometry, tensors, scheme.of(raw)) if tensors else None


def _of_storage(held: Stored | None, raw: Mapping[str, Any]) -> tuple[str, ...]:
    """What to know of how the weights are stored: a quantization of their own, and what of the file is not used."""
    said = []
    stated = scheme.of(raw)
    if stated is not None:
        said.append(f"the checkpoint's weights are stored quantized ({stated.name})")
    if held is not None and held.trouble is not None:
        said.append(held.trouble)
    if held is not None and held.left_out:
        most, *others = held.left_out
        more = (
            f" and {len(others)} other places ({bytes_text(sum(each.nbytes for each in others))})" if others else ""
        )
        said.append(f"the decoder leaves out {most.words}{more} of the file")
    return tuple(said)


def _shown(name: str) -> str:
    return printable(name, 80) or "model"
