"""The measuring loop on the fake backend's virtual clock: exact numbers, and the exact order of calls."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from fakes.lab import fault, make_case, source

from profiler.backends import fake
from profiler.backends.base import ShapeMismatch
from profiler.backends.fake.session import FakeSession
from profiler.case import Case
from profiler.devices.base import Peak
from profiler.measure.loop import Effort, Result, headline, measure

MIB = 2**20
BASELINE = 64 * MIB


def silent(text: str) -> None:
    """A beat that nobody hears."""


def loaded(case: Case, *faults: dict[str, Any], **script: Any) -> FakeSession:
    return fake.open(case, source(*faults, **script), silent)


def measured(case: Case, effort: Effort, *faults: dict[str, Any], **script: Any) -> Result:
    return measure(loaded(case, *faults, **script), case, effort, silent)


class Logged:
    """Passes calls on and writes their names down."""

    def __init__(self, target: Any, log: list[str]) -> None:
        self._target, self._log = target, log

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._target, name)
        if not callable(value):
            return value

        def call(*arguments: Any) -> Any:
            self._log.append(name)
            return value(*arguments)

        return call


def calls(case: Case, effort: Effort) -> str:
    """The calls of one measurement in their order, without those that only look."""
    log: list[str] = []
    session = loaded(case)
    logged = SimpleNamespace(
        meter=Logged(session.meter, log), loaded=session.loaded, begin=lambda case: Logged(session.begin(case), log)
    )
    measure(logged, case, effort, silent)
    return " ".join(name for name in log if name not in ("cpu_s", "waited_s", "cache", "cautions"))


def test_the_order_of_calls() -> None:
    prefill = "now prefill now "
    decode = "restore now mark step mark step mark now elapsed "
    expected = f"reset_peak {prefill * 3}peak save {decode * 3}release reset_peak step peak"
    assert calls(make_case(steps=2), Effort(reps=2)) == expected


def test_the_order_of_calls_with_a_synthetic_cache() -> None:
    decode = "restore now mark step mark now elapsed "
    assert calls(make_case(steps=1, fill="synthetic"), Effort(reps=1)) == (
        f"fill save {decode * 2}release reset_peak step peak"
    )


def test_the_numbers_are_those_of_the_clock() -> None:
    case = make_case(512, batch=4, steps=8)
    result = measured(case, Effort(reps=3), prefill_s_per_token=0.001, step_s=0.25, step_s_per_cached_token=0.001)
    prefills = [sample for sample in result.samples if sample.phase == "prefill"]
    decodes = [sample for sample in result.samples if sample.phase == "decode"]
    assert [len(prefills), len(decodes), len(result.samples)] == [3, 3, 6]
    for sample in prefills:
        assert sample.seconds == pytest.approx(2.048) and sample.cpu_s == pytest.approx(2.048)
        assert (sample.tokens, sample.step_s, sample.energy_j) == (2048, (), None)
    steps = [0.25 + 4 * (512 + step) * 0.001 for step in range(8)]  # every repetition starts at the same depth
    for sample in decodes:
        assert sample.step_s == pytest.approx(steps)
        assert sample.seconds == pytest.approx(sum(steps))
        assert sample.tokens == 32
    assert result.cautions == ()


def test_the_warm_up_is_discarded() -> None:
    """The clock of a first call that compiles: the samples know nothing of it."""
    case = make_case(512, steps=1)
    session = loaded(case, prefill_s_per_token=0.001, step_s=0.5)
    trial = session.begin(case)
    slow = {"prefill": trial.prefill, "step": trial.step}

    def cold(name: str) -> Any:
        call = slow[name]

        def first() -> Any:
            session.meter.seconds += 10
            setattr(trial, name, call)
            return call()

        return first

    trial.prefill, trial.step = cold("prefill"), cold("step")  # type: ignore[method-assign]
    given = SimpleNamespace(meter=session.meter, loaded=session.loaded, begin=lambda case: trial)
    result = measure(given, case, Effort(reps=2), silent)
    assert [sample.seconds for sample in result.samples] == pytest.approx([0.512, 0.512, 0.5, 0.5])


def test_memory_is_of_the_phase_and_knows_nothing_of_the_saved_cache() -> None:
    case = make_case(1024, batch=2, steps=8, ubatch=256)
    script = {"weights_bytes": 1000 * MIB, "cache_bytes_per_token": 1000, "activation_bytes_per_token": 5000}
    memory = measured(case, Effort(reps=1), unquantized_bytes=7, **script).memory
    held = BASELINE + 1000 * MIB
    assert memory.weights_bytes == 1000 * MIB and memory.unquantized_bytes == 7
    assert memory.cache_bytes == 2 * 1032 * 1000  # depth context + steps
    assert memory.retained_bytes == 0
    assert memory.prefill_peak_bytes == held + 2 * 1024 * 1000 + 2 * 256 * 5000
    assert memory.decode_peak_bytes == held + 2 * 1033 * 1000  # one step more, without the saved copy
    assert memory.process_peak_bytes == memory.prefill_peak_bytes
    assert memory.reserved_bytes is None


def test_a_window_cache_stops_growing_at_the_window() -> None:
    sizes = [measured(make_case(c), Effort(reps=1), window=512).memory.cache_bytes for c in (256, 512, 2048)]
    assert sizes == [260 * 16384, 512 * 16384, 512 * 16384]


def test_a_synthetic_cache_gives_no_prefill_figure() -> None:
    result = measured(make_case(131072, fill="synthetic"), Effort(reps=2))
    assert [sample.phase for sample in result.samples] == ["decode", "decode"]
    assert result.memory.prefill_peak_bytes is None and result.memory.retained_bytes is None
    assert result.memory.process_peak_bytes == result.memory.decode_peak_bytes is not None


def test_a_warm_up_as_long_as_the_limit_is_the_measurement_and_said_so() -> None:
    result = measured(make_case(1000), Effort(reps=3, max_phase_s=10.0), prefill_s_per_token=0.0101)
    assert [sample.phase for sample in result.samples] == ["prefill", "decode", "decode", "decode"]
    (caution,) = result.cautions
    assert caution.code == "prefill-cold" and "one cold repetition of 10.1 s" in caution.text
    assert caution.help == "--max-phase 41s"


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_fewer_repetitions_than_asked_for_are_said(phase: str) -> None:
    costs = {
        "prefill_s_per_token": 0.0,
        "step_s": 0.0,
        f"{'prefill_s_per_token' if phase == 'prefill' else 'step_s'}": 1,
    }
    result = measured(make_case(4, steps=4), Effort(reps=5, max_phase_s=10.0), **costs)
    assert sum(sample.phase == phase for sample in result.samples) == 3  # 4 s each: the third starts at 8 s
    (caution,) = result.cautions
    assert caution.code == f"{phase}-few"
    assert caution.text == f"{phase}: 3 of 5 repetitions within --max-phase 10s"
    assert caution.help == "--max-phase 24s"


def test_what_a_caution_advises_gives_all_repetitions() -> None:
    again = measured(make_case(4), Effort(reps=5, max_phase_s=24.0), prefill_s_per_token=1)
    assert again.cautions == () and len(again.samples) == 10


@pytest.mark.parametrize(
    ("fault_", "words"),
    [
        (fault("miscount", 1), "prefill processed 513 tokens instead of 1 × 512"),
        (fault("miscount", 1, when="fill"), "after fill the cache holds 513 tokens instead of 512"),
        (fault("miscount", 1, when="decode"), "after decode the cache holds 520 tokens instead of 516"),
    ],
)
def test_a_phase_that_processes_something_else_raises(fault_: dict[str, Any], words: str) -> None:
    fill = "synthetic" if fault_.get("when") == "fill" else "prefill"
    with pytest.raises(ShapeMismatch, match=words):
        measured(make_case(512, steps=4, fill=fill), Effort(reps=1), fault_)


def test_a_decode_that_gives_too_few_tokens_raises() -> None:
    case = make_case(512, batch=2, steps=4)
    session = loaded(case)
    trial = session.begin(case)
    step = trial.step

    def one_sequence_only() -> None:
        step()
        trial.tokens[-1].pop()

    trial.step = one_sequence_only  # type: ignore[method-assign]
    given = SimpleNamespace(meter=session.meter, loaded=session.loaded, begin=lambda case: trial)
    with pytest.raises(ShapeMismatch, match="decode gave 4 tokens instead of 2 × 4"):
        measure(given, case, Effort(reps=1), silent)


def test_beats_name_the_phase_and_the_repetition() -> None:
    heard: list[str] = []
    case = make_case(512, steps=2)
    measure(loaded(case), case, Effort(reps=2), heard.append)
    assert [text for text in heard if text] == [
        "prefill warm-up", "prefill 1/2", "prefill 2/2", "decode warm-up", "decode 1/2", "decode 2/2",
    ]  # fmt: skip
    assert heard.count("") == 3 * 2  # one a step


def test_the_headline_is_live_tensors_where_they_are_counted() -> None:
    assert headline(Peak(allocated_bytes=5, reserved_bytes=8, process_bytes=9)) == 5
    assert headline(Peak(allocated_bytes=None, reserved_bytes=None, process_bytes=9)) == 9
    assert headline(Peak(None, None, None)) is None


@pytest.mark.parametrize(("share", "cautioned"), [(0.0, False), (0.05, False), (0.4, True)])
def test_a_figure_taken_beside_other_work_says_so(share: float, cautioned: bool) -> None:
    case = make_case(1024, steps=2)
    session = loaded(case)
    meter = session.meter
    meter.waited_s = lambda: share * meter.seconds  # type: ignore[method-assign]
    result = measure(session, case, Effort(reps=1), silent)
    codes = [caution.code for caution in result.cautions]
    assert codes == (["prefill-cpu-pressure", "decode-cpu-pressure"] if cautioned else [])
    assert [sample.wait_s for sample in result.samples] == pytest.approx([share * s.seconds for s in result.samples])
