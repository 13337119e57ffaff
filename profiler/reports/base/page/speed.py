"""How fast? Prefill and decode over context for each format, and decode over the number of sequences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from profiler.reports.base.cells import rate_cell, reps_cell, token_cell, ttft_cell
from profiler.reports.base.page import plots, words
from profiler.reports.base.page.blocks import Block, Figure, Figures, Head, Section, Table, muted
from profiler.reports.base.page.side import Fact, Side
from profiler.results.measurement import Phase
from profiler.units import significant

MOST_PANELS = 3  # models with curves, on all machines together: a row of the page, a quarter of a second each
MOST_SERIES = 8  # lines that one chart can tell apart
MOST_POINTS = 24  # of one line
MOST_ROWS = 60  # of the table
PHASES: tuple[Phase, ...] = ("prefill", "decode")


def section(sides: Sequence[Side]) -> Section:
    """Charts by model, machines beside each other, then the figures."""
    blocks: list[Block] = []
    if not any(fact.prefill_tps or fact.decode_tps for side in sides for fact in side.ok):
        blocks.append(muted("No speed: no case was measured to its end."))
        return Section("speed", "How fast is it?", tuple(blocks))
    several = len(sides) > 1
    panels = _panels(sides)
    for phase in PHASES:
        figures = [_over_context(side, model, phase, several) for side, model in panels]
        blocks += _shown(
            f"{phase.capitalize()} over context",
            figures,
            f"No {phase} over context: no model has it at two contexts.",
        )
    figures = [_over_batch(side, model, several) for side, model in panels]
    blocks += _shown(
        "Decode over sequences at once", figures, "No batch scaling: no case was measured with two batch sizes."
    )
    blocks.append(
        muted(
            "Tokens a second, all sequences together: the median of the repetitions. Bars: the 95 % interval of that"
            " median, cut where it leaves the chart; no bar: measured once."
        )
    )
    drawn = len({model for _, model in panels})
    models = len({model for side in sides for model in side.models})
    if drawn < models:
        blocks.append(
            muted(
                f"Curves are of {drawn} of {models} models: those with two contexts or batch sizes at least, of which"
                f" the {MOST_PANELS} with the most rows."
            )
        )
    if len(sides) > 1:
        blocks += _side_by_side(sides)
    blocks += _table(sides)
    return Section("speed", "How fast is it?", tuple(blocks))


def _panels(sides: Sequence[Side]) -> list[tuple[Side, str]]:
    """Model by model, all machines that have a curve of it; those with the most rows."""
    counts: Counter[str] = Counter(fact.model for side in sides for fact in side.ok)
    pairs = [(side, model) for model, _ in counts.most_common() for side in sides if _has_curve(side, model)]
    return pairs[: max(MOST_PANELS, len(sides))]


def _has_curve(side: Side, model: str) -> bool:
    places = ((fact.case.context, fact.case.batch) for fact in side.of.get(model, ()) if fact.ok)
    first = next(places, None)
    return any(place != first for place in places)


def _shown(title: str, figures: Iterable[Figure | None], why: str) -> list[Block]:
    found = tuple(figure for figure in figures if figure is not None)
    return [Figures(found, title)] if found else [muted(why)]


def _over_context(side: Side, model: str, phase: Phase, several: bool) -> Figure | None:
    facts = [fact for fact in side.ok_of(model) if fact.case.batch == side.batch]
    points = [(fact, fact.case.context) for fact in facts if _median(fact, phase) is not None]
    batch = f", {side.batch} at once" if side.batch > 1 else ""
    return _curves(f"{model}{batch}", points, "context", phase, side, several)


def _over_batch(side: Side, model: str, several: bool) -> Figure | None:
    facts = [fact for fact in side.ok_of(model) if fact.decode_tps]
    batches: dict[int, set[int]] = {}
    for fact in facts:
        batches.setdefault(fact.case.context, set()).add(fact.case.batch)
    if not batches:
        return None
    context = max(batches, key=lambda at: (len(batches[at]), -at))
    points = [(fact, fact.case.batch) for fact in facts if fact.case.context == context]
    title = f"{model}, {words.tokens(context)} tokens"
    return _curves(title, points, "sequences at once", "decode", side, several)


def _median(fact: Fact, phase: Phase) -> float | None:
    return fact.prefill_tps if phase == "prefill" else fact.decode_tps


def _curves(
    title: str, found: Sequence[tuple[Fact, int]], x: str, phase: Phase, side: Side, several: bool
) -> Figure | None:
    """A line for each series; None unless there are two places to compare."""
    if len({at for _, at in found}) < 2:
        return None
    series = list(dict.fromkeys(fact.series for fact, _ in found))[:MOST_SERIES]
    points = []
    for name in series:
        mine = {at: fact for fact, at in found if fact.series == name}
        step = -(-len(mine) // MOST_POINTS)
        for at, fact in list(mine.items())[::step]:
            summary = fact.prefill if phase == "prefill" else fact.decode
            assert summary is not None  # it has a median
            said = f"{fact.series}, {x} {at:,}: {words.ranged(summary)} t/s"
            low, high = (summary.low, summary.high) if summary.high is not None else (None, None)
            points.append({"x": at, "y": summary.median, "low": low, "high": high, "series": name, "said": said})
    where = f" · {side.title}" if several else ""
    return Figure(f"{title}{where}", plots.curves(points, x, f"{phase} t/s", side.palette(series)))


def _side_by_side(sides: Sequence[Side]) -> list[Block]:
    """Cases that two machines at least have measured, and how much faster the others are than the first."""
    places: dict[tuple[object, ...], dict[int, Fact]] = {}
    for number, side in enumerate(sides):
        for fact in side.ok:
            if fact.decode_tps is not None:
                case = fact.case
                key = (fact.model, case.quant, case.path, case.fill, case.context, case.batch, case.steps)
                places.setdefault(key, {}).setdefault(number, fact)
    shared = {key: facts for key, facts in places.items() if len(facts) > 1}
    if not shared:
        return [muted("Side by side: the machines have no measured case in common.")]
    columns = (
        Head("case", right=False),
        *(Head(f"{side.title}, decode t/s") for side in sides),
        Head("highest ÷ lowest"),
    )
    rows = []
    for facts in list(shared.values())[:MOST_ROWS]:
        medians = [fact.decode_tps for fact in facts.values() if fact.decode_tps]
        cells = (words.ranged(facts[n].decode) if n in facts else "–" for n in range(len(sides)))
        rows.append((words.case(next(iter(facts.values()))), *cells, f"{significant(max(medians) / min(medians))} ×"))
    caption = (
        "Side by side: cases measured on more than one machine. profile compare gives the ratios their intervals."
    )
    return [Table(columns, tuple(rows), caption)]


def _table(sides: Sequence[Side]) -> list[Block]:
    several = len(sides) > 1
    found = [(side.title, fact) for side in sides for fact in side.ok]
    rows = tuple((*((title,) if several else ()), *_row(fact)) for title, fact in found[:MOST_ROWS])
    columns = (
        *((Head("machine", right=False),) if several else ()),
        Head("model", right=False),
        Head("format", right=False),
        *map(Head, ("context", "batch", "prefill t/s", "decode t/s", "first token", "ms/token", "reps")),
    )
    blocks: list[Block] = [Table(columns, rows, "The figures")]
    if len(found) > MOST_ROWS:
        blocks.append(
            muted(f"{MOST_ROWS} of {len(found):,} measured cases are shown; profile runs show RUN -o csv has all.")
        )
    return blocks


def _row(fact: Fact) -> tuple[str, ...]:
    row = fact.measurement
    return (
        fact.model,
        fact.series,
        f"{fact.case.context:,}",
        f"{fact.case.batch:,}",
        rate_cell(row, "prefill"),
        rate_cell(row, "decode"),
        ttft_cell(row),
        token_cell(row),
        reps_cell(row),
    )
