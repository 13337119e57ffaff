"""Which predictions meet a goal such as ``20 tok/s at 64k, kl<0.05``, and in which order they are shown.

They are ranked as ``choice`` says: by the quality class of the model, then by the loss of the quantization, by its
bits. With a limit for the loss, a known divergence counts instead of bits where all quantizations of a case that have
one have the same scale. Cases whose loss nobody knows come last.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from profiler.cost.prediction import Goal, GoalAnswer, Prediction
from profiler.run import choice
from profiler.run.loss import KnownLoss

if TYPE_CHECKING:
    from profiler.run.fit import FitPrediction

MET = ("yes", "likely", "unknown")  # answers with which a case is shown


def answer(goal: Goal, prediction: Prediction, known: KnownLoss | None) -> GoalAnswer:
    """Whether a case meets a goal: ``unknown`` if it is fast enough and nobody knows what it loses.

    A published figure, which has no interval and is of other texts and files, is never more than ``likely``.
    """
    fast = goal.met(prediction)
    if goal.kl is None or fast in ("unlikely", "no"):
        return fast
    if known is None:
        return "unknown"
    if known.value >= goal.kl:
        return "unlikely" if known.low is not None and known.low < goal.kl else "no"
    return fast if known.high is not None and known.high < goal.kl else "likely"


def ranked(found: Sequence[FitPrediction], goal: Goal) -> list[FitPrediction]:
    """The predictions that meet the goal at least ``likely``, the best first, then those of unknown loss."""
    met = [(word, each) for each in found if (word := answer(goal, each.prediction, each.loss)) in MET]
    met.sort(
        key=lambda pair: (
            pair[0] == "unknown",
            choice.order(pair[1].geometry, pair[1].prediction, pair[0] == "yes"),
        )
    )
    return _by_known_loss([each for _, each in met])


def _by_known_loss(ranked: Sequence[FitPrediction]) -> list[FitPrediction]:
    """The same places for every model, but in those of a case whose known losses have one scale, the least first."""
    known: dict[tuple[object, ...], list[tuple[float, int, str]]] = {}
    for place, each in enumerate(ranked):
        if each.loss is not None:
            known.setdefault(same_case(each), []).append((each.loss.value, place, each.loss.scale))
    ordered = list(ranked)
    for mine in known.values():
        if len({scale for *_, scale in mine}) == 1:
            for (_, place, _), (_, better, _) in zip(mine, sorted(mine), strict=True):
                ordered[place] = ranked[better]
    return ordered


def closest(found: Sequence[FitPrediction], goal: Goal) -> FitPrediction | None:
    """The fastest prediction, of those that are not known to lose too much if there is any."""
    kept = [each for each in found if goal.kl is None or each.loss is None or each.loss.value < goal.kl]
    return max(kept or found, key=sequence_tps, default=None)


def goal_text(goal: Goal) -> str:
    """The goal as ``--goal`` takes it."""
    context = "" if goal.context is None else f" at {context_text(goal.context)}"
    return f"{goal.tps:g} tok/s{context}{'' if goal.kl is None else f', kl<{goal.kl:g}'}"


def context_text(context: int) -> str:
    """``64k``, ``1,000``."""
    return f"{context // 1024}k" if context % 1024 == 0 else f"{context:,}"


def least_loss(ranked: Sequence[FitPrediction]) -> list[FitPrediction]:
    """The first quantization of each model and case, which is the one with the least loss."""
    first: dict[tuple[object, ...], FitPrediction] = {}
    for each in ranked:
        first.setdefault(same_case(each), each)
    return list(first.values())


def same_case(found: FitPrediction) -> tuple[object, ...]:
    """What predictions have in common that differ in their quantization only."""
    p = found.prediction
    return found.model, p.machine, p.request.context, p.request.batch


def sequence_tps(found: FitPrediction) -> float:
    """Decode rate per sequence, which a goal is compared with; 0 if the case does not fit."""
    p = found.prediction
    return p.decode.tps.value / p.request.batch if p.decode else 0.0
