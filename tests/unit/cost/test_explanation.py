"""One case taken apart: parts add up, no ceiling is beaten, and changes free what they say."""

from __future__ import annotations

from dataclasses import replace

import pytest
from fakes.ceilings import FP32, MEASURED

from profiler.case import Case
from profiler.cost import cases, engines, explanation
from profiler.cost.engines.transformers import IN_FP32
from profiler.cost.explanation import Share
from profiler.cost.machine import Machine
from profiler.cost.prediction import Predictor
from profiler.devices import calibration
from profiler.devices.base import DeviceInfo
from profiler.devices.calibration import Ceilings, LayerKernel
from profiler.devices.target import find, of
from profiler.models import families, hub
from profiler.results import stats as shown
from profiler.results.measurement import Measurement, Sample
from profiler.units import GIB

CPU = DeviceInfo("cpu", "cpu", "AMD EPYC", 24 * GIB, 20 * GIB, "fp32", cores=2, features=("avx2",))

NO_TIME = {"fp32": {"channel_s": 0.0, "sequence_s": 0.0, "token_s": 1e-20}}


def predictor(model: str, on: str, engine: str = "llama.cpp") -> Predictor:
    geometry, runtime = families.geometry(hub.shipped_config(model)), engines.find(engine)
    return Predictor(geometry, runtime, runtime.check(runtime.usual_quants[0]), Machine(find(on)))


@pytest.mark.parametrize("engine", engines.names())
@pytest.mark.parametrize("model", ["gemma-4-e2b", "qwen3.6-35b-a3b", "qwen3.5-9b", "gemma-4-26b-a4b"])
@pytest.mark.parametrize("on", ["h100 sxm", "2x3090", "m4 max"])
def test_parts_add_up_to_the_prediction_and_stay_below_the_ceiling(engine: str, model: str, on: str) -> None:
    case = predictor(model, on, engine)
    found = explanation.explain(case, 8192, 2)
    prediction = case.predict(8192, 2)
    for phase in found.phases:
        assert phase.predicted_s == pytest.approx(sum(share.predicted_s for share in phase.shares))
        assert 0 < phase.fraction <= 1, phase.name
        assert explanation.cause(phase)
    if prediction.prefill and prediction.decode:
        assert found.phases[0].predicted_s == pytest.approx(prediction.prefill.seconds.value)
        assert found.phases[1].predicted_s == pytest.approx(prediction.decode.seconds.value)
    assert found.terms.peak == prediction.terms.peak


@pytest.mark.parametrize("model", ["qwen3-0.6b", "gemma-3-1b", "qwen3.5-2b"])
def test_no_part_is_faster_than_a_ceiling_that_is_a_guess(model: str) -> None:
    """Otherwise more than 100% of the lost time would go to launching kernels."""
    case = Predictor(
        families.geometry(hub.shipped_config(model)), engines.find("transformers"), "bf16", Machine(of(CPU))
    )
    assert case.machine.target.guessed
    for phase in explanation.explain(case, 8192, 1).phases:
        assert all(share.ceiling_s <= share.predicted_s for share in phase.shares)
        percent, found, _ = explanation.cause(phase).partition("% of the lost time")
        assert not found or int(percent) <= 100


@pytest.mark.parametrize(
    ("engine", "quant", "model"), [("llama.cpp", "q8_0", "gemma-4-31b"), ("llama.cpp", "q8_0", "qwen3.5-122b-a10b"),
                                   ("transformers", "bf16", "gemma-4-31b"), ("vllm", "bf16", "qwen3.6-35b-a3b")]
)  # fmt: skip
@pytest.mark.parametrize("on", ["rtx 4090", "2x3090"])
def test_parts_of_an_offloaded_model_add_up_to_its_prediction(engine: str, quant: str, model: str, on: str) -> None:
    geometry, runtime = families.geometry(hub.shipped_config(model)), engines.find(engine)
    case = Predictor(geometry, runtime, quant, Machine(find(on), ram_bytes=256 * GIB))
    prediction = case.predict(8192, 1)
    if on == "rtx 4090":
        assert prediction.verdict.word == "offload"
    assert prediction.prefill is not None and prediction.decode is not None
    phases = explanation.explain(case, 8192, 1).phases
    for phase, predicted in zip(phases, (prediction.prefill, prediction.decode), strict=True):
        assert phase.predicted_s == pytest.approx(predicted.seconds.value, rel=1e-6)
        assert all(0 <= share.ceiling_s <= share.predicted_s * (1 + 1e-9) for share in phase.shares)
        parts = {share.part: share for share in phase.shares}
        assert ("weights in host memory" in parts) == (prediction.verdict.word == "offload")


