"""The body of a streamed answer, decoded as its bytes arrive: server-sent events and JSON lines.

No I/O and no clock: whoever reads the connection says when bytes came. Every line is parsed once, by msgspec, and
everything a server can make grow is bounded.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec

from profiler.backends.endpoint import Arrival, Exchange, Failure, FailureKind, ServerTimings, Usage
from profiler.units import bytes_text, printable

MAX_LINE = 1 << 20  # bytes of one line; a chunk has a few hundred
MAX_TEXT = 1 << 23  # characters of an answer: about two million tokens
MAX_CHUNKS = 1 << 20  # with text
MAX_STREAM = 1 << 30  # bytes of a stream
MAX_JOINED = 64  # lines of one event
MAX_TOKENS = 10**9  # a larger count is no count of tokens

OPEN, CLOSE = "<think>", "</think>"
BOM = b"\xef\xbb\xbf"
STOPPED = {  # reasons to finish before the answer is whole: OpenAI's form, and LM Studio's own
    *("abort", "cancelled", "content_filter", "error", "failed", "unload"),
    *("modelUnloaded", "userStopped"),
}
COUNTED_NOTHING = "the server counted no token of an answer that has text"
NO_REASONING = "the server's token counts leave out the reasoning"
OLLAMA_TIMINGS = (
    "total_duration", "load_duration", "prompt_eval_count", "prompt_eval_duration", "eval_count", "eval_duration",
)  # fmt: skip


class StreamStopped(Exception):
    """The stream gives no answer; ``failure`` says why."""

    def __init__(self, kind: FailureKind, words: str, hint: str | None = None) -> None:
        super().__init__(words)
        self.failure = Failure(kind, words, hint=hint)


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: Any = None  # JSON as a text, which arrives in parts; from Ollama an object


class _ToolCall(msgspec.Struct):
    function: _Function | None = None


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    thinking: str | None = None  # Ollama
    tool_calls: list[_ToolCall] | None = None


class _Choice(msgspec.Struct):
    delta: _Delta | None = None
    message: _Delta | None = None  # of an answer in one piece
    text: str | None = None  # of completions
    finish_reason: str | None = None


class _Details(msgspec.Struct):
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _Details | None = None
    completion_tokens_details: _Details | None = None


class _Chunk(msgspec.Struct):
    """What is read of a chunk, of OpenAI's form and of Ollama's. Other fields are passed over."""

    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    error: Any = None
    timings: dict[str, Any] | None = None  # llama-server
    stats: dict[str, Any] | None = None  # LM Studio
    runtime: Any = None  # LM Studio: name and version of what runs the model
    message: Any = None  # Ollama; vLLM puts an error's text here
    done: bool = False
    done_reason: str | None = None
    object: Any = None
    total_duration: int | None = None
    load_duration: int | None = None
    prompt_eval_count: int | None = None
    prompt_eval_duration: int | None = None
    eval_count: int | None = None
    eval_duration: int | None = None


_decode = msgspec.json.Decoder(_Chunk, strict=False).decode  # some servers send 12.0 tokens
_decode_any = msgspec.json.Decoder().decode


class StreamReader:
    """Feeds on the bytes of one stream and becomes an ``Exchange``."""

    def __init__(self) -> None:
        self.done = False  # the server said that the stream is over
        self.finish: str | None = None
        self._rest = b""
        self._event: list[bytes] = []  # lines of an event that is no JSON yet
        self._bytes = self.characters = 0
        self._usage = Usage()
        self._timings: dict[str, Any] = {}
        self._runtime: str | None = None
        self._first_byte: float | None = None
        self._reasoned = 0  # chunks that the server marked as reasoning
        self._arrivals: list[Arrival] = []
        self._text = _Text()

    @property
    def started(self) -> bool:
        """Whether a token has arrived."""
        return bool(self._arrivals)

    def feed(self, data: bytes, at: float) -> None:
        """Bytes that came at ``at``. Raises StreamStopped."""
        if self._first_byte is None:
            self._first_byte = at
        self._bytes += len(data)
        if self._bytes > MAX_STREAM:
            raise StreamStopped("too-large", f"the stream is longer than {bytes_text(MAX_STREAM)}")
        lines = (self._rest + data if self._rest else data).split(b"\n")
        self._rest = lines.pop()
        for line in lines:
            if line and line != b"\r":
                self._line(line, at)
            elif self._event:
                self._event_is_over()
        if len(self._rest) > MAX_LINE:
            raise StreamStopped("too-large", f"a line of the stream is longer than {bytes_text(MAX_LINE)}")

    def end(self, at: float) -> None:
        """The connection ended. Raises StreamStopped if the answer had not."""
        rest, self._rest = self._rest, b""
        if rest.strip():
            self._line(rest, at)
        if self._event:
            self._event_is_over()
        if not self.done and self.finish is None:
            words = "before the answer was complete" if self.started else "before the first token"
            raise StreamStopped("cut", f"the server closed the stream {words}")

    def exchange(self, sent_s: float, end_s: float, failure: Failure | None = None) -> Exchange:
        """What has been read, as a record. A complete stream without any text is a failure."""
        self._text.close()
        if failure is None and not self._arrivals:
            failure = Failure(
                "empty",
                "the answer is empty",
                hint="Some servers answer so where a prompt is longer than the context they have loaded.",
            )
        text = self._text
        ended = [end for end in (self.finish, self._timings.get("stop_reason")) if isinstance(end, str)]
        if failure is None and (early := STOPPED.intersection(ended)):
            failure = Failure("error", f"the server ended the answer early: {', '.join(early)}")
        return Exchange(
            sent_s=sent_s,
            end_s=end_s,
            first_byte_s=self._first_byte,
            first_reasoning_s=text.first_reasoning,
            first_answer_s=text.first_answer,
            arrivals=tuple(self._arrivals),
            answer="".join(text.answer),
            reasoning="".join(text.reasoning),
            finish=self.finish,
            usage=self._plausible(),
            timings=timings(self._timings),
            runtime=self._runtime,
            failure=failure,
        )

    def _plausible(self) -> Usage:
        """The counts, without one of the answer that cannot be right: every chunk with text has at least a token."""
        counted, answered = self._usage.completion, len(self._arrivals) - self._reasoned
        if counted is None or not self._arrivals:
            return self._usage
        partly = self._reasoned > 1 and counted <= answered + 1 < len(self._arrivals)
        why = COUNTED_NOTHING if counted == 0 else NO_REASONING
        return replace(self._usage, completion=None, why_unknown=why) if counted == 0 or partly else self._usage

    def _line(self, line: bytes, at: float) -> None:
        if len(line) > MAX_LINE:
            raise StreamStopped("too-large", f"a line of the stream is longer than {bytes_text(MAX_LINE)}")
        if line[:5] == b"data:":
            line = line[5:]
        elif line[:1] != b"{":
            self._other_line(line, at)
            return
        content = line.strip()
        self.done |= content == b"[DONE]"
        if content == b"[DONE]" or not (content or self._event):  # some keep a connection alive by nothing
            return
        if self._event:  # an event may be spread over several lines
            self._event.append(line)
            line = b"\n".join(self._event)
        try:
            chunk = _decode(line)
        except msgspec.ValidationError as error:
            chunk = _lenient(line, error)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            self._event = self._event or [line]
            if len(self._event) >= MAX_JOINED:
                self._event_is_over()
            return
        self._event = []
        self._chunk(chunk, at)

    def _other_line(self, line: bytes, at: float) -> None:
        """A line without data. Raises StreamStopped for one that no stream of events has."""
        if line.startswith(BOM):
            self._line(line[len(BOM) :], at)
        elif line[:1] != b":" and line.split(b":", 1)[0].strip() not in (b"event", b"id", b"retry"):
            shown = printable(line[:80].decode("latin-1"))
            raise StreamStopped("no-stream", f"the answer is not a stream of events: {shown!r}")

    def _event_is_over(self) -> None:
        text = printable(b"".join(self._event)[:200].decode("utf-8", "replace"), 80)
        raise StreamStopped("broken", f"the server sent broken JSON: {text!r}")

    def _chunk(self, chunk: _Chunk, at: float) -> None:
        if chunk.error is not None or chunk.object == "error":
            raise StreamStopped("error", f"the server reports an error in the stream: {error_text(chunk)}")
        if chunk.usage is not None:
            self._usage = _usage(chunk.usage)
        if chunk.timings or chunk.stats:
            self._timings = chunk.timings or chunk.stats or {}
        if isinstance(chunk.runtime, dict):
            parts = (chunk.runtime.get(name) for name in ("name", "version"))
            self._runtime = printable(" ".join(part for part in parts if isinstance(part, str)), 60) or None
        if chunk.choices:
            choice = chunk.choices[0]
            self.finish = choice.finish_reason or self.finish
            counted = chunk.usage.completion_tokens if chunk.usage else (chunk.timings or {}).get("predicted_n")
            self._choice(choice, _count(counted), at)
        elif isinstance(chunk.message, dict):
            self._ollama(chunk, at)

    def _choice(self, choice: _Choice, counted: int | None, at: float) -> None:
        delta = choice.delta
        if delta is None:
            if choice.text:
                self._arrived(choice.text, None, counted, at)
            return
        content = _content(delta)
        reasoning = delta.reasoning_content or delta.reasoning  # some servers send both names with one text
        if content or reasoning:
            self._arrived(content, reasoning, counted, at)

    def _ollama(self, chunk: _Chunk, at: float) -> None:
        try:
            message = msgspec.convert(chunk.message, _Delta)
        except msgspec.ValidationError as error:
            raise StreamStopped(
                "broken", f"the server sent a chunk that cannot be read: {printable(error)}"
            ) from None
        if (content := _content(message)) or message.thinking:
            self._arrived(content, message.thinking, None, at)
        if chunk.done:
            self.done, self.finish = True, chunk.done_reason or "stop"
            found = {name: getattr(chunk, name) for name in OLLAMA_TIMINGS}
            self._timings = {name: value for name, value in found.items() if value is not None}
            self._usage = Usage(prompt=_count(chunk.prompt_eval_count), completion=_count(chunk.eval_count))

    def _arrived(self, content: str | None, reasoning: str | None, counted: int | None, at: float) -> None:
        size = len(content or "") + len(reasoning or "")
        self.characters += size
        if self.characters > MAX_TEXT or len(self._arrivals) >= MAX_CHUNKS:
            raise StreamStopped(
                "too-large", f"the answer is longer than {MAX_TEXT:,} characters or {MAX_CHUNKS:,} chunks"
            )
        self._arrivals.append(Arrival(at, size, counted))
        if reasoning:
            self._reasoned += not content
            self._text.add_reasoning(reasoning, at)
        if content:
            self._text.add(content, at)


class _Text:
    """Tells reasoning from answer where a server leaves ``<think>…</think>`` in the text.

    The tags may be spread over chunks. Templates that end in ``<think>`` make the first tag part of the prompt: then
    everything before a lone ``</think>`` turns out to have been reasoning.
    """

    def __init__(self) -> None:
        self.answer: list[str] = []
        self.reasoning: list[str] = []
        self.first_answer: float | None = None
        self.first_reasoning: float | None = None
        self._mode = "start"  # start, thinking, answer
        self._held, self._held_at = "", 0.0  # text that may be the beginning of a tag
        self._times: list[tuple[int, float]] = []  # characters of the answer so far, and when they came
        self._length = 0

    def add_reasoning(self, text: str, at: float) -> None:
        if self.first_reasoning is None:
            self.first_reasoning = at
        self.reasoning.append(text)

    def add(self, text: str, at: float) -> None:
        if self._mode == "answer":
            self._add_answer(text, at)
            return
        if not self._held:
            self._held_at = at
        self._held += text
        if self._mode == "start":
            self._start()
        if self._mode == "thinking":
            self._thinking(at)

    def close(self) -> None:
        """The text is over: what was held back is text."""
        held, self._held = self._held, ""
        if self._mode == "thinking" and held:
            self.add_reasoning(held, self._held_at)
        elif held:
            self._mode = "answer"
            self._add_answer(held, self._held_at)
        if not self.reasoning:
            self._look_for_a_lone_tag()

    def _add_answer(self, text: str, at: float) -> None:
        if self.first_answer is None:
            if not text.strip():  # blank lines between reasoning and answer
                self.answer.append(text)
                self._length += len(text)
                return
            self.first_answer = at
        self.answer.append(text)
        self._length += len(text)
        if not self.reasoning:
            self._times.append((self._length, at))

    def _start(self) -> None:
        begun = self._held.lstrip()
        if begun.startswith(OPEN):
            self._mode, self._held = "thinking", begun[len(OPEN) :]
        elif not OPEN.startswith(begun[: len(OPEN)]) or self.reasoning:
            text, self._held, self._mode = self._held, "", "answer"
            self._add_answer(text, self._held_at)

    def _thinking(self, at: float) -> None:
        before, tag, after = self._held.partition(CLOSE)
        if tag:
            self._held, self._mode = "", "answer"
            if before:
                self.add_reasoning(before, at)
            if after:
                self._add_answer(after, at)
            return
        keep = next((n for n in range(min(len(CLOSE) - 1, len(before)), 0, -1) if CLOSE.startswith(before[-n:])), 0)
        known = before[: len(before) - keep]
        self._held, self._held_at = before[len(before) - keep :], at
        if known:
            self.add_reasoning(known, at)

    def _look_for_a_lone_tag(self) -> None:
        text = "".join(self.answer)
        before, tag, after = text.partition(CLOSE)
        if not tag:
            return
        begin = len(before) + len(CLOSE)
        begin += len(after) - len(after.lstrip())
        self.first_reasoning, self.reasoning = self.first_answer, [before]
        self.first_answer = next((at for length, at in self._times if length > begin), None)
        self.answer = [after]


def _content(delta: _Delta) -> str:
    """The text of a delta. Calls of tools are text too: a model writes them."""
    found = [delta.content or ""]
    for call in filter(None, (each.function for each in delta.tool_calls or ())):
        given = call.arguments or ""
        found += [call.name or "", given if isinstance(given, str) else msgspec.json.encode(given).decode()]
    return "".join(found)


def _lenient(line: bytes, error: msgspec.ValidationError) -> _Chunk:
    """A chunk of an unknown form: an error in one of the many forms of errors, or a failure."""
    try:
        value = _decode_any(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        value = None
    if isinstance(value, dict) and value.get("error") is not None:
        return _Chunk(error=value["error"])
    raise StreamStopped("broken", f"the server sent a chunk that cannot be read: {printable(error)}")


def error_text(chunk: _Chunk) -> str:
    """The message of an error object, which is a text here, an object there, and JSON in a text elsewhere."""
    return printable(_message(chunk.error if chunk.error is not None else chunk.message), 300)


def _message(error: Any, depth: int = 4) -> Any:
    if isinstance(error, str) and error.startswith("{") and depth:
        try:
            return _message(_decode_any(error.encode()), depth - 1)
        except (msgspec.DecodeError, RecursionError, UnicodeEncodeError):
            return error
    if isinstance(error, dict) and depth:
        found = (error.get(name) for name in ("message", "error", "detail", "title"))
        return _message(next(filter(None, found), "no message"), depth - 1)
    if isinstance(error, list) and error and depth:
        return _message(error[0], depth - 1)
    return error


def failure_text(body: bytes) -> str:
    """The message in the body of an error, or the body's beginning."""
    try:
        text = _message(_decode_any(body))
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        text = body[:1000].decode("utf-8", "replace")
        if "<html" in text.lower() or "<!doctype" in text.lower():
            text = "a web page"
    return printable(" ".join(str(text).split()), 300)


