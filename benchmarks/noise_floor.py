"""The error that would remain if a predictor knew the true speed of every case: what repeated cases say about it.

A published rate is the true rate times a deviation of its source: clocks, drivers, builds, power limits, programs.
Two sources of the same case differ by both of their deviations. If those are independent and alike, the logarithm of
the ratio of two rates has √2 times the spread of a single deviation, so each pair gives one deviation

    x = |log(rate of one ÷ rate of the other)| / √2

and a prediction of the true rate would be off by e^x − 1 or 1 − e^−x, which is sinh(x) on average. What all sources
of a case have in common is not part of it, so the true floor is higher.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from left_out import Judged
from published_rows import Row

MANY_AUTHORS = (  # collections of many people's measurements, whose rows name where each is from
    "GitHub",
    "github-issues",
    "github.com/AlexsJones/llmfit",
    "llama.cpp-pr",
    "localmaxxing",
    "localmaxxing.com",
)
TOKENS = (0, 8192, 32768)  # beginnings of the bins for prompts and depths
SAMPLES, SEED = 2000, 21
TARGETS = {"decode": (0.11, 0.08), "batch": (0.25, None), "prefill": (0.22, None)}  # of MAPE and median error
NAMES = {"decode": "decode, one sequence", "batch": "decode, batch > 1", "prefill": "prefill"}


@dataclass(frozen=True, slots=True)
class RepeatedCase:
    """A case of several sources; ``offsets``: log of measured ÷ predicted seconds, one for each source."""

    name: str
    offsets: tuple[float, ...]
    reported: bool  # whether one of the sources is self-reported

    @property
    def gap(self) -> float:
        """Fastest ÷ slowest source, minus one."""
        return math.exp(max(self.offsets) - min(self.offsets)) - 1

    def deviations(self) -> list[tuple[float, float]]:
        """A deviation of a single source for each pair, and its weight: all pairs count as one less than sources."""
        count = len(self.offsets)
        pairs = [abs(a - b) for index, a in enumerate(self.offsets) for b in self.offsets[:index]]
        return [(pair / math.sqrt(2), 2 / count) for pair in pairs]


@dataclass(frozen=True, slots=True)
class NoiseFloor:
    """MAPE and median error of predictions that are true, each with the ends of its 90% interval."""

    mean: tuple[float, float, float]
    median: tuple[float, float, float]


def author(row: Row) -> str:
    """Who measured a row. Rows of one day on a site of self-reported figures count as one person's."""
    return row.series.split(" · ")[0] if row.source in MANY_AUTHORS else row.source


def repeated(judged: Sequence[Judged], kind: str) -> list[RepeatedCase]:
    """Cases of more than one source: of the same model, quantization, engine, devices and split, with prompt, depth
    and batch in the same bins. Our prediction says how rates differ within a bin; that is not counted as a gap.
    """
    groups: dict[tuple[str, ...], list[Judged]] = defaultdict(list)
    for each in judged:
        if each.kind == kind:
            groups[_case(each)].append(each)
    found = []
    for key, same in groups.items():
        sources: dict[str, list[float]] = defaultdict(list)
        for each in same:
            sources[author(each.row)].append(math.log(each.measured / each.predicted))
        if len(sources) > 1:
            offsets = tuple(float(np.median(logs)) for logs in sources.values())
            name = " · ".join(part for part in key if part)
            found.append(RepeatedCase(name, offsets, any(each.row.tier == "C" for each in same)))
    return sorted(found, key=lambda case: -case.gap)


def _case(judged: Judged) -> tuple[str, ...]:
    row = judged.row
    split = row.machine.split if row.target.count > 1 else ""
    batch = f"batch {2 ** math.ceil(math.log2(row.batch))}" if judged.batched else ""
    if judged.phase == "prefill":
        at = f"prompt {_bin(row.prompt)}, after {_bin(row.prefill_depth)}"
        batch = f"batch {row.request.batch}" if row.request.batch > 1 else ""
    else:
        at = f"depth {_bin(row.depth)}" + (", whole requests" if row.answer is not None else "")
    return row.model, row.request.quant, row.engine.name, row.target.title, split, batch, at


def _bin(tokens: int) -> str:
    low = max(start for start in TOKENS if start <= tokens)
    above = [start for start in TOKENS if start > tokens]
    return f"{low:,} to {above[0]:,}" if above else f"from {low:,}"


