"""Whether, how far, how fast, and why not faster: one case on one machine or several devices."""

from __future__ import annotations

from dataclasses import replace

import pytest

from profiler.cost import engines
from profiler.cost import prediction as cost_prediction
from profiler.cost.machine import Machine
from profiler.cost.prediction import Predictor, largest
from profiler.devices.base import DeviceInfo
from profiler.devices.target import Target, find, of
from profiler.errors import ProfileError
from profiler.models import families, hub
from profiler.units import GIB


def predictor(model: str, on: str, engine: str = "llama.cpp", quant: str = "q4_k_m", **machine: object) -> Predictor:
    geometry = families.geometry(hub.shipped_config(model))
    return Predictor(geometry, engines.find(engine), quant, Machine(find(on), **machine))  # type: ignore[arg-type]


def test_a_31b_in_four_bits_fits_24_gb_at_8k_and_not_at_128k() -> None:
    case = predictor("gemma-4-31b", "rtx 4090")
    assert case.predict(8192, 1).verdict.word == "fits"
    no = case.predict(131072, 1)
    assert (no.verdict.word, no.decode, no.prefill, no.binds) == ("no", None, None, "memory")
    assert no.verdict.headroom_bytes < 0


def test_bitsandbytes_makes_experts_too_large_for_the_same_card() -> None:
    assert predictor("gemma-4-26b-a4b", "rtx 4090").predict(8192, 1).verdict.word == "fits"
    assert predictor("gemma-4-26b-a4b", "rtx 4090", "transformers", "nf4").predict(8192, 1).verdict.word == "no"


@pytest.mark.parametrize("engine", engines.names())
@pytest.mark.parametrize("model", ["gemma-4-e4b", "qwen3.5-9b"])
def test_the_largest_context_fits_and_one_more_token_does_not(engine: str, model: str) -> None:
    runtime = engines.find(engine)
    case = predictor(model, "rtx 4090", engine, runtime.check(runtime.usual_quants[0]))
    most = case.largest_context(1)
    assert 0 < most <= case.geometry.max_position
    assert case.predict(most, 1).verdict.word == "tight" or most == case.geometry.max_position
    if most < case.geometry.max_position:
        assert case.predict(most + 1, 1).verdict.word == "no"


def test_the_largest_batch_follows_the_curve_not_the_line() -> None:
    case = predictor("gemma-4-26b-a4b", "rtx 4090")
    most = case.largest_batch(8192)
    assert case.predict(8192, most).verdict.word in ("fits", "tight")
    assert case.predict(8192, most + 1).verdict.word == "no"


def test_largest_of_nothing_is_nothing() -> None:
    assert largest(10, lambda n: False) == 0
    assert largest(10, lambda n: True) == 10
    assert [largest(10, lambda n, top=top: n <= top) for top in range(11)] == list(range(11))


@pytest.mark.parametrize(
    "on", ["rtx 4090", "h100 sxm", "t4", "strix halo", "m4 pro", "vram=64,bandwidth=800,bf16=90"]
)
@pytest.mark.parametrize("model", ["gemma-4-e2b", "qwen3.5-4b"])
def test_every_figure_lies_within_its_bounds_and_rests_on_something(on: str, model: str) -> None:
    prediction = predictor(model, on).predict(8192, 1)
    assert prediction.decode is not None
    assert prediction.prefill is not None
    for term in (prediction.decode.seconds, prediction.decode.tps, prediction.prefill.tps, prediction.terms.peak):
        assert 0 < term.low < term.value < term.high
        assert term.basis in ("exact", "calibrated", "fitted", "prior")


def test_decode_slows_with_depth_and_a_batch_gives_more_tokens() -> None:
    case = predictor("qwen3.5-9b", "rtx 4090")
    rates = [case.predict(context, 1).decode.tps.value for context in (512, 8192, 65536)]  # type: ignore[union-attr]
    assert rates == sorted(rates, reverse=True)
    batched = [case.predict(4096, batch).decode.tps.value for batch in (1, 4, 8)]  # type: ignore[union-attr]
    assert batched == sorted(batched)


def test_energy_needs_a_power_figure() -> None:
    assert predictor("qwen3.5-4b", "rtx 4090").predict(4096, 1).token_j is not None
    assert predictor("qwen3.5-4b", "vram=24,bandwidth=900,bf16=90").predict(4096, 1).token_j is None


