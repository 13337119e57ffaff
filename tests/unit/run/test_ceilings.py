"""Ceilings that are measured before a sweep or by `profile calibrate`, by programs that print what a test says."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from typing import Any

import pytest
from fakes.ceilings import MEASURED

from profiler import devices
from profiler.case import Case
from profiler.cost import cases
from profiler.devices import calibration, target
from profiler.errors import ProfileError
from profiler.models import families, hub
from profiler.run import ceilings

TWO = {"read_bytes_s": 20e9, "flops": {"fp32": 100e9}, "seconds": 3.0}
CPU = devices.find("cpu")
ensure = ceilings.ensure  # before the tests' conftest replaces it in the module


def prints(monkeypatch: pytest.MonkeyPatch, *lines: dict[str, Any], code: int = 0) -> None:
    text = "".join(json.dumps(line) + "\n" for line in lines)
    program = (sys.executable, "-c", f"import sys; print({text!r}, end=''); sys.exit({code})")
    monkeypatch.setattr(ceilings, "_program", lambda trait: program)


def test_figures_that_a_hypervisor_disturbed_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    prints(monkeypatch, TWO | {"busy": "the hypervisor gave 9% of the CPU time to other guests"})
    with pytest.raises(ceilings.BusyMachine, match="hypervisor gave 9%"):
        ceilings.measure_quick(CPU)


@pytest.mark.parametrize(
    ("lines", "code", "words"),
    [
        ([], 3, "failed: exit code 3"),
        ([{"read_bytes_s": 1.0}], 0, "impossible figures"),
        ([TWO | {"read_bytes_s": -1.0}], 0, "impossible figures"),
        ([TWO | {"flops": {}}], 0, "impossible figures"),
    ],
)
def test_a_program_that_fails_is_an_error_in_one_line(
    lines: list[dict[str, Any]], code: int, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    prints(monkeypatch, *lines, code=code)
    with pytest.raises(ProfileError, match=words):
        ceilings.measure_quick(CPU)


def test_a_program_that_never_ends_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceilings, "_program", lambda trait: (sys.executable, "-c", "import time; time.sleep(60)"))
    monkeypatch.setattr(ceilings, "QUICK_LIMIT_S", 0.2)
    with pytest.raises(ProfileError, match="took more than"):
        ceilings.measure_quick(CPU)


def test_ctrl_c_says_what_it_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ceilings, "_program", lambda trait: (sys.executable, "-c", "import time; time.sleep(60)"))
    monkeypatch.setattr(ceilings, "_lines", interrupted)
    with pytest.raises(KeyboardInterrupt, match="interrupted while measuring cpu; nothing of it was stored"):
        ceilings.measure_quick(CPU)


def test_the_first_sweep_measures_two_ceilings_and_says_so_and_no_later_one_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prints(monkeypatch, TWO)
    said: list[str] = []
    ensure(CPU, said.append)
    ensure(CPU, said.append)
    assert len(said) == 1 and "MBU and MFU; profile calibrate is more exact" in said[0]
    known = calibration.load_quick(CPU)
    assert known is not None and (known.read_bytes_s, known.flops) == (20e9, {"fp32": 100e9})
    assert calibration.load(CPU) is None
    assert calibration.load_quick(replace(CPU, cores=(CPU.cores or 1) + 1)) is None  # another part of the machine


def test_a_calibration_is_neither_replaced_nor_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    own = replace(MEASURED, fingerprint=calibration.fingerprint(CPU))
    calibration.save_quick(calibration.QuickCeilings("t", own.fingerprint, "2026-11-29", 3.0, 1e9, {"fp32": 1e9}))
    calibration.save(own)
    monkeypatch.setattr(ceilings, "_program", lambda trait: pytest.fail("it was measured"))
    ensure(CPU, pytest.fail)
    assert target.of(CPU).at_quick.ceilings == own


def test_fewer_threads_do_not_lower_the_ceiling_of_a_device() -> None:
    """``--threads 1`` uses less of the same bandwidth."""
    one = replace(CPU, threads=1, physical=2)
    both = replace(one, threads=2)
    mark = calibration.fingerprint(both)
    calibration.save_quick(calibration.QuickCeilings("t", mark, "2026-11-29", 3.0, 20e9, {"fp32": 100e9}))
    assert target.of(one).at_quick.bandwidth_bytes_s == target.of(both).at_quick.bandwidth_bytes_s == 20e9
    calibration.save(replace(MEASURED, fingerprint=mark, read_bytes_s=30e9))
    found = target.of(one)
    assert found.ceilings is None  # rates of another number of threads predict nothing
    assert found.quick is not None and (found.quick.basis, found.quick.read_bytes_s) == ("calibrated", 30e9)


def test_ceilings_that_cannot_be_measured_do_not_stop_a_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    prints(monkeypatch, {"busy": "other processes took 44%"})
    said: list[str] = []
    ensure(CPU, said.append)
    assert said[-1].startswith("MBU and MFU are unknown: the machine is too busy")
    assert calibration.load_quick(CPU) is None  # the next sweep tries again


def test_quick_ceilings_give_mbu_and_mfu_and_change_no_prediction() -> None:
    geometry = families.geometry(hub.shipped_config("gemma-3-270m"))
    case = Case("gemma-3-270m", "g3", "real", "fp32", "fp32", "cpu", "hf", "eager", 512, 1, 8)
    before = cases.stored_prediction(case, geometry, CPU)
    assert "utilization" not in before and "ceiling_s" not in before
    mark = calibration.fingerprint(CPU)
    calibration.save_quick(calibration.QuickCeilings("t", mark, "2026-11-29", 3.0, 20e9, {"fp32": 100e9}))
    after = cases.stored_prediction(case, geometry, CPU)
    used = after.pop("utilization")
    assert after == before and used["basis"] == "quick"
    # 268,098,176 parameters in fp32, of which a step reads all: 53.6 ms at 20 GB/s, and its cache
    assert 1.0 < used["step_s"] / (4 * 268_098_176 / 20e9) < 1.02
    # 2 FLOPs per token for each of the 100 million parameters of the layers, and attention
    assert 1.0 < used["prefill_s"] / (2 * 512 * 100e6 / 100e9) < 1.3
