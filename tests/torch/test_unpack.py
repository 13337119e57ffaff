"""The unpacked folder of a GGUF file is reused only if no other user can have written to it."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig

from profiler import folders
from profiler.backends.hf import load
from profiler.models import gguf as models_gguf


@pytest.fixture
def gguf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file with a stand-in for unpacking: the tests are about whether it is unpacked."""
    monkeypatch.setenv("PROFILER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(folders, "_notes", [])
    monkeypatch.setattr(models_gguf, "header", lambda path: models_gguf.GgufHeader({}, {}))

    def write(gguf: Path, config: Any, dtype: Any, folder: Path) -> None:
        folder.mkdir()
        (folder / "model.safetensors").write_text("ours")
        load._make_private(folder)

    monkeypatch.setattr(load, "_write_unpacked", write)
    path = tmp_path / "sha256-0000"
    path.write_bytes(b"GGUF" + bytes(100))
    return path


def unpacked(gguf: Path) -> Path:
    return load.unpack_gguf(gguf, LlamaConfig(), lambda text: None)


def test_our_own_unpacked_folder_is_reused(gguf: Path) -> None:
    before = os.umask(0)
    try:
        folder = unpacked(gguf)
    finally:
        os.umask(before)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / "model.safetensors").stat().st_mode) == 0o600
    (folder / "model.safetensors").write_text("again")
    assert unpacked(gguf) == folder and (folder / "model.safetensors").read_text() == "again"
    assert folders.notes() == ()


@pytest.mark.parametrize(
    "how", ["open file", "link to a file", "link to a folder", "dangling link", "another user's"]
)
def test_a_folder_that_others_may_have_written_is_unpacked_again(gguf: Path, tmp_path: Path, how: str) -> None:
    if how == "another user's" and os.geteuid() != 0:
        pytest.skip("only root can plant a file of another user")
    folder = unpacked(gguf)
    weights = folder / "model.safetensors"
    weights.write_text("planted")
    if how == "open file":
        weights.chmod(0o666)
    elif how == "another user's":
        os.chown(weights, 65534, 65534)
    else:
        elsewhere = tmp_path / "elsewhere"
        weights.rename(elsewhere) if how == "link to a file" else folder.rename(elsewhere)
        link = weights if how == "link to a file" else folder
        link.symlink_to(elsewhere if how != "dangling link" else tmp_path / "none")
    again = unpacked(gguf)
    assert again == folder and not again.is_symlink()
    assert weights.read_text() == "ours" and not weights.is_symlink()
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    assert [text.endswith("the file is unpacked again") for text in folders.notes()] == [True]
