"""How much memory? What a case holds at its peak, part by part, over context, and the device's limit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from profiler.models.geometry import CacheBytes
from profiler.predict.prediction import Prediction
from profiler.reports.base.page import plots, words
from profiler.reports.base.page.blocks import Block, Figure, Figures, Head, Section, Table, muted
from profiler.reports.base.page.fits import CONTEXTS
from profiler.reports.base.page.forecast import Forecast
from profiler.reports.base.page.side import Fact, Side
from profiler.results import memory_parts
from profiler.results.measurement import Memory
from profiler.units import GIB, bytes_text

PARTS = {  # from below, with their places among the colours: the runtime grey, since nothing can be done about it
    "runtime": 7,
    "weights": 0,
    "cache": 1,  # of rows from before it was taken apart
    "growing cache": 1,
    "window cache": 5,
    "recurrent state": 6,
    "checkpoint, left mapped": 4,
    "working memory": 3,
}
MOST_PANELS = 3  # charts of a machine, of the models that take most: a row of the page
MOST_BARS = 8
MOST_ROWS = 60
IN_SIGHT = 3.0  # times the highest bar: a limit further up would press the bars flat, and is said in words instead


def section(sides: Sequence[Side], forecasts: Sequence[Forecast]) -> Section:
    """Charts of the models that take most, then the figures."""
    several = len(sides) > 1
    panels = [
        figure
        for side, forecast in zip(sides, forecasts, strict=True)
        for figure in islice(_panels(side, forecast, several), MOST_PANELS)
    ]
    blocks: list[Block] = []
    if panels:
        blocks.append(Figures(tuple(panels)))
        blocks.append(
            muted(
                f"What is held at the peak of prefill and decode, of the {MOST_PANELS} models that take most. Full"
                " colour: measured; pale: predicted. Short line: the peak while the weights are loaded. Dashed line:"
                " all of the device's memory."
            )
        )
    else:
        blocks.append(muted("No parts of memory: no row has its peak and its weights."))
    blocks += _table(sides)
    return Section("memory", "How much memory does it take?", tuple(blocks))


def parts(memory: Memory) -> dict[str, int] | None:
    """Bytes at the higher peak of prefill and decode, summing to it; None where a part is unknown or they exceed it.

    Working memory is the rest: activations, copies, captured graphs, and what an allocator keeps.
    """
    known = memory_parts.parts(memory)
    total, framework, cache = memory.phases_process_bytes, known.get("framework"), known.get("cache")
    if total is None or framework is None:  # a row from before the parts were measured
        total = max((peak for peak in (memory.prefill_peak_bytes, memory.decode_peak_bytes) if peak), default=None)
        framework, cache = memory.baseline_bytes, memory.cache_bytes
    if total is None or framework is None or cache is None or memory.weights_bytes is None:
        return None
    found = {"runtime": framework, "weights": memory.weights_bytes, **_cache(memory, cache)}
    if memory.left_mapped_bytes:
        found["checkpoint, left mapped"] = memory.left_mapped_bytes
    rest = total - sum(found.values())
    return None if rest < 0 else found | {"working memory": rest}


def _cache(memory: Memory, total: int) -> dict[str, int]:
    """By kind of layer, summing to ``total``. What a prefill retains beyond the window is of window layers."""
    growing, window, state = memory.growing_cache_bytes, memory.window_cache_bytes, memory.recurrent_bytes
    if growing is None or window is None or state is None:
        return {"cache": total}
    state = min(state, total)
    growing = min(growing, total - state) if window else total - state
    return {"growing cache": growing, "window cache": total - state - growing, "recurrent state": state}


def predicted_parts(prediction: Prediction, cache: CacheBytes | None) -> dict[str, int]:
    """The same of a prediction; ``cache`` by kind of layer, or None to leave it whole."""
    terms = prediction.terms
    kinds = {"cache": terms.cache.value}
    if cache is not None:
        kinds = {"growing cache": cache.growing, "window cache": cache.window, "recurrent state": cache.state}
    found = {"runtime": terms.framework.value, "weights": terms.weights.value, **kinds}
    return {name: round(value) for name, value in (found | {"working memory": terms.buffers.value}).items()}


def _models(side: Side) -> list[str]:
    """Those with a peak, the largest first."""
    found = {model: [fact.peak_bytes or 0 for fact in side.ok_of(model)] for model in side.models}
    peaks = {model: max(mine) for model, mine in found.items() if mine}
    return sorted(peaks, key=lambda model: -peaks[model])


def _panels(side: Side, forecast: Forecast, several: bool) -> Iterator[Figure]:
    found = (_panel(side, forecast, model, several) for model in _models(side))
    return (figure for figure in found if figure is not None)


def _panel(side: Side, forecast: Forecast, model: str, several: bool) -> Figure | None:
    """Of the format of a model that has the most contexts."""
    mine = [fact for fact in side.ok_of(model) if fact.case.batch == side.batch]
    split = {id(fact): found for fact in mine if (found := parts(fact.memory)) is not None}
    mine = [fact for fact in mine if id(fact) in split]
    if not mine:
        return None
    series = Counter(fact.series for fact in mine).most_common(1)[0][0]
    facts = {fact.case.context: fact for fact in mine if fact.series == series}
    bars: list[dict[str, Any]] = []
    marks: list[dict[str, Any]] = []
    for at in _contexts(facts, forecast, model):
        fact = facts.get(at)
        if fact is not None:
            bars += _bars(at, split[id(fact)], "measured")
            load = fact.memory.load_peak_bytes
            marks += [] if load is None else [_mark(at, load)]
            continue
        like = next(iter(facts.values())).case
        prediction = forecast.predict(model, like.quant, at, side.batch) if like.path == forecast.path else None
        if prediction is not None:
            whole = any("cache" in found for found in split.values())
            cache = None if whole else forecast.cache(model, like, at)
            bars += _bars(at, predicted_parts(prediction, cache), "predicted")
    limit = next(iter(facts.values())).limit_bytes
    return Figure(*_drawn(f"{model} {series}", bars, marks, limit, side.title if several else ""))


def _contexts(facts: dict[int, Fact], forecast: Forecast, model: str) -> list[int]:
    longest = forecast.longest([model])
    others = [at for at in CONTEXTS if at <= longest and at not in facts]
    step = max(1, -(-len(facts) // max(1, MOST_BARS - len(others))))
    return sorted({*sorted(facts)[::step], *others})


def _bars(at: int, found: dict[str, int], how: str) -> list[dict[str, Any]]:
    return [
        {
            "x": words.tokens(at),
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
    return {"x": words.tokens(at), "y": nbytes / GIB, "said": f"peak while loading: {bytes_text(nbytes)}"}


def _drawn(
    title: str, bars: list[dict[str, Any]], marks: list[dict[str, Any]], limit: int | None, where: str
) -> tuple[str, plots.Spec]:
    """The title says where the limit is if the chart does not reach it."""
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
    spec = plots.stacks(bars, names, limit / GIB if near and limit else None, marks)
    return f"{title}{said}{f' · {where}' if where else ''}", spec


def _table(sides: Sequence[Side]) -> list[Block]:
    several = len(sides) > 1
    rows = [(side, fact) for side in sides for fact in side.ok if fact.peak_bytes is not None]
    if not rows:
        return []
    columns = (
        *((Head("machine", right=False),) if several else ()),
        Head("case", right=False),
        *map(Head, ("weights", "cache", "loading", "prefill", "decode", "highest", "left")),
    )
    table = tuple(
        (*((side.title,) if several else ()), words.case(fact), *_cells(fact)) for side, fact in rows[:MOST_ROWS]
    )
    caption = "Weights and cache by themselves; then the peak of each phase, everything counted"
    blocks: list[Block] = [Table(columns, table, caption)]
    if len(rows) > MOST_ROWS:
        blocks.append(muted(f"{MOST_ROWS} of {len(rows):,} cases are shown; profile runs show RUN -o csv has all."))
    return blocks


def _cells(fact: Fact) -> tuple[str, ...]:
    memory = fact.memory
    left = None if fact.limit_bytes is None or fact.peak_bytes is None else fact.limit_bytes - fact.peak_bytes
    values = (
        memory.weights_bytes,
        memory.cache_bytes,
        memory.load_peak_bytes,
        memory.prefill_peak_bytes,
        memory.decode_peak_bytes,
        fact.peak_bytes,
        left,
    )
    return tuple(map(bytes_text, values))
