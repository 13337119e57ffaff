"""A model computes with the number of threads that predictions assume."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import tiny

from profiler.backends.hf import ceilings
from profiler.backends.hf.ceilings import Stopwatch
from profiler.backends.hf.session import open_session
from profiler.case import Case, Source
from profiler.devices import allowance
from profiler.devices.cgroup import Quota

Opened = Callable[..., Any]
# What is found before OpenMP is loaded, since OMP_PROC_BIND pins the thread that loads it.
ASK = """
import os, sys
if sys.argv[1]:
    os.sched_setaffinity(0, [int(sys.argv[1])])
from profiler.devices import allowance
before = allowance.at_start().threads
import torch
print(before, allowance.at_start().threads, torch.get_num_threads())
"""


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Iterator[Opened]:
    """Loads a tiny model in a process that uses two threads by default, with or without a quota."""
    before = torch.get_num_threads()

    def load(quota: float | None, threads: int | None = None) -> Any:
        limit = None if quota is None else Quota(quota, 0.1, "cpu.max of the control group /a", Path("/"))
        wanted = 2 if quota is None else min(2, allowance.threads_within(quota))
        found = replace(allowance.find({}), cpus=2, physical=2, threads=wanted, quota=limit)
        monkeypatch.setattr(allowance, "at_start", lambda: found)
        torch.set_num_threads(2)
        case = Case("q", "q", "synthetic", "fp32", "fp32", "cpu", "hf", "eager", 8, 1, 2, threads=threads)
        return open_session(case, Source("catalog", "q", None, tiny.CONFIGS["qwen3"]), lambda text: None).info

    yield load
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("quota", "asked", "threads"),
    [(None, None, 2), (None, 1, 1), (0.5, None, 1), (1.0, None, 1), (1.5, None, 2), (1.0, 2, 2)],
)
def test_a_model_computes_with_as_many_threads_as_the_quota_allows(
    opened: Opened, quota: float | None, asked: int | None, threads: int
) -> None:
    assert opened(quota, asked).threads == torch.get_num_threads() == threads


def test_a_row_under_a_quota_says_so_and_gives_a_better_number_of_threads(opened: Opened) -> None:
    assert [caution.code for caution in opened(None).cautions] == []
    (found,) = opened(1.0).cautions
    text = "a CPU quota allows 1 of 2 cores (cpu.max of the control group /a)"
    assert (found.code, found.text, found.help) == ("cpu-quota", text, None)
    (found,) = opened(1.0, threads=2).cautions
    assert (found.text, found.help) == (f"{text} and throttles 2 threads", "--threads 1")
    (found,) = opened(0.5).cautions
    assert found.text.endswith("allows 0.5 of 2 cores (cpu.max of the control group /a) and throttles 1 thread")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "cpu"),
    [
        ({}, ""),
        ({}, "0"),
        ({"OMP_NUM_THREADS": "1"}, ""),
        ({"MKL_NUM_THREADS": "1", "OMP_NUM_THREADS": "64"}, ""),
        ({"OMP_NUM_THREADS": "64"}, ""),
        ({"OMP_PROC_BIND": "close"}, ""),
    ],
)
def test_the_predicted_number_of_threads_is_the_one_that_torch_uses(settings: dict[str, str], cpu: str) -> None:
    if cpu and int(cpu) not in allowance.usable_cpus():
        pytest.skip(f"this process may not run on CPU {cpu}")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "MKL_"))}
    done = subprocess.run(
        [sys.executable, "-c", ASK, cpu], capture_output=True, text=True, check=True, env=clean | settings
    )
    before, after, torchs = map(int, done.stdout.split())
    assert before == after
    if allowance.find().quota is None:
        assert before == torchs
    else:
        assert before <= torchs


def test_a_stopwatch_under_a_quota_counts_cpu_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that the quota stops for the rest of a period takes no longer than another."""
    monkeypatch.setattr(ceilings, "MAX_WAIT", 1.0)  # tests need no idle machine
    stopped = Stopwatch(torch.device("cpu"), duty_cycle=0.5).time(lambda: time.sleep(0.02), 0.001)
    whole = Stopwatch(torch.device("cpu")).time(lambda: time.sleep(0.02), 0.001)
    assert stopped.median < 0.01 <= 0.02 <= whole.median
