"""Public GGUF files with mixed types, rebuilt from what llama.cpp printed when it loaded them.

Real are the number of tensors of each type and the size in GiB, from logs in public issues. Names and shapes are
ours, so these logs confirm them too: K and V of Gemma 4's layers that share a cache, and multi-token-prediction
blocks. Which tensors have which type is real only where the numbers leave no choice; elsewhere it is one choice that
gives these numbers and this size.
"""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gguf
import pytest

from profiler.cost import engines
from profiler.models import families, gguf_mix, gguf_write, hub
from profiler.models.gguf_write import NewTensor
from profiler.models.resolve import resolve

GIB = 1024**3


@dataclass(frozen=True)
class Published:
    """A file by its log. ``rules``: a pattern of names and the type of these tensors; the first that fits counts."""

    source: str
    model: str
    counts: dict[str, int]
    rules: tuple[tuple[str, str], ...]
    gib: float | None = None  # as printed; None where the excerpt ends before it
    drafting: bool = False  # with a multi-token-prediction block


def layers(*numbers: int) -> str:
    return rf"blk\.({'|'.join(map(str, range(*numbers)))})\."


ALWAYS_F32 = r".*(ssm_conv1d|ffn_gate_inp)\.weight"  # of those with several dimensions
LLAMA_CPP, IK = "github.com/ggml-org/llama.cpp", "github.com/ikawrakow/ik_llama.cpp"
FILES = {
    "lmstudio-community/gemma-4-26B-A4B-it-Q4_K_M": Published(
        "github.com/scrya-com/rotorquant/issues/9",
        "gemma-4-26b-a4b",
        {"f32": 392, "q5_0": 32, "q8_0": 28, "q4_k": 192, "q6_k": 14},
        (("", "q4_k_m"),),  # as llama-quantize gives them
        15.63,
    ),
    "unsloth/gemma-4-E4B-it-UD-Q4_K_XL": Published(
        f"{LLAMA_CPP}/issues/21328",
        "gemma-4-e4b",
        {"f32": 423, "q4_k": 193, "q5_k": 27, "q6_k": 61, "iq4_xs": 15, "bf16": 1},
        (
            (r".*\.(inp_gate|proj)\.weight", "f32"),
            ("per_layer_model_proj.*", "bf16"),
            ("per_layer_token_embd.*", "q5_k"),
            (r"token_embd.*|.*attn_v.*", "q6_k"),
            (layers(7) + "attn_k.*", "q6_k"),
            (layers(11) + "ffn_down.*", "q6_k"),
            (layers(26) + "attn_q.*", "q5_k"),
            (layers(15) + "ffn_gate.*", "iq4_xs"),
            (".*", "q4_k"),
        ),
        4.74,
    ),
    "bartowski/google_gemma-4-E2B-it-Q4_K_M": Published(
        "github.com/animehacker/llama-turboquant/issues/3",
        "gemma-4-e2b",
        {"f32": 283, "q4_k": 194, "q5_k": 70, "q6_k": 53, "bf16": 1},
        (
            (r".*\.(inp_gate|proj)\.weight", "q5_k"),
            ("per_layer_model_proj.*", "bf16"),
            (r".*token_embd.*", "q6_k"),
            (layers(14, 35) + "ffn_down.*", "q6_k"),
            (layers(30) + "attn_v.*", "q6_k"),
            (".*", "q4_k"),
        ),
        3.21,
    ),
    "unsloth/Qwen3.6-35B-A3B-MTP-Q8_0": Published(
        f"{LLAMA_CPP}/pull/23269",
        "qwen3.6-35b-a3b",
        {"f32": 308, "q8_0": 443, "bf16": 2},
        ((r"blk\.40\.ffn_gate_inp.*", "bf16"), (".*", "q8_0")),
        35.19,
        drafting=True,
    ),
    "unsloth/Qwen3.5-4B-Q6_K": Published(
        "github.com/lemonade-sdk/llamacpp-rocm/issues/75",
        "qwen3.5-4b",
        {"f32": 177, "q8_0": 72, "q6_k": 177},
        ((r".*ssm_(alpha|beta|out).*", "q8_0"), (".*", "q6_k")),
        3.27,
    ),
    "unsloth/Qwen3.5-27B-UD-Q5_K_XL": Published(
        "github.com/AmesianX/TurboQuant/issues/2",
        "qwen3.5-27b",
        {"f32": 353, "f16": 96, "q8_0": 48, "q4_k": 16, "q5_k": 181, "q6_k": 157},
        (
            (r".*ssm_(alpha|beta).*", "f16"),
            (".*ssm_out.*", "q8_0"),
            (".*attn_q\\..*", "q4_k"),
            (r".*attn_(gate|v|output)\..*", "q6_k"),
            (r".*ffn_down.*|blk\.([0-9]|1[0-2])\.ffn_up.*", "q6_k"),
            (".*", "q5_k"),
        ),
        18.78,
    ),
    "unsloth/Qwen3.5-9B-Q8_0": Published(
        f"{LLAMA_CPP}/pull/22546", "qwen3.5-9b", {"f32": 177, "q8_0": 250}, ((".*", "q8_0"),)
    ),
    "unsloth/Qwen3.5-35B-A3B-UD-Q6_K_XL": Published(
        f"{IK}/issues/1420",
        "qwen3.5-35b-a3b",
        {"f32": 301, "f16": 90, "q8_0": 264, "q6_k": 78},
        ((r".*ssm_(alpha|beta|out).*", "f16"), (layers(39) + "ffn_(gate|up)_exps.*", "q6_k"), (".*", "q8_0")),
    ),
    "gemopus-4-26B-A4B-APEX": Published(
        f"{IK}/issues/1772",
        "gemma-4-26b-a4b",
        {"f32": 392, "q5_1": 10, "q8_0": 40, "q6_k": 206, "iq4_nl": 10},
        (
            (layers(10) + "ffn_down_exps.*", "q5_1"),
            (layers(10, 20) + "ffn_down_exps.*", "iq4_nl"),
            (".*ffn_down.*", "q8_0"),
            (".*", "q6_k"),
        ),
    ),
    "Qwen3.6-27B-MTP-Q4_K": Published(
        f"{IK}/issues/1790",
        "qwen3.6-27b",
        {"f32": 360, "q8_0": 8, "q4_k": 497, "q6_k": 1},
        ((r"blk\.64\..*", "q8_0"), ("output.*", "q6_k"), (".*", "q4_k")),
        drafting=True,
    ),
}


