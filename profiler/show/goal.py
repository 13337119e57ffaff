"""What ``profile fit`` says about a goal: what it costs, where known losses are from, and why nothing meets it."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace

from profiler import backends, registry
from profiler.backends.base import Backend
from profiler.cost.prediction import Goal
from profiler.quants.base import PLAIN_QUANTS
from profiler.run import choice
from profiler.run.fit import FitPrediction, FitResult
from profiler.run.goal import MET, answer, context_text, goal_text, same_case, sequence_tps
from profiler.run.loss import KnownLoss
from profiler.shell import Command, command
from profiler.units import printable, rate_text, significant

MAX_MET, MIN_LEFT_OUT = 5, 2  # cases that meet a goal: the first ones, if there are several more
MAX_TRADED = 3  # models of which a note says what a goal cost
MAX_UNKNOWN = 3  # models of which a note says that nobody knows their loss
HIGHER = 1.05  # limit that is proposed ÷ the least known loss


def first(result: FitResult, goal: Goal | None) -> FitResult:
    """The first of many predictions that meet a goal, with the number of the others among the reasons."""
    others = len(result.predictions) - MAX_MET
    if goal is None or others < MIN_LEFT_OUT:
        return result
    told = f"{others} more cases meet the goal, of less quality: -o json has them"
    if goal.kl is not None and any(each.loss is None for each in result.predictions[MAX_MET:]):
        told = f"{others} more cases may meet the goal, of less quality or unknown loss: -o json has them"
    return replace(result, predictions=result.predictions[:MAX_MET], reasons=(*result.reasons, told))


def unmet(result: FitResult, goal: Goal) -> str:
    """That nothing meets a goal, and what would."""
    best = result.best
    context = "" if goal.context is None else f" at {context_text(goal.context)}"
    wish = f"nothing reaches {goal.tps:,g} tok/s{context}"
    fast = [each for each in result.tried if goal.met(each.prediction) in MET and each.loss is not None]
    if fast:  # and lose too much
        return f"{wish} and {_too_lossy(fast, goal, context)}"
    if best is None or best.prediction.decode is None:
        return f"{wish}: nothing fits. A smaller model, quantization (-q) or context would"
    request = best.prediction.request
    rate = rate_text(best.prediction.decode.tps.value / request.batch)
    what = f"{printable(best.model, 40)} {request.quant}"
    kl = goal.kl
    if kl is not None and best.loss is not None and best.loss.value >= kl:
        kl = float(f"{best.loss.value * HIGHER:.2g}")
    slower = replace(goal, tps=_rounded_down(best.prediction.decode.tps.value / request.batch), kl=kl)
    told = f"{wish}; the best is {rate} tok/s ({what})"
    return f'{told}. Try a smaller model, another -q, or --goal "{goal_text(slower)}"'


def _rounded_down(rate: float) -> float:
    """Two significant digits of a rate, which a goal may ask for and still be met."""
    step = 10.0 ** (math.floor(math.log10(rate)) - 1)
    return float(f"{math.floor(rate / step) * step:.2g}")


def _too_lossy(fast: Sequence[FitPrediction], goal: Goal, context: str) -> str:
    """That everything fast enough loses too much; of different models, each with its own least loss."""
    models: dict[str, tuple[float, FitPrediction, KnownLoss]] = {}
    for each in fast:
        if each.loss is not None and each.loss.value < models.get(each.model, (math.inf,))[0]:
            models[each.model] = each.loss.value, each, each.loss
    told = [
        f"{printable(each.model, 40)} {each.prediction.request.quant} loses {significant(value, 2)}, {loss.source}"
        for value, each, loss in models.values()
    ]
    least = min(value for value, *_ in models.values())
    wider = f'--goal "{goal.tps:g} tok/s{context}, kl<{least * HIGHER:.2g}"'
    return f"loses less than {goal.kl:g} nats: {'; '.join(told[:MAX_TRADED])}. Try {wider}"


def losses(result: FitResult) -> Iterator[str]:
    """Where the losses of the shown cases are from, and of which nobody knows any. For a goal that limits them."""
    if result.goal is None or result.goal.kl is None:
        return
    sources: dict[tuple[str, str], list[FitPrediction]] = {}
    for each in result.predictions:
        if each.loss is not None:
            sources.setdefault((each.model, each.loss.source), []).append(each)
    told = [
        f"{printable(model, 40)} {', '.join(dict.fromkeys(each.prediction.request.quant for each in mine))},"
        f" {source}{_range(mine[0].loss) if len(mine) == 1 else ''}"
        for (model, source), mine in sources.items()
    ]
    if told:
        yield f"KL: {'; '.join(told)}"
    unknown = [each for each in result.predictions if each.loss is None]
    if unknown:
        names = list(
            dict.fromkeys(f"{printable(each.model, 40)} {each.prediction.request.quant}" for each in unknown)
        )
        more = f" and {len(names) - MAX_UNKNOWN} more" if len(names) > MAX_UNKNOWN else ""
        engine = unknown[0].prediction.engine.name
        backend = _measuring(engine)
        how = "profile cannot measure it"
        if backend is not None:
            beside = ", beside an F32, BF16 or F16 file of the model" if backend.gguf else ""
            how = f"profile sweep --quality measures it{beside}"
        yield (
            f"The loss of {', '.join(names[:MAX_UNKNOWN])}{more} in {engine} is neither measured here nor published"
            f" as a mean divergence, so {'they come' if len(names) > 1 else 'it comes'} last; {how}"
        )


def _range(loss: KnownLoss | None) -> str:
    """The interval of a measured loss."""
    if loss is None or loss.low is None or loss.high is None or not loss.value:
        return ""
    return f" ({significant(loss.low, 2)}–{significant(loss.high, 2)})"


def _measuring(engine: str) -> Backend | None:
    """The backend of an engine that measures quality; None if there is none."""
    known = (backends.find(name) for name in registry.names(backends.FOLDER))
    return next((each for each in known if each.engine == engine and each.quality is not None), None)


def measuring(result: FitResult) -> tuple[str, Command] | None:
    """The command that measures the first unknown loss of a goal that limits it, and what the command does."""
    if result.goal is None or result.goal.kl is None:
        return None
    for each in result.predictions:
        backend, check = _measuring(each.prediction.engine.name), each.verify
        if each.loss is None and backend is not None and check is not None and check.words[0] == "profile":
            words, blanks = (_of_file if backend.gguf else _of_weights)(each, check)
            told = f"To measure the loss of {printable(each.model, 40)} {each.prediction.request.quant}"
            return told, command("profile", "sweep", words, "--quality", **blanks)
    return None


def _of_file(each: FitPrediction, check: Command) -> tuple[tuple[str, ...], Mapping[str, str]]:
    """The GGUF file that a sweep would measure; a blank for a file that is not here."""
    file, blanks, quant = each.named.argument, check.blanks, each.prediction.request.quant.upper()
    if each.named.source.kind != "gguf" and not any(blank.endswith(".gguf") for blank in blanks):
        blanks = {**blanks, f"MODEL-{quant}.gguf": f"a GGUF file of {each.named.title} in {quant}"}
    file = next((blank for blank in blanks if blank.endswith(".gguf")), file)
    build = ("--llama-cpp", check.words[check.words.index("--llama-cpp") + 1]) if "--llama-cpp" in check.words else ()
    return ("--backend", each.prediction.engine.name, *build, "-m", file), blanks


def _of_weights(each: FitPrediction, check: Command) -> tuple[tuple[str, ...], Mapping[str, str]]:
    """The weights that a sweep of transformers would measure, and the model that quantized ones are compared with."""
    model, blanks = each.named.argument, dict(check.blanks)
    if each.named.source.kind == "catalog":
        model, blanks = "MODEL", {"MODEL": f"the Hugging Face id of {each.named.title}, or its folder"}
    downloaded = ("--weights", "real") if each.named.source.kind in ("catalog", "hub") else ()
    stored = each.checkpoint_format
    quant = () if stored is not None and each.named.as_stored else ("-q", each.prediction.request.quant)
    original: tuple[str, ...] = ()
    if stored is not None and stored.quant not in PLAIN_QUANTS:
        original, blanks["ORIGINAL"] = ("--reference", "ORIGINAL"), "the model that it was made from"
    return ("-m", model, *downloaded, *quant, *original), blanks


def traded(result: FitResult) -> Iterator[str]:
    """What the goal costs: quantizations with less loss and larger models, and why they do not meet it."""
    met, found = result.predictions, result.tried
    for each in met[:MAX_TRADED]:
        quant, lost = each.prediction.request.quant, choice.loss(each.prediction.request.quant)
        better = [
            other
            for other in found
            if same_case(other) == same_case(each)
            and choice.loss(other.prediction.request.quant) <= lost
            and _weights(other) > _weights(each)
            and _falls_short(other, result.goal)
        ]
        if lost and better:
            nearest = min(better, key=_weights)
            reason = f"{nearest.prediction.request.quant} {_falls_short(nearest, result.goal)}"
            yield f"{printable(each.model, 40)} is in {quant} because {reason}"
    reached, best = {each.model for each in met}, met[0] if met else None
    larger: dict[str, FitPrediction] = {}
    for each in found:
        if best is not None and each.model not in reached and _size(each) > _size(best):
            larger[each.model] = max(larger.get(each.model, each), each, key=sequence_tps)
    if larger:
        nearest_first = sorted(larger.values(), key=_size)[:MAX_TRADED]
        told = (
            f"{printable(each.model, 40)} {_falls_short(each, result.goal, named=True)}" for each in nearest_first
        )
        yield f"Larger models do not meet the goal: {'; '.join(told)}"
    yield from _left_out(result, {*reached, *larger})


def _left_out(result: FitResult, told: Collection[str]) -> Iterator[str]:
    """Models that are fast enough for the goal and lose too much, which none of ``told`` is."""
    lossy: dict[str, FitPrediction] = {}
    for each in result.tried:
        if each.model in told or each.loss is None or result.goal is None or not result.predictions:
            continue
        if result.goal.met(each.prediction) in MET:
            known = lossy.get(each.model)
            if known is None or known.loss is None or each.loss.value < known.loss.value:
                lossy[each.model] = each
    words = [f"{printable(each.model, 40)} {_falls_short(each, result.goal, named=True)}" for each in lossy.values()]
    if words:
        more = f"; and {len(words) - MAX_TRADED} more" if len(words) > MAX_TRADED else ""
        yield f"Left out: {'; '.join(words[:MAX_TRADED])}{more}"


def _weights(found: FitPrediction) -> float:
    return found.prediction.terms.weights.value


def _size(found: FitPrediction) -> float:
    return choice.dense_size(found.geometry)


def _falls_short(found: FitPrediction, goal: Goal | None, named: bool = False) -> str:
    """Why a case does not meet a goal, or is not known to; empty if it does. ``named``: with its quantization."""
    if found.prediction.decode is None:
        return "does not fit"
    in_quant = f" in {found.prediction.request.quant}" if named else ""
    if goal is None or goal.met(found.prediction) not in MET:
        return f"decodes at {rate_text(sequence_tps(found))} t/s{in_quant}"
    word = answer(goal, found.prediction, found.loss)
    if word in ("yes", "likely"):
        return ""
    if found.loss is None:
        return f"has no known loss{in_quant}"
    return f"loses {significant(found.loss.value, 2)} nats{in_quant}"
