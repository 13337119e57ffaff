"""What the identity of weights covers: content, not names of files, and how much of it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from fakes import weights

from profiler import files
from profiler.models.resolve import resolve

RAW: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 2048,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 4096,
    "tie_word_embeddings": True,
}
SHAPES = weights.described(RAW)


def real_id(path: Path) -> str:
    return resolve(str(path)).id_for("real")


def changed(path: Path, offset: int, value: bytes = b"\1") -> None:
    """Other bytes in the same file, with the same size and the same time of change."""
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(value)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("part", [0.1, 0.37, 0.5, 0.73, 0.999])
def test_one_value_anywhere_makes_another_model(tmp_path: Path, part: float) -> None:
    path = weights.folder(tmp_path / "m", RAW)
    before, file = real_id(path), path / "model.safetensors"
    changed(file, int(file.stat().st_size * part))
    assert real_id(path) != before


def test_the_config_is_a_part_of_it(tmp_path: Path) -> None:
    one = weights.folder(tmp_path / "one", RAW)
    other = weights.folder(tmp_path / "other", RAW | {"rope_theta": 5e5})
    assert real_id(one) != real_id(other)


def test_shards_renamed_or_split_otherwise_and_links_are_the_same_model(tmp_path: Path) -> None:
    whole = weights.folder(tmp_path / "whole", RAW)
    names = sorted(SHAPES)
    ids = {real_id(whole)}
    for folder, cut in (("two", 5), ("other", 9)):
        path = tmp_path / folder
        path.mkdir()
        (path / "config.json").write_text(json.dumps(RAW))
        parts = {f"{folder}-a.safetensors": names[:cut], f"{folder}-b.safetensors": names[cut:]}
        for file, inside in parts.items():
            (path / file).write_bytes(weights.content({name: SHAPES[name] for name in inside}))
        index = {"weight_map": {name: file for file, inside in parts.items() for name in inside}}
        (path / "model.safetensors.index.json").write_text(json.dumps(index))
        ids.add(real_id(path))
    linked = tmp_path / "linked"
    linked.mkdir()
    for name in ("config.json", "model.safetensors"):
        (linked / name).symlink_to(whole / name)
    assert ids | {real_id(linked)} == {real_id(whole)}


def test_two_tensors_that_change_places_are_another_model(tmp_path: Path) -> None:
    names = {"a": [64], "b": [64]}
    path = tmp_path / "x.safetensors"
    path.write_bytes(weights.content(names))
    changed(path, path.stat().st_size - 1)
    first = spans(path, ["a", "b"])
    assert files.content_id(first) != files.content_id(spans(path, ["b", "a"]))


def spans(path: Path, names: list[str], nbytes: int = 256) -> list[files.FileSpan]:
    start = path.stat().st_size - len(names) * nbytes
    return [files.FileSpan(name, path, start + index * nbytes, nbytes) for index, name in enumerate(names)]


def test_of_a_large_checkpoint_every_tensor_is_sampled_and_that_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An edit of one layer, as in a merge or an ablation, touches no more than a few tensors."""
    monkeypatch.setattr(files, "WHOLE_BYTES", 2**20)
    path = weights.folder(tmp_path / "m", RAW)
    found = resolve(str(path))
    assert found.checkpoint is not None and found.checkpoint.to_json()["identity"] == "samples of every tensor"
    before = found.id_for("real")
    file = path / "model.safetensors"
    whole = file.read_bytes()
    for span in found.checkpoint.spans:
        changed(file, span.begin, b"\2" * span.nbytes)
        assert real_id(path) != before, span.label
        file.write_bytes(whole)
    largest = max(found.checkpoint.spans, key=lambda span: span.nbytes)
    changed(file, largest.begin + largest.nbytes // 15 // 2)  # between two samples
    assert real_id(path) == before


def test_a_small_checkpoint_says_that_every_byte_counts(tmp_path: Path) -> None:
    found = resolve(str(weights.folder(tmp_path / "m", RAW)))
    assert found.checkpoint is not None and found.checkpoint.to_json()["identity"] == "every byte"


def test_a_prediction_reads_no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a measurement needs the identity, and hashing takes seconds."""
    monkeypatch.setattr(files, "content_id", lambda spans: pytest.fail("read the weights"))
    assert resolve(str(weights.folder(tmp_path / "m", RAW))).id_for("synthetic")
