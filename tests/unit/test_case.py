"""Which cases need at least as much memory as another."""

from __future__ import annotations

from typing import Any

import pytest

from profiler.case import Case


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
def test_a_case_with_no_axis_smaller_is_dominated(larger: Case) -> None:
    assert case().dominates(larger)


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
def test_a_case_that_may_need_less_is_not_dominated(other: Case) -> None:
    assert not case().dominates(other)
