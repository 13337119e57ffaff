"""Where the time of each case went, for ``profile runs show --time``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from itertools import pairwise
from typing import Any

from profiler.errors import ProfileError
from profiler.results.measurement import PHASES, SHARED_DECODE, SHARED_PREFILL, Measurement
from profiler.show import output
from profiler.show.columns import plain
from profiler.show.settings import SETTINGS, differing
from profiler.units import UNKNOWN, seconds_text

PARTS = ("start", "load", "warm-up", *PHASES, "other", "store")
FORMATS = (*output.FORMATS,)
DROPPED = ("store", "start", "load")  # by a terminal that is too narrow, after what took no time in any case


def render(measurements: Sequence[Measurement], finished_at: str | None, form: str) -> str:
    """A row per case that this run measured, and their sum, in a format of ``FORMATS``.

    start: starting the worker and its libraries · load: the model · warm-up, prefill, decode: their repetitions ·
    other: inputs, memory, checks, and what an engine's programs take beside their repetitions · store: from the
    arrival of the row until the next case was sent. Raises ProfileError for another format.
    """
    if form not in FORMATS:
        raise ProfileError(f"--time has no format {form}", f"Use one of {', '.join(FORMATS)}.")
    own = sorted((row for row in measurements if row.case_s is not None), key=lambda row: row.started_at or "")
    rows = [_row(row, after) for row, after in pairwise([*own, None]) if row is not None]
    if rows and rows[-1]["store"] is None and finished_at is not None:
        rows[-1]["store"] = _gap(own[-1], finished_at)
    if rows:
        total = {name: sum(row[name] or 0.0 for row in rows) for name in ("total", *PARTS)}
        rows.append(dict.fromkeys(("model", "quant", "context", "batch")) | {"model": "all cases"} | total)
    idle = tuple(name for name in PARTS if rows and not any(row[name] for row in rows))
    settings = differing(own)
    alike = {id(shown): settings[row.case.key] for shown, row in zip(rows, own, strict=False)} if settings else {}
    same = [name for name in ("context", "batch", "quant") if len({row[name] for row in rows[: len(own)]}) <= 1]
    return output.render(rows, lambda row: _cells(row, alike), form, (*idle, *DROPPED, *same, SETTINGS))


def _row(row: Measurement, after: Measurement | None) -> dict[str, Any]:
    codes = {caution.code for caution in row.cautions}
    shared = {"prefill": SHARED_PREFILL in codes, "decode": SHARED_DECODE in codes}  # their time is another case's
    ran = {phase: () if shared[phase] else row.samples.record(phase) for phase in PHASES}
    warmup = sum(sample.seconds for samples in ran.values() for sample in samples if sample.warmup)
    timed: dict[str, Any] = {phase: sum(s.seconds for s in ran[phase] if not s.warmup) for phase in PHASES}
    load = row.load_s if row.start_s is not None else None
    known = sum((row.start_s or 0.0, load or 0.0, warmup, *timed.values()))
    return {
        "model": row.case.model,
        "quant": row.case.quant,
        "context": row.case.context,
        "batch": row.case.batch,
        "total": row.case_s,
        "start": row.start_s,
        "load": load,
        "warm-up": warmup,
        **timed,
        "other": max(0.0, (row.case_s or 0.0) - known),
        "store": None if after is None or after.started_at is None else _gap(row, after.started_at),
    }


def _gap(row: Measurement, until: str) -> float | None:
    """Seconds from the arrival of ``row`` to a time; ``None`` if one of them is unknown."""
    if row.started_at is None or row.case_s is None:
        return None
    apart = datetime.fromisoformat(until) - datetime.fromisoformat(row.started_at)
    return max(0.0, apart.total_seconds() - row.case_s)


def _cells(row: output.JsonRow, alike: Mapping[int, str]) -> dict[str, str]:
    names = {name: plain(UNKNOWN if row[name] is None else row[name]) for name in ("model", "quant")}
    counts = {name: UNKNOWN if row[name] is None else f"{row[name]:,}" for name in ("context", "batch")}
    return (
        names
        | ({SETTINGS: alike.get(id(row), "")} if alike else {})
        | counts
        | {name: UNKNOWN if row[name] is None else seconds_text(row[name]) for name in ("total", *PARTS)}
    )
