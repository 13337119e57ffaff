"""Results of ``profile endpoint`` as rows: plain JSON, and a table for each model that fits 80 columns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from profiler.backends.endpoint import SLO_SHARE, Exchange, Percentiles, Users, percentiles, users
from profiler.backends.endpoint.processes import ServerUse
from profiler.run.endpoint import EndpointResult
from profiler.run.prompts import OWN
from profiler.show import output as show_output
from profiler.show.report.blocks import Head, Listing, Page, PageBlock, Section, Table, muted
from profiler.show.writers import md, table
from profiler.units import UNKNOWN, bytes_text, printable, rate_text, seconds_text, significant

SCHEMA = 1
MAX_NOTES = 5
WIDTH = 80  # if the output is not a terminal


def row(result: EndpointResult, results: Sequence[EndpointResult] = ()) -> dict[str, Any]:
    """One case as plain JSON, in seconds, tokens/s, bytes and joules; unknown is null, with a reason in ``unknown``.

    ``results``: all so far, which tell how many users a prompt allows.
    """
    server, model, summary, written = result.server, result.model, result.summary, result.prompt.written
    good = [each for each in result.exchanges if each.failure is None]
    return {
        "schema": SCHEMA,
        "backend": "endpoint",
        "server": server.kind,
        "server_version": server.version,
        "url": server.root,
        "model": model.name,
        "quant": model.quant,
        "loaded_context": model.context,
        "max_context": model.max_context,
        "file_bytes": model.file_bytes,
        "vram_bytes": model.vram_bytes,
        "load_s": _load_s(result),
        "prompt": result.prompt.name,
        "scenario": written.kind if written and written.kind != OWN else None,
        "language": written.language if written else None,
        "context": result.prompt.tokens,
        "streams": result.streams,
        "cached": result.cached,
        "asked_tokens": result.asked_tokens,
        "fixed_length": result.fixed_length,
        "outcome": result.outcome,
        "reason": result.failure,
        "requests": summary.requests,
        "failed": len(result.exchanges) - len(good),
        "wall_s": summary.wall_s if result.exchanges else None,
        "prompt_tokens": [each.usage.prompt for each in good],
        "output_tokens": [each.usage.completion for each in good],
        "reasoning_tokens": [each.usage.reasoning for each in good],
        "cached_tokens": [each.cached_tokens for each in good],
        "tokens_by": "usage" if any(each.usage.completion is not None for each in good) else None,
        "tokens_per_chunk": _percentiles(summary.tokens_per_chunk),
        "first_byte_s": _percentiles(summary.first_byte),
        "ttft_s": _percentiles(summary.ttft),
        "cold_ttft_s": result.cold_ttft_s,
        "ttft_reasoning_s": _percentiles(summary.ttft_reasoning),
        "ttft_answer_s": _percentiles(summary.ttft_answer),
        "itl_s": _percentiles(summary.itl),
        "tpot_s": _percentiles(summary.tpot),
        "e2e_s": _percentiles(summary.e2e),
        "prefill_tps": _percentiles(summary.prefill_tps),
        "decode_tps": _percentiles(summary.decode_tps),
        "slowest_stream_tps": summary.slowest_tps,
        "total_tps": summary.total_tps,
        "requests_per_s": summary.requests_per_s,
        "goodput_per_s": summary.goodput_per_s,
        "slo_met": summary.slo_met,
        "users_at_slo": _users_row(result, results),
        "characters_per_s": _percentiles(summary.characters_per_s),
        "tokens_per_1000_characters": summary.tokens_per_1k_characters,
        "server_prefill_tps": _percentiles(percentiles(_server_prefill_tps(each) for each in good)),
        "server_decode_tps": _percentiles(percentiles(each.timings.output_tps for each in good)),
        "difference_from_server": {"decode_tps": summary.server_decode, "ttft_s": summary.server_prompt},
        "client_delay_s": result.delay_s,
        **_use_row(result.use),
        "unknown": {**summary.unknown, **result.use.unknown, **_no_energy(result.use)},
        "cautions": list(result.cautions),
    }


def _use_row(use: ServerUse) -> dict[str, Any]:
    """Memory and energy of the server's processes. Energy is that of whole requests, prefill included."""
    taken = use.consumption
    return {
        "server_program": use.program,
        "host_peak_bytes": use.host_peak_bytes,
        "host_highest_bytes": use.host_highest_bytes,
        "gpu_peak_bytes": use.gpu_peak_bytes,
        "energy_j_per_token": taken and taken.per_token_j,
        "energy_j_per_request": taken and taken.joules,
        "power_w": taken and taken.watts,
        "energy_source": use.energy_source if taken else None,
        "energy_scope": use.energy_scope if taken else None,
    }


