"""What should I run on this machine? One paragraph for each, with the figures behind it."""

from __future__ import annotations

from collections.abc import Sequence

from profiler.quants.base import DTYPE_BYTES
from profiler.reports.base.page import words
from profiler.reports.base.page.blocks import Block, Section, Text, muted
from profiler.reports.base.page.forecast import Forecast
from profiler.reports.base.page.side import Fact, Side
from profiler.units import bytes_text, seconds_text

READING_TPS = 5.3  # 238 words a minute (Brysbaert 2019, J. Mem. Lang. 109:104047), four tokens to three words
NEAR = 0.5  # of the ceiling: nearer than that there is little to win by other software


def section(sides: Sequence[Side], forecasts: Sequence[Forecast]) -> Section:
    """A paragraph for each machine, and the rule it was found by."""
    several = len(sides) > 1
    blocks: list[Block] = []
    for side, forecast in zip(sides, forecasts, strict=True):
        text = _paragraph(side, forecast)
        blocks.append(Text(f"{side.title}: {text}" if several else text, lead=True))
    blocks.append(
        muted(
            "The rule: of the cases that were measured, fit with room to spare and have repetitions that can be"
            " compared, the largest model that writes faster than people read, and its fastest format; if none does,"
            f" the fastest. People read {READING_TPS} tokens a second. Larger is not always better: where scores are"
            " known, see the frontier below."
        )
    )
    return Section("run", "What should I run on this machine?", tuple(blocks))


def _paragraph(side: Side, forecast: Forecast) -> str:
    smallest = min((fact.case.batch for fact in side.ok), default=1)
    usable = [fact for fact in side.ok if fact.case.batch == smallest and _clear(fact)]
    if not usable:
        return f"Nothing here can be recommended: {_why_nothing(side)}."
    fast = [fact for fact in usable if fact.least_tps >= READING_TPS or _surely(fact) >= READING_TPS]
    sizes = {model: _parameters(model, side, forecast) for model in {fact.model for fact in fast}}
    ranked = all(sizes.values())
    fastest = max(usable, key=_median)
    best = max(fast, key=lambda fact: (sizes[fact.model] or 0, _median(fact))) if fast and ranked else fastest
    sentences = [_opening(best, fast, usable, ranked), _prefill(best), _memory(best, forecast), _bound(best)]
    if best.model != fastest.model:
        sentences.append(f"The fastest is {words.case(fastest)}: {words.ranged(fastest.decode)} t/s.")
    return " ".join(sentence for sentence in sentences if sentence)


def _opening(best: Fact, fast: Sequence[Fact], usable: Sequence[Fact], ranked: bool) -> str:
    what = f"{best.model} in {best.series}"
    figure = f"{words.ranged(best.decode)} t/s at {words.tokens(best.case.context)} tokens of context"
    if len(usable) == 1:
        return f"Only {what} can be judged: it decodes {figure}."
    if not fast:
        return (
            f"Nothing that was measured here surely writes as fast as people read. The nearest is {what}: it decodes"
            f" {figure}."
        )
    why = (
        "the largest model that is fast enough, in its fastest format" if ranked else "the fastest that was measured"
    )
    return f"Run {what}, {why}: it decodes {figure}."


def _prefill(best: Fact) -> str:
    if best.prefill is None:
        return ""
    first = seconds_text(best.case.batch * best.case.context / best.prefill.median)
    return f"It takes in a prompt at {words.ranged(best.prefill)} t/s, so the first token comes after {first}."


def _memory(best: Fact, forecast: Forecast) -> str:
    if best.peak_bytes is None or best.limit_bytes is None:
        return "How much memory it takes was not measured."
    left = best.limit_bytes - best.peak_bytes
    text = f"Its peak is {bytes_text(best.peak_bytes)} of {bytes_text(best.limit_bytes)}; {bytes_text(left)} are left"
    longest = forecast.largest_context(best)
    if not longest:
        return f"{text}."
    all_of_them = " all" if longest == forecast.longest([best.model]) else ""
    known = " that it was made for" if all_of_them else ""
    return f"{text}, by prediction enough for{all_of_them} {longest:,} tokens of context{known}."


def _bound(best: Fact) -> str:
    share = best.shares["decode_fraction"]
    if share is None:
        return ""
    what = words.LIMITS.get(best.bound, (None, None))[1]
    held = f", held back by {what}" if what else ""
    near = "near" if share >= NEAR else "far from"
    return f"Decode is {near} what this device can do, at {share:.0%} of its ceiling{held}."


def _why_nothing(side: Side) -> str:
    if not side.ok:
        return "no case was measured to its end"
    if all(fact.decode_tps is None for fact in side.ok):
        return "no decode was measured"
    if not any(fact.comparable for fact in side.ok):
        return "the repetitions of every case differ too much to compare"
    return "no case fits with room to spare"


def _clear(fact: Fact) -> bool:
    return fact.comparable and fact.verdict in ("fits", "none")


def _surely(fact: Fact) -> float:
    """The lower end of the interval; of a single repetition its figure."""
    if _median(fact) < READING_TPS:  # no end is needed
        return _median(fact)
    decode = fact.decode
    assert decode is not None  # _clear
    return decode.median if decode.low is None else decode.low


def _median(fact: Fact) -> float:
    return fact.decode_tps or 0.0


def _parameters(model: str, side: Side, forecast: Forecast) -> float | None:
    """By the catalog, else by what the weights take in a plain format; None where neither is known."""
    known = forecast.parameters(model)
    if known is not None:
        return known
    plain = [fact for fact in side.ok_of(model) if fact.case.quant in DTYPE_BYTES]
    counted = [
        fact.memory.weights_bytes / DTYPE_BYTES[fact.case.quant] for fact in plain if fact.memory.weights_bytes
    ]
    return max(counted, default=None)
