"""What a geometry derives, against numbers worked out by hand or published."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from profiler.models import families, hub
from profiler.models.geometry import Geometry
from profiler.models.layers import IDEAL, Attention, Execution, Experts, GatedDelta

GOLDEN = Path(__file__).parents[2] / "golden" / "models.csv"
MIB = 1024**2


def geometry(name: str) -> Geometry:
    return families.geometry(hub.shipped_config(name))


def golden() -> list[dict[str, str]]:
    lines = [line for line in GOLDEN.read_text().splitlines() if not line.startswith("#")]
    return list(csv.DictReader(lines))


def test_the_golden_file_holds_the_whole_catalog() -> None:
    assert tuple(sorted(row["name"] for row in golden())) == hub.names()


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


@pytest.mark.parametrize("chunk", [1, 7, 64])
@pytest.mark.parametrize(("kind", "window"), [("full", None), ("sliding", 8), ("chunked", 8)])
def test_prefill_attends_exactly_what_the_mask_allows(kind: Any, window: int | None, chunk: int) -> None:
    attention = Attention(kind, heads=4, kv_heads=2, head_dim=16, window=window)
    for context in (1, 7, 8, 9, 40):
        flops = attention.prefill_flops(context, chunk, IDEAL)
        assert flops == 4 * 4 * 16 * brute_force_pairs(attention, context)


@pytest.mark.parametrize(("kind", "window"), [("full", None), ("sliding", 8), ("chunked", 8)])
def test_only_the_last_token_of_a_pass_attends_where_keys_and_values_are_shared(
    kind: Any, window: int | None
) -> None:
    attention = Attention(kind, heads=1, kv_heads=1, head_dim=1, window=window, owns_cache=False)
    seen = [
        brute_force_pairs(attention, tokens) - brute_force_pairs(attention, tokens - 1) for tokens in (16, 32, 40)
    ]
    assert attention.prefill_flops(40, 16, IDEAL) == 4 * sum(seen)


def test_unmasked_kernels_multiply_whole_rectangles() -> None:
    attention = Attention("sliding", heads=1, kv_heads=1, head_dim=1, window=8)
    how = Execution(skips_masked=False)
    assert attention.prefill_flops(32, 16, how) == 4 * (16 * 16 + 16 * (7 + 16))


def test_a_delta_layer_pads_the_last_chunk_of_each_pass() -> None:
    delta = GatedDelta(key_heads=2, value_heads=2, key_dim=8, value_dim=8, kernel=4)
    one = delta.prefill_flops(64, 64, IDEAL)
    assert delta.prefill_flops(170, 70, IDEAL) == (2 + 2 + 1) * one  # passes of 70, 70 and 30 tokens


def test_more_tokens_read_more_experts_but_never_more_than_all() -> None:
    experts = Experts(count=128, top_k=8, width=704, shared_width=2112)
    assert experts.read_share(1) == pytest.approx(8 / 128)
    independent = (8 + 8 * (1 - 8 / 128)) / 128
    assert 8 / 128 < experts.read_share(2) < independent  # the tokens of a batch share some of their choices
    assert experts.read_share(16) == pytest.approx(1 - (1 - 8 / 128) ** 16**0.75)
    assert experts.read_share(10_000) == pytest.approx(1)
