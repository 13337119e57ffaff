"""One small Llama as checkpoints store it: safetensors of every quantization that people publish, and GGUF files.

Contents are zeros unless they are given; what matters is names, dtypes and shapes. No torch, so that any test may use
it.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

from profiler.models.gguf import BLOCKS, TYPES
from profiler.models.safetensors import BITS

LAYERS, HIDDEN, FEED, VOCAB, HEADS, KV, HEAD_DIM = 4, 256, 512, 1024, 4, 2, 64
LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": HIDDEN,
    "intermediate_size": FEED,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV,
    "head_dim": HEAD_DIM,
    "vocab_size": VOCAB,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
LINEAR = {
    "self_attn.q_proj": (HEADS * HEAD_DIM, HIDDEN),
    "self_attn.k_proj": (KV * HEAD_DIM, HIDDEN),
    "self_attn.v_proj": (KV * HEAD_DIM, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HEADS * HEAD_DIM),
    "mlp.gate_proj": (FEED, HIDDEN),
    "mlp.up_proj": (FEED, HIDDEN),
    "mlp.down_proj": (HIDDEN, FEED),
}
TABLES = {"model.embed_tokens": (VOCAB, HIDDEN), "lm_head": (VOCAB, HIDDEN)}
VECTORS = [
    "model.norm.weight",
    *(
        f"model.layers.{n}.{name}.weight"
        for n in range(LAYERS)
        for name in ("input_layernorm", "post_attention_layernorm")
    ),
]
PLAIN = {"fp64": "F64", "fp32": "F32", "fp16": "F16", "bf16": "BF16"}
Tensors = dict[str, tuple[str, tuple[int, ...]]]

CONFIGS: dict[str, dict[str, Any]] = {  # what a config.json says beside the shapes
    "fp32": {},
    "bf16": {},
    "fp16": {},
    "fp8": {
        "quantization_config": {
            "quant_method": "fp8",
            "activation_scheme": "dynamic",
            "weight_block_size": [128, 128],
        }
    },
    "awq": {
        "quantization_config": {
            "quant_method": "awq",
            "bits": 4,
            "group_size": 128,
            "zero_point": True,
            "version": "gemm",
        }
    },
    "gptq": {
        "quantization_config": {
            "quant_method": "gptq",
            "bits": 4,
            "group_size": 128,
            "desc_act": False,
            "sym": True,
        }
    },
    "compressed-tensors": {
        "quantization_config": {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "quantization_status": "compressed",
            "ignore": ["lm_head"],
            "config_groups": {
                "group_0": {
                    "targets": ["Linear"],
                    "weights": {
                        "num_bits": 4,
                        "type": "int",
                        "symmetric": True,
                        "strategy": "group",
                        "group_size": 128,
                    },
                }
            },
        }
    },
    "nf4-dq": {
        "quantization_config": {
            "quant_method": "bitsandbytes",
            "load_in_4bit": True,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": True,
            "bnb_4bit_compute_dtype": "bfloat16",
        }
    },
    "int8": {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}},
    "mlx-4bit": {"quantization": {"group_size": 64, "bits": 4}, "quantization_config": {"group_size": 64, "bits": 4}},
    "mxfp4": {"quantization_config": {"quant_method": "mxfp4"}},
}
GGUF = ("f32", "f16", "bf16", "q8_0", "q4_0", "q5_1", "q4_k", "q6_k", "iq4_nl", "mxfp4", "tq1_0")


def _wide(name: str) -> bool:
    return "norm" in name or name.startswith("lm_head")


def linear(quant: str, outputs: int, inputs: int) -> Tensors:
    """The tensors of one linear layer, by what follows its name."""
    dtype = PLAIN.get(quant, "BF16")
    groups, size = inputs // 128, outputs * inputs
    found: dict[str, Tensors] = {
        "fp8": {"weight": ("F8_E4M3", (outputs, inputs)), "weight_scale_inv": ("F32", (-(-outputs // 128), groups))},
        "awq": {
            "qweight": ("I32", (inputs, outputs // 8)),
            "qzeros": ("I32", (groups, outputs // 8)),
            "scales": ("F16", (groups, outputs)),
        },
        "gptq": {
            "qweight": ("I32", (inputs // 8, outputs)),
            "qzeros": ("I32", (groups, outputs // 8)),
            "scales": ("F16", (groups, outputs)),
            "g_idx": ("I32", (inputs,)),
        },
        "compressed-tensors": {
            "weight_packed": ("I32", (outputs, inputs // 8)),
            "weight_scale": ("BF16", (outputs, groups)),
            "weight_shape": ("I64", (2,)),
        },
        "nf4-dq": {
            "weight": ("U8", (size // 2, 1)),
            "weight.absmax": ("U8", (size // 64,)),
            "weight.nested_absmax": ("F32", (-(-size // 64 // 256),)),
            "weight.nested_quant_map": ("F32", (256,)),
            "weight.quant_map": ("F32", (16,)),
            "weight.quant_state.bitsandbytes__nf4": ("U8", (170,)),
        },
        "int8": {"weight": ("I8", (outputs, inputs)), "SCB": ("F32", (outputs,)), "weight_format": ("U8", ())},
        "mxfp4": {"weight_packed": ("U8", (outputs, inputs // 2)), "weight_scale": ("U8", (outputs, inputs // 32))},
    }
    return found.get(quant, {"weight": (dtype, (outputs, inputs))})


def mlx(outputs: int, inputs: int) -> Tensors:
    """A linear layer or a table, as MLX stores both."""
    scales = ("BF16", (outputs, inputs // 64))
    return {"weight": ("U32", (outputs, inputs // 8)), "scales": scales, "biases": scales}


def tensors(quant: str) -> Tensors:
    """Every tensor of the model in ``quant``; ``mixed``: in bf16, but for norms and the output head in fp32."""
    if quant == "mixed":
        return tensors("bf16") | {name: ("F32", shape) for name, (_, shape) in tensors("fp32").items() if _wide(name)}
    plain = quant if quant in PLAIN else "bf16"
    dtype = PLAIN.get(quant, "BF16")
    found: Tensors = dict.fromkeys(VECTORS, (dtype, (HIDDEN,)))
    for name, shape in TABLES.items():
        parts = mlx(*shape) if quant == "mlx-4bit" else linear(plain, *shape)
        found |= {f"{name}.{part}": value for part, value in parts.items()}
    for n in range(LAYERS):
        for name, shape in LINEAR.items():
            parts = mlx(*shape) if quant == "mlx-4bit" else linear(quant, *shape)
            found |= {f"model.layers.{n}.{name}.{part}": value for part, value in parts.items()}
    return found


def most(held: str) -> str:
    """The dtype of most bytes of a checkpoint that is not quantized."""
    return "bf16" if held == "mixed" else held


def another(dtype: str) -> str:
    """A dtype that is not ``dtype``."""
    return "fp16" if dtype == "fp32" else "fp32"


def plain(path: Path, held: str, stated: str | None) -> Path:
    """A checkpoint that is not quantized in ``held`` (as for ``tensors``), whose config says the dtype ``stated``."""
    folder(path, held, config={})
    raw = {name: value for name, value in LLAMA.items() if name != "torch_dtype"}
    names = {"fp64": "float64", "fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
    (path / "config.json").write_text(json.dumps(raw | ({} if stated is None else {"dtype": names[stated]})))
    return path


def size_of(dtype: str, shape: tuple[int, ...]) -> int:
    """Bytes of a safetensors tensor."""
    return prod(shape) * BITS[dtype] // 8


def total(found: Tensors) -> int:
    """Bytes of all tensors."""
    return sum(size_of(*entry) for entry in found.values())


def folder(path: Path, quant: str, *, found: Tensors | None = None, config: Mapping[str, Any] | None = None) -> Path:
    """A checkpoint in ``quant``; ``found`` and ``config`` replace its tensors and what its config says of them."""
    path.mkdir(parents=True, exist_ok=True)
    raw = LLAMA | (CONFIGS[quant] if config is None else dict(config))
    (path / "config.json").write_text(json.dumps(raw))
    entries, data = {}, bytearray()
    for name, (dtype, shape) in (tensors(quant) if found is None else found).items():
        stated = LINEAR.get(name.removesuffix(".weight_shape").partition("layers.")[2].partition(".")[2])
        size = size_of(dtype, shape)
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [len(data), len(data) + size]}
        data += struct.pack("<2q", *stated) if name.endswith(".weight_shape") and stated else bytes(size)
    header = json.dumps(entries).encode()
    (path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + data)
    return path


def gguf_tensors(kind: str, head: bool = True) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Name → type and shape, outputs first."""
    found = {"token_embd.weight": (kind, (VOCAB, HIDDEN)), "output_norm.weight": ("f32", (HIDDEN,))}
    if head:
        found["output.weight"] = (kind, (VOCAB, HIDDEN))
    names = dict(
        zip(LINEAR, ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"), strict=True)
    )
    for n in range(LAYERS):
        found |= {f"blk.{n}.{name}.weight": ("f32", (HIDDEN,)) for name in ("attn_norm", "ffn_norm")}
        found |= {f"blk.{n}.{names[name]}.weight": (kind, shape) for name, shape in LINEAR.items()}
    return found


def gguf_size(kind: str, shape: tuple[int, ...]) -> int:
    """Bytes of a GGUF tensor."""
    elements, size = BLOCKS[TYPES[kind]]
    return prod(shape) // elements * size


def gguf(
    path: Path,
    kind: str = "q8_0",
    *,
    found: Mapping[str, tuple[str, tuple[int, ...]]] | None = None,
    architecture: str = "llama",
    file_type: int = 1,
    sparse: bool = False,
    **keys: int,
) -> Path:
    """A GGUF file of the same Llama; ``keys`` replace its metadata. ``sparse``: a hole in place of the data."""
    metadata: dict[str, Any] = {
        "general.architecture": architecture,
        "general.file_type": file_type,
        "llama.block_count": LAYERS,
        "llama.context_length": 8192,
        "llama.embedding_length": HIDDEN,
        "llama.feed_forward_length": FEED,
        "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": KV,
        "llama.attention.key_length": HEAD_DIM,
        "llama.rope.dimension_count": HEAD_DIM,
    }
    metadata = {name.replace("llama.", f"{architecture}."): value for name, value in metadata.items()}
    metadata |= {f"{architecture}.{name}": value for name, value in keys.items()}
    held = gguf_tensors(kind) if found is None else found
    out = bytearray(b"GGUF" + struct.pack("<IQQ", 3, len(held), len(metadata)))
    for key, value in metadata.items():
        out += _text(key)
        out += struct.pack("<I", 8) + _text(value) if isinstance(value, str) else struct.pack("<II", 4, value)
    offset, sizes = 0, []
    for name, (type_name, shape) in held.items():
        out += _text(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape[::-1])
        out += struct.pack("<IQ", TYPES[type_name], offset)
        sizes.append(-(-gguf_size(type_name, shape) // 32) * 32)
        offset += sizes[-1]
    out += bytes(-len(out) % 32)
    path.write_bytes(bytes(out) if sparse else bytes(out) + bytes(offset))
    os.truncate(path, len(out) + offset)
    return path


def _text(value: str) -> bytes:
    content = value.encode()
    return struct.pack("<Q", len(content)) + content
