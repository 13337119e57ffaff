"""Loading checkpoints that are already quantized: their values, their bytes, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import gguf
import numpy as np
import pytest
import torch
from fakes import stored as made
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from profiler import devices
from profiler.backends.hf.ceilings import DTYPES
from profiler.backends.hf.session import HfSession, open_session
from profiler.case import Case
from profiler.errors import ProfileError
from profiler.models.resolve import resolve
from profiler.models.scheme import LeftOut
from profiler.models.scheme import of as resolve_scheme
from profiler.run.request import SweepRequest, resolve_request

LAYERS = 3
MODULES = ("self_attn.v_proj", "mlp.down_proj")
BLOCK = 32  # of the fp8 checkpoint: several in each direction
Make = Callable[[Path, Path], Path]


def session(path: Path, quant: str, dtype: str = "bf16") -> HfSession:
    asked = Case("m", "m", "real", quant, dtype, "cpu", "hf", "eager", context=8, batch=1, steps=1)
    return open_session(asked, resolve(str(path)).source, lambda text: None)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of three layers in bf16."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1}
    config = LlamaConfig(**shape, num_hidden_layers=LAYERS, vocab_size=256, tie_word_embeddings=False)
    folder = tmp_path_factory.mktemp("plain") / "m"
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


def rewritten(
    plain: Path, folder: Path, scheme: dict[str, Any], pack: Callable[[torch.Tensor], dict[str, Any]]
) -> Path:
    """``plain`` with each linear layer of its decoder replaced by the tensors that ``pack`` makes of it."""
    shutil.copytree(plain, folder)
    found = {}
    for name, tensor in load_file(plain / "model.safetensors").items():
        if name.endswith("proj.weight"):
            module = name.removesuffix(".weight")
            found |= {f"{module}.{part}": value.contiguous() for part, value in pack(tensor).items()}
        else:
            found[name] = tensor
    save_file(found, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": scheme}))
    return folder


def fp8(plain: Path, folder: Path, scale: str = "weight_scale_inv") -> Path:
    def pack(weight: torch.Tensor) -> dict[str, torch.Tensor]:
        rows, columns = weight.shape
        scales = torch.rand(rows // BLOCK, columns // BLOCK) + 0.5
        return {"weight": (weight.float() * 50).to(torch.float8_e4m3fn), scale: scales}

    torch.manual_seed(1)
    stated = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [BLOCK, BLOCK]}
    return rewritten(plain, folder, stated, pack)


def bitsandbytes(plain: Path, folder: Path, **how: Any) -> Path:
    model = AutoModelForCausalLM.from_pretrained(
        plain, dtype=torch.bfloat16, quantization_config=BitsAndBytesConfig(**how), device_map={"": "cpu"}
    )
    model.save_pretrained(folder)
    return folder


def linear(session: HfSession) -> list[tuple[str, Any]]:
    found = [(f"model.layers.{n}.{name}", n, name) for n in range(LAYERS) for name in MODULES]
    return [(path, session.model.get_submodule(path)) for path, _, _ in found]


def test_fp8_is_unpacked_with_its_scales(plain: Path, tmp_path: Path) -> None:
    path = fp8(plain, tmp_path / "m")
    opened = session(path, "bf16")
    stored = load_file(path / "model.safetensors")
    for name, module in linear(opened):
        scales = stored[f"{name}.weight_scale_inv"].repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)
        expected = (stored[f"{name}.weight"].float() * scales).to(torch.bfloat16)
        assert torch.equal(module.weight, expected), name
    assert [caution.code for caution in opened.info.cautions] == ["unpacked"]
    assert opened.info.weights_bytes == session(plain, "bf16").info.weights_bytes


FOUR_BIT = [("nf4", False), ("nf4", True), ("fp4", False)]


@pytest.mark.parametrize(("levels", "double"), FOUR_BIT)
def test_four_bits_of_bitsandbytes_are_loaded_as_they_are_stored(
    levels: str, double: bool, plain: Path, tmp_path: Path
) -> None:
    how = {"load_in_4bit": True, "bnb_4bit_quant_type": levels, "bnb_4bit_use_double_quant": double}
    path = bitsandbytes(plain, tmp_path / "m", **how)
    own = f"{levels}-dq" if double else levels
    opened = session(path, own)
    values = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16, device_map={"": "cpu"}).dequantize()
    for name, module in linear(opened):
        ours = bnb.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
        assert torch.equal(ours, values.get_submodule(name).weight), name
    assert bytes_equal_the_headers(opened, path)


def test_eight_bits_of_bitsandbytes_are_loaded_as_they_are_stored(plain: Path, tmp_path: Path) -> None:
    path = bitsandbytes(plain, tmp_path / "m", load_in_8bit=True)
    opened = session(path, "int8")
    stored = load_file(path / "model.safetensors")
    for name, module in linear(opened):
        ours = module.weight.CB if module.weight.CB is not None else module.weight.data
        scales = module.weight.SCB if module.weight.SCB is not None else module.state.SCB
        assert torch.equal(ours, stored[f"{name}.weight"]) and torch.equal(scales, stored[f"{name}.SCB"]), name
    assert bytes_equal_the_headers(opened, path)


def bytes_equal_the_headers(opened: HfSession, path: Path) -> bool:
    """Except the rotary frequencies, which no checkpoint stores."""
    found = resolve(str(path)).stored
    assert found is not None and found.exact
    buffers = sum(buffer.nbytes for name, buffer in opened.model.named_buffers() if "rotary" in name)
    loaded = opened.info
    assert 0 < loaded.unquantized_bytes < loaded.weights_bytes
    assert loaded.weights_bytes - buffers == sum(weight.nbytes for weight in found.weights)
    return True


@pytest.mark.parametrize("stated", ["same", "other", None])
@pytest.mark.parametrize("held", ["fp32", "bf16", "fp16", "mixed"])
def test_a_plain_checkpoint_is_loaded_as_the_plan_says_and_in_the_bytes_of_its_headers(
    held: str, stated: str | None, tmp_path: Path
) -> None:
    """Without -q. A model has one dtype, so a mixed checkpoint is loaded in that of most of its bytes."""
    most = made.most(held)
    path = made.plain(tmp_path / "m", held, stated and (most if stated == "same" else made.another(most)))
    asked = SweepRequest(models=(str(path),), contexts=("8",), steps=("1",), paths=("eager",))
    (task,) = resolve_request(asked, devices.find("cpu"), 2**34, lambda text: None).tasks
    opened = open_session(task.case, task.source, lambda text: None)
    assert {value.dtype for value in opened.model.parameters()} == {DTYPES[most]}
    buffers = sum(buffer.nbytes for name, buffer in opened.model.named_buffers() if "rotary" in name)
    assert opened.info.weights_bytes - buffers == made.total(made.tensors(most))
    stored = sum(tensor.nbytes for tensor in load_file(path / "model.safetensors").values())
    assert held == "mixed" or opened.info.weights_bytes - buffers == stored


def test_compressed_tensors_are_unpacked_with_their_scales(plain: Path, tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors", reason="compressed-tensors is not installed")
    from compressed_tensors.compressors.pack_quantized import pack_to_int32

    def pack(weight: torch.Tensor) -> dict[str, torch.Tensor]:
        codes = torch.randint(-8, 8, weight.shape, dtype=torch.int8)
        return {
            "weight_packed": pack_to_int32(codes, 4),
            "weight_scale": torch.rand(weight.shape[0], weight.shape[1] // 32).to(torch.bfloat16),
            "weight_shape": torch.tensor(weight.shape),
        }

    torch.manual_seed(2)
    stated = made.CONFIGS["compressed-tensors"]["quantization_config"]
    stated = json.loads(json.dumps(stated).replace('"group_size": 128', '"group_size": 32'))
    path = rewritten(plain, tmp_path / "m", stated, pack)
    from compressed_tensors.compressors.pack_quantized import unpack_from_int32

    stored = load_file(path / "model.safetensors")
    for name, module in linear(session(path, "bf16")):
        codes = unpack_from_int32(stored[f"{name}.weight_packed"], 4, torch.Size(module.weight.shape))
        expected = codes.to(torch.bfloat16) * stored[f"{name}.weight_scale"].repeat_interleave(32, 1)
        assert torch.equal(module.weight, expected), name


KINDS = [kind for kind in made.GGUF if kind in ("f32", "f16", "bf16", "q8_0", "q4_0", "q5_1", "mxfp4")]


@pytest.fixture
def gguf_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_a_gguf_file_is_unpacked_to_its_own_values(kind: str, dtype: str, tmp_path: Path, gguf_cache: None) -> None:
    """Exactly, in the dtype of the case: 16 bits would round the values of a case in fp32."""
    path = made.gguf(tmp_path / "m.gguf", kind)
    written(path)
    opened = session(path, dtype, dtype)
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    for n in range(LAYERS):
        for theirs, ours in (("ffn_down", "mlp.down_proj"), ("attn_v", "self_attn.v_proj")):
            tensor = tensors[f"blk.{n}.{theirs}.weight"]
            values = torch.from_numpy(np.array(gguf.quants.dequantize(tensor.data, tensor.tensor_type)))
            weight = opened.model.get_submodule(f"model.layers.{n}.{ours}").weight
            assert weight.float().std() > 0
            assert torch.equal(weight, values.reshape(weight.shape).to(weight.dtype)), (n, ours)


def written(path: Path) -> None:
    """Random values in the zeros of a file, in its own types."""
    random = np.random.default_rng(0)
    reader = gguf.GGUFReader(path, "r+")
    for tensor in reader.tensors:
        values = (random.standard_normal(tuple(tensor.shape[::-1])) * 0.02).astype(np.float32)
        packed = gguf.quants.quantize(values, tensor.tensor_type)
        tensor.data[:] = packed.reshape(tensor.data.shape).view(tensor.data.dtype)


def test_scales_that_transformers_does_not_read_are_refused_before_loading(plain: Path, tmp_path: Path) -> None:
    path = fp8(plain, tmp_path / "m", scale="weight_scale")
    with pytest.raises(ProfileError, match="weight_scale, which is not how transformers reads fp8"):
        session(path, "bf16")


def test_quantized_weights_without_a_scheme_are_refused_before_loading(plain: Path, tmp_path: Path) -> None:
    path = fp8(plain, tmp_path / "m")
    shutil.copy(plain / "config.json", path / "config.json")
    with pytest.raises(
        ProfileError, match=r"stored as codes, but config\.json has no quantization_config.* is F8_E4M3"
    ):
        session(path, "bf16")


def test_a_scale_that_transformers_ignores_is_refused_after_loading(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The headers look fine to our rules, but without these scales the values would be wrong."""
    from profiler.models import stored

    monkeypatch.setattr(stored, "PARTS", {})
    path = fp8(plain, tmp_path / "m", scale="weight_scale")
    with pytest.raises(
        ProfileError, match=r"ignored part of the file: 21 tensors, the first of which is .*weight_scale"
    ):
        session(path, "bf16")


