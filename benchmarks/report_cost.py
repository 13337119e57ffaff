"""How long `profile report` takes over many rows, and how large its page is: at most 5 s and 6 MB for 10,000 rows.

    python benchmarks/report_cost.py [--rows 10000]

Rows are made up and stored first; what is timed is the whole command in a process of its own, reading included. CPU
seconds are what a busy machine does not change.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from profiler.case import Case
from profiler.results.measurement import Measurement, Memory, Sample
from profiler.results.store import Store

LIMIT_S, LIMIT_BYTES = 5.0, 6_000_000
QUANTS = ("fp32", "bf16", "fp16", "int8", "nf4", "nf4-dq", "fp4")
BATCHES = (1, 2, 4, 8)
GIB = 1024**3
ENVIRONMENT = {
    "cpu": {"title": "made up", "cores": 8},
    "device": {"name": "cpu", "kind": "cpu", "title": "made up", "memory_bytes": 64 * GIB},
    "libraries": {"torch": "0", "bitsandbytes": "0"},
}
CASE = Case("m", "m", "synthetic", "bf16", "bf16", "cpu", "hf", "eager", 128, 1, 32)
MODELS = ("gemma-4-e2b", "qwen3.5-2b", *(f"model-{number}" for number in range(8)))


def main() -> int:
    """Exit code 1 when a limit is broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000, help="[default: %(default)s]")
    count = parser.parse_args().rows
    with tempfile.TemporaryDirectory(prefix="report-cost-") as scratch:
        store, page = Path(scratch) / "store.sqlite", Path(scratch) / "page.html"
        fill(store, count)
        command = [sys.executable, "-m", "profiler", "report", "--store", str(store), "--html", str(page)]
        start = time.perf_counter()
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
        wall = time.perf_counter() - start
        used = os.times()
        cpu, size = used.children_user + used.children_system, page.stat().st_size
    held = cpu <= LIMIT_S and size <= LIMIT_BYTES
    print(f"{count:,} rows: {wall:.2f} s, of which the CPU {cpu:.2f} s; page {size / 1e6:.2f} MB")
    print(f"limits {LIMIT_S:.0f} s of CPU time and {LIMIT_BYTES / 1e6:.0f} MB: {'held' if held else 'BROKEN'}")
    return 0 if held else 1


def fill(path: Path, count: int, noise: Callable[[], float] = lambda: 1.0) -> str:
    """A run of ``count`` rows of ten models, times multiplied by ``noise``; its id.

    The store's own ``append`` would sync the disk after each.
    """
    import sqlite3

    with Store.open(path) as store:
        run = store.start_run(["made", "up"], ENVIRONMENT)
        connection: sqlite3.Connection = store._db
        connection.execute("PRAGMA synchronous=OFF")
        for number in range(count):
            store.append(run, row(number, noise))
        store.finish_run(run, "finished")
    return run


def row(number: int, noise: Callable[[], float]) -> Measurement:
    """A case of its own for each number."""
    rest, model = divmod(number, len(MODELS))
    rest, quant = divmod(rest, len(QUANTS))
    rest, batch = divmod(rest, len(BATCHES))
    case = replace(
        CASE,
        model=MODELS[model],
        model_id=MODELS[model],
        quant=QUANTS[quant],
        batch=BATCHES[batch],
        context=128 * (rest + 1),
    )
    rate = (10 + model + quant) * case.batch / (1 + rest / 40)
    samples = [
        Sample(phase, seconds := noise() * tokens / (rate * scale * factor), tokens, (seconds / case.steps,) * timed)
        for phase, tokens, scale, timed in (
            ("prefill", case.batch * case.context, 30, 0),
            ("decode", case.batch * case.steps, 1, case.steps),
        )
        for factor in (1.0, 1.01, 0.99)
    ]
    memory = Memory(
        weights_bytes=2 * GIB, cache_bytes=GIB // 8, baseline_bytes=GIB // 2, prefill_peak_bytes=4 * GIB,
        decode_peak_bytes=3 * GIB, process_peak_bytes=4 * GIB,
    )  # fmt: skip
    expected = {"ceiling_s": {"prefill": 0.1, "step": 0.01}, "decode_bound": "bandwidth"}
    started = {"started_at": "2026-11-24T09:30:15+00:00", "asked": {"reps": 3}, "expected": expected}
    return Measurement(case, ENVIRONMENT, "ok", samples=tuple(samples), memory=memory, **started)


if __name__ == "__main__":
    sys.exit(main())