def _no_energy(use: ServerUse) -> dict[str, str]:
    return {} if use.energy_unknown is None else {"energy": use.energy_unknown}


def _server_prefill_tps(exchange: Exchange) -> float | None:
    """Tokens per second of the prefill by the server's own clock."""
    tokens, seconds = exchange.timings.prompt_tokens, exchange.timings.prompt_s
    return tokens / seconds if tokens and seconds else None


def _users_row(result: EndpointResult, results: Iterable[EndpointResult]) -> dict[str, Any] | None:
    of_model = users_at_slo(each for each in results if each.model.name == result.model.name)
    found = of_model.get(printable(result.prompt.name, 60))
    return None if found is None else {"count": found.count, "why": found.why}


def _load_s(result: EndpointResult) -> float | None:
    return None if result.warm_up is None else result.warm_up.exchange.timings.load_s


def _percentiles(value: Percentiles | None) -> dict[str, Any] | None:
    return None if value is None else {"n": value.n, "p50": value.p50, "p95": value.p95, "p99": value.p99}


def kept(result: EndpointResult) -> list[dict[str, Any]]:
    """The answers of a result as plain JSON, one object each, with server, model and prompt."""
    return [
        {
            "server": result.server.title,
            "model": result.model.name,
            "prompt": result.prompt.name,
            "streams": result.streams,
            "tokens": result.asked_tokens,
            "number": number,
            "finish": each.finish,
            "reasoning": each.reasoning,
            "answer": each.answer,
            "failure": each.failure and each.failure.words,
        }
        for number, each in enumerate(result.exchanges, start=1)
    ]


def render(results: Sequence[EndpointResult], output: str, width: int | None = None) -> str:
    """``results`` in a format of ``output.FORMATS``: a table for each model, or rows. ``width``: of the terminal."""
    if output not in ("table", "md"):
        return show_output.render([row(result, results) for result in results], dict, output)
    if not results:
        return "nothing was measured\n"
    shown = page(results)
    return md.markdown(shown, {}) if output == "md" else table.terminal(shown, width or WIDTH)


def page(results: Sequence[EndpointResult]) -> Page:
    """A section for each model, in the order of measurement."""
    server = results[0].server
    lengths = {result.asked_tokens for result in results}
    most = "up to " if any(result.prompt.written for result in results) or len(lengths) > 1 else ""
    summary = [f"{most}{max(lengths):,} tokens of answer", "greedy"]
    if results[0].cached:
        summary.append("the same prompt each time: TTFT with the prefix cache")
    sections: list[Section] = []
    for name in dict.fromkeys(result.model.name for result in results):
        here = [result for result in results if result.model.name == name]
        notes = _Notes()
        tables = [_table(group, notes) for group in _grouped(here)]
        blocks = (*tables, *_languages(here), *notes.blocks(), *_users(here))
        sections.append(Section(f"model-{len(sections)}", title(here[-1]), blocks))
    last = sections[-1]
    sections[-1] = Section(last.anchor, last.title, (*last.blocks, muted(_legend(results))))
    return Page(f"{server.title} at {printable(server.root, 60)}", tuple(summary), tuple(sections))


def _grouped(results: Iterable[EndpointResult]) -> list[list[EndpointResult]]:
    """Conversations apart from single prompts, since their tables have another column; each in its order."""
    groups: dict[str | None, list[EndpointResult]] = {}
    for result in results:
        groups.setdefault(result.prompt.conversation, []).append(result)
    return list(groups.values())


def _table(results: Sequence[EndpointResult], notes: _Notes) -> Table:
    rows = tuple(_cells(result, notes) for result in results)
    return Table(tuple(Head(head, right=head != "notes") for head in _heads(results[0])), rows)


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


