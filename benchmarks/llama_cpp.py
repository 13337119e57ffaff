"""Does `profile sweep --backend llama.cpp` report what llama.cpp's own programs print?

    python benchmarks/llama_cpp.py --llama-cpp DIR FILE.gguf ...  [-c 128,512,4096] [-b 1,4] [-r 5] [--rounds 2]

For each file, context and batch, a sweep of one case (A) and the program with the same arguments (B) run in turns:
ABBA… Printed are the ratios of the median rates, the peak of the row minus the highest VmHWM that was read from
``/proc`` beside the sweep, and the time of A ÷ time of B. ``--hf`` adds a line per file with our own PyTorch path.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import geometric_mean, median
from typing import Any

from profiler.backends.llama_cpp import build
from profiler.case import Case

POLL_S = 0.1  # on both sides, so that looking costs both the same
PROGRAMS = (build.BENCH, build.BATCHED)
MIB = 1024**2
HEADER = (
    "| file | context | batch | prefill t/s: row, program | ratio | decode t/s: row, program | ratio "
    "| peak − VmHWM | time ratio |\n|---|---|---|---|---|---|---|---|---|"
)
Rates = dict[str, list[float]]


def main() -> None:
    options = arguments()
    with build.using(options.llama_cpp):
        compare(options)


def compare(options: argparse.Namespace) -> None:
    """Print the table, a line at a time."""
    found = build.find()
    print(f"{', '.join(found.versions().values())}; {options.threads} thread(s); -n {options.steps}\n")
    swept(Path(options.files[0]).absolute(), 32, 1, options)  # untimed: it measures the ceilings, which are stored
    print(HEADER)
    ratios: Rates = {"prefill": [], "decode": []}
    for file in options.files:
        for context in map(int, options.contexts.split(",")):
            for batch in map(int, options.batches.split(",")):
                print(line(found, Path(file).absolute(), context, batch, options, ratios), flush=True)
        if options.hf:
            print(hf_line(Path(file), options), flush=True)
    means = ", ".join(f"{phase} {geometric_mean(values):.3f}" for phase, values in ratios.items())
    print(f"\ngeometric mean of the ratios: {means}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        prog="python benchmarks/llama_cpp.py",
    )
    parser.add_argument("files", nargs="+", metavar="FILE.gguf")
    parser.add_argument(
        "--llama-cpp", default=os.environ.get(build.VARIABLE), required=build.VARIABLE not in os.environ
    )
    parser.add_argument("-c", dest="contexts", default="128,512,4096")
    parser.add_argument("-b", dest="batches", default="1,4")
    parser.add_argument("-n", dest="steps", type=int, default=32)
    parser.add_argument("-r", dest="reps", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--hf", action="store_true")
    return parser.parse_args()


def line(found: build.Build, file: Path, context: int, batch: int, options: argparse.Namespace, ratios: Rates) -> str:
    """Both sides in turns, as a line of the table; the ratios of their rates are added to ``ratios``."""
    ours: Rates = {"prefill": [], "decode": []}
    theirs: Rates = {"prefill": [], "decode": []}
    seconds = {"A": 0.0, "B": 0.0}
    gaps: list[float] = []
    for number in range(options.rounds):
        for side in ("AB", "BA")[number % 2]:
            start = time.perf_counter()
            with watched(file) as highest:
                if side == "B":
                    alone(found, file, context, batch, options, theirs)
                else:
                    row = swept(file, context, batch, options)
                    for phase, rates in ours.items():
                        rates += [row[phase]["tokens"] / each for each in row[phase]["seconds"]]
            if side == "A":
                gaps.append((row["memory"]["process_peak_bytes"] - highest[0]) / MIB)
            seconds[side] += time.perf_counter() - start
    cells = [file.stem, str(context), str(batch)]
    for phase in ours:
        a, b = median(ours[phase]), median(theirs[phase])
        cells += [f"{a:.1f}, {b:.1f}", f"{a / b:.3f}"]
        ratios[phase].append(a / b)
    cells += [f"{max(gaps, key=abs):+.2f} MiB", f"{seconds['A'] / seconds['B']:.2f}"]
    return f"| {' | '.join(cells)} |"


def swept(file: Path, context: int, batch: int, options: argparse.Namespace, *more: str) -> dict[str, Any]:
    """The row of a sweep of one case in a store of its own."""
    with tempfile.TemporaryDirectory() as folder:
        asked = ["-m", str(file), "-c", str(context), "-b", str(batch), "-n", str(options.steps)]
        asked += ["-r", str(options.reps), "--threads", str(options.threads), "--device", "cpu"]
        asked += ["--max-phase", "1h", "-o", "jsonl", "--store", f"{folder}/store.sqlite", *more]
        backend = () if more else ("--backend", "llama.cpp")
        command = [sys.executable, "-m", "profiler", "sweep", *backend, *asked]
        row = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    assert row["outcome"] == "ok", row["reason"]
    return dict(row)


def alone(
    found: build.Build, file: Path, context: int, batch: int, options: argparse.Namespace, rates: Rates
) -> None:
    """What the program prints for the same arguments."""
    case = Case(
        file.stem, "", "real", "", "", "cpu", "llama.cpp", "eager", context, batch, options.steps,
        ubatch=min(build.UBATCH, context), threads=options.threads,
    )  # fmt: skip
    if batch > 1:
        lines = printed(found.both_phases(case, file, 1 + options.reps))[1:]  # the sweep's warm-up is its first line
        rates["prefill"] += [each["pp"] * each["pl"] / each["t_pp"] for each in lines]
        rates["decode"] += [each["tg"] * each["pl"] / each["t_tg"] for each in lines]
        return
    for phase, tokens in (("prefill", context), ("decode", options.steps)):
        (row,) = printed(found.phase(case, file, phase, options.reps, 1))
        rates[phase] += [tokens / nanoseconds * 1e9 for nanoseconds in row["samples_ns"]]


def printed(command: list[str]) -> list[dict[str, Any]]:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
    return [json.loads(text) for text in done.stdout.decode().splitlines() if text.startswith("{")]


@contextmanager
def watched(file: Path) -> Iterator[list[int]]:
    """Read the VmHWM of every program of llama.cpp that runs ``file`` meanwhile; the list holds the highest."""
    highest, ended = [0], threading.Event()

    def watch() -> None:
        while not ended.wait(POLL_S):
            for process in Path("/proc").glob("[0-9]*"):
                try:
                    words = (process / "cmdline").read_bytes().split(b"\0")
                    if Path(os.fsdecode(words[0])).name in PROGRAMS and os.fsencode(file) in words:
                        status = (process / "status").read_text()
                        highest[0] = max(highest[0], int(status.partition("VmHWM:")[2].split()[0]) * 1024)
                except (OSError, IndexError, ValueError):  # it has ended
                    continue

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield highest
    finally:
        ended.set()
        thread.join()


def hf_line(file: Path, options: argparse.Namespace) -> str:
    """Our own path on the same file, unpacked into bf16."""
    context = int(options.contexts.split(",")[0])
    row = swept(file, context, 1, options, "--backend", "hf", "-q", "bf16")
    rates = [f"{row[phase]['tokens'] / median(row[phase]['seconds']):.1f}, –" for phase in ("prefill", "decode")]
    return f"| {file.stem}, `--backend hf -q bf16` | {context} | 1 | {rates[0]} | – | {rates[1]} | – | – | – |"


if __name__ == "__main__":
    main()
