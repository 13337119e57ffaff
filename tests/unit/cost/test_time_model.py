"""One model of time for any number of tokens: over models × devices × engines × quantizations, by a sample.

More work never takes less time, a faster device never more, one more sequence never jumps, and no interval promises
more than the device's data sheet.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from itertools import pairwise

import pytest

from profiler.case import Source
from profiler.cost import engines, machine
from profiler.cost.engines.base import EngineRequest, Named, Placement, placement
from profiler.cost.machine import Machine
from profiler.cost.prediction import Predictor
from profiler.devices import target as device_catalog
from profiler.devices.target import Target, find, of_catalog
from profiler.models import families, hub
from profiler.models.geometry import Geometry
from profiler.units import GIB

SAMPLE = 40
BATCHES = (1, 2, 3, 4, 5, 7, 8, 9, 12, 16, 17, 24, 32, 33, 48, 64, 128)
CONTEXTS = (1, 16, 100, 511, 512, 513, 2048, 2049, 8192, 8193, 32768, 131072)
UNPACKED = ("nf4", "nf4-dq", "fp4", "awq", "gptq")  # several tokens take another path than one, which unpacks weights
MAX_STEP = 1.35  # time of a batch ÷ that of one sequence fewer, for batches above one
SAME = 1 + 1e-9


@cache
def geometry(name: str) -> Geometry:
    return families.geometry(hub.shipped_config(name))


def predictor(model: str, engine: str, quant: str, target: Target) -> Predictor:
    return Predictor(geometry(model), engines.find(engine), quant, Machine(target))


def sample(seed: int) -> Iterator[tuple[str, str, str, Target]]:
    chosen = random.Random(seed)
    cards = [of_catalog(device) for device in device_catalog.data_sheets() if device.memory_bytes]
    models = [name for name in hub.names() if not name.startswith("llama-4")]
    for _ in range(SAMPLE):
        engine = engines.find(chosen.choice(engines.names()))
        yield chosen.choice(models), engine.name, chosen.choice(list(engine.quants)), chosen.choice(cards)


@pytest.mark.parametrize("seed", range(3))
def test_more_sequences_never_step_faster_and_one_more_never_jumps(seed: int) -> None:
    for model, engine, quant, card in sample(seed):
        case = predictor(model, engine, quant, card)
        steps = {batch: case.phases(512, 2048, batch)[1].seconds.value for batch in BATCHES}
        for fewer, more in pairwise(BATCHES):
            what = f"{model} {quant} on {card.name}, {engine}: {fewer} and {more} sequences"
            assert steps[fewer] <= steps[more] * SAME, what
            if more == fewer + 1 and (fewer > 1 or quant not in UNPACKED):
                assert steps[more] <= steps[fewer] * max(MAX_STEP, more / fewer * SAME), what


@pytest.mark.parametrize("seed", range(3, 6))
def test_more_tokens_never_take_less_time(seed: int) -> None:
    for model, engine, quant, card in sample(seed):
        case = predictor(model, engine, quant, card)
        both = [case.phases(context, context, 2) for context in CONTEXTS]
        for phase in (0, 1):
            times = [each[phase].seconds.value for each in both]
            what = f"{model} {quant} on {card.name}, {engine}: {times}"
            assert all(short <= long * SAME for short, long in pairwise(times)), what


@pytest.mark.parametrize("seed", range(6, 9))
def test_more_bandwidth_or_flops_never_cost_time(seed: int) -> None:
    for model, engine, quant, card in sample(seed):
        case = predictor(model, engine, quant, card)
        faster = (
            replace(card, bandwidth_bytes_s=1.5 * card.bandwidth_bytes_s),
            replace(card, flops={dtype: 1.5 * rate for dtype, rate in card.flops.items()}),
        )
        for other in (predictor(model, engine, quant, each) for each in faster):
            for context, batch in ((512, 1), (4096, 8), (64, 64)):
                pairs = zip(other.phases(context, context, batch), case.phases(context, context, batch), strict=True)
                for quick, slow in pairs:
                    assert quick.seconds.value <= slow.seconds.value * SAME, (
                        f"{model} {quant} on {card.name}, {engine}"
                    )


@pytest.mark.parametrize("seed", range(9, 12))
def test_no_interval_promises_more_than_the_data_sheet(seed: int) -> None:
    """Or than what its products were measured to reach, as a card may run at a higher clock."""
    for model, engine, quant, card in sample(seed):
        case = predictor(model, engine, quant, card)
        for context, batch in ((512, 1), (4096, 8), (64, 64)):
            for done, found in zip(
                case.works(context, context, batch), case.phases(context, context, batch), strict=True
            ):
                what = f"{model} {quant} on {card.name}, {engine}, {context} tokens, batch {batch}"
                read = done.needed_bytes / card.bandwidth_bytes_s
                computed = done.needed_flops / (max(card.flops.values()) * max(1.0, card.reached))
                took = found.seconds
                assert took.low <= took.value <= took.high, what
                assert took.low >= max(read, computed) * (1 - 1e-9), what


@pytest.mark.parametrize(("engine", "faster"), [("transformers", False), ("vllm", False), ("llama.cpp", True)])
def test_fp16_on_a_geforce_is_faster_only_with_sums_in_fp16(engine: str, faster: bool) -> None:
    """PyTorch's products of fp16 are summed in fp32, which a GeForce does at half the rate of its data sheet."""
    names = ("f16", "bf16") if engine == "llama.cpp" else ("fp16", "bf16")
    for on in (find("rtx 4090"), find("3090, 4090")):
        seconds = [
            predictor("llama-3.1-8b", engine, name, on).phases(4096, 4096, 1)[0].seconds.value for name in names
        ]
        assert (seconds[0] < 0.8 * seconds[1]) == faster
        assert faster or seconds[0] == pytest.approx(seconds[1], rel=0.02)


