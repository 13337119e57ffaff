"""How a checkpoint is stored: its own quantization and its bytes, from headers and from what its config says."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from fakes import stored as made
from fakes import tiny, weights

from profiler.errors import ProfileError
from profiler.models import families, safetensors
from profiler.models import scheme as schemes
from profiler.models.checkpoint import Checkpoint
from profiler.models.resolve import resolve
from profiler.models.stored import Stored, from_safetensors

QUANTS = sorted(made.CONFIGS)


def checkpoint(path: Path) -> Checkpoint:
    found = resolve(str(path)).checkpoint
    assert found is not None
    return found


def stored(path: Path) -> Stored:
    return checkpoint(path).stored


@pytest.mark.parametrize("quant", QUANTS)
def test_a_folder_states_its_own_quantization_and_the_sum_of_its_headers(quant: str, tmp_path: Path) -> None:
    whole = checkpoint(made.folder(tmp_path / "m", quant))
    found = whole.stored
    assert found.quant == quant
    assert found.nbytes == made.total(made.tensors(quant))
    assert found.exact and not whole.account.left
    if quant != "mxfp4":  # nobody stores the linear layers of a Llama so, and transformers would not read them
        assert found.trouble is None


@pytest.mark.parametrize("kind", made.GGUF)
def test_a_gguf_file_states_its_own_quantization_and_the_sum_of_its_header(kind: str, tmp_path: Path) -> None:
    """``general.file_type`` says f16 in all of them: the tensors decide."""
    found = stored(made.gguf(tmp_path / "m.gguf", kind))
    assert found.quant == kind
    assert found.nbytes == sum(made.gguf_size(*entry) for entry in made.gguf_tensors(kind).values())
    assert sum(weight.nbytes for weight in found.weights) == found.nbytes


@pytest.mark.parametrize(
    ("file_type", "down", "name"),
    [
        (15, "q6_k", "q4_k_m"),
        (15, "q8_0", "q4_k_m"),
        (14, "q5_k", "q4_k_s"),
        (15, "iq4_xs", "mixed"),
        (15, "q3_k", "mixed"),
    ],
)
def test_a_mix_has_the_name_that_the_file_states_only_where_its_layers_are_that_mix(
    file_type: int, down: str, name: str, tmp_path: Path
) -> None:
    """A third party's dynamic mix keeps ``general.file_type`` and puts other types into some layers."""
    held = made.gguf_tensors("q4_k")
    held |= {key: (down, shape) for key, (_, shape) in held.items() if "ffn_down" in key}
    assert stored(made.gguf(tmp_path / "m.gguf", found=held, file_type=file_type)).quant == name


def test_what_bitsandbytes_writes_for_reading_alone_takes_no_memory(tmp_path: Path) -> None:
    """170 bytes of JSON become one offset of 4 bytes when a weight with nested scales is loaded."""
    found = stored(made.folder(tmp_path / "m", "nf4-dq"))
    linears = made.LAYERS * len(made.LINEAR)
    assert found.nbytes - sum(weight.nbytes for weight in found.weights) == linears * (170 - 4)


def test_a_tower_and_a_prediction_layer_are_no_part_of_the_decoder(tmp_path: Path) -> None:
    held = made.tensors("bf16") | {
        "vision_tower.layers.0.self_attn.q_proj.weight": ("BF16", (64, 64)),
        "mtp.layers.0.mlp.up_proj.weight": ("BF16", (64, 64)),
    }
    whole = checkpoint(made.folder(tmp_path / "m", "bf16", found=held))
    assert whole.stored.nbytes == made.total(made.tensors("bf16"))
    assert [(left.why, left.nbytes) for left in whole.account.left] == [
        ("vision tower", 2 * 64 * 64),
        ("multi-token prediction", 2 * 64 * 64),
    ]


def test_a_layer_whose_number_has_a_zero_in_front_is_no_layer_of_the_model(tmp_path: Path) -> None:
    beside = {"model.layers.01.self_attn.q_proj.weight": ("BF16", made.LINEAR["self_attn.q_proj"])}
    whole = checkpoint(made.folder(tmp_path / "m", "bf16", found=made.tensors("bf16") | beside))
    assert whole.stored.nbytes == made.total(made.tensors("bf16"))
    assert sum(left.nbytes for left in whole.account.left) == made.total(beside)


