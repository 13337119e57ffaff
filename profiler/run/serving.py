"""A result of ``profile endpoint`` as a row of the store.

**The case.** A case is a model on a kind of server, with a prompt and a number of streams. The server's version, its
host and its port are not part of it: rows from before and after an update of the server are the same case, as are
rows from two machines, whose environments differ. The context of a written prompt is an estimate from its text, since
a count by a tokenizer would change with the tokenizer; ``serving["prompt_tokens"]`` has the server's counts.

**The repetitions** are the requests. Their prefill lasts until the first token and processes the tokens that were not
cached; their decode lasts from the first chunk to the last, with the tokens that arrived after the first.

**The model** is identified by its file or config where ``served_model.py`` knows it. Otherwise its identity is the
server's own hash or its name on this kind of server.
"""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

from profiler import devices
from profiler.backends.endpoint import (
    BUNDLED,
    DIFFERS,
    Exchange,
    ExchangeFigures,
    LoadSummary,
    Users,
    figures,
    joined,
    percentiles,
    users,
)
from profiler.backends.endpoint.client import Limits
from profiler.backends.endpoint.processes import SHARE, ServerUse, is_here
from profiler.backends.endpoint.servers import ServedModel, Server, choose_server
from profiler.case import PROMPT, SERVER, UNSTATED, Case, digest, options_text
from profiler.devices.base import DeviceInfo
from profiler.errors import StoreError
from profiler.quality.tasks import hash_of
from profiler.results import environment
from profiler.results.cautions import cautions
from profiler.results.measurement import PHASES, Caution, Measurement, Memory, Repetitions, RunModel, Sample
from profiler.results.store import Store
from profiler.results.validity import MAX_NUMBER
from profiler.run import endpoint, tasks
from profiler.run.endpoint import EndpointRequest, EndpointResult
from profiler.run.prompts import OWN, Prompt
from profiler.run.repetitions import disturbed_caution
from profiler.run.served_model import KnownModel, ServedModels
from profiler.units import printable, seconds_text

Say = Callable[[str], None]
OUR_DELAY = 0.01  # of the median gap between tokens, from which the client's own delay is a caution
RELOAD_S = 1.0  # Ollama looks for a model in 0.1 s at most where it is loaded
MAX_STEPS = 1 << 18  # gaps between tokens that a row keeps, 2 MiB
HASH = 8  # hex digits that tell prompts of one name apart
NAME_LENGTH = 60


@dataclass(frozen=True, slots=True)
class MeasuredResult:
    """A result and its row."""

    result: EndpointResult
    row: Measurement
    config: Mapping[str, Any] = field(default_factory=dict)  # of the model; empty: unknown


class ServedRun:
    """A run of the store that begins with its first row."""

    def __init__(self, store: Store, argv: Sequence[str]) -> None:
        self.store, self._argv = store, argv
        self.id: str | None = None  # None: nothing was measured yet
        self.lost: StoreError | None = None  # why a row could not be stored
        self._described: set[str] = set()  # ids of models whose config is stored

    def append(self, row: Measurement, config: Mapping[str, Any] | None = None) -> None:
        """Store a row, and the config of its model if it is known. If that fails, nothing more is stored."""
        try:
            self.id = self.id or self.store.start_run(self._argv, row.environment)
            if config and row.case.model_id not in self._described:
                self.store.describe_model(self.id, RunModel(row.case.model_id, row.case.model, config=dict(config)))
                self._described.add(row.case.model_id)
            self.store.append(self.id, row)
        except StoreError as error:
            self.lost = error

    def finish(self, interrupted: bool) -> None:
        """Record how the run ended. Raises StoreError."""
        if self.id is not None and self.lost is None:
            self.store.finish_run(self.id, "interrupted" if interrupted else "finished")


async def measure(
    asked: EndpointRequest, rows: ServedRows, run: ServedRun, say: Say, live: Say | None = None
) -> AsyncIterator[MeasuredResult]:
    """Results as they are ready, each stored in ``run``; the one that could not be stored is the last.

    ``say`` and ``live`` as for ``endpoint.measure``. Raises ProfileError if nothing can be asked.
    """
    root = await choose_server(asked.url, Limits(total_s=asked.timeout_s), say)
    asked = replace(asked, count=rows.count)
    async for result in endpoint.measure(asked, root, say, live):
        measured = rows.measured(result)
        run.append(measured.row, measured.config)
        yield measured
        if run.lost is not None:
            return


