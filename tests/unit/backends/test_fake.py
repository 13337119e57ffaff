from __future__ import annotations

import statistics
from typing import Any

import pytest
from fakes.lab import fault, make_case, source

from profiler import backends, registry
from profiler.backends import fake
from profiler.backends.base import OutOfMemory
from profiler.backends.fake import FakeMeter, FakeSession, open_session
from profiler.case import Source
from profiler.errors import ProfileError
from profiler.results.measurement import Measurement
from profiler.run.loop import measure
from profiler.run.repetitions import Effort, Repeater

GIB = 2**30


def silent(text: str) -> None:
    """A beat that nobody hears."""


def opened(*faults: dict[str, Any], **script: Any) -> FakeSession:
    return open_session(make_case(), source(*faults, **script), silent)


def result(seed: int = 0, **script: Any) -> Measurement:
    case = make_case(steps=20, seed=seed)
    return measure(opened(**script), case, Repeater(Effort(reps=5)))


def test_it_is_found_by_its_name() -> None:
    assert "fake" in registry.names("backends")
    assert backends.find("fake") is fake.BACKEND
    assert backends.opener("fake") is open_session


def test_any_model_has_the_costs_of_a_small_one() -> None:
    session = open_session(make_case(), Source("catalog", "gemma", None, {"model_type": "gemma3"}), silent)
    assert session.info.weights_bytes == GIB
    assert session.meter.now() == 1.0
    assert session.meter.peak().process_bytes == FakeMeter().peak().process_bytes + GIB


def test_the_same_case_gives_the_same_numbers_noise_and_all() -> None:
    assert result(noise=0.1) == result(noise=0.1)
    assert result(noise=0.1) != result(noise=0.1, seed=1)


def test_noise_has_the_stated_spread_and_none_is_exact() -> None:
    exact = result(step_s=0.5).samples[-1]
    assert set(exact.step_s) == {0.5}
    steps = [
        step for seed in range(10) for s in result(step_s=0.5, noise=0.05, seed=seed).samples for step in s.step_s
    ]
    assert statistics.mean(steps) == pytest.approx(0.5, rel=0.01)
    assert statistics.stdev(steps) == pytest.approx(0.025, rel=0.1)


def test_tokens_are_drawn_from_the_case() -> None:
    def tokens() -> list[list[int]]:
        generation = opened().begin(make_case(batch=2))
        generation.prefill()
        generation.step()
        return generation.tokens

    assert tokens() == tokens() and len(tokens()[0]) == 2


def test_a_new_case_gives_the_memory_of_the_last_back() -> None:
    session = opened()
    before = session.meter.held
    generation = session.begin(make_case(1024))
    generation.prefill()
    generation.save()
    assert session.meter.held == before + 2 * 1024 * 16384
    session.begin(make_case(16))
    assert session.meter.held == before
    session.close()
    assert session.meter.held == before - GIB


def test_restore_without_a_save_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="without a save"):
        opened().begin(make_case()).restore()


def test_more_than_the_capacity_is_out_of_memory() -> None:
    with pytest.raises(OutOfMemory, match=r"no room for 2\.00 GiB: 64\.0 MiB of 1,073,741,824 B are in use"):
        opened(weights_bytes=2 * GIB, capacity_bytes=GIB)


def test_faults_strike_the_cases_they_are_meant_for() -> None:
    session = opened(fault("oom", "no", context=1024, batch=2), fault("error", "bad step", when="decode", batch=3))
    for context, batch in ((1024, 1), (512, 2)):
        session.begin(make_case(context, batch)).prefill()
    with pytest.raises(OutOfMemory, match="no"):
        session.begin(make_case(1024, 2)).prefill()
    generation = session.begin(make_case(512, 3))
    generation.prefill()
    with pytest.raises(RuntimeError, match="bad step"):
        generation.step()


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"cost": 1}, "the config's 'fake' section is not a script"),
        ({"faults": [{"kind": "hang", "whom": 1}]}, "the config's 'fake' section is not a script"),
        ({"faults": [{"kind": "quake"}]}, "unknown fault quake"),
        ({"faults": [{"kind": "hang", "when": "never"}]}, "unknown phase never"),
    ],
)
def test_a_script_it_does_not_understand_is_one_line(section: dict[str, Any], words: str) -> None:
    with pytest.raises(ProfileError) as caught:
        open_session(make_case(), Source("folder", "/x", None, {"fake": section}), silent)
    assert caught.value.message.startswith(words) and "\n" not in caught.value.message
