"""Defaults that users keep in ``profile.toml``: models, quantizations, device and store.

    models = ["gemma-3-1b", "./my-model"]   # of profile sweep and profile fit
    quants = "bf16,nf4"                     # of the same
    device = "cuda:1"                       # of every command with --device
    store = "results.sqlite"                # of every command that reads or writes results

Two files are read: the user's, ``~/.config/profile/profile.toml``, and the project's, ``profile.toml`` in the current
folder or in the nearest folder above it. A key of the project's file replaces the user's. Options take precedence
over both, and so does ``$PROFILER_STORE`` for the store. ``$PROFILER_SETTINGS`` names one file to read instead; if it
is empty, none is read.

Paths in a file are relative to its folder.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from profiler import folders, registry
from profiler.errors import ProfileError
from profiler.foreign import BadContent, Budget, is_file, read_bytes, toml_value
from profiler.units import printable

FILE = "profile.toml"
VARIABLE = "PROFILER_SETTINGS"
LISTS, TEXTS = ("models", "quants"), ("device", "store")
COMMANDS = ("sweep", "fit")  # whose models and quantizations have defaults
BUDGET = Budget(nbytes=64 * 1024, values=2**12, depth=4)  # such a file is a few lines long


@dataclass(frozen=True, slots=True)
class Setting:
    """The default of one option, and the file that says so."""

    value: tuple[str, ...] | str
    file: Path


def load() -> dict[str, Setting]:
    """The defaults by key. Raises ProfileError for a file that cannot be read, unknown keys and wrong values."""
    found: dict[str, Setting] = {}
    for file in _files():
        found |= {key: Setting(value, file) for key, value in _read(file).items()}
    return found


def default_map(command: str) -> dict[str, Any]:
    """The defaults of a command's parameters; that of the store is in ``results.store.default_path``.

    Raises like ``load``.
    """
    names = ("device", *(LISTS if command in COMMANDS else ()))
    return {name: setting.value for name, setting in load().items() if name in names}


def store() -> Path | None:
    """The default store; None if no file names one. Raises like ``load``."""
    setting = load().get("store")
    return None if setting is None else Path(str(setting.value))


def results() -> Path:
    """Where results are stored: in ``$PROFILER_STORE``, else where ``profile.toml`` says, else in
    ``profile/results.sqlite`` in the user data folder. Raises ProfileError if there is none of them.
    """
    named = os.environ.get("PROFILER_STORE")
    return folders.expanded(named) if named else store() or folders.data() / "results.sqlite"


def existing_results(path: Path | None) -> Path | None:
    """``path``, or ``results()``, if there is a store to read; also ``None`` if the user has no data folder."""
    try:
        path = path or results()
        path.lstat()
    except (ProfileError, FileNotFoundError):
        return None
    except OSError:  # opening it will report the error
        pass
    return path


def _files() -> Iterator[Path]:
    """The files to read, the one that takes precedence last."""
    named = os.environ.get(VARIABLE)
    if named is not None:
        yield from [folders.expanded(named)] if named else []
        return
    yield from filter(is_file, [folders.config() / FILE])
    try:
        here = Path.cwd()
    except OSError:  # the folder was removed
        return
    yield from [path for folder in (here, *here.parents) if is_file(path := folder / FILE)][:1]


def _read(file: Path) -> dict[str, tuple[str, ...] | str]:
    shown = printable(file)
    try:
        content = toml_value(read_bytes(file, BUDGET.nbytes, shown).decode("utf-8-sig"), BUDGET)
    except (BadContent, UnicodeDecodeError) as error:
        raise ProfileError(f"{shown} is not valid TOML: {printable(error)}") from None
    unknown = sorted(content.keys() - {*LISTS, *TEXTS})
    if unknown:
        raise registry.unknown(f"key in {shown}", unknown[0], sorted((*LISTS, *TEXTS)))
    return {key: _value(shown, file.parent, key, value) for key, value in content.items()}


def _value(shown: str, folder: Path, key: str, value: Any) -> tuple[str, ...] | str:
    """Raises ProfileError for anything but text, or a list of texts where several values are possible."""
    texts = value if isinstance(value, list) and key in LISTS else [value]
    if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        example = f'{key} = ["NAME"]' if key in LISTS else f'{key} = "NAME"'
        raise ProfileError(f"{shown}: {key} is {printable(value, 60)}, but must be text", f"Write {example}.")
    if key == "store" or key == "models":
        texts = [_resolved(folder, text, always=key == "store") for text in texts]
    return tuple(texts) if key in LISTS else texts[0]


def _resolved(folder: Path, text: str, always: bool) -> str:
    """``text`` relative to ``folder`` if it is a path: ``always``, or because it begins like one."""
    if text.startswith("~"):
        return str(folders.expanded(text))
    return str(folder / text) if always or text.startswith(("./", "../")) else text
