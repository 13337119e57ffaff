"""``profile sweep --quality`` on tiny models with a tokenizer: the row, the table, resuming, and refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from fakes.tiny import WORDS, with_tokenizer
from safetensors.torch import load_file, save_file

from profiler import folders
from profiler.cli import main

Tiny = Callable[[str], Path]


def texts(folder: Path) -> Path:
    """Two kinds of two documents, with words in another order each."""
    for kind in ("even", "odd"):
        (folder / kind).mkdir(parents=True)
        for number in (1, 2):
            words = [WORDS[(place * (3 + 2 * number) + len(kind)) % len(WORDS)] for place in range(200)]
            (folder / kind / f"{number}.txt").write_text(" ".join(words))
    return folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(folders.CACHE, str(tmp_path / "cache"))


def sweep(*arguments: str) -> tuple[int, list[dict[str, Any]], str]:
    answer = CliRunner().invoke(main, ["sweep", "--device", "cpu", "-n", "2", "-r", "1", "-o", "jsonl", *arguments])
    rows = [json.loads(line) for line in answer.stdout.splitlines()]
    return answer.exit_code, rows, answer.stderr


@pytest.mark.slow
def test_a_row_has_the_quality_of_its_quantization_and_path(tiny_model: Tiny, tmp_path: Path) -> None:
    model = with_tokenizer(tiny_model("llama"), tmp_path / "llama")
    left = {
        "max_length": 16,
        "strategy": "LongestFirst",
        "stride": 0,
        "direction": "Right",
    }  # by a training script
    tokenizer = json.loads((model / "tokenizer.json").read_text()) | {"truncation": left}
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    asked = ("-m", str(model), "-c", "256", "--quality", "--quality-text", str(texts(tmp_path / "texts")))
    code, rows, said = sweep(*asked, "-q", "fp32,nf4")
    assert code == 0, said
    same, quality = (row["quality"] for row in rows)
    assert (same["kl"]["value"], same["top1"]["value"], same["kl"]["p99"]) == (0, 1, 0)  # to the last bit
    assert same["ppl"]["value"] == same["ppl"]["reference"]
    assert same["decode"]["kl"] < 1e-6
    assert 0 < quality["kl"]["low"] < quality["kl"]["value"] < quality["kl"]["high"]
    assert list(quality["kinds"]) == ["even", "odd"] and quality["tokens"] == 4 * 200
    assert quality["text"]["license"] == "the user's own" and quality["reference"]["dtype"] == "fp32"
    assert (
        quality["decode"]["path"] == "static" and quality["decode"]["tokens"] == 2 * 63
    )  # the last predicts nothing
    assert quality["decode"]["kl"] == pytest.approx(quality["decode"]["prompt_kl"], rel=0.2)
    _, again, said = sweep(*asked, "-q", "nf4")
    assert again[0]["quality"] == quality and "reuse" in said  # from the store, to the last digit
    _, fresh, _ = sweep(*asked, "-q", "nf4", "--fresh")
    assert fresh[0]["quality"]["kl"] == quality["kl"]  # two runs, the same figures


@pytest.mark.slow
def test_the_table_has_one_column(tiny_model: Tiny, tmp_path: Path) -> None:
    model = with_tokenizer(tiny_model("qwen3"), tmp_path / "qwen3")
    options = ["--quality", "--quality-text", str(texts(tmp_path / "texts")), "-o", "table"]
    command = ["sweep", "-m", str(model), "-q", "bf16", "-c", "64", "-n", "2", "-r", "1", "--device", "cpu"]
    answer = CliRunner().invoke(main, [*command, *options])
    assert answer.exit_code == 0, answer.stderr
    assert "KL, nats" in answer.stdout and "reference in fp32" in answer.stdout


@pytest.mark.slow
def test_without_a_tokenizer_the_speed_is_measured_and_the_reason_said(tiny_model: Tiny, tmp_path: Path) -> None:
    code, (row,), _ = sweep("-m", str(tiny_model("llama")), "-c", "64", "-q", "fp32", "--quality")
    assert code == 0 and row["decode"]["tps"] > 0
    assert "has no tokenizer.json" in row["quality"]["reason"]
    assert [caution["code"] for caution in row["cautions"]].count("quality-unknown") == 1


@pytest.mark.slow
def test_logits_that_are_no_numbers_leave_the_speed_and_say_why(tiny_model: Tiny, tmp_path: Path) -> None:
    model = with_tokenizer(tiny_model("llama"), tmp_path / "llama")
    (file,) = model.glob("*.safetensors")
    weights = load_file(file)
    weights["model.norm.weight"][:] = torch.nan
    save_file(weights, file, {"format": "pt"})
    words = str(texts(tmp_path / "texts"))
    code, (row,), said = sweep("-m", str(model), "-c", "64", "-q", "fp32", "--quality", "--quality-text", words)
    assert (code, row["outcome"]) == (0, "ok"), said
    assert row["decode"]["tps"] > 0
    assert "not numbers" in row["quality"]["reason"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("-m", "gemma-3-270m", "--quality"), "--quality needs real weights"),
        (("--quality",), "--quality needs real weights"),
        (("-m", "gemma-3-270m", "--reference", "x"), "--reference needs --quality"),
        (("-m", "gemma-3-270m", "--quality-text", "x"), "--quality-text needs --quality"),
        (("-m", "gemma-3-270m", "--quality", "--quality-text", "/nowhere"), "cannot read /nowhere"),
        (("-m", "gemma-3-270m", "--quality", "--reference", "gemma-3-270m"), "no real weights"),
        (("-m", "gemma-3-270m", "--quality", "--backend", "fake"), "backend fake gives no logits"),
    ],
)
def test_what_cannot_be_measured_is_refused_with_the_reason(arguments: tuple[str, ...], said: str) -> None:
    code, rows, error = sweep(*arguments)
    assert code in (1, 2) and rows == []
    assert said in error and "Traceback" not in error


def test_a_quantized_checkpoint_needs_a_named_reference(gemma3_270m_gguf: Path) -> None:
    code, _, error = sweep("-m", str(gemma3_270m_gguf), "-q", "nf4", "--quality", "--dry-run")
    assert code != 0 and "themselves quantized (q4_k_m)" in error and "--reference MODEL" in error
