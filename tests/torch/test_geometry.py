"""The geometry against transformers itself: every tensor, every byte of cache, every FLOP that can be counted."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache
from transformers.models.llama4.modeling_llama4 import Llama4TextMoe

from profiler.models import catalog, families
from profiler.models.geometry import Geometry, Weight
from profiler.models.layers import Execution, GatedDelta
from profiler.predict import engines, work
from profiler.predict.engines.base import Setting

WINDOW = 8

COMMON = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
}
GEMMA4 = COMMON | {
    "model_type": "gemma4_text",
    "num_hidden_layers": 6,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 2,
    "sliding_window": WINDOW,
    "global_head_dim": 32,
    "hidden_size_per_layer_input": 0,
}
QWEN3_5 = COMMON | {
    "num_hidden_layers": 4,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 16,
}
TINY: dict[str, dict[str, Any]] = {
    "gemma3": COMMON
    | {"model_type": "gemma3_text", "num_hidden_layers": 7, "sliding_window": WINDOW, "sliding_window_pattern": 3},
    "gemma4 shared kv": GEMMA4
    | {
        "num_kv_shared_layers": 3,
        "use_double_wide_mlp": True,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": 80,
    },
    "gemma4 k_eq_v": GEMMA4 | {"attention_k_eq_v": True, "num_global_key_value_heads": 1},
    "gemma4 experts": GEMMA4
    | {"enable_moe_block": True, "num_experts": 8, "top_k_experts": 2, "moe_intermediate_size": 24},
    "gemma4 unified": GEMMA4 | {"model_type": "gemma4_unified_text", "attention_bias": True},
    "qwen3": COMMON | {"model_type": "qwen3", "num_hidden_layers": 3, "attention_bias": True},
    "qwen3 window": COMMON
    | {
        "model_type": "qwen3",
        "num_hidden_layers": 4,
        "use_sliding_window": True,
        "sliding_window": WINDOW,
        "max_window_layers": 2,
    },
    "qwen3_5": QWEN3_5 | {"model_type": "qwen3_5_text", "tie_word_embeddings": True},
    "qwen3_5 experts": QWEN3_5
    | {
        "model_type": "qwen3_5_moe_text",
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "shared_expert_intermediate_size": 40,
    },
    "llama": COMMON | {"model_type": "llama", "num_hidden_layers": 3, "mlp_bias": True},
    "llama4": COMMON
    | {
        "model_type": "llama4_text",
        "num_hidden_layers": 4,
        "intermediate_size_mlp": 80,
        "num_local_experts": 4,
        "num_experts_per_tok": 1,
        "interleave_moe_layer_step": 2,
        "attention_chunk_size": WINDOW,
    },
}


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


def role(module: torch.nn.Module, name: str, shape: tuple[int, ...]) -> str:
    """The role of a parameter by the module that holds it, as a quantizer would see it."""
    if name == "lm_head.weight":
        return "head"
    if isinstance(module, torch.nn.Embedding):
        return "embedding"
    if len(shape) == 1:
        return "vector"
    if isinstance(module, torch.nn.Conv1d):
        return "conv"
    if type(module) is torch.nn.Linear:
        return "linear"
    return "experts" if len(shape) == 3 else "router"


def stored_weights(model: Any) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Name → (role, shape) of all that a checkpoint of ``model`` stores: parameters and persistent buffers, once."""
    tied = {} if not model.config.tie_word_embeddings else {"lm_head.weight"}
    found = {}
    for name, tensor in model.state_dict().items():
        if name not in tied:
            module = model.get_submodule(name.rpartition(".")[0])
            found[name] = (role(module, name, tuple(tensor.shape)), tuple(tensor.shape))
    return found


def described_weights(geometry: Geometry) -> dict[str, tuple[str, tuple[int, ...]]]:
    def named(prefix: str, weights: tuple[Weight, ...]) -> dict[str, tuple[str, tuple[int, ...]]]:
        return {prefix + weight.name: (weight.role, weight.shape) for weight in weights}

    found = named("", geometry.outside)
    for index, layer in enumerate(geometry.layers):
        found |= named(f"model.layers.{index}.", layer.weights)
    return found


@pytest.mark.parametrize("name", catalog.names())
def test_every_tensor_of_the_catalog_is_that_of_transformers(name: str) -> None:
    raw = catalog.raw_config(name)
    geometry = families.geometry(raw)
    stored = stored_weights(text_model(raw, "meta", torch.bfloat16))
    assert described_weights(geometry) == stored
    assert geometry.parameters == sum(torch.Size(shape).numel() for _, shape in stored.values())


@pytest.mark.parametrize("name", TINY)
def test_every_tensor_of_rarer_settings_is_that_of_transformers(name: str) -> None:
    geometry = families.geometry(TINY[name])
    assert described_weights(geometry) == stored_weights(text_model(TINY[name], "meta", torch.float32))


@pytest.mark.parametrize("name", [name for name in catalog.names() if name.startswith("gemma-4")])
def test_a_config_saved_by_transformers_gives_the_same_geometry(name: str) -> None:
    raw = catalog.raw_config(name)
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
                    model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            expected = geometry.cache_bytes(context + 2, batch, dtype.itemsize)
            assert cache_storages(cache) == expected.total, (batch, context, expected)


# What FlopCounterMode counts in transformers: full rectangles of eager attention, all of batched experts.
COUNTED = Execution(skips_masked=False, every_expert=True)


def countable(geometry: Geometry, context: int | None, batch: int) -> float:
    """FLOPs that the counter cannot see: element-wise steps of the recurrence, triangular solves."""
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
            model(piece, past_key_values=cache, use_cache=True, logits_to_keep=1)
    how = Execution(chunk=chunk, skips_masked=False, every_expert=True)
    unseen = sum(countable(geometry, tokens, batch) for _, tokens in how.spans(context))
    assert counter.get_total_flops() == pytest.approx(geometry.prefill_flops(context, batch, how) - unseen, rel=0.01)

    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        model(ids[:, context:], past_key_values=cache, use_cache=True, logits_to_keep=1)
    predicted = geometry.decode_flops(context + 1, batch, COUNTED) - countable(geometry, None, batch)
    assert counter.get_total_flops() == pytest.approx(predicted, rel=0.01)


@pytest.mark.parametrize("name", ["llama-4-scout-17b-16e", "llama-4-maverick-17b-128e"])
def test_predicted_flops_of_llama_4_are_those_of_one_real_layer(name: str) -> None:
    """Real widths and all experts, on ``meta``: it is shapes that the counter counts."""
    raw = catalog.raw_config(name)
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
    setting = Setting("bf16", tokens, 1, "bf16", None)
    storage = engine.storage(geometry, "bf16", "bf16")
    predicted = work.prefill(geometry, storage, tokens, 1, engine.manner(geometry, setting, None))
    parts = ("experts", "mlp", "other")  # expert tensors, the shared expert, and the router among the small ones
    flops = sum(item.flops for item in predicted.items if item.kind == "weights" and item.part in parts)
    assert counter.get_total_flops() == pytest.approx(flops, rel=0.01)
