"""The tensors of a GGUF file: their names in transformers, and the bytes of each part of the model.

Tensor names come from llama.cpp, ``gguf-py/gguf/constants.py``. Their counterparts in transformers come from its
``integrations/gguf/gguf_conversion_mapping.py`` and from ``gguf-py/gguf/tensor_mapping.py``.

llama.cpp loads every tensor of a file, so the header gives the bytes. No decode step reads some of them: those of
multi-token-prediction layers, and K and V of Gemma 4's layers that use the cache of an earlier layer.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping

from profiler.errors import ProfileError
from profiler.models.account import Description, FileTensor
from profiler.models.geometry import EMBEDDING, HEAD, Geometry
from profiler.models.gguf import TYPE_NAMES, GgufHeader, GgufTensor
from profiler.models.layers import Attention, Layer, Role, Weight
from profiler.models.stored import Stored, StoredWeight
from profiler.units import printable

BLOCK = re.compile(r"blk\.(\d{1,9})\.(.+)")
UNREAD = re.compile(r"self_attn\.(attn_)?[kv](_proj|_norm)?\.")  # by its name in transformers or in a file
NEXTN = re.compile(r"blk\.(\d{1,9})\.nextn\.")
TABLES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
    "per_layer_token_embd.weight": "model.embed_tokens_per_layer.weight",
    "per_layer_model_proj.weight": "model.per_layer_model_projection.weight",
    "per_layer_proj_norm.weight": "model.per_layer_projection_norm.weight",
    "rope_freqs.weight": "rope_freqs.weight",
}
PROJECTIONS = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_norm": "input_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
TWO_NORMS = {"ffn_norm": "post_attention_layernorm"}
FOUR_NORMS = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
GEMMA4 = {
    "inp_gate": "per_layer_input_gate",
    "proj": "per_layer_projection",
    "post_norm": "post_per_layer_input_norm",
    "ffn_gate_inp": "router.proj",
    "pre_ffw_norm_2": "pre_feedforward_layernorm_2",
    "post_ffw_norm_1": "post_feedforward_layernorm_1",
    "post_ffw_norm_2": "post_feedforward_layernorm_2",
}
QWEN35 = {
    "post_attention_norm": "post_attention_layernorm",
    "attn_qkv": "linear_attn.in_proj_qkv",
    "attn_gate": "linear_attn.in_proj_z",
    "ssm_alpha": "linear_attn.in_proj_a",
    "ssm_beta": "linear_attn.in_proj_b",
    "ssm_conv1d": "linear_attn.conv1d",
    "ssm_norm": "linear_attn.norm",
    "ssm_out": "linear_attn.out_proj",
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
    "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj",
}
EXPERTS = {
    "ffn_gate_exps.weight": "mlp.experts.gate_up_proj",
    "ffn_up_exps.weight": "mlp.experts.gate_up_proj",
    "ffn_gate_up_exps.weight": "mlp.experts.gate_up_proj",
    "ffn_down_exps.weight": "mlp.experts.down_proj",
}
WHOLE = {  # names that are not a module plus ``.weight`` or ``.bias``
    "gemma4": {
        "layer_output_scale.weight": "layer_scalar",
        "ffn_gate_inp.scale": "router.scale",
        "ffn_down_exps.scale": "router.per_expert_scale",
        "ffn_gate_up_exps.weight": "experts.gate_up_proj",
        "ffn_down_exps.weight": "experts.down_proj",
    },
    "qwen35": {"ssm_a": "linear_attn.A_log", "ssm_dt.bias": "linear_attn.dt_bias"},
    "qwen35moe": EXPERTS | {"ssm_a": "linear_attn.A_log", "ssm_dt.bias": "linear_attn.dt_bias"},
    "llama": EXPERTS,
    "qwen3moe": EXPERTS,
    "gpt-oss": EXPERTS
    | {
        "attn_sinks.weight": "self_attn.sinks",
        "ffn_gate_exps.bias": "mlp.experts.gate_up_proj_bias",
        "ffn_up_exps.bias": "mlp.experts.gate_up_proj_bias",
        "ffn_down_exps.bias": "mlp.experts.down_proj_bias",
    },
}
MODULES: Mapping[str, Mapping[str, str]] = {
    "llama": PROJECTIONS | TWO_NORMS | {"ffn_gate_inp": "mlp.gate"},  # with experts it is Mixtral
    "mistral3": PROJECTIONS | TWO_NORMS,
    "phi3": {
        **PROJECTIONS,
        **TWO_NORMS,
        "attn_qkv": "self_attn.qkv_proj",
        "ffn_up": "mlp.gate_up_proj",  # with the gate
    },
    "qwen2": PROJECTIONS | TWO_NORMS,
    "qwen3": PROJECTIONS | TWO_NORMS,
    "qwen3moe": PROJECTIONS | TWO_NORMS | {"ffn_gate_inp": "mlp.gate"},
    "gpt-oss": PROJECTIONS | {"post_attention_norm": "post_attention_layernorm", "ffn_gate_inp": "mlp.router"},
    "gemma3": PROJECTIONS | FOUR_NORMS,
    "gemma4": PROJECTIONS | FOUR_NORMS | GEMMA4,
    "qwen35": PROJECTIONS | QWEN35,
    "qwen35moe": PROJECTIONS | QWEN35,
}
NAMES = (  # of ggml_type, by number (ggml.h); empty for removed types
    *("F32", "F16", "Q4_0", "Q4_1", "", "", "Q5_0", "Q5_1", "Q8_0", "Q8_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"),
    *("Q8_K", "IQ2_XXS", "IQ2_XS", "IQ3_XXS", "IQ1_S", "IQ4_NL", "IQ3_S", "IQ2_S", "IQ4_XS", "I8", "I16", "I32"),
    *("I64", "F64", "IQ1_M", "BF16", "", "", "", "TQ1_0", "TQ2_0", "", "", "", "MXFP4", "NVFP4", "Q1_0"),
    "Q2_0",
)

INPUTS_FIRST = frozenset({"gpt-oss"})  # transformers has their experts as ``[experts, in, out]``
BLOCK_LINES = re.compile(r"blk\.(\d{1,9})\.(.+)", re.DOTALL)
OUTSIDE: dict[str, tuple[Role, str]] = {
    "token_embd.weight": ("embedding", EMBEDDING),
    "per_layer_token_embd.weight": ("embedding", "model.embed_tokens_per_layer.weight"),
    "output.weight": ("head", HEAD),
}
PLAIN = frozenset({"f32", "f16", "bf16", "f64"})
# general.file_type (enum llama_ftype, include/llama.h) → the name of the mix, and the types that llama-quantize gives
# to the matrices of the layers. A file with other types is a "dynamic" mix, which has no name here.
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
    21: ("q2_k_s", frozenset({"q2_k", "q4_k"})),
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
    36: ("tq1_0", frozenset({"tq1_0"})),
    37: ("tq2_0", frozenset({"tq2_0"})),
    38: ("mxfp4", frozenset({"mxfp4", "q8_0"})),
    39: ("nvfp4", frozenset({"nvfp4"})),
    40: ("q1_0", frozenset({"q1_0"})),
    41: ("q2_0", frozenset({"q2_0"})),
}
FALLBACK = {  # for rows that do not fill the blocks of a type (``tensor_type_fallback``, src/llama-quant.cpp)
    "q4_k": "q5_0", "q5_k": "q5_1", "q6_k": "q8_0", "q2_k": "q4_0", "q3_k": "q4_0", "iq1_s": "iq4_nl",
    "iq1_m": "iq4_nl", "iq2_xxs": "iq4_nl", "iq2_xs": "iq4_nl", "iq2_s": "iq4_nl", "iq3_xxs": "iq4_nl",
    "iq3_s": "iq4_nl", "iq4_xs": "iq4_nl", "tq1_0": "q4_0", "tq2_0": "q4_0", "q2_0": "q4_0",
}  # fmt: skip
MIN_MAIN_SHARE = 0.9  # share of the layers' parameters that makes a type the file's quantization
MIXED = "mixed"
DRAFTING = "mtp."  # before the names of weights in multi-token-prediction layers


def description(header: GgufHeader) -> Description:
    """The wording of errors about a file whose metadata and tensors disagree."""
    architecture = str(header.metadata.get("general.architecture"))
    hint = "The file was edited or not completely converted: convert or download it again."
    return Description(
        "the file's metadata", f"{architecture}.block_count", hint, lambda name: own_name(architecture, name)
    )


def own_name(architecture: str, target: str) -> str:
    """The name in the file of a weight of transformers; unchanged if the architecture has no mapping for it."""
    tables = {there: here for here, there in TABLES.items()}
    if target in tables:
        return tables[target]
    number, _, rest = target.removeprefix("model.layers.").partition(".")
    whole = {there: here for here, there in WHOLE.get(architecture, {}).items()}
    modules = {there: here for here, there in MODULES.get(architecture, {}).items()}
    module, _, leaf = rest.rpartition(".")
    if rest in whole:
        return f"blk.{number}.{whole[rest]}"
    return f"blk.{number}.{modules[module]}.{leaf}" if module in modules else target


def entries(header: GgufHeader, geometry: Geometry) -> Iterator[FileTensor]:
    """Every tensor of a file, with the weight that it is if the architecture has a mapping for its name."""
    architecture = str(header.metadata.get("general.architecture"))
    drafting = {number[1] for name in header.tensors if (number := NEXTN.match(name))}
    shapes = {weight.name: weight.shape for layer in geometry.layers for weight in layer.weights}
    for tensor in header.tensors.values():
        target = parameter(architecture, tensor.name, drafting)
        leaf = (target or "").removeprefix("model.layers.").partition(".")[2]
        shape = _as_expected(tensor, shapes.get(leaf))
        if architecture in INPUTS_FIRST and len(shape) == 3:
            shape = (shape[0], shape[2], shape[1])
        known = tensor.type_id < len(NAMES) and NAMES[tensor.type_id]
        dtype = known or f"ggml type {tensor.type_id}"
        yield FileTensor(tensor.name, target, shape, dtype, tensor.nbytes or 0)


def parameter(architecture: str, name: str, drafting: Collection[str] = ()) -> str | None:
    """The name of a tensor in transformers, if known. ``drafting``: numbers of the multi-token-prediction blocks."""
    if name in TABLES:
        return TABLES[name]
    block = BLOCK.fullmatch(name)
    if block is None:
        return None
    number, rest = block.groups()
    if number in drafting:
        return f"mtp.{number}.{rest}"
    whole = WHOLE.get(architecture, {}).get(rest)
    if whole is None:
        module, _, leaf = rest.rpartition(".")
        mapped = MODULES.get(architecture, {}).get(module)
        whole = f"{mapped}.{leaf}" if mapped and leaf in ("weight", "bias") else rest
    return f"model.layers.{number}.{whole}"


def _as_expected(tensor: GgufTensor, wanted: tuple[int, ...] | None) -> tuple[int, ...]:
    """The tensor's shape as transformers has it: writers of GGUF files may drop dimensions of size 1."""
    squeezed = [size for size in tensor.shape if size != 1]
    if wanted is not None and squeezed == [size for size in wanted if size != 1]:
        return wanted
    return tensor.shape


