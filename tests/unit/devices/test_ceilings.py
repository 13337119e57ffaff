"""Calibrations are stored under the device's fingerprint, and impossible figures are refused."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from profiler.cost.calibrated import calibrated, timed_layer
from profiler.cost.engines.transformers import COUNTS
from profiler.cost.rates import rates as data_sheet_rates
from profiler.devices import calibration
from profiler.devices.base import DeviceInfo
from profiler.devices.calibration import Ceilings, LayerCost, LayerKernel, LinearLayer
from profiler.devices.target import of
from profiler.errors import ProfileError
from profiler.units import GIB

CPU = DeviceInfo("cpu", "cpu", "AMD EPYC", 24 * GIB, 20 * GIB, "fp32", cores=2, features=("avx2",))
FP32 = LinearLayer(
    {1: LayerCost(1e-10, 0.0, 0.0), 16: LayerCost(1e-10, 0.0, 0.0), 64: LayerCost(4e-10, 0.0, 0.0)},
    head={1: 1.5, 16: 1.0},
)
INT8 = LinearLayer({1: LayerCost(1e-10, 1e-8, 1e-4), 4: LayerCost(2e-10, 0.0, 1e-4)})
COST = {"byte_s": 1e-10, "row_s": 0.0, "call_s": 0.0}
RECORD = {"scheme": "fp32", "own": False, "costs": {"1": COST}, "head": {}, "start_s": None}
LAYERS = {LayerKernel("fp32"): FP32, LayerKernel("int8"): INT8}


def some(**changes: object) -> Ceilings:
    known = Ceilings(
        title=CPU.title,
        fingerprint=calibration.fingerprint(CPU),
        measured_at="2026-11-24T04:00:00+00:00",
        seconds=30.0,
        read_bytes_s=12e9,
        copy_bytes_s=8e9,
        step_s={"fp32": 3e-3},
        elementwise_s={"fp32": 75e-11, "bf16": 225e-11},
        fresh_byte_s=2e-10,
        delta_s=0.067,
        convolutions={"fp32": {"channel_s": 1e-7, "sequence_s": 0.0, "token_s": 1e-9}},
        process_bytes=700 * 1024**2,
        graph_step_s=None,
        flops={"fp32": 60e9},
        attention={"fp32": {"step_byte_s": 2e-10, "pass_flop_s": 2e-11}},
        layers=LAYERS,
        how={"read": "sum, 2 threads"},
    )
    return replace(known, **changes)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PROFILER_STORE", str(tmp_path / "results.sqlite"))
    return tmp_path


def test_a_saved_calibration_is_loaded() -> None:
    assert calibration.load(CPU) is None
    path = calibration.save(some())
    assert path.parent.name == "ceilings"
    assert calibration.load(CPU) == some()


def test_several_calibrations_give_the_best_ceilings_and_the_median_rates() -> None:
    slow, usual, quick = (
        {LayerKernel("fp32"): LinearLayer({1: LayerCost(byte_s, row_s, 0.0)}, head={1: head}, start_s=start_s)}
        for byte_s, row_s, head, start_s in (
            (3e-10, 1e-9, 1.1, 7e-6),
            (2e-10, 2e-9, 1.3, 9e-6),
            (1e-10, 3e-9, 1.2, 8e-6),
        )
    )
    for step_s, layers, read in ((9e-3, slow, 1e10), (5e-3, quick, 3e10), (6e-3, usual, 2e10)):
        calibration.save(some(step_s={"fp32": step_s}, layers=layers, read_bytes_s=read, flops={"fp32": read}))
    known = calibration.load(CPU)
    assert known is not None and known.runs == 3
    assert known.step("fp32") == known.step("bf16") == 6e-3
    layer = known.layers[LayerKernel("fp32")]
    assert layer.costs == usual[LayerKernel("fp32")].costs  # costs that belong together stay so
    assert (layer.head, layer.start_s) == ({1: 1.2}, 8e-6)
    assert known.read_bytes_s == 3e10 and known.flops == {"fp32": 3e10}
    assert known.graph_step_s is None and known.convolutions == some().convolutions


def test_three_calibrations_give_the_variation_between_processes_and_two_do_not() -> None:
    def slower(factor: float) -> Ceilings:
        """One token takes longer by ``factor``, several by its square."""
        layers = {
            kernel: LinearLayer(
                {tokens: cost.divided(factor ** (-1 if tokens == 1 else -2)) for tokens, cost in layer.costs.items()}
            )
            for kernel, layer in {
                **LAYERS,
                LayerKernel("fp32"): LinearLayer({**FP32.costs, 4: INT8.costs[4]}),
            }.items()
        }
        return some(layers=layers)

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
    for step_s in (9.0, 9.0, 9.0, 1.0, 2.0, 3.0, 4.0, 5.0):
        calibration.save(some(step_s={"fp32": step_s}))
    known = calibration.load(CPU)
    assert known is not None and (known.runs, known.step("fp32")) == (5, 3.0)
    calibration.save(some(step_s={"fp32": 7.0}), fresh=True)
    assert calibration.load(CPU) == some(step_s={"fp32": 7.0})


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
def test_a_broken_file_is_ignored(text: str, store: Path) -> None:
    path = calibration.save(some())
    path.write_text(text.replace("FP", calibration.fingerprint(CPU)))
    assert calibration.load(CPU) is None


@pytest.mark.parametrize(
    "change",
    [
        {"read_bytes_s": 0},
        {"step_s": {"fp32": -1}},
        {"step_s": 5e-6},
        {"elementwise_s": {"bf16": 1e-11}},
        {"graph_step_s": 0},
        {"read_bytes_s": None},
        {"flops": {"fp32": 0}},
        {"attention": {"fp32": {"step_byte_s": 0}}},
        {"how": None},
        {"schema": 99},
        {"something": 1},
        {"layers": None},
        *(
            {"layers": [RECORD | change]}
            for change in (
                {"scheme": 3},
                {"own": "yes"},
                {"costs": {}},
                {"costs": {"0": COST}},
                {"costs": {"1": COST | {"byte_s": -1}}},
                {"costs": {"1": {"byte_s": 1e-10}}},
                {"head": {"1": 0}},
                {"start_s": -1e-6},
            )
        ),
    ],
)
def test_impossible_figures_are_refused(change: dict[str, object]) -> None:
    assert calibration.parse(json.loads(json.dumps(calibration.to_json(some()) | change))) is None
    assert calibration.parse(json.loads(json.dumps(calibration.to_json(some())))) == some()
    layers = {LayerKernel("fp32"): LinearLayer({1: LayerCost(**COST)})}
    one = json.loads(json.dumps(calibration.to_json(some()) | {"layers": [RECORD]}))
    assert calibration.parse(one) == some(layers=layers)


def test_costs_between_measured_tokens_are_interpolated_in_logarithms() -> None:
    assert FP32.seconds(1, 1e6, 100, 1) == pytest.approx(1e-4)
    assert FP32.seconds(32, 1e6, 100, 1) == pytest.approx(2e-4)
    assert FP32.seconds(128, 1e6, 100, 1) == pytest.approx(8e-4)
    assert FP32.seconds(0.1, 1e6, 100, 1) == pytest.approx(1e-4)


def test_a_quantization_uses_the_kernel_of_another_or_was_not_measured() -> None:
    known = some(layers={LayerKernel("nf4"): FP32, LayerKernel("bf16", own=True): INT8})
    assert timed_layer(known, "nf4") is timed_layer(known, "nf4-dq") is timed_layer(known, "fp4") is FP32
    assert timed_layer(known, "bf16", own=True) is INT8
    assert timed_layer(known, "bf16") is timed_layer(known, "nf4", own=True) is timed_layer(known, "awq") is None


def test_a_layer_costs_bytes_rows_and_calls_whose_number_does_not_depend_on_tokens() -> None:
    assert INT8.seconds(1, 1e6, 1000, 3) == pytest.approx(1e-4 + 1e-5 + 3e-4)
    assert INT8.seconds(8, 1e6, 1000, 3) == pytest.approx(2 * 2e-4 + 3e-4)


def test_a_head_takes_longer_by_the_nearest_number_of_tokens() -> None:
    assert FP32.seconds(1, 1e6, 100, 1, head=True) == pytest.approx(1.5e-4)
    assert FP32.seconds(32, 1e6, 100, 1, head=True) == pytest.approx(2e-4)
    assert INT8.seconds(1, 1e6, 0, 0, head=True) == pytest.approx(1e-4)


def test_a_calibrated_device_says_when_it_was_measured() -> None:
    assert of(CPU).ceilings is None
    calibration.save(some())
    target = of(CPU)
    assert target.bandwidth_bytes_s == 12e9
    assert target.flops == {"fp32": 60e9}
    assert target.source == "measured 2026-11-24"


def stored_by_version_6() -> tuple[str, dict[str, Any]]:
    """A file that version 6 wrote on some machine, as if it were this one, and the calibration in it."""
    text = (Path(__file__).parent / "calibration_v6.json").read_text(encoding="utf-8")
    text = text.replace("FINGERPRINT", calibration.fingerprint(CPU))
    return text, json.loads(text)[0]


def test_a_calibration_of_version_6_gives_the_rates_that_it_stored() -> None:
    text, old = stored_by_version_6()
    path = calibration.save(some())
    path.write_text(text)
    known = calibration.load(CPU)
    assert known is not None and known.runs == 1
    assert COUNTS.call_s(known, "fp32") == pytest.approx(old["call_s"]["fp32"], rel=1e-12)
    assert COUNTS.activation_s(known, "fp32") == pytest.approx(old["activation_s"]["fp32"], rel=1e-12)
    rates = calibrated(data_sheet_rates(of(CPU), "transformers", "bf16"), known, "bf16", COUNTS).roofline
    assert rates.flop_s["state"] == pytest.approx(old["delta_flop_s"], rel=1e-12)
    assert rates.read_s["cache"] * 3 == pytest.approx(old["attention"]["bf16"]["step_byte_s"], rel=1e-12)
    names = {f"{kernel.quant} rows" if kernel.own else kernel.quant for kernel in known.layers}
    assert names == set(old["products"]) >= {"nf4", "fp32 rows", "int8 rows"}
    ours = known.layers[LayerKernel("int8", own=True)]
    assert asdict(ours.costs[8]) == old["products"]["int8 rows"]["8"]
    assert known.layers[LayerKernel("fp32")].head == {int(n): v for n, v in old["tall"]["fp32"].items()}
    calibration.save(known, fresh=True)
    assert calibration.load(CPU) == known  # and in the form of today it says the same


def test_a_gpu_of_version_6_keeps_its_launch_times() -> None:
    _, old = stored_by_version_6()
    gpu = old | {"graph_call_s": 1.8e-6, "host_s": {"bf16": 12e-6, "bf16 rows": 9e-6}}
    known = calibration.parse(gpu)
    assert known is not None
    assert COUNTS.device_call_s(known) == pytest.approx(1.8e-6, rel=1e-12)
    starts = [known.layers[LayerKernel("bf16", own)].start_s for own in (False, True)]
    assert starts == [12e-6, 9e-6]
    assert known.layers[LayerKernel("fp32")].start_s is None


@pytest.mark.parametrize(
    "change",
    [
        {"call_s": None},
        {"products": {"fp32": {"1": {"byte_s": -1, "row_s": 0, "call_s": 0}}}},
        {"tall": None},
        {"host_s": {"fp32": 0}},
        {"graph_call_s": -1},
        {"delta_flop_s": 0},
        {"more": 1},
    ],
)
def test_impossible_figures_of_version_6_are_refused(change: dict[str, object]) -> None:
    _, old = stored_by_version_6()
    assert calibration.parse(old) is not None
    assert calibration.parse(old | change) is None


def test_a_better_count_of_operators_applies_to_what_was_measured_before() -> None:
    known, twice = (
        some(),
        replace(COUNTS, step_operators=2 * COUNTS.step_operators, elementwise=2 * COUNTS.elementwise),
    )
    assert twice.call_s(known, "fp32") == COUNTS.call_s(known, "fp32") / 2
    assert twice.activation_s(known, "bf16") == COUNTS.activation_s(known, "bf16") / 2


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PROFILER_STORE", str(tmp_path / "file" / "results.sqlite"))
    with pytest.raises(ProfileError, match="the ceilings cannot be stored"):
        calibration.save(some())
