"""Raw configs: which are understood, and how bad ones are refused."""

from __future__ import annotations

from typing import Any

import pytest

from profiler import registry
from profiler.errors import NotFound, ProfileError
from profiler.models import catalog, families

LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
}


def text(raw: dict[str, Any]) -> dict[str, Any]:
    """The part of a catalog config that describes the decoder."""
    inner: dict[str, Any] = raw.get("text_config", raw)
    return inner


@pytest.mark.parametrize("name", registry.names("models.families"))
def test_every_family_names_its_model_types_and_has_a_catalog_entry_or_is_llama(name: str) -> None:
    family = registry.load("models.families", name, "family")
    assert family.MODEL_TYPES and family.__doc__ and callable(family.geometry)
    in_catalog = {catalog.raw_config(entry)["model_type"] for entry in catalog.names()}
    assert in_catalog & set(family.MODEL_TYPES) or name == "llama"


def test_no_model_type_is_served_twice() -> None:
    served = [
        model_type
        for name in registry.names("models.families")
        for model_type in registry.load("models.families", name, "family").MODEL_TYPES
    ]
    assert len(served) == len(set(served)) == len(families.by_model_type())


def test_an_unknown_model_type_is_refused_by_name_nearest_first() -> None:
    with pytest.raises(NotFound, match="no rule for model_type gemma5") as caught:
        families.geometry(LLAMA | {"model_type": "gemma5"})
    assert caught.value.hint is not None and caught.value.hint.startswith("Did you mean gemma")


@pytest.mark.parametrize("model_type", [None, 7, [], {"a": 1}, "\x1b[31mllama"])
def test_a_model_type_that_is_no_plain_word_is_refused(model_type: object) -> None:
    with pytest.raises(ProfileError) as caught:
        families.geometry(LLAMA | {"model_type": model_type})
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize("name", catalog.names())
def test_multimodal_checkpoints_say_that_only_the_text_tower_counts(name: str) -> None:
    raw = catalog.raw_config(name)
    cautions = families.geometry(raw).cautions
    assert any("text tower only" in caution for caution in cautions) == ("text_config" in raw)


def test_the_text_config_alone_gives_the_same_layers() -> None:
    for name in catalog.names():
        raw = catalog.raw_config(name)
        assert families.geometry(text(raw)).layers == families.geometry(raw).layers


def test_defaults_that_google_leaves_out_of_gemma_3_configs_are_those_of_transformers() -> None:
    short = {
        "model_type": "gemma3",
        "text_config": {
            "model_type": "gemma3_text",
            "hidden_size": 2560,
            "intermediate_size": 10240,
            "num_hidden_layers": 34,
            "sliding_window": 1024,
        },
    }
    assert families.geometry(short).layers == families.geometry(catalog.raw_config("gemma-3-4b")).layers


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"num_hidden_layers": -1}, "num_hidden_layers is -1, must be a whole number from 1 to 1000"),
        ({"num_hidden_layers": 10_000}, "num_hidden_layers is 10000"),
        ({"num_hidden_layers": 2.5}, "num_hidden_layers is 2.5"),
        ({"num_hidden_layers": True}, "num_hidden_layers is true"),
        ({"num_hidden_layers": "2"}, 'num_hidden_layers is "2"'),
        ({"num_hidden_layers": [1]}, "num_hidden_layers is a list"),
        ({"num_hidden_layers": 10**5000}, "num_hidden_layers is a huge number"),
        ({"num_hidden_layers": None}, "num_hidden_layers is missing"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0"),
        ({"num_key_value_heads": 3}, r"num_attention_heads \(4\) is not a multiple of num_key_value_heads \(3\)"),
        ({"hidden_size": 66}, r"hidden_size \(66\) is not a multiple of num_attention_heads \(4\)"),
        ({"vocab_size": 2**40}, "vocab_size is"),
        ({"tie_word_embeddings": "yes"}, 'tie_word_embeddings is "yes", must be true or false'),
        ({"text_config": [1]}, "text_config is a list, must be an object"),
        ({"text_config": {"model_type": "qwen3"}}, "model_type llama holds a text_config of qwen3"),
    ],
)
def test_a_bad_field_is_named_with_what_is_allowed(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ProfileError, match=says) as caught:
        families.geometry(LLAMA | change)
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("gemma-3-270m", {"layer_types": ["full_attention"]}, "layer_types has 1 entries, num_hidden_layers is 18"),
        ("gemma-3-270m", {"layer_types": ["mamba"] * 18}, 'layer_types holds "mamba"'),
        ("gemma-3-270m", {"layer_types": [{}] * 18}, "layer_types holds an object"),
        ("gemma-3-270m", {"sliding_window": 1}, "sliding_window is 1"),
        ("gemma-3-270m", {"use_bidirectional_attention": True}, "no rule for an encoder"),
        ("gemma-4-e2b", {"num_kv_shared_layers": 35}, "leaves no layer with a cache"),
        ("gemma-4-e2b", {"num_kv_shared_layers": 32}, "shared layers of type full_attention have no earlier layer"),
        ("gemma-4-e2b", {"per_layer_config": {"4": {"head_dim": 512}}}, "per_layer_config must give every"),
        ("gemma-4-26b-a4b", {"top_k_experts": 129}, r"top_k_experts \(129\) is more than num_experts \(128\)"),
        ("gemma-4-26b-a4b", {"num_experts": None}, "num_experts is missing"),
        ("qwen3.5-0.8b", {"linear_num_value_heads": 24}, "is not a multiple of linear_num_key_heads"),
        ("llama-4-scout-17b-16e", {"no_rope_layers": [1, 0]}, "no_rope_layers has 2 entries"),
        ("llama-4-scout-17b-16e", {"moe_layers": "all"}, "moe_layers must be a list"),
    ],
)
def test_contradictions_are_refused_in_one_line(name: str, change: dict[str, Any], says: str) -> None:
    with pytest.raises(ProfileError, match=says):
        families.geometry(text(catalog.raw_config(name)) | change)


def test_a_tied_head_may_be_stated_outside_the_text_config() -> None:
    raw = catalog.raw_config("qwen3.5-0.8b")
    inner = {key: value for key, value in text(raw).items() if key != "tie_word_embeddings"}
    assert families.geometry(raw | {"text_config": inner}).tied
    assert not families.geometry(raw | {"text_config": inner | {"tie_word_embeddings": False}}).tied


def test_code_in_a_config_is_never_looked_at() -> None:
    hostile = {"auto_map": {"AutoModelForCausalLM": "evil--Model"}, "_attn_implementation_internal": "owner/kernel"}
    assert families.geometry(LLAMA | hostile) == families.geometry(LLAMA)
