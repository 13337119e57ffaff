"""GGUF headers: bounded reading, and the configs made of them."""

from __future__ import annotations

import struct
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from profiler.errors import ProfileError
from profiler.models import families, gguf_config, hub
from profiler.models import gguf as models_gguf
from profiler.models.geometry import Geometry
from profiler.models.gguf import GgufHeader, GgufTensor
from profiler.models.layers import Attention
from profiler.models.resolve import resolve

U32, F32, BOOL, STRING, ARRAY, U64 = 4, 6, 7, 8, 9, 10


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def value(item: Any) -> tuple[int, bytes]:
    if isinstance(item, bool):
        return BOOL, struct.pack("<?", item)
    if isinstance(item, int):
        return U32, struct.pack("<I", item)
    if isinstance(item, float):
        return F32, struct.pack("<f", item)
    if isinstance(item, str):
        return STRING, text(item)
    kinds = [value(entry) for entry in item]
    return ARRAY, struct.pack("<IQ", kinds[0][0], len(item)) + b"".join(data for _, data in kinds)


def gguf(metadata: dict[str, Any], tensors: dict[str, tuple[int, ...]]) -> bytes:
    """A whole file with fp32 tensors of zeros; shapes as in transformers."""
    out = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    for key, item in metadata.items():
        kind, data = value(item)
        out += text(key) + struct.pack("<I", kind) + data
    offset = 0
    for name, shape in tensors.items():
        out += text(name) + struct.pack("<I", len(shape)) + b"".join(struct.pack("<Q", n) for n in reversed(shape))
        out += struct.pack("<IQ", 0, offset)
        size = 4
        for n in shape:
            size *= n
        offset += size
    return out + bytes(-len(out) % 32) + bytes(offset)


LLAMA = {
    "general.architecture": "llama",
    "llama.block_count": 2,
    "llama.context_length": 128,
    "llama.embedding_length": 8,
    "llama.feed_forward_length": 16,
    "llama.attention.head_count": 2,
    "llama.rope.freq_base": 10000.0,
    "tokenizer.ggml.tokens": [f"t{n}" for n in range(5000)],
    "tokenizer.ggml.scores": [0.5] * 5000,
}


def test_a_whole_file_gives_metadata_and_shapes(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf(LLAMA, {"token_embd.weight": (5, 8), "blk.0.attn_norm.weight": (8,)}))
    header = models_gguf.header(path)
    assert header.metadata["llama.block_count"] == 2
    assert header.metadata["tokenizer.ggml.tokens"] == range(5000)  # counted, not kept
    tensor = header.tensors["token_embd.weight"]
    assert (tensor.shape, tensor.parameters, tensor.nbytes) == ((5, 8), 40, 160)


def test_block_sizes_round_up_and_unknown_types_have_none() -> None:
    assert GgufTensor("a", (3, 256), type_id=12, offset=0).nbytes == 3 * 144
    assert GgufTensor("a", (3, 256), type_id=99, offset=0).nbytes is None


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    whole = gguf(LLAMA | {"tokenizer.ggml.tokens": ["a"], "tokenizer.ggml.scores": [1.0]}, {"a": (2, 3)})
    path = tmp_path / "m.gguf"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ProfileError):
            models_gguf.header(path)


