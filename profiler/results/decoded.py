"""Which decode step a row really ran.

A case may fall back from the step that was asked for to transformers as shipped, or from our loops to plain torch,
for want of a compiler, memory or disk space, or because the code does not know the model. The times and memory of two
different steps say nothing about a change.
"""

from __future__ import annotations

from profiler.results.measurement import Measurement
from profiler.units import printable

PLAIN = " on plain torch"


def step(row: Measurement) -> str:
    """``static``, ``eager``, ``static on plain torch``. A row that says nothing ran what was asked for."""
    found = row.decode_path
    return row.case.path if found is None else found.ran + PLAIN * found.on_plain_torch


def in_words(row: Measurement) -> str:
    """The step, with the reason why it is not the one that was asked for, where there is one."""
    found = row.decode_path
    reason = found and (found.reason or (found.kernels if found.on_plain_torch else None))
    return f"{step(row)} ({printable(reason, 200)})" if reason else step(row)


def difference(a: Measurement, b: Measurement, names: tuple[str, str]) -> str | None:
    """That rows with these names ran different steps, in words; ``None`` if they ran the same one."""
    if step(a) == step(b):
        return None
    return f"different decode steps ran: {names[0]} {in_words(a)}, {names[1]} {in_words(b)}"
