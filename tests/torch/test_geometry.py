"""The geometry against transformers itself: every tensor, every byte of cache, every FLOP that can be counted."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from fakes.settings import TINY, WINDOW, described_weights, stored_weights
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache
from transformers.models.llama4.modeling_llama4 import Llama4TextMoe

from profiler.cost import engines, work
from profiler.cost.engines.base import EngineRequest
from profiler.kernels.versions import with_cache
from profiler.models import families, hub
from profiler.models.geometry import Geometry
from profiler.models.layers import GatedDelta


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def text_model(raw: dict[str, Any], device: str, dtype: torch.dtype, **load: Any) -> Any:
    """The text-only CausalLM of a raw config, with random weights."""
    config = AutoConfig.for_model(**copy.deepcopy(raw)).get_text_config()
    with torch.device(device), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return AutoModelForCausalLM.from_config(config, dtype=dtype, **load).eval()


@pytest.mark.parametrize("name", hub.names())
def test_every_tensor_of_the_catalog_is_that_of_transformers(name: str) -> None:
    raw = hub.shipped_config(name)
    geometry = families.geometry(raw)
    stored = stored_weights(text_model(raw, "meta", torch.bfloat16))
    assert described_weights(geometry) == stored
    assert geometry.parameters == sum(torch.Size(shape).numel() for _, shape in stored.values())


@pytest.mark.parametrize("name", TINY)
def test_every_tensor_of_rarer_settings_is_that_of_transformers(name: str) -> None:
    geometry = families.geometry(TINY[name])
    assert described_weights(geometry) == stored_weights(text_model(TINY[name], "meta", torch.float32))


@pytest.mark.parametrize("name", [name for name in hub.names() if name.startswith("gemma-4")])
def test_a_config_saved_by_transformers_gives_the_same_geometry(name: str) -> None:
    raw = hub.shipped_config(name)
    config = AutoConfig.for_model(**copy.deepcopy(raw)).get_text_config()
    saved = json.loads(config.to_json_string())
    assert "global_head_dim" not in saved  # transformers writes per_layer_config instead
    assert families.geometry(saved).layers == families.geometry(raw).layers


def cache_storages(cache: DynamicCache) -> int:
    """Bytes of the storages behind a cache, each once."""
    storages = {}
    for layer in cache.layers:
        held = [getattr(layer, "keys", None), getattr(layer, "values", None)]
        held += [*getattr(layer, "conv_states", {}).values(), *getattr(layer, "recurrent_states", {}).values()]
        for tensor in held:
            if tensor is not None:
                storage = tensor.untyped_storage()
                storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", TINY)
def test_cache_bytes_are_those_of_a_real_cache(name: str, dtype: torch.dtype) -> None:
    geometry = families.geometry(TINY[name])
    model = text_model(TINY[name], "cpu", dtype)
    for batch in (1, 3):
        for context in (WINDOW // 2, WINDOW - 1, 5 * WINDOW + 3):
            cache = DynamicCache(config=model.config)
            for tokens in (context, 1, 1):
                ids = torch.randint(1, 80, (batch, tokens))
                with torch.no_grad():
                    model(ids, **with_cache(cache), logits_to_keep=1)
            expected = geometry.cache_bytes(context + 2, batch, dtype.itemsize)
            assert cache_storages(cache) == expected.total, (batch, context, expected)


def unseen_flops(geometry: Geometry, context: int | None, batch: int) -> float:
    """FLOPs that the counter cannot see: triangular solves in a prefill, all of the recurrence in a decode step."""
    unseen = 0.0
    for layer in geometry.layers:
        if isinstance(layer.mixer, GatedDelta):
            if context is None:
                unseen += layer.mixer.decode_flops(1)
            else:
                unseen += -(-context // 64) * layer.mixer.solve_flops_per_chunk
    return batch * unseen


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", TINY)
def test_flops_are_those_of_the_flop_counter(name: str) -> None:
    raw = TINY[name] | {"hidden_size": 256, "intermediate_size": 384, "vocab_size": 512}
    geometry = families.geometry(raw)
    # grouped_mm and the flash SDPA of CPUs are not in the counter's tables: the eager paths are
    model = text_model(raw, "cpu", torch.float32, attn_implementation="eager", experts_implementation="eager")
    batch, chunk, context = 2, 70, 170
    cache = DynamicCache(config=model.config)
    ids = torch.randint(1, 80, (batch, context + 1))
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        for piece in ids[:, :context].split(chunk, dim=1):
            model(piece, **with_cache(cache), logits_to_keep=1)
    engine = engines.find("transformers")
    rules = engine.prefill_rules(geometry, EngineRequest("fp32", context, batch, "fp32", ubatch=chunk), None)
    storage = engine.storage(geometry, "fp32", "fp32")
    unseen = sum(unseen_flops(geometry, tokens, batch) for tokens in (chunk, chunk, context - 2 * chunk))
    predicted = work.prefill(geometry, storage, context, batch, rules).flops
    assert counter.get_total_flops() == pytest.approx(predicted - unseen, rel=0.01)

    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        model(ids[:, context:], **with_cache(cache), logits_to_keep=1)
    predicted = work.decode(geometry, storage, context + 1, batch, rules).flops
    assert counter.get_total_flops() == pytest.approx(predicted - unseen_flops(geometry, None, batch), rel=0.01)


@pytest.mark.parametrize("name", ["llama-4-scout-17b-16e", "llama-4-maverick-17b-128e"])
def test_predicted_flops_of_llama_4_are_those_of_one_real_layer(name: str) -> None:
    """Real widths and all experts, on ``meta``: it is shapes that the counter counts."""
    raw = hub.shipped_config(name)
    raw = raw | {
        "text_config": raw["text_config"]
        | {"num_hidden_layers": 1, "moe_layers": [0], "no_rope_layers": [1], "layer_types": ["chunked_attention"]}
    }
    tokens = 512
    config = AutoConfig.for_model(**copy.deepcopy(raw)).get_text_config()
    with torch.device("meta"):
        feed_forward = Llama4TextMoe(config).to(torch.bfloat16)
        hidden = torch.empty((1, tokens, config.hidden_size), dtype=torch.bfloat16)
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        feed_forward(hidden)
    geometry, engine = families.geometry(raw), engines.find("transformers")
    request = EngineRequest("bf16", tokens, 1, "bf16", None)
    storage = engine.storage(geometry, "bf16", "bf16")
    predicted = work.prefill(geometry, storage, tokens, 1, engine.prefill_rules(geometry, request, None))
    parts = ("experts", "mlp", "other")  # expert tensors, the shared expert, and the router among the small ones
    flops = sum(item.flops for item in predicted.items if item.kind == "weights" and item.part in parts)
    assert counter.get_total_flops() == pytest.approx(flops, rel=0.01)
