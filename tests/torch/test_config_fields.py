"""Configs as transformers reads them: declared fields, and what modules and caches make of changed ones."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import os
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, get_args, get_origin

import pytest
import torch
import transformers
from fakes.mutations import mutated
from fakes.settings import TINY, described_weights, stored_weights
from transformers import AutoModelForCausalLM, DynamicCache, PretrainedConfig
from transformers.activations import ACT2FN
from transformers.modeling_rope_utils import RopeParameters
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from profiler.errors import ProfileError
from profiler.kernels.versions import with_cache
from profiler.models import families
from profiler.models.config import declared
from profiler.models.families.base import ACTIVATIONS, DTYPES
from profiler.models.layers import Attention

MORE = int(os.environ.get("PROFILE_CONFIGS", "500"))  # 1400 after a change to how configs are read: half a minute
CONTEXT = 12
SMALL = 4_000_000  # parameters
BASES = TINY | {
    "gemma3 types": TINY["gemma3"]
    | {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"] * 2 + ["full_attention"]},
    "gemma3 scaled": TINY["gemma3"]
    | {"rope_scaling": {"rope_type": "linear", "factor": 8.0}, "rope_theta": 1000000.0},
    "qwen3 yarn": TINY["qwen3"]
    | {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256}},
    "llama 3.1": TINY["llama"]
    | {
        "rope_parameters": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
            "rope_theta": 500000.0,
        }
    },
    "qwen3_5 yarn": TINY["qwen3_5"]
    | {
        "rope_parameters": {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 512,
            "rope_theta": 10000000,
            "partial_rotary_factor": 0.25,
            "mrope_section": [1, 1, 0],
            "mrope_interleaved": True,
        }
    },
}
FAMILIES = list(
    dict.fromkeys(families.by_model_type().values())
)  # in one order: seeds name the same configs everywhere
TEXT = {kind: fields for family in FAMILIES for kind, fields in family.TEXT.items()}
WRAPPED = {kind: fields for family in FAMILIES for kind, (_, fields) in family.WRAPPED.items()}
FIELDS = {kind: list(declared(fields)) for kind, fields in TEXT.items()}


@pytest.fixture(autouse=True)
def _one_quiet_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    torch.set_num_threads(before)


@dataclass
class Read:
    """What transformers reads from a config, or what we read."""

    weights: dict[str, Any]
    tied: bool
    cache: list[tuple[Any, ...]]
    reach: int
    stepped: bool  # whether the model was small enough to take a step


def theirs(raw: dict[str, Any]) -> Read:
    """Any exception: transformers refuses it, when it reads the config, builds the module or takes one step."""
    whole = CONFIG_MAPPING[raw["model_type"]].from_dict(copy.deepcopy(raw))
    config = whole.get_text_config(decoder=True)
    if config is not whole:  # as the backend does: some checkpoints state it outside the text config only
        outside, inside = raw.get("tie_word_embeddings"), (raw.get("text_config") or {}).get("tie_word_embeddings")
        config.tie_word_embeddings = outside if outside is not None and inside is None else config.tie_word_embeddings
    with torch.device("meta"):
        load = {"dtype": torch.bfloat16, "experts_implementation": "eager"}  # the others want aligned widths on a CPU
        model = AutoModelForCausalLM.from_config(config, **load).eval()
    weights = stored_weights(model)
    cache = DynamicCache(config=config)
    small = sum(parameter.numel() for parameter in model.parameters()) < SMALL
    if small:
        # A step on "meta" takes a hundred times as long as one of so few parameters; what they hold does not matter.
        model = model.to_empty(device="cpu")
        with torch.no_grad():
            for tokens in (CONTEXT, 1):
                model(torch.zeros((1, tokens), dtype=torch.long), **with_cache(cache))
    return Read(
        weights, bool(config.tie_word_embeddings), [kept(layer) for layer in cache.layers], reach(config), small
    )


def kept(layer: Any) -> tuple[Any, ...]:
    """Window, heads, head size and tokens of a layer of the cache, or the shapes of its states."""
    window = getattr(layer, "sliding_window", None)
    if hasattr(layer, "recurrent_states"):
        states = (layer.conv_states.get(0), layer.recurrent_states.get(0))
        return tuple(None if state is None else tuple(state.shape) for state in states)
    if getattr(layer, "keys", None) is None:
        return (window,)
    return window, layer.keys.shape[1], layer.keys.shape[3], layer.keys.shape[2]


def ours(raw: dict[str, Any]) -> Read:
    geometry = families.geometry(copy.deepcopy(raw))
    small = geometry.parameters < SMALL
    cache: list[tuple[Any, ...]] = []
    for layer in geometry.layers:
        mixer = layer.mixer
        if not isinstance(mixer, Attention):
            state = ((1, mixer.channels, mixer.kernel), (1, mixer.value_heads, mixer.key_dim, mixer.value_dim))
            cache.append(state if small else (None, None))
        elif not (small and mixer.owns_cache):
            cache.append((mixer.window if mixer.owns_cache else None,))
        else:
            between = CONTEXT + 1 if mixer.window is None else min(CONTEXT + 1, mixer.window - 1)
            cache.append((mixer.window, mixer.kv_heads, mixer.head_dim, between))
    return Read(described_weights(geometry), geometry.tied, cache, geometry.max_position, small)


def reach(config: Any) -> int:
    """vLLM's rule for the largest context, on what transformers made of the config."""
    longest, factor = config.max_position_embeddings, 1.0
    found = config.rope_parameters
    if "gemma3" in str(config.model_type) or not found:
        return int(longest)
    nested = [found[kind] for kind in set(getattr(config, "layer_types", ())) & set(found)]
    for parameters in nested or [found]:
        kind, original = parameters["rope_type"], parameters.get("original_max_position_embeddings")
        if kind not in ("longrope", "llama3", "default"):
            implied = config.max_position_embeddings / original if kind == "yarn" else 1.0
            stated = parameters.get("factor")
            factor = max(factor, implied if stated is None else stated)
            longest = original if kind == "yarn" else longest
    return int(longest * factor)


