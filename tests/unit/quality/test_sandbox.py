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

from profiler import folders
from profiler.quality import sandbox, sandboxed
from profiler.quality.sandbox import CallResult, CodeRun, SandboxError

ENDED = "it takes too much time or memory, or ends the program"


def ran(code: str, *calls: list[Any]) -> CodeRun:
    """What ``f`` in ``code`` gave, if there is a sandbox here."""
    if (why := sandbox.unavailable()) is not None:
        pytest.skip(why)
    return sandbox.run(code, "f", calls)


def called(code: str, *arguments: Any) -> CallResult:
    """The result of one call."""
    (result,) = ran(code, list(arguments)).results
    return result


def test_values_come_back_as_json_and_prints_do_not() -> None:
    code = "def f(a, b=1):\n    print('noise')\n    return {'sum': [a + b, (a, b)]}"
    assert ran(code, [1, 2], [1]) == CodeRun((CallResult({"sum": [3, [1, 2]]}), CallResult({"sum": [2, [1, 1]]})))


def test_an_error_is_that_of_its_call_and_the_next_call_runs() -> None:
    names = ("ZeroDivisionError", "ArithmeticError", "Exception", "BaseException", "object")
    error = CallResult(None, names, "ZeroDivisionError: division by zero")
    assert ran("def f(n):\n    return 1 / n", [0], [2]).results == (error, CallResult(0.5))


@pytest.mark.parametrize(
    ("code", "failure"),
    [
        ("def f(:", "SyntaxError: invalid syntax (answer.py, line 1)"),
        ("def g(): return 1", "it does not define f"),
        ("raise SystemExit(0)", "SystemExit: 0"),
        ("import os; os._exit(0)", ENDED),
        ("import os; os.write(1, b'[]\\n')\ndef f(): return 1", "it wrote among its results"),
        ("import os; os.write(1, b'{}\\n' * 99)\ndef f(): return 1", "it wrote among its results"),
        ("import os; os.write(1, bytes(1 << 22)); os.write(1, bytes(1 << 22))", ""),
    ],
)
def test_code_that_does_not_run_says_why(code: str, failure: str) -> None:
    found = ran(code, [])
    assert found.results == () and found.failure is not None and found.failure.startswith(failure)


def test_the_order_of_a_set_is_the_same_each_time() -> None:
    code = "def f():\n    return list(set('abcdefgh'))"
    assert called(code) == called(code)


def test_a_dataclass_finds_its_module() -> None:
    code = "from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\nclass P:\n    x: int\n"
    assert called(f"{code}def f():\n    return P(3).x").value == 3


# What it cannot reach


def test_there_is_no_network_not_even_the_loopback() -> None:
    code = "import socket\ndef f(host, port):\n    socket.create_connection((host, port), 1).close()"
    with socket.create_server(("127.0.0.1", 0)) as server:
        for host in ("127.0.0.1", "192.0.2.1"):
            assert called(code, host, server.getsockname()[1]).text == "OSError: [Errno 101] Network is unreachable"
    assert called("import socket\ndef f():\n    return [name for _, name in socket.if_nameindex()]").value == ["lo"]


