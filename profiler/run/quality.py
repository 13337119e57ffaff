"""``--quality`` within a sweep: what is compared with what, how long it takes, and when a stored row has it already.

A backend whose sessions give logits names a module in ``Backend.quality`` with two functions. ``prepare(case, source,
wanted, beat)`` computes what is missing of the reference, before the worker loads its model; ``measure(session, case,
source, wanted, beat)`` returns the ``quality`` of the row. ``wanted`` is the plain content that ``requested`` makes.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from profiler import backends, registry
from profiler.backends.base import Beat, OutOfMemory
from profiler.case import Case, Source, Task
from profiler.errors import ProfileError
from profiler.folders import expanded
from profiler.foreign import open_file
from profiler.quality import texts
from profiler.quality.definition import DEFINITION
from profiler.quality.placement import place
from profiler.quants.base import PLAIN_QUANTS
from profiler.results.measurement import Caution, Measurement
from profiler.run.refusal import Refusal, accepted
from profiler.units import printable

if TYPE_CHECKING:  # a worker imports little
    from profiler.cost.cases import CaseEstimate
    from profiler.models.resolve import Model
    from profiler.run.grid import Subject

CHARACTERS_PER_TOKEN = 3.5  # of the shipped set, by tokenizers for many languages
HEAD = 1.5  # a prefill computes the logits of one token, this pass those of all
REFERENCE = 3.0  # seconds of a reference ÷ those of a measured model: fp32, and the model is loaded once more
NO_REFERENCE = "Name the model that it was made from with --reference MODEL."
NO_PLAIN_FILE = "Put an F32, BF16 or F16 file of the model into its folder, or name one with --reference FILE."
PLAIN_FILES = ("f32", "bf16", "f16")  # quantizations of GGUF files that keep the weights, the best reference first


def requested(quality: bool, text: str | None, reference: str | None) -> dict[str, Any] | None:
    """What the options ask for, as plain content for workers; None without ``--quality``. Raises ProfileError."""
    if not quality:
        given = [name for name, value in (("--quality-text", text), ("--reference", reference)) if value is not None]
        if given:
            raise ProfileError(f"{given[0]} needs --quality")
        return None
    folder = None if text is None else expanded(text).absolute()
    found = texts.shipped() if folder is None else texts.of_folder(folder)
    return {
        "text": None if folder is None else str(folder),
        "hash": found.hash,
        "characters": sum(len(document.text) for document in found.documents),
        "documents": len(found.documents),
        "kinds": len({document.kind for document in found.documents}),
        "reference": None if reference is None else _reference(reference),
    }


def _reference(name: str) -> dict[str, Any]:
    from profiler.models.resolve import resolve

    model = resolve(name)
    if model.checkpoint is None:
        raise ProfileError(f"--reference: {model.name} has no real weights here: {model.no_weights}")
    return _described(model)


def _described(model: Model) -> dict[str, Any]:
    source = model.source
    return {
        "name": model.name,
        "model_id": model.id_for("real"),
        "quant": None if model.stored is None else model.stored.quant,
        "kind": source.kind,
        "location": source.location,
        "revision": source.revision,
        "config": dict(source.config),
    }


def checked(subject: Subject, wanted: Mapping[str, Any] | None, backend: str) -> Subject:
    """``subject``, if its quality can be measured as requested. Raises ProfileError."""
    if wanted is None:
        return subject
    if backends.find(backend).quality is None:
        having = [name for name in registry.names(backends.FOLDER) if backends.find(name).quality is not None]
        raise ProfileError(f"--quality: backend {backend} gives no logits", f"Use --backend {' or '.join(having)}.")
    if subject.weights == "synthetic":
        raise ProfileError(
            f"{subject.name}: --quality needs real weights, and these are random values",
            "Give a folder, a .gguf file or a Hugging Face id with --weights real.",
        )
    stored, reads_gguf = subject.checkpoint_format, backends.find(backend).gguf
    if wanted["reference"] is not None:
        if reads_gguf and wanted["reference"]["kind"] != "gguf":
            raise ProfileError(
                f"--reference: backend {backend} reads .gguf files, and {wanted['reference']['name']} is none"
            )
    elif reads_gguf and _beside(subject.source.location) is None:
        quant = "" if stored is None else f" ({stored.quant})"
        raise ProfileError(f"{subject.name}: its weights are themselves quantized{quant}", NO_PLAIN_FILE)
    elif not reads_gguf and stored is not None and stored.quant not in PLAIN_QUANTS:
        raise ProfileError(f"{subject.name}: its weights are themselves quantized ({stored.quant})", NO_REFERENCE)
    return subject


def checked_files(
    subjects: Sequence[Subject], wanted: Mapping[str, Any] | None, backend: str
) -> tuple[tuple[Subject, ...], tuple[Refusal, ...]]:
    """The GGUF files that ``checked`` accepts, and the others. Raises ProfileError if it accepts none."""
    by_name = {each.source.location: each for each in subjects}
    found, refused = accepted(list(by_name), lambda name: checked(by_name[name], wanted, backend))
    return tuple(found), refused


def with_references(wanted: Mapping[str, Any] | None, subjects: Sequence[Subject]) -> dict[str, Any] | None:
    """``wanted`` with the reference of each GGUF file that ``checked`` has accepted, by its ``model_id``."""
    if wanted is None or wanted["reference"] is not None:
        return None if wanted is None else dict(wanted)
    return {**wanted, "references": {each.model_id: _beside(each.source.location) for each in subjects}}


@lru_cache(maxsize=256)
def _beside(file: str) -> dict[str, Any] | None:
    """The best unquantized GGUF file of the same weights in the folder of ``file``, which may be that file.

    Every fine-tuned model has the shapes of the one that it was made from. Its norms differ, and they are stored in
    fp32 in files of every quantization.
    """
    from profiler.models.resolve import resolve

    own = resolve(file).model_id
    alike = [model for model in _plain_files(Path(file).parent) if model.model_id == own]
    alike = [model for model in alike if _vectors(model.source.location) == _vectors(file)]
    best = min(alike, key=lambda model: PLAIN_FILES.index(_quant(model)), default=None)
    return None if best is None else _described(best)


@lru_cache(maxsize=256)
def _vectors(file: str) -> str:
    """A hash of the vectors of a GGUF file, such as the weights of its norms. Raises ProfileError."""
    from profiler.models import gguf

    whole = hashlib.sha256()
    header = gguf.model_header(Path(file))
    found: dict[str, bytes] = {}
    for path, part in header.parts or ((Path(file), header),):
        with open_file(path, printable(path)) as content:
            for tensor in part.tensors.values():
                if len(tensor.shape) == 1 and tensor.type_id == gguf.TYPES["f32"]:
                    content.seek(part.data + tensor.offset)
                    found[tensor.name] = content.read(tensor.nbytes or 0)
    for name in sorted(found):
        whole.update(name.encode() + found[name])
    return whole.hexdigest()


@lru_cache(maxsize=16)
def _plain_files(folder: Path) -> list[Model]:
    from profiler.models.resolve import resolve
    from profiler.run import gguf_files  # which imports much that a worker does not need

    found = []
    for file in gguf_files.of_folder(str(folder)):
        try:
            found.append(resolve(file))
        except ProfileError:  # an unfinished download, or a model that we do not know
            continue
    return [model for model in found if _quant(model) in PLAIN_FILES]


def _quant(model: Model) -> str:
    return "" if model.stored is None else model.stored.quant


def prepare(case: Case, source: Source, wanted: Mapping[str, Any] | None, beat: Beat) -> str | None:
    """Compute what is missing of the reference for ``case``. Returns why that failed, or None."""
    if wanted is None:
        return None
    try:
        _module(case.backend).prepare(case, source, wanted, beat)
    except ProfileError as error:
        return error.message
    return None


def add(
    row: Measurement, session: Any, source: Source, wanted: Mapping[str, Any] | None, failed: str | None, beat: Beat
) -> Measurement:
    """``row`` with its quality, or with the reason why it is unknown; ``failed``: what ``prepare`` returned."""
    if wanted is None or row.outcome != "ok":
        return row
    try:
        if failed is not None:
            raise ProfileError(failed)
        found = _module(row.case.backend).measure(session, row.case, source, wanted, beat)
    except (OutOfMemory, ProfileError) as error:
        reason = error.message if isinstance(error, ProfileError) else f"out of memory: {error}"
        unknown = Caution("quality-unknown", f"the quality is unknown: {reason}")
        return replace(row, quality={"reason": reason}, cautions=(*row.cautions, unknown))
    return replace(row, quality=found)


def _module(backend: str) -> ModuleType:
    return importlib.import_module(backends.find(backend).quality or "")


def seconds(case: Case, estimate: CaseEstimate, wanted: Mapping[str, Any] | None) -> float:
    """Estimated seconds to score the text set with a case's model."""
    if wanted is None:
        return 0.0
    steps_s: float = texts.DECODED_TOKENS * wanted["kinds"] * estimate.step_s.value / case.batch
    return _prompt_s(case, estimate, wanted) + steps_s


