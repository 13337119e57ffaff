"""How long ``profile --help`` takes. Limit: a quarter of a second, so torch must not be imported.

    python benchmarks/startup.py

Times the installed command in new processes, and an empty interpreter for comparison.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

from figures import seconds_line

LIMIT_S = 0.25
COMMAND = [str(Path(sys.executable).with_name("profile")), "--help"]
EMPTY = [sys.executable, "-c", "pass"]


def main() -> int:
    """Exit code 1 if the median is above the limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20, help="runs of each command [default: %(default)s]")
    runs = parser.parse_args().runs
    wall_s(COMMAND)  # once untimed, to write byte code and fill the page cache
    taken, empty = [], []
    for _ in range(runs):
        taken.append(wall_s(COMMAND))
        empty.append(wall_s(EMPTY))
    median = statistics.median(taken)
    print(seconds_line("profile --help", taken))
    print(seconds_line("empty interpreter", empty))
    print(f"limit {LIMIT_S * 1000:.0f} ms: {'met' if median <= LIMIT_S else 'EXCEEDED'}")
    return 0 if median <= LIMIT_S else 1


def wall_s(command: list[str]) -> float:
    """Wall seconds of a process."""
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


if __name__ == "__main__":
    sys.exit(main())