def drafting_block(tensors: list[NewTensor], number: int) -> list[NewTensor]:
    """A multi-token-prediction block: a full layer, a projection and three norms (src/models/qwen35.cpp)."""
    like = next(int(t.name.split(".")[1]) for t in tensors if t.name.endswith("attn_q.weight"))
    block = [
        replace(tensor, name=f"blk.{number}.{tensor.name.split('.', 2)[2]}")
        for tensor in tensors
        if tensor.name.startswith(f"blk.{like}.")
    ]
    hidden = next(t.shape[1] for t in block if t.name.endswith("attn_q.weight"))
    block.append(NewTensor(f"blk.{number}.nextn.eh_proj.weight", (hidden, 2 * hidden), "f16"))
    return block + [
        NewTensor(f"blk.{number}.nextn.{name}.weight", (hidden,), "f32")
        for name in ("enorm", "hnorm", "shared_head_norm")
    ]


def rebuilt(published: Published) -> tuple[dict[str, Any], list[NewTensor]]:
    raw = hub.shipped_config(published.model)
    geometry = families.geometry(raw)
    first = published.rules[0]
    mix = first[1] if not first[0] else "f16"
    tensors = gguf_write.tensors(raw, geometry, gguf_mix.each(geometry, mix))
    metadata = gguf_write.metadata(raw, geometry, published.model, 1024)
    if published.drafting:
        tensors += drafting_block(tensors, len(geometry.layers))
        (prefix,) = {key.partition(".")[0] for key in metadata if key.endswith(".block_count")}
        for key, value in (("block_count", len(geometry.layers) + 1), ("nextn_predict_layers", 1)):
            metadata[f"{prefix}.{key}"] = gguf_write._U32(value)
    if first[0]:
        tensors = [replace(tensor, type=kind_of(tensor, published), values=None) for tensor in tensors]
    return metadata, tensors


def kind_of(tensor: NewTensor, published: Published) -> str:
    plain = [
        kind for pattern, kind in published.rules if kind in ("bf16", "f32") and re.fullmatch(pattern, tensor.name)
    ]
    if plain:
        return plain[0]
    if len(tensor.shape) == 1 or re.fullmatch(ALWAYS_F32, tensor.name):
        return "f32"
    return next(kind for pattern, kind in published.rules if re.fullmatch(pattern, tensor.name))


@pytest.mark.parametrize("name", FILES)
def test_a_published_file_is_counted_to_the_byte(name: str, tmp_path: Path) -> None:
    published = FILES[name]
    metadata, tensors = rebuilt(published)
    assert Counter(tensor.type for tensor in tensors) == published.counts
    blocks = {kind.name.lower(): sizes for kind, sizes in gguf.GGML_QUANT_SIZES.items()}
    nbytes = sum(math.prod(t.shape) // blocks[t.type][0] * blocks[t.type][1] for t in tensors)
    if published.gib is not None:
        assert nbytes / GIB == pytest.approx(published.gib, abs=0.0051)
    header = gguf_write.header(metadata, tensors)
    path = tmp_path / "m.gguf"
    path.write_bytes(header)
    os.truncate(path, len(header) + sum(tensor.padded for tensor in tensors))  # a sparse file: zeros take no space
    found = resolve(str(path))
    assert found.geometry.layers == families.geometry(hub.shipped_config(published.model)).layers
    assert found.stored is not None and found.stored.nbytes == nbytes
    storage = engines.find("llama.cpp").stored(found.geometry, found.stored, "bf16")
    head = storage.part_bytes("head") if found.geometry.tied else 0  # held twice: on the device, and as a table
    assert storage.device_bytes + storage.host_bytes - head == nbytes
