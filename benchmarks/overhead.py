"""The profiler's own cost without a model: its loop, its store, and a sweep per case.

    python benchmarks/overhead.py [--pairs 12]

    loop     A is ``profiler.run.loop.measure`` over the fake backend, whose steps do almost nothing; B calls the same
             steps without clocks, watcher and checks. The difference of their times per decode step is the cost of
             the loop
    store    one row of 2 × 20 repetitions with 128 timed steps each: appending it durably, and reading it back
    sweep    ``profile sweep`` with the fake backend over 41 cases compared with one: seconds per additional case for
             plan, prediction, worker, messages, row, store and table

A and B take turns (AB, BA, …). No figure includes a model's own time.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from figures import difference_line, in_turn, ratio_text, seconds_line

from profiler.backends import fake
from profiler.case import Case, Source
from profiler.results.measurement import Measurement, Sample
from profiler.results.store import Store
from profiler.run.loop import measure
from profiler.run.repetitions import Effort, Repeater
from profiler.scenarios import __file__ as scenarios

CASE = Case("fake", "fake", "synthetic", "fp32", "fp32", "cpu", "fake", "eager", context=128, batch=1, steps=500)
REPS = 4
WARMUPS = 5  # number of warm-ups of a phase without noise
CASES = 41


def main() -> int:
    """Print what each costs, with its spread."""
    options = parse()
    loop(options.pairs)
    store(options.pairs)
    sweep(max(3, options.pairs // 2))
    return 0


def loop(pairs: int) -> None:
    """Seconds of a decode step in our loop, and of the same calls without it."""
    session = fake.open_session(CASE, Source("folder", "/", None, {"fake": {"step_s": 0.001}}), lambda text: None)
    steps = (WARMUPS + REPS) * CASE.steps
    ours: list[float] = []
    bare: list[float] = []

    def with_loop() -> None:
        start = time.perf_counter()
        measure(session, CASE, Repeater(Effort(reps=REPS)))
        ours.append((time.perf_counter() - start) / steps)

    def without() -> None:
        generation = session.begin(CASE)
        start = time.perf_counter()
        for _ in range(WARMUPS + REPS):
            generation.prefill()
        generation.save()
        for _ in range(WARMUPS + REPS):
            generation.restore()
            for _ in range(CASE.steps):
                generation.step()
        bare.append((time.perf_counter() - start) / steps)

    in_turn(pairs, with_loop, without)
    print(seconds_line("loop: a decode step, including its share of prefills and checks", ours))
    print(f"loop: with ÷ without, over a model that does nothing: {ratio_text(ours, bare)}")
    print(difference_line("loop: cost of a step", [our - their for our, their in zip(ours, bare, strict=True)]))


def store(pairs: int) -> None:
    """Seconds to append one full row, and to read it."""
    samples = [Sample(phase, 1.0, 128, cpu_s=1.0, wait_s=0.0) for phase in ("prefill",) for _ in range(20)]
    samples += [Sample("decode", 1.0, 128, (1 / 128,) * 128, 1.0, 0.0) for _ in range(20)]
    row = Measurement(CASE, {}, "ok", samples=tuple(samples), asked={"precision": 0.02})
    appending: list[float] = []
    reading: list[float] = []
    with tempfile.TemporaryDirectory(prefix="overhead-") as scratch, Store.open(Path(scratch) / "s.sqlite") as opened:

        def append() -> None:
            run = opened.start_run(["benchmark"], {})
            start = time.perf_counter()
            opened.append(run, row)
            appending.append(time.perf_counter() - start)

        def read() -> None:
            start = time.perf_counter()
            opened.rows()
            reading.append(time.perf_counter() - start)

        append()
        appending.clear()
        in_turn(pairs, append, read)
    print(seconds_line("store: appending a row", appending))
    print(seconds_line("store: reading a row", reading))


def sweep(pairs: int) -> None:
    """Seconds per additional case in a sweep."""
    many: list[float] = []
    one: list[float] = []
    with tempfile.TemporaryDirectory(prefix="overhead-") as scratch:
        config = json.loads((Path(scenarios).parent / "models" / "gemma-3-270m.json").read_text())
        model: dict[str, Any] = config | {"fake": {"step_s": 0.001}}
        (Path(scratch) / "config.json").write_text(json.dumps(model))

        def run(contexts: str, taken: list[float]) -> None:
            command = [sys.executable, "-m", "profiler", "sweep", "--backend", "fake", "-m", scratch, "-c", contexts]
            command += ["--fresh", "-o", "jsonl", "--store", str(Path(scratch) / "s.sqlite")]
            start = time.perf_counter()
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            taken.append(time.perf_counter() - start)
            assert done.stdout.count("\n") == contexts.count(",") + 1

        contexts = ",".join(str(128 + place) for place in range(CASES))
        in_turn(pairs, lambda: run(contexts, many), lambda: run("128", one))
    print(seconds_line("sweep: one case, including worker and imports", one))
    further = [(both - single) / (CASES - 1) for both, single in zip(many, one, strict=True)]
    print(difference_line("sweep: an additional case", further))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=12, help="pairs of A and B [default: %(default)s]")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
