"""Workers that start at once, and a machine with an NVIDIA driver: the real pynvml over the fake library."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fakes import warm_workers
from fakes.nvml import FakeNvml, NoCompiler, build

Plug = Callable[..., FakeNvml]


@pytest.fixture
def fresh_interpreters() -> None:
    """For tests about how a worker starts: each is an interpreter of its own, as in production."""


@pytest.fixture(autouse=True)
def _warm_workers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Elsewhere workers are forks of this process; see ``fakes.warm_workers``."""
    if "fresh_interpreters" not in request.fixturenames:
        warm_workers.install(monkeypatch)


@pytest.fixture(scope="session")
def nvml_library(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Builds the fake library, without some symbols if they are named; once for each set of them."""
    folder = tmp_path_factory.mktemp("nvml")
    try:
        build(folder)
    except NoCompiler as reason:
        if os.environ.get("CI") == "true":
            pytest.fail(str(reason))
        pytest.skip(str(reason))
    return lambda *without: build(folder, without)


@pytest.fixture
def driver(nvml_library: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Plug]:
    """``driver()`` installs a driver without cards, ``driver("symbol", …)`` one that lacks symbols."""
    import pynvml

    made: list[tuple[FakeNvml, ctypes.CDLL, int]] = []

    def install(*without: str) -> FakeNvml:
        script = tmp_path / f"script{len(made)}"
        monkeypatch.setenv("FAKE_NVML", str(script))
        library = nvml_library(*without)
        monkeypatch.setenv("LD_LIBRARY_PATH", str(library.parent))  # where processes started from here find it
        monkeypatch.setattr(pynvml, "nvmlLib", ctypes.CDLL(str(library)))
        monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
        made.append((FakeNvml(script), pynvml.nvmlLib, pynvml.nvmlLib.fakeUsers()))
        return made[-1][0]

    yield install
    for script, _, _ in made:
        script.let_go()
    assert all(library.fakeUsers() <= before for _, library, before in made), "NVML was left open"
