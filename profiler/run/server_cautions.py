"""What a reader of a server's figures must know: cautions that follow from the requests of one case.

``docs/table.md`` lists their codes. Those that follow from the repetitions, as for every backend, are in
``results/cautions.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from profiler.backends.endpoint import BUNDLED, DIFFERS, Exchange, joined
from profiler.results.measurement import Caution
from profiler.units import seconds_text

if TYPE_CHECKING:
    from profiler.run.endpoint import EndpointResult

OUR_DELAY = 0.01  # of the median gap between tokens, from which the client's own delay is a caution
RELOAD_S = 1.0  # Ollama looks for a model in 0.1 s at most where it is loaded


def cautions(result: EndpointResult) -> Iterator[Caution]:
    """The cautions of a result; none if no request succeeded."""
    summary, good = result.summary, [each for each in result.exchanges if each.failure is None]
    if not good:
        return
    yield from _counts(result, good)
    if result.cold_ttft_s is not None:
        filled = (
            f"the first request with this prompt, which filled the cache: TTFT {seconds_text(result.cold_ttft_s)}"
        )
        yield Caution("cache-filled", filled)
    if loads := [each.timings.load_s for each in good if (each.timings.load_s or 0.0) > RELOAD_S]:
        again = (
            f"the server loaded the model again in {len(loads)} of {len(good)} requests, which is part of their TTFT"
        )
        yield Caution("model-reloaded", again, "no other client on this server")
    yield from _clocks(result)
    median = summary.itl.p50 if summary.itl else None
    if median and result.delay_s and result.delay_s > OUR_DELAY * median:
        late = f"this client itself may have been late by more than {OUR_DELAY:.0%} of ITL: its machine is busy"
        yield Caution("client-late", late)
    if result.warm_up is not None and result.warm_up.dropped:
        left_out = f"the server refuses {', '.join(result.warm_up.dropped)}, which were left out"
        yield Caution("refused-fields", left_out)
    if result.warm_up is not None and result.warm_up.completions:
        yield Caution("plain-completions", "the model has no chat template: plain completions were measured")


def _clocks(result: EndpointResult) -> Iterator[Caution]:
    """Where the server's own clock says otherwise."""
    summary = result.summary
    differences = (
        ("decode", "decode rate", summary.server_decode),
        ("ttft", "time to the first token", summary.server_prompt),
    )
    for figure, name, value in differences:
        if value is not None and abs(value) > DIFFERS:
            waited = result.streams > 1 and value > 0 and figure == "ttft"
            queue = ", which leaves out the wait for other requests" if waited else ""
            text = f"our {name} is {abs(value):.0%} {'above' if value > 0 else 'below'} the server's own{queue}"
            yield Caution("server-clock", text)


def _counts(result: EndpointResult, good: Sequence[Exchange]) -> Iterator[Caution]:
    """How tokens were counted, and how many there are."""
    lengths = [count for each in good if (count := each.usage.completion) is not None]
    if len(lengths) < len(good):
        why = next(each.usage.why_unknown for each in good if each.usage.completion is None)
        yield Caution("uncounted-tokens", f"{why}: figures in tokens are unknown")
        return
    if by_tokenizer := next((each.usage for each in good if each.usage.by == "tokenizer"), None):
        text = f"{by_tokenizer.why_unknown}: answers are counted by the tokenizer in the folder of --config"
        yield Caution("tokenizer-counts", text)
    fewest, most, tokens = min(lengths), max(lengths), sum(lengths)
    if fewest != most or fewest != result.asked_tokens:
        length = f"{fewest:,}" if fewest == most else f"{fewest:,} to {most:,}"
        yield Caution("answer-length", f"answers have {length} tokens; {result.asked_tokens:,} were asked for")
    chunks, arrivals = sum(len(e.arrivals) for e in good), sum(len(joined(e.arrivals)) for e in good)
    if tokens / arrivals >= BUNDLED:
        yield Caution("bundled-tokens", f"tokens arrive {tokens / arrivals:.1f} at a time: ITL is between arrivals")
    if tokens < chunks - len(good):
        text = f"the server counted {tokens:,} tokens in {chunks:,} chunks: it may leave out reasoning"
        yield Caution("few-tokens", text)
    if result.summary.decode_tps is None and "decode_tps" in result.summary.unknown:
        yield Caution("decode-unknown", f"decode is unknown: {result.summary.unknown['decode_tps']}")
