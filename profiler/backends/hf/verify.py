"""What transformers took of a checkpoint, held against its headers; nothing else of its folder is loaded."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from profiler.errors import ProfileError
from profiler.models import families, safetensors_file
from profiler.models.account import BASE, Account, in_text_model
from profiler.models.checkpoint import account_of, is_quantized
from profiler.models.geometry import Geometry
from profiler.models.safetensors_file import INDEX, SINGLE
from profiler.units import printable

QUANTIZED = ("Linear4bit", "Linear8bitLt")  # modules whose weight has another shape than its values
CHANGED = "The files may have changed while they were read: try again."


@contextmanager
def weights_alone(folder: Path) -> Iterator[Path]:
    """A folder of links to the weight files of ``folder``, as long as they are being read.

    transformers looks at more than weights: it attaches an adapter that lies beside them where peft is installed, and
    prefers a distributed checkpoint. What is measured must not depend on either. Raises ProfileError when no such
    folder can be made.
    """
    paths = safetensors_file.shards(folder) or []
    if not (folder / SINGLE).is_file():
        paths = [*paths, folder / INDEX]
    with ExitStack() as kept:
        try:
            made = Path(kept.enter_context(tempfile.TemporaryDirectory(prefix="profile-weights-")))
            for path in paths:
                os.symlink(path.absolute(), made / path.name)
        except OSError as error:
            raise ProfileError(
                f"cannot link to the weights in a temporary folder: {printable(error.strerror or error)}",
                "Set TMPDIR to a folder that can be written to.",
            ) from error
        yield made


@dataclass(frozen=True, slots=True)
class Promise:
    """What the headers of a checkpoint and its config say before it is loaded."""

    geometry: Geometry
    account: Account
    quantized: bool  # by a scheme of its own, so that weights have no shapes of their own

    @classmethod
    def of(cls, folder: Path, raw: Mapping[str, Any], name: str) -> Promise:
        """Raises ProfileError where the two do not agree: the files may have changed since they were planned with."""
        try:
            geometry = families.geometry(raw)
            return cls(geometry, account_of(safetensors_file.verify(folder), raw, geometry), is_quantized(raw))
        except ProfileError as error:
            raise type(error)(f"{name}: {error.message}", error.hint) from None


def taken(model: PreTrainedModel, report: Mapping[str, Any], promise: Promise, name: str) -> None:
    """Raise ProfileError unless the model took every tensor that was promised, and no other."""
    absent = sorted(report["missing_keys"]) + sorted(str(key[0]) for key in report["mismatched_keys"])
    if absent:
        which = f"{len(absent)} weights are missing or of another shape" if len(absent) > 1 else "a weight is missing"
        raise ProfileError(f"{name}: {which}, first {printable(absent[0])}", CHANGED)
    ignored = sorted(set(report["unexpected_keys"]) - _left(promise.account))
    if ignored:
        count = f"{len(ignored)} tensors" if len(ignored) > 1 else "a tensor"
        raise ProfileError(f"{name}: transformers did not take {count} of the file, first {printable(ignored[0])}")
    if not promise.quantized:
        _check_tie(model, promise.geometry, name)
        _check_count(model, promise.geometry, name)
        _check_values(model, name)


def _left(accounted: Account) -> set[str]:
    """Names that transformers may report as unexpected."""
    names = {in_text_model(name) for name in accounted.left_names}
    return names | {BASE + name for name in names} | {name.removeprefix(BASE) for name in names}


def _check_count(model: PreTrainedModel, geometry: Geometry, name: str) -> None:
    count = parameters(model)
    if count != geometry.parameters:
        raise ProfileError(
            f"{name}: the loaded model has {count:,} parameters, and its config describes {geometry.parameters:,}"
        )


def _check_values(model: PreTrainedModel, name: str) -> None:
    """Codes in a module that does not unpack them would be multiplied as if they were values."""
    for path, module in model.named_modules():
        for label, tensor in _own(module):
            if not tensor.is_floating_point() and type(module).__name__ not in QUANTIZED:
                dtype = str(tensor.dtype).removeprefix("torch.")
                raise ProfileError(f"{name}: {path}.{label} was loaded as {dtype}, which are no values")


def parameters(model: PreTrainedModel) -> int:
    """Parameters of a loaded model as values, however they are packed; tied ones once."""
    counts: dict[int, int] = {}
    for module in model.modules():
        for label, tensor in _own(module):
            packed = label == "weight" and type(module).__name__ in QUANTIZED
            counts[id(tensor)] = module.in_features * module.out_features if packed else tensor.numel()
    return sum(counts.values())


def _own(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters of a module itself, and its buffers that checkpoints store."""
    yield from module.named_parameters(recurse=False)
    for label, buffer in module.named_buffers(recurse=False):
        if label not in module._non_persistent_buffers_set:
            yield label, buffer


def _check_tie(model: PreTrainedModel, geometry: Geometry, name: str) -> None:
    head, table = model.get_output_embeddings(), model.get_input_embeddings()
    tied = head is not None and head.weight is table.weight
    if tied != geometry.tied:
        does = "tied the output head to the embedding" if tied else "did not tie the output head to the embedding"
        raise ProfileError(f"{name}: transformers {does}, against the config")
