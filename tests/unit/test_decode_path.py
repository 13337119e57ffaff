"""Which way a decode step runs where nobody says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from profiler import decode_path
from profiler.cost.engines.transformers import usual_path
from profiler.devices import target
from profiler.devices.base import DeviceInfo, kind_of
from profiler.run.request import SweepRequest, resolve_request


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder with a compiler, and nothing else to be found."""
    made = tmp_path / "g++"
    made.write_text("#!/bin/sh\n")
    made.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    return made


def test_a_gpu_runs_a_graph_and_a_cpu_the_static_step(compiler: Path) -> None:
    assert kind_of("cuda").step_path(True) == "graph"
    assert kind_of("cpu").step_path(True) == "static"
    assert decode_path.compiler() == str(compiler)


def test_without_a_compiler_a_cpu_runs_what_is_shipped(compiler: Path) -> None:
    compiler.unlink()
    assert decode_path.compiler() is None
    assert kind_of("cpu").step_path(True) == "eager"
    assert kind_of("cuda").step_path(True) == "graph"


def test_a_sweep_takes_what_is_usual_and_what_is_named_goes_first(compiler: Path) -> None:
    cpu = DeviceInfo("cpu", "cpu", "Some CPU", 2**35, 2**35, "fp32", cores=2)
    gpu = DeviceInfo("cuda:0", "cuda", "NVIDIA H100", 2**36, 2**36, "bf16")

    def path(device: DeviceInfo, *named: str, backend: str = "hf") -> set[str]:
        request = SweepRequest(models=("gemma-3-270m",), paths=named, backend=backend)
        return {task.case.path for task in resolve_request(request, device, 2**34, lambda words: None).tasks}

    assert path(cpu) == {"static"}
    assert path(gpu) == {"graph"}
    assert path(gpu, "eager", "static") == {"eager", "static"}
    assert path(cpu, backend="fake") == {"eager"}


def test_predictions_are_for_what_a_sweep_would_run(compiler: Path) -> None:
    assert usual_path(target.find("rtx 4090")) == "graph"
    assert usual_path(target.find("strix halo")) == "eager"
    unknown = replace(
        target.find("vram=24,bandwidth=500"), local="cuda:0"
    )  # a card here that no data sheet describes
    assert usual_path(unknown) == "graph"