# Published figures of several devices; none of them was fitted to.
@pytest.mark.parametrize(
    ("model", "quant", "engine", "on", "split", "context", "measured"),
    [
        ("gemma-4-31b", "q8_0", "llama.cpp", "4x v100", "layer", 256, 20.6),
        ("qwen3.5-27b", "q8_0", "llama.cpp", "4x v100", "layer", 256, 22.2),
        ("qwen3.6-35b-a3b", "q8_0", "llama.cpp", "4x v100", "layer", 256, 93.6),
        ("gemma-4-31b", "q8_0", "llama.cpp", "2x3090", "tensor", 32767, 35.72),
        ("qwen3.8-27b", "q4_k_m", "llama.cpp", "2x 5060 ti", "layer", 256, 22.1),
        ("qwen3.8-27b", "q4_k_m", "llama.cpp", "2x 5060 ti", "tensor", 256, 37.1),
        ("gemma-4-12b", "bf16", "vllm", "2x3090", "tensor", 256, 47.5),
        ("gemma-4-26b-a4b", "int4", "vllm", "2x3090", "tensor", 256, 139.92),
        ("qwen3.5-397b-a17b", "nvfp4", "vllm", "4x rtx pro 6000 blackwell", "tensor", 256, 85.8),
    ],
)
def test_several_devices_come_out_as_published(
    model: str, quant: str, engine: str, on: str, split: str, context: int, measured: float
) -> None:
    decode = predictor(model, on, engine, quant, split=split).predict(context, 1).decode
    assert decode is not None
    assert decode.tps.value == pytest.approx(measured, rel=0.25)
    assert decode.tps.low < measured < decode.tps.high


def test_a_layer_split_shares_memory_and_a_tensor_split_time_too() -> None:
    one = predictor("qwen3.5-27b", "h100 sxm").predict(8192, 1)
    layers = predictor("qwen3.5-27b", "2x h100 sxm", split="layer").predict(8192, 1)
    slices = predictor("qwen3.5-27b", "2x h100 sxm", split="tensor").predict(8192, 1)
    assert layers.terms.weights.value == slices.terms.weights.value == one.terms.weights.value / 2
    assert one.decode is not None
    assert layers.decode is not None
    assert slices.decode is not None
    assert layers.decode.seconds.value > one.decode.seconds.value > slices.decode.seconds.value


def test_a_tensor_split_divides_heads_and_no_head() -> None:
    one, four, eight = (
        predictor("qwen3.5-9b", on, "vllm", "bf16", split="tensor")
        for on in ("h100 sxm", "4x h100 sxm", "8x h100 sxm")
    )
    whole = one.predict(8192, 1).terms.cache.value
    assert four.predict(8192, 1).terms.cache.value == whole / 4  # four heads for K and V
    assert eight.predict(8192, 1).terms.cache.value == whole / 4
    assert eight.rates.roofline.read_s["cache"] == pytest.approx(four.rates.roofline.read_s["cache"])
    assert eight.rates.roofline.read_s["bf16"] == pytest.approx(four.rates.roofline.read_s["bf16"] / 2)
    with pytest.raises(ProfileError, match="16 attention heads cannot be shared out"):
        predictor("qwen3.5-9b", "3x h100 sxm", "vllm", "bf16", split="tensor")


def test_no_range_promises_more_than_the_memory_can_read() -> None:
    measured = predictor("qwen3.5-9b", "m4 max").predict(512, 1)
    assert measured.decode is not None
    weights = measured.terms.weights.value - 0.5 * GIB  # without its table
    assert measured.decode.seconds.low >= weights / find("m4 max").bandwidth_bytes_s


def test_host_memory_takes_experts_first_and_costs_speed() -> None:
    without = predictor("qwen3.5-122b-a10b", "rtx 4090").predict(8192, 1)
    with_ram = predictor("qwen3.5-122b-a10b", "rtx 4090", ram_bytes=128 * GIB).predict(8192, 1)
    assert without.verdict.word == "no"
    assert with_ram.verdict.word == "offload"
    assert with_ram.decode is not None
    assert with_ram.binds == "host memory"
    assert with_ram.decode.seconds.basis == "prior"
    small = predictor("qwen3.5-122b-a10b", "rtx 4090", ram_bytes=32 * GIB).predict(8192, 1)
    assert small.verdict.word == "no"


def test_a_unified_chip_has_nowhere_to_offload_to() -> None:
    case = predictor("qwen3.5-397b-a17b", "m4 pro", ram_bytes=512 * GIB)
    assert case.predict(8192, 1).verdict.word == "no"


