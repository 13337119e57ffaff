"""A GGUF file as a folder of safetensors, unpacked once: transformers needs minutes to read GGUF each time.

Values are those that the quantized file stands for, kept in the dtype they are computed in, or in fp32 when the file
itself is fp32: 16 bits would round what a case in fp32 computes with. The folder lies in the user's cache under
``profile/gguf`` and may be deleted at any time.
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from math import prod
from pathlib import Path

import platformdirs
import torch
import transformers
from transformers import AutoModelForCausalLM, PretrainedConfig

from profiler.backends.base import Beat
from profiler.errors import ProfileError
from profiler.models import gguf_file
from profiler.models.safetensors_file import files_id
from profiler.units import bytes_text, printable

USUAL = torch.bfloat16
SPARE = 1.1  # of the disk space that the folder itself takes


def unpacked(gguf: Path, config: PretrainedConfig, beat: Beat, computed_in: torch.dtype = USUAL) -> Path:
    """The folder of ``gguf`` for cases in ``computed_in``, made on first use.

    Raises ProfileError when the disk is too small for it.
    """
    cache = Path(platformdirs.user_cache_dir("profile")) / "gguf"
    header = gguf_file.header(gguf)
    dtype = _kept_in(header, computed_in)
    other = "" if dtype == _kept_in(header, USUAL) else f"-{str(dtype).removeprefix('torch.')}"
    target = cache / f"{files_id([gguf])}-transformers-{transformers.__version__}{other}"
    if target.exists():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    _sweep(cache)
    size = sum(prod(tensor.shape) for tensor in header.tensors.values()) * dtype.itemsize
    free = shutil.disk_usage(cache).free
    if size * SPARE > free:
        name = printable(gguf.name)
        raise ProfileError(f"{name} takes {bytes_text(size)} unpacked, and {cache} has {bytes_text(free)} free")
    beat(f"load: unpacking {printable(gguf.name)} into {bytes_text(size)} of safetensors, once")
    partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
    try:
        _write(gguf, config, dtype, partial)
        partial.rename(target)
    except OSError:
        if not target.exists():  # another process may have been first
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def _kept_in(header: gguf_file.GgufHeader, computed_in: torch.dtype) -> torch.dtype:
    """The smallest dtype that loses nothing of a case in ``computed_in``."""
    types = {gguf_file.TYPE_NAMES.get(tensor.type_id) for tensor in header.tensors.values() if len(tensor.shape) > 1}
    if types == {"f32"}:
        return torch.float32
    return USUAL if types == {"bf16"} else computed_in


def _write(gguf: Path, config: PretrainedConfig, dtype: torch.dtype, folder: Path) -> None:
    """Giving the config spares the second of two slow readings of the vocabulary."""
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, config=config, dtype=dtype)
    model.hf_quantizer = None  # transformers refuses to save what it read from GGUF, though it is plain tensors now
    with suppress(AttributeError):
        del model.config.quantization_config
    model.save_pretrained(folder)


def _sweep(cache: Path) -> None:
    """Remove what a killed process left half made."""
    for partial in cache.glob("*.partial"):
        pid = partial.name.split(".")[-2]
        if not Path(f"/proc/{pid}").exists():
            shutil.rmtree(partial, ignore_errors=True)