def test_a_second_quantization_is_refused_in_the_worker_too(plain: Path, tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="stored in fp8: it cannot be quantized a second time"):
        session(fp8(plain, tmp_path / "m"), "nf4")


def test_a_scheme_in_the_text_config_alone_is_found(plain: Path, tmp_path: Path) -> None:
    path = fp8(plain, tmp_path / "m")
    raw = json.loads((path / "config.json").read_text())
    scheme = raw.pop("quantization_config")
    gemma = {
        "model_type": "gemma3",
        "text_config": raw | {"model_type": "gemma3_text", "quantization_config": scheme},
    }
    found = resolve_scheme(gemma)
    assert found is not None and found.name == "fp8"


WORDS = [
    "mlp.gate",
    "gate_proj",
    "model.layers.1",
    "layers",
    "lm_head",
    "model.layers.*.mlp",
    "1.mlp",
]


@pytest.mark.parametrize("word", WORDS)
def test_modules_are_left_out_as_transformers_leaves_them_out(word: str) -> None:
    from transformers.quantizers.quantizers_utils import should_convert_module

    modules = [f"model.layers.{n}.mlp.{part}" for n in (0, 1, 10, 11) for part in ("gate", "gate_proj", "up_proj")]
    for module in [*modules, "lm_head", "model.norm"]:
        assert (module in LeftOut.of([word])) != should_convert_module(module, [word]), module


