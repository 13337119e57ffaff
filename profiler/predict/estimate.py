"""What a case of a sweep is expected to take, before it runs: to plan with, and to leave out what cannot fit.

Memory and speed are those of `profile fit`; what only a sweep pays is added: making or loading the weights, writing
a random cache, and the copy of the cache from which decode starts again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

from profiler.case import Case
from profiler.devices import target
from profiler.devices.base import DeviceInfo
from profiler.devices.target import Target
from profiler.models.geometry import Geometry
from profiler.models.stored import Stored
from profiler.predict import engines
from profiler.predict.interval import Interval, exact, prior
from profiler.predict.machine import Machine
from profiler.predict.prediction import Predictor
from profiler.predict.storage import Part, Storage
from profiler.quants.base import DTYPE_BYTES
from profiler.units import bytes_text

ENGINE = "transformers"  # what every backend of a sweep runs, or stands in for
START_S = 8.0  # a worker process that imports torch and transformers, from a warm disk
DISK_BYTES_S = 0.5e9  # reading a checkpoint
CHECKPOINT_BYTES = 2  # per parameter: most are published in 16 bits
FILL_BYTES_S = {"cpu": 2e9, "cuda": 5e9}  # writing random values to fresh memory
COMPILE_LAYER_S = 3.0  # of --path graph on a CPU; Gemma 3 270M: 2.4 to 4.3, and 0.5 once inductor's cache has it
COMPILE_SPREAD = 6.0
PACK_ELEMENTS_S = {"cpu": 0.1e9, "cuda": 2e9}  # quantizing while loading
SPREAD = 2.0
WORTH_SAYING = 0.25  # of the weights: from here on what is left unquantized decides how large the model is
NAMES: dict[Part, str] = {
    "tables": "embeddings",
    "head": "output head",
    "experts": "fused experts",
    "other": "norms, routers and convolutions",
}


@dataclass(frozen=True, slots=True)
class Estimate:
    """Bytes and seconds of one case."""

    weights: Interval
    cache: Interval  # one, at the end of decode
    peak: Interval
    load_s: Interval  # what only the first case of a load pays
    prefill_s: Interval  # all ``context`` tokens of all sequences, once
    fill_s: Interval  # writing a random cache instead
    step_s: Interval  # one decode step of the whole batch
    left_plain: str | None  # ``nf4 leaves 117 GiB of fused experts in fp32``, where that decides the size


def estimate(case: Case, geometry: Geometry, host: Target, stored: Stored | None = None) -> Estimate:
    """Of ``case`` on ``host`` (``host_of``), as if it fitted; ``stored``: a checkpoint that runs as it is stored."""
    found = predictor(case, geometry, host, stored)
    kind, width = "cpu" if host.vendor == "CPU" else "cuda", DTYPE_BYTES[case.dtype]
    held = geometry.cache_bytes(case.context + case.steps, case.batch, width).total
    terms = found.terms(found.setting(case.context, case.batch))
    prefill_s, step_s = found.seconds(case.context, mean_depth(case), case.batch)
    return Estimate(
        weights=terms.weights,
        cache=exact(held),
        peak=terms.peak + Interval(held, 0, 2 * held, "prior"),
        load_s=_load_s(case, geometry, found, kind).scaled(1 / host.running),
        prefill_s=prefill_s,
        fill_s=prior(held / FILL_BYTES_S[kind], SPREAD),
        step_s=step_s,
        left_plain=left_plain(found.storage, case.quant, case.dtype),
    )


def host_of(device: DeviceInfo, threads: int | None) -> Target:
    """``device`` as so many ``threads`` use it; None: as many as a worker takes by itself.

    Reads a file of ceilings: ask once, not for each case.
    """
    return target.of(replace(device, threads=threads) if threads and device.cores else device)


def mean_depth(case: Case) -> int:
    """Tokens in the cache in the middle of decode."""
    return case.context + (case.steps + 1) // 2


def predictor(case: Case, geometry: Geometry, host: Target, stored: Stored | None = None) -> Predictor:
    """For the cases of a model in a format."""
    return _predictor(geometry, case.quant, case.dtype, host, case.path, stored)


@lru_cache(maxsize=64)
def _predictor(
    geometry: Geometry, quant: str, dtype: str, device: Target, path: str, stored: Stored | None
) -> Predictor:
    return Predictor(geometry, engines.find(ENGINE), quant, Machine(device), dtype, path, stored)


def left_plain(storage: Storage, quant: str, dtype: str) -> str | None:
    """What a format that packs weights leaves in ``dtype``, in words; ``None`` where that is no large part of all."""
    lines = [line for line in storage.lines if not line.packed]
    plain = {part: sum(line.nbytes for line in lines if line.part == part) for part in NAMES}
    total = sum(plain.values())
    if storage.plain or total < WORTH_SAYING * storage.device_bytes:
        return None
    largest = sorted((part for part in plain if plain[part] >= total / 10), key=lambda part: -plain[part])
    return f"{quant} leaves {bytes_text(total)} of {' and '.join(NAMES[part] for part in largest)} in {dtype}"


def _load_s(case: Case, geometry: Geometry, found: Predictor, kind: str) -> Interval:
    """Start a worker, then make the weights, or read and pack them; compile the step where it is a graph."""
    storage = found.storage
    if found.stored is not None:
        making = found.stored.nbytes / DISK_BYTES_S
    elif case.weights == "synthetic":
        making = storage.device_bytes / FILL_BYTES_S[kind]
    else:
        packed = sum(line.elements for line in storage.lines if line.packed)
        making = geometry.parameters * CHECKPOINT_BYTES / DISK_BYTES_S
        making += packed / PACK_ELEMENTS_S[kind]
    compiling = COMPILE_LAYER_S * len(geometry.layers) if (case.path, kind) == ("graph", "cpu") else 0.0
    return prior(START_S, 2.0) + prior(making, SPREAD) + prior(compiling, COMPILE_SPREAD)
