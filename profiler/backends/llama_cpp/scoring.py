"""Compares a GGUF file with its reference over the text set.

``python -m profiler.backends.llama_cpp.scoring PARENT`` is the process of ``quality.measure``.

The definition, the windows and the code that compares are those of transformers (``backends/hf/comparison.py``); only
the logits come from the user's build of llama.cpp (``logits.py``). Both files are read by the same build, one after
the other. Texts are in the tokens of the file's own tokenizer, and that of the reference must give the same.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from profiler import devices
from profiler.backends.base import Beat, OutOfMemory
from profiler.backends.hf.comparison import DecodeFigures, Keeper, PositionFigures, Scorer, stored
from profiler.backends.hf.memory import memory_errors
from profiler.backends.llama_cpp import build as builds
from profiler.backends.llama_cpp.logits import LogitsReader
from profiler.backends.llama_cpp.program import die_with
from profiler.case import Case
from profiler.devices import allowance
from profiler.devices.base import kind_of
from profiler.errors import ProfileError
from profiler.quality import references, texts
from profiler.quality.definition import DEFINITION
from profiler.quality.placement import MARGIN, ROOM_BYTES
from profiler.quality.texts import DECODED_TOKENS, TextSet, TextWindow
from profiler.units import bytes_text, printable

HOST = torch.device("cpu")  # compares, whatever computes the logits
BEAT_S = 0.2  # between two signs of progress


class FileComparison:
    """A file and its reference, over one text set in windows of the case's context."""

    def __init__(
        self, case: Case, file: Path, reference: Case, reference_file: Path, text: TextSet, beat: Beat
    ) -> None:
        self._case, self._file, self._reference, self._reference_file = case, file, reference, reference_file
        self._text, self._beat = text, beat
        self._version = builds.find().versions()["llama.cpp"]
        self.size = max(texts.MIN_WINDOW_TOKENS, case.context)
        self.made: dict[str, Any] = {}  # what computed the reference
        self._missing: list[TextWindow] = []
        self._start: list[int] = []  # the tokens before any text
        self._tokens: dict[str, list[int]] = {}  # by the text of a document
        self._decode = DecodeFigures(case.path)

    def quality(self) -> dict[str, Any]:
        """The ``quality`` of a row, but for what the request says of the texts. Raises ProfileError, OutOfMemory."""
        found = self._scored()
        if found is None:
            self._compute_reference()
            found = self._scored()
        if found is None:
            raise ProfileError("the reference was removed from the cache while it was used", "Try again.")
        cut = [window for window, _ in found]
        reference = {"model": self._reference.model, "model_id": self._reference.model_id}
        return stored(found, self._decode.content()) | {
            "definition": DEFINITION,
            "text": self._text.provenance(cut),
            "reference": {**reference, "dtype": self._reference.quant, **self.made},
            "window": self.size,
        }

    def _scored(self) -> list[tuple[TextWindow, PositionFigures]] | None:
        """Figures of all windows; None if the reference of one is missing."""
        with LogitsReader(self._case, self._file, self.size, self._beat) as reader:
            self._start = reader.start
            self._tokens = {document.text: reader.tokens(document.text) for document in self._text.documents}
            cut = self._windows()
            self._missing = [window for window in cut if references.read(self._name(window)) is None]
            if self._missing:
                return None
            found = []
            for number, window in enumerate(cut, 1):
                self._beat(f"quality {number}/{len(cut)}")
                arrays = references.read(self._name(window))
                if arrays is None:
                    return None
                found.append((window, self._figures(reader, window, arrays)))
            return found

    def _figures(
        self, reader: LogitsReader, window: TextWindow, arrays: references.ReferenceArrays
    ) -> PositionFigures:
        """Figures of a window as a prompt; the last tokens of some are read once more by decode steps."""
        self.made = self.made or dict(arrays.made)
        if arrays.made.get("vocabulary") != reader.vocabulary:
            raise ProfileError(f"{self._reference_name} has another vocabulary than {printable(self._case.model)}")
        tokens = window.tokens[:-1]  # nothing follows the last one
        prompt = Scorer(window, arrays, HOST)
        reader.read(tokens, window.unscored - 1, prompt)
        figures = prompt.figures()
        if not figures.finite:
            raise ProfileError("the model predicts values that are not numbers")
        if self._decode.lacks(window):
            first = len(window.tokens) - DECODED_TOKENS
            after = Scorer(window, arrays, HOST)
            reader.read(tokens, first, after, steps_from=first)
            self._decode.add(window.kind, after.figures(), figures, self._case.path)
        return figures

    def _compute_reference(self) -> None:
        """Keep the reference's predictions over the missing windows. Raises ProfileError for one of other tokens."""
        case = self._placed_reference()
        made = {"device": case.device, "llama.cpp": self._version}
        with LogitsReader(case, self._reference_file, self.size, self._beat) as reader:
            same = (reader.tokens(text) == tokens for text, tokens in self._tokens.items())
            if reader.start != self._start or not all(same):
                raise ProfileError(
                    f"{self._reference_name} and {printable(self._case.model)} have different tokens, so their"
                    " predictions cannot be compared"
                )
            for number, window in enumerate(self._missing, 1):
                self._beat(f"reference {number}/{len(self._missing)}")
                keeper = Keeper(window)
                reader.read(window.tokens[:-1], window.unscored - 1, keeper)
                references.write(self._name(window), keeper.arrays({**made, "vocabulary": reader.vocabulary}))

    def _placed_reference(self) -> Case:
        """The reference on the case's device, or on the CPU if it has the memory now. Raises ProfileError."""
        need = int(self._reference_file.stat().st_size * MARGIN) + ROOM_BYTES
        own = self._reference.device
        for device in [own] if kind_of(own).is_host else [own, "cpu"]:
            if need <= devices.find(device).free_bytes:
                return replace(self._reference, device=device)
        raise ProfileError(
            f"the reference {self._reference_name} needs {bytes_text(need)} of memory, which is not free"
        )

    def _windows(self) -> list[TextWindow]:
        return [
            window
            for document in self._text.documents
            for window in texts.windows(
                document.kind, document.name, self._start, self._tokens[document.text], self.size
            )
        ]

    def _name(self, window: TextWindow) -> str:
        """The name under which the reference of a window is stored. It depends on the build, because another one may
        round differently.
        """
        by = f"{self._reference.quant} {self._version}"
        return references.key(self._reference.model_id, by, window.tokens, window.unscored)

    @property
    def _reference_name(self) -> str:
        return printable(self._reference.model)


