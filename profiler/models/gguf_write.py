"""The header of a GGUF file for a model that we know by its config: metadata, vocabulary and tensor list.

It is the reverse of ``gguf_config.py`` and ``gguf_tensors.py``. The keys are those that llama.cpp reads (build 9993,
the files in src/models), with the values that its converter gives them (the files in conversion). The vocabulary is
made up: as many short words as the embedding has rows, in the form of SentencePiece.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from profiler.errors import ProfileError
from profiler.models import families, gguf
from profiler.models.config import Config
from profiler.models.geometry import Geometry
from profiler.models.gguf_tensors import INPUTS_FIRST, own_name
from profiler.models.layers import Attention, Experts, GatedDelta, Weight

ALIGNMENT = 32  # bytes; llama.cpp's default
VERSION = 3
QUANTIZATION_VERSION = 2  # GGML_QNT_VERSION
ROTATED = {"qwen3_5_text": 0.25, "qwen3_5_moe_text": 0.25}  # share of a head's channels; 1 elsewhere
SECTIONS = [11, 11, 10, 0]  # of Qwen 3.5's RoPE, where the config has none (conversion/qwen.py)
PERIOD = 6  # llama.cpp's default period of Gemma 3's sliding layers
UNROTATED = 1e30  # frequency factor that leaves a pair of channels as it is (conversion/gemma.py)
HALVED = frozenset({"llama", "qwen3moe", "qwen35moe", "gpt-oss"})  # gate and up of experts are two tensors there
THETA = {  # else 10,000, as in transformers
    "gemma3_text": 1e6,
    "gemma4_text": 1e6,
    "gemma4_unified_text": 1e6,
    "mixtral": 1e6,
    "gpt_oss": 150_000.0,
}
LOCAL_THETA = 1e4
LAST_WORDS = {"phi3": "<|endoftext|>"}  # llama.cpp looks it up in every vocabulary of such a model (llama-vocab.cpp)
NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6  # llama_token_type, include/llama.h

Metadata = dict[str, Any]


@dataclass(frozen=True, slots=True)
class NewTensor:
    """A tensor to write. ``shape`` has the outputs first; ``values`` are given for small fp32 tensors only."""

    name: str
    shape: tuple[int, ...]
    type: str
    values: tuple[float, ...] | None = None

    @property
    def nbytes(self) -> int:
        """Stored bytes, without padding."""
        elements, size = gguf.BLOCKS[gguf.TYPES[self.type]]
        return math.prod(self.shape) // elements * size

    @property
    def padded(self) -> int:
        """Bytes up to the next tensor."""
        return -(-self.nbytes // ALIGNMENT) * ALIGNMENT


def architecture(model_type: str) -> str:
    """llama.cpp's name of a decoder's architecture. ProfileError for one that we cannot write."""
    if model_type not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise ProfileError(f"a GGUF file of {model_type} cannot be written yet", f"Supported: {known}.")
    return ARCHITECTURES[model_type][0]


def metadata(raw: Mapping[str, Any], geometry: Geometry, name: str, file_type: int) -> Metadata:
    """Keys and values of a file of this model, with its vocabulary.

    ``raw`` is the whole config. ProfileError for an architecture or a setting that llama.cpp does not load.
    """
    arch, own = architecture(geometry.model_type), ARCHITECTURES[geometry.model_type][1]
    config = families.decoder(raw)
    keys = _common(config, geometry) | own(config, geometry)
    return {
        "general.architecture": arch,
        "general.type": "model",
        "general.name": name,
        **{f"{arch}.{key}": value for key, value in keys.items()},
        "general.quantization_version": _U32(QUANTIZATION_VERSION),
        "general.file_type": _U32(file_type),
        **_vocabulary(geometry.vocab, LAST_WORDS.get(arch)),
    }


def tensors(
    raw: Mapping[str, Any], geometry: Geometry, stored: Iterable[tuple[int | None, Weight, str]]
) -> list[NewTensor]:
    """The file's tensors, as the converter names and shapes them.

    ``stored``: the number of the layer (``None`` outside the layers), the weight and its ggml type.
    """
    arch = architecture(geometry.model_type)
    found = [_rope_factors(families.decoder(raw), geometry)]
    for number, weight, kind in stored:
        place = weight.name if number is None else f"model.layers.{number}.{weight.name}"
        found.append(_named(arch, place, weight, kind))
    return [tensor for part in found for tensor in part]


def header(metadata: Metadata, tensors: Sequence[NewTensor]) -> bytes:
    """Everything before the data, padded."""
    parts = [gguf.MAGIC, struct.pack("<IQQ", VERSION, len(tensors), len(metadata))]
    for key, value in metadata.items():
        parts += [_text(key), *_typed(value)]
    offset = 0
    for tensor in tensors:
        shape = tensor.shape[::-1]
        parts.append(_text(tensor.name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape))
        parts.append(struct.pack("<IQ", gguf.TYPES[tensor.type], offset))
        offset += tensor.padded
    whole = b"".join(parts)
    return whole + bytes(-len(whole) % ALIGNMENT)


def _named(arch: str, place: str, weight: Weight, kind: str) -> list[NewTensor]:
    """One weight of transformers in the file: usually one tensor, without dimensions of size 1."""
    file_shape = weight.shape
    if arch in INPUTS_FIRST and len(file_shape) == 3:
        file_shape = (file_shape[0], file_shape[2], file_shape[1])
    if arch in HALVED and place.endswith(("experts.gate_up_proj", "experts.gate_up_proj_bias")):
        number, (count, both, *inputs) = place.split(".")[2], file_shape
        leaf, half = "bias" if weight.expert_bias else "weight", (count, both // 2, *inputs)
        return [NewTensor(f"blk.{number}.ffn_{part}_exps.{leaf}", half, kind) for part in ("gate", "up")]
    name = own_name(arch, place)
    if name == place:
        raise ProfileError(f"{arch}: no name is known for {place} in a GGUF file")
    shape = tuple(size for size in file_shape if size != 1) or (1,)
    values = _constant(name, shape[0]) if len(shape) == 1 else None
    return [NewTensor(name, shape, "f32" if values else kind, values)]


def _constant(name: str, size: int) -> tuple[float, ...]:
    """Entries of a vector that keep activations finite: norms and scales of 1, no bias, a state that decays."""
    if name.endswith("ssm_a"):  # minus the exponential of A_log
        return (-1.0,) * size
    return (0.0 if name.endswith(".bias") else 1.0,) * size


def _rope_factors(config: Config, geometry: Geometry) -> list[NewTensor]:
    """``rope_freqs.weight`` if the converter writes it: for Gemma 4, and for scaling as in Llama 3."""
    if geometry.model_type.startswith("gemma4"):
        half = _of_kind(geometry, "full").head_dim // 2
        share = _rope(config, "full_attention").get("partial_rotary_factor", 0.25)
        turned = min(half, int(half * share))
        values = (1.0,) * turned + (UNROTATED,) * (half - turned)
        return [NewTensor("rope_freqs.weight", (half,), "f32", values)]
    rope = _rope(config)
    if geometry.model_type != "llama" or rope.get("rope_type", rope.get("type")) != "llama3":
        return []
    half = _of_kind(geometry, "full").head_dim // 2
    return [NewTensor("rope_freqs.weight", (half,), "f32", tuple(_llama3(rope, config, half)))]


def _llama3(rope: Mapping[str, Any], config: Config, half: int) -> Iterator[float]:
    """Frequency factors of Llama 3.1 and later (conversion/llama.py)."""
    factor, low, high = rope["factor"], rope["low_freq_factor"], rope["high_freq_factor"]
    original = rope.get("original_max_position_embeddings", config.number("max_position_embeddings"))
    theta = _theta(config, rope)
    for index in range(half):
        wavelength = 2 * math.pi * theta ** (index / half)
        if wavelength < original / high:
            yield 1.0
        elif wavelength > original / low or low == high:
            yield float(factor)
        else:
            smooth = (original / wavelength - low) / (high - low)
            yield 1 / ((1 - smooth) / factor + smooth)


def _rope(config: Config, kind: str | None = None) -> Mapping[str, Any]:
    """The RoPE parameters, of one type of layers where they differ."""
    given = config.raw.get("rope_scaling") or config.raw.get("rope_parameters") or {}
    found = given.get(kind) if kind else None
    return found or {name: value for name, value in given.items() if not isinstance(value, Mapping)}


def _theta(config: Config, rope: Mapping[str, Any]) -> float:
    usual = THETA.get(config.model_type, LOCAL_THETA)
    return float(rope.get("rope_theta") or config.raw.get("rope_theta") or usual)


def _common(config: Config, geometry: Geometry) -> Metadata:
    attention = _of_kind(geometry, "full")
    rope = _rope(config, "full_attention")
    found: Metadata = {
        "block_count": _U32(len(geometry.layers)),
        "context_length": _U32(config.number("max_position_embeddings")),
        "embedding_length": _U32(geometry.hidden),
        "attention.head_count": _U32(attention.heads),
        "attention.head_count_kv": _U32(attention.kv_heads),
        "attention.key_length": _U32(attention.head_dim),
        "attention.value_length": _U32(attention.head_dim),
        "attention.layer_norm_rms_epsilon": float(config.value("rms_norm_eps")),
        "rope.freq_base": _theta(config, rope),
        "vocab_size": _U32(geometry.vocab),
    }
    widths = {layer.mlp.width for layer in geometry.layers if not isinstance(layer.mlp, Experts)}
    if len(widths) == 1:
        found["feed_forward_length"] = _U32(widths.pop())
    kind = rope.get("rope_type", rope.get("type"))
    if kind in ("linear", "yarn") and rope.get("factor"):
        found |= {"rope.scaling.type": kind, "rope.scaling.factor": float(rope["factor"])}
        if "original_max_position_embeddings" in rope:
            found["rope.scaling.original_context_length"] = _U32(rope["original_max_position_embeddings"])
    for layer in geometry.layers:
        if isinstance(layer.mlp, Experts):
            found["expert_count"], found["expert_used_count"] = _U32(layer.mlp.count), _U32(layer.mlp.top_k)
            found["expert_feed_forward_length"] = _U32(layer.mlp.width)
    return found


def _llama(config: Config, geometry: Geometry) -> Metadata:
    return {"rope.dimension_count": _U32(_of_kind(geometry, "full").head_dim)}


def _qwen2(config: Config, geometry: Geometry) -> Metadata:
    if any(layer.kind != "full" for layer in geometry.layers):
        raise config.error(f"llama.cpp runs {config.model_type} without sliding windows only")
    return {}


def _qwen3(config: Config, geometry: Geometry) -> Metadata:
    _refuse_bias(config)
    return _qwen2(config, geometry) | _experts_width(config)


def _mistral(config: Config, geometry: Geometry) -> Metadata:
    """The converter leaves the window of all layers out, so llama.cpp attends to all tokens."""
    return _llama(config, geometry) | _experts_width(config)


def _experts_width(config: Config) -> Metadata:
    """The width that llama.cpp falls back to; of Mixtral's experts it is the only one."""
    return {"feed_forward_length": _U32(config.number("intermediate_size"))}


