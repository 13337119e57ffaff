"""The quality of a loaded model: the text set by its tokens, the reference, and what a row stores of the comparison.

``prepare`` computes the windows of the reference that are not on disk yet, in a process of its own, so that two
models are never in this one's memory, and before this process loads its model. ``measure`` compares the loaded model
with them. The reference has the same weights, or those of ``--reference``, in fp32 if the device has the memory for
that, else in bf16, else on the CPU, else from disk (``profiler/quality/placement.py``).

Prompts and decode steps are computed by different kernels. All tokens are scored as a prompt; the last
``DECODED_TOKENS`` of one window of each kind are read a second time by decode steps of the case's path, after the
same tokens.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import transformers

from profiler import folders
from profiler.backends.base import Beat
from profiler.backends.hf import text_pass
from profiler.backends.hf.comparison import DecodeFigures, Keeper, PositionFigures, Scorer, stored
from profiler.backends.hf.memory import memory_errors
from profiler.case import Case, Source
from profiler.decode_path import EAGER
from profiler.errors import ProfileError, flat
from profiler.foreign import MAX_TOKENIZER_BYTES, exists, read_bytes
from profiler.models import families, hub
from profiler.quality import references, texts
from profiler.quality.definition import DEFINITION
from profiler.quality.placement import DISK_CHUNK, DTYPES, place
from profiler.quality.texts import TextWindow
from profiler.quants.base import PLAIN_QUANTS
from profiler.units import printable

FIRST_TO_GO = "1000"  # oom_score_adj of a process whose weights do not fit: the kernel kills it before any other
TOKENIZER = "tokenizer.json"
BEAT, DONE = "beat ", "done"  # lines of the process that computes a reference
LAST_LINES = 20  # of its output that are kept for an error message


@dataclass(frozen=True, slots=True)
class ReferenceModel:
    """The model that others are compared with, as a case that this backend can load."""

    case: Case  # its dtype and device are chosen by ``_chosen``
    source: Source
    from_disk: bool = False


def prepare(case: Case, source: Source, wanted: Mapping[str, Any], beat: Beat) -> None:
    """Compute what is missing of the reference for ``case``. Raises ProfileError if that is impossible."""
    model = _reference(case, source, wanted)
    cut = windows(case, source, wanted)
    _ensured(model, cut, beat, DTYPES[:1])


def measure(session: Any, case: Case, source: Source, wanted: Mapping[str, Any], beat: Beat) -> dict[str, Any]:
    """The ``quality`` of a row of ``case``, whose model ``session`` holds. Raises ProfileError, OutOfMemory."""
    model, cut = _reference(case, source, wanted), windows(case, source, wanted)
    names, reference = _ensured(model, cut, beat, DTYPES)  # less memory is free now than when it was chosen
    known: dict[str, PositionFigures] = session.scored
    decode = DecodeFigures(case.path)
    started, found = time.monotonic(), []
    made: dict[str, Any] = {}
    vocabulary = session.model.config.get_text_config().vocab_size
    for number, (window, name) in enumerate(zip(cut, names, strict=True), 1):
        beat(f"quality {number}/{len(cut)}")
        steps = decode.lacks(window)
        if steps or name not in known:
            arrays = references.read(name)
            if arrays is None:
                raise ProfileError("the reference was removed from the cache while it was used", "Try again.")
            if arrays.made.get("vocabulary") not in (None, vocabulary):
                raise ProfileError(f"the reference has another vocabulary than {printable(case.model)}")
            with memory_errors():
                known[name] = _scored(session.model, window, arrays, decode if steps else None, beat)
            if not known[name].finite:
                raise ProfileError("the model predicts values that are not numbers")
            made = made or dict(arrays.made)
        found.append((window, known[name]))
    made = made or _provenance(names)
    return stored(found, decode.content()) | {
        "definition": DEFINITION,
        "text": {**_set(wanted["text"]).provenance(cut), "hash": wanted["hash"]},
        "reference": {
            "model": reference.case.model,
            "model_id": reference.case.model_id,
            "dtype": reference.case.dtype,
            **_packed(wanted["reference"]),
            **made,
        },
        "window": _size(case),
        "seconds": time.monotonic() - started,
    }


def _packed(other: Mapping[str, Any] | None) -> dict[str, str]:
    """The quantization of a named reference's own weights, if they are quantized."""
    own = None if other is None else other["quant"]
    return {} if own is None or own in PLAIN_QUANTS else {"packed": own}


def _provenance(names: Sequence[str]) -> dict[str, Any]:
    """What computed a reference, by its first window; empty if that was removed from the cache."""
    arrays = references.read(names[0])
    return {} if arrays is None else dict(arrays.made)