def _say(**content: Any) -> None:
    print(json.dumps(content, allow_nan=False), flush=True)


def _compared(request: Mapping[str, Any], beat: Beat) -> dict[str, Any]:
    started = time.monotonic()
    torch.set_num_threads(allowance.at_start().threads)
    case, reference = (Case(**request[name]) for name in ("case", "reference"))
    files = (Path(request[name]) for name in ("location", "reference_location"))
    text = texts.shipped() if request["text"] is None else texts.of_folder(Path(request["text"]))
    with memory_errors():
        found = FileComparison(case, next(files), reference, next(files), text, beat).quality()
    found["text"] |= {"hash": request["hash"]}
    return found | {"seconds": time.monotonic() - started}


def main(parent: int) -> None:
    """Serve one request on standard input; it ends with its parent."""
    die_with(parent)
    last = 0.0

    def beat(text: str) -> None:
        nonlocal last
        if time.monotonic() - last > BEAT_S:
            last = time.monotonic()
            _say(beat=text)

    try:
        _say(quality=_compared(json.load(sys.stdin), beat))
    except OutOfMemory as error:
        _say(**{"out of memory": printable(error, 300)})
    except ProfileError as error:
        _say(error=error.message)


if __name__ == "__main__":
    main(int(sys.argv[1]))
