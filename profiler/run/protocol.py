"""The messages between the parent and its worker: JSON lines over their own pipes.

Not stdout, because libraries print there; never pickle, because a faulty worker must not run code in its parent.

    parent → worker   one task a line (``task_message``), the next only after the row of the last is stored;
                      before the first one, ``prepare_message``, if there is time to import libraries
    worker → parent   {"type": "beat", "text"} · {"type": "loaded", "load"} · {"type": "row", "row"}
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from profiler.case import Case, Source, Task
from profiler.results.measurement import Memory
from profiler.run.repetitions import Effort
from profiler.units import bytes_text

V1_FIELDS = frozenset(  # fields of Case and Effort that workers of every version know
    [
        "model",
        "model_id",
        "weights",
        "quant",
        "dtype",
        "device",
        "backend",
        "path",
        "context",
        "batch",
        "steps",
        "fill",
        "ubatch",
        "threads",
        "seed",
        "reps",
        "max_phase_s",
    ]
)
MAX_REASON_CHARACTERS = 500  # of the reason in a row: two or three sentences
MAX_LINE_BYTES = 16 * 1024**2  # enough for a million step times, or for any real config.json


class ProtocolError(Exception):
    """A line that is not a valid message. The text says why."""


@dataclass(frozen=True, slots=True)
class LoadCost:
    """What loading the model took; the same for every row of this worker."""

    load_s: float | None = None
    memory: Memory = field(default_factory=Memory)  # weights, baseline, load peak
    process_peak_bytes: int | None = None  # of the whole process while it loaded

    def to_json(self) -> dict[str, Any]:
        """The cost as JSON content."""
        return asdict(self)

    @classmethod
    def from_json(cls, message: Mapping[str, Any]) -> LoadCost:
        """The inverse of ``to_json``. Workers of earlier versions do not report ``process_peak_bytes``."""
        return cls(message["load_s"], Memory(**message["memory"]), message.get("process_peak_bytes"))


def task_message(task: Task, effort: Effort, max_memory_bytes: int | None) -> dict[str, Any]:
    """What a worker needs to measure a task, as JSON content; workers of earlier versions understand it if possible.

    The first one also tells the worker which model to load. ``max_memory_bytes``: the limit of its host memory.
    """
    source = {name: getattr(task.source, name) for name in ("kind", "location", "revision")}
    return {
        "case": _compatible(task.case),
        "source": source | {"config": dict(task.source.config)},
        "effort": _compatible(effort),
        "max_memory_bytes": max_memory_bytes,
    }


def prepare_message(backend: str) -> dict[str, Any]:
    """Tells a worker to import the libraries of ``backend``, whose tasks will follow."""
    return {"prepare": backend}


def read_task(message: Mapping[str, Any]) -> tuple[Task, Effort, int | None]:
    """The inverse of ``task_message``: the task has a case and a source only."""
    task = Task(Case(**message["case"]), Source(**message["source"]))
    return task, Effort(**message["effort"]), message["max_memory_bytes"]


def _compatible(content: Case | Effort) -> dict[str, Any]:
    """The fields as JSON. Those that the first release did not have are left out if they have their default value,
    because a worker of an earlier version refuses unknown fields.
    """
    every = {each.name: (getattr(content, each.name), each.default) for each in fields(content)}
    return {name: value for name, (value, usual) in every.items() if name in V1_FIELDS or value != usual}


def encode(message: Mapping[str, Any], finite: bool = True) -> bytes:
    """Encode one line. Raises ProtocolError for a line over the limit and, if ``finite``, for NaN and infinity.

    A raw config may contain ``Infinity``; a result may not.
    """
    try:
        line = json.dumps(message, separators=(",", ":"), allow_nan=not finite).encode() + b"\n"
    except ValueError:
        raise ProtocolError("it contains a number that is not finite") from None
    if len(line) > MAX_LINE_BYTES:
        raise ProtocolError(f"its line has {bytes_text(len(line))}, more than {bytes_text(MAX_LINE_BYTES)}")
    return line


def _refuse(word: str) -> float:
    raise ValueError(f"{word} is not a number")


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _refuse(text)


STRICT = json.JSONDecoder(parse_constant=_refuse, parse_float=_finite)


class LineBuffer:
    """Splits a pipe's data into messages; holds at most one line of the maximum length and one chunk."""

    def __init__(self, finite: bool = True) -> None:
        self._rest = bytearray()
        self._decoder = STRICT if finite else json.JSONDecoder()

    def feed(self, chunk: bytes) -> Iterator[dict[str, Any]]:
        """The messages that ``chunk`` completes. Raises ProtocolError at the first invalid one."""
        seen = len(self._rest)
        self._rest += chunk
        while (end := self._rest.find(b"\n", seen)) >= 0:
            line = bytes(self._rest[:end])
            del self._rest[: end + 1]
            seen = 0
            yield self._decode(line)
        if len(self._rest) > MAX_LINE_BYTES:
            raise ProtocolError(f"a line of more than {bytes_text(MAX_LINE_BYTES)}")

    def _decode(self, line: bytes) -> dict[str, Any]:
        try:
            message = self._decoder.decode(line.decode())
        except (ValueError, RecursionError):
            raise ProtocolError(f"a line that is not JSON: {line[:60]!r}") from None
        if not isinstance(message, dict):
            raise ProtocolError(f"a line that is not a message: {line[:60]!r}")
        return message
