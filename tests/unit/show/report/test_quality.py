"""Scores count only with a benchmark and a source, and the file that ships has both."""

from __future__ import annotations

import pytest

from profiler.errors import ProfileError
from profiler.models import hub
from profiler.show.report import quality

GOOD = '[[score]]\nmodel = "m"\nbenchmark = "b"\nvalue = 1.5\nsource = "s"\n'


def test_the_shipped_scores_are_of_catalog_models_and_name_their_source():
    found = quality.shipped()
    assert found and all(score.source and score.benchmark for score in found)
    assert {score.model for score in found} <= set(hub.names())


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
        (GOOD + GOOD.replace("1.5", "2.5"), "entries 1 and 2 give m in fp32 two scores of b: 1.5 and 2.5"),
    ],
)
def test_a_file_that_is_not_such_a_list_is_said(text, said):
    with pytest.raises(ProfileError, match=said):
        quality.parse(text, "f")