@pytest.mark.parametrize("prefix", ["model.language_model.", "language_model.model.", ""])
def test_the_decoder_of_a_multimodal_checkpoint_is_found_under_its_other_names(prefix: str, tmp_path: Path) -> None:
    held = {
        f"{prefix}{name.removeprefix('model.')}" if name.startswith("model.") else name: entry
        for name, entry in made.tensors("awq").items()
    }
    assert stored(made.folder(tmp_path / "m", "awq", found=held)).exact


WRONG: dict[str, tuple[str, dict[str, Any], str]] = {
    "config of another method": ("gptq", made.CONFIGS["fp8"], "which is not how transformers reads fp8"),
    "config says awq, weights are plain": ("bf16", made.CONFIGS["awq"], "no tensor of the decoder is quantized"),
}


@pytest.mark.parametrize("quant", ["fp8", "int8", "gptq"])  # the last as AutoGPTQ has it, with a file of its own
def test_codes_that_no_config_explains_are_refused(quant: str, tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match=r"stored as codes, but config\.json has no quantization_config"):
        resolve(str(made.folder(tmp_path / "m", quant, config={})))


@pytest.mark.parametrize("case", WRONG)
def test_codes_that_the_config_explains_wrongly_are_told_apart_from_values(case: str, tmp_path: Path) -> None:
    quant, config, words = WRONG[case]
    found = stored(made.folder(tmp_path / "m", quant, config=config))
    assert found.trouble is not None and words in found.trouble
    assert found.nbytes == made.total(made.tensors(quant))  # whatever they mean, they weigh the same


@pytest.mark.parametrize(
    ("quant", "old", "new"),
    [("fp8", "weight_scale_inv", "weight_scale"), ("awq", "scales", "scale"), ("int8", "SCB", "scb")],
)
def test_scales_under_a_name_that_transformers_does_not_read_are_trouble(
    quant: str, old: str, new: str, tmp_path: Path
) -> None:
    """vLLM and others store fp8 with ``weight_scale``; transformers would leave it out and take codes for values."""
    held = {
        name.removesuffix(old) + new if name.endswith(f".{old}") else name: entry
        for name, entry in made.tensors(quant).items()
    }
    found = stored(made.folder(tmp_path / "m", quant, found=held))
    assert found.trouble is not None and new in found.trouble


