"""Speed × memory × quality: the cases on the Pareto frontier, and the scores behind it.

Scores come from a file with sources: ``scenarios/quality.toml``, or the user's own with ``--scores FILE``.

    [[score]]
    model = "gemma-4-e2b"             # the name in the report
    benchmark = "LiveCodeBench v6"    # scores of different benchmarks are never compared
    value = 44.0                      # higher is better
    source = "Gemma 4 model card"     # where it was published; required
    quants = ["bf16", "fp32", "fp16"] # the quantizations that it applies to; these three are the default

A score does not apply to other quantizations, because their loss of quality has to be measured, too.
"""

from __future__ import annotations

import difflib
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from profiler import registry
from profiler.cost import engines
from profiler.errors import ProfileError
from profiler.foreign import BadContent, Budget, read_bytes, toml_value
from profiler.models import hub
from profiler.quality import published
from profiler.quants.base import DTYPE_BYTES
from profiler.run.request import OF_CHECKPOINTS
from profiler.show.columns import plain
from profiler.show.report import charts, divergence, selection
from profiler.show.report.blocks import MAX_ROWS, Chart, Figures, Head, PageBlock, Section, Table, muted
from profiler.show.report.selection import CaseResult, MachineRows
from profiler.units import GIB, UNKNOWN, bytes_text, printable, significant

PLAIN = tuple(DTYPE_BYTES)
REQUIRED, OPTIONAL = ("model", "benchmark", "value", "source"), ("quants",)
BUDGET = Budget(depth=8)  # a list of scores
NAME_LENGTH = 80

TITLE, SHORT = "Which quantizations are worth their memory?", "Worth their memory"
MAX_POINTS = 60  # cases drawn that are not on the frontier
MAX_NAMED = 4  # entries in the line about names that match nothing
ENOUGH = 2  # models with a score that quality needs for a comparison


@dataclass(frozen=True, slots=True)
class Score:
    """One published score; texts are ``plain``."""

    model: str
    benchmark: str
    value: float
    source: str
    quants: tuple[str, ...]


def shipped() -> tuple[Score, ...]:
    """The scores that come with the profiler."""
    text = (resources.files("profiler.scenarios") / "quality.toml").read_text(encoding="utf-8")
    return parse(text, "quality.toml")


def read(path: Path) -> tuple[Score, ...]:
    """The scores in a user's file. ProfileError if it cannot be read or an entry is invalid."""
    shown = printable(path)
    try:
        return parse(read_bytes(path, BUDGET.nbytes).decode("utf-8-sig"), shown)
    except UnicodeDecodeError:
        raise ProfileError(f"{shown} is not UTF-8 text") from None


def parse(text: str, name: str) -> tuple[Score, ...]:
    """The scores in a TOML text; ``name`` is for error messages."""
    try:
        content = toml_value(text, BUDGET)
    except BadContent as error:
        raise ProfileError(f"{name} is not TOML: {printable(error)}") from None
    entries = content.pop("score", [])
    published.parse(content.pop("kl", []), name)  # what quantizations lose, which the report does not use
    if content:
        raise ProfileError(
            f"{name} holds {printable(next(iter(content)), 40)}, but only [[score]] and [[kl]] are allowed", _form()
        )
    if not isinstance(entries, list):
        raise ProfileError(f"{name}: score is not a list; each entry begins with [[score]]", _form())
    scores = tuple(_score(entry, f"{name}, entry {number}") for number, entry in enumerate(entries, 1))
    _refuse_contradictions(scores, name)
    return scores


def _refuse_contradictions(scores: tuple[Score, ...], name: str) -> None:
    """ProfileError if two entries give a model different scores for one benchmark and quantization."""
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
            hint = "Name the publication of the score." if field == "source" else _form()
            raise ProfileError(f"{where}: {field} {why}", hint)
    value, quants = entry["value"], entry.get("quants", list(PLAIN))
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ProfileError(f"{where}: value is not a number", _form())
    if not isinstance(quants, list) or not quants or not all(isinstance(quant, str) for quant in quants):
        raise ProfileError(f"{where}: quants is not a list of quantizations", _form())
    texts = [
        plain(entry[name], NAME_LENGTH if name != "source" else 300) for name in ("model", "benchmark", "source")
    ]
    return Score(texts[0], texts[1], float(value), texts[2], tuple(quants))


