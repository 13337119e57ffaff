"""What transformers loads from a checkpoint is compared with its headers, and only the weights are loaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from fakes import tiny
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from profiler.backends.hf import load
from profiler.backends.hf.session import HfSession, open_session
from profiler.case import Case, Source
from profiler.errors import ProfileError
from profiler.models import families, gguf
from profiler.models.gguf import GgufHeader, GgufTensor

WEIGHTS, CONFIG = "model.safetensors", "config.json"


def session(folder: Path, dtype: str = "fp32", quant: str | None = None) -> HfSession:
    """The model of a folder, loaded without the earlier check of its headers."""
    config = json.loads((folder / CONFIG).read_text())
    case = Case("tiny", "tiny", "real", quant or dtype, dtype, "cpu", "hf", "eager", 8, 1, 2)
    return open_session(case, Source("folder", str(folder), None, config), lambda text: None)


@pytest.fixture
def copy(tiny_model: Any, tmp_path: Path) -> Path:
    """A copy of the tiny Qwen 3 that a test may change."""
    return Path(shutil.copytree(tiny_model("qwen3"), tmp_path / "copy"))


def change(folder: Path, tensors: dict[str, torch.Tensor] | None = None, **config: Any) -> None:
    found = load_file(folder / WEIGHTS) | (tensors or {})
    save_file(found, folder / WEIGHTS, metadata={"format": "pt"})
    path = folder / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | config))


@pytest.mark.parametrize(
    ("name", "quant"),
    [*((name, "nf4") for name in sorted(tiny.CONFIGS)), ("qwen3.5-moe", "fp32"), ("qwen3.5-moe", "int8")],
)
def test_the_parameters_of_a_loaded_model_are_those_of_its_geometry(tiny_model: Any, name: str, quant: str) -> None:
    config = json.loads((tiny_model(name) / CONFIG).read_text())
    loaded = session(tiny_model(name), quant=quant).model
    assert load.parameters(loaded) == families.geometry(config).parameters


def adapter(folder: Path) -> None:
    """A LoRA adapter for every query projection, as peft saves it."""
    base = "base_model.model.model.layers.{}.self_attn.q_proj.lora_{}.weight"
    tensors = {base.format(n, "A"): torch.randn(8, 64) for n in range(2)}
    tensors |= {base.format(n, "B"): torch.randn(128, 8) for n in range(2)}
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    fields = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "x", "r": 8}
    fields |= {"lora_alpha": 16, "target_modules": ["q_proj"], "inference_mode": True}
    (folder / "adapter_config.json").write_text(json.dumps(fields))


def test_an_adapter_beside_the_weights_is_not_attached_where_peft_is_installed(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers looks for adapters only if peft is installed; applying one would need peft itself."""
    monkeypatch.setattr(transformers.models.auto.auto_factory, "is_peft_available", lambda: True)
    monkeypatch.setattr(transformers.integrations.peft, "is_peft_available", lambda: True)
    plain = session(copy).model
    adapter(copy)
    with_adapter = session(copy).model
    assert list(plain.state_dict()) == list(with_adapter.state_dict())
    assert all(torch.equal(plain.get_parameter(name), p) for name, p in with_adapter.named_parameters())


def test_transformers_does_not_see_files_that_it_would_prefer_to_the_weights(copy: Path) -> None:
    (copy / "generation_config.json").write_text('{"do_sample": true, "num_beams": 4}')
    (copy / ".metadata").write_bytes(b"a distributed checkpoint")
    with load.weights_alone(copy) as alone:
        assert [path.name for path in alone.iterdir()] == [WEIGHTS]
    assert not alone.exists()
    assert session(copy).model.generation_config.num_beams in (None, 1)


def test_shards_are_linked_with_their_index(copy: Path, tmp_path: Path) -> None:
    sharded = tmp_path / "sharded"
    AutoModelForCausalLM.from_pretrained(copy).save_pretrained(sharded, max_shard_size="200KB")
    with load.weights_alone(sharded) as alone:
        names = sorted(path.name for path in alone.iterdir())
    assert names == sorted(path.name for path in sharded.iterdir() if "safetensors" in path.name) != [WEIGHTS]
    assert load.parameters(session(sharded).model) == load.parameters(session(copy).model)


