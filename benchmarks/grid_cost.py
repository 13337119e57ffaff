"""What one sweep saves against a plain script started once for each case: the aim is a third of the time.

    python benchmarks/grid_cost.py [--model FOLDER] [--pairs 3]

A is ``profile sweep`` over a grid of 12 cases. B is what people do without it: for each case a process that imports
transformers, loads the checkpoint, and runs prefill and decode once for warm-up and ``reps`` times for a figure. B
has no saved cache to go back to and prefills before every decode; A repeats prefills for their own figure, so both do
the same number of each but for warm-ups, of which A does up to five seconds a phase. A also writes every row to a
store and checks memory.

The checkpoint is ``--model``, or random weights in the shapes of Gemma 3 270M, written to a temporary folder.
What A saves is loading, so the ratio falls as cases get longer and rises with the model: see how long one load took.
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
        cache, token = output.past_key_values, output.logits[:, -1:].argmax(-1)
        start = time.perf_counter()
        for _ in range(steps):
            token = model(token, past_key_values=cache, logits_to_keep=1).logits[:, -1:].argmax(-1)
        decode_s = time.perf_counter() - start
        print(batch * context / prefill_s, batch * steps / decode_s)
"""


def main() -> int:
    """Print the seconds of both sides and their ratio."""
    options = parse()
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
    print(seconds_line("one script a case", plains))
    print(seconds_line("  of which each import and load", loads))
    print(f"scripts ÷ sweep: {ratio_text(plains, sweeps)}")
    return 0


def sweep_s(folder: Path, store: Path, options: argparse.Namespace) -> float:
    """Wall seconds of one sweep into a new store. Every row must be ok, or the time says nothing."""
    lists = (("-c", CONTEXTS), ("-b", BATCHES), ("-n", STEPS))
    grid = [word for flag, values in lists for word in (flag, ",".join(map(str, values)))]
    command = [sys.executable, "-m", "profiler", "sweep", "-m", str(folder), "-q", "fp32", *grid, "-o", "jsonl"]
    command += ["-r", str(options.reps), "--threads", str(options.threads), "--device", "cpu", "--store", str(store)]
    start = time.perf_counter()
    answer = subprocess.run(command, check=True, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    outcomes = [json.loads(line)["outcome"] for line in answer.stdout.splitlines()]
    expected = ["ok"] * (len(CONTEXTS) * len(BATCHES) * len(STEPS))
    if outcomes != expected:
        raise SystemExit(f"the sweep gave {outcomes}")
    return seconds


def plain_s(folder: Path, case: tuple[int, int, int], options: argparse.Namespace) -> float:
    """Run the plain script for a case; the seconds its imports and its load took."""
    command = [sys.executable, "-c", PLAIN, str(folder), *map(str, (*case, options.reps, options.threads))]
    answer = subprocess.run(command, check=True, capture_output=True, text=True)
    first, *rows = answer.stdout.splitlines()
    assert len(rows) == 1 + options.reps
    return float(first)


def write_checkpoint(folder: Path) -> Path:
    """Random weights in the shapes of Gemma 3 270M, bf16 as published."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from profiler.models.catalog import raw_config

    fields = raw_config("gemma-3-270m")
    torch.manual_seed(0)
    config = AutoConfig.for_model(fields.pop("model_type"), **fields)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    return folder


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, metavar="FOLDER", help="config.json and safetensors")
    parser.add_argument("--reps", type=int, default=1, help="of each phase [default: %(default)s]")
    parser.add_argument("--pairs", type=int, default=3, help="turns of each side [default: %(default)s]")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads [default: %(default)s]")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
