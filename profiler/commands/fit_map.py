"""The map of `profile fit`: model × format down, context across, decode speed and what binds in each cell."""

from __future__ import annotations

from collections.abc import Sequence

from profiler.commands import fit_rows, listing
from profiler.plan.inquiry import Answer
from profiler.predict.goal import Goal
from profiler.units import significant

LETTERS = {
    "bandwidth": "B",
    "compute": "C",
    "launches": "L",
    "experts": "E",
    "memory": "·",
    "host memory": "H",
}


def render(found: Sequence[Answer], goal: Goal | None, output: str) -> str:
    """The map of ``found``; json, jsonl and csv give the rows."""
    if output not in ("table", "md"):
        return fit_rows.render(found, goal, output)
    parts = []
    for title in dict.fromkeys(fit_rows.place(answer.prediction) for answer in found):
        here = [answer for answer in found if fit_rows.place(answer.prediction) == title]
        parts.append(f"{title}\n\n{listing.render(_lines(here), dict, output)}\n")
    used = dict.fromkeys(answer.prediction.binds for answer in found)
    legend = "; ".join(f"{LETTERS[word]}: {fit_rows.KINDS[word]}" for word in used)
    return "".join(parts) + f"decode t/s, and what limits it. {legend}; +: a tight fit\n"


def _lines(found: Sequence[Answer]) -> list[dict[str, str]]:
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


def _cell(answer: Answer) -> str:
    prediction = answer.prediction
    letter = LETTERS[prediction.binds]
    if prediction.decode is None:
        return letter
    return (
        f"{significant(prediction.decode.tps.value, 2)} {letter}{'+' if prediction.verdict.word == 'tight' else ''}"
    )


def _tokens(context: int) -> str:
    return f"{context // 1024}k" if context % 1024 == 0 else f"{context:,}"
