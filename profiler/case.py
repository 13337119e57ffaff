"""A case of the grid, the task of measuring it, and where its model's weights are.

A case is frozen, known to every floor, and identified by its ``key`` alone. A ``Task`` adds the source of the weights
and travels from the grid to the worker. A ``ModelNote`` is a sentence to know before reading a figure of a model.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from operator import attrgetter
from typing import Any

# Tokens of a sequence that a prefill runs in one pass by default: more gain little, and activations grow with them.
PREFILL_CHUNK, PREFILL_CHUNK_CPU = 2048, 512
_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
KEY_LENGTH = 16  # hex digits: 64 bits, so that a million cases collide with odds of 1 in 30 million

FILES = ("folder", "gguf")  # kinds whose location is a path

MODEL = "model"  # anything else that is true of the model whatever is measured
UNUSED = "unused-weights"  # tensors of the file that the model does not take
BESIDE = "files-beside"  # files beside the weights that are not loaded
SYNTHETIC = "synthetic-weights"  # random values, because there are no real weights here
EAGER = "eager-path"  # decode runs as transformers ships it, because our own step cannot be built here
THREADS = "too-many-threads"  # more than there are cores
CODES = frozenset({MODEL, UNUSED, BESIDE, SYNTHETIC, EAGER, THREADS})


def digest(content: object) -> str:
    """Short stable hash of plain JSON content."""
    return hashlib.sha256(_CANONICAL.encode(content).encode()).hexdigest()[:KEY_LENGTH]


class _Digests:
    """Room for the digests of a case. A sweep asks for them at every row and beat, and one takes ten microseconds."""

    __slots__ = ("_key", "_load_key")
    _key: str
    _load_key: str


@dataclass(frozen=True, slots=True)
class Case(_Digests):
    """What is measured. ``context`` tokens are in the cache when decode starts; ``batch`` counts sequences."""

    model: str  # as shown to people; may be any text
    model_id: str  # content hash of the config, and of the weights when they are real
    weights: str  # real | synthetic
    quant: str  # a name of profiler.quants
    dtype: str  # compute dtype: fp32 | bf16 | fp16
    device: str  # cpu | cuda:0
    backend: str  # a name of profiler.backends
    path: str  # eager | static | graph
    context: int  # tokens
    batch: int  # sequences
    steps: int  # decode steps
    fill: str = "prefill"  # prefill | synthetic
    ubatch: int = PREFILL_CHUNK  # tokens per sequence and prefill pass
    threads: int | None = None  # None: what the backend chooses
    seed: int = 0

    @property
    def key(self) -> str:
        """Identity by content. The shown name is no part of it: ``model_id`` says which model it is."""
        try:
            return self._key
        except AttributeError:  # asked for the first time
            key = digest(dict(zip(IDENTITY, _IDENTITY(self), strict=True)))
            object.__setattr__(self, "_key", key)
            return key

    @property
    def load_key(self) -> str:
        """Equal for cases that can share one loaded model."""
        try:
            return self._load_key
        except AttributeError:
            key = digest([self.model_id, self.weights, self.quant, self.dtype, self.device, self.backend, self.path,
                          self.threads, self.seed])  # fmt: skip
            object.__setattr__(self, "_load_key", key)
            return key

    def dominates(self, other: Case) -> bool:
        """Whether ``other`` needs at least as much memory as this case does: the same model, and no axis smaller."""
        return (
            (self.load_key, self.fill) == (other.load_key, other.fill)
            and other.batch >= self.batch
            and other.context >= self.context
            and other.context + other.steps >= self.context + self.steps
            and min(other.ubatch, other.context) >= min(self.ubatch, self.context)
        )

    @property
    def label(self) -> str:
        """``gemma-4-e2b nf4 c=4096 b=1``: for progress and messages."""
        return f"{self.model} {self.quant} c={self.context} b={self.batch}"

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> Case:
        """The case of a stored row; unknown fields of a newer writer are an error (TypeError)."""
        return cls(**row)


IDENTITY = tuple(field.name for field in fields(Case) if field.name != "model")
_IDENTITY = attrgetter(*IDENTITY)


def prefill_chunk(kind: str) -> int:
    """Tokens of a prefill pass by default, on a device of this ``kind`` (cpu, cuda, …)."""
    return PREFILL_CHUNK_CPU if kind == "cpu" else PREFILL_CHUNK


@dataclass(frozen=True, slots=True)
class Source:
    """Plain JSON content."""

    kind: str  # catalog | folder | gguf | hub
    location: str  # catalog name, absolute path, hub id
    revision: str | None
    config: Mapping[str, Any]  # the raw config.json

    def argument(self, typed: str | None = None) -> str:
        """What a command line names this model by: what was ``typed``, if that is known, else where it is.

        A path is always recognizable as one, so that a folder called like a model of the catalog, or like an option,
        is never taken for that.
        """
        if self.kind in FILES:
            return _path(typed or self.location, self.kind)
        if typed is not None:
            return typed
        return f"{self.location}@{self.revision}" if self.kind == "hub" and self.revision else self.location


@dataclass(frozen=True, slots=True)
class Task:
    """A case and where its model is: what travels from the grid to the worker."""

    case: Case
    source: Source


def _path(typed: str, kind: str) -> str:
    path = os.path.expanduser(typed)
    if path.partition(os.sep)[0] not in ("", ".", ".."):
        path = os.path.join(".", path)
    ends_open = path != path.rstrip() and kind == "folder"  # blanks around a word of a list are dropped
    return os.path.join(path, "") if ends_open else path


@dataclass(frozen=True, slots=True)
class ModelNote:
    """``code`` is one of ``CODES``; ``text`` is for people."""

    text: str
    code: str = MODEL
