"""The output of ``profile fit``: rows as JSON, a table with notes, and a map of model × quantization and context."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from profiler import console
from profiler.cost.engines.base import Serving
from profiler.cost.interval import Interval
from profiler.cost.machine import Machine
from profiler.cost.prediction import LIMITS, Goal, PredictedPhase, Prediction
from profiler.cost.speculation import Speculation
from profiler.registry import listed
from profiler.run.fit import FitPrediction, FitResult
from profiler.run.goal import answer, context_text
from profiler.shell import Command
from profiler.show import goal as said
from profiler.show import output as show_output
from profiler.units import UNKNOWN, bytes_text, printable, rate_text, seconds_text, significant

T = TypeVar("T")
SHOWN_COMMANDS = 1  # of each kind below the table: how to run the first case, and how to check it
MIN_NOTES = 1  # below a table that fills the screen
MAX_CASES_NAMED = 3  # cases or models that a note names
# What a terminal that is too narrow drops, the first first. Context and batch go only if all rows have the same.
DROPPED = ("basis", "cache", "max batch", "weights", "prefill t/s", "max context", "in host memory")
FEWER_DROPPED = ("limited by", "verdict")
LETTERS = {
    "bandwidth": "B",
    "compute": "C",
    "launches": "L",
    "experts": "E",
    "memory": "·",
    "host memory": "H",
}


def render(
    result: FitResult, goal: Goal | None, output: str, mapped: bool = False, most_notes: int | None = None
) -> str:
    """The predictions in a format of ``output.FORMATS``; ``mapped``: as a map, where that is a format for people.
    ``most_notes``: below a table; None: all of them.
    """
    found = result.predictions
    if output not in ("table", "md"):
        return show_output.render([row(each, goal) for each in found], dict, output)
    if not found:
        lines = _wrapped([said.unmet(result, goal) if goal else "nothing to show", *commands(result)], output)
        return "".join(f"{line}\n" for line in lines)
    return _map(result, output) if mapped else _table(said.first(result, goal), goal, output, most_notes)


def _table(result: FitResult, goal: Goal | None, output: str, most_notes: int | None) -> str:
    parts = []
    for title, here in _places(result.predictions):
        offloads = any(each.prediction.host_bytes for each in here)

        def cells(each: show_output.JsonRow, offloads: bool = offloads) -> dict[str, str]:
            return _cells(each, offloads)

        rows = [row(each, goal) for each in here]
        alike = [name for name in ("batch", "context") if len({each[name] for each in rows}) == 1]
        drop = (*DROPPED, *alike[:1], *FEWER_DROPPED, *alike[1:])
        parts += [f"{line}\n" for line in _wrapped([title], output)]
        parts += ["\n", show_output.render(rows, cells, output, drop), "\n"]
    below = _below(result, most_notes, output, used="".join(parts).count("\n"))
    return "".join([*parts, *(f"{line}\n" for line in below)])


def _below(result: FitResult, most_notes: int | None, output: str, used: int) -> list[str]:
    """Notes and commands. If there are ``most_notes``, as many as fit the screen with the ``used`` lines above."""
    width, height = console.size()
    on_screen = output == "table" and console.width() is not None
    while True:
        lines = _wrapped([*notes(result, most_notes), *commands(result)], output)
        needed = used + sum(-(-max(1, len(line)) // width) for line in lines)
        if most_notes is None or most_notes <= MIN_NOTES or not on_screen or needed < height:
            return lines
        most_notes -= 1


def _wrapped(lines: Sequence[str], output: str) -> list[str]:
    return show_output.wrapped(lines, console.width() if output == "table" else None)


def row(each: FitPrediction, goal: Goal | None = None) -> dict[str, Any]:
    """One prediction as plain JSON. Bytes, seconds, tokens per second, joules; unknown is null."""
    prediction = each.prediction
    request, terms, machine = prediction.request, prediction.terms, prediction.machine
    check, serving = each.verify, each.serve
    content = {
        "model": each.model,
        "parameters": each.parameters,
        "engine": prediction.engine.name,
        "engine_version": prediction.engine.version,
        "device": machine.target.title,
        "devices": machine.target.count,
        "split": machine.split if machine.target.count > 1 else None,
        "quant": request.quant,
        "context": request.context,
        "batch": request.batch,
        "kv": request.kv or prediction.engine.default_kv,
        "mtp": _drafts(each.speculation),
        "path": request.path if len(prediction.engine.paths) > 1 else None,
        "stored": _stored(each),
        "verdict": prediction.verdict.word,
        "reason": prediction.verdict.reason,
        "usable_bytes": prediction.verdict.usable_bytes,
        "headroom_bytes": prediction.verdict.headroom_bytes,
        "offloaded_bytes": prediction.host_bytes,
        "weights_bytes": interval(terms.weights),
        "repacked_bytes": interval(terms.repacked),
        "cache_bytes": interval(terms.cache),
        "buffers_bytes": interval(terms.buffers),
        "framework_bytes": interval(terms.framework),
        "peak_bytes": interval(terms.peak),
        "host_bytes": interval(terms.host),
        "peak_phase": terms.peak_phase,
        "peak_reason": terms.reason,
        "largest_context": each.largest_context,
        "largest_batch": each.largest_batch,
        "prefill": _phase(prediction.prefill),
        "decode": _phase(prediction.decode),
        "ttft_s": interval(prediction.ttft_s),
        "token_j": interval(prediction.token_j),
        "binds": prediction.binds,
        "basis": prediction.basis,
        "cautions": list(each.cautions),
        "verify": None if check is None else str(check),
        "verify_blanks": {} if check is None else dict(check.blanks),
        "serve": None if serving is None else str(serving.command),
        "serve_blanks": {} if serving is None else dict(serving.command.blanks),
        "serve_settings": {} if serving is None else dict(serving.settings),
    }
    loss = {"kl": None if each.loss is None else each.loss.row()} if goal and goal.kl is not None else {}
    return content | ({"goal": answer(goal, prediction, each.loss)} if goal else {}) | loss


def _drafts(found: Speculation | None) -> dict[str, Any] | None:
    """What ``--mtp`` and ``--acceptance`` mean; null without them."""
    if found is None:
        return None
    return {"drafted": found.drafted, "acceptance": found.acceptance, "tokens_per_step": found.tokens_per_step}


def _stored(each: FitPrediction) -> dict[str, Any] | None:
    """How the checkpoint is stored; null if neither headers nor config say."""
    found = each.checkpoint_format
    if found is None:
        return None
    return {"quant": found.quant, "bytes": found.nbytes, "from": "headers" if found.from_headers else "config"}


def interval(value: Interval | None) -> dict[str, Any] | None:
    """Value, bounds and basis."""
    return None if value is None else value.to_json()


def _phase(phase: PredictedPhase | None) -> dict[str, Any] | None:
    if phase is None:
        return None
    return {
        "tokens": phase.tokens,
        "seconds": interval(phase.seconds),
        "tps": interval(phase.tps),
        "binds": phase.binds,
    }


def _cells(row: show_output.JsonRow, offloads: bool) -> dict[str, str]:
    """The cells of a table row. What is offloaded counts for ``in host memory``, not for the device's columns."""
    offloaded = max(0, -row["headroom_bytes"]) if row["offloaded_bytes"] else 0  # on the fullest device
    host = {"in host memory": bytes_text(row["offloaded_bytes"]) if offloaded else UNKNOWN} if offloads else {}
    cells = {
        "model": printable(row["model"], 40),
        "quant": row["quant"],
        "context": f"{row['context']:,}",
        "batch": f"{row['batch']:,}",
        "verdict": row["verdict"],
        "weights": bytes_text(row["weights_bytes"]["value"] - offloaded),
        "cache": bytes_text(row["cache_bytes"]["value"]),
        "peak": bytes_text(row["peak_bytes"]["value"] - offloaded),
        **host,
        "max context": _most(row["largest_context"]),
        "max batch": _most(row["largest_batch"]),
        "prefill t/s": _rate(row["prefill"]),
        "decode t/s": _rate(row["decode"]),
        "TTFT": UNKNOWN if row["ttft_s"] is None else seconds_text(row["ttft_s"]["value"]),
        "limited by": row["binds"],
        "basis": row["basis"] if row["decode"] else UNKNOWN,
    }
    kl = {"KL, nats": significant(row["kl"]["value"], 2) if row["kl"] else UNKNOWN} if "kl" in row else {}
    return cells | kl | ({"goal": row["goal"]} if "goal" in row else {})


