"""Telemetry that takes 25 snapshots a second in a separate process.

A thread of the measuring process would be simpler, but each of its driver calls releases and reacquires the GIL, six
times per snapshot, and each time the measuring thread waits for two context switches: 3% of a decode of small
operators (``benchmarks/telemetry_cost.py``). The separate process reports on request, outside of timed windows, and
keeps its snapshots until then. If the driver hangs, it hangs there: the measuring process waits ``PATIENCE_S`` once,
and then continues without telemetry but with a reason.
"""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from profiler import folders
from profiler.devices.nvml import PATIENCE_S
from profiler.devices.telemetry import TICK_S, Snapshot, Telemetry, TelemetrySource, Unknown
from profiler.units import seconds_text

if TYPE_CHECKING:  # slow to import, and only sweeps take samples
    from multiprocessing.connection import Connection

# -P: a file in the current folder must not shadow a library
COMMAND = (sys.executable, "-P", "-c", "from profiler.devices.sampler import watch; watch()")
START_S = 30.0  # starting an interpreter takes a tenth of a second, or seconds on a busy machine
END_S = 0.5  # a killed process is gone at once, unless it hangs in the kernel
BEGIN, REPORT = "begin", "report"
ENDED = "the process that watches the device has ended"


class Report(NamedTuple):
    """What was observed since the last report."""

    snapshots: list[Snapshot]
    unknown: dict[str, str]
    others: int | None
    gone: str | None


class SampledTelemetry(Telemetry):
    """The part in the separate process, which takes the snapshots."""

    def report(self) -> Report:
        """Take a snapshot now and return what was observed. The last snapshot is repeated in the next report."""
        self.look()
        report = Report(list(self._history), self.source.unknown, self._others, self.gone)
        self._history.clear()
        return report


def watch() -> None:
    """Watch a source until the connection closes. ``argv[1]`` is the connection, which sends the source first."""
    from multiprocessing.connection import Connection

    link = Connection(int(sys.argv[1]))
    with suppress(EOFError, OSError), closing(SampledTelemetry(link.recv())) as telemetry:
        link.send(None)  # started: from now on only the driver can be late
        telemetry.open()
        while True:
            if not link.poll(TICK_S):
                telemetry.look()
            elif link.recv() == BEGIN:
                telemetry.begin(energy=False)
            else:
                link.send(telemetry.report())


class Sampler(Telemetry):
    """The part in the measuring process. The source is opened only in the other process."""

    def __init__(self, source: TelemetrySource, patience_s: float = PATIENCE_S) -> None:
        super().__init__(source)
        self._patience_s = patience_s
        self._process: subprocess.Popen[bytes]
        self._link: Connection | None = None

    def begin(self, energy: bool) -> None:
        super().begin(energy)
        if self._link is not None:
            self._guarded(lambda: self._send(BEGIN))

    def _open(self) -> None:
        from multiprocessing.connection import Pipe

        mine, theirs = Pipe()
        with theirs:
            self._process = subprocess.Popen(
                [*COMMAND, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env={**os.environ, **folders.child_environ(os.environ)},
            )
        self._link = mine
        self._send(self.source)
        self._receive(START_S, "the process that watches the device did not start within")

    def _look(self) -> None:
        self._send(REPORT)
        report: Report = self._receive(self._patience_s, "the driver did not answer for")
        self.source.unknown, self._others = report.unknown, report.others
        for snapshot in report.snapshots:
            self._keep(snapshot)
        if report.gone is not None:
            raise Unknown(report.gone)

    def _send(self, message: object) -> None:
        assert self._link is not None
        try:
            self._link.send(message)
        except OSError:
            raise Unknown(ENDED) from None

    def _receive(self, seconds: float, late: str) -> Any:
        assert self._link is not None
        try:
            if self._link.poll(seconds):
                return self._link.recv()
        except (EOFError, OSError):
            raise Unknown(ENDED) from None
        raise Unknown(f"{late} {seconds_text(seconds)}")

    def _give_up(self, reason: str) -> None:
        super()._give_up(reason)
        link, self._link = self._link, None
        if link is not None:
            link.close()
            self._process.kill()  # its driver may hang
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(END_S)
