"""Whatever a file holds, only ProfileError comes out of reading it."""

from __future__ import annotations

import contextlib
import json
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from profiler.errors import ProfileError
from profiler.models import config, families, gguf, gguf_config, hub, safetensors
from profiler.models.config import RANGES
from profiler.models.gguf import GgufHeader, GgufTensor

QUICK = settings(max_examples=60, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
anything = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)
fields = [*RANGES, "layer_types", "tie_word_embeddings", "attention_k_eq_v", "enable_moe_block", "per_layer_config"]
fields += ["no_rope_layers", "moe_layers", "model_type", "text_config", "use_bidirectional_attention"]
REAL = [raw.get("text_config", raw) for raw in map(hub.shipped_config, hub.names())]


def only_profile_error() -> contextlib.AbstractContextManager[None]:
    return contextlib.suppress(ProfileError)


@QUICK
@given(st.sampled_from(REAL), st.dictionaries(st.sampled_from(fields), anything, max_size=4))
def test_a_config_with_any_fields_changed(raw: dict[str, Any], changes: dict[str, Any]) -> None:
    with only_profile_error():
        geometry = families.geometry(raw | changes)
        assert geometry.parameters > 0
        assert geometry.cache_bytes(100, 2, 2).total >= 0


@QUICK
@given(st.dictionaries(st.sampled_from(fields), anything, max_size=6))
def test_a_config_of_any_fields(raw: dict[str, Any]) -> None:
    with only_profile_error():
        families.geometry({"model_type": "gemma4"} | raw)


@QUICK
@given(st.binary(max_size=200))
@example(b'{"a":1e999}')
@example(b"\x00" * 100)
def test_any_bytes_as_config(content: bytes) -> None:
    with only_profile_error():
        families.geometry(config.parse(content, "config.json"))


def mangled(whole: bytes) -> st.SearchStrategy[bytes]:
    """``whole`` with a few bytes changed, cut or continued: deeper into a reader than random bytes come."""
    change = st.tuples(st.integers(0, len(whole) - 1), st.binary(min_size=1, max_size=9))

    def apply(edits: list[tuple[int, bytes]], keep: int, more: bytes) -> bytes:
        data = bytearray(whole)
        for at, piece in edits:
            data[at : at + len(piece)] = piece
        return bytes(data[:keep]) + more

    return st.builds(apply, st.lists(change, max_size=3), st.integers(0, len(whole)), st.binary(max_size=20))


TENSORS = {"a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, "__metadata__": {"format": "pt"}}
SAFETENSORS = struct.pack("<Q", len(json.dumps(TENSORS))) + json.dumps(TENSORS).encode() + bytes(24)


@QUICK
@given(mangled(SAFETENSORS) | st.binary(max_size=100))
def test_any_bytes_as_safetensors(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with only_profile_error():
        safetensors.header(path)


ENTRY = {
    "dtype": st.sampled_from(["F32", "F4", "?"]) | scalars,
    "shape": st.lists(st.integers(-1, 9) | scalars, max_size=3) | scalars,
    "data_offsets": st.lists(st.integers(-1, 99) | scalars, max_size=3) | scalars,
}


@QUICK
@given(st.dictionaries(st.text(max_size=5), st.fixed_dictionaries(ENTRY) | scalars, max_size=3))
def test_any_json_as_safetensors_header(tmp_path: Path, entries: dict[str, Any]) -> None:
    header = json.dumps(entries).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    with only_profile_error():
        safetensors.header(path)


@QUICK
@given(anything)
def test_any_json_as_index(tmp_path: Path, index: Any) -> None:
    (tmp_path / safetensors.INDEX).write_text(json.dumps({"weight_map": index}))
    with only_profile_error():
        safetensors.shards(tmp_path)


def string(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


GGUF = (
    b"GGUF"
    + struct.pack("<IQQ", 3, 1, 3)
    + (string("general.architecture") + struct.pack("<I", 8) + string("llama"))
    + (string("llama.block_count") + struct.pack("<II", 4, 2))
    + (string("tokens") + struct.pack("<IIQ", 9, 8, 2) + string("a") + string("b"))
    + (string("token_embd.weight") + struct.pack("<IQQIQ", 2, 2, 3, 0, 0))
    + bytes(128)
)


@QUICK
@given(mangled(GGUF) | st.binary(max_size=100))
def test_any_bytes_as_gguf(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with only_profile_error():
        families.geometry(gguf_config.config(gguf.header(path)))


KEYS = ["block_count", "embedding_length", "feed_forward_length", "attention.head_count", "attention.head_count_kv"]
KEYS += ["attention.key_length", "attention.key_length_swa", "attention.sliding_window", "context_length"]
KEYS += ["attention.sliding_window_pattern", "attention.shared_kv_layers", "embedding_length_per_layer_input"]
KEYS += ["expert_count", "ssm.time_step_rank", "ssm.inner_size", "nextn_predict_layers", "full_attention_interval"]
values = scalars | st.lists(scalars, max_size=4) | st.builds(range, st.integers(5000, 9000)) | st.integers(1, 64)


@QUICK
@given(st.sampled_from(sorted(gguf_config.ARCHITECTURES)), st.dictionaries(st.sampled_from(KEYS), values))
def test_any_metadata_as_gguf(architecture: str, metadata: dict[str, Any]) -> None:
    known = {f"{architecture}.{key}": value for key, value in metadata.items()}
    width = metadata.get("embedding_length")
    embedding = GgufTensor("token_embd.weight", (7, width if isinstance(width, int) else 8), 0, 0)
    header = GgufHeader({"general.architecture": architecture} | known, {embedding.name: embedding})
    with only_profile_error():
        families.geometry(gguf_config.config(header))


@pytest.mark.parametrize("name", hub.names())
def test_the_fuzzed_configs_are_good_ones_before_they_are_changed(name: str) -> None:
    assert families.geometry(hub.shipped_config(name)).parameters > 0
