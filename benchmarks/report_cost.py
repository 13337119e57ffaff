"""What reading many rows costs: CPU time and peak memory of ``profile report``, ``runs show`` and other readers.

    python benchmarks/report_cost.py [--rows 10000] [--store FILE]

The rows are invented and stored first; 100,000 of them take some minutes, and ``--store`` keeps the file for reuse.
Each command is measured as a whole in its own process, in CPU seconds, which a busy machine disturbs least. Aims: a
page of at most 6 MB; ``report`` over 10,000 rows in 1 s and 100 MiB, over 100,000 in 5 s and 500 MiB; ``runs show``
of 10,000 rows in 2 s. The limits of time scale with the number of rows.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from profiler.case import Case
from profiler.results.measurement import Measurement, Memory, Sample
from profiler.results.store import Store

PAGE_BYTES = 6_000_000
US_A_ROW = {"report": 50, "show": 200}  # CPU time per row, in addition to ``START_S``
START_S = 0.5  # for the interpreter and its imports
PEAK_MIB = 500
FEW, FEW_MIB = 10_000, 100  # the peak of a report of that many rows
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
    """Exit code 1 if an aim is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000, help="[default: %(default)s]")
    parser.add_argument("--store", type=Path, metavar="FILE", help="created if it does not exist")
    options = parser.parse_args()
    missed = False
    with tempfile.TemporaryDirectory(prefix="report-cost-") as scratch:
        store, page = options.store or Path(scratch) / "store.sqlite", Path(scratch) / "page.html"
        if not store.exists():
            fill(store, options.rows)
        print(f"{options.rows:,} rows, {store.stat().st_size / 1e6:.0f} MB")
        for name, command in (
            ("report", ["report"]),
            ("report, HTML", ["report", "--html", str(page)]),
            *((f"show -o {output}", ["runs", "show", "-o", output]) for output in ("table", "jsonl", "csv")),
            ("runs", ["runs"]),
            ("accuracy", ["accuracy"]),
        ):
            cpu_s, peak_mib = cost([sys.executable, "-m", "profiler", *command, "--store", str(store)])
            aim = US_A_ROW.get(name.partition(",")[0].partition(" ")[0])
            most_s = None if aim is None else START_S + aim * 1e-6 * options.rows
            most_mib = FEW_MIB if name.startswith("report") and options.rows <= FEW else PEAK_MIB
            over = (most_s is not None and cpu_s > most_s) or peak_mib > most_mib
            missed |= over
            said = "" if most_s is None else f" of {most_s:.2f} s"
            print(f"{name:16} CPU {cpu_s:6.2f} s{said}, peak {peak_mib:5.0f} MiB{' MISSED' if over else ''}")
        size = page.stat().st_size
    print(f"page {size / 1e6:.2f} MB of {PAGE_BYTES / 1e6:.0f} MB")
    return int(missed or size > PAGE_BYTES)


def cost(command: list[str]) -> tuple[float, float]:
    """CPU seconds and peak memory in MiB of a command that must succeed."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return used.ru_utime + used.ru_stime, used.ru_maxrss / 1024


def fill(path: Path, count: int, noise: Callable[[], float] = lambda: 1.0) -> str:
    """Store a run of ``count`` rows of ten models, with times multiplied by ``noise``; return its id.

    The store's own ``append`` would sync the disk after each row.
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
    """A different case for each number."""
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
