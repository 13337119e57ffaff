"""Tensors of GGUF files by their names in transformers, and files that hold more or less than their metadata says."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from click.testing import CliRunner
from fakes import tiny, weights

from profiler.cli import main
from profiler.cost import engines
from profiler.errors import ProfileError
from profiler.models import account, families, gguf_config, gguf_tensors
from profiler.models.gguf import GgufHeader, GgufTensor
from profiler.models.resolve import resolve

ARCHITECTURES = {"gemma3": "gemma3", "gemma4": "gemma4", "gemma4-moe": "gemma4", "llama": "llama", "qwen3": "qwen3"}
ARCHITECTURES |= {"qwen3.5": "qwen35", "qwen3.5-moe": "qwen35moe"}
# what llama.cpp's converter renames itself, where its table of names has no entry
CONVERTED = {".linear_attn.A_log": "ssm_a", ".linear_attn.dt_bias": "ssm_dt.bias"}


@cache
def table(architecture: str) -> gguf.TensorNameMap:
    kind = next(kind for kind, word in gguf.MODEL_ARCH_NAMES.items() if word == architecture)
    return gguf.get_tensor_name_map(kind, 8)


def by_llama_cpp(architecture: str, name: str) -> str | None:
    """The name that gguf-py gives a weight of transformers."""
    for ending, own in CONVERTED.items():
        if name.endswith(ending):
            return f"blk.{name.split('.')[2]}.{own}"
    return table(architecture).get_name(name, try_suffixes=(".weight", ".bias"))


@pytest.mark.parametrize("model", sorted(ARCHITECTURES))
def test_names_are_those_of_llama_cpp(model: str) -> None:
    architecture, compared = ARCHITECTURES[model], 0
    for name in weights.described(tiny.CONFIGS[model]):
        own = by_llama_cpp(architecture, name)
        if own is not None:
            own += "" if own.rpartition(".")[2] in ("weight", "bias", "ssm_a") else ".weight"
            assert gguf_tensors.parameter(architecture, own) == name, own
            compared += 1
    assert compared >= 0.9 * len(weights.described(tiny.CONFIGS[model]))


@pytest.mark.parametrize("model", sorted(ARCHITECTURES))
def test_a_name_of_the_file_stands_in_messages(model: str) -> None:
    architecture = ARCHITECTURES[model]
    for name in weights.described(tiny.CONFIGS[model]):
        assert gguf_tensors.parameter(architecture, gguf_tensors.own_name(architecture, name)) == name


def test_what_has_no_rule_is_not_guessed() -> None:
    assert gguf_tensors.parameter("llama", "v.patch_embd.weight") is None
    assert (
        gguf_tensors.parameter("llama", "blk.1.ssm_out.weight") == "model.layers.1.ssm_out.weight"
    )  # no such weight


LLAMA: dict[str, Any] = {
    "block_count": 3,
    "context_length": 128,
    "embedding_length": 32,
    "feed_forward_length": 64,
    "attention.head_count": 2,
    "attention.head_count_kv": 1,
}
RAW = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 16,
    "tie_word_embeddings": True,
}


def file(path: Path, extra: dict[str, tuple[int, ...]] | None = None, drop: str = "", **metadata: Any) -> Path:
    """A Llama of three layers as llama.cpp's own writer stores it."""
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in (LLAMA | metadata).items():
        writer.add_uint32(f"llama.{key}", value)
    shapes = {gguf_tensors.own_name("llama", name): tuple(shape) for name, shape in weights.described(RAW).items()}
    for name, shape in (shapes | (extra or {})).items():
        if not drop or not name.startswith(drop):
            writer.add_tensor(name, np.zeros(shape, np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def refused(path: Path) -> str:
    with pytest.raises(ProfileError) as caught:
        resolve(str(path))
    return caught.value.message


def test_a_whole_file_is_taken_whole(tmp_path: Path) -> None:
    found = resolve(str(file(tmp_path / "m.gguf")))
    assert found.checkpoint is not None and found.cautions == ()
    content = found.checkpoint.to_json()
    assert (content["parameters"], content["dtypes"]) == (found.geometry.parameters, {"F16": content["bytes"]})


def test_metadata_that_understates_its_layers_is_refused(tmp_path: Path) -> None:
    said = refused(file(tmp_path / "m.gguf", block_count=2))
    assert said.startswith(
        "m: the file's metadata describes 2 layers (llama.block_count), but the file also holds layer 2"
    )
    assert "9 tensors, 18.1 KiB (blk.2." in said


def test_metadata_that_overstates_its_layers_is_refused_by_names_of_the_file(tmp_path: Path) -> None:
    said = refused(file(tmp_path / "m.gguf", block_count=4))
    assert "9 of the 38 weights that the file's metadata describes are not in the file: blk.3.attn_q.weight" in said


def test_a_tensor_that_is_cut_out_is_missed(tmp_path: Path) -> None:
    assert "not in the file: blk.1.ffn_up.weight" in refused(file(tmp_path / "m.gguf", drop="blk.1.ffn_up"))


def test_biases_on_some_projections_only_are_refused(tmp_path: Path) -> None:
    """transformers would give the output projection random ones."""
    biases = {
        f"blk.{n}.attn_{part}.bias": (size,) for n in range(3) for part, size in (("q", 32), ("k", 16), ("v", 16))
    }
    said = refused(file(tmp_path / "m.gguf", biases))
    assert "attention with a bias on only some of its four projections is not supported" in said


@pytest.mark.parametrize(
    ("name", "shape", "why"),
    [
        ("rope_freqs.weight", (8,), account.NOT_APPLIED),
        ("rope_factors_long.weight", (8,), account.NOT_APPLIED),
        ("blk.1.attn_q.bias", (32,), "not part of this model"),
        ("blk.0.attn_q_norm.weight", (16,), "not part of this model"),
        ("v.patch_embd.weight", (4, 4), "not part of this model"),
    ],
)
def test_a_tensor_that_no_weight_takes_is_told(tmp_path: Path, name: str, shape: tuple[int, ...], why: str) -> None:
    found = resolve(str(file(tmp_path / "m.gguf", {name: shape})))
    assert found.checkpoint is not None
    (left,) = found.checkpoint.to_json()["unused"]
    assert (left["why"], left["names"]) == (why, [name])
    assert name in found.cautions[0]


def test_a_block_that_drafts_is_left_out_with_its_bytes_whether_the_metadata_says_so_or_not() -> None:
    raw = tiny.CONFIGS["qwen3.5"]
    geometry = families.geometry(raw)
    names = {gguf_tensors.own_name("qwen35", name): tuple(shape) for name, shape in weights.described(raw).items()}
    names |= {"blk.4.attn_norm.weight": (64,), "blk.4.nextn.eh_proj.weight": (64, 128)}
    tensors = {name: GgufTensor(name, shape, 1, 0) for name, shape in names.items()}
    found = account.account(
        gguf_tensors.entries(GgufHeader({"general.architecture": "qwen35"}, tensors), geometry), geometry
    )
    (left,) = found.left
    assert (left.why, left.nbytes) == ("multi-token prediction", 2 * (64 + 64 * 128))


def test_llama_cpp_holds_the_block_that_drafts_and_reads_nothing_of_it() -> None:
    """Its loader creates these tensors with all others (build 9993, src/models/qwen35.cpp); vLLM leaves them out."""
    raw = tiny.CONFIGS["qwen3.5"]
    geometry = families.geometry(raw)
    shapes = {gguf_tensors.own_name("qwen35", name): tuple(shape) for name, shape in weights.described(raw).items()}
    tensors = {name: GgufTensor(name, shape, 1, 0) for name, shape in shapes.items()}
    plain = gguf_tensors.from_gguf(geometry, GgufHeader({}, tensors))
    drafting = {"blk.4.ffn_up.weight": (128, 64), "blk.4.nextn.eh_proj.weight": (64, 128)}
    tensors |= {name: GgufTensor(name, shape, 1, 0) for name, shape in drafting.items()}
    both = gguf_tensors.from_gguf(geometry, GgufHeader({}, tensors))
    assert both.nbytes == plain.nbytes + 2 * 2 * 64 * 128
    with_it, without = (engines.find("llama.cpp").stored(geometry, each, "bf16") for each in (both, plain))
    assert with_it.device_bytes == without.device_bytes + 2 * 2 * 64 * 128
    assert with_it.read == without.read
    vllm = engines.find("vllm")
    assert vllm.stored(geometry, both, "bf16").device_bytes == vllm.stored(geometry, plain, "bf16").device_bytes


def test_a_copy_or_a_link_under_another_name_is_the_same_model(tmp_path: Path) -> None:
    made = file(tmp_path / "m.gguf")
    (tmp_path / "copy.gguf").write_bytes(made.read_bytes())
    (tmp_path / "link.gguf").symlink_to(made)
    ids = {resolve(str(path)).id_for("real") for path in tmp_path.iterdir()}
    assert len(ids) == 1


def test_metadata_that_the_geometry_does_not_show_is_a_part_of_the_identity(tmp_path: Path) -> None:
    one = resolve(str(file(tmp_path / "one.gguf")))
    other = resolve(str(file(tmp_path / "other.gguf", **{"rope.dimension_count": 16})))
    assert one.real_id != other.real_id


def test_every_architecture_with_a_rule_has_names() -> None:
    assert set(gguf_tensors.MODULES) == set(gguf_config.ARCHITECTURES) - {"llama4"}  # which is refused


# Files in several parts, and files beside them


def split(path: Path, parts: int = 3) -> list[Path]:
    """``path`` as llama-gguf-split would divide it: the metadata in the first part, tensors in all of them."""
    from profiler.models.gguf import TYPE_NAMES, header

    whole, made = header(path), []
    names = list(whole.tensors)
    for number in range(parts):
        part = path.with_name(f"{path.stem}-{number + 1:05d}-of-{parts:05d}.gguf")
        writer = gguf.GGUFWriter(part, "llama")
        for key, value in whole.metadata.items() if number == 0 else ():
            if not isinstance(value, range | list) and not key.startswith("general."):
                writer.add_key_value(key, value, gguf.GGUFValueType.get_type(value))
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", parts)
        for name in names[number::parts]:
            tensor = whole.tensors[name]
            kind = np.float16 if TYPE_NAMES[tensor.type_id] == "f16" else np.float32
            writer.add_tensor(name, np.zeros(tensor.shape, kind))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        made.append(part)
    return made


def test_a_split_file_is_the_sum_of_its_parts(tmp_path: Path) -> None:
    path = file(tmp_path / "m.gguf")
    whole, parts = resolve(str(path)), split(path)
    joined = resolve(str(parts[0]))
    assert joined.geometry == whole.geometry
    assert joined.stored is not None and whole.stored is not None and joined.checkpoint is not None
    assert (joined.stored.nbytes, len(joined.stored.weights)) == (whole.stored.nbytes, len(whole.stored.weights))
    assert {span.path for span in joined.checkpoint.spans} == set(parts)
    before = joined.id_for("real")
    data = parts[2].read_bytes()
    parts[2].write_bytes(data[:-1] + b"\x01")
    assert resolve(str(parts[0])).id_for("real") != before


def test_a_file_in_parts_is_refused_by_the_plan_of_transformers(tmp_path: Path) -> None:
    parts = split(file(tmp_path / "m.gguf"))
    asked = ["sweep", "-m", str(parts[0]), "-c", "64", "--dry-run", "-o", "jsonl", "--backend"]
    result = CliRunner().invoke(main, [*asked, "hf"], catch_exceptions=False)
    (row,) = map(json.loads, result.stdout.splitlines())
    joined = f"llama-gguf-split --merge {parts[0]} {tmp_path / 'm.gguf'}"
    assert row["action"] == "skip"
    assert row["reason"].startswith(f"transformers cannot read a file in parts: join them with {joined}, or measure")
    result = CliRunner().invoke(main, ["gate", "--base", "HEAD", "-m", str(parts[0])], catch_exceptions=False)
    assert result.exit_code == 2 and joined in result.stderr


def test_a_part_that_is_not_the_first_or_not_there_is_told(tmp_path: Path) -> None:
    parts = split(file(tmp_path / "m.gguf"))
    with pytest.raises(ProfileError, match="is part 2 of 3 of a split file") as found:
        resolve(str(parts[1]))
    assert found.value.hint == "Pass the first part: m-00001-of-00003.gguf"
    parts[0].rename(tmp_path / "renamed.gguf")
    with pytest.raises(ProfileError, match=r"its name does not end as llama\.cpp requires"):
        resolve(str(tmp_path / "renamed.gguf"))
    (tmp_path / "renamed.gguf").rename(parts[0])
    parts[2].unlink()
    with pytest.raises(ProfileError, match=r"part 3 of 3 is missing: there is no m-00003-of-00003\.gguf"):
        resolve(str(parts[0]))
    parts[2].write_bytes(parts[1].read_bytes())
    with pytest.raises(ProfileError, match="has a tensor of an earlier part"):
        resolve(str(parts[0]))


def test_a_projector_beside_the_file_is_said_and_left_out(tmp_path: Path) -> None:
    path = file(tmp_path / "m.gguf")
    alone = resolve(str(path))
    file(tmp_path / "mmproj-m-F16.gguf")
    beside = resolve(str(path))
    assert alone.stored is not None and beside.stored is not None
    assert beside.stored.nbytes == alone.stored.nbytes
    (note,) = set(beside.cautions) - set(alone.cautions)
    assert note == "the projector for images or sound beside the file is left out: mmproj-m-F16.gguf"