def whole_answer(body: bytes) -> bool:
    """Whether ``body`` is an answer in one piece."""
    try:
        chunk = _decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return False
    return bool(chunk.choices) or chunk.done


def _usage(found: _Usage) -> Usage:
    prompt, completion = found.prompt_tokens_details, found.completion_tokens_details
    return Usage(
        prompt=_count(found.prompt_tokens),
        completion=_count(found.completion_tokens),
        reasoning=_count(completion.reasoning_tokens if completion else None),
        cached=_count(prompt.cached_tokens if prompt else None),
    )


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and 0 <= value <= MAX_TOKENS else None


def _number(value: Any, scale: float = 1.0) -> float | None:
    """A positive number in seconds, or None: a server that has no figure often sends 0 or −1."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e18:
        return None
    return value * scale


def timings(raw: dict[str, Any]) -> ServerTimings:
    """The timings of llama-server, Ollama or LM Studio in one form.

    llama-server and Ollama start the clock of the output when the first token is out, so their time is of one token
    less than they state.
    """
    if "predicted_n" in raw or "prompt_ms" in raw:
        return _steps(
            raw, "prompt_n", "prompt_ms", "predicted_n", "predicted_ms", 1e-3, cached=_count(raw.get("cache_n"))
        )
    if "eval_duration" in raw or "load_duration" in raw:
        load = _number(raw.get("load_duration"), 1e-9)
        return _steps(
            raw, "prompt_eval_count", "prompt_eval_duration", "eval_count", "eval_duration", 1e-9, load=load
        )
    return ServerTimings(
        output_s=_number(raw.get("generation_time")),
        output_tps=_number(raw.get("tokens_per_second")),
        ttft_s=_number(raw.get("time_to_first_token", raw.get("time_to_first_token_seconds"))),
        load_s=_number(raw.get("model_load_time_seconds")),
    )


def _steps(
    raw: dict[str, Any], prompt_n: str, prompt_t: str, output_n: str, output_t: str, scale: float,
    cached: int | None = None, load: float | None = None,
) -> ServerTimings:  # fmt: skip
    tokens, seconds = _count(raw.get(output_n)), _number(raw.get(output_t), scale)
    return ServerTimings(
        prompt_tokens=_count(raw.get(prompt_n)),
        prompt_s=_number(raw.get(prompt_t), scale),
        output_tokens=tokens,
        output_s=seconds,
        output_tps=(tokens - 1) / seconds if tokens and tokens > 1 and seconds else None,
        load_s=load,
        cached_tokens=cached,
    )