def _gpt_oss(config: Config, geometry: Geometry) -> Metadata:
    kinds = [layer.kind for layer in geometry.layers]
    period = kinds.index("full") + 1 if "full" in kinds else 0
    if not period or any((kind == "full") != ((index + 1) % period == 0) for index, kind in enumerate(kinds)):
        raise config.error("llama.cpp runs gpt-oss only with a full layer at regular distances")
    if not config.flag("attention_bias"):
        raise config.error("attention_bias is false, and llama.cpp runs gpt-oss only with biases")
    found = {"attention.sliding_window": _U32(config.number("sliding_window"))} if "sliding" in kinds else {}
    return found | {"attention.sliding_window_pattern": _U32(period)}


def _gemma3(config: Config, geometry: Geometry) -> Metadata:
    _refuse_bias(config)
    kinds = [layer.kind for layer in geometry.layers]
    sliding = [layer.mixer for layer in geometry.layers if layer.kind == "sliding"]
    found: Metadata = {"rope.freq_base_swa": _local_theta(config)}
    if sliding and isinstance(sliding[0], Attention) and sliding[0].window:
        found["attention.sliding_window"] = _U32(sliding[0].window)
        period = kinds.index("full") + 1 if "full" in kinds else len(kinds) + 1
        if any((kind == "full") != ((index + 1) % period == 0) for index, kind in enumerate(kinds)):
            raise config.error("llama.cpp runs Gemma 3 only with a full layer at regular distances")
        if period != PERIOD:
            found["attention.sliding_window_pattern"] = _U32(period)
    if config.value("final_logit_softcapping"):
        found["final_logit_softcapping"] = float(config.value("final_logit_softcapping"))
    return found


