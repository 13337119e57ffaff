"""How repetitions of one case vary over time and between processes, which an interval has to account for.

    python benchmarks/drift.py [--model gemma-3-270m] [--processes 4] [--reps 160] [--max-phase 36s]

    python benchmarks/drift.py --first [--reps 10] [--processes 4]

The first form measures the same case in several processes, one after the other, in CPU time of one thread. For each
process it prints the median, the variation of single repetitions and of the medians of blocks of 5, 10 and 20, and
the correlation of consecutive repetitions. If repetitions were independent, that correlation would be near 0, blocks
of k would vary about 1.25 ÷ √k times as much as single repetitions, and the medians of processes would hardly differ.

Then it answers the question of ``aa.py`` from these series: how often do the intervals of two processes overlap, if a
sweep had measured a random window of each? Once with intervals from the repetitions alone (``results.stats``), once
with those of a row, which include the variation between processes known from calibrations or from other CPUs.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
import sys
from collections.abc import Sequence
from itertools import pairwise

from aa import PHASES, sweep, sweep_rows

from profiler.results.stats import stdev, summarize
from profiler.run.repetitions import MAX_REPS, MIN_REPS, PRECISION

BLOCKS = (5, 10, 20)
DRAWS = 2000
SHAPES = "32,64,128,256", "1,2"  # contexts and batches of --first
MAX_SLOWER = 1.01  # first repetition ÷ later ones, for the aim
LATER = 3  # repetitions before those that count as later

Series = Sequence[float]


def main() -> int:
    """Print the results; this benchmark has no aim."""
    options = parse()
    if options.first:
        return first(options)
    rows = [sweep(options, "-r", str(options.reps)) for _ in range(options.processes)]
    for phase in PHASES:
        every = [row[phase]["cpu_seconds"] for row in rows]
        for number, series in enumerate(every, start=1):
            print(f"{phase}, process {number}: {described(series)}")
        medians = [statistics.median(series) for series in every]
        if len(medians) > 1:
            between = stdev(medians) / statistics.mean(medians)
            print(f"{phase}: medians of {len(medians)} processes vary by {between:.1%} (standard deviation)")
            for what, apart in (("from repetitions alone", None), ("of rows", rows[0][phase]["tps_between"])):
                share = overlapping(every, apart)
                print(f"{phase}: intervals {what} overlap in {share:.0%} of {DRAWS} drawn pairs of processes")
    return 0


def first(options: argparse.Namespace) -> int:
    """Print how the warm-up and each repetition compare with later ones; exit code 1 if the aim is missed."""
    options.context = SHAPES[0]
    effort = "-r", str(options.reps), "--quick"
    runs = [sweep_rows(options, *effort, batch=SHAPES[1]) for _ in range(options.processes)]
    groups = {"first case": [rows[0] for rows in runs], "later cases": [row for rows in runs for row in rows[1:]]}
    held = True
    for phase in PHASES:
        for name, chosen in groups.items():
            series = [row[phase]["cpu_seconds"] for row in chosen]
            ratios = [[second / statistics.median(each[LATER:]) for second in each[:LATER]] for each in series]
            medians = list(map(statistics.median, zip(*ratios, strict=True)))
            words = ", ".join(f"{median:.3f}" for median in medians)
            print(f"{phase}, {name} ({len(series)}): repetitions 1 to {LATER} ÷ median of the later ones: {words}")
            held &= name == "first case" or medians[0] <= MAX_SLOWER
    print(f"aim, the first repetition of later cases at most 1% slower: {'met' if held else 'MISSED'}")
    return 0 if held else 1


def described(series: Series) -> str:
    median = statistics.median(series)
    words = [f"{len(series)} repetitions, median {median:.4g} s, single {stdev(series) / median:.1%}"]
    for size in BLOCKS:
        blocks = [statistics.median(series[i : i + size]) for i in range(0, len(series) - size + 1, size)]
        if len(blocks) > 1:
            words.append(f"blocks of {size} {stdev(blocks) / median:.1%}")
    return f"{', '.join(words)}, correlation {correlation(series):.2f}"


def correlation(series: Series) -> float:
    """The correlation of consecutive values."""
    mean = statistics.mean(series)
    below = math.fsum((value - mean) ** 2 for value in series)
    return math.fsum((a - mean) * (b - mean) for a, b in pairwise(series)) / below if below else 0.0


def overlapping(every: Sequence[Series], between: float | None) -> float:
    """The share of random pairs of processes whose intervals overlap."""
    chance, found = random.Random(1), 0
    for _ in range(DRAWS):
        a, b = (interval(series, chance, between) for series in chance.sample(every, 2))
        found += a[0] <= b[1] and b[0] <= a[1]
    return found / DRAWS


def interval(series: Series, chance: random.Random, between: float | None) -> tuple[float, float]:
    """The interval of repetitions from a random start, until it is narrow enough or there are ``MAX_REPS``."""
    start = chance.randrange(max(1, len(series) - MAX_REPS))
    for n in range(MIN_REPS, MAX_REPS + 1):
        found = summarize(series[start : start + n], between)
        assert found is not None and found.low is not None and found.high is not None  # five values have one
        ends = found.low, found.high
        if found.within is not None and found.within <= PRECISION:
            break
    return ends


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="gemma-3-270m", help="as for -m [default: %(default)s]")
    parser.add_argument("--first", action="store_true", help="are first repetitions slower than later ones?")
    parser.add_argument("--processes", type=int, default=4, help="[default: %(default)s]")
    parser.add_argument("--context", type=int, default=64, help="tokens [default: %(default)s]")
    parser.add_argument("--steps", type=int, default=8, help="decode steps [default: %(default)s]")
    parser.add_argument("--reps", type=int, help="[default: 160, with --first 10]")
    parser.add_argument("--max-phase", default="36s", help="of each phase [default: %(default)s]")
    options = parser.parse_args()
    options.reps = options.reps or (10 if options.first else 160)
    return options


if __name__ == "__main__":
    sys.exit(main())
