"""How long `profile fit` takes: the headline pair cold from the shell, and the whole catalog on all devices.

python benchmarks/fit_cost.py
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable

from profiler.devices import catalog as device_catalog
from profiler.devices.target import of_catalog
from profiler.models import catalog, families
from profiler.predict import engines, product
from profiler.predict.machine import Machine

COLD = [sys.executable, "-m", "profiler", "fit", "--on", "rtx 4090", "--engine", "llama.cpp"]
QUANTS = ("q4_k_m", "q8_0", "q6_k", "q5_k_m", "q3_k_m", "iq4_xs", "q4_0", "bf16")
CONTEXTS = tuple(1024 * 2**power for power in range(8))
BATCHES = (1, 2, 4, 8)
REPEATS = 7


def cold() -> None:
    """A new process: imports, the pair chosen and printed."""
    subprocess.run(COLD, check=True, stdout=subprocess.DEVNULL)


def whole() -> None:
    """Every model × device × format × context × batch."""
    models = [families.geometry(catalog.raw_config(name)) for name in catalog.names()]
    machines = [Machine(of_catalog(device)) for device in device_catalog.devices() if device.memory_bytes]
    for _ in product.cells(models, engines.find("llama.cpp"), QUANTS, CONTEXTS, BATCHES, machines):
        pass


def seconds(run: Callable[[], None]) -> list[float]:
    """Each repetition, sorted."""
    taken = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        run()
        taken.append(time.perf_counter() - start)
    return sorted(taken)


def main() -> None:
    """Print both, with the spread."""
    for name, run, aim in (("headline pair, cold", cold, 0.4), ("whole product", whole, 3.0)):
        taken = seconds(run)
        print(f"{name}: median {statistics.median(taken):.2f} s ({taken[0]:.2f}–{taken[-1]:.2f}), aim {aim} s")


if __name__ == "__main__":
    main()