def _most(value: int) -> str:
    return f"{value:,}" if value else UNKNOWN


def _rate(phase: dict[str, Any] | None) -> str:
    if phase is None:
        return UNKNOWN
    tps = phase["tps"]
    return f"{rate_text(tps['value'])} ({significant(tps['low'], 2)}–{significant(tps['high'], 2)})"


def _places(found: Sequence[FitPrediction]) -> list[tuple[str, list[FitPrediction]]]:
    """The predictions of each machine, under its title."""
    here: dict[Machine, list[FitPrediction]] = {}
    for each in found:
        here.setdefault(each.prediction.machine, []).append(each)
    return [(place([each.prediction for each in some]), some) for some in here.values()]


def place(predictions: Sequence[Prediction]) -> str:
    """The machine, the engine, and how decode runs there: by quantization if that differs."""
    machine, engine = predictions[0].machine, predictions[0].engine
    paths: dict[str, list[str]] = {}
    for each in predictions:
        paths.setdefault(each.request.path, []).append(each.request.quant)
    (usual, _), *others = paths.items()
    also = "".join(f", {path} for {', '.join(dict.fromkeys(quants))}" for path, quants in others)
    decode = f", {usual} decode{also}" if len(engine.paths) > 1 else ""
    split, several = (f", {machine.split} split", " each") if machine.target.count > 1 else ("", "")
    several = " on the smallest" if machine.target.members else several
    ram = f", {bytes_text(machine.ram_bytes)} of host memory" if machine.ram_bytes else ""
    return (
        f"{printable(machine.target.title)}{split}, {bytes_text(machine.usable_bytes)} usable{several}{ram}"
        f" · {engine.name} {engine.version}{decode}"
    )


