"""A case of the grid, the task of measuring it, and the source of its model.

A case is frozen, and its ``key`` is its only identity. A ``Task`` is the one object that travels from the grid
through the plan to the worker that measures it. A ``ModelNote`` is a sentence about a model that every reader of its
figures has to know.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:  # what a task carries, but this module does not use
    from profiler.cost.cases import CaseEstimate
    from profiler.models.geometry import Geometry
    from profiler.models.stored import Stored
    from profiler.quants.base import Quant

Phase = Literal["prefill", "decode"]
PHASES: tuple[Phase, ...] = ("prefill", "decode")

# Default tokens per sequence in one prefill pass. A larger chunk is hardly faster, and its activations take more
# memory.
PREFILL_CHUNK, PREFILL_CHUNK_CPU = 2048, 512
_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
KEY_LENGTH = 16  # hex digits, so 64 bits: the probability of a collision among a million cases is 1 in 37 million

CONFIG = "config.json"  # names the folder that holds it
FILES = ("folder", "gguf", "config")  # source kinds whose location is a path

MODEL = "model"  # anything else that applies to all measurements of the model
UNUSED = "unused-weights"  # tensors of the file that the model does not use
BESIDE = "files-beside"  # files next to the weights that are not loaded
SYNTHETIC = "synthetic-weights"  # random values, because no real weights were found
EAGER = "eager-path"  # decode runs transformers as shipped, because our own step cannot be built
THREADS = "too-many-threads"  # more threads than cores
CONVERTED = "converted-dtype"  # weights are loaded in another dtype than the checkpoint stores them in
SCENARIO = "scenario-contexts"  # who counted the tokens of a scenario's prompts
CODES = frozenset({MODEL, UNUSED, BESIDE, SYNTHETIC, EAGER, THREADS, CONVERTED, SCENARIO})

UNSTATED = "unknown"  # a field of a case whose backend does not state it
SERVER, PROMPT = "server", "prompt"  # options of a case: the kind of server that is measured, the prompt it is sent


def options_text(options: Mapping[str, object]) -> str:
    """The canonical text of a backend's own options: ``kv=q8_0 n-cpu-moe=4``, sorted by name."""
    return " ".join(f"{name}={value}" for name, value in sorted(options.items()))


def options_of(text: str) -> dict[str, str]:
    """The inverse of ``options_text``. Words without ``=``, which it never writes, are ignored."""
    return {name: value for name, equals, value in (word.partition("=") for word in text.split()) if equals}


def digest(content: object) -> str:
    """A short stable hash of plain JSON content."""
    return hashlib.sha256(_CANONICAL.encode(content).encode()).hexdigest()[:KEY_LENGTH]


class _Digests:
    """Caches the digests of a case. A sweep needs them at every row and beat, and computing one takes ten µs."""

    __slots__ = ("_key", "_load_key")
    _key: str
    _load_key: str


