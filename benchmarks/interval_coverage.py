"""How sure coverage and bias are: rows of one device err alike, so the number of devices counts, not that of rows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from left_out import Judged

FEWEST = 20  # figures of an engine and kind that the targets are for
LEAST, MOST, BIAS = 0.85, 0.95, 0.05  # the targets: coverage of 90% intervals, and the signed median
SAMPLES, SEED = 2000, 21
Groups = Mapping[str, Callable[[Judged], bool]]


def section(judged: Sequence[Judged], groups: Groups) -> list[str]:
    """The lines of the section of ``accuracy.md``: ``groups``, each engine, and each of its kinds."""
    lines = [
        "## How sure the coverage is",
        "",
        f"The targets are that {LEAST:.0%} to {MOST:.0%} of the measured values are inside the 90% intervals, and"
        f" that the signed median is within ±{BIAS:.0%}, in each group below, for each engine with at least"
        f" {FEWEST} figures («all»), and for each of its kinds with as many. Figures of one device err alike, so a"
        " group with few devices says little. In brackets are the 5% and 95% quantiles of a bootstrap over its"
        " devices. «By device» is the median of the signed medians of the devices, where each device counts once.",
        "",
        "| figures | n | devices | 90% interval covers | signed median | by device | targets |",
        "|---|--:|--:|--:|--:|--:|---|",
    ]
    for name, holds in groups.items():
        lines.append(_line(name, [each for each in judged if holds(each)]))
    engines: dict[str, list[Judged]] = defaultdict(list)
    for each in judged:
        name = each.row.engine.name
        engines[f"all, {name}"].append(each)
        engines[f"{each.kind}, {name}"].append(each)
    return [*lines, *(_line(name, engines[name]) for name in sorted(engines) if len(engines[name]) >= FEWEST), ""]


def _line(name: str, judged: Sequence[Judged]) -> str:
    devices: dict[str, list[Judged]] = defaultdict(list)
    for each in judged:
        devices[each.row.target.name].append(each)
    covered = sum(each.covered for each in judged) / len(judged)
    bias = float(np.median([each.error for each in judged]))
    by_device = float(np.median([np.median([each.error for each in own]) for own in devices.values()]))
    low, high = covered_range(list(devices.values()))
    told = _coverage_verdict(covered, low, high), _bias_verdict(bias, by_device)
    return (
        f"| {name} | {len(judged)} | {len(devices)} | {covered:.0%} [{low:.0%}, {high:.0%}] | {bias:+.1%}"
        f" | {by_device:+.1%} | {'; '.join(part for part in told if part) or 'met'} |"
    )


def covered_range(devices: Sequence[Sequence[Judged]]) -> tuple[float, float]:
    """5% and 95% quantiles of the coverage, if the devices were drawn again; 0 to 1 for a single one."""
    if len(devices) == 1:
        return 0.0, 1.0
    inside = np.array([sum(each.covered for each in own) for own in devices])
    rows = np.array([len(own) for own in devices])
    draws = np.random.default_rng(SEED).integers(0, len(devices), (SAMPLES, len(devices)))
    low, high = np.quantile(inside[draws].sum(axis=1) / rows[draws].sum(axis=1), [0.05, 0.95])
    return float(low), float(high)


def _coverage_verdict(covered: float, low: float, high: float) -> str:
    if LEAST <= covered <= MOST:
        return ""
    told = "covers too little" if covered < LEAST else "covers more"
    return told if high < LEAST or low > MOST else f"{told}, which its devices do not show for sure"


def _bias_verdict(bias: float, by_device: float) -> str:
    if abs(bias) <= BIAS:
        return ""
    return "biased by the rows of few devices" if abs(by_device) <= BIAS else "biased"
