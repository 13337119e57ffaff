"""Devices that are not here, and points of catalog models on them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from profiler import registry
from profiler.devices.base import DeviceInfo
from profiler.models import catalog, families
from profiler.models.source import Source
from profiler.plan.grid import Axes, Point, Settings, Subject, points
from profiler.units import GIB

MakePoints = Callable[..., list[Point]]


def cpu(free_gib: float = 20, cores: int = 2, dtype: str = "fp32") -> DeviceInfo:
    free = round(free_gib * GIB)
    return DeviceInfo("cpu", "cpu", "AMD EPYC", free + GIB, free, dtype, cores=cores, features=("avx2",))


def gpu(title: str = "NVIDIA GeForce RTX 4090", gib: int = 24) -> DeviceInfo:
    return DeviceInfo("cuda:0", "cuda", title, gib * GIB, gib * GIB, "bf16", features=("sm_89",), uuid="GPU-1")


def subject(name: str, model_id: str | None = None) -> Subject:
    raw = catalog.raw_config(name)
    return Subject(name, Source("catalog", name, None, raw), families.geometry(raw), "synthetic", model_id or name)


def grid(
    models: str,
    quants: str = "fp32",
    contexts: tuple[int, ...] = (128,),
    batches: tuple[int, ...] = (1,),
    steps: tuple[int, ...] = (8,),
    device: DeviceInfo | None = None,
    **settings: object,
) -> list[Point]:
    formats = tuple(registry.load("quants", name, "quantization").QUANT for name in quants.split(","))
    axes = Axes(tuple(subject(name) for name in models.split(",")), formats, contexts, batches, steps)
    return points(axes, Settings(**settings), device or cpu())  # type: ignore[arg-type]


@pytest.fixture
def make_points() -> MakePoints:
    return grid


@pytest.fixture
def make_cpu() -> Callable[..., DeviceInfo]:
    return cpu


@pytest.fixture
def make_gpu() -> Callable[..., DeviceInfo]:
    return gpu
