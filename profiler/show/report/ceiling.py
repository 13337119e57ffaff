"""How close to the ceiling? Speed against the ceiling, the roofline of the device, and the share of each phase."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from profiler.cost.machine import Machine, flops_ceiling
from profiler.cost.prediction import LIMITS
from profiler.quants.base import DTYPE_BYTES
from profiler.results import stats
from profiler.results.measurement import PHASES, Phase
from profiler.show.columns import BASES
from profiler.show.report import charts, selection
from profiler.show.report.blocks import MAX_ROWS, Bar, Bars, Chart, Figures, Head, PageBlock, Section, Table, muted
from profiler.show.report.predictions import PLAIN_DTYPE, Forecast
from profiler.show.report.selection import CaseResult, MachineRows
from profiler.units import UNKNOWN, significant

MAX_POINTS = 30  # cases in the roofline; more would overlap
MAX_BARS = 8  # of the picture on the first screen
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
    blocks: list[PageBlock] = [Figures(tuple(figures))] if figures else []
    blocks += notes
    blocks += _table(machines)
    return Section("ceiling", "How close is it to the hardware's limit?", tuple(blocks), "Hardware's limit")


def bars(machines: Sequence[MachineRows], best: Sequence[CaseResult | None]) -> list[Bars | None]:
    """Measured decode against its ceiling: for each machine a bar for each model and quantization, all at the same
    context if they have it, and all machines on one scale. None for a machine without a measured decode.

    ``best``: the case of each machine that the page recommends, whose model and quantization has a bar in any case.
    """
    rated = [[each for each in machine.fewest if _has_rate(each)] for machine in machines]
    every = [_one_each(mine) for mine in rated]
    shown = [
        [(result, _ceiling(result)) for result in _fastest(mine, first)]
        for mine, first in zip(every, best, strict=True)
    ]
    rates = [rate for mine in shown for result, ceiling in mine for rate in (result.decode_tps, ceiling) if rate]
    longest = max(rates, default=1.0)
    several = len(machines) > 1
    return [
        _bars(mine, len(all_of_them), longest, machine.title if several else "") if mine else None
        for machine, mine, all_of_them in zip(machines, shown, every, strict=True)
    ]


def _bars(shown: Sequence[tuple[CaseResult, float | None]], count: int, longest: float, where: str) -> Bars:
    """``count``: how many models and quantizations could have a bar."""
    contexts = {result.case.context for result, _ in shown if result.case.prompt is None}
    rows = tuple(
        Bar(
            f"{result.model} · {result.group.settings}{_size(result, len(contexts) > 1)}",
            _against(result, ceiling),
            (result.decode_tps or 0) / longest,
            ceiling and ceiling / longest,
            result.keys,
        )
        for result, ceiling in shown
    )
    bases = dict.fromkeys(result.ceiling_basis for result, _ in shown if result.ceiling_basis)
    known = f" against the device's ceiling {selection.joined(bases)}" if bases else ""
    at = f" at {selection.tokens_text(*contexts)} of context" if len(contexts) == 1 else ""
    sequences = max(stats.sequences(result.case) for result, _ in shown)
    together = f" of {sequences:,} sequences" if sequences > 1 else ""
    some = f": the recommended and the fastest of {count:,} cases" if count > len(shown) else ""
    return Bars(f"Decode{together}{at}{known}{some}{f' · {where}' if where else ''}", rows)


def _has_rate(result: CaseResult) -> bool:
    return result.comparable and bool(result.decode_tps)


def _ceiling(result: CaseResult) -> float | None:
    """Decode at the ceiling, in tokens per second."""
    share = _share(result)
    return (result.decode_tps or 0.0) / share if share else None


def _one_each(results: Sequence[CaseResult]) -> list[CaseResult]:
    """One result for each model and quantization: at the most frequent context, or with the median prompt."""
    groups: dict[tuple[str, str], list[CaseResult]] = {}
    for result in results:
        groups.setdefault((result.model, result.group.settings), []).append(result)
    counts = Counter(at for mine in groups.values() for at in {result.case.context for result in mine})
    common = min(counts, key=lambda at: (-counts[at], at), default=0)
    chosen = []
    for mine in groups.values():
        ordered = sorted(mine, key=lambda result: result.decode_tps or 0)
        at = [result for result in mine if result.case.context == common and result.case.prompt is None]
        written = all(result.case.prompt for result in mine)
        chosen.append(ordered[len(ordered) // 2] if written else (at or mine)[0])
    return chosen


def _fastest(chosen: Sequence[CaseResult], best: CaseResult | None) -> list[CaseResult]:
    """The fastest of them, and that with the model and settings of ``best``, in the same order."""
    first = best and (best.model, best.group.settings)
    kept = sorted(chosen, key=lambda each: ((each.model, each.group.settings) != first, -(each.decode_tps or 0)))[
        :MAX_BARS
    ]
    return [result for result in chosen if result in kept]


def _share(result: CaseResult) -> float | None:
    return result.shares.get("decode")


def _size(result: CaseResult, differ: bool) -> str:
    if result.case.prompt is not None:
        return f" · {selection.prompt(result)}"
    return f" · {charts.count_text(result.case.context)}" if differ else ""


def _against(result: CaseResult, ceiling: float | None) -> str:
    rate = selection.rate(result.decode)
    return f"{rate} t/s" if not ceiling else f"{rate} of {significant(ceiling, 2)} t/s, {_share(result):.0%}"


def _roofline(machine: MachineRows, forecast: Forecast, where: str) -> Chart | str:
    """The chart, or the reason why there is none."""
    if forecast.machine is None:
        return "the rows do not say which device they were measured on"
    on = Machine(forecast.machine.target.at_quick)
    if on.target.guessed:
        return (
            "this machine has no calibration of the device with the library versions of these rows; profile calibrate"
            " takes a minute"
        )
    known = [result for result in machine.at.get(machine.batch, ()) if result.model in forecast.shapes]
    shown = _spread_out(known)
    # Two of more series than there are colors would look alike.
    by_model = len({result.series for result in shown}) > len(charts.SERIES)
    points = [point for result in shown for point in _points(result, forecast, by_model)]
    if not points:
        return "FLOPs and bytes are known only for models whose shapes are stored or in the catalog"
    bytes_s = on.ceiling_bytes_s
    dtypes = {result.case.dtype for result in known} & DTYPE_BYTES.keys() or {PLAIN_DTYPE}
    flop_s = max(flops_ceiling(on, dtype, dtype, in_int8=False) for dtype in dtypes)
    names = dict.fromkeys(point.series for point in points)
    series = {name: color for color, name in enumerate(names)} if by_model else machine.palette(names)
    basis = "calibrated" if on.target.ceilings else "quick" if on.target.quick else "data sheet"
    title = f"Roofline, {BASES[basis]}: {charts.rates_text(bytes_s, flop_s)}{where}"
    return Chart(title, charts.roofline(points, bytes_s, flop_s, series))


def _points(result: CaseResult, forecast: Forecast, by_model: bool) -> list[charts.Mark]:
    """Prefill and decode of a case, in the color of its model or of its series."""
    needed = forecast.needed(result)
    points = []
    for (nbytes, flops), phase in zip(needed or (), PHASES, strict=False):
        seconds = _seconds(result, phase)
        if seconds is None or not nbytes or not flops:
            continue
        speed = flops / seconds
        where = f"{significant(speed / 1e9)} GFLOP/s at {significant(flops / nbytes)} FLOP per byte"
        said = f"{selection.case(result)}, {phase}: {where}"
        shape = "square" if phase == "prefill" else "circle"
        name = result.model if by_model else result.series
        points.append(charts.Mark(flops / nbytes, speed, name, said, shape=shape, keys=result.keys))
    return points


def _seconds(result: CaseResult, phase: Phase) -> float | None:
    """Seconds of a whole prefill, or of one decode step."""
    tps = result.prefill_tps if phase == "prefill" else result.decode_tps
    if tps is None:
        return None
    return stats.sequences(result.case) * (result.case.context if phase == "prefill" else 1) / tps


def _table(machines: Sequence[MachineRows]) -> list[PageBlock]:
    rows = [(machine, result) for machine in machines for result in machine.calibrated[:MAX_ROWS]]
    if not rows:
        return [
            muted(
                "There are no shares of the ceiling, because none was known when these rows were measured. Later"
                " sweeps measure it in seconds; profile calibrate is more exact."
            )
        ]
    several = len(machines) > 1
    columns = (
        *((Head("machine", right=False),) if several else ()),
        Head("case", right=False),
        Head("prefill MFU"),
        Head("decode MBU"),
        Head("decode is limited by", right=False),
    )
    table = tuple(
        (*((machine.title,) if several else ()), selection.case(result), *_cells(result))
        for machine, result in rows[:MAX_ROWS]
    )
    keys = tuple(result.keys for _, result in rows[:MAX_ROWS])
    bases = dict.fromkeys(result.ceiling_basis for _, result in rows if result.ceiling_basis)
    caption = f"MFU of prefill and MBU of decode, ceilings {selection.joined(bases)}"
    blocks: list[PageBlock] = [Table(columns, table, caption, keys)]
    count = sum(len(machine.calibrated) for machine in machines)
    if count > MAX_ROWS:
        blocks.append(
            muted(f"{MAX_ROWS} of {count:,} cases are shown; profile runs show RUN -o json lists all of them.")
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


def _spread_out(results: Sequence[CaseResult]) -> list[CaseResult]:
    """At most ``MAX_POINTS`` of the results, evenly spaced."""
    step = max(1, -(-len(results) // MAX_POINTS))
    return list(results[::step])
