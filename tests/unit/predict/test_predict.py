"""Predictions: exact where they say so, and never below what is certain."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from profiler import registry
from profiler.case import Case
from profiler.devices.base import DeviceInfo
from profiler.models import catalog, families
from profiler.models.geometry import Geometry
from profiler.predict import memory, timing
from profiler.predict.interval import Interval, exact, prior
from profiler.predict.speeds import speeds
from profiler.quants.base import Quant
from profiler.units import GIB

CPU = DeviceInfo("cpu", "cpu", "AMD EPYC", 24 * GIB, 22 * GIB, "fp32", cores=2, features=("avx2",))
GPU = DeviceInfo("cuda:0", "cuda", "NVIDIA GeForce RTX 4090", 24 * GIB, 24 * GIB, "bf16", uuid="GPU-1")
CASE = Case("m", "m", "synthetic", "fp32", "fp32", "cpu", "hf", "eager", context=512, batch=1, steps=32, ubatch=512)


def geometry(name: str) -> Geometry:
    return families.geometry(catalog.raw_config(name))


def quant(name: str) -> Quant:
    found: Quant = registry.load("quants", name, "quantization").QUANT
    return found


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
    shape = geometry(model)
    found = [memory.weights_bytes(shape, quant(name), "bf16") / GIB for name in ("bf16", "nf4", "nf4-dq")]
    assert found == pytest.approx([bf16, nf4, nf4_dq], abs=0.011)


def test_the_cache_counts_the_tokens_that_decode_adds() -> None:
    shape = geometry("qwen3-0.6b")
    found = memory.predict(CASE, shape, quant("fp32"), CPU).cache
    assert found.low == 544 * 114688 * 2  # tokens × bytes per token in 16 bits, twice that in fp32
    assert found.low <= found.value <= found.high


@pytest.mark.parametrize("device", [CPU, GPU], ids=["cpu", "cuda"])
@pytest.mark.parametrize("name", ["gemma-3-270m", "gemma-4-26b-a4b", "qwen3.5-0.8b", "llama-4-scout-17b-16e"])
@pytest.mark.parametrize("scheme", ["fp32", "bf16", "int8", "nf4"])
def test_every_term_is_an_interval_around_its_value(device: DeviceInfo, name: str, scheme: str) -> None:
    shape, how = geometry(name), quant(scheme)
    case = replace(CASE, quant=scheme, dtype=how.dtype or device.default_dtype, device=device.name)
    held, took = memory.predict(case, shape, how, device), timing.predict(case, shape, how, device)
    terms: list[Interval] = [held.weights, held.cache, held.activations, held.framework, held.peak]
    terms += [took.load_s, took.prefill_s, took.fill_s, took.step_s]
    for term in terms:
        assert 0 < term.low <= term.value <= term.high
    assert held.weights.basis == "exact"
    assert held.peak.basis == took.step_s.basis == "prior"


@pytest.mark.parametrize("change", [{"context": 4096}, {"batch": 8}])
def test_a_larger_case_never_needs_less(change: dict[str, Any]) -> None:
    for name in ("gemma-4-e2b", "qwen3.5-2b", "llama-4-scout-17b-16e"):
        shape, how = geometry(name), quant("fp32")
        small, large = (memory.predict(case, shape, how, CPU).peak for case in (CASE, replace(CASE, **change)))
        assert small.low <= large.low and small.value <= large.value and small.high <= large.high
        before, after = (timing.predict(case, shape, how, CPU) for case in (CASE, replace(CASE, **change)))
        assert before.prefill_s.value < after.prefill_s.value
        assert before.step_s.value <= after.step_s.value


def test_priors_hold_what_was_measured_on_two_cores() -> None:
    """Gemma 3 270M, synthetic fp32, torch 2.13 on two AVX2 cores: medians of the real backend."""
    took = timing.predict(CASE, geometry("gemma-3-270m"), quant("fp32"), CPU)
    assert took.prefill_s.low <= 1.28 <= took.prefill_s.high
    assert took.step_s.low <= 0.11 <= took.step_s.high
    assert took.load_s.low <= 8 <= took.load_s.high


def test_unpacking_four_bits_on_a_cpu_is_what_decode_waits_for() -> None:
    shape = geometry("gemma-4-e2b")
    plain, packed = (timing.predict(CASE, shape, quant(name), CPU).step_s.value for name in ("fp32", "nf4"))
    assert packed > 5 * plain
    on_gpu = [timing.predict(CASE, shape, quant(name), GPU).step_s.value for name in ("bf16", "nf4")]
    assert on_gpu[1] < 2 * on_gpu[0]


def test_decode_is_no_faster_than_the_card_can_read() -> None:
    shape = geometry("gemma-4-31b")
    step = timing.predict(replace(CASE, dtype="bf16", quant="nf4"), shape, quant("nf4"), GPU).step_s
    assert step.value > memory.weights_bytes(shape, quant("nf4"), "bf16") / 1008e9


def test_a_card_that_is_not_in_the_catalog_gets_wider_bounds() -> None:
    unknown = replace(GPU, title="NVIDIA Something New")
    assert speeds(unknown, "bf16").spread > speeds(GPU, "bf16").spread
    assert speeds(unknown, "bf16").read_bytes_s < speeds(GPU, "bf16").read_bytes_s


def test_threads_bound_the_cores_that_count() -> None:
    eight = replace(CPU, cores=8)
    assert speeds(eight, "fp32", threads=2) == speeds(CPU, "fp32")
    assert speeds(CPU, "fp32", threads=64) == speeds(CPU, "fp32")
    assert speeds(replace(CPU, cores=None), "fp32").flops > 0


def test_a_cpu_with_bf16_units_computes_bf16_faster_than_fp32_and_one_without_slower() -> None:
    with_units = replace(CPU, default_dtype="bf16", features=("avx2", "avx512f", "avx512_bf16"))
    assert speeds(with_units, "bf16").flops > speeds(with_units, "fp32").flops
    assert speeds(CPU, "bf16").flops < speeds(CPU, "fp32").flops


def test_a_sum_rests_on_the_weakest_of_its_terms() -> None:
    total = exact(10) + prior(4, 2)
    assert total == Interval(14, 12, 18, "prior")
    assert (exact(1) + exact(2)).basis == "exact"
    assert prior(4, 2).scaled(3) == Interval(12, 6, 24, "prior")


def test_what_a_quantization_leaves_alone_is_in_words_where_it_decides_the_size() -> None:
    experts = memory.unquantized_words(geometry("qwen3.5-122b-a10b"), quant("nf4"), "fp32")
    assert experts == "nf4 leaves 438 GiB of fused experts in fp32"
    assert memory.unquantized_words(geometry("gemma-4-e2b"), quant("fp32"), "fp32") is None
    assert memory.unquantized_words(geometry("gemma-4-31b"), quant("nf4"), "bf16") is None  # a seventh of it


@pytest.mark.parametrize("model", ["gemma-4-e2b", "qwen3.5-35b-a3b", "qwen3.5-27b"])
def test_quantized_and_unquantized_weights_add_up(model: str) -> None:
    shape, scheme = geometry(model), quant("int8")
    left = memory.unquantized_bytes(shape, scheme, "bf16")
    linear = sum(scheme.weight_bytes(w, "bf16") * n for w, n in shape.counted_weights() if w.role in scheme.roles)
    assert sum(left.values()) + linear == memory.weights_bytes(shape, scheme, "bf16")
    assert list(left.values()) == sorted(left.values(), reverse=True)
    assert memory.unquantized_bytes(shape, quant("bf16"), "bf16") == {}
