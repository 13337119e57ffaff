"""What fits? A map of model × quantization × context with verdicts, which tells measured from predicted cases."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from profiler import backends
from profiler.case import Case
from profiler.cost import engines
from profiler.cost.prediction import LIMITS
from profiler.show.columns import noisy_word, plain, ttft_cell
from profiler.show.report import charts, selection
from profiler.show.report.blocks import (
    Map,
    MapCell,
    PageBlock,
    Section,
    Text,
    muted,
)
from profiler.show.report.predictions import Forecast
from profiler.show.report.selection import CaseResult, MachineRows
from profiler.units import UNKNOWN, bytes_text, significant

CONTEXTS = (2048, 8192, 32_768, 131_072)  # predicted in addition, up to the model's largest context
USUAL_QUANTS = {  # by engine, predicted in addition because people try them when a model does not fit
    "transformers": ("int8", "nf4"),
    "llama.cpp": ("q8_0", "q4_k_m"),
}
MapRows = tuple[tuple[str, tuple[MapCell, ...]], ...]
MAX_CONTEXTS = 10  # columns
MAX_MAP_ROWS = 40


def section(machines: Sequence[MachineRows], forecasts: Sequence[Forecast]) -> Section:
    """A map for each machine."""
    blocks: list[PageBlock] = []
    for machine, forecast in zip(machines, forecasts, strict=True):
        blocks += _machine(machine, forecast, len(machines) > 1)
    blocks.append(Text(_key(), muted=True, folded="How to read the map"))
    return Section("fits", "What fits?", tuple(blocks))


@dataclass(frozen=True, slots=True)
class MapLine:
    """A line of the map. ``like``: a measured case with the engine and the options of predictions; None: there are
    none.
    """

    model: str
    series: str
    quant: str
    like: Case | None

    @property
    def label(self) -> str:
        return f"{self.model} · {self.series}"


@dataclass(frozen=True, slots=True)
class MapGrid:
    """What the map of a machine shows, for readers that look for the best case in it."""

    contexts: list[int]
    lines: list[MapLine]
    results: dict[tuple[str, str, int], CaseResult]  # by model, series and context

    @classmethod
    def of(cls, machine: MachineRows, forecast: Forecast) -> MapGrid:
        """The map at the most frequent batch, without written prompts."""
        mapped = [each for each in machine.at_batch if each.case.prompt is None]
        results = {(each.model, each.series, each.case.context): each for each in mapped}
        contexts = _map_contexts(machine, sorted({context for *_, context in results}), forecast)
        lines = [line for model in machine.models for line in _map_lines(machine, model, forecast)]
        return cls(contexts, lines, results)


def _machine(machine: MachineRows, forecast: Forecast, several: bool) -> list[PageBlock]:
    grid = MapGrid.of(machine, forecast)
    rows = tuple(
        (
            line.label,
            tuple(
                _cell(grid.results.get((line.model, line.series, at)), forecast, line, at, machine.batch)
                for at in grid.contexts
            ),
        )
        for line in grid.lines[:MAX_MAP_ROWS]
    )
    where = machine.title if several else ""
    batch = f"decode t/s of {machine.batch:,} sequence{'s' * (machine.batch != 1)}"
    rows, usual = _without_usual(rows)
    caption = " · ".join(part for part in (where, batch, "~ predicted", usual) if part)
    keys = tuple((line.model, line.quant) for line in grid.lines[:MAX_MAP_ROWS])
    contexts = tuple(map(charts.count_text, grid.contexts))
    blocks: list[PageBlock] = [Map("model · quantization", contexts, rows, caption, keys)] if rows else []
    blocks += _prompts(machine, where)
    if len(grid.lines) > MAX_MAP_ROWS:
        blocks.append(muted(f"{len(grid.lines) - MAX_MAP_ROWS:,} more models and quantizations are not shown."))
    reasons: dict[str, list[str]] = {}
    for model, reason in forecast.missing.items():
        reasons.setdefault(reason, []).append(model)
    blocks += [
        muted(f"Not predicted: {selection.several(models, 6)}: {reason}.") for reason, models in reasons.items()
    ]
    return blocks


def _without_usual(rows: MapRows) -> tuple[MapRows, str]:
    """The rows without the detail that most cells share, and the sentence that replaces it."""
    details = Counter(cell.detail for _, cells in rows for cell in cells if cell.value)
    usual, count = next(iter(details.most_common(1)), ("", 0))
    if not usual or count < max(2, details.total() / 2):
        return rows, ""
    shown = tuple(
        (label, tuple(replace(cell, detail="") if cell.detail == usual else cell for cell in cells))
        for label, cells in rows
    )
    return shown, f"cells without a word: {usual}"


def _prompts(machine: MachineRows, where: str) -> list[PageBlock]:
    """A map of prompts and models, for rows of written prompts."""
    written = [result for result in machine.results if result.case.prompt is not None]
    several = len({result.case.batch for result in written}) > 1
    cells: dict[tuple[str, str], CaseResult] = {}
    keys: dict[str, charts.Keys] = {}
    for result in written:
        streams = f" · {result.case.batch:,} streams" if several else ""
        column = f"{result.model} · {result.group.settings}{streams}"
        cells.setdefault((plain(result.case.prompt, 40), column), result)
        keys.setdefault(column, result.keys)
    prompts = sorted({prompt for prompt, _ in cells})
    columns = list(keys)[:MAX_CONTEXTS]
    if not prompts:
        return []
    rows = tuple(
        (prompt, tuple(_of_prompt(cells.get((prompt, column))) for column in columns))
        for prompt in prompts[:MAX_MAP_ROWS]
    )
    rows, usual = _without_usual(rows)
    caption = " · ".join(part for part in (where, "decode t/s of one stream by prompt", usual) if part)
    found: list[PageBlock] = [
        Map("prompt", tuple(columns), rows, caption, column_keys=tuple(keys[column] for column in columns))
    ]
    if len(prompts) > MAX_MAP_ROWS:
        found.append(muted(f"{len(prompts) - MAX_MAP_ROWS:,} more prompts are not shown."))
    return found


def _of_prompt(result: CaseResult | None) -> MapCell:
    if result is None:
        return MapCell("", title="not measured")
    cell = _measured(result)
    first = ttft_cell(result.measurement) if result.ok else ""
    return replace(cell, detail="" if not first[:1].isdigit() else f"TTFT {first}")


def _map_contexts(machine: MachineRows, measured: Sequence[int], forecast: Forecast) -> list[int]:
    """The measured contexts, or a selection of many, and those that are predicted in addition."""
    longest = forecast.longest(machine.models)
    others = [context for context in CONTEXTS if context <= longest and context not in measured]
    room = max(2, MAX_CONTEXTS - len(others))
    step = max(1, -(-len(measured) // room))
    return sorted({*measured[::step], *measured[-1:], *others})


def _map_lines(machine: MachineRows, model: str, forecast: Forecast) -> list[MapLine]:
    """The lines of a model: the measured ones, then quantizations that are predicted in addition."""
    mine = [group for group in machine.groups if group.model == model and group.case.prompt is None]
    found: dict[str, MapLine] = {}
    for group in mine:
        like = group.case if predictable(group.case, forecast) else None
        known = found.setdefault(group.series, MapLine(model, group.series, plain(group.case.quant, 60), like))
        if like is None and known.like is not None:
            found[group.series] = replace(known, like=None)
    if model in forecast.shapes:
        for engine, quants in USUAL_QUANTS.items():
            alike = [group.case for group in mine if _engine_of(group.case) == engine]
            measured = {case.quant for case in alike}
            words = "" if engine == engines.DEFAULT or len({_engine_of(g.case) for g in mine}) == 1 else f" {engine}"
            for quant in quants:
                if alike and quant not in measured and f"{quant}{words}" not in found:
                    found[f"{quant}{words}"] = MapLine(model, f"{quant}{words}", quant, alike[0])
    return list(found.values())


def predictable(case: Case, forecast: Forecast) -> bool:
    """Whether predictions are for cases like this one, which is measured in the decode path of most rows."""
    return case.path == forecast.path or _engine_of(case) != engines.DEFAULT


def _engine_of(case: Case) -> str | None:
    backend = backends.of_row(case.backend)
    return None if backend is None or case.server is not None else backend.engine


def _cell(result: CaseResult | None, forecast: Forecast, line: MapLine, context: int, batch: int) -> MapCell:
    if result is not None and result.outcome != "skipped":
        return _measured(result)
    cell = _predicted(forecast, line, context, batch)
    if cell is None and result is not None:
        reason = plain(result.reason or "no reason was recorded", 300)
        return MapCell(UNKNOWN, detail="skipped", title=f"skipped: {reason}")
    longest = forecast.longest([line.model])
    beyond = f"the model has at most {longest:,} tokens of context" if longest and context > longest else ""
    return cell or MapCell("", title=beyond or "neither measured nor predicted")


def _measured(result: CaseResult) -> MapCell:
    if not result.ok:
        outcome = result.outcome
        reason = plain(result.reason or "no reason was recorded", 300)
        detail = "no · memory" if outcome == "oom" else ""
        return MapCell(outcome, "", detail, result.verdict, True, f"measured: {reason}")
    bound = result.bound
    verdict = result.verdict
    parts = ["" if verdict == "none" else verdict, bound if bound in LIMITS else ""]
    peak = f", peak {bytes_text(result.peak_bytes)}" if result.peak_bytes is not None else ""
    title = f"measured: {selection.ranged(result.decode)} t/s{peak}"
    value, span = selection.rate(result.decode), ""
    if result.decode is not None and result.decode.wide:
        value, span = f"{value}?", noisy_word(result.decode)
    return MapCell(value, span, " · ".join(part for part in parts if part), verdict, True, title)


def _predicted(forecast: Forecast, line: MapLine, context: int, batch: int) -> MapCell | None:
    found = None if line.like is None else forecast.predict(line.model, line.quant, context, batch, line.like)
    if found is None:
        return None
    word, why = found.verdict.word, found.binds
    peak = bytes_text(found.terms.peak.value)
    if found.decode is None:
        return MapCell(word, "", why, word, False, f"predicted: {found.verdict.reason}, peak {peak}")
    tps = found.decode.tps
    span = f"{significant(tps.low, 2)}–{significant(tps.high, 2)}"
    how = f"predicted ({found.decode.seconds.basis_text})"
    title = f"{how}: {significant(tps.value, 2)} t/s ({span}), peak {peak}, {found.verdict.reason}"
    return MapCell(f"~{significant(tps.value, 2)}", span, f"{word} · {why}", word, False, title)


def _key() -> str:
    limits = "; ".join(f"{word} ({means})" for word, means in LIMITS.items())
    return (
        "Decode in tokens per second. ~: predicted, and corrected by measured cases that are alike; the range below a"
        " prediction should hold nine cases in ten. Without ~: measured, in bold or in a frame where that can be"
        " shown; those with ? cannot be compared, because they are busy, too noisy or too few, as the table of rates"
        " says. fits: at least 5% and 512 MiB remain at the peak; tight: less than that; no: it needs more memory"
        " than there is."
        f" After the verdict comes what is predicted to limit decode: {limits}."
    )
