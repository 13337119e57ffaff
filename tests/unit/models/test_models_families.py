"""Raw configs: which are understood, and how bad ones are refused."""

from __future__ import annotations

from typing import Any

import pytest

from profiler import registry
from profiler.errors import ProfileError
from profiler.models import config, families, hub
from profiler.models.layers import Attention

LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
}


INFINITE = {"__float__": "Infinity"}  # as read from a file, see ``config.parse``


def text(raw: dict[str, Any]) -> dict[str, Any]:
    """The part of a catalog config that describes the decoder."""
    inner: dict[str, Any] = raw.get("text_config", raw)
    return inner


@pytest.mark.parametrize("name", registry.names("models.families"))
def test_every_family_names_its_model_types_and_has_a_catalog_entry_or_is_llama(name: str) -> None:
    family = registry.load("models.families", name, "family")
    assert family.MODEL_TYPES and family.__doc__ and callable(family.geometry)
    in_catalog = {hub.shipped_config(entry)["model_type"] for entry in hub.names()}
    assert in_catalog & set(family.MODEL_TYPES) or name == "llama"


def test_no_model_type_is_served_twice() -> None:
    served = [
        model_type
        for name in registry.names("models.families")
        for model_type in registry.load("models.families", name, "family").MODEL_TYPES
    ]
    assert len(served) == len(set(served)) == len(families.by_model_type())


@pytest.mark.parametrize("model_type", ["glm4", "gemma2", "llama5", "qwen2_moe"])
def test_a_family_without_a_rule_is_a_fact_of_the_file_and_not_a_typing_mistake(model_type: str) -> None:
    raw = {"model_type": model_type, "num_hidden_layers": 40, "hidden_size": 4096, "vocab_size": 151_552}
    with pytest.raises(families.Unserved) as caught:
        families.geometry(raw)
    size = "40 layers, hidden size 4,096, vocabulary 151,552"
    assert caught.value.message == (
        f"config: model_type {model_type} ({size}): this family is not supported yet,"
        " so nothing is predicted or measured"
    )
    assert "Did you mean" not in str(caught.value)
    assert "Gemma 3; Gemma 4; gpt-oss; Llama 1 to 3" in str(caught.value.hint)


@pytest.mark.parametrize("word", ["Infinity", "-Infinity", "NaN", '{"__float__": "Infinity"}'])
def test_a_number_that_no_family_reads_may_be_infinite(word: str) -> None:
    """Bamba, Granite 4 and Nemotron-H have such a limit, in transformers' own examples too."""
    limit = f'"time_step_limit": [0.0, {word}]'.encode()
    known = config.parse(b'{"model_type": "llama", ' + limit + b"}", "config.json")
    assert families.geometry(known) == families.geometry({"model_type": "llama"})
    with pytest.raises(families.Unserved, match="model_type bamba: this family is not supported yet"):
        families.geometry(config.parse(b'{"model_type": "bamba", ' + limit + b"}", "config.json"))


@pytest.mark.parametrize("sizes", [{}, {"num_hidden_layers": "x", "hidden_size": -4, "vocab_size": 10**400}])
def test_absurd_sizes_of_an_unknown_family_are_not_repeated(sizes: dict[str, Any]) -> None:
    with pytest.raises(families.Unserved, match="config: model_type new: this family is not supported"):
        families.geometry({"model_type": "new"} | sizes)


def test_sizes_of_an_unknown_multimodal_family_are_those_of_its_text_part() -> None:
    raw = {"model_type": "mllama", "text_config": {"num_hidden_layers": 40, "hidden_size": 4096}}
    with pytest.raises(families.Unserved, match="40 layers, hidden size 4,096"):
        families.geometry(raw)


@pytest.mark.parametrize("model_type", [None, 7, [], {"a": 1}, "\x1b[31mllama"])
def test_a_model_type_that_is_no_plain_word_is_refused(model_type: object) -> None:
    with pytest.raises(ProfileError) as caught:
        families.geometry(LLAMA | {"model_type": model_type})
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize("name", hub.names())
def test_multimodal_checkpoints_say_that_only_the_text_tower_counts(name: str) -> None:
    raw = hub.shipped_config(name)
    cautions = families.geometry(raw).cautions
    assert any("text tower only" in caution for caution in cautions) == ("text_config" in raw)


