"""How much memory? What a case holds at its peak, part by part, over context, and the device's limit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from profiler.predict.engines.base import Terms
from profiler.reports.base.page import plots, words
from profiler.reports.base.page.blocks import Block, Figure, Figures, Head, Section, Table, muted
from profiler.reports.base.page.fits import CONTEXTS
from profiler.reports.base.page.forecast import SHIPPED, Forecast
from profiler.reports.base.page.side import Fact, Side
from profiler.results.measurement import Memory
from profiler.units import GIB, bytes_text

PARTS = ("runtime", "weights", "cache", "working memory")
MOST_PANELS = 6  # charts, of the models with the most rows
MOST_BARS = 8
MOST_ROWS = 60
IN_SIGHT = 3.0  # times the highest bar: a limit further up would press the bars flat, and is said in words instead


def section(sides: Sequence[Side], forecasts: Sequence[Forecast]) -> Section:
    """Charts of the models with the most rows, then the figures."""
    panels = [
        figure
        for side, forecast in zip(sides, forecasts, strict=True)
        for model in _models(side)
        if (figure := _panel(side, forecast, model, len(sides) > 1)) is not None
    ]
    blocks: list[Block] = []
    if panels:
        blocks.append(Figures(tuple(panels[: max(MOST_PANELS, len(sides))])))
        blocks.append(
            muted(
                "What is held at the peak of prefill and decode. Full colour: measured; pale: predicted. Short line:"
                " the peak while the weights are loaded. Dashed line: all of the device's memory."
            )
        )
    else:
        blocks.append(muted("No parts of memory: no row has its peak and its weights."))
    blocks += _table(sides)
    return Section("memory", "How much memory does it take?", tuple(blocks))


def parts(memory: Memory) -> dict[str, int] | None:
    """Bytes at the higher peak of prefill and decode, summing to it; None where a part is unknown or they exceed it.

    Working memory is the rest: activations, copies, and what an allocator keeps.
    """
    peaks = [peak for peak in (memory.prefill_peak_bytes, memory.decode_peak_bytes) if peak is not None]
    known = (memory.baseline_bytes, memory.weights_bytes, memory.cache_bytes)
    if not peaks or any(part is None for part in known):
        return None
    found = dict(zip(PARTS, (part or 0 for part in known), strict=False))
    rest = max(peaks) - sum(found.values())
    return None if rest < 0 else found | {PARTS[3]: rest}


def predicted_parts(terms: Terms) -> dict[str, int]:
    """The same of a prediction."""
    values = (terms.framework, terms.weights, terms.cache, terms.buffers)
    return {name: round(term.value) for name, term in zip(PARTS, values, strict=True)}


def _models(side: Side) -> list[str]:
    return [model for model, _ in Counter(fact.model for fact in side.ok).most_common()]


def _panel(side: Side, forecast: Forecast, model: str, several: bool) -> Figure | None:
    """Of the format of a model that has the most contexts."""
    mine = [fact for fact in side.ok if fact.model == model and fact.case.batch == side.batch]
    split = {id(fact): found for fact in mine if (found := parts(fact.measurement.memory)) is not None}
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
            load = fact.measurement.memory.load_peak_bytes
            marks += [] if load is None else [_mark(at, load)]
            continue
        like = next(iter(facts.values())).case
        prediction = forecast.predict(model, like.quant, at, side.batch) if like.path == SHIPPED else None
        if prediction is not None:
            bars += _bars(at, predicted_parts(prediction.terms), "predicted")
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
            "place": place,
            "how": how,
            "said": f"{how}, context {at:,}: {name} {bytes_text(nbytes)}",
        }
        for place, (name, nbytes) in enumerate(found.items())
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
    spec = plots.stacks(bars, PARTS, limit / GIB if near and limit else None, marks)
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
        blocks.append(muted(f"{MOST_ROWS} of {len(rows):,} cases are shown; profile runs show -o csv has all."))
    return blocks


def _cells(fact: Fact) -> tuple[str, ...]:
    memory = fact.measurement.memory
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
