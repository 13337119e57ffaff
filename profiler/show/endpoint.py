"""Results of ``profile endpoint`` as rows: plain JSON, and a table for each model that fits 80 columns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from profiler.backends.endpoint import SLO_SHARE, Percentiles, Users, percentiles
from profiler.quality.tasks import SET
from profiler.results import stats, tasks
from profiler.results.measurement import Caution, Measurement, Phase
from profiler.run.endpoint import EndpointResult
from profiler.run.serving import MeasuredResult, load_s, users_at_slo
from profiler.run.tasks import row as tasks_row
from profiler.run.tasks import scored
from profiler.show.answers import verdict_text
from profiler.show.columns import BUSY, noisy_word
from profiler.show.notes import FIGURE, ranged
from profiler.show.output import MAX_NOTES, rendered
from profiler.show.report.blocks import Head, Listing, Page, PageBlock, Section, Table, Text, muted
from profiler.show.writers import md, table
from profiler.units import UNKNOWN, bytes_text, printable, rate_text, seconds_text, significant

PHASES: tuple[Phase, ...] = ("decode", "prefill")
WIDTH = 80  # if the output is not a terminal


def render(measured: Sequence[MeasuredResult], output: str, run: str | None = None, width: int | None = None) -> str:
    """The results in any output format: a table for each model, or their rows. ``width``: of the terminal."""
    results = [each.result for each in measured]
    if output not in ("table", "md"):
        return rendered(output, run, [each.row for each in measured])[0]
    if not results:
        return "nothing was measured\n"
    shown = page(measured)
    return md.markdown(shown, {}) if output == "md" else table.terminal(shown, width or WIDTH)


def page(measured: Sequence[MeasuredResult]) -> Page:
    """A section for each model, in the order of measurement."""
    results = [each.result for each in measured]
    server = results[0].server
    lengths = {result.asked_tokens for result in results}
    most = "up to " if any(result.prompt.written for result in results) or len(lengths) > 1 else ""
    summary = [f"{most}{max(lengths):,} tokens of answer", "greedy"]
    if results[0].cached:
        summary.append("the same prompt each time: TTFT with the prefix cache")
    sections: list[Section] = []
    for name in dict.fromkeys(result.model.name for result in results):
        mine = [each for each in measured if each.result.model.name == name]
        here = [each.result for each in mine]
        notes = _Notes()
        tables: list[PageBlock] = [_table(group, notes) for group in _grouped(mine)]
        reached = _reached(mine)
        tables += [*_solved(here), *_languages(here)]
        blocks = (*tables, *notes.blocks(), *reached, *_judged(here), *_users(here))
        sections.append(Section(f"model-{len(sections)}", title(here[-1]), blocks))
    last = sections[-1]
    more = (*_models_compared(measured), muted(_legend(measured)))
    sections[-1] = Section(last.anchor, last.title, (*last.blocks, *more))
    return Page(f"{server.title} at {printable(server.root, 60)}", tuple(summary), tuple(sections))


def _grouped(measured: Iterable[MeasuredResult]) -> list[list[MeasuredResult]]:
    """Conversations apart from single prompts, since their tables have another column; each in its order."""
    groups: dict[str | None, list[MeasuredResult]] = {}
    for each in measured:
        groups.setdefault(each.result.prompt.conversation, []).append(each)
    return list(groups.values())


def _table(measured: Sequence[MeasuredResult], notes: _Notes) -> Table:
    rows = tuple(_cells(each, notes) for each in measured)
    return Table(tuple(Head(head, right=head != "notes") for head in _heads(measured[0].result)), rows)


def _solved(results: Sequence[EndpointResult]) -> list[PageBlock]:
    """How many tasks of each kind a model solved."""
    row = next((each for each in (tasks_row(result.tasks, result.prompt) for result in results) if each), None)
    if row is None:
        return []
    scores = {**tasks.by_kind(row), "all": tasks.score(row["outcome"])}
    failed = scores["all"].failed > 0
    heads = ("tasks", "n", "passed", "pass rate (95%)", "wrong", "cut", *(["failed"] if failed else []))
    rows = tuple(
        (
            kind,
            str(each.answered + each.failed),
            str(each.passed),
            tasks.rate_text(each),
            str(each.wrong),
            str(each.cut),
            *([str(each.failed)] if failed else []),
        )
        for kind, each in scores.items()
    )
    caution = tasks.biased(printable(results[0].model.shown, 60), scores["all"])
    table = Table(tuple(Head(head, right=head != "tasks") for head in heads), rows, f"Tasks of {SET}")
    return [table, *([Text(caution)] if caution else [])]


def _models_compared(measured: Sequence[MeasuredResult]) -> list[PageBlock]:
    """For every two models, the tasks that only one of them passed."""
    found = [(each.result.model.shown, row) for each in measured if (row := (each.row.serving or {}).get("tasks"))]
    lines = tasks.pair_lines(tasks.pairs(found))
    return [Listing(tuple(lines))] if lines else []


def _languages(results: Sequence[EndpointResult]) -> list[PageBlock]:
    """How a model cuts and writes each language, if there are several."""
    written = [(result.prompt.written, result) for result in results]
    spoken = [(prompt.language, result) for prompt, result in written if prompt and prompt.language]
    if len({language for language, _ in spoken}) < 2:
        return []
    heads = ("language", "n", "prompt tokens", "tokens/1k chars", "decode", "chars/s")
    rows = []
    for language, result in spoken:
        summary = result.summary
        prompts = percentiles(each.usage.prompt for each in result.exchanges if each.failure is None)
        cells = (
            printable(language, 16),
            str(result.streams),
            UNKNOWN if prompts is None else f"{prompts.p50:,.0f}",
            UNKNOWN if (cut := summary.tokens_per_1k_characters) is None else significant(cut),
            _rate(summary.decode_tps),
            _rate(summary.characters_per_s),
        )
        rows.append(cells)
    return [Table(tuple(Head(head, right=head != "language") for head in heads), tuple(rows))]


def _reached(measured: Sequence[MeasuredResult]) -> list[PageBlock]:
    """What the rates are of the device's ceiling, and what was predicted; the reason where that is unknown."""
    good = [each for each in measured if each.row.outcome == "ok"]
    known = [each for each in good if stats.ceiling(each.row) or stats.predicted(each.row)]
    heads = ("prompt", "n", "decode", "predicted", "MBU", "prefill", "predicted", "MFU")
    rows = [
        (
            _prompt(each.result),
            str(each.result.streams),
            *_of_phase(each.row, "decode"),
            *_of_phase(each.row, "prefill"),
        )
        for each in known
    ]
    hardware = (measured[0].row.serving or {}).get("on")
    of = f"the ceiling in the data sheet of {hardware}" if hardware else "the device's measured ceiling"
    caption = f"What was predicted, and what was reached of {of} (MBU, MFU)"
    shown: Sequence[int] = range(len(heads))
    shares = [n for n in shown if heads[n] in ("MBU", "MFU")]
    if empty := all(row[n] == UNKNOWN for row in rows for n in shares):
        caption, shown = "What was predicted", [n for n in shown if n not in shares]
    table = tuple(tuple(row[n] for n in shown) for row in rows)
    blocks: list[PageBlock] = [Table(tuple(Head(heads[n]) for n in shown), table, caption)] if rows else []
    reasons = dict.fromkeys((each.row.serving or {}).get("unknown", {}).get("decode_mbu") for each in good)
    unknown = "MBU and MFU are unknown" if empty else "MBU is unknown"
    return blocks + [muted(f"{unknown}: {printable(reason, 200)}.") for reason in reasons if reason]