def _gemma4(config: Config, geometry: Geometry) -> Metadata:
    _refuse_bias(config)
    mixers = [layer.mixer for layer in geometry.layers if isinstance(layer.mixer, Attention)]
    local = next((mixer for mixer in mixers if mixer.kind == "sliding"), None)
    if local is None or local.window is None:
        raise config.error("llama.cpp runs Gemma 4 only with sliding layers")
    full, tables = _of_kind(geometry, "full"), {weight.name: weight for weight in geometry.outside}
    per_layer = tables.get("model.per_layer_projection_norm.weight")
    widths = [_width(layer.weights) for layer in geometry.layers]
    found: Metadata = {
        "attention.key_length_swa": _U32(local.head_dim),
        "attention.value_length_swa": _U32(local.head_dim),
        "attention.sliding_window": _U32(local.window),
        "attention.sliding_window_pattern": [mixer.kind == "sliding" for mixer in mixers],
        "attention.shared_kv_layers": _U32(sum(not mixer.owns_cache for mixer in mixers)),
        "embedding_length_per_layer_input": _U32(per_layer.shape[0] if per_layer else 0),
        "rope.dimension_count": _U32(full.head_dim),
        "rope.dimension_count_swa": _U32(local.head_dim),
        "rope.freq_base_swa": _local_theta(config),
        "feed_forward_length": _U32(widths[0]) if len(set(widths)) == 1 else [_U32(width) for width in widths],
    }
    if full.kv_heads != local.kv_heads:
        found["attention.head_count_kv"] = [_U32(mixer.kv_heads) for mixer in mixers]
    if config.value("final_logit_softcapping"):
        found["final_logit_softcapping"] = float(config.value("final_logit_softcapping"))
    return found


