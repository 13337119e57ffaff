"""What a geometry derives, against numbers worked out by hand or published."""

from __future__ import annotations

import csv
import time
from pathlib import Path
from typing import Any

import pytest

from profiler.models import catalog, families
from profiler.models.geometry import Geometry
from profiler.models.layers import IDEAL, Attention, Execution, Experts

GOLDEN = Path(__file__).parents[2] / "golden" / "models.csv"
MIB = 1024**2


def geometry(name: str) -> Geometry:
    return families.geometry(catalog.raw_config(name))


def golden() -> list[dict[str, str]]:
    lines = [line for line in GOLDEN.read_text().splitlines() if not line.startswith("#")]
    return list(csv.DictReader(lines))


def test_the_golden_file_holds_the_whole_catalog() -> None:
    assert tuple(sorted(row["name"] for row in golden())) == catalog.names()


@pytest.mark.parametrize("row", golden(), ids=lambda row: row["name"])
def test_parameters_and_cache_of_the_catalog_are_the_published_ones(row: dict[str, str]) -> None:
    model = geometry(row["name"])
    cache = model.cache_bytes(model.max_position, 1, 2)
    assert model.parameters == sum(weight.parameters for weight in model.weights()) == int(row["total_params"])
    assert model.active_parameters == int(row["active_params"])
    assert len(model.layers) == int(row["layers"])
    assert sum("full" in kind.split() for kind in (layer.kind for layer in model.layers)) == int(
        row["full_attention_layers"]
    )
    assert cache.growing == model.max_position * int(row["kv_bytes_per_token_16bit"])
    assert cache.window == int(row["window_cache_bytes_per_seq_16bit"])
    assert model.max_position == int(row["max_position_embeddings"])


def test_window_cache_stops_growing_at_the_window() -> None:
    model = geometry("gemma-3-270m")
    sizes = [model.cache_bytes(depth, 1, 2) for depth in (511, 512, 513, 8192)]
    assert sizes[0].window < sizes[1].window == sizes[2].window == sizes[3].window == 15 * 2 * 256 * 512 * 2
    assert sizes[3].growing == 16 * sizes[1].growing == 3 * 2 * 256 * 8192 * 2


def test_shared_layers_keep_no_cache_but_read_one() -> None:
    model = geometry("gemma-4-e2b")
    shared = [layer for layer in model.layers if layer.kind.startswith("shared")]
    assert len(shared) == 20
    assert all(isinstance(layer.mixer, Attention) and layer.mixer.cache_elements(4096) == 0 for layer in shared)
    assert model.decode_cache_elements(4096, 1) == 28 * 2 * 256 * 512 + 7 * 2 * 512 * 4096


def test_recurrent_state_is_constant_and_fp32() -> None:
    model = geometry("qwen3.5-0.8b")
    recurrent, conv = 18 * 16 * 128 * 128, 18 * 6144 * 4
    for depth in (2, 100_000):
        assert model.cache_bytes(depth, 1, 4).state == 4 * (recurrent + conv)
        assert model.cache_bytes(depth, 3, 2).state == 3 * (4 * recurrent + 2 * conv)


@pytest.mark.parametrize(
    ("name", "context", "gib"),
    [
        ("gemma-4-31b", 8192, 1.406),
        ("gemma-4-31b", 32768, 3.281),
        ("gemma-4-26b-a4b", 8192, 0.352),
        ("gemma-4-e4b", 8192, 0.145),
        ("qwen3.5-27b", 8192, 0.644),
        ("qwen3.5-35b-a3b", 8192, 0.217),
    ],
)
def test_cache_totals_are_those_traced_in_transformers(name: str, context: int, gib: float) -> None:
    assert geometry(name).cache_bytes(context, 1, 2).total / 1024**3 == pytest.approx(gib, abs=0.0006)


def test_more_tokens_touch_more_experts_but_never_more_than_all() -> None:
    experts = Experts(count=128, top_k=8, width=704, shared_width=2112)
    assert experts.touched(1) == pytest.approx(8)
    assert experts.touched(2) == pytest.approx(8 + 8 * (1 - 8 / 128))
    assert experts.touched(10_000) == pytest.approx(128)


def test_a_decode_step_reads_the_active_parameters_and_one_row_of_each_table() -> None:
    for name in ("gemma-4-26b-a4b", "qwen3.5-35b-a3b", "gemma-4-e2b", "qwen3-8b"):
        model = geometry(name)
        tables = [weight for weight in model.outside if weight.role == "embedding"]
        rows = sum(weight.shape[1] for weight in (tables[1:] if model.tied else tables))
        assert model.decode_weight_elements(1) == pytest.approx(model.active_parameters + rows)


