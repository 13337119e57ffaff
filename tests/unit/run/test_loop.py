"""The measuring loop on the fake backend's simulated clock: exact numbers, and the exact order of calls."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from fakes.lab import fault, make_case, source

from profiler.backends import fake
from profiler.backends.base import ShapeMismatch
from profiler.backends.fake import FakeSession
from profiler.case import Case
from profiler.devices.base import Peak
from profiler.results.cautions import cautions
from profiler.results.measurement import Measurement, Phase, Sample, unaccounted_bytes
from profiler.run.loop import measure, peak_bytes
from profiler.run.repetitions import Effort, Repeater

MIB = 2**20
BASELINE = 64 * MIB


def silent(text: str) -> None:
    """A beat that nobody hears."""


def loaded(case: Case, *faults: dict[str, Any], **script: Any) -> FakeSession:
    return fake.open_session(case, source(*faults, **script), silent)


def measured(case: Case, effort: Effort, *faults: dict[str, Any], **script: Any) -> Measurement:
    return measure(loaded(case, *faults, **script), case, Repeater(effort))


def row(case: Case, effort: Effort, result: Measurement) -> Measurement:
    """The row as the parent completes it, without its energy."""
    return replace(result, case=case, energy=None, asked=effort.requested)


def counted(result: Measurement, phase: Phase) -> tuple[Sample, ...]:
    return row(make_case(), Effort(), result).samples.of(phase)


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
        meter=Logged(session.meter, log),
        watcher=Logged(session.watcher, log),
        info=session.info,
        begin=lambda case: Logged(session.begin(case), log),
    )
    measure(logged, case, Repeater(effort))
    return " ".join(name for name in log if name not in ("pressure", "cache", "cautions", "path"))


def test_the_order_of_calls() -> None:
    prefill = "start window prefill stop "
    decode = "restore start window timestamp step timestamp step timestamp stop elapsed "
    peaks = "peak reset_peak peak "
    expected = f"begin reset_peak {prefill * 7}{peaks}save {decode * 7}release reset_peak step {peaks}overview"
    assert calls(make_case(steps=2), Effort(reps=2)) == expected  # five warm-ups and two


def test_the_order_of_calls_with_a_synthetic_cache() -> None:
    decode = "restore start window timestamp step timestamp stop elapsed "
    assert calls(make_case(steps=1, fill="synthetic"), Effort(reps=1)) == (
        f"begin fill save {decode * 6}release reset_peak step peak reset_peak peak overview"
    )


def test_the_numbers_are_those_of_the_clock() -> None:
    case = make_case(512, batch=4, steps=8)
    result = measured(case, Effort(reps=3), prefill_s_per_token=0.001, step_s=0.25, step_s_per_cached_token=0.001)
    prefills, decodes = counted(result, "prefill"), counted(result, "decode")
    assert [len(prefills), len(decodes)] == [3, 3]
    for sample in prefills:
        assert sample.seconds == pytest.approx(2.048) and sample.cpu_s == pytest.approx(2.048)
        assert (sample.tokens, sample.step_s) == (2048, ())
    steps = [0.25 + 4 * (512 + step) * 0.001 for step in range(8)]  # every repetition starts at the same depth
    for sample in decodes:
        assert sample.step_s == pytest.approx(steps)
        assert sample.seconds == pytest.approx(sum(steps))
        assert sample.tokens == 32
    assert result.cautions == ()


def cold_session(case: Case, extra_s: float, **script: Any) -> Any:
    """A session whose first prefill and first step take ``extra_s`` longer, as where something compiles."""
    session = loaded(case, **script)
    generation = session.begin(case)

    def cold(name: str) -> Any:
        call = getattr(generation, name)

        def first() -> Any:
            session.machine.seconds += extra_s
            setattr(generation, name, call)
            return call()

        return first

    generation.prefill, generation.step = cold("prefill"), cold("step")  # type: ignore[method-assign]
    return standing_in(session, generation)


def standing_in(session: FakeSession, generation: Any) -> Any:
    return SimpleNamespace(
        meter=session.meter, watcher=session.watcher, info=session.info, begin=lambda case: generation
    )


def test_warm_ups_are_kept_and_do_not_count() -> None:
    """The clock of a first call that compiles: the repetitions know nothing of it."""
    case = make_case(512, steps=1)
    result = measure(cold_session(case, 2.0, prefill_s_per_token=0.001, step_s=0.5), case, Repeater(Effort(reps=2)))
    assert [s.seconds for s in counted(result, "prefill")] == pytest.approx([0.512, 0.512])
    assert [s.seconds for s in counted(result, "decode")] == pytest.approx([0.5, 0.5])
    warmups = [sample.seconds for sample in result.samples if sample.warmup and sample.phase == "prefill"]
    assert warmups == pytest.approx([2.512, *[0.512] * 4])  # four that agree outweigh one that does not


def test_memory_of_a_phase_does_not_include_the_saved_cache() -> None:
    case = make_case(1024, batch=2, steps=8, ubatch=256)
    script = {"weights_bytes": 1000 * MIB, "cache_bytes_per_token": 1000, "activation_bytes_per_token": 5000}
    memory = measured(case, Effort(reps=1), unquantized_bytes=7, **script).memory
    held = BASELINE + 1000 * MIB
    assert memory.weights_bytes == 1000 * MIB and memory.unquantized_bytes == 7
    assert memory.cache_bytes == 2 * 1032 * 1000  # depth context + steps
    assert memory.retained_bytes == 0
    assert memory.prefill_cache_bytes == 2 * 1024 * 1000
    assert memory.prefill_activation_bytes == 2 * 256 * 5000
    assert (memory.framework_bytes, memory.graph_pool_bytes) == (BASELINE, None)
    assert unaccounted_bytes(memory) == 0
    assert memory.prefill_peak_bytes == held + 2 * 1024 * 1000 + 2 * 256 * 5000
    assert memory.decode_peak_bytes == held + 2 * 1033 * 1000  # one step more, without the saved copy
    assert memory.process_peak_bytes == memory.prefill_peak_bytes
    assert memory.reserved_bytes is None


def test_a_window_cache_stops_growing_at_the_window() -> None:
    found = [measured(make_case(c), Effort(reps=1), window=512).memory for c in (256, 512, 2048)]
    assert [memory.cache_bytes for memory in found] == [260 * 16384, 512 * 16384, 512 * 16384]
    assert all(memory.window_cache_bytes == memory.cache_bytes for memory in found)
    assert all((memory.growing_cache_bytes, memory.recurrent_bytes) == (0, 0) for memory in found)


def test_a_synthetic_cache_gives_no_prefill_figure() -> None:
    result = measured(make_case(131072, fill="synthetic"), Effort(reps=2))
    assert {sample.phase for sample in result.samples} == {"decode"} and len(counted(result, "decode")) == 2
    assert result.memory.prefill_peak_bytes is None and result.memory.retained_bytes is None
    assert result.memory.process_peak_bytes == result.memory.decode_peak_bytes is not None


def test_a_first_repetition_as_long_as_the_limit_is_the_only_one_and_noted() -> None:
    case, effort = make_case(1000), Effort(reps=3, max_phase_s=10.0)
    result = measured(case, effort, prefill_s_per_token=0.0101)
    assert [len(counted(result, "prefill")), len(counted(result, "decode"))] == [1, 3]
    assert result.stopped == {"prefill": "cold", "decode": "reps"}
    (caution,) = cautions(row(case, effort, result))
    assert (
        caution.code == "prefill-cold"
        and "measured once, without a warm-up, because that alone took 10.1 s" in caution.text
    )
    assert caution.help == "--max-phase 41s"


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_fewer_repetitions_than_requested_are_noted(phase: Phase) -> None:
    costs = {f"{'prefill_s_per_token' if phase == 'prefill' else 'step_s'}": 1}
    case, effort = make_case(4, steps=4), Effort(reps=5, max_phase_s=10.0)
    result = measured(case, effort, **costs)
    assert len(counted(result, phase)) == 3  # 4 s each: the third starts at 8 s
    assert result.stopped[phase] == "time"
    (caution,) = cautions(row(case, effort, result))
    assert caution.code == f"{phase}-few"
    assert caution.text == f"{phase}: 3 of 5 repetitions within --max-phase 10s"
    assert caution.help == "--max-phase 24s"


def test_what_a_caution_advises_gives_all_repetitions() -> None:
    case, effort = make_case(4), Effort(reps=5, max_phase_s=24.0)
    again = measured(case, effort, prefill_s_per_token=1)
    assert cautions(row(case, effort, again)) == () and len(counted(again, "prefill")) == 5


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
    generation = session.begin(case)
    step = generation.step

    def one_sequence_only() -> None:
        step()
        generation.tokens[-1].pop()

    generation.step = one_sequence_only  # type: ignore[method-assign]
    given = standing_in(session, generation)
    with pytest.raises(ShapeMismatch, match="decode gave 4 tokens instead of 2 × 4"):
        measure(given, case, Repeater(Effort(reps=1)))


def test_beats_name_the_phase_and_the_repetition() -> None:
    heard: list[str] = []
    case = make_case(512, steps=2)
    measure(loaded(case, step_s=3.0), case, Repeater(Effort(reps=2), heard.append))
    assert [text for text in heard if text] == [
        "prefill warm-up", *(f"prefill warm-up {n}" for n in (2, 3, 4, 5)), "prefill 1/2", "prefill 2/2",
        "decode warm-up", "decode 1/2", "decode 2/2",
    ]  # fmt: skip
    assert heard.count("") == 3 * 2  # one a step


def test_the_peak_is_that_of_live_tensors_if_they_are_counted() -> None:
    assert peak_bytes(Peak(allocated_bytes=5, reserved_bytes=8, process_bytes=9)) == 5
    assert peak_bytes(Peak(allocated_bytes=None, reserved_bytes=None, process_bytes=9)) == 9
    assert peak_bytes(Peak(None, None, None)) is None


def test_a_throttled_repetition_is_replaced_and_stays_in_the_record() -> None:
    case, effort = make_case(100, steps=1), Effort(reps=4)
    throttled = fault("throttle", 0.5, calls=[7, 7])  # five warm-ups, then the second that counts
    result = measured(case, effort, throttled, prefill_s_per_token=0.001)
    whole = row(case, effort, result)
    assert [s.seconds for s in whole.samples.of("prefill")] == pytest.approx([0.1] * 4)
    (invalid,) = [s for s in whole.samples.record("prefill") if s.invalid]
    assert invalid.seconds == pytest.approx(0.6) and invalid.invalid == "thermal slowdown"
    assert result.stopped["prefill"] == "reps"
    (caution,) = cautions(whole)
    assert caution.text == "prefill: 1 repetition was invalid and repeated (thermal slowdown)"


@pytest.mark.parametrize(("reps", "most"), [(1, 1), (4, 1), (8, 2), (None, 5)])
def test_a_device_that_stays_throttled_is_not_repeated_for_ever(reps: int | None, most: int) -> None:
    case, effort = make_case(100, steps=1), Effort(reps)
    result = measured(case, effort, fault("throttle", 0.5))
    whole = row(case, effort, result)
    assert (
        whole.samples.of("prefill") == ()
        and len([s for s in whole.samples if s.invalid and not s.warmup]) == most + 1
    )
    assert result.stopped == {"prefill": "invalid", "decode": "precision" if reps is None else "reps"}
    (caution,) = cautions(whole)
    assert caution.code == "prefill-invalid" and "too many to replace; none valid" in caution.text


def test_a_long_throttled_repetition_is_repeated_once() -> None:
    case, effort = make_case(100), Effort(max_phase_s=1.0)
    result = measured(case, effort, fault("throttle", 5.0))
    prefills = [sample for sample in result.samples if sample.phase == "prefill"]
    assert [(s.warmup, s.invalid) for s in prefills] == [(False, "thermal slowdown")] * 2
    assert result.stopped["prefill"] == "invalid"


@pytest.mark.parametrize(("share", "code"), [(0.0, None), (0.05, None), (0.15, "cpu-pressure"), (0.4, "busy")])
def test_a_figure_measured_during_other_work_has_a_caution(share: float, code: str | None) -> None:
    """What a busy neighbor does to a process: it is ready, and waits."""
    case, factor = make_case(1000, steps=1), share / (1 - share)
    waits = [fault("wait", 0.1 * factor), fault("wait", 0.01 * factor, when="decode")]
    result = measured(case, Effort(reps=1), *waits)
    codes = [caution.code for caution in result.cautions]
    assert codes == ([f"prefill-{code}", f"decode-{code}"] if code else [])
    (sample,) = counted(result, "prefill")
    assert sample.wait_s == pytest.approx(0.1 * share / (1 - share))
