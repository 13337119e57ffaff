"""``profile endpoint``: models × prompts × streams on a running server, each a result with its requests.

The first request of a model never counts: it loads the model, tells how many tokens a word takes, and shows which
fields of a request the server refuses. After that every stream sends one request after the other. Each prompt begins
with words that no other has, so that no prefix cache helps; ``cached`` repeats one prompt to measure that cache.
"""

from __future__ import annotations

import asyncio
import random
import re
import secrets
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from profiler import registry
from profiler.backends.endpoint import (
    BUNDLED,
    DIFFERS,
    Exchange,
    Failure,
    Slo,
    Summary,
    figures,
    percentiles,
    summarize,
)
from profiler.backends.endpoint.client import Client, Limits, core_wait_s, parse_url, undisturbed
from profiler.backends.endpoint.servers import PORTS, Model, Server, find_local, recognise
from profiler.errors import NotFound, ProfileError
from profiler.foreign import read_bytes
from profiler.run import grid
from profiler.units import printable, seconds_text

DEFAULT_CONTEXT, DEFAULT_TOKENS, DEFAULT_REPS = 512, 128, 5
WARM_UP_WORDS, FEW_WORDS, WARM_UP_TOKENS = 250, 10, 8  # two lengths tell a word from the chat template
IDLE_S = 120.0  # between two tokens
TOKENS_PER_WORD, OVERHEAD = 1.4, 40.0  # until the server has counted
SPARE_TOKENS = 256  # of a context beyond prompt and answer: the chat template, and words that take more than expected
KEPT_SHARE = 0.85  # of the tokens sent that must have been processed; calibration is good to a few percent
FEWEST_CHARACTERS = 1 / 16  # tokens a character: no tokenizer packs text that tight
NONCE_BYTES = 6  # of what makes a prompt unique
MAX_PROMPT = 1 << 22  # bytes of a file
MAX_PROMPTS = 256
MAX_REQUESTS = 20_000  # of a case: each keeps the times of its tokens
MAX_STREAMS = 512  # each takes a connection, and 1,024 open files are a usual limit
GIVE_UP = 3  # failures in a row after which a stream ends
OUR_DELAY = 0.01  # of the median gap between tokens, from which the client's own delay is a caution
OPTIONAL = ("stream_options", "seed", "temperature", "min_tokens", "ignore_eos")  # fields that a server may refuse
NO_CHAT = re.compile(r"chat.?template|does not support chat|not a chat", re.IGNORECASE)

WORDS = (
    "river market stone winter letter garden engine window harbor paper bridge morning valley signal copper "
    "teacher island summer candle machine forest mirror silver journey kitchen ladder ocean meadow pocket quarry "
    "ribbon saddle tunnel village wagon yellow anchor basket canyon dinner effort fabric gallery hammer iron "
    "jacket kettle lantern motor needle orchard pillow quiet railway shadow ticket uncle velvet weather answer "
    "button carries follows becomes remembers crosses builds repairs opens measures watches sells paints counts "
    "finds before after under beyond without between against during beside around slowly often never again "
    "together the a its every another some this that old new small bright heavy narrow early late and but while "
    "because "
)
VOCABULARY = WORDS.split()
TASK = "\n\nContinue these notes in your own words, in as much detail as you can. Do not stop early."


@dataclass(frozen=True, slots=True)
class EndpointPrompt:
    """What is sent: a text of ours of about ``tokens`` tokens or of so many words, or what somebody wrote."""

    name: str
    tokens: int | None = None
    words: int | None = None
    messages: tuple[Mapping[str, Any], ...] = ()  # in the form of OpenAI's chat completions
    tools: tuple[Mapping[str, Any], ...] = ()

    @property
    def characters(self) -> int:
        return sum(len(message.get("content") or "") for message in self.messages)

    def sent(self, unique: str, per_word: float, overhead: float) -> list[Mapping[str, Any]]:
        """The messages of one request. ``unique`` comes first, where a prefix cache begins to compare.

        ``per_word``: tokens of a word of ours; ``overhead``: of all the rest.
        """
        if self.messages:
            first, *others = self.messages
            return [{**first, "content": f"{unique}\n\n{first.get('content') or ''}"}, *others]
        words = self.words or max(4, round(((self.tokens or 0) - overhead) / per_word))
        return [{"role": "user", "content": f"{unique}\n\n{varied_text(words, unique)}{TASK}"}]


