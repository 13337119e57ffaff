"""What fits, and how much memory does it take?

A map of model × quantization × context with verdicts, which distinguishes measured from predicted cases; then the
parts of a case's peak memory compared with the device's limit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from profiler import backends
from profiler.case import Case
from profiler.cost import engines
from profiler.cost.prediction import LIMITS, Prediction
from profiler.models.geometry import CacheBytes
from profiler.registry import listed
from profiler.results import measurement
from profiler.results.measurement import Memory
from profiler.show.columns import noisy_word, plain, ttft_cell
from profiler.show.report import charts, selection
from profiler.show.report.blocks import (
    MAX_ROWS,
    Chart,
    Figures,
    Head,
    Map,
    MapCell,
    PageBlock,
    Section,
    Table,
    Text,
    muted,
)
from profiler.show.report.predictions import Forecast
from profiler.show.report.selection import CaseResult, MachineRows
from profiler.units import GIB, UNKNOWN, bytes_text, significant

CONTEXTS = (2048, 8192, 32_768, 131_072)  # predicted in addition, up to the model's largest context
USUAL_QUANTS = {  # by engine, predicted in addition because people try them when a model does not fit
    "transformers": ("int8", "nf4"),
    "llama.cpp": ("q8_0", "q4_k_m"),
}
MapRows = tuple[tuple[str, tuple[MapCell, ...]], ...]
StackedBar = tuple[str, charts.Mark]  # the label of its place, and the bar
MAX_CONTEXTS = 10  # columns
MAX_MAP_ROWS = 40

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


def map_section(machines: Sequence[MachineRows], forecasts: Sequence[Forecast]) -> Section:
    """A map for each machine."""
    blocks: list[PageBlock] = []
    for machine, forecast in zip(machines, forecasts, strict=True):
        blocks += _machine(machine, forecast, len(machines) > 1)
    blocks.append(Text(_key(), muted=True, folded="How to read the map"))
    return Section("fits", "What fits?", tuple(blocks))


@dataclass(frozen=True, slots=True)
class MapLine:
    """A line of the map. ``like``: a measured case with the engine and the options of predictions; None: there are
    none.
    """

    model: str
    series: str
    quant: str
    like: Case | None

    @property
    def label(self) -> str:
        return f"{self.model} · {self.series}"


@dataclass(frozen=True, slots=True)
class MapGrid:
    """What the map of a machine shows, for readers that look for the best case in it."""

    contexts: list[int]
    lines: list[MapLine]
    results: dict[tuple[str, str, int], CaseResult]  # by model, series and context

    @classmethod
    def of(cls, machine: MachineRows, forecast: Forecast) -> MapGrid:
        """The map at the most frequent batch, without written prompts."""
        mapped = [each for each in machine.at_batch if each.case.prompt is None]
        results = {(each.model, each.series, each.case.context): each for each in mapped}
        contexts = _map_contexts(machine, sorted({context for *_, context in results}), forecast)
        lines = [line for model in machine.models for line in _map_lines(machine, model, forecast)]
        return cls(contexts, lines, results)


def _machine(machine: MachineRows, forecast: Forecast, several: bool) -> list[PageBlock]:
    grid = MapGrid.of(machine, forecast)
    rows = tuple(
        (
            line.label,
            tuple(
                _cell(grid.results.get((line.model, line.series, at)), forecast, line, at, machine.batch)
                for at in grid.contexts
            ),
        )
        for line in grid.lines[:MAX_MAP_ROWS]
    )
    where = machine.title if several else ""
    batch = f"decode t/s of {machine.batch:,} sequence{'s' * (machine.batch != 1)}"
    rows, usual = _without_usual(rows)
    caption = " · ".join(part for part in (where, batch, "~ predicted", usual) if part)
    keys = tuple((line.model, line.quant) for line in grid.lines[:MAX_MAP_ROWS])
    contexts = tuple(map(charts.count_text, grid.contexts))
    blocks: list[PageBlock] = [Map("model · quantization", contexts, rows, caption, keys)] if rows else []
    blocks += _prompts(machine, where)
    if len(grid.lines) > MAX_MAP_ROWS:
        blocks.append(muted(f"{len(grid.lines) - MAX_MAP_ROWS:,} more models and quantizations are not shown."))
    reasons: dict[str, list[str]] = {}
    for model, reason in forecast.missing.items():
        reasons.setdefault(reason, []).append(model)
    blocks += [
        muted(f"Not predicted: {selection.several(models, 6)}: {reason}.") for reason, models in reasons.items()
    ]
    return blocks


def _without_usual(rows: MapRows) -> tuple[MapRows, str]:
    """The rows without the detail that most cells share, and the sentence that replaces it."""
    details = Counter(cell.detail for _, cells in rows for cell in cells if cell.value)
    usual, count = next(iter(details.most_common(1)), ("", 0))
    if not usual or count < max(2, details.total() / 2):
        return rows, ""
    shown = tuple(
        (label, tuple(replace(cell, detail="") if cell.detail == usual else cell for cell in cells))
        for label, cells in rows
    )
    return shown, f"cells without a word: {usual}"


def _prompts(machine: MachineRows, where: str) -> list[PageBlock]:
    """A map of prompts and models, for rows of written prompts."""
    written = [result for result in machine.results if result.case.prompt is not None]
    several = len({result.case.batch for result in written}) > 1
    cells: dict[tuple[str, str], CaseResult] = {}
    keys: dict[str, charts.Keys] = {}
    for result in written:
        streams = f" · {result.case.batch:,} streams" if several else ""
        column = f"{result.model} · {result.group.settings}{streams}"
        cells.setdefault((plain(result.case.prompt, 40), column), result)
        keys.setdefault(column, result.keys)
    prompts = sorted({prompt for prompt, _ in cells})
    columns = list(keys)[:MAX_CONTEXTS]
    if not prompts:
        return []
    rows = tuple(
        (prompt, tuple(_of_prompt(cells.get((prompt, column))) for column in columns))
        for prompt in prompts[:MAX_MAP_ROWS]
    )
    rows, usual = _without_usual(rows)
    caption = " · ".join(part for part in (where, "decode t/s of one stream by prompt", usual) if part)
    found: list[PageBlock] = [
        Map("prompt", tuple(columns), rows, caption, column_keys=tuple(keys[column] for column in columns))
    ]
    if len(prompts) > MAX_MAP_ROWS:
        found.append(muted(f"{len(prompts) - MAX_MAP_ROWS:,} more prompts are not shown."))
    return found


def _of_prompt(result: CaseResult | None) -> MapCell:
    if result is None:
        return MapCell("", title="not measured")
    cell = _measured(result)
    first = ttft_cell(result.measurement) if result.ok else ""
    return replace(cell, detail="" if not first[:1].isdigit() else f"TTFT {first}")


def _map_contexts(machine: MachineRows, measured: Sequence[int], forecast: Forecast) -> list[int]:
    """The measured contexts, or a selection of many, and those that are predicted in addition."""
    longest = forecast.longest(machine.models)
    others = [context for context in CONTEXTS if context <= longest and context not in measured]
    room = max(2, MAX_CONTEXTS - len(others))
    step = max(1, -(-len(measured) // room))
    return sorted({*measured[::step], *measured[-1:], *others})


def _map_lines(machine: MachineRows, model: str, forecast: Forecast) -> list[MapLine]:
    """The lines of a model: the measured ones, then quantizations that are predicted in addition."""
    mine = [group for group in machine.groups if group.model == model and group.case.prompt is None]
    found: dict[str, MapLine] = {}
    for group in mine:
        like = group.case if _alike(group.case, forecast) else None
        known = found.setdefault(group.series, MapLine(model, group.series, plain(group.case.quant, 60), like))
        if like is None and known.like is not None:
            found[group.series] = replace(known, like=None)
    if model in forecast.shapes:
        for engine, quants in USUAL_QUANTS.items():
            alike = [group.case for group in mine if _engine_of(group.case) == engine]
            measured = {case.quant for case in alike}
            words = "" if engine == engines.DEFAULT or len({_engine_of(g.case) for g in mine}) == 1 else f" {engine}"
            for quant in quants:
                if alike and quant not in measured and f"{quant}{words}" not in found:
                    found[f"{quant}{words}"] = MapLine(model, f"{quant}{words}", quant, alike[0])
    return list(found.values())


def _alike(case: Case, forecast: Forecast) -> bool:
    """Whether predictions are for cases like this one, which is measured in the decode path of most rows."""
    return case.path == forecast.path or _engine_of(case) != engines.DEFAULT


def _engine_of(case: Case) -> str | None:
    backend = backends.of_row(case.backend)
    return None if backend is None or case.server is not None else backend.engine


def _cell(result: CaseResult | None, forecast: Forecast, line: MapLine, context: int, batch: int) -> MapCell:
    if result is not None and result.outcome != "skipped":
        return _measured(result)
    cell = _predicted(forecast, line, context, batch)
    if cell is None and result is not None:
        reason = plain(result.reason or "no reason was recorded", 300)
        return MapCell(UNKNOWN, detail="skipped", title=f"skipped: {reason}")
    return cell or MapCell("", title="neither measured nor predicted")


def _measured(result: CaseResult) -> MapCell:
    if not result.ok:
        outcome = result.outcome
        reason = plain(result.reason or "no reason was recorded", 300)
        detail = "no · memory" if outcome == "oom" else ""
        return MapCell(outcome, "", detail, result.verdict, True, f"measured: {reason}")
    bound = result.bound
    verdict = result.verdict
    parts = ["" if verdict == "none" else verdict, bound if bound in LIMITS else ""]
    peak = f", peak {bytes_text(result.peak_bytes)}" if result.peak_bytes is not None else ""
    title = f"measured: {selection.ranged(result.decode)} t/s{peak}"
    value, span = selection.rate(result.decode), ""
    if result.decode is not None and result.decode.wide:
        value, span = f"{value}?", noisy_word(result.decode)
    return MapCell(value, span, " · ".join(part for part in parts if part), verdict, True, title)


def _predicted(forecast: Forecast, line: MapLine, context: int, batch: int) -> MapCell | None:
    found = None if line.like is None else forecast.predict(line.model, line.quant, context, batch, line.like)
    if found is None:
        return None
    word, why = found.verdict.word, found.binds
    peak = bytes_text(found.terms.peak.value)
    if found.decode is None:
        return MapCell(word, "", why, word, False, f"predicted: {found.verdict.reason}, peak {peak}")
    tps = found.decode.tps
    span = f"{significant(tps.low, 2)}–{significant(tps.high, 2)}"
    title = f"predicted ({tps.basis}): {significant(tps.value, 2)} t/s ({span}), peak {peak}, {found.verdict.reason}"
    return MapCell(f"~{significant(tps.value, 2)}", span, f"{word} · {why}", word, False, title)


def _key() -> str:
    limits = "; ".join(f"{word} ({means})" for word, means in LIMITS.items())
    return (
        "Decode in tokens per second. Framed and bold: measured; those with ? cannot be compared, because they are"
        " busy, too noisy or too few, as the table of rates says. ~: predicted; the range"
        " below a prediction should hold nine cases in ten. fits: at"
        " least 5% and 512 MiB remain at the peak; tight: less than that; no: it needs more memory than there is."
        f" After the verdict comes what is predicted to limit decode: {limits}."
    )


def section(machines: Sequence[MachineRows], forecasts: Sequence[Forecast]) -> Section:
    """Charts of the largest models, and a table."""
    several = len(machines) > 1
    panels = [
        figure
        for machine, forecast in zip(machines, forecasts, strict=True)
        for figure in islice(_panels(machine, forecast, several), MAX_PANELS)
    ]
    blocks: list[PageBlock] = []
    if panels:
        blocks.append(Figures(tuple(panels)))
        blocks.append(
            muted(
                f"Memory at the peak of prefill and decode, for the {MAX_PANELS} largest models. Full color:"
                " measured; pale: predicted. Short line: peak while loading. Dashed line: memory of the device."
            )
        )
    else:
        blocks.append(muted(f"There is no breakdown of memory: {_why_undivided(machines)}."))
    blocks += _table(machines)
    return Section("memory", "How much memory does it take?", tuple(blocks))


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


def _why_undivided(machines: Sequence[MachineRows]) -> str:
    """Why no row has ``parts``."""
    missing: dict[str, dict[str, None]] = {}  # by engine
    for result in (each for machine in machines for each in machine.weighed):
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
    """The chart of a model, for the quantization with the most contexts."""
    mine = [result for result in machine.of[model] if result.case.batch == machine.batch]
    split = {id(result): found for result in mine if (found := parts(result.memory)) is not None}
    mine = [result for result in mine if id(result) in split]
    if not mine:
        return None
    series = Counter(result.series for result in mine).most_common(1)[0][0]
    results = {result.case.context: result for result in mine if result.series == series}
    bars: list[StackedBar] = []
    loading: list[StackedBar] = []
    for at in _contexts(results, forecast, model):
        result = results.get(at)
        if result is not None:
            bars += _bars(at, split[id(result)], "measured", result)
            load = result.memory.load_peak_bytes
            loading += [] if load is None else [_loading(at, load, result)]
            continue
        first = next(iter(results.values()))
        like = first.case
        prediction = forecast.predict(model, like.quant, at, machine.batch, like) if _alike(like, forecast) else None
        if prediction is not None:
            whole = any("cache" in found for found in split.values())
            cache = None if whole else forecast.cache(model, like, at)
            bars += _bars(at, predicted_parts(prediction, cache), "predicted", first)
    limit = next(iter(results.values())).limit_bytes
    title, plot = _drawn(f"{model} {series}", bars, loading, limit, machine.title if several else "")
    return Chart(title, plot, model)


def _contexts(results: dict[int, CaseResult], forecast: Forecast, model: str) -> list[int]:
    longest = forecast.longest([model])
    others = [at for at in CONTEXTS if at <= longest and at not in results]
    step = max(1, -(-len(results) // max(1, MAX_BARS - len(others))))
    return sorted({*sorted(results)[::step], *others})


def _bars(at: int, found: dict[str, int], how: str, of: CaseResult) -> list[StackedBar]:
    return [
        (
            charts.count_text(at),
            charts.Mark(
                0,
                found[name] / GIB,
                name,
                f"{how}, context {at:,}: {name} {bytes_text(found[name])}",
                pale=how == "predicted",
                keys=of.keys,
            ),
        )
        for name in PARTS
        if found.get(name)
    ]


def _loading(at: int, nbytes: int, of: CaseResult) -> StackedBar:
    said = f"peak while loading: {bytes_text(nbytes)}"
    return charts.count_text(at), charts.Mark(0, nbytes / GIB, "", said, keys=of.keys)


def _drawn(
    title: str, bars: list[StackedBar], loading: list[StackedBar], limit: int | None, where: str
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
    plot = charts.stacks(bars, names, limit / GIB if near and limit else None, loading)
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
