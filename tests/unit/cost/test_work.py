"""Bytes and FLOPs of a pass; `tests/torch/test_geometry.py` compares them with real modules."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from profiler.cost import engines, work
from profiler.cost.engines.base import EngineRequest
from profiler.cost.storage import Storage
from profiler.cost.work import PassRules, PhaseWork
from profiler.devices import target
from profiler.models import families, hub
from profiler.models.geometry import Geometry
from profiler.models.layers import Execution

PLAIN = PassRules(ubatch=512, cache_bytes=2, how=Execution(trims_shared=False))
MODELS = ["gemma-3-270m", "gemma-4-e2b", "gemma-4-26b-a4b", "qwen3.5-2b", "qwen3.6-35b-a3b", "llama-4-scout-17b-16e"]


def shape(name: str) -> tuple[Geometry, Storage]:
    geometry = families.geometry(hub.shipped_config(name))
    return geometry, engines.find("transformers").storage(geometry, "bf16", "bf16")


def read(work: PhaseWork, kind: str) -> float:
    """Bytes of one kind."""
    return sum(item.nbytes for item in work.items if item.kind == kind)


@pytest.mark.parametrize("name", MODELS)
def test_a_decode_step_of_one_sequence_reads_the_active_parameters(name: str) -> None:
    geometry, storage = shape(name)
    step = work.decode(geometry, storage, 4096, 1, PLAIN)
    assert read(step, "weights") == pytest.approx(2 * geometry.active_parameters, rel=1e-6)


def test_a_larger_batch_reads_more_of_experts_only() -> None:
    dense, sparse = (
        [read(work.decode(*shape(name), 4096, batch, PLAIN), "weights") for batch in (1, 8)]
        for name in ("gemma-4-31b", "gemma-4-26b-a4b")
    )
    assert dense[1] == dense[0]
    assert 2 < sparse[1] / sparse[0] < 8


def test_a_decode_step_reads_the_cache_of_shared_layers_too() -> None:
    step = work.decode(*shape("gemma-4-e2b"), 4096, 3, PLAIN)
    assert read(step, "cache") == 2 * 3 * (28 * 2 * 256 * 512 + 7 * 2 * 512 * 4096)


@pytest.mark.parametrize("name", MODELS)
def test_work_is_linear_in_batch(name: str) -> None:
    geometry, storage = shape(name)
    for flops in (
        lambda batch: work.prefill(geometry, storage, 1000, batch, PLAIN).flops,
        lambda batch: work.decode(geometry, storage, 1000, batch, PLAIN).flops,
    ):
        assert flops(4) == pytest.approx(4 * flops(1))


def test_a_prefill_reads_the_weights_again_in_each_pass() -> None:
    geometry, storage = shape("gemma-4-31b")
    once, four = (work.prefill(geometry, storage, 8192, 1, replace(PLAIN, ubatch=size)) for size in (8192, 2048))
    assert (once.passes, four.passes) == (1, 4)
    assert read(four, "weights") == 4 * read(once, "weights")


def test_a_pass_of_a_server_takes_tokens_of_as_many_sequences_as_fit() -> None:
    shared = replace(PLAIN, ubatch=2048, shared_passes=True)
    one, three, eight = (work.prefill(*shape("qwen3.6-35b-a3b"), 512, batch, shared) for batch in (1, 3, 8))
    assert [(each.passes, each.tokens, each.sequences) for each in (one, three, eight)] == [
        (1, 512, 1),
        (1, 1536, 3),
        (2, 2048, 4),
    ]
    rows = [next(i.rows for i in each.items if i.part == "experts") for each in (one, three, eight)]
    assert rows[0] < rows[1] < rows[2]  # more tokens for each expert, as long as a pass is not full
    apart = work.prefill(*shape("qwen3.6-35b-a3b"), 512, 8, replace(shared, shared_passes=False))
    assert (apart.passes, apart.tokens, apart.sequences) == (1, 8 * 512, 8)
    assert read(eight, "cache") == read(apart, "cache")


@pytest.mark.parametrize("name", MODELS)
def test_a_prefill_of_one_sequence_is_the_same_in_shared_passes(name: str) -> None:
    for context in (100, 512, 1300):
        apart, shared = (
            work.prefill(*shape(name), context, 1, replace(PLAIN, shared_passes=each)) for each in (False, True)
        )
        assert apart == shared


def test_scores_that_leave_the_chip_are_written_and_read() -> None:
    geometry, storage = shape("qwen3-8b")
    on_chip, moved = (
        work.prefill(geometry, storage, 1024, 2, replace(PLAIN, score_bytes=nbytes)) for nbytes in (0.0, 20.0)
    )
    (scores,) = (item for item in moved.items if item.part == "scores")
    pairs = 1024 * 1025 // 2  # those that the mask allows
    assert scores.nbytes == 20 * 2 * 36 * 32 * pairs
    assert moved.needed_bytes == on_chip.nbytes  # flash attention shows that they need not be moved


def test_llama_cpp_keeps_scores_on_the_chip_unless_told_otherwise_and_llamafile_does_not() -> None:
    geometry, _ = shape("qwen3-8b")
    request = EngineRequest("q4_k_m", 2048, 1)
    llama_cpp, llamafile = (
        engines.find(name).prefill_rules(geometry, request, None) for name in ("llama.cpp", "llamafile")
    )
    assert llama_cpp.score_bytes == 0 < llamafile.score_bytes
    without = engines.find("llama.cpp").prefill_rules(geometry, replace(request, flash=False), None)
    assert without == llamafile


def test_mlx_never_computes_what_no_cache_needs() -> None:
    """A pass evaluates caches only, so layers that share K and V wait for the step that makes a token."""
    geometry, storage = shape("gemma-4-e2b")
    mlx, vllm = (
        work.prefill(
            geometry,
            storage,
            4096,
            1,
            engines.find(name).prefill_rules(geometry, EngineRequest("bf16", 4096, 1), None),
        ).flops
        for name in ("mlx", "vllm")
    )
    assert mlx < 0.5 * vllm


def test_a_prefill_sends_one_token_a_pass_through_shared_layers() -> None:
    geometry, storage = shape("gemma-4-e2b")
    trimmed, whole = (
        work.prefill(geometry, storage, 4096, 1, replace(PLAIN, how=Execution(trims_shared=trims))).flops
        for trims in (True, False)
    )
    shared = 2 * sum(
        weight.parameters
        for layer in geometry.layers
        if layer.shares_kv
        for weight in layer.weights
        if weight.role == "linear"
    )
    assert whole - trimmed > (4096 - 8) * shared > 0.3 * whole


def test_experts_that_are_chosen_first_stay_top_k_in_any_execution() -> None:
    geometry, storage = shape("qwen3.6-35b-a3b")
    steps = [
        work.decode(geometry, storage, 2, 1, replace(PLAIN, how=Execution(every_expert=e))) for e in (True, False)
    ]
    assert steps[0].flops == steps[1].flops and steps[0].nbytes == steps[1].nbytes


def test_the_work_of_the_whole_catalog_is_counted_in_milliseconds() -> None:
    """At 128k tokens in passes of 512, which is the most that anybody asks for."""
    models = [shape(name) for name in hub.names()]
    start = time.perf_counter()
    for geometry, storage in models:
        for context in (1024, 131072):
            for batch in (1, 8):
                work.decode(geometry, storage, context, batch, PLAIN)
                work.prefill(geometry, storage, context, batch, PLAIN)
    assert time.perf_counter() - start < 1.0  # some 150 cases


def test_a_pass_of_many_tokens_reads_every_expert_once() -> None:
    geometry, storage = shape("qwen3.6-35b-a3b")
    experts = storage.part_bytes("experts")
    prefill = work.prefill(geometry, storage, 4096, 1, PassRules(ubatch=4096, cache_bytes=2))
    (read,) = (item.nbytes for item in prefill.items if item.part == "experts")
    assert read == pytest.approx(experts, rel=1e-6)
    step = work.decode(geometry, storage, 4096, 1, PLAIN)
    (read,) = (item.nbytes for item in step.items if item.part == "experts")
    assert read == pytest.approx(experts * 8 / 256, rel=1e-6)


@pytest.mark.parametrize(("name", "experts"), [("llama-4-scout-17b-16e", 16), ("llama-4-maverick-17b-128e", 128)])
def test_transformers_runs_every_expert_of_llama_4(name: str, experts: int) -> None:
    """Its ``Llama4TextExperts`` is one ``bmm`` over all of them; llama.cpp and vLLM run the chosen one only."""
    geometry, storage = shape(name)
    engine = engines.find("transformers")
    request = EngineRequest("bf16", 2048, 1, "bf16", None)
    rules = engine.prefill_rules(geometry, request, None)
    chosen = PassRules(ubatch=2048, cache_bytes=2, how=replace(rules.how, every_expert=False))
    for pass_of, tokens in ((work.prefill, 2048), (work.decode, 2048)):
        (all_of_them,) = (i for i in pass_of(geometry, storage, tokens, 1, rules).items if i.part == "experts")
        (only_chosen,) = (i for i in pass_of(geometry, storage, tokens, 1, chosen).items if i.part == "experts")
        assert all_of_them.flops == pytest.approx(experts * only_chosen.flops)
        assert all_of_them.flops - all_of_them.avoidable_flops == pytest.approx(only_chosen.flops)
        assert all_of_them.nbytes == storage.part_bytes("experts")
        assert all_of_them.nbytes - all_of_them.avoidable_bytes == pytest.approx(only_chosen.nbytes)


def test_the_buffers_of_llama_4_hold_every_token_for_every_expert() -> None:
    geometry, storage = shape("llama-4-maverick-17b-128e")
    terms = engines.find("transformers").memory(
        geometry, storage, EngineRequest("bf16", 2048, 1, "bf16", None), target.find("h100")
    )
    assert 17 * 2**30 < terms.prefill.low < terms.prefill.value < 21 * 2**30


def test_lookups_and_what_lies_on_the_host_are_not_read() -> None:
    geometry = families.geometry(hub.shipped_config("gemma-4-e2b"))
    engine = engines.find("llama.cpp")
    storage = engine.storage(geometry, "q4_k_m", "bf16")
    step = work.decode(geometry, storage, 128, 1, PLAIN)
    assert "tables" not in {item.part for item in step.items}
    assert step.nbytes < 0.5 * (storage.device_bytes + storage.host_bytes)


def between(item: work.Item) -> bool:
    return item.part == "activations"


def test_a_prefill_moves_the_inputs_and_outputs_of_its_products() -> None:
    """Without experts: what goes into q, k, v, o, gate, up and down, and comes out of them."""
    geometry, storage = shape("qwen3-0.6b")
    (moved,) = filter(between, work.prefill(geometry, storage, 512, 1, replace(PLAIN, moved_bytes=2.0)).items)
    hidden, heads, kv, width = 1024, 16 * 128, 8 * 128, 3072
    inputs, outputs = 3 * hidden + heads + 2 * hidden + width, heads + 2 * kv + hidden + 2 * width + hidden
    assert moved.nbytes == pytest.approx(2.0 * 512 * 28 * (inputs + outputs), rel=0.15)  # norms, and means of shapes
    assert moved.avoidable_bytes == moved.nbytes, "a program that fuses all operators would not move them"
    assert not any(map(between, work.decode(geometry, storage, 512, 8, replace(PLAIN, moved_bytes=2.0)).items))


def test_experts_move_each_token_once_for_each_of_those_that_it_chose() -> None:
    rules = replace(PLAIN, moved_bytes=2.0)
    few, many = (
        next(filter(between, work.prefill(*shape("qwen3.6-35b-a3b"), tokens, 1, rules).items))
        for tokens in (512, 4096)
    )
    assert many.nbytes == pytest.approx(8 * few.nbytes, rel=0.05)
    layer = many.nbytes / 2 / 4096 / 40
    assert 8 * (2048 + 2 * 512 + 512 + 2048) < layer < 3 * 8 * (2048 + 2 * 512 + 512 + 2048)