def test_blocks_that_transformers_would_cut_in_the_wrong_places_are_seen(tmp_path: Path) -> None:
    """192 rows in blocks of 128 have two rows of scales; 192 ÷ 2 is 96."""
    fp8 = made.CONFIGS["fp8"]["quantization_config"] | {"weight_block_size": [192, 128]}
    held = made.tensors("fp8")
    for name, (dtype, shape) in list(held.items()):
        if name.endswith("weight_scale_inv"):
            rows = held[name.removesuffix("_scale_inv")][1][0]
            held[name] = (dtype, (-(-rows // 192), shape[1]))
    found = stored(made.folder(tmp_path / "m", "fp8", found=held, config={"quantization_config": fp8}))
    assert found.trouble is None
    assert found.uneven is not None and "192 × 128" in found.uneven
    assert stored(made.folder(tmp_path / "even", "fp8")).uneven is None


def test_scales_for_blocks_of_another_size_than_the_config_states_are_trouble(tmp_path: Path) -> None:
    fp8 = made.CONFIGS["fp8"]["quantization_config"] | {"weight_block_size": [64, 64]}
    found = stored(made.folder(tmp_path / "m", "fp8", config={"quantization_config": fp8}))
    assert found.trouble is not None
    assert "weight_block_size of 64 × 64 needs" in found.trouble


def test_codes_of_compressed_tensors_without_a_scale_are_not_taken_for_values(tmp_path: Path) -> None:
    held = made.tensors("compressed-tensors")
    del held["model.layers.1.mlp.up_proj.weight_scale"]
    found = stored(made.folder(tmp_path / "m", "compressed-tensors", found=held))
    assert found.trouble is not None
    assert found.trouble.startswith("model.layers.1.mlp.up_proj.weight_packed lacks the part weight_scale")


def test_a_packed_weight_that_states_another_shape_than_the_model_has_is_trouble(tmp_path: Path) -> None:
    path = made.folder(tmp_path / "m", "compressed-tensors")
    assert stored(path).trouble is None
    tensor = safetensors.verify(path)["model.layers.0.mlp.up_proj.weight_shape"]
    with (path / "model.safetensors").open("r+b") as file:
        file.seek(tensor.data + tensor.begin)
        file.write((128).to_bytes(8, "little"))
    said = stored(path).trouble
    assert said is not None and said.startswith("model.layers.0.mlp.up_proj.weight_shape says 128 × ")


def test_experts_stored_one_by_one_are_the_fused_weight_of_transformers(tmp_path: Path) -> None:
    config = {
        "model_type": "qwen3_5_moe_text", "num_hidden_layers": 1, "hidden_size": 64, "vocab_size": 128,
        "head_dim": 16,
        "num_attention_heads": 4, "num_key_value_heads": 2, "num_experts": 2, "num_experts_per_tok": 1,
        "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32, "layer_types": ["full_attention"],
        "quantization_config": made.CONFIGS["fp8"]["quantization_config"],
    }  # fmt: skip
    place = "model.layers.0.mlp.experts"
    held: made.Tensors = {}
    for n in range(2):
        for part, shape in (("gate_proj", (32, 64)), ("up_proj", (32, 64)), ("down_proj", (64, 32))):
            held[f"{place}.{n}.{part}.weight"] = ("F8_E4M3", shape)
            held[f"{place}.{n}.{part}.weight_scale_inv"] = ("F32", (1, 1))
    path = made.folder(tmp_path / "m", "fp8", found=held, config=config)
    geometry = families.geometry(config)
    found = from_safetensors(geometry, safetensors.verify(path), schemes.of(config))  # other weights are missing
    experts = {weight.weight.name: weight.nbytes for weight in found.weights}
    assert experts == {"mlp.experts.gate_up_proj": 4 * (32 * 64 + 4), "mlp.experts.down_proj": 2 * (64 * 32 + 4)}
    assert found.missing > 0 and not found.exact


def test_experts_of_two_number_types_are_values_and_no_trouble(tmp_path: Path) -> None:
    raw = tiny.CONFIGS["qwen3.5-moe"]
    shapes = weights.described(raw)
    fused = "model.layers.0.mlp.experts.down_proj"
    count, rows, columns = shapes.pop(fused)
    parts = [f"model.layers.0.mlp.experts.{index}.down_proj.weight" for index in range(count)]
    shapes |= {part: [rows, columns] for part in parts}
    found = stored(weights.folder(tmp_path / "m", raw, shapes, dtype={parts[0]: "BF16"}))
    (down,) = [each for each in found.weights if each.layer == 0 and each.weight.name == "mlp.experts.down_proj"]
    assert (found.trouble, found.packed, found.quant, down.scheme) == (None, False, "fp32", "fp32")
    assert down.nbytes == (4 * (count - 1) + 2) * rows * columns


def test_a_gguf_type_that_is_not_known_is_refused_by_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = made.gguf(tmp_path / "m.gguf", "q8_0")
    content = path.read_bytes()
    name = b"blk.2.ffn_up.weight"
    place = content.index(name) + len(name) + 4 + 2 * 8
    path.write_bytes(content[:place] + (77).to_bytes(4, "little") + content[place + 4 :])
    with pytest.raises(ProfileError, match=r"blk.2.ffn_up.weight is stored in ggml type 77"):
        resolve(str(path))


def test_a_config_alone_has_a_scheme_and_no_headers(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(made.LLAMA | made.CONFIGS["awq"]))
    model = resolve(str(tmp_path))
    assert model.stored is None
    assert model.cautions == ("the checkpoint's weights are stored quantized (awq)",)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"bnb_4bit_quant_type": "fp4"}, "config.json says fp4-dq .* but the file holds nf4-dq"),
        ({"bnb_4bit_use_double_quant": False}, "config.json says nf4 .* but the file holds nf4-dq"),
        ({"load_in_8bit": True}, "both load_in_4bit and load_in_8bit"),
        ({"llm_int8_skip_modules": ["q_proj"]}, r"q_proj is not quantized \(llm_int8_skip_modules\)"),
    ],
)
def test_a_bitsandbytes_config_that_its_tensors_contradict_is_trouble(
    change: dict[str, Any], words: str, tmp_path: Path
) -> None:
    """transformers takes the levels from the file, so the row would bear the name of another quantization."""
    said = made.CONFIGS["nf4-dq"]["quantization_config"] | change
    found = stored(made.folder(tmp_path / "m", "nf4-dq", config={"quantization_config": said}))
    assert found.trouble is not None and re.search(words, found.trouble)
    assert stored(made.folder(tmp_path / "right", "nf4-dq")).trouble is None


