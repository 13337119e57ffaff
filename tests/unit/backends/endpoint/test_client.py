"""The client against a scripted server: times, faults in words, limits, and a key that shows nowhere."""

from __future__ import annotations

import gc
import shutil
import socket
import ssl
import subprocess
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from email.utils import formatdate
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from fakes.openai_server import FakeServer, Script

from profiler.backends.endpoint import Exchange, figures
from profiler.backends.endpoint import client as client_module
from profiler.backends.endpoint.client import KEY, Client, Limits, core_wait_s, parse_url, run, undisturbed
from profiler.backends.endpoint.stream import StreamStopped
from profiler.errors import ProfileError

CANARY = "sk-canary-4f9d/0c7b2a+"
PATH = "/v1/chat/completions"
STREAM = {"Content-Type": "text/event-stream"}
QUICK = Limits(total_s=5.0, connect_s=2.0, idle_s=0.3)


def body(tokens: int = 20, **more: Any) -> dict[str, Any]:
    return {
        "model": "tiny-Q4_K_M",
        "messages": [{"role": "user", "content": "hello there"}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": tokens,
        **more,
    }


def ask(root: str, limits: Limits = QUICK, path: str = PATH, times: int = 1, **more: Any) -> Exchange:
    """The last of ``times`` exchanges over one client."""

    async def main() -> Exchange:
        async with Client(root, limits, **more) as client:
            for _ in range(times - 1):
                await client.stream(path, body())
            return await client.stream(path, body())

    return run(main())


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY, raising=False)


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as found:
        yield found


def test_a_stream_becomes_a_record_of_what_was_sent(server: FakeServer) -> None:
    server.script = Script(reasoning=("hm ", "so "), cached_tokens=5)
    found = ask(server.url)
    assert found.failure is None
    assert found.finish == "length"
    assert found.reasoning == "hm so "
    assert found.answer.split() == [f"word{n}" for n in range(18)]
    assert (found.usage.completion, found.usage.reasoning, found.usage.cached) == (20, 2, 5)
    assert found.sent_s < found.arrivals[0].at <= found.arrivals[-1].at <= found.end_s


def test_times_are_those_of_the_script(server: FakeServer) -> None:
    """Generously, for a busy machine; benchmarks/endpoint_load.py has them to a fraction of a millisecond."""
    server.script = Script(first_s=0.2, gap_s=0.02)
    own = figures(ask(server.url, times=2))
    assert own.ttft_s is not None and own.decode_tps is not None
    assert 0.199 <= own.ttft_s < 0.5
    assert own.decode_tps == pytest.approx(50, rel=0.25)


