"""Tests whether two measurements of the same case agree. Aim: their intervals overlap in at least 93% of pairs.

    python benchmarks/aa.py [--pairs 40] [--model gemma-3-270m] [--clock cpu]

Each pair is two sweeps of one case in separate processes, one right after the other, as a user would repeat a
measurement. The 95% intervals of the prefill rate and of the decode rate should overlap. Rates are judged by the CPU
time of one thread (``--clock wall`` uses wall time), because a shared machine disturbs wall time. In addition, every
interval must be within ``--precision``, or the row must say that it is not.

Two 95% intervals of the same median overlap in about 99% of pairs. Fewer than 93% mean that processes differ by
more than the interval assumes: the spread that at least three runs of ``profile calibrate`` found, otherwise the
spread seen on other CPUs.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from profiler.results.stats import Summary, summarize

AIM = 0.93
PHASES = ("prefill", "decode")
CLOCKS = {"cpu": "cpu_seconds", "wall": "seconds"}


def main() -> int:
    """Print every pair and the share that overlaps. Exit code 1 below the aim, or if a row hides its wide
    interval.
    """
    options = parse()
    overlaps: dict[str, list[bool]] = {phase: [] for phase in PHASES}
    halves: dict[str, list[float]] = {phase: [] for phase in PHASES}
    silent = 0
    for number in range(options.pairs):
        one, other = measured(options), measured(options)
        silent += sum(not honest(row, phase, options.precision) for row in (one, other) for phase in PHASES)
        words = []
        for phase in PHASES:
            a, b = interval(one[phase], options.clock), interval(other[phase], options.clock)
            overlaps[phase].append(overlap(a, b))
            halves[phase] += [found.relative_half or 0.0 for found in (a, b)]
            words.append(f"{phase} {shown(a)} and {shown(b)}{'' if overlaps[phase][-1] else ' APART'}")
        print(f"pair {number + 1}/{options.pairs}: {'; '.join(words)}", flush=True)
    shares = {phase: sum(found) / len(found) for phase, found in overlaps.items()}
    for phase, share in shares.items():
        half = statistics.median(halves[phase])
        print(
            f"{phase}, {options.clock} time: {share:.1%} of {options.pairs} pairs overlap, aim {AIM:.0%};"
            f" half-width of an interval {half:.1%} at the median"
        )
    print(f"intervals wider than --precision without a caution: {silent}")
    return int(min(shares.values()) < AIM or silent > 0)


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """The row of one sweep that repeats until it reaches the precision."""
    return sweep(options, "--precision", f"{options.precision:.6%}")


def sweep(options: argparse.Namespace, *effort: str) -> dict[str, Any]:
    """The row of one case, on one thread."""
    return sweep_rows(options, *effort)[0]


def sweep_rows(options: argparse.Namespace, *effort: str, batch: str = "1") -> list[dict[str, Any]]:
    """The rows of all contexts and batches, in one process on one thread."""
    with tempfile.TemporaryDirectory(prefix="aa-") as scratch:
        command = [sys.executable, "-m", "profiler", "sweep", "-m", options.model, "-q", "fp32", "-b", batch]
        command += ["-c", str(options.context), "-n", str(options.steps), "--threads", "1", "--device", "cpu"]
        command += [*effort, "--max-phase", options.max_phase]
        command += ["-o", "jsonl", "--store", str(Path(scratch) / "s.sqlite")]
        environ = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environ)
    if not done.stdout:
        sys.exit(f"the sweep ended with exit code {done.returncode} and no row")
    rows: list[dict[str, Any]] = [json.loads(line) for line in done.stdout.splitlines()]
    for row in rows:
        if row["outcome"] != "ok":
            sys.exit(f"{row['outcome']}: {row['reason']}")
    return rows


def interval(phase: dict[str, Any], clock: str) -> Summary:
    """Seconds of one repetition by a clock, with the interval of their median as the row would have it for the
    rate.
    """
    found = summarize(phase[CLOCKS[clock]], phase["tps_between"])
    assert found is not None
    return found


def overlap(a: Summary, b: Summary) -> bool:
    """Whether the intervals overlap; a single repetition has no interval and counts as overlapping."""
    if a.low is None or a.high is None or b.low is None or b.high is None:
        return False
    return a.low <= b.high and b.low <= a.high


def honest(row: dict[str, Any], phase: str, precision: float) -> bool:
    """Whether the interval of wall time is within the precision, or a caution says why not."""
    low, high, median = (row[phase][name] for name in ("tps_low", "tps_high", "tps"))
    if low is not None and max(high - median, median - low) / median <= precision * (1 + 1e-9):
        return True
    codes = {f"{phase}-{why}" for why in ("imprecise", "noisy", "few", "cold", "invalid")} | {"between", "spread"}
    found = [caution for caution in row["cautions"] if caution["code"] in codes]
    return any(phase in caution["text"] for caution in found)


def shown(found: Summary) -> str:
    if found.low is None or found.high is None:
        return f"{found.median:.4g} s (once)"
    return f"{found.low:.4g}–{found.high:.4g} s ({found.n})"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=40, help="[default: %(default)s]")
    parser.add_argument("--model", default="gemma-3-270m", help="as for -m [default: %(default)s]")
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="cpu", help="[default: %(default)s]")
    parser.add_argument("--context", type=int, default=64, help="tokens [default: %(default)s]")
    parser.add_argument("--steps", type=int, default=8, help="decode steps [default: %(default)s]")
    parser.add_argument("--precision", type=float, default=0.02, help="[default: %(default)s]")
    parser.add_argument("--max-phase", default="30s", help="of each phase [default: %(default)s]")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
