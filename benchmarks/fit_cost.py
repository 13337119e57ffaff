"""How long ``profile fit`` takes: the default models in a new process, and the whole catalog on one GPU in this one.

python benchmarks/fit_cost.py
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import product

from profiler.cost import engines
from profiler.cost.machine import Machine
from profiler.cost.prediction import Predictor
from profiler.devices import target
from profiler.models import families, hub

COLD = [sys.executable, "-m", "profiler", "fit", "--on", "rtx 4090", "--engine", "llama.cpp"]
QUANTS = ("q4_k_m", "q8_0", "q6_k", "q5_k_m", "q3_k_m", "iq4_xs", "q4_0", "bf16")
CONTEXTS = tuple(1024 * 2**power for power in range(8))
BATCHES = (1, 2, 4, 8)
REPEATS = 7


def cold() -> None:
    """A new process: import, choose the default models, print."""
    subprocess.run(COLD, check=True, stdout=subprocess.DEVNULL)


def whole() -> None:
    """Every model × quantization × context × batch."""
    machine, engine = Machine(target.find("rtx 4090")), engines.find("llama.cpp")
    for name in hub.names():
        geometry = families.geometry(hub.shipped_config(name))
        for quant in QUANTS:
            predictor = Predictor(geometry, engine, quant, machine)
            for context, batch in product(CONTEXTS, BATCHES):
                predictor.predict(context, batch)


def seconds(run: Callable[[], None]) -> list[float]:
    """The time of each repetition, sorted."""
    taken = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        run()
        taken.append(time.perf_counter() - start)
    return sorted(taken)


def main() -> None:
    """Print both, with the spread."""
    for name, run in (("default models, new process", cold), ("catalog on one GPU", whole)):
        taken = seconds(run)
        print(f"{name}: median {statistics.median(taken):.2f} s ({taken[0]:.2f}–{taken[-1]:.2f})")


if __name__ == "__main__":
    main()