def share(part: str, best: float, predicted: float, binds: str, packed: bool = False) -> Share:
    return Share(part, 1.0, 1.0, best, predicted, binds, packed)


@pytest.mark.parametrize(
    ("best", "binds", "packed", "said"),
    [
        (0.85, "bandwidth", False, "near the best speed: the largest loss is in experts"),
        (
            0.6,
            "bandwidth",
            False,
            "100% of the lost time is in experts, where kernels read below the memory bandwidth",
        ),
        (0.6, "compute", False, "100% of the lost time is in experts, where matrix products run below peak FLOP/s"),
        (
            0.6,
            "compute",
            True,
            "the largest loss is in dequantizing and multiplying expert weights (100% of the lost time). Another",
        ),
        (0.6, "link", False, "100% of the lost time is in experts"),
    ],
)
def test_a_cause_is_named_below_four_fifths_of_the_best_speed(
    best: float, binds: str, packed: bool, said: str
) -> None:
    parts = (share("experts", best, 1.0, binds, packed), share("attention", 0.1, 0.1, "bandwidth"))
    assert explanation.cause(explanation.PhaseParts("decode", parts, 1)).startswith(said)


def test_a_graph_is_advised_only_for_steps_that_one_would_hold() -> None:
    geometry, found = families.geometry(hub.shipped_config("gemma-3-270m")), {}
    for quant, path in (("bf16", "eager"), ("bf16", "graph"), ("int8", "eager")):
        case = Predictor(geometry, engines.find("transformers"), quant, Machine(find("h100")), path=path)
        found[quant, path] = [phase.graph_helps for phase in explanation.explain(case, 512, 1).phases]
    assert found == {("bf16", "eager"): [False, True], ("bf16", "graph"): [False, False],
                     ("int8", "eager"): [False, False]}  # fmt: skip


def test_launches_are_named_where_they_are_the_gap() -> None:
    decode = explanation.explain(predictor("gemma-4-e2b", "b300"), 512, 1).phases[1]
    assert explanation.cause(decode).endswith("goes to launching kernels; a larger batch hides it")
    assert decode.widest.part == "launches"


def test_the_gap_of_a_cpu_is_in_the_words_of_its_cause() -> None:
    def cause(quant: str, dtype: str) -> str:
        geometry = families.geometry(hub.shipped_config("qwen3.5-0.8b"))
        machine = Machine(of(CPU))
        case = Predictor(geometry, engines.find("transformers"), quant, machine, dtype)
        return explanation.cause(explanation.explain(case, 128, 1).phases[1])

    assert "dequantizing and multiplying feed-forward weights" in cause("nf4", "fp32")
    assert "depthwise convolutions" in cause("bf16", "bf16")
    assert "dequantizing" not in cause("fp32", "fp32")


def test_the_change_that_frees_most_comes_first_and_frees_what_it_says() -> None:
    case = predictor("gemma-4-31b", "rtx 4090")
    found = explanation.explain(case, 32768, 2)
    freed = [change.freed_bytes for change in found.changes]
    assert freed == sorted(freed, reverse=True)
    assert freed[-1] > 0
    half = next(change for change in found.changes if change.words.startswith("half the batch"))
    now, then = case.predict(32768, 2).terms.peak.value, case.predict(32768, 1).terms.peak.value
    assert half.freed_bytes == pytest.approx(now - then)


