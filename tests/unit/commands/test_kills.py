"""A whole sweep killed at random moments, its process or its worker: nothing that was shown is lost or done twice.

``PROFILE_KILLS=50 pytest tests/unit/commands/test_kills.py`` for a longer night.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from fakes.forked import Command
from fakes.lab import group_members

KILLS = int(os.environ.get("PROFILE_KILLS", "6"))
CONTEXTS = tuple(range(16, 32 + 8 * KILLS))  # so many cases that every kill falls into a sweep that is still going


def start(folder: str, store: Path) -> Command:
    grid = ["-m", folder, "-c", ",".join(map(str, CONTEXTS)), "-n", "1", "-r", "1", "--backend", "fake"]
    return Command(["sweep", *grid, "-o", "jsonl", "--store", str(store)])


def worker_of(parent: int) -> int | None:
    """The worker of a sweep, which leads a session; git and other short-lived children do not."""
    with suppress(OSError):
        for child in map(int, Path(f"/proc/{parent}/task/{parent}/children").read_text().split()):
            if os.getsid(child) == child:
                return child
    return None


@pytest.mark.parametrize("victim", ["sweep", "worker"])
def test_killed_sweeps_lose_nothing_shown_and_repeat_nothing(victim: str, model: Any, tmp_path: Path) -> None:
    store, folder = tmp_path / "results.sqlite", model(pause_s=0.01)
    chance = random.Random(20261124)
    shown: set[str] = set()
    for _ in range(KILLS):
        process = start(folder, store)
        time.sleep(chance.uniform(0.05, 0.8))
        worker = worker_of(process.pid) if process.poll() is None else None
        target = process.pid if victim == "sweep" else worker
        if target is not None:
            with suppress(ProcessLookupError):  # it may just have ended
                os.kill(target, signal.SIGKILL)
        out, _ = process.communicate(timeout=60)
        rows = [json.loads(line) for line in out.split("\n")[:-1]]  # what has no line end was not shown
        assert all(row["reason"] for row in rows if row["outcome"] != "ok")
        shown |= {row["key"] for row in rows if row["outcome"] == "ok"}
        if worker is not None:
            deadline = time.monotonic() + 5
            while group_members(worker) and time.monotonic() < deadline:
                time.sleep(0.02)
            assert not group_members(worker), "a worker outlived its sweep"
        assert shown <= measured(store).keys(), "a row that was shown is not stored"
    last = start(folder, store)
    out, err = last.communicate(timeout=120)
    assert last.returncode == 0, err
    assert [json.loads(line)["outcome"] for line in out.splitlines()] == ["ok"] * len(CONTEXTS)
    assert set(measured(store).values()) == {1}, "a case that was stored was measured again"


def measured(store: Path) -> dict[str, int]:
    """How often each case was measured with success, over all runs; reused rows are not measured again."""
    if not store.exists():
        return {}
    with closing(sqlite3.connect(store)) as opened:
        found = opened.execute("SELECT key, count(*) FROM measurements WHERE outcome = 'ok' GROUP BY key")
        return dict(found.fetchall())
