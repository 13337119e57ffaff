"""Documents that are written from a seed: the same everywhere, like prose, and with each fact in one place."""

from __future__ import annotations

import hashlib
import re
import zlib
from datetime import datetime

import pytest

from profiler.errors import ProfileError
from profiler.run import documents
from profiler.run.documents import CHARACTERS_PER_TOKEN, FACTS, document

LONG = document(31, 112 * 1024)
WINDOW = 200


def test_a_seed_gives_the_same_text_on_every_machine() -> None:
    """Figures of two machines compare only if both read the same. Whoever changes the patterns changes this too."""
    text = document(1, 4096).text
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "4fb5b67a18f3db26"
    assert document(1, 4096).text == text


def test_another_seed_gives_another_text() -> None:
    texts = [document(seed, 4096).text.splitlines() for seed in range(4)]
    for number, lines in enumerate(texts):
        others = {line for other in texts[:number] for line in other if len(line) > 60}
        assert not others & set(lines)


@pytest.mark.parametrize("seed", range(20))
def test_each_fact_is_stated_once_and_in_order(seed: int) -> None:
    found = document(seed, documents.TOKENS[0])
    assert len(found.facts) == FACTS
    places = [found.text.index(fact.answer) for fact in found.facts]
    assert [found.text.count(fact.answer) for fact in found.facts] == [1] * FACTS
    assert places == sorted(places)
    assert len({fact.question for fact in found.facts}) == FACTS


def test_facts_are_spread_over_a_long_document() -> None:
    assert [LONG.text.count(fact.answer) for fact in LONG.facts] == [1] * FACTS
    depths = [LONG.text.index(fact.answer) / len(LONG.text) for fact in LONG.facts]
    assert depths == pytest.approx([0.125, 0.375, 0.625, 0.875], abs=0.02)


def test_nothing_is_repeated_at_length() -> None:
    text = LONG.text
    windows = {text[start : start + WINDOW] for start in range(len(text) - WINDOW + 1)}
    assert len(windows) == len(text) - WINDOW + 1


def test_it_compresses_like_prose() -> None:
    """English prose shrinks to a third or a half, logs of programs to a tenth, random words hardly."""
    for found in (document(1, 4096), LONG):
        assert 2 < len(found.text) / len(zlib.compress(found.text.encode(), 9)) < 5


def test_it_goes_by_date() -> None:
    days = [datetime.strptime(day, "%d %B %Y") for day in re.findall(r"^## (\d+ \w+ \d+): ", LONG.text, re.MULTILINE)]
    assert len(days) > 300
    assert days == sorted(days)


def test_a_fault_is_closed_after_it_was_reported() -> None:
    closed = re.findall(r"closed the \w+ on the ([\w ]+?) at ([\w ]+?), open since (\d+ \w+ \d+)", LONG.text)
    assert len(closed) > 20
    for part, station, day in closed:
        entry = LONG.text[LONG.text.index(f"## {day}: ") :].split("\n## ")[0]
        assert f"{part} at {station}" in entry or f"At {station} the {part}" in entry


def test_no_pattern_is_left_unfilled() -> None:
    assert not set("[]{}|") & set(LONG.text)


@pytest.mark.parametrize("tokens", [2048, 28_000])
def test_the_length_is_met_to_within_a_sentence(tokens: int) -> None:
    for seed in range(5):
        assert 0 <= len(document(seed, tokens).text) - tokens * CHARACTERS_PER_TOKEN < 350


@pytest.mark.parametrize("tokens", [-1, 0, 1023, 2**18 + 1, 10**12])
def test_an_invalid_length_is_refused(tokens: int) -> None:
    with pytest.raises(ProfileError, match="tokens, not"):
        document(1, tokens)
