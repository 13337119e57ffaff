from __future__ import annotations

from pathlib import Path

import pytest

from profiler.devices import cgroup
from profiler.run import process
from profiler.run.process import cause

BAD_ALLOC = ["terminate called after throwing an instance of 'std::bad_alloc'", "  what():  std::bad_alloc"]


@pytest.mark.parametrize(
    ("returncode", "oom_killed", "output", "outcome", "words"),
    [
        (-9, True, [], "oom", "the kernel's OOM killer ended the worker in decode"),
        (-9, True, ["MemoryError"], "oom", "the kernel's OOM killer"),
        (-9, False, [], "failed", "the worker was killed by SIGKILL in decode, neither by this program nor by"),
        (-9, False, ["CUDA out of memory"], "failed", "the worker was killed by SIGKILL"),
        (-6, False, BAD_ALLOC, "oom", "out of memory in decode:   what():  std::bad_alloc"),
        (-6, True, [], "failed", "the worker was killed by SIGABRT in decode"),  # a stranger's OOM kill
        (1, False, ["Traceback", "MemoryError"], "oom", "out of memory in decode: MemoryError"),
        (1, False, ["CUDA out of memory"], "oom", "out of memory in decode: CUDA out of memory"),
        (
            1,
            False,
            ["out of memory, retrying", "a", "b", "c", "d", "bye"],
            "failed",
            "the worker exited in decode with",
        ),
        (
            0,
            False,
            ["out of memory, retrying"],
            "failed",
            "the worker exited in decode with code 0 and without a result",
        ),
        (-11, False, ["whatever"], "failed", "the worker was killed by SIGSEGV in decode"),
        (
            -6,
            False,
            ["terminate called after throwing an instance of 'c10::Error'", "  what():  bad dtype"],
            "failed",
            "the worker was killed by SIGABRT in decode:   what():  bad dtype",
        ),
        (-35, False, [], "failed", "the worker was killed by signal 35 in decode"),
        (3, False, ["a", "\x1b[31mb"], "failed", "the worker exited in decode with code 3 and without a result: b"),
        (3, False, [], "failed", "the worker exited in decode with code 3 and without a result"),
    ],
)
def test_the_cause_of_death_by_precedence(
    returncode: int, oom_killed: bool, output: list[str], outcome: str, words: str
) -> None:
    found, reason = cause(returncode, oom_killed, output, "decode")
    assert found == outcome and reason.startswith(words)


def counter(tmp_path: Path, name: str, count: int) -> Path:
    path = tmp_path / name
    path.write_text(f"oom_kill_disable 0\nunder_oom 0\noom_kill {count}\n")
    return path


def test_the_counter_of_the_control_group_takes_precedence_over_the_machines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [tmp_path / "absent", counter(tmp_path, "own", 7), counter(tmp_path, "mount", 9)]
    monkeypatch.setattr(cgroup, "_kill_counters", lambda: paths)
    assert process.oom_kills() == 7


def test_without_a_counter_of_the_control_group_the_machines_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cgroup, "_kill_counters", lambda: [tmp_path / "absent"])
    expected = [
        line.split()[1] for line in Path("/proc/vmstat").read_text().splitlines() if line.startswith("oom_kill ")
    ]
    assert process.oom_kills() == int(expected[0])


def test_the_counter_of_our_own_group_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroup, "folders", lambda controller: [Path("/a/b", controller), Path("/a")])
    names = ("memory.events", "memory.oom_control")  # version 2, version 1
    assert cgroup._kill_counters() == [Path(folder, name) for folder in ("/a/b/memory", "/a") for name in names]


def test_a_limit_on_cpu_time_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process.resource, "getrlimit", lambda number: (9, 9))
    _, reason = cause(-9, False, [], "decode")
    assert reason.endswith("; it may use 9 s of CPU time (ulimit -t)")
