"""Rows for reports: a machine with 64 GiB, and cases with the rates one asks for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from profiler.case import Case
from profiler.results.measurement import Measurement, Memory, Sample

GIB = 1024**3
ENVIRONMENT: dict[str, Any] = {
    "cpu": {"title": "Some CPU", "cores": 8},
    "memory_bytes": 64 * GIB,
    "device": {"name": "cpu", "kind": "cpu", "title": "Some CPU", "memory_bytes": 64 * GIB, "features": ["avx2"]},
    "libraries": {"torch": "2.13.0", "bitsandbytes": "0.50.2"},
    "system": "Linux 6",
    "python": "3.12",
}
OTHER: dict[str, Any] = ENVIRONMENT | {
    "device": {"name": "cuda:0", "kind": "cuda", "title": "Some GPU", "memory_bytes": 24 * GIB, "uuid_hash": "ab"}
}
MEMORY = Memory(
    weights_bytes=2 * GIB,
    cache_bytes=GIB // 4,
    baseline_bytes=GIB // 2,
    prefill_peak_bytes=4 * GIB,
    decode_peak_bytes=3 * GIB,
    process_peak_bytes=4 * GIB,
)
CASE = Case("m", "m", "real", "bf16", "bf16", "cpu", "hf", "eager", 512, 1, 8)


def measured(
    decode: tuple[float, ...] = (10.0, 10.1, 9.9),
    prefill: tuple[float, ...] = (100.0, 101.0, 99.0),
    environment: dict[str, Any] | None = None,
    memory: Memory = MEMORY,
    expected: dict[str, Any] | None = None,
    **case: Any,
) -> Measurement:
    """An ``ok`` row whose repetitions had these rates, in tokens per second."""
    what = replace(CASE, **({"model_id": case.get("model", "m")} | case))
    prompt, answer = what.batch * what.context, what.batch * what.steps
    samples = (
        *(Sample("prefill", prompt / rate, prompt) for rate in prefill),
        *(Sample("decode", answer / rate, answer) for rate in decode),
    )
    place = ENVIRONMENT if environment is None else environment
    times = {"started_at": "2026-11-24T09:30:15+00:00", "asked": {"reps": len(decode)}, "expected": expected or {}}
    return Measurement(what, place, "ok", samples=samples, memory=memory, **times)


KINDS = {"prose": 0.7, "code": 0.9, "html": 0.8, "scripts": 1.6}  # kind of text: its divergence ÷ the mean
DOCUMENTS, TOKENS = 3, 400


def scored(row: Measurement, kl: float, **scale: Any) -> Measurement:
    """``row`` with this mean KL divergence. ``scale``: ``definition``, ``window``, ``texts`` (their hash), and of the
    reference ``dtype``, ``reference`` (its id), ``packed`` (its own quantization) and ``nll``, its mean −log p.
    """
    known = {
        "definition": 1,
        "window": row.case.context,
        "texts": "0123",
        "dtype": "fp32",
        "reference": "ref",
        "nll": 3,
        "packed": None,
    }
    of = known | scale
    wobble = (0.8, 1.0, 1.2)
    blocks = [
        (kind, f"{kind} {n}", TOKENS, kl * factor * wobble[n] * TOKENS, round(TOKENS * (1 - min(kl, 0.9))),
         (of["nll"] + kl) * TOKENS, of["nll"] * TOKENS)
        for kind, factor in KINDS.items()
        for n in range(DOCUMENTS)
    ]  # fmt: skip
    names = ("kind", "document", "tokens", "kl", "same", "nll", "reference_nll")
    quality = {
        "definition": of["definition"],
        "window": of["window"],
        "text": {"name": "some texts", "hash": of["texts"], "license": "CC0"},
        "reference": {"model": "m", "model_id": of["reference"], "dtype": of["dtype"], "device": "cpu"}
        | ({} if of["packed"] is None else {"packed": of["packed"]}),
        "blocks": dict(zip(names, map(list, zip(*blocks, strict=True)), strict=True)),
        "tails": {},
    }
    return replace(row, quality=quality)


def ended(outcome: Any, reason: str, **case: Any) -> Measurement:
    """A row without a result."""
    what = replace(CASE, **({"model_id": case.get("model", "m")} | case))
    return Measurement(what, ENVIRONMENT, outcome, reason=reason, started_at="2026-11-24T09:31:00+00:00")


def grid(models: int, quants: int, contexts: int, batches: int) -> list[Measurement]:
    """Every combination: ``models × quants × contexts × batches`` rows."""
    names = ("fp32", "bf16", "fp16", "int8", "nf4", "nf4-dq", "fp4")
    return [
        measured(
            model=f"model-{m}",
            quant=names[q % len(names)],
            context=128 * (c + 1),
            batch=b + 1,
            decode=tuple((10.0 + m + q) * (b + 1) / (1 + c / 40) * f for f in (1.0, 1.01, 0.99)),
        )
        for m in range(models)
        for q in range(quants)
        for c in range(contexts)
        for b in range(batches)
    ]
