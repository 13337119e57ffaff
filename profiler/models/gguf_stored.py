"""A GGUF file as llama.cpp holds it: every tensor of its header, under the part of the model that it plays.

Tensor names: ``gguf-py/gguf/constants.py`` of llama.cpp. It loads every tensor of a file except the layers of
multi-token prediction, so what is counted here is what the header lists.
"""

from __future__ import annotations

import re
from collections import Counter

from profiler.errors import ProfileError
from profiler.models.geometry import EMBEDDING, HEAD, Geometry
from profiler.models.gguf_file import TYPE_NAMES, GgufHeader, GgufTensor
from profiler.models.layers import Attention
from profiler.models.stored import Stored, StoredWeight
from profiler.models.weight import Role, Weight
from profiler.units import printable

BLOCK = re.compile(r"blk\.(\d{1,9})\.(.+)", re.DOTALL)
OUTSIDE: dict[str, tuple[Role, str]] = {
    "token_embd.weight": ("embedding", EMBEDDING),
    "per_layer_token_embd.weight": ("embedding", "model.embed_tokens_per_layer.weight"),
    "output.weight": ("head", HEAD),
}
PLAIN = frozenset({"f32", "f16", "bf16", "f64"})

# general.file_type (enum llama_ftype, include/llama.h) → the mix that it stands for, and the types that
# llama-quantize gives the matrices of the layers. A file with other types is a "dynamic" mix, for which there is no
# rule.
FILE_TYPES: dict[int, tuple[str, frozenset[str]]] = {
    0: ("f32", frozenset({"f32"})),
    1: ("f16", frozenset({"f16"})),
    2: ("q4_0", frozenset({"q4_0"})),
    3: ("q4_1", frozenset({"q4_1"})),
    7: ("q8_0", frozenset({"q8_0"})),
    8: ("q5_0", frozenset({"q5_0"})),
    9: ("q5_1", frozenset({"q5_1"})),
    10: ("q2_k", frozenset({"q2_k", "q3_k", "q4_k"})),
    11: ("q3_k_s", frozenset({"q3_k"})),
    12: ("q3_k_m", frozenset({"q3_k", "q4_k", "q5_k"})),
    13: ("q3_k_l", frozenset({"q3_k", "q5_k"})),
    14: ("q4_k_s", frozenset({"q4_k", "q5_k"})),
    15: ("q4_k_m", frozenset({"q4_k", "q6_k"})),
    16: ("q5_k_s", frozenset({"q5_k"})),
    17: ("q5_k_m", frozenset({"q5_k", "q6_k"})),
    18: ("q6_k", frozenset({"q6_k"})),
    19: ("iq2_xxs", frozenset({"iq2_xxs", "q2_k", "q4_k"})),
    20: ("iq2_xs", frozenset({"iq2_xs", "q2_k", "q4_k"})),
    22: ("iq3_xs", frozenset({"iq3_s", "iq3_xxs", "q4_k"})),
    23: ("iq3_xxs", frozenset({"iq3_xxs", "iq2_s", "iq3_s", "q3_k", "q4_k"})),
    24: ("iq1_s", frozenset({"iq1_s", "iq2_xxs", "q2_k", "q4_k"})),
    25: ("iq4_nl", frozenset({"iq4_nl", "q5_k"})),
    26: ("iq3_s", frozenset({"iq3_s", "q4_k"})),
    27: ("iq3_m", frozenset({"iq3_s", "q4_k"})),
    28: ("iq2_s", frozenset({"iq2_xs", "iq3_s", "q4_k"})),
    29: ("iq2_m", frozenset({"iq2_s", "iq3_s", "q4_k"})),
    30: ("iq4_xs", frozenset({"iq4_xs", "q5_k"})),
    31: ("iq1_m", frozenset({"iq1_m", "iq2_xxs", "q2_k", "q4_k"})),
    32: ("bf16", frozenset({"bf16"})),
}
FALLBACK = {  # where a row does not fill the blocks of the first type (``tensor_type_fallback``, src/llama-quant.cpp)
    "q4_k": "q5_0", "q5_k": "q5_1", "q6_k": "q8_0", "q2_k": "q4_0", "q3_k": "q4_0", "iq1_s": "iq4_nl",
    "iq1_m": "iq4_nl", "iq2_xxs": "iq4_nl", "iq2_xs": "iq4_nl", "iq2_s": "iq4_nl", "iq3_xxs": "iq4_nl",
    "iq3_s": "iq4_nl", "iq4_xs": "iq4_nl",
}  # fmt: skip
MOSTLY = 0.9  # of the layers' parameters in one type: then it is the file's, whatever general.file_type says
MIXED = "mixed"


