"""The output of ``profile compare``: a line per figure of each case, then missing cases and a summary.

``benchstat`` shows the same comparison in the layout of Go's benchstat (golang.org/x/perf/cmd/benchstat). Unlike
there, p is that of Welch's t test on logarithms (``results/comparison.py``) and not of the Mann-Whitney test, which
cannot give a p below 0.1 for three repetitions in each run, the usual number in a sweep.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

from profiler import console
from profiler.results import stats
from profiler.results.comparison import CONFIDENCE, ComparedCase, Comparison, Ratio, too_noisy
from profiler.results.measurement import PHASES, Measurement, Phase
from profiler.results.redact import redact
from profiler.results.tasks import TaskComparison
from profiler.show import output as show_output
from profiler.show.columns import (
    BUSY,
    TOO_NOISY,
    context_cell,
    figure,
    noisy_text,
    noisy_word,
    options_text,
    plain,
    quality_cell,
)
from profiler.units import UNKNOWN, bytes_text, rate_text, significant

FORMATS = (*show_output.FORMATS, "benchstat")
ALL_LISTED = 200  # with more cases, a table lists only those that differ
MANY = 20  # cases of which one is expected to differ by chance
CASES_NAMED = 12  # missing cases that a table lists before "and n more"
WORDS = {
    "rate": ("slower", "faster"),
    "bytes": ("less", "more"),
    "kl": ("less", "more"),
    "tasks": ("fewer", "more"),
}
LEGEND = (
    "B ÷ A: ratio of the medians. interval: 95%, by Welch's t on the logarithms of the repetitions, including"
    " process-to-process variation. faster, slower: the interval excludes 1. too noisy: the repetitions differ too"
    " much to compare; too few: there are two; busy: other processes held the CPU. Two runs at"
    " different times can differ by more than this; profile gate detects regressions."
)
WIDTH = 110  # of sentences, unless the terminal is narrower
KL_LEGEND = (
    "KL, nats: its interval is that of other texts of the same kinds. It has a ratio only if both rows have the same"
    " texts, window, definition and reference."
)
REUSED = (
    "{same:,} of {all:,} cases have the same row in A and B, because a run reused it. profile sweep --fresh measures"
    " again."
)
NARROW = "Process-to-process variation is unknown for {rows:,} of {all:,} rates: their intervals are too narrow."

NAME_LENGTH = 60
ALPHA = 0.05  # benchstat's own default


def render(found: Comparison, names: tuple[str, str], output: str) -> str:
    """The comparison in a format of ``FORMATS``, including the newline. ``names`` say what A and B are."""
    if output == "benchstat":
        return benchstat(found, names)
    if output not in ("table", "md"):
        content = [_clean(row, output) for row in rows(found)]
        return show_output.render(content, dict, output)
    lines = [f"A {plain(names[0])}", f"B {plain(names[1])}"]
    if found.differences:
        lines += ["A and B were measured under different conditions, which also affect the ratios:"]
        lines += [f"  {plain(difference)}" for difference in found.differences]
    pairs = found.pairs if len(found.pairs) <= ALL_LISTED else [pair for pair in found.pairs if _differs(pair)]
    table = [cells for pair in pairs for cells in _lines(pair)]
    if table:
        lines += ["", *(_markdown(table) if output == "md" else _aligned(table))]
    if len(pairs) < len(found.pairs):
        lines += ["", f"{len(found.pairs) - len(pairs):,} cases without a difference are omitted; -o csv has them"]
    width = min(WIDTH, console.width() or WIDTH)
    return "\n".join([*lines, *_missing(found), *show_output.wrapped(_summary(found), width)]) + "\n"


def rows(found: Comparison) -> Iterator[dict[str, Any]]:
    """A row for each figure of each pair, and one for each case that is missing or failed in A or B."""
    for pair in found.pairs:
        yield from (_row(pair, name, ratio) for name, ratio in _figures(pair))
        yield from (_of_tasks(pair, found) for found in (pair.tasks,) if found is not None)
    for a, b in found.failed:
        yield _empty(a, a.outcome, b.outcome)
    for row in found.only_a:
        yield _empty(row, row.outcome, None)
    for row in found.only_b:
        yield _empty(row, None, row.outcome)


def _figures(pair: ComparedCase) -> Iterator[tuple[str, Ratio]]:
    """Name and ratio of each figure that both rows have."""
    yield from ((f"{phase}_tps", ratio) for phase, ratio in pair.rates.items())
    if pair.total is not None:
        yield "total_tps", pair.total
    if pair.peak is not None:
        yield "peak_bytes", pair.peak
    if pair.kl is not None:
        yield "kl", pair.kl


def _differs(pair: ComparedCase) -> bool:
    return (
        any(ratio.significant and not too_noisy(pair.a, pair.b, phase) for phase, ratio in pair.rates.items())
        or (pair.peak is not None and pair.peak.a != pair.peak.b)
        or (pair.kl is not None and pair.kl.significant is True)
        or (pair.tasks is not None and pair.tasks.significant)
    )


def _row(pair: ComparedCase, name: str, ratio: Ratio) -> dict[str, Any]:
    said = {"figure": name, "a": ratio.a, "b": ratio.b, "ratio": ratio.value, "low": ratio.low, "high": ratio.high}
    sure = {"p": ratio.p, "significant": ratio.significant, "n_a": ratio.n[0], "n_b": ratio.n[1]}
    return _case(pair.a) | said | sure | {"outcome_a": "ok", "outcome_b": "ok"}


def _of_tasks(pair: ComparedCase, found: TaskComparison) -> dict[str, Any]:
    said = {"figure": "tasks_pass_rate", "a": found.a, "b": found.b, "ratio": found.b / found.a if found.a else None}
    sure = {"p": found.p, "significant": found.significant, "n_a": found.count, "n_b": found.count}
    return _case(pair.a) | said | {"low": None, "high": None} | sure | {"outcome_a": "ok", "outcome_b": "ok"}


def _empty(row: Measurement, outcome_a: str | None, outcome_b: str | None) -> dict[str, Any]:
    nothing = dict.fromkeys(("figure", "a", "b", "ratio", "low", "high", "p", "significant", "n_a", "n_b"))
    return _case(row) | nothing | {"outcome_a": outcome_a, "outcome_b": outcome_b}


def _case(row: Measurement) -> dict[str, Any]:
    case = row.case
    named = {
        name: getattr(case, name)
        for name in ("model", "quant", "context", "batch", "steps", "device", "path", "options")
    }
    return {"key": case.key, **named}


def _clean(row: dict[str, Any], output: str) -> dict[str, Any]:
    """The row with secrets redacted; ``output.render`` guards the cells of a CSV file."""
    safe = plain if output == "csv" else redacted
    return {name: safe(value) if isinstance(value, str) else value for name, value in row.items()}


redacted = lru_cache(redact)  # cached, because the many rows of a run share few names

HEADER = ("model", "quant", "context", "batch", "figure", "A", "B", "B ÷ A", "interval", "")

LEFT = {0, 1, 4, 9}  # text columns, left-aligned


def _lines(pair: ComparedCase) -> Iterator[tuple[str, ...]]:
    case = pair.case
    head = (_model(pair.a), plain(case.quant), context_cell(pair.a), f"{case.batch:,}")
    for phase, ratio in pair.rates.items():
        shown = (f"{phase} t/s", _rate(pair.a, phase), _rate(pair.b, phase))
        if (why := why_incomparable(pair.a, pair.b, phase)) is not None:
            yield (*head, *shown, why, "", "")
            continue
        word = {None: UNKNOWN, False: "", True: WORDS["rate"][ratio.value > 1]}[ratio.significant]
        yield (*head, *shown, figure(ratio.value, ratio.relative_half), interval_text(ratio), word)
    if (total := pair.total) is not None:
        yield (*head, "total t/s", rate_text(total.a), rate_text(total.b), significant(total.value, 4), "", "")
    if (peak := pair.peak) is not None:
        word = "" if peak.a == peak.b else WORDS["bytes"][peak.b > peak.a]
        yield (*head, "peak", bytes_text(peak.a), bytes_text(peak.b), significant(peak.value, 4), "", word)
    if (kl := pair.kl) is not None:
        word = {None: UNKNOWN, False: "", True: WORDS["kl"][kl.value > 1]}[kl.significant]
        sides = (quality_cell(row).partition(" ")[0] for row in (pair.a, pair.b))
        yield (*head, "KL, nats", *sides, figure(kl.value, kl.relative_half), interval_text(kl), word)
    if pair.tasks is not None:
        yield (*head, *_tasks(pair.tasks))


def why_incomparable(a: Measurement, b: Measurement, phase: Phase) -> str | None:
    """The word for why the rates of two rows have no ratio; None if they have one. A busy machine comes first."""
    words = [noisy_word(rate) for rate in (stats.rate(a, phase), stats.rate(b, phase)) if rate and rate.wide]
    return BUSY if BUSY in words else TOO_NOISY if TOO_NOISY in words else next(iter(words), None)


def _tasks(found: TaskComparison) -> tuple[str, ...]:
    """Pass rates of the tasks that both answered; "fewer" or "more" by McNemar's test."""
    ratio = significant(found.b / found.a, 3) if found.a else UNKNOWN
    shown = ("tasks passed", f"{found.a:.0%}", f"{found.b:.0%}", ratio)
    return (*shown, "", WORDS["tasks"][found.b > found.a] if found.significant else "")


