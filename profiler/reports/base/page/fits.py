"""What fits? Model × format × context, each with its verdict and what holds it back; measured and predicted apart."""

from __future__ import annotations

from collections.abc import Sequence

from profiler import registry
from profiler.reports.base.page import words
from profiler.reports.base.page.blocks import Block, Cell, Map, Section, muted
from profiler.reports.base.page.forecast import Forecast
from profiler.reports.base.page.side import Fact, Side
from profiler.reports.base.text import plain
from profiler.units import UNKNOWN, bytes_text, significant

CONTEXTS = (2048, 8192, 32_768, 131_072)  # predicted beside what was measured, as far as a model reaches
FORMATS = ("int8", "nf4")  # predicted beside what was measured: what people try when a model does not fit
MOST_CONTEXTS = 10  # columns that a reader can take in
MOST_ROWS = 40


def section(sides: Sequence[Side], forecasts: Sequence[Forecast]) -> Section:
    """A map for each machine."""
    blocks: list[Block] = []
    for side, forecast in zip(sides, forecasts, strict=True):
        blocks += _side(side, forecast, several=len(sides) > 1)
    blocks.append(
        muted(
            "Decode in tokens a second. Figures without ~ were measured here, those with ~ are predicted; with a"
            " ? the repetitions differ too much to compare. Fits: at least 5 % and 512 MiB are left at the peak;"
            " tight: less than that; no: it needs more than there is."
        )
    )
    return Section("fits", "What fits?", tuple(blocks))


def _side(side: Side, forecast: Forecast, several: bool) -> list[Block]:
    facts = {_place(fact): fact for fact in side.facts if fact.case.batch == side.batch}
    contexts = _contexts(side, forecast)
    lines = [
        (f"{model} · {series}", quant, model, series)
        for model in side.models
        for series, quant in _formats(side, model, forecast)
    ]
    rows = tuple(
        (
            label,
            tuple(_cell(facts.get((model, series, at)), forecast, model, quant, at, side.batch) for at in contexts),
        )
        for label, quant, model, series in lines[:MOST_ROWS]
    )
    where = side.title if several else ""
    batch = f"{side.batch:,} sequence{'s' * (side.batch != 1)}"
    caption = " · ".join(part for part in (where, batch) if part)
    blocks: list[Block] = [Map("model · format", tuple(map(words.tokens, contexts)), rows, caption, _key())]
    if len(lines) > MOST_ROWS:
        blocks.append(muted(f"{len(lines) - MOST_ROWS:,} more lines of models and formats are not shown."))
    reasons: dict[str, list[str]] = {}
    for model, reason in forecast.missing.items():
        reasons.setdefault(reason, []).append(model)
    blocks += [muted(f"Not predicted: {words.several(models, 6)}: {reason}.") for reason, models in reasons.items()]
    return blocks


def _place(fact: Fact) -> tuple[str, str, int]:
    return fact.model, fact.series, fact.case.context


def _contexts(side: Side, forecast: Forecast) -> list[int]:
    """The measured ones, thinned out where they are many, and those that are predicted."""
    measured = sorted({fact.case.context for fact in side.facts if fact.case.batch == side.batch})
    longest = forecast.longest(side.models)
    others = [context for context in CONTEXTS if context <= longest and context not in measured]
    room = max(2, MOST_CONTEXTS - len(others))
    step = max(1, -(-len(measured) // room))
    return sorted({*measured[::step], *measured[-1:], *others})


def _formats(side: Side, model: str, forecast: Forecast) -> list[tuple[str, str | None]]:
    """Lines of a model: what was measured, then what is only predicted. With the format to predict, or None."""
    mine = side.of[model]
    found: dict[str, str | None] = {}
    for fact in mine:
        found.setdefault(fact.series, fact.case.quant)
        if fact.case.path != forecast.path:
            found[fact.series] = None
    if model in forecast.shapes:
        measured = {fact.case.quant for fact in mine}
        known = registry.names("quants")
        found |= {quant: quant for quant in FORMATS if quant in known and quant not in measured}
    return list(found.items())


def _cell(fact: Fact | None, forecast: Forecast, model: str, quant: str | None, context: int, batch: int) -> Cell:
    if fact is not None and fact.outcome != "skipped":
        return _measured(fact)
    cell = None if quant is None else _predicted(forecast, model, quant, context, batch)
    if cell is None and fact is not None:
        reason = plain(fact.reason or "no reason was recorded", 300)
        return Cell(UNKNOWN, detail="skipped", title=f"skipped: {reason}")
    return cell or Cell("", title="neither measured nor predicted")


def _measured(fact: Fact) -> Cell:
    if not fact.ok:
        outcome = fact.outcome
        reason = plain(fact.reason or "no reason was recorded", 300)
        detail = "no · memory" if outcome == "oom" else ""
        return Cell(outcome, "", detail, fact.verdict, True, f"measured: {reason}")
    bound = fact.bound
    verdict = fact.verdict
    parts = ["" if verdict == "none" else verdict, words.LIMITS.get(bound, ("", ""))[0]]
    peak = f", peak {bytes_text(fact.peak_bytes)}" if fact.peak_bytes is not None else ""
    title = f"measured: {words.ranged(fact.decode)} t/s{peak}"
    value, span = words.rate(fact.decode), ""
    if fact.decode is not None and fact.decode.wide and fact.decode.low and fact.decode.high:
        value, span = f"{value}?", f"{significant(fact.decode.low, 2)}–{significant(fact.decode.high, 2)}"
    return Cell(value, span, " · ".join(part for part in parts if part), verdict, True, title)


def _predicted(forecast: Forecast, model: str, quant: str, context: int, batch: int) -> Cell | None:
    found = forecast.predict(model, quant, context, batch)
    if found is None:
        return None
    word, why = found.verdict.word, words.LIMITS[found.binds][0]
    peak = bytes_text(found.terms.peak.value)
    if found.decode is None:
        return Cell(word, "", why, word, False, f"predicted: {found.verdict.reason}, peak {peak}")
    tps = found.decode.tps
    span = f"{significant(tps.low, 2)}–{significant(tps.high, 2)}"
    title = f"predicted ({tps.basis}): {significant(tps.value, 2)} t/s ({span}), peak {peak}, {found.verdict.reason}"
    return Cell(f"~{significant(tps.value, 2)}", span, f"{word} · {why}", word, False, title)


def _key() -> str:
    limits = "; ".join(f"{short}: {long}" for short, long in words.LIMITS.values() if short != long)
    return (
        "Framed and bold: measured. The range below a prediction is where nine of ten such cases fall. After the"
        f" verdict, what holds decode back, by prediction in every cell: {limits}."
    )
