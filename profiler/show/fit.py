"""Predictions as rows: plain JSON, a page for people, and the map of model × quantization against context."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from profiler.cost.interval import Interval
from profiler.cost.prediction import Goal, PredictedPhase, Prediction
from profiler.run.fit import FitPrediction
from profiler.show import output as show_output
from profiler.units import UNKNOWN, bytes_text, printable, rate_text, seconds_text, significant

SHOWN_VERIFY = 4  # commands under the table
KINDS = {
    "bandwidth": "reading weights and cache",
    "compute": "arithmetic",
    "launches": "starting kernels, one after the other",
    "experts": "reading experts",
    "memory": "it does not fit",
    "host memory": "reading weights from the host's memory",
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
    """``found`` in a format of ``listing.FORMATS``."""
    if output not in ("table", "md"):
        return show_output.render([row(answer, goal) for answer in found], _cells, output)
    if not found:
        return f"nothing meets {significant(goal.tps)} tok/s\n" if goal else "nothing to show\n"
    parts = []
    for title in dict.fromkeys(place(answer.prediction) for answer in found):
        here = [answer for answer in found if place(answer.prediction) == title]
        table = show_output.render([row(answer, goal) for answer in here], _cells, output)
        parts += [f"{title}\n\n", table, "\n"]
    return "".join([*parts, *(f"{line}\n" for line in notes(found))])


def row(answer: FitPrediction, goal: Goal | None = None) -> dict[str, Any]:
    """One prediction as plain JSON. Bytes, seconds, tokens per second, joules; unknown is null."""
    prediction = answer.prediction
    setting, terms, machine = prediction.setting, prediction.terms, prediction.machine
    content = {
        "model": answer.model,
        "parameters": answer.parameters,
        "engine": prediction.engine.name,
        "engine_version": prediction.engine.version,
        "device": machine.target.title,
        "split": machine.split if machine.target.count > 1 else None,
        "quant": setting.quant,
        "context": setting.context,
        "batch": setting.batch,
        "kv": setting.kv or prediction.engine.default_kv,
        "stored": _stored(answer),
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
        "largest_context": answer.largest_context,
        "largest_batch": answer.largest_batch,
        "prefill": _phase(prediction.prefill),
        "decode": _phase(prediction.decode),
        "ttft_s": interval(prediction.ttft_s),
        "token_j": interval(prediction.token_j),
        "binds": prediction.binds,
        "basis": prediction.basis,
        "cautions": list(answer.cautions),
        "verify": str(answer.verify),
        "verify_blanks": dict(answer.verify.blanks),
    }
    return content | ({"goal": goal.met(prediction)} if goal else {})


def _stored(answer: FitPrediction) -> dict[str, Any] | None:
    """How the checkpoint is stored, whatever is predicted; null where neither headers nor config tell."""
    found = answer.stored
    if found is None:
        return None
    return {"quant": found.quant, "bytes": found.nbytes, "from": "headers" if found.from_headers else "config"}


def interval(value: Interval | None) -> dict[str, Any] | None:
    """Value, bounds, and what they rest on."""
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
    """A row for people; columns that say nothing new are in the notes."""
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
    """What the columns mean, what is short, and how to check it."""
    lines = ["t/s: all sequences together; in brackets where 9 of 10 cases like it fall."]
    bases = dict.fromkeys(answer.prediction.basis for answer in found if answer.prediction.decode)
    lines += [_BASIS[basis] for basis in bases if basis in _BASIS]
    binds = dict.fromkeys(answer.prediction.binds for answer in found)
    lines.append("binds: " + "; ".join(f"{word}: {KINDS[word]}" for word in binds) + ".")
    for answer in found:
        if answer.prediction.verdict.word != "fits":
            lines.append(f"{_label(answer)}: {answer.prediction.verdict.word}, {answer.prediction.verdict.reason}.")
    cautions: dict[str, dict[str, None]] = {}
    for answer in found:
        for caution in answer.cautions:
            cautions.setdefault(caution, {})[printable(answer.model, 40)] = None
    lines += [f"{', '.join(models)}: {caution}." for caution, models in cautions.items()]
    lines += _ttft(found)
    lines.append("Check it:")
    for answer in _distinct(found)[:SHOWN_VERIFY]:
        lines.append(f"  {answer.verify}")
        lines += [f"  # {blank}: {what}" for blank, what in answer.verify.blanks.items()]
    return lines


def _ttft(found: Sequence[FitPrediction]) -> list[str]:
    """Time to the first token, where somebody would notice it."""
    slow = [a for a in found if a.prediction.ttft_s is not None and a.prediction.ttft_s.value > 1]
    if not slow:
        return []
    texts = [f"{_label(a)} {seconds_text(a.prediction.ttft_s.value)}" for a in slow if a.prediction.ttft_s]
    return [
        "Time to the first token: " + ", ".join(texts[:SHOWN_VERIFY]) + ("." if len(texts) <= SHOWN_VERIFY else ", …")
    ]


def _label(answer: FitPrediction) -> str:
    setting = answer.prediction.setting
    return f"{printable(answer.model, 40)} {setting.quant} c={setting.context} b={setting.batch}"


def _distinct(found: Sequence[FitPrediction]) -> list[FitPrediction]:
    """One of each model and format."""
    return list({(answer.model, answer.prediction.setting.quant): answer for answer in reversed(found)}.values())[
        ::-1
    ]


_BASIS = {
    "fitted": "fitted: learned from published measurements of other devices (benchmarks/accuracy.md).",
    "prior": "prior: nobody measured this engine on such a device for us; profile calibrate measures it here.",
    "calibrated": "calibrated: from what this device was measured to do.",
}


def render_map(found: Sequence[FitPrediction], goal: Goal | None, output: str) -> str:
    """The map of ``found``; json, jsonl and csv give the rows."""
    if output not in ("table", "md"):
        return render(found, goal, output)
    parts = []
    for title in dict.fromkeys(place(answer.prediction) for answer in found):
        here = [answer for answer in found if place(answer.prediction) == title]
        parts.append(f"{title}\n\n{show_output.render(_lines(here), dict, output)}\n")
    used = dict.fromkeys(answer.prediction.binds for answer in found)
    legend = "; ".join(f"{LETTERS[word]}: {KINDS[word]}" for word in used)
    return "".join(parts) + f"decode t/s, and what limits it. {legend}; +: a tight fit\n"


def _lines(found: Sequence[FitPrediction]) -> list[dict[str, str]]:
    contexts = sorted({answer.prediction.setting.context for answer in found})
    lines: dict[tuple[str, str, int], dict[str, str]] = {}
    for answer in found:
        setting = answer.prediction.setting
        line = lines.setdefault(
            (answer.model, setting.quant, setting.batch),
            {"model": answer.model, "quant": setting.quant, "batch": str(setting.batch)}
            | {_tokens(context): "" for context in contexts},
        )
        line[_tokens(setting.context)] = _cell(answer)
    return list(lines.values())


def _cell(answer: FitPrediction) -> str:
    prediction = answer.prediction
    letter = LETTERS[prediction.binds]
    if prediction.decode is None:
        return letter
    return (
        f"{significant(prediction.decode.tps.value, 2)} {letter}{'+' if prediction.verdict.word == 'tight' else ''}"
    )


def _tokens(context: int) -> str:
    return f"{context // 1024}k" if context % 1024 == 0 else f"{context:,}"
