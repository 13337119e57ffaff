"""Telemetry that looks by itself, 25 times a second, from a process of its own.

A thread of the measuring process would do with less, but each of its calls of a driver gives the interpreter's lock
back and takes it again, six times a snapshot, and the thread that measures waits for two switches of the scheduler at
each: 3% of a decode of small operators (``benchmarks/telemetry_cost.py``). The process answers when it is asked,
which is outside of what is timed, and until then keeps what it saw. A driver that hangs, hangs there: the measuring
process waits for ``PATIENCE_S`` once; then there is no telemetry any more, and a reason.
"""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import closing, suppress
from multiprocessing.connection import Connection, Pipe
from typing import Any, NamedTuple

from profiler import folders
from profiler.devices.nvml import PATIENCE_S
from profiler.devices.telemetry import TICK_S, Snapshot, Telemetry, TelemetrySource, Unknown
from profiler.units import seconds_text

# -P: a file of the current folder must not stand in for a library's
COMMAND = (sys.executable, "-P", "-c", "from profiler.devices.sampler import watch; watch()")
START_S = 30.0  # an interpreter and its imports take a tenth of a second, on a busy machine seconds
END_S = 0.5  # a killed process is gone at once, unless it hangs inside the kernel
BEGIN, REPORT = "begin", "report"
ENDED = "the process that watches the device has ended"


class Report(NamedTuple):
    """What was seen since the last one."""

    snapshots: list[Snapshot]
    unknown: dict[str, str]
    others: int | None
    gone: str | None


class SampledTelemetry(Telemetry):
    """The side that looks."""

    def report(self) -> Report:
        """Look now, and hand over what was seen; the last snapshot is in the next report as well."""
        self.look()
        report = Report(list(self._history), self.source.unknown, self._others, self.gone)
        self._history.clear()
        return report


def watch() -> None:
    """Look at a source until nobody listens any more. ``argv[1]`` is the connection, which gives the source first."""
    link = Connection(int(sys.argv[1]))
    with suppress(EOFError, OSError), closing(SampledTelemetry(link.recv())) as telemetry:
        link.send(None)  # we are here: from now on only the driver can be late
        telemetry.open()
        while True:
            if not link.poll(TICK_S):
                telemetry.look()
            elif link.recv() == BEGIN:
                telemetry.begin(energy=False)
            else:
                link.send(telemetry.report())


class Sampler(Telemetry):
    """The side that asks. The source is opened in the other process only."""

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