def test_no_file_of_a_person_is_there(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    for path in (secret, "/etc/passwd", "/etc/hostname", "/proc/self/environ", __file__, sandbox.__file__):
        error = called("def f(path):\n    return open(path).read()", str(path))
        assert error.raised[:1] == ("FileNotFoundError",), path
    home = "import os\ndef f(path):\n    return os.listdir(path) if os.path.exists(path) else []"
    python = os.path.realpath(sys.base_prefix)
    shown = called(home, str(Path.home())).value
    assert [each for each in shown if not python.startswith(f"{Path.home()}/{each}")] == []


def test_it_writes_only_to_a_small_folder_in_memory() -> None:
    code = "def f(path):\n    open(path, 'w').write('x')\n    return 1"
    library = os.path.realpath(os.__file__)
    for path in ("/x", "/usr/x", f"{os.path.dirname(library)}/x", library):
        assert called(code, path).raised[0] in ("OSError", "PermissionError"), path
    assert called(code, "/tmp/x").value == 1
    fill = "def f():\n    for n in range(99):\n        open(f'/tmp/{n}', 'wb').write(bytes(1 << 20))"
    assert called(fill).text == "OSError: [Errno 28] No space left on device"
    large = "def f():\n    open('/tmp/x', 'wb', 0).write(bytes(1 << 20)), open('/tmp/x', 'ab', 0).write(b'x')"
    assert called(large).text == "OSError: [Errno 27] File too large"


def test_it_is_nobody_alone_and_knows_nothing_of_us(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROFILE_API_KEY", "sk-canary")
    code = "import os\ndef f():\n    return [os.getuid(), os.getpid(), os.getppid(), dict(os.environ), os.listdir()]"
    assert called(code).value == [sandboxed.NOBODY, 2, 1, sandboxed.ENVIRONMENT, []]


def test_it_gets_no_rights_back() -> None:
    code = (
        "import ctypes\nlibc = ctypes.CDLL(None)\n"
        "def f():\n    mount = libc.mount(b'tmpfs', b'/tmp', b'tmpfs', 0, None)\n"
        "    return [libc.unshare(0x10000000), libc.chroot(b'/tmp'), libc.setuid(0), mount]"
    )
    assert called(code).value == [-1, -1, -1, -1]


# Its limits


def test_it_cannot_fork_or_start_a_thread() -> None:
    assert called("import os\ndef f():\n    os.fork()").raised[:1] == ("BlockingIOError",)
    thread = "import threading\ndef f():\n    threading.Thread(target=print).start()"
    assert called(thread).text == "RuntimeError: can't start new thread"


def test_it_gets_no_more_memory_than_its_limit() -> None:
    assert called("def f():\n    bytearray(1 << 30)").raised[:1] == ("MemoryError",)


def test_a_loop_ends_with_the_cpu_time() -> None:
    found = ran("def f(n):\n    while n:\n        pass\n    return n", [0], [1])
    assert found == CodeRun((CallResult(0),), ENDED)


SLEEP = "import os, time\ndef f():\n    os.setsid()\n    time.sleep(99)"
ESCAPE = SLEEP.replace("    time", "    import ctypes\n    ctypes.CDLL(None).prctl(1, 0, 0, 0, 0)\n    time")


@pytest.mark.parametrize("code", [SLEEP, ESCAPE], ids=["own session", "no signal at its parent's death"])
def test_a_sleep_ends_with_the_clock_and_leaves_no_process(code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if (why := sandbox.unavailable()) is not None:  # with the usual time
        pytest.skip(why)
    monkeypatch.setattr(sandbox, "WALL_S", 2.0)
    before = _serving()
    begin = time.monotonic()
    assert ran(code, []) == CodeRun((), sandbox.TOO_LONG)
    assert time.monotonic() - begin < 20
    assert not _left(before)


def test_code_ends_with_our_own_process_however_that_ends() -> None:
    if (why := sandbox.unavailable()) is not None:
        pytest.skip(why)
    before = _serving()
    program = f"from profiler.quality import sandbox; sandbox.run({ESCAPE!r}, 'f', [[]])"
    with subprocess.Popen([sys.executable, "-c", program], env=folders.child_environ(os.environ)) as ours:
        until = time.monotonic() + 20
        while not _serving() - before and time.monotonic() < until:
            time.sleep(0.1)
        started = _serving() - before
        time.sleep(0.5)  # until it has called prctl
        ours.kill()
    assert started and not _left(before)


def test_the_process_that_watches_the_code_cannot_be_stopped_or_traced_by_it() -> None:
    code = (
        "import ctypes, os\nlibc = ctypes.CDLL(None)\n"
        "def f():\n    for number in range(1, 65):\n        libc.kill(1, number)\n"
        "    return [libc.ptrace(16, 1, None, None), libc.ptrace(0x4206, 1, None, None)]"
    )
    assert called(code).value == [-1, -1]


def _left(before: set[str]) -> set[str]:
    """The processes of sandboxes that remain of those that were not there ``before``."""
    left, until = _serving() - before, time.monotonic() + 10
    while left and time.monotonic() < until:  # those of other tests end by themselves
        time.sleep(0.1)
        left &= _serving()
    return left


def _serving() -> set[str]:
    """The processes that run code in a sandbox."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if sandboxed.FLAGS[-1].encode() in words and words[-2:-1] == [b"serve"]:
            found.add(process.name)
    return found


# Where it cannot be built


def test_a_sandbox_that_cannot_be_built_is_an_error_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "_command", lambda top: ["/bin/sh", "-c", "echo new namespaces: not permitted >&2"])
    with pytest.raises(SandboxError, match="the sandbox could not be built: new namespaces: not permitted"):
        sandbox.run("", "f", [])
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(SandboxError, match="running code needs the namespaces of Linux"):
        sandbox.run("", "f", [])


def test_a_python_in_the_home_folder_itself_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "base_prefix", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path / "someone"))
    with pytest.raises(SandboxError, match="so that code could read the home folder"):
        sandbox.run("", "f", [])
