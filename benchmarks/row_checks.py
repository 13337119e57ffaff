"""What a published row itself says against it: rates beyond the memory's bandwidth, models that do not fit, and prompts
that took longer than longer ones.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from published_rows import Row

HIGHEST_SHARE = 0.97  # of a data sheet's bandwidth; no program gets more, because of refresh and bus turnaround
POOL = 0.9  # --gpu-memory-utilization of vLLM
OFFLOADED = "a part of the weights, of unknown size, was in host memory"
WAITED = "the batch does not fit, so requests waited"
WARMED_UP = "the first row of a run, which includes its warm-up, says the source"
LONGER = "a prompt at least half as long again took less time in the same series"
MUCH_LONGER = 1.5


def possible(row: Row) -> Row | str:
    """The row, set aside if its model does not fit; or why it is impossible."""
    if row.aside is None and row.engine.like == "vllm" and row.batch > 1:
        terms = row.engine.memory(row.geometry, row.storage, replace(row.request, context=row.depth), row.target)
        held = terms.weights.value + terms.cache.value
        if held > POOL * row.machine.usable_bytes * row.target.count or not row.fits:
            return replace(row, aside=WAITED)
    if row.aside is None and not (row.target.unified or row.fits):
        return replace(row, aside=OFFLOADED)
    if row.aside is not None or row.decode_s is None:
        return row
    if row.batch == 1 and not row.answer:
        share = row.step().needed_bytes * row.decode_tps / row.target.bandwidth_bytes_s / row.machine.at_once
        if share > HIGHEST_SHARE:
            return f"impossible: {share:.0%} of the memory's bandwidth"
    return row


def with_plausible_prefills(rows: Sequence[Row]) -> list[Row]:
    """The rows; a prefill that must include something else, such as loading the model, is marked."""
    series: dict[tuple[str, int], list[Row]] = defaultdict(list)
    for row in rows:
        if row.prefill_s is not None and not row.prefill_depth:
            series[row.series, row.request.batch].append(row)
    return [_checked(row, series[row.series, row.request.batch]) for row in rows]


def _checked(row: Row, same: Sequence[Row]) -> Row:
    if row.prefill_s is None or row.prefill_depth:
        return row
    first = "first rows of a run include warm-up" in row.notes and row.request.batch == 1
    if first and row.prompt == min(other.prompt for other in same):
        return replace(row, prefill_aside=WARMED_UP)
    longer = [other.prefill_s for other in same if other.prompt >= MUCH_LONGER * row.prompt]
    if any(seconds is not None and seconds < row.prefill_s for seconds in longer):
        return replace(row, prefill_aside=LONGER)
    return row
