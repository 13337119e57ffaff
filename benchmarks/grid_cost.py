"""How long a first look at a grid of twelve cases takes, compared with what people do without a profiler.

    python benchmarks/grid_cost.py [--model FOLDER] [--pairs 3]

A is ``profile sweep --quick`` over twelve cases. B is a plain script for each case: a process that imports
transformers, loads the checkpoint, and runs prefill and decode once to warm up and three times for a figure. B has no
saved cache and so prefills before every decode, while A repeats prefills for their own figure, once for cases that
differ only in their steps. A repeats more often if its precision of 5% needs that, up to six times on a machine that
is not quiet; ``--same-reps`` asks for three, as B has. A also stores rows and measures memory. Aim: five times as
fast.

    python benchmarks/grid_cost.py --llama-cpp DIR --gguf FILE [--backend llama.cpp|hf] [--pairs 3]

A is the same for twelve contexts of a GGUF file, B is llama-bench for the same prompts, depths and steps, with three
repetitions. With ``hf``, A runs the file's values in PyTorch, which is another engine of another speed. Aim: at most
twice as long.

    python benchmarks/grid_cost.py --scale [--cases 300,3000,10000]

The profiler's own cost per case in a long sweep: CPU time of the sweep's process with the fake backend, whose model
takes none, by the number of cases. Aim: 5 ms per case at 10,000 cases, and no more than at 300, so no code may
iterate over all cases for each of them. CPU time of the worker and of a dry run are printed as well.

The checkpoint is ``--model``, or random weights with the shapes of Gemma 3 270M in a temporary folder, in bf16. A
saves loading time, so the ratio falls with longer cases and rises with the size of the model; the output says how
long a load took.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from itertools import product
from pathlib import Path
from typing import NamedTuple

from figures import in_turn, ratio_text, seconds_line

from profiler import devices
from profiler.models.hub import shipped_config
from profiler.run import ceilings
from profiler.show import durations

LIMIT_S = 0.005  # the profiler's own CPU time per case of a long sweep
CONTEXTS, BATCHES, STEPS = (32, 64, 128), (1, 2), (4, 8)
TWELVE, DECODED = range(32, 416, 32), 16  # contexts and steps of the cases that llama-bench runs too
REPS = 3  # of B, and the fewest of A
TIMES_FASTER, TIMES_LONGER = 5.0, 2.0  # aims

PLAIN = """
import sys, time
folder, context, batch, steps, reps, threads = sys.argv[1], *map(int, sys.argv[2:])
start = time.perf_counter()
import torch
from transformers import AutoModelForCausalLM
torch.set_num_threads(threads)
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
print(time.perf_counter() - start)
ids = torch.randint(model.config.vocab_size, (batch, context))
with torch.inference_mode():
    for _ in range(1 + reps):
        start = time.perf_counter()
        output = model(ids, use_cache=True, logits_to_keep=1)
        prefill_s = time.perf_counter() - start
        name = 'cache' if 'cache' in output else 'past_key_values'  # renamed in transformers 5.24
        cache, token = output[name], output.logits[:, -1:].argmax(-1)
        start = time.perf_counter()
        for _ in range(steps):
            token = model(token, **{name: cache}, logits_to_keep=1).logits[:, -1:].argmax(-1)
        decode_s = time.perf_counter() - start
        print(batch * context / prefill_s, batch * steps / decode_s)
