"""What is true of a model's weights stands on its rows, in a plan and in a prediction, in words and in JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fakes import weights
from fakes.tiny import CONFIGS

from profiler.results import row as results_row

FAST = ("--backend", "fake", "-c", "128", "-n", "4", "-o", "jsonl")
RAW = CONFIGS["gemma3"]
EXTRA = {"model.visual.patch.weight": [4, 8]}


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """A checkpoint with a tensor more than its model takes, and an adapter beside it."""
    path = weights.folder(tmp_path / "real", RAW, weights.described(RAW) | EXTRA)
    (path / "adapter_config.json").write_text("{}")
    (path / "adapter_model.safetensors").write_bytes(weights.content({"a": [1]}))
    return str(path)


def codes(row: dict[str, Any]) -> list[str]:
    return [caution["code"] for caution in row["cautions"]]


def test_a_row_tells_what_of_the_checkpoint_it_did_not_measure(profile: Any, folder: str) -> None:
    (row,) = profile("sweep", "-m", folder, *FAST).rows
    assert row["case"]["weights"] == "real"
    assert codes(row)[:2] == ["unused-weights", "files-beside"]
    found = row["checkpoint"]
    assert found["unused"] == [
        {"why": "vision tower", "count": 1, "parameters": 32, "bytes": 128, "names": list(EXTRA)}
    ]
    assert found["bytes"] - 128 == 4 * found["parameters"] and found["identity"] == "every byte"
    assert results_row.from_row(row).checkpoint == found  # from a file of rows
    (again,) = profile("sweep", "-m", folder, *FAST).rows  # from the store
    assert again["started_at"] == row["started_at"]
    assert (again["checkpoint"], codes(again)) == (found, codes(row))


def test_a_plan_and_a_prediction_tell_it_too(profile: Any, folder: str) -> None:
    ran = profile("sweep", "-m", folder, "-q", "fp32", *FAST, "--dry-run")
    (row,) = ran.rows
    assert codes(row) == ["unused-weights", "files-beside"]
    assert "model.visual.patch.weight" in ran.err and "adapter_model.safetensors" in ran.err
    said = profile("fit", folder, "-c", "1k").out
    assert "model.visual.patch.weight" in said and "adapter_model.safetensors" in said
    row, *_ = profile("fit", folder, "-c", "1k", "-o", "jsonl").rows
    assert any("128 B" in text for text in row["cautions"])


def test_a_mismatch_stops_a_prediction_and_a_plan_in_one_line(profile: Any, tmp_path: Path) -> None:
    shapes = weights.described(RAW)
    fewer = RAW | {"num_hidden_layers": 3, "layer_types": RAW["layer_types"][:3]}
    path = str(weights.folder(tmp_path / "lies", fewer, shapes))
    for command in (["fit", path], ["sweep", "-m", path, "--dry-run"], ["sweep", "-m", path]):
        ran = profile(*command)
        assert (ran.code, ran.out) == (2, "")
        said, hint = ran.err.splitlines()
        assert "lies: config.json describes 3 layers" in said and "also holds layers 3 to 5" in said
        assert "belong to different models" in hint


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({}, "the folder has no safetensors"),
        ({"model-00001-of-00002.safetensors": b""}, "no model.safetensors.index.json names it"),
        ({"pytorch_model.bin": b""}, "which can run code and are never loaded"),
        ({"model.fp16.safetensors": b""}, "model.fp16.safetensors is not named model.safetensors"),
    ],
)
def test_synthetic_weights_that_nobody_asked_for_say_why(
    profile: Any, tmp_path: Path, files: dict[str, bytes], reason: str
) -> None:
    path = tmp_path / "bare"
    path.mkdir()
    (path / "config.json").write_text(json.dumps(RAW))
    for name, content in files.items():
        (path / name).write_bytes(content)
    (row,) = profile("sweep", "-m", str(path), *FAST).rows
    assert row["case"]["weights"] == "synthetic"
    (text,) = [caution["text"] for caution in row["cautions"] if caution["code"] == "synthetic-weights"]
    assert reason in text and reason in row["checkpoint"]["reason"]
    (asked,) = profile("sweep", "-m", str(path), *FAST, "--weights", "synthetic").rows
    assert "synthetic-weights" not in codes(asked)
    assert asked["started_at"] == row["started_at"]  # the same case, and nothing to say of it


def test_a_catalog_entry_gives_its_reason_in_json_alone(profile: Any) -> None:
    (row,) = profile("sweep", "-m", "gemma-3-270m", *FAST).rows
    assert "synthetic-weights" not in codes(row)
    assert "has no weights" in row["checkpoint"]["reason"]


def test_real_weights_and_synthetic_ones_of_one_folder_say_what_is_true_of_each(profile: Any, folder: str) -> None:
    (row,) = profile("sweep", "-m", folder, *FAST, "--weights", "synthetic").rows
    assert not {"unused-weights", "files-beside"} & set(codes(row))
