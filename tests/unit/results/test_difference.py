"""What differs between two machines, in words, and exactly where their keys differ."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest

from profiler.results.environment import differences, environment_key

CHANGES: list[tuple[tuple[str, ...], Any, str | None]] = [
    (("cpu", "title"), "Other CPU", "CPU Example CPU → Other CPU"),
    (("cpu", "cores"), 4, "cores 8 → 4"),
    (("device", "driver"), "580.1", "device driver – → 580.1"),
    (("device", "free_bytes"), 1, None),
    (("memory_bytes",), 1, None),
    (("source",), {"commit": "ab", "changed": True}, None),
    (("limits", "cores"), 1.5, "cores' worth of CPU time allowed – → 1.5"),
    (("limits", "memory_bytes"), 7, None),
    (("system",), "Linux 7.0", "system Linux 6.1 → Linux 7.0"),
    (("python",), "3.12.1", "Python 3.11.9 → 3.12.1"),
    (("libraries", "torch"), "2.14.0", "torch 2.13.0+cpu → 2.14.0"),
    (("settings", "OMP_NUM_THREADS"), "2", "OMP_NUM_THREADS – → 2"),
]


@pytest.mark.parametrize(("path", "value", "words"), CHANGES, ids=lambda part: str(part)[:30])
def test_a_difference_in_words_is_one_of_the_key(
    environment: dict[str, Any], path: tuple[str, ...], value: Any, words: str | None
) -> None:
    other = deepcopy(environment)
    place = other
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    assert differences(environment, other) == ([] if words is None else [words])
    assert (environment_key(environment) != environment_key(other)) == (words is not None)


def test_names_from_outside_are_cleaned() -> None:
    (words,) = differences({}, {"settings": {"OMP_\x1b[31mX": "\x1b[2J1"}})
    assert words == "OMP_X – → 1"


def test_content_that_is_not_an_environment_has_no_differences() -> None:
    assert differences({}, {"cpu": None, "libraries": []}) == []
