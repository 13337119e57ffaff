"""The fixed set of measurements that the golden files show, and names that no report may let through."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from profiler.case import Case
from profiler.results.measurement import Caution, Measurement, Memory, Sample

MIB = 1024**2
ENVIRONMENT: dict[str, Any] = {
    "cpu": {"title": "AMD EPYC 7763", "cores": 8},
    "device": {
        "name": "cpu",
        "kind": "cpu",
        "title": "AMD EPYC 7763",
        "memory_bytes": 64 * 1024**3,
        "driver": None,
    },
    "libraries": {"torch": "2.13.0+cpu"},
}
CONTENDED = Caution("contended", "other processes took 12 % of the CPU time", "--reps 9")
UNQUANTIZED = Caution("unquantized", "512 MiB stay in fp32: embeddings, lm_head")
BASE = Case("gemma-3-270m", "g3", "real", "fp32", "fp32", "cpu", "hf", "eager", 128, 1, 16)


def ok(case: Case, prefill_s: list[float], decode_s: list[float], **changes: Any) -> Measurement:
    """An ``ok`` row whose decode steps take equal shares, the last one a little more."""
    prefill = [Sample("prefill", taken, case.batch * case.context) for taken in prefill_s]
    shares = [
        (*[taken * 0.98 / case.steps] * (case.steps - 1), taken * (0.98 / case.steps + 0.02)) for taken in decode_s
    ]
    decode = [
        Sample("decode", taken, case.batch * case.steps, steps) for taken, steps in zip(decode_s, shares, strict=True)
    ]
    memory = Memory(
        weights_bytes=1022 * MIB,
        cache_bytes=9 * MIB * case.batch,
        prefill_peak_bytes=1400 * MIB,
        decode_peak_bytes=1300 * MIB,
        process_peak_bytes=1400 * MIB,
    )
    whole = {"memory": memory, "started_at": "2026-11-24T09:30:15+00:00", "asked": {"reps": len(decode_s)}}
    return Measurement(case, ENVIRONMENT, "ok", samples=(*prefill, *decode), **(whole | changes))


def failed(case: Case, outcome: Any, reason: str) -> Measurement:
    return Measurement(case, ENVIRONMENT, outcome, reason=reason, started_at="2026-11-24T09:31:00+00:00")


def fixed_set() -> list[Measurement]:
    """ok with small, large and no spread; synthetic fill; unknown memory; every other outcome; two models."""
    nf4, int8 = replace(BASE, quant="nf4"), replace(BASE, quant="int8")
    qwen = replace(BASE, model="qwen3.5-0.8b", model_id="q35", quant="nf4", weights="synthetic")
    return [
        ok(BASE, [0.1041, 0.1043, 0.1040], [1.301, 1.322, 1.295], cautions=(UNQUANTIZED,)),
        ok(
            replace(BASE, context=4096, batch=4),
            [21.0, 24.0, 19.5],
            [9.1, 6.3, 8.0],
            cautions=(UNQUANTIZED, CONTENDED),
        ),
        ok(qwen, [0.9], [2.5], memory=Memory()),
        ok(replace(nf4, context=131072, fill="synthetic"), [], [4.1, 4.2, 4.15, 4.12, 4.16, 4.11]),
        failed(replace(nf4, context=16384), "oom", "the kernel's OOM killer ended the worker: 3.1 GiB of 2 GiB"),
        failed(replace(nf4, context=32768), "skipped", "dominated by gemma-3-270m nf4 c=16384 b=1"),
        failed(int8, "failed", "the worker died by signal 11 (SIGSEGV)"),
        failed(replace(int8, context=256), "timeout", "no sign of life for 60 s"),
    ]


HOSTILE = [
    "<script>alert(1)</script>",
    "=cmd|' /C calc'!A0",
    "+1",
    "-1",
    "@SUM(A1)",
    "a|b",
    "\x1b[31mred\x1b[0m\x1b]0;title\x07",
    "1e5",
    "0123",
    "two\nlines\r\n| a | b |",
    "right\u202eto\u2066left\u200f",
    "tab\there",
    "`code` [link](https://example.org) **bold** @someone #12 www.example.org",
    "hf_" + "C4nary" * 6,
    "hf_C4naryC4n\x00aryC4nary12345678",  # a token once the control character is gone
    "\udc80 lone surrogate",
    "\ufeff=1+1",
    "\u200b=1+1",
    "\u061c\u2061@SUM(A1)",
    "\u3000\uff1d1+1",
    "a\u061cb\u2060c\U000e0041d\ue000e\u2029f",
    "",
    "名前 é" * 60,
]


@pytest.fixture
def measurements() -> list[Measurement]:
    return fixed_set()


@pytest.fixture(params=HOSTILE, ids=[ascii(name)[:24] for name in HOSTILE])
def hostile(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def hostile_rows(hostile: str) -> list[Measurement]:
    """An ordinary row between two rows that carry the hostile text wherever text can come from outside."""
    case = replace(BASE, model=hostile, model_id="h")
    caution = Caution("odd", hostile, hostile)
    rows = fixed_set()
    return [
        ok(case, [0.1, 0.1], [1.0, 1.1], cautions=(caution,)),
        rows[0],
        replace(failed(replace(case, context=256), "failed", hostile), cautions=(caution,)),
    ]
