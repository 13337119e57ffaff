"""Every match of a published row to a case is meant, and what is left out has a reason."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from profiler.devices import target as device_catalog

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


@pytest.fixture(scope="module")
def published() -> ModuleType:
    spec = importlib.util.spec_from_file_location("published_rows", BENCHMARKS / "published_rows.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["published_rows"] = module
    spec.loader.exec_module(module)
    return module


def raw(**changes: str) -> dict[str, str]:
    row = {
        "model": "qwen3.6-27b", "device": "RTX 5090", "engine": "llama.cpp b8828", "quant": "Q4_K_M",
        "context": "4096", "batch": "1", "prefill_tps": "", "decode_tps": "61.4", "tier": "A",
        "source": "s", "notes": "",
    }  # fmt: skip
    return row | changes


def test_every_row_is_used_or_left_out_with_a_reason(published: ModuleType) -> None:
    used, left = published.rows()
    wanted = list(published._wanted())
    assert sorted([row.line for row in used] + [entry.line for entry in left]) == sorted(line for line, _ in wanted)
    assert all(entry.reason for entry in left)
    assert len(used) >= 200


def test_every_named_device_is_in_the_catalog(published: ModuleType) -> None:
    known = {device.name for device in device_catalog.data_sheets()}
    assert set(published.DEVICES.values()) <= known


def test_a_row_becomes_the_case_it_says(published: ModuleType) -> None:
    row = published.match(2, raw(quant="UD-Q4_K_XL", device="Apple M4 (16GB)", context="32768"))
    assert (row.model, row.target.name, row.engine.name) == ("qwen3.6-27b", "Apple M4 (10c)", "llama.cpp")
    assert (row.request.quant, row.request.context, row.depth) == ("q4_k_m", 32768, 32768 + 64)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"device": "2x RTX 3090 (TP2)"}, "several devices"),
        ({"device": "CPU (96 threads)"}, "a CPU"),
        ({"device": "GitHub 4-core runner CPU"}, "a CPU"),
        ({"device": "RTX A5000 Laptop 16GB"}, "the catalog does not have"),
        ({"device": "Apple M2 Max (30c GPU, 64GB)"}, "the catalog does not have"),
        ({"device": "Apple M3 Ultra (60c GPU, 256GB)"}, "the catalog does not have"),
        ({"model": "qwen3-14b"}, "no config"),
        ({"engine": "mlx-lm"}, "is not supported"),
        ({"engine": "Rapid-MLX 0.7.26 (mlx 0.31.2)"}, "is not supported"),
        ({"quant": "Q4-XYZ-v2"}, "is not supported"),
        ({"engine": "vLLM 0.26.0", "quant": "Q4_K_M"}, "is not supported"),
    ],
)
def test_what_does_not_match_exactly_is_left_out(published: ModuleType, changes: dict[str, str], reason: str) -> None:
    assert reason in published.match(2, raw(**changes))


def test_allocated_context_is_no_depth(published: ModuleType) -> None:
    row = published.match(2, raw(context="131072", notes="context = allocated, default q4_0 KV unless noted"))
    assert row.depth == published.CHAT_DEPTH
    assert row.request.kv == "q4_0"


def test_faster_than_memory_is_impossible_and_rejected(
    published: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [(2, raw(decode_tps="105")), (3, raw(decode_tps="90"))]  # 15.8 GB a step at 1792 GB/s: at most 113
    monkeypatch.setattr(published, "_wanted", lambda: iter(rows))
    used, left = published.rows()
    assert [row.line for row in used] == [3]
    assert "impossible: 9" in left[0].reason