def _form() -> str:
    return f"An entry has {', '.join(REQUIRED)}, and optionally quants."


def unmatched(scores: Sequence[Score], machines: Sequence[MachineRows]) -> str | None:
    """A line about entries whose model or quantization exists neither in the report nor elsewhere; None without any.

    Names must be spelled exactly as in the report. Models of the catalog and quantizations that are not part of the
    report are no mistakes.
    """
    models = {*hub.names(), *(model for machine in machines for model in machine.models)}
    quants = {*registry.names("quants"), *(quant for name in engines.names() for quant in engines.find(name).quants)}
    quants |= {group.case.quant for machine in machines for group in machine.groups}
    wrong = []
    for number, score in enumerate(scores, 1):
        if score.model not in models:
            wrong.append(f"entry {number}, model {score.model}{_meant(score.model, models)}")
        wrong += [
            f"entry {number}, quantization {plain(quant, 40)}{_meant(quant, quants)}"
            for quant in score.quants
            if quant not in quants and not OF_CHECKPOINTS.fullmatch(quant)
        ]
    if not wrong:
        return None
    more = f"; and {len(wrong) - MAX_NAMED} more" if len(wrong) > MAX_NAMED else ""
    return f"--scores: names that match nothing in the report or the catalog: {'; '.join(wrong[:MAX_NAMED])}{more}"


def _meant(name: str, known: Iterable[str]) -> str:
    """A known name that ``name`` probably means, for a message."""
    spelled = {each.casefold().replace("_", "-"): each for each in sorted(known)}
    near = difflib.get_close_matches(name.casefold().replace("_", "-"), spelled, n=1, cutoff=0.6)
    return f" (did you mean {spelled[near[0]]}?)" if near else ""


@dataclass(frozen=True, slots=True)
class FrontierCase:
    """A case with its speed, memory and quality, which is None without a score."""

    result: CaseResult
    tps: float
    nbytes: int
    quality: float | None

    def beaten_by(self, other: FrontierCase, judged: bool) -> bool:
        """Whether ``other`` is better in some respect and worse in none; ``judged``: including quality."""
        mine, theirs = [self.tps, -self.nbytes], [other.tps, -other.nbytes]
        if judged:
            mine.append(self.quality or 0)
            theirs.append(other.quality or 0)
        return theirs != mine and all(b >= a for a, b in zip(mine, theirs, strict=True))


def section(machines: Sequence[MachineRows], scores: Sequence[Score]) -> Section:
    """Charts and a table for each machine."""
    blocks: list[PageBlock] = []
    figures: list[Chart] = []
    used: dict[Score, None] = {}
    for machine in machines:
        where = f" · {machine.title}" if len(machines) > 1 else ""
        benchmark, mine = _scores(machine, scores)
        context, rated = _rated(machine, mine)
        if not rated:
            blocks.append(muted(f"No frontier{where}: no case has both a comparable decode rate and a peak."))
            continue
        at = f"at {charts.count_text(context)} tokens{where}"
        judged = [one for one in rated if one.quality is not None]
        best = _by_model(rated)
        figures.append(_memory(rated, best, machine.models, at))
        if len({one.result.model for one in judged}) >= ENOUGH:
            used |= dict.fromkeys(mine.values())
            figures.append(_quality(judged, benchmark, machine.models, at))
        blocks.append(_table(best, benchmark if judged else None, at))
        blocks.append(muted(_said(judged, benchmark, mine, where)))
        if machine.scored:
            blocks.append(muted(f"What each quantization loses{where} is in the section {divergence.SHORT}."))
    shown: list[PageBlock] = [Figures(tuple(figures))] if figures else []
    return Section("frontier", TITLE, (*shown, *blocks, *_sources(used)), SHORT)


def _scores(machine: MachineRows, scores: Sequence[Score]) -> tuple[str, dict[tuple[str, str], Score]]:
    """The benchmark with scores for most models of a machine, and these scores by model and quantization."""
    known = [score for score in scores if score.model in machine.models]
    counts = Counter(benchmark for benchmark, _ in {(score.benchmark, score.model) for score in known})
    if not counts:
        return "", {}
    benchmark = min(counts, key=lambda name: (-counts[name], name))
    return benchmark, {
        (score.model, quant): score for score in known if score.benchmark == benchmark for quant in score.quants
    }


