"""Every tensor of a checkpoint is taken by the model, listed as unused, or a reason to refuse it: without loading."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from fakes import tiny, weights

from profiler.case import BESIDE, UNUSED
from profiler.errors import ProfileError
from profiler.models import families
from profiler.models.account import FileTensor, account
from profiler.models.resolve import Model, resolve
from profiler.units import printable

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 32,
    "tie_word_embeddings": False,
}
SHAPES = weights.described(LLAMA)
HEAD, TABLE = "lm_head.weight", "model.embed_tokens.weight"
QUERY = "model.layers.1.self_attn.q_proj.weight"


def model(tmp_path: Path, shapes: dict[str, list[int]], raw: dict[str, Any] = LLAMA, **how: Any) -> Model:
    return resolve(str(weights.folder(tmp_path / "m", raw, shapes, **how)))


def refused(tmp_path: Path, shapes: dict[str, list[int]], raw: dict[str, Any] = LLAMA, **how: Any) -> ProfileError:
    with pytest.raises(ProfileError) as caught:
        model(tmp_path, shapes, raw, **how)
    assert caught.value.message.startswith("m: ") and "\n" not in caught.value.message
    return caught.value


def unused(found: Model) -> list[dict[str, Any]]:
    assert found.checkpoint is not None
    return found.checkpoint.to_json()["unused"]


@pytest.mark.parametrize("name", sorted(tiny.CONFIGS))
def test_a_checkpoint_as_transformers_saves_it_is_taken_whole(tmp_path: Path, name: str) -> None:
    raw = tiny.CONFIGS[name]
    found = model(tmp_path, weights.described(raw), raw)
    assert found.checkpoint is not None and found.cautions == ()
    content = found.checkpoint.to_json()
    assert content["parameters"] == found.geometry.parameters
    assert content["bytes"] == 4 * found.geometry.parameters == content["dtypes"]["F32"]
    assert content["unused"] == []


def test_layers_that_the_config_does_not_count_are_refused_by_name_number_and_size(tmp_path: Path) -> None:
    error = refused(tmp_path, SHAPES, LLAMA | {"num_hidden_layers": 1})
    assert error.message.startswith(
        "m: config.json describes 1 layer (num_hidden_layers), but the file also holds layer 1"
    )
    assert "9 tensors, 120 KiB (model.layers.1." in error.message


def test_layers_that_the_file_does_not_hold_are_refused_by_name(tmp_path: Path) -> None:
    error = refused(tmp_path, SHAPES, LLAMA | {"num_hidden_layers": 3})
    assert "9 of the 30 weights that config.json describes are not in the file: model.layers.2." in error.message


@pytest.mark.parametrize("name", [TABLE, HEAD, QUERY, "model.norm.weight"])
def test_a_weight_of_another_shape_is_refused(tmp_path: Path, name: str) -> None:
    grown = [SHAPES[name][0] + 8, *SHAPES[name][1:]]
    error = refused(tmp_path, SHAPES | {name: grown})
    assert error.message == f"m: {name} is {grown} in the weights, {SHAPES[name]} in config.json"


def test_a_missing_head_names_the_field_that_ties_it(tmp_path: Path) -> None:
    error = refused(tmp_path, {name: shape for name, shape in SHAPES.items() if name != HEAD})
    assert error.message == f"m: a weight that config.json describes is not in the file: {HEAD}"
    assert error.hint is not None and '"tie_word_embeddings": true' in error.hint


TIED = LLAMA | {"tie_word_embeddings": True}


def test_a_tied_head_that_is_stored_again_is_a_caution_with_its_bytes(tmp_path: Path) -> None:
    found = model(tmp_path, SHAPES, TIED)
    (left,) = unused(found)
    assert (left["why"], left["count"], left["bytes"]) == ("a second copy of the tied embedding", 1, 4 * 32 * 64)
    assert left["names"] == [HEAD]
    assert [note.code for note in found.notes] == [UNUSED]


def test_a_tied_head_of_other_values_is_refused(tmp_path: Path) -> None:
    last = {name: shape for name, shape in SHAPES.items() if name != HEAD} | {HEAD: SHAPES[HEAD]}
    path = weights.folder(tmp_path / "m", TIED, last)
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\1")
    with pytest.raises(ProfileError) as caught:
        resolve(str(path))
    said = caught.value.message
    assert "says that the output head is the input embedding (tie_word_embeddings), but the file holds both" in said
    assert f"{HEAD} (F32 [32, 64], 8.00 KiB) and {TABLE} (F32 [32, 64], 8.00 KiB) with different values" in said


def test_two_tensors_for_one_weight_are_refused_by_both_names(tmp_path: Path) -> None:
    twice = SHAPES | {TABLE.removeprefix("model."): SHAPES[TABLE]}
    with pytest.raises(ProfileError) as caught:
        model(tmp_path, twice, LLAMA)
    assert f"2 tensors for one weight of the model, {TABLE}: " in caught.value.message
    assert TABLE.removeprefix("model.") in caught.value.message.replace(TABLE, "")


def test_a_tied_model_may_be_stored_by_its_head_alone(tmp_path: Path) -> None:
    found = model(tmp_path, {name: shape for name, shape in SHAPES.items() if name != TABLE}, TIED)
    assert found.checkpoint is not None and found.checkpoint.account.parameters == found.geometry.parameters


@pytest.mark.parametrize(
    ("prefix", "program"),
    [
        ("module.", "DataParallel"),
        ("_orig_mod.", "torch.compile"),
        ("base_model.model.", "PEFT"),
        ("_fsdp_wrapped_module.", "FSDP"),
        ("module._orig_mod.", "torch.compile"),
    ],
)
def test_names_of_a_wrapped_model_are_refused_before_loading(tmp_path: Path, prefix: str, program: str) -> None:
    error = refused(tmp_path, {prefix + name: shape for name, shape in SHAPES.items()})
    assert f"have the names of a model wrapped by {program}: {prefix}" in error.message and error.hint is not None


def test_names_of_another_program_are_shown(tmp_path: Path) -> None:
    error = refused(tmp_path, {"layers.0.attention.wq.weight": [64, 64], "tok_embeddings.weight": [32, 64]})
    assert "no tensor of the file has a name that transformers uses for llama: layers.0.attention.wq" in error.message


def test_a_checkpoint_saved_without_its_head_class_is_the_same_model(tmp_path: Path) -> None:
    found = model(tmp_path, {name.removeprefix("model."): shape for name, shape in SHAPES.items()})
    assert unused(found) == []


@pytest.mark.parametrize("tower", ["model.language_model.{}", "language_model.model.{}"])
def test_a_tower_that_is_left_out_is_told_with_its_bytes(tmp_path: Path, tower: str) -> None:
    text = {name: (tower.format(name.removeprefix("model.")) if name != HEAD else HEAD) for name in SHAPES}
    shapes = {text[name]: shape for name, shape in SHAPES.items()}
    vision = {f"model.visual.blocks.{n}.attn.qkv.weight": [16, 16] for n in range(40)} | {"mtp.fc.weight": [4, 4]}
    found = model(tmp_path, shapes | vision)
    first, second = unused(found)
    assert (first["why"], first["count"], first["bytes"]) == ("vision tower", 40, 40 * 1024)
    assert len(first["names"]) == 32
    assert (second["why"], second["count"], second["bytes"]) == ("multi-token prediction", 1, 64)
    (caution,) = found.cautions
    assert caution.startswith("41 of the file's 62 tensors (40.1 KiB of ") and "model.visual.blocks.0" in caution


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("model.layers.0.self_attn.q_proj.bias", "not part of this model"),
        ("model.layers.0.self_attn.q_norm.weight", "not part of this model"),
        (f"model.layers.{'9' * 6000}.self_attn.k_proj.weight", "not part of this model"),
        ("score.weight", "not part of this model"),
        ("model.layers.0.self_attn.q_proj.lora_A.weight", "an adapter, which is not applied"),
        ("model.layers.0.self_attn.rotary_emb.inv_freq", "rotary frequencies, which are computed"),
    ],
)
def test_a_tensor_that_no_weight_takes_is_told(tmp_path: Path, name: str, why: str) -> None:
    found = model(tmp_path, SHAPES | {name: [8]})
    assert [(left["why"], left["names"], left["bytes"]) for left in unused(found)] == [
        (why, [printable(name, 120)], 32)
    ]
    (caution,) = [note.text for note in found.notes if note.code == UNUSED]
    assert printable(name, 60) in caution and "32 B" in caution


@pytest.mark.parametrize("dtype", ["I8", "U8", "F8_E4M3", "F8_E5M2", "I32", "BOOL", "F4"])
def test_codes_that_no_quantization_explains_are_refused(tmp_path: Path, dtype: str) -> None:
    error = refused(tmp_path, SHAPES, dtype={QUERY: dtype})
    assert f"{QUERY} is {dtype}" in error.message and "quantization_config" in error.message


@pytest.mark.parametrize("leaf", ["weight_scale", "weight_scale_inv", "scales", "SCB", "qzeros", "weight.absmax"])
def test_scales_that_no_quantization_explains_are_refused(tmp_path: Path, leaf: str) -> None:
    """Codes may be kept in a number type of values."""
    scale = f"{QUERY.removesuffix('weight')}{leaf}"
    error = refused(tmp_path, SHAPES | {scale: [64]})
    assert scale in error.message and "quantization_config" in error.message


@pytest.mark.parametrize(
    "name",
    [
        "{experts}.3.up_proj.weight_scale",
        "{experts}.3.down_proj.weight_scale_inv",
        "{experts}.gate_up_proj_scales",
        "{experts}.down_proj.scales",
    ],
)
def test_scales_of_experts_that_no_quantization_explains_are_refused(tmp_path: Path, name: str) -> None:
    raw = tiny.CONFIGS["qwen3.5-moe"]
    scale = name.format(experts="model.layers.0.mlp.experts")
    assert scale in refused(tmp_path, weights.described(raw) | {scale: [1]}, raw).message


def test_a_scale_that_is_of_no_weight_is_told_and_not_refused(tmp_path: Path) -> None:
    """vLLM keeps the scales of an 8-bit KV cache so; transformers leaves them out."""
    scale = "model.layers.0.self_attn.k_scale"
    assert [left["names"] for left in unused(model(tmp_path, SHAPES | {scale: [1]}))] == [[scale]]


@pytest.mark.parametrize("dtype", ["F64", "F16", "BF16"])
def test_number_types_are_told_with_their_bytes(tmp_path: Path, dtype: str) -> None:
    found = model(tmp_path, SHAPES, dtype={QUERY: dtype})
    assert found.checkpoint is not None
    size = 64 * 64 * {"F64": 8, "F16": 2, "BF16": 2}[dtype]
    assert found.checkpoint.to_json()["dtypes"][dtype] == size


def test_a_stated_quantization_may_spread_a_weight_over_tensors_but_not_add_layers(tmp_path: Path) -> None:
    spread = {name: shape for name, shape in SHAPES.items() if "proj" not in name}
    for name in SHAPES.keys() - spread.keys():
        module = name.removesuffix(".weight")
        spread |= {f"{module}.qweight": [8, 8], f"{module}.scales": [1, 8], f"{module}.qzeros": [1, 1]}
    raw = LLAMA | {"quantization_config": {"quant_method": "gptq"}}
    assert unused(model(tmp_path, spread, raw)) == []
    assert "also holds layer 1" in refused(tmp_path, spread, raw | {"num_hidden_layers": 1}).message


def one_by_one(kinds: Mapping[str, Callable[[int, int], list[int]]]) -> dict[str, list[int]]:
    """The tensors of a mixture of experts whose experts are stored one by one, each as tensors of these kinds."""
    shapes = weights.described(tiny.CONFIGS["qwen3.5-moe"])
    for name in [name for name in shapes if ".mlp.experts." in name]:
        count, rows, columns = shapes.pop(name)
        down = name.endswith("down_proj")
        parts = {"down_proj": rows} if down else {"gate_proj": rows // 2, "up_proj": rows // 2}
        for index in range(count):
            for part, size in parts.items():
                place = f"{name.rpartition('.')[0]}.{index}.{part}"
                shapes |= {f"{place}.{kind}": shape(size, columns) for kind, shape in kinds.items()}
    return shapes


PLAIN_EXPERTS = {"weight": lambda rows, columns: [rows, columns]}
GPTQ_EXPERTS = {"qweight": lambda rows, columns: [columns // 8, rows], "scales": lambda rows, columns: [1, rows]}
EXPERTS = "model.layers.0.mlp.experts"


def test_experts_one_by_one_are_the_stacked_ones(tmp_path: Path) -> None:
    found = model(tmp_path, one_by_one(PLAIN_EXPERTS), tiny.CONFIGS["qwen3.5-moe"])
    assert unused(found) == []


@pytest.mark.parametrize("quantized", [False, True])
def test_one_bad_expert_is_refused_by_the_headers(tmp_path: Path, quantized: bool) -> None:
    """Loading would fail too, but only after minutes."""
    raw = tiny.CONFIGS["qwen3.5-moe"]
    raw = raw | {"quantization_config": {"quant_method": "gptq", "bits": 4}} if quantized else raw
    kind = "qweight" if quantized else "weight"
    whole = one_by_one(GPTQ_EXPERTS if quantized else PLAIN_EXPERTS)
    assert unused(model(tmp_path, whole, raw)) == []
    for part in ("gate", "up", "down"):
        name = f"{EXPERTS}.2.{part}_proj.{kind}"
        rest = {each: shape for each, shape in whole.items() if not each.startswith(f"{EXPERTS}.2.{part}_proj")}
        assert f"is not in the file: {EXPERTS}.2.{part}_proj." in refused(tmp_path, rest, raw).message
        rows, columns = whole[name]
        other = name.replace(".2.", ".1.")  # as many parameters as before, and another number of rows
        uneven = whole | {name: [rows - 1, columns], other: [rows + 1, columns]}
        assert f"{part}_proj.{kind} is [" in refused(tmp_path, uneven, raw).message
    more = whole | {f"{EXPERTS}.4.up_proj.{kind}": whole[f"{EXPERTS}.3.up_proj.{kind}"]}
    assert "config.json describes 4 experts, not " in refused(tmp_path, more, raw).message


def test_keys_of_layers_that_share_them_are_told(tmp_path: Path) -> None:
    raw = tiny.CONFIGS["gemma4"]
    spare = "model.layers.5.self_attn.k_proj.weight"
    (left,) = unused(model(tmp_path, weights.described(raw) | {spare: [4, 4]}, raw))
    assert left["why"].startswith("keys and values of layers that reuse") and left["names"] == [spare]


def test_a_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m"
    weights.folder(path, LLAMA)
    (path / "model.safetensors").rename(path / "a.safetensors")
    (path / "b.safetensors").write_bytes(weights.content({QUERY: SHAPES[QUERY]}))
    index = {"weight_map": dict.fromkeys(SHAPES, "a.safetensors") | {QUERY: "b.safetensors"}}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ProfileError, match=f"m: {re.escape(QUERY)} is stored twice"):
        resolve(str(path))


def test_files_beside_the_weights_are_told_and_not_the_model(tmp_path: Path) -> None:
    path = weights.folder(tmp_path / "m", LLAMA)
    plain = resolve(str(path))
    (path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    for name in ("adapter_model.safetensors", "consolidated.safetensors"):
        (path / name).write_bytes(weights.content({"a": [256]}))
    found = resolve(str(path))
    assert found.id_for("real") == plain.id_for("real")  # none of them is loaded
    assert [note.code for note in found.notes] == [BESIDE, BESIDE]
    assert found.cautions[0].startswith("the adapter adapter_model.safetensors is not applied")
    assert "consolidated.safetensors (1.0" in found.cautions[1]


def test_an_adapter_alone_is_said_to_be_one(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ProfileError, match="holds only an adapter") as caught:
        resolve(str(tmp_path))
    assert caught.value.hint is not None and "merge_and_unload" in caught.value.hint


def test_code_of_the_checkpoint_that_is_not_run_is_told(tmp_path: Path) -> None:
    raw = LLAMA | {"auto_map": {"AutoModelForCausalLM": "modeling_own.OwnModel"}}
    assert "auto_map" in model(tmp_path, SHAPES, raw).cautions[0]


def test_a_file_that_the_config_names_as_its_weights_is_not_swapped_for_another(tmp_path: Path) -> None:
    error = refused(tmp_path, SHAPES, LLAMA | {"transformers_weights": "other.safetensors"})
    assert "sets transformers_weights to other.safetensors" in error.message


def test_a_name_without_a_rule_is_no_weight() -> None:
    geometry = families.geometry(LLAMA)
    stored = [FileTensor(name, name, tuple(shape), "F32", 1) for name, shape in SHAPES.items()]
    found = account([*stored, FileTensor("strange", None, (3,), "Q4_K", 7)], geometry)
    assert [(left.names, left.nbytes) for left in found.left] == [(("strange",), 7)]
