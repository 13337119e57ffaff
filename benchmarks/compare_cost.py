"""How long ``profile compare`` takes for two runs of many rows. Limit: 2 s for 10,000 rows each.

    python benchmarks/compare_cost.py [--rows 10000] [--times 5]

The rows are invented and stored first, with independent noise, and run B is 2% slower. The figure is the median time
of the whole command in its own process, including reading the store.
"""

from __future__ import annotations

import argparse
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from report_cost import fill

LIMIT_S = 2.0
NOISE, SLOWER = 0.02, 0.02


def main() -> int:
    """Exit code 1 if the limit is exceeded."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000, help="rows per run [default: %(default)s]")
    parser.add_argument("--times", type=int, default=5, help="[default: %(default)s]")
    options = parser.parse_args()
    noise = random.Random(1).lognormvariate
    with tempfile.TemporaryDirectory(prefix="compare-cost-") as scratch:
        store = Path(scratch) / "store.sqlite"
        runs = [fill(store, options.rows, lambda shift=shift: noise(shift, NOISE)) for shift in (0, SLOWER)]
        command = [sys.executable, "-m", "profiler", "compare", *runs, "--store", str(store)]
        taken = []
        for _ in range(options.times):
            start = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            taken.append(time.perf_counter() - start)
    median = statistics.median(taken)
    held = median <= LIMIT_S
    print(f"2 × {options.rows:,} rows: {median:.2f} s ({min(taken):.2f} to {max(taken):.2f}, {options.times} times)")
    print(f"limit {LIMIT_S:.0f} s: {'met' if held else 'EXCEEDED'}")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