def floor(cases: Sequence[RepeatedCase]) -> NoiseFloor:
    """The errors that remain, with bootstrap intervals over the cases."""
    pairs = [case.deviations() for case in cases]

    def of(chosen: Sequence[int], statistic: Callable[[np.ndarray, np.ndarray], float]) -> float:
        flat = np.array([pair for index in chosen for pair in pairs[index]])
        return statistic(flat[:, 0], flat[:, 1])

    random = np.random.default_rng(SEED)
    draws = random.integers(0, len(cases), (SAMPLES, len(cases)))
    every = range(len(cases))

    def interval(statistic: Callable[[np.ndarray, np.ndarray], float]) -> tuple[float, float, float]:
        low, high = np.quantile([of(draw, statistic) for draw in draws], [0.05, 0.95])
        return of(every, statistic), float(low), float(high)

    return NoiseFloor(interval(_mean_error), interval(_median_error))


def _mean_error(deviations: np.ndarray, weights: np.ndarray) -> float:
    return float(np.average(np.sinh(deviations), weights=weights))


def _median_error(deviations: np.ndarray, weights: np.ndarray) -> float:
    errors = np.concatenate([np.expm1(deviations), -np.expm1(-deviations)])
    order = np.argsort(errors)
    share = np.cumsum(np.tile(weights, 2)[order]) / (2 * weights.sum())
    return float(errors[order][np.searchsorted(share, 0.5)])


def section(judged: Sequence[Judged]) -> list[str]:
    """The lines of the section of ``accuracy.md``."""
    lines = [
        "## The noise floor",
        "",
        "How large would the error be if every prediction were the true speed of its case, and only the deviation of"
        " each source remained? Sources that published the same case answer that: two of them differ by both of their"
        " deviations, so log(rate ÷ rate) of a pair is √2 times as large as x, the deviation of one, and the error"
        " would be sinh(x) on average. Cases are the same if model, quantization, engine, devices and split are, and"
        " if prompt, depth and batch are in the same bins (below 8k, below 32k, and more tokens; batches by powers of"
        " two); how rates differ within a bin is taken from our prediction. In brackets are 90% intervals by a"
        " bootstrap over the cases. What all sources of a case have in common is not part of a gap, so the true floor"
        " is higher.",
        "",
        "| figures | cases | pairs | median gap | MAPE of the truth | median error of the truth | ours | targets |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    verdicts, listed = [], []
    for kind, name in NAMES.items():
        cases = repeated(judged, kind)
        listed += _listed(name, cases)
        errors = [abs(each.error) for each in judged if each.kind == kind]
        groups = {name: cases, f"… without self-reported figures, {kind}": [c for c in cases if not c.reported]}
        for title, chosen in groups.items():
            if len(chosen) > 1:
                lines.append(_line(title, chosen, errors if title == name else [], kind))
        if len(cases) > 1:
            verdicts += _verdicts(name, kind, cases)
    return [*lines, "", *verdicts, "", *listed]


def _line(title: str, cases: Sequence[RepeatedCase], errors: Sequence[float], kind: str) -> str:
    found = floor(cases)
    pairs = sum(len(case.deviations()) for case in cases)
    gap = np.median([case.gap for case in cases])
    ours = f"{np.mean(errors):.1%}, {np.median(errors):.1%}" if errors else ""
    targets = ", ".join(f"{target:.0%}" for target in TARGETS[kind] if target is not None) if errors else ""
    return (
        f"| {title} | {len(cases)} | {pairs} | {gap:.0%} | {_interval(found.mean)} | {_interval(found.median)}"
        f" | {ours} | {targets} |"
    )


def _interval(figure: tuple[float, float, float]) -> str:
    return f"{figure[0]:.1%} [{figure[1]:.1%}, {figure[2]:.1%}]"


def _verdicts(name: str, kind: str, cases: Sequence[RepeatedCase]) -> list[str]:
    lines, found = [], floor(cases)
    for what, target, figure in zip(("MAPE", "median error"), TARGETS[kind], (found.mean, found.median), strict=True):
        if target is None:
            continue
        _, low, high = figure
        if low > target:
            told = "lies above it: not even the truth would reach it on such rows"
        elif high < target:
            told = "lies below it: noise does not forbid it"
        else:
            told = "contains it: these cases show neither that it can be reached nor that it cannot"
        lines.append(f"- {name}: the target for the {what} is {target:.0%}. The interval of the floor {told}.")
    if len(cases) > 2:
        without = floor(cases[1:]).mean
        lines.append(f"- {name}: without the case of the largest gap, the MAPE of the truth is {_interval(without)}.")
    return lines


def _listed(name: str, cases: Sequence[RepeatedCase]) -> list[str]:
    return [
        f"Repeated cases, {name}, by fastest ÷ slowest source − 1:",
        "",
        *(f"- {case.name}: {case.gap:.0%} ({len(case.offsets)} sources)" for case in cases),
        "",
    ]