"""


def main() -> int:
    """Print the seconds of A and B and their ratio; exit code 1 if an aim is missed."""
    options = parse()
    if options.scale:
        return scale([int(count) for count in options.cases.split(",")])
    ceilings.ensure(devices.find("cpu"), print)  # once for a machine, so not part of any time
    with tempfile.TemporaryDirectory(prefix="grid-cost-") as scratch:
        return beside_llama_bench(Path(scratch), options) if options.gguf else beside_scripts(Path(scratch), options)


def beside_scripts(scratch: Path, options: argparse.Namespace) -> int:
    sweeps: list[Spent] = []
    plains: list[Spent] = []
    loads: list[float] = []
    folder = options.model or write_checkpoint(scratch / "model")
    words = ["-m", str(folder), "-q", "bf16"]
    words += ["-c", joined(CONTEXTS), "-b", joined(BATCHES), "-n", joined(STEPS)]

    def plain() -> None:
        start = Spent.now()
        loads.extend(plain_s(folder, case, options) for case in product(CONTEXTS, BATCHES, STEPS))
        plains.append(start.until_now())

    in_turn(options.pairs, lambda: sweeps.append(sweep_s(words, scratch / f"{len(sweeps)}.sqlite", options)), plain)
    print(f"{len(CONTEXTS) * len(BATCHES) * len(STEPS)} cases, {REPS} repetitions, {folder.name}, bf16 on the CPU")
    print(seconds_line("one quick sweep", [each.wall_s for each in sweeps]))
    print(seconds_line("one script per case", [each.wall_s for each in plains]))
    print(seconds_line("  each import and load in it", loads))
    return judged("scripts ÷ sweep", plains, sweeps, TIMES_FASTER, at_least=True)


def beside_llama_bench(scratch: Path, options: argparse.Namespace) -> int:
    sweeps: list[Spent] = []
    benches: list[Spent] = []
    words = ["-m", str(options.gguf), "--backend", options.backend, "-c", joined(TWELVE), "-n", str(DECODED)]
    words += ["--llama-cpp", str(options.llama_cpp)] if options.backend != "hf" else []
    common = [str(options.llama_cpp / "llama-bench"), "-m", str(options.gguf), "-t", str(options.threads)]
    common += ["-r", str(REPS), "-o", "jsonl"]

    def bench() -> None:
        start = Spent.now()
        for tests in (["-p", joined(TWELVE), "-n", "0"], ["-p", "0", "-n", str(DECODED), "-d", joined(TWELVE)]):
            done = subprocess.run([*common, *tests], check=True, capture_output=True, text=True)
            assert len(done.stdout.splitlines()) == len(TWELVE), done.stdout
        benches.append(start.until_now())

    in_turn(options.pairs, lambda: sweeps.append(sweep_s(words, scratch / f"{len(sweeps)}.sqlite", options)), bench)
    print(f"{len(TWELVE)} cases, {options.gguf.name}, {options.backend}")
    print(seconds_line("one quick sweep", [each.wall_s for each in sweeps]))
    print(seconds_line("llama-bench", [each.wall_s for each in benches]))
    return judged("sweep ÷ llama-bench", sweeps, benches, TIMES_LONGER, at_least=False)


def judged(what: str, ours: list[Spent], theirs: list[Spent], limit: float, at_least: bool) -> int:
    """Print the ratios of both clocks and whether the median of wall time meets the aim; the exit code."""
    cpu = ratio_text([each.cpu_s for each in ours], [each.cpu_s for each in theirs])
    wall = [each.wall_s for each in ours], [each.wall_s for each in theirs]
    median = statistics.median(our / their for our, their in zip(*wall, strict=True))
    held = median >= limit if at_least else median <= limit
    words = "at least" if at_least else "at most"
    print(f"{what}, CPU time: {cpu}")
    print(f"{what}: {ratio_text(*wall)}; aim {words} {limit:g}: {'met' if held else 'MISSED'}")
    return 0 if held else 1


class Spent(NamedTuple):
    """Seconds by two clocks, of which one counts the processes that were started."""

    wall_s: float
    cpu_s: float

    @classmethod
    def now(cls) -> Spent:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return cls(time.perf_counter(), used.ru_utime + used.ru_stime)

    def until_now(self) -> Spent:
        return Spent(*(after - before for before, after in zip(self, Spent.now(), strict=True)))


def joined(values: Iterable[int]) -> str:
    return ",".join(map(str, values))


def scale(counts: list[int]) -> int:
    """Print the cost per case by the number of cases; exit code 1 if the aim is missed."""
    with tempfile.TemporaryDirectory(prefix="grid-cost-") as scratch:
        folder = Path(scratch) / "tiny"
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(shipped_config("gemma-3-270m") | {"fake": {}}))
        costs = {}
        for count in counts:
            command = [sys.executable, "-m", "profiler", "sweep", "--backend", "fake", "-m", str(folder), "-n", "1"]
            command += ["-c", f"1-{count // 10}+1", "-b", "1-10+1", "-r", "1", "-o", "jsonl"]
            command += ["--store", str(Path(scratch) / f"{count}.sqlite")]
            planning = cpu_s([*command, "--dry-run"])[0]
            ours, theirs = cpu_s(command)
            costs[count] = ours / count
            print(f"{count:6,} cases: {ours / count * 1e3:.2f} ms per case, the worker {theirs / count * 1e3:.2f} ms,"
                  f" a dry run {planning / count * 1e3:.2f} ms")  # fmt: skip
    held = costs[counts[-1]] <= min(LIMIT_S, 1.5 * costs[counts[0]])
    print(f"aim {LIMIT_S * 1e3:.0f} ms per case, no more than at {counts[0]:,}: {'met' if held else 'MISSED'}")
    return 0 if held else 1


def cpu_s(command: list[str]) -> tuple[float, float]:
    """CPU seconds of a command's process, and of its children."""
    code = f"import os, sys; from profiler.cli import main\ntry: main({command[3:]!r})\n"
    code += "finally: print(*os.times()[:4], file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    user, system, child_user, child_system = map(float, done.stderr.splitlines()[-1].split())
    return user + system, child_user + child_system


