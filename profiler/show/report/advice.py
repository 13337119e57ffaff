"""What should I run on this machine? One paragraph per machine, with figures."""

from __future__ import annotations

from collections.abc import Sequence

from profiler.cost import engines
from profiler.cost.prediction import LIMITS
from profiler.quants.base import DTYPE_BYTES
from profiler.shell import command
from profiler.show.report import selection
from profiler.show.report.blocks import Code, PageBlock, Section, Text, muted
from profiler.show.report.predictions import Forecast
from profiler.show.report.selection import CaseResult, MachineRows
from profiler.units import bytes_text, seconds_text

READING_TPS = 5.3  # 238 words a minute (Brysbaert 2019, J. Mem. Lang. 109:104047), four tokens to three words
NEAR = 0.5  # of the ceiling; above it, other software can gain little


def section(machines: Sequence[MachineRows], forecasts: Sequence[Forecast]) -> Section:
    """A paragraph for each machine, and the rule behind it."""
    several = len(machines) > 1
    blocks: list[PageBlock] = []
    chosen: list[CaseResult] = []
    for machine, forecast in zip(machines, forecasts, strict=True):
        best, text = _paragraph(machine, forecast)
        chosen += [best] if best is not None and forecast.parameters(best.model) is not None else []
        blocks.append(Text(f"{machine.title}: {text}" if several else text, lead=True))
    if chosen:
        blocks += [
            muted("Predictions for llama.cpp, with the command and the settings that run it:"),
            Code(tuple(dict.fromkeys(map(_in_llama_cpp, chosen)))),
        ]
    blocks.append(
        muted(
            "The rule: among measured cases that fit with headroom and whose repetitions are comparable, choose the"
            " largest model that generates faster than people read, in its fastest quantization; if there is none,"
            f" the fastest. People read {READING_TPS} tokens per second. Cases whose intervals overlap may be"
            " equally fast. Larger is not always better: the section on quality below compares models with known"
            " scores."
        )
    )
    return Section("run", "What should I run on this machine?", tuple(blocks))


def _in_llama_cpp(result: CaseResult) -> str:
    sizes = ("-c", str(result.case.context), "-b", str(result.case.batch))
    return str(command("profile", "fit", result.model, "--engine", engines.OF_GGUF, sizes))


def _paragraph(machine: MachineRows, forecast: Forecast) -> tuple[CaseResult | None, str]:
    """The case that is recommended, and why."""
    usable = [result for result in machine.fewest if _clear(result)]
    if not usable:
        return None, f"Nothing here can be recommended: {_why_nothing(machine)}."
    fast = [result for result in usable if result.least_tps >= READING_TPS or _surely(result) >= READING_TPS]
    sizes = {model: _parameters(model, machine, forecast) for model in {result.model for result in fast}}
    ranked = all(sizes.values())
    fastest = max(usable, key=_median)
    best = max(fast, key=lambda result: (sizes[result.model] or 0, _median(result))) if fast and ranked else fastest
    sentences = [_opening(best, fast, usable, ranked), _prefill(best), _memory(best, forecast), _bound(best)]
    if best.model != fastest.model:
        sentences.append(f"The fastest is {selection.case(fastest)}: {selection.ranged(fastest.decode)} t/s.")
    return best, " ".join(sentence for sentence in sentences if sentence)


def _opening(best: CaseResult, fast: Sequence[CaseResult], usable: Sequence[CaseResult], ranked: bool) -> str:
    what = f"{best.model} in {best.series}"
    figure = f"{selection.ranged(best.decode)} t/s at {selection.tokens(best.case.context)} tokens of context"
    if len(usable) == 1:
        return f"Only {what} has comparable measurements: it decodes at {figure}."
    if not fast:
        return (
            f"Nothing measured here certainly generates as fast as people read. The closest is {what}: it decodes at"
            f" {figure}."
        )
    why = (
        "the largest model that is fast enough, in its fastest quantization" if ranked else "the fastest one measured"
    )
    return f"Run {what}, {why}: it decodes at {figure}."


def _prefill(best: CaseResult) -> str:
    if best.prefill is None or best.ttft is None:
        return ""
    first = seconds_text(best.ttft.median)
    if best.prefill.wide:
        return f"The first token takes {first}, but prefill was too noisy for a rate."
    return f"It processes a prompt at {selection.ranged(best.prefill)} t/s, so the first token takes {first}."


def _memory(best: CaseResult, forecast: Forecast) -> str:
    if best.peak_bytes is None or best.limit_bytes is None:
        return "Its memory was not measured."
    headroom = bytes_text(best.limit_bytes - best.peak_bytes)
    text = f"Its peak is {bytes_text(best.peak_bytes)} of {bytes_text(best.limit_bytes)}, a headroom of {headroom}"
    longest = forecast.largest_context(best)
    if not longest:
        return f"{text}."
    all_of_them = " all" if longest == forecast.longest([best.model]) else ""
    known = " that it supports" if all_of_them else ""
    return f"{text}, which should be enough for{all_of_them} {longest:,} tokens of context{known}."


def _bound(best: CaseResult) -> str:
    share = best.shares.get("decode")
    if share is None:
        return ""
    means = LIMITS.get(best.bound)
    held = f", limited by {best.bound} ({means})" if means else ""
    near = "close to" if share >= NEAR else "far from"
    return f"Decode is {near} the limit of this device, at {share:.0%} of its ceiling{held}."


def _why_nothing(machine: MachineRows) -> str:
    if not machine.ok:
        return "no case was completed"
    if all(result.decode_tps is None for result in machine.ok):
        return "no decode was measured"
    if not any(result.comparable for result in machine.ok):
        return "the repetitions of every case differ too much to compare"
    return "no case fits with headroom"


def _clear(result: CaseResult) -> bool:
    return result.comparable and result.verdict in ("fits", "none")


def _surely(result: CaseResult) -> float:
    """The lower end of the interval; for a single repetition, its rate."""
    if _median(result) < READING_TPS:  # the interval does not matter
        return _median(result)
    decode = result.decode
    assert decode is not None  # _clear
    return decode.median if decode.low is None else decode.low


def _median(result: CaseResult) -> float:
    return result.decode_tps or 0.0


def _parameters(model: str, machine: MachineRows, forecast: Forecast) -> float | None:
    """From the catalog, otherwise from the size of unquantized weights; None if neither is known."""
    known = forecast.parameters(model)
    if known is not None:
        return known
    counted = [
        result.memory.weights_bytes / DTYPE_BYTES[group.case.quant]
        for group, results in machine.groups.items()
        if group.model == model and group.case.quant in DTYPE_BYTES
        for result in results
        if result.ok and result.memory.weights_bytes
    ]
    return max(counted, default=None)