@dataclass(frozen=True, slots=True)
class EndpointRequest:
    """What ``profile endpoint`` was asked for. Raises ProfileError for what cannot be meant."""

    url: str | None = None
    models: tuple[str, ...] = ()
    contexts: tuple[str, ...] = ()
    concurrency: tuple[str, ...] = ()
    tokens: int | None = None
    reps: int | None = None
    prompt: Path | None = None
    cached: bool = False
    slo: Slo | None = None
    timeout_s: float = 600.0
    insecure: bool = False

    @property
    def streams(self) -> tuple[int, ...]:
        found = grid.counts("--concurrency", self.concurrency) if self.concurrency else (1,)
        if max(found) > MAX_STREAMS:
            raise ProfileError(f"--concurrency: {max(found):,} streams are more than {MAX_STREAMS}")
        return found

    @property
    def answer_tokens(self) -> int:
        return self.tokens or DEFAULT_TOKENS

    def prompts(self) -> tuple[EndpointPrompt, ...]:
        if self.prompt is not None:
            if self.contexts:
                raise ProfileError("-c and --prompt exclude each other: a prompt of yours has its own length")
            return read_prompts(self.prompt)
        contexts = grid.counts("-c", self.contexts) if self.contexts else (DEFAULT_CONTEXT,)
        return tuple(EndpointPrompt(f"{tokens:,} tokens", tokens) for tokens in contexts)

    def requests(self, streams: int) -> int:
        count = streams * (self.reps or DEFAULT_REPS)
        if count > MAX_REQUESTS:
            raise ProfileError(f"{count:,} requests in one case are more than {MAX_REQUESTS:,}", "Ask for fewer.")
        return count


@dataclass(frozen=True, slots=True)
class WarmUp:
    """What the first request of a model told."""

    exchange: Exchange
    per_word: float = TOKENS_PER_WORD  # tokens
    overhead: float = OVERHEAD  # tokens of a prompt without words: the chat template, the task
    dropped: tuple[str, ...] = ()  # fields that the server refused
    completions: bool = False  # there is no chat template


@dataclass(frozen=True, slots=True)
class EndpointResult:
    """One model with one prompt and one number of streams."""

    server: Server
    model: Model
    prompt: EndpointPrompt
    streams: int
    asked_tokens: int
    cached: bool
    fixed_length: bool  # whether the server was told to give exactly that many tokens
    exchanges: tuple[Exchange, ...]
    summary: Summary
    warm_up: WarmUp | None
    slo: Slo | None = None
    delay_s: float | None = None  # by which this client may have stamped a token late: p99, and waits for a core
    cold_ttft_s: float | None = None  # of the request that filled the cache
    failure: str | None = None
    hint: str | None = None
    cautions: tuple[str, ...] = field(default=())

    @property
    def outcome(self) -> str:
        return "failed" if self.failure else "ok"


def varied_text(words: int, seed: int | str) -> str:
    """``words`` words in sentences that do not repeat; the same for the same seed."""
    chance = random.Random(seed)
    sentences: list[str] = []
    while words > 0:
        length = min(words, chance.randint(6, 14))
        sentences.append(" ".join(chance.choices(VOCABULARY, k=length)).capitalize() + ".")
        words -= length
    return " ".join(sentences)


def read_prompts(path: Path) -> tuple[EndpointPrompt, ...]:
    """A text file, or the text files of a folder in the order of their names. Raises ProfileError."""
    if not path.is_dir():
        return (_read_prompt(path),)
    names = sorted(each for each in path.iterdir() if each.suffix.lower() in (".txt", ".md") and each.is_file())
    if not names:
        raise ProfileError(f"{printable(path)} holds no prompts", "Prompts are files that end in .txt or .md.")
    if len(names) > MAX_PROMPTS:
        raise ProfileError(f"{printable(path)} holds {len(names):,} prompts, more than {MAX_PROMPTS}")
    return tuple(map(_read_prompt, names))


def _read_prompt(path: Path) -> EndpointPrompt:
    try:
        text = read_bytes(path, MAX_PROMPT).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ProfileError(f"{printable(path)} is not UTF-8 text") from None
    if not text.strip():
        raise ProfileError(f"{printable(path)} is empty", "A prompt needs some text.")
    return EndpointPrompt(printable(path.name, 60), messages=({"role": "user", "content": text},))