def from_gguf(geometry: Geometry, header: GgufHeader) -> Stored:
    """What the tensors of a GGUF file are to the model of ``geometry``. ProfileError for a type that is not known."""
    weights = []
    for tensor in header.tensors.values():
        nbytes = tensor.nbytes
        if nbytes is None or tensor.type_id not in TYPE_NAMES:
            raise ProfileError(
                f"{printable(tensor.name, 80)} is stored in type {tensor.type_id} of ggml, which is not known here"
            )
        if (placed := _placed(geometry, tensor)) is not None:
            weight, layer = placed
            weights.append(StoredWeight(weight, layer, TYPE_NAMES[tensor.type_id], nbytes))
    types = {weight.scheme for weight in weights if weight.weight.role != "vector"}
    return Stored(
        quant=own_name(header),
        dtype=None,
        packed=not types <= PLAIN,
        weights=tuple(weights),
        nbytes=sum(weight.nbytes for weight in weights),
        gguf=True,
    )


def _placed(geometry: Geometry, tensor: GgufTensor) -> tuple[Weight, int | None] | None:
    """The part that a tensor plays; ``None`` for one of a layer that the decoder does not have."""
    match = BLOCK.fullmatch(tensor.name)
    if match is None:
        role, name = OUTSIDE.get(tensor.name, (_role(tensor.name, tensor.shape), tensor.name))
        return Weight(role, tensor.shape, name), None
    number = int(match[1])
    if number >= len(geometry.layers):
        return None
    attention = isinstance(geometry.layers[number].mixer, Attention)
    return Weight(_role(match[2], tensor.shape), tensor.shape, _place(match[2], attention)), number


def _role(name: str, shape: tuple[int, ...]) -> Role:
    if "_exps" in name and len(shape) == 3:
        return "experts"
    if "conv1d" in name:
        return "conv"
    if len(shape) < 2 or not name.endswith(".weight"):
        return "vector"
    return "router" if "ffn_gate_inp" in name and "shexp" not in name else "linear"


def _place(name: str, attention: bool) -> str:
    """``self_attn.attn_q.weight``: the name under the module that ``predict`` counts it with."""
    if name.startswith(("attn_", "ssm_")):
        return f"{'self_attn' if attention else 'linear_attn'}.{name}"
    return f"mlp.{name}" if name.startswith("ffn_") else name


def own_name(header: GgufHeader) -> str:
    """The file's quantization: the mix that it states where its layers agree, else the type that nearly all have."""
    sizes: Counter[str] = Counter()
    for tensor in header.tensors.values():
        if len(tensor.shape) >= 2 and tensor.name.endswith(".weight") and BLOCK.fullmatch(tensor.name):
            sizes[TYPE_NAMES.get(tensor.type_id, "unknown")] += tensor.parameters
    stated = FILE_TYPES.get(number) if isinstance(number := header.metadata.get("general.file_type"), int) else None
    if stated is not None and _agrees(stated[1], sizes):
        return stated[0]
    if not sizes:
        return "unknown"
    most, size = sizes.most_common(1)[0]
    return most if size >= MOSTLY * sizes.total() else MIXED


def _agrees(types: frozenset[str], sizes: Counter[str]) -> bool:
    """Whether the matrices of the layers are those of a mix of ``types``; plain ones of few parameters are in any."""
    allowed = types | {FALLBACK[name] for name in types if name in FALLBACK}
    small = (1 - MOSTLY) * sizes.total()
    odd = {name for name in sizes if name not in allowed}
    return odd <= PLAIN and sum(sizes[name] for name in odd) <= small and any(name in allowed for name in sizes)
