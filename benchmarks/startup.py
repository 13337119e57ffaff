"""How long a person waits for ``profile --help``: it must stay within a quarter of a second, so no torch is imported.

    python benchmarks/startup.py

Times the installed command in processes of their own, and an empty interpreter beside it for scale.
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
    """Exit code 1 when the median is above the limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20, help="of each command [default: %(default)s]")
    runs = parser.parse_args().runs
    wall_s(COMMAND)  # once untimed: byte code is written, files are in the page cache
    taken, empty = [], []
    for _ in range(runs):
        taken.append(wall_s(COMMAND))
        empty.append(wall_s(EMPTY))
    median = statistics.median(taken)
    print(seconds_line("profile --help", taken))
    print(seconds_line("empty interpreter", empty))
    print(f"limit {LIMIT_S * 1000:.0f} ms: {'held' if median <= LIMIT_S else 'BROKEN'}")
    return 0 if median <= LIMIT_S else 1


def wall_s(command: list[str]) -> float:
    """Seconds from start to end of a process."""
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


if __name__ == "__main__":
    sys.exit(main())