def _qwen35(config: Config, geometry: Geometry) -> Metadata:
    _refuse_bias(config)
    kinds = [layer.kind for layer in geometry.layers]
    delta = next((layer.mixer for layer in geometry.layers if isinstance(layer.mixer, GatedDelta)), None)
    if delta is None or delta.key_dim != delta.value_dim:
        raise config.error("llama.cpp runs Qwen 3.5 only with keys and values of one size in its linear layers")
    interval, share = kinds.index("full") + 1, ROTATED[geometry.model_type]
    if any((kind == "full") != ((index + 1) % interval == 0) for index, kind in enumerate(kinds)):
        raise config.error("llama.cpp runs Qwen 3.5 only with a full layer at regular distances")
    rope = _rope(config)
    share = rope.get("partial_rotary_factor") or config.raw.get("partial_rotary_factor") or share
    found: Metadata = {
        "ssm.conv_kernel": _U32(delta.kernel),
        "ssm.state_size": _U32(delta.key_dim),
        "ssm.group_count": _U32(delta.key_heads),
        "ssm.time_step_rank": _U32(delta.value_heads),
        "ssm.inner_size": _U32(delta.value_heads * delta.value_dim),
        "full_attention_interval": _U32(interval),
        "rope.dimension_count": _U32(int(_of_kind(geometry, "full").head_dim * share)),
        "rope.dimension_sections": [*(rope.get("mrope_section") or SECTIONS), 0, 0][:4],
    }
    experts = geometry.layers[0].mlp
    if isinstance(experts, Experts) and experts.shared_width:
        found["expert_shared_feed_forward_length"] = _U32(experts.shared_width)
    return found


