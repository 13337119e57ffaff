"""A GGUF file as a folder of safetensors, unpacked once: transformers needs minutes to read GGUF each time.

Values are those that the quantized file stands for, kept in the dtype they are computed in, or in fp32 when the file
itself is fp32: 16 bits would round what a case in fp32 computes with. The folder lies in the user's cache under
``profile/gguf`` and may be deleted at any time.
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from itertools import chain
from math import prod
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM, PretrainedConfig

from profiler import folders
from profiler.backends.base import Beat
from profiler.errors import ProfileError
from profiler.files import content_id
from profiler.models import gguf as models_gguf
from profiler.models.checkpoint import gguf_spans
from profiler.units import bytes_text, printable

RULES = 2  # of unpacking: folders made by others are made again
USUAL = torch.bfloat16
SPARE = 1.1  # of the disk space that the folder itself takes


def unpacked(
    gguf: Path, config: PretrainedConfig, beat: Beat, identity: str | None = None, computed_in: torch.dtype = USUAL
) -> Path:
    """The folder of ``gguf`` for cases in ``computed_in``, made on first use.

    Raises ProfileError when the disk is too small for it.

    ``identity``: hash of the file's content, where it is known already.
    """
    cache = folders.cache("gguf")
    header = models_gguf.header(gguf)
    if header.is_split:
        raise ProfileError(
            f"{printable(gguf.name)} is one part of a split file, which transformers cannot read",
            "Merge its parts: llama-gguf-split --merge FIRST.gguf MERGED.gguf",
        )
    identity = identity or content_id(gguf_spans(gguf, header))
    dtype = _kept_in(header, computed_in)
    other = "" if dtype == _kept_in(header, USUAL) else f"-{str(dtype).removeprefix('torch.')}"
    target = cache / f"{identity}-transformers-{transformers.__version__}-{RULES}{other}"
    if os.path.lexists(target):
        if _is_ours(target, cache):
            return target
        _set_aside(target)
    if not os.access(cache, os.W_OK):
        cache = folders.scratch("gguf")
        target = cache / target.name
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


def _kept_in(header: models_gguf.GgufHeader, computed_in: torch.dtype) -> torch.dtype:
    """The smallest dtype that loses nothing of a case in ``computed_in``."""
    types = {
        models_gguf.TYPE_NAMES.get(tensor.type_id) for tensor in header.tensors.values() if len(tensor.shape) > 1
    }
    if types == {"f32"}:
        return torch.float32
    return USUAL if types == {"bf16"} else computed_in


def _is_ours(target: Path, cache: Path) -> bool:
    """Whether nobody else can have written the folder, nor any file of it. Says who may have."""
    for path in chain([target], target.rglob("*")):  # a link is not walked through
        why = folders.distrust(path, cache)
        if why is not None:
            folders.note(f"{why}: the file is unpacked anew")
            return False
    return True


def _set_aside(target: Path) -> None:
    """Make room for a folder of ours: what cannot be removed goes by another name."""
    aside = target.with_name(f"{target.name}.{os.getpid()}.partial")
    target.rename(aside)
    if aside.is_symlink() or not aside.is_dir():
        aside.unlink()
    else:
        shutil.rmtree(aside, ignore_errors=True)


def _write(gguf: Path, config: PretrainedConfig, dtype: torch.dtype, folder: Path) -> None:
    """Giving the config spares the second of two slow readings of the vocabulary.

    Raises ProfileError for a weight that transformers found nothing for: it would be saved with random values.
    """
    model, report = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, config=config, dtype=dtype, output_loading_info=True
    )
    absent = sorted(report["missing_keys"]) + sorted(str(key) for key in report["mismatched_keys"])
    if absent:
        name = printable(gguf.name)
        raise ProfileError(f"{name}: transformers found no values for {len(absent)} weights, first {absent[0]}")
    model.hf_quantizer = None  # transformers refuses to save what it read from GGUF, though it is plain tensors now
    with suppress(AttributeError):
        del model.config.quantization_config
    model.save_pretrained(folder)
    _close(folder)


def _close(folder: Path) -> None:
    """To everybody else, whatever the umask."""
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o700 if path.is_dir() else 0o600)


def _sweep(cache: Path) -> None:
    """Remove what a killed process left half made."""
    for partial in cache.glob("*.partial"):
        pid = partial.name.split(".")[-2]
        if not Path(f"/proc/{pid}").exists():
            shutil.rmtree(partial, ignore_errors=True)
