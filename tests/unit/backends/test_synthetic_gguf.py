"""GGUF files of random weights: read back by llama.cpp's own package and by our reader, and kept in the cache."""

from __future__ import annotations

import errno
import os
import random
import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy
import pytest
from fakes.tiny import CONFIGS

from profiler import folders
from profiler.backends.llama_cpp import synthetic
from profiler.backends.llama_cpp.synthetic import synthetic_gguf
from profiler.case import Source
from profiler.errors import ProfileError
from profiler.models import families, gguf_mix, gguf_write, hub
from profiler.models import gguf as models_gguf
from profiler.models.resolve import resolve

SERVED = [name for name in CONFIGS if name != "llama4"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(folders.CACHE, str(tmp_path / "cache"))
    return tmp_path / "cache" / synthetic.FOLDER


def write(name: str = "llama", quant: str = "q4_k_m", seed: int = 0, **fields: Any) -> Path:
    raw = CONFIGS[name] | fields
    return synthetic_gguf(Source("catalog", name, None, raw), families.geometry(raw), quant, seed, lambda said: None)


@pytest.mark.parametrize("name", SERVED)
def test_the_file_describes_the_model_it_was_written_from(name: str) -> None:
    """By the reader of GGUF files that users give us, which learned the keys from real files."""
    quant = "bf16" if name == "gpt-oss" else "q4_k_m"  # rows of its experts are too short for blocks here
    own = {"vocab_size": 32_064} if name == "phi3" else {}  # its padding token is number 32,000
    read, raw = resolve(str(write(name, quant, **own))), CONFIGS[name] | own
    wanted = families.geometry(raw)
    assert read.geometry.layers == wanted.layers
    assert (read.geometry.vocab, read.geometry.hidden) == (wanted.vocab, wanted.hidden)
    assert read.geometry.tied == wanted.tied
    assert read.geometry.parameters == wanted.parameters
    assert read.stored is not None and read.stored.quant == quant


@pytest.mark.parametrize("name", hub.names())
def test_every_model_of_the_catalog_has_a_header_or_a_reason(name: str) -> None:
    raw = hub.shipped_config(name)
    geometry = families.geometry(raw)
    if name.startswith("llama-4"):
        with pytest.raises(ProfileError, match="llama4_text cannot be written yet"):
            gguf_write.architecture(geometry.model_type)
        return
    tensors = gguf_write.tensors(raw, geometry, gguf_mix.each(geometry, "q4_k_m"))
    metadata = gguf_write.metadata(raw, geometry, name, 15)
    names = [tensor.name for tensor in tensors]
    assert len(set(names)) == len(names)
    read = [tensor for tensor in tensors if tensor.name != "rope_freqs.weight"]
    for number, layer in enumerate(geometry.layers):
        if layer.shares_kv:  # the file has their K and V all the same
            unused = [f"blk.{number}.attn_{part}.weight" for part in ("k", "v", "k_norm")]
            assert set(unused) <= set(names)
            read = [tensor for tensor in read if tensor.name not in unused]
    assert sum(numpy.prod(tensor.shape) for tensor in read) == geometry.parameters
    assert len(metadata["tokenizer.ggml.tokens"]) == len(set(metadata["tokenizer.ggml.tokens"])) == geometry.vocab


def test_gemma_3_270m_has_the_tensors_and_keys_of_the_published_file() -> None:
    raw = hub.shipped_config("gemma-3-270m")
    geometry = families.geometry(raw)
    tensors = {each.name: each for each in gguf_write.tensors(raw, geometry, gguf_mix.each(geometry, "q4_k_m"))}
    assert len(tensors) == 236
    assert sum(each.nbytes for each in tensors.values()) == 246_587_904
    assert (tensors["blk.0.attn_v.weight"].shape, tensors["blk.0.attn_v.weight"].type) == ((256, 640), "q8_0")
    metadata = gguf_write.metadata(raw, geometry, "gemma-3-270m", 15)
    size = len(gguf_write.header(metadata, list(tensors.values()))) + 246_587_904
    assert size == pytest.approx(253_113_024, rel=0.01)
    said = {key: metadata[f"gemma3.{key}"] for key in ("context_length", "attention.key_length", "rope.freq_base")}
    assert said == {"context_length": 32768, "attention.key_length": 256, "rope.freq_base": 1e6}


@pytest.mark.parametrize("kind", sorted({*synthetic.SCALES, *synthetic.PLAIN, "iq1_m", "mxfp4"}))
def test_random_blocks_stand_for_weights_of_a_usual_size(kind: str) -> None:
    """As llama.cpp's package unpacks them; every type that a mix or a fallback can give."""
    size = models_gguf.BLOCKS[models_gguf.TYPES[kind]][1]
    pattern = numpy.frombuffer(synthetic._pattern(kind, random.Random(1)), numpy.uint8)
    rows = pattern[: size * 1024].reshape(4, -1)
    values = gguf.dequantize(numpy.array(rows), gguf.GGMLQuantizationType[kind.upper()])
    assert numpy.isfinite(values).all()
    assert 0.01 < values.std() < 0.05
    assert abs(values.mean()) < 0.1 * values.std() + 1e-3


def test_a_file_is_written_in_small_pieces_as_a_download_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is written 2 MiB at a time lies in huge pages, and is faster than the same file from the disk."""
    sizes, write_some = [], os.write
    monkeypatch.setattr(os, "write", lambda file, data: sizes.append(len(data)) or write_some(file, data))
    path = write(vocab_size=4096)
    assert path.stat().st_size == sum(sizes) > 4 * synthetic.PIECE_BYTES
    assert set(sizes[:-1]) == {synthetic.PIECE_BYTES} and sizes[-1] <= synthetic.PIECE_BYTES


def test_every_type_of_every_mix_has_blocks() -> None:
    made = {*synthetic.SCALES, *synthetic.PLAIN, "iq1_m", "mxfp4"}
    for name in SERVED:
        geometry = families.geometry(CONFIGS[name])
        for mix in gguf_mix.MIXES:
            assert {kind for _, _, kind in gguf_mix.each(geometry, mix)} <= made


def test_llama_cpps_package_reads_the_tensors_and_they_are_finite() -> None:
    raw = CONFIGS["qwen3.5-moe"] | {"hidden_size": 256}
    reader = gguf.GGUFReader(write("qwen3.5-moe", "q4_k_m", hidden_size=256))
    geometry = families.geometry(raw)
    wanted = {each.name: each for each in gguf_write.tensors(raw, geometry, gguf_mix.each(geometry, "q4_k_m"))}
    assert {tensor.name for tensor in reader.tensors} == wanted.keys()
    for tensor in reader.tensors:
        assert tuple(map(int, tensor.shape))[::-1] == wanted[tensor.name].shape
        assert tensor.tensor_type.name.lower() == wanted[tensor.name].type
        assert numpy.isfinite(gguf.dequantize(tensor.data, tensor.tensor_type)).all()
    routers = [tensor for tensor in reader.tensors if "ffn_gate_inp.weight" in tensor.name]
    rows = {row.tobytes() for tensor in routers for row in tensor.data}
    assert len(rows) == 4 * len(routers)  # else all tokens choose the same experts


def test_a_file_is_written_once_for_each_config_quantization_and_seed(cache: Path) -> None:
    said: list[str] = []
    raw = CONFIGS["llama"]
    make = (Source("folder", "/models/My model!", None, raw), families.geometry(raw))
    first = synthetic_gguf(*make, "q4_k_m", 0, said.append)
    written, told = first.stat(), len(said)
    assert told and str(first) in said[0] and "random q4_k_m weights" in said[0]
    assert first.name.startswith("My-model-q4_k_m-") and first.parent == cache
    again = synthetic_gguf(*make, "Q4_K_M", 0, said.append)
    assert (again, again.stat().st_ino, len(said)) == (first, written.st_ino, told)
    others = {synthetic_gguf(*make, quant, seed, said.append) for quant, seed in (("q8_0", 0), ("q4_k_m", 1))}
    assert len({first, *others, write(rms_norm_eps=1e-5)}) == 4
    assert len(list(cache.iterdir())) == 4


@pytest.mark.parametrize("damage", ["shorter", "another header", "link"])
def test_a_file_that_is_not_what_was_written_is_written_again(
    damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write()
    whole = path.read_bytes()
    if damage == "shorter":
        os.truncate(path, len(whole) - 32)
    elif damage == "another header":
        path.write_bytes(whole[:8] + b"\x01" + whole[9:])
    else:
        shutil.copy(path, tmp_path / "elsewhere")
        path.unlink()
        path.symlink_to(tmp_path / "elsewhere")
    assert write() == path
    assert path.read_bytes() == whole and not path.is_symlink()
    assert ("is a symbolic link" in capsys.readouterr().err) == (damage == "link")


def test_a_full_disk_is_one_line_and_leaves_nothing(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: int, chunk: memoryview) -> None:
        os.write(file, chunk[:100])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(synthetic, "_write_all", full)
    with pytest.raises(ProfileError, match=r"the disk became full while .*; the partial file is removed"):
        write()
    assert list(cache.iterdir()) == []


def test_a_file_that_cannot_fit_is_not_begun(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9 - 10**6, 10**6))
    with pytest.raises(ProfileError, match=r"would take .* KiB, and .* has 977 KiB free") as found:
        write()
    assert found.value.hint is not None and folders.CACHE in found.value.hint
    assert list(cache.iterdir()) == []


def test_the_least_recently_used_files_make_room(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, third = (write(seed=seed) for seed in range(3))
    for age, path in enumerate((third, second, first)):
        os.utime(path, (1000 - age, 1000 - age))
    write(seed=0)  # used again, so it is the newest now
    size = first.stat().st_size
    monkeypatch.setenv(synthetic.LIMIT, f"{3 * size}b")
    fourth = write(seed=3)
    assert {path.name for path in cache.iterdir()} == {path.name for path in (first, third, fourth)}


@pytest.mark.parametrize(
    ("limit", "says"), [("1KiB", "may take 1.00 KiB in total"), ("much", "is not a size such as")]
)
def test_a_limit_that_forbids_the_file_or_is_no_size_is_refused(
    limit: str, says: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(synthetic.LIMIT, limit)
    with pytest.raises(ProfileError, match=says):
        write()
    assert list(cache.iterdir()) == []


def test_what_a_killed_process_left_is_removed_and_what_is_being_written_stays(cache: Path) -> None:
    import fcntl

    write()
    left, busy = cache / ".a.gguf.00.part", cache / ".b.gguf.00.part"
    left.touch()
    with busy.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        write(seed=1)
        assert not left.exists() and busy.exists()
    write(seed=2)
    assert not busy.exists()


@pytest.mark.parametrize(
    ("name", "fields", "says"),
    [
        ("llama4", {}, "llama4_text cannot be written yet"),
        ("qwen3", {"attention_bias": True}, "no biases in qwen3"),
        ("qwen3", {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 1}, "without sliding"),
        ("gemma3", {"layer_types": ["full_attention", *["sliding_attention"] * 5]}, "regular distances"),
        ("qwen3.5", {"linear_value_head_dim": 64}, "keys and values of one size"),
    ],
)
def test_what_llama_cpp_would_not_load_is_refused_with_the_reason(
    name: str, fields: dict[str, Any], says: str
) -> None:
    with pytest.raises(ProfileError, match=says):
        write(name, **fields)
