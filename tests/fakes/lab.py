"""Runs jobs of the fake backend in real worker processes and keeps what came out."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from profiler.case import Case, Source, Task
from profiler.results.measurement import Measurement
from profiler.run.process import SpareWorker
from profiler.run.repetitions import Effort
from profiler.run.supervisor import Ending, WorkerLimits, run

QUICK = Effort(reps=2, max_phase_s=60)


def make_case(context: int = 512, batch: int = 1, **fields: Any) -> Case:
    named = {"model": "fake-1b", "model_id": "fake", "weights": "synthetic", "quant": "bf16", "dtype": "bf16"}
    where = {"device": "cpu", "backend": "fake", "path": "eager", "steps": 4}
    return Case(context=context, batch=batch, **(named | where | fields))


def source(*faults: dict[str, Any], **script: Any) -> Source:
    """A fake model with these costs and faults."""
    return Source("folder", "/nowhere", None, {"fake": script | {"faults": list(faults)}})


def fault(kind: str, value: Any = None, **where: Any) -> dict[str, Any]:
    return {"kind": kind, "value": value, **where}


def group_members(group: int) -> list[int]:
    """Processes of a group that are not just waiting to be reaped."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, group_text = stat.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(group_text) == group and state != "Z":
            found.append(int(stat.parent.name))
    return found


def vanishes(group: int, seconds: float = 3.0) -> bool:
    """Whether a process group is gone within ``seconds``."""
    deadline = time.monotonic() + seconds
    while group_members(group) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not group_members(group)


def child_pids() -> list[int]:
    return [
        int(pid) for thread in Path("/proc/self/task").iterdir() for pid in (thread / "children").read_text().split()
    ]


@dataclass
class Lab:
    """Runs jobs and keeps what came out."""

    rows: list[Measurement] = field(default_factory=list)
    beats: list[tuple[int, str]] = field(default_factory=list)  # context of the case, words
    groups: set[int] = field(default_factory=set)
    seconds: float = 0.0
    parent_cpu_s: float = 0.0
    during: Callable[[str], None] = lambda text: None  # called at every beat
    left_s: Callable[[Case], float | None] = lambda case: None
    stored: Callable[[Measurement], None] = lambda row: None  # called with every row

    def run(
        self,
        *tasks: Task,
        effort: Effort = QUICK,
        environment: dict[str, Any] | None = None,
        spare: SpareWorker | None = None,
        **limits: Any,
    ) -> Ending:
        """The ending; rows are in ``rows``. Limits are small unless they are given."""
        limits = {"hang_s": 5.0, "case_s": 30.0, "grace_s": 0.5} | limits
        start, cpu = time.monotonic(), time.process_time()
        try:
            bounds, told = WorkerLimits(**limits), environment or {}
            return run(tasks, effort, bounds, told, self._row, self._beat, self.left_s, spare)
        finally:
            self.seconds, self.parent_cpu_s = time.monotonic() - start, time.process_time() - cpu

    def cases(self, model: Source, *tasks: int | tuple[int, int], **limits: Any) -> list[str]:
        """Run one model at these contexts (and batches); the outcomes."""
        pairs = [(task, 1) if isinstance(task, int) else task for task in tasks]
        self.run(*(Task(make_case(context, batch), model) for context, batch in pairs), **limits)
        return [row.outcome for row in self.rows]

    @property
    def reason(self) -> str:
        """Of the last row."""
        return self.rows[-1].reason or ""

    def _row(self, row: Measurement) -> None:
        self.groups.update(child_pids())
        self.stored(row)
        self.rows.append(row)

    def _beat(self, case: Case, text: str) -> None:
        self.groups.update(child_pids())
        self.beats.append((case.context, text))
        self.during(text)
