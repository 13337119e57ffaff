"""What watching a device costs the measuring thread. Aim: at most 1%.

    python benchmarks/telemetry_cost.py

A runs with GPU telemetry, B without. The work resembles a decode with small operators: a Python thread that releases
the interpreter's lock only for short calls, with torch matrix products and pure Python. The driver is the tests' fake
library, whose calls each take ``--latency`` microseconds; pynvml, the watching process and its snapshots are the real
ones, and are stopped during B. A and B take turns (AB, BA, …), and each pair gives a ratio of wall time and of the
thread's CPU time. ``control`` is B ÷ B, the machine's own noise. Many short turns give more information than few long
ones.

The CPU time of a snapshot is the watching process's share of a core, which is measurable on a noisy machine as well.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from figures import certainly_above, in_turn, ratio_text

from profiler.devices.cuda import Board
from profiler.devices.sampler import Sampler
from profiler.devices.telemetry import TICK_S

AIM = 1.01  # A/B of the time of the measuring thread
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))


@dataclass
class TelemetryTimings:
    """The seconds of its turns."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def turn(self, work: Callable[[], None]) -> None:
        start, cpu = time.perf_counter(), time.thread_time()
        work()
        self.wall.append(time.perf_counter() - start)
        self.cpu.append(time.thread_time() - cpu)


def main() -> int:
    """Print the ratios; exit code 1 if the cost of telemetry exceeds the aim beyond doubt."""
    options = parse()
    with tempfile.TemporaryDirectory() as folder:
        install(Path(folder), options.latency)
        work = decode_like(options.steps)
        work()  # once untimed
        a, b, again = TelemetryTimings(), TelemetryTimings(), TelemetryTimings()

        telemetry = Sampler(Board("GPU-aaaa"))
        telemetry.open()
        assert telemetry.gone is None, telemetry.gone
        watching = telemetry._process.pid

        def watched() -> None:
            os.kill(watching, signal.SIGCONT)
            a.turn(work)
            os.kill(watching, signal.SIGSTOP)

        os.kill(watching, signal.SIGSTOP)
        in_turn(options.pairs, watched, lambda: b.turn(work), lambda: again.turn(work))
        os.kill(watching, signal.SIGCONT)
        telemetry.stop(0.0)
        assert telemetry.gone is None, telemetry.gone  # it ran until the end
        telemetry.close()
        seconds = snapshot_s()
    print(f"{options.steps} steps, {1 / TICK_S:.0f} snapshots a second, {options.latency} µs a call; A = watched")
    for what in ("wall", "cpu"):
        print(f"{what:8} A/B {ratio_text(getattr(a, what), getattr(b, what))}")
        print(f"{'control':8} B/B {ratio_text(getattr(again, what), getattr(b, what))}")
    share = seconds / TICK_S
    print(f"a snapshot takes {1e6 * seconds:.0f} µs of CPU time, {share:.2%} of a core")
    dear = certainly_above(a.wall, b.wall, AIM) or share > AIM - 1
    print(f"aim {AIM - 1:.0%}: {'exceeded' if dear else 'not exceeded beyond doubt'}")
    return 1 if dear else 0


def install(folder: Path, latency_us: int) -> None:
    """The fake driver with one card, for this process."""
    import pynvml
    from fakes.nvml import FakeNvml, build

    os.environ["FAKE_NVML"] = str(folder / "script")
    machine = FakeNvml(folder / "script")
    machine.card(power_w=300, reasons=0, processes={os.getpid(): 2**30})
    machine.control.latency_us = latency_us
    library = build(folder)
    os.environ["LD_LIBRARY_PATH"] = str(library.parent)  # where the watching process finds it
    pynvml.nvmlLib = ctypes.CDLL(str(library))
    install.machine = machine  # type: ignore[attr-defined]


def snapshot_s() -> float:
    """CPU seconds of one snapshot with a driver that answers immediately."""
    install.machine.control.latency_us = 0  # type: ignore[attr-defined]
    board = Board("GPU-aaaa")
    board.open()
    times = 2000
    start = time.thread_time()
    for _ in range(times):
        board.read(0.0)
    seconds = time.thread_time() - start
    board.close()
    return seconds / times


def decode_like(steps: int) -> Callable[[], None]:
    """Small products, with Python code between them."""
    import torch

    torch.set_num_threads(1)
    weight, state = torch.randn(512, 512), torch.randn(1, 512)

    def work() -> None:
        with torch.inference_mode():
            row = state
            for _ in range(steps):
                row = torch.tanh(row @ weight)
                sum(range(50))  # holds the lock, like a model's own Python code

    return work


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=4000, help="steps of the work [default: %(default)s]")
    parser.add_argument("--latency", type=int, default=100, help="of a driver call, in µs [default: %(default)s]")
    parser.add_argument("--pairs", type=int, default=200, help="pairs of A and B [default: %(default)s]")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