def test_the_text_config_alone_gives_the_same_layers() -> None:
    for name in hub.names():
        raw = hub.shipped_config(name)
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
    assert families.geometry(short).layers == families.geometry(hub.shipped_config("gemma-3-4b")).layers


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
        ({"num_hidden_layers": None}, "num_hidden_layers is null, must be a whole number from 1 to 1000"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0"),
        ({"num_key_value_heads": 3}, r"num_attention_heads \(4\) is not a multiple of num_key_value_heads \(3\)"),
        ({"hidden_size": 66}, r"hidden_size \(66\) is not a multiple of num_attention_heads \(4\)"),
        ({"vocab_size": 2**40}, "vocab_size is"),
        ({"tie_word_embeddings": "yes"}, 'tie_word_embeddings is "yes", must be true or false'),
        ({"text_config": [1]}, "text_config is given, but model_type llama is a decoder without that part"),
        ({"decoder": {}}, "decoder is given, but model_type llama"),
        ({"rms_norm_eps": 1}, "rms_norm_eps is 1, must be a number with a decimal point"),
        ({"rms_norm_eps": INFINITE}, "rms_norm_eps is Infinity, must be a number with a decimal point"),
        ({"rope_parameters": INFINITE}, "rope_parameters is Infinity, must be an object"),
        ({"rope_theta": INFINITE}, "rope_theta is Infinity, must be a number"),
        ({"num_hidden_layers": INFINITE}, "num_hidden_layers is Infinity, must be a whole number"),
        ({"use_cache": "yes"}, 'use_cache is "yes", must be true or false'),
        ({"hidden_act": "swiglu"}, 'hidden_act is "swiglu", must be one of gelu'),
        ({"torch_dtype": "half-precision"}, 'torch_dtype is "half-precision", must be one of bfloat16'),
        ({"pad_token_id": 100}, r"pad_token_id is 100, which is not in the vocabulary of 100 \(vocab_size\)"),
        ({"head_dim": 15}, "head_dim is 15, must be even for RoPE"),
        ({"sliding_window": 4096}, "sliding_window is 4096: Llama with windows is not supported"),
        ({"layer_types": ["sliding_attention"] * 2}, 'layer_types holds "sliding_attention"'),
        ({"is_encoder_decoder": True}, "is_encoder_decoder is true"),
        ({"per_layer_config": {"0": {}}}, "per_layer_config: layers of different shapes are not supported for llama"),
    ],
)
def test_a_bad_field_is_named_with_what_is_allowed(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ProfileError, match=says) as caught:
        families.geometry(LLAMA | change)
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        (
            "gemma-3-270m",
            {"layer_types": ["full_attention"]},
            "layer_types has 1 entries, but num_hidden_layers is 18",
        ),
        ("gemma-3-270m", {"layer_types": ["mamba"] * 18}, 'layer_types holds "mamba"'),
        ("gemma-3-270m", {"layer_types": [{}] * 18}, "layer_types is a list, must be a list of words or null"),
        ("gemma-3-270m", {"sliding_window": 1}, "sliding_window is 1"),
        ("gemma-3-270m", {"use_bidirectional_attention": True}, "only causal decoders are supported"),
        ("gemma-4-e2b", {"num_kv_shared_layers": 35}, "leaves no layer with a cache"),
        ("gemma-4-e2b", {"num_kv_shared_layers": 32}, "shared layers of type full_attention have no earlier layer"),
        ("gemma-4-e2b", {"per_layer_config": {"4": {"head_dim": 512}}}, "per_layer_config must give every"),
        ("gemma-4-26b-a4b", {"top_k_experts": 129}, r"top_k_experts \(129\) is more than num_experts \(128\)"),
        ("gemma-4-26b-a4b", {"num_experts": None}, "num_experts is null, must be a whole number from 1 to 16384"),
        ("gemma-4-26b-a4b", {"rope_scaling": None}, "rope_scaling is given, but Gemma 4 uses rope_parameters"),
        ("qwen3.5-0.8b", {"layer_types": ["linear_attention"] * 24}, "no layer has type full_attention"),
        ("gemma-3-270m", {"query_pre_attn_scalar": 0}, "query_pre_attn_scalar is 0"),
        ("qwen3.5-0.8b", {"linear_num_value_heads": 24}, "is not a multiple of linear_num_key_heads"),
        ("llama-4-scout-17b-16e", {"no_rope_layers": [1, 0]}, "no_rope_layers has 2 entries"),
        ("llama-4-scout-17b-16e", {"moe_layers": "all"}, 'moe_layers is "all", must be a list of whole'),
    ],
)
def test_contradictions_are_refused_in_one_line(name: str, change: dict[str, Any], says: str) -> None:
    with pytest.raises(ProfileError, match=says):
        families.geometry(text(hub.shipped_config(name)) | change)


