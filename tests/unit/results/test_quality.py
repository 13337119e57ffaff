"""Figures of a text set from its blocks: means, perplexity, and intervals that cover the truth."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from typing import Any

import pytest
from fakes.reported import measured, scored

from profiler.results import encoding, quality, row
from profiler.results.measurement import Measurement
from profiler.results.quality import Block

KINDS = {"prose": (0.01, 4), "code": (0.02, 5), "scripts": (0.08, 10), "long": (0.012, 5)}  # mean KL, blocks


def block(kind: str = "prose", tokens: int = 100, kl: float = 2.0, same: int = 90, nll: float = 300.0) -> Block:
    return Block(kind, "d", tokens, kl, same, nll, 290.0)


def test_figures_are_means_over_tokens() -> None:
    found = [block(), block(tokens=300, kl=1.0, same=295, nll=500.0)]
    assert quality.mean_kl(found).value == pytest.approx(3 / 400)
    assert quality.top1(found).value == pytest.approx(385 / 400)
    assert quality.perplexity(found).value == pytest.approx(math.exp(800 / 400))


def test_a_row_has_the_figures_of_each_kind_and_of_all() -> None:
    found = [block(), block(kl=1.0), block("code"), block("code")]
    stored = {"blocks": quality.columns(found), "tails": {"all": {"p99": 0.3}}, "window": 512}
    content = quality.content(stored)
    assert content is not None
    assert content["kl"]["p99"] == 0.3 and content["kl"]["p999"] is None
    assert list(content["kinds"]) == ["prose", "code"]
    assert content["kinds"]["prose"]["kl"]["value"] == pytest.approx(0.015)
    assert content["kinds"]["prose"]["ppl"]["reference"] == pytest.approx(math.exp(2.9))
    assert content["tokens"] == 400 and content["window"] == 512


def test_an_unknown_quality_keeps_its_reason() -> None:
    assert quality.content({"reason": "no tokenizer"}) == {"reason": "no tokenizer"}
    assert quality.content(None) is None


def test_a_single_block_of_a_kind_has_no_interval() -> None:
    assert quality.mean_kl([block(), block(), block("code")]).low is None


def test_no_divergence_at_all_is_known_exactly() -> None:
    found = [block(kl=0.0, same=100), block(kl=0.0, same=100)]
    assert (quality.mean_kl(found), quality.top1(found)) == (quality.Estimate(0, 0, 0), quality.Estimate(1, 1, 1))


def simulated(chance: random.Random) -> list[Block]:
    """Documents of random length, each with its own level of KL, and tokens that vary more than a hundredfold."""
    found = []
    for kind, (mean, count) in KINDS.items():
        for _ in range(count):
            tokens = int(chance.lognormvariate(5, 0.5)) + 20
            level = mean * chance.lognormvariate(-0.08, 0.4)
            total = math.fsum(level * chance.lognormvariate(-0.5, 1) for _ in range(tokens))
            found.append(block(kind, tokens, total))
    return found


def coverage(sets: int) -> float:
    """The share of simulated sets whose interval contains the true mean."""
    chance = random.Random(1)
    truth = sum(mean * count for mean, count in KINDS.values()) / sum(count for _, count in KINDS.values())
    hits = 0
    for _ in range(sets):
        found = quality.mean_kl(simulated(chance))
        assert found.low is not None and found.high is not None
        hits += found.low <= truth <= found.high
    return hits / sets


def test_the_interval_covers_the_truth_about_as_often_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 150 sets, 95% ± 1.8% are covered; the benchmark ``quality_interval`` has 500 and closer limits."""
    monkeypatch.setattr(quality, "REPLICATES", 100)
    assert 0.89 <= coverage(150) <= 0.995


@pytest.mark.parametrize(
    ("other", "what"),
    [
        ({"definition": 2}, "the definition of the divergence"),
        ({"texts": "4567"}, "the texts"),
        ({"window": 4096}, "the window"),
        ({"dtype": "bf16"}, "the reference"),
        ({"reference": "other", "nll": 3.01}, "the reference"),
        ({"dtype": "f32"}, None),  # as llama.cpp calls it
        ({"reference": "other"}, None),  # the same weights in another engine: they predict the texts equally well
        ({}, None),
    ],
)
def test_divergences_of_other_texts_windows_or_references_are_not_compared(
    other: dict[str, Any], what: str | None
) -> None:
    a, b = (quality.scale(scored(measured(), 0.1, **changes).quality) for changes in ({}, other))
    assert a is not None and b is not None
    assert quality.unlike(a, b) == quality.unlike(b, a) == what


def test_tokens_of_another_tokenizer_are_not_compared() -> None:
    stored = scored(measured(), 0.1).quality
    assert stored is not None
    more = stored | {"blocks": stored["blocks"] | {"tokens": [401] * 12}}
    a, b = quality.scale(stored), quality.scale(more)
    assert a is not None and b is not None and quality.unlike(a, b) == "the tokens of the texts"


def test_a_ratio_over_the_same_texts_is_surer_than_its_sides() -> None:
    """Texts differ fourfold in how much is lost, but for both models alike: nothing of that is in the ratio."""
    chance = random.Random(3)
    level = [chance.uniform(1, 4) for _ in range(12)]
    a = [block(kl=each) for each in level]
    b = [block(kl=2 * each * chance.uniform(0.98, 1.02)) for each in level]
    found, side = quality.kl_ratio(a, b), quality.mean_kl(a)
    assert found is not None and found.low is not None and found.high is not None
    assert found.low < 2 < found.high < 1.05 * found.low
    assert side.low is not None and side.high is not None and side.high > 1.4 * side.low
    assert quality.kl_ratio(a, [block(kl=0.0)] * 12) is None


def with_quality() -> Measurement:
    found = [block(), block(kl=1.0), block("code"), block("code")]
    stored = {
        "definition": 1,
        "window": 512,
        "error": 1e-6,
        "text": {"name": "profile-text-1", "hash": "0123", "license": "Apache-2.0"},
        "reference": {"model": "m", "model_id": "id", "dtype": "fp32", "device": "cpu"},
        "blocks": quality.columns(found),
        "tails": {"all": {"p99": 0.3}},
        "decode": {"path": "static", "tokens": 126, "kl": 0.1, "same": 0.9, "prompt_kl": 0.1, "prompt_same": 0.9},
    }
    return replace(measured(), quality=stored)


def test_a_stored_row_keeps_its_quality() -> None:
    (read,) = encoding.decode([(*encoding.encode(with_quality()), {})])
    assert read.quality == with_quality().quality


def test_a_public_row_can_be_read_again() -> None:
    public = json.loads(json.dumps(row.row(None, with_quality())))
    assert public["quality"]["kl"]["value"] > 0
    assert row.from_row(public).quality == with_quality().quality
    del public["quality"]  # a row of an earlier version
    assert row.from_row(public).quality is None


@pytest.mark.parametrize(
    ("column", "values", "said"),
    [
        ("kl", [0.1, 0.1, 0.1], "different lengths"),
        ("kl", [0.1, 0.1, 0.1, -1], "quality.blocks.kl contains -1"),
        ("tokens", [1, 1, 1, 0], "quality.blocks.tokens contains 0"),
        ("kind", ["a", "b", "c", 4], "quality.blocks.kind contains 4"),
        ("same", None, "quality.blocks has no same"),
    ],
)
def test_impossible_blocks_are_refused_when_they_are_read(column: str, values: list[object], said: str) -> None:
    public = json.loads(json.dumps(row.row(None, with_quality())))
    public["quality"]["blocks"][column] = values
    with pytest.raises(ValueError, match=said):
        row.from_row(public)