def test_a_measured_curve_takes_the_place_of_shares() -> None:
    plain = predictor("gemma-3-270m", "cpu", "transformers")
    machine = Machine(replace(find("cpu"), ceilings=MEASURED, bandwidth_bytes_s=12e9, flops=MEASURED.flops))
    own = Predictor(plain.geometry, plain.engine, "fp32", machine, "fp32").predict(128, 1)
    assert own.decode is not None
    assert own.basis == "calibrated"
    assert own.decode.binds == "bandwidth"  # one token of plain weights
    weights = plain.geometry.active_parameters * 4
    assert own.decode.seconds.value > weights * 1e-10  # no faster than the curve
    assert own.decode.seconds.value < weights * 1e-10 * 1.5


def on_cpu(model: str, quant: str, dtype: str, measured: Ceilings = MEASURED, repacks: bool = False) -> Predictor:
    target = replace(
        find("cpu"),
        ceilings=measured,
        bandwidth_bytes_s=12e9,
        flops=measured.flops,
        features=("avx512_bf16",) if repacks else (),
    )
    machine = Machine(target)
    geometry = families.geometry(hub.shipped_config(model))
    return Predictor(geometry, engines.find("transformers"), quant, machine, dtype)


def prefill_s(model: str, measured: Ceilings) -> float:
    return on_cpu(model, "fp32", "fp32", measured).phases(128, 128, 1)[0].seconds.value


def step_s(model: str, quant: str, dtype: str, measured: Ceilings) -> float:
    return on_cpu(model, quant, dtype, measured).phases(128, 128, 1)[1].seconds.value


def test_a_depthwise_convolution_costs_by_channel_where_it_was_measured() -> None:
    slow = {"bf16": {"channel_s": 1e-5, "sequence_s": 0.0, "token_s": 0.0}}
    usual, slower = (
        step_s("qwen3.5-0.8b", "bf16", "bf16", replace(MEASURED, convolutions=found)) for found in ({}, slow)
    )
    assert slower - usual == pytest.approx(18 * 6144 * 1e-5)  # layers × channels
    assert step_s("gemma-3-270m", "bf16", "bf16", replace(MEASURED, convolutions=slow)) == pytest.approx(
        step_s("gemma-3-270m", "bf16", "bf16", MEASURED)
    )


def test_a_prefill_pays_for_every_token_of_a_convolution_but_the_first() -> None:
    slow = {"fp32": {"channel_s": 0.0, "sequence_s": 0.0, "token_s": 1e-8}}
    plain, slower = (prefill_s("qwen3.5-0.8b", replace(MEASURED, convolutions=each)) for each in ({}, slow))
    assert slower - plain == pytest.approx(18 * 6144 * 127 * 1e-8)  # layers × channels × tokens
    assert step_s("qwen3.5-0.8b", "fp32", "fp32", replace(MEASURED, convolutions=slow)) == pytest.approx(
        step_s("qwen3.5-0.8b", "fp32", "fp32", MEASURED)
    )


def test_a_gated_delta_rule_takes_what_was_measured_of_it_and_not_the_rate_of_products() -> None:
    usual, slower = (
        prefill_s("qwen3.5-0.8b", replace(MEASURED, delta_s=each)) for each in (0.067108864, 3 * 0.067108864)
    )
    flops = 18 * 2 * (16 * 64**2 * (6 * 128 + 2 * 128) + 6 * 64 * 16 * 128**2)  # layers × chunks
    assert slower - usual == pytest.approx(2e-10 * flops)
    assert prefill_s("gemma-3-270m", replace(MEASURED, delta_s=3 * 0.067108864)) == prefill_s(
        "gemma-3-270m", MEASURED
    )


def test_a_cpu_keeps_holes_in_its_heap_and_room_to_unpack() -> None:
    cases = {quant: on_cpu("gemma-3-270m", quant, "fp32") for quant in ("fp32", "nf4")}
    terms = {quant: case.terms(case.request(512, 4)) for quant, case in cases.items()}
    large = 4 * 640 * 2048
    assert terms["nf4"].decode.value - terms["fp32"].decode.value == pytest.approx(40 * 2**20 + 1.5 * large)
    hidden = 4 * 2048 * (6 * 640 + 3 * 2048)
    assert terms["fp32"].prefill.value > 2 * hidden


