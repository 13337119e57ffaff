"""The CPU time of the client of ``profile endpoint`` and the accuracy of its times, with many streams at once.

    python benchmarks/endpoint_load.py --streams 64 --rate 50 --tokens 500

The server of the tests runs in a separate process and sends, as each token, the time at which it sends it. Both
processes read the same clock (Linux's CLOCK_MONOTONIC). So a time measured here is compared with the server's own,
and a server that is late does not count as an error of the client.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from profiler.backends.endpoint import Exchange, figures
from profiler.backends.endpoint.client import Client, run, undisturbed
from profiler.results.stats import percentile

TESTS = Path(__file__).parents[1] / "tests"


@contextmanager
def server(rate: float, first_s: float) -> Iterator[str]:
    command = [
        sys.executable,
        "-m",
        "fakes.openai_server",
        "--stamped",
        "--gap",
        f"{1 / rate}",
        "--first",
        f"{first_s}",
    ]
    with subprocess.Popen(command, cwd=TESTS, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


async def load(root: str, streams: int, tokens: int) -> tuple[list[Exchange], float, list[float]]:
    """Exchanges, CPU seconds of this process, and the delays with which arrivals may have been recorded."""
    import asyncio

    body = {
        "model": "tiny-Q4_K_M",
        "messages": [{"role": "user", "content": "x"}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": tokens,
    }
    async with Client(root) as client:
        await asyncio.gather(
            *(client.stream("/v1/chat/completions", body | {"max_tokens": 2}) for _ in range(streams))
        )
        client.delays.clear()
        cpu = time.process_time()
        with undisturbed():
            found = await asyncio.gather(*(client.stream("/v1/chat/completions", body) for _ in range(streams)))
        return list(found), time.process_time() - cpu, client.delays


def sent(exchange: Exchange) -> list[float]:
    """When the server sent each token."""
    return [float(word) for word in exchange.answer.split()]


def quantiles(name: str, seconds: Sequence[float]) -> str:
    ordered = sorted(seconds)
    shown = (
        f"{label} {1e3 * percentile(ordered, at):.2f}" for label, at in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))
    )
    return f"{name}: {', '.join(shown)}, max {1e3 * ordered[-1]:.2f} ms"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--rate", type=float, default=50.0, help="tokens per second of each stream")
    parser.add_argument("--tokens", type=int, default=500)
    parser.add_argument("--first", type=float, default=0.2, help="seconds to the first token")
    asked = parser.parse_args()
    with server(asked.rate, asked.first) as root:
        exchanges, cpu, delays = run(load(root, asked.streams, asked.tokens))
    assert all(each.failure is None for each in exchanges), [each.failure for each in exchanges if each.failure]
    arrived = [[arrival.at for arrival in each.arrivals] for each in exchanges]
    stamps = [sent(each) for each in exchanges]
    tokens = sum(map(len, stamps))
    late = [
        at - then for ats, thens in zip(arrived, stamps, strict=True) for at, then in zip(ats, thens, strict=False)
    ]
    gaps = [
        abs((ats[n + 1] - ats[n]) - (thens[n + 1] - thens[n]))
        for ats, thens in zip(arrived, stamps, strict=True)
        for n in range(min(len(ats), len(thens)) - 1)
    ]
    ttft = [abs(ats[0] - thens[0]) for ats, thens in zip(arrived, stamps, strict=True)]
    rates = sorted(rate for each in exchanges if (rate := figures(each).decode_tps))
    print(f"{asked.streams} streams at {asked.rate:g} tokens/s, {tokens:,} tokens")
    print(f"client CPU: {1e6 * cpu / tokens:.1f} µs per token")
    print(quantiles("arrival after sending", late))
    print(quantiles("error of TTFT", ttft))
    print(quantiles("error of ITL", gaps))
    print(quantiles("delay reported by the client", delays))
    print(f"decode of a stream: {rates[0]:.2f} to {rates[-1]:.2f} tokens/s")


if __name__ == "__main__":
    main()
