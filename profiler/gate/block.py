"""A block: one order to one warm process, and the figures that a gate takes from its row."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from profiler.measure.cautions import ONE_OTHER
from profiler.results.cautions import cautions
from profiler.results.conditions import CAPPED, DIFFERENT
from profiler.results.measurement import Measurement, Phase

Clock = Literal["cpu", "wall"]
METRICS: tuple[Phase, ...] = ("prefill", "decode")
PRESSED = ("-cpu-pressure",)  # ends of caution codes that spoil a wall clock, not a count of CPU time
SPOILT = ("other-processes", "-clocks-differ", "-swap", "-invalid")  # and that spoil any clock
CPU_THREADS = 1  # unless asked otherwise: idle threads of more spin, and on a busy machine that is most CPU time


@dataclass(frozen=True, slots=True)
class Block:
    """What one process gave for one cell."""

    side: str  # base | candidate
    process: int  # which one of this gate, from 1
    row: Measurement

    def seconds(self, metric: Phase, clock: Clock) -> float | None:
        """Median seconds of a repetition; None where the phase or the clock is missing, or the clock stood still."""
        times = [sample.cpu_s if clock == "cpu" else sample.seconds for sample in self.row.of(metric)]
        known = [value for value in times if value is not None]
        if not known or len(known) < len(times) or min(known) <= 0:
            return None
        return statistics.median(known)

    def spoilt(self, clock: Clock) -> str | None:
        """Why its times mean nothing, in words: something outside took part."""
        ends = SPOILT + (PRESSED if clock == "wall" else ())
        found = [caution.text for caution in cautions(self.row) if caution.code.endswith(ends)]
        texts = [text for text in found if not text.startswith(ONE_OTHER)]  # the other slot's process, which idles
        return "; ".join(texts) or None


def unlike(base: Block, candidate: Block) -> str | None:
    """Why the two halves of a pair ran under different conditions, as far as a GPU tells; None if they did not."""
    clocks = [_median([s.sm_mhz for metric in METRICS for s in b.row.of(metric)]) for b in (base, candidate)]
    capped = [_median([s.capped for metric in METRICS for s in b.row.of(metric)]) for b in (base, candidate)]
    a, b = clocks
    if a and b and max(a, b) > (1 + DIFFERENT) * min(a, b):
        return f"clocks of {a:,.0f} MHz and {b:,.0f} MHz"
    a, b = capped
    if a is not None and b is not None and abs(a - b) > CAPPED:
        return f"the power limit held the clocks down for {a:.0%} and {b:.0%} of the time"
    return None


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def threads_of(device: str, asked: int | None) -> int | None:
    """Threads that a gate computes with; None leaves it to the backend."""
    return CPU_THREADS if asked is None and clock_of(device) == "cpu" else asked


def clock_of(device: str) -> Clock:
    """A CPU's gate counts CPU time, which other programs change far less than the time on the wall."""
    return "cpu" if device.partition(":")[0] == "cpu" else "wall"


def record(stage: str, pair: int, blocks: Sequence[Block], spoilt: str | None) -> list[dict[str, Any]]:
    """What is kept of the blocks of one pair, in the order they ran: raw seconds, and why they do not count."""
    return [
        {
            "stage": stage,
            "pair": pair,
            "place": place,  # 0: ran first
            "side": block.side,
            "process": block.process,
            "key": block.row.case.key,
            "outcome": block.row.outcome,
            "reason": block.row.reason,
            "invalid": spoilt,
            "started_at": block.row.started_at,
            "seconds": {metric: [s.seconds for s in block.row.of(metric)] for metric in METRICS},
            "cpu_seconds": {metric: [s.cpu_s for s in block.row.of(metric)] for metric in METRICS},
            "cautions": [caution.code for caution in block.row.cautions],
        }
        for place, block in enumerate(blocks)
    ]
