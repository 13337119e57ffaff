"""The output of ``profile`` alone: the machine, what to run on it, what was measured, and what to type next."""

from __future__ import annotations

from collections.abc import Sequence

from profiler import console, devices, registry, settings
from profiler.cost.learned import NOTHING, from_store
from profiler.cost.machine import Machine
from profiler.cost.prediction import judge
from profiler.devices import target as targets
from profiler.devices.target import MEMORY_TOLERANCE
from profiler.errors import ProfileError
from profiler.models import families, hub
from profiler.run import choice
from profiler.run.choice import Candidate
from profiler.settings import existing_results
from profiler.shell import Command, command
from profiler.show import output as show_output
from profiler.units import GIB, bytes_text, printable, rate_text, significant

DROPPED = ("max context", "pick")  # by a terminal that is too narrow
MODELS_SHOWN = 3
THIRD_PICK = {"fast": "fast: the best that is much faster", "next": "next: the best of the smaller ones"}
MAKER_CHARACTERS = 6  # of a name, which tell makers apart: ``gemma-`` and ``qwen3.``
UNMEASURED = "Nothing was measured"  # how the sentence about an empty store begins
GOAL = "20 tok/s at 32k"  # of the example command


def overview(on: str | None = None) -> str:
    """The page for this machine, or for the device ``on``, as for `profile fit`. Raises ProfileError."""
    here = None if on is not None else _here()
    target = targets.find(on or here)
    machine = Machine(target)
    local = target.local if on is None and target.count == 1 else None
    learned = NOTHING if local is None else from_store(None, devices.find(local), target)
    found = choice.best_three(machine, learned)
    measured = _measured() if on is None else None
    lines = [_title(machine), *target.limits, "", *_table(found, machine)]
    lines += [measured] if measured is not None else []
    following = _next(found, on or here)
    for why, typed in following if on else [following[0], _measure(measured)]:
        lines += [f"{why}:", f"  {typed}"]
    lines.append("All commands: profile --help")
    return "\n".join(show_output.wrapped(lines, console.width())) + "\n"


def _here() -> str | None:
    """What ``--on`` calls the device of ``profile.toml``, or all GPUs of this machine; None: it has one device."""
    chosen = settings.load().get("device")
    if chosen is not None:
        return str(chosen.value)
    found = devices.local()
    gpus = [each for each in found if each.kind == found[0].kind and each.slice is None]
    if len(gpus) < 2:
        return None
    first = gpus[0]
    same = [abs(each.memory_bytes / first.memory_bytes - 1) <= MEMORY_TOLERANCE for each in gpus]
    alike = all(same) and all(each.title == first.title for each in gpus)
    return f"{len(gpus)}x{first.kind}" if alike else ",".join(each.name for each in gpus)


def _title(machine: Machine) -> str:
    """The machine in a line."""
    target = machine.target
    bandwidth = f"{machine.ceiling_bytes_s / 1e9:,.0f} GB/s {_source(machine)}"
    if target.local is None or target.count > 1:
        each = " each" if target.count > 1 else ""
        return f"{printable(target.title)}, {bytes_text(machine.usable_bytes)} usable{each}, {bandwidth}"
    device = devices.find(target.local)
    cores = "" if device.usable_cores is None else f", {device.usable_cores:g} core{'s' * (device.usable_cores != 1)}"
    memory = f"{bytes_text(device.memory_bytes)} ({device.free_bytes / GIB:.1f} free)"
    return f"{printable(target.title)}{cores}, {memory}, {bandwidth}"


def _source(machine: Machine) -> str:
    if machine.target.ceilings is not None:
        return "measured"
    return "assumed" if machine.target.spread > 1 else "by data sheet"


