"""One request to a server as it was observed, and the figures defined on it.

All clocks are the client's own, in seconds of ``time.perf_counter``. Nothing here does I/O, so every definition is
tested on stated times.

    TTFT      from the request on an open connection to the first token; first reasoning and first answer token apart
    prefill   prompt tokens that were not cached ÷ TTFT; the network and the queue are part of it
    decode    tokens after the first arrival ÷ (last − first arrival)
    TPOT      (last arrival − first) ÷ (tokens − 1)
    ITL       gaps between arrivals
    E2E       from the request to the end of the stream

A chunk is not a token: servers bundle and buffer. Tokens are counted by the server's ``usage``, never by chunks.
Without it, the model's tokenizer counts the answer where it is at hand. Otherwise every figure in tokens is
unknown, and characters per second remain. Chunks that a proxy or speculative decoding sends together are one arrival:
those of the first one were generated before the clock began.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple

from profiler.backends.base import Backend
from profiler.results.stats import percentile
from profiler.units import printable

# run/serving.py knows the engine of each server
BACKEND = Backend(predicted=False, server_command="profile endpoint URL")

FailureKind = Literal[
    "refused",
    "certificate",
    "redirect",
    "status",
    "timeout",
    "cut",
    "error",
    "broken",
    "no-stream",
    "too-large",
    "empty",
]
BUNDLED = 1.5  # tokens an arrival: from here on, gaps between arrivals say little about tokens
TOGETHER_S = 5e-4  # chunks within it are one arrival: the fastest stream of 2026 has longer gaps
DIFFERS = 0.03  # of the server's own figure: more is said
NO_USAGE = "the server sent no token counts"
BUFFERED = "the answer arrived faster than any model writes: something on the way held it back"
SLO_SHARE = 0.95  # of the requests that must meet the limits of --slo
MAX_TPS = 3e4  # of one stream; twice what the fastest hardware of 2026 is said to do
ONE_CHUNK = "the whole answer arrived at one moment"


class Arrival(NamedTuple):
    """A chunk with text in it, or several that arrived together."""

    at: float
    characters: int
    tokens: int | None = None  # of the whole answer so far, where the server counts along
    chunks: int = 1


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts as the server stated them. Absent is ``None``, which is not 0."""

    prompt: int | None = None
    completion: int | None = None
    reasoning: int | None = None
    cached: int | None = None
    by: Literal["usage", "tokenizer"] = "usage"  # who counted ``completion``
    why_unknown: str = NO_USAGE  # if ``completion`` is None


