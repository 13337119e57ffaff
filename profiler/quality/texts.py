"""The text set: documents by kind, as shipped in ``scenarios/text/`` or in a person's own folder.

A folder of a set has a folder for each kind of text, such as "prose", with text files in it; files that lie in no
folder are one more kind, ``own``. Documents are read by the tokens of the model, in windows.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

from profiler.case import digest
from profiler.errors import ProfileError
from profiler.foreign import read_bytes, why
from profiler.units import bytes_text, printable

SHIPPED = "profile-text-2"  # a change of the texts is another set, with another name
LICENSE = "Apache-2.0"
OWN = "own"
MIN_WINDOW_TOKENS = 64  # with fewer, nearly every token would be predicted without context
DECODED_TOKENS = 64  # the last ones of a window of each kind, which decode steps read a second time
MAX_FILE_BYTES, MAX_SET_BYTES, MAX_FILES = 4 << 20, 16 << 20, 1000  # the shipped set has 205 kB in 28 files


@dataclass(frozen=True, slots=True)
class TextDocument:
    """One document of a set."""

    kind: str
    name: str
    text: str


@dataclass(frozen=True, slots=True)
class TextSet:
    """Documents, in the order of their kinds and names."""

    name: str
    license: str | None  # of the texts; None: a person's own
    documents: tuple[TextDocument, ...]

    @property
    def hash(self) -> str:
        """The first 16 hex digits of a SHA-256 over kinds, names and texts."""
        total = hashlib.sha256()
        for document in self.documents:
            for part in (document.kind, document.name, document.text):
                total.update(hashlib.sha256(part.encode("utf-8", "surrogatepass")).digest())
        return total.hexdigest()[:16]

    def provenance(self, cut: Sequence[TextWindow]) -> dict[str, str]:
        """What a row says of the set, read in the windows ``cut``: the hash of their tokens depends on the model."""
        license = self.license or "the user's own"
        return {"name": self.name, "license": license, "tokens_hash": tokens_hash(cut)}


@cache
def shipped() -> TextSet:
    """The set that comes with the profiler."""
    top = resources.files("profiler.scenarios") / "text"
    kinds = sorted((entry for entry in top.iterdir() if entry.is_dir()), key=lambda entry: entry.name)
    found = [
        TextDocument(kind.name, file.name.removesuffix(".txt"), file.read_text(encoding="utf-8"))
        for kind in kinds
        for file in sorted(kind.iterdir(), key=lambda entry: entry.name)
        if file.name.endswith(".txt")
    ]
    return TextSet(SHIPPED, LICENSE, tuple(found))


def of_folder(folder: Path) -> TextSet:
    """The set in a person's own folder. Raises ProfileError if it has no texts, or something that is not text."""
    shown = printable(folder)
    files = list(_files(folder, shown))
    if not files:
        raise ProfileError(f"--quality-text: {shown} holds no text files", "Put UTF-8 text files into it.")
    if len(files) > MAX_FILES:
        raise ProfileError(f"--quality-text: {shown} holds more than {MAX_FILES:,} files")
    found, size = [], 0
    for kind, path in files:
        data = read_bytes(path, MAX_FILE_BYTES)
        size += len(data)
        if size > MAX_SET_BYTES:
            raise ProfileError(f"--quality-text: {shown} holds more than {bytes_text(MAX_SET_BYTES)}")
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError:
            raise ProfileError(f"--quality-text: {printable(path)} is not UTF-8 text") from None
        if text.strip():
            found.append(TextDocument(kind, printable(path.name, 80), text))
    if not found:
        raise ProfileError(f"--quality-text: the files in {shown} are empty")
    return TextSet(printable(folder.name, 80) or OWN, None, tuple(found))


def _files(folder: Path, shown: str) -> Iterator[tuple[str, Path]]:
    """Each file with its kind, in order, without hidden files."""
    try:
        entries = sorted(entry for entry in os.listdir(folder) if not entry.startswith("."))
        for entry in entries:
            path = folder / entry
            if not path.is_dir():
                yield OWN, path
                continue
            for name in sorted(os.listdir(path)):
                if not name.startswith(".") and not (path / name).is_dir():
                    yield printable(entry, 40), path / name
    except OSError as error:
        raise ProfileError(f"--quality-text: cannot read {shown}: {why(error)}") from None


@dataclass(frozen=True, slots=True)
class TextWindow:
    """Consecutive tokens of a document, after the tokens that the model expects before any text.

    Its first ``unscored`` tokens are only read; each other one is predicted from all before it.
    """

    kind: str
    document: str
    tokens: tuple[int, ...]
    unscored: int

    @property
    def scored(self) -> int:
        """The number of tokens that are predicted."""
        return len(self.tokens) - self.unscored


def tokens_hash(cut: Sequence[TextWindow]) -> str:
    """A short hash of the tokens of windows: the same text may have others in another tokenizer."""
    return digest([[list(window.tokens), window.unscored] for window in cut])


def windows(kind: str, document: str, start: Sequence[int], tokens: Sequence[int], size: int) -> list[TextWindow]:
    """A document in windows of at most ``size`` tokens, of which each begins with ``start``, such as the
    beginning-of-sequence token. Without ``start``, the first token of a window cannot be predicted.
    """
    unscored = len(start) or 1
    step = max(1, size - len(start))
    cut = [
        TextWindow(kind, document, (*start, *tokens[at : at + step]), unscored) for at in range(0, len(tokens), step)
    ]
    return [window for window in cut if window.scored > 0]
