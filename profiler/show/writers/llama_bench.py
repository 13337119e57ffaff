"""``-o llama-bench``: the JSON of llama.cpp's ``llama-bench -o json``, for scripts that read it.

A measured case gives a ``pp`` row (``n_prompt`` = context) and a ``tg`` row at depth (``n_gen`` = steps, ``n_depth``
= context). Names, types and relations are those of ``tools/llama-bench/llama-bench.cpp`` (commit 0104b151):
``samples_ns`` are integers, ``samples_ts`` = 10⁹ × (n_prompt + n_gen) ÷ ns, ``avg_*`` their means, ``stddev_*`` with
n − 1, and 0 for a single sample. ``scripts/compare-llama-bench.py`` joins rows on most of the other fields, and there
null never equals null, so fields without a meaning here have llama-bench's own defaults (``DEFAULTS``).
``model_type`` has the model's name and its quantization, ``build_commit`` our version.

llama-bench measures single sequences and has no field for the batch, so programs that read this format would average
rows of batch > 1 with those of batch 1. They are left out, as are failed cases, which llama-bench does not write
either.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from profiler import __version__, backends
from profiler.case import Case, options_of
from profiler.results import stats
from profiler.results.environment import REMOTE
from profiler.results.measurement import PHASES, Measurement, Phase
from profiler.show.columns import plain

GGML_TYPES = {"fp32": "f32", "fp16": "f16", "bf16": "bf16"}  # of the K/V cache, which has the compute dtype
ALL_LAYERS = 99  # n_gpu_layers, by convention, if every layer is on the GPU
DEFAULTS = {  # llama-bench's values for concepts that we do not have
    "build_number": 0,
    "cpu_mask": "0x0",
    "cpu_strict": False,
    "poll": 50,
    "n_cpu_moe": 0,
    "split_mode": "layer",
    "no_kv_offload": False,
    "flash_attn": -1,
    "devices": "auto",
    "tensor_split": "0.00",
    "tensor_buft_overrides": "none",
    "load_mode": "mmap",
    "use_mmap": True,  # the name of load_mode before 2026; compare-llama-bench.py still reads it
    "embeddings": False,
    "no_op_offload": 0,
    "no_host": False,
    "fit_target": 0,
    "fit_min_ctx": 0,
}


def render(run: str | None, measurements: Sequence[Measurement]) -> str:
    """A JSON array of ``pp`` and ``tg`` rows."""
    rows = [
        _row(measurement, phase)
        for measurement in measurements
        if _fits(measurement)
        for phase in PHASES
        if measurement.samples.of(phase)
    ]
    lines = ",\n".join(json.dumps(row, ensure_ascii=True, allow_nan=False) for row in rows)
    return f"[\n{lines}\n]\n" if lines else "[]\n"


def left_out(measurements: Sequence[Measurement]) -> str | None:
    """A message about rows that the format cannot represent."""
    batched = sum(m.outcome == "ok" and not _fits(m) for m in measurements)
    unmeasured = sum(m.outcome != "ok" for m in measurements)
    counts = [
        f"{count} {'case' if count == 1 else 'cases'} {what}"
        for count, what in ((batched, "of batch > 1"), (unmeasured, "without a result"))
        if count
    ]
    return f"the llama-bench format cannot represent {' and '.join(counts)}; use -o jsonl" if counts else None


def _fits(measurement: Measurement) -> bool:
    return measurement.outcome == "ok" and measurement.case.batch == 1


def _row(measurement: Measurement, phase: Phase) -> dict[str, Any]:
    case, environment = measurement.case, measurement.environment
    cpu: dict[str, Any] = environment.get("cpu") or {}
    on_gpu = case.device.startswith("cuda")
    prompt, generated, depth = (case.context, 0, 0) if phase == "prefill" else (0, case.steps, case.context)
    seconds = measurement.samples.seconds(phase)
    if case.server is not None:  # whose requests differ by a few tokens
        seconds = [(prompt + generated) / rate for rate in stats.rates(measurement, phase)]
    ns = [max(1, round(each * 1e9)) for each in seconds]
    return DEFAULTS | {
        "build_commit": f"llm-hwprofile-{__version__}",
        "cpu_info": plain(cpu.get("title") or ""),
        "gpu_info": plain((environment.get("device") or {}).get("title") or "") if on_gpu else "",
        "backends": "CUDA" if on_gpu else "CPU" if case.device != REMOTE else "",
        "model_filename": plain(case.model),
        "model_type": f"{plain(case.model)} {plain(case.quant)}",
        "model_size": measurement.memory.weights_bytes,
        "model_n_params": None,
        "n_batch": case.ubatch,
        "n_ubatch": case.ubatch,
        "n_threads": measurement.threads or case.threads or cpu.get("cores") or 0,
        "type_k": _cache_type(case),
        "type_v": _cache_type(case),
        "n_gpu_layers": ALL_LAYERS if on_gpu else 0,
        "main_gpu": _number(case.device) if on_gpu else 0,
        "n_prompt": prompt,
        "n_gen": generated,
        "n_depth": depth,
        "test_time": _zulu(measurement.started_at),
        **_figures(ns, prompt + generated),
    }


def _cache_type(case: Case) -> str:
    """The type of K and V: the compute dtype in PyTorch; in llama.cpp, what the case asks for or else f16."""
    backend = backends.of_row(case.backend)
    if backend is not None and backend.gguf:
        return plain(options_of(case.options).get("kv", "f16"))
    return GGML_TYPES.get(case.dtype, plain(case.dtype))


def _figures(ns: Sequence[int], tokens: int) -> dict[str, Any]:
    ts = [1e9 * tokens / taken for taken in ns]
    return {
        "avg_ns": sum(ns) // len(ns),
        "stddev_ns": int(statistics.stdev(ns)) if len(ns) > 1 else 0,
        "avg_ts": statistics.fmean(ts),
        "stddev_ts": statistics.stdev(ts) if len(ts) > 1 else 0.0,
        "samples_ns": list(ns),
        "samples_ts": ts,
    }


def _zulu(started_at: str | None) -> str:
    """RFC 3339 in UTC with a ``Z``; empty if unknown or invalid."""
    try:
        return datetime.fromisoformat(started_at or "").astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except ValueError:
        return ""


def _number(device: str) -> int:
    """The 1 of ``cuda:1``; 0 if the name has no number."""
    number = device.partition(":")[2]
    return int(number) if number.isascii() and number.isdigit() and len(number) < 6 else 0