def counted(version: int = 3, tensors: int = 0, keys: int = 0) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, keys)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        # 43 bytes that made gguf 0.19 grow by 120 MB a second: an array of 2^40 entries
        (counted(keys=1) + text("abc") + struct.pack("<IIQ", ARRAY, 0, 2**40)[:8], "truncated"),
        (counted(keys=1) + text("a") + struct.pack("<IIQ", ARRAY, 0, 2**40), "has 1099511627776 entries"),
        (counted(keys=1) + text("a") + struct.pack("<IIQ", ARRAY, STRING, 2**24), "truncated"),
        (counted(keys=1) + text("a") + struct.pack("<IIQ", ARRAY, 0, 2**24), "truncated"),
        (counted(keys=1) + text("a") + struct.pack("<IIQ", ARRAY, ARRAY, 1), "array of unknown type"),
        (counted(keys=1) + text("a") + struct.pack("<I", 77), "unknown type 77"),
        (counted(keys=1) + struct.pack("<Q", 2**63), "a string of"),
        (counted(keys=2**40), "metadata keys"),
        (counted(tensors=2**40), "tensors"),
        (counted(version=1), "version 1"),
        (counted(version=2**24 * 3), "version"),  # big-endian
        (counted(tensors=1) + text("t") + struct.pack("<I", 2**31), "dimensions"),
        (counted(tensors=1) + text("t") + struct.pack("<IQQIQ", 2, 2**62, 2**62, 0, 0), "impossible shape"),
        (counted(tensors=1) + text("t") + struct.pack("<IQIQ", 1, 2**40, 0, 0), "truncated"),
        (counted(tensors=1) + text("t") + struct.pack("<IQIQ", 1, 1, 0, 2**63), "truncated"),
        (counted(keys=1) + text("general.alignment") + struct.pack("<II", U32, 0), "alignment"),
        (b"PK\x03\x04" + bytes(60), "does not start with GGUF"),
        (b"", "empty"),
    ],
)
def test_a_header_that_lies_is_refused_at_once(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    start = time.monotonic()
    with pytest.raises(ProfileError, match=says):
        models_gguf.header(path)
    assert time.monotonic() - start < 2


def test_a_file_that_takes_too_long_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf(LLAMA, {"token_embd.weight": (5, 8)}))
    monkeypatch.setattr(models_gguf, "MAX_SECONDS", 0.0)
    with pytest.raises(ProfileError, match="took more than"):
        models_gguf.header(path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (counted(keys=2) + (text("a") + struct.pack("<IB", 0, 1)) * 2, "metadata key a occurs twice"),
        (counted(tensors=2) + (text("t") + struct.pack("<IQIQ", 1, 1, 0, 0)) * 2, "the same name, t"),
        (counted(keys=1) + text("a") + struct.pack("<If", F32, float("nan")), "a is nan, which is not a finite"),
        (counted(keys=1) + text("a") + struct.pack("<IIQf", ARRAY, F32, 1, float("inf")), "a is inf"),
        (counted(keys=1) + text("k" * 2000) + struct.pack("<IB", 0, 1), "a string of 2000 bytes"),
        (counted(tensors=1) + text("k" * 2000) + struct.pack("<IQIQ", 1, 1, 0, 0), "a string of 2000 bytes"),
        (counted(tensors=2**17), "131072 tensors"),
    ],
)
def test_what_no_writer_makes_is_refused(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(content + bytes(64))
    with pytest.raises(ProfileError, match=says):
        models_gguf.header(path)


def moved(name: str, place: int, kind: int = 0) -> bytes:
    """A whole file in which a tensor is said to begin at another byte of the data, or to be of another type."""
    content = bytearray(gguf(LLAMA, {"token_embd.weight": (5, 8), "blk.0.ffn_up.weight": (16, 8)}) + bytes(32))
    at = content.index(name.encode()) + len(name) + 4 + 2 * 8
    content[at : at + 12] = struct.pack("<IQ", kind, place)
    return bytes(content)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (moved("blk.0.ffn_up.weight", 128), "blk.0.ffn_up.weight begins within the data of token_embd.weight"),
        (moved("blk.0.ffn_up.weight", 0), "begins within the data of"),
        (moved("blk.0.ffn_up.weight", 161), "begins at byte 161 of the data, which is not a multiple of 32"),
        (moved("blk.0.ffn_up.weight", 160, 8), "rows of 8, not a multiple of the 32 of a q8_0 block"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "in big-endian byte order"),
    ],
    ids=["inside another", "on another", "not aligned", "part of a block", "big-endian"],
)
def test_data_that_llama_cpp_would_not_read_are_refused(tmp_path: Path, content: bytes, says: str) -> None:
    """Thousands of tensors over the same bytes made a model of any size out of a small file, called exact."""
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    with pytest.raises(ProfileError) as caught:
        models_gguf.header(path)
    assert says in caught.value.message


