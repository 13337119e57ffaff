"""What watching a device costs the thread that measures: the aim is at most 1 %.

    python benchmarks/telemetry_cost.py

A runs with the telemetry of a GPU beside it, B without. The work is what a decode of small operators is, a thread of
Python that holds the interpreter's lock but for short calls: matrix products of torch, and pure Python beside them.
The driver is the fake library of the tests, of which each call takes ``--latency`` microseconds; pynvml, the process
that watches and its snapshots are those of a measurement; during B it is stopped. Sides take turns (AB, BA, …), and
each pair gives a ratio A ÷ B of wall time and of the thread's CPU time. ``control`` is B ÷ B, the machine's own
noise: many short turns say more than few long ones.

The CPU time of a snapshot is what the watching process takes of a core, and can be told on a noisy machine as well.
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
class Side:
    """Seconds of its turns."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def turn(self, work: Callable[[], None]) -> None:
        start, cpu = time.perf_counter(), time.thread_time()
        work()
        self.wall.append(time.perf_counter() - start)
        self.cpu.append(time.thread_time() - cpu)


def main() -> int:
    """Print the ratios; exit code 1 when the telemetry is dearer than the aim beyond doubt."""
    options = parse()
    with tempfile.TemporaryDirectory() as folder:
        install(Path(folder), options.latency)
        work = decode_like(options.steps)
        work()  # once untimed
        a, b, again = Side(), Side(), Side()

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
        assert telemetry.gone is None, telemetry.gone  # it lived to the end
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
    os.environ["LD_LIBRARY_PATH"] = str(library.parent)  # where the process that watches finds it
    pynvml.nvmlLib = ctypes.CDLL(str(library))
    install.machine = machine  # type: ignore[attr-defined]


def snapshot_s() -> float:
    """CPU seconds of one snapshot, when the driver answers at once."""
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
    """Small products and Python between them."""
    import torch

    torch.set_num_threads(1)
    weight, state = torch.randn(512, 512), torch.randn(1, 512)

    def work() -> None:
        with torch.inference_mode():
            row = state
            for _ in range(steps):
                row = torch.tanh(row @ weight)
                sum(range(50))  # holds the lock, as a model's own Python does

    return work


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=4000, help="of the work [default: %(default)s]")
    parser.add_argument("--latency", type=int, default=100, help="of a call, in µs [default: %(default)s]")
    parser.add_argument("--pairs", type=int, default=200, help="turns of each side [default: %(default)s]")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
