"""Weight files on this machine: their tensors, their identity, and files next to them that are not read."""

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
NAMED_ELSEWHERE = "transformers_weights"  # a field of config.json that makes transformers read another file


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The weight files of a model, checked against its config."""

    account: Account
    stored: Stored  # the bytes of every weight
    spans: tuple[FileSpan, ...]
    beside: tuple[ModelNote, ...] = ()  # files in the same folder that are not read

    @property
    def notes(self) -> tuple[ModelNote, ...]:
        """Notes that a reader of this model's figures needs."""
        return (*self.account.notes, *self.beside)

    def content_id(self) -> str:
        """Hash of the weights; ``files.content_id`` says what it covers."""
        return files.content_id(self.spans)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON for a row."""
        covers = files.covers(sum(span.nbytes for span in self.spans))
        return self.account.to_json() | {"identity": covers, "beside": [note.text for note in self.beside]}


def of_folder(folder: Path, raw: Mapping[str, Any], geometry: Geometry) -> Checkpoint | None:
    """The safetensors checkpoint in ``folder``; ``None`` if transformers would find none.

    Raises ProfileError for damaged files, and if config and weights belong to different models.
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
    """The end of a message about missing weights: files of the folder that may hold them."""
    others = [path for path in safetensors.unread(folder) if not path.name.startswith("adapter_")]
    if not others:
        return ""
    more = f" and {len(others) - 1} more files are" if len(others) > 1 else " is"
    by = SINGLE if (folder / SINGLE).is_file() else f"{INDEX}, which does not name it"
    return f"; {printable(others[0].name, 60)}{more} in the folder but not read, because of {by}"


def of_gguf(path: Path, header: GgufHeader, geometry: Geometry) -> Checkpoint:
    """The checkpoint in a GGUF file. Raises ProfileError if metadata and tensors belong to different models."""
    found = account(gguf_tensors.entries(header, geometry), geometry, by=gguf_tensors.description(header))
    return Checkpoint(found, from_gguf(geometry, header), tuple(gguf_spans(path, header)))


def gguf_spans(path: Path, header: GgufHeader) -> list[FileSpan]:
    """The parts of a GGUF file that its identity covers: all metadata, and every tensor."""
    tensors = [
        FileSpan(f"{t.name} {t.type_id} {list(t.shape)}", path, header.data + t.offset, t.nbytes or 0)
        for t in header.tensors.values()
    ]
    return [FileSpan("header", path, 0, header.data, whole=True), *tensors]


def account_of(tensors: Mapping[str, SafetensorsTensor], raw: Mapping[str, Any], geometry: Geometry) -> Account:
    """The account of a safetensors checkpoint."""
    stored = (
        FileTensor(name, in_text_model(name), tensor.shape, tensor.dtype, tensor.nbytes)
        for name, tensor in tensors.items()
    )
    return account(stored, geometry, scheme=is_quantized(raw))


def is_quantized(raw: Mapping[str, Any]) -> bool:
    """Whether a config states a quantization."""
    return schemes.of(raw) is not None


def why_missing(folder: Path) -> str:
    """Why a folder has no usable weights."""
    return safetensors.why_missing(folder)


def _check_named(raw: Mapping[str, Any]) -> None:
    name = raw.get(NAMED_ELSEWHERE)
    if name not in (None, SINGLE, INDEX):
        raise ProfileError(
            f"config.json sets {NAMED_ELSEWHERE} to {printable(name, 60)}, but only {SINGLE} and {INDEX} are read",
            "Rename the file and remove the field from config.json.",
        )


def _check_head(tensors: Mapping[str, SafetensorsTensor]) -> None:
    """A stored head of a tied model must equal the embedding; otherwise transformers does not tie them."""
    by_target = {in_text_model(name): tensor for name, tensor in tensors.items()}
    head, embedding = by_target.get(HEAD), by_target.get(EMBEDDING)
    if head is None or embedding is None or safetensors.same_data(head, embedding):
        return
    raise ProfileError(
        f"config.json says that the output head is the input embedding (tie_word_embeddings), but the file holds "
        f"both {HEAD} ({_described(head)}) and {EMBEDDING} ({_described(embedding)}) with different values",
        f'To keep both, set "tie_word_embeddings": false in config.json; otherwise remove {HEAD} from the file.',
    )


def _described(tensor: SafetensorsTensor) -> str:
    return f"{tensor.dtype} {list(tensor.shape)}, {bytes_text(tensor.nbytes)}"


def _beside(folder: Path, raw: Mapping[str, Any]) -> list[ModelNote]:
    """Notes on files in the folder that other loaders may read and we do not."""
    found = []
    others = safetensors.unread(folder)
    if (folder / ADAPTER).is_file():
        adapters = [path for path in others if path.name.startswith("adapter_")]
        others = [path for path in others if path not in adapters]
        names = " and ".join(printable(path.name, 60) for path in adapters) or ADAPTER
        found.append(ModelNote(f"the adapter {names} is not applied: the model is measured without it", BESIDE))
    if others:
        shown = ", ".join(f"{printable(path.name, 60)} ({bytes_text(path.stat().st_size)})" for path in others[:3])
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        found.append(ModelNote(f"other weight files in the folder are not read: {shown}{more}", BESIDE))
    return found