def from_gguf(geometry: Geometry, header: GgufHeader) -> Stored:
    """Assign a GGUF file's tensors to the weights of ``geometry``. ProfileError for an unknown type.

    All are counted, also those that ``is_unread`` names.
    """
    weights = []
    for tensor in header.tensors.values():
        nbytes = tensor.nbytes
        if nbytes is None or tensor.type_id not in TYPE_NAMES:
            raise ProfileError(
                f"{printable(tensor.name, 80)} is stored in ggml type {tensor.type_id}, which is not supported"
            )
        weight, layer = _placed(geometry, tensor)
        weights.append(StoredWeight(weight, layer, TYPE_NAMES[tensor.type_id], nbytes))
    types = {item.scheme for item in weights if item.weight.role != "vector" and not is_unread(item.weight, None)}
    return Stored(
        quant=file_type(header),
        dtype=None,
        packed=not types <= PLAIN,
        weights=tuple(weights),
        nbytes=sum(weight.nbytes for weight in weights),
        gguf=True,
    )


def is_unread(weight: Weight, layer: Layer | None) -> bool:
    """Whether a step of llama.cpp reads nothing of a weight that it has loaded."""
    if weight.name.startswith(DRAFTING):
        return True
    return layer is not None and layer.shares_kv and UNREAD.match(weight.name) is not None