def _model(row: Measurement) -> str:
    """The model, and the settings that only its backend has."""
    return " ".join(filter(None, [plain(row.case.model, 40), options_text(row.case)]))


def _rate(row: Measurement, phase: Phase) -> str:
    summary = stats.rate(row, phase)
    if summary is None:
        return UNKNOWN
    return noisy_text(summary) if summary.wide else figure(summary.median, summary.relative_half)


def interval_text(ratio: Ratio) -> str:
    """``0.931–1.208``."""
    if ratio.low is None or ratio.high is None:
        return ""
    return "–".join(f"{end:.3f}" if 0.1 < end < 10 else significant(end, 3) for end in (ratio.low, ratio.high))


def _aligned(table: Sequence[tuple[str, ...]]) -> list[str]:
    """Lines that fit the terminal. For ten thousand cases, tabulate would take longer than everything else."""
    columns: show_output.Columns = dict(zip(HEADER, zip(*table, strict=True), strict=True))
    alike = show_output.constant(columns, "batch", "context")
    columns = show_output.fitted(columns, console.width(), (*alike[:1], "interval", *alike[1:]))
    padded = []
    for title, cells in columns.items():
        pad = str.ljust if HEADER.index(title) in LEFT else str.rjust
        width = max(map(len, (title, *cells)))
        padded.append([pad(cell, width) for cell in (title, *cells)])
    return ["  ".join(row).rstrip() for row in zip(*padded, strict=True)]


