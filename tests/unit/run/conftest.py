"""Every test that runs workers is checked for what it left behind."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator

import pytest
from fakes.lab import Lab, child_pids, vanishes

from profiler import registry
from profiler.case import Source, Task
from profiler.devices.base import DeviceInfo
from profiler.models import families, hub
from profiler.run.grid import Axes, Subject, SweepSettings, tasks
from profiler.units import GIB


@pytest.fixture
def lab() -> Iterator[Lab]:
    lab = Lab()
    gc.collect()  # what an earlier test left in a cycle may hold files, which would close in between
    fds = set(os.listdir("/proc/self/fd"))
    yield lab
    assert all(vanishes(group) for group in lab.groups), "a process outlived its run"
    assert not child_pids(), "a process was not waited for"
    assert len(os.listdir("/proc/self/fd")) == len(fds), "a file was left open"


MakeTasks = Callable[..., list[Task]]


def cpu(free_gib: float = 20, cores: int = 2, dtype: str = "fp32") -> DeviceInfo:
    free = round(free_gib * GIB)
    return DeviceInfo("cpu", "cpu", "AMD EPYC", free + GIB, free, dtype, cores=cores, features=("avx2",))


def gpu(title: str = "NVIDIA GeForce RTX 4090", gib: int = 24) -> DeviceInfo:
    return DeviceInfo("cuda:0", "cuda", title, gib * GIB, gib * GIB, "bf16", features=("sm_89",), uuid="GPU-1")


def subject(name: str, model_id: str | None = None) -> Subject:
    raw = hub.shipped_config(name)
    return Subject(name, Source("catalog", name, None, raw), families.geometry(raw), "synthetic", model_id or name)


def grid(
    models: str,
    quants: str = "fp32",
    contexts: tuple[int, ...] = (128,),
    batches: tuple[int, ...] = (1,),
    steps: tuple[int, ...] = (8,),
    device: DeviceInfo | None = None,
    **settings: object,
) -> list[Task]:
    formats = tuple(registry.load("quants", name, "quantization").QUANT for name in quants.split(","))
    axes = Axes(tuple(subject(name) for name in models.split(",")), formats, contexts, batches, steps)
    return tasks(axes, SweepSettings(**settings), device or cpu())  # type: ignore[arg-type]


@pytest.fixture
def make_tasks() -> MakeTasks:
    return grid


@pytest.fixture
def make_cpu() -> Callable[..., DeviceInfo]:
    return cpu


@pytest.fixture
def make_gpu() -> Callable[..., DeviceInfo]:
    return gpu
