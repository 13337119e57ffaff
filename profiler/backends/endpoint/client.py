"""The HTTP client: one streamed request becomes one ``Exchange`` whose arrival times the client does not distort.

An arrival is stamped with the time at which the kernel said that bytes were there, not with the time at which this
program got round to them: with 64 streams whose tokens come together, the last is read milliseconds after the
first. What remains is the wait for an event loop that was busy with earlier bytes. ``Client.delays`` has it for every
arrival.

The API key comes from the environment variable ``PROFILE_API_KEY``, goes to the server that the user named, and to no
other: redirects are not followed. Whatever a server sends passes ``Client.clean`` before anybody sees it, since some
repeat the key in their errors.
"""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import re
import selectors
import ssl
import time
from collections.abc import Coroutine, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from types import SimpleNamespace, TracebackType
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit

import aiohttp
import msgspec

from profiler.backends.endpoint import Exchange, Failure
from profiler.backends.endpoint.stream import StreamReader, StreamStopped, failure_text, whole_answer
from profiler.errors import ProfileError
from profiler.foreign import BadContent, Budget, json_value
from profiler.results.redact import MARK, redact
from profiler.units import bytes_text, printable, seconds_text

KEY = "PROFILE_API_KEY"
MAX_BODY = 1 << 23  # bytes of an answer that is no stream
MAX_HEADER = 16384
MAX_STALE = 600  # connections that may have been given up, one for each stream
AT_ONCE_S = 5e-5  # a call that found events waiting takes no longer
STALE_S = 1.0  # within which a connection that was given up shows; later, the server had begun to work
MIN_CUT_CHARACTERS = 8  # of the beginning of a key that is masked: a shorter one, as "sk-", is in many texts
DRAIN_S = 1.0  # that a server may keep a stream open once it has said that it is over
BUDGET = Budget(nbytes=MAX_BODY, values=2**19, twice=True)
WHOLE = ("text/html", "application/json", "application/problem+json")  # content types of what is no stream
KNOWN_PATHS = re.compile(r"(/v1)?(/chat)?(/completions|/models)?/*$")
SECURE_HINT = "Give the name that the certificate is for, or --insecure for a server of your own."

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds that a request may take."""

    total_s: float = 600.0
    connect_s: float = 10.0
    idle_s: float = 120.0  # between two arrivals; the first may take as long as a prefill does


class ReadyClock(selectors.DefaultSelector):
    """A selector that remembers when the kernel last reported events, and how late we may have been to ask."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.before = time.perf_counter()  # of this round of the event loop and of the one before
        self.late = self.late_before = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        asked = time.perf_counter()
        found = super().select(timeout)
        self.before, self.late_before = self.now, self.late
        busy = asked - self.now
        self.now = time.perf_counter()
        # Had the events been there while we were busy, the kernel would not have let us wait.
        self.late = busy if self.now - asked < AT_ONCE_S else 0.0
        return found


def run(main: Coroutine[Any, Any, T]) -> T:
    """``asyncio.run`` on an event loop that has a ``ReadyClock``."""
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(ReadyClock())) as runner:
        return runner.run(main)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Without garbage collection, which stops everything for 10 ms and more; nothing read here makes cycles."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def core_wait_s() -> float:
    """Seconds that this thread was ready to run and had no core, since it began; 0 where the kernel does not say.

    The second number of ``schedstat`` (Linux, Documentation/scheduler/sched-stats.rst), in nanoseconds.
    """
    try:
        return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0


class _Key:
    """The API key. It shows in no text of ours."""

    def __init__(self, text: str | None) -> None:
        self._text = (text or "").strip()
        if not self._text.isascii() or not self._text.isprintable():
            raise ProfileError(f"{KEY} holds characters that no API key has", "Set it anew, on one line.")

    def __bool__(self) -> bool:
        return bool(self._text)

    def __repr__(self) -> str:
        return f"<{KEY}>"

    def header(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._text}"} if self else {}

    def out_of(self, text: str) -> str:
        """``text`` without the key, as it is or as in a URL."""
        for form in {self._text, quote(self._text), quote(self._text, safe="")} if self else ():
            text = text.replace(form, MARK)
        return text

    def clean(self, text: str) -> str:
        """``out_of`` a text that may have been cut: without a beginning of the key either."""
        text = self.out_of(text)
        for length in range(len(self._text) - 1, MIN_CUT_CHARACTERS - 1, -1):
            text = text.replace(self._text[:length], MARK)
        return text


