"""What ``profile fit`` says about a goal: what it costs, where known losses are from, and why nothing meets it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from profiler import backends, registry
from profiler.cost.prediction import Goal
from profiler.run import choice
from profiler.run.fit import FitPrediction, FitResult
from profiler.run.goal import MET, answer, same_case, sequence_tps
from profiler.run.loss import KnownLoss
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
    slower = f'--goal "{significant(best.prediction.decode.tps.low / request.batch, 2)} tok/s{context}"'
    return f"{wish}; the best is {rate} tok/s ({what}). Try a smaller model, another -q, or {slower}"


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
        how = "profile sweep --quality measures it" if _measures(engine) else "profile cannot measure it"
        yield (
            f"The loss of {', '.join(names[:MAX_UNKNOWN])}{more} in {engine} is neither measured here nor published"
            f" as a mean divergence, so {'they come' if len(names) > 1 else 'it comes'} last; {how}"
        )


def _range(loss: KnownLoss | None) -> str:
    """The interval of a measured loss."""
    if loss is None or loss.low is None or loss.high is None or not loss.value:
        return ""
    return f" ({significant(loss.low, 2)}–{significant(loss.high, 2)})"


def _measures(engine: str) -> bool:
    """Whether a backend of an engine measures quality."""
    known = (backends.find(name) for name in registry.names(backends.FOLDER))
    return any(backend.engine == engine and backend.quality is not None for backend in known)


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


def context_text(context: int) -> str:
    """``64k``, ``1,000``."""
    return f"{context // 1024}k" if context % 1024 == 0 else f"{context:,}"
