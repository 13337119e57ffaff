"""``-o csv``: one line per case for spreadsheets and data frames, in SI units; unknown is empty.

All text goes through ``units.spreadsheet_cell``, which guards against formulas.
"""

from __future__ import annotations

import csv
import statistics
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any

from profiler.results.measurement import PHASES, Measurement
from profiler.results.row import row
from profiler.show.columns import plain
from profiler.units import spreadsheet_cell

CASE = (
    "model",
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
    "options",
)
PHASE = ("tps", "tps_low", "tps_high", "tps_stdev")
MEMORY = ("weights_bytes", "cache_bytes", "prefill_peak_bytes", "decode_peak_bytes", "process_peak_bytes")
SERVING = {  # of a server's row: the column, and where the figure is
    "ttft_p95_s": ("ttft_s", "p95"),
    "itl_p50_s": ("itl_s", "p50"),
    "itl_p99_s": ("itl_s", "p99"),
    "e2e_p50_s": ("e2e_s", "p50"),
    "total_tps": ("total_tps",),
    "goodput_per_s": ("goodput_per_s",),
    "characters_per_s": ("characters_per_s", "p50"),
    "tasks_pass_rate": ("tasks", "rate", "value"),
}
ENERGY = ("prefill_j_per_token", "decode_j_per_token", "idle_w")
QUALITY = {  # the column, and where the figure is; only divergences of the same window and texts may be compared
    "kl": ("kl", "value"),
    "kl_low": ("kl", "low"),
    "kl_high": ("kl", "high"),
    "top1": ("top1", "value"),
    "ppl": ("ppl", "value"),
    "kl_window": ("window",),
    "kl_text": ("text", "hash"),
}
REASON_LENGTH = 1000


def render(run: str | None, measurements: Sequence[Measurement]) -> str:
    """The header, and one line per case."""
    return "".join(stream(run, measurements))


def stream(run: str | None, measurements: Iterable[Measurement]) -> Iterator[str]:
    """The text of ``render``, line by line."""
    writer = csv.writer(_Passed(), lineterminator="\n")  # its ``writerow`` returns what ``write`` does
    yield writer.writerow(header())
    for measurement in measurements:
        yield writer.writerow([_cell(value) for value in _values(row(run, measurement))])


class _Passed:
    """A file whose ``write`` returns the text instead of storing it."""

    def write(self, text: str) -> str:
        return text


def header() -> list[str]:
    """Names of the columns, in order."""
    phases = [f"{phase}_{name}" for phase in PHASES for name in ("n", *PHASE)]
    return [
        "run",
        "key",
        *CASE,
        "outcome",
        *phases,
        "ttft_s",
        "token_s",
        *MEMORY,
        *ENERGY,
        *QUALITY,
        *SERVING,
        "cautions",
        "reason",
        "started_at",
    ]


def _values(content: dict[str, Any]) -> list[Any]:
    prefill, decode = content["prefill"] or {}, content["decode"] or {}
    phases = [
        value
        for phase in (prefill, decode)
        for value in (len(phase["seconds"]) if phase else 0, *(phase.get(name) for name in PHASE))
    ]
    case = content["case"]
    return [
        content["run"],
        content["key"],
        *(case[name] for name in CASE),
        content["outcome"],
        *phases,
        statistics.median(prefill["seconds"]) if prefill else _figure(content["serving"], ("ttft_s", "p50")),
        decode.get("step_p50_s"),
        *(content["memory"][name] for name in MEMORY),
        *((content["energy"] or {}).get(name) for name in ENERGY),
        *(_figure(content["quality"], path) for path in QUALITY.values()),
        *(_figure(content["serving"], path) for path in SERVING.values()),
        " ".join(caution["code"] for caution in content["cautions"]),
        content["reason"],
        content["started_at"],
    ]


def _figure(found: Any, path: Sequence[str]) -> Any:
    """A figure in a part of a row; None if it is unknown."""
    for name in path:
        found = found.get(name) if isinstance(found, dict) else None
    return found


def _cell(value: Any) -> Any:
    return _text(value) if isinstance(value, str) else value


@lru_cache(maxsize=4096)  # thousands of rows share a few names
def _text(value: str) -> object:
    return spreadsheet_cell(plain(value, REASON_LENGTH))