def _users(results: Sequence[EndpointResult]) -> list[PageBlock]:
    """How many users each prompt allows within the limits, if several numbers of streams were tried."""
    lines = [f"{prompt}: {_users_text(found)}" for prompt, found in users_at_slo(results).items()]
    return [Listing((f"users at a time, of whose requests {SLO_SHARE:.0%} meet --slo:", *lines))] if lines else []


def users_at_slo(results: Iterable[EndpointResult]) -> dict[str, Users]:
    """For each prompt of one model that was measured with limits and at several numbers of streams."""
    met: dict[str, dict[int, float | None]] = {}
    for result in results:
        if result.slo is not None:
            met.setdefault(printable(result.prompt.name, 60), {})[result.streams] = result.summary.slo_met
    return {prompt: users(shares) for prompt, shares in met.items() if len(shares) > 1}


def _users_text(found: Users) -> str:
    return f"{'unknown' if found.count is None else found.count} ({found.why})"


def title(result: EndpointResult) -> str:
    """``gemma-3-270m · Q4_K_M · context 8,192 · loaded in 3.20 s``: the model in one line."""
    model, load = result.model, _load_s(result)
    parts = [
        printable(model.name, 60),
        model.quant,
        f"context {model.context:,}" if model.context else None,
        f"{bytes_text(model.vram_bytes)} VRAM" if model.vram_bytes else None,
        f"loaded in {seconds_text(load)}" if load else None,
    ]
    return " · ".join(part for part in parts if part)


class _Notes:
    """Notes under a table, each with its number."""

    def __init__(self) -> None:
        self._known: dict[str, int] = {}

    def marks(self, texts: Iterable[str]) -> str:
        return ",".join(str(self._known.setdefault(text, len(self._known) + 1)) for text in texts)

    def blocks(self) -> list[PageBlock]:
        shown = [f"[{number}] {printable(text, 300)}" for text, number in list(self._known.items())[:MAX_NOTES]]
        more = len(self._known) - len(shown)
        shown += [f"{more} more with -o json"] if more > 0 else []
        return [Listing(tuple(shown))] if shown else []


def _heads(result: EndpointResult) -> tuple[str, ...]:
    # 80 columns have room for one of these; JSON has them all.
    last = "cached" if result.prompt.conversation else "chars/s" if result.slo is None else "good/s"
    return ("prompt", "n", "TTFT s", "prefill", "decode", "total", "ITL ms", last, "notes")


def _cells(result: EndpointResult, notes: _Notes) -> tuple[str, ...]:
    summary = result.summary
    texts = ([result.failure] if result.failure else []) + list(result.cautions)
    if result.prompt.conversation:
        cached = percentiles(each.cached_tokens for each in result.exchanges if each.failure is None)
        last = UNKNOWN if cached is None else f"{cached.p50:,.0f}"
    else:
        last = _rate(summary.characters_per_s) if result.slo is None else rate_text(summary.goodput_per_s)
    return (
        f"{result.prompt.tokens:,}" if result.prompt.tokens else printable(result.prompt.name, 16),
        str(result.streams),
        _pair(summary.ttft, 1.0, "p95"),
        _rate(summary.prefill_tps),
        _rate(summary.decode_tps),
        rate_text(summary.total_tps),
        _pair(summary.itl, 1000.0, "p99"),
        last,
        notes.marks(texts),
    )


def _pair(value: Percentiles | None, scale: float, tail: str) -> str:
    """``12.3/15.1``: the median and a high percentile."""
    if value is None:
        return UNKNOWN
    high = value.p95 if tail == "p95" else value.p99
    return f"{significant(value.p50 * scale)}/{UNKNOWN if high is None else significant(high * scale)}"


def _rate(value: Percentiles | None) -> str:
    return rate_text(None if value is None else value.p50)


def _legend(results: Sequence[EndpointResult]) -> str:
    text = (
        "n: requests at a time. TTFT: p50/p95, ITL: p50/p99. prefill, decode and total are tokens/s by the server's "
        "own count: decode of one stream, total of all streams by wall time."
    )
    if any(result.prompt.conversation for result in results):
        text += " cached: tokens of the prompt that the server had cached."
    return f"{text} good/s: requests per second within the limits of --slo." if results[0].slo is not None else text
