"""Checkpoints for the tests that run torch on the CPU: real ones, made once a machine, and tiny random ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from fakes import checkpoints, tiny


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Timings and sums must not depend on how many cores the machine has."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def gemma3_270m_gguf() -> Path:
    """Gemma 3 270M as a Q4_K_M GGUF file."""
    return checkpoints.available(checkpoints.gemma3_270m_gguf)


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """SmolLM2 135M Instruct as a Q4_1 GGUF file."""
    return checkpoints.available(checkpoints.smollm2_gguf)


@pytest.fixture(scope="session")
def gemma3_270m() -> Path:
    """Gemma 3 270M as a folder of bf16 safetensors."""
    return checkpoints.available(checkpoints.gemma3_270m)


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2 135M Instruct as a folder of bf16 safetensors."""
    return checkpoints.available(checkpoints.smollm2)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of the tiny random checkpoint of a name in ``fakes.tiny.CONFIGS``, written on first use."""
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = tiny.write(name, tmp_path_factory.mktemp("tiny") / name)
        return made[name]

    return folder


@pytest.fixture(scope="session", params=sorted(tiny.CONFIGS))
def any_tiny_model(request: pytest.FixtureRequest, tiny_model: Callable[[str], Path]) -> Path:
    """Each tiny checkpoint in turn."""
    return tiny_model(request.param)
