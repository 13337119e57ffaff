"""The static step gives what transformers gives: same tokens, same logits, across ring wraps and buckets."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from fakes.architectures import CONFIGS, WINDOW, prompt
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import LinearAttentionAndFullAttentionLayer

from profiler.errors import ProfileError
from profiler.kernels.patches import Patches
from profiler.kernels.runner import EagerRunner, StaticRunner, cut, prefill
from profiler.kernels.state import BucketLayer, DecodeState, RingLayer, bucket_for

Tiny = Callable[[str], PreTrainedModel]


def run(kind: type, model: PreTrainedModel, ids: torch.Tensor, steps: int, **options: object) -> list[list[int]]:
    runner = kind(model, **options)
    runner.prefill(ids)
    runner.prepare(steps)
    runner.enqueue(steps)
    tokens: list[list[int]] = runner.read()
    return tokens


@pytest.mark.parametrize("batch, context, steps", [(1, 5, 40), (3, 13 * WINDOW + 3, 60)], ids=["short", "batch"])
@pytest.mark.parametrize("name", CONFIGS)
def test_static_tokens_are_those_of_transformers(tiny: Tiny, name: str, batch: int, context: int, steps: int) -> None:
    # both wrap the ring several times, the first from a ring that is not full; the second moves attention from its
    # first bucket, of 256 slots, to the next
    ids = prompt(batch, context)
    static = run(StaticRunner, tiny(name), ids, steps)
    assert static == run(EagerRunner, tiny(name), ids, steps)
    assert len(set(static[0])) > 4, "a model that repeats one token proves little"


@pytest.mark.parametrize("name", CONFIGS)
def test_static_logits_differ_by_rounding_only(tiny: Tiny, name: str) -> None:
    model, ids = tiny(name), prompt(2, WINDOW - 2)
    eager, static = EagerRunner(model), StaticRunner(model)
    for runner in (eager, static):
        runner.prefill(ids)
        runner.prepare(40)
    for _ in range(40):
        eager.enqueue(1)
        with Patches(model):
            torch.testing.assert_close(static.advance(), eager.logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["gemma3", "qwen3_5", "gemma4_e2b"])
def test_restore_brings_back_the_saved_step(tiny: Tiny, name: str) -> None:
    runner = StaticRunner(tiny(name))
    runner.prefill(prompt(2, WINDOW - 3))
    runner.prepare(50)
    runner.enqueue(10)
    saved = runner.state.save()
    runner.enqueue(40)
    first = runner.read()
    runner.state.restore(saved)
    assert runner.read() == [row[:11] for row in first]
    runner.enqueue(40)
    assert runner.read() == first


def test_no_buffer_moves_while_decoding(tiny: Tiny) -> None:
    for name in ("gemma4_e2b", "qwen3_5_moe"):
        runner = StaticRunner(tiny(name))
        runner.prefill(prompt(1, 4))
        runner.prepare(3 * WINDOW)
        before = [tensor.data_ptr() for tensor in runner.state.tensors()]
        runner.enqueue(3 * WINDOW)
        assert [tensor.data_ptr() for tensor in runner.state.tensors()] == before


def test_a_ring_holds_its_window_and_a_bucket_layer_the_capacity(tiny: Tiny) -> None:
    runner = StaticRunner(tiny("gemma3"))
    runner.prefill(prompt(1, 100))
    runner.prepare(28)
    slots = {type(layer): layer.slots for layer in runner.state.cache.layers}
    assert slots == {RingLayer: WINDOW, BucketLayer: 128}


def test_attention_reads_at_most_twice_what_is_filled(tiny: Tiny) -> None:
    runner = StaticRunner(tiny("llama"))
    runner.prefill(prompt(1, 300))
    runner.prepare(1000)
    runner.state.exact = False
    needed, read = runner.state.read_bytes()
    assert needed < read <= 2 * needed
    runner.state.exact = True
    assert runner.state.read_bytes() == (needed, needed)
    assert [bucket_for(length) for length in (1, 256, 257, 1024, 1025)] == [256, 256, 512, 1024, 2048]


def test_steps_beyond_the_capacity_are_refused_before_they_run(tiny: Tiny) -> None:
    runner = StaticRunner(tiny("llama"))
    runner.prefill(prompt(1, 5))
    runner.prepare(3)
    runner.enqueue(3)
    with pytest.raises(ProfileError, match="8 of 8 cache positions"):
        runner.enqueue(1)


def test_padded_prompts_are_refused(tiny: Tiny) -> None:
    mask = torch.ones((2, 6), dtype=torch.int64)
    mask[1, :2] = 0
    for kind in (EagerRunner, StaticRunner):
        with pytest.raises(ProfileError, match="different lengths"):
            kind(tiny("llama")).prefill(prompt(2, 6), mask)


def test_an_unknown_cache_layer_is_refused_by_name_and_left_intact(tiny: Tiny) -> None:
    model = tiny("llama")
    cache, _ = prefill(model, prompt(1, 5))
    assert isinstance(cache, DynamicCache)
    cache.layers[1] = LinearAttentionAndFullAttentionLayer()
    with pytest.raises(ProfileError, match="layer 1 is a LinearAttentionAndFullAttentionLayer"):
        DecodeState(model, cache, torch.zeros((1, 1), dtype=torch.int64), 4)
    assert cache.layers[0].keys is not None


def test_tokens_after_the_end_are_cut() -> None:
    assert cut([4, 7, 9, 7], frozenset({7})) == [4, 7]
    assert cut([4, 9], frozenset({7})) == [4, 9]