def test_missing_weights_are_looked_for_in_a_file_that_the_index_does_not_name(tmp_path: Path) -> None:
    whole = made.tensors("bf16")
    first = dict(list(whole.items())[:20])
    path = made.folder(tmp_path / "m", "bf16", found=first)
    (path / "model.safetensors").rename(path / "model-00001-of-00002.safetensors")
    index = {"weight_map": dict.fromkeys(first, "model-00001-of-00002.safetensors")}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ProfileError, match="are not in the file") as caught:
        resolve(str(path))
    assert "beside" not in caught.value.message
    made.folder(path, "bf16", found={n: e for n, e in whole.items() if n not in first})
    (path / "model.safetensors").rename(path / "model-00002-of-00002.safetensors")
    with pytest.raises(ProfileError) as caught:
        resolve(str(path))
    assert "model-00002-of-00002.safetensors beside is not read, because of model.safetensors.index.json" in (
        caught.value.message
    )


@pytest.mark.parametrize("quant", ["bf16", "int8", "fp8"])
def test_a_tied_model_that_is_stored_by_its_head_alone_lacks_nothing(quant: str, tmp_path: Path) -> None:
    held = {name: entry for name, entry in made.tensors(quant).items() if name != "model.embed_tokens.weight"}
    config = made.CONFIGS[quant] | {"tie_word_embeddings": True}
    found = stored(made.folder(tmp_path / "m", quant, found=held, config=config))
    assert (found.trouble, found.exact, found.nbytes) == (None, True, made.total(held))


BNB = ("int8", "nf4-dq")


@pytest.mark.parametrize("quant", BNB)
@pytest.mark.parametrize("left_out", [None, [], ["mlp.up"], ["model.layers.1.mlp.up_proj"]])
def test_a_plain_weight_that_no_config_leaves_out_is_trouble_for_bitsandbytes(
    left_out: list[str] | None, quant: str, tmp_path: Path
) -> None:
    """transformers would put it into a module for codes, and fail in the first pass."""
    held = {n: e for n, e in made.tensors(quant).items() if not n.startswith("model.layers.1.mlp.up_proj.")}
    held["model.layers.1.mlp.up_proj.weight"] = ("BF16", made.LINEAR["mlp.up_proj"])
    named = None if left_out is None else [*left_out, "lm_head"]
    said = made.CONFIGS[quant]["quantization_config"] | {"llm_int8_skip_modules": named}
    trouble = stored(made.folder(tmp_path / "m", quant, found=held, config={"quantization_config": said})).trouble
    if left_out and left_out[0].endswith("up_proj"):
        assert trouble is None
    else:
        assert trouble is not None
        assert trouble.startswith("model.layers.1.mlp.up_proj is not quantized, but config.json does not say so")


@pytest.mark.parametrize("quant", BNB)
def test_a_plain_head_must_be_left_out_once_there_is_a_list(quant: str, tmp_path: Path) -> None:
    """transformers leaves the head out by itself only where the config names no module at all."""
    said = made.CONFIGS[quant]["quantization_config"] | {"llm_int8_skip_modules": ["vision_tower"]}
    trouble = stored(made.folder(tmp_path / "m", quant, config={"quantization_config": said})).trouble
    assert trouble is not None and trouble.startswith("lm_head is not quantized")


UP = "model.layers.1.mlp.up_proj"
SIZES: dict[str, tuple[str, str, tuple[str, tuple[int, ...]], str]] = {
    "rows of int8": ("int8", f"{UP}.weight", ("I8", (256, 256)), "is 256 × 256, and the model's weight is 512 × 256"),
    "scales of int8": ("int8", f"{UP}.SCB", ("F32", (256,)), "has 256 scales, and the weight has 512 rows"),
    "int8 as uint8": ("int8", f"{UP}.weight", ("U8", (512, 256)), "is U8, which is not how transformers reads int8"),
    "fp8 as int8": ("fp8", f"{UP}.weight", ("I8", (512, 256)), "is I8, which is not how transformers reads fp8"),
    "codes of nf4": ("nf4-dq", f"{UP}.weight", ("U8", (32768, 1)), "has 65,536 codes of 4 bits"),
    "codes of awq": ("awq", f"{UP}.qweight", ("I32", (256, 32)), "has 65,536 codes of 4 bits"),
    "codes of gptq": ("gptq", f"{UP}.qweight", ("I32", (32, 256)), "has 65,536 codes of 4 bits"),
}


