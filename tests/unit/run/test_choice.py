"""What is chosen if nobody names a model: on twelve typical machines, and the rules behind it."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from profiler.cost import engines
from profiler.cost.engines.transformers import swept
from profiler.cost.machine import Machine
from profiler.devices import target as targets
from profiler.devices.base import DeviceInfo
from profiler.devices.target import Target
from profiler.models import families, hub
from profiler.run import choice
from profiler.run.choice import Candidate, Choices
from profiler.units import GIB

ROOT = Path(__file__).parents[3]
AVX512 = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16")


def cpu(gib: int, cores: int, features: tuple[str, ...] = ("avx2",)) -> Target:
    dtype = "bf16" if "avx512_bf16" in features else "fp32"
    info = DeviceInfo("cpu", "cpu", f"{cores}-core CPU", gib * GIB, gib * GIB, dtype, cores=cores, features=features)
    return replace(targets.of(replace(info, threads=cores, physical=cores)), ceilings=None)


MACHINES = {
    "laptop CPU, 4 cores, 8 GB": cpu(8, 4),
    "laptop CPU, 8 cores, 16 GB": cpu(16, 8),
    "desktop CPU, 8 cores with AVX-512, 32 GB": cpu(32, 8, AVX512),
    **{
        name: targets.find(name)
        for name in (
            "RTX 4060",
            "RTX 3060 12GB",
            "RTX 4060 Ti 16GB",
            "RTX 4090",
            "2x RTX 3090",
            "M4 Pro 48GB",
            "RTX 6000 Ada",
            "H100 SXM",
            "Strix Halo 128GB",
        )
    },
}
# machine → what sweep and fit choose in transformers, what fit chooses in llama.cpp, and why
CHOSEN = {
    "laptop CPU, 4 cores, 8 GB": (
        "qwen3.5-0.8b fp32",
        "gemma-4-e4b q4_k_m, qwen3.5-4b q6_k",
        "a quarter of the memory is left to the system; E4B in more bits would not fit into the rest",
    ),
    "laptop CPU, 8 cores, 16 GB": (
        "gemma-4-e2b bf16, qwen3.5-2b fp32",
        "gemma-4-e4b q6_k, qwen3.5-9b q6_k",
        "the next larger models are slower than reading",
    ),
    "desktop CPU, 8 cores with AVX-512, 32 GB": (
        "gemma-4-e4b nf4, qwen3.5-9b nf4",
        "gemma-4-26b-a4b q6_k, qwen3.5-35b-a3b q4_k_m",
        "the dense 27B and 31B are slower than reading; the mixtures read 3 to 4 billion weights a token",
    ),
    "RTX 4060": (
        "gemma-4-e2b nf4, qwen3.5-4b nf4",
        "gemma-4-e4b q6_k, qwen3.5-9b q5_k_m",
        "the 12B in 4 bits would leave less than 512 MiB for a desktop",
    ),
    "RTX 3060 12GB": (
        "gemma-4-12b nf4, qwen3.5-9b nf4",
        "gemma-4-12b q5_k_m, qwen3.5-9b q6_k",
        "the 12B in 4 bits ranks above E4B in 16 bits; the mixtures do not fit",
    ),
    "RTX 4060 Ti 16GB": (
        "gemma-4-12b nf4, qwen3.5-9b nf4",
        "gemma-4-26b-a4b iq4_xs, qwen3.5-27b iq4_xs",
        "q4_k_m of both does not fit with 8k; nf4 leaves the experts of the 26B in 16 bits",
    ),
    "RTX 4090": (
        "gemma-4-31b nf4, qwen3.5-27b nf4",
        "gemma-4-31b q4_k_m, qwen3.5-27b q6_k",
        "the largest dense models; q5_k_m of the 31B fits only if nothing else needs memory",
    ),
    "2x RTX 3090": (
        "gemma-4-31b nf4, qwen3.5-27b nf4",
        "gemma-4-31b q6_k, qwen3.5-27b q6_k",
        "8 bits fit too, are a fifth slower and lose no less; the 122B does not fit in 4",
    ),
    "M4 Pro 48GB": (
        None,
        "gemma-4-31b q6_k, qwen3.5-27b q6_k",
        "macOS gives a GPU three quarters of the memory; the mixtures are five times as fast and rank a class lower",
    ),
    "RTX 6000 Ada": (
        "gemma-4-31b nf4, qwen3.5-27b nf4",
        "gemma-4-31b q6_k, qwen3.5-27b q6_k",
        "the same as on two cards of 24 GB",
    ),
    "H100 SXM": (
        "gemma-4-31b bf16, qwen3.5-27b bf16",
        "gemma-4-31b q6_k, qwen3.5-122b-a10b q4_k_m",
        "bf16 fits; nf4 leaves the experts of the 122B in 16 bits, q4_k_m does not",
    ),
    "Strix Halo 128GB": (
        None,
        "gemma-4-31b q6_k, qwen3.5-122b-a10b q6_k",
        "the 122B fits, and reads only 10 billion weights a token",
    ),
}


def chosen(name: str, engine: str) -> list[Candidate]:
    machine = choice.with_room(Machine(MACHINES[name]))
    rankings = (Choices(prefix, engines.find(engine), machine).ranking() for prefix in choice.FAMILIES.values())
    return [best for ranking in rankings if (best := next(ranking, None)) is not None]


def named(found: list[Candidate]) -> str:
    return ", ".join(f"{each.name} {each.quant}" for each in found)


@pytest.mark.parametrize("name", MACHINES)
def test_what_is_chosen_on_a_typical_machine(name: str) -> None:
    in_transformers, in_llama_cpp, _ = CHOSEN[name]
    assert swept(MACHINES[name]) == (in_transformers is not None)
    if in_transformers is not None:
        assert named(chosen(name, "transformers")) == in_transformers
    assert named(chosen(name, "llama.cpp")) == in_llama_cpp


def test_the_table_of_the_docs_is_this_one() -> None:
    page = (ROOT / "docs" / "first-ten-minutes.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("| ")]
    table = {row[0]: row[1:] for row in rows if row[0] in MACHINES}
    assert table == {name: [first or "–", *rest] for name, (first, *rest) in CHOSEN.items()}


@pytest.mark.parametrize("name", MACHINES)
@pytest.mark.parametrize("engine", ["transformers", "llama.cpp", "vllm", "mlx"])
def test_a_choice_fits_reads_and_really_shrinks(name: str, engine: str) -> None:
    machine = choice.with_room(Machine(MACHINES[name]))
    for each in chosen(name, engine):
        assert each.prediction.verdict.word in ("fits", "tight")
        assert each.prediction.terms.needed.value < machine.usable_bytes - 500 * 1024**2
        assert choice.bits(each.quant) >= choice.MIN_BITS
        if choice.bits(each.quant) < 16:
            assert each.predictor.storage.device_bytes < 0.75 * 2 * each.predictor.geometry.parameters


def test_no_larger_choice_was_passed_over() -> None:
    """Everything larger, in every quantization of at least 4 bits, does not fit or is slower than people read."""
    engine = engines.find("llama.cpp")
    for name in ("laptop CPU, 8 cores, 16 GB", "RTX 4060 Ti 16GB", "Strix Halo 128GB"):
        machine = choice.with_room(Machine(MACHINES[name]))
        for best in chosen(name, "llama.cpp"):
            family = next(prefix for prefix in choice.FAMILIES.values() if best.name.startswith(prefix))
            larger = [found for found in choice.by_size(family) if choice.dense_size(found[1]) > best.size]
            for _, geometry in larger:
                for quant in ("q8_0", "q6_k", "q5_k_m", "q4_k_m", "iq4_xs"):
                    found = choice.predictor(geometry, engine, quant, machine).predict(choice.CONTEXT, 1)
                    room = found.verdict.headroom_bytes >= 512 * 1024**2
                    assert not room or found.decode is None or found.decode.tps.value < choice.READING_TPS


def test_a_dense_size_agrees_with_the_published_scores() -> None:
    """A model of a higher class scores no more than two points below one of a lower class."""
    file = ROOT / "scenarios" / "quality.toml"
    scores = {entry["model"]: entry["value"] for entry in tomllib.loads(file.read_text(encoding="utf-8"))["score"]}
    assert len(scores) >= 7
    classes = {name: choice.quality_class(families.geometry(hub.shipped_config(name)), "bf16") for name in scores}
    for better, high in classes.items():
        for worse, low in classes.items():
            assert high <= low or scores[better] > scores[worse] - 2, (better, worse)


@pytest.mark.parametrize(
    ("quant", "bits"),
    [("q4_k_m", 4), ("iq2_xxs", 2), ("nf4", 4), ("fp8", 8), ("bf16", 16), ("f32", 32), ("4bit", 4), ("awq", 4)],
)
def test_the_bits_of_a_quantization_are_in_its_name(quant: str, bits: int) -> None:
    assert choice.bits(quant) == bits


def test_two_bits_cost_a_class_and_six_cost_nothing() -> None:
    geometry = families.geometry(hub.shipped_config("gemma-4-31b"))
    assert choice.quality_class(geometry, "q2_k") == choice.quality_class(geometry, "q3_k_m") - 1
    ladder = [choice.loss(quant) for quant in ("q5_k_m", "q4_k_m", "iq4_xs", "q3_k_m", "iq3_xxs", "iq2_xxs")]
    assert choice.loss("q6_k") == choice.loss("q8_0") == choice.loss("f32") == 0 < ladder[0]
    assert all(less < more for less, more in pairwise(ladder))


@pytest.mark.parametrize("engine", engines.names())
def test_every_engine_has_quantizations_to_choose_from(engine: str) -> None:
    found = choice.usual_quants(engines.find(engine), targets.find("rtx 4090"))
    assert found
    assert not {"f32", "fp32", "q5_1", "mxfp4"} & {*found}
    losses = [choice.loss(quant) for quant in found]
    assert losses == sorted(losses)


def test_a_card_without_bf16_gets_fp16() -> None:
    found = choice.usual_quants(engines.find("transformers"), targets.find("t4"))
    assert "fp16" in found and "bf16" not in found


def test_the_best_three_differ_and_the_fast_one_is_fast() -> None:
    for name, target in MACHINES.items():
        three = choice.best_three(Machine(target))
        assert len({each.name for _, each in three}) == len(three) == 3, name
        assert [label for label, _ in three] in (["best", "other", "fast"], ["best", "other", "next"])
        first, second, third = (each for _, each in three)
        assert all(each.reads for _, each in three)
        assert first.rank < second.rank
        if three[-1][0] == "fast":
            assert third.tps >= 1.5 * max(first.tps, second.tps)
            assert third.quality >= first.quality - 2


def test_a_24_gb_card_gets_the_two_dense_models_and_a_fast_mixture() -> None:
    three = choice.best_three(Machine(MACHINES["RTX 4090"]))
    assert [each.name for _, each in three] == ["qwen3.5-27b", "gemma-4-31b", "gemma-4-26b-a4b"]
    assert three[-1][0] == "fast"
