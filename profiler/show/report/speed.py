"""How fast? Prefill and decode over context for each quantization, and decode over the batch size."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import islice

from profiler.registry import listed
from profiler.results import comparison
from profiler.results.measurement import PHASES, Measurement, Phase
from profiler.show.columns import (
    context_cell,
    noisy_word,
    rate_cell,
    ratio_text,
    reps_cell,
    token_cell,
    ttft_cell,
)
from profiler.show.compare import why_incomparable
from profiler.show.report import charts, selection
from profiler.show.report.blocks import MAX_ROWS, Chart, Figures, Head, PageBlock, Section, Table, muted
from profiler.show.report.selection import CaseResult, MachineRows
from profiler.units import UNKNOWN, bytes_text, rate_text

BARS = " Bars: 95% interval of that median, cut off at the edge of the chart; no bar: measured once."
SERVED = " Rows of a server are the median of the requests, for one stream."
MAX_PANELS = 3  # charts per kind: one row of the page; each takes a quarter of a second to draw
MAX_SERIES = 8  # lines that remain distinguishable in a chart
MAX_POINTS = 24  # points per line


def section(machines: Sequence[MachineRows]) -> Section:
    """Charts by model, with machines side by side, and a table."""
    blocks: list[PageBlock] = []
    if not any(result.prefill_tps or result.decode_tps for machine in machines for result in machine.ok):
        blocks.append(muted("There are no speeds, because no case was completed."))
        return Section("speed", "How fast is it?", tuple(blocks))
    several = len(machines) > 1
    panels = _panels(machines)
    curves = {
        f"{phase} over context": [_over_context(machine, model, phase, several) for machine, model in panels]
        for phase in PHASES
    }
    curves["decode over batch size"] = [_over_batch(machine, model, several) for machine, model in panels]
    drawings = {name: tuple(filter(None, figures)) for name, figures in curves.items()}
    blocks += [Figures(found, f"{name[:1].upper()}{name[1:]}") for name, found in drawings.items() if found]
    if absent := [name for name, found in drawings.items() if not found]:
        needs = "two batch sizes" if absent == ["decode over batch size"] else "two contexts or batch sizes"
        blocks.append(muted(f"There is no chart of {listed(absent, 'or')}: this needs a case at {needs}."))
    blocks.append(
        muted(
            "Tokens per second for all sequences together, median of the repetitions."
            + (BARS if any(drawings.values()) else "")
            + (SERVED if any(result.case.server for machine in machines for result in machine.ok) else "")
        )
    )
    drawn = len({model for _, model in panels})
    models = len({model for machine in machines for model in machine.models})
    if 0 < drawn < models:
        blocks.append(
            muted(
                f"Charts show {drawn} of {models} models: those with at least two contexts or batch sizes"
                + (f", the {MAX_PANELS} with the most rows." if drawn >= MAX_PANELS else ".")
            )
        )
    for machine in machines:
        blocks += _engines(machine, several)
    if len(machines) > 1:
        blocks += _side_by_side(machines)
    blocks += _table(machines)
    return Section("speed", "How fast is it?", tuple(blocks), "How fast")


def _panels(machines: Sequence[MachineRows]) -> list[tuple[MachineRows, str]]:
    """The models with the most rows, each with all machines that have a curve of it."""
    counts = Counter[str]()
    for machine in machines:
        counts.update({model: len(results) for model, results in machine.of.items()})
    pairs = [
        (machine, model) for model, _ in counts.most_common() for machine in machines if _has_curve(machine, model)
    ]
    return pairs[: max(MAX_PANELS, len(machines))]


def _has_curve(machine: MachineRows, model: str) -> bool:
    places = ((each.case.context, each.case.batch) for each in machine.of.get(model, ()) if each.case.prompt is None)
    first = next(places, None)
    return any(place != first for place in places)


def _over_context(machine: MachineRows, model: str, phase: Phase, several: bool) -> Chart | None:
    every = machine.of.get(model, ())
    results = [each for each in every if each.case.batch == machine.batch and each.case.prompt is None]
    points = [(result, result.case.context) for result in results if _median(result, phase) is not None]
    batch = f", batch {machine.batch}" if machine.batch > 1 else ""
    return _curves(f"{model}{batch}", points, "context", phase, machine, several)


def _over_batch(machine: MachineRows, model: str, several: bool) -> Chart | None:
    # Not a server's rows: they have the rate of one stream, which falls while that of all streams together grows.
    results = [result for result in machine.of.get(model, ()) if result.decode_tps and result.case.server is None]
    batches: dict[int, set[int]] = {}
    for result in results:
        batches.setdefault(result.case.context, set()).add(result.case.batch)
    if not batches:
        return None
    context = max(batches, key=lambda at: (len(batches[at]), -at))
    points = [(result, result.case.batch) for result in results if result.case.context == context]
    title = f"{model}, {charts.count_text(context)} tokens"
    return _curves(title, points, "batch", "decode", machine, several)


def _median(result: CaseResult, phase: Phase) -> float | None:
    return result.prefill_tps if phase == "prefill" else result.decode_tps


def _curves(
    title: str, found: Sequence[tuple[CaseResult, int]], x: str, phase: Phase, machine: MachineRows, several: bool
) -> Chart | None:
    """A line for each series; None with fewer than two points on the axis."""
    if len({at for _, at in found}) < 2:
        return None
    every: dict[str, dict[int, CaseResult]] = {}
    for result, at in found:
        every.setdefault(result.series, {})[at] = result
    series = list(every)[:MAX_SERIES]
    points = []
    for name in series:
        mine = every[name]
        step = -(-len(mine) // MAX_POINTS)
        for at, result in list(mine.items())[::step]:
            summary = result.prefill if phase == "prefill" else result.decode
            assert summary is not None  # it has a median
            said = f"{result.series}, {x} {at:,}: {selection.ranged(summary)} t/s"
            low, high = (summary.low, summary.high) if summary.high is not None else (None, None)
            points.append(charts.Mark(at, summary.median, name, said, low, high, keys=result.keys))
    where = f" · {machine.title}" if several else ""
    drawn = charts.curves(points, x, f"{phase} t/s", machine.palette(series))
    return Chart(f"{title}{where}", drawn, found[0][0].model)


def _side_by_side(machines: Sequence[MachineRows]) -> list[PageBlock]:
    """A table of cases that at least two machines have measured, with the ratio of the highest to the lowest rate."""
    places: dict[tuple[object, ...], dict[int, CaseResult]] = {}
    for number, machine in enumerate(machines):
        for result in machine.ok:
            if result.decode_tps is not None:
                case = result.case
                key = (result.model, case.quant, case.path, case.fill, case.context, case.batch, case.steps)
                places.setdefault(key, {}).setdefault(number, result)
    shared = {key: results for key, results in places.items() if len(results) > 1}
    if not shared:
        return [muted("The machines have no measured case in common.")]
    columns = (
        Head("case", right=False),
        *(Head(f"{machine.title}, decode t/s") for machine in machines),
        Head("highest ÷ lowest"),
    )
    rows, keys = [], []
    for results in list(shared.values())[:MAX_ROWS]:
        ordered = sorted(results.values(), key=lambda result: result.decode_tps or 0.0)
        cells = (selection.ranged(results[n].decode) if n in results else "–" for n in range(len(machines)))
        rows.append((selection.case(ordered[0]), *cells, _times(ordered[-1].measurement, ordered[0].measurement)))
        keys.append(ordered[0].keys)
    caption = "Cases measured on more than one machine, and the ratio of decode rates with its 95% interval."
    return [Table(columns, tuple(rows), caption, tuple(keys))]


def _times(high: Measurement, low: Measurement) -> str:
    """The ratio of two decode rates."""
    found = comparison.pair(low, high).rates.get("decode")
    if found is None:
        return UNKNOWN
    return why_incomparable(low, high, "decode") or ratio_text(found)


def _engines(machine: MachineRows, several: bool) -> list[PageBlock]:
    """A table for each model file that several engines ran in the same case on this machine."""
    cases: dict[tuple[object, ...], list[CaseResult]] = {}
    for result in machine.ok:
        case = result.case
        if result.decode_tps is not None and case.prompt is None:
            cases.setdefault((result.model, case.model_id, case.context, case.batch), []).append(result)
    models: dict[str, list[CaseResult]] = {}
    for (model, *_), results in cases.items():
        if len({result.engine for result in results}) > 1:
            models.setdefault(str(model), []).extend(sorted(results, key=_sequence_tps, reverse=True))
    where = f" on {machine.title}" if several else ""
    heads = ("context", "batch", "decode t/s", "of ceiling", "TTFT", "peak")
    return [
        Table(
            (Head("engine", right=False), *map(Head, heads)),
            tuple(map(_of_engine, results[:MAX_ROWS])),
            f"{model} in several engines{where}: decode of one sequence, and its share of the ceiling",
            tuple(result.keys for result in results[:MAX_ROWS]),
        )
        for model, results in models.items()
    ]


def _sequence_tps(result: CaseResult) -> float:
    return result.sequence_tps or 0.0


def _of_engine(result: CaseResult) -> tuple[str, ...]:
    return (
        f"{result.engine} {result.group.beside}",
        f"{result.case.context:,}",
        f"{result.case.batch:,}",
        _comparable(result),
        UNKNOWN if not result.comparable or (share := result.shares.get("decode")) is None else f"{share:.0%}",
        ttft_cell(result.measurement),
        bytes_text(result.peak_bytes),
    )


def _comparable(result: CaseResult) -> str:
    """Decode of one sequence, or the word for why it cannot be compared."""
    decode = None if result.comparable else result.decode
    return rate_text(result.sequence_tps) if decode is None else noisy_word(decode)


def _table(machines: Sequence[MachineRows]) -> list[PageBlock]:
    several = len(machines) > 1
    every = ((machine.title, result) for machine in machines for result in machine.ok)
    found = list(islice(every, MAX_ROWS))
    rows = tuple((*((title,) if several else ()), *_row(result)) for title, result in found)
    count = sum(len(machine.ok) for machine in machines)
    columns = (
        *((Head("machine", right=False),) if several else ()),
        Head("model", right=False),
        Head("quantization", right=False),
        *map(Head, ("context", "batch", "prefill t/s", "decode t/s", "TTFT", "ms/token", "reps")),
    )
    keys = tuple(result.keys for _, result in found)
    blocks: list[PageBlock] = [Table(columns, rows, "All measured rates", keys)]
    if count > MAX_ROWS:
        blocks.append(
            muted(f"Only {MAX_ROWS} of {count:,} measured cases are shown; profile runs show RUN -o csv has all.")
        )
    return blocks


def _row(result: CaseResult) -> tuple[str, ...]:
    row = result.measurement
    return (
        result.model,
        result.series,
        context_cell(row),
        f"{result.case.batch:,}",
        rate_cell(row, "prefill"),
        rate_cell(row, "decode"),
        ttft_cell(row),
        token_cell(row),
        reps_cell(row),
    )
