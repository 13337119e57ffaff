"""The meter of the CPU, where the kernel helps and where it does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from profiler.devices import cpu

MIB = 2**20


def test_a_new_window_forgets_the_peak_of_the_last() -> None:
    meter = cpu.meter("cpu")
    meter.reset_peak()
    before = meter.peak().process_bytes
    held = bytearray(b"\1") * (64 * MIB)
    grown = meter.peak().process_bytes
    del held
    meter.reset_peak()
    after = meter.peak().process_bytes
    assert before is not None and grown is not None and after is not None
    assert grown - before > 60 * MIB and grown - after > 60 * MIB


def test_a_peak_that_cannot_be_reset_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "CLEAR_REFS", tmp_path / "absent" / "clear_refs")
    meter = cpu.meter("cpu")
    meter.reset_peak()
    assert meter.peak().process_bytes is None


def test_a_kernel_without_the_counter_leaves_the_peak_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    meter = cpu.meter("cpu")
    monkeypatch.setattr(cpu, "process_bytes", lambda field: (_ for _ in ()).throw(OSError(field)))
    assert meter.peak().process_bytes is None