RANGE = re.compile(r"(\w+) is (.+), must be a whole number from (\d+) to (\d+)")
# What transformers takes and we refuse, each for a reason that the message gives.
WITHOUT_RULE = (
    "is_encoder_decoder is true",
    "use_bidirectional_attention: only causal decoders are supported",
    "Llama with windows is not supported",
    "per_layer_config",
    "rope_parameters.* which is not supported",
    # transformers warns that these are no values to work with, or never comes to look at them
    "(factor|rope_theta|rope_local_base_freq|partial_rotary_factor) is .*, must be a number",
    "(rope_scaling|rope_parameters) is .*, must be an object",
    "factor gives a context of .* tokens",
    "(dtype|num_labels) is .*, must be",
    "head_dim is 1, must be even",  # its rotation makes two channels of one
    # a contradiction that it resolves in silence, by not reading one of the two
    "is given outside text_config",
    "holds a text_config of",
)


# What only a step shows: a model that is too large for one has not been asked.
NOT_ASKED = ("which is not supported", "is not a multiple of", "must be even", "is more than")


def excused(message: str) -> bool:
    """Whether we may refuse what transformers accepts: a number out of our bounds, or an unsupported setting."""
    found = RANGE.search(message)
    if found:
        _, value, low, high = found.groups()
        return not (value.isdecimal() and int(low) <= int(value) <= int(high))
    return any(re.search(reason, message) for reason in WITHOUT_RULE)


def too_large(raw: dict[str, Any]) -> bool:
    """Whether transformers would build layers until memory runs out."""
    inner = raw.get("text_config")
    return any(part.get("num_hidden_layers") == 10**9 for part in (raw, inner) if isinstance(part, dict))


def disagreement(raw: dict[str, Any]) -> str | None:
    """How transformers and we read a config differently, in words."""
    try:
        mine: Read | ProfileError = ours(raw)
    except ProfileError as error:
        mine = error
    if too_large(raw):
        return None if isinstance(mine, ProfileError) else "a config of a billion layers is taken"
    if isinstance(mine, ProfileError) and excused(mine.message):
        return None
    try:
        their = theirs(raw)
    except Exception as error:  # it has no class of its own for what it cannot use
        return (
            None if isinstance(mine, ProfileError) else f"taken, but refused: {type(error).__name__}: {error}"[-300:]
        )
    if isinstance(mine, ProfileError):
        if not their.stepped and any(reason in mine.message for reason in NOT_ASKED):
            return None
        return f"refused without need: {mine.message}"
    return next(
        (
            f"{name}: {getattr(mine, name)} and not {getattr(their, name)}"
            for name in NAMES
            if getattr(mine, name) != getattr(their, name)
        ),
        None,
    )