def _placed(geometry: Geometry, tensor: GgufTensor) -> tuple[Weight, int | None]:
    """The weight that a tensor belongs to, and its layer; no layer for one that the decoder does not have."""
    match = BLOCK_LINES.fullmatch(tensor.name)
    if match is None:
        role, name = OUTSIDE.get(tensor.name, (_role(tensor.name, tensor.shape), tensor.name))
        return Weight(role, tensor.shape, name), None
    number = int(match[1])
    if number >= len(geometry.layers):
        return Weight(_role(match[2], tensor.shape), tensor.shape, f"{DRAFTING}{tensor.name}"), None
    attention = isinstance(geometry.layers[number].mixer, Attention)
    return Weight(_role(match[2], tensor.shape), tensor.shape, _place(match[2], attention)), number


def _role(name: str, shape: tuple[int, ...]) -> Role:
    if "_exps" in name and len(shape) > 1:
        return "experts"
    if "conv1d" in name:
        return "conv"
    if len(shape) < 2 or not name.endswith(".weight"):
        return "vector"
    return "router" if "ffn_gate_inp" in name and "shexp" not in name else "linear"


def _place(name: str, attention: bool) -> str:
    """``self_attn.attn_q.weight``: the name within the module that the cost model counts it in."""
    if name.startswith(("attn_", "ssm_")):
        return f"{'self_attn' if attention else 'linear_attn'}.{name}"
    return f"mlp.{name}" if name.startswith("ffn_") else name