def test_a_temporary_folder_that_cannot_be_written_is_one_line(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(load.os, "symlink", full)
    with pytest.raises(ProfileError, match=r"cannot link to the weights .*: No space left on device"):
        session(copy)


@pytest.mark.parametrize(
    ("tensors", "config", "says"),
    [
        ({}, {"num_hidden_layers": 1, "layer_types": ["full_attention"]}, "the file also holds layer 1"),
        ({"lm_head.weight": torch.ones(512, 64)}, {}, "did not tie the output head to the embedding"),
        ({"model.norm.weight": torch.ones(32)}, {}, r"model\.norm\.weight is \[32\] in the weights"),
    ],
    ids=["fewer layers", "another head", "another shape"],
)
def test_a_file_that_changed_is_refused_after_loading_too(
    copy: Path, tensors: dict[str, torch.Tensor], config: dict[str, Any], says: str
) -> None:
    change(copy, tensors, **config)
    with pytest.raises(ProfileError, match=says):
        session(copy)


def test_an_unexpected_tensor_that_transformers_ignores_is_refused(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Our rules for names are compared with what transformers really did."""
    change(copy, {"model.layers.0.strange.weight": torch.ones(3)})
    session(copy)  # a plan has listed it
    monkeypatch.setattr(load, "_unused_names", lambda accounted: set())
    with pytest.raises(ProfileError, match=r"ignored part of the file: model\.layers\.0\.strange"):
        session(copy)


def test_quantized_weights_in_a_plain_module_are_refused_after_loading(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = session(copy).model
    loaded.model.norm.weight = torch.nn.Parameter(torch.ones(64, dtype=torch.int8), requires_grad=False)
    with pytest.raises(ProfileError, match=r"model\.norm\.weight was loaded as int8"):
        load._check_values(loaded, "m")


def test_values_that_fp16_cannot_hold_are_refused(copy: Path) -> None:
    session(copy, "fp16")
    change(copy, {"model.norm.weight": torch.full((64,), 7e4)})
    session(copy, "bf16")
    with pytest.raises(ProfileError, match=r"model\.norm: some weights are larger than fp16 can hold"):
        session(copy, "fp16")


def test_a_scale_that_fp16_cannot_hold_is_refused(copy: Path) -> None:
    change(copy, {"model.layers.0.mlp.up_proj.weight": torch.full((128, 64), 7e4)})
    with pytest.raises(ProfileError, match="larger than fp16 can hold"):
        session(copy, "fp16", quant="nf4")


def test_a_gguf_that_lacks_a_weight_is_not_filled_with_random_values(
    gemma3_270m_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Nothing:
        @staticmethod
        def from_pretrained(*_: Any, **__: Any) -> Any:
            return None, {"missing_keys": {"model.norm.weight"}, "mismatched_keys": set(), "unexpected_keys": set()}

    monkeypatch.setattr(load, "AutoModelForCausalLM", Nothing)
    monkeypatch.setenv("PROFILER_CACHE", str(tmp_path / "cache"))
    with pytest.raises(ProfileError, match=r"found no values for model\.norm\.weight"):
        load.unpack_gguf(gemma3_270m_gguf, None, lambda text: None)  # type: ignore[arg-type]
    assert list((tmp_path / "cache" / "gguf").iterdir()) == []


@pytest.mark.parametrize(
    ("types", "dtype"), [((0, 0), torch.float32), ((30, 0), torch.bfloat16), ((12, 0), torch.bfloat16)]
)
def test_the_dtype_of_an_unpacked_gguf_follows_its_tensors_and_not_its_metadata(
    types: tuple[int, int], dtype: torch.dtype
) -> None:
    tensors = {
        "matrix": GgufTensor("matrix", (256, 256), types[0], 0),
        "norm": GgufTensor("norm", (256,), types[1], 0),
    }
    for said in (0, 1, 7):
        assert load._unpacked_dtype(GgufHeader({"general.file_type": said}, tensors), torch.bfloat16) == dtype


def test_an_unpacked_gguf_is_accounted_for_like_any_checkpoint(gemma3_270m_gguf: Path) -> None:
    from profiler.models.resolve import resolve

    found = resolve(str(gemma3_270m_gguf))
    assert found.checkpoint is not None and found.cautions == ()
    assert found.checkpoint.account.parameters == found.geometry.parameters == 268_098_176
    header = gguf.header(gemma3_270m_gguf)
    assert found.checkpoint.account.nbytes == sum(tensor.nbytes or 0 for tensor in header.tensors.values())


def test_bitsandbytes_without_its_native_library_says_so(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU it still computes, but several times as slowly."""
    from bitsandbytes import cextension

    loaded = session(copy, quant="nf4")
    assert "bitsandbytes-torch" not in [caution.code for caution in loaded.info.cautions]
    monkeypatch.setattr(cextension, "lib", cextension.ErrorHandlerMockBNBNativeLibrary("no library"))

    def gone() -> None:
        raise OSError("libbitsandbytes_cpu.so: failed to map segment from shared object")

    monkeypatch.setattr(cextension, "get_native_library", gone)
    (said,) = [caution.text for caution in loaded.info.cautions if caution.code == "bitsandbytes-torch"]
    assert said.endswith(
        "without its native library: libbitsandbytes_cpu.so: failed to map segment from shared object"
    )
    assert "bitsandbytes-torch" not in [caution.code for caution in session(copy).info.cautions]
