"""Rows that were measured on a fallback are taken from the store only where this machine would fall back again."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fakes.lab import make_case

from profiler import decode_path
from profiler.case import EAGER
from profiler.devices.base import DeviceInfo
from profiler.results.measurement import DecodePath, Measurement, Sample
from profiler.results.store import Store
from profiler.run.process import worker_environment
from profiler.run.repetitions import Effort
from profiler.run.request import SweepRequest, resolve_request
from profiler.run.reuse import ReusableRows, fallbacks

CASE = replace(make_case(), backend="hf", path="static", device="cpu")
LOOPS = DecodePath("static", kernels="C++ (avx2)")
CPU = DeviceInfo("cpu", "cpu", "Some CPU", 2**35, 2**35, "fp32", cores=2)


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder with a compiler and nothing else to be found, and a cache of its own."""
    made = tmp_path / "bin" / "g++"
    made.parent.mkdir()
    made.write_text("#!/bin/sh\n")
    made.chmod(0o755)
    monkeypatch.setenv("PATH", str(made.parent))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CXX", raising=False)
    return made


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "rows.sqlite") as opened:
        yield opened


def taken(store: Store, path: DecodePath | None, then: Callable[[], Any] = lambda: None, case: Any = CASE) -> bool:
    """Whether a row on ``path`` that is stored now is taken after ``then``."""
    run = store.start_run([], {})
    samples = tuple(Sample("decode", 1.0, 32) for _ in range(5))
    asked = Effort(5).requested
    store.append(run, Measurement(case, {}, "ok", samples=samples, asked=asked, decode_path=path))
    then()
    return ReusableRows(store, {}, Effort(5), None).find(case) is not None


def fallback(reason: str = "cannot build: No space left on device") -> DecodePath:
    return DecodePath("static", kernels=f"plain torch: {reason}", machine=decode_path.machine_state())


def full(monkeypatch: pytest.MonkeyPatch) -> None:
    def allocate(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", allocate)


def test_a_row_on_a_fallback_is_reused_if_its_cause_is_still_there(compiler: Path, store: Store) -> None:
    assert taken(store, fallback())


def test_a_full_cache_folder_that_has_room_again_is_measured_again(
    compiler: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        full(patch)
        path = fallback()
        assert taken(store, path)
    assert not taken(store, path)


def test_a_cache_folder_that_was_mounted_noexec_is_measured_again(
    compiler: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "statvfs", lambda folder: SimpleNamespace(f_flag=os.ST_NOEXEC))
        path = fallback()
    assert not taken(store, path)


def test_a_compiler_that_was_installed_or_replaced_is_measured_again(compiler: Path, store: Store) -> None:
    assert not taken(store, fallback("c++ failed"), lambda: compiler.write_text("#!/bin/sh\n# a newer one\n"))
    compiler.rename(compiler.with_name("away"))
    path = fallback(decode_path.NO_COMPILER)
    assert taken(store, path)
    assert not taken(store, path, lambda: compiler.with_name("away").rename(compiler))


def test_a_row_of_our_kernels_is_not_reused_if_they_cannot_be_built_any_more(compiler: Path, store: Store) -> None:
    assert taken(store, LOOPS)
    assert not taken(store, LOOPS, compiler.unlink)


def test_a_fallback_caused_by_the_model_is_reused_anywhere(compiler: Path, store: Store) -> None:
    compiler.unlink()
    assert taken(store, DecodePath("static", kernels="plain torch: no loops for torch.float16"))
    assert taken(store, DecodePath("eager", "cache layer 0 has no rule"))
    assert taken(store, None)


def test_a_graph_that_ran_short_of_memory_is_measured_again(store: Store) -> None:
    case = replace(CASE, device="cuda:0", path="graph")
    short = DecodePath("static", "not captured: out of memory", machine=decode_path.SHORT_OF_MEMORY)
    assert not taken(store, short, case=case)
    assert taken(store, replace(short, machine="0123"), case=case)


def test_reusing_a_row_on_a_fallback_gives_a_message(compiler: Path, store: Store) -> None:
    assert taken(store, fallback())
    row = ReusableRows(store, {}, Effort(5), None).find(CASE)
    assert row is not None
    said = fallbacks([row])
    assert said is not None and said.startswith(
        "1 reused row was measured on a fallback that this machine still needs"
    )
    assert "No space left on device" in said and "--fresh" in said
    assert fallbacks([]) is None


def test_a_worker_finds_the_compiler_that_the_plan_found(
    compiler: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Else a plan chose our step and the row ran on plain torch, for want of a compiler that CXX names."""
    own = compiler.rename(tmp_path / "my-own-compiler")
    monkeypatch.setenv("CXX", str(own))
    here = (decode_path.compiler(), decode_path.machine_state())
    worker = worker_environment(os.environ)
    for name in set(os.environ) - set(worker):
        monkeypatch.delenv(name)
    assert (decode_path.compiler(), decode_path.machine_state()) == here == (str(own), here[1])


def test_looking_at_the_machine_leaves_nothing_behind(compiler: Path, tmp_path: Path) -> None:
    assert decode_path.machine_state() == decode_path.machine_state()
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("asked", [(), ("eager",)])
def test_eager_for_lack_of_a_compiler_has_the_reason_unless_it_was_requested(
    compiler: Path, asked: tuple[str, ...]
) -> None:
    compiler.unlink()
    ask = SweepRequest(models=("gemma-3-270m",), paths=asked)
    (subject,) = resolve_request(ask, CPU, 2**34, lambda words: None).subjects
    reasons = [note.text for note in subject.notes if note.code == EAGER]
    assert len(reasons) == (0 if asked else 1)
    assert all("no C++ compiler found" in text for text in reasons)