def _scored(
    model: Any, window: TextWindow, arrays: references.ReferenceArrays, decode: DecodeFigures | None, beat: Beat
) -> PositionFigures:
    """Figures of a window read as a prompt; ``decode`` gets those of its last tokens, by both ways."""
    device = model.device
    prompt = Scorer(window, arrays, device)
    if decode is None:
        text_pass.read_window(model, window.tokens, prompt, beat)
        return prompt.figures()
    steps = Scorer(window, arrays, device)
    ran, reason = text_pass.read_window(model, window.tokens, prompt, beat, steps, decode.path)
    decode.add(window.kind, steps.figures(), prompt.figures(), ran, reason)
    return prompt.figures()


def windows(case: Case, source: Source, wanted: Mapping[str, Any]) -> list[TextWindow]:
    """The text set by the tokens of the case's model, in windows of its context.

    Raises ProfileError without a tokenizer, and if that of the reference gives other tokens.
    """
    encode = _tokenizer(source.kind, source.location, source.revision, case.model_id)
    other = wanted["reference"]
    encode_reference = None
    if other is not None and (found := _source(other)).kind in ("folder", "gguf", "hub"):
        encode_reference = _tokenizer(found.kind, found.location, found.revision, other["model_id"])
    cut: list[TextWindow] = []
    for document in _set(wanted["text"]).documents:
        start, tokens = encode(document.text)
        if encode_reference is not None and encode_reference(document.text) != (start, tokens):
            raise ProfileError(
                f"{printable(other['name'])} and {printable(case.model)} have different tokens, so their"
                " predictions cannot be compared"
            )
        cut += texts.windows(document.kind, document.name, start, tokens, _size(case))
    return cut


def _size(case: Case) -> int:
    return max(texts.MIN_WINDOW_TOKENS, case.context)


@lru_cache(maxsize=4)
def _set(folder: str | None) -> texts.TextSet:
    return texts.shipped() if folder is None else texts.of_folder(Path(folder))


Encode = Callable[[str], tuple[list[int], list[int]]]


@lru_cache(maxsize=4)
def _tokenizer(kind: str, location: str, revision: str | None, model_id: str) -> Encode:
    """A function that gives the tokens before any text, and those of a text. Raises ProfileError."""
    from tokenizers import Tokenizer

    file = _tokenizer_file(kind, location, revision, model_id)
    if not exists(file):
        raise ProfileError(
            f"{printable(location)} has no {TOKENIZER}", "Copy it from where the model was published into its folder."
        )
    try:
        made = Tokenizer.from_buffer(read_bytes(file, MAX_TOKENIZER_BYTES))
    except ProfileError:
        raise
    except Exception as error:  # its only class of errors
        raise ProfileError(f"{printable(file)} is not a tokenizer: {printable(error, 120)}") from None
    made.no_truncation()  # which a script for training may have left in the file
    made.no_padding()

    def encode(text: str) -> tuple[list[int], list[int]]:
        found = made.encode(text)
        special = found.special_tokens_mask
        begin = next((place for place, each in enumerate(special) if not each), len(special))
        return found.ids[:begin], [token for token, each in zip(found.ids, special, strict=True) if not each]

    return encode


def _tokenizer_file(kind: str, location: str, revision: str | None, model_id: str) -> Path:
    """The ``tokenizer.json`` of a model; that of a GGUF file is written on first use, which takes a minute."""
    if kind == "folder":
        return Path(location) / TOKENIZER
    if kind == "hub":
        snapshot = hub.downloaded_snapshot(location, revision)
        return (snapshot or Path(location)) / TOKENIZER
    path = Path(location)
    cache = folders.scratch("gguf")
    target = cache / f"{model_id}-tokenizer-{transformers.__version__}.json"
    if target.exists() and folders.distrust(target, cache) is None:
        return target
    made = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
    made.backend_tokenizer.save(str(partial))
    partial.chmod(0o600)
    partial.replace(target)
    return target


def _source(content: Mapping[str, Any]) -> Source:
    return Source(content["kind"], content["location"], content["revision"], content["config"])


def _reference(case: Case, source: Source, wanted: Mapping[str, Any]) -> ReferenceModel:
    """The model to compare with, in the best dtype; ``_ensured`` chooses the one that is used."""
    other = wanted["reference"]
    plain = replace(case, quant=DTYPES[0], dtype=DTYPES[0], path=EAGER)
    if other is None:
        return ReferenceModel(plain, source)
    return ReferenceModel(replace(plain, model=other["name"], model_id=other["model_id"]), _source(other))


