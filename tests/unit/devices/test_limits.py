"""A device under limits is another device, with rates, ceilings and a mark of its own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from fakes.ceilings import MEASURED

from profiler.cost import engines
from profiler.cost.cases import host_of
from profiler.cost.engines.base import Terms
from profiler.cost.machine import Machine
from profiler.cost.prediction import Predictor, judge
from profiler.devices import calibration
from profiler.devices.base import DeviceInfo
from profiler.devices.target import of
from profiler.models import families, hub
from profiler.run.fit import FitRequest, predictions
from profiler.units import GIB

FREE = DeviceInfo(
    "cpu", "cpu", "AMD EPYC", 24 * GIB, 20 * GIB, "fp32", 2, ("avx2",), threads=2, physical=2, installed=2
)
HALF, ONE, MORE = (
    replace(FREE, quota=quota, threads=threads, limits=("a CPU quota allows less",))
    for quota, threads in ((0.5, 1), (1.0, 1), (1.5, 2))
)


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROFILER_STORE", str(tmp_path / "results.sqlite"))


def seconds(device: DeviceInfo, threads: int | None = None, quant: str = "bf16") -> tuple[float, float]:
    """Of a prefill and a decode step of Gemma 3 270M on the device."""
    geometry = families.geometry(hub.shipped_config("gemma-3-270m"))
    predictor = Predictor(geometry, engines.find("transformers"), quant, Machine(host_of(device, threads)), "bf16")
    prefill, step = predictor.phases(512, 512, 1)
    return prefill.seconds.value, step.seconds.value


@pytest.mark.parametrize("quant", ["bf16", "fp32", "int8", "nf4"])
def test_a_quota_below_one_core_scales_every_second(quant: str) -> None:
    one, half, quarter = (seconds(replace(ONE, quota=quota), quant=quant) for quota in (1.0, 0.5, 0.25))
    assert half == pytest.approx([2 * value for value in one])
    assert quarter == pytest.approx([4 * value for value in one])


def test_a_quota_of_one_core_is_one_thread_without_a_quota() -> None:
    assert seconds(ONE) == pytest.approx(seconds(FREE, threads=1))
    assert seconds(ONE) == pytest.approx(seconds(replace(FREE, cores=1, threads=1, physical=1)))


def test_more_threads_than_a_quota_has_cores_are_throttled() -> None:
    assert seconds(ONE, threads=2) == pytest.approx([2 * value for value in seconds(FREE)])
    assert seconds(MORE) == pytest.approx([value / 0.75 for value in seconds(FREE)])


def test_no_more_threads_run_than_there_are_cores() -> None:
    assert seconds(FREE, threads=64) == pytest.approx(seconds(FREE))
    assert seconds(HALF, threads=64) == pytest.approx([4 * value for value in seconds(FREE)])


def test_a_device_without_limits_keeps_its_fingerprint() -> None:
    before = DeviceInfo("cpu", "cpu", "AMD EPYC", 24 * GIB, 20 * GIB, "fp32", cores=2, features=("avx2",))
    assert calibration.fingerprint(FREE) == calibration.fingerprint(before)
    gpu = DeviceInfo("cuda:0", "cuda", "RTX", 24 * GIB, 20 * GIB, "bf16", uuid="GPU-a")
    assert calibration.fingerprint(replace(gpu, quota=4.0)) == calibration.fingerprint(gpu)
    assert calibration.fingerprint(replace(gpu, quota=0.5)) != calibration.fingerprint(gpu)  # Python starts its work


def test_ceilings_belong_to_a_machine_and_its_limits() -> None:
    devices = [FREE, HALF, ONE, MORE, replace(FREE, threads=1), replace(FREE, cores=1, threads=1, confined=(1, 9))]
    devices.append(replace(devices[-1], confined=(1, 4)))
    marks = [calibration.fingerprint(device) for device in devices]
    assert len(set(marks)) == len(marks)
    calibration.save(replace(MEASURED, fingerprint=marks[0]))
    assert calibration.load(FREE) is not None
    assert [calibration.load(device) for device in devices[1:]] == [None] * 6


def test_ceilings_measured_under_a_quota_apply_to_its_share_of_the_time() -> None:
    for device in (ONE, HALF):
        calibration.save(replace(MEASURED, fingerprint=calibration.fingerprint(device)))
    one, half = of(ONE), of(HALF)
    assert one.ceilings is not None and half.ceilings is not None
    assert half.bandwidth_bytes_s == half.ceilings.read_bytes_s == one.bandwidth_bytes_s / 2
    assert half.flops == {name: value / 2 for name, value in one.flops.items()}
    assert half.ceilings.process_bytes == one.ceilings.process_bytes
    known = zip(half.ceilings.layers.items(), one.ceilings.layers.items(), strict=True)
    for (kernel, slower), (other, layer) in known:
        assert kernel == other and slower.head == layer.head and slower.costs != layer.costs
    for quant in ("fp32", "bf16", "int8"):
        assert seconds(HALF, quant=quant) == pytest.approx([2 * value for value in seconds(ONE, quant=quant)])


def terms(device: DeviceInfo, context: int) -> tuple[Terms, Machine]:
    geometry = families.geometry(hub.shipped_config("gemma-3-270m"))
    host = Machine(of(device))
    predictor = Predictor(geometry, engines.find("transformers"), "bf16", host, "bf16")
    return predictor.terms(predictor.request(context, 1)), host


@pytest.mark.parametrize(("gib", "word"), [(0.5, "no"), (1.2, "tight"), (20, "fits")])
def test_a_verdict_says_which_limit_it_is_about(gib: float, word: str) -> None:
    where = "memory.max of the control group /a"
    verdict = judge(*terms(replace(FREE, memory_bytes=int(gib * GIB), memory_limit=where), 512))
    assert verdict.word == word
    assert f"that {where} allows" in verdict.reason or f"{where} allows 512 MiB" in verdict.reason
    assert "allows" not in judge(*terms(FREE, 512)).reason


def test_fit_says_what_limits_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    from profiler import devices

    monkeypatch.setattr(devices, "find", lambda name=None: HALF)
    (answer,) = predictions(FitRequest(models=("gemma-3-270m",), engine="transformers", quants=("bf16",))).predictions
    assert "a CPU quota allows less" in answer.cautions
    (other,) = predictions(
        FitRequest(models=("gemma-3-270m",), on=("rtx 4090",), engine="transformers", quants=("bf16",))
    ).predictions
    assert other.cautions == ()
