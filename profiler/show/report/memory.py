"""What fits, and how much memory does it take?

A map of model × quantization × context with verdicts, which distinguishes measured from predicted cases; then the
parts of a case's peak memory compared with the device's limit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from profiler import registry
from profiler.cost.prediction import LIMITS, Prediction
from profiler.models.geometry import CacheBytes
from profiler.results import measurement
from profiler.results.measurement import Memory
from profiler.show.columns import TOO_NOISY, plain
from profiler.show.report import charts, selection
from profiler.show.report.blocks import Chart, Figures, Head, Map, MapCell, PageBlock, Section, Table, muted
from profiler.show.report.predictions import Forecast
from profiler.show.report.selection import CaseResult, MachineRows
from profiler.units import GIB, UNKNOWN, bytes_text, significant

CONTEXTS = (2048, 8192, 32_768, 131_072)  # predicted in addition, up to the model's largest context
FORMATS = ("int8", "nf4")  # predicted in addition, because people try them when a model does not fit
MOST_CONTEXTS = 10  # columns
MOST_MAP_ROWS = 40

PARTS = {  # from bottom to top, with their colours; the framework is grey, because users cannot change it
    "framework": 7,
    "weights": 0,
    "cache": 1,  # of older rows, without its parts
    "growing cache": 1,
    "window cache": 5,
    "recurrent state": 6,
    "checkpoint, left mapped": 4,
    "working memory": 3,
}
MOST_PANELS = 3  # charts per machine, for the largest models: one row of the page
MOST_BARS = 8
MOST_ROWS = 60
IN_SIGHT = 3.0  # times the highest bar; a higher limit would flatten the bars, so the title states it instead


def map_section(machines: Sequence[MachineRows], forecasts: Sequence[Forecast]) -> Section:
    """A map for each machine."""
    blocks: list[PageBlock] = []
    for machine, forecast in zip(machines, forecasts, strict=True):
        key = _key() if machine is machines[-1] else ""
        blocks += _machine(machine, forecast, len(machines) > 1, key)
    blocks.append(
        muted(
            "Decode in tokens per second. Figures with ~ are predicted, the others measured; those with ? are too"
            " noisy: their repetitions differ too much to compare. fits: at least 5% and 512 MiB remain at the peak;"
            " tight: less than that; no: it needs more memory than there is."
        )
    )
    return Section("fits", "What fits?", tuple(blocks))


def _machine(machine: MachineRows, forecast: Forecast, several: bool, key: str) -> list[PageBlock]:
    mapped = [result for result in machine.results if result.case.prompt is None]
    results = {_place(result): result for result in mapped if result.case.batch == machine.batch}
    contexts = _map_contexts(machine, sorted({context for *_, context in results}), forecast)
    lines = [
        (f"{model} · {series}", quant, model, series)
        for model in machine.models
        for series, quant in _formats(machine, model, forecast)
    ]
    rows = tuple(
        (
            label,
            tuple(
                _cell(results.get((model, series, at)), forecast, model, quant, at, machine.batch) for at in contexts
            ),
        )
        for label, quant, model, series in lines[:MOST_MAP_ROWS]
    )
    where = machine.title if several else ""
    batch = f"{machine.batch:,} sequence{'s' * (machine.batch != 1)}"
    caption = " · ".join(part for part in (where, batch) if part)
    blocks: list[PageBlock] = (
        [Map("model · quantization", tuple(map(selection.tokens, contexts)), rows, caption, key)] if rows else []
    )
    if prompts := len(machine.results) - len(mapped):
        cases = "1 case" if prompts == 1 else f"{prompts:,} cases"
        blocks.append(muted(f"{cases} with a written prompt: see the table of all measured rates."))
    if len(lines) > MOST_MAP_ROWS:
        blocks.append(muted(f"{len(lines) - MOST_MAP_ROWS:,} more models and quantizations are not shown."))
    reasons: dict[str, list[str]] = {}
    for model, reason in forecast.missing.items():
        reasons.setdefault(reason, []).append(model)
    blocks += [
        muted(f"Not predicted: {selection.several(models, 6)}: {reason}.") for reason, models in reasons.items()
    ]
    return blocks


def _place(result: CaseResult) -> tuple[str, str, int]:
    return result.model, result.series, result.case.context


def _map_contexts(machine: MachineRows, measured: Sequence[int], forecast: Forecast) -> list[int]:
    """The measured contexts, or a selection of many, and those that are predicted in addition."""
    longest = forecast.longest(machine.models)
    others = [context for context in CONTEXTS if context <= longest and context not in measured]
    room = max(2, MOST_CONTEXTS - len(others))
    step = max(1, -(-len(measured) // room))
    return sorted({*measured[::step], *measured[-1:], *others})


def _formats(machine: MachineRows, model: str, forecast: Forecast) -> list[tuple[str, str | None]]:
    """The lines of a model, measured ones first, each with the quantization to predict, or None."""
    mine = [group for group in machine.groups if group.model == model and group.case.prompt is None]
    found: dict[str, str | None] = {}
    for group in mine:
        found.setdefault(group.series, group.case.quant)
        if group.case.path != forecast.path:
            found[group.series] = None
    if model in forecast.shapes:
        measured = {group.case.quant for group in mine}
        known = registry.names("quants")
        found |= {quant: quant for quant in FORMATS if quant in known and quant not in measured}
    return list(found.items())


def _cell(
    result: CaseResult | None, forecast: Forecast, model: str, quant: str | None, context: int, batch: int
) -> MapCell:
    if result is not None and result.outcome != "skipped":
        return _measured(result)
    cell = None if quant is None else _predicted(forecast, model, quant, context, batch)
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
        value, span = f"{value}?", TOO_NOISY
    return MapCell(value, span, " · ".join(part for part in parts if part), verdict, True, title)


def _predicted(forecast: Forecast, model: str, quant: str, context: int, batch: int) -> MapCell | None:
    found = forecast.predict(model, quant, context, batch)
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
        "Framed and bold: measured. The range below a prediction should hold nine cases in ten. After the verdict"
        f" comes what is predicted to limit decode: {limits}."
    )


def section(machines: Sequence[MachineRows], forecasts: Sequence[Forecast]) -> Section:
    """Charts of the largest models, and a table."""
    several = len(machines) > 1
    panels = [
        figure
        for machine, forecast in zip(machines, forecasts, strict=True)
        for figure in islice(_panels(machine, forecast, several), MOST_PANELS)
    ]
    blocks: list[PageBlock] = []
    if panels:
        blocks.append(Figures(tuple(panels)))
        blocks.append(
            muted(
                f"Memory at the peak of prefill and decode, for the {MOST_PANELS} largest models. Full colour:"
                " measured; pale: predicted. Short line: peak while loading. Dashed line: memory of the device."
            )
        )
    else:
        blocks.append(muted("There is no breakdown of memory, because no row has both its peak and its weights."))
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


def _cache(memory: Memory, total: int) -> dict[str, int]:
    """The cache by kind of layer, ``total`` in sum. Memory retained after a prefill belongs to window layers."""
    growing, window, state = memory.growing_cache_bytes, memory.window_cache_bytes, memory.recurrent_bytes
    if growing is None or window is None or state is None:
        return {"cache": total}
    state = min(state, total)
    growing = min(growing, total - state) if window else total - state
    return {"growing cache": growing, "window cache": total - state - growing, "recurrent state": state}


def predicted_parts(prediction: Prediction, cache: CacheBytes | None) -> dict[str, int]:
    """The same parts for a prediction; ``cache`` is given by kind of layer, or None to leave it undivided."""
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
    bars: list[dict[str, Any]] = []
    marks: list[dict[str, Any]] = []
    for at in _contexts(results, forecast, model):
        result = results.get(at)
        if result is not None:
            bars += _bars(at, split[id(result)], "measured")
            load = result.memory.load_peak_bytes
            marks += [] if load is None else [_mark(at, load)]
            continue
        like = next(iter(results.values())).case
        prediction = forecast.predict(model, like.quant, at, machine.batch) if like.path == forecast.path else None
        if prediction is not None:
            whole = any("cache" in found for found in split.values())
            cache = None if whole else forecast.cache(model, like, at)
            bars += _bars(at, predicted_parts(prediction, cache), "predicted")
    limit = next(iter(results.values())).limit_bytes
    return Chart(*_drawn(f"{model} {series}", bars, marks, limit, machine.title if several else ""))


def _contexts(results: dict[int, CaseResult], forecast: Forecast, model: str) -> list[int]:
    longest = forecast.longest([model])
    others = [at for at in CONTEXTS if at <= longest and at not in results]
    step = max(1, -(-len(results) // max(1, MOST_BARS - len(others))))
    return sorted({*sorted(results)[::step], *others})


def _bars(at: int, found: dict[str, int], how: str) -> list[dict[str, Any]]:
    return [
        {
            "x": selection.tokens(at),
            "y": nbytes / GIB,
            "part": name,
            "place": list(PARTS).index(name),
            "how": how,
            "said": f"{how}, context {at:,}: {name} {bytes_text(nbytes)}",
        }
        for name, nbytes in found.items()
        if nbytes
    ]


def _mark(at: int, nbytes: int) -> dict[str, Any]:
    return {"x": selection.tokens(at), "y": nbytes / GIB, "said": f"peak while loading: {bytes_text(nbytes)}"}


def _drawn(
    title: str, bars: list[dict[str, Any]], marks: list[dict[str, Any]], limit: int | None, where: str
) -> tuple[str, charts.Spec]:
    """The chart and its title, which states the limit if the chart does not show it."""
    heights = Counter[str]()
    for bar in bars:
        heights[bar["x"]] += bar["y"]
    top = max([*heights.values(), *(mark["y"] for mark in marks)])
    near = limit is not None and limit / GIB <= IN_SIGHT * top
    said = (
        ""
        if limit is None
        else f", of {bytes_text(limit)}"
        if near
        else f", far below the device's {bytes_text(limit)}"
    )
    used = {bar["part"] for bar in bars}
    names = {name: colour for name, colour in PARTS.items() if name in used}
    spec = charts.stacks(bars, names, limit / GIB if near and limit else None, marks)
    return f"{title}{said}{f' · {where}' if where else ''}", spec


def _table(machines: Sequence[MachineRows]) -> list[PageBlock]:
    several = len(machines) > 1
    rows = [(machine, result) for machine in machines for result in machine.weighed[:MOST_ROWS]]
    if not rows:
        return []
    columns = (
        *((Head("machine", right=False),) if several else ()),
        Head("case", right=False),
        *map(Head, ("weights", "cache", "loading", "prefill", "decode", "peak", "headroom")),
    )
    table = tuple(
        (*((machine.title,) if several else ()), selection.case(result), *_cells(result))
        for machine, result in rows[:MOST_ROWS]
    )
    caption = "Weights and cache; then the total memory at the peak of each phase"
    blocks: list[PageBlock] = [Table(columns, table, caption)]
    count = sum(len(machine.weighed) for machine in machines)
    if count > MOST_ROWS:
        blocks.append(muted(f"Only {MOST_ROWS} of {count:,} cases are shown; profile runs show RUN -o csv has all."))
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
