"""Seconds from work: what binds, and that no share of a device is more than all of it."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from fakes.ceilings import MEASURED

from profiler.cost import engines, work
from profiler.cost import rates as cost_rates
from profiler.cost.engines.base import EngineRequest
from profiler.cost.rates import DataSheetRates
from profiler.cost.roofline import HOSTS, Ahead, InTurn, Roofline
from profiler.cost.work import Item, PhaseWork
from profiler.devices import target as device_catalog
from profiler.devices.base import DeviceInfo
from profiler.devices.cpu import describe
from profiler.devices.target import find, of_catalog
from profiler.models import families, hub

RATES = DataSheetRates(
    roofline=Roofline(
        read_s=dict.fromkeys(cost_rates.schemes(), 1e-9),
        flop_s=dict.fromkeys(cost_rates.schemes(), 1e-12),
        vector_s={"q4_k": 1e-13},
        idle_rows=32.0,
        expert_flops=4.0,
    ),
    convolution=None,
    unpack_s={"nf4": 5e-9},
    layer_s=1e-4,
    expert_layers=0.5,
    launches=InTurn(0.0),
    decode=(0.8, 1.25),
    prefill=(0.5, 2.0),
    basis="fitted",
)
CARDS = [of_catalog(device) for device in device_catalog.data_sheets() if device.memory_bytes]


def one(item: Item, tokens: float = 1, layers: int = 0, experts: int = 0) -> PhaseWork:
    return PhaseWork((item,), 1, tokens, layers, experts, 0.0)


def test_the_longer_of_reading_and_computing_counts() -> None:
    assert RATES.split(one(Item("mlp", "weights", "bf16", 1e9, 1e9))).total == pytest.approx(1.0)
    assert RATES.split(one(Item("mlp", "weights", "bf16", 1e6, 1e12, rows=1e9))).total == pytest.approx(1.0)


def test_reading_and_computing_that_overlap_little_add_up() -> None:
    item = Item("mlp", "weights", "bf16", 1e9, 1e12, rows=1e9)
    assert replace(RATES, overlap=1.0).split(one(item)).total == pytest.approx(2.0)
    assert replace(RATES, overlap=2.0).split(one(item)).total == pytest.approx(2**0.5)
    assert replace(RATES, overlap=math.inf).split(one(item)).total == pytest.approx(1.0)


def test_few_tokens_take_the_faster_of_vector_and_matrix_units() -> None:
    few, many = (Item("mlp", "weights", scheme, 0, 1e12, rows=8) for scheme in ("q4_k", "q8_0"))
    assert RATES.split(one(few)).total == pytest.approx(0.1)
    assert RATES.split(one(many)).total == pytest.approx(1 + 32 / (8 + 32))


def test_few_rows_take_up_to_twice_the_time_each_and_more_in_experts() -> None:
    def seconds(part: str, rows: float) -> float:
        return RATES.split(one(Item(part, "weights", "bf16", 0, 1e12, rows=rows))).total

    assert seconds("mlp", 1e9) == pytest.approx(1)
    assert seconds("mlp", 32) == pytest.approx(1.5)
    assert seconds("experts", 32) == pytest.approx(1 + 4 * 0.5)
    assert seconds("experts", 1e9) == pytest.approx(1, rel=1e-6)


def test_a_cache_of_single_tokens_only_has_to_be_read() -> None:
    assert RATES.split(one(Item("full", "cache", "cache", 1e9, 1e15))).total == pytest.approx(1.0)
    assert RATES.split(one(Item("full", "cache", "cache", 1e9, 1e13, rows=512))).total == pytest.approx(10.0)


def test_unpacking_and_launches_come_on_top_and_experts_launch_more() -> None:
    item = Item("mlp", "weights", "nf4", 1e9, 0)
    assert RATES.split(one(item)).total == pytest.approx(1 + 5)
    assert replace(RATES, unpack_one_s={"nf4": 1e-9}).split(one(item)).total == pytest.approx(1 + 1)
    assert RATES.split(one(item, layers=10, experts=10)).total == pytest.approx(6 + 15e-4)
    unfused = replace(RATES, many_layers=2.0)
    launching = [unfused.split(one(item, tokens, layers=10)).launching for tokens in (1, 2)]
    assert launching == pytest.approx([10e-4, 20e-4])


def test_few_tokens_are_multiplied_packed_and_many_after_unpacking() -> None:
    roofline = replace(RATES.roofline, vector_s={"int4": 1e-11})
    packing = replace(RATES, roofline=roofline, unpack_s={"int4": 5e-9}, few_packed=frozenset({"int4"}))

    def seconds(rows: int) -> float:
        return packing.split(one(Item("mlp", "weights", "int4", 1e8, rows * 1e10, rows=rows))).total

    assert [seconds(rows) for rows in (2, 4)] == pytest.approx([0.2, 0.4])  # on vector units
    assert seconds(64) == pytest.approx(0.5 + 0.64 * (1 + 32 / 96))


def test_a_state_without_chunks_takes_at_least_the_latency_of_its_tokens() -> None:
    roofline = replace(RATES.roofline, state_token_s=1e-6)
    latent = replace(RATES, roofline=roofline)
    assert latent.split(
        one(Item("gated delta", "state", "state", 0, 1e3, rows=512, count=24))
    ).total == pytest.approx(24 * 512e-6)
    assert latent.split(one(Item("gated delta", "state", "state", 0, 1e12, rows=512, count=24))).total == 1.0
    assert latent.split(one(Item("gated delta", "state", "state", 1e9, 1e3))).total == 1.0  # a step reads it


def test_states_of_sequences_in_one_pass_run_side_by_side() -> None:
    geometry = families.geometry(hub.shipped_config("qwen3.5-9b"))
    engine = engines.find("llama.cpp")
    storage = engine.storage(geometry, "q4_k_m", "bf16")

    def tokens_in_turn(context: int, batch: int, ubatch: int) -> float:
        rules = engine.prefill_rules(geometry, EngineRequest("q4_k_m", context, batch, ubatch=ubatch))
        done = work.prefill(geometry, storage, context, batch, rules)
        return sum(item.count * item.rows for item in done.items if item.kind == "state")

    one_sequence = tokens_in_turn(512, 1, 512)
    assert one_sequence == 24 * 512
    assert tokens_in_turn(512, 4, 2048) == pytest.approx(one_sequence)
    assert tokens_in_turn(512, 4, 512) == pytest.approx(4 * one_sequence)
    assert tokens_in_turn(2048, 1, 512) == pytest.approx(4 * one_sequence)


def test_twice_the_matrix_units_do_not_multiply_packed_weights_twice_as_fast() -> None:
    card = find("a100 80gb")
    more = replace(card, flops={**card.flops, "int8": 2 * card.flops["int8"]})
    slow, fast = (cost_rates.rates(each, "llama.cpp", "bf16").roofline.flop_s for each in (card, more))
    assert slow["q4_k"] / 2 < fast["q4_k"] < slow["q4_k"]


def test_a_card_without_products_of_bytes_multiplies_packed_weights_like_plain_ones() -> None:
    found = cost_rates.rates(find("p100"), "llama.cpp", "fp16").roofline.flop_s
    assert found["q4_k"] == pytest.approx(found["f16"])


def test_a_card_without_products_of_bytes_unpacks_for_many_tokens_only() -> None:
    volta, ampere = (cost_rates.rates(find(on), "llama.cpp", "fp16") for on in ("v100", "a100 80gb"))
    item = Item("mlp", "weights", "q8_0", 34e6, 2 * 32e6)
    many = replace(item, flops=512 * item.flops, rows=512)
    assert volta.cost(item, one(item)).extra == 0
    assert volta.cost(many, one(many, 512)).extra == pytest.approx((34e6 + 2 * 32e6) / find("v100").bandwidth_bytes_s)
    assert ampere.cost(many, one(many, 512)).extra == 0


def test_a_step_that_waits_for_python_has_the_range_of_unknown_hosts() -> None:
    rates = replace(RATES, launches=Ahead(1e-3, 1e-6, {}, layers_timed=False))
    busy, waiting = (replace(one(Item("mlp", "weights", "bf16", 1e9, 0)), calls=calls) for calls in (1, 10_000))
    assert rates.on_any_host(busy, (0.9, 1.1)) == pytest.approx((0.9, 1.1))
    assert rates.on_any_host(waiting, (1.0, 1.0)) == pytest.approx((1 / HOSTS, HOSTS))
    low, high = rates.on_any_host(waiting, (0.9, 1.1))
    assert 0.9 / HOSTS < low < 1 / HOSTS  # both errors seldom are large at once
    assert HOSTS < high < 1.1 * HOSTS
    assert RATES.on_any_host(waiting, (0.9, 1.1)) == (0.9, 1.1)


def test_fp4_runs_in_its_own_type_where_the_generation_has_it() -> None:
    def seconds(on: str) -> float:
        found = cost_rates.rates(find(on), "llama.cpp", "bf16").roofline.flop_s
        return found["mxfp4"] / found["q4_k"]

    assert seconds("rtx 5090") < 1
    assert seconds("rtx 4090") == pytest.approx(1)


def test_a_batch_has_a_range_of_its_own() -> None:
    found = cost_rates.rates(find("rtx 4090"), "vllm", "bf16")
    assert found.step_bounds(1) == found.decode
    assert found.step_bounds(2) == found.batch
    assert replace(found, batch=None).step_bounds(2) == found.decode
    wide = found.wider(2.0)
    assert wide.step_bounds(2) == pytest.approx((found.step_bounds(2)[0] / 2, found.step_bounds(2)[1] * 2))


def test_scheduling_counts_for_every_sequence_of_a_pass() -> None:
    work = replace(one(Item("mlp", "weights", "bf16", 1e9, 0)), sequences=8)
    assert replace(RATES, pass_s=0.1, sequence_s=0.01).split(work).total == pytest.approx(1 + 0.1 + 8 * 0.01)


@pytest.mark.parametrize(
    ("item", "tokens", "layers", "binds"),
    [
        (Item("mlp", "weights", "bf16", 1e9, 1e6), 1, 10, "bandwidth"),
        (Item("mlp", "weights", "bf16", 1e6, 1e13, rows=999), 999, 10, "compute"),
        (Item("mlp", "weights", "bf16", 1e6, 1e6), 1, 100, "launches"),
    ],
)
def test_the_split_names_what_binds_and_adds_up(item: Item, tokens: float, layers: int, binds: str) -> None:
    pieces = RATES.split(one(item, tokens, layers))
    assert pieces.binds == binds
    assert pieces.total == pytest.approx(RATES.split(one(item, tokens, layers)).total)


@pytest.mark.parametrize("engine", engines.names())
def test_no_engine_gets_more_than_the_data_sheet(engine: str) -> None:
    geometry = families.geometry(hub.shipped_config("qwen3.5-9b"))
    runtime = engines.find(engine)
    quant = runtime.check(runtime.usual_quants[0])
    storage = runtime.storage(geometry, quant, "bf16")
    rules = runtime.prefill_rules(geometry, EngineRequest(quant, 4096, 1))
    for card in CARDS:
        rates = cost_rates.rates(card, engine, "bf16")
        step = work.decode(geometry, storage, 4096, 1, rules)
        weights = sum(item.nbytes for item in step.items if item.kind == "weights")
        assert weights / rates.split(step).total < card.bandwidth_bytes_s, card.name
        assert min(rates.decode) > 0
        assert rates.decode[0] < 1 < rates.decode[1]


def test_a_maker_without_rows_is_a_prior() -> None:
    assert cost_rates.rates(find("rtx 4090"), "llama.cpp", "bf16").basis == "fitted"
    assert cost_rates.rates(find("arc b580"), "llama.cpp", "bf16").basis == "prior"
    assert cost_rates.rates(find("rtx 4090"), "transformers", "bf16").basis == "fitted"
    assert cost_rates.rates(find("rtx 4090"), "sglang", "bf16").basis == "prior"


@pytest.mark.parametrize("engine", engines.names())
def test_a_prior_has_a_wider_range_than_what_was_fitted(engine: str) -> None:
    def width(on: str) -> float:
        low, high = cost_rates.rates(find(on), engine, "bf16").decode
        return high / low

    fitted = [on for on in ("rtx 4090", "m4 max") if cost_rates.rates(find(on), engine, "bf16").basis == "fitted"]
    for on in fitted:
        assert width(on) < width("vram=24,bandwidth=1008,bf16=165")


def test_a_faster_clock_launches_faster() -> None:
    slow, fast = find("a100 40gb"), find("rtx 4090")
    assert cost_rates.rates(slow, "llama.cpp", "bf16").layer_s > cost_rates.rates(fast, "llama.cpp", "bf16").layer_s
    unknown = replace(fast, name="RTX 9000", clock_hz=None)
    assert cost_rates.rates(unknown, "llama.cpp", "bf16").layer_s > 0


def test_a_described_card_comes_out_like_the_one_it_describes() -> None:
    geometry = families.geometry(hub.shipped_config("qwen3.5-27b"))
    engine = engines.find("llama.cpp")
    storage = engine.storage(geometry, "q4_k_m", "bf16")
    step = work.decode(geometry, storage, 4096, 1, engine.prefill_rules(geometry, EngineRequest("q4_k_m", 4096, 1)))
    named = cost_rates.rates(find("rtx 4090"), "llama.cpp", "bf16").split(step).total
    described = find("vram=24,bandwidth=1008,bf16=165")
    assert cost_rates.rates(described, "llama.cpp", "bf16").split(step).total == pytest.approx(named, rel=0.35)


def test_vectors_of_512_bits_halve_the_products_of_llama_cpp_and_of_nothing_else() -> None:
    device = DeviceInfo("cpu", "cpu", "Some CPU", 2**38, 2**38, "fp32", cores=8, features=("avx512f",))
    wide = describe(device)
    narrow = replace(wide, features=())
    for engine, factor in (("llama.cpp", 2.0), ("transformers", 1.0)):
        seconds = [cost_rates.rates(cpu, engine, "bf16").roofline.vector_s["q4_k"] for cpu in (wide, narrow)]
        assert seconds[0] / seconds[1] == pytest.approx(factor), engine


def test_a_calibrated_cpu_reaches_a_smaller_share_of_its_higher_figures() -> None:
    plain = describe(DeviceInfo("cpu", "cpu", "Some CPU", 2**38, 2**38, "fp32", cores=8))
    assumed, measured = (
        cost_rates.rates(cpu, "llama.cpp", "fp32") for cpu in (plain, replace(plain, spread=1.0, ceilings=MEASURED))
    )
    assert measured.roofline.read_s["q8_0"] / assumed.roofline.read_s["q8_0"] == pytest.approx(1 / 0.75)
    assert measured.roofline.vector_s["q8_0"] / assumed.roofline.vector_s["q8_0"] == pytest.approx(0.4 / 0.22)
    assert measured.roofline.flop_s["q8_0"] / assumed.roofline.flop_s["q8_0"] == pytest.approx(0.8 / 0.5)
    assert (measured.decode, measured.step_bounds(4), measured.prefill) == ((0.6, 2.5), (0.6, 2.5), (0.5, 2.5))


def test_a_card_without_dp4a_multiplies_packed_weights_slower_than_its_figures_suggest() -> None:
    content = cost_rates.shares()
    pascal, volta = find("p100"), find("v100")
    ratio = cost_rates.multiply_slots(volta, content) / cost_rates.multiply_slots(pascal, content)
    assert ratio > volta.flops["fp32"] / pascal.flops["fp32"] * 2


@pytest.mark.parametrize("name", engines.names())
def test_an_engine_that_moves_activations_has_a_figure_for_them(name: str) -> None:
    engine = engines.find(name)
    rules = engine.prefill_rules(
        families.geometry(hub.shipped_config("qwen3-0.6b")),
        EngineRequest(engine.usual_quants[0], 512, 1),
        find("3090"),
    )
    assert ("activations" in cost_rates.shares()["engine"][name]) == bool(rules.moved_bytes)


def test_no_products_are_faster_than_the_best_that_were_measured() -> None:
    for card in CARDS:
        for name in engines.names():
            if card.vendor == "NVIDIA" and card.flops.get("bf16") and not engines.find(name).multiplies_in_int8:
                fastest = 1 / cost_rates.rates(card, name, "bf16").roofline.flop_s["bf16"]
                assert fastest <= card.reached * card.flops["bf16"] * (1 + 1e-9), f"{name} on {card.name}"


def test_experts_take_longer_in_types_without_a_figure_of_their_own() -> None:
    """vLLM has no tuned kernels for experts on the DGX Spark; the figure for fp8 there includes them."""
    rates = cost_rates.rates(find("dgx spark"), "vllm", "bf16", experts=True)
    for scheme, slower in (("bf16", True), ("nvfp4", True), ("fp8", False)):
        own, dense = (
            rates.split(one(Item(part, "weights", scheme, 0, 1e12, rows=1e9), tokens=512)).computing
            for part in ("experts", "mlp")
        )
        assert (own > 1.2 * dense) == slower