NAMES = [field.name for field in dataclasses.fields(Read)]


def all_disagreements(seeds: range) -> list[str]:
    made = (mutated(BASES, FIELDS, seed) for seed in seeds)
    found = ((label, disagreement(raw)) for label, raw in made)
    return [f"{label}: {text}" for label, text in found if text is not None]


def test_two_hundred_changed_configs_are_read_as_transformers_reads_them() -> None:
    assert all_disagreements(range(200)) == []


@pytest.mark.slow
def test_three_hundred_more_changed_configs_are_read_as_transformers_reads_them() -> None:
    assert all_disagreements(range(200, MORE)) == []


@pytest.mark.parametrize("place", ["nowhere", "outside", "inside", "both"])
@pytest.mark.parametrize("global_head_dim", [32, 16])
@pytest.mark.parametrize("name", ["gemma3", "gemma4 shared kv", "gemma4 unified"])
def test_the_context_before_scaling_is_read_where_transformers_reads_it(
    name: str, global_head_dim: int, place: str
) -> None:
    """Gemma 4 is checked before what is missing is filled in, Gemma 3 afterwards."""
    head_dim = 16 if name == "gemma3" else global_head_dim
    factors = [1.0] * (head_dim // 2)
    for kind, more in {
        "yarn": {"factor": 4.0},
        "llama3": {"factor": 4.0, "low_freq_factor": 1, "high_freq_factor": 4},
        "longrope": {"short_factor": factors, "long_factor": factors},
    }.items():
        scaling = {"rope_type": kind, "rope_theta": 1e6, **more}
        raw = BASES[name] | {"head_dim": 16, "global_head_dim": global_head_dim, "max_position_embeddings": 512}
        if place in ("inside", "both"):
            scaling["original_max_position_embeddings"] = 128
        if place in ("outside", "both"):
            raw["original_max_position_embeddings"] = 256
        types = {"full_attention": scaling, "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}
        assert disagreement(raw | {"rope_parameters": types}) is None, kind


def test_changed_configs_are_not_all_refused() -> None:
    """Otherwise the comparison would compare nothing."""
    taken = 0
    for seed in range(200):
        with contextlib.suppress(ProfileError):
            families.geometry(mutated(BASES, FIELDS, seed)[1])
            taken += 1
    assert 60 < taken < 140


@pytest.mark.parametrize("model_type", sorted([*FIELDS, *WRAPPED]))  # in every process the same
def test_declared_fields_are_those_of_transformers(model_type: str) -> None:
    """Names, types and defaults. ``RopeParameters`` is a dict with known keys, which nobody checks."""
    base = {field.name for field in dataclasses.fields(transformers.PretrainedConfig)}
    own = [field for field in dataclasses.fields(CONFIG_MAPPING[model_type]) if field.name not in base]
    expected = {}
    for field in own:
        kinds = get_args(field.type) or (field.type,)
        dicts = [
            kind
            for kind in kinds
            if isinstance(kind, type) and (kind is RopeParameters or issubclass(kind, PretrainedConfig))
        ]
        kinds = {dict if kind in dicts or get_origin(kind) is dict else kind for kind in kinds}
        expected[field.name] = (kinds, field.default)
    mine = declared(TEXT[model_type] if model_type in TEXT else WRAPPED[model_type])
    kinds_of = {
        name: {get_origin(kind) or kind if get_origin(kind) is dict else kind for kind in field.kinds}
        for name, field in mine.items()
    }
    assert {name: (kinds_of[name], field.default) for name, field in mine.items()} == expected


def test_activations_are_those_of_transformers() -> None:
    assert set(ACTIVATIONS) == set(ACT2FN)


def test_number_types_are_names_in_torch() -> None:
    assert all(isinstance(getattr(torch, name), torch.dtype) for name in DTYPES)


@pytest.mark.parametrize("name", BASES)
def test_a_config_that_transformers_has_written_gives_the_same_geometry(name: str) -> None:
    config = CONFIG_MAPPING[BASES[name]["model_type"]].from_dict(copy.deepcopy(BASES[name]))
    geometry = families.geometry(BASES[name])
    for saved in (
        config.to_dict(),
        json.loads(config.to_json_string(use_diff=False)),
        json.loads(config.to_json_string()),
    ):
        again = families.geometry(saved)
        assert (again.layers, again.tied, again.max_position) == (
            geometry.layers,
            geometry.tied,
            geometry.max_position,
        )