def test_modules_that_a_multimodal_checkpoint_leaves_out_are_left_out_of_its_text_part(
    plain: Path, tmp_path: Path
) -> None:
    """As dynamic 4-bit checkpoints of Gemma 3 name them; the row says what they are."""
    path = bitsandbytes(
        plain, tmp_path / "m", load_in_4bit=True, llm_int8_skip_modules=["lm_head", "model.layers.1.mlp"]
    )
    raw = json.loads((path / "config.json").read_text())
    raw["quantization_config"]["llm_int8_skip_modules"] = ["lm_head", "model.language_model.layers.1.mlp"]
    (path / "config.json").write_text(json.dumps(raw))
    opened = session(path, "fp4")
    kinds = [type(opened.model.get_submodule(f"model.layers.{n}.mlp.up_proj")).__name__ for n in range(LAYERS)]
    assert kinds == ["Linear4bit", "Linear", "Linear4bit"]
    (said,) = [caution.text for caution in opened.info.cautions if caution.code == "unquantized"]
    assert "linear layers 48.0 KiB" in said and "output head 32.0 KiB" in said


def test_an_error_of_a_quantizer_is_one_line(plain: Path, tmp_path: Path) -> None:
    path = rewritten(plain, tmp_path / "m", made.CONFIGS["awq"]["quantization_config"], awq)
    with pytest.raises(
        ProfileError, match=r"^m: transformers cannot load awq: Loading an AWQ quantized model requires"
    ):
        session(path, "awq")


def awq(weight: torch.Tensor) -> dict[str, torch.Tensor]:
    outputs, inputs = weight.shape
    return {
        "qweight": torch.zeros(inputs, outputs // 8, dtype=torch.int32),
        "qzeros": torch.zeros(1, outputs // 8, dtype=torch.int32),
        "scales": torch.ones(1, outputs, dtype=torch.float16),
    }