def test_a_tied_head_may_be_stated_outside_the_text_config() -> None:
    raw = hub.shipped_config("qwen3.5-0.8b")
    inner = {key: value for key, value in text(raw).items() if key != "tie_word_embeddings"}
    assert families.geometry(raw | {"text_config": inner}).tied
    assert not families.geometry(raw | {"text_config": inner | {"tie_word_embeddings": False}}).tied


def test_code_in_a_config_is_never_looked_at() -> None:
    hostile = {"auto_map": {"AutoModelForCausalLM": "evil--Model"}, "_attn_implementation_internal": "owner/kernel"}
    found = families.geometry(LLAMA | hostile)
    assert found.layers == families.geometry(LLAMA).layers
    assert found.cautions == ("auto_map names code that comes with the model; it is not run, this is plain llama",)


QWEN3 = LLAMA | {"model_type": "qwen3", "head_dim": 16, "max_window_layers": 1}
SLIDING = {"layer_types": ["sliding_attention", "full_attention"]}


@pytest.mark.parametrize(
    ("fields", "windows"),
    [
        ({"sliding_window": 512}, [None, None]),
        ({"use_sliding_window": True, "sliding_window": 512}, [None, 512]),
        ({"use_sliding_window": True, "sliding_window": None}, [None, None]),
        ({"use_sliding_window": True}, [None, 4096]),
        (SLIDING | {"use_sliding_window": True, "sliding_window": 512}, [512, None]),
        ({"layer_types": ["full_attention"] * 2, "use_sliding_window": True, "sliding_window": 512}, [None, None]),
        ({"layer_types": ["attention"] * 2}, [None, None]),
    ],
)
def test_use_sliding_window_switches_the_window_of_qwen_3(fields: dict[str, Any], windows: list[int | None]) -> None:
    layers = families.geometry(QWEN3 | fields).layers
    assert [layer.mixer.window for layer in layers if isinstance(layer.mixer, Attention)] == windows


@pytest.mark.parametrize(
    ("fields", "switch"),
    [
        ({"sliding_window": 512}, "use_sliding_window is not true"),
        ({"use_sliding_window": True, "sliding_window": None}, "sliding_window is null"),
    ],
)
def test_layer_types_and_a_switch_that_contradict_each_other_are_both_named(
    fields: dict[str, Any], switch: str
) -> None:
    with pytest.raises(ProfileError, match=f"layer_types has sliding_attention layers, but {switch}"):
        families.geometry(QWEN3 | SLIDING | fields)


def test_a_field_that_is_left_out_has_the_default_of_transformers() -> None:
    short = families.geometry({"model_type": "llama"})
    assert (len(short.layers), short.hidden, short.vocab, short.max_position) == (32, 4096, 32000, 2048)
    assert short.layers[0].mixer == Attention("full", heads=32, kv_heads=32, head_dim=128)


def test_a_multimodal_config_without_a_decoder_is_the_default_decoder_and_says_so() -> None:
    found = families.geometry({"model_type": "gemma3", "hidden_size": 64})
    assert found.hidden == 2304
    assert "the config has no text_config, so its sizes are transformers' defaults for gemma3_text" in found.cautions


def test_a_tied_head_that_is_stated_twice_and_not_alike_is_said() -> None:
    raw = hub.shipped_config("qwen3.5-0.8b")
    both = raw | {"tie_word_embeddings": True, "text_config": text(raw) | {"tie_word_embeddings": False}}
    said = "tie_word_embeddings is true outside text_config but false inside it, which is used"
    assert said in families.geometry(both).cautions