@dataclass(frozen=True, slots=True)
class Case(_Digests):
    """What to measure. ``context`` tokens are in the cache when decode starts; ``batch`` is a number of sequences."""

    model: str  # for display; may be any text
    model_id: str  # content hash of the config, and of real weights
    weights: str  # real | synthetic
    quant: str  # a name of profiler.quants, or the quantization of a checkpoint or a server's model
    dtype: str  # compute dtype: fp32 | bf16 | fp16 | UNSTATED
    device: str  # cpu | cuda:0 | remote
    backend: str  # a name of profiler.backends
    path: str  # eager | static | graph | UNSTATED
    context: int  # tokens
    batch: int  # sequences
    steps: int  # decode steps
    fill: str = "prefill"  # prefill | synthetic
    ubatch: int = PREFILL_CHUNK  # tokens per sequence and prefill pass
    threads: int | None = None  # None: the backend chooses
    seed: int = 0
    options: str = ""  # settings that only this backend has, as ``options_text`` writes them

    @property
    def key(self) -> str:
        """Identity by content. The displayed name is not part of it, because ``model_id`` identifies the model."""
        try:
            return self._key
        except AttributeError:  # first use
            content = dict(zip(IDENTITY, _IDENTITY(self), strict=True))
            if not self.options:  # keys of rows that were stored before the field existed
                del content["options"]
            key = digest(content)
            object.__setattr__(self, "_key", key)
            return key

    @property
    def load_key(self) -> str:
        """Equal for cases that can share a loaded model."""
        try:
            return self._load_key
        except AttributeError:
            key = digest([self.model_id, self.weights, self.quant, self.dtype, self.device, self.backend, self.path,
                          self.threads, self.seed, *filter(None, [self.options])])  # fmt: skip
            object.__setattr__(self, "_load_key", key)
            return key

    def needs_no_more_than(self, other: Case) -> bool:
        """Whether ``other`` needs at least as much memory as this case: the same load, and no axis is smaller."""
        return (
            (self.load_key, self.fill) == (other.load_key, other.fill)
            and other.batch >= self.batch
            and other.context >= self.context
            and other.context + other.steps >= self.context + self.steps
            and min(other.ubatch, other.context) >= min(self.ubatch, self.context)
        )

    @property
    def server(self) -> str | None:
        """The kind of server that is measured; None if a worker of ours runs the model.

        A repetition of a server's case is one request, even if others run at the same time, and requests may have
        different numbers of tokens.
        """
        return options_of(self.options).get(SERVER) if self.options else None

    @property
    def prompt(self) -> str | None:
        """The name of the written prompt that a server was sent; None where only its length matters."""
        named = options_of(self.options).get(PROMPT) if self.options else None
        return None if named is None else named.rpartition(":")[0] or named

    @property
    def label(self) -> str:
        """``gemma-4-e2b nf4 c=4096 b=1``, and options if there are any, for progress and messages."""
        label = f"{self.model} {self.quant} c={self.context} b={self.batch}"
        return f"{label} {self.options}" if self.options else label

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> Case:
        """The case of a stored row. Raises TypeError for unknown fields, which a newer version may have written."""
        return cls(**row)


IDENTITY = tuple(field.name for field in fields(Case) if field.name != "model")
_IDENTITY = attrgetter(*IDENTITY)


@dataclass(frozen=True, slots=True)
class Source:
    """Where a model comes from, as plain JSON content."""

    kind: str  # catalog | folder | gguf | config (a JSON file without weights) | hub
    location: str  # catalog name, absolute path, hub id
    revision: str | None
    config: Mapping[str, Any]  # the raw config.json

    def argument(self, typed: str | None = None) -> str:
        """The model's name on a command line: as ``typed``, if known, otherwise its location.

        A path always looks like one, so that a folder with the name of a catalog model or an option is not mistaken
        for it.
        """
        if self.kind in FILES:
            named = typed or self.location
            if self.kind == "folder" and os.path.basename(named) == CONFIG:
                named = os.path.dirname(named) or "."
            return _path(named, self.kind)
        if typed is not None:
            return typed
        return f"{self.location}@{self.revision}" if self.kind == "hub" and self.revision else self.location


@dataclass(frozen=True, slots=True)
class Task:
    """A case, the source of its model, and what is known about it so far.

    A worker needs only the first two fields. ``run.grid.tasks`` adds those about the model, ``run.plan.make`` the
    estimates, or the reason why the case is not measured.
    """

    case: Case
    source: Source
    geometry: Geometry | None = None
    quant: Quant | None = None
    checkpoint_format: Stored | None = None  # the checkpoint, if it runs as it is stored
    note: str | None = None  # what happens to the weights during loading
    reason: str | None = None  # why it is left out; None: it can be measured, as far as is known
    estimate: CaseEstimate | None = None
    load_s: float = 0.0  # estimated seconds to load the model, which only the first case of a load needs
    run_s: float = 0.0  # estimated seconds of the warm-ups and repetitions of both phases


def _path(typed: str, kind: str) -> str:
    path = os.path.expanduser(typed)
    if path.partition(os.sep)[0] not in ("", ".", ".."):
        path = os.path.join(".", path)
    ends_open = path != path.rstrip() and kind == "folder"  # list options strip blanks around a word
    return os.path.join(path, "") if ends_open else path


@dataclass(frozen=True, slots=True)
class ModelNote:
    """A note on a model. ``code`` is one of ``CODES``; ``text`` is the sentence that users see."""

    text: str
    code: str = MODEL
