"""The ggml type that llama-quantize gives each tensor of a model, for each named mix, and the resulting bytes.

A mix such as Q4_K_M is not uniform: output and value projections, and the down projections of some layers, get
more bits. The rules are those of llama.cpp at commit 007dbbf3 (2026-08), ``src/llama-quant.cpp``
(``llama_tensor_get_type_impl``, ``tensor_allows_quantization``, ``tensor_type_fallback``), without an importance
matrix. The tests check them against real files and the output of llama-quantize. "Dynamic" mixes of third parties
(UD-…) follow no published rule.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from profiler import registry
from profiler.errors import NotFound
from profiler.models.geometry import Geometry
from profiler.models.gguf import BLOCKS, TYPES
from profiler.models.gguf_tensors import FALLBACK
from profiler.models.layers import Attention, Experts, Layer, Weight, linear, norm
from profiler.units import printable

MIXES = {  # the type that a mix starts from
    "f32": "f32", "f16": "f16", "bf16": "bf16", "q8_0": "q8_0", "q6_k": "q6_k", "q5_k_m": "q5_k", "q5_k_s": "q5_k",
    "q5_0": "q5_0", "q4_k_m": "q4_k", "q4_k_s": "q4_k", "q4_0": "q4_0", "iq4_nl": "iq4_nl", "iq4_xs": "iq4_xs",
    "q3_k_l": "q3_k", "q3_k_m": "q3_k", "q3_k_s": "q3_k", "iq3_m": "iq3_s", "iq3_s": "iq3_s", "iq3_xs": "iq3_s",
    "iq3_xxs": "iq3_xxs", "q2_k": "q2_k", "iq2_m": "iq2_s", "iq2_s": "iq2_xs", "iq2_xs": "iq2_xs",
    "iq2_xxs": "iq2_xxs", "iq1_m": "iq1_m", "iq1_s": "iq1_s", "q4_k_l": "q4_k", "q5_1": "q5_1",
    "q4_1": "q4_1", "q2_k_s": "q2_k", "tq1_0": "tq1_0", "tq2_0": "tq2_0", "mxfp4": "mxfp4",
}  # fmt: skip
NAMES = {"fp16": "f16", "fp32": "f32", "q4_k": "q4_k_m", "q5_k": "q5_k_m", "q3_k": "q3_k_m", "mxfp4_moe": "mxfp4"}
# Types of files that no mix makes of another model: llama.cpp's converter repacks NVIDIA's checkpoints in nvfp4, and
# models are trained for 1 and 2 bits.
ONLY_IN_FILES = frozenset({"nvfp4", "q1_0", "q2_0"})
TERNARY = {"tq1_0", "tq2_0"}
LARGER_TABLES = {"q4_k_l": "q4_k_m"}  # a mix by several publishers: another one, with tables and the head in q8_0
LOWEST = {"iq2_xxs", "iq2_xs", "iq2_s", "iq2_m", "iq1_s", "iq1_m"}
PLAIN = {"f32", "f16", "bf16"}
CATEGORIES = {  # the part of a tensor's name in transformers → llama.cpp's category
    "v_proj": "v",
    "in_proj_qkv": "qkv",
    "qkv_proj": "qkv",
    "k_proj": "k",
    "q_proj": "q",
    "o_proj": "attention out",
    "gate_proj": "gate or up",
    "up_proj": "gate or up",
    "gate_up_proj": "gate or up",
    "down_proj": "down",
}
LIKE_LLAMA_70B = ("llama", "qwen2")  # with 80 layers, llama.cpp gives both the type LLM_TYPE_70B
MIXTRAL_OUTPUTS = {  # mixes whose attention outputs have more bits in a model with 8 experts
    *("q2_k", "q3_k_s", "q3_k_m", "q4_k_s", "q4_k_m"),
    *("iq3_xxs", "iq3_xs", "iq3_s", "iq3_m", "iq4_nl", "iq4_xs"),
}
KEPT = "per_layer_model_projection"  # below llama.cpp's size limit, so it keeps its type from the conversion


@dataclass(frozen=True, slots=True)
class Place:
    """What a mix depends on besides the weight: the layer's position, and properties of the whole model."""

    first_16th: bool
    first_8th: bool
    last_8th: bool
    more_bits: bool  # down projection
    v_more_bits: bool  # value projections are counted separately, because some layers have none
    v_index: int  # at most 4
    first_downs: (
        int  # down projections of the layer among the first eighth, of which a layer with experts has several
    )
    grouped: bool  # four or more queries share a K/V head
    experts: bool  # four or more
    eight_experts: bool  # as Mixtral, for which llama.cpp has rules of its own
    llama_70b: bool