def _ensured(
    model: ReferenceModel, cut: Sequence[TextWindow], beat: Beat, good: Sequence[str]
) -> tuple[list[str], ReferenceModel]:
    """The names of the windows of a reference, computed if they are missing, and the reference as it was computed.

    A complete reference in one of the dtypes ``good`` is used without asking for memory.
    """

    def missing(dtype: str) -> list[TextWindow]:
        names = zip(cut, _names(model, dtype, cut), strict=True)
        return [window for window, name in names if references.read(name) is None]

    for dtype in good:
        if not missing(dtype):
            return _names(model, dtype, cut), _with_dtype(model, dtype)
    chosen = _chosen(model)
    if left := missing(chosen.case.dtype):
        _compute(chosen, left, beat)
    return _names(model, chosen.case.dtype, cut), chosen


def _names(model: ReferenceModel, dtype: str, cut: Sequence[TextWindow]) -> list[str]:
    return [_name(model.case.model_id, dtype, window) for window in cut]


def _name(model_id: str, dtype: str, window: TextWindow) -> str:
    """The name under which the reference of a window is stored. It depends on the versions of torch and transformers,
    because another version may compute other logits, as may a head that computes more or fewer of them at a time.
    """
    by = f"{dtype} {text_pass.HEAD_BYTES} torch {torch.__version__} transformers {transformers.__version__}"
    return references.key(model_id, by, window.tokens, window.unscored)


def _with_dtype(model: ReferenceModel, dtype: str, device: str | None = None) -> ReferenceModel:
    case = replace(model.case, quant=dtype, dtype=dtype, device=device or model.case.device)
    return replace(model, case=case)


def _chosen(model: ReferenceModel) -> ReferenceModel:
    """The best dtype and device that have the memory now. Raises ProfileError if none has."""
    source = model.source
    found = place(families.geometry(source.config).parameters, source.kind, source.config, model.case.device)
    return replace(_with_dtype(model, found.dtype, found.device), from_disk=found.from_disk)


def _compute(model: ReferenceModel, cut: Sequence[TextWindow], beat: Beat) -> None:
    """Compute windows of a reference in a process of its own. Raises ProfileError with its last words if it fails."""
    request = {
        "case": asdict(model.case),
        "source": {**asdict(model.source), "config": dict(model.source.config)},
        "windows": [asdict(window) for window in cut],
        "from_disk": model.from_disk,
    }
    beat("reference: starting" + ", with its weights on disk because they do not fit" * model.from_disk)
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "profiler.backends.hf.quality"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="backslashreplace",
        env={**os.environ, **folders.child_environ(os.environ)},
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(json.dumps(request))
        process.stdin.close()
        last: deque[str] = deque(maxlen=LAST_LINES)
        for line in process.stdout:
            if line.startswith(BEAT):
                beat(line.removeprefix(BEAT).strip())
            elif line.strip():
                last.append(line.strip())
    if process.returncode or not last or last[-1] != DONE:
        said = printable(last[-1], 300) if last else "it said nothing"
        raise ProfileError(
            f"the reference in {model.case.dtype} could not be computed (exit {process.returncode}): {said}"
        )


def compute(request: Mapping[str, Any], say: Beat) -> None:
    """Load a reference, and keep its distributions over the requested windows. Runs in a process of its own."""
    from profiler.backends.hf.session import open_session

    case = Case(**request["case"])
    cut = [TextWindow(**{**window, "tokens": tuple(window["tokens"])}) for window in request["windows"]]
    from_disk = request["from_disk"]
    if from_disk:
        Path("/proc/self/oom_score_adj").write_text(FIRST_TO_GO)
    session = open_session(case, Source(**request["source"]), say)
    made = {"device": case.device, "torch": torch.__version__, "transformers": transformers.__version__}
    made |= {"from_disk": True} if from_disk else {}
    made |= {"vocabulary": session.model.config.get_text_config().vocab_size}
    for number, window in enumerate(cut, 1):
        say(f"reference {number}/{len(cut)}")
        keeper = Keeper(window)
        text_pass.read_window(session.model, window.tokens, keeper, say, chunk=DISK_CHUNK if from_disk else None)
        references.write(_name(case.model_id, case.dtype, window), keeper.arrays(made))


def main() -> None:
    """Serve one request on standard input."""
    last = 0.0

    def say(text: str) -> None:
        nonlocal last
        if text and (time.monotonic() - last > 0.2 or "reference" in text):
            last = time.monotonic()
            print(BEAT + text, flush=True)

    try:
        compute(json.load(sys.stdin), say)
    except Exception as error:
        print(printable(flat(error) or type(error).__name__, 300), flush=True)
        sys.exit(1)
    print(DONE, flush=True)


if __name__ == "__main__":
    main()
