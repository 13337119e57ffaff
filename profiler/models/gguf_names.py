"""The tensors of a GGUF file by the names that transformers has for them.

Names of tensors: ``gguf-py/gguf/constants.py`` of llama.cpp. What they are in transformers: its own
``integrations/gguf/gguf_conversion_mapping.py`` and ``gguf-py/gguf/tensor_mapping.py``.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping

from profiler.models.account import Description, Entry
from profiler.models.geometry import Geometry
from profiler.models.gguf_file import GgufHeader, GgufTensor

BLOCK = re.compile(r"blk\.(\d+)\.(.+)")
NEXTN = re.compile(r"blk\.(\d+)\.nextn\.")

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
WHOLE = {  # names without a module and a leaf that keep their meaning under ``.weight`` or ``.scale``
    "gemma4": {
        "layer_output_scale.weight": "layer_scalar",
        "ffn_gate_inp.scale": "router.scale",
        "ffn_down_exps.scale": "router.per_expert_scale",
        "ffn_gate_up_exps.weight": "experts.gate_up_proj",
        "ffn_down_exps.weight": "experts.down_proj",
    },
    "qwen35": {"ssm_a": "linear_attn.A_log", "ssm_dt.bias": "linear_attn.dt_bias"},
    "qwen35moe": {
        "ssm_a": "linear_attn.A_log",
        "ssm_dt.bias": "linear_attn.dt_bias",
        "ffn_gate_exps.weight": "mlp.experts.gate_up_proj",
        "ffn_up_exps.weight": "mlp.experts.gate_up_proj",
        "ffn_gate_up_exps.weight": "mlp.experts.gate_up_proj",
        "ffn_down_exps.weight": "mlp.experts.down_proj",
    },
}
MODULES: Mapping[str, Mapping[str, str]] = {
    "llama": PROJECTIONS | TWO_NORMS,
    "qwen3": PROJECTIONS | TWO_NORMS,
    "gemma3": PROJECTIONS | FOUR_NORMS,
    "gemma4": PROJECTIONS | FOUR_NORMS | GEMMA4,
    "qwen35": PROJECTIONS | QWEN35,
    "qwen35moe": PROJECTIONS | QWEN35,
}
NAMES = (  # of ggml_type, by number (ggml.h); empty for those that were taken out
    *("F32", "F16", "Q4_0", "Q4_1", "", "", "Q5_0", "Q5_1", "Q8_0", "Q8_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"),
    *("Q8_K", "IQ2_XXS", "IQ2_XS", "IQ3_XXS", "IQ1_S", "IQ4_NL", "IQ3_S", "IQ2_S", "IQ4_XS", "I8", "I16", "I32"),
    *("I64", "F64", "IQ1_M", "BF16", "", "", "", "TQ1_0", "TQ2_0", "", "", "", "MXFP4", "NVFP4", "Q1_0"),
)


def description(header: GgufHeader) -> Description:
    """Words for a file whose metadata and tensors do not agree."""
    architecture = str(header.metadata.get("general.architecture"))
    hint = "The file was not converted in full, or it was edited: convert or download it again."
    return Description(
        "the file's metadata", f"{architecture}.block_count", hint, lambda name: own_name(architecture, name)
    )


def own_name(architecture: str, target: str) -> str:
    """The file's name of a weight, from that of transformers; as it is where the architecture has no rule."""
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


def entries(header: GgufHeader, geometry: Geometry) -> Iterator[Entry]:
    """Every tensor of a file, with the weight that it is where the architecture has a rule for its name."""
    architecture = str(header.metadata.get("general.architecture"))
    drafting = {number[1] for name in header.tensors if (number := NEXTN.match(name))}
    shapes = {weight.name: weight.shape for layer in geometry.layers for weight in layer.weights}
    for tensor in header.tensors.values():
        target = parameter(architecture, tensor.name, drafting)
        leaf = (target or "").removeprefix("model.layers.").partition(".")[2]
        shape = _as_expected(tensor, shapes.get(leaf))
        known = tensor.type_id < len(NAMES) and NAMES[tensor.type_id]
        dtype = known or f"ggml type {tensor.type_id}"
        yield Entry(tensor.name, target, shape, dtype, tensor.nbytes or 0)


def parameter(architecture: str, name: str, drafting: Collection[str] = ()) -> str | None:
    """The name of a tensor in transformers, if there is a rule. ``drafting``: blocks that predict more tokens."""
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
    """Dimensions of one are left out of a file as its writer likes."""
    squeezed = [size for size in tensor.shape if size != 1]
    if wanted is not None and squeezed == [size for size in wanted if size != 1]:
        return wanted
    return tensor.shape