class ServedRows:
    """The rows of the results of one run; ``config`` and ``on`` as for ``ServedModels``."""

    def __init__(self, config: str | None = None, on: str | None = None) -> None:
        self._models = ServedModels(config, on)
        self.count = self._models.count
        self._places: dict[tuple[str, str | None, str | None], tuple[DeviceInfo | None, dict[str, Any]]] = {}
        self._device: DeviceInfo | None = None
        self._results: list[EndpointResult] = []

    def measured(self, result: EndpointResult) -> MeasuredResult:
        """The next result, with the cautions that follow from its repetitions, and its row."""
        row = self.row(result)
        known = self._known(result)
        config = known.model.source.config if isinstance(known, KnownModel) else {}
        return MeasuredResult(replace(result, cautions=cautions(row)), row, config)

    def row(self, result: EndpointResult) -> Measurement:
        """The row of the next result."""
        self._results.append(result)
        device, place = self._place(result.server, result.model, result.use)
        known = self._known(result)
        case = case_of(result, known if isinstance(known, KnownModel) else None, device)
        expected, unknown = self._models.expected(result, case, device, known)
        hardware, notes = self._models.hardware, tuple(server_cautions(result))
        if hardware is not None and "ceiling_s" in expected:
            text = f"MBU and MFU are of the data sheet of {hardware}, which --on names"
            notes += (Caution("data-sheet-ceiling", text),)
        serving = served(result, self._results) | {"on": hardware}
        if isinstance(known, KnownModel):
            serving |= {"known_model": known.model.name, "known_by": known.how}
        serving["unknown"] |= {"decode_mbu": unknown} if unknown else {}
        return Measurement(
            case=case,
            environment=place,
            outcome="failed" if result.failure else "ok",
            reason=result.failure and f"{result.failure}. {result.hint}" if result.hint else result.failure,
            samples=Repetitions(() if result.failure else _samples(result)),
            memory=_memory(result.use),
            cautions=notes,
            load_s=load_s(result),
            started_at=_started(result),
            asked={"reps": len(result.exchanges)},
            expected=expected,
            serving=_bounded(serving),
        )

    def _known(self, result: EndpointResult) -> KnownModel | str:
        here = is_here(result.server.root) and not result.use.elsewhere
        return self._models.known(result.model, here)

    def _place(self, server: Server, model: ServedModel, use: ServerUse) -> tuple[DeviceInfo | None, dict[str, Any]]:
        """The device of this machine that the server uses, None if it uses another one; and the environment."""
        device, other = None, use.elsewhere or use.on_other_gpu or self._models.hardware is not None
        if is_here(server.root) and not other:
            if use.gpu_peak_bytes is not None or self._device is None:
                self._device = devices.find("cpu" if use.gpu_peak_bytes == 0 else None)
            device = self._device
        host = printable(model.host or urlsplit(server.root).hostname or UNSTATED, NAME_LENGTH)
        key = (device.name if device else host, server.kind, server.version)
        if key not in self._places:
            self._places[key] = device, environment.of_server(device, host, server.kind, server.version)
        return self._places[key]