def file_type(header: GgufHeader) -> str:
    """The file's quantization: the mix that it states if its layers agree, else the type of nearly all weights."""
    sizes: Counter[str] = Counter()
    for tensor in header.tensors.values():
        if len(tensor.shape) >= 2 and tensor.name.endswith(".weight") and BLOCK_LINES.fullmatch(tensor.name):
            sizes[TYPE_NAMES.get(tensor.type_id, "unknown")] += tensor.parameters
    stated = FILE_TYPES.get(number) if isinstance(number := header.metadata.get("general.file_type"), int) else None
    if stated is not None and _agrees(stated[1], sizes):
        return stated[0]
    if not sizes:
        return "unknown"
    most, size = sizes.most_common(1)[0]
    return most if size >= MIN_MAIN_SHARE * sizes.total() else MIXED


def _agrees(types: frozenset[str], sizes: Counter[str]) -> bool:
    """Whether the types of the layers' matrices fit a mix of ``types``. A few unquantized ones fit any mix."""
    allowed = types | {FALLBACK[name] for name in types if name in FALLBACK}
    small = (1 - MIN_MAIN_SHARE) * sizes.total()
    odd = {name for name in sizes if name not in allowed}
    return odd <= PLAIN and sum(sizes[name] for name in odd) <= small and any(name in allowed for name in sizes)
