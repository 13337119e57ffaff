"""Questions to the interpreter of a side, before anything is measured: what it is, and whether it takes our orders.

What answers may be any program a person typed, so nothing it says is believed unless it is in the form that our own
few lines of Python print: they repeat a word that was drawn for this question. Its output is bounded, and it is gone
when the question is over.
"""

from __future__ import annotations

import json
import os
import secrets
import select
import shlex
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

from profiler.errors import ProfileError
from profiler.measure.environ import worker_environment
from profiler.measure.process import Launch
from profiler.measure.protocol import Order, encode
from profiler.results.environment import LIBRARIES
from profiler.units import bytes_text, printable

ANSWER_S = 60.0  # an interpreter on a network file system may take its time, and so does importing torch
MOST_BYTES = 1024**2  # of output: `yes` must not fill the memory
LAST_WORDS = 12
PYTHON = "It takes a Python of 3.11 or newer, or a command that becomes one, such as: taskset -c 0 python3"

ABOUT = """
import json, sys
from importlib import metadata, util
def version(name):
    try: return metadata.version(name)
    except metadata.PackageNotFoundError: return None
spec = util.find_spec("profiler")
worker = spec and spec.submodule_search_locations and util.find_spec("profiler.measure")
worker = worker and util.find_spec("profiler.measure.worker")
print("\\n" + sys.argv[1], json.dumps({"python": sys.version.split()[0], "executable": sys.executable,
    "prefix": sys.prefix, "code": spec and spec.origin, "worker": bool(worker),
    "libraries": {n: version(n) for n in sys.argv[2:]}}))
"""

# As a worker does it: orders are read, then the backend is imported, which imports what runs the models.
READY = """
import json, sys
def fault():
    from profiler import registry
    from profiler.measure import protocol, worker
    orders = [protocol.Order.from_json(json.loads(line)) for line in sys.stdin]
    for name in sorted({order.case.backend for order in orders}):
        registry.load("backends", name, "backend")
    for device in sorted({order.case.device for order in orders}):
        if device.startswith("cuda") and "torch" in sys.modules and not sys.modules["torch"].cuda.is_available():
            return f"its torch {sys.modules['torch'].__version__} cannot use a GPU"
    from profiler import devices
    for order in orders:
        quant = registry.load("quants", order.case.quant, "quantization").QUANT
        reason = "torch" in sys.modules and quant.unavailable(devices.find(order.case.device))
        if reason:
            return reason
try: said = fault()
except BaseException as error: said = f"{type(error).__name__}: {error}"
print("\\n" + sys.argv[1], json.dumps({"fault": said}))
"""


def about(launch: Launch) -> dict[str, Any]:
    """What an interpreter says of itself: python, executable, prefix, code, worker and libraries.

    Raises ProfileError for what is no Python that answers.
    """
    facts = _ask(launch, ABOUT, LIBRARIES)
    texts = all(isinstance(facts.get(name), str) for name in ("python", "executable", "prefix"))
    libraries = facts.get("libraries")
    if not texts or not isinstance(libraries, dict) or not isinstance(facts.get("worker"), bool):
        raise ProfileError(f"{_shown(launch)} does not answer as Python does", PYTHON)
    return facts


def fault(launch: Launch, orders: Iterable[Order]) -> str | None:
    """Why the profiler that this interpreter has cannot take these orders, in words; None if it can.

    Raises ProfileError if it does not answer at all.
    """
    said = _ask(launch, READY, (), b"".join(encode(order.to_json(), finite=False) for order in orders)).get("fault")
    return None if said is None else printable(" ".join(str(said).split()), 300)


def _ask(launch: Launch, program: str, arguments: Iterable[str], stdin: bytes = b"") -> dict[str, Any]:
    """The object that ``program`` prints behind the word it is given."""
    word = secrets.token_hex(8)
    command = [*launch.python, "-P", "-c", program, word, *arguments]
    try:
        heard, ended = _hear(command, worker_environment(os.environ) | dict(launch.environ), stdin)
    except (OSError, ValueError) as error:  # ValueError: a NUL byte
        said = getattr(error, "strerror", None) or error
        raise ProfileError(f"{_shown(launch)} cannot be started: {printable(said)}", PYTHON) from None
    for line in heard.decode("utf-8", "replace").splitlines():
        if line.startswith(f"{word} "):
            with suppress(ValueError, RecursionError):
                content = json.loads(line.removeprefix(f"{word} "))
                if isinstance(content, dict):
                    return content
    if ended is not None:
        raise ProfileError(f"{_shown(launch)} {ended}", PYTHON)
    text = printable(" ".join(heard.decode("utf-8", "replace").split()[-LAST_WORDS:]))
    raise ProfileError(f"{_shown(launch)} is not a Python that answers: {text or 'it said nothing'}", PYTHON)


def _hear(command: list[str], environ: Mapping[str, str], stdin: bytes) -> tuple[bytes, str | None]:
    """What a command prints, and what is wrong with it if it had to be ended. Raises OSError, ValueError."""
    with tempfile.TemporaryFile() as orders:
        orders.write(stdin)
        orders.seek(0)
        process = subprocess.Popen(
            command,
            env=dict(environ),
            stdin=orders,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    assert process.stdout is not None  # asked for
    heard, deadline = bytearray(), time.monotonic() + ANSWER_S
    try:
        while len(heard) < MOST_BYTES:
            left = deadline - time.monotonic()
            if left <= 0:
                return bytes(heard), f"did not answer within {ANSWER_S:.0f} s"
            gone = process.poll() is not None
            if select.select([process.stdout], [], [], 0.0 if gone else min(left, 0.1))[0]:
                chunk = os.read(process.stdout.fileno(), 1 << 16)
                if not chunk and gone:
                    return bytes(heard), None
                if not chunk:  # closed, and still running: it has nothing more to say to us
                    time.sleep(0.01)
                heard += chunk
            elif gone:  # what it left behind holds the pipe
                return bytes(heard), None
        return bytes(heard), f"printed more than {bytes_text(MOST_BYTES)} in place of an answer"
    finally:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()


def _shown(launch: Launch) -> str:
    return printable(shlex.join(launch.python))
