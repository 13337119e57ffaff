"""``profile audit`` on architectures of the catalog, built small."""

from __future__ import annotations

import json
from importlib.resources import files

import pytest

from profiler import registry
from profiler.backends.hf import audited
from profiler.case import Source

# The rest of the catalog differs from these in sizes only, or has layers that are audited in test_audit.py.
ARCHITECTURES = ["gemma-4-e2b", "qwen3.5-35b-a3b", "llama-4-scout-17b-16e"]


def source(name: str) -> Source:
    config = json.loads((files("profiler.scenarios") / "models" / f"{name}.json").read_text())
    return Source("catalog", name, None, config)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_may_be_captured(name: str) -> None:
    assert audited(source(name), registry.load("quants", "fp32", "quantization").QUANT).findings == ()


@pytest.mark.parametrize("quant, words", [("nf4", None), ("int8", "threshold 6")])
def test_each_quantization_passes_or_fails_with_a_reason(quant: str, words: str | None) -> None:
    found = audited(source("qwen3-0.6b"), registry.load("quants", quant, "quantization").QUANT).findings
    assert (words is None and not found) or any(words in finding.text for finding in found)
