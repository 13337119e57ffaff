"""Maps published measurements to cases: the catalog model, device, engine and quantization of each row.

Every match is listed here; rows without one are left out with a reason. A row that implies more bytes per second than
its memory can deliver is left out too, because its description must be wrong.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from profiler.cost import engines, work
from profiler.cost.engines.base import Engine, EngineRequest
from profiler.cost.machine import Machine, Split
from profiler.cost.prediction import Predictor
from profiler.cost.storage import Storage
from profiler.devices import target as device_catalog
from profiler.devices.target import Target, of_catalog
from profiler.models import families, gguf_mix, hub
from profiler.models.geometry import Geometry

FILE = Path(__file__).parent / "published" / "throughput.csv"
HIGHEST_SHARE = 0.93  # of a data sheet's bandwidth; no program gets more, because of refresh and bus turnaround
CHAT_DEPTH = 256  # average tokens in the cache, for a row that only says it was a short chat
BENCH_TOKENS = 64  # llama-bench decodes 128 tokens after the stated depth, so the average is half of them deeper
BENCH_PROMPT = 512  # llama-bench's prefill if the depth is 0

DEVICES = {
    "DGX Spark (GB10, 128GB)": "DGX Spark (GB10)",
    "Apple M1 (8c, 16GB)": "Apple M1 (8c)",
    "Apple M1 Pro": "Apple M1 Pro (16c)",
    "Apple M3 Ultra": "Apple M3 Ultra (80c)",
    "Apple M4": "Apple M4 (10c)",
    "Apple M4 (16GB)": "Apple M4 (10c)",
    "Apple M4 (24GB)": "Apple M4 (10c)",
    "Apple M5 (10c, 32GB)": "Apple M5 (10c)",
    "RTX 5060 Ti": "RTX 5060 Ti 16GB",
}
SEVERAL: dict[str, tuple[str, int, Split]] = {  # not used for the fit: they check the rules for several devices
    "4x V100 32GB (layer split)": ("V100 32GB", 4, "layer"),
    "2x RTX 3090 (tensor split)": ("RTX 3090", 2, "tensor"),
    "2x RTX 3090 (TP2)": ("RTX 3090", 2, "tensor"),
    "2x RTX 5060 Ti (layer)": ("RTX 5060 Ti 16GB", 2, "layer"),
    "2x RTX 5060 Ti (tensor)": ("RTX 5060 Ti 16GB", 2, "tensor"),
    "4x RTX PRO 6000 Blackwell": ("RTX PRO 6000 Blackwell", 4, "tensor"),
    "4x L4 (TP4)": ("L4", 4, "tensor"),
    "2x Strix Halo (TP2)": ("Strix Halo (Ryzen AI Max+ 395, Radeon 8060S)", 2, "tensor"),
}
ENGINES = {"llama.cpp": "llama.cpp", "ollama": "llama.cpp", "vllm": "vllm"}  # by the beginning of the row's engine
GGUF = {  # dynamic mixes → the plain mix of nearly the same size
    "q4_k": "q4_k_m",
    "q4_k_xl": "q4_k_m",
    "q8_k_xl": "q8_0",
    "q6_k_xl": "q6_k",
    "q5_k_xl": "q5_k_m",
    "q3_k_xl": "q3_k_m",
    "q2_k_xl": "q2_k",
}
CHECKPOINTS = {
    "bf16": "bf16",
    "fp8": "fp8",
    "nvfp4": "nvfp4",
    "bf16/undrafted": "bf16",
    "awq int4": "int4",
    "int4": "int4",
}


@dataclass(frozen=True, slots=True)
class Row:
    """One published figure and its case."""

    line: int  # in the file
    model: str
    geometry: Geometry
    target: Target
    engine: Engine
    request: EngineRequest
    storage: Storage
    depth: int  # average tokens in the cache during decode
    decode_tps: float
    prefill_tps: float | None
    source: str
    notes: str

    @property
    def experts(self) -> bool:
        """Whether the model is a mixture of experts."""
        return gguf_mix.few_experts(self.geometry) > 1

    def decode_work(self) -> work.PhaseWork:
        """The work of one step."""
        return work.decode(
            self.geometry, self.storage, self.depth, 1, self.engine.prefill_rules(self.geometry, self.request)
        )

    def prefill_work(self) -> work.PhaseWork:
        """The work of the whole prompt."""
        rules = self.engine.prefill_rules(self.geometry, self.request)
        return work.prefill(self.geometry, self.storage, self.request.context, 1, rules)


@dataclass(frozen=True, slots=True)
class ExcludedRow:
    """A row that is not used, and the reason."""

    line: int
    what: str
    reason: str


def rows() -> tuple[list[Row], list[ExcludedRow]]:
    """Single-stream decode rows of tiers A and B: the ones used, and the ones left out."""
    used, left = [], []
    for line, raw in _wanted():
        what = f"{raw['model']} {raw['quant']} on {raw['device']}, {raw['engine']}, {raw['decode_tps']} t/s"
        row = match(line, raw)
        if isinstance(row, str):
            left.append(ExcludedRow(line, what, row))
            continue
        share = row.decode_work().nbytes * row.decode_tps / row.target.bandwidth_bytes_s
        if share > HIGHEST_SHARE:
            left.append(ExcludedRow(line, what, f"impossible: {share:.0%} of the memory's bandwidth"))
            continue
        used.append(row)
    return used, left


def _wanted() -> Iterator[tuple[int, dict[str, str]]]:
    with FILE.open(encoding="utf-8", newline="") as file:
        for line, raw in enumerate(csv.DictReader(file), start=2):
            if raw["tier"] in ("A", "B") and raw["batch"] == "1" and raw["decode_tps"]:
                yield line, raw


def several() -> Iterator[tuple[dict[str, str], float]]:
    """Rows of several identical devices, with the decode rate predicted for each."""
    for _, raw in _wanted():
        if raw["device"] not in SEVERAL:
            continue
        name, count, split = SEVERAL[raw["device"]]
        row = match(0, raw | {"device": name, "quant": CHECKPOINTS.get(raw["quant"].casefold(), raw["quant"])})
        if isinstance(row, Row):
            machine = Machine(replace(row.target, count=count), split)
            predictor = Predictor(row.geometry, row.engine, row.request.quant, machine)
            _, step = predictor.phases(row.depth, row.depth, 1, row.request.kv)
            yield raw, 1 / step.seconds.value


def match(line: int, raw: dict[str, str]) -> Row | str:
    """The row as a case, or the reason why it is not one."""
    target = _target(raw["device"])
    if isinstance(target, str):
        return target
    if raw["model"] not in hub.names():
        return "the catalog has no config of this model"
    engine = _engine(raw["engine"])
    if engine is None:
        return f"engine {raw['engine'].split()[0]} is not supported"
    quant = _quant(raw["quant"], engine)
    if quant is None:
        return f"quantization {raw['quant']} is not supported"
    geometry = _geometry(raw["model"])
    context = _context(raw)
    depth = CHAT_DEPTH if context is None else context + BENCH_TOKENS
    request = EngineRequest(quant, max(context or BENCH_PROMPT, 1), 1, kv=_kv(raw["notes"], engine))
    return Row(
        line,
        raw["model"],
        geometry,
        target,
        engine,
        request,
        engine.storage(geometry, quant, "bf16"),
        depth,
        float(raw["decode_tps"]),
        float(raw["prefill_tps"]) if raw["prefill_tps"] else None,
        raw["source"],
        raw["notes"],
    )


def _target(name: str) -> Target | str:
    if name[:2] in ("2x", "4x"):
        return "several devices"
    if name.startswith("CPU") or name.endswith("CPU"):
        return "a CPU, and the row does not name its memory"
    known = {device.name: device for device in device_catalog.data_sheets()}
    found = known.get(DEVICES.get(name, name))
    if found is None:
        return "the catalog does not have this device or variant"
    return of_catalog(found if found.memory_bytes else replace(found, memory_bytes=1))


def _engine(text: str) -> Engine | None:
    lower = text.casefold()
    return next((engines.find(name) for start, name in ENGINES.items() if lower.startswith(start)), None)


def _quant(text: str, engine: Engine) -> str | None:
    lower = text.casefold().removesuffix(" (ollama default)").removeprefix("qat ").removeprefix("qat-")
    if engine.name == "vllm":
        return CHECKPOINTS.get(lower)
    plain = lower.removeprefix("ud-")
    plain = GGUF.get(plain, plain)
    return plain if gguf_mix.known(plain) else None


def _context(raw: dict[str, str]) -> int | None:
    """Tokens before decode; None if a row only says how much was allocated."""
    return None if not raw["context"] or "allocated" in raw["notes"] else int(raw["context"])


def _kv(notes: str, engine: Engine) -> str | None:
    if engine.name == "vllm":
        return "fp8" if "KV cache fp8" in notes else None
    return "q4_0" if "q4_0 KV" in notes else None


@cache
def _geometry(name: str) -> Geometry:
    return families.geometry(hub.shipped_config(name))