def _rated(machine: MachineRows, scores: dict[tuple[str, str], Score]) -> tuple[int, list[FrontierCase]]:
    """Comparable cases: the smallest batch, and the context that most of them have."""
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
    """For each model, the quantizations that no other one beats in both speed and memory, fastest first."""
    models: dict[str, list[FrontierCase]] = {}
    for one in rated:
        models.setdefault(one.result.model, []).append(one)
    return [one for formats in models.values() for one in _unbeaten(formats, False)]


def _unbeaten(rated: Sequence[FrontierCase], judged: bool) -> list[FrontierCase]:
    """The cases that no other beats, fastest first."""
    ordered = sorted(rated, key=lambda one: (-one.tps, one.nbytes))
    return [one for one in ordered if not any(one.beaten_by(other, judged) for other in ordered)]


def _memory(rated: Sequence[FrontierCase], best: Sequence[FrontierCase], models: Sequence[str], at: str) -> Chart:
    points = _points(_drawn(rated, best), best, lambda one: one.nbytes / GIB)
    spec = charts.frontier(points, "decode t/s", "peak, GiB", _palette(points, models))
    return Chart(f"Speed and memory {at}", spec)


def _quality(judged: Sequence[FrontierCase], benchmark: str, models: Sequence[str], at: str) -> Chart:
    best = _unbeaten(judged, True)
    points = _points(_drawn(judged, best), best, lambda one: one.quality)
    spec = charts.frontier(points, "decode t/s", benchmark, _palette(points, models), zero=False)
    return Chart(f"Speed and quality {at}", spec)


def _drawn(rated: Sequence[FrontierCase], best: Sequence[FrontierCase]) -> list[FrontierCase]:
    chosen = {id(one) for one in best}
    others = [one for one in rated if id(one) not in chosen]
    return [*best, *others[:: max(1, -(-len(others) // MAX_POINTS))]]


def _points(rated: Sequence[FrontierCase], best: Sequence[FrontierCase], up: Any) -> list[charts.Mark]:
    chosen = {id(one) for one in best}
    return [
        charts.Mark(
            one.tps,
            up(one),
            one.result.model,
            f"{selection.case(one.result)}: {selection.rate(one.result.decode)} t/s, {bytes_text(one.nbytes)}",
            pale=id(one) not in chosen,
            keys=one.result.keys,
            label=one.result.group.settings if id(one) in chosen else "",
        )
        for one in rated
    ]


def _palette(points: Sequence[charts.Mark], models: Sequence[str]) -> dict[str, int]:
    """The color of each model, the same in both charts."""
    drawn = {point.series for point in points}
    return {model: color for color, model in enumerate(models) if model in drawn}


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
        for one in best[:MAX_ROWS]
    )
    return Table(
        columns,
        rows,
        f"For each model, the quantizations that no other one beats in both speed and memory, {at}, by the medians:"
        " cases whose intervals overlap may be equally fast",
        tuple(one.result.keys for one in best[:MAX_ROWS]),
    )


def _said(judged: Sequence[FrontierCase], benchmark: str, scores: dict[tuple[str, str], Score], where: str) -> str:
    """How quality was taken into account, or why it was not."""
    if len({one.result.model for one in judged}) >= ENOUGH:
        cases = selection.several([selection.case(one.result) for one in _unbeaten(judged, True)], 6)
        return (
            f"With quality from {benchmark}, not beaten in every respect{where}: {cases}. Each maker measured its own"
            " score. The chart leaves out quantizations without a score."
        )
    if not scores:
        why = "there are no published scores of these models"
    elif judged:
        why = f"there is a score only for {judged[0].result.model}"
    else:
        why = "no comparable case has a quantization with a score"
    return (
        f"Quality is not taken into account{where}: {why}. So this compares speed and memory within each model."
        " --scores FILE adds your own scores."
    )


def _sources(used: dict[Score, None]) -> list[PageBlock]:
    if not used:
        return []
    named = dict.fromkeys((score.model, significant(score.value), score.source) for score in used)
    texts = "; ".join(f"{model} {value}: {source}" for model, value, source in named)
    return [muted(f"Sources: {texts}.")]