def case_of(result: EndpointResult, known: KnownModel | None, device: DeviceInfo | None) -> Case:
    """What was measured. Fields that a server does not state are ``UNSTATED``."""
    server, model, prompt = result.server, result.model, result.prompt
    written = prompt.written
    stated = known.model.stored.quant if known and known.same_weights and known.model.stored else model.quant
    options = {SERVER: _slug(server.kind)}
    if written is not None:
        asked = hash_of(prompt.tasks) if prompt.tasks else digest([*written.messages, *written.tools])
        options[PROMPT] = f"{_slug(prompt.name)}:{asked[:HASH]}"
    if result.cached:
        options["cached"] = "yes"
    return Case(
        model=known.model.name if known and known.same_weights else model.shown,
        model_id=_model_id(server, model, known),
        weights="real",
        quant=printable(stated or UNSTATED, NAME_LENGTH).casefold(),
        dtype=UNSTATED,
        device=environment.REMOTE if device is None else device.name,
        backend="endpoint",
        path=UNSTATED,
        context=prompt.tokens or max(1, about_tokens(written) // max(1, len(prompt.tasks))),
        batch=result.streams,
        steps=result.asked_tokens,
        options=options_text(options),
    )


def about_tokens(written: Prompt | None) -> int:
    """The tokens of a text, roughly: four ASCII characters each, or two others, to two digits."""
    text = written.text if written else ""
    plain = len(text.encode("ascii", "ignore"))
    return max(1, round(float(f"{plain / 4 + (len(text) - plain) / 2:.1e}")))


def _model_id(server: Server, model: ServedModel, known: KnownModel | None) -> str:
    if known is not None:
        return known.model.id_for("real" if known.same_weights else "synthetic")
    return digest(["served", server.kind, model.digest or model.name.casefold()])


def _slug(text: str) -> str:
    """One word for the options of a case."""
    return re.sub(r"[\s=]+", "-", printable(text, NAME_LENGTH).strip().casefold()) or UNSTATED


def _samples(result: EndpointResult) -> Iterable[Sample]:
    """A prefill and a decode for each request, as far as its tokens and times are known."""
    cached = result.cached or result.prompt.may_be_cached
    found = [(each, figures(each, cached)) for each in result.exchanges]
    gaps = sum(len(each.gaps_s) for _, each in found) <= MAX_STEPS
    for exchange, each in found:
        if each.ttft_s and each.prefill_tps and each.prefill_tokens:
            yield Sample("prefill", each.ttft_s, each.prefill_tokens, ended_s=exchange.first_token_s)
    for exchange, each in found:
        if each.decode_s and each.decode_tps and each.decode_tokens:
            steps = each.gaps_s if gaps and _one_by_one(each) else ()
            yield Sample("decode", each.decode_s, max(1, round(each.decode_tokens)), steps, ended_s=exchange.end_s)


def _started(result: EndpointResult) -> str:
    """When the first request was sent, if the result is new."""
    ago = time.perf_counter() - min((each.sent_s for each in result.exchanges), default=time.perf_counter())
    return (datetime.now(UTC) - timedelta(seconds=ago)).isoformat(timespec="milliseconds")


def _one_by_one(each: ExchangeFigures) -> bool:
    """Whether every chunk is a token, so that the gaps between chunks are decode steps."""
    return each.decode_tokens == len(each.gaps_s)


def _memory(use: ServerUse) -> Memory:
    """The peak of the server where its model is: on GPUs if it uses any, otherwise in the host's memory."""
    return Memory(process_peak_bytes=use.gpu_peak_bytes or (use.host_peak_bytes if use.gpu_peak_bytes == 0 else None))


def server_cautions(result: EndpointResult) -> Iterator[Caution]:
    """What a reader of these figures must know, beside what follows from the repetitions; none without a success."""
    summary, good = result.summary, [each for each in result.exchanges if each.failure is None]
    if not good:
        return
    yield from _counts(result, good)
    yield from tasks.cautions(result.tasks)
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
    if SHARE in (shared := result.use.unknown.get("host_peak_bytes", "")):
        yield Caution("shared-port", shared, "stopping all but one")
    if (other := result.use.disturbance) is not None:
        yield from (disturbed_caution(phase, other, "a quieter machine") for phase in PHASES)
    yield from _clocks(result)
    slots = result.model.slots
    if slots and result.streams > slots:
        queued = f"the server answers {slots} requests at a time and lets others wait, which is part of their TTFT"
        yield Caution("queued", queued, f"--concurrency {slots}, or llama-server -np {result.streams}")
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
    if not result.tasks and (fewest != most or fewest != result.asked_tokens):
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


def load_s(result: EndpointResult) -> float | None:
    """Seconds that the server took to load the model, by its own clock."""
    return None if result.warm_up is None else result.warm_up.exchange.timings.load_s


def served(result: EndpointResult, results: Sequence[EndpointResult] = ()) -> dict[str, Any]:
    """The field ``serving`` of a row: plain JSON, in seconds, tokens/s, bytes and joules. Unknown is null, with a
    reason in ``unknown``.

    ``results``: all so far, which tell how many users a prompt allows.
    """
    server, model, summary, written = result.server, result.model, result.summary, result.prompt.written
    good = [each for each in result.exchanges if each.failure is None]
    return {
        "server": server.kind,
        "server_version": server.version,
        "url": server.root,
        "model": model.name,
        "loaded_context": model.context,
        "max_context": model.max_context,
        "slots": model.slots,
        "file_bytes": model.file_bytes,
        "vram_bytes": model.vram_bytes,
        "prompt": result.prompt.name,
        "scenario": written.kind if written and written.kind != OWN else None,
        "language": written.language if written else None,
        "cached": result.cached,
        "fixed_length": result.fixed_length,
        "answers": dict(result.verdicts) or None,
        "expected": written.expected if written else None,
        "tasks": tasks.row(result.tasks, result.prompt),
        "requests": summary.requests,
        "failed": len(result.exchanges) - len(good),
        "wall_s": summary.wall_s if result.exchanges else None,
        "prompt_tokens": [each.usage.prompt for each in good],
        "output_tokens": [each.usage.completion for each in good],
        "reasoning_tokens": [each.usage.reasoning for each in good],
        "cached_tokens": [each.cached_tokens for each in good],
        "tokens_by": next((each.usage.by for each in good if each.usage.completion is not None), None),
        **_percentiles_row(summary, good),
        "cold_ttft_s": result.cold_ttft_s,
        "slowest_stream_tps": summary.slowest_tps,
        "total_tps": summary.total_tps,
        "requests_per_s": summary.requests_per_s,
        "goodput_per_s": summary.goodput_per_s,
        "slo_met": summary.slo_met,
        "users_at_slo": _users_row(result, results),
        "tokens_per_1000_characters": summary.tokens_per_1k_characters,
        "difference_from_server": {"decode_tps": summary.server_decode, "ttft_s": summary.server_prompt},
        "client_delay_s": result.delay_s,
        **_use_row(result.use),
        "unknown": {**summary.unknown, **result.use.unknown, **_no_energy(result.use)},
    }


def _bounded(content: Any) -> Any:
    """``content`` without numbers that no row may have, which a server may have stated."""
    if isinstance(content, dict):
        return {name: _bounded(value) for name, value in content.items()}
    if isinstance(content, list):
        return [_bounded(value) for value in content]
    return None if isinstance(content, int | float) and not -MAX_NUMBER <= content <= MAX_NUMBER else content


def _percentiles_row(summary: LoadSummary, good: Sequence[Exchange]) -> dict[str, Any]:
    """All figures that each request has: ours, and those by the server's own clock."""
    found = {
        "tokens_per_chunk": summary.tokens_per_chunk,
        "first_byte_s": summary.first_byte,
        "ttft_s": summary.ttft,
        "ttft_reasoning_s": summary.ttft_reasoning,
        "ttft_answer_s": summary.ttft_answer,
        "itl_s": summary.itl,
        "tpot_s": summary.tpot,
        "e2e_s": summary.e2e,
        "prefill_tps": summary.prefill_tps,
        "decode_tps": summary.decode_tps,
        "characters_per_s": summary.characters_per_s,
        "server_prefill_tps": percentiles(_server_prefill_tps(each) for each in good),
        "server_decode_tps": percentiles(each.timings.output_tps for each in good),
    }
    return {
        name: None if value is None else {"n": value.n, "p50": value.p50, "p95": value.p95, "p99": value.p99}
        for name, value in found.items()
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


def users_at_slo(results: Iterable[EndpointResult]) -> dict[str, Users]:
    """For each prompt of one model that was measured with limits and at several numbers of streams."""
    met: dict[str, dict[int, float | None]] = {}
    for result in results:
        if result.slo is not None:
            met.setdefault(printable(result.prompt.name, 60), {})[result.streams] = result.summary.slo_met
    return {prompt: users(shares) for prompt, shares in met.items() if len(shares) > 1}
