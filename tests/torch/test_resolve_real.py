"""Real GGUF files: our header reader and config against transformers' own reading of the same file."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from profiler.models import catalog, families, gguf_file
from profiler.models.resolve import resolve


def test_gemma_3_270m_from_gguf_is_the_catalog_model(gemma3_270m_gguf: Path) -> None:
    model = resolve(str(gemma3_270m_gguf))
    assert model.geometry.layers == families.geometry(catalog.raw_config("gemma-3-270m")).layers
    assert model.geometry.parameters == 268_098_176
    assert model.source.kind == "gguf" and model.real_id is not None and model.no_weights is None


def test_smollm2_from_gguf_has_its_published_parameters(smollm2_gguf: Path) -> None:
    model = resolve(str(smollm2_gguf))
    assert model.geometry.parameters == 134_515_008
    assert model.geometry.layer_kinds() == {"full": 30}
    assert model.geometry.cache_bytes(1000, 1, 2).growing == 1000 * 30 * 2 * 3 * 64 * 2


def test_the_config_is_that_which_transformers_reads(smollm2_gguf: Path) -> None:
    ours = resolve(str(smollm2_gguf)).source.config
    theirs = load_gguf_checkpoint(str(smollm2_gguf), return_tensors=False)["config"]
    shared = ours.keys() & theirs.keys() - {"attention_bias"}
    assert {"num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size"} <= shared
    assert {key: ours[key] for key in shared} == {key: theirs[key] for key in shared}


@pytest.mark.parametrize("name", ["smollm2_gguf", "gemma3_270m_gguf"])
def test_a_real_file_is_read_within_its_two_seconds_and_stored_bytes_add_up(
    name: str, request: pytest.FixtureRequest
) -> None:
    path: Path = request.getfixturevalue(name)
    start = time.monotonic()
    header = gguf_file.header(path)
    assert time.monotonic() - start < gguf_file.MAX_SECONDS
    sizes = [tensor.nbytes for tensor in header.tensors.values()]
    assert None not in sizes
    stored = sum(size for size in sizes if size is not None)
    assert 0.8 < stored / path.stat().st_size <= 1
