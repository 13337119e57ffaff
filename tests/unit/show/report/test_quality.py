"""Scores count only with a benchmark and a source, and the file that ships has both."""

from __future__ import annotations

import pytest

from profiler.cost import engines
from profiler.errors import ProfileError
from profiler.models import hub
from profiler.quality import published
from profiler.show.report import quality

KL = '[[kl]]\nvalue = 0.1\nengine = "e"\n' + "".join(
    f'{name} = "x"\n' for name in ("model", "quant", "file", "definition", "scale", "source")
)
GOOD = '[[score]]\nmodel = "m"\nbenchmark = "b"\nvalue = 1.5\nsource = "s"\n'


def test_the_shipped_scores_are_of_catalog_models_and_name_their_source():
    found = quality.shipped()
    assert found and all(score.source and score.benchmark for score in found)
    assert {score.model for score in found} <= set(hub.names())


def test_the_shipped_divergences_are_of_catalog_models_and_engines_and_name_their_source():
    found = published.shipped()
    assert len(found) >= 9 and {each.model for each in found} <= set(hub.names())
    assert {each.engine for each in found} <= set(engines.names())
    for scale in {each.scale for each in found}:
        assert len({each.definition for each in found if each.scale == scale}) == 1, scale
    assert {each.definition for each in found if "localbench" in each.source} == {"top-40"}


def test_no_unsupported_score_ships():
    """facts: nobody published HumanEval for these; Llama 4's LiveCodeBench is of another period."""
    found = quality.shipped()
    assert not [score for score in found if "HumanEval" in score.benchmark or score.value in (88.2, 91.5, 89.8)]
    assert not [score for score in found if score.model.startswith("llama-4")]


def test_a_file_that_an_editor_saved_with_a_byte_order_mark_is_read(tmp_path):
    path = tmp_path / "scores.toml"
    path.write_text(GOOD, encoding="utf-8-sig")
    assert quality.read(path) == quality.parse(GOOD, "f")


def test_an_entry_may_be_there_twice(tmp_path):
    assert len(quality.parse(GOOD + GOOD, "f")) == 2


def test_a_score_holds_for_unquantized_weights_unless_it_says_otherwise():
    (score,) = quality.parse(GOOD, "f")
    assert score.quants == ("fp32", "bf16", "fp16")
    (score,) = quality.parse(GOOD + 'quants = ["nf4"]\n', "f")
    assert score.quants == ("nf4",)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("]", "is not TOML"),
        ("[other]\n", "holds other, but only ..score.. and ..kl.. are allowed"),
        (GOOD.replace('source = "s"\n', ""), "entry 1 has no source"),
        (GOOD.replace('"s"', '""'), "source is empty"),
        (GOOD.replace("1.5", "nan"), "value is not a number"),
        (GOOD.replace("1.5", "true"), "value is not a number"),
        (GOOD + "stars = 5\n", "unknown stars"),
        (GOOD + "quants = []\n", "quants is not a list"),
        (GOOD.replace('"m"', "5"), "model is not text"),
        ("score = 5\n", "score is not a list"),
        ("kl = 5\n", "kl is not a list"),
        ("[[kl]]\nvalue = 1\n", "f, ..kl.. entry 1 has no model"),
        (KL.replace("0.1", "-1"), "value is not a number of nats"),
        (KL.replace('"e"', "5"), "engine is not text"),
        (KL + "stars = 5\n", "unknown stars"),
        (GOOD + GOOD.replace("1.5", "2.5"), "entries 1 and 2 give m in fp32 two scores of b: 1.5 and 2.5"),
    ],
)
def test_a_file_that_is_not_such_a_list_is_said(text, said):
    with pytest.raises(ProfileError, match=said):
        quality.parse(text, "f")
