"""Speed × memory × quality: the cases that no other beats in everything, and the scores they are judged by.

Scores come from a file with sources: ``scenarios/quality.toml``, or the reader's own by ``--quality FILE``.

    [[score]]
    model = "gemma-4-e2b"             # as a report names it
    benchmark = "LiveCodeBench v6"    # scores of different benchmarks are never compared
    value = 44.0                      # higher is better
    source = "Gemma 4 model card"     # who published it; required
    quants = ["bf16", "fp32", "fp16"] # the quantizations it holds for; left out: these three, what makers publish

A score says nothing of a quantization that it was not taken in: what 4 bits lose is somebody's measurement too.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from profiler.errors import ProfileError
from profiler.foreign import BadContent, Budget, read_bytes, toml_value
from profiler.quants.base import DTYPE_BYTES
from profiler.show.columns import plain
from profiler.show.report import charts, selection
from profiler.show.report.blocks import Chart, Figures, Head, PageBlock, Section, Table, muted
from profiler.show.report.selection import CaseResult, MachineRows
from profiler.units import GIB, UNKNOWN, bytes_text, printable, significant

PLAIN = tuple(DTYPE_BYTES)
REQUIRED, OPTIONAL = ("model", "benchmark", "value", "source"), ("quants",)
BUDGET = Budget(depth=8)  # a list of scores
NAME_LENGTH = 80

TITLE, SHORT = "Which quantizations are worth their memory?", "Worth their memory"
MOST_POINTS = 60  # drawn of the cases that are beaten
MOST_ROWS = 60
ENOUGH = 2  # models with a score, for quality to order anything


@dataclass(frozen=True, slots=True)
class Score:
    """One published figure; texts are ``plain``."""

    model: str
    benchmark: str
    value: float
    source: str
    quants: tuple[str, ...]


def shipped() -> tuple[Score, ...]:
    """Of the file that comes with the profiler."""
    text = (resources.files("profiler.scenarios") / "quality.toml").read_text(encoding="utf-8")
    return parse(text, "quality.toml")


def read(path: Path) -> tuple[Score, ...]:
    """Of a file of the reader's. ProfileError where it cannot be read or an entry is not as above."""
    shown = printable(path)
    try:
        return parse(read_bytes(path, BUDGET.nbytes).decode("utf-8-sig"), shown)
    except UnicodeDecodeError:
        raise ProfileError(f"{shown} is not UTF-8 text") from None


def parse(text: str, name: str) -> tuple[Score, ...]:
    """Scores of a TOML text; ``name`` is for the error."""
    try:
        content = toml_value(text, BUDGET)
    except BadContent as error:
        raise ProfileError(f"{name} is not TOML: {printable(error)}") from None
    entries = content.pop("score", [])
    if content:
        raise ProfileError(f"{name} holds {printable(next(iter(content)), 40)}, and only [[score]] is read", _form())
    if not isinstance(entries, list):
        raise ProfileError(f"{name}: score is no list; each entry begins with [[score]]", _form())
    scores = tuple(_score(entry, f"{name}, entry {number}") for number, entry in enumerate(entries, 1))
    _refuse_contradictions(scores, name)
    return scores


def _refuse_contradictions(scores: tuple[Score, ...], name: str) -> None:
    """ProfileError where two entries give one model different scores of one benchmark in one quantization."""
    known: dict[tuple[str, str, str], tuple[int, float]] = {}
    for number, score in enumerate(scores, 1):
        for quant in score.quants:
            first, value = known.setdefault((score.model, score.benchmark, quant), (number, score.value))
            if value != score.value:
                raise ProfileError(
                    f"{name}: entries {first} and {number} give {score.model} in {quant} two scores of "
                    f"{score.benchmark}: {value:g} and {score.value:g}",
                    "Keep one of them.",
                )


