"""How near the ceiling? The roofline of the device, and the share of it that each phase reaches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from profiler.predict import explanation
from profiler.reports.base.page import plots, words
from profiler.reports.base.page.blocks import Block, Figure, Figures, Head, Section, Table, muted
from profiler.reports.base.page.forecast import Forecast
from profiler.reports.base.page.side import Fact, Side
from profiler.results.measurement import Phase
from profiler.units import UNKNOWN, significant

MOST_POINTS = 30  # cases of the roofline: they lie on each other beyond
MOST_SHARES = 16  # lines of the chart of shares
MOST_ROWS = 60
PHASES: tuple[Phase, ...] = ("prefill", "decode")
ABOVE = {f"{phase}-above-ceiling" for phase in PHASES}  # cautions


def section(sides: Sequence[Side], forecasts: Sequence[Forecast]) -> Section:
    """Charts for each machine, then the shares as figures."""
    figures: list[Figure] = []
    notes: list[Block] = []
    for side, forecast in zip(sides, forecasts, strict=True):
        where = f" · {side.title}" if len(sides) > 1 else ""
        roof = _roofline(side, forecast, where)
        if isinstance(roof, Figure):
            figures.append(roof)
        else:
            notes.append(muted(f"No roofline{where}: {roof}."))
        shares = _shares(side, where)
        if shares is not None:
            figures.append(shares)
    blocks: list[Block] = [Figures(tuple(figures))] if figures else []
    blocks += notes
    blocks += _table(sides)
    return Section("ceiling", "How near is it to what the hardware can do?", tuple(blocks))


def _roofline(side: Side, forecast: Forecast, where: str) -> Figure | str:
    """The chart, or why there is none."""
    if forecast.machine is None:
        return "the rows do not say which device they were measured on"
    if forecast.machine.target.guessed:
        return "this device was not calibrated with the packages of these rows; profile calibrate takes a minute"
    known = [fact for fact in side.ok if fact.model in forecast.shapes and fact.case.batch == side.batch]
    points = [point for fact in _spread_out(known) for point in _points(fact, forecast)]
    if not points:
        return "FLOPs and bytes are known for models of the catalog only, and none of them was measured"
    bytes_s = forecast.machine.ceiling_bytes_s
    dtypes = {fact.case.dtype for fact in known}
    flop_s = max(explanation.flops_ceiling(forecast.machine, dtype, dtype, "transformers") for dtype in dtypes)
    series = side.palette(dict.fromkeys(point["series"] for point in points))
    basis = "as measured" if forecast.machine.target.ceilings else "by its maker's figures"
    title = f"Roofline, {basis}: {significant(bytes_s / 1e9)} GB/s, {significant(flop_s / 1e9)} GFLOP/s{where}"
    return Figure(title, plots.roofline(points, bytes_s, flop_s, series))


def _points(fact: Fact, forecast: Forecast) -> list[dict[str, Any]]:
    needed = forecast.needed(fact)
    points = []
    for (nbytes, flops), phase in zip(needed or (), PHASES, strict=False):
        seconds = _seconds(fact, phase)
        if seconds is None or not nbytes or not flops:
            continue
        speed = flops / seconds
        where = f"{significant(speed / 1e9)} GFLOP/s at {significant(flops / nbytes)} FLOP a byte"
        said = f"{words.case(fact)}, {phase}: {where}"
        points.append({"x": flops / nbytes, "y": speed, "series": fact.series, "phase": phase, "said": said})
    return points


def _seconds(fact: Fact, phase: Phase) -> float | None:
    """Of a whole prefill, or of one step."""
    tps = fact.prefill_tps if phase == "prefill" else fact.decode_tps
    if tps is None:
        return None
    return fact.case.batch * (fact.case.context if phase == "prefill" else 1) / tps


def _shares(side: Side, where: str) -> Figure | None:
    points = []
    for fact in _spread_out([fact for fact in side.ok if fact.ceiling_s], MOST_SHARES):
        found = fact.shares
        for phase in PHASES:
            share = found[f"{phase}_fraction"]
            if share is not None:
                label = words.case(fact)
                points.append({"x": share, "label": label, "phase": phase, "said": f"{label}, {phase}: {share:.0%}"})
    return Figure(f"Share of the ceiling{where}", plots.shares(points)) if points else None


def _table(sides: Sequence[Side]) -> list[Block]:
    rows = [(side, fact) for side in sides for fact in side.ok if fact.ceiling_s]
    if not rows:
        return [
            muted(
                "No share of the ceiling: nothing was calibrated when these rows were measured. profile calibrate"
                " takes a minute, and every sweep after it has them."
            )
        ]
    several = len(sides) > 1
    columns = (
        *((Head("machine", right=False),) if several else ()),
        Head("case", right=False),
        Head("prefill"),
        Head("decode"),
        Head("decode is held back by", right=False),
    )
    table = tuple(
        (*((side.title,) if several else ()), words.case(fact), *_cells(fact)) for side, fact in rows[:MOST_ROWS]
    )
    blocks: list[Block] = [
        Table(columns, table, "Share of the ceiling: what the device was measured to do ÷ what it took")
    ]
    if len(rows) > MOST_ROWS:
        blocks.append(muted(f"{MOST_ROWS} of {len(rows):,} cases are shown; profile runs show RUN -o json has all."))
    above = [words.case(fact) for _, fact in rows if any(caution.code in ABOVE for caution in fact.cautions)]
    if above:
        blocks.append(muted(f"Above 100 %: {words.several(above, 4)}. That is a bug of ours; please report it."))
    return blocks


def _cells(fact: Fact) -> tuple[str, str, str]:
    found = fact.shares
    texts = (
        UNKNOWN if share is None else f"{share:.0%}" for share in (found[f"{phase}_fraction"] for phase in PHASES)
    )
    prefill, decode = texts
    return prefill, decode, words.LIMITS.get(fact.bound, ("", UNKNOWN))[1]


def _spread_out(facts: Sequence[Fact], most: int = MOST_POINTS) -> list[Fact]:
    """At most so many, evenly from all."""
    step = max(1, -(-len(facts) // most))
    return list(facts[::step])