def test_what_is_kept_of_a_header_is_bounded_all_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf({f"k{n}": "x" * 100 for n in range(10)} | {"v": ["y" * 100] * 5000}, {}))
    assert models_gguf.header(path).metadata["v"] == range(5000)  # only walked over
    monkeypatch.setattr(models_gguf, "MAX_KEPT", 1024)
    with pytest.raises(ProfileError, match=r"more than 1\.00 KiB of metadata"):
        models_gguf.header(path)


def test_a_file_that_shrinks_while_it_is_read_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf(LLAMA, {"token_embd.weight": (5, 8)}))
    monkeypatch.setattr(models_gguf, "WINDOW", 64)
    real = models_gguf._Reader.header

    def cut(reader: models_gguf._Reader) -> GgufHeader:
        path.write_bytes(path.read_bytes()[:100])
        return real(reader)

    monkeypatch.setattr(models_gguf._Reader, "header", cut)
    with pytest.raises(ProfileError, match="not a valid GGUF file"):
        models_gguf.header(path)


def header(metadata: dict[str, Any], tensors: dict[str, tuple[int, ...]]) -> GgufHeader:
    return GgufHeader(metadata, {name: GgufTensor(name, shape, 0, 0) for name, shape in tensors.items()})


ARCHITECTURES = {
    "gemma3_text": "gemma3",
    "gpt_oss": "gpt-oss",
    "llama": "llama",
    "mistral": "llama",
    "mixtral": "llama",
    "phi3": "phi3",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "qwen3_moe": "qwen3moe",
    "qwen3_5_text": "qwen35",
    "qwen3_5_moe_text": "qwen35moe",
}
WITH_EXPERTS = ("gpt_oss", "mixtral", "qwen3_moe")


