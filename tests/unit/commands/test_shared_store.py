"""Sweeps that share a store at the same time: every case is measured once, whoever dies."""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from fakes.forked import Command

from profiler import devices
from profiler.results import leases
from profiler.results.environment import environment_key
from profiler.results.leases import DEAD_S, Leases, started_at, this_machine
from profiler.results.store import Store

CONTEXTS = range(16, 28)
ENVIRONMENT: dict[str, Any] = {"device": {}, "cpu": {"title": "Example CPU"}}
NAME = environment_key(ENVIRONMENT)


class Clock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def start(folder: str, store: Path, *more: str, contexts: range = CONTEXTS) -> Command:
    grid = ["-m", folder, "-c", ",".join(map(str, contexts)), "-n", "1", "-r", "1", "--backend", "fake"]
    return Command(["sweep", *grid, "-o", "jsonl", "--store", str(store), *more])


def ended(process: Command) -> tuple[list[dict[str, Any]], str]:
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    return [json.loads(line) for line in out.splitlines()], err


def query(store: Path, text: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(store)) as opened:
        return opened.execute(text).fetchall()


def until(true: Callable[[], Any], seconds: float = 20.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


def leased(store: Path) -> list[tuple[Any, ...]]:
    try:
        return query(store, "SELECT run, pid FROM leases")
    except sqlite3.Error:
        return []


@pytest.mark.parametrize("option", [(), ("--fresh",)])
def test_two_sweeps_of_one_grid_measure_every_case_once(model: Any, tmp_path: Path, option: tuple[str, ...]) -> None:
    store, folder = tmp_path / "s.sqlite", model(pause_s=0.02)
    both = [start(folder, store, *option) for _ in range(2)]
    (one, _), (other, err) = map(ended, both)
    for rows in (one, other):
        assert sorted(row["case"]["context"] for row in rows) == list(CONTEXTS)
        assert {row["outcome"] for row in rows} == {"ok"}
    measured = query(store, "SELECT run, count(*), count(DISTINCT key) FROM measurements GROUP BY run")
    assert sum(count for _, count, _ in measured) == len(CONTEXTS), "a case was measured twice"
    assert query(store, "SELECT * FROM leases") == []
    if len(measured) == 2:
        assert "at the same time" in err


def test_a_killed_sweep_hands_its_case_to_the_one_that_waits(model: Any, tmp_path: Path) -> None:
    store, folder = tmp_path / "s.sqlite", model(pause_s=0.4)
    victim = start(folder, store, contexts=range(20, 21))
    ((run, pid),) = until(lambda: leased(store))
    assert pid == victim.pid
    heir = start(folder, store, contexts=range(20, 21))
    dtype = devices.find("cpu").default_dtype
    assert heir.stderr.readline().decode() == f"waiting for run {run}, which is measuring tiny {dtype} c=20 b=1\n"
    victim.send_signal(signal.SIGKILL)
    victim.communicate(timeout=60)
    rows, _ = ended(heir)
    assert victim.returncode == -signal.SIGKILL
    assert [row["outcome"] for row in rows] == ["ok"]
    assert query(store, "SELECT count(*) FROM measurements") == [(1,)]
    assert query(store, "SELECT * FROM leases") == []


def test_a_sweep_that_waits_stops_at_once_when_it_is_interrupted(
    model: Any, tmp_path: Path, command_line: list[str]
) -> None:
    store, folder = tmp_path / "s.sqlite", model()
    grid = ("-m", folder, "-c", "20", "-n", "1", "-r", "1", "--backend", "fake", "--store", str(store))
    ended(start(folder, store, contexts=range(20, 21)))
    with Store.open(store) as opened:
        run = opened.start_run([], ENVIRONMENT)
        query = "SELECT m.key, e.key FROM measurements m JOIN environments e ON e.id = m.environment"
        ((key, environment),) = opened._db.execute(query).fetchall()
        with Leases(store, run, environment) as mine:
            assert mine.claim(key) is None
            command = [*command_line, "sweep", *grid, "--fresh"]  # no fork: SQLite would find our connection in it
            waiting = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            assert waiting.stderr is not None and "waiting for run" in waiting.stderr.readline()
            waiting.send_signal(signal.SIGINT)
            _, err = waiting.communicate(timeout=10)
    assert waiting.returncode == 130
    assert "stopped: 0 of 1 case measured" in err


@pytest.fixture
def shared(tmp_path: Path) -> Any:
    """A store with two runs, and leases of both with clocks of their own."""
    path = tmp_path / "s.sqlite"
    clocks = Clock(), Clock()
    with Store.open(path) as store:
        runs = [store.start_run([], ENVIRONMENT) for _ in range(2)]
        with Leases(path, runs[0], NAME, clocks[0]) as mine, Leases(path, runs[1], NAME, clocks[1]) as theirs:
            yield mine, theirs, *clocks


def test_a_lease_of_another_machine_lasts_while_its_counter_goes_on_whatever_the_clocks_say(
    shared: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, theirs, my_clock, their_clock = shared
    assert mine.claim("case") is None
    monkeypatch.setattr(leases, "this_machine", lambda: "another")
    my_clock.seconds = 1e9  # of no consequence to anybody else
    for _ in range(5):
        assert theirs.claim("case").run == mine._run
        their_clock.seconds += DEAD_S
        my_clock.seconds += leases.BEAT_S
        mine.renew()
    assert theirs.claim("case") is not None
    their_clock.seconds += DEAD_S + 1
    assert theirs.claim("case") is None, "nothing has renewed it for a minute"


def test_a_lease_of_a_process_that_has_ended_is_taken_over_at_once(shared: Any) -> None:
    mine, theirs, *_ = shared
    assert mine.claim("case") is None
    assert theirs.claim("case") is not None
    child = subprocess.Popen(["true"])
    child.wait()
    mine._db.execute("UPDATE leases SET pid = ?, started = 1", (child.pid,))
    assert theirs.claim("case") is None
    assert mine.claim("case") is not None


def test_a_reused_process_number_is_not_taken_for_the_holder(shared: Any) -> None:
    mine, theirs, *_ = shared
    mine.claim("case")
    mine._db.execute("UPDATE leases SET started = started + 1")
    assert theirs.claim("case") is None


def test_a_process_that_was_killed_and_not_yet_waited_for_has_ended() -> None:
    child = subprocess.Popen(["sleep", "60"])
    assert started_at(child.pid) is not None
    child.kill()
    until(lambda: started_at(child.pid) is None)
    child.wait()


def test_a_machine_is_named_without_giving_its_name_away() -> None:
    import socket

    assert this_machine() is None or socket.gethostname() not in this_machine()


def test_a_store_that_is_busy_does_not_hold_the_heartbeat_up(shared: Any) -> None:
    mine, theirs, my_clock, _ = shared
    mine.claim("case")
    my_clock.seconds += leases.BEAT_S
    theirs._db.execute("BEGIN IMMEDIATE")
    before = time.monotonic()
    mine.renew()
    assert time.monotonic() - before < 1
    theirs._db.execute("ROLLBACK")
    mine.renew()
    assert query(mine._path, "SELECT beat FROM leases") == [(1,)]


def test_a_case_that_has_its_row_is_free_again(shared: Any, tmp_path: Path) -> None:
    from fakes.lab import make_case

    from profiler.results.measurement import Measurement

    mine, theirs, *_ = shared
    case = make_case()
    assert mine.claim(case.key) is None
    with Store.open(tmp_path / "s.sqlite") as store:
        store.append(mine._run, Measurement(case, ENVIRONMENT, "failed", "boom"))
    assert theirs.claim(case.key) is None


def test_a_sweep_whose_store_is_removed_says_so_and_ends(model: Any, tmp_path: Path) -> None:
    store = tmp_path / "s.sqlite"
    sweep = start(model(pause_s=0.1), store)
    until(lambda: leased(store))
    store.unlink()
    out, err = sweep.communicate(timeout=60)
    assert sweep.returncode == 1
    assert "was removed, renamed or replaced while it was in use" in err
    assert len(out.splitlines()) < len(CONTEXTS), "the rest was measured for nobody"
