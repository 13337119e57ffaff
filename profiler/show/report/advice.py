"""What should I run on this machine? One paragraph per machine, with figures, and what to measure next.

Measured and predicted cases are ranked by the same rule, so that the paragraph never contradicts the map below it. It
is the one by which ``fit`` and ``sweep`` choose (``run/choice.py``): first the model's quality class, by its size,
then the quantization that loses least, all of them fast enough to read along. Only a measured case is recommended; a
predicted one that ranks higher is what to measure next.

Bits say only roughly what a quantization loses. Where KL divergences of one scale were measured, they decide between
the quantizations that have one, if the one that bits choose is among them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from profiler import backends
from profiler.case import Case
from profiler.cost import engines
from profiler.cost.engines.transformers import usual_path
from profiler.cost.prediction import LIMITS, Prediction
from profiler.decode_path import EAGER
from profiler.models import families, hub
from profiler.results import stats
from profiler.run.choice import LOSSLESS_BITS, READING_TPS, dense_size, loss, size_class
from profiler.shell import Command, command
from profiler.show.columns import noisy_word
from profiler.show.report import ceiling, divergence, selection
from profiler.show.report.blocks import Code, PageBlock, Section, Text, muted
from profiler.show.report.fits import MapGrid, MapLine
from profiler.show.report.models import without_kind
from profiler.show.report.predictions import SAME, Forecast
from profiler.show.report.selection import CaseResult, MachineRows
from profiler.units import bytes_text, seconds_text, significant

NEAR = 0.5  # of the ceiling; above it, other software can gain little
RULE = (
    "Among measured cases that fit with headroom and whose repetitions are comparable, the rule chooses the largest"
    f" model that decodes as fast as people read ({READING_TPS} tokens per second), and of its quantizations the one"
    f" that loses least and is still fast enough; {LOSSLESS_BITS} bits and more count as lossless. Sizes count in"
    " doublings, so 27 and 31 billion parameters are equal. If none is fast enough, the rule chooses the fastest. A"
    " predicted case that ranks higher should be measured next. Cases whose intervals overlap may be equally fast."
    " Larger is not always"
    " better: the section on what is worth its memory compares models with known scores."
)
KL_RULE = (
    " Where KL divergences were measured, they say what loses least, instead of bits; losses of up to"
    f" {divergence.LOSSLESS_KL} nats count as none. Weights in 32 bits are recommended only if all others lose more"
    f" than {divergence.SMALL_KL} nats."
)


@dataclass(frozen=True, slots=True)
class RankedCase:
    """A case that is fast enough, measured or predicted. ``size``: parameters, as of a dense model."""

    size: float
    quant: str
    tps: float

    @property
    def rank(self) -> tuple[float, ...]:
        """Larger is better: quality class, loss by the quantization, size, speed."""
        return size_class(max(self.size, 1), self.quant), -loss(self.quant), self.size, self.tps


@dataclass(frozen=True, slots=True)
class NextCase:
    """A predicted case that ranks higher than every measured one."""

    ranked: RankedCase
    line: MapLine
    context: int
    batch: int
    prediction: Prediction


def section(
    machines: Sequence[MachineRows],
    forecasts: Sequence[Forecast],
    typed: Mapping[str, str] | None = None,
    build: str | None = None,
) -> Section:
    """A paragraph and a picture for each machine, and the rule behind it.

    ``typed``: what named a model on the command line, by its name; None if no command line is known. ``build``: the
    folder of llama.cpp that the newest command line with one named.
    """
    several = len(machines) > 1
    blocks: list[PageBlock] = []
    chosen: list[CaseResult] = []
    paragraphs = [_paragraph(machine, forecast) for machine, forecast in zip(machines, forecasts, strict=True)]
    pictures = ceiling.bars(machines, [best for best, *_ in paragraphs])
    each_machine = zip(machines, forecasts, paragraphs, pictures, strict=True)
    for machine, forecast, (best, opening, more), bars in each_machine:
        where = f"{machine.title}: " if several else ""
        chosen += [best] if best is not None and _of_catalog(best.model, forecast) else []
        blocks.append(Text(f"{where}{opening}", lead=True))
        found = _next(machine, forecast, best)
        if found is not None:
            told = _sweep(found, forecast, typed or {}, build)
            blocks.append(Text(_why_next(found, best, told)))
            blocks += [Code((str(told),))] if told is not None else []
        blocks += [bars] if bars is not None else []
        blocks += [Text(more)] if more else []
    if chosen:
        blocks += [
            muted("Predictions for llama.cpp, with the command and the settings that run it:"),
            Code(tuple(dict.fromkeys(map(_in_llama_cpp, chosen)))),
        ]
    rule = f"{RULE}{KL_RULE}" if any(machine.scored for machine in machines) else RULE
    blocks.append(Text(rule, muted=True, folded="How this was chosen"))
    return Section("run", "What should I run on this machine?", tuple(blocks))


def _of_catalog(model: str, forecast: Forecast) -> bool:
    """Whether a model is the one that the catalog has under its name, which another folder or file may have, too."""
    name, shapes = hub.find(model), forecast.shapes.get(model)
    if name is None or shapes is None:
        return False
    parameters = families.geometry(hub.shipped_config(name)).parameters
    return abs(shapes.parameters / parameters - 1) <= SAME


def _in_llama_cpp(result: CaseResult) -> str:
    sizes = ("-c", str(result.case.context), "-b", str(result.case.batch))
    return str(command("profile", "fit", result.model, "--engine", engines.OF_GGUF, sizes))


def _paragraph(machine: MachineRows, forecast: Forecast) -> tuple[CaseResult | None, str, str]:
    """The case that is recommended, the main statement, and its details."""
    usable = [result for result in machine.fewest if _clear(result)]
    if not usable:
        return None, f"Nothing measured here can be recommended: {_why_nothing(machine)}.", ""
    fast = list(filter(_reads, usable))
    unsized = [model for model in dict.fromkeys(each.model for each in fast) if not forecast.parameters(model)]
    fastest = max(usable, key=_median)
    best = fastest
    if fast and (not unsized or len({each.model for each in fast}) == 1):
        best = max(fast, key=lambda result: _ranked(result, forecast).rank)
        best = divergence.least_loss(best, fast, machine)
    best = _usual_prompt(best, usable)
    sentences = [_prefill(best), _memory(best, forecast), _bound(best)]
    if (best.model, best.group.settings) != (fastest.model, fastest.group.settings):
        sentences.append(f"The fastest is {selection.case(fastest)}: {selection.tps(fastest.decode)}.")
    opening = [_opening(best, fast, usable, unsized), *divergence.traded(best, usable, machine)]
    return best, " ".join(opening), " ".join(each for each in sentences if each)


def _usual_prompt(best: CaseResult, usable: Sequence[CaseResult]) -> CaseResult:
    """The case itself; of written prompts, the one with the median rate, because nobody chooses a model for one."""
    if best.case.prompt is None:
        return best
    alike = [each for each in usable if (each.model, each.group.settings) == (best.model, best.group.settings)]
    ordered = sorted((each for each in alike if each.case.prompt), key=_median)
    return ordered[len(ordered) // 2]


def _ranked(result: CaseResult, forecast: Forecast) -> RankedCase:
    return RankedCase(_size(result.model, forecast), result.case.quant, _median(result))


def _size(model: str, forecast: Forecast) -> float:
    shapes = forecast.shapes.get(model)
    return dense_size(shapes) if shapes is not None else float(forecast.parameters(model) or 0)


def _opening(
    best: CaseResult, fast: Sequence[CaseResult], usable: Sequence[CaseResult], unsized: Sequence[str]
) -> str:
    what = f"{best.model} in {best.group.settings}"
    figure = f"{selection.tps(best.decode)} {_at(best)}{_longest(best, usable)}"
    if len(usable) == 1:
        slow = "" if fast else ", slower than people read"
        return f"Only {what} has comparable measurements. It decodes at {figure}{slow}."
    if not fast:
        return (
            f"Nothing measured here certainly decodes as fast as people read. The closest is {what}: it decodes at"
            f" {figure}."
        )
    others = {each.group.settings for each in fast if each.model == best.model}
    which = "the largest measured model that decodes as fast as people read"
    if len({without_kind(each.model) for each in fast}) == 1:
        which = "it decodes as fast as people read"
    elif unsized:
        which = f"the fastest one measured, because the size of {selection.several(unsized, 2)} is not known"
    if len(others) > 1 and not unsized:
        whole = {each.case.quant for each in fast if each.model == best.model} & {*divergence.IN_32_BITS}
        below = " below 32 bits" if whole and best.case.quant not in whole else ""
        which += f", in the quantization{below} that loses least of those that are fast enough"
    return f"Run {what}: {which}. It decodes at {figure}."


def _longest(best: CaseResult, usable: Sequence[CaseResult]) -> str:
    """The rate at the longest context that was measured, if that is another one."""
    mine = [each for each in usable if each.group is best.group and each.case.prompt is None]
    last = max(mine, key=lambda each: each.case.context, default=best)
    if last.case.context == best.case.context:
        return ""
    return f", and at {selection.tps(last.decode)} at {last.case.context:,}"


def _at(result: CaseResult) -> str:
    if result.case.prompt is None:
        count = stats.sequences(result.case)
        together = f"for {count:,} sequences together, " if count > 1 else ""
        return f"{together}at {selection.tokens_text(result.case.context)} of context"
    return f"with the prompt {selection.prompt(result)}"


def _next(machine: MachineRows, forecast: Forecast, best: CaseResult | None) -> NextCase | None:
    """The predicted case that ranks highest, if it ranks above the best measured one."""
    grid = MapGrid.of(machine, forecast)
    contexts = [best.case.context] if best is not None else grid.contexts[:1]
    batch = best.case.batch if best is not None else machine.batch
    alike = [each for each in machine.results if each.case.batch == batch and each.case.context in contexts]
    measured = {(each.model, each.series, each.case.context) for each in alike if each.outcome != "skipped"}
    found = []
    for line in grid.lines if best is None or best.case.server is None else ():
        parameters = forecast.parameters(line.model)
        for context in contexts if line.like is not None and parameters else ():
            if (line.model, line.series, context) in measured:
                continue
            prediction = forecast.predict(line.model, line.quant, context, batch, line.like)
            if prediction is None or prediction.decode is None or prediction.verdict.word != "fits":
                continue
            tps = prediction.decode.tps.value
            if tps / batch >= READING_TPS:
                ranked = RankedCase(_size(line.model, forecast), line.quant, tps)
                found.append(NextCase(ranked, line, context, batch, prediction))
    if not found:
        return None
    if best is None or not _reads(best):
        return max(found, key=lambda each: each.ranked.rank)
    found = [each for each in found if not divergence.loses_more(each.line.model, each.line.series, best, machine)]
    first = max(found, key=lambda each: each.ranked.rank, default=None)
    # Bits rank what was not measured. They have to promise more than those of any measured case of the model, because
    # the best one may have been chosen by its divergence.
    alike = [each for each in machine.fewest if each.model == best.model and _clear(each) and _reads(each)]
    known = max((_ranked(each, forecast) for each in (best, *alike)), key=lambda each: each.rank)
    return first if first is not None and known.size and first.ranked.rank[:2] > known.rank[:2] else None


def _why_next(found: NextCase, best: CaseResult | None, told: Command | None) -> str:
    assert found.prediction.decode is not None  # _next
    tps = found.prediction.decode.tps
    span = f"{significant(tps.value, 2)} t/s ({significant(tps.low, 2)}–{significant(tps.high, 2)})"
    better = "is larger and " if best is not None and found.line.model != best.model else ""
    if best is not None and not better and _reads(best):
        better = "loses less and "
    file = "a GGUF file" if found.line.like is not None and _needs_gguf(found.line.like) else "weights"
    how = ":" if told is not None else f", with {file} in {found.line.quant}."
    return (
        f"{found.line.model} in {found.line.series} {better}is predicted to decode at {span} at"
        f" {selection.tokens_text(found.context)} of context, as fast as people read. Measure this next{how}"
    )


def _sweep(found: NextCase, forecast: Forecast, typed: Mapping[str, str], build: str | None) -> Command | None:
    """The command that measures a predicted case; None if the file that it needs is not known."""
    like = found.line.like
    assert like is not None  # _next
    catalog = hub.find(like.model) if like.model in hub.names() else None
    name = typed.get(like.model) or (catalog if found.line.model in forecast.shapes else None)
    gguf = _needs_gguf(like)
    if name is None or (gguf and like.weights == "real"):
        return None
    where = ("--backend", like.backend, *(("--llama-cpp", build) if build else ())) if gguf else ()
    target = forecast.machine.target if forecast.machine is not None else None
    usual = EAGER if target is None else usual_path(target)
    path = ("--path", forecast.path) if not gguf and forecast.path != usual else ()
    sizes = ("-q", found.line.quant, "-c", str(found.context), "-b", str(found.batch))
    return command("profile", "sweep", "-m", name, sizes, where, path)


def _needs_gguf(case: Case) -> bool:
    """Whether the backend of a case runs nothing but GGUF files."""
    backend = backends.of_row(case.backend)
    return backend is not None and backend.gguf


def _prefill(best: CaseResult) -> str:
    if best.prefill is None or best.ttft is None:
        return ""
    first = seconds_text(best.ttft.median)
    if best.prefill.wide:
        return f"Prefill has no rate ({noisy_word(best.prefill)}); the first token took {first}."
    return f"It processes a prompt at {selection.tps(best.prefill)}, so the first token takes {first}."


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


def _reads(result: CaseResult) -> bool:
    """Whether each sequence certainly decodes as fast as people read: by the lower end of the interval or, for a
    single repetition, by its rate.
    """
    wanted = READING_TPS * stats.sequences(result.case)
    if result.least_tps >= wanted or _median(result) < wanted:  # the interval does not matter
        return _median(result) >= wanted
    decode = result.decode
    assert decode is not None  # _clear
    return (decode.median if decode.low is None else decode.low) >= wanted


def _median(result: CaseResult) -> float:
    return result.decode_tps or 0.0