@dataclass(frozen=True, slots=True)
class MixTensor:
    """``count`` equal tensors of one type."""

    weight: Weight
    layer: Layer | None
    count: int
    type: str

    @property
    def nbytes(self) -> int:
        """Bytes of all ``count`` tensors."""
        elements, size = BLOCKS[TYPES[self.type]]
        return -(-self.weight.parameters // elements) * size * self.count


def mix(name: str) -> str:
    """``q4_k_m`` in any spelling. Raises NotFound with the nearest names."""
    spelled = _spelled(name)
    if spelled in ONLY_IN_FILES:
        raise NotFound(
            f"{printable(name)} is predicted only for a GGUF file that is stored in it",
            f"Pass the file in place of the model, or choose one of {', '.join(MIXES)}.",
        )
    if spelled not in MIXES:
        raise registry.unknown("GGUF mix", name, MIXES)
    return spelled


def only_in_files(name: str) -> bool:
    """Whether ``name`` is a type that GGUF files may have, but no mix."""
    return _spelled(name) in ONLY_IN_FILES


def _spelled(name: str) -> str:
    spelled = name.casefold().replace("-", "_")
    return NAMES.get(spelled, spelled)


def known(name: str) -> bool:
    """Whether ``name`` is a mix that has a rule."""
    try:
        mix(name)
    except NotFound:
        return False
    return True


def tensors(geometry: Geometry, name: str) -> Iterator[MixTensor]:
    """Every stored tensor of the model in the mix ``name``; equal tensors are grouped."""
    spelled = mix(name)
    for weight in geometry.outside:
        yield MixTensor(weight, None, 1, _outside(geometry, weight, spelled))
    for (layer, place), count in Counter(zip(geometry.layers, _places(geometry), strict=True)).items():
        for weight, kind in _of_layer(geometry, layer, place, spelled):
            yield MixTensor(weight, layer, count, kind)


def each(geometry: Geometry, name: str) -> Iterator[tuple[int | None, Weight, str]]:
    """The tensors of a mix one by one: the number of the layer (``None``: outside the layers), weight and type."""
    spelled = mix(name)
    for weight in geometry.outside:
        yield None, weight, _outside(geometry, weight, spelled)
    for number, (layer, place) in enumerate(zip(geometry.layers, _places(geometry), strict=True)):
        for weight, kind in _of_layer(geometry, layer, place, spelled):
            yield number, weight, kind


def few_experts(geometry: Geometry) -> int:
    """Experts of a layer; 1 in a dense model."""
    return max((layer.mlp.count for layer, _ in geometry.groups if isinstance(layer.mlp, Experts)), default=1)


def _places(geometry: Geometry) -> list[Place]:
    count = len(geometry.layers)
    kinds = {layer: [_category(weight) for weight in _in_file(geometry, layer)] for layer, _ in geometry.groups}
    parts = [kinds[layer] for layer in geometry.layers]
    with_v = ["v" in part or "qkv" in part for part in parts]
    v_count, v_index, down_index, places = sum(with_v), 0, 0, []
    first = next(layer.mixer for layer in geometry.layers if isinstance(layer.mixer, Attention))
    grouped = first.heads >= 4 * first.kv_heads
    experts, llama_70b = few_experts(geometry), geometry.model_type in LIKE_LLAMA_70B and count == 80
    for index, has_v in enumerate(with_v):
        places.append(
            Place(
                first_16th=index < count // 16,
                first_8th=index < count // 8,
                last_8th=index >= 7 * count // 8,
                more_bits=_more_bits(index, count),
                v_more_bits=_more_bits(v_index, v_count),
                v_index=min(v_index, 4),
                first_downs=max(0, min(count // 8 - down_index, parts[index].count("down"))),
                grouped=grouped,
                experts=experts >= 4,
                eight_experts=experts == 8,
                llama_70b=llama_70b and first.heads != first.kv_heads,
            )
        )
        v_index += has_v
        down_index += parts[index].count("down")
    return places


def _more_bits(index: int, count: int) -> bool:
    return index < count // 8 or index >= 7 * count // 8 or (index - count // 8) % 3 == 2


def _category(weight: Weight) -> str:
    name = weight.name.removesuffix(".weight").rpartition(".")[2]
    return CATEGORIES.get(name, "other")


def _outside(geometry: Geometry, weight: Weight, name: str) -> str:
    base = MIXES[name]
    if weight.role == "vector" or name in PLAIN:
        return "f32" if weight.role == "vector" else base
    if KEPT in weight.name:
        return "f16"
    if name in LARGER_TABLES or name == "mxfp4":
        return _fitting(weight, "q8_0")
    if weight.role == "head" or (geometry.tied and weight.role == "embedding"):
        return _output(weight, name, base)
    if weight.role == "embedding":
        return _fitting(weight, _table(name, base))
    return _fitting(weight, base)


def _output(weight: Weight, name: str, base: str) -> str:
    """The output projection, and the embedding table if the output head is tied to it."""
    if weight.shape[-1] % BLOCKS[TYPES[base]][0]:
        return "q8_0"
    if name in LOWEST - {"iq2_s"} or name in ("iq2_s", "iq3_xxs"):
        return "q5_k"
    return base if base == "q8_0" else _fitting(weight, "q6_k")


def _table(name: str, base: str) -> str:
    if name in ("iq2_xxs", "iq2_xs", "iq1_s", "iq1_m"):
        return "q2_k"
    if name in TERNARY:
        return "q4_k"
    return "iq3_s" if name in ("iq2_s", "iq2_m", "iq3_xxs") else base


def _in_file(geometry: Geometry, layer: Layer) -> tuple[Weight, ...]:
    """A layer's weights. Gemma 4's checkpoints have K and V also for layers that use the cache of an earlier one."""
    mixer = layer.mixer
    if not isinstance(mixer, Attention) or mixer.owns_cache:
        return layer.weights
    keys = mixer.kv_heads * mixer.head_dim
    both = [weight for part in ("k", "v") for weight in linear(f"self_attn.{part}_proj", keys, geometry.hidden)]
    return (*layer.weights, *both, norm("self_attn.k_norm", mixer.head_dim))


def _of_layer(geometry: Geometry, layer: Layer, place: Place, name: str) -> Iterator[tuple[Weight, str]]:
    """The weights of a layer and their types."""
    downs = 0
    for weight in _in_file(geometry, layer):
        downs += _category(weight) == "down"
        yield weight, _inside(weight, name, place, downs <= place.first_downs)


def _inside(weight: Weight, name: str, place: Place, first_down: bool) -> str:
    if weight.role in ("vector", "router", "conv") or weight.shape[0] == 1 or weight.name.startswith("router."):
        return "f32"
    if weight.expert_bias:
        return "f32"
    if name in PLAIN:
        return name
    if name == "mxfp4":  # MXFP4_MOE: only experts
        return _fitting(weight, "mxfp4" if weight.role == "experts" else "q8_0")
    return _fitting(weight, _wanted(_category(weight), LARGER_TABLES.get(name, name), place, first_down))


@lru_cache(maxsize=4096)
def _wanted(category: str, name: str, place: Place, first_down: bool) -> str:
    base = MIXES[name]
    if place.eight_experts and (own := _mixtral(category, name, place)) is not None:
        return own
    if name in LOWEST:
        return _lowest(category, name, place, first_down, base)
    if category == "v" or category == "qkv":
        wanted = _value(name, place, base)
        return "q5_k" if place.llama_70b and wanted in ("q3_k", "q4_k") else wanted
    if category == "down":
        return _down(name, place, base)
    if category in ("k", "q"):
        return {"iq3_xs": "iq3_xxs", "iq3_xxs": "iq2_s"}.get(name, base)
    if category == "attention out":
        better = {"q2_k": "q3_k", "iq3_xxs": "iq3_s", "q3_k_m": "q4_k", "q3_k_l": "q5_k", "iq3_m": "q4_k"}
        return better.get(name, base)
    if category == "gate or up" and name == "iq3_xs" and not (place.first_8th or place.last_8th):
        return "iq3_xxs"
    return base


def _mixtral(category: str, name: str, place: Place) -> str | None:
    """The type in a model with 8 experts, where that differs from other models."""
    if category in ("k", "v", "qkv"):
        return "q4_k" if name in LOWEST else "q8_0"
    if category == "attention out":
        return "q5_k" if name in LOWEST or name in MIXTRAL_OUTPUTS else MIXES[name]
    return "q4_k" if category == "down" and name == "iq3_m" and place.more_bits else None


def _lowest(category: str, name: str, place: Place, first_down: bool, base: str) -> str:
    better = "iq3_s" if name in ("iq2_s", "iq2_m") else "q2_k"
    if category in ("v", "qkv"):
        return "q4_k" if place.grouped or place.experts else better
    if category == "down" and first_down:
        return better
    if category == "attention out" and name in ("iq1_s", "iq1_m"):
        return "iq2_xxs"
    return "iq3_s" if category == "attention out" and better == "iq3_s" else base


def _value(name: str, place: Place, base: str) -> str:
    """Value projections, and the joined projection of gated-delta layers, which llama.cpp treats as one of them."""
    if name in ("q4_k_m", "q5_k_m"):
        return "q6_k" if place.v_more_bits else base
    if name == "q4_k_s":
        return "q5_k" if place.v_index < 4 else base
    if name == "q3_k_m":
        return "q5_k" if place.v_index < 2 else "q4_k"
    if name == "q2_k":
        return "q4_k" if place.grouped else "q3_k"
    if name == "q2_k_s":
        return "q4_k" if place.grouped else base
    if name == "iq3_xxs":
        return "q4_k" if place.grouped else "iq3_s"
    if name in ("iq3_xs", "iq3_s") and place.grouped:
        return "q4_k"
    if name in ("iq4_nl", "iq4_xs") and place.grouped:
        return "q5_k"
    return {"iq3_m": "q4_k", "q3_k_l": "q5_k"}.get(name, base)


def _down(name: str, place: Place, base: str) -> str:
    if name in ("q4_k_m", "q5_k_m"):
        return "q6_k" if place.more_bits else base
    if name == "q3_k_m":
        return "q5_k" if place.first_16th else "q4_k"
    if name == "iq3_xxs":
        return "q4_k" if place.first_8th else "q3_k"
    if place.first_8th and name in ("q4_k_s", "iq4_nl", "iq4_xs"):
        return "q5_k"
    if place.first_8th and name in ("iq3_m", "q2_k_s"):
        return "q4_k"
    return {"q2_k": "q3_k", "q3_k_l": "q5_k"}.get(name, base)


def _fitting(weight: Weight, wanted: str) -> str:
    """``wanted``, or its fallback type if the rows are not a multiple of its block size."""
    columns = weight.shape[-1]
    if columns % BLOCKS[TYPES[wanted]][0] == 0:
        return wanted
    other = FALLBACK.get(wanted, "f16")
    return other if columns % BLOCKS[TYPES[other]][0] == 0 else "f16"
