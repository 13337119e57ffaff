"""A file in a folder is all that a new plug-in needs."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

import profiler.quants
from profiler import registry
from profiler.errors import NotFound


def test_names_are_the_files_as_people_type_them() -> None:
    found = registry.names("quants")
    assert found == sorted(found)
    assert "nf4-dq" in found


@pytest.mark.parametrize("folder", registry.OBJECTS)
def test_a_name_loads_a_module_with_the_object_of_its_folder(folder: str) -> None:
    for name in registry.names(folder):
        assert hasattr(registry.load(folder, name, "plug-in"), registry.OBJECTS[folder])


@pytest.mark.parametrize("folder", registry.OBJECTS)
def test_a_file_that_only_uses_the_object_of_its_folder_is_no_plugin(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Code that two plug-ins share lies beside them and needs no mention anywhere."""
    known, name = registry.names(folder), registry.OBJECTS[folder]
    text = f"from elsewhere import {name}\n\n{name}_OF = 1\n\n\ndef f():\n    {name} = 2\n"
    (tmp_path / "shared.py").write_text(text)
    package = importlib.import_module(f"profiler.{folder}")
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    assert registry.names(folder) == known
    with pytest.raises(NotFound):
        registry.load(folder, "shared", "plug-in")


@pytest.mark.parametrize("name", ["nf4-dq", "nf4_dq", "NF4-dq"])
def test_a_dash_and_an_underscore_name_the_same_file(name: str) -> None:
    assert registry.load("quants", name, "quantization").__name__ == "profiler.quants.nf4_dq"


def test_an_unknown_name_lists_the_nearest_first_and_then_all() -> None:
    with pytest.raises(NotFound) as caught:
        registry.load("quants", "nf4dq", "quantization")
    assert caught.value.message == "unknown quantization: nf4dq"
    assert caught.value.hint is not None
    assert caught.value.hint.startswith("Did you mean nf4-dq or nf4? Known: ")
    assert caught.value.hint.endswith(f"Known: {', '.join(registry.names('quants'))}.")


def test_a_name_like_nothing_gets_no_guess() -> None:
    assert registry.unknown("report", "zzzz", ["table", "csv"]).hint == "Known: table, csv."
    assert registry.unknown("quantization", "4bit", ["int8", "nf4"]).hint == "Known: int8, nf4."


@pytest.mark.parametrize("name", ["", "../errors", "nf4.QUANT", "os", "__init__", "\x1b[2J"])
def test_a_name_is_never_a_path_or_another_module(name: str) -> None:
    with pytest.raises(NotFound) as caught:
        registry.load("quants", name, "quantization")
    assert "\x1b" not in str(caught.value)


def test_a_new_file_is_found_without_being_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "q6_k.py").write_text("QUANT = 'found'\n")
    monkeypatch.setattr(profiler.quants, "__path__", [*profiler.quants.__path__, str(tmp_path)])
    assert "q6-k" in registry.names("quants")
    assert registry.load("quants", "q6-k", "quantization").QUANT == "found"


def test_a_folder_that_cannot_be_read_is_not_an_empty_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """With too few file descriptors every name was unknown, and the list of known ones was empty."""

    def refused(path: str) -> list[str]:
        raise OSError(24, "Too many open files", path)

    registry._names.cache_clear()
    monkeypatch.setattr(registry.os, "listdir", refused)
    with pytest.raises(OSError, match="Too many open files"):
        registry.load("quants", "nf4", "quantization")


def test_a_plug_in_that_is_added_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names are cached until a folder changes."""
    monkeypatch.setattr(profiler.quants, "__path__", [*profiler.quants.__path__, str(tmp_path)])
    assert "later" not in registry.names("quants")
    (tmp_path / "later.py").write_text("QUANT = None\n")
    assert "later" in registry.names("quants")