def as_gguf(name: str) -> GgufHeader:
    """What llama.cpp's converter writes for a catalog model: keys of gguf-py, the tensors that decide something."""
    raw = hub.shipped_config(name)
    raw = raw.get("text_config", raw)
    arch = ARCHITECTURES.get(raw["model_type"], "gemma4")
    head_dim = raw.get("head_dim", raw["hidden_size"] // raw["num_attention_heads"])
    keys: dict[str, Any] = {
        "block_count": raw["num_hidden_layers"],
        "context_length": raw["max_position_embeddings"],
        "embedding_length": raw["hidden_size"],
        "feed_forward_length": raw.get("intermediate_size"),
        "attention.head_count": raw["num_attention_heads"],
        "attention.head_count_kv": raw["num_key_value_heads"],
        "attention.key_length": head_dim,
        "attention.sliding_window": raw.get("sliding_window") if raw["model_type"] != "mistral" else None,
    }
    tensors = {"token_embd.weight": (raw["vocab_size"], raw["hidden_size"])}
    tied_by_default = arch.startswith("gemma")
    if not raw.get("tie_word_embeddings", tied_by_default):
        tensors["output.weight"] = (raw["vocab_size"], raw["hidden_size"])
    if arch == "gemma4":
        _add_gemma4(raw, keys, tensors)
    if arch.startswith("qwen35"):
        _add_qwen35(raw, keys)
    if raw["model_type"] in WITH_EXPERTS:
        _add_experts(raw, keys)
    if raw["model_type"] in ("qwen2", "gpt_oss"):
        tensors["blk.0.attn_q.bias"] = (1,)
    if raw["model_type"] == "gpt_oss":
        tensors["blk.0.attn_output.bias"] = (1,)
    scaling = raw.get("rope_scaling") or {}
    if scaling.get("rope_type") == "yarn":
        keys |= {
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": scaling["factor"],
            "rope.scaling.original_context_length": scaling["original_max_position_embeddings"],
        }
    metadata = {f"{arch}.{key}": item for key, item in keys.items() if item is not None}
    return header({"general.architecture": arch} | metadata, tensors)


def _add_gemma4(raw: dict[str, Any], keys: dict[str, Any], tensors: dict[str, tuple[int, ...]]) -> None:
    sliding = [kind == "sliding_attention" for kind in raw["layer_types"]]
    shared, width = raw.get("num_kv_shared_layers", 0), raw["intermediate_size"]
    own = len(sliding) - shared
    keys |= {
        "attention.key_length": raw["global_head_dim"],
        "attention.key_length_swa": raw["head_dim"],
        "attention.sliding_window_pattern": sliding,
        "attention.shared_kv_layers": shared,
        "embedding_length_per_layer_input": raw.get("hidden_size_per_layer_input", 0),
    }
    if raw.get("use_double_wide_mlp"):
        keys["feed_forward_length"] = [width] * own + [2 * width] * shared
    full_heads = raw.get("num_global_key_value_heads")
    if full_heads is not None:
        keys["attention.head_count_kv"] = [raw["num_key_value_heads"] if s else full_heads for s in sliding]
    if not raw.get("attention_k_eq_v"):
        tensors[f"blk.{sliding.index(False)}.attn_v.weight"] = (1, 1)
    if keys["embedding_length_per_layer_input"]:
        tensors["per_layer_token_embd.weight"] = (raw["vocab_size_per_layer_input"], 1)
    if raw.get("enable_moe_block"):
        keys |= {
            "expert_count": raw["num_experts"],
            "expert_used_count": raw["top_k_experts"],
            "expert_feed_forward_length": raw["moe_intermediate_size"],
        }


def _add_experts(raw: dict[str, Any], keys: dict[str, Any]) -> None:
    keys |= {
        "expert_count": raw.get("num_experts", raw.get("num_local_experts")),
        "expert_used_count": raw["num_experts_per_tok"],
    }
    if raw["model_type"] != "mixtral":
        keys["expert_feed_forward_length"] = raw.get("moe_intermediate_size", raw["intermediate_size"])


def _add_qwen35(raw: dict[str, Any], keys: dict[str, Any]) -> None:
    keys |= {
        "block_count": raw["num_hidden_layers"] + 1,
        "nextn_predict_layers": 1,
        "full_attention_interval": 4,
        "ssm.conv_kernel": raw["linear_conv_kernel_dim"],
        "ssm.state_size": raw["linear_key_head_dim"],
        "ssm.group_count": raw["linear_num_key_heads"],
        "ssm.time_step_rank": raw["linear_num_value_heads"],
        "ssm.inner_size": raw["linear_num_value_heads"] * raw["linear_value_head_dim"],
        "expert_count": raw.get("num_experts"),
        "expert_used_count": raw.get("num_experts_per_tok"),
        "expert_feed_forward_length": raw.get("moe_intermediate_size"),
        "expert_shared_feed_forward_length": raw.get("shared_expert_intermediate_size"),
    }


@pytest.mark.parametrize("name", [name for name in hub.names() if not name.startswith("llama-4")])
def test_the_metadata_of_a_converted_model_gives_back_its_geometry(name: str) -> None:
    found = families.geometry(gguf_config.config(as_gguf(name)))
    original = families.geometry(hub.shipped_config(name))
    if original.model_type == "mistral":  # the file does not have its window, and llama.cpp has no such family
        original = original.without_windows()
    assert found.layers == original.layers
    assert found.outside == original.outside
    assert (found.tied, found.max_position) == (original.tied, original.max_position)


@pytest.mark.parametrize(
    ("metadata", "says"),
    [
        ({"general.architecture": "llama4"}, "GGUF .llama4.: not supported yet"),
        ({"general.architecture": "llama", "split.count": 3}, "one of 3 parts"),
        ({"general.architecture": "llama"}, "embedding_length"),
        (
            {"general.architecture": "llama", "general.type": "adapter"},
            "an adapter, which modifies a model but is not one",
        ),
        ({"general.architecture": "clip", "general.type": "mmproj"}, "only part of a model"),
    ],
)
def test_a_file_without_a_rule_is_refused_with_the_reason(metadata: dict[str, Any], says: str) -> None:
    with pytest.raises(ProfileError, match=says):
        gguf_config.config(header(metadata, {"token_embd.weight": (5, 8)}))


@pytest.mark.parametrize("architecture", ["gemma3n", "glm4", "qwen2moe", "bert", "gemma4-assistant"])
def test_an_architecture_without_a_rule_says_what_the_file_holds(architecture: str) -> None:
    metadata = {"general.architecture": architecture, f"{architecture}.block_count": 2}
    with pytest.raises(families.Unserved) as caught:
        gguf_config.config(header(metadata, {"token_embd.weight": (5, 8), "output_norm.weight": (8,)}))
    facts = "2 layers, 48 parameters, 192 bytes (192 B) in 2 tensors"
    refused = "this family is not supported yet, so nothing is predicted or measured"
    assert caught.value.message == f"GGUF architecture {architecture} ({facts}): {refused}"
    assert "Did you mean" not in str(caught.value)


def small(architecture: str, **changes: Any) -> GgufHeader:
    """A small file of an architecture; ``changes`` in its keys, ``None`` for one that is missing."""
    keys: dict[str, Any] = {
        "block_count": 3,
        "context_length": 4096,
        "embedding_length": 64,
        "feed_forward_length": 128,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "attention.key_length": 16,
    }
    if architecture.startswith("gemma"):
        keys |= {"attention.sliding_window": 512}
    if architecture == "gemma4":
        keys |= {"attention.sliding_window_pattern": [True, True, False], "attention.key_length_swa": 16}
    if architecture == "qwen35":
        keys |= {"ssm.time_step_rank": 4, "ssm.inner_size": 64, "ssm.conv_kernel": 4, "ssm.state_size": 16}
        keys |= {"ssm.group_count": 2, "full_attention_interval": 3}
    keys |= changes
    metadata = {f"{architecture}.{key}": item for key, item in keys.items() if item is not None}
    return header({"general.architecture": architecture} | metadata, {"token_embd.weight": (5, 64)})


def geometry_of(found: GgufHeader) -> Geometry:
    raw, names = gguf_config.named_config(found)
    return families.geometry(raw, "GGUF", names)


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "gemma3", "gemma4", "qwen35", "phi3"])
def test_a_small_file_of_each_architecture_has_a_geometry(architecture: str) -> None:
    assert len(geometry_of(small(architecture)).layers) == 3