def each_device(prediction: Prediction) -> str:
    """For figures of the fullest of several devices."""
    return " of each device" if prediction.machine.target.count > 1 else ""


def notes(result: FitResult, most: int | None = None) -> list[str]:
    """Why these cases, what does not fit, what the figures rest on, and explanations of columns; at most ``most``."""
    found = result.predictions
    together = "all sequences together; " if any(each.prediction.request.batch > 1 for each in found) else ""
    lines = [*_sentences(result), *_problems(found)]
    if any(each.prediction.decode is not None for each in found):
        lines.append(f"t/s: {together}in parentheses, the range that should hold nine cases in ten.")
    if any(each.prediction.machine.target.count > 1 for each in found):
        lines.append("weights, cache and peak: of the fullest device; t/s: of all devices together.")
    if any(each.prediction.host_bytes for each in found):
        lines.append("weights and peak: on the device; the weights in host memory are not counted in them.")
    lines += _reclaimable(found)
    lines += _bases(found)
    cautions: dict[str, dict[str, None]] = {}
    for each in found:
        for caution in each.cautions:
            cautions.setdefault(caution, {})[printable(each.model, 40)] = None
    left_out = {caution for each in found for caution in each.geometry.cautions}  # the same for every case of a model
    ordered = sorted(cautions.items(), key=lambda pair: pair[0] in left_out)
    lines += [f"{_listed(list(models))}: {caution}." for caution, models in ordered]
    binds = dict.fromkeys(each.prediction.binds for each in found)
    lines.append("limited by: " + "; ".join(f"{word} ({LIMITS[word]})" for word in binds) + ".")
    if most is not None and len(lines) > most:
        lines[most:] = [f"{len(lines) - most} more note{'s' * (len(lines) - most > 1)}: --notes all"]
    return lines