def test_a_batch_reads_the_weights_once() -> None:
    case = predictor("qwen3.5-27b", "llama.cpp", "q4_k_m", find("rtx 4090"))
    one, eight = (case.phases(512, 512, batch)[1].seconds.value for batch in (1, 8))
    assert eight < 2.5 * one  # published: 8 sequences of a dense model step in 1.2 to 2.4 times the time of one


def test_experts_that_no_token_of_a_batch_chose_are_not_read() -> None:
    case = predictor("qwen3.5-35b-a3b", "llama.cpp", "q4_k_m", find("rtx 4090"))
    one, four = (sum(i.nbytes for i in case.works(512, 512, b)[1].items if i.part == "experts") for b in (1, 4))
    assert 1.5 * one < four < 4 * one


def test_layers_on_two_cards_take_the_time_of_each_card_for_its_share() -> None:
    slow, quick = (predictor("qwen3.5-9b", "llama.cpp", "q4_k_m", find(name)) for name in ("4060 ti 16gb", "3090"))
    both = predictor("qwen3.5-9b", "llama.cpp", "q4_k_m", find("3090, 4060 ti 16gb"))
    alone = [case.phases(512, 512, 1)[1].seconds.value for case in (quick, slow, both)]
    assert alone[0] < alone[2] < alone[1]
    shares = [machine.work_share(member, both.machine) for member in both.machine.target.members]
    assert shares == [24 / 40, 16 / 40]


def test_cards_with_a_link_of_their_own_wait_less_for_each_other() -> None:
    card = of_catalog(next(card for card in device_catalog.data_sheets() if card.name == "A100 80GB SXM"))
    seconds = [
        Predictor(geometry("qwen3-8b"), engines.find("vllm"), "bf16", Machine(replace(each, count=2), "tensor"))
        .phases(512, 2048, 1)[1]
        .seconds.value
        for each in (card, replace(card, peer_bytes_s=None))
    ]
    assert seconds[0] < seconds[1]


def test_wide_heads_without_a_kernel_for_steps_are_read_more_slowly() -> None:
    def more_s(engine: str, quant: str, device: str) -> float:
        """Seconds that a step takes longer at a greater depth."""
        (card,) = (of_catalog(each) for each in device_catalog.data_sheets() if each.name == device)
        case = predictor("gemma-4-e4b", engine, quant, card)
        return case.phases(512, 65536, 1)[1].seconds.value - case.phases(512, 8192, 1)[1].seconds.value

    assert more_s("llama.cpp", "q8_0", "RTX 4090") > 1.3 * more_s("vllm", "fp8", "RTX 4090")


def test_slices_on_two_cards_wait_for_the_slower() -> None:
    def step(on: str) -> float:
        case = Predictor(geometry("qwen3.5-9b"), engines.find("vllm"), "bf16", Machine(find(on), "tensor"))
        return case.phases(512, 512, 1)[1].seconds.value

    assert step("3090, 4060 ti 16gb") == pytest.approx(step("2x4060 ti 16gb"), rel=0.05)