def _markdown(table: Sequence[tuple[str, ...]]) -> list[str]:
    rule = ["---" if place in LEFT else "--:" for place in range(len(HEADER))]
    escaped = [[cell.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;") for cell in row] for row in table]
    return [f"| {' | '.join(cells)} |" for cells in (HEADER, rule, *escaped)]


def _missing(found: Comparison) -> list[str]:
    parts = (
        ("only in A", [plain(row.case.label) for row in found.only_a]),
        ("only in B", [plain(row.case.label) for row in found.only_b]),
        ("without a result", [f"{plain(a.case.label)} (A {a.outcome}, B {b.outcome})" for a, b in found.failed]),
    )
    lines: list[str] = []
    for what, labels in parts:
        if labels:
            lines += ["", f"{what}: {len(labels):,}", *(f"  {label}" for label in labels[:CASES_NAMED])]
            lines += [f"  and {len(labels) - CASES_NAMED:,} more"] if len(labels) > CASES_NAMED else []
    return lines


def _summary(found: Comparison) -> list[str]:
    """The geometric mean of each rate's ratio, how many cases differ, and how many would differ by chance."""
    lines = [""]
    for phase in PHASES:
        rated = [(pair, ratio) for pair in found.pairs if (ratio := pair.rates.get(phase)) is not None]
        reasons = [why_incomparable(pair.a, pair.b, phase) for pair, _ in rated]
        ratios = [ratio for (_, ratio), why in zip(rated, reasons, strict=True) if why is None]
        if not ratios:
            continue
        mean = math.exp(math.fsum(math.log(ratio.value) for ratio in ratios) / len(ratios))
        tested = [ratio.significant for ratio in ratios if ratio.significant is not None]
        cases = f"{len(ratios):,} case{'s' * (len(ratios) != 1)}"
        left = (f"{count:,} {why}" for why, count in Counter(filter(None, reasons)).items())
        cases += f", without {' and '.join(left)}" if len(ratios) < len(rated) else ""
        words = f"{phase}: geometric mean of B ÷ A {significant(mean, 4)}, {cases}"
        if len(tested) > 1:
            words += f", {sum(tested):,} differ"
        if len(tested) >= MANY:
            words += f"; by chance alone, about {len(tested) * (1 - CONFIDENCE):,.0f} would"
        lines.append(words)
    if len(lines) == 1:
        return []
    known = [
        stats.between(row, phase) is not None
        for pair in found.pairs
        for phase in pair.rates
        for row in (pair.a, pair.b)
    ]
    same = sum(_reused(pair) for pair in found.pairs)
    lines += [REUSED.format(same=same, all=len(found.pairs))] if same else []
    legend = [LEGEND, *([KL_LEGEND] if any(pair.kl is not None for pair in found.pairs) else [])]
    return [*lines, *legend, *([] if all(known) else [NARROW.format(rows=known.count(False), all=len(known))])]


def _reused(pair: ComparedCase) -> bool:
    """Whether both sides are one measurement. Stored repetitions and a start in UTC are copied with a reused row."""
    return (
        pair.a.started_at is not None
        and pair.a.started_at == pair.b.started_at
        and _seconds(pair.a) == _seconds(pair.b)
    )


def _seconds(row: Measurement) -> list[float]:
    return [sample.seconds for sample in row.samples]


def benchstat(found: Comparison, names: tuple[str, str]) -> str:
    """A table for each phase that A and B have; empty if there is none."""
    tables = [_table(found.pairs, phase, names) for phase in PHASES]
    return "\n".join("\n".join(lines) + "\n" for lines in tables if lines)


def _table(pairs: Sequence[ComparedCase], phase: Phase, names: tuple[str, str]) -> list[str]:
    rated = [(pair, ratio) for pair in pairs if (ratio := pair.rates.get(phase)) is not None]
    if not rated:
        return []
    cells = [
        (_name(pair), _rate_with_spread(pair.a, phase), _rate_with_spread(pair.b, phase), _change(ratio))
        for pair, ratio in rated
    ]
    if len(rated) > 1:
        cells.append(("geomean", *_geomean([ratio for _, ratio in rated])))
    unit = f"{phase} tok/s"
    titles = [plain(name, NAME_LENGTH) for name in names]
    first = max(len(row[0]) for row in cells)
    left = max(len(unit), len(titles[0]), *(len(row[1]) for row in cells))
    right = max(len(unit), *(len(row[2]) for row in cells))
    last = max(len("vs base"), *(len(row[3]) for row in cells), len(titles[1]) - right - 2)
    heading = [
        f"{'':{first}} │ {titles[0]:^{left}} │ {titles[1]:^{right + last + 2}} │",
        f"{'':{first}} │ {unit:^{left}} │ {unit:^{right}}  {'vs base':^{last}} │",
    ]
    return heading + [f"{a:{first}}   {b:>{left}}   {c:>{right}}  {d:>{last}}" for a, b, c, d in cells]


def _name(pair: ComparedCase) -> str:
    case = pair.case
    return plain(
        f"{case.model}/{case.quant}/c={case.context}/b={case.batch} {case.options}".strip().replace(" ", "_"),
        NAME_LENGTH,
    )


def _rate_with_spread(row: Measurement, phase: Phase) -> str:
    """``1.702 ± 30%``; ± ∞ for a single repetition, which has no interval."""
    summary = stats.rate(row, phase)
    assert summary is not None  # A and B have this phase
    spread = "∞" if summary.relative_half is None else f"{100 * summary.relative_half:.0f}%"
    return f"{_plain(summary.median)} ± {spread}"


def _change(ratio: Ratio) -> str:
    n = f"n={ratio.n[0]}" if ratio.n[0] == ratio.n[1] else f"n={ratio.n[0]}+{ratio.n[1]}"
    if ratio.p is None:
        return f"~ ({n})"
    change = f"{100 * (ratio.value - 1):+.2f}%" if ratio.p <= ALPHA else "~"
    return f"{change} (p={ratio.p:.3f} {n})"


def _geomean(ratios: Sequence[Ratio]) -> tuple[str, str, str]:
    a, b = (math.exp(math.fsum(map(math.log, medians)) / len(ratios)) for medians in _medians(ratios))
    return _plain(a), _plain(b), f"{100 * (b / a - 1):+.2f}%"


def _plain(value: float) -> str:
    return significant(value, 4).replace(",", "")


def _medians(ratios: Sequence[Ratio]) -> tuple[list[float], list[float]]:
    return [ratio.a for ratio in ratios], [ratio.b for ratio in ratios]