def _table(found: Sequence[tuple[str, Candidate]], machine: Machine) -> list[str]:
    if not found:
        return ["No model of the catalog fits. profile models lists what there is."]
    text = show_output.render([_row(*each) for each in found], dict, "table", DROPPED)
    reads = all(each.reads for _, each in found)
    rule = "largest that decodes as fast as people read" if reads else "fastest, but slower than people read"
    notes = [f"best: the {rule} ({choice.READING_TPS} t/s)"]
    notes += ["other: the same for the other family"] * (len(found) > 1)
    notes += [THIRD_PICK[pick] for pick, _ in found if pick in THIRD_PICK]
    at = f"Predicted at {choice.CONTEXT // 1024}k of context"
    context = f"{at}; in parentheses, the range that should hold nine cases in ten."
    alike = _twins([each.name for _, each in found])
    return [*text.splitlines(), "", f"{'; '.join(notes)}.", " ".join([context, *alike]), *_tight(found, machine)]


def _tight(found: Sequence[tuple[str, Candidate]], machine: Machine) -> list[str]:
    """A sentence about those that fit by little, or may not fit."""
    names = [each.name for _, each in found if judge(each.prediction.terms, machine).word == "tight"]
    return [f"Tight: {registry.listed(names)} may not fit at {choice.CONTEXT // 1024}k."] if names else []


def _row(pick: str, candidate: Candidate) -> dict[str, str]:
    prediction = candidate.prediction
    assert prediction.decode is not None
    tps = prediction.decode.tps
    return {
        "pick": pick,
        "model": candidate.name,
        "quant": candidate.quant,
        "engine": prediction.engine.name,
        "decode t/s": f"{rate_text(tps.value)} ({significant(tps.low, 2)}–{significant(tps.high, 2)})",
        "memory": bytes_text(prediction.terms.needed.value),
        "max context": f"{candidate.largest_context:,}",
    }


def _twins(names: Sequence[str]) -> list[str]:
    """Sentences about other models with the shapes of one of ``names``, whose figures hold for them as well."""
    shapes = {families.geometry(hub.shipped_config(name)): name for name in names}
    starts, twins = {name[:MAKER_CHARACTERS] for name in names}, dict[str, list[str]]()
    others = (name for name in hub.names() if name not in choice.names() and name[:MAKER_CHARACTERS] in starts)
    for name in others:
        if same := shapes.get(families.geometry(hub.shipped_config(name))):
            twins.setdefault(same, []).append(name)
    return [
        f"{registry.listed(alike)} {'have' if len(alike) > 1 else 'has'} the shape of {name}, and run"
        f"{'' if len(alike) > 1 else 's'} alike."
        for name, alike in twins.items()
    ]


def _next(found: Sequence[tuple[str, Candidate]], on: str | None) -> list[tuple[str, Command]]:
    """How to go on from the best choice, and from what a person wants of the device."""
    where = ("--on", on) if on else ()
    if not found:
        return [("What the smallest models need", command("profile", "fit", where))]
    best = found[0][1]
    engine = ("--engine", best.prediction.engine.name)
    how = ("How to run the best", command("profile", "fit", best.name, engine, "-q", best.quant, where))
    goal = (f"What reaches {GOAL}", command("profile", "fit", where, engine, "--goal", GOAL))
    return [how, goal]


def _measure(measured: str | None) -> tuple[str, Command]:
    if measured is None or measured.startswith(UNMEASURED):
        return "To measure, in about five minutes", command("profile", "sweep")
    return "A page of what was measured", command("profile", "report", "--html", "report.html")


def _measured() -> str:
    """What the store has, in a sentence."""
    if existing_results(None) is None:
        return f"{UNMEASURED} here so far."
    from profiler.results.store import Store

    try:
        with Store.open(None, create=False) as store:
            runs = store.runs()
    except ProfileError as error:
        return f"The results cannot be read: {error.message}"
    count = sum(run.outcomes.get("ok", 0) for run in runs)
    if not count:
        return f"{UNMEASURED} here so far."
    models = list(dict.fromkeys(model for run in reversed(runs) for model in run.models))
    named = [printable(model, 40) for model in models[:MODELS_SHOWN]]
    more = len(models) - len(named)
    others = f"{more} more model{'s' * (more != 1)}"
    of_models = registry.listed([*named, *([others] if more else [])])
    last = printable(runs[-1].started_at[:10])
    return f"Measured so far: {count:,} case{'s' * (count != 1)} of {of_models}, the last on {last}."