def test_unpacking_large_layers_costs_fresh_memory() -> None:
    layers = {**MEASURED.layers, LayerKernel("nf4"): FP32}
    heap, fresh = (
        step_s("qwen3.5-2b", "nf4", "fp32", replace(MEASURED, layers=layers, fresh_byte_s=cost))
        for cost in (0.0, 1e-10)
    )
    large = 4 * (24 * 3 * 6144 * 2048 + 18 * 6144 * 2048)  # feed-forward of all layers, and queries, keys and values
    assert fresh - heap == pytest.approx(large * 1e-10)
    assert (
        on_cpu("qwen3.5-2b", "nf4", "fp32", repacks=True).storage.read[0].large == 0
    )  # a kernel that unpacks no layer
    assert step_s("qwen3.5-2b", "fp32", "fp32", MEASURED) == step_s(
        "qwen3.5-2b", "fp32", "fp32", replace(MEASURED, fresh_byte_s=1e-10)
    )


@pytest.mark.parametrize(
    ("model", "batch", "nbytes"),
    [
        ("qwen3.5-0.8b", 1, 0.0),  # a convolution's result has 12 MiB, the feed-forward layer's 7
        ("qwen3.5-0.8b", 4, 18 * 3 * 4 * 2048 * 6144),  # convolutions of all delta layers, feed-forward just below
        # feed-forward; layers that share K and V see one token; operators on eight tokens are already timed
        ("gemma-4-e2b", 4, (1 - 8 / 2048) * 15 * 4 * 4 * 2048 * 6144),
    ],
)
def test_results_too_large_for_a_heap_take_fresh_memory_in_a_prefill(model: str, batch: int, nbytes: float) -> None:
    heap, fresh = (
        on_cpu(model, "fp32", "fp32", replace(MEASURED, fresh_byte_s=cost, convolutions=NO_TIME))
        .phases(512, 512, batch)[0]
        .seconds.value
        for cost in (0.0, 1e-10)
    )
    assert fresh - heap == pytest.approx(nbytes * 1e-10, abs=1e-9)


def test_loading_peaks_with_the_file_and_the_copy_and_not_at_all_where_it_is_mapped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(calibration, "load", lambda device: MEASURED)
    geometry = families.geometry(hub.shipped_config("gemma-3-270m"))

    def load_peak(quant: str, dtype: str, weights: str = "real") -> dict[str, float] | None:
        asked = replace(case(), quant=quant, dtype=dtype, weights=weights)
        found: dict[str, float] | None = cases.stored_prediction(asked, geometry, CPU).get("load_peak_bytes")
        return found

    copied, mapped = load_peak("fp32", "fp32"), load_peak("bf16", "bf16")
    assert copied is not None and mapped is not None
    assert copied["value"] - MEASURED.process_bytes == pytest.approx(geometry.parameters * 6, rel=0.05)
    assert mapped["value"] - MEASURED.process_bytes < geometry.parameters * 0.2
    assert load_peak("fp32", "fp32", "synthetic") is None
    packed = load_peak("nf4", "bf16")  # only what is packed is read while loading, and stays in the mapped file
    linear = sum(weight.parameters for weight in geometry.weights() if weight.role == "linear")
    assert packed is not None
    assert packed["value"] - MEASURED.process_bytes == pytest.approx(
        (2 + 0.5 + 4 / 64 + 4 * IN_FP32[0]) * linear + 35 * 2**20, rel=0.01
    )
    converted = load_peak("fp16", "fp16")  # from a checkpoint in bf16, if it is not one in fp16
    assert converted is not None
    assert converted["value"] - mapped["value"] == pytest.approx(geometry.parameters * 4, rel=0.05)
    assert converted["low"] == mapped["low"]


