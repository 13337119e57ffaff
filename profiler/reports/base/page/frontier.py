"""Speed × memory × quality: the cases that no other beats in everything."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from profiler.reports.base.page import plots, words
from profiler.reports.base.page.blocks import Block, Figure, Figures, Head, Section, Table, muted
from profiler.reports.base.page.quality import Score
from profiler.reports.base.page.side import Fact, Side
from profiler.units import GIB, UNKNOWN, bytes_text, significant

MOST_POINTS = 60  # drawn of the cases that are beaten
MOST_ROWS = 60
ENOUGH = 2  # models with a score, for quality to order anything


@dataclass(frozen=True, slots=True)
class Rated:
    """A case with what it is judged by. Quality None: no score holds for it."""

    fact: Fact
    tps: float
    nbytes: int
    quality: float | None

    def beaten_by(self, other: Rated, judged: bool) -> bool:
        """Whether ``other`` is nowhere worse and somewhere better; ``judged``: in quality too."""
        mine, theirs = [self.tps, -self.nbytes], [other.tps, -other.nbytes]
        if judged:
            mine.append(self.quality or 0)
            theirs.append(other.quality or 0)
        return theirs != mine and all(b >= a for a, b in zip(mine, theirs, strict=True))


def section(sides: Sequence[Side], scores: Sequence[Score]) -> Section:
    """A chart and a table for each machine."""
    blocks: list[Block] = []
    figures: list[Figure] = []
    used: dict[Score, None] = {}
    for side in sides:
        where = f" · {side.title}" if len(sides) > 1 else ""
        benchmark, mine = _scores(side, scores)
        context, rated = _rated(side, mine)
        if not rated:
            blocks.append(
                muted(f"No frontier{where}: no case has both a decode rate that can be compared and a peak.")
            )
            continue
        at = f"at {words.tokens(context)} tokens{where}"
        judged = [one for one in rated if one.quality is not None]
        best = _by_model(rated)
        figures.append(_memory(rated, best, at))
        if len({one.fact.model for one in judged}) >= ENOUGH:
            used |= dict.fromkeys(mine.values())
            figures.append(_quality(judged, benchmark, at))
        blocks.append(_table(best, benchmark if judged else None, at))
        blocks.append(muted(_said(judged, benchmark, mine, where)))
    shown: list[Block] = [Figures(tuple(figures))] if figures else []
    return Section("frontier", "What is worth its memory?", (*shown, *blocks, *_sources(used)))


def _scores(side: Side, scores: Sequence[Score]) -> tuple[str, dict[tuple[str, str], Score]]:
    """Of the benchmark that most models of a side have a score of: by model and format."""
    known = [score for score in scores if score.model in side.models]
    counts = Counter(benchmark for benchmark, _ in {(score.benchmark, score.model) for score in known})
    if not counts:
        return "", {}
    benchmark = min(counts, key=lambda name: (-counts[name], name))
    return benchmark, {
        (score.model, quant): score for score in known if score.benchmark == benchmark for quant in score.quants
    }


def _rated(side: Side, scores: dict[tuple[str, str], Score]) -> tuple[int, list[Rated]]:
    """Cases that can be compared: one number of sequences, and the one context that most of them have."""
    smallest = min((fact.case.batch for fact in side.ok), default=1)
    usable = [
        fact for fact in side.ok if fact.case.batch == smallest and fact.peak_bytes is not None and fact.comparable
    ]
    counts = Counter(fact.case.context for fact in usable)
    context = min(counts, key=lambda at: (-counts[at], at), default=0)
    found = []
    for fact in usable:
        if fact.case.context == context and fact.decode_tps is not None and fact.peak_bytes is not None:
            score = scores.get((fact.model, fact.case.quant))
            found.append(Rated(fact, fact.decode_tps, fact.peak_bytes, score.value if score else None))
    return context, found


def _by_model(rated: Sequence[Rated]) -> list[Rated]:
    """The formats of each model that no other format of it beats in speed and memory, fastest first."""
    models: dict[str, list[Rated]] = {}
    for one in rated:
        models.setdefault(one.fact.model, []).append(one)
    return [one for formats in models.values() for one in _unbeaten(formats, False)]


def _unbeaten(rated: Sequence[Rated], judged: bool) -> list[Rated]:
    """Those that no other beats, fastest first."""
    ordered = sorted(rated, key=lambda one: (-one.tps, one.nbytes))
    return [one for one in ordered if not any(one.beaten_by(other, judged) for other in ordered)]


def _memory(rated: Sequence[Rated], best: Sequence[Rated], at: str) -> Figure:
    points = _points(_drawn(rated, best), best, lambda one: one.nbytes / GIB)
    spec = plots.frontier(points, "decode t/s", "peak, GiB", _models(points))
    return Figure(f"Speed and memory {at}", spec)


def _quality(judged: Sequence[Rated], benchmark: str, at: str) -> Figure:
    best = _unbeaten(judged, True)
    points = _points(_drawn(judged, best), best, lambda one: one.quality)
    spec = plots.frontier(points, "decode t/s", benchmark, _models(points), zero=False)
    return Figure(f"Speed and quality {at}", spec)


def _drawn(rated: Sequence[Rated], best: Sequence[Rated]) -> list[Rated]:
    chosen = {id(one) for one in best}
    others = [one for one in rated if id(one) not in chosen]
    return [*best, *others[:: max(1, -(-len(others) // MOST_POINTS))]]


def _points(rated: Sequence[Rated], best: Sequence[Rated], up: Any) -> list[dict[str, Any]]:
    chosen = {id(one) for one in best}
    return [
        {
            "x": one.tps,
            "y": up(one),
            "series": one.fact.model,
            "best": id(one) in chosen,
            "said": f"{words.case(one.fact)}: {words.rate(one.fact.decode)} t/s, {bytes_text(one.nbytes)}",
        }
        for one in rated
    ]


def _models(points: Sequence[dict[str, Any]]) -> dict[str, int]:
    names = dict.fromkeys(point["series"] for point in points)
    return {name: place for place, name in enumerate(names)}


def _table(best: Sequence[Rated], benchmark: str | None, at: str) -> Table:
    columns = (
        Head("case", right=False),
        Head("decode t/s"),
        Head("peak"),
        *((Head(benchmark),) if benchmark else ()),
    )
    rows = tuple(
        (
            words.case(one.fact),
            words.ranged(one.fact.decode),
            bytes_text(one.nbytes),
            *((UNKNOWN if one.quality is None else significant(one.quality),) if benchmark else ()),
        )
        for one in best[:MOST_ROWS]
    )
    return Table(columns, rows, f"Of each model the formats that no other is both faster and smaller than, {at}")


def _said(judged: Sequence[Rated], benchmark: str, scores: dict[tuple[str, str], Score], where: str) -> str:
    """Whether quality counts, and why not if it does not."""
    if len({one.fact.model for one in judged}) >= ENOUGH:
        cases = words.several([words.case(one.fact) for one in _unbeaten(judged, True)], 6)
        return (
            f"With quality by {benchmark}, beaten by none in everything{where}: {cases}. Each maker took its own"
            " score; cases in formats that no score holds for are left out of that chart."
        )
    if not scores:
        why = "no score of these models has a source"
    elif judged:
        why = f"of {judged[0].fact.model} only is a score known"
    else:
        why = "no case that can be compared is in a format that a score holds for"
    return (
        f"Quality is not weighed{where}: {why}. So this is speed × memory, and models are not held against each"
        " other; --quality FILE takes scores of your own."
    )


def _sources(used: dict[Score, None]) -> list[Block]:
    if not used:
        return []
    named = dict.fromkeys((score.model, significant(score.value), score.source) for score in used)
    texts = "; ".join(f"{model} {value}: {source}" for model, value, source in named)
    return [muted(f"Sources: {texts}.")]