def _of_phase(row: Measurement, phase: Phase) -> tuple[str, str, str]:
    """Measured and predicted rate, and the share of the ceiling."""
    rate, predicted = stats.rate(row, phase), (stats.predicted(row) or {}).get(f"{phase}_tps")
    share = None if rate is None or rate.wide else (stats.ceiling(row) or {}).get(f"{phase}_fraction")
    return (
        noisy_word(rate) if rate is not None and rate.wide else rate_text(None if rate is None else rate.median),
        UNKNOWN
        if predicted is None
        else f"{rate_text(predicted['value'])} ({rate_text(predicted['low'])}–{rate_text(predicted['high'])})",
        UNKNOWN if share is None else f"{share:.0%}",
    )


def _judged(results: Sequence[EndpointResult]) -> list[PageBlock]:
    """How many answers are right, for prompts with one right answer."""
    lines = []
    for result in results:
        if (counts := result.verdicts) and result.prompt.written is not None:
            streams = f", {result.streams} at a time" if len({each.streams for each in results}) > 1 else ""
            expected = result.prompt.written.expected
            lines.append(f"{printable(result.prompt.name, 60)}{streams}: {verdict_text(counts, expected)}")
    return [Listing(tuple(lines))] if lines else []


def _users(results: Sequence[EndpointResult]) -> list[PageBlock]:
    """How many users each prompt allows within the limits, if several numbers of streams were tried."""
    lines = [f"{prompt}: {_users_text(found)}" for prompt, found in users_at_slo(results).items()]
    return [Listing((f"users at a time, of whose requests {SLO_SHARE:.0%} meet --slo:", *lines))] if lines else []


def _users_text(found: Users) -> str:
    return f"{'unknown' if found.count is None else found.count} ({found.why})"


def title(result: EndpointResult) -> str:
    """``gemma-3-270m · Q4_K_M · context 8,192 · loaded in 3.20 s``: the model in one line."""
    model, load = result.model, load_s(result)
    parts = [
        model.shown,
        model.quant,
        f"context {model.context_text}" if model.context else None,
        f"{bytes_text(model.vram_bytes)} VRAM" if model.vram_bytes else None,
        f"loaded in {seconds_text(load)}" if load else None,
    ]
    return " · ".join(part for part in parts if part)


