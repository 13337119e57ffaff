"""The identity of weights: a hash of what the tensors are called, how they are stored, and what is in them.

It does not depend on how tensors are spread over files, on names of files or folders, or on their times: a checkpoint
that was copied, sharded anew or linked to is the same model. Up to ``WHOLE_BYTES`` every byte counts. Hashing more
would take longer than people wait for a plan, so of larger checkpoints names, number types, shapes and samples of
every tensor count: that tells fine-tunes, merges and edits of single layers apart, and misses a change of a few
values between the samples. ``covers`` says which of the two a row rests on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from pathlib import Path

from profiler.errors import ProfileError
from profiler.units import GIB, printable

WHOLE_BYTES = GIB  # a second or two
SAMPLE_BYTES = 4096
SAMPLES, FEWEST = 16, 2  # of one tensor; its first and last bytes are always among them
ALL_SAMPLES = 2**14  # of one checkpoint, unless it has more tensors
CHUNK = 2**20
EVERY_BYTE, SAMPLED = "every byte", "samples of every tensor"


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes of a file that belong together: a tensor, or a header."""

    label: str  # name, number type and shape
    path: Path
    begin: int
    nbytes: int
    whole: bool = False  # hashed in full whatever the size of the rest


def covers(nbytes: int) -> str:
    """What of a checkpoint of this size its identity is made of."""
    return EVERY_BYTE if nbytes <= WHOLE_BYTES else SAMPLED


def content_id(spans: Iterable[Span]) -> str:
    """Hash of the spans in the order of their labels. Raises ProfileError for a file that cannot be read."""
    return _hashed(sorted(spans, key=lambda span: (str(span.path), span.begin)))


def _hashed(spans: Sequence[Span]) -> str:
    whole = covers(sum(span.nbytes for span in spans)) == EVERY_BYTE
    samples = max(FEWEST, min(SAMPLES, ALL_SAMPLES // max(1, len(spans))))
    parts = []
    for path, group in groupby(spans, key=attrgetter("path")):
        with _in_words(spans), path.open("rb") as file:
            for span in group:
                digest = hashlib.sha256(f"{span.label} {span.nbytes}\n".encode("utf-8", "surrogatepass"))
                step = CHUNK if whole or span.whole else SAMPLE_BYTES
                for offset in _offsets(span.nbytes, step, None if step == CHUNK else samples):
                    file.seek(span.begin + offset)
                    digest.update(file.read(min(step, span.nbytes - offset)))
                parts.append((span.label, digest.digest()))
    together = hashlib.sha256()
    for _, part in sorted(parts):
        together.update(part)
    return together.hexdigest()[:16]


def _offsets(nbytes: int, step: int, samples: int | None) -> Iterable[int]:
    """Where reads of ``step`` bytes begin: all of them, or ``samples`` evenly spaced from the first to the last."""
    if samples is None or nbytes <= samples * step:
        return range(0, nbytes, step)
    last = nbytes - step
    return [last * index // (samples - 1) for index in range(samples)]


class _in_words:
    """Turns a file that went away or cannot be read into one line."""

    def __init__(self, spans: Sequence[Span]) -> None:
        self._name = printable(spans[0].path.name) if spans else "the checkpoint"

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError):
            raise ProfileError(f"cannot read {self._name}: {printable(error.strerror or error)}") from None
