"""``profile endpoint``: models × prompts × streams on a running server, each a result with its requests.

The first request of a model never counts: it loads the model, tells how many tokens a word takes, and shows which
fields of a request the server refuses. After that every stream sends one request after the other. Each prompt begins
with words that no other has, so that no prefix cache helps; ``cached`` repeats one prompt to measure that cache.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

from profiler.backends.endpoint import (
    Exchange,
    Failure,
    LoadSummary,
    Slo,
    figures,
    first_failure,
    percentiles,
    summarize,
)
from profiler.backends.endpoint.client import Client, Limits, core_wait_s, undisturbed
from profiler.backends.endpoint.processes import ServerUse, ServerWatch, is_here, nothing_known
from profiler.backends.endpoint.servers import ServedModel, Server, choose_models, recognise
from profiler.errors import ProfileError
from profiler.results.measurement import Caution
from profiler.run import grid, tasks
from profiler.run.prompts import DEFAULT_TOKENS, EndpointPrompt, Verdict, judged, own_prompts
from profiler.run.prompts import prompts as scenario_prompts
from profiler.units import printable

DEFAULT_CONTEXT, DEFAULT_REPS = 512, 5
WARM_UP_WORDS, FEW_WORDS, WARM_UP_TOKENS = 250, 10, 8  # two lengths tell a word from the chat template
IDLE_S = 120.0  # between two tokens
TOKENS_PER_WORD, OVERHEAD = 1.4, 40.0  # until the server has counted
SPARE_TOKENS = 256  # of a context beyond prompt and answer: the chat template, and words that take more than expected
KEPT_SHARE = 0.85  # of the tokens sent that must have been processed; calibration is good to a few percent
MAX_CHARACTERS_PER_TOKEN = 8  # on average, without repeated characters: vocabularies of 262k reach 5
NONCE_BYTES = 6  # of what makes a prompt unique
MAX_REQUESTS = 20_000  # of a case: each keeps the times of its tokens
MAX_STREAMS = 512  # each takes a connection, and 1,024 open files are a usual limit
GIVE_UP = 3  # failures in a row after which a stream ends
LIVE_S = 1.0  # between two reports of a case that runs
ALTERNATE = "the turns of a conversation alternate, so that none has a wall time of its own"
OPTIONAL = (  # fields that a server may refuse
    *("stream_options", "seed", "temperature", "min_tokens", "ignore_eos", "timings_per_token"),
)
NO_CHAT = re.compile(r"chat.?template|does not support chat|not a chat", re.IGNORECASE)


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
    scenarios: tuple[str, ...] = ()
    tasks: tuple[str, ...] | None = None  # kinds, empty: all of them; None: something else is asked
    cached: bool = False
    slo: Slo | None = None
    timeout_s: float = 600.0
    insecure: bool = False
    count: Callable[[str], int] | None = None  # of tokens, by the model's tokenizer; None: it is not here

    @property
    def streams(self) -> tuple[int, ...]:
        """The numbers of requests at a time: those that were named, else the batches of the scenario."""
        batches = {grid.load(name).batches for name in grid.words(self.scenarios)} or {(1,)}
        if len(batches) > 1 and not self.concurrency:
            raise ProfileError(
                "these scenarios have different batches", "Name --concurrency, or measure one after the other."
            )
        found = grid.counts("--concurrency", self.concurrency, batches.pop())
        if max(found) > MAX_STREAMS:
            raise ProfileError(f"--concurrency: {max(found):,} streams are more than {MAX_STREAMS}")
        return found

    def cases(self) -> list[tuple[EndpointPrompt, ...]]:
        """What each stream sends, again and again: one prompt, or the turns of a conversation in their order."""
        if self.tasks is not None:
            tasks.refuse(self)
            return [tasks.prompts(self.tasks, self.tokens)]
        if sum(map(bool, (self.contexts, self.prompt, self.scenarios))) > 1:
            raise ProfileError(
                "-c, --prompt and --scenario exclude each other: written prompts have their own length"
            )
        tokens = self.tokens or DEFAULT_TOKENS
        if self.prompt is None and not self.scenarios:
            return _of_lengths(grid.counts("-c", self.contexts, (DEFAULT_CONTEXT,)), tokens)
        found = own_prompts(self.prompt, tokens) if self.prompt else []
        lengths = []
        for name in grid.words(self.scenarios):
            scenario = grid.load(name)
            if scenario.prompts:
                found += scenario_prompts(name)
            else:  # as many tokens as sweep measures
                lengths += _of_lengths(scenario.contexts, self.tokens or max(scenario.steps))
        written = [
            EndpointPrompt(printable(each.name, 60), written=each, answer_tokens=self.tokens or each.answer_tokens)
            for each in found
        ]
        if self.cached and any(each.conversation for each in written):
            raise ProfileError(
                "--cached is for single prompts",
                "The turns of a conversation find the ones before in the cache anyway.",
            )
        grouped: dict[Any, list[EndpointPrompt]] = {}
        for number, each in enumerate(written):
            grouped.setdefault(each.conversation or number, []).append(each)
        return [*dict.fromkeys(lengths), *map(tuple, grouped.values())]

    def rounds(self, streams: int, turns: int) -> int:
        """How often the streams of a case of so many turns send it, all together. Raises ProfileError."""
        count = 1 if self.tasks is not None else streams * (self.reps or DEFAULT_REPS)
        if count * turns > MAX_REQUESTS:
            raise ProfileError(
                f"{count * turns:,} requests in one case are more than {MAX_REQUESTS:,}", "Ask for fewer."
            )
        return count


def _of_lengths(contexts: Iterable[int], tokens: int) -> list[tuple[EndpointPrompt, ...]]:
    """A case of varied text for each length in tokens."""
    return [(EndpointPrompt(f"{each:,} tokens", each, answer_tokens=tokens),) for each in contexts]


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
    model: ServedModel
    prompt: EndpointPrompt
    streams: int
    cached: bool
    fixed_length: bool  # whether the server was told to give exactly that many tokens
    exchanges: tuple[Exchange, ...]
    summary: LoadSummary
    warm_up: WarmUp | None
    slo: Slo | None = None
    delay_s: float | None = None  # by which this client may have stamped a token late: p99, and waits for a core
    cold_ttft_s: float | None = None  # of the request that filled the cache
    failure: str | None = None
    hint: str | None = None
    use: ServerUse = field(default_factory=ServerUse)  # memory and energy of the server
    cautions: tuple[Caution, ...] = ()  # ``serving.py`` finds them
    tasks: tuple[tasks.TaskOutcome, ...] = ()  # of each exchange in turn

    @property
    def asked_tokens(self) -> int:
        return self.prompt.answer_tokens

    @property
    def outcome(self) -> str:
        return "failed" if self.failure else "ok"

    @property
    def verdicts(self) -> Counter[Verdict]:
        """How many answers are right, wrong, or without an answer; empty where no right one is known."""
        written, good = self.prompt.written, [each for each in self.exchanges if each.failure is None]
        found = [judged(written, each.answer) for each in good] if written else []
        return Counter(verdict for verdict in found if verdict is not None)


async def measure(
    asked: EndpointRequest, root: str, say: Callable[[str], None], live: Callable[[str], None] | None = None
) -> AsyncIterator[EndpointResult]:
    """Results as they are ready. ``live`` is told every second how a case goes, and "" at its end.

    Raises ProfileError if nothing can be asked.
    """
    cases, streams = asked.cases(), asked.streams
    for turns in cases:
        asked.rounds(max(streams), len(turns))
    limits = Limits(total_s=asked.timeout_s, idle_s=min(asked.timeout_s, IDLE_S))
    async with Client(root, limits, asked.insecure) as client:
        server = await recognise(client, min(asked.timeout_s, 5.0))
        if client.has_key and root.startswith("http://") and not is_here(root):
            say("the API key is sent unencrypted: this server is not on this machine, and its URL is not https")
        with closing(ServerWatch(root)) as watch:
            for model in choose_models(server, grid.words(asked.models)):
                bench = _Bench(client, server, model, asked, cases, watch, live)
                async for result in bench.results(cases, streams):
                    yield result


class _Bench:
    """All cases of one model."""

    def __init__(
        self,
        client: Client,
        server: Server,
        model: ServedModel,
        asked: EndpointRequest,
        cases: Sequence[Sequence[EndpointPrompt]],
        watch: ServerWatch,
        live: Callable[[str], None] | None = None,
    ) -> None:
        self.client, self.server, self.model, self.asked, self.live = client, server, model, asked, live
        self.watch = watch
        self.warm: WarmUp | None = None
        longest = max(each.most_tokens + each.answer_tokens for turns in cases for each in turns)
        # One size for all cases of a model: Ollama loads the model anew for another.
        self.num_ctx = -(-(max(2 * WARM_UP_WORDS, longest) + SPARE_TOKENS) // 256) * 256
        self.cold_ttft_s: float | None = None
        self.interrupted = False  # while a case ran
        self.core_wait_s = 0.0  # that this program was kept from a core while the latest case ran

    async def results(
        self, cases: Sequence[Sequence[EndpointPrompt]], streams: Sequence[int]
    ) -> AsyncIterator[EndpointResult]:
        self.warm = await self._warm_up()
        failed = self.warm.exchange.failure
        if failed is None:
            self.model = await self._as_loaded()
        if self.warm.exchange.runtime is not None and self.server.version is None:
            self.server = replace(self.server, version=self.warm.exchange.runtime)
        for turns in cases:
            for count in streams:
                if failed is not None:
                    for prompt in _shown(turns):
                        yield self._result(prompt, count, (), f"the first request failed: {failed}", failed.hint)
                else:
                    for result in await self._case(turns, count):
                        yield result
                    if self.interrupted:
                        raise asyncio.CancelledError

    async def _warm_up(self) -> WarmUp:
        """The first request, again with fewer fields for as long as the server refuses some."""
        dropped: list[str] = []
        completions = False
        prompt = EndpointPrompt("warm-up", words=WARM_UP_WORDS, answer_tokens=WARM_UP_TOKENS)
        while True:
            exchange = await self._send(prompt, None, tuple(dropped), completions)
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
        """``warm`` with the tokens that a word takes, from a second, short prompt."""
        prompt = EndpointPrompt("warm-up", words=FEW_WORDS, answer_tokens=1)
        short = (await self._send(prompt, None, warm.dropped, warm.completions)).usage.prompt
        long = warm.exchange.usage.prompt or 0
        rate = long / WARM_UP_WORDS if short is None else (long - short) / (WARM_UP_WORDS - FEW_WORDS)
        rate = min(max(rate, 0.8), 8.0)
        return replace(warm, per_word=rate, overhead=max(0.0, long - rate * WARM_UP_WORDS))

    async def _as_loaded(self) -> ServedModel:
        """The model as the server describes it now that it is loaded."""
        try:
            return (await recognise(self.client)).model(self.model.name) or self.model
        except ProfileError:
            return self.model

    async def _case(self, turns: Sequence[EndpointPrompt], streams: int) -> list[EndpointResult]:
        """A result for each turn. Every stream sends all turns one after the other; all streams begin together."""
        for prompt in turns:
            if (too_long := self._too_long(prompt)) is not None:
                hint = "Load it with a longer context."
                return [self._result(each, streams, (), too_long, hint) for each in _shown(turns)]
        of_tasks = bool(turns[0].tasks)  # each is sent once, by whichever stream is free
        left = len(turns) if of_tasks else self.asked.rounds(streams, len(turns))
        fewest = [self._fewest(prompt) for prompt in turns]
        self.client.delays.clear()
        exchanges: list[list[Exchange]] = [[] for _ in turns]
        self.cold_ttft_s = None
        shared = secrets.token_hex(NONCE_BYTES)  # of this case: another one would find its prompt in the cache
        if self.asked.cached:  # the request that fills the cache does not count
            first = await self._send(turns[0], shared)
            if first.failure is not None:
                return [self._result(turns[0], streams, (first,), *first_failure([first]))]
            self.cold_ttft_s = figures(first).ttft_s

        async def stream() -> None:
            nonlocal left
            failures = 0
            while left > 0 and failures < GIVE_UP:
                left -= 1
                sent = slice(len(turns) - left - 1, len(turns) - left) if of_tasks else slice(None)
                # A conversation keeps its beginning, so that a turn finds the ones before it in the prefix cache.
                unique = shared if self.asked.cached else secrets.token_hex(NONCE_BYTES)
                for prompt, least, done in zip(turns[sent], fewest[sent], exchanges[sent], strict=True):
                    exchange = self._counted(_whole(await self._send(prompt, unique), least))
                    done.append(exchange)
                    silent = of_tasks and not tasks.answered([exchange])  # the model's answer
                    failures = failures + 1 if exchange.failure is not None and not silent else 0
                    if exchange.failure is not None and exchange.failure.retry_after_s is not None:
                        left = 0  # it asks to be left alone
                    if exchange.failure is not None and exchange.failure.kind != "empty":
                        break  # the next turn has its history from the scenario, but no longer from the cache

        await asyncio.to_thread(self.watch.begin)
        waited = core_wait_s()
        with undisturbed():
            await self._watched(stream, turns, streams, exchanges)
        self.core_wait_s = core_wait_s() - waited
        return await self._measured(turns, streams, exchanges)

    async def _measured(
        self, turns: Sequence[EndpointPrompt], streams: int, exchanges: Sequence[Sequence[Exchange]]
    ) -> list[EndpointResult]:
        """A result for each turn; of a case that was interrupted, for those of which requests are done."""
        asked, every = self.asked.rounds(streams, len(turns)), list(chain.from_iterable(exchanges))
        if not every:
            return []
        use = await asyncio.to_thread(self._used, every)
        outcomes: tuple[tasks.TaskOutcome, ...] = ()
        if turns[0].tasks:
            outcomes = await asyncio.to_thread(tasks.judged, turns, exchanges)
            turns, exchanges, asked = _shown(turns), [every], len(turns)
        use = use if len(turns) == 1 else use.without_energy(ALTERNATE)
        results = []
        for each, done in zip(turns, exchanges, strict=True):
            counted = tasks.answered(done) if outcomes else done
            failure, hint = first_failure(counted, asked - len(done) + len(counted))
            if self.interrupted:
                failure, hint = f"interrupted after {len(done):,} of {asked:,} requests", None
            result = self._result(each, streams, tuple(done), failure, hint)
            results.append(replace(result, use=use, tasks=outcomes))
        return [result for result in results if result.exchanges or not self.interrupted]

    def _used(self, exchanges: Sequence[Exchange]) -> ServerUse:
        """What the server took during these requests."""
        span = (min(each.sent_s for each in exchanges), max(each.end_s for each in exchanges))
        if self.model.host is not None:
            self.watch.end(span, 0, None, None)
            return nothing_known(f"the server has this model run by {self.model.host}", elsewhere=True)
        good = [each for each in exchanges if each.failure is None]
        counts = [each.usage.completion for each in good]
        tokens = None if None in counts else sum(filter(None, counts))
        return self.watch.end(span, len(good), tokens, self.model.file_bytes)

    async def _watched(
        self,
        stream: Callable[[], Coroutine[Any, Any, None]],
        turns: Sequence[EndpointPrompt],
        streams: int,
        exchanges: Sequence[Sequence[Exchange]],
    ) -> None:
        """Run ``streams`` of ``stream`` to their end or Ctrl-C, and tell every second how it goes."""
        name = turns[0].conversation or _shown(turns)[0].name
        case = f"{printable(self.model.shown, 40)}, {name}, {streams} at a time"
        total = self.asked.rounds(streams, len(turns)) * len(turns)

        async def tell(live: Callable[[str], None]) -> None:
            before = self.client.characters
            while True:
                await asyncio.sleep(LIVE_S)
                done, now = sum(map(len, exchanges)), self.client.characters
                live(f"{case}: {done:,} of {total:,} requests, {(now - before) / LIVE_S:,.0f} characters/s")
                before = now

        teller = asyncio.create_task(tell(self.live)) if self.live is not None else None
        try:
            await asyncio.gather(*(stream() for _ in range(streams)))
        except asyncio.CancelledError:
            self.interrupted = True  # what was measured is told before the run ends
        finally:
            if teller is not None and self.live is not None:
                teller.cancel()
                self.live("")

    def _too_long(self, prompt: EndpointPrompt) -> str | None:
        """Why the prompt cannot fit, where that is known before it is sent. Ollama loads what we ask for."""
        context, needed = self.model.context, (prompt.tokens or 0) + prompt.answer_tokens
        if context is None or self.server.native or needed <= context:
            return None
        text = f"the model is loaded with a context of {self.model.context_text}"
        return f"{text}; prompt and answer take {needed:,} tokens"

    async def _send(
        self,
        prompt: EndpointPrompt,
        unique: str | None = None,
        dropped: tuple[str, ...] | None = None,
        completions: bool = False,
    ) -> Exchange:
        if dropped is None and self.warm is not None:
            dropped, completions = self.warm.dropped, self.warm.completions
        per_word, overhead = (self.warm.per_word, self.warm.overhead) if self.warm else (TOKENS_PER_WORD, OVERHEAD)
        messages = prompt.sent(unique or secrets.token_hex(NONCE_BYTES), per_word, overhead)
        # What somebody asked has an end of its own, and text that is forced beyond it is none.
        body = self.server.request(
            self.model.name, messages, prompt.answer_tokens, self.num_ctx, fixed=prompt.written is None
        )
        body |= {"tools": prompt.written.tools} if prompt.written and prompt.written.tools else {}
        path = self.server.chat
        if completions:
            path, body = self.server.completion(body)
        return await self.client.stream(path, {name: v for name, v in body.items() if name not in (dropped or ())})

    def _counted(self, exchange: Exchange) -> Exchange:
        """``exchange``, with the answer's tokens by the tokenizer if the server sent no counts."""
        if exchange.failure is not None or exchange.usage.completion is not None or self.asked.count is None:
            return exchange
        tokens = sum(map(self.asked.count, filter(None, (exchange.reasoning, exchange.answer))))
        return replace(exchange, usage=replace(exchange.usage, completion=tokens, by="tokenizer"))

    def _fewest(self, prompt: EndpointPrompt) -> int:
        """The fewest tokens that a server counts of a whole prompt."""
        if self.server.native and (self.asked.cached or prompt.may_be_cached):
            return 0  # Ollama has not always counted cached tokens
        if prompt.tokens is not None:
            return round(KEPT_SHARE * prompt.tokens) if self.warm and self.warm.exchange.usage.prompt else 0
        if self.asked.count is not None and prompt.written is not None and not prompt.written.tools:
            return round(KEPT_SHARE * self.asked.count(prompt.written.text))
        return round(prompt.characters / MAX_CHARACTERS_PER_TOKEN)

    def _result(
        self,
        prompt: EndpointPrompt,
        streams: int,
        exchanges: tuple[Exchange, ...],
        failure: str | None,
        hint: str | None = None,
    ) -> EndpointResult:
        summary = summarize(exchanges, self.asked.cached or prompt.may_be_cached, self.asked.slo)
        if prompt.conversation is not None:
            unknown = {
                **summary.unknown,
                **dict.fromkeys(("total_tps", "requests_per_s", "goodput_per_s"), ALTERNATE),
            }
            summary = replace(summary, total_tps=None, requests_per_s=None, goodput_per_s=None, unknown=unknown)
        delays = self.client.delays
        wait_s = self.core_wait_s / len(delays) if delays else 0.0
        late = percentiles(delays)
        dropped = self.warm.dropped if self.warm is not None else ()
        return EndpointResult(
            server=self.server,
            model=self.model,
            prompt=prompt,
            streams=streams,
            cached=self.asked.cached,
            fixed_length=prompt.written is None and bool(set(self.server.fixed_length) - set(dropped)),
            exchanges=exchanges,
            summary=summary,
            warm_up=self.warm,
            slo=self.asked.slo,
            delay_s=None if late is None else wait_s + (late.p99 if late.p99 is not None else max(delays)),
            cold_ttft_s=self.cold_ttft_s,
            failure=failure,
            hint=hint,
        )


def _shown(turns: Sequence[EndpointPrompt]) -> Sequence[EndpointPrompt]:
    """The prompts of a case that have a result each: its turns, but all tasks together."""
    return (tasks.whole(turns),) if turns[0].tasks else turns


def _whole(exchange: Exchange, fewest: int) -> Exchange:
    """``exchange``, as a failure if the server processed fewer tokens than the prompt has."""
    counted = exchange.usage.prompt
    if exchange.failure is not None or counted is None or counted >= fewest:
        return exchange
    words = f"the server cut the prompt: it processed {counted:,} tokens of at least {fewest:,}"
    return replace(exchange, failure=Failure("error", words, hint="Load the model with a longer context."))