def _score(entry: Any, where: str) -> Score:
    if not isinstance(entry, Mapping):
        raise ProfileError(f"{where} is not a [[score]] table", _form())
    missing = [name for name in REQUIRED if name not in entry]
    unknown = [printable(name, 40) for name in entry if name not in (*REQUIRED, *OPTIONAL)]
    if missing or unknown:
        what = f"has no {missing[0]}" if missing else f"has an unknown {unknown[0]}"
        raise ProfileError(f"{where} {what}", _form())
    for field in ("model", "benchmark", "source"):
        if not isinstance(entry[field], str) or not plain(entry[field]):
            why = "is not text" if not isinstance(entry[field], str) else "is empty"
            hint = "Name who published the figure." if field == "source" else _form()
            raise ProfileError(f"{where}: {field} {why}", hint)
    value, quants = entry["value"], entry.get("quants", list(PLAIN))
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ProfileError(f"{where}: value is no number", _form())
    if not isinstance(quants, list) or not quants or not all(isinstance(quant, str) for quant in quants):
        raise ProfileError(f"{where}: quants is not a list of quantizations", _form())
    texts = [
        plain(entry[name], NAME_LENGTH if name != "source" else 300) for name in ("model", "benchmark", "source")
    ]
    return Score(texts[0], texts[1], float(value), texts[2], tuple(quants))


def _form() -> str:
    return f"An entry has {', '.join(REQUIRED)}, and optionally quants."


@dataclass(frozen=True, slots=True)
class FrontierCase:
    """A case with what it is judged by. Quality None: no score holds for it."""

    result: CaseResult
    tps: float
    nbytes: int
    quality: float | None

    def beaten_by(self, other: FrontierCase, judged: bool) -> bool:
        """Whether ``other`` is nowhere worse and somewhere better; ``judged``: in quality too."""
        mine, theirs = [self.tps, -self.nbytes], [other.tps, -other.nbytes]
        if judged:
            mine.append(self.quality or 0)
            theirs.append(other.quality or 0)
        return theirs != mine and all(b >= a for a, b in zip(mine, theirs, strict=True))


def section(machines: Sequence[MachineRows], scores: Sequence[Score]) -> Section:
    """A chart and a table for each machine."""
    blocks: list[PageBlock] = []
    figures: list[Chart] = []
    used: dict[Score, None] = {}
    for machine in machines:
        where = f" · {machine.title}" if len(machines) > 1 else ""
        benchmark, mine = _scores(machine, scores)
        context, rated = _rated(machine, mine)
        if not rated:
            blocks.append(muted(f"No frontier{where}: no case has both a comparable decode rate and a known peak."))
            continue
        at = f"at {selection.tokens(context)} tokens{where}"
        judged = [one for one in rated if one.quality is not None]
        best = _by_model(rated)
        figures.append(_memory(rated, best, at))
        if len({one.result.model for one in judged}) >= ENOUGH:
            used |= dict.fromkeys(mine.values())
            figures.append(_quality(judged, benchmark, at))
        blocks.append(_table(best, benchmark if judged else None, at))
        blocks.append(muted(_said(judged, benchmark, mine, where)))
    shown: list[PageBlock] = [Figures(tuple(figures))] if figures else []
    return Section("frontier", TITLE, (*shown, *blocks, *_sources(used)), SHORT)


def _scores(machine: MachineRows, scores: Sequence[Score]) -> tuple[str, dict[tuple[str, str], Score]]:
    """Of the benchmark that most models of a side have a score of: by model and quantization."""
    known = [score for score in scores if score.model in machine.models]
    counts = Counter(benchmark for benchmark, _ in {(score.benchmark, score.model) for score in known})
    if not counts:
        return "", {}
    benchmark = min(counts, key=lambda name: (-counts[name], name))
    return benchmark, {
        (score.model, quant): score for score in known if score.benchmark == benchmark for quant in score.quants
    }


def _rated(machine: MachineRows, scores: dict[tuple[str, str], Score]) -> tuple[int, list[FrontierCase]]:
    """Cases that can be compared: one number of sequences, and the one context that most of them have."""
    usable = [result for result in machine.fewest if result.peak_bytes is not None and result.comparable]
    counts = Counter(result.case.context for result in usable)
    context = min(counts, key=lambda at: (-counts[at], at), default=0)
    found = []
    for result in usable:
        if result.case.context == context and result.decode_tps is not None and result.peak_bytes is not None:
            score = scores.get((result.model, result.case.quant))
            found.append(FrontierCase(result, result.decode_tps, result.peak_bytes, score.value if score else None))
    return context, found


