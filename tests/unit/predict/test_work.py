"""Bytes and FLOPs of a pass, against the geometry that counts them its own way."""

from __future__ import annotations

from dataclasses import replace

import pytest

from profiler.devices import target
from profiler.models import catalog, families
from profiler.models.geometry import Geometry
from profiler.models.layers import Execution
from profiler.predict import engines, work
from profiler.predict.engines.base import Setting
from profiler.predict.storage import Storage
from profiler.predict.work import Manner

PLAIN = Manner(ubatch=512, cache_bytes=2, how=Execution(trims_shared=False))
MODELS = ["gemma-3-270m", "gemma-4-e2b", "gemma-4-26b-a4b", "qwen3.5-2b", "qwen3.6-35b-a3b", "llama-4-scout-17b-16e"]


def shape(name: str) -> tuple[Geometry, Storage]:
    geometry = families.geometry(catalog.raw_config(name))
    return geometry, engines.find("transformers").storage(geometry, "bf16", "bf16")


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("batch", [1, 3, 64])
def test_a_decode_step_reads_what_the_geometry_says(name: str, batch: int) -> None:
    geometry, storage = shape(name)
    step = work.decode(geometry, storage, 4096, batch, PLAIN)
    read = sum(item.nbytes for item in step.items if item.kind == "weights")
    looked_up = sum(
        2 * weight.parameters * min(1, batch / weight.shape[0])
        for weight in geometry.outside
        if weight.role == "embedding" and not (geometry.tied and weight.name == "model.embed_tokens.weight")
    )
    assert read == pytest.approx(2 * geometry.decode_weight_elements(batch) - looked_up, rel=1e-6)
    cache = sum(item.nbytes for item in step.items if item.kind == "cache")
    assert cache == 2 * geometry.decode_cache_elements(4096, batch)


@pytest.mark.parametrize("name", MODELS)
def test_a_decode_step_multiplies_what_the_geometry_says(name: str) -> None:
    geometry, storage = shape(name)
    step = work.decode(geometry, storage, 4096, 4, PLAIN)
    assert step.flops == pytest.approx(geometry.decode_flops(4096, 4), rel=0.01)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("context", [1, 512, 700, 4096])
@pytest.mark.parametrize("trims", [True, False])
def test_a_prefill_multiplies_what_the_geometry_says(name: str, context: int, trims: bool) -> None:
    geometry, storage = shape(name)
    how = Execution(chunk=512, trims_shared=trims)
    manner = Manner(ubatch=512, cache_bytes=2, how=Execution(trims_shared=trims))
    prefill = work.prefill(geometry, storage, context, 2, manner)
    assert prefill.flops == pytest.approx(geometry.prefill_flops(context, 2, how), rel=0.02)
    assert prefill.passes == -(-context // 512)


def test_a_pass_of_many_tokens_reads_every_expert_once() -> None:
    geometry, storage = shape("qwen3.6-35b-a3b")
    experts = storage.part_bytes("experts")
    prefill = work.prefill(geometry, storage, 4096, 1, Manner(ubatch=4096, cache_bytes=2))
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
    setting = Setting("bf16", 2048, 1, "bf16", None)
    manner = engine.manner(geometry, setting, None)
    chosen = Manner(ubatch=2048, cache_bytes=2, how=replace(manner.how, every_expert=False))
    for pass_of, tokens in ((work.prefill, 2048), (work.decode, 2048)):
        (all_of_them,) = (i for i in pass_of(geometry, storage, tokens, 1, manner).items if i.part == "experts")
        (only_chosen,) = (i for i in pass_of(geometry, storage, tokens, 1, chosen).items if i.part == "experts")
        assert all_of_them.flops == pytest.approx(experts * only_chosen.flops)
        assert all_of_them.flops - all_of_them.spared_flops == pytest.approx(only_chosen.flops)
        assert all_of_them.nbytes == storage.part_bytes("experts")
        assert all_of_them.nbytes - all_of_them.spared == pytest.approx(only_chosen.nbytes)
    whole = work.prefill(geometry, storage, 2048, 1, manner)
    assert whole.flops == pytest.approx(geometry.prefill_flops(2048, 1, replace(manner.how, chunk=2048)), rel=0.01)


def test_the_buffers_of_llama_4_hold_every_token_for_every_expert() -> None:
    geometry, storage = shape("llama-4-maverick-17b-128e")
    terms = engines.find("transformers").memory(
        geometry, storage, Setting("bf16", 2048, 1, "bf16", None), target.find("h100")
    )
    assert 17 * 2**30 < terms.prefill.low < terms.prefill.value < 21 * 2**30


def test_lookups_and_what_lies_on_the_host_are_not_read() -> None:
    geometry = families.geometry(catalog.raw_config("gemma-4-e2b"))
    engine = engines.find("llama.cpp")
    storage = engine.storage(geometry, "q4_k_m", "bf16")
    step = work.decode(geometry, storage, 128, 1, PLAIN)
    assert "tables" not in {item.part for item in step.items}
    assert step.nbytes < 0.5 * (storage.device_bytes + storage.host_bytes)
