"""What a sweep plans with: exact where it says so, and never above what is certain."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from profiler import registry
from profiler.case import Case
from profiler.cost import engines
from profiler.cost.cases import CaseEstimate, estimate_case, host_of
from profiler.cost.interval import Interval, exact, prior
from profiler.cost.storage import Storage, left_plain
from profiler.devices import cpu, target
from profiler.devices.base import DeviceInfo
from profiler.models import families, hub
from profiler.models.geometry import Geometry
from profiler.quants.base import Quant
from profiler.units import GIB

CPU = DeviceInfo("cpu", "cpu", "AMD EPYC", 24 * GIB, 22 * GIB, "fp32", cores=2, features=("avx2",))
GPU = DeviceInfo("cuda:0", "cuda", "NVIDIA GeForce RTX 4090", 24 * GIB, 24 * GIB, "bf16", uuid="GPU-1")
CASE = Case("m", "m", "synthetic", "fp32", "fp32", "cpu", "hf", "eager", context=512, batch=1, steps=32, ubatch=512)


@pytest.fixture(autouse=True)
def not_calibrated(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("PROFILER_STORE", str(tmp_path / "store.sqlite"))


def geometry(name: str) -> Geometry:
    return families.geometry(hub.shipped_config(name))


def stored(name: str, scheme: str, dtype: str) -> Storage:
    return engines.find("transformers").storage(geometry(name), scheme, dtype)


def taken(name: str, scheme: str = "fp32", device: DeviceInfo = CPU, **change: Any) -> CaseEstimate:
    how: Quant = registry.load("quants", scheme, "quantization").QUANT
    case = replace(CASE, quant=scheme, dtype=how.dtype or device.default_dtype, device=device.name)
    case = replace(case, **change)
    return estimate_case(case, geometry(name), host_of(device, case.threads))


@pytest.mark.parametrize(
    ("model", "bf16", "nf4", "nf4_dq"),
    [
        ("gemma-4-e2b", 8.62, 6.11, 6.03),
        ("gemma-4-e4b", 13.90, 8.58, 8.41),
        ("gemma-4-26b-a4b", 47.00, 44.78, 44.71),
        ("gemma-4-31b", 57.18, 17.97, 16.70),
        ("qwen3.5-27b", 50.10, 17.50, 16.44),
        ("qwen3.5-35b-a3b", 64.56, 62.67, 62.61),
    ],
)
def test_weights_are_those_of_the_real_modules(model: str, bf16: float, nf4: float, nf4_dq: float) -> None:
    """GiB of the text towers as transformers 5.23 builds them on the meta device, bitsandbytes linears included."""
    found = [stored(model, name, "bf16").device_bytes / GIB for name in ("bf16", "nf4", "nf4-dq")]
    assert found == pytest.approx([bf16, nf4, nf4_dq], abs=0.011)


def test_the_cache_counts_the_tokens_that_decode_adds() -> None:
    found = taken("qwen3-0.6b")
    assert found.cache == exact(544 * 114688 * 2)  # tokens × bytes per token in 16 bits, twice that in fp32
    assert found.peak.value > found.weights.value + 2 * found.cache.value  # the copy that decode starts again from


@pytest.mark.parametrize("device", [CPU, GPU], ids=["cpu", "cuda"])
@pytest.mark.parametrize("name", ["gemma-3-270m", "gemma-4-26b-a4b", "qwen3.5-0.8b", "llama-4-scout-17b-16e"])
@pytest.mark.parametrize("scheme", ["fp32", "bf16", "int8", "nf4"])
def test_every_term_is_an_interval_around_its_value(device: DeviceInfo, name: str, scheme: str) -> None:
    took = taken(name, scheme, device)
    for term in (took.weights, took.cache, took.peak, took.load_s, took.prefill_s, took.fill_s, took.step_s):
        assert 0 < term.low <= term.value <= term.high
    assert took.weights.basis == "exact"
    assert took.peak.basis == "prior"
    assert took.step_s.basis == ("fitted" if device is GPU else "prior")


def test_the_first_case_of_a_compiled_path_waits_for_the_compiler() -> None:
    eager, static, graph = (taken("gemma-3-270m", path=path) for path in ("eager", "static", "graph"))
    assert static.load_s == eager.load_s
    low, high = graph.load_s.low - eager.load_s.low, graph.load_s.high - eager.load_s.high
    assert low < 10 < 70 < high  # seconds with inductor's cache, and 43 to 78 without


@pytest.mark.parametrize("change", [{"context": 4096}, {"batch": 8}])
@pytest.mark.parametrize("name", ["gemma-4-e2b", "qwen3.5-2b", "llama-4-scout-17b-16e"])
def test_a_larger_case_never_needs_less(change: dict[str, Any], name: str) -> None:
    small, large = taken(name), taken(name, **change)
    assert small.peak.low <= large.peak.low
    assert small.peak.value <= large.peak.value
    assert small.peak.high <= large.peak.high
    assert small.prefill_s.value < large.prefill_s.value
    assert small.step_s.value <= large.step_s.value


@pytest.mark.parametrize(
    ("name", "scheme", "context", "prefill_tps", "decode_tps"),
    [
        ("gemma-3-270m", "fp32", 512, 422, 11.1),
        ("gemma-4-e2b", "fp32", 128, 65.8, 1.63),
        ("gemma-4-e2b", "nf4", 128, 13.8, 0.215),
        ("qwen3.5-0.8b", "fp32", 128, 90.8, 5.13),
        ("qwen3.5-0.8b", "bf16", 128, 15.9, 0.846),
        ("qwen3.5-0.8b", "int8", 128, 58.6, 2.53),
    ],
)
def test_priors_hold_what_was_measured_on_two_cores(
    name: str, scheme: str, context: int, prefill_tps: float, decode_tps: float
) -> None:
    """Medians of the real backend, torch 2.14 on two AVX2 cores: what a machine that was not calibrated is told."""
    took = taken(name, scheme, context=context)
    assert took.prefill_s.low <= context / prefill_tps <= took.prefill_s.high
    assert took.step_s.low <= 1 / decode_tps <= took.step_s.high
    assert took.step_s.high < 30 * took.step_s.low


def test_unpacking_four_bits_on_a_cpu_is_what_decode_waits_for() -> None:
    plain, packed = (taken("gemma-4-e2b", name).step_s.value for name in ("fp32", "nf4"))
    assert packed > 4 * plain
    on_gpu = [taken("gemma-4-e2b", name, GPU).step_s.value for name in ("bf16", "nf4")]
    assert on_gpu[1] < 2 * on_gpu[0]


def test_decode_is_no_faster_than_the_card_can_read() -> None:
    step = taken("gemma-4-31b", "nf4", GPU).step_s
    assert step.value > stored("gemma-4-31b", "nf4", "bf16").part_bytes("mlp") / 1008e9


def test_a_card_that_is_not_in_the_catalog_gets_wider_bounds() -> None:
    known, unknown = taken("qwen3.5-4b", "bf16", GPU), taken("qwen3.5-4b", "bf16", replace(GPU, title="NVIDIA New"))
    assert unknown.step_s.high / unknown.step_s.low > 10 * known.step_s.high / known.step_s.low
    assert unknown.step_s.value > known.step_s.value


def test_threads_bound_the_cores_that_count() -> None:
    eight = replace(CPU, cores=8)
    assert taken("gemma-3-1b", device=eight, threads=2).step_s == taken("gemma-3-1b").step_s
    assert taken("gemma-3-1b", threads=64).step_s == taken("gemma-3-1b").step_s
    assert taken("gemma-3-1b", device=replace(CPU, cores=None)).step_s.value > 0


def test_a_cpu_with_bf16_units_computes_bf16_faster_than_fp32_and_one_without_slower() -> None:
    with_units = replace(CPU, default_dtype="bf16", features=("avx2", "avx512f", "avx512_bf16"))
    assert cpu.assumed_flops(with_units)["bf16"] > cpu.assumed_flops(with_units)["fp32"]
    assert cpu.assumed_flops(CPU)["bf16"] < cpu.assumed_flops(CPU)["fp32"]
    slow, fast = (taken("qwen3.5-0.8b", "bf16", device) for device in (CPU, with_units))
    assert slow.prefill_s.value > 10 * fast.prefill_s.value


def test_a_cpu_with_avx512_converts_halves_faster_than_one_without_and_slower_than_its_units_compute() -> None:
    with_units, blocks = (replace(CPU, features=("avx2", "avx512f", *more)) for more in (("avx512_bf16",), ()))
    rates = [cpu.assumed_flops(device) for device in (with_units, blocks, CPU)]
    assert rates[0]["bf16"] > rates[1]["bf16"] > rates[2]["bf16"]
    assert rates[0]["fp16"] == rates[1]["fp16"] > rates[2]["fp16"]
    assert rates[1]["bf16"] < rates[1]["fp32"]


def test_a_cpu_without_calibration_says_so() -> None:
    assert target.of(CPU).source == "not calibrated"
    assert target.of(CPU).spread > 1


def test_a_sum_rests_on_the_weakest_of_its_terms() -> None:
    total = exact(10) + prior(4, 2)
    assert total == Interval(14, 12, 18, "prior")
    assert (exact(1) + exact(2)).basis == "exact"
    assert prior(4, 2).scaled(3) == Interval(12, 6, 24, "prior")


def test_what_a_quantization_leaves_alone_is_in_words_where_it_decides_the_size() -> None:
    experts = left_plain(stored("qwen3.5-122b-a10b", "nf4", "fp32"), "nf4", "fp32")
    assert experts == "nf4 leaves 438 GiB of fused experts in fp32"
    assert left_plain(stored("gemma-4-e2b", "fp32", "fp32"), "fp32", "fp32") is None
    assert left_plain(stored("gemma-4-31b", "nf4", "bf16"), "nf4", "bf16") is None  # a seventh of it
