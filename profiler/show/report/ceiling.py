"""How close to the ceiling? The roofline of the device, and the share of it that each phase reaches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from profiler.cost.machine import flops_ceiling
from profiler.cost.prediction import LIMITS
from profiler.results import stats
from profiler.results.measurement import PHASES, Phase
from profiler.show.report import charts, selection
from profiler.show.report.blocks import Chart, Figures, Head, PageBlock, Section, Table, muted
from profiler.show.report.predictions import Forecast
from profiler.show.report.selection import CaseResult, MachineRows
from profiler.units import UNKNOWN, significant

MOST_POINTS = 30  # cases in the roofline; more would overlap
MOST_SHARES = 16  # lines in the chart of shares
MOST_ROWS = 60
ABOVE = {f"{phase}-above-ceiling" for phase in PHASES}  # caution codes


def section(machines: Sequence[MachineRows], forecasts: Sequence[Forecast]) -> Section:
    """Charts for each machine, and a table of the shares."""
    figures: list[Chart] = []
    notes: list[PageBlock] = []
    for machine, forecast in zip(machines, forecasts, strict=True):
        where = f" · {machine.title}" if len(machines) > 1 else ""
        roof = _roofline(machine, forecast, where)
        if isinstance(roof, Chart):
            figures.append(roof)
        else:
            notes.append(muted(f"No roofline{where}: {roof}."))
        shares = _shares(machine, where)
        if shares is not None:
            figures.append(shares)
    blocks: list[PageBlock] = [Figures(tuple(figures))] if figures else []
    blocks += notes
    blocks += _table(machines)
    return Section("ceiling", "How close is it to the hardware's limit?", tuple(blocks), "Hardware's limit")


def _roofline(machine: MachineRows, forecast: Forecast, where: str) -> Chart | str:
    """The chart, or the reason why there is none."""
    if forecast.machine is None:
        return "the rows do not say which device they were measured on"
    if forecast.machine.target.guessed:
        return (
            "this device was not calibrated with the library versions of these rows; profile calibrate takes a minute"
        )
    known = [result for result in machine.at.get(machine.batch, ()) if result.model in forecast.shapes]
    points = [point for result in _spread_out(known) for point in _points(result, forecast)]
    if not points:
        return "FLOPs and bytes are known only for models in the catalog, and none of those was measured"
    bytes_s = forecast.machine.ceiling_bytes_s
    dtypes = {result.case.dtype for result in known}
    flop_s = max(flops_ceiling(forecast.machine, dtype, dtype, in_int8=False) for dtype in dtypes)
    series = machine.palette(dict.fromkeys(point["series"] for point in points))
    basis = "as measured" if forecast.machine.target.ceilings else "from the data sheet"
    title = f"Roofline, {basis}: {significant(bytes_s / 1e9)} GB/s, {significant(flop_s / 1e9)} GFLOP/s{where}"
    return Chart(title, charts.roofline(points, bytes_s, flop_s, series))


def _points(result: CaseResult, forecast: Forecast) -> list[dict[str, Any]]:
    needed = forecast.needed(result)
    points = []
    for (nbytes, flops), phase in zip(needed or (), PHASES, strict=False):
        seconds = _seconds(result, phase)
        if seconds is None or not nbytes or not flops:
            continue
        speed = flops / seconds
        where = f"{significant(speed / 1e9)} GFLOP/s at {significant(flops / nbytes)} FLOP per byte"
        said = f"{selection.case(result)}, {phase}: {where}"
        points.append({"x": flops / nbytes, "y": speed, "series": result.series, "phase": phase, "said": said})
    return points


def _seconds(result: CaseResult, phase: Phase) -> float | None:
    """Seconds of a whole prefill, or of one decode step."""
    tps = result.prefill_tps if phase == "prefill" else result.decode_tps
    if tps is None:
        return None
    return stats.sequences(result.case) * (result.case.context if phase == "prefill" else 1) / tps


def _shares(machine: MachineRows, where: str) -> Chart | None:
    points = []
    for result in _spread_out(machine.calibrated, MOST_SHARES):
        found = result.shares
        for phase in PHASES:
            share = found[phase]
            if share is not None:
                label = selection.case(result)
                points.append({"x": share, "label": label, "phase": phase, "said": f"{label}, {phase}: {share:.0%}"})
    return Chart(f"Share of the ceiling{where}", charts.shares(points)) if points else None


def _table(machines: Sequence[MachineRows]) -> list[PageBlock]:
    rows = [(machine, result) for machine in machines for result in machine.calibrated[:MOST_ROWS]]
    if not rows:
        return [
            muted(
                "There are no shares of the ceiling, because the device was not calibrated when these rows were"
                " measured. profile calibrate takes a minute; later sweeps have them."
            )
        ]
    several = len(machines) > 1
    columns = (
        *((Head("machine", right=False),) if several else ()),
        Head("case", right=False),
        Head("prefill"),
        Head("decode"),
        Head("decode is limited by", right=False),
    )
    table = tuple(
        (*((machine.title,) if several else ()), selection.case(result), *_cells(result))
        for machine, result in rows[:MOST_ROWS]
    )
    blocks: list[PageBlock] = [
        Table(columns, table, "Share of the ceiling: time at the measured ceilings ÷ measured time")
    ]
    count = sum(len(machine.calibrated) for machine in machines)
    if count > MOST_ROWS:
        blocks.append(
            muted(f"{MOST_ROWS} of {count:,} cases are shown; profile runs show RUN -o json lists all of them.")
        )
    above = [
        selection.case(result)
        for machine in machines
        for result in machine.noted
        if any(caution.code in ABOVE for caution in result.cautions)
    ]
    if above:
        blocks.append(
            muted(f"Above 100%: {selection.several(above, 4)}. This is a bug in profile; please report it.")
        )
    return blocks


def _cells(result: CaseResult) -> tuple[str, str, str]:
    found = result.shares
    prefill, decode = (UNKNOWN if (share := found[phase]) is None else f"{share:.0%}" for phase in PHASES)
    return prefill, decode, str(result.bound) if result.bound in LIMITS else UNKNOWN


def _spread_out(results: Sequence[CaseResult], most: int = MOST_POINTS) -> list[CaseResult]:
    """At most ``most`` of the results, evenly spaced."""
    step = max(1, -(-len(results) // most))
    return list(results[::step])
