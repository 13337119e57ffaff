"""How much memory does it take? The parts of a case's peak memory compared with the device's limit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice

from profiler.cost.prediction import Prediction
from profiler.models.geometry import CacheBytes
from profiler.registry import listed
from profiler.results import measurement
from profiler.results.measurement import Memory
from profiler.show.report import charts, selection
from profiler.show.report.blocks import MAX_ROWS, Chart, Figures, Head, PageBlock, Section, Table, muted
from profiler.show.report.fits import CONTEXTS, predictable
from profiler.show.report.predictions import Forecast
from profiler.show.report.selection import CaseResult, MachineRows
from profiler.units import GIB, bytes_text

StackedBar = tuple[str, charts.Mark]  # the label of its place, and the bar

PARTS = {  # from bottom to top, with their colors; the framework is grey, because users cannot change it
    "framework": 7,
    "weights": 0,
    "cache": 1,  # of older rows, without its parts
    "growing cache": 1,
    "window cache": 5,
    "recurrent state": 6,
    "checkpoint, left mapped": 4,
    "working memory": 3,
}
MAX_PANELS = 3  # charts per machine, for the largest models: one row of the page
MAX_BARS = 8
IN_SIGHT = 3.0  # times the highest bar; a higher limit would flatten the bars, so the title states it instead


def section(machines: Sequence[MachineRows], forecasts: Sequence[Forecast]) -> Section:
    """Charts of the largest models, and a table."""
    several = len(machines) > 1
    panels = [
        figure
        for machine, forecast in zip(machines, forecasts, strict=True)
        for figure in islice(_panels(machine, forecast, several), MAX_PANELS)
    ]
    drawn = {panel.model for panel in panels}
    others = [each for machine in machines for each in machine.weighed if each.model not in drawn]
    divided = {each.model for each in others if parts(each.memory) is not None}
    undivided = [each for each in others if each.model not in divided]
    blocks: list[PageBlock] = []
    if panels:
        blocks += [Figures(tuple(panels)), muted(_explained(panels, bool(divided)))]
    if undivided or not (panels or divided):
        of = f" for {selection.several(list(dict.fromkeys(each.model for each in undivided)), 4)}" if panels else ""
        blocks.append(muted(f"There is no breakdown of memory{of}: {_why_undivided(undivided)}."))
    blocks += _table(machines)
    return Section("memory", "How much memory does it take?", tuple(blocks))


def _explained(panels: Sequence[Chart], more: bool) -> str:
    """What the charts show, without what none of them has. ``more``: other models could have a chart, too."""
    marks = [mark for panel in panels for mark in panel.plot.marks]
    largest = ", for the largest models" if more else ""
    said = [f"Memory at the peak of prefill and decode{largest}."]
    said += ["Full color: measured; pale: predicted."] if any(mark.pale for mark in marks) else []
    said += ["Short line: peak while loading."] if any(mark.shape == "tick" for mark in marks) else []
    said += ["Dashed line: memory of the device."] if any(panel.plot.lines for panel in panels) else []
    return " ".join(said)


def parts(memory: Memory) -> dict[str, int] | None:
    """The bytes that make up the higher peak of prefill and decode; None if a part is unknown or they exceed it.

    Working memory is the remainder: activations, copies, captured graphs, and memory kept by the allocator.
    """
    known = measurement.parts(memory)
    total, framework, cache = memory.phases_process_bytes, known.get("framework"), known.get("cache")
    if total is None or framework is None:  # an older row without measured parts
        total = max((peak for peak in (memory.prefill_peak_bytes, memory.decode_peak_bytes) if peak), default=None)
        framework, cache = memory.baseline_bytes, memory.cache_bytes
    if total is None or framework is None or cache is None or memory.weights_bytes is None:
        return None
    found = {"framework": framework, "weights": memory.weights_bytes, **_cache(memory, cache)}
    if memory.left_mapped_bytes:
        found["checkpoint, left mapped"] = memory.left_mapped_bytes
    rest = total - sum(found.values())
    return None if rest < 0 else found | {"working memory": rest}


def _why_undivided(results: Sequence[CaseResult]) -> str:
    """Why none of these rows has ``parts``."""
    missing: dict[str, dict[str, None]] = {}  # by engine
    for result in results:
        memory = result.memory
        framework = measurement.parts(memory).get("framework")
        figures = {
            "weights": memory.weights_bytes,
            "cache": memory.cache_bytes,
            "framework": memory.baseline_bytes if framework is None else framework,
        }
        unknown = [name for name, value in figures.items() if value is None]
        missing.setdefault(result.engine, {}).update(dict.fromkeys(unknown))
    told = [
        f"rows of {engine} do not say how much of the peak is {listed(list(names), 'or')}" if names else ""
        for engine, names in missing.items()
    ]
    if not told:
        return "no row has a peak"
    return "; ".join(filter(None, told)) or "the parts that are known exceed the peak"


def _cache(memory: Memory, total: int) -> dict[str, int]:
    """The cache by kind of layer, ``total`` in sum. Memory retained after a prefill belongs to window layers."""
    growing, window, state = memory.growing_cache_bytes, memory.window_cache_bytes, memory.recurrent_bytes
    if growing is None or window is None or state is None:
        return {"cache": total}
    state = min(state, total)
    growing = min(growing, total - state) if window else total - state
    return {"growing cache": growing, "window cache": total - state - growing, "recurrent state": state}


def predicted_parts(prediction: Prediction, cache: CacheBytes | None) -> dict[str, int]:
    """The parts of a predicted peak, in bytes; ``cache`` is given by kind of layer, or None to leave it undivided."""
    terms = prediction.terms
    kinds = {"cache": terms.cache.value}
    if cache is not None:
        kinds = {"growing cache": cache.growing, "window cache": cache.window, "recurrent state": cache.state}
    found = {"framework": terms.framework.value, "weights": terms.weights.value, **kinds}
    return {name: round(value) for name, value in (found | {"working memory": terms.buffers.value}).items()}


def _models(machine: MachineRows) -> list[str]:
    """Models with a measured peak, the largest first."""
    found = {model: [result.memory.process_peak_bytes or 0 for result in mine] for model, mine in machine.of.items()}
    peaks = {model: max(mine) for model, mine in found.items() if mine}
    return sorted(peaks, key=lambda model: -peaks[model])


def _panels(machine: MachineRows, forecast: Forecast, several: bool) -> Iterator[Chart]:
    found = (_panel(machine, forecast, model, several) for model in _models(machine))
    return (figure for figure in found if figure is not None)


def _panel(machine: MachineRows, forecast: Forecast, model: str, several: bool) -> Chart | None:
    """The chart of a model over contexts, for the quantization with most of them; if there is one context only, over
    quantizations.
    """
    mine = [result for result in machine.of[model] if result.case.batch == machine.batch]
    split = {id(result): found for result in mine if (found := parts(result.memory)) is not None}
    mine = [result for result in mine if id(result) in split]
    if not mine:
        return None
    counts = Counter(result.series for result in mine)
    series = counts.most_common(1)[0][0]
    if len(counts) > 1 and len({result.case.context for result in mine}) == 1:
        bars, loading = _over_quants(mine[:MAX_BARS], split)
        title, across = f"{model} at {charts.count_text(mine[0].case.context)} tokens", ""
    else:
        results = {result.case.context: result for result in mine if result.series == series}
        bars, loading = _over_contexts(machine, forecast, results, split)
        title, across = f"{model} {series}", "context"
    title, plot = _drawn(title, across, bars, loading, mine[0].limit_bytes, machine.title if several else "")
    return Chart(title, plot, model)


def _over_quants(
    results: Sequence[CaseResult], split: Mapping[int, dict[str, int]]
) -> tuple[list[StackedBar], list[StackedBar]]:
    """The bars of cases that have a context in common, and the peaks while loading."""
    bars = [bar for each in results for bar in _bars(each.series, split[id(each)], each.series, each)]
    return bars, [bar for each in results for bar in _loading(each.series, each)]


def _over_contexts(
    machine: MachineRows,
    forecast: Forecast,
    results: dict[int, CaseResult],
    split: Mapping[int, dict[str, int]],
) -> tuple[list[StackedBar], list[StackedBar]]:
    """The bars of a quantization by context, predicted ones included, and the peaks while loading."""
    bars: list[StackedBar] = []
    loading: list[StackedBar] = []
    first = next(iter(results.values()))
    like, model = first.case, first.model
    for at in _contexts(results, forecast, model):
        result, label = results.get(at), charts.count_text(at)
        if result is not None:
            bars += _bars(label, split[id(result)], f"measured, context {at:,}", result)
            loading += _loading(label, result)
            continue
        prediction = (
            forecast.predict(model, like.quant, at, machine.batch, like) if predictable(like, forecast) else None
        )
        if prediction is not None:
            whole = any("cache" in found for found in split.values())
            cache = None if whole else forecast.cache(model, like, at)
            found = predicted_parts(prediction, cache)
            bars += _bars(label, found, f"predicted, context {at:,}", first, pale=True)
    return bars, loading


def _contexts(results: dict[int, CaseResult], forecast: Forecast, model: str) -> list[int]:
    longest = forecast.longest([model])
    others = [at for at in CONTEXTS if at <= longest and at not in results]
    step = max(1, -(-len(results) // max(1, MAX_BARS - len(others))))
    return sorted({*sorted(results)[::step], *others})


def _bars(label: str, found: dict[str, int], said: str, of: CaseResult, pale: bool = False) -> list[StackedBar]:
    return [
        (
            label,
            charts.Mark(
                0,
                found[name] / GIB,
                name,
                f"{said}: {name} {bytes_text(found[name])}",
                pale=pale,
                keys=of.keys,
            ),
        )
        for name in PARTS
        if found.get(name)
    ]


def _loading(label: str, of: CaseResult) -> list[StackedBar]:
    load = of.memory.load_peak_bytes
    if load is None:
        return []
    return [(label, charts.Mark(0, load / GIB, "", f"peak while loading: {bytes_text(load)}", keys=of.keys))]


def _drawn(
    title: str, across: str, bars: list[StackedBar], loading: list[StackedBar], limit: int | None, where: str
) -> tuple[str, charts.Plot]:
    """The chart and its title, which states the limit if the chart does not show it."""
    heights: dict[str, float] = {}
    for label, mark in bars:
        heights[label] = heights.get(label, 0.0) + mark.y
    top = max([*heights.values(), *(mark.y for _, mark in loading)])
    near = limit is not None and limit / GIB <= IN_SIGHT * top
    said = (
        ""
        if limit is None
        else f", of {bytes_text(limit)}"
        if near
        else f", far below the device's {bytes_text(limit)}"
    )
    used = {mark.series for _, mark in bars}
    names = {name: color for name, color in PARTS.items() if name in used}
    plot = charts.stacks(bars, names, across, limit / GIB if near and limit else None, loading)
    return f"{title}{said}{f' · {where}' if where else ''}", plot


def _table(machines: Sequence[MachineRows]) -> list[PageBlock]:
    several = len(machines) > 1
    rows = [(machine, result) for machine in machines for result in machine.weighed[:MAX_ROWS]]
    if not rows:
        return []
    columns = (
        *((Head("machine", right=False),) if several else ()),
        Head("case", right=False),
        *map(Head, ("weights", "cache", "loading", "prefill", "decode", "peak", "headroom")),
    )
    table = tuple(
        (*((machine.title,) if several else ()), selection.case(result), *_cells(result))
        for machine, result in rows[:MAX_ROWS]
    )
    caption = "Weights and cache; then the total memory at the peak of each phase"
    blocks: list[PageBlock] = [Table(columns, table, caption, tuple(result.keys for _, result in rows[:MAX_ROWS]))]
    count = sum(len(machine.weighed) for machine in machines)
    if count > MAX_ROWS:
        blocks.append(muted(f"Only {MAX_ROWS} of {count:,} cases are shown; profile runs show RUN -o csv has all."))
    return blocks


def _cells(result: CaseResult) -> tuple[str, ...]:
    memory = result.memory
    left = None if result.limit_bytes is None or result.peak_bytes is None else result.limit_bytes - result.peak_bytes
    values = (
        memory.weights_bytes,
        memory.cache_bytes,
        memory.load_peak_bytes,
        memory.prefill_peak_bytes,
        memory.decode_peak_bytes,
        result.peak_bytes,
        left,
    )
    return tuple(map(bytes_text, values))
