"""Which cases need at least as much memory as another."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest

from profiler.case import Case, digest, options_text


def case(context: int = 256, batch: int = 2, steps: int = 8, **more: Any) -> Case:
    fixed = ("m", "id", "synthetic", "bf16", "bf16", "cpu", "fake", "eager")
    return Case(*fixed, context=context, batch=batch, steps=steps, **({"ubatch": min(512, context)} | more))


@pytest.mark.parametrize(
    "larger",
    [
        case(),
        case(context=300),  # shorter than a chunk of 512: the chunk grows with the context
        case(context=4096),
        case(batch=3),
        case(steps=9),
        case(context=260, steps=4),  # just as deep at the end
    ],
)
def test_a_case_needs_no_more_than_one_with_no_smaller_axis(larger: Case) -> None:
    assert case().needs_no_more_than(larger)


@pytest.mark.parametrize(
    "other",
    [
        case(context=255),
        case(batch=1, context=4096),
        case(steps=7),  # less deep at the end
        case(context=260, steps=3),
        case(context=4096, ubatch=128),  # smaller chunks, smaller activations
        case(context=4096, fill="synthetic"),
        case(context=4096, seed=1),
        case(context=4096, threads=1),
    ],
)
def test_nothing_is_known_about_a_case_with_a_smaller_axis(other: Case) -> None:
    assert not case().needs_no_more_than(other)


def test_options_are_part_of_the_identity_and_of_what_is_loaded() -> None:
    plain, other = case(), case(options=options_text({"n-cpu-moe": 4, "kv": "q8_0"}))
    assert other.options == "kv=q8_0 n-cpu-moe=4"
    assert plain.key != other.key and plain.load_key != other.load_key and not plain.needs_no_more_than(other)
    assert other.label.endswith("b=2 kv=q8_0 n-cpu-moe=4")


def test_a_case_without_options_keeps_the_key_that_it_had_before_the_field_existed() -> None:
    content = asdict(case())
    del content["model"], content["options"]
    assert case().key == digest(content)
