"""Finds the model that a user names: a catalog name, a folder, a ``.gguf`` file or a hub id.

An existing path comes first, then the catalog, then the hub. This reads and downloads little: a config, the headers
of local weights, at most one small file from the hub.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any

from profiler.case import CONFIG, ModelNote, Source, digest
from profiler.errors import NotFound, ProfileError
from profiler.folders import describe
from profiler.models import config, families, gguf, gguf_config, hub, safetensors
from profiler.models import scheme as schemes
from profiler.models.checkpoint import ADAPTER, Checkpoint, of_folder, of_gguf, why_missing
from profiler.models.geometry import Geometry
from profiler.models.stored import Stored
from profiler.registry import did_you_mean
from profiler.shell import quote
from profiler.units import bytes_text, printable

WITHOUT_WEIGHTS = "Without --weights real, the model is measured with random values of the same shapes."
ONLY = "A model is a folder with config.json and safetensors, a .gguf file, or a config.json."
NO_HUB_ID = (".gguf", ".json", "/")  # a Hugging Face id does not end so
MAX_LISTED = 10_000  # entries of a folder that are looked at for a hint
PIPELINE = "model_index.json"  # of diffusers: its folders hold parts, not language models
CHECKPOINT_FILES = ("model.safetensors", "model.safetensors.index.json")


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
        if path.is_dir():
            return _folder(path)
        if path.name == CONFIG:
            return _folder(path.parent)
        return _config_file(path) if _is_config(path) else _gguf(path)
    known = hub.find(name)
    if known is not None:
        return _catalog(known)
    if name.count("/") == 1 and not name.startswith((".", "/", "~")) and not name.casefold().endswith(NO_HUB_ID):
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


def _beside(name: str) -> list[str]:
    """Paths in the same folder whose names are similar to that of ``name``."""
    folder, base = os.path.split(name.rstrip(os.sep))
    try:
        found = os.listdir(os.path.expanduser(folder) or ".")
    except (OSError, ValueError):
        return []
    return [printable(os.path.join(folder, near)) for near in difflib.get_close_matches(base, found, 2)]


def _link(name: str) -> str | None:
    """Where the symbolic link ``name`` leads; ``None`` if it is none."""
    try:
        return os.readlink(os.path.expanduser(name))
    except (OSError, ValueError):
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
    if (target := _link(name)) is not None:
        return NotFound(f"{shown} is a link to {printable(target)}, which does not exist")
    if os.sep in name or name.casefold().endswith(NO_HUB_ID):
        return NotFound(
            f"no such file, folder or Hugging Face id: {shown}",
            f"{did_you_mean(_beside(name))}Relative paths start at the current folder; profile models lists the names"
            " that you can use without a path.",
        )
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
    if not (path / "config.json").is_file():
        raise _no_config(path)
    raw = config.read(path / "config.json")
    return _model(
        name,
        Source("folder", str(path), None, raw),
        find=partial(of_folder, path, raw),
        no_weights=partial(why_missing, path),
    )


def _is_config(path: Path) -> bool:
    return path.suffix.casefold() == ".json" and path.name not in CHECKPOINT_FILES and not gguf.is_gguf(path)


def _config_file(path: Path) -> Model:
    """A config by itself, which was saved under another name."""
    raw = config.read(path)
    name = _shown(path.stem)
    return _model(name, Source("config", str(path), None, raw), no_weights=lambda: "a config has no weights")


def _no_config(folder: Path) -> NotFound:
    """The error for a folder without config.json. If the folder holds models, the hint names one to pass."""
    shown = printable(folder)
    if (folder / ADAPTER).is_file():
        return _only_adapter(_shown(folder.name))
    cached = folder.parent if folder.name == "snapshots" else folder
    if cached.name.startswith("models--"):
        snapshot = _newest(cached / "snapshots", "*", hub.main_commit(cached))
        identity = printable(cached.name.removeprefix("models--").replace("--", "/"))
        hint = f"Pass its Hugging Face id, {identity}"
        path = f", or the folder of its newest snapshot: {quote(str(snapshot))}" if snapshot else "."
        return NotFound(f"{shown} is a folder of the Hugging Face cache, not a model", f"{hint}{path}")
    checkpoint = _newest(folder, "checkpoint-*")
    if checkpoint is not None and not (checkpoint / "config.json").is_file():
        return _only_adapter(f"{_shown(folder.name)}/{_shown(checkpoint.name)}")
    if checkpoint is not None:
        return NotFound(
            f"folder {shown} has no config.json, but checkpoints of a training",
            f"Pass the folder of the newest one: {quote(str(checkpoint))}",
        )
    return NotFound(f"folder {shown} has no config.json", _instead_of(folder))


def _only_adapter(name: str) -> NotFound:
    return NotFound(
        f"folder {name} holds only an adapter ({ADAPTER}), not a model",
        "Merge it into its base model with peft's merge_and_unload, save the result, and pass that folder.",
    )


def _newest(folder: Path, pattern: str, preferred: str = "") -> Path | None:
    """The model among the folders in ``folder``: the preferred name, else the highest number, else the newest."""

    def order(each: Path) -> tuple[bool, int, float]:
        step = each.name.rpartition("-")[2]
        return each.name == preferred, int(step) if step.isdecimal() else -1, each.stat().st_mtime

    found = islice(folder.glob(pattern), MAX_LISTED)
    models = [each for each in found if (each / "config.json").is_file() or (each / ADAPTER).is_file()]
    return max(models, key=order, default=None)


def _instead_of(folder: Path) -> str:
    """What to pass instead of a folder without config.json and without checkpoints."""
    names = sorted(each.name for each in islice(folder.iterdir(), MAX_LISTED))
    if not names:
        return "The folder is empty. Download the model into it, or pass another folder."
    ggufs = [name for name in names if name.casefold().endswith(".gguf")]
    if ggufs:
        which = "its GGUF file" if len(ggufs) == 1 else f"one of its {len(ggufs)} GGUF files, such as"
        also = "" if len(ggufs) == 1 else "; profile sweep --backend llama.cpp -m takes the folder"
        return f"Pass {which}{':' * (len(ggufs) == 1)} {quote(str(folder / ggufs[0]))}{also}"
    models = [name for name in names if (folder / name / "config.json").is_file()]
    if models and PIPELINE not in names:
        return f"Pass the folder of a model in it, such as {quote(str(folder / models[0]))}"
    reason = safetensors.why_missing(folder, names)
    if reason != safetensors.NONE:
        return f"Pass a folder with config.json and safetensors: {reason}."
    if any(name.endswith(".safetensors") for name in names):
        return "Copy the model's config.json into it: the weights alone do not say what model they are."
    return ONLY


def _gguf(path: Path) -> Model:
    name = _shown(path.stem)
    if not os.access(path, os.R_OK):
        raise ProfileError(f"no permission to read {printable(path)}", "Ask its owner for read permission.")
    if not gguf.is_gguf(path) and path.suffix.casefold() != ".gguf":
        if path.suffix in safetensors.UNFINISHED:
            raise _unfinished(path)
        in_folder = path.name in CHECKPOINT_FILES or path.suffix == ".safetensors"
        hint = f"Pass the folder that contains it: {quote(str(path.parent))}" if in_folder else ONLY
        raise ProfileError(f"{printable(path)} is neither a folder nor a GGUF file", hint)
    try:
        header = gguf.model_header(path)
    except ProfileError as error:
        raise _unfinished(path) if path.suffix in safetensors.UNFINISHED else error from None
    try:
        raw, names = gguf_config.named_config(header)
    except ProfileError as error:
        raise type(error)(f"{name}: {error.message}", error.hint) from None
    return _model(name, Source("gguf", str(path), None, raw), names=names, find=partial(of_gguf, path, header))


def _unfinished(path: Path) -> ProfileError:
    return ProfileError(f"{printable(path)} is an unfinished download", "Finish it, then pass the whole file.")


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
