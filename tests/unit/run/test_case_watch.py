"""What counts as a sign of life depends on the CPU time that a worker can get."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from profiler.devices import cgroup
from profiler.run import supervisor
from profiler.run.supervisor import CaseWatch, WorkerLimits


@pytest.mark.parametrize(
    ("quota", "used_s", "hangs"),
    [(None, 0.5, True), (None, 2.0, False), (0.02, 0.5, False), (0.02, 0.001, True), (4.0, 0.5, True)],
)
def test_a_worker_that_a_quota_limits_to_a_hundredth_of_a_core_is_not_taken_for_hung(
    monkeypatch: pytest.MonkeyPatch, quota: float | None, used_s: float, hangs: bool
) -> None:
    monkeypatch.setattr(cgroup, "cores", lambda: quota)
    clock = SimpleNamespace(monotonic=lambda: 1000.0)
    monkeypatch.setattr(supervisor, "time", clock)
    cpu_s = iter([0.0, used_s, used_s])
    worker: Any = SimpleNamespace(
        cpu_s=lambda: next(cpu_s), broken=None, resident_bytes=lambda: None, group_cpu_s=lambda: used_s
    )
    waiting = CaseWatch(worker, case=None, limits=WorkerLimits(hang_s=60), interrupts=None, on_beat=None)  # type: ignore[arg-type]
    for now in (1050.0, 1100.0):  # the first look at what the worker's own children have used, and the second
        clock.monotonic = lambda now=now: now
        found = waiting._excess()
    assert (found is not None) is hangs
