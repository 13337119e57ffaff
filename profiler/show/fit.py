"""The output of ``profile fit``: rows as JSON, a table with notes, and a map of model × quantization and context."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from profiler.cost.interval import Interval
from profiler.cost.prediction import Goal, PredictedPhase, Prediction
from profiler.run.fit import FitPrediction
from profiler.show import output as show_output
from profiler.units import UNKNOWN, bytes_text, printable, rate_text, seconds_text, significant

SHOWN_VERIFY = 4  # commands below the table
KINDS = {
    "bandwidth": "reading weights and cache",
    "compute": "arithmetic",
    "launches": "launching kernels",
    "experts": "reading experts",
    "memory": "it does not fit",
    "host memory": "reading weights from host memory",
}

LETTERS = {
    "bandwidth": "B",
    "compute": "C",
    "launches": "L",
    "experts": "E",
    "memory": "·",
    "host memory": "H",
}


def render(found: Sequence[FitPrediction], goal: Goal | None, output: str) -> str:
    """The predictions in a format of ``output.FORMATS``."""
    if output not in ("table", "md"):
        return show_output.render([row(each, goal) for each in found], _cells, output)
    if not found:
        return f"nothing meets {significant(goal.tps)} tok/s\n" if goal else "nothing to show\n"
    parts = []
    for title in dict.fromkeys(place(each.prediction) for each in found):
        here = [each for each in found if place(each.prediction) == title]
        table = show_output.render([row(each, goal) for each in here], _cells, output)
        parts += [f"{title}\n\n", table, "\n"]
    return "".join([*parts, *(f"{line}\n" for line in notes(found))])


def row(each: FitPrediction, goal: Goal | None = None) -> dict[str, Any]:
    """One prediction as plain JSON. Bytes, seconds, tokens per second, joules; unknown is null."""
    prediction = each.prediction
    setting, terms, machine = prediction.setting, prediction.terms, prediction.machine
    content = {
        "model": each.model,
        "parameters": each.parameters,
        "engine": prediction.engine.name,
        "engine_version": prediction.engine.version,
        "device": machine.target.title,
        "split": machine.split if machine.target.count > 1 else None,
        "quant": setting.quant,
        "context": setting.context,
        "batch": setting.batch,
        "kv": setting.kv or prediction.engine.default_kv,
        "stored": _stored(each),
        "verdict": prediction.verdict.word,
        "reason": prediction.verdict.reason,
        "usable_bytes": prediction.verdict.usable_bytes,
        "headroom_bytes": prediction.verdict.headroom_bytes,
        "offloaded_bytes": prediction.host_bytes,
        "weights_bytes": interval(terms.weights),
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
        "verify": str(each.verify),
        "verify_blanks": dict(each.verify.blanks),
    }
    return content | ({"goal": goal.met(prediction)} if goal else {})


def _stored(each: FitPrediction) -> dict[str, Any] | None:
    """How the checkpoint is stored; null if neither headers nor config say."""
    found = each.stored
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


def _cells(row: show_output.JsonRow) -> dict[str, str]:
    """The cells of a table row."""
    cells = {
        "model": printable(row["model"], 40),
        "quant": row["quant"],
        "context": f"{row['context']:,}",
        "batch": f"{row['batch']:,}",
        "verdict": row["verdict"],
        "weights": bytes_text(row["weights_bytes"]["value"]),
        "cache": bytes_text(row["cache_bytes"]["value"]),
        "peak": bytes_text(row["peak_bytes"]["value"]),
        "max context": _most(row["largest_context"]),
        "max batch": _most(row["largest_batch"]),
        "prefill t/s": _rate(row["prefill"]),
        "decode t/s": _rate(row["decode"]),
        "binds": row["binds"],
        "basis": row["basis"] if row["decode"] else UNKNOWN,
    }
    return cells | ({"goal": row["goal"]} if "goal" in row else {})


def _most(value: int) -> str:
    return f"{value:,}" if value else UNKNOWN


def _rate(phase: dict[str, Any] | None) -> str:
    if phase is None:
        return UNKNOWN
    tps = phase["tps"]
    return f"{rate_text(tps['value'])} ({significant(tps['low'], 2)}–{significant(tps['high'], 2)})"


def place(prediction: Prediction) -> str:
    machine, engine = prediction.machine, prediction.engine
    split = f", {machine.split} split" if machine.target.count > 1 else ""
    each = " each" if machine.target.count > 1 else ""
    ram = f", {bytes_text(machine.ram_bytes)} of host memory" if machine.ram_bytes else ""
    return (
        f"{printable(machine.target.title)}{split}, {bytes_text(machine.usable_bytes)} usable{each}{ram}"
        f" · {engine.name} {engine.version}"
    )


def notes(found: Sequence[FitPrediction]) -> list[str]:
    """Explanations of the columns, what does not fit, and commands to verify the predictions."""
    lines = ["t/s: all sequences together; in parentheses, the range that should hold nine cases in ten."]
    bases = dict.fromkeys(each.prediction.basis for each in found if each.prediction.decode)
    lines += [_BASIS[basis] for basis in bases if basis in _BASIS]
    binds = dict.fromkeys(each.prediction.binds for each in found)
    lines.append("binds: " + "; ".join(f"{word}: {KINDS[word]}" for word in binds) + ".")
    for each in found:
        if each.prediction.verdict.word != "fits":
            lines.append(f"{_label(each)}: {each.prediction.verdict.word}, {each.prediction.verdict.reason}.")
    cautions: dict[str, dict[str, None]] = {}
    for each in found:
        for caution in each.cautions:
            cautions.setdefault(caution, {})[printable(each.model, 40)] = None
    lines += [f"{', '.join(models)}: {caution}." for caution, models in cautions.items()]
    lines += _ttft(found)
    lines.append("To verify:")
    for each in _distinct(found)[:SHOWN_VERIFY]:
        lines.append(f"  {each.verify}")
        lines += [f"  # {blank}: {what}" for blank, what in each.verify.blanks.items()]
    return lines


def _ttft(found: Sequence[FitPrediction]) -> list[str]:
    """Time to first token, where it is noticeable."""
    slow = [a for a in found if a.prediction.ttft_s is not None and a.prediction.ttft_s.value > 1]
    if not slow:
        return []
    texts = [f"{_label(a)} {seconds_text(a.prediction.ttft_s.value)}" for a in slow if a.prediction.ttft_s]
    return [
        "Time to first token: " + ", ".join(texts[:SHOWN_VERIFY]) + ("." if len(texts) <= SHOWN_VERIFY else ", …")
    ]


def _label(each: FitPrediction) -> str:
    setting = each.prediction.setting
    return f"{printable(each.model, 40)} {setting.quant} c={setting.context} b={setting.batch}"


def _distinct(found: Sequence[FitPrediction]) -> list[FitPrediction]:
    """One prediction per model and quantization."""
    return list({(each.model, each.prediction.setting.quant): each for each in reversed(found)}.values())[::-1]


_BASIS = {
    "fitted": "fitted: from published measurements of other devices (benchmarks/accuracy.md).",
    "prior": "prior: we have no measurements of this engine on such a device; profile calibrate provides them.",
    "calibrated": "calibrated: from measured ceilings of this device.",
}


def render_map(found: Sequence[FitPrediction], goal: Goal | None, output: str) -> str:
    """The predictions as a map; json, jsonl and csv give the rows."""
    if output not in ("table", "md"):
        return render(found, goal, output)
    parts = []
    for title in dict.fromkeys(place(each.prediction) for each in found):
        here = [each for each in found if place(each.prediction) == title]
        parts.append(f"{title}\n\n{show_output.render(_lines(here), dict, output)}\n")
    used = dict.fromkeys(each.prediction.binds for each in found)
    legend = "; ".join(f"{LETTERS[word]}: {KINDS[word]}" for word in used)
    return "".join(parts) + f"Each cell: decode t/s and what limits it. {legend}; +: a tight fit\n"


def _lines(found: Sequence[FitPrediction]) -> list[dict[str, str]]:
    contexts = sorted({each.prediction.setting.context for each in found})
    lines: dict[tuple[str, str, int], dict[str, str]] = {}
    for each in found:
        setting = each.prediction.setting
        line = lines.setdefault(
            (each.model, setting.quant, setting.batch),
            {"model": each.model, "quant": setting.quant, "batch": str(setting.batch)}
            | {_tokens(context): "" for context in contexts},
        )
        line[_tokens(setting.context)] = _cell(each)
    return list(lines.values())


def _cell(each: FitPrediction) -> str:
    prediction = each.prediction
    letter = LETTERS[prediction.binds]
    if prediction.decode is None:
        return letter
    return (
        f"{significant(prediction.decode.tps.value, 2)} {letter}{'+' if prediction.verdict.word == 'tight' else ''}"
    )


def _tokens(context: int) -> str:
    return f"{context // 1024}k" if context % 1024 == 0 else f"{context:,}"
