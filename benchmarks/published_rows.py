"""Maps published measurements to cases: model, device, engine, quantization and batch of each row.

Every match is listed here; rows without one are left out with a reason. A row that implies more bytes per second than
its memory can deliver is left out too, because its description must be wrong.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import published_models
import row_checks

from profiler.cost import engines, machine, work
from profiler.cost import rates as cost_rates
from profiler.cost.engines.base import Engine, EngineRequest
from profiler.cost.machine import Machine, Split
from profiler.cost.prediction import judge, shared_out
from profiler.cost.rates import DataSheetRates
from profiler.cost.roofline import Rates
from profiler.cost.storage import Storage
from profiler.devices import target as device_catalog
from profiler.devices.target import Target, of_catalog
from profiler.models import gguf_mix
from profiler.models.geometry import Geometry
from profiler.units import GIB

FOLDER = Path(__file__).parent / "published"
FILES = ("throughput.csv", "more-2026-11.csv")
CHAT_DEPTH = 256  # average tokens in the cache, for a row that only says it was a short chat
BENCH_TOKENS = 64  # llama-bench decodes 128 tokens after the stated depth, so the average is half of them deeper
BENCH_PROMPT = 512  # llama-bench's prefill if the depth is 0
PCIE_3_BYTES_S = 15.75e9
TIERS = {"A": 1.0, "B": 1.0, "C": 0.3}  # weight of a row in the fit: raw output, a single figure, self-reported
MIXES = (  # LocalScore's prompts and answers; its rates are means over them (localscore.ai, "about")
    (1024, 16), (4096, 256), (2048, 256), (2048, 768), (1024, 1024), (1280, 3072), (384, 1152), (64, 1024),
    (16, 1536),
)  # fmt: skip
BENCHY = {
    "01-chat": 1024,
    "03-long-output": 4096,
    "05-big-context": 256,
}  # tokens of an answer in dgx-spark-benchmarks
ANSWER = 256  # tokens of an answer where a source does not say it: what its rates and latencies imply

DEVICES = {
    "DGX Spark (GB10, 128GB)": "DGX Spark (GB10)",
    "Apple M1 (8c, 16GB)": "Apple M1 (8c)",
    "Apple M1 Pro": "Apple M1 Pro (16c)",
    "Apple M1 Max": "Apple M1 Max (32c)",
    "Apple M1 Max (32GB)": "Apple M1 Max (32c)",
    "Apple M1 Max (64GB)": "Apple M1 Max (32c)",
    "Apple M2 Max (38c GPU, 32GB)": "Apple M2 Max (38c)",
    "Apple M2 Max (30c GPU, 64GB)": "Apple M2 Max (30c)",
    "Apple M3 Pro (36GB)": "Apple M3 Pro (18c)",
    "Apple M3 Ultra": "Apple M3 Ultra (80c)",
    "Apple M3 Ultra (60c GPU, 256GB)": "Apple M3 Ultra (60c)",
    "Apple M4": "Apple M4 (10c)",
    "Apple M4 (16GB)": "Apple M4 (10c)",
    "Apple M4 (24GB)": "Apple M4 (10c)",
    "Apple M4 Max": "Apple M4 Max (40c)",
    "Apple M5 (10c, 32GB)": "Apple M5 (10c)",
    "Apple M5 Pro (64GB)": "Apple M5 Pro (20c)",
    "MI250": "MI250 (one die)",
    "GTX 1650 Ti": "GTX 1650 Ti Laptop",
    "GTX 1070 with Max-Q Design": "GTX 1070 Max-Q",
    "Quadro P5000": "Quadro P5000",
    "Radeon 780M": "Radeon 780M (Ryzen 7 8745H)",
    "Radeon 780M iGPU (Ryzen 7 8745H)": "Radeon 780M (Ryzen 7 8745H)",
    "RTX 2050": "RTX 2050 Laptop",
    "RTX 5060 Ti": "RTX 5060 Ti 16GB",
    "RTX A5000 Laptop": "RTX A5000 Laptop 16GB",
    "RTX A2000 8GB Laptop": "RTX A2000 Laptop 8GB",
    "RTX A2000 Laptop": "RTX A2000 Laptop 4GB",
    "Tesla M40 24GB": "M40 24GB",
    "Tesla K80 (one GPU)": "K80 (one GPU)",
}
SEVERAL: dict[str, tuple[str, int, Split]] = {  # in the first file, which names them in words
    "4x V100 32GB (layer split)": ("V100 32GB", 4, "layer"),
    "2x RTX 3090 (tensor split)": ("RTX 3090", 2, "tensor"),
    "2x RTX 3090 (TP2)": ("RTX 3090", 2, "tensor"),
    "2x RTX 5060 Ti (layer)": ("RTX 5060 Ti 16GB", 2, "layer"),
    "2x RTX 5060 Ti (tensor)": ("RTX 5060 Ti 16GB", 2, "tensor"),
    "4x RTX PRO 6000 Blackwell": ("RTX PRO 6000 Blackwell", 4, "tensor"),
    "4x L4 (TP4)": ("L4", 4, "tensor"),
    "2x Strix Halo (TP2)": ("Strix Halo (Ryzen AI Max+ 395, Radeon 8060S)", 2, "tensor"),
    "2x Tesla P40": ("P40", 2, "layer"),
}
UNEQUAL = {  # cards of one machine that differ
    "RTX 3060 Ti + RTX 3080 Ti (tensor split)": ("RTX 3060 Ti", "RTX 3080 Ti"),
    "RTX 5090 + RTX 3080 (layer split)": ("RTX 5090", "RTX 3080"),
}
SPLITS: dict[str, Split] = {
    "layer": "layer", "layer?": "layer", "pipeline": "layer", "device_map": "layer", "tensor": "tensor",
}  # fmt: skip
ENGINES = {  # by the beginning of the row's engine
    "llama.cpp": "llama.cpp", "ollama": "llama.cpp", "localscore": "llamafile", "lmstudio (mlx)": "mlx",
    "lmstudio": "llama.cpp", "vllm-mlx": "mlx", "vllm": "vllm", "mlx": "mlx", "rapid-mlx": "mlx", "omlx": "mlx",
    "tensorrt-llm": "tensorrt-llm", "transformers": "transformers",
}  # fmt: skip
GGUF = {  # dynamic mixes → the plain mix of nearly the same size
    "q4_k_xl": "q4_k_m", "q8_k_xl": "q8_0", "q6_k_xl": "q6_k", "q5_k_xl": "q5_k_m", "q3_k_xl": "q3_k_m",
    "q2_k_xl": "q2_k", "q2_k_m": "q2_k", "q4_k_xl-qat": "q4_k_m", "4bit": "q4_k_m",
}  # fmt: skip
CHECKPOINTS = {  # of vLLM and TensorRT-LLM
    "bf16": "bf16", "bf16?": "bf16", "f16": "fp16", "fp16": "fp16", "fp8": "fp8", "nvfp4": "nvfp4", "mxfp4": "mxfp4",
    "bf16/undrafted": "bf16", "awq int4": "int4", "int4": "int4", "int4 (autoround)": "int4", "int4 g32": "int4",
    "awq/gptq 4bit": "int4", "gptq": "int4", "int8 w8a8": "int8", "int8_w8a16": "int8",
    "nvfp4 modelopt-mixed w4a16+fp8": "nvfp4", "int8": "int8", "gptq4": "int4",
}  # fmt: skip
LOADED = {  # of transformers
    "fp16": "fp16", "bf16": "bf16", "bnb nf4": "nf4", "bnb nf4 (double quant)": "nf4-dq",
    "bnb int8 (llm.int8 decomposition)": "int8",
    "bnb fp4 (4bit, fp16 compute)": "fp4",
}  # fmt: skip
_DATE = re.compile(r"\d{4}-\d\d-\d\d")
_TEST = re.compile(r"/\d\d-[\w-]+\.md.*")  # a test of dgx-spark-benchmarks
_WALL = re.compile(r"(\d+) (?:in \+|in \+ |in and )\s*(\d+) (?:out|new)")
_PARALLEL = re.compile(r"topo-tp\d+-pp\d+-dp(\d+)")  # copies of the model that share the streams
_ITL = re.compile(r"itl_p50 (\d+(?:\.\d+)?)")


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """``tokens`` that take the time of some works, each as often as stated."""

    tokens: int
    works: tuple[tuple[float, work.PhaseWork], ...]


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """Published figures of one case. Seconds as measured; ``None`` for a figure that the row does not have."""

    file: str
    line: int  # in the file
    model: str
    geometry: Geometry
    machine: Machine
    engine: Engine
    request: EngineRequest
    storage: Storage
    depth: int  # average tokens in the cache during decode
    prefill_depth: int  # tokens in the cache before the prefill
    prompt: int  # tokens of the prefill, of each sequence
    answer: int | None  # tokens of each answer, for a rate over the whole time of a request; None: decode alone
    decode_s: float | None  # one step, or the whole request if there is an ``answer``
    prefill_s: float | None
    source: str
    notes: str
    tier: str
    weight: float  # in a fit
    parallel: bool = False  # the batch is tokens of one sequence: a prompt in micro-batches of that size
    mixes: bool = False  # rates are means over ``MIXES``
    aside: str | None = None  # why its figures are neither fitted to nor judged with the others
    peak_bytes: float | None = None  # as published, of one device
    answered: int = 0  # tokens that were decoded before the peak was read
    prefill_inside: float = 1.0  # the part of the prefill that ``decode_s`` includes if there is an ``answer``
    series: str = ""  # rows of one origin, model, quantization and program have the same
    prefill_aside: str | None = None  # why the prefill is neither fitted to nor judged
    decode_aside: str | None = None  # the same of the decode rate

    @property
    def target(self) -> Target:
        """The device, or devices."""
        return self.machine.target

    @property
    def batch(self) -> int:
        """Sequences at once."""
        return (self.request.ubatch or 1) if self.parallel else self.request.batch

    @property
    def experts(self) -> bool:
        """Whether the model is a mixture of experts."""
        return gguf_mix.few_experts(self.geometry) > 1

    @property
    def decode_tps(self) -> float:
        """Tokens per second of all sequences."""
        assert self.decode_s is not None
        return self.decoded / self.decode_s

    @property
    def decoded(self) -> int:
        """Tokens that ``decode_s`` is the time of."""
        return self.prompt if self.parallel else self.request.batch * (self.answer or 1)

    def step(self, depth: int | None = None) -> work.PhaseWork:
        """The work of one step."""
        rules = self.engine.step_rules(self.geometry, self.request, self.target)
        return work.decode(self.geometry, self.storage, depth or self.depth, self.request.batch, rules)

    def prompt_work(self, tokens: int) -> work.PhaseWork:
        """The work of a prefill of ``tokens`` tokens per sequence."""
        request = replace(self.request, context=tokens)
        rules = self.engine.prefill_rules(self.geometry, request, self.target)
        return work.prefill(self.geometry, self.storage, tokens, self.request.batch, rules)

    @property
    def fits(self) -> bool:
        """Whether the devices' memory holds the case, by our prediction."""
        request = replace(self.request, context=max(self.depth, self.prompt))
        terms = self.engine.memory(self.geometry, self.storage, request, self.target)
        return judge(shared_out(terms, self.geometry, self.machine), self.machine).word in ("fits", "tight")

    def parts(self, phase: str) -> tuple[Part, ...]:
        """What a phase is made of. The rate of several parts is the mean of theirs."""
        if self.mixes and phase == "prefill":
            return tuple(Part(prompt, ((1.0, self.prompt_work(prompt)),)) for prompt, _ in MIXES)
        if self.mixes:
            return tuple(Part(1, ((1.0, self.step(prompt + answer // 2)),)) for prompt, answer in MIXES)
        if phase == "prefill":
            return (Part(self.prompt * self.request.batch, self._after()),)
        if self.parallel:
            return (Part(self.decoded, self._after()),)
        if self.answer is None:
            return (Part(self.decoded, ((1.0, self.step()),)),)
        steps = (float(self.answer), self.step())
        return (Part(self.decoded, ((self.prefill_inside, self.prompt_work(self.prompt)), steps)),)

    def _after(self) -> tuple[tuple[float, work.PhaseWork], ...]:
        """The prompt. After earlier tokens, it takes the difference between two prompts."""
        if not self.prefill_depth:
            return ((1.0, self.prompt_work(self.prompt)),)
        whole = self.prompt_work(self.prefill_depth + self.prompt)
        return (1.0, whole), (-1.0, self.prompt_work(self.prefill_depth))

    def seconds(self, phase: str) -> float | None:
        """As measured."""
        return self.decode_s if phase == "decode" else self.prefill_s

    def counts(self, phase: str) -> bool:
        """Whether its figure of a phase is fitted to and judged."""
        set_aside = self.aside or (self.decode_aside if phase == "decode" else self.prefill_aside)
        return set_aside is None and self.seconds(phase) is not None

    def tokens(self, phase: str) -> int:
        """Tokens that those seconds are the time of."""
        return self.decoded if phase == "decode" else self.prompt * self.request.batch

    def rates(self, content: Mapping[str, Any] | None) -> Rates:
        """Rates of the row's machine; ``content`` replaces the file of efficiencies."""
        target, dtype = self.target, self.request.dtype
        found: DataSheetRates
        if target.members:
            each = [cost_rates.rates(member, self.engine.name, dtype, content) for member in target.members]
            found = cost_rates.joined(each, [machine.work_share(member, self.machine) for member in target.members])
        else:
            found = cost_rates.rates(target, self.engine.name, dtype, content)
        return machine.of_all_devices(found, self.geometry, self.machine)

    def timed(self, rates: Rates, done: work.PhaseWork, content: Mapping[str, Any] | None) -> float:
        """Seconds of some work on all devices."""
        seconds = rates.split(done).total
        if self.target.count == 1:
            return seconds
        overlap = machine.overlap(done, self.machine, self.engine.pipelining, content)
        return seconds * overlap + machine.link_s(done, self.geometry, self.machine, content)


@dataclass(frozen=True, slots=True)
class ExcludedRow:
    """A row that is not used, and the reason."""

    file: str
    line: int
    what: str
    reason: str


def rows() -> tuple[list[Row], list[ExcludedRow]]:
    """All rows of the files: the ones that are predicted, and the ones left out."""
    used, left = [], []
    for file, line, raw in published():
        row = match(file, line, raw)
        if isinstance(row, Row):
            row = row_checks.possible(row)
        if isinstance(row, Row):
            used.append(row)
        else:
            rate = raw["decode_tps"] or raw["prefill_tps"]
            what = f"{raw['model']} {raw['quant']} on {raw['device']}, {raw['engine']}, {rate} t/s"
            left.append(ExcludedRow(file, line, what, row))
    return row_checks.with_plausible_prefills(used), left


def published() -> Iterator[tuple[str, int, dict[str, str]]]:
    """The rows of both files, with the name of the file and the line."""
    for name in FILES:
        with (FOLDER / name).open(encoding="utf-8", newline="") as file:
            for line, raw in enumerate(csv.DictReader(file), start=2):
                if raw["decode_tps"] or raw["prefill_tps"]:
                    yield name, line, raw


def match(file: str, line: int, raw: Mapping[str, str]) -> Row | str:
    """The row as a case, or the reason why it is not one."""
    notes = raw["notes"]
    if "NOT STATED" in notes or raw.get("device_base") == "unknown":
        return "the row does not name its device"
    host = _machine(raw)
    if isinstance(host, str):
        return host
    geometry, engine = published_models.geometry(raw["model"]), _engine(raw)
    if geometry is None:
        return "no rule for this architecture, or no public config"
    if engine is None:
        return f"engine {raw['engine'].split()[0]} is not supported"
    quant = _quant(raw["quant"], engine)
    if quant is None:
        return f"quantization {raw['quant']} is not supported"
    host = machine.as_summed(host, engine.sums_in_fp32)
    return _row(file, line, raw, host, engine.as_run(geometry), engine, quant)


def _row(
    file: str, line: int, raw: Mapping[str, str], host: Machine, geometry: Geometry, engine: Engine, quant: str
) -> Row:
    found = _PARALLEL.search(raw["source"])
    copies, notes = int(found[1]) if found else 1, raw["notes"]
    batch = -(-int(raw["batch"] or 1) // copies)
    parallel = batch > 1 and ("on one sequence" in notes or "n_ubatch=" in notes)
    ubatch = batch if parallel else int(raw["ubatch"]) if raw.get("ubatch") else None
    batch = 1 if parallel else batch
    fp16 = quant in ("fp16", "f16") or "bf16" not in host.target.flops
    dtype = "fp16" if fp16 else "bf16"
    prompt, depth, prefill_depth = _tokens(raw)
    flash = False if raw.get("flash_attn") == "0" or "-fa 0" in notes else None
    request = EngineRequest(quant, max(prompt, 1), batch, dtype, _kv(notes, engine), ubatch, flash=flash)
    answer, itl = _answer(raw), _ITL.search(raw.get("quote") or "")
    decode_s = prefill_s = None
    if raw["decode_tps"]:
        decode_s = copies * (prompt if parallel else batch * (answer or 1)) / float(raw["decode_tps"])
        if answer is not None and itl is not None:
            answer, decode_s = None, float(itl[1]) / 1e3
    if raw["prefill_tps"]:
        prefill_s = copies * prompt * batch / float(raw["prefill_tps"])
    return Row(
        file,
        line,
        raw["model"],
        geometry,
        host,
        engine,
        request,
        engine.storage(geometry, quant, dtype),
        depth + (answer or 0) // 2,
        prefill_depth,
        prompt,
        answer,
        decode_s,
        prefill_s,
        raw.get("source_id") or _origin(raw["source"]),
        notes,
        raw["tier"],
        TIERS[raw["tier"]],
        parallel,
        raw.get("source_id") == "localscore",
        row_checks.aside(raw, geometry),
        float(raw["peak_memory_gib"]) * GIB if raw.get("peak_memory_gib") and host.target.count == 1 else None,
        int(stated[2]) if (stated := _WALL.search(notes)) else 0,
        1.0 if raw.get("source_id") else (batch - 1) / batch,  # llama-benchy counts from the first token of all
        _series(raw),
        row_checks.prefill_aside(raw, geometry, host.target),
        row_checks.decode_aside(raw),
    )


def _series(raw: Mapping[str, str]) -> str:
    """Where a row is from, without the parts of its name that differ between rows of one run."""
    dated = _DATE.search(raw["notes"]) if "localmaxxing" in raw["source"] else None  # every row has its own id there
    origin = f"localmaxxing {dated[0]}" if dated else _TEST.sub("", raw["source"])
    return " · ".join((origin, raw["model"], raw["quant"], raw["device"], raw["engine"], raw.get("ubatch") or ""))


def _tokens(raw: Mapping[str, str]) -> tuple[int, int, int]:
    """Tokens of the prompt, in the cache during decode, and in the cache before the prefill."""
    if raw.get("source_id") == "localscore":
        return 1024, 1024, 0
    context = None if not raw["context"] or "allocated" in raw["notes"] else int(raw["context"])
    if "n_ubatch=" in raw["notes"]:
        return 256, 0, context or 0
    if "source_id" not in raw:
        more = (_benchy(raw) or 2 * BENCH_TOKENS) // 2
        batched = int(raw["batch"] or 1) > 1  # half of the answer is added later
        return context or BENCH_PROMPT, CHAT_DEPTH if context is None else context + (0 if batched else more), 0
    prompt = int(raw["prompt_tokens"] or 0) or context or BENCH_PROMPT
    stated = _WALL.search(raw["notes"])
    more = int(stated[2]) // 2 if stated and raw["decode_kind"] != "aggregate_wall" else BENCH_TOKENS
    depth = int(raw["depth"]) + more if raw["depth"] else (context or CHAT_DEPTH)
    return prompt, depth, int(raw["prefill_depth"] or 0)


def _answer(raw: Mapping[str, str]) -> int | None:
    """Tokens of an answer, if the rate is over the whole time of a request, prefill included."""
    wall = raw.get("decode_kind") == "aggregate_wall"
    if int(raw["batch"] or 1) > 1 and (benchy := _benchy(raw)):
        return benchy
    if not wall:
        return None
    stated = _WALL.search(raw["notes"])
    return int(stated[2]) if stated else ANSWER


def _benchy(raw: Mapping[str, str]) -> int | None:
    """Tokens of an answer in a row of dgx-spark-benchmarks, by the name of the test."""
    return next((BENCHY[test] for test in BENCHY if f"/{test}" in raw["source"]), None)


def _machine(raw: Mapping[str, str]) -> Machine | str:
    name, count, split = raw["device"], 1, ""
    if name in UNEQUAL:
        members = [_target(each) for each in UNEQUAL[name]]
        target = device_catalog.several([each for each in members if isinstance(each, Target)])
        return Machine(target, SPLITS[raw["split"]])
    if name in SEVERAL:
        name, count, split = SEVERAL[name]
    elif raw.get("device_base"):
        name, count, split = raw["device_base"], int(raw["gpus"] or 1), raw["split"]
        if " + " in raw["device"]:
            return "several devices that differ, and the row does not state all of them"
    if split == "row":
        return "llama.cpp's row split has no rule"
    target = _target(name)
    if isinstance(target, str):
        return target
    if "PCIe 3.0 x16" in raw["notes"]:  # slower than the card's
        target = replace(target, link_bytes_s=min(target.link_bytes_s, PCIE_3_BYTES_S))
    return Machine(replace(target, count=count), SPLITS[split or "layer"])


@cache
def _target(name: str) -> Target | str:
    if name.startswith("CPU") or name.endswith("CPU") or "Core(TM)" in name:
        return "a CPU, and the row does not name its memory"
    known = {device.name: device for device in device_catalog.data_sheets()}
    found = known.get(DEVICES.get(name, name))
    if found is None:
        return "the catalog does not have this device or variant"
    return of_catalog(found if found.memory_bytes else replace(found, memory_bytes=1))


def _engine(raw: Mapping[str, str]) -> Engine | None:
    lower, quant = raw["engine"].casefold(), raw["quant"].casefold()
    name = next((name for start, name in ENGINES.items() if lower.startswith(start)), None)
    if name is None:
        return None
    if name == "llama.cpp" and ("mlx" in quant or quant == "nvfp4"):  # ollama runs these with MLX
        name = "mlx"
    vulkan = raw.get("backend") == "Vulkan" or "vulkan" in (lower + raw["notes"].casefold())
    return engines.find("llama.cpp-vulkan" if name == "llama.cpp" and vulkan else name)


def _quant(text: str, engine: Engine) -> str | None:
    lower = text.casefold().removesuffix(" (ollama default)").removeprefix("qat ").removeprefix("qat-")
    if engine.like == "vllm":
        return CHECKPOINTS.get(lower)
    if engine.name == "transformers":
        return "gptq" if lower.startswith("gptq") else LOADED.get(lower)
    if engine.name == "mlx":
        plain = lower.removeprefix("mlx ").removesuffix(" qat")
        plain = {"int4 (ollama mlx)": "4bit", "int4": "4bit", "q8_k_xl": "8bit", "bf16?": "bf16"}.get(plain, plain)
        return plain if plain in engine.quants else None
    plain = lower.removeprefix("ud-")
    plain = GGUF.get(plain, plain)
    return gguf_mix.mix(plain) if gguf_mix.known(plain) else None


def _kv(notes: str, engine: Engine) -> str | None:
    if engine.like == "vllm":
        return "fp8" if "KV cache fp8" in notes or "KV fp8" in notes else None
    if engine.like == "llama.cpp":
        return "q4_0" if "q4_0 KV" in notes else "q8_0" if "q8_0/q8_0 KV" in notes else None
    return None


def _origin(source: str) -> str:
    return source.split("#")[0].split("@")[0].split(" ")[0]
