"""Greedy completions by the llama-server of a build, with the probabilities that it computed.

Two builds that compute the same give the same tokens. Rounding differs between builds, which shows in the
probabilities, and in the tokens only where two are almost equally likely.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from profiler.backends.base import Completion
from profiler.backends.llama_cpp.build import SERVER, Build
from profiler.backends.llama_cpp.program import STAMP, ProgramFailed, cause_of, die_with
from profiler.case import Case, Source
from profiler.devices import find
from profiler.errors import ProfileError
from profiler.folders import describe
from profiler.foreign import BadContent, json_value
from profiler.units import printable

TOKENS = 48  # generated after each prompt
LIKELIEST = 20  # tokens at each place whose probabilities are compared
CONTEXT = 512  # tokens: the longest prompt and what is generated, with room for a tokenizer that splits more
LOAD_S, ANSWER_S = 600.0, 300.0  # a large model from a slow disk; a build without vector instructions
POLL_S = 0.05
LOG_BYTES = 64 * 1024  # of the end of the server's log, in which the cause of a failure is looked for
PROMPTS = (
    "The lighthouse keeper wrote in his journal every evening. Tonight he began with the weather, and then he wrote",
    "def quicksort(values: list[int]) -> list[int]:\n    if len(values) <= 1:\n        return values\n",
    "Die drei größten Städte sind Berlin, Hamburg und München. 東京は日本の首都です。 2, 3, 5, 7, 11, 13,",
)


def complete(case: Case, source: Source, build: Build) -> list[Completion]:
    """What the model of ``case`` generates after each of ``PROMPTS``. Raises ProfileError with the reason if none."""
    if case.weights == "synthetic":
        raise ProfileError("random weights give tokens that mean nothing")
    with _serving(build.server(case, Path(source.location), CONTEXT), _environment(build, case)) as port:
        return [_completion(_post(port, prompt)) for prompt in PROMPTS]


def _environment(build: Build, case: Case) -> dict[str, str]:
    uuid = find(case.device).uuid
    return build.environment(case.device) | ({} if uuid is None else {"CUDA_VISIBLE_DEVICES": uuid})


@contextmanager
def _serving(command: Sequence[str], environ: Mapping[str, str]) -> Iterator[int]:
    """The port of a server that has loaded its model, which ends with the block. Raises ProgramFailed."""
    port, parent = _free_port(), os.getpid()
    with tempfile.TemporaryFile() as log:
        try:
            process = subprocess.Popen(
                [*command, "--host", "127.0.0.1", "--port", str(port)],
                env=dict(environ),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=lambda: die_with(parent),
            )
        except OSError as error:
            raise ProgramFailed(f"{printable(command[0])} cannot be started: {describe(error)}") from None
        try:
            _wait_until_loaded(process, port)
            yield port
        except (OSError, http.client.HTTPException) as error:
            ended = process.poll()
            log.seek(max(0, log.seek(0, os.SEEK_END) - LOG_BYTES))
            lines = [STAMP.sub("", line).strip() for line in log.read().decode("utf-8", "replace").splitlines()]
            why = cause_of(lines) if ended is not None else describe(error) if isinstance(error, OSError) else None
            how = "does not answer" if ended is None else f"ended with code {ended}"
            raise ProgramFailed(printable(f"{SERVER} {how}: {why or 'it printed no reason'}", 300)) from None
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()


def _free_port() -> int:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return int(unused.getsockname()[1])


def _wait_until_loaded(process: subprocess.Popen[bytes], port: int) -> None:
    """Raises OSError if it ends, or does not load within ``LOAD_S``."""
    deadline = time.monotonic() + LOAD_S
    while process.poll() is None and time.monotonic() < deadline:
        with suppress(OSError, http.client.HTTPException):
            if _asked(port, "GET", "/health", None, 10.0)[0] == 200:
                return
        time.sleep(POLL_S)
    raise TimeoutError(f"the model was not loaded within {LOAD_S:.0f} s")


def _post(port: int, prompt: str) -> Any:
    wanted = {
        "prompt": prompt,
        "n_predict": TOKENS,
        "temperature": 0,
        "seed": 0,
        "n_probs": LIKELIEST,
        "return_tokens": True,
        "cache_prompt": False,
        "ignore_eos": True,
    }
    status, content = _asked(port, "POST", "/completion", json.dumps(wanted), ANSWER_S)
    if status != 200:
        raise ProgramFailed(f"{SERVER} refused a completion: {printable(content.decode('utf-8', 'replace'), 200)}")
    try:
        return json_value(content)
    except BadContent as error:
        raise ProgramFailed(f"{SERVER} sent a completion that is not JSON: {printable(error)}") from None


def _asked(port: int, method: str, path: str, body: str | None, seconds: float) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=seconds)
    try:
        connection.request(method, path, body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def _completion(answer: Any) -> Completion:
    """A completion of a server since b4300 (2024-12), which names its tokens. Raises ProgramFailed."""
    try:
        tokens = tuple(answer["tokens"])
        if not tokens or not all(type(token) is int for token in tokens):
            raise ValueError
        places = answer["completion_probabilities"][: len(tokens)]
        texts = tuple(str(place["token"]) for place in places)
        logprobs = tuple({each["id"]: float(each["logprob"]) for each in place["top_logprobs"]} for place in places)
    except (KeyError, TypeError, ValueError):
        raise ProgramFailed(f"this {SERVER} does not return the tokens of a completion: it is too old") from None
    return Completion(tokens, texts, logprobs)
