"""Decode paths side by side: how much faster than transformers as shipped, and what preparing it took."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from profiler.case import Case
from profiler.paths import EAGER
from profiler.reports.base.text import plain
from profiler.results import stats
from profiler.results.measurement import Measurement
from profiler.units import bytes_text, seconds_text

SOME_WASTE = 1.01  # of what attention needs


def launch_share(eager_tps: float, graph_tps: float) -> float:
    """The part of an eager step that a graph of the same kernels does without: 1 − graph time ÷ eager time."""
    return max(0.0, 1 - eager_tps / graph_tps)


def path_lines(measurements: Sequence[Measurement], brief: bool = False) -> list[str]:
    """One line for each case that another path than the shipped one decoded; ``brief``: if there is news in it."""
    shipped: dict[Case, float] = {}
    for row in measurements:
        rate = stats.rate(row, "decode")
        if row.case.path == EAGER and rate is not None:
            shipped[row.case] = rate.median
    return [line for row in measurements if (line := _line(row, shipped.get(replace(row.case, path=EAGER)), brief))]


def _line(row: Measurement, eager_tps: float | None, brief: bool) -> str | None:
    rate, path = stats.rate(row, "decode"), row.decode_path
    if rate is None or path is None:
        return None
    parts = []
    if eager_tps is not None and path.ran == row.case.path:
        parts.append(f"decodes {rate.median / eager_tps:.2f} × as fast as {EAGER}")
        if path.nodes_per_token is not None:
            parts.append(f"launch-bound share of {EAGER} {launch_share(eager_tps, rate.median):.0%}")
    if path.graphs:
        graphs = f"{path.graphs} graph{'s' * (path.graphs != 1)} prepared in {seconds_text(path.prepare_s)}"
        parts.append(
            graphs + (f", {path.nodes_per_token:,} nodes a token" if path.nodes_per_token is not None else "")
        )
    if path.cache_needed_bytes and path.cache_read_bytes:
        waste = path.cache_read_bytes / path.cache_needed_bytes
        if not brief or waste > SOME_WASTE:
            parts.append(
                f"reads {bytes_text(path.cache_read_bytes)} of the cache, {waste:.2f} × what attention needs"
            )
    if row.memory.graph_pool_bytes:
        parts.append(f"pool of {bytes_text(row.memory.graph_pool_bytes)}")
    if path.kernels and path.ran == row.case.path and (parts or not brief):
        parts.append(f"products by {plain(path.kernels)}")
    return f"{plain(row.case.label)} {plain(row.case.path)}: {'; '.join(parts)}" if parts else None