@dataclass(frozen=True, slots=True)
class ServerTimings:
    """What a server says of a request, by its own clock. ``None`` where it does not say."""

    prompt_tokens: int | None = None  # that it processed, without cached ones
    prompt_s: float | None = None
    output_tokens: int | None = None
    output_s: float | None = None
    output_tps: float | None = None
    ttft_s: float | None = None
    load_s: float | None = None
    cached_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a request gave no figures, in words that are safe to print."""

    kind: FailureKind
    words: str
    status: int | None = None
    retry_after_s: float | None = None
    hint: str | None = None

    def __str__(self) -> str:
        return self.words


@dataclass(frozen=True, slots=True)
class Exchange:
    """A request and its answer. A failed one keeps what had arrived, and is part of no rate."""

    sent_s: float
    end_s: float
    first_byte_s: float | None = None  # of the body, whatever it says
    first_reasoning_s: float | None = None
    first_answer_s: float | None = None
    arrivals: tuple[Arrival, ...] = ()
    answer: str = ""
    reasoning: str = ""
    finish: str | None = None
    usage: Usage = Usage()
    timings: ServerTimings = ServerTimings()
    runtime: str | None = None  # what ran the model and its version, where the server says so
    failure: Failure | None = None

    @property
    def cached_tokens(self) -> int | None:
        """Tokens of the prompt that the server had cached, by its usage or else its timings."""
        return self.usage.cached if self.usage.cached is not None else self.timings.cached_tokens

    @property
    def first_token_s(self) -> float | None:
        return self.arrivals[0].at if self.arrivals else None


@dataclass(frozen=True, slots=True)
class ExchangeFigures:
    """The figures of one request that succeeded. ``unknown`` has the reason for each that is ``None``."""

    first_byte_s: float | None
    ttft_s: float | None  # to the first token of either kind
    ttft_reasoning_s: float | None
    ttft_answer_s: float | None
    e2e_s: float
    prefill_tps: float | None
    decode_tps: float | None
    tpot_s: float | None
    gaps_s: tuple[float, ...]
    characters_per_s: float | None
    prompt_tokens: int | None
    output_tokens: int | None
    tokens_per_chunk: float | None  # chunks that arrived together are one
    prefill_tokens: int | None  # that were processed before the first token: not those in the cache
    decode_s: float | None  # from the first arrival to the last
    decode_tokens: float | None  # that arrived in it
    unknown: Mapping[str, str]


def figures(exchange: Exchange, cached: bool = False) -> ExchangeFigures:
    """The figures of ``exchange``; ``cached``: its prompt was sent before, so an unknown part of it is cached."""
    unknown: dict[str, str] = {}
    arrivals, tokens = joined(exchange.arrivals), exchange.usage.completion
    ttft = _since(exchange.sent_s, exchange.first_token_s)
    span = arrivals[-1].at - arrivals[0].at if len(arrivals) > 1 else None
    if not span:
        unknown["decode_tps"] = unknown["characters_per_s"] = ONE_CHUNK
    if tokens is None:
        unknown |= dict.fromkeys(("decode_tps", "tpot_s", "output_tokens"), exchange.usage.why_unknown)
    after = _tokens_after_first(arrivals, tokens)
    if span and (after if after is not None else len(arrivals)) / span > MAX_TPS:
        span = None
        unknown |= dict.fromkeys(("decode_tps", "characters_per_s", "tpot_s"), BUFFERED)
    processed = _processed(exchange, cached, unknown)
    return ExchangeFigures(
        first_byte_s=_since(exchange.sent_s, exchange.first_byte_s),
        ttft_s=ttft,
        ttft_reasoning_s=_since(exchange.sent_s, exchange.first_reasoning_s),
        ttft_answer_s=_since(exchange.sent_s, exchange.first_answer_s),
        e2e_s=exchange.end_s - exchange.sent_s,
        prefill_tps=_ratio(processed, ttft),
        decode_tps=_ratio(after, span),
        tpot_s=_ratio(span, tokens - 1 if tokens else None),
        gaps_s=tuple(after.at - before.at for before, after in pairwise(arrivals)),
        characters_per_s=_ratio(sum(arrival.characters for arrival in arrivals[1:]), span),
        prompt_tokens=exchange.usage.prompt,
        output_tokens=tokens,
        tokens_per_chunk=_ratio(tokens, len(arrivals)),
        prefill_tokens=processed,
        decode_s=span,
        decode_tokens=after,
        unknown=unknown,
    )


def _processed(exchange: Exchange, cached: bool, unknown: dict[str, str]) -> int | None:
    """The tokens of the prompt that were not in the cache."""
    prompt, known = exchange.usage.prompt, exchange.cached_tokens
    if prompt is None:
        unknown["prefill_tps"] = NO_USAGE
        return None
    if known is None and cached:
        unknown["prefill_tps"] = "the server does not say how much of the prompt was cached"
        return None
    processed = prompt - (known or 0)
    if processed <= 0:
        unknown["prefill_tps"] = "the whole prompt was cached"
        return None
    return processed


def joined(arrivals: Sequence[Arrival]) -> list[Arrival]:
    """Arrivals with the chunks that came within ``TOGETHER_S`` as one."""
    found: list[Arrival] = []
    for each in arrivals:
        if found and each.at - found[-1].at < TOGETHER_S:
            at, characters, tokens, chunks = found[-1]
            counted = each.tokens if each.tokens is not None else tokens
            found[-1] = Arrival(at, characters + each.characters, counted, chunks + each.chunks)
        else:
            found.append(each)
    return found


def _tokens_after_first(arrivals: Sequence[Arrival], tokens: int | None) -> float | None:
    """Tokens that came after the first arrival.

    Exact where the server counts along, or where chunks and tokens are as many (but for an end token without text).
    Else the first arrival has its share of the tokens by its characters. The last tokens may have no text, as an end
    token or a part of a character, and are then generated after the last arrival.
    """
    if tokens is None or len(arrivals) < 2:
        return None
    first, last, chunks = arrivals[0], arrivals[-1], sum(each.chunks for each in arrivals)
    if first.tokens is not None and last.tokens is not None and 0 < first.tokens < last.tokens <= tokens:
        return last.tokens - first.tokens
    if abs(tokens - chunks) <= 1:
        return chunks - first.chunks
    characters = sum(arrival.characters for arrival in arrivals)
    return tokens * (1 - first.characters / characters)


def _since(start: float, end: float | None) -> float | None:
    return None if end is None else end - start


def _ratio(above: float | None, below: float | None) -> float | None:
    return above / below if above is not None and below is not None and below > 0 and above >= 0 else None


# Many requests


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Percentiles of ``n`` values; ``None`` if less than one value is expected beyond it: p95 takes 20, p99 100."""

    n: int
    p50: float
    p95: float | None
    p99: float | None


