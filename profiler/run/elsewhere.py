"""The engine in which a model is faster or a goal is met, where nobody named one and the usual one is too slow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from profiler.cost.engines.base import Engine
from profiler.cost.machine import Machine
from profiler.errors import ProfileError
from profiler.run import choice
from profiler.run.goal import goal_text, sequence_tps
from profiler.shell import Command, command
from profiler.units import printable, rate_text

if TYPE_CHECKING:
    from profiler.run.fit import FitPrediction, FitRequest, FitResult

MUCH = 1.5  # another engine is named if its choice is this many times as fast or as large


def faster(found: Sequence[FitPrediction], request: FitRequest) -> tuple[str, Command] | None:
    """Where a model is faster, if nobody named an engine: the one that was named, if it is slow or does not fit, or
    what another engine would choose."""
    machines = {each.prediction.machine for each in found}
    if request.engine is not None or request.path is not None or request.quants or len(machines) != 1:
        return None
    where, first = ("--on", request.on[0]) if request.on else (), found[0].prediction
    if not request.models:
        return _chosen_elsewhere(found, first.machine, where)
    slow = not any(choice.reads(each.prediction) for each in found)
    if not slow or len({each.model for each in found}) != 1 or found[0].named.source.kind == "gguf":
        return None
    context, batch = first.request.context, first.request.batch
    other = choice.instead(found[0].geometry, first.machine, context, batch, choice.MOST_BITS)
    if other is None or other.decode is None or other.engine is first.engine or not choice.reads(other):
        return None
    engine, quant = other.engine.name, other.request.quant
    case = (found[0].named.argument, "--engine", engine, "-q", quant, "-c", str(context))
    several = ("-b", str(batch)) if batch > 1 else ()
    told = f"{quant} in {engine} decodes at {rate_text(other.decode.tps.value)} t/s"
    return told, command("profile", "fit", case, several, where)


def _chosen_elsewhere(
    found: Sequence[FitPrediction], machine: Machine, where: tuple[str, ...]
) -> tuple[str, Command] | None:
    """The engine whose choices are no smaller than the predicted ones, and much faster or larger."""
    here = list({each.model: each for each in found}.values())
    for engine in choice.measured_engines(machine.target):
        room = choice.with_room(machine)
        rankings = [choice.Choices(prefix, engine, room).fast() for prefix in choice.FAMILIES.values()]
        best = [first for ranking in rankings if (first := next(ranking, None)) is not None]
        if len(best) != len(here) or engine is here[0].prediction.engine:
            continue
        larger = [other.size / choice.dense_size(each.geometry) for other, each in zip(best, here, strict=True)]
        faster = [other.tps / (sequence_tps(each) or other.tps) for other, each in zip(best, here, strict=True)]
        if min(larger) >= 1 and (min(faster) >= MUCH or max(larger) >= MUCH):
            models = " and ".join(f"{each.name} {each.quant}" for each in best)
            told = f"In {engine.name}, {models} decode at {rate_text(min(e.tps for e in best))} t/s or more"
            return told, command("profile", "fit", where, "--engine", engine.name)
    return None


def reaching(
    request: FitRequest, machines: Sequence[Machine], engine: Engine, predict: Callable[[FitRequest], FitResult]
) -> tuple[str, Command] | None:
    """The engine in which the goal of ``request`` is met, which ``engine`` misses, by what ``predict`` says of it."""
    named = (request.engine, request.path, request.quants, request.contexts, request.batches, request.kv)
    others = (request.scenario, request.ram_bytes, request.split, request.mtp)
    if request.goal is None or any(named) or any(others) or len(machines) != 1:
        return None
    for other in choice.measured_engines(machines[0].target):
        if other is engine:
            continue
        with suppress(ProfileError):  # the models are files that it does not read
            found = predict(replace(request, engine=other.name)).predictions
            if found:
                unknown = request.goal.kl is not None and found[0].loss is None
                told = (
                    f"In {other.name}, {printable(found[0].model, 40)} {found[0].prediction.request.quant} decodes at"
                    f" {rate_text(sequence_tps(found[0]))} t/s{', with a loss that is not known' if unknown else ''}"
                )
                where = ("--on", request.on[0]) if request.on else ()
                asked = ("--engine", other.name, "--goal", goal_text(request.goal))
                models = (f"./{name}" if name.startswith("-") else name for name in request.models)  # not an option
                return told, command("profile", "fit", models, where, asked)
    return None
