"""Real GGUF files: our header reader and config against transformers' own reading of the same file."""

from __future__ import annotations

import json
import time
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from fakes import stored as made
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from profiler.backends.hf.session import open_session
from profiler.case import Case
from profiler.cli import main
from profiler.models import families, hub
from profiler.models import gguf as models_gguf
from profiler.models.resolve import resolve


def test_gemma_3_270m_from_gguf_is_the_catalog_model(gemma3_270m_gguf: Path) -> None:
    model = resolve(str(gemma3_270m_gguf))
    assert model.geometry.layers == families.geometry(hub.shipped_config("gemma-3-270m")).layers
    assert model.geometry.parameters == 268_098_176
    assert model.source.kind == "gguf" and model.real_id is not None and model.no_weights is None


def test_smollm2_from_gguf_has_its_published_parameters(smollm2_gguf: Path) -> None:
    model = resolve(str(smollm2_gguf))
    assert model.geometry.parameters == 134_515_008
    assert model.geometry.layer_kinds() == {"full": 30}
    assert model.geometry.cache_bytes(1000, 1, 2).growing == 1000 * 30 * 2 * 3 * 64 * 2


def test_the_config_equals_the_one_that_transformers_reads(smollm2_gguf: Path) -> None:
    ours = resolve(str(smollm2_gguf)).source.config
    theirs = load_gguf_checkpoint(str(smollm2_gguf), return_tensors=False)["config"]
    shared = ours.keys() & theirs.keys() - {"attention_bias"}
    assert {"num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size"} <= shared
    assert {key: ours[key] for key in shared} == {key: theirs[key] for key in shared}


@pytest.mark.parametrize("name", ["smollm2_gguf", "gemma3_270m_gguf"])
def test_a_real_file_is_read_within_two_seconds_and_its_bytes_add_up(
    name: str, request: pytest.FixtureRequest
) -> None:
    path: Path = request.getfixturevalue(name)
    start = time.monotonic()
    header = models_gguf.header(path)
    assert time.monotonic() - start < models_gguf.MAX_SECONDS
    sizes = [tensor.nbytes for tensor in header.tensors.values()]
    assert None not in sizes
    stored = sum(size for size in sizes if size is not None)
    assert 0.8 < stored / path.stat().st_size <= 1


@pytest.mark.parametrize(
    ("kind", "file_type", "nbytes"), [("q8_0", 7, 285_018_624), ("f32", 0, 1_072_392_704), (None, 15, 246_587_904)]
)
def test_fit_predicts_the_file_that_it_is_given(
    kind: str | None, file_type: int, nbytes: int, gemma3_270m_gguf: Path, tmp_path: Path
) -> None:
    """Gemma 3 270M as llama-quantize writes it: matrices in one type, norms in f32. No byte of data is read."""
    path = gemma3_270m_gguf if kind is None else _in_type(gemma3_270m_gguf, kind, file_type, tmp_path / "m.gguf")
    result = CliRunner().invoke(main, ["fit", str(path), "--engine", "llama.cpp", "--on", "rtx 4090", "-o", "json"])
    (row,) = json.loads(result.stdout)
    assert row["quant"] == (kind or "q4_k_m")
    assert (row["weights_bytes"]["value"], row["weights_bytes"]["basis"]) == (nbytes, "exact")


def _in_type(source: Path, kind: str, file_type: int, target: Path) -> Path:
    """A file with the tensors and numbers of ``source``, its matrices in ``kind``; a hole where the data would be."""
    header = models_gguf.header(source)
    keys = {
        name.removeprefix("gemma3."): value
        for name, value in header.metadata.items()
        if name.startswith("gemma3.") and isinstance(value, int)
    }
    held = {
        tensor.name: (kind if len(tensor.shape) > 1 else "f32", tensor.shape) for tensor in header.tensors.values()
    }
    return made.gguf(target, found=held, architecture="gemma3", file_type=file_type, sparse=True, **keys)


@pytest.mark.parametrize("name", ["smollm2_gguf", "gemma3_270m_gguf"])
def test_real_weights_are_loaded_as_the_values_of_their_file(name: str, request: pytest.FixtureRequest) -> None:
    path: Path = request.getfixturevalue(name)
    found = resolve(str(path))
    identity = found.id_for("real")
    asked = Case("m", identity, "real", "bf16", "bf16", "cpu", "hf", "eager", context=8, batch=1, steps=1)
    model = open_session(asked, found.source, lambda text: None).model
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    for n in range(3):
        for theirs, ours in (("ffn_down", "mlp.down_proj"), ("attn_v", "self_attn.v_proj")):
            tensor = tensors[f"blk.{n}.{theirs}.weight"]
            values = torch.from_numpy(np.array(gguf.quants.dequantize(tensor.data, tensor.tensor_type)))
            weight = model.get_submodule(f"model.layers.{n}.{ours}").weight
            assert torch.equal(weight, values.reshape(weight.shape).to(weight.dtype)), (n, ours)