def _sentences(result: FitResult) -> list[str]:
    return [f"{reason}." for reason in (*said.losses(result), *said.traded(result), *result.reasons)]


def _reclaimable(found: Sequence[FitPrediction]) -> list[str]:
    """What a peak includes that does not count for the verdict."""
    most = max(each.prediction.terms.repacked.value for each in found)
    if not most:
        return []
    up_to = "up to " if len(found) > 1 else ""
    return [f"peak: with {up_to}{bytes_text(most)} of the file, which do not decide the verdict: the system can take "
            "them back after repacking."]  # fmt: skip


def _problems(found: Sequence[FitPrediction]) -> list[str]:
    """Why cases do not fit well, one line for each verdict."""
    by_verdict: dict[str, list[str]] = {}
    for each in found:
        verdict = each.prediction.verdict
        if verdict.word != "fits":
            by_verdict.setdefault(verdict.word, []).append(f"{_label(each)}, {verdict.reason}")
    return [f"{word}: {'; '.join(cases[:MAX_CASES_NAMED])}{_more(cases)}." for word, cases in by_verdict.items()]


def _more(cases: Sequence[str]) -> str:
    return f"; and {len(cases) - MAX_CASES_NAMED} more" if len(cases) > MAX_CASES_NAMED else ""


def _listed(models: Sequence[str]) -> str:
    named = models[:MAX_CASES_NAMED]
    return ", ".join(named) + (f" and {len(models) - len(named)} more" if len(models) > len(named) else "")


def commands(result: FitResult) -> list[str]:
    """How to run and how to check the first cases on each machine, and where the model is faster."""
    lines = [] if result.elsewhere is None else [f"{result.elsewhere[0]}:", *command_lines(result.elsewhere[1])]
    for _, here in _places(result.predictions):
        runs = _runs(here)
        lines += runs + [line for line in _checks(here) if line not in runs]
    scoring = said.measuring(result)
    return lines if scoring is None else [*lines, f"{scoring[0]}:", *command_lines(scoring[1])]


def _runs(here: Sequence[FitPrediction]) -> list[str]:
    """How to run the first case on one machine, as predicted."""
    first = _first([(each, serving) for each in here if (serving := each.serve) is not None])
    shown = [serving for _, serving in first[:SHOWN_COMMANDS]]
    lines = [f"To run{_which(here, len(shown))}, as predicted:"] if shown else []
    return lines + [line for serving in shown for line in serving_lines(serving)]


def serving_lines(serving: Serving) -> list[str]:
    """The command of the server, and comments with the settings of other programs."""
    settings = [f"  # {program}: {words}" for program, words in serving.settings]
    return [*command_lines(serving.command), *settings]


def _checks(here: Sequence[FitPrediction]) -> list[str]:
    """The commands that measure the first cases of different models and quantizations, where one can."""
    first = _first([(each, command) for each in here if (command := each.verify) is not None])[:SHOWN_COMMANDS]
    lines = [f"To check{_which(here, len(first))}:"] if first else []
    return lines + [line for _, command in first for line in command_lines(command)]


def _first(found: Sequence[tuple[FitPrediction, T]]) -> list[tuple[FitPrediction, T]]:
    """The first of each model and quantization."""
    first: dict[tuple[str, str], tuple[FitPrediction, T]] = {}
    for each, value in found:
        first.setdefault((each.model, each.prediction.request.quant), (each, value))
    return [*first.values()]


def _which(here: Sequence[FitPrediction], shown: int) -> str:
    """What a list of commands is for, where that is not all that the table shows."""
    target = here[0].prediction.machine.target
    some = shown < sum(each.prediction.verdict.word != "no" for each in here)
    first = f" the first {shown}" if shown > 1 else " the first"
    return f"{first if some else ''}{'' if target.local else f' on {printable(target.title)}'}"


def command_lines(command: Command) -> list[str]:
    return [f"  {command}", *(f"  # {blank}: {what}" for blank, what in command.blanks.items())]


