"""``profile audit`` on every architecture of the catalog, built small."""

from __future__ import annotations

import json
from importlib.resources import files

import pytest

from profiler import registry
from profiler.backends.hf.small import audited
from profiler.models.source import Source

ARCHITECTURES = ["gemma-3-270m", "gemma-4-e2b", "gemma-4-12b", "gemma-4-26b-a4b", "qwen3.5-0.8b", "qwen3.5-35b-a3b",
                 "qwen3-0.6b", "llama-4-scout-17b-16e"]  # fmt: skip


def source(name: str) -> Source:
    config = json.loads((files("profiler.scenarios") / "models" / f"{name}.json").read_text())
    return Source("catalog", name, None, config)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_may_be_captured(name: str) -> None:
    assert audited(source(name), registry.load("quants", "fp32", "quantization").QUANT).findings == ()


@pytest.mark.parametrize("quant, words", [("nf4", None), ("int8", "threshold 6"), ("fp4", None)])
def test_quantizations_are_judged(quant: str, words: str | None) -> None:
    found = audited(source("qwen3-0.6b"), registry.load("quants", quant, "quantization").QUANT).findings
    assert (words is None and not found) or any(words in finding.text for finding in found)