ARCHITECTURES: Mapping[str, tuple[str, Callable[[Config, Geometry], Metadata]]] = {
    "llama": ("llama", _llama),
    "mistral": ("llama", _mistral),
    "mixtral": ("llama", _mistral),
    "gpt_oss": ("gpt-oss", _gpt_oss),
    "phi3": ("phi3", _llama),
    "qwen2": ("qwen2", _qwen2),
    "qwen3_moe": ("qwen3moe", _qwen3),
    "qwen3": ("qwen3", _qwen3),
    "gemma3_text": ("gemma3", _gemma3),
    "gemma4_text": ("gemma4", _gemma4),
    "gemma4_unified_text": ("gemma4", _gemma4),
    "qwen3_5_text": ("qwen35", _qwen35),
    "qwen3_5_moe_text": ("qwen35moe", _qwen35),
}


def _refuse_bias(config: Config) -> None:
    if config.flag("attention_bias"):
        raise config.error(f"attention_bias is true, and llama.cpp has no biases in {config.model_type}")


def _of_kind(geometry: Geometry, kind: str) -> Attention:
    """The attention of the first layer of a kind, or else of any."""
    found = [layer.mixer for layer in geometry.layers if isinstance(layer.mixer, Attention)]
    return next((mixer for mixer in found if mixer.kind == kind), found[0])


def _width(weights: Iterable[Weight]) -> int:
    return next(weight.shape[0] for weight in weights if weight.name == "mlp.gate_proj.weight")


def _local_theta(config: Config) -> float:
    stated = _rope(config, "sliding_attention").get("rope_theta")
    return float(stated or config.raw.get("rope_local_base_freq") or LOCAL_THETA)


class _U32(int):
    """An unsigned 32-bit value. Other integers are signed, as in the file's lists."""


def _vocabulary(rows: int, last: str | None) -> Metadata:
    """Tokens of a SentencePiece vocabulary: three special ones, the 256 bytes, then words that differ. ``last``
    replaces the last word.
    """
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))][:rows]
    kinds = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256][:rows]
    words += [f"t{index:06d}" for index in range(rows - len(words))]
    words[-1] = last or words[-1]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": words,
        "tokenizer.ggml.scores": [-float(index) for index in range(rows)],
        "tokenizer.ggml.token_type": kinds + [NORMAL] * (rows - len(kinds)),
    }


def _text(text: str) -> bytes:
    encoded = text.encode()
    return struct.pack("<Q", len(encoded)) + encoded


def _typed(value: Any) -> Iterator[bytes]:
    """A value's type and bytes; a list has one type for all entries."""
    if isinstance(value, list):
        kind, code = _type(value[0])
        yield struct.pack("<IIQ", gguf.ARRAY, kind, len(value))
        yield struct.pack(f"<{len(value)}{code}", *value) if code else b"".join(map(_text, value))
        return
    kind, code = _type(value)
    yield struct.pack("<I", kind)
    yield struct.pack(f"<{code}", value) if code else _text(value)


def _type(value: object) -> tuple[int, str]:
    """ggml's number of a type, and its code in ``struct``; no code for text."""
    if isinstance(value, str):
        return gguf.STRING, ""
    if isinstance(value, bool):
        return 7, "?"
    if isinstance(value, float):
        return 6, "f"
    return (4, "I") if isinstance(value, _U32) else (5, "i")