def parse_url(text: str) -> str:
    """The root of a server: ``localhost:1234``, ``http://host/v1`` and ``…/v1/chat/completions`` lead to the same.

    Raises ProfileError, which repeats neither a password nor a query, since both may be secret.
    """
    full = text if "://" in text else f"http://{text}"
    try:
        parts = urlsplit(full)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host or parts.scheme not in ("http", "https"):
        _, at, after = text.split("?")[0].rpartition("@")  # before it is a password, which may hold a slash
        shown = printable(redact(f"…@{after}" if at else after), 80)
        raise ProfileError(f"{shown!r} is not the URL of a server", "Such as http://localhost:1234.")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ProfileError(
            f"the URL of {printable(host, 80)} holds a user name, a password or a query",
            f"Keys come from the environment variable {KEY} only.",
        )
    name = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{name}{f':{port}' if port else ''}{KNOWN_PATHS.sub('', parts.path)}"


class Client:
    """Connections to one server, as an async context manager. To be used inside ``run``."""

    def __init__(
        self, root: str, limits: Limits | None = None, insecure: bool = False, send_key: bool = True
    ) -> None:
        """``send_key``: whether the user named this server, so that it may have the key."""
        self.root = root
        self.limits = limits or Limits()
        self.delays: list[float] = []  # seconds that each arrival may have waited for us
        self.characters = 0  # of all answers so far
        self._key = _Key(os.environ.get(KEY) if send_key else None)
        self._insecure = insecure
        self._session: aiohttp.ClientSession | None = None

    @property
    def has_key(self) -> bool:
        return bool(self._key)

    def clean(self, text: str) -> str:
        """Text of the server without the key."""
        return self._key.clean(text)

    async def __aenter__(self) -> Client:
        trace = aiohttp.TraceConfig()
        trace.on_connection_create_end.append(_connected)
        trace.on_connection_reuseconn.append(_connected)
        trace.on_connection_reuseconn.append(_reused)
        trace.freeze()
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ssl=not self._insecure, keepalive_timeout=60),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"Accept-Encoding": "identity", "User-Agent": "profile"},
            auto_decompress=False,
            trust_env=False,  # neither proxies nor .netrc
            trace_configs=[trace],
            max_line_size=MAX_HEADER,
            max_field_size=MAX_HEADER,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=self.limits.connect_s),
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def get(self, path: str, seconds: float = 5.0) -> Any:
        """The JSON value at ``path``; None for anything else, as a path that is not there. Raises StreamStopped if
        there is no server, none that answers in time, one that redirects or one that wants a key.
        """
        try:
            async with asyncio.timeout(seconds), self._request("GET", path, None, {}) as response:
                if response.status in (401, 403) or 300 <= response.status < 400:
                    await self._check(response)
                if response.status != 200:
                    return None
                return json_value(await self._body(response), BUDGET)
        except BadContent:
            return None
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            raise self._stopped(error, f"within {seconds_text(seconds)}") from None

    async def stream(self, path: str, body: Mapping[str, Any]) -> Exchange:
        """Send ``body`` to ``path`` and read the streamed answer. Never raises for what a server does.

        Some servers close a connection after each answer without saying so, llama-server among them. A request that
        meets such a connection was not seen by anybody and is sent again; its clock starts anew.
        """
        data = msgspec.json.encode(body)
        for _ in range(MAX_STALE):
            times = {"sent": time.perf_counter()}
            exchange = await self._stream(path, data, times)
            if exchange.failure is None or exchange.failure.kind != "cut" or not _was_stale(times):
                break
        return self._cleaned(exchange)

    async def _stream(self, path: str, data: bytes, times: dict[str, float]) -> Exchange:
        reader = StreamReader()
        failure: Failure | None = None
        try:
            async with asyncio.timeout(self.limits.total_s) as timeout:
                async with self._request("POST", path, data, times) as response:
                    times["answered"] = time.perf_counter()
                    await self._check(response)
                    await self._read(response, reader, timeout, times)
        except StreamStopped as error:
            failure = error.failure
        except (aiohttp.ClientError, OSError, ValueError) as error:  # OSError: TimeoutError is one
            if isinstance(error, TimeoutError) and not isinstance(error, aiohttp.ConnectionTimeoutError):
                failure = self._timed_out(reader, times)
            else:
                failure = self._stopped(error, "", reader.started).failure
        if "end" in times:  # the server had said that the answer was over: what it did afterwards is no matter
            failure = None
        return reader.exchange(times["sent"], times.get("end", time.perf_counter()), failure)

    def _request(self, method: str, path: str, data: bytes | None, times: dict[str, float]) -> Any:
        assert self._session is not None, "the client is not open"
        headers = self._key.header() | ({"Content-Type": "application/json"} if data is not None else {})
        return self._session.request(
            method,
            f"{self.root}{path}",
            data=data,
            headers=headers,
            allow_redirects=False,
            trace_request_ctx=times,
        )

    async def _check(self, response: aiohttp.ClientResponse) -> None:
        """StreamStopped for a response that is not the beginning of a stream."""
        if 300 <= response.status < 400:
            address, query, _ = response.headers.get("Location", "nowhere").partition("?")
            target = printable(self.clean(redact(address)), 120) + ("?…" if query else "")
            raise StreamStopped("redirect", f"the server redirects to {target}", "Give that address if you trust it.")
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise StreamStopped("no-stream", "the server compresses the stream, so that no token can be timed")
        if response.status == 200 and response.content_type not in WHOLE:
            return
        body = await self._body(response)
        if response.status != 200:
            raise _status(response, failure_text(body))
        if whole_answer(body):
            raise StreamStopped("no-stream", "the server sends the whole answer at once: it does not stream")
        raise StreamStopped("no-stream", f"the answer is not a stream but {failure_text(body) or 'empty'}")

    async def _body(self, response: aiohttp.ClientResponse) -> bytes:
        parts: list[bytes] = []
        size = 0
        async for data in response.content.iter_any():
            parts.append(data)
            size += len(data)
            if size > MAX_BODY:
                raise StreamStopped(
                    "too-large", f"the server sent more than {bytes_text(MAX_BODY)} that is no stream"
                )
        return b"".join(parts)

    async def _read(
        self,
        response: aiohttp.ClientResponse,
        reader: StreamReader,
        timeout: asyncio.Timeout,
        times: dict[str, float],
    ) -> None:
        """Feed the body to ``reader``. ``times["end"]`` is when the stream was over."""
        clock = _clock()
        final = timeout.when() or 0.0
        loop_time, idle = asyncio.get_running_loop().time, self.limits.idle_s
        extended = 0.0
        while True:
            data = await response.content.readany()
            at = clock.before  # bytes came in one round of the loop, and this task was woken in the next
            if not data:
                break
            self.delays.append(clock.late_before)
            before = reader.characters
            reader.feed(data, at)
            self.characters += reader.characters - before
            if "end" in times:
                continue
            now = loop_time()
            if reader.done:
                times["end"] = at
                timeout.reschedule(min(final, now + DRAIN_S))
            elif reader.started and now - extended > idle / 10:
                extended = now
                timeout.reschedule(min(final, now + idle))
        reader.end(at)
        times.setdefault("end", at)

    def _timed_out(self, reader: StreamReader, times: Mapping[str, float]) -> Failure:
        if time.perf_counter() - times["sent"] < self.limits.total_s * 0.99 and reader.started:
            return Failure("timeout", f"no token within {seconds_text(self.limits.idle_s)} of the one before")
        what = "the answer was not complete" if reader.started else "no token"
        return Failure("timeout", f"{what} within {seconds_text(self.limits.total_s)}", hint="--timeout allows more.")

    def _stopped(self, error: Exception, within: str, started: bool = False) -> StreamStopped:
        """What went wrong with the connection, in words. Nothing of the error's own text that may hold headers."""
        if isinstance(error, aiohttp.ClientConnectorCertificateError | aiohttp.ClientConnectorSSLError):
            return StreamStopped("certificate", f"TLS failed: {_tls(error)}", SECURE_HINT)
        if isinstance(error, ssl.SSLError):
            return StreamStopped(
                "certificate", f"TLS failed: {printable(error.reason or 'no reason given')}", SECURE_HINT
            )
        if isinstance(error, aiohttp.ConnectionTimeoutError):
            return StreamStopped("refused", f"no connection within {seconds_text(self.limits.connect_s)}")
        if isinstance(error, TimeoutError):
            return StreamStopped("timeout", f"no answer {within}".strip())
        if isinstance(error, aiohttp.ClientConnectorError):
            number = error.os_error.errno  # None where several addresses failed for several reasons
            reason = (
                os.strerror(number).lower() if number is not None and number in errno.errorcode else "no connection"
            )
            if isinstance(error, aiohttp.ClientConnectorDNSError):
                reason = "its name is not known"
            return StreamStopped("refused", f"no server there: {reason}")
        if isinstance(error, aiohttp.InvalidURL | ValueError):
            return StreamStopped("refused", "the address cannot be used")
        if isinstance(error, aiohttp.ClientResponseError | aiohttp.http_exceptions.HttpProcessingError):
            return StreamStopped("broken", "the server does not speak HTTP")
        words = "in the middle of the answer" if started else "before the first token"
        return StreamStopped("cut", f"the server closed the connection {words}")

    def _cleaned(self, exchange: Exchange) -> Exchange:
        """``exchange`` without the key, which a server may have repeated anywhere."""
        if not self._key:
            return exchange
        failure = exchange.failure
        return replace(
            exchange,
            answer=self._key.out_of(exchange.answer),
            reasoning=self._key.out_of(exchange.reasoning),
            finish=exchange.finish and self.clean(exchange.finish),
            runtime=exchange.runtime and self.clean(exchange.runtime),
            failure=failure and replace(failure, words=self.clean(failure.words)),
        )