def sweep_s(words: list[str], store: Path, options: argparse.Namespace) -> Spent:
    """The time of one quick sweep into a new store; prints where it went. Every row must be ok."""
    command = [sys.executable, "-m", "profiler", "sweep", *words, "--quick", "-o", "jsonl"]
    command += ["--threads", str(options.threads), "--device", "cpu", "--store", str(store)]
    command += ["-r", str(REPS)] if options.same_reps else []
    start = Spent.now()
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    spent = start.until_now()
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    if [row["outcome"] for row in rows] != ["ok"] * 12:
        raise SystemExit(f"the sweep gave {[row['outcome'] for row in rows]}")
    show = [sys.executable, "-m", "profiler", "runs", "show", "--time", "-o", "jsonl", "--store", str(store)]
    total = json.loads(subprocess.run(show, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    parts = [f"{name} {total[name]:.1f} s" for name in durations.PARTS]
    print(f"  of {spent.wall_s:.1f} s of the sweep: {', '.join(parts)}", flush=True)
    return spent


def plain_s(folder: Path, case: tuple[int, int, int], options: argparse.Namespace) -> float:
    """Run the plain script for a case; return the seconds for its imports and loading."""
    command = [sys.executable, "-c", PLAIN, str(folder), *map(str, (*case, REPS, options.threads))]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    first, *rows = done.stdout.splitlines()
    assert len(rows) == 1 + REPS
    return float(first)


def write_checkpoint(folder: Path) -> Path:
    """A checkpoint with random weights in the shapes of Gemma 3 270M, in bf16 as published."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    fields = shipped_config("gemma-3-270m")
    torch.manual_seed(0)
    config = AutoConfig.for_model(fields.pop("model_type"), **fields)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    return folder


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, metavar="FOLDER", help="config.json and safetensors")
    parser.add_argument("--gguf", type=Path, metavar="FILE", help="compare with llama-bench on this file")
    parser.add_argument("--llama-cpp", type=Path, metavar="DIR", help="the folder of llama-bench")
    parser.add_argument("--backend", default="llama.cpp", help="that measures the file [default: %(default)s]")
    parser.add_argument("--pairs", type=int, default=3, help="pairs of A and B [default: %(default)s]")
    parser.add_argument("--same-reps", action="store_true", help="A has the three repetitions of B")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads [default: %(default)s]")
    parser.add_argument("--scale", action="store_true", help="measure the cost per case by the number of cases")
    parser.add_argument("--cases", default="300,3000,10000", help="case counts for --scale [default: %(default)s]")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
