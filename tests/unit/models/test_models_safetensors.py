"""Safetensors headers: whole files pass, anything else is named before a worker maps it."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest

from profiler import files
from profiler.errors import ProfileError
from profiler.models import safetensors

F32 = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}
BF16 = {"dtype": "BF16", "shape": [5], "data_offsets": [24, 34]}


def content(entries: Any, data: int = 34, length: int | None = None) -> bytes:
    header = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack("<Q", len(header) if length is None else length) + header + bytes(data)


def written(folder: Path, entries: Any, data: int = 34, name: str = "model.safetensors") -> Path:
    path = folder / name
    path.write_bytes(content(entries, data))
    return path


def test_a_whole_file_gives_its_tensors(tmp_path: Path) -> None:
    tensors = safetensors.header(written(tmp_path, {"__metadata__": {"format": "pt"}, "a": F32, "b": BF16}))[0]
    assert {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()} == {
        "a": ("F32", (2, 3)),
        "b": ("BF16", (5,)),
    }


def test_an_empty_tensor_and_packed_bits_are_fine(tmp_path: Path) -> None:
    entries = {
        "a": {"dtype": "F4", "shape": [4, 4], "data_offsets": [0, 8]},
        "b": {"dtype": "F32", "shape": [0, 7], "data_offsets": [8, 8]},
    }
    assert len(safetensors.header(written(tmp_path, entries, 8))[0]) == 2


@pytest.mark.parametrize("cut", [1, 20, 33, 34, 60, 200])
def test_a_truncated_file_is_called_truncated(tmp_path: Path, cut: int) -> None:
    path = written(tmp_path, {"a": F32, "b": BF16})
    whole = path.read_bytes()
    path.write_bytes(whole[: max(0, len(whole) - cut)])
    with pytest.raises(ProfileError, match="truncated"):
        safetensors.header(path)


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (content({"a": F32, "b": BF16}, data=35), "do not cover"),
        (content({"a": F32 | {"data_offsets": [4, 28]}}, data=28), "do not cover"),
        (content({"a": F32, "b": F32}, data=24), "do not cover"),
        (content({"a": F32 | {"shape": [2, 4]}}, data=24), "contradict"),
        (content({"a": F32 | {"shape": [2, -3]}}, data=24), "bad shape"),
        (content({"a": F32 | {"shape": [True, 6]}}, data=24), "bad shape"),
        (content({"a": F32 | {"shape": [2**60, 2**60]}}, data=24), "bad shape"),
        (content({"a": F32 | {"dtype": "F31"}}, data=24), "unknown dtype"),
        (content({"a": F32 | {"dtype": ["F32"]}}, data=24), "unknown dtype"),
        (content({"a": F32 | {"data_offsets": [24, 0]}}, data=24), "contradict"),
        (content({"a": 1}), "not an object"),
        (content([1, 2]), "bad safetensors header"),
        (content(b"{"), "bad safetensors header"),
        (content(b"[" * 100_000), "bad safetensors header"),
        (b"", "truncated"),
        (b"1234567", "truncated"),
        (struct.pack("<Q", 2**63) + b"{}", "truncated"),
    ],
)
def test_a_header_that_lies_is_refused(tmp_path: Path, bad: bytes, says: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(bad)
    with pytest.raises(ProfileError, match=says) as caught:
        safetensors.header(path)
    assert "\n" not in caught.value.message


def test_a_header_larger_than_any_real_one_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 17 * 1024 * 1024))
        file.truncate(18 * 1024 * 1024)
    with pytest.raises(ProfileError, match="more than any real file"):
        safetensors.header(path)


def test_shards_are_those_of_the_index(tmp_path: Path) -> None:
    written(tmp_path, {"a": F32}, 24, "one.safetensors")
    written(tmp_path, {"b": F32}, 24, "two.safetensors")
    written(tmp_path, {"c": F32}, 24, "consolidated.safetensors")
    index = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    (tmp_path / safetensors.INDEX).write_text(json.dumps(index))
    assert set(safetensors.verify(tmp_path)) == {"a", "b"}
    (tmp_path / "two.safetensors").unlink()
    with pytest.raises(ProfileError, match=r"two.safetensors, which model.safetensors.index.json names, is missing"):
        safetensors.verify(tmp_path)


@pytest.mark.parametrize(
    "index",
    [
        {"weight_map": {"a": "../outside.safetensors"}},
        {"weight_map": {"a": "/etc/passwd"}},
        {"weight_map": {"a": "model.bin"}},
        {"weight_map": {"a": 7}},
        {"weight_map": {"a": ["x"]}},
        {"weight_map": {}},
        {"weight_map": [1]},
        [],
        {},
    ],
)
def test_an_index_cannot_lead_out_of_its_folder(tmp_path: Path, index: Any) -> None:
    (tmp_path / safetensors.INDEX).write_text(json.dumps(index))
    with pytest.raises(ProfileError, match=safetensors.INDEX):
        safetensors.shards(tmp_path)


def test_a_folder_of_pickles_says_so(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    assert safetensors.shards(tmp_path) is None
    assert "pytorch_model.bin" in safetensors.why_missing(tmp_path)
    assert "never loaded" in safetensors.why_missing(tmp_path)


def content_id(folder: Path) -> str:
    return files.content_id(safetensors.spans(safetensors.verify(folder)))


def test_the_identity_of_weights_changes_with_a_fine_tune_of_the_same_shapes(tmp_path: Path) -> None:
    size = 4 * 1_000_000
    path = written(tmp_path, {"a": {"dtype": "F32", "shape": [1_000_000], "data_offsets": [0, size]}}, size)
    before = content_id(tmp_path)
    assert before == content_id(tmp_path)
    with path.open("r+b") as file:  # as a fine-tune does: values everywhere, shapes nowhere
        file.seek(100)
        file.write(b"\x01" * (size - 100))
    assert content_id(tmp_path) != before


def test_a_file_of_many_names_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = written(tmp_path, {"a": F32}, 24, "0.safetensors")
    for n in range(1, 40):
        link = tmp_path / f"{n}.safetensors"
        link.symlink_to(whole.name) if n % 2 else link.hardlink_to(whole)
    index = {"weight_map": {str(n): f"{n}.safetensors" for n in range(40)}}
    (tmp_path / safetensors.INDEX).write_text(json.dumps(index))
    read: list[Path] = []
    real = safetensors.header
    monkeypatch.setattr(safetensors, "header", lambda path, most: read.append(path) or real(path, most))
    assert set(safetensors.verify(tmp_path)) == {"a"}
    assert len(read) == 1


def test_headers_are_bounded_all_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = {"__metadata__": {"x": "y" * 1000}}
    for n in range(5):
        written(tmp_path, entries, 0, f"{n}.safetensors")
    index = {"weight_map": {str(n): f"{n}.safetensors" for n in range(5)}}
    (tmp_path / safetensors.INDEX).write_text(json.dumps(index))
    safetensors.verify(tmp_path)
    monkeypatch.setattr(safetensors, "MAX_HEADERS", 4000)
    with pytest.raises(ProfileError, match=r"3\.safetensors has a header of .*, more than any real file"):
        safetensors.verify(tmp_path)


@pytest.mark.parametrize(
    ("index", "says"),
    [
        ('{"weight_map": {"a": "' + "a" * 100_000 + '.safetensors"}}', "is missing"),
        ('{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}', "a occurs twice"),
        ('{"weight_map": {"a": NaN}}', "weight_map.a is NaN"),
        ("[" * 100_000, "nested more than 8 levels deep"),
    ],
)
def test_an_index_that_cannot_be_is_one_line(tmp_path: Path, index: str, says: str) -> None:
    (tmp_path / safetensors.INDEX).write_text(index)
    with pytest.raises(ProfileError, match=says) as caught:
        safetensors.verify(tmp_path)
    assert "\n" not in caught.value.message and len(caught.value.message) < 400


@pytest.mark.parametrize("name", ["model.safetensors", safetensors.INDEX])
def test_a_pipe_in_place_of_a_file_is_not_waited_for(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    if name == safetensors.INDEX:
        with pytest.raises(ProfileError, match="is a pipe"):
            safetensors.verify(tmp_path)
    else:
        with pytest.raises(ProfileError, match="is a pipe"):
            safetensors.header(tmp_path / name)