def reference_s(task: Task, wanted: Mapping[str, Any] | None) -> float:
    """Estimated seconds to compute the reference of a model, of which ``task`` is a planned case."""
    if wanted is None or task.estimate is None:
        return 0.0
    return REFERENCE * _prompt_s(task.case, task.estimate, wanted) + _disk_s(task, wanted)


def _disk_s(task: Task, wanted: Mapping[str, Any]) -> float:
    """Estimated seconds in which the weights of a reference are read that does not fit the memory."""
    if task.geometry is None or backends.find(task.case.backend).gguf:
        return 0.0
    source = task.source
    try:
        placement = place(task.geometry.parameters, source.kind, source.config, task.case.device)
    except ProfileError:  # there will be no reference
        return 0.0
    return placement.disk_s(_tokens(wanted), wanted["documents"], task.case.context)


def _prompt_s(case: Case, estimate: CaseEstimate, wanted: Mapping[str, Any]) -> float:
    return _tokens(wanted) * HEAD * estimate.prefill_s.value / (case.context * case.batch)


def _tokens(wanted: Mapping[str, Any]) -> float:
    tokens: float = wanted["characters"] / CHARACTERS_PER_TOKEN
    return tokens


def has(row: Measurement, wanted: Mapping[str, Any] | None) -> bool:
    """Whether a stored row has the quality that is requested."""
    if wanted is None:
        return True
    known = row.quality or {}
    if "blocks" not in known:
        return False
    return (
        known.get("definition") == DEFINITION
        and (known.get("text") or {}).get("hash") == wanted["hash"]
        and (known.get("reference") or {}).get("model_id") == reference_id(row.case, wanted)
    )


def reference_id(case: Case, wanted: Mapping[str, Any] | None) -> str:
    """The ``model_id`` of the reference of a case, by which cases share it."""
    wanted = wanted or {}
    other = wanted.get("reference") or (wanted.get("references") or {}).get(case.model_id)
    return other["model_id"] if other else case.model_id
