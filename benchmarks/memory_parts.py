"""Whether the parts of a model's memory add up to the memory of the process. Aim: a remainder within 3%.

    python benchmarks/memory_parts.py --model gemma-3-270m --quant fp32 --context 128

Measures one case in this process, as a worker would, with as few repetitions as possible, since only memory matters.
The parts are weights, framework, cache and activations at the peak of the larger phase; the remainder is the row's
``unaccounted_bytes``.
"""

from __future__ import annotations

import argparse
import sys
from types import SimpleNamespace
from typing import Any

from profiler import devices
from profiler.case import Case, Task
from profiler.models.resolve import resolve
from profiler.quants.base import DTYPE_BYTES
from profiler.results.measurement import Memory, parts, peak_phase, unaccounted_bytes
from profiler.run import worker
from profiler.run.loop import measure
from profiler.run.repetitions import Effort, Repeater
from profiler.units import bytes_text

AIM = 0.03  # of the memory of the process


def main() -> int:
    """Print the parts; exit code 1 if the remainder is too large."""
    options = parse()
    wire: Any = SimpleNamespace(beat=lambda text: None)
    task = the_task(options)
    session, cost = worker.load(task, None, wire)
    repeater = Repeater(Effort(reps=1, max_phase_s=0.001), wire.beat)
    row = worker.with_load_cost(measure(session, task.case, repeater), cost)
    print(f"{row.case.label} {row.case.weights} {row.case.dtype} {row.case.device}, peak in {peak_phase(row.memory)}")
    return show(row.memory)


def show(memory: Memory) -> int:
    """The parts as lines; exit code 1 when they do not add up."""
    for name, size in parts(memory).items():
        print(f"{name:24} {bytes_text(size):>10}")
    left, whole = unaccounted_bytes(memory), memory.phases_process_bytes
    print(f"{'remainder':24} {bytes_text(left):>10}")
    print(f"{'process':24} {bytes_text(whole):>10}")
    print(f"cache at the end of decode: growing {bytes_text(memory.growing_cache_bytes)}, window "
          f"{bytes_text(memory.window_cache_bytes)}, recurrent {bytes_text(memory.recurrent_bytes)}; "
          f"retained after prefill {bytes_text(memory.retained_bytes)}")  # fmt: skip
    if left is None or not whole:
        print("the parts are unknown on this machine")
        return 1
    print(f"aim ±{AIM:.0%}: the remainder is {left / whole:+.2%} of the process")
    return int(abs(left / whole) > AIM)


def the_task(options: argparse.Namespace) -> Task:
    """What the worker measures."""
    found = resolve(options.model, offline=True)
    weights = options.weights if options.weights != "auto" else ("real" if found.checkpoint else "synthetic")
    plain = options.quant if options.quant in DTYPE_BYTES else devices.find(options.device).default_dtype
    case = Case(
        model=found.name,
        model_id=found.id_for(weights),
        weights=weights,
        quant=options.quant,
        dtype=plain,
        device=options.device,
        backend="hf",
        path=options.path,
        context=options.context,
        batch=1,
        steps=options.steps,
        ubatch=options.ubatch,
        threads=options.threads,
    )
    return Task(case, found.source)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="gemma-3-270m", help="as for -m [default: %(default)s]")
    parser.add_argument("--weights", default="auto", choices=("auto", "real", "synthetic"))
    parser.add_argument("--quant", default="fp32", help="[default: %(default)s]")
    parser.add_argument("--device", default="cpu", help="[default: %(default)s]")
    parser.add_argument("--path", default="eager", help="[default: %(default)s]")
    parser.add_argument("--context", type=int, default=128, help="tokens [default: %(default)s]")
    parser.add_argument("--ubatch", type=int, default=512, help="tokens per prefill chunk [default: %(default)s]")
    parser.add_argument("--steps", type=int, default=4, help="decode steps [default: %(default)s]")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads [default: %(default)s]")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
