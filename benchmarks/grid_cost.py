"""How much time one sweep saves compared with starting a plain script for each case. Aim: a factor of three.

    python benchmarks/grid_cost.py [--model FOLDER] [--pairs 3]

A is ``profile sweep`` over a grid of 12 cases. B is what people do without it: for each case a process that imports
transformers, loads the checkpoint, and runs prefill and decode once to warm up and ``reps`` times for a figure. B has
no saved cache and so prefills before every decode, while A repeats prefills for their own figure, so both run the
same number of each. They differ in warm-ups: A spends up to five seconds per phase on them. A also stores every row
and checks memory.

    python benchmarks/grid_cost.py --scale [--cases 300,3000,10000]

The profiler's own cost per case in a long sweep: CPU time of the sweep's process with the fake backend, whose model
takes none, by the number of cases. Aim: 5 ms per case at 10,000 cases, and no more than at 300, so no code may
iterate over all cases for each of them. CPU time of the worker and of a dry run are printed as well.

The checkpoint is ``--model``, or random weights with the shapes of Gemma 3 270M in a temporary folder. A saves
loading time, so the ratio falls with longer cases and rises with the size of the model; the output says how long a
load took.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from itertools import product
from pathlib import Path

from figures import in_turn, ratio_text, seconds_line

from profiler.models.hub import shipped_config

LIMIT_S = 0.005  # the profiler's own CPU time per case of a long sweep
CONTEXTS, BATCHES, STEPS = (32, 64, 128), (1, 2), (4, 8)

PLAIN = """
import sys, time
folder, context, batch, steps, reps, threads = sys.argv[1], *map(int, sys.argv[2:])
start = time.perf_counter()
import torch
from transformers import AutoModelForCausalLM
torch.set_num_threads(threads)
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
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
    """Print the seconds of A and B and their ratio."""
    options = parse()
    if options.scale:
        return scale([int(count) for count in options.cases.split(",")])
    sweeps, plains, loads = [], [], []
    with tempfile.TemporaryDirectory(prefix="grid-cost-") as scratch:
        folder = options.model or write_checkpoint(Path(scratch) / "model")

        def plain() -> None:
            start = time.perf_counter()
            loads.extend(plain_s(folder, case, options) for case in product(CONTEXTS, BATCHES, STEPS))
            plains.append(time.perf_counter() - start)

        in_turn(
            options.pairs,
            lambda: sweeps.append(sweep_s(folder, Path(scratch) / f"{len(sweeps)}.sqlite", options)),
            plain,
        )
    print(f"{len(CONTEXTS) * len(BATCHES) * len(STEPS)} cases, {options.reps} reps, {folder.name}, fp32 on the CPU")
    print(seconds_line("one sweep", sweeps))
    print(seconds_line("one script per case", plains))
    print(seconds_line("  each import and load in it", loads))
    print(f"scripts ÷ sweep: {ratio_text(plains, sweeps)}")
    return 0


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


def sweep_s(folder: Path, store: Path, options: argparse.Namespace) -> float:
    """Wall seconds of one sweep into a new store. Every row must be ok for the time to mean anything."""
    lists = (("-c", CONTEXTS), ("-b", BATCHES), ("-n", STEPS))
    grid = [word for flag, values in lists for word in (flag, ",".join(map(str, values)))]
    command = [sys.executable, "-m", "profiler", "sweep", "-m", str(folder), "-q", "fp32", *grid, "-o", "jsonl"]
    command += ["-r", str(options.reps), "--threads", str(options.threads), "--device", "cpu", "--store", str(store)]
    start = time.perf_counter()
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    outcomes = [json.loads(line)["outcome"] for line in done.stdout.splitlines()]
    expected = ["ok"] * (len(CONTEXTS) * len(BATCHES) * len(STEPS))
    if outcomes != expected:
        raise SystemExit(f"the sweep gave {outcomes}")
    return seconds


def plain_s(folder: Path, case: tuple[int, int, int], options: argparse.Namespace) -> float:
    """Run the plain script for a case; return the seconds for its imports and loading."""
    command = [sys.executable, "-c", PLAIN, str(folder), *map(str, (*case, options.reps, options.threads))]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    first, *rows = done.stdout.splitlines()
    assert len(rows) == 1 + options.reps
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
    parser.add_argument("--reps", type=int, default=1, help="repetitions of each phase [default: %(default)s]")
    parser.add_argument("--pairs", type=int, default=3, help="pairs of A and B [default: %(default)s]")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads [default: %(default)s]")
    parser.add_argument("--scale", action="store_true", help="measure the cost per case by the number of cases")
    parser.add_argument("--cases", default="300,3000,10000", help="case counts for --scale [default: %(default)s]")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