@pytest.mark.parametrize("case", SIZES)
def test_codes_of_another_size_or_type_than_the_weight_are_trouble_before_loading(case: str, tmp_path: Path) -> None:
    quant, name, entry, words = SIZES[case]
    held = made.tensors(quant)
    assert name in held
    found = stored(made.folder(tmp_path / "m", quant, found=held | {name: entry}))
    assert found.trouble is not None and found.trouble.startswith(name) and words in found.trouble


@pytest.mark.parametrize("quant", ["int8", "nf4-dq", "awq", "fp8"])
def test_a_quantized_checkpoint_is_held_to_the_shapes_of_its_plain_weights(quant: str, tmp_path: Path) -> None:
    grown = {"model.embed_tokens.weight": ("BF16", (made.VOCAB + 8, made.HIDDEN))}
    with pytest.raises(ProfileError, match=r"model.embed_tokens.weight is \[1032, 256\] in the weights"):
        resolve(str(made.folder(tmp_path / "m", quant, found=made.tensors(quant) | grown)))


@pytest.mark.parametrize("quant", ["int8", "nf4-dq", "awq", "fp8"])
def test_a_weight_that_a_quantized_checkpoint_lacks_is_named(quant: str, tmp_path: Path) -> None:
    """Also where the file holds tensors that are not the model's: those used to excuse it."""
    held = {n: e for n, e in made.tensors(quant).items() if not n.startswith(f"{UP}.")}
    held["vision_tower.patch.weight"] = ("BF16", (8,))
    found = stored(made.folder(tmp_path / "m", quant, found=held))
    assert found.trouble == f"a weight of the model is not in the file: {UP}.weight"


@pytest.mark.parametrize(
    ("words", "left_out"),
    [
        (["mlp.gate"], 0),
        (["mlp.gate_proj"], made.LAYERS),
        (["model.layers.1"], 1),
        (["model.language_model.layers.1", "language_model.model.layers.2", "lm_head"], 2),
        (["model.layers.*.mlp"], made.LAYERS),
    ],
)
def test_a_config_leaves_out_the_modules_that_transformers_would(words: list[str], left_out: int) -> None:
    """A name stands for whole steps of a path, and a multimodal model's modules have other names in its text part."""
    scheme = schemes.of({"quantization_config": {"quant_method": "fp8", "modules_to_not_convert": words}})
    assert scheme is not None
    paths = [f"model.layers.{n}.mlp.gate_proj" for n in (*range(made.LAYERS - 1), 10)]
    assert sum(scheme.leaves_out(path) for path in paths) == left_out


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"vocab_size": 512}, "llama.vocab_size says 512 words, but token_embd.weight has"),
        ({"attention.value_length": 32}, "llama.attention.value_length is 32"),
        (
            {"attention.sliding_window": 16},
            "llama.attention.sliding_window is 16: llama with sliding windows is not supported",
        ),
    ],
)
def test_metadata_of_a_gguf_that_its_tensors_or_our_rules_contradict_is_refused(
    keys: dict[str, int], words: str, tmp_path: Path
) -> None:
    with pytest.raises(ProfileError, match=words):
        resolve(str(made.gguf(tmp_path / "m.gguf", **keys)))


@pytest.mark.parametrize("kind", ["f64", "i8"])
def test_a_gguf_weight_in_a_number_type_that_nothing_multiplies_is_refused(kind: str, tmp_path: Path) -> None:
    held = made.gguf_tensors("f16")
    held["blk.0.ffn_up.weight"] = (kind, held["blk.0.ffn_up.weight"][1])
    with pytest.raises(ProfileError, match=f"blk.0.ffn_up.weight is {kind.upper()}") as caught:
        resolve(str(made.gguf(tmp_path / "m.gguf", found=held)))
    assert caught.value.hint == "Convert or quantize the model again."
