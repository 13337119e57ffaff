"""The output of ``profile`` alone: the machine, what to run on it, what was measured, and what to type next."""

from __future__ import annotations

from collections.abc import Sequence

from profiler import console, devices, registry
from profiler.cost.machine import Machine
from profiler.devices import target as targets
from profiler.errors import ProfileError
from profiler.models import families, hub
from profiler.run import choice
from profiler.run.choice import Candidate
from profiler.shell import Command, command
from profiler.show import output as show_output
from profiler.units import bytes_text, printable, rate_text, significant

DROPPED = ("memory", "max context")  # by a terminal that is too narrow
MODELS_SHOWN = 3
SAME_MAKER = 6  # characters of a name: gemma- and qwen3.
GOAL = "20 tok/s at 32k"  # an example


def overview(on: str | None = None) -> str:
    """The page for this machine, or for a device as `profile fit --on` names it. Raises ProfileError."""
    target = targets.find(on)
    machine = Machine(target)
    found = choice.best_three(machine)
    measured = _measured() if on is None else None
    lines = [_title(machine), *target.limits, "", *_table(found), ""]
    if measured is not None:
        lines += [measured, ""]
    lines.append("Next:")
    following = [*_next(found, on), *([] if on else [_measure(measured)])]
    width = max(len(str(typed)) for typed, _ in following)
    lines += [f"  {typed!s:{width}}  # {why}" for typed, why in following]
    lines.append("All commands: profile --help")
    return "\n".join(show_output.wrapped(lines, console.width())) + "\n"


def _title(machine: Machine) -> str:
    """The machine in a line."""
    target = machine.target
    parts = [printable(target.title)]
    if target.local is None:
        parts.append(f"{bytes_text(machine.usable_bytes)} usable{' each' if target.count > 1 else ''}")
    else:
        device = devices.find(target.local)
        cores = device.usable_cores
        parts += [f"{cores:g} core{'s' * (cores != 1)}"] if cores is not None else []
        parts.append(f"{bytes_text(device.memory_bytes)}, {bytes_text(device.free_bytes)} free")
    parts.append(f"{significant(machine.ceiling_bytes_s / 1e9)} GB/s {_source(machine)}")
    return " · ".join(parts)


def _source(machine: Machine) -> str:
    if machine.target.ceilings is not None:
        return "measured"
    return "assumed (profile calibrate measures it)" if machine.target.spread > 1 else "by its data sheet"


def _table(found: Sequence[tuple[str, Candidate]]) -> list[str]:
    if not found:
        return ["No model of the catalog fits. profile models lists what there is."]
    text = show_output.render([_row(*each) for each in found], dict, "table", DROPPED)
    notes = [
        f"Predicted at {choice.CONTEXT // 1024}k tokens of context; in parentheses, the range that should hold nine"
        " cases in ten."
    ]
    if not all(each.reads for _, each in found):
        notes.append(f"People read {choice.READING_TPS} t/s.")
    return [*text.splitlines(), "", " ".join([*notes, *_twins([each.name for _, each in found])])]


def _row(best_at: str, candidate: Candidate) -> dict[str, str]:
    prediction = candidate.prediction
    assert prediction.decode is not None
    tps = prediction.decode.tps
    return {
        "best": best_at,
        "model": candidate.name,
        "quant": candidate.quant,
        "engine": prediction.engine.name,
        "decode t/s": f"{rate_text(tps.value)} ({significant(tps.low, 2)}–{significant(tps.high, 2)})",
        "memory": bytes_text(prediction.terms.peak.value),
        "max context": f"{candidate.largest_context:,}",
    }


def _twins(names: Sequence[str]) -> list[str]:
    """Newer models with the shape of one of ``names``, whose figures hold for them as well."""
    shapes = {families.geometry(hub.shipped_config(name)): name for name in names}
    starts, twins = {name[:SAME_MAKER] for name in names}, dict[str, list[str]]()
    others = (name for name in hub.names() if name not in choice.names() and name[:SAME_MAKER] in starts)
    for name in others:
        if same := shapes.get(families.geometry(hub.shipped_config(name))):
            twins.setdefault(same, []).append(name)
    return [
        f"{registry.listed(alike)} {'have' if len(alike) > 1 else 'has'} the shape of {name}, and run"
        f"{'' if len(alike) > 1 else 's'} alike."
        for name, alike in twins.items()
    ]


def _next(found: Sequence[tuple[str, Candidate]], on: str | None) -> list[tuple[Command, str]]:
    """How to go on from the best choice, and for another device from what a person wants of it."""
    where = ("--on", on) if on else ()
    if not found:
        return [(command("profile", "fit", where), "what the smallest models need")]
    best = found[0][1]
    engine = ("--engine", best.prediction.engine.name)
    how = (command("profile", "fit", best.name, engine, "-q", best.quant, where), "how to run the first one")
    goal = (command("profile", "fit", where, engine, "--goal", GOAL), f"what reaches {GOAL}")
    return [how, goal] if on else [how]


def _measure(measured: str | None) -> tuple[Command, str]:
    if measured is None or measured.startswith(NOTHING):
        return command("profile", "sweep"), "measure in about five minutes"
    return command("profile", "report", "--html", "report.html"), "a page of what was measured"


NOTHING = "Nothing was measured"


def _measured() -> str:
    """What the store has, in a sentence."""
    from profiler.results.store import Store, existing

    try:
        if existing(None) is None:
            return f"{NOTHING} on this machine so far."
        with Store.open(None, create=False) as store:
            runs = store.runs()
    except ProfileError as error:
        return f"The results cannot be read: {error.message}"
    count = sum(run.outcomes.get("ok", 0) for run in runs)
    if not count:
        return f"{NOTHING} on this machine so far."
    models = list(dict.fromkeys(model for run in reversed(runs) for model in run.models))
    named = [printable(model, 40) for model in models[:MODELS_SHOWN]]
    more = len(models) - len(named)
    of_models = registry.listed([*named, *([f"{more} more models"] if more else [])])
    last = printable(runs[-1].started_at[:10])
    return f"Measured so far: {count:,} cases of {of_models}, the last on {last}."