def test_a_head_that_the_whole_model_ties_by_default_and_its_decoder_does_not_is_told() -> None:
    inner = hub.shipped_config("gemma-3-270m")
    config = {"model_type": "gemma3", "text_config": dict(inner) | {"tie_word_embeddings": False}}
    found = families.geometry(config)
    said = "tie_word_embeddings is true outside text_config, by default, but false inside it, which is used"
    assert said in found.cautions and not found.tied
    agreed = {"model_type": "gemma3", "text_config": dict(inner) | {"tie_word_embeddings": True}}
    assert not any("tie_word" in caution for caution in families.geometry(agreed).cautions)


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LONG = {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [4.0] * 8}


@pytest.mark.parametrize(
    ("fields", "context"),
    [
        ({}, 40960),
        ({"rope_scaling": None}, 40960),
        ({"rope_scaling": YARN}, 131072),
        ({"rope_parameters": YARN}, 131072),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, 163840),
        ({"rope_scaling": {"type": "yarn", "factor": None, "original_max_position_embeddings": 8192}}, 40960),
        ({"rope_scaling": YARN, "original_max_position_embeddings": 16384}, 65536),
        ({"rope_scaling": YARN, "rope_parameters": {"rope_type": "linear", "factor": 9.0}}, 131072),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, 81920),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.5}}, 102400),
        ({"rope_scaling": LLAMA3 | {"original_max_position_embeddings": 8192}}, 40960),
        ({"rope_scaling": LONG | {"original_max_position_embeddings": 4096, "factor": 8.0}}, 40960),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}, 40960),
    ],
)
def test_the_largest_context_follows_from_the_type_of_rope_scaling(fields: dict[str, Any], context: int) -> None:
    assert families.geometry(QWEN3 | {"max_position_embeddings": 40960} | fields).max_position == context


def test_gemma_3_counts_its_scaling_in_max_position_embeddings() -> None:
    raw = hub.shipped_config("gemma-3-4b")
    assert text(raw)["rope_scaling"]["factor"] == 8.0
    assert families.geometry(raw).max_position == 131072


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"rope_scaling": "yarn"}, 'rope_scaling is "yarn", must be an object'),
        ({"rope_scaling": {"type": "yarn"}}, 'rope_scaling.factor is missing, but rope_type "yarn" requires it'),
        ({"rope_scaling": YARN | {"factor": "4"}}, 'rope_scaling.factor is "4", must be a number from 1'),
        ({"rope_scaling": YARN | {"factor": INFINITE}}, "rope_scaling.factor is Infinity, must be a number from 1"),
        ({"rope_scaling": YARN | {"factor": 0}}, "rope_scaling.factor is 0, must be a number from 1"),
        ({"rope_scaling": YARN | {"factor": 10**9}}, "rope_scaling.factor is 1000000000, must be a number from 1"),
        ({"rope_scaling": YARN | {"original_max_position_embeddings": 0}}, "original_max_position_embeddings is 0"),
        ({"rope_scaling": YARN | {"original_max_position_embeddings": 2**29}}, "gives a context of 2,147,483,648"),
        (
            {"rope_scaling": {"type": "su", "factor": 4.0}},
            'rope_scaling.rope_type is "su", which is not supported',
        ),
        ({"rope_scaling": LLAMA3 | {"low_freq_factor": 0}}, "rope_scaling.low_freq_factor is 0"),
        ({"rope_parameters": LONG | {"long_factor": [4.0]}}, "long_factor must be a list of 8 numbers"),
        ({"rope_parameters": {"full_attention": YARN}}, "given per layer type, but qwen3 takes one"),
        ({"rope_theta": None}, "config: rope_theta is null, must be a number"),
        ({"rope_parameters": {"rope_theta": None}}, "config: rope_parameters.rope_theta is null, must be a number"),
        (
            {"rope_scaling": YARN, "partial_rotary_factor": 0.5},
            "config: partial_rotary_factor is 0.5, but qwen3 rotates",
        ),
    ],
)
def test_rope_parameters_that_transformers_cannot_use_are_named(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ProfileError, match=says):
        families.geometry(QWEN3 | {"max_position_embeddings": 40960} | fields)


def test_padding_must_be_a_row_of_every_table_that_takes_it() -> None:
    raw = hub.shipped_config("gemma-4-e2b")
    text = raw["text_config"] | {"vocab_size_per_layer_input": 4, "pad_token_id": 5}
    with pytest.raises(ProfileError, match=r"pad_token_id is 5.*vocab_size_per_layer_input"):
        families.geometry(raw | {"text_config": text})