def _bases(found: Sequence[FitPrediction]) -> list[str]:
    """What the speeds rest on."""
    speeds = [each.prediction for each in found if each.prediction.decode]
    lines = [_BASIS[basis] for basis in dict.fromkeys(each.basis for each in speeds) if basis in _BASIS]
    if counts := sorted({each.decode.seconds.rows for each in speeds if each.decode and each.basis == "learned"}):
        most = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else f"{counts[0]}"
        rows = f"{most} row{'s' * (counts[-1] > 1)}"
        lines.append(f"learned: corrected by {rows} of similar cases measured here; --no-learned leaves them out.")
    priors = [each for each in found if each.prediction.decode and each.prediction.basis == "prior"]
    if lacking := dict.fromkeys(map(_lacking, priors)):
        here = [each.prediction for each in priors if each.prediction.engine.operator_counts]
        can = _OF_DEVICE in lacking and any(each.machine.target.local for each in here)
        lines.append(f"prior: we have no measurements {listed(list(lacking), 'or')}{_CALIBRATE * can}.")
    return lines


def _lacking(each: FitPrediction) -> str:
    """What no published measurement is of, for a prediction that is a prior."""
    found, stored = each.prediction, each.checkpoint_format
    quant = found.request.quant
    if found.host_bytes:
        return "with weights in host memory"
    if found.request.mtp:
        return "of multi-token prediction"
    as_stored = stored if stored is not None and stored.quant == quant else None
    if not found.engine.timed(quant, as_stored, found.machine.target):
        return f"of {quant} in this engine"
    return _OF_DEVICE


def _label(each: FitPrediction) -> str:
    request = each.prediction.request
    return f"{printable(each.model, 40)} {request.quant} c={request.context} b={request.batch}"


_OF_DEVICE = "of this engine on such a device"
_BASIS = {
    "fitted": "fitted: from published measurements of this engine (benchmarks/accuracy.md).",
    "calibrated": "calibrated: from measured ceilings of this device.",
}
_CALIBRATE = "; for this machine, profile calibrate provides them"


def _map(result: FitResult, output: str) -> str:
    found = result.predictions
    parts = []
    for title, here in _places(found):
        parts += [f"{line}\n" for line in _wrapped([title], output)]
        parts.append(f"\n{show_output.render(_lines(here), dict, output, ['batch'] * _same_batch(here))}\n")
    used = dict.fromkeys(each.prediction.binds for each in found)
    legend = [f"{LETTERS[word]}: {word} ({LIMITS[word]})" for word in used if word != "memory"]
    legend += ["+: a tight fit"] * any(each.prediction.verdict.word == "tight" for each in found)
    legend += [f"{LETTERS['memory']}: {LIMITS['memory']}"] * ("memory" in used)
    words = f"Each cell: decode t/s and what limits it. {'; '.join(legend)}"
    return "".join([*parts, *(f"{line}\n" for line in _wrapped([*_sentences(result), words], output))])


def _same_batch(found: Sequence[FitPrediction]) -> bool:
    return len({each.prediction.request.batch for each in found}) == 1


def _lines(found: Sequence[FitPrediction]) -> list[dict[str, str]]:
    contexts = sorted({each.prediction.request.context for each in found})
    lines: dict[tuple[str, str, int], dict[str, str]] = {}
    for each in found:
        request = each.prediction.request
        line = lines.setdefault(
            (each.model, request.quant, request.batch),
            {"model": each.model, "quant": request.quant, "batch": str(request.batch)}
            | {context_text(context): "" for context in contexts},
        )
        line[context_text(request.context)] = _cell(each)
    return list(lines.values())


def _cell(each: FitPrediction) -> str:
    prediction = each.prediction
    letter = LETTERS[prediction.binds]
    if prediction.decode is None:
        return letter
    return (
        f"{significant(prediction.decode.tps.value, 2)} {letter}{'+' if prediction.verdict.word == 'tight' else ''}"
    )
