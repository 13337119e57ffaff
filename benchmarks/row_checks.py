"""What speaks against a published row: old versions, rates beyond the memory's bandwidth, models that do not fit, and
prompts that took longer than longer ones.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from profiler.devices.target import Target
from profiler.models.geometry import Geometry
from profiler.models.layers import Attention

if TYPE_CHECKING:
    from published_rows import Row

HIGHEST_SHARE = 0.97  # of a data sheet's bandwidth; no program gets more, because of refresh and bus turnaround
POOL = 0.9  # --gpu-memory-utilization of vLLM
OFFLOADED = "a part of the weights, of unknown size, was in host memory"
SPILLED = ("PARTIAL CPU OFFLOAD", "HOST SPILL")  # the same in notes
SLOW_VERSION = "mlx-vlm 0.4 decodes Gemma 4 up to three times slower than mlx-lm, says the source"
OLD_GPTQ = "kernels for GPTQ before those of ExLlama v2, which the library of today has dropped (GPTQModel PR 2505)"
EXLLAMA_V2_MONTH = "2023-10"  # AutoGPTQ took them over in that month (PR 349)
OLD_AWQ = "vLLM of 2023, which warned that its 4-bit kernels were not optimized (Marlin's came with PR 3922)"
OLD_VLLM = "vLLM of 2023, which launched every kernel from Python (it captures CUDA graphs since PR 1926)"
OLD_SPLIT = "llama.cpp before it could share out layers (PR 4766), so its devices shared the rows of each matrix"
SPLIT_BUILD, SPLIT_MONTH = 1840, "2024-01"  # that change was merged on 2024-01-12
OLD_DELTA = "llama.cpp before it had a kernel for the gated delta rule (PR 19504)"
DELTA_BUILD = 8000  # that change was proposed at this build, and is in b8240
OLD_ATTENTION = "llama.cpp before its attention used the matrix units of RDNA4 (PR 18481), at depth"
ATTENTION_BUILD = 7500  # that change was proposed two weeks after b7423
ATTENTION_WIDTH = 128  # the widest heads for which it uses them
OLD_TILES = "llama.cpp before its products under Vulkan used large tiles on AMD's matrix units (PR 18749)"
TILES_BUILD, TILES_MONTH = 7600, "2026-01"  # that change was proposed on 2026-01-11, four weeks after b7423
COOPERATIVE = ("RDNA3", "RDNA3.5", "RDNA4")  # generations whose matrix units Vulkan uses
OLD_FP4 = "llama.cpp before it multiplied FP4 weights in FP4 on Blackwell (PR 17906)"
FP4_BUILD, FP4_MONTH = 7500, "2025-12"  # that change was proposed at about b7350
FP4_TYPES = ("mxfp4", "nvfp4")
SHARED_EXPERTS = "a batch faster than its experts can be read, so its sequences must have chosen the same ones"
WAITED = "the batch does not fit, so requests waited"
ENDED_EARLY = "answers that ended early, so fewer requests ran than the row says: its total is less than their rates"
LEAST_RUNNING = 0.9  # of the stated requests; below, some of them must have ended early
WARMED_UP = "the first row of a run, which includes its warm-up, says the source"
LONGER = "a prompt at least half as long again took less time in the same series"
MUCH_LONGER = 1.5
_PER_REQUEST = re.compile(r"(\d+(?:\.\d+)?) tok/s per request")
_BUILD = re.compile(r"\bb(\d{4,5})\b")
_MONTH = re.compile(r"\b(20\d\d-\d\d)\b")


def aside(raw: Mapping[str, str], geometry: Geometry) -> str | None:
    """Why a row is neither fitted to nor judged with the others, by its version and notes."""
    if any(word in raw["notes"] for word in SPILLED):
        return OFFLOADED
    if raw["engine"].startswith("vLLM (2023") and "4bit" in raw["quant"]:
        return OLD_AWQ
    if raw["engine"].startswith("vLLM (2023"):
        return OLD_VLLM
    if raw.get("gpus") not in (None, "", "1") and _before(raw, SPLIT_BUILD, SPLIT_MONTH):
        return OLD_SPLIT
    if _before(raw, DELTA_BUILD) and any(layer.kind == "gated delta" for layer in geometry.layers):
        return OLD_DELTA
    return SLOW_VERSION if raw["engine"].startswith("mlx-vlm 0.4") and raw["model"].startswith("gemma-4") else None


def decode_aside(raw: Mapping[str, str]) -> str | None:
    """The same of its decode rate only. Prompts are multiplied by unpacked weights, whatever the kernel for few."""
    if not raw["engine"].startswith("transformers") or "GPTQ" not in raw["quant"]:
        return None
    return OLD_GPTQ if "exllamav1" in raw["quant"] or _month(raw) < EXLLAMA_V2_MONTH else None


def prefill_aside(raw: Mapping[str, str], geometry: Geometry, target: Target) -> str | None:
    """The same of its prefill only."""
    fp4 = raw["quant"].casefold() in FP4_TYPES and (target.generation or "").startswith("Blackwell")
    if fp4 and _before(raw, FP4_BUILD, FP4_MONTH):
        return OLD_FP4
    if raw.get("backend") == "Vulkan" and target.generation in COOPERATIVE and _before(raw, TILES_BUILD, TILES_MONTH):
        return OLD_TILES
    deep = int(raw.get("prefill_depth") or 0) > 0 and raw.get("backend") == "ROCm" and target.generation == "RDNA4"
    widths = [layer.mixer.head_dim for layer in geometry.layers if isinstance(layer.mixer, Attention)]
    old = deep and _before(raw, ATTENTION_BUILD) and max(widths) <= ATTENTION_WIDTH
    return OLD_ATTENTION if old else None


def _before(raw: Mapping[str, str], build: int, month: str = "") -> bool:
    """Whether a row is of llama.cpp before a build or, if it only names one, before a month."""
    if not raw["engine"].startswith("llama.cpp"):
        return False
    built, released = _BUILD.search(raw["engine"]), _month(raw)
    return int(built[1]) < build if built else "" < released < month


def _month(raw: Mapping[str, str]) -> str:
    """The month that the engine of a row names, as ``2026-01``; empty without one."""
    found = _MONTH.search(raw["engine"])
    return found[1] if found else ""


def possible(row: Row) -> Row | str:
    """The row, set aside if its model does not fit; or why it is impossible."""
    if row.aside is None and row.engine.like == "vllm" and row.batch > 1:
        terms = row.engine.memory(row.geometry, row.storage, replace(row.request, context=row.depth), row.target)
        held = terms.weights.value + terms.cache.value
        if held > POOL * row.machine.usable_bytes * row.target.count or not row.fits:
            return replace(row, aside=WAITED)
    if row.aside is None and not (row.target.unified or row.fits):
        return replace(row, aside=OFFLOADED)
    if row.aside is not None or row.decode_s is None:
        return row
    steps_s = row.decode_s / (row.answer or 1)
    share = row.step().needed_bytes / steps_s / row.target.bandwidth_bytes_s / row.machine.at_once
    if share > HIGHEST_SHARE and not row.parallel:
        if row.batch > 1 and row.experts:
            return replace(row, aside=SHARED_EXPERTS)
        return f"impossible: {share:.0%} of the memory's bandwidth"
    return replace(row, decode_aside=ENDED_EARLY) if _ended_early(row) else row


def _ended_early(row: Row) -> bool:
    """Whether the total rate of a batch is far below the rates of its requests, by the source. If answers are shorter
    than their prompts, requests wait for the prefill of others, which the work of the row includes.
    """
    each = _PER_REQUEST.search(row.notes)
    if each is None or row.answer is None or row.answer < row.prompt:
        return False
    return row.decode_tps < LEAST_RUNNING * row.request.batch * float(each[1])


def with_plausible_prefills(rows: Sequence[Row]) -> list[Row]:
    """The rows; a prefill that must include something else, such as loading the model, is marked."""
    series: dict[tuple[str, int], list[Row]] = defaultdict(list)
    for row in rows:
        if row.prefill_s is not None and not row.prefill_depth:
            series[row.series, row.request.batch].append(row)
    return [_checked(row, series[row.series, row.request.batch]) for row in rows]


def _checked(row: Row, same: Sequence[Row]) -> Row:
    if row.prefill_s is None or row.prefill_depth or row.prefill_aside:
        return row
    first = "first rows of a run include warm-up" in row.notes and row.request.batch == 1
    if first and row.prompt == min(other.prompt for other in same):
        return replace(row, prefill_aside=WARMED_UP)
    longer = [other.prefill_s for other in same if other.prompt >= MUCH_LONGER * row.prompt]
    if any(seconds is not None and seconds < row.prefill_s for seconds in longer):
        return replace(row, prefill_aside=LONGER)
    return row