class _Notes:
    """Notes under a table, each with its number. Cautions that differ only in figures share a note with the range."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[int, list[list[str]]]] = {}  # by text without figures: number, figures of each

    def marks(self, failure: str | None, cautions: Iterable[Caution]) -> str:
        found: list[tuple[str, list[str]]] = [(failure, [])] if failure else []
        told = (f"{each.text}; try {each.help}" if each.help else each.text for each in cautions)
        texts = [text.replace("\0", "") for text in told]
        found += [(FIGURE.sub("\0", text), FIGURE.findall(text)) for text in texts]
        numbers = []
        for words, figures in found:
            number, alike = self._known.setdefault(words, (len(self._known) + 1, []))
            alike.append(figures)
            numbers.append(number)
        return ",".join(map(str, dict.fromkeys(numbers)))

    def blocks(self) -> list[PageBlock]:
        known = [(number, ranged(words, alike)) for words, (number, alike) in self._known.items()]
        shown = [f"[{number}] {printable(text, 300)}" for number, text in known[:MAX_NOTES]]
        more = len(self._known) - len(shown)
        shown += [f"{more} more with -o json"] if more > 0 else []
        return [Listing(tuple(shown))] if shown else []


def _heads(result: EndpointResult) -> tuple[str, ...]:
    # 80 columns have room for one of these; JSON has them all.
    last = "cached" if result.prompt.conversation else "chars/s" if result.slo is None else "good/s"
    return ("prompt", "n", "TTFT s", "prefill", "decode", "total", "ITL ms", last, "notes")


def _cells(measured: MeasuredResult, notes: _Notes) -> tuple[str, ...]:
    result, row = measured.result, measured.row
    summary, withheld = result.summary, _withheld(row)
    busy = BUSY if BUSY in withheld.values() else None
    if result.prompt.conversation:
        cached = percentiles(each.cached_tokens for each in result.exchanges if each.failure is None)
        last = UNKNOWN if cached is None else f"{cached.p50:,.0f}"
    else:
        last = _rate(summary.characters_per_s) if result.slo is None else rate_text(summary.goodput_per_s)
        last = busy or last
    return (
        _prompt(result),
        str(result.streams),
        busy or _pair(summary.ttft, 1.0, "p95"),
        withheld.get("prefill") or _rate(summary.prefill_tps),
        withheld.get("decode") or _rate(summary.decode_tps),
        busy or rate_text(summary.total_tps),
        busy or _pair(summary.itl, 1000.0, "p99"),
        last,
        notes.marks(result.failure, result.cautions),
    )


def _withheld(row: Measurement) -> dict[Phase, str]:
    """The phases whose rates cannot be compared, each with the word that other tables have for it."""
    rates = {phase: stats.rate(row, phase) for phase in PHASES}
    return {phase: noisy_word(rate) for phase, rate in rates.items() if rate is not None and rate.wide}


def _prompt(result: EndpointResult) -> str:
    return f"{result.prompt.tokens:,}" if result.prompt.tokens else printable(result.prompt.name, 16)


def _pair(value: Percentiles | None, scale: float, tail: str) -> str:
    """``12.3/15.1``: the median and a high percentile."""
    if value is None:
        return UNKNOWN
    high = value.p95 if tail == "p95" else value.p99
    return f"{significant(value.p50 * scale)}/{UNKNOWN if high is None else significant(high * scale)}"


def _rate(value: Percentiles | None) -> str:
    return rate_text(None if value is None else value.p50)


def _legend(measured: Sequence[MeasuredResult]) -> str:
    results = [each.result for each in measured]
    text = (
        "n: requests at a time. TTFT: p50/p95, ITL: p50/p99. prefill, decode and total are tokens/s by the server's "
        "own count: decode of one stream, total of all streams by wall time."
    )
    words = dict.fromkeys(word for each in measured for word in _withheld(each.row).values())
    if BUSY in words:
        del words[BUSY]
        text += f" {BUSY}: measured while other processes held the CPU; runs show has the range."
    if words:
        text += f" {' or '.join(words)}: the interval exceeds ±{stats.WIDE:.0%}; runs show has the range."
    if any(result.prompt.conversation for result in results):
        text += " cached: tokens of the prompt that the server had cached."
    scores = [scored(result.tasks) for result in results if result.tasks]
    if fewest := min((each.answered for each in scores), default=0):
        reach = 100 * (tasks.wilson(fewest / 2, fewest)[1] - 0.5)
        text += (
            f" pass rate: {fewest} tasks tell a rate near 50% to ±{reach:.0f} points; two models differ only if at"
            f" least {tasks.fewest_apart()} tasks were passed by one alone."
        )
    return f"{text} good/s: requests per second within the limits of --slo." if results[0].slo is not None else text