HUGE = [4 * 10**9, -(10**9), 2**31, 0, -1, 1.5, True, "3", [], [3, 4], range(5000)]
REQUIRED = ("block_count", "context_length", "attention.head_count")


@pytest.mark.parametrize("value", HUGE, ids=str)
@pytest.mark.parametrize(
    ("architecture", "key"),
    [
        *(
            (architecture, key)
            for architecture in ("llama", "qwen3", "gemma3", "gemma4", "qwen35")
            for key in REQUIRED
        ),
        ("llama", "attention.head_count_kv"),
        ("qwen3", "attention.key_length"),
        ("gemma3", "attention.sliding_window"),
        ("gemma4", "attention.shared_kv_layers"),
        ("gemma4", "attention.head_count_kv"),
        ("gemma4", "feed_forward_length"),
        ("gemma4", "attention.key_length_swa"),
        ("qwen35", "nextn_predict_layers"),
        ("qwen35", "ssm.inner_size"),
        ("qwen35", "ssm.time_step_rank"),
    ],
)
def test_an_absurd_value_is_refused_by_its_key_before_anything_is_made_of_it(
    architecture: str, key: str, value: Any
) -> None:
    if key in ("attention.shared_kv_layers", "nextn_predict_layers") and value in (0, True):
        value = 10**6
    tracemalloc.start()
    try:
        with pytest.raises(ProfileError, match=rf"{architecture}\.{key}") as caught:
            geometry_of(small(architecture, **{key: value}))
        assert tracemalloc.get_traced_memory()[1] < 2**21
    finally:
        tracemalloc.stop()
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("key", ["block_count", "context_length", "embedding_length", "feed_forward_length"])
def test_a_missing_key_that_llama_cpp_needs_is_named(key: str) -> None:
    with pytest.raises(ProfileError, match=rf"llama\.{key} is (missing|null)"):
        geometry_of(small("llama", **{key: None}))