def test_a_mac_leaves_part_of_its_memory_to_the_system() -> None:
    machine = Machine(find("m4 pro"))
    assert machine.usable_bytes == int(64 * GIB * 0.75)


def test_tight_is_less_than_five_percent_or_half_a_gib() -> None:
    case = predictor("gemma-4-31b", "rtx 4090")
    fits, tight = case.predict(8192, 1), case.predict(case.largest_context(1), 1)
    assert fits.verdict.headroom_bytes > 0.05 * fits.verdict.usable_bytes
    assert 0 <= tight.verdict.headroom_bytes < 0.05 * tight.verdict.usable_bytes


ROTARY_BYTES = 256  # frequencies are no weights


def priors_only() -> Target:
    """A CPU that nobody calibrated."""
    features = ("avx2", "avx512f", "avx512_bf16")
    return of(DeviceInfo("cpu", "cpu", "Xeon", 256 * GIB, 250 * GIB, "bf16", cores=16, features=features))


def test_a_cpu_that_packs_four_bit_weights_anew_holds_fewer_bytes_of_them() -> None:
    geometry = families.geometry(hub.shipped_config("qwen3.5-0.8b"))
    cpu, engine = priors_only(), engines.find("transformers")
    assert cpu.repacks
    sizes = {
        (quant, repacks): Predictor(
            geometry, engine, quant, Machine(replace(cpu, features=("avx512_bf16",) if repacks else ()))
        ).storage.device_bytes
        for quant in ("bf16", "int8", "nf4", "fp4", "nf4-dq")
        for repacks in (True, False)
    }
    assert sizes["nf4", True] + ROTARY_BYTES == 773_944_832  # measured on a CPU with AVX512-BF16, in bf16
    assert sizes["nf4-dq", True] + ROTARY_BYTES == 773_954_936
    assert sizes["fp4", True] == sizes["nf4", True] < sizes["nf4", False]
    assert sizes["nf4-dq", False] < sizes["nf4-dq", True]  # there scales are no longer packed themselves
    assert all(sizes[quant, True] == sizes[quant, False] for quant in ("bf16", "int8"))


@pytest.mark.parametrize(
    ("text", "tps", "context"),
    [("20 tok/s at 64k", 20, 65536), ("20t/s@8192", 20, 8192), ("7.5", 7.5, None), ("3 tokens/s at 1k", 3, 1024)],
)
def test_a_goal_is_a_rate_at_a_context(text: str, tps: float, context: int | None) -> None:
    assert cost_prediction.parse(text) == cost_prediction.Goal(tps, context)


@pytest.mark.parametrize("text", ["", "fast", "0 tok/s", "20 at 0", "20 at x", "-3", "20 tok/s at 64k please"])
def test_what_is_no_goal_says_how_one_looks(text: str) -> None:
    with pytest.raises(ProfileError) as caught:
        cost_prediction.parse(text)
    assert "20 tok/s at 64k" in str(caught.value)


def test_a_goal_is_met_surely_likely_or_not() -> None:
    prediction = predictor("qwen3.5-27b", "rtx 4090").predict(8192, 1)
    assert prediction.decode is not None
    tps = prediction.decode.tps
    wishes = [(tps.low * 0.9, "yes"), (tps.value * 0.99, "likely"), (tps.high * 0.99, "unlikely"), (1e6, "no")]
    for wish, word in wishes:
        assert cost_prediction.Goal(wish, None).met(prediction) == word
    tight = replace(prediction, verdict=replace(prediction.verdict, word="tight"))
    assert cost_prediction.Goal(tps.low * 0.9, None).met(tight) == "likely"


def test_pages_of_a_file_that_the_system_can_take_back_do_not_decide_whether_it_fits() -> None:
    """llama.cpp repacks q4_k on a CPU while the file stays mapped: more pages, but no more memory is needed."""
    host = DeviceInfo("cpu", "cpu", "8-core CPU", 32 * GIB, 32 * GIB, "fp32", cores=8, features=("avx2",), threads=8)
    geometry = families.geometry(hub.shipped_config("qwen3.5-35b-a3b"))
    packed, larger = (
        Predictor(geometry, engines.find("llama.cpp"), quant, Machine(of(host))).predict(8192, 1)
        for quant in ("q4_k_m", "q5_k_m")
    )
    assert packed.terms.peak.value > 32 * GIB > packed.terms.needed.value
    assert packed.verdict.word == larger.verdict.word == "fits"
    assert packed.verdict.headroom_bytes > larger.verdict.headroom_bytes
