"""The protocols of ``backends/base.py``, which every backend must implement, on a tiny model."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from profiler import backends, registry
from profiler.backends.base import Session
from profiler.case import Case, Source
from profiler.run.loop import measure
from profiler.run.repetitions import Effort, Repeater

CONTEXT, BATCH, STEPS = 40, 2, 4


def driven(name: str) -> bool:
    """Whether a backend's sessions are driven step by step in a worker."""
    backend = backends.find(name)
    return backend.server_command is None and not backend.times_itself


@pytest.fixture(params=list(filter(driven, registry.names("backends"))))
def case(request: pytest.FixtureRequest) -> Case:
    fields = {"quant": "fp32", "dtype": "fp32", "device": "cpu", "backend": request.param, "path": "eager"}
    return Case("tiny", "tiny", "real", context=CONTEXT, batch=BATCH, steps=STEPS, ubatch=16, **fields)


@pytest.fixture
def session(case: Case, tiny_model: Callable[[str], Path]) -> Iterator[Session]:
    folder = tiny_model("gemma3")
    config = json.loads((folder / "config.json").read_text())
    opened = backends.opener(case.backend)(case, Source("folder", str(folder), None, config), lambda text: None)
    yield opened
    opened.close()


def test_a_prefill_processes_the_context_of_every_sequence_however_often(session: Session, case: Case) -> None:
    generation = session.begin(case)
    for _ in range(2):
        assert generation.prefill() == BATCH * CONTEXT
        assert generation.cache().length == CONTEXT
        assert generation.tokens == []


def test_a_step_adds_one_token_to_every_sequence(session: Session, case: Case) -> None:
    generation = session.begin(case)
    generation.prefill()
    for done in range(1, STEPS + 1):
        generation.step()
        assert [len(step) for step in generation.tokens] == [BATCH] * done
        assert generation.cache().length == CONTEXT + done


def test_a_restored_cache_is_that_of_the_save(session: Session, case: Case) -> None:
    generation = session.begin(case)
    generation.prefill()
    generation.save()
    for _ in range(3):
        generation.restore()
        assert generation.cache().length == CONTEXT
        assert generation.tokens == []
        for _ in range(STEPS):
            generation.step()
        assert generation.cache().length == CONTEXT + STEPS
    generation.release()
    generation.step()
    assert generation.cache().length == CONTEXT + STEPS + 1


def test_a_fill_gives_the_length_of_a_prefill_and_as_many_bytes(session: Session, case: Case) -> None:
    filled = session.begin(case)
    filled.fill()
    filled.step()
    there = filled.cache()
    prefilled = session.begin(case)
    prefilled.prefill()
    prefilled.step()
    assert there.length == prefilled.cache().length == CONTEXT + 1
    assert there.storage_bytes == prefilled.cache().storage_bytes > 0


def test_the_loop_accepts_it(session: Session, case: Case) -> None:
    result = measure(session, case, Repeater(Effort(reps=2)))
    assert [(sample.phase, sample.tokens) for sample in result.samples if not sample.warmup] == [
        ("prefill", BATCH * CONTEXT),
        ("prefill", BATCH * CONTEXT),
        ("decode", BATCH * STEPS),
        ("decode", BATCH * STEPS),
    ]
    assert all(sample.seconds > 0 for sample in result.samples)
    assert all(len(sample.step_s) == STEPS for sample in result.samples if sample.phase == "decode")
    assert (result.memory.process_peak_bytes or 0) >= (result.memory.weights_bytes or 0) > 0
    assert result.memory.weights_bytes == session.info.weights_bytes
