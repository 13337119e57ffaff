"""What was measured of a device is kept under its fingerprint, and nothing that cannot be is believed."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from profiler.devices import calibration
from profiler.devices.base import DeviceInfo
from profiler.devices.calibration import Ceilings
from profiler.devices.target import of
from profiler.errors import ProfileError
from profiler.units import GIB

CPU = DeviceInfo("cpu", "cpu", "AMD EPYC", 24 * GIB, 20 * GIB, "fp32", cores=2, features=("avx2",))
PRODUCTS = {
    "fp32": {
        "1": {"byte_s": 1e-10, "row_s": 0.0, "call_s": 0.0},
        "16": {"byte_s": 1e-10, "row_s": 0.0, "call_s": 0.0},
        "64": {"byte_s": 4e-10, "row_s": 0.0, "call_s": 0.0},
    },
    "int8": {
        "1": {"byte_s": 1e-10, "row_s": 1e-8, "call_s": 1e-4},
        "4": {"byte_s": 2e-10, "row_s": 0.0, "call_s": 1e-4},
    },
}


def some(**changes: object) -> Ceilings:
    known = Ceilings(
        title=CPU.title,
        fingerprint=calibration.fingerprint(CPU),
        measured_at="2026-11-24T04:00:00+00:00",
        seconds=30.0,
        read_bytes_s=12e9,
        copy_bytes_s=8e9,
        call_s={"fp32": 5e-6},
        activation_s={"fp32": 1e-11, "bf16": 3e-11},
        fresh_byte_s=2e-10,
        delta_flop_s=1e-10,
        convolutions={"fp32": {"channel_s": 1e-7, "sequence_s": 0.0, "token_s": 1e-9}},
        process_bytes=700 * 1024**2,
        graph_call_s=None,
        flops={"fp32": 60e9},
        attention={"fp32": {"step_byte_s": 2e-10, "pass_flop_s": 2e-11}},
        products=PRODUCTS,
        tall={"fp32": {"1": 1.5, "16": 1.0}},
        host_s={},
        how={"read": "sum, 2 threads"},
    )
    return replace(known, **changes)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PROFILER_STORE", str(tmp_path / "results.sqlite"))
    return tmp_path


def test_what_was_saved_is_loaded() -> None:
    assert calibration.load(CPU) is None
    path = calibration.save(some())
    assert path.parent.name == "ceilings"
    assert calibration.load(CPU) == some()


def test_of_several_calibrations_ceilings_are_the_best_and_rates_the_middle() -> None:
    slow = {"fp32": {"1": {"byte_s": 3e-10, "row_s": 1e-9, "call_s": 0.0}}}
    usual = {"fp32": {"1": {"byte_s": 2e-10, "row_s": 2e-9, "call_s": 0.0}}}
    quick = {"fp32": {"1": {"byte_s": 1e-10, "row_s": 3e-9, "call_s": 0.0}}}
    for call_s, products, read in ((9e-6, slow, 1e10), (5e-6, quick, 3e10), (6e-6, usual, 2e10)):
        calibration.save(some(call_s={"fp32": call_s}, products=products, read_bytes_s=read, flops={"fp32": read}))
    known = calibration.load(CPU)
    assert known is not None and known.runs == 3
    assert (
        known.call("fp32") == known.call("bf16") == 6e-6 and known.products == usual
    )  # costs that belong together stay so
    assert known.read_bytes_s == 3e10 and known.flops == {"fp32": 3e10}
    assert known.graph_call_s is None and known.convolutions == some().convolutions


def test_three_calibrations_tell_how_much_processes_differ_and_two_do_not() -> None:
    def slower(factor: float) -> Ceilings:
        """One token takes longer by ``factor``, several by its square."""
        products = {
            scheme: {
                tokens: {name: value * factor ** (1 if tokens == "1" else 2) for name, value in cost.items()}
                for tokens, cost in costs.items()
            }
            for scheme, costs in PRODUCTS.items()
        }
        products["fp32"]["4"] = products["int8"]["4"]
        return some(products=products)

    for factor in (1.0, 1.1):
        calibration.save(slower(factor))
    known = calibration.load(CPU)
    assert known is not None and known.between is None
    calibration.save(slower(1.21))
    known = calibration.load(CPU)
    step = math.log(1.1)
    assert known is not None and known.between == pytest.approx({"decode": step, "prefill": 2 * step})
    again = json.loads((calibration.folder() / f"{known.fingerprint}.json").read_text())
    assert all("between" not in one or one["between"] is None for one in again)  # derived, not kept


def test_the_last_five_calibrations_count_and_fresh_forgets_them() -> None:
    for call_s in (9.0, 9.0, 9.0, 1.0, 2.0, 3.0, 4.0, 5.0):
        calibration.save(some(call_s={"fp32": call_s}))
    known = calibration.load(CPU)
    assert known is not None and (known.runs, known.call("fp32")) == (5, 3.0)
    calibration.save(some(call_s={"fp32": 7.0}), fresh=True)
    assert calibration.load(CPU) == some(call_s={"fp32": 7.0})


@pytest.mark.parametrize("change", [{"cores": 4}, {"title": "other"}, {"features": ("avx512f",)}, {"driver": "570"}])
def test_a_device_that_changed_is_measured_again(change: dict[str, object]) -> None:
    calibration.save(some())
    assert calibration.load(replace(CPU, **change)) is None  # type: ignore[arg-type]
    assert calibration.load(replace(CPU, free_bytes=1)) is not None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        "nonsense",
        "[3]",
        '[{"schema": 1}]',
        '[{"fingerprint": 3}]',
        '[{"schema": 99, "fingerprint": "FP"}]',
    ],
)
def test_a_broken_file_is_as_if_there_were_none(text: str, store: Path) -> None:
    path = calibration.save(some())
    path.write_text(text.replace("FP", calibration.fingerprint(CPU)))
    assert calibration.load(CPU) is None


@pytest.mark.parametrize(
    "change",
    [
        {"read_bytes_s": 0},
        {"call_s": {"fp32": -1}},
        {"call_s": 5e-6},
        {"activation_s": {"bf16": 1e-11}},
        {"read_bytes_s": None},
        {"flops": {"fp32": 0}},
        {"attention": {"fp32": {"step_byte_s": 0}}},
        {"products": {"fp32": {"1": {"byte_s": -1}}}},
        {"tall": None},
    ],
)
def test_figures_that_cannot_be_are_refused(change: dict[str, object]) -> None:
    assert calibration.parse({"schema": calibration.SCHEMA} | asdict(some()) | change) is None
    assert calibration.parse(json.loads(json.dumps({"schema": calibration.SCHEMA} | asdict(some())))) == some()


def test_products_are_straight_in_logarithms_between_tokens_and_go_on_in_proportion() -> None:
    known = some()
    assert known.product_s("fp32", 1, 1e6, 100, 1) == pytest.approx(1e-4)
    assert known.product_s("fp32", 32, 1e6, 100, 1) == pytest.approx(2e-4)
    assert known.product_s("fp32", 128, 1e6, 100, 1) == pytest.approx(8e-4)
    assert known.product_s("fp32", 0.1, 1e6, 100, 1) == pytest.approx(1e-4)
    assert known.product_s("nf4", 1, 1e6, 100, 1) is None


def test_a_product_costs_bytes_rows_and_calls_and_more_tokens_no_more_calls() -> None:
    known = some()
    assert known.product_s("int8", 1, 1e6, 1000, 3) == pytest.approx(1e-4 + 1e-5 + 3e-4)
    assert known.product_s("int8", 8, 1e6, 1000, 3) == pytest.approx(2 * 2e-4 + 3e-4)


def test_a_head_takes_longer_by_the_nearest_number_of_tokens() -> None:
    known = some()
    assert known.product_s("fp32", 1, 1e6, 100, 1, head=True) == pytest.approx(1.5e-4)
    assert known.product_s("fp32", 32, 1e6, 100, 1, head=True) == pytest.approx(2e-4)
    assert known.product_s("int8", 1, 1e6, 0, 0, head=True) == pytest.approx(1e-4)


def test_a_calibrated_device_is_told_by_what_was_measured() -> None:
    assert of(CPU).ceilings is None
    calibration.save(some())
    target = of(CPU)
    assert target.bandwidth_bytes_s == 12e9
    assert target.flops == {"fp32": 60e9}
    assert target.source == "measured 2026-11-24"


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PROFILER_STORE", str(tmp_path / "file" / "results.sqlite"))
    with pytest.raises(ProfileError, match="cannot keep the ceilings"):
        calibration.save(some())