async def _connected(session: aiohttp.ClientSession, context: SimpleNamespace, params: Any) -> None:
    """The request goes out now: connecting is no part of its latency."""
    times = context.trace_request_ctx
    if times is not None:
        times["sent"] = time.perf_counter()


async def _reused(session: aiohttp.ClientSession, context: SimpleNamespace, params: Any) -> None:
    if context.trace_request_ctx is not None:
        context.trace_request_ctx["reused"] = time.perf_counter()


def _was_stale(times: Mapping[str, float]) -> bool:
    """Whether a request that failed just now met a connection that the server had given up."""
    return "answered" not in times and time.perf_counter() - times.get("reused", 0.0) < STALE_S


def _clock() -> ReadyClock:
    selector = getattr(asyncio.get_running_loop(), "_selector", None)
    if not isinstance(selector, ReadyClock):
        raise RuntimeError("Client is to be used inside client.run")
    return selector


def _tls(error: aiohttp.ClientError) -> str:
    reason: Any = getattr(error, "certificate_error", None) or getattr(error, "os_error", None)
    text = (
        getattr(reason, "verify_message", None) or getattr(reason, "reason", None) or "the certificate is not valid"
    )
    return printable(str(text).replace("_", " ").lower())


def _retry_after_s(text: str) -> float | None:
    """The seconds that a server asks to wait: a number of them, or until a date (RFC 9110, section 10.2.3)."""
    if text.isascii() and text.isdigit() and len(text) < 8:
        return float(text)
    with suppress(ValueError, TypeError, OverflowError):
        return max(0.0, (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds())
    return None


def _status(response: aiohttp.ClientResponse, text: str) -> StreamStopped:
    seconds = _retry_after_s(response.headers.get("Retry-After", ""))
    later = f"; it asks to wait {seconds_text(seconds)}" if seconds is not None else ""
    words = f"HTTP {response.status}{f': {text}' if text else ''}{later}"
    hint = f"Set the key in {KEY}." if response.status in (401, 403) else None
    stopped = StreamStopped("status", words, hint)
    stopped.failure = Failure("status", words, response.status, seconds, hint)
    return stopped