def percentiles(values: Iterable[float | None]) -> Percentiles | None:
    """Percentiles of the values that are known; None of none."""
    known = sorted(value for value in values if value is not None)
    if not known:
        return None
    tails = (percentile(known, at) if len(known) >= round(1 / (1 - at)) else None for at in (0.95, 0.99))
    return Percentiles(len(known), percentile(known, 0.5), *tails)


@dataclass(frozen=True, slots=True)
class Slo:
    """Limits in seconds that a request must meet to count in the goodput. ``itl`` is of its median gap."""

    ttft_s: float | None = None
    itl_s: float | None = None
    e2e_s: float | None = None

    def met(self, each: ExchangeFigures) -> bool:
        """Whether a request met every limit. One whose figure is unknown did not."""
        gap = percentiles(each.gaps_s)
        pairs = (
            (self.ttft_s, each.ttft_s),
            (self.itl_s, None if gap is None else gap.p50),
            (self.e2e_s, each.e2e_s),
        )
        return all(limit is None or (value is not None and value <= limit) for limit, value in pairs)


def parse_slo(text: str) -> Slo:
    """``ttft=2s,itl=100ms,e2e=1m``. Raises ValueError."""
    found: dict[str, float] = {}
    for part in text.split(","):
        name, _, value = part.strip().partition("=")
        match = re.fullmatch(r"(\d{1,6}(?:\.\d{1,6})?)\s*(ms|s|m)", value.strip().lower())
        if name.strip().lower() not in ("ttft", "itl", "e2e") or match is None or not float(match[1]):
            raise ValueError(f"{printable(part, 40)!r} is not a limit such as ttft=2s, itl=100ms or e2e=1m")
        found[f"{name.strip().lower()}_s"] = float(match[1]) * {"ms": 1e-3, "s": 1.0, "m": 60.0}[match[2]]
    return Slo(**found)


@dataclass(frozen=True, slots=True)
class LoadSummary:
    """The requests of one case. Totals come from wall time, never from a rate times the number of streams."""

    requests: int  # that succeeded
    wall_s: float  # from the first request to the last end
    first_byte: Percentiles | None
    ttft: Percentiles | None  # to the first token, whether of reasoning or of the answer
    ttft_reasoning: Percentiles | None
    ttft_answer: Percentiles | None
    tokens_per_chunk: Percentiles | None
    itl: Percentiles | None
    e2e: Percentiles | None
    tpot: Percentiles | None
    prefill_tps: Percentiles | None
    decode_tps: Percentiles | None  # of a stream
    slowest_tps: float | None  # the slowest stream's decode rate
    characters_per_s: Percentiles | None
    total_tps: float | None  # output tokens of all streams ÷ wall time
    requests_per_s: float | None
    goodput_per_s: float | None
    slo_met: float | None  # share of all requests, failed ones too, that meet every limit; None: it cannot be told
    tokens_per_1k_characters: float | None
    server_decode: float | None  # ours ÷ the server's − 1, median; None where the server does not say
    server_prompt: float | None
    unknown: Mapping[str, str]


