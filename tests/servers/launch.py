"""Start a real server on a free port, wait until it answers, and stop it afterwards.

    python tests/servers/launch.py llama-server model.gguf
    python tests/servers/launch.py transformers checkpoint-folder

As a program it prints the server's URL and runs until it is interrupted. Further arguments go to the server.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

START_S = 120.0  # importing PyTorch on a busy machine takes most of it


class NotHere(Exception):
    """The server is not installed; the message says what to install."""


def llama_server_binary() -> str:
    """llama.cpp's server: the environment variable ``LLAMA_SERVER``, else ``llama-server`` on the PATH."""
    found = shutil.which(os.environ.get("LLAMA_SERVER") or "llama-server")
    if found is None:
        raise NotHere(
            "llama-server is not on the PATH, and LLAMA_SERVER does not name it: see tests/servers/README.md"
        )
    return found


@contextmanager
def llama_server(gguf: Path, *more: str) -> Iterator[str]:
    """The URL of llama.cpp's server with one model, one slot and one thread, unless ``more`` says otherwise."""
    command = [llama_server_binary(), "-m", str(gguf), "-c", "8192", "-np", "1", "-t", "1", "--no-webui", *more]
    with _running(command, {}) as url:
        yield url


@contextmanager
def transformers_serve(folder: Path, *more: str) -> Iterator[str]:
    """The URL of ``transformers serve`` with the checkpoint in ``folder``, on the CPU with one thread.

    It finds no hub, and looks for models in an empty cache.
    """
    missing = [name for name in ("fastapi", "uvicorn", "openai") if not _installed(name)]
    if missing:
        raise NotHere(f"transformers serve needs {', '.join(missing)}: pip install 'transformers[serving]'")
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(folder), "--device", "cpu", *more]
    with tempfile.TemporaryDirectory() as home:
        (Path(home) / "hub").mkdir()  # without it, the list of models is an error 500
        with _running(command, {"HF_HOME": home, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}) as url:
            yield url


def _installed(module: str) -> bool:
    from importlib.util import find_spec

    return find_spec(module) is not None


@contextmanager
def _running(command: Sequence[str], environment: dict[str, str]) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            env=os.environ | environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        try:
            deadline = time.monotonic() + START_S
            while not _answers(url):
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(max(0, log.tell() - 2000))
                    said = log.read().decode(errors="replace")
                    raise RuntimeError(f"{command[0]} did not start within {START_S:.0f} s:\n{said}")
                time.sleep(0.1)
            yield url
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def main() -> None:
    servers = {"llama-server": llama_server, "transformers": transformers_serve}
    if len(sys.argv) < 3 or sys.argv[1] not in servers:
        sys.exit(f"usage: launch.py {'|'.join(servers)} MODEL [ARGUMENT…]")
    for each in (signal.SIGINT, signal.SIGTERM):  # a shell lets its background jobs ignore the first
        signal.signal(each, signal.default_int_handler)
    try:
        with servers[sys.argv[1]](Path(sys.argv[2]), *sys.argv[3:]) as url:
            print(url, flush=True)
            signal.pause()
    except NotHere as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()
