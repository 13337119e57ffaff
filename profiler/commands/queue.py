"""The cases of a sweep in turn. One that another sweep of the same store is measuring is left to it until the end."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence

from profiler.commands.progress import Progress, say
from profiler.commands.recorder import Recorder
from profiler.measure.supervisor import Job
from profiler.plan.budget import Pace
from profiler.plan.order import Planned, Skip
from profiler.results.leases import Holder, Leases
from profiler.results.store import StoredRow

Find = Callable[[Planned], StoredRow | None]


class Queue:
    """What still waits in a sweep. ``find`` looks for a row that another sweep has stored since this one began."""

    def __init__(
        self, cases: Sequence[Planned], pace: Pace, leases: Leases, find: Find, recorder: Recorder, progress: Progress
    ) -> None:
        self._cases, self._pace, self._leases, self._find = cases, pace, leases, find
        self._recorder, self._progress = recorder, progress
        self._taken: dict[str, int] = {}  # rows that other runs measured meanwhile
        self._waited_for: tuple[str, str] | None = None

    def jobs(self) -> Iterator[Job | None]:
        """Jobs to be done here and now; None while other sweeps measure everything that is left."""
        waiting: Sequence[Planned] = self._cases
        while waiting:
            held: list[tuple[Planned, Holder]] = []
            for planned in waiting:
                holder = yield from self._turn(planned)
                if holder is not None:
                    held.append((planned, holder))
            if len(held) == len(waiting):
                self._wait(*held[0])
                yield None
                self._pace.pause()
            waiting = [planned for planned, _ in held]
        self._tell()

    def _turn(self, planned: Planned) -> Generator[Job, None, Holder | None]:
        """Deal with one case, unless another sweep is measuring it: that one is returned."""
        case = planned.case
        reason = self._pace.refuse(case)
        if reason is not None:
            self._pace.drop(case)
            self._recorder.skip([Skip(case, reason)])
            self._progress.skip()
            return None
        if self._take(planned):
            return None
        holder = self._leases.claim(case.key)
        if holder is not None:
            return holder
        if self._take(planned):  # it was stored while we looked
            self._leases.release(case.key)
        else:
            yield Job(case, planned.point.source)
        return None

    def _take(self, planned: Planned) -> bool:
        """Whether another sweep has measured a case; its row is then one of this run."""
        row = self._find(planned)
        if row is None:
            return False
        self._pace.drop(planned.case)
        self._recorder.take(row)
        self._progress.taken(row)
        self._taken[row.run] = self._taken.get(row.run, 0) + 1
        return True

    def _wait(self, planned: Planned, holder: Holder) -> None:
        """Say what is waited for, once."""
        if self._waited_for != (waited_for := (planned.case.key, holder.run)):
            self._waited_for = waited_for
            self._progress.waiting(planned.case, holder.run)

    def _tell(self) -> None:
        for run, count in self._taken.items():
            cases = "1 case was" if count == 1 else f"{count:,} cases were"
            say(f"{cases} measured by run {run} at the same time; this run has the same row{'s' * (count > 1)}")