async def choose_server(asked: EndpointRequest, limits: Limits, say: Callable[[str], None]) -> str:
    """The root of the server: the one that was named, or the only one on the usual ports. Raises ProfileError."""
    if asked.url is not None:
        return parse_url(asked.url)
    found = await find_local(limits)
    for server in found:
        say(f"found {server.title} at {server.root}: {_models(server)}")
    usual = ", ".join(f"{port} ({name})" for port, name in PORTS.items())
    if not found:
        raise ProfileError(
            "no server on the usual ports of this machine", f"Looked at {usual}. Name another: profile endpoint URL."
        )
    if len(found) > 1:
        raise ProfileError(f"{len(found)} servers run on this machine", f"Name one: profile endpoint {found[0].root}")
    return found[0].root


def _models(server: Server) -> str:
    loaded = [model.name for model in server.models if model.loaded]
    if loaded:
        return "loaded " + printable(", ".join(loaded), 120)
    return f"{len(server.models)} models, none loaded" if len(server.models) != 1 else server.models[0].name


def choose_models(server: Server, names: Iterable[str]) -> list[Model]:
    """The models that were named, or those that are loaded, or the only one. Raises ProfileError that lists them."""
    known = [model.name for model in server.models]
    chosen: dict[str, Model] = {}
    for name in grid.words(names):
        model = server.model(name) or (None if known else Model(name))
        if model is None:
            error = registry.unknown("model", name, [printable(each, 80) for each in known[:30]])
            raise NotFound(f"{server.title} has no model {printable(name, 80)}", error.hint)
        chosen[model.name] = model
    if chosen:
        return list(chosen.values())
    loaded = [model for model in server.models if model.loaded]
    if loaded or len(known) == 1:
        return loaded or list(server.models)
    listed = printable(", ".join(known), 400)
    hint = f"It has {listed}." if known else "The server lists none; ask whoever runs it for a name."
    raise ProfileError(f"{server.title} at {server.root} has no model loaded: choose one with -m", hint)


async def measure(asked: EndpointRequest, root: str, say: Callable[[str], None]) -> AsyncIterator[EndpointResult]:
    """Results as they are ready. Raises ProfileError if nothing can be asked."""
    prompts, streams = asked.prompts(), asked.streams
    for count in streams:
        asked.requests(count)
    limits = Limits(total_s=asked.timeout_s, idle_s=min(asked.timeout_s, IDLE_S))
    async with Client(root, limits, asked.insecure) as client:
        server = await recognise(client, min(asked.timeout_s, 5.0))
        if client.has_key and root.startswith("http://") and not _is_here(root):
            say("the API key is sent unencrypted: this server is not on this machine, and its URL is not https")
        for model in choose_models(server, asked.models):
            bench = _Bench(client, server, model, asked, prompts)
            async for result in bench.results(prompts, streams):
                yield result


def _is_here(root: str) -> bool:
    return re.match(r"http://(localhost|127\.[\d.]+|\[::1\])(:\d+)?(/|$)", root) is not None


