"""Measurements with figures that are easy to follow."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from profiler.case import Case
from profiler.results.measurement import Caution, Measurement, Memory, Sample
from profiler.results.store import Store

ENVIRONMENT: dict[str, Any] = {
    "cpu": {"title": "Example CPU", "cores": 8},
    "memory_bytes": 64 * 1024**3,
    "limits": {"memory_bytes": None, "cores": None},
    "device": {"name": "cpu", "kind": "cpu", "title": "Example CPU", "free_bytes": 60 * 1024**3, "driver": None},
    "system": "Linux 6.1",
    "python": "3.11.9",
    "libraries": {"torch": "2.13.0+cpu"},
    "settings": {},
    "source": None,
}


def measured(context: int = 128, **changes: Any) -> Measurement:
    case = Case("gemma-3-270m", "ab12", "real", "nf4", "fp32", "cpu", "hf", "eager", context, 1, 4)
    samples = tuple(Sample("prefill", 0.1 + i / 100, context, cpu_s=0.2) for i in range(3))
    samples += tuple(Sample("decode", 0.4 + i / 100, 4, (0.1, 0.1, 0.1, 0.1 + i / 100)) for i in range(3))
    whole: dict[str, Any] = {
        "case": case,
        "environment": ENVIRONMENT,
        "outcome": "ok",
        "samples": samples,
        "memory": Memory(weights_bytes=10**9, cache_bytes=2**20),
        "cautions": (Caution("contended", "another process took CPU time", "--reps 9"),),
        "started_at": "2026-11-24T09:30:15+00:00",
        "asked": {"reps": 3, "max_phase_s": 60.0},
    }
    return Measurement(**(whole | changes))


@pytest.fixture
def make() -> Callable[..., Measurement]:
    return measured


@pytest.fixture
def environment() -> dict[str, Any]:
    return ENVIRONMENT


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "results.sqlite") as store:
        yield store