def test_cards_that_differ_are_full_when_the_smallest_is() -> None:
    geometry_ = geometry("qwen3.5-27b")
    storage = engines.find("llama.cpp").storage(geometry_, "q4_k_m", "bf16")
    case = Predictor(geometry_, engines.find("llama.cpp"), "q4_k_m", Machine(find("3090, 4060 ti 16gb")))
    held = case.terms(case.request(512, 1)).weights.value
    assert held == pytest.approx(storage.device_bytes * 16 / 40)
    assert case.machine.usable_bytes == Machine(find("4060 ti 16gb")).usable_bytes
    slices = Predictor(geometry_, engines.find("llama.cpp"), "q4_k_m", Machine(find("3090, 4060 ti 16gb"), "tensor"))
    assert slices.terms(slices.request(512, 1)).weights.value == pytest.approx(storage.device_bytes / 2)


@pytest.mark.parametrize("on", ["2x3090", "4x3090", "3090, 4060 ti 16gb"])
def test_each_card_is_as_full_where_the_experts_of_the_first_layers_are_in_host_memory(on: str) -> None:
    """llama.cpp puts layers on the cards in order, and ``-ncmoe`` counts from the first: equal shares of layers would
    give the last card all the experts."""
    shape, runtime = geometry("qwen3-235b-a22b"), engines.find("llama.cpp")
    case = Predictor(shape, runtime, "q4_k_m", Machine(find(on), ram_bytes=256 * GIB))
    prediction, target = case.predict(8192, 1), case.machine.target
    cache = prediction.terms.cache.value * case.machine.whole
    placed = placement(shape, case.storage, prediction.host_bytes, cache_bytes=cache)
    found = runtime.serve(Named("x", Source("hub", "x", None, {})), prediction.request, case.machine, placed)
    assert found is not None
    counts = [int(word) for word in str(found.command).rpartition("-ts ")[2].split(",")]
    assert sum(counts) == len(shape.layers) + 1
    experts = sum(line.nbytes for line in case.storage.read if line.experts) / len(shape.layers)
    light = sum(line.nbytes for line in case.storage.read if not line.experts and line.part != "head") + cache
    begin = 0
    for count, card in zip(counts, target.members or [target] * target.count, strict=True):
        heavy = max(0, begin + count - max(begin, placed.experts_on_host))
        held = count * light / len(shape.layers) + heavy * experts
        begin += count
        assert held < card.memory_bytes + experts  # the steps are whole layers


def test_cards_that_differ_offload_what_the_smallest_lacks() -> None:
    """40 GB on two cards hold less than 48 GB on two."""
    bytes_on_host = []
    for on in ("2x3090", "3090, 4060 ti 16gb"):
        case = Predictor(
            geometry("llama-3.1-70b"), engines.find("llama.cpp"), "q6_k", Machine(find(on), ram_bytes=256 * GIB)
        )
        prediction = case.predict(8192, 1)
        on_card = prediction.terms.weights.value - prediction.offloaded_bytes
        assert on_card + prediction.terms.cache.value < case.machine.usable_bytes
        bytes_on_host.append(prediction.host_bytes)
    assert bytes_on_host[0] < bytes_on_host[1]


def test_the_first_layers_are_counted_with_those_that_have_no_experts() -> None:
    """Every second layer of Maverick has experts, and ``--n-cpu-moe`` counts layers."""
    shape = geometry("llama-4-maverick-17b-128e")
    storage = engines.find("llama.cpp").storage(shape, "q4_k_m", "bf16")
    experts = sum(line.nbytes for line in storage.read if line.experts)
    assert placement(shape, storage, experts / 2).experts_on_host == len(shape.layers) // 2
    assert placement(shape, storage, experts).experts_on_host == len(shape.layers)


def test_a_server_splits_layers_as_the_prediction_assumed() -> None:
    runtime, named = engines.find("llama.cpp"), Named("qwen3.5-9b", Source("hub", "x", None, {}))
    for on, split, shares in (("3090, 4060 ti 16gb", "layer", "24,16"), ("3090, 4060 ti 16gb", "tensor", "1,1")):
        host = Machine(find(on), split)  # type: ignore[arg-type]
        found = runtime.serve(named, EngineRequest("q4_k_m", 8192, 1), host, Placement(32))
        assert found is not None
        assert f"-ts {shares}" in str(found.command)