def test_missing_keys_of_heads_mean_what_they_mean_to_llama_cpp() -> None:
    found = geometry_of(small("llama", **{"attention.head_count_kv": None, "attention.key_length": None}))
    assert found.layers[0].mixer == Attention("full", heads=4, kv_heads=4, head_dim=16)


def test_values_stated_for_every_layer_count_once_if_they_are_all_the_same() -> None:
    lists = {"attention.head_count": [4] * 3, "attention.head_count_kv": [2] * 3, "feed_forward_length": [128] * 3}
    assert geometry_of(small("llama", **lists)).layers == geometry_of(small("llama")).layers
    with pytest.raises(ProfileError, match=r"llama\.attention\.head_count_kv differs between layers"):
        geometry_of(small("llama", **{"attention.head_count_kv": [2, 2, 1]}))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"attention.head_count_kv": 3}, r"llama\.attention\.head_count \(4\) is not a multiple of llama\.attention"),
        ({"attention.key_length": 15}, r"llama\.attention\.key_length is 15, must be even"),
        (
            {"attention.head_count": 3},
            r"llama\.embedding_length \(64\) is not a multiple of llama\.attention\.head_count",
        ),
        (
            {"rope.scaling.type": "yarn", "rope.scaling.factor": -4.0},
            r"llama\.rope\.scaling\.factor is -4\.0, must be a number from 1",
        ),
        (
            {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 0},
            r"llama\.rope\.scaling\.original_context_length is 0",
        ),
        ({"rope.scaling.type": "ntk"}, r'llama\.rope\.scaling\.type is "ntk", which is not supported'),
    ],
)
def test_contradictions_name_the_keys_of_the_file(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ProfileError, match=says):
        geometry_of(small("llama", **changes))


@pytest.mark.parametrize(
    ("changes", "context"),
    [
        ({}, 4096),
        ({"rope.scaling.type": "none"}, 4096),
        ({"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0}, 16384),
        (
            {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 1024},
            4096,
        ),
        ({"rope.scaling.type": "yarn", "rope.scaling.factor": 0.0}, 4096),
        ({"rope.scaling.type": "linear", "rope.scaling.factor": 2.0}, 8192),
        ({"rope.scale_linear": 2.0}, 8192),
        ({"rope.scaling.type": "longrope", "rope.scaling.factor": 32.0}, 4096),
    ],
)
def test_rope_scaling_of_a_file_decides_its_largest_context(changes: dict[str, Any], context: int) -> None:
    for architecture in ("llama", "qwen3", "qwen35"):
        assert geometry_of(small(architecture, **changes)).max_position == context
    assert geometry_of(small("gemma3", **changes)).max_position == 4096


def test_a_file_without_an_embedding_is_no_language_model() -> None:
    with pytest.raises(ProfileError, match=r"no token_embd\.weight"):
        gguf_config.config(header({"general.architecture": "llama"}, {"v.patch_embd.weight": (3, 4)}))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"llama.attention.head_count_kv": 3},
            "odd: GGUF: llama.attention.head_count (2) is not a multiple of llama.attention.head_count_kv (3)",
        ),
        (
            {"llama.block_count": 10**9},
            "odd: GGUF (llama): llama.block_count is 1000000000, must be a whole number from 1 to 1000",
        ),
        (
            {"general.architecture": "glm4"},
            "odd: GGUF architecture glm4 (40 parameters, 160 bytes (160 B) in 1 tensor)",
        ),
    ],
)
def test_errors_of_a_file_name_the_file_and_its_key(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    path = tmp_path / "odd.gguf"
    words = {"tokenizer.ggml.tokens": ["a", "b", "c", "d", "e"]}
    path.write_bytes(gguf(LLAMA | words | changes, {"token_embd.weight": (5, 8)}))
    with pytest.raises(ProfileError) as caught:
        resolve(str(path))
    assert caught.value.message.startswith(says)