class _Bench:
    """All cases of one model."""

    def __init__(
        self, client: Client, server: Server, model: Model, asked: EndpointRequest, prompts: Sequence[EndpointPrompt]
    ) -> None:
        self.client, self.server, self.model, self.asked = client, server, model, asked
        self.warm: WarmUp | None = None
        longest = max(2 * WARM_UP_WORDS, *((each.tokens or each.characters) for each in prompts))
        # One size for all cases of a model: Ollama loads the model anew for another.
        self.num_ctx = -(-(longest + asked.answer_tokens + SPARE_TOKENS) // 256) * 256
        self.nonce = secrets.token_hex(NONCE_BYTES)
        self.cold_ttft_s: float | None = None
        self.core_wait_s = 0.0  # that this program was kept from a core while the latest case ran

    async def results(
        self, prompts: Sequence[EndpointPrompt], streams: Sequence[int]
    ) -> AsyncIterator[EndpointResult]:
        self.warm = await self._warm_up()
        failed = self.warm.exchange.failure
        if failed is None:
            self.model = await self._as_loaded()
        for prompt in prompts:
            for count in streams:
                if failed is not None:
                    yield self._result(prompt, count, (), f"the first request failed: {failed}", failed.hint)
                else:
                    yield await self._case(prompt, count)

    async def _warm_up(self) -> WarmUp:
        """The first request, again with fewer fields for as long as the server refuses some."""
        dropped: list[str] = []
        completions = False
        prompt = EndpointPrompt("warm-up", words=WARM_UP_WORDS)
        while True:
            exchange = await self._send(prompt, WARM_UP_TOKENS, tuple(dropped), completions)
            failure = exchange.failure
            if failure is not None and failure.status in (400, 404, 405, 422, 500, 501):
                refused = next((n for n in OPTIONAL if n in failure.words and n not in dropped), None)
                if refused is not None:
                    dropped.append(refused)
                    continue
                chatless = failure.status in (404, 405, 501) or NO_CHAT.search(failure.words)
                if chatless and not completions and not self.server.native and "model" not in failure.words.lower():
                    completions = True
                    continue
            if failure is None and exchange.usage.prompt is None and self.server.chat.startswith("/api/v0/"):
                # LM Studio's own API has not always counted tokens in a stream (lmstudio-bug-tracker#676).
                self.server = replace(self.server, chat="/v1/chat/completions")
                continue
            warm = WarmUp(exchange, dropped=tuple(dropped), completions=completions)
            return warm if failure is not None or exchange.usage.prompt is None else await self._calibrated(warm)

    async def _calibrated(self, warm: WarmUp) -> WarmUp:
        """The same with what a word takes, by a second prompt that is short."""
        prompt = EndpointPrompt("warm-up", words=FEW_WORDS)
        short = (await self._send(prompt, 1, warm.dropped, warm.completions)).usage.prompt
        long = warm.exchange.usage.prompt or 0
        rate = long / WARM_UP_WORDS if short is None else (long - short) / (WARM_UP_WORDS - FEW_WORDS)
        rate = min(max(rate, 0.8), 8.0)
        return replace(warm, per_word=rate, overhead=max(0.0, long - rate * WARM_UP_WORDS))

    async def _as_loaded(self) -> Model:
        """The model as the server describes it now that it is loaded."""
        try:
            return (await recognise(self.client)).model(self.model.name) or self.model
        except ProfileError:
            return self.model

    async def _case(self, prompt: EndpointPrompt, streams: int) -> EndpointResult:
        """Every stream sends its requests one after the other; all begin together."""
        too_long = self._too_long(prompt)
        if too_long is not None:
            return self._result(prompt, streams, (), too_long, "Load it with a longer context.")
        left = self.asked.requests(streams)
        self.client.delays.clear()
        exchanges: list[Exchange] = []
        self.cold_ttft_s = None
        if self.asked.cached:  # the request that fills the cache does not count
            first = await self._send(prompt, self.asked.answer_tokens)
            if first.failure is not None:
                return self._result(prompt, streams, (first,), *_first_failure([first]))
            self.cold_ttft_s = figures(first).ttft_s

        async def stream() -> None:
            nonlocal left
            failures = 0
            while left > 0 and failures < GIVE_UP:
                left -= 1
                exchange = await self._send(prompt, self.asked.answer_tokens)
                exchange = self._whole(exchange, prompt)
                exchanges.append(exchange)
                failures = failures + 1 if exchange.failure is not None else 0
                if exchange.failure is not None and exchange.failure.retry_after_s is not None:
                    left = 0  # it asks to be left alone

        waited = core_wait_s()
        with undisturbed():
            await asyncio.gather(*(stream() for _ in range(streams)))
        self.core_wait_s = core_wait_s() - waited
        return self._result(prompt, streams, tuple(exchanges), *_first_failure(exchanges))

    def _too_long(self, prompt: EndpointPrompt) -> str | None:
        """Why the prompt cannot fit, where that is known before it is sent. Ollama loads what we ask for."""
        context, needed = self.model.context, (prompt.tokens or 0) + self.asked.answer_tokens
        if context is None or self.server.native or needed <= context:
            return None
        return f"the model is loaded with a context of {context:,} tokens; prompt and answer take {needed:,}"

    async def _send(
        self, prompt: EndpointPrompt, tokens: int, dropped: tuple[str, ...] | None = None, completions: bool = False
    ) -> Exchange:
        if dropped is None and self.warm is not None:
            dropped, completions = self.warm.dropped, self.warm.completions
        same = self.asked.cached and self.warm is not None
        unique = self.nonce if same else secrets.token_hex(NONCE_BYTES)
        per_word, overhead = (self.warm.per_word, self.warm.overhead) if self.warm else (TOKENS_PER_WORD, OVERHEAD)
        messages = prompt.sent(unique, per_word, overhead)
        # What somebody asked has an end of its own, and text that is forced beyond it is none.
        body = self.server.request(self.model.name, messages, tokens, self.num_ctx, fixed=not prompt.messages)
        body |= {"tools": prompt.tools} if prompt.tools else {}
        path = self.server.chat
        if completions:
            path, body = self.server.completion(body)
        return await self.client.stream(path, {name: v for name, v in body.items() if name not in (dropped or ())})

    def _whole(self, exchange: Exchange, prompt: EndpointPrompt) -> Exchange:
        """The same, as a failure if the server processed fewer tokens than the prompt has."""
        counted = exchange.usage.prompt
        if exchange.failure is not None or counted is None:
            return exchange
        if prompt.tokens is not None:
            least = KEPT_SHARE * prompt.tokens if self.warm and self.warm.exchange.usage.prompt else 0.0
        else:
            least = FEWEST_CHARACTERS * prompt.characters
        uncounted = self.server.native and self.asked.cached  # Ollama has not always counted cached tokens
        if counted >= least or uncounted:
            return exchange
        failure = Failure(
            "error",
            f"the server cut the prompt: it processed {counted:,} tokens of about {prompt.tokens or round(least):,}",
            hint="Load the model with a longer context.",
        )
        return replace(exchange, failure=failure)

    def _result(
        self,
        prompt: EndpointPrompt,
        streams: int,
        exchanges: tuple[Exchange, ...],
        failure: str | None,
        hint: str | None = None,
    ) -> EndpointResult:
        summary = summarize(exchanges, self.asked.cached, self.asked.slo)
        delays = self.client.delays
        wait_s = self.core_wait_s / len(delays) if delays else 0.0
        late = percentiles(delays)
        dropped = self.warm.dropped if self.warm is not None else ()
        result = EndpointResult(
            server=self.server,
            model=self.model,
            prompt=prompt,
            streams=streams,
            asked_tokens=self.asked.answer_tokens,
            cached=self.asked.cached,
            fixed_length=not prompt.messages and bool(set(self.server.fixed_length) - set(dropped)),
            exchanges=exchanges,
            summary=summary,
            warm_up=self.warm,
            slo=self.asked.slo,
            delay_s=None if late is None else wait_s + (late.p99 if late.p99 is not None else max(delays)),
            cold_ttft_s=self.cold_ttft_s,
            failure=failure,
            hint=hint,
        )
        return replace(result, cautions=tuple(_cautions(result)))


def _first_failure(exchanges: Sequence[Exchange]) -> tuple[str | None, str | None]:
    failed = [each.failure for each in exchanges if each.failure is not None]
    if not failed:
        return None, None
    share = f"{len(failed)} of {len(exchanges)} requests failed: " if len(exchanges) > 1 else ""
    return share + failed[0].words, failed[0].hint


def _cautions(result: EndpointResult) -> Iterable[str]:
    """What a reader of the figures must know."""
    summary, good = result.summary, [each for each in result.exchanges if each.failure is None]
    if not good:
        return
    yield from _counting(result, good)
    if result.cold_ttft_s is not None:
        yield f"the first request with this prompt, which filled the cache: TTFT {seconds_text(result.cold_ttft_s)}"
    differences = (("decode rate", summary.server_decode), ("time to the first token", summary.server_prompt))
    for name, value in differences:
        if value is not None and abs(value) > DIFFERS:
            yield f"our {name} is {abs(value):.0%} {'above' if value > 0 else 'below'} the server's own"
    median = summary.itl.p50 if summary.itl else None
    if median and result.delay_s and result.delay_s > OUR_DELAY * median:
        yield f"this client itself may have been late by more than {OUR_DELAY:.0%} of ITL: its machine is busy"
    if result.warm_up is not None and result.warm_up.dropped:
        yield f"the server refuses {', '.join(result.warm_up.dropped)}, which were left out"
    if result.warm_up is not None and result.warm_up.completions:
        yield "the model has no chat template: plain completions were measured"


def _counting(result: EndpointResult, good: Sequence[Exchange]) -> Iterable[str]:
    lengths = [count for each in good if (count := each.usage.completion) is not None]
    if len(lengths) < len(good):
        yield "the server sent no token counts: figures in tokens are unknown"
        return
    fewest, most, tokens = min(lengths), max(lengths), sum(lengths)
    if fewest != most or fewest != result.asked_tokens:
        length = f"{fewest:,}" if fewest == most else f"{fewest:,} to {most:,}"
        yield f"answers have {length} tokens; {result.asked_tokens:,} were asked for"
    chunks = sum(len(each.arrivals) for each in good)
    if tokens / chunks >= BUNDLED:
        yield f"a chunk holds {tokens / chunks:.1f} tokens: ITL is between chunks"
    if tokens < chunks - len(good):
        yield f"the server counted {tokens:,} tokens in {chunks:,} chunks: it may leave out reasoning"
    if result.summary.decode_tps is None and "decode_tps" in result.summary.unknown:
        yield f"decode is unknown: {result.summary.unknown['decode_tps']}"
