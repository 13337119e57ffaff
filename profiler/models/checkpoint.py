"""Real weights that are here: every tensor accounted for, their identity, and what lies beside them unread."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from profiler import files
from profiler.case import BESIDE, ModelNote
from profiler.errors import ProfileError
from profiler.files import FileSpan
from profiler.models import gguf_tensors, safetensors
from profiler.models import scheme as schemes
from profiler.models.account import Account, FileTensor, account, in_text_model
from profiler.models.geometry import EMBEDDING, HEAD, Geometry
from profiler.models.gguf import GgufHeader
from profiler.models.gguf_tensors import from_gguf
from profiler.models.safetensors import INDEX, SINGLE, SafetensorsTensor
from profiler.models.stored import Stored, from_safetensors
from profiler.units import bytes_text, printable

ADAPTER = "adapter_config.json"
NAMED_ELSEWHERE = "transformers_weights"  # a field of config.json by which transformers reads another file


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The weight files of a model whose config describes them."""

    account: Account
    stored: Stored  # the bytes of every weight
    spans: tuple[FileSpan, ...]
    beside: tuple[ModelNote, ...] = ()

    @property
    def remarks(self) -> tuple[ModelNote, ...]:
        """What a person should know before a figure of these weights."""
        return (*self.account.remarks, *self.beside)

    def content_id(self) -> str:
        """Hash of the values; see ``identity`` for what it covers."""
        return files.content_id(self.spans)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON content for a row."""
        covers = files.covers(sum(span.nbytes for span in self.spans))
        return self.account.to_json() | {"identity": covers, "beside": [remark.text for remark in self.beside]}


def of_folder(folder: Path, raw: Mapping[str, Any], geometry: Geometry) -> Checkpoint | None:
    """The safetensors of ``folder``; ``None`` if there are none that transformers would read.

    Raises ProfileError for broken files, and where config and weights are not of the same model.
    """
    _check_named(raw)
    tensors = safetensors.verify(folder)
    if not tensors:
        return None
    try:
        accounted = account_of(tensors, raw, geometry)
    except ProfileError as error:
        raise ProfileError(error.message + _not_named(folder), error.hint) from None
    if geometry.tied and not is_quantized(raw):
        _check_head(tensors)
    stored = from_safetensors(geometry, tensors, schemes.of(raw))
    return Checkpoint(accounted, stored, tuple(safetensors.spans(tensors)), tuple(_beside(folder, raw)))


def _not_named(folder: Path) -> str:
    """Files in which missing weights may be, as the end of a message."""
    others = [path for path in safetensors.unread(folder) if not path.name.startswith("adapter_")]
    if not others:
        return ""
    more = f" and {len(others) - 1} more" if len(others) > 1 else ""
    by = SINGLE if (folder / SINGLE).is_file() else f"{INDEX}, which does not name it"
    return f"; {printable(others[0].name, 60)}{more} beside is not read, because of {by}"


def of_gguf(path: Path, header: GgufHeader, geometry: Geometry) -> Checkpoint:
    """A GGUF file. Raises ProfileError where metadata and tensors are not of the same model."""
    found = account(gguf_tensors.entries(header, geometry), geometry, by=gguf_tensors.description(header))
    return Checkpoint(found, from_gguf(geometry, header), tuple(gguf_spans(path, header)))


def gguf_spans(path: Path, header: GgufHeader) -> list[FileSpan]:
    """The bytes of a GGUF file that make up its identity: all metadata, and every tensor."""
    tensors = [
        FileSpan(f"{t.name} {t.type_id} {list(t.shape)}", path, header.data + t.offset, t.nbytes or 0)
        for t in header.tensors.values()
    ]
    return [FileSpan("header", path, 0, header.data, whole=True), *tensors]


def account_of(tensors: Mapping[str, SafetensorsTensor], raw: Mapping[str, Any], geometry: Geometry) -> Account:
    """The account of a checkpoint of safetensors."""
    stored = (
        FileTensor(name, in_text_model(name), tensor.shape, tensor.dtype, tensor.nbytes)
        for name, tensor in tensors.items()
    )
    return account(stored, geometry, scheme=is_quantized(raw))


def is_quantized(raw: Mapping[str, Any]) -> bool:
    """Whether a config states a quantization of its own."""
    return schemes.of(raw) is not None


def why_missing(folder: Path) -> str:
    """Why a folder has no real weights, in words."""
    return safetensors.why_missing(folder)


def _check_named(raw: Mapping[str, Any]) -> None:
    name = raw.get(NAMED_ELSEWHERE)
    if name not in (None, SINGLE, INDEX):
        raise ProfileError(
            f"config.json says {NAMED_ELSEWHERE}: {printable(name, 60)}, and only {SINGLE} or {INDEX} are read",
            "Rename the file and take the field out of config.json.",
        )


def _check_head(tensors: Mapping[str, SafetensorsTensor]) -> None:
    """A tied head that is stored all the same must be the embedding: with other values transformers does not tie."""
    by_target = {in_text_model(name): tensor for name, tensor in tensors.items()}
    head, embedding = by_target.get(HEAD), by_target.get(EMBEDDING)
    if head is None or embedding is None or safetensors.same_data(head, embedding):
        return
    raise ProfileError(
        f"config.json says that the output head is the input embedding (tie_word_embeddings), but the file holds "
        f"both, {HEAD} ({_described(head)}) and {EMBEDDING} ({_described(embedding)}), and their values differ",
        f'If both are meant, write "tie_word_embeddings": false into config.json. Else take {HEAD} out of the file.',
    )


def _described(tensor: SafetensorsTensor) -> str:
    return f"{tensor.dtype} {list(tensor.shape)}, {bytes_text(tensor.nbytes)}"


def _beside(folder: Path, raw: Mapping[str, Any]) -> list[ModelNote]:
    """Files of the folder that some loaders read and this one does not."""
    found = []
    others = safetensors.unread(folder)
    if (folder / ADAPTER).is_file():
        adapters = [path for path in others if path.name.startswith("adapter_")]
        others = [path for path in others if path not in adapters]
        names = " and ".join(printable(path.name, 60) for path in adapters) or ADAPTER
        found.append(
            ModelNote(f"{names} beside the weights is not applied: the model is measured without it", BESIDE)
        )
    if others:
        shown = ", ".join(f"{printable(path.name, 60)} ({bytes_text(path.stat().st_size)})" for path in others[:3])
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        found.append(ModelNote(f"files beside the weights are not read: {shown}{more}", BESIDE))
    return found
