"""Measures many cases in one process, for machines that are available for minutes only: a worker's imports take
seconds.

    python benchmarks/one_process.py --device cuda:0 --out rows.jsonl [--seconds 120] \
        qwen3.5-0.8b:bf16:512+32768:graph+static+eager gemma-4-e2b:nf4:512:graph

A case is ``model:quantization:contexts:paths[:batches]``. Weights are synthetic, and the cache is filled with random
values unless a path ends in ``*`` (``eager*``), which also measures the prefill. Every row is written immediately.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from profiler import devices
from profiler.backends.hf import session
from profiler.case import Case, Source, digest
from profiler.models import hub
from profiler.results.measurement import Measurement
from profiler.results.stats import summarize
from profiler.run.loop import measure
from profiler.run.repetitions import Effort, Repeater


def main() -> None:
    options = _options()
    end = time.perf_counter() + options.seconds
    with options.out.open("a", encoding="utf-8") as out:
        for word in options.cases:
            model, quant, contexts, paths, batches = (*word.split(":"), "1")[:5]
            every = [(int(c), path, int(b)) for c in contexts.split("+") for b in batches.split("+")
                     for path in paths.split("+")]  # fmt: skip
            if time.perf_counter() > end:
                print(f"no time left for {word}")
                continue
            _measure(model, quant, every, options, end, out)


def _measure(
    model: str, quant: str, every: list[tuple[int, str, int]], options: argparse.Namespace, end: float, out: object
) -> None:
    """Measure all cases that share a loaded model."""
    config = hub.shipped_config(model)
    source, dtype = Source("catalog", model, None, config), devices.find(options.device).default_dtype
    dtype = quant if quant in ("fp32", "bf16", "fp16") else dtype
    loaded = None
    for context, path, batch in every:
        case = Case(model, digest(config), "synthetic", quant, dtype, options.device, "hf", path.rstrip("*"),
                    context, batch, options.steps, "prefill" if path.endswith("*") else "synthetic")  # fmt: skip
        if loaded is None:
            start = time.perf_counter()
            loaded = session.open_session(case, source, lambda words: None)
            print(f"{model} {quant}: loaded in {time.perf_counter() - start:.1f} s")
        if time.perf_counter() > end:
            print(f"no time left for {case.label} {path}")
            continue
        try:
            start = time.perf_counter()
            result = measure(loaded, case, Repeater(Effort(options.reps, max_phase_s=8.0), measured_before=True))
        except Exception as error:
            print(f"{case.label} {path}: {type(error).__name__}: {error}")
            continue
        row = Measurement(case, {}, "ok", samples=result.samples, memory=result.memory, cautions=result.cautions,
                          threads=result.threads, stopped=result.stopped, decode_path=result.decode_path)  # fmt: skip
        print(json.dumps(row.to_json()), file=out, flush=True)  # type: ignore[call-overload]
        print(f"{case.label} {path}: {_words(row)}, {time.perf_counter() - start:.1f} s")
    if loaded is not None:
        loaded.close()


def _words(row: Measurement) -> str:
    parts = []
    for phase in ("prefill", "decode"):
        seconds = [sample.seconds for sample in row.samples if sample.phase == phase and not sample.warmup]
        found = summarize([value * 1e3 / (row.case.steps if phase == "decode" else 1) for value in seconds])
        first = next((sample for sample in row.samples if sample.phase == phase), None)
        if found is not None and first is not None:
            parts.append(f"{phase} {found.median:.3f} ms (first {first.seconds * 1e3:.0f} ms in all)")
    if row.decode_path is not None:
        parts.append(str(row.decode_path))
    parts.append(f"peaks {row.memory.prefill_peak_bytes} {row.memory.decode_peak_bytes}")
    return "; ".join(parts)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("cases", nargs="+")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--reps", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--out", type=Path, default=Path("rows.jsonl"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