def _by_model(rated: Sequence[FrontierCase]) -> list[FrontierCase]:
    """The quantizations of each model that no other quantization of it beats in speed and memory, fastest first."""
    models: dict[str, list[FrontierCase]] = {}
    for one in rated:
        models.setdefault(one.result.model, []).append(one)
    return [one for formats in models.values() for one in _unbeaten(formats, False)]


def _unbeaten(rated: Sequence[FrontierCase], judged: bool) -> list[FrontierCase]:
    """Those that no other beats, fastest first."""
    ordered = sorted(rated, key=lambda one: (-one.tps, one.nbytes))
    return [one for one in ordered if not any(one.beaten_by(other, judged) for other in ordered)]


def _memory(rated: Sequence[FrontierCase], best: Sequence[FrontierCase], at: str) -> Chart:
    points = _points(_drawn(rated, best), best, lambda one: one.nbytes / GIB)
    spec = charts.frontier(points, "decode t/s", "peak, GiB", _models(points))
    return Chart(f"Speed and memory {at}", spec)


def _quality(judged: Sequence[FrontierCase], benchmark: str, at: str) -> Chart:
    best = _unbeaten(judged, True)
    points = _points(_drawn(judged, best), best, lambda one: one.quality)
    spec = charts.frontier(points, "decode t/s", benchmark, _models(points), zero=False)
    return Chart(f"Speed and quality {at}", spec)


def _drawn(rated: Sequence[FrontierCase], best: Sequence[FrontierCase]) -> list[FrontierCase]:
    chosen = {id(one) for one in best}
    others = [one for one in rated if id(one) not in chosen]
    return [*best, *others[:: max(1, -(-len(others) // MOST_POINTS))]]


def _points(rated: Sequence[FrontierCase], best: Sequence[FrontierCase], up: Any) -> list[dict[str, Any]]:
    chosen = {id(one) for one in best}
    return [
        {
            "x": one.tps,
            "y": up(one),
            "series": one.result.model,
            "best": id(one) in chosen,
            "said": f"{selection.case(one.result)}: "
            f"{selection.rate(one.result.decode)} t/s, {bytes_text(one.nbytes)}",
        }
        for one in rated
    ]


def _models(points: Sequence[dict[str, Any]]) -> dict[str, int]:
    names = dict.fromkeys(point["series"] for point in points)
    return {name: place for place, name in enumerate(names)}


def _table(best: Sequence[FrontierCase], benchmark: str | None, at: str) -> Table:
    columns = (
        Head("case", right=False),
        Head("decode t/s"),
        Head("peak"),
        *((Head(benchmark),) if benchmark else ()),
    )
    rows = tuple(
        (
            selection.case(one.result),
            selection.ranged(one.result.decode),
            bytes_text(one.nbytes),
            *((UNKNOWN if one.quality is None else significant(one.quality),) if benchmark else ()),
        )
        for one in best[:MOST_ROWS]
    )
    caption = f"For each model, the quantizations that no other beats in both speed and memory, {at}"
    return Table(columns, rows, caption)


def _said(judged: Sequence[FrontierCase], benchmark: str, scores: dict[tuple[str, str], Score], where: str) -> str:
    """Whether quality counts, and why not if it does not."""
    if len({one.result.model for one in judged}) >= ENOUGH:
        cases = selection.several([selection.case(one.result) for one in _unbeaten(judged, True)], 6)
        return (
            f"With quality by {benchmark}, no other case beats these in all three{where}: {cases}. Each maker"
            " measured its own score; the chart leaves out quantizations without a score."
        )
    if not scores:
        why = "no sourced score of these models is known"
    elif judged:
        why = f"a score is known only for {judged[0].result.model}"
    else:
        why = "no comparable case is in a quantization with a score"
    return (
        f"Quality is not considered{where}: {why}. Models are not compared with each other; supply scores with"
        " --quality FILE."
    )


def _sources(used: dict[Score, None]) -> list[PageBlock]:
    if not used:
        return []
    named = dict.fromkeys((score.model, significant(score.value), score.source) for score in used)
    texts = "; ".join(f"{model} {value}: {source}" for model, value, source in named)
    return [muted(f"Sources: {texts}.")]