def test_no_arrival_is_stamped_before_it_was_sent(server: FakeServer) -> None:
    """Server and client read one clock here."""
    server.script = Script(gap_s=0.005, stamped=True)
    found = ask(server.url)
    late = [arrival.at - float(word) for arrival, word in zip(found.arrivals, found.answer.split(), strict=True)]
    assert min(late) > -1e-5
    assert sorted(late)[len(late) // 2] < 0.05


def test_connecting_is_no_part_of_the_latency(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection is made before the clock starts, and used again."""
    first = ask(server.url)
    assert first.arrivals[0].at - first.sent_s < 0.3

    import asyncio

    import aiohttp

    create = aiohttp.TCPConnector._create_connection

    async def slow(self: Any, *args: Any, **more: Any) -> Any:
        await asyncio.sleep(0.5)
        return await create(self, *args, **more)

    monkeypatch.setattr(aiohttp.TCPConnector, "_create_connection", slow)
    found = ask(server.url)
    assert found.arrivals[0].at - found.sent_s < 0.4


@pytest.mark.parametrize("bytewise", [False, True])
def test_one_byte_at_a_time_is_the_same_answer(server: FakeServer, bytewise: bool) -> None:
    server.script = Script(bytewise=bytewise)
    found = ask(server.url)
    assert (found.failure, len(found.arrivals)) == (None, 20)


@pytest.mark.parametrize(
    ("script", "kind", "said"),
    [
        (Script(fault="hang"), "timeout", "no token within 1.00 s"),
        (Script(fault="stall"), "timeout", "no token within 300 ms of the one before"),
        (Script(fault="cut"), "cut", "in the middle of the answer"),
        (Script(fault="reset"), "cut", "in the middle of the answer"),
        (Script(fault="reset", fault_after=0), "cut", "before the first token"),
        (Script(fault="short"), "cut", "before the answer was complete"),
        (Script(fault="broken"), "broken", "broken JSON"),
        (Script(fault="error"), "error", "CUDA out of memory"),
        (Script(fault="flood"), "too-large", "characters"),
        (Script(fault="long-line"), "too-large", "a line of the stream"),
        (Script(status=500), "status", "HTTP 500: overloaded"),
        (Script(status=503, body=b"<html><h1>nginx</h1></html>"), "status", "HTTP 503: a web page"),
        (Script(status=401, body=b'{"detail": "no"}'), "status", "HTTP 401: no"),
        (Script(status=404, body=b""), "status", "HTTP 404"),
        (Script(body=b'{"choices": [{"message": {"content": "all"}}]}'), "no-stream", "it does not stream"),
        (Script(body=b'{"error": "Unexpected endpoint"}'), "no-stream", "Unexpected endpoint"),
        (Script(body=b"<html>", headers={"Content-Type": "text/html"}), "no-stream", "a web page"),
        (Script(headers={"Content-Encoding": "br"}), "no-stream", "compresses"),
        (Script(tokens=()), "empty", "empty"),
    ],
    ids=lambda value: value.fault or value.status if isinstance(value, Script) else None,
)
def test_a_fault_is_a_failure_in_words(server: FakeServer, script: Script, kind: str, said: str) -> None:
    server.script = script
    found = ask(server.url, replace(QUICK, total_s=1.0))
    assert found.failure is not None
    assert (found.failure.kind, said in found.failure.words) == (kind, True), found.failure
    assert "\n" not in found.failure.words


def test_an_answer_without_end_is_stopped_at_the_limit(server: FakeServer) -> None:
    server.script = Script(gap_s=0.1, tokens=("x",) * 100)
    found = ask(server.url, replace(QUICK, idle_s=60.0, total_s=1.0))
    assert found.failure is not None
    assert (found.failure.kind, "was not complete within 1.00 s" in found.failure.words) == ("timeout", True)


def test_what_had_arrived_before_a_fault_is_kept(server: FakeServer) -> None:
    server.script = Script(fault="reset")
    assert len(ask(server.url).arrivals) == 3


def test_a_429_says_how_long_to_wait(server: FakeServer) -> None:
    server.script = Script(status=429, headers={"Retry-After": "7"})
    failure = ask(server.url).failure
    assert failure is not None
    assert (failure.status, failure.retry_after_s) == (429, 7.0)
    assert failure.words == "HTTP 429: overloaded; it asks to wait 7.00 s"


@pytest.mark.parametrize(("stated", "waits"), [(60, True), (-60, True), (None, False)])
def test_a_429_may_name_the_time_at_which_to_come_again(server: FakeServer, stated: int | None, waits: bool) -> None:
    date = "soon" if stated is None else formatdate(time.time() + stated, usegmt=True)
    server.script = Script(status=429, headers={"Retry-After": date})
    failure = ask(server.url).failure
    assert failure is not None and (failure.retry_after_s is not None) == waits
    assert not waits or failure.retry_after_s == pytest.approx(max(0, stated or 0), abs=3)


def test_a_server_that_keeps_the_stream_open_after_its_end_loses_nothing(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "DRAIN_S", 0.5)
    server.script = Script(fault="open")
    found = ask(server.url)
    assert found.failure is None
    assert found.end_s - found.arrivals[-1].at < 0.4  # and waiting is no part of it


def test_a_connection_that_the_server_gave_up_silently_is_no_failure(server: FakeServer) -> None:
    """llama-server promises Keep-Alive and closes after each stream."""
    import asyncio

    async def main() -> list[Exchange]:
        async with Client(server.url, QUICK) as client:
            found: list[Exchange] = []
            for _ in range(3):
                found += await asyncio.gather(*(client.stream(PATH, body()) for _ in range(4)))
            return found

    server.script = Script(one_answer=True)
    found = run(main())
    assert [each.failure for each in found] == [None] * 12
    assert len(server.requests) == 12


def test_a_connection_that_is_closed_after_a_while_is_a_failure(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server had begun to work, and to send the request again would hide that it failed."""
    monkeypatch.setattr(client_module, "STALE_S", 0.1)
    server.script = Script(one_answer=True, dies_s=0.3)

    async def main() -> list[Exchange]:
        async with Client(server.url, QUICK) as client:
            return [await client.stream(PATH, body()) for _ in range(2)]

    first, second = run(main())
    assert first.failure is None
    assert second.failure is not None and second.failure.kind == "cut"


def test_a_connection_that_is_not_made_in_time_is_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    import aiohttp

    async def never(*args: Any, **more: Any) -> Any:
        raise aiohttp.ConnectionTimeoutError("Connection timeout to host")

    monkeypatch.setattr(aiohttp.TCPConnector, "_create_connection", never)
    failure = ask("http://127.0.0.1:9").failure
    assert failure is not None
    assert (failure.kind, failure.words) == ("refused", "no connection within 2.00 s")


def test_an_answer_of_two_gigabytes_is_stopped_early(server: FakeServer) -> None:
    server.script = Script(body=b"x" * (20 << 20))
    failure = ask(server.url).failure
    assert failure is not None
    assert failure.words == "the server sent more than 8.00 MiB that is no stream"


def test_where_nothing_listens_is_no_server() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        failure = ask(f"http://127.0.0.1:{free.getsockname()[1]}").failure
    assert failure is not None
    assert (failure.kind, failure.words) == ("refused", "no server there: connection refused")


def test_several_addresses_that_fail_differently_are_no_unknown_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """``localhost`` is two addresses on most machines."""
    import aiohttp

    async def none_of_them(self: Any, request: Any, *args: Any, **more: Any) -> Any:
        raise aiohttp.ClientConnectorError(request.connection_key, OSError("Multiple exceptions: …"))

    monkeypatch.setattr(aiohttp.TCPConnector, "_create_connection", none_of_them)
    failure = ask("http://localhost:9").failure
    assert failure is not None
    assert failure.words == "no server there: no connection"


def test_a_name_that_does_not_resolve_is_no_server() -> None:
    failure = ask("http://no-such-host.invalid").failure
    assert failure is not None
    assert (failure.kind, failure.words) == ("refused", "no server there: its name is not known")


def test_something_that_does_not_speak_http_is_said_to() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        import threading

        def greet() -> None:
            with suppress(OSError):  # the test may be over before somebody calls again
                for _ in range(2):
                    connection, _address = other.accept()
                    connection.recv(10)
                    connection.sendall(b"SSH-2.0-OpenSSH_9.6\r\n")
                    connection.close()

        thread = threading.Thread(target=greet, daemon=True)
        thread.start()
        failure = ask(f"http://127.0.0.1:{other.getsockname()[1]}").failure
    assert failure is not None
    assert failure.kind in ("broken", "cut")


# Keys


def everything(found: Exchange) -> str:
    return repr(found) + str(found.failure)


@pytest.mark.parametrize(
    "script",
    [
        Script(status=401, body=f'{{"error": "invalid key {CANARY}"}}'.encode()),
        Script(body=f'{{"error": "invalid key {CANARY}"}}'.encode()),
        Script(tokens=("Your key is ", CANARY[:5], CANARY[5:])),
        Script(reasoning=(CANARY,)),
        Script(timings={"prompt_ms": 1.0, "note": CANARY}),
        Script(status=302, headers={"Location": f"http://elsewhere.example/?key={CANARY}"}),
        Script(fault="hang"),
        Script(fault="reset"),
        Script(status=500, body=b"x" * 280 + f"{CANARY} is wrong".encode()),  # cut within the key
        Script(
            body=b'data: {"' + b"x" * 60 + f"{CANARY}\n\n".encode(), headers={"Content-Type": "text/event-stream"}
        ),
        Script(status=302, headers={"Location": f"http://elsewhere.example/{quote(CANARY, safe='')}"}),
        Script(status=302, headers={"Location": f"http://elsewhere.example/?{CANARY.replace('-', '%2D')}"}),
    ],
    ids=range(12),
)
def test_a_key_that_the_server_repeats_shows_nowhere(
    server: FakeServer, script: Script, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(KEY, CANARY)
    server.script = script
    found = ask(server.url, replace(QUICK, total_s=0.5))
    assert server.paths[0][1]["Authorization"] == f"Bearer {CANARY}"  # it was sent
    said = everything(found) + "".join(capfd.readouterr())
    assert CANARY[:9] not in said and CANARY[-9:] not in said


def test_a_key_is_in_no_repr_and_in_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, CANARY)
    client = Client("http://127.0.0.1:9")
    assert CANARY not in repr(client) + repr(client._key) + str(vars(client))
    try:
        run(client.stream(PATH, {}))
    except AssertionError as error:
        assert CANARY not in "".join(traceback.format_exception(error))
    try:
        ask_models("http://127.0.0.1:9")
    except StreamStopped as error:
        assert CANARY not in "".join(traceback.format_exception(error)) + repr(error.failure)


def ask_models(root: str) -> Any:
    async def main() -> Any:
        async with Client(root, QUICK) as client:
            return await client.get("/v1/models")

    return run(main())


def test_a_key_that_no_header_holds_is_refused_without_showing_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, f"{CANARY}\nX-Evil: 1")
    with pytest.raises(ProfileError) as error:
        Client("http://127.0.0.1:9")
    assert CANARY not in str(error.value)


def test_a_redirect_is_not_followed_and_takes_no_key_along(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY, CANARY)
    with FakeServer() as other:
        server.script = Script(status=307, headers={"Location": f"{other.url}{PATH}"})
        failure = ask(server.url).failure
        assert other.paths == []
    assert failure is not None
    assert (failure.kind, other.url in failure.words) == ("redirect", True)


def test_other_programs_keys_are_not_taken(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The key of a provider is nothing for whichever server somebody measures."""
    monkeypatch.setenv("OPENAI_API_KEY", CANARY)
    ask(server.url)
    assert "Authorization" not in server.paths[0][1]


# TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for another name, which nobody has signed."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("there is no openssl to make a certificate with")
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    subprocess.run(
        [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=elsewhere.example",
         "-keyout", str(path), "-out", str(path.with_name("cert.pem"))],
        check=True, capture_output=True,
    )  # fmt: skip
    path.write_text(path.read_text() + path.with_name("cert.pem").read_text())
    return path


def test_a_certificate_is_checked_unless_the_user_says_otherwise(certificate: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with FakeServer(tls=context) as server:
        failure = ask(server.url).failure
        assert failure is not None
        assert failure.kind == "certificate"
        assert failure.words.startswith("TLS failed: self")
        assert failure.hint is not None and "--insecure" in failure.hint
        assert server.paths == []  # nothing was sent
        assert ask(server.url, insecure=True).failure is None


# Addresses


@pytest.mark.parametrize(
    ("typed", "root"),
    [
        ("localhost:1234", "http://localhost:1234"),
        ("http://localhost:1234/", "http://localhost:1234"),
        ("http://localhost:1234/v1", "http://localhost:1234"),
        ("https://box/v1/chat/completions", "https://box"),
        ("https://box/openai/v1/models", "https://box/openai"),
        ("http://[::1]:8000", "http://[::1]:8000"),
        ("box", "http://box"),
    ],
)
def test_every_way_to_write_an_address_leads_to_the_root(typed: str, root: str) -> None:
    assert parse_url(typed) == root


@pytest.mark.parametrize(
    "typed",
    ["", "http://", "ftp://host", "http://host:99999", f"http://user:{CANARY}@host", f"http://host/?key={CANARY}", "http://[::"],
)  # fmt: skip
def test_what_is_no_address_is_refused_without_repeating_a_secret(typed: str) -> None:
    with pytest.raises(ProfileError) as error:
        parse_url(typed)
    assert CANARY not in str(error.value)


# The client's own delay


def test_the_client_states_how_late_it_may_have_been(server: FakeServer) -> None:
    """A loop that is held up for 50 ms says so; an idle one does not."""
    import asyncio
    import time

    server.script = Script(gap_s=0.01, tokens=("x ",) * 40)

    async def main(hold: bool) -> float:
        async def hinder() -> None:
            while hold:
                await asyncio.sleep(0.02)
                time.sleep(0.05)

        async with Client(server.url) as client:
            task = asyncio.create_task(hinder())
            await client.stream(PATH, body(40))
            task.cancel()
            return max(client.delays)

    assert run(main(hold=True)) > 0.04
    quiet: Callable[[], float] = lambda: run(main(hold=False))  # noqa: E731
    assert min(quiet() for _ in range(3)) < 0.04


def test_no_garbage_is_collected_while_tokens_arrive() -> None:
    with undisturbed():
        assert not gc.isenabled()
    assert gc.isenabled()
    assert core_wait_s() >= 0.0
