"""The sandbox: what code of a model can compute, and that it reaches nothing and takes no more than its limits."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from profiler.quality import sandbox, sandboxed
from profiler.quality.sandbox import CallResult, SandboxError


@pytest.fixture(autouse=True)
def _sandbox(request: pytest.FixtureRequest) -> None:
    if "outside" not in request.keywords and (why := sandbox.unavailable()) is not None:
        pytest.skip(why)


def called(code: str, *arguments: Any) -> CallResult:
    """The result of ``f`` in ``code``."""
    (result,) = sandbox.run(code, "f", [arguments]).results
    return result


def test_values_come_back_as_json_and_prints_do_not() -> None:
    code = "def f(a, b=1):\n    print('noise')\n    return {'sum': [a + b, (a, b)]}"
    ran = sandbox.run(code, "f", [[1, 2], [1]])
    assert ran.results == (CallResult({"sum": [3, [1, 2]]}), CallResult({"sum": [2, [1, 1]]}))
    assert ran.failure is None


def test_an_error_is_that_of_its_call_and_the_next_call_runs() -> None:
    ran = sandbox.run("def f(n):\n    return 1 / n", "f", [[0], [2]])
    assert ran.results == (
        CallResult(None, "ZeroDivisionError", "ZeroDivisionError: division by zero"),
        CallResult(0.5),
    )


@pytest.mark.parametrize(
    ("code", "failure"),
    [
        ("def f(:", "SyntaxError: invalid syntax (answer.py, line 1)"),
        ("def g(): return 1", "it does not define f"),
        ("raise SystemExit(0)", "SystemExit: 0"),
        ("import os; os._exit(0)", "it takes too much time or memory, or ends the program"),
        ("import os; os.write(1, b'[]\\n')\ndef f(): return 1", "it wrote among its results"),
        ("import sys; sys.__stdout__.write('x' * (1 << 22)); sys.__stdout__.flush()", "it"),
    ],
)
def test_code_that_does_not_run_says_why(code: str, failure: str) -> None:
    ran = sandbox.run(code, "f", [[]])
    assert ran.results == () and ran.failure is not None and ran.failure.startswith(failure)


def test_the_order_of_a_set_is_the_same_each_time() -> None:
    code = "def f():\n    return list(set('abcdefgh'))"
    assert called(code) == called(code)


# What it cannot reach


def test_there_is_no_network_not_even_the_loopback() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        code = "import socket\ndef f(host, port):\n    socket.create_connection((host, port), 1).close()"
        for host in ("127.0.0.1", "192.0.2.1"):
            assert called(code, host, port).text == "OSError: [Errno 101] Network is unreachable"
    code = "import socket\ndef f():\n    return [name for _, name in socket.if_nameindex()]"
    assert called(code).value == ["lo"]


def test_no_file_of_a_person_is_there(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    code = "def f(path):\n    return open(path).read()"
    for path in (secret, Path.home() / ".bashrc", "/etc/passwd", "/etc/hostname", "/proc/self/environ", __file__):
        assert called(code, str(path)).raised == "FileNotFoundError", path


def test_it_writes_only_to_a_small_folder_in_memory() -> None:
    code = "import sys\ndef f(path):\n    open(path, 'w').write('x')\n    return 1"
    library = os.path.dirname(os.__file__)
    for path in ("/x", "/usr/x", f"{library}/x", os.path.realpath(os.__file__)):
        assert called(code, path).raised in ("OSError", "PermissionError"), path
    assert called(code, "/tmp/x").value == 1
    fill = "def f():\n    for n in range(99):\n        open(f'/tmp/{n}', 'wb').write(bytes(1 << 20))"
    assert called(fill).text == "OSError: [Errno 28] No space left on device"
    assert (
        called("def f():\n    open('/tmp/x', 'wb').write(bytes(2 << 20))").text
        == "OSError: [Errno 27] File too large"
    )


def test_it_is_nobody_alone_and_knows_nothing_of_us(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROFILE_API_KEY", "sk-canary")
    code = (
        "import os\ndef f():\n    return [os.getuid(), os.getpid(), os.getppid(), dict(os.environ), os.listdir('.')]"
    )
    assert called(code).value == [sandboxed.NOBODY, 1, 0, sandboxed.ENVIRONMENT, []]
    known = called("import os\ndef f():\n    return [n for n in range(64) if os.path.exists(f'/dev/fd/{n}')]").value
    assert known == []


def test_it_gets_no_rights_back() -> None:
    code = (
        "import ctypes\nlibc = ctypes.CDLL(None)\n"
        "def f():\n    mount = libc.mount(b'tmpfs', b'/tmp', b'tmpfs', 0, None)\n"
        "    return [libc.unshare(0x10000000), libc.chroot(b'/tmp'), libc.setuid(0), mount]"
    )
    assert called(code).value == [-1, -1, -1, -1]


# Its limits


def test_it_cannot_fork_or_start_a_thread() -> None:
    assert called("import os\ndef f():\n    os.fork()").raised == "BlockingIOError"
    thread = "import threading\ndef f():\n    threading.Thread(target=print).start()"
    assert called(thread).text == "RuntimeError: can't start new thread"


def test_it_gets_no_more_memory_than_its_limit() -> None:
    assert called("def f():\n    bytearray(1 << 30)").raised == "MemoryError"


def test_a_loop_ends_with_the_cpu_time_and_a_sleep_with_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sandboxed.LIMITS, sandboxed.resource.RLIMIT_CPU, 1)  # of the other process, from its file
    monkeypatch.setattr(sandbox, "WALL_S", 1.0)
    code = "import os, time\ndef f():\n    try:\n        os.setsid()\n    except OSError:\n        pass\n    time.sleep(99)"
    begin = time.monotonic()
    ran = sandbox.run(code, "f", [[]])
    assert (ran.results, ran.failure) == ((), sandbox.TOO_LONG)
    assert time.monotonic() - begin < 5
    left = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert sandboxed.FLAGS[0] + " -s -S" not in left


# Where it cannot be built


@pytest.mark.outside
def test_a_sandbox_that_cannot_be_built_is_an_error_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "VISIBLE", ("/dev/fd/99/nowhere",))
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(SandboxError, match="running code needs the namespaces of Linux"):
        sandbox.run("", "f", [])
