"""Two runs as text laid out as by Go's ``benchstat`` (golang.org/x/perf/cmd/benchstat), for those who read that.

Unlike there, p is that of Welch's t on logarithms (``results/comparison.py``), not of the Mann-Whitney test: three
repetitions a side, which is what a sweep does, can give the latter no p below 0.1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from profiler.reports.base import plain
from profiler.results import stats
from profiler.results.comparison import PHASES, Comparison, Pair, Ratio
from profiler.results.measurement import Measurement, Phase
from profiler.units import significant

NAME_LENGTH = 60
ALPHA = 0.05  # benchstat's own default


def render(found: Comparison, names: tuple[str, str]) -> str:
    """A table for each phase that both sides have measured; empty when there is none."""
    tables = [_table(found.pairs, phase, names) for phase in PHASES]
    return "\n".join("\n".join(lines) + "\n" for lines in tables if lines)


def _table(pairs: Sequence[Pair], phase: Phase, names: tuple[str, str]) -> list[str]:
    rated = [(pair, ratio) for pair in pairs if (ratio := pair.rates.get(phase)) is not None]
    if not rated:
        return []
    cells = [(_name(pair), _side(pair.a, phase), _side(pair.b, phase), _change(ratio)) for pair, ratio in rated]
    if len(rated) > 1:
        cells.append(("geomean", *_geomean([ratio for _, ratio in rated])))
    unit = f"{phase} tok/s"
    sides = [plain(name, NAME_LENGTH) for name in names]
    first = max(len(row[0]) for row in cells)
    left = max(len(unit), len(sides[0]), *(len(row[1]) for row in cells))
    right = max(len(unit), *(len(row[2]) for row in cells))
    last = max(len("vs base"), *(len(row[3]) for row in cells), len(sides[1]) - right - 2)
    heading = [
        f"{'':{first}} │ {sides[0]:^{left}} │ {sides[1]:^{right + last + 2}} │",
        f"{'':{first}} │ {unit:^{left}} │ {unit:^{right}}  {'vs base':^{last}} │",
    ]
    return heading + [f"{a:{first}}   {b:>{left}}   {c:>{right}}  {d:>{last}}" for a, b, c, d in cells]


def _name(pair: Pair) -> str:
    case = pair.case
    return plain(f"{case.model}/{case.quant}/c={case.context}/b={case.batch}".replace(" ", "_"), NAME_LENGTH)


def _side(row: Measurement, phase: Phase) -> str:
    """``1.702 ± 30%``; ± ∞ where one repetition has no interval."""
    summary = stats.rate(row, phase)
    assert summary is not None  # both sides have this phase
    spread = "∞" if summary.relative_half is None else f"{100 * summary.relative_half:.0f}%"
    return f"{_plain(summary.median)} ± {spread}"


def _change(ratio: Ratio) -> str:
    n = f"n={ratio.n[0]}" if ratio.n[0] == ratio.n[1] else f"n={ratio.n[0]}+{ratio.n[1]}"
    if ratio.p is None:
        return f"~ ({n})"
    change = f"{100 * (ratio.value - 1):+.2f}%" if ratio.p <= ALPHA else "~"
    return f"{change} (p={ratio.p:.3f} {n})"


def _geomean(ratios: Sequence[Ratio]) -> tuple[str, str, str]:
    a, b = (math.exp(math.fsum(map(math.log, sides)) / len(ratios)) for sides in _medians(ratios))
    return _plain(a), _plain(b), f"{100 * (b / a - 1):+.2f}%"


def _plain(value: float) -> str:
    return significant(value, 4).replace(",", "")


def _medians(ratios: Sequence[Ratio]) -> tuple[list[float], list[float]]:
    return [ratio.a for ratio in ratios], [ratio.b for ratio in ratios]