def test_a_packed_checkpoint_of_16_bits_stays_mapped_and_counts_for_the_process_but_not_for_whether_it_fits() -> None:
    geometry = families.geometry(hub.shipped_config("gemma-3-270m"))
    linear = sum(weight.parameters for weight in geometry.weights() if weight.role == "linear")

    def peak(dtype: str, weights: str, quant: str = "nf4") -> dict[str, float]:
        asked = replace(case(), quant=quant, dtype=dtype, weights=weights)
        found: dict[str, float] = cases.stored_prediction(asked, geometry, CPU)["peak_bytes"]
        return found

    assert peak("bf16", "real")["value"] - peak("bf16", "synthetic")["value"] == pytest.approx(2 * linear)
    assert peak("bf16", "real")["low"] == peak("bf16", "synthetic")["low"]  # the system may take them back
    assert peak("fp32", "real") == peak("fp32", "synthetic")  # then every weight was copied
    assert peak("bf16", "real", "bf16") == peak("bf16", "synthetic", "bf16")
    alone = Predictor(geometry, engines.find("transformers"), "nf4", Machine(of(CPU)), "bf16").predict(128, 1)
    assert alone.terms.peak.value == pytest.approx(peak("bf16", "synthetic")["value"])


def test_eight_bit_products_of_a_cpu_with_avx512_leave_holes_by_the_token() -> None:
    geometry = families.geometry(hub.shipped_config("gemma-3-270m"))
    engine = engines.find("transformers")

    def buffers(context: int, features: tuple[str, ...]) -> float:
        machine = Machine(of(replace(CPU, features=features)))
        return Predictor(geometry, engine, "int8", machine, "bf16").predict(context, 1).terms.decode.value

    few, many = (buffers(context, ("avx2", "avx512f")) for context in (128, 512))
    same = [buffers(context, ("avx2",)) for context in (128, 512)]
    assert many - few == pytest.approx(384 * 8e5, rel=0.02)
    assert same[1] - same[0] < 0.05 * (many - few)


def case(backend: str = "hf") -> Case:
    return Case("gemma-3-270m", "id", "synthetic", "fp32", "fp32", "cpu", backend, "eager", 128, batch=1, steps=8)


def test_a_prediction_is_kept_beside_a_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "load", lambda device: MEASURED)
    geometry = families.geometry(hub.shipped_config("gemma-3-270m"))
    expected = cases.stored_prediction(case(), geometry, CPU)
    samples = (Sample("prefill", 1.0, 128), Sample("decode", 2.0, 8))
    row = Measurement(case(), {}, "ok", samples=samples, expected=expected)
    predicted, ceiling = shown.predicted(row), shown.ceiling(row)
    assert predicted is not None
    assert ceiling is not None
    assert predicted["decode_tps"]["low"] < predicted["decode_tps"]["value"] < predicted["decode_tps"]["high"]
    assert predicted["peak_bytes"]["basis"] == "prior"
    assert ceiling["decode_fraction"] == pytest.approx(expected["ceiling_s"]["step"] / (2.0 / 8))
    assert ceiling["prefill_fraction"] == pytest.approx(expected["ceiling_s"]["prefill"] / 1.0)
    assert ceiling["bound"] in ("bandwidth", "compute", "launches", "experts")


def test_a_ceiling_counts_no_copy_and_a_step_without_copies_is_predicted_faster(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(calibration, "load", lambda device: MEASURED)
    geometry = families.geometry(hub.shipped_config("gemma-3-270m"))
    eager, graph = (
        cases.stored_prediction(replace(case(), path=path, context=32768), geometry, CPU)
        for path in ("eager", "graph")
    )
    assert set(eager) == set(graph)
    assert graph["decode_tps"]["value"] > eager["decode_tps"]["value"]
    assert graph["peak_bytes"]["value"] <= eager["peak_bytes"]["value"]
    cache = geometry.cache_bytes(32768, 1, 4).total
    weights = 4 * geometry.parameters
    assert graph["ceiling_s"] == eager["ceiling_s"]
    assert graph["ceiling_s"]["step"] == pytest.approx((weights + cache) / MEASURED.read_bytes_s, rel=0.01)


def test_without_calibration_there_is_no_ceiling_and_without_rules_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "load", lambda device: None)
    geometry = families.geometry(hub.shipped_config("gemma-3-270m"))
    row = Measurement(case(), {}, "ok", expected=cases.stored_prediction(case(), geometry, CPU))
    assert shown.ceiling(row) is None
    assert shown.predicted(row) is not None
    assert cases.stored_prediction(case("fake"), geometry, CPU) == {}
    assert shown.predicted(Measurement(case("fake"), {}, "ok")) is None