def test_a_larger_batch_reads_more_of_experts_only() -> None:
    dense, sparse = geometry("gemma-4-31b"), geometry("gemma-4-26b-a4b")
    assert dense.decode_weight_elements(8) == pytest.approx(dense.decode_weight_elements(1), rel=1e-6)
    assert 2 < sparse.decode_weight_elements(8) / sparse.decode_weight_elements(1) < 8


def test_counted_weights_are_the_weights() -> None:
    model = geometry("gemma-4-e2b")
    assert sum(count for _, count in model.counted_weights()) == len(list(model.weights()))
    assert sum(weight.parameters * count for weight, count in model.counted_weights()) == model.parameters


def brute_force_pairs(attention: Attention, context: int) -> int:
    def sees(query: int, key: int) -> bool:
        if key > query:
            return False
        if attention.window is None:
            return True
        if attention.kind == "sliding":
            return query - key < attention.window
        return query // attention.window == key // attention.window

    return sum(sees(query, key) for query in range(context) for key in range(context))


@pytest.mark.parametrize("chunk", [None, 1, 7, 64])
@pytest.mark.parametrize(("kind", "window"), [("full", None), ("sliding", 8), ("chunked", 8)])
def test_prefill_attends_exactly_what_the_mask_allows(kind: Any, window: int | None, chunk: int | None) -> None:
    attention = Attention(kind, heads=4, kv_heads=2, head_dim=16, window=window)
    how = Execution(chunk=chunk)
    for context in (1, 7, 8, 9, 40):
        flops = attention.prefill_flops(how.spans(context), how)
        assert flops == 4 * 4 * 16 * brute_force_pairs(attention, context)


def test_unmasked_kernels_multiply_whole_rectangles() -> None:
    attention = Attention("sliding", heads=1, kv_heads=1, head_dim=1, window=8)
    how = Execution(chunk=16, skips_masked=False)
    assert attention.prefill_flops(how.spans(32), how) == 4 * (16 * 16 + 16 * (7 + 16))


def test_prefill_sends_one_token_a_chunk_through_shared_layers() -> None:
    model = geometry("gemma-4-e2b")
    trimmed = model.prefill_flops(4096, 1)
    whole = model.prefill_flops(4096, 1, Execution(trims_shared=False))
    shared = 2 * sum(layer.multiplied for layer in model.layers if layer.kind.startswith("shared"))
    assert whole - trimmed > 4095 * shared > 0.3 * whole


def test_batched_experts_multiply_every_token_with_every_expert() -> None:
    model = geometry("llama-4-scout-17b-16e")
    all_experts = Execution(every_expert=True)
    routed = sum(layer.routed for layer in model.layers)
    extra = model.decode_flops(2, 1, all_experts) - model.decode_flops(2, 1)
    assert extra == pytest.approx(2 * routed * 15 / 16)
    assert model.decode_weight_elements(1, all_experts) > 6 * model.decode_weight_elements(1)


def test_experts_that_are_chosen_first_stay_top_k_in_any_execution() -> None:
    model = geometry("qwen3.5-35b-a3b")
    assert model.decode_flops(2, 1, Execution(every_expert=True)) == model.decode_flops(2, 1, IDEAL)


def test_prefill_work_is_linear_in_batch() -> None:
    for name in ("gemma-4-e2b", "qwen3.5-0.8b", "llama-4-scout-17b-16e"):
        model = geometry(name)
        assert model.prefill_flops(1000, 4) == pytest.approx(4 * model.prefill_flops(1000, 1))
        assert model.decode_flops(1000, 4) == pytest.approx(4 * model.decode_flops(1000, 1))


def test_chunking_a_prefill_reads_the_weights_again_for_each_pass() -> None:
    model = geometry("gemma-4-31b")
    once = model.prefill_weight_elements(8192, 1)
    assert model.prefill_weight_elements(8192, 1, Execution(chunk=2048)) == pytest.approx(4 * once, rel=0.01)


def test_costs_of_the_whole_catalog_take_milliseconds() -> None:
    models = [geometry(name) for name in catalog.names()]
    start = time.perf_counter()
    for model in models:
        for context in (1024, 131072):
            for batch in (1, 8):
                model.cache_bytes(context, batch, 2)
                model.decode_flops(context, batch)
                model.decode_weight_elements(batch)
                model.prefill_flops(context, batch, Execution(chunk=2048))
    assert time.perf_counter() - start < 1.0  # 96 points; some 50 ms where nothing else runs