def summarize(exchanges: Sequence[Exchange], cached: bool = False, slo: Slo | None = None) -> LoadSummary:
    """The summary of the requests that succeeded. Failed ones are part of no figure but the wall time."""
    good = [(each, figures(each, cached)) for each in exchanges if each.failure is None]
    own = [each for _, each in good]
    wall = max((e.end_s for e in exchanges), default=0.0) - min((e.sent_s for e in exchanges), default=0.0)
    output = [each.output_tokens for each in own]
    tokens = None if not own or None in output else sum(filter(None, output))
    characters = sum(len(each.answer) + len(each.reasoning) for each, _ in good)
    rates = percentiles(each.decode_tps for each in own)
    return LoadSummary(
        requests=len(own),
        wall_s=wall,
        first_byte=percentiles(each.first_byte_s for each in own),
        ttft=percentiles(each.ttft_s for each in own),
        ttft_reasoning=percentiles(each.ttft_reasoning_s for each in own),
        ttft_answer=percentiles(each.ttft_answer_s for each in own),
        tokens_per_chunk=percentiles(each.tokens_per_chunk for each in own),
        itl=percentiles(gap for each in own for gap in each.gaps_s),
        e2e=percentiles(each.e2e_s for each in own),
        tpot=percentiles(each.tpot_s for each in own),
        prefill_tps=percentiles(each.prefill_tps for each in own),
        decode_tps=rates,
        slowest_tps=min((each.decode_tps for each in own if each.decode_tps), default=None),
        characters_per_s=percentiles(each.characters_per_s for each in own),
        total_tps=_ratio(tokens, wall),
        requests_per_s=_ratio(len(own) or None, wall),
        goodput_per_s=_ratio(sum(map(slo.met, own)), wall) if slo else None,
        slo_met=_slo_met(own, len(exchanges), slo),
        tokens_per_1k_characters=_ratio(tokens and 1000 * tokens, characters),
        server_decode=_difference((f.decode_tps, e.timings.output_tps) for e, f in good),
        server_prompt=_difference((f.ttft_s, _server_ttft(e.timings)) for e, f in good),
        unknown={name: why for each in own for name, why in each.unknown.items()},
    )


def _slo_met(own: Sequence[ExchangeFigures], requests: int, slo: Slo | None) -> float | None:
    untold = slo is not None and slo.itl_s is not None and own and not any(each.gaps_s for each in own)
    return None if slo is None or untold else _ratio(sum(map(slo.met, own)), requests)


def first_failure(exchanges: Sequence[Exchange], asked: int = 1) -> tuple[str | None, str | None]:
    """The first failure in words and its hint, with the share of failed requests; ``asked``: to be sent."""
    if not exchanges:
        return "no conversation came this far", None
    failed = [each.failure for each in exchanges if each.failure is not None]
    if not failed:
        return None, None
    share = f"{len(failed)} of {len(exchanges)} requests failed: " if len(exchanges) > 1 else ""
    unsent = f" ({asked - len(exchanges):,} more were not sent)" if len(exchanges) < asked else ""
    return f"{share}{failed[0].words}{unsent}", failed[0].hint


@dataclass(frozen=True, slots=True)
class Users:
    """How many may ask at a time so that requests meet the limits; None if it cannot be told."""

    count: int | None
    why: str


def users(met: Mapping[int, float | None]) -> Users:
    """The largest number of streams at which ``SLO_SHARE`` of the requests meet the limits.

    ``met``: the share that does, for each number of streams that was tried; None: unknown.
    """
    tried = sorted(met)
    good = [count for count in tried if (met[count] or 0.0) >= SLO_SHARE]
    if not good:
        if unknown := [count for count in tried if met[count] is None]:
            return Users(None, f"whether the limits are met at {unknown[0]} at a time is unknown")
        why = f"{tried[0]} at a time: {met[tried[0]]:.0%} of the requests meet the limits"
        return Users(0, why) if tried[0] == 1 else Users(None, f"{why}, and fewer were not tried")
    most = good[-1]
    missed = [count for count in tried if count < most and count not in good]
    if most == tried[-1]:
        why = "or more: no larger number was tried"
    else:
        after = tried[tried.index(most) + 1]
        share = met[after]
        why = f"at {after}, " + ("it is unknown" if share is None else f"{share:.0%} of the requests meet the limits")
    return Users(most, f"{why}; at {missed[0]}, fewer requests than at {most} did" if missed else why)


def _server_ttft(timings: ServerTimings) -> float | None:
    """The server's own TTFT, or what it is made of. Ollama looks for the model at every request, which takes time."""
    if timings.ttft_s is not None or timings.prompt_s is None:
        return timings.ttft_s
    return timings.prompt_s + (timings.load_s or 0.0)


def _difference(pairs: Iterable[tuple[float | None, float | None]]) -> float | None:
    known = [ours / theirs - 1 for ours, theirs in pairs if ours and theirs and math.isfinite(theirs)]
    middle = percentiles(known)
    return None if middle is None else middle.p50
