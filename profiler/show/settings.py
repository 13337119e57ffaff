"""What tells cases of one model, quantization, context and batch apart in a list of rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import attrgetter
from typing import Any

from profiler.results.measurement import Measurement
from profiler.show.columns import Column
from profiler.show.report.selection import NAMED
from profiler.units import UNKNOWN

SETTINGS = "settings"  # the title of the column
_ALIKE = attrgetter("case.model", "case.quant", "case.context", "case.batch")  # what such a list has of a case


def differing(rows: Iterable[Measurement]) -> dict[str, str]:
    """By key of a case, the settings in which it differs from others of ``rows``, such as ``kv=q8_0 threads=1``.

    Empty if the list tells all cases apart without them.
    """
    alike: dict[tuple[Any, ...], list[Measurement]] = {}
    for row in rows:
        alike.setdefault(_ALIKE(row), []).append(row)
    columns = [c for c in NAMED if any(len({c.cell(row) for row in mine}) > 1 for mine in alike.values())]
    return {row.case.key: _text(row, columns) for mine in alike.values() for row in mine} if columns else {}


def _text(row: Measurement, columns: Sequence[Column]) -> str:
    cells = ((column, column.cell(row)) for column in columns)
    return " ".join(
        f"{cell} steps" if column.title == "steps" else cell for column, cell in cells if cell and cell != UNKNOWN
    )
