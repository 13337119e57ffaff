"""The meter of the CPU, on kernels that support it and on others."""

from __future__ import annotations

import gc
import mmap
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from profiler.devices import allowance, cpu

MIB = 2**20


def touched(size: int) -> mmap.mmap:
    """Private memory of exactly ``size`` bytes, every page of it in use."""
    area = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for start in range(0, size, mmap.PAGESIZE):
        area[start] = 1
    return area


def closest(size: int, grown: Callable[[], int]) -> int:
    """The smallest error of three tries, because a process that ran other tests may free memory meanwhile."""
    return min(abs(grown() - size) for _ in range(3))


def test_a_peak_is_a_scripted_allocation_within_a_mebibyte() -> None:
    meter = cpu.meter("cpu")

    def grown() -> int:
        meter.reset_peak()
        before = meter.peak().process_bytes
        touched(200 * MIB).close()
        after = meter.peak().process_bytes
        assert before is not None and after is not None
        return after - before

    assert closest(200 * MIB, grown) < MIB


def test_a_new_window_forgets_a_higher_peak_of_the_last() -> None:
    """As after loading, which may need more memory than both phases."""
    meter = cpu.meter("cpu")

    def grown() -> int:
        meter.reset_peak()
        before = meter.peak().process_bytes
        touched(200 * MIB).close()
        meter.reset_peak()
        touched(50 * MIB).close()
        after = meter.peak().process_bytes
        assert before is not None and after is not None
        return after - before

    assert closest(50 * MIB, grown) < MIB


def test_mapped_weights_are_distinguished_from_libraries(tmp_path: Path) -> None:
    gc.collect()  # nothing that earlier tests mapped may go away between the two looks
    held, weights = cpu.meter("cpu").peak().framework_bytes, cpu.mapped_weights_bytes()
    files = [tmp_path / "model.safetensors", tmp_path / "library.so"]
    for file in files:
        with file.open("wb") as opened:
            opened.truncate(32 * MIB)  # written from memory it would leave some of it in the heap
    maps = [mmap.mmap(os.open(file, os.O_RDONLY), 0, prot=mmap.PROT_READ) for file in files]
    for area in maps:
        assert sum(area[start] for start in range(0, len(area), mmap.PAGESIZE)) == 0
    assert cpu.mapped_weights_bytes() - weights == 32 * MIB
    grown = cpu.meter("cpu").peak().framework_bytes
    assert held is not None and grown is not None
    assert abs(grown - held - 32 * MIB) < MIB  # the library alone


def test_a_machine_without_maps_leaves_the_framework_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "MAPS", tmp_path / "absent")
    peak = cpu.meter("cpu").peak()
    assert peak.framework_bytes is None and peak.process_bytes is not None


def test_a_peak_that_cannot_be_reset_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "CLEAR_REFS", tmp_path / "absent" / "clear_refs")
    meter = cpu.meter("cpu")
    meter.reset_peak()
    assert meter.peak().process_bytes is None


def test_a_kernel_without_the_counter_leaves_the_peak_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    meter = cpu.meter("cpu")
    monkeypatch.setattr(cpu, "process_bytes", lambda field: (_ for _ in ()).throw(OSError(field)))
    assert meter.peak().process_bytes is None


def test_the_last_cache_counts_once_for_all_cores_that_share_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(allowance, "CPUS", tmp_path)
    for core, shared in ((0, "0-1"), (1, "0-1"), (2, "2-3")):
        for index, (level, size, cores) in enumerate([("1", "48K", str(core)), ("3", "32768K", shared)]):
            folder = tmp_path / f"cpu{core}" / "cache" / f"index{index}"
            folder.mkdir(parents=True)
            for name, text in (("level", level), ("size", size), ("shared_cpu_list", cores)):
                (folder / name).write_text(text + "\n")
    assert allowance.last_cache_bytes([0, 1]) == 32 * 1024**2
    assert allowance.last_cache_bytes([0, 1, 2]) == 64 * 1024**2
    assert allowance.last_cache_bytes([7]) == 0  # a system that does not say
