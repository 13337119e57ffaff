"""The way from cases to verdicts: calibrated, interleaved, confirmed, and never a PASS for what was not measured."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from fakes.lab import make_case, source
from fakes.variants import FakeBench, gate, row

from profiler.case import Task
from profiler.devices.base import Overview
from profiler.gate import bench as gate_bench
from profiler.gate.rule import GateVerdict, exit_code, worst
from profiler.gate.trial import Noise
from profiler.results.measurement import Caution, DecodePath, Measurement
from profiler.run.repetitions import overview_cautions


def one(bench: FakeBench, tasks: tuple[Task, ...] = (), **options: Any) -> GateVerdict:
    verdicts, _ = gate(bench, *tasks, **options)
    return next(verdict for verdict in verdicts if verdict.metric == "decode_cpu_s")


def test_equal_variants_pass_after_six_pairs() -> None:
    verdict = one(FakeBench())
    assert (verdict.word, verdict.pairs, verdict.ratio) == ("PASS", 6, 1.0)


def test_a_slower_candidate_fails_and_is_confirmed() -> None:
    verdict = one(FakeBench(slowdown=0.10))
    assert verdict.word == "FAIL"
    assert verdict.ratio == pytest.approx(1.10)
    assert verdict.confirmation is not None
    assert verdict.confirmation.n == 10
    assert "again" in verdict.reason


def test_a_slowdown_below_delta_passes() -> None:
    assert one(FakeBench(slowdown=0.04)).word == "PASS"


def test_a_fail_that_fresh_processes_do_not_confirm_is_inconclusive() -> None:
    bench = FakeBench(slowdown=0.10)
    start = bench.start

    def better_with_new_processes(variants: Any) -> None:
        bench.slowdown = 0.0 if bench.processes >= 4 else 0.10  # the first six pairs have two processes a side
        start(variants)

    bench.start = better_with_new_processes  # type: ignore[method-assign]
    verdict = one(bench)
    assert verdict.word == "INCONCLUSIVE"
    assert "do not confirm" in verdict.reason
    assert verdict.evidence is not None and verdict.confirmation is not None  # both intervals are kept


def test_in_the_confirmation_the_variants_are_in_each_others_slots() -> None:
    bench = FakeBench(slowdown=0.10)
    one(bench)
    assert bench.starts[:2] == [("base", "candidate")] * 2
    assert set(bench.starts[2:]) == {("candidate", "base")}


def test_no_process_serves_more_than_three_pairs() -> None:
    bench = FakeBench(noise=0.05, seed=4)
    _, trial = gate(bench, known_noise=0.05)
    served = Counter(block["process"] for block in trial.kept)
    assert max(served.values()) <= gate_bench.RESTART


def test_the_order_within_pairs_is_drawn_and_the_seed_repeats_it() -> None:
    orders = []
    for seed in (1, 1, 2):
        bench = FakeBench(noise=0.2, seed=7)
        gate(bench, known_noise=0.0, seed=seed, delta=0.01)
        orders.append(bench.ran)
    assert orders[0] == orders[1] != orders[2]
    firsts = orders[0][::2]
    assert {"base", "candidate"} == set(firsts)


def test_base_and_candidate_follow_each_other_within_a_pair() -> None:
    bench = FakeBench()
    gate(bench)
    assert all({a, b} == {"base", "candidate"} for a, b in zip(bench.ran[::2], bench.ran[1::2], strict=True))


def test_without_known_noise_the_base_is_measured_against_itself_first() -> None:
    bench, kept = FakeBench(noise=0.03, seed=1), {}
    _, trial = gate(bench, known_noise=None, keep_noise=lambda task, found: kept.update(found))
    assert bench.ran[:12] == ["base"] * 12
    assert [block["stage"] for block in trial.kept[:13]] == ["noise"] * 12 + ["gate"]
    assert 0.005 < kept["decode"].sd < 0.08
    assert kept["decode"].pairs == 6


def test_noise_that_hides_twice_delta_leaves_six_pairs_and_names_the_delta_it_supports() -> None:
    bench = FakeBench()
    verdict = one(bench, known_noise=0.20)
    assert verdict.word == "INCONCLUSIVE" and "too much for δ = 5%" in verdict.reason
    assert "--delta 9.7%" in (verdict.advice or "")  # exp(3.7 · 0.20 / √16 / 2) − 1, rounded up
    assert len(bench.ran) == 12
    assert one(FakeBench(), known_noise=0.20, delta=0.097).word == "PASS"


def test_a_slowdown_far_beyond_the_noise_fails_however_noisy_it_is() -> None:
    verdict = one(FakeBench(slowdown=4.0, noise=0.20), known_noise=0.20)
    assert (verdict.word, verdict.pairs) == ("FAIL", 6) and verdict.confirmation is not None
    words = [one(FakeBench(noise=0.20, seed=seed), known_noise=0.20).word for seed in range(100)]
    assert words.count("FAIL") <= 2 and "PASS" not in words


def test_a_case_that_the_candidate_cannot_run_fails() -> None:
    broken = {"candidate": lambda same: replace(same, outcome="oom", reason="no room", samples=())}
    verdict = one(FakeBench(change=broken))
    assert (verdict.word, exit_code(worst([verdict]))) == ("FAIL", 1)
    assert "no room" in verdict.reason


def test_a_case_that_the_base_cannot_run_is_incomparable() -> None:
    broken = {"base": lambda same: replace(same, outcome="failed", reason="too old", samples=())}
    verdict = one(FakeBench(change=broken))
    assert (verdict.word, exit_code(worst([verdict]))) == ("INCOMPARABLE", 4)


def test_a_candidate_that_breaks_after_a_look_still_fails() -> None:
    bench, count = FakeBench(noise=0.05, seed=3), [0]

    def breaks(same: Measurement) -> Measurement:
        count[0] += 1
        return same if count[0] < 8 else replace(same, outcome="timeout", reason="hangs", samples=())

    bench.change["candidate"] = breaks
    verdict = one(bench, known_noise=0.04)
    assert (verdict.word, verdict.pairs) == ("FAIL", 6)
    assert "hangs" in verdict.reason


def test_disturbed_pairs_are_replaced_and_recorded() -> None:
    bench, count = FakeBench(), [0]

    def throttled_once(same: Measurement) -> Measurement:
        count[0] += 1
        return replace(same, cautions=(Caution("decode-invalid", "too hot"),)) if count[0] == 2 else same

    bench.change["candidate"] = throttled_once
    verdicts, trial = gate(bench)
    assert verdicts[0].pairs == 6
    assert [block["invalid"] for block in trial.kept].count("too hot") == 2  # both halves of the pair
    assert len(trial.kept) == 14


def test_more_disturbed_pairs_than_a_quarter_are_inconclusive() -> None:
    hot = {"base": lambda same: replace(same, cautions=(Caution("decode-invalid", "too hot"),))}
    verdicts, trial = gate(FakeBench(change=hot))
    assert verdicts[0].word == "INCONCLUSIVE"
    assert "too hot" in verdicts[0].reason
    assert len(trial.kept) == 2 * 5  # four of sixteen, and the one too many


def test_work_from_outside_spoils_a_wall_clock_and_no_count_of_cpu_time() -> None:
    pressed = {"base": lambda same: replace(same, cautions=(Caution("decode-cpu-pressure", "a build"),))}
    on_gpu = Task(make_case(512, device="cuda:0"), source())
    assert one(FakeBench(change=pressed)).word == "PASS"
    verdicts, _ = gate(FakeBench(change=pressed), on_gpu)
    assert (verdicts[0].metric, verdicts[0].word) == ("decode_wall_s", "INCONCLUSIVE")


@pytest.mark.parametrize(
    ("field", "base", "candidate", "word"),
    [
        ("sm_mhz", 1980.0, 1960.0, "PASS"),
        ("sm_mhz", 1980.0, 1900.0, "INCONCLUSIVE"),
        ("capped", 0.10, 0.13, "PASS"),
        ("capped", 0.10, 0.20, "INCONCLUSIVE"),
    ],
)
def test_halves_at_other_clocks_or_another_power_limit_are_no_pair(
    field: str, base: float, candidate: float, word: str
) -> None:
    def at(value: float) -> Any:
        return lambda same: replace(same, samples=tuple(replace(s, **{field: value}) for s in same.samples))

    on_gpu = Task(make_case(512, device="cuda:0"), source())
    verdicts, _ = gate(FakeBench(change={"base": at(base), "candidate": at(candidate)}), on_gpu)
    assert verdicts[0].word == word


def test_the_idle_process_of_the_other_variant_is_no_foreign_one() -> None:
    def with_others(count: int) -> dict[str, Any]:
        seen = overview_cautions(Overview(None, count), "cuda:0")
        return {"base": lambda same: replace(same, cautions=tuple(seen))}

    on_gpu = Task(make_case(512, device="cuda:0"), source())
    words = [gate(FakeBench(change=with_others(count)), on_gpu)[0][0].word for count in (0, 1, 2)]
    assert words == ["PASS", "PASS", "INCONCLUSIVE"]


def test_a_cpu_is_gated_on_cpu_time_and_a_gpu_on_the_wall() -> None:
    verdicts, _ = gate(FakeBench(), Task(make_case(512, device="cuda:0"), source()))
    assert verdicts[0].metric == "decode_wall_s"
    assert one(FakeBench()).metric == "decode_cpu_s"


def test_a_block_without_cpu_time_gives_no_verdict_of_equality() -> None:
    def uncounted(same: Measurement) -> Measurement:
        return replace(same, samples=tuple(replace(sample, cpu_s=0.0) for sample in same.samples))

    verdict = one(FakeBench(change={"base": uncounted, "candidate": uncounted}))
    assert verdict.word == "INCONCLUSIVE"
    assert "-n" in (verdict.advice or "")


def test_more_threads_on_one_variant_are_incomparable() -> None:
    verdict = one(FakeBench(change={"candidate": lambda same: replace(same, threads=2)}))
    assert verdict.word == "INCOMPARABLE"
    assert "1 threads, the candidate with 2" in verdict.reason


def test_more_weight_or_cache_fails_though_it_is_as_fast() -> None:
    def heavier(same: Measurement) -> Measurement:
        return replace(same, memory=replace(same.memory, cache_bytes=101))

    verdicts, _ = gate(FakeBench(change={"candidate": heavier}))
    assert {verdict.metric for verdict in verdicts if verdict.word == "FAIL"} == {"cache_bytes"}


def test_each_case_and_metric_has_a_verdict_of_its_own() -> None:
    bench, slow_at = FakeBench(), 2048
    tasks = [Task(make_case(context), source()) for context in (512, slow_at)]
    bench.change["candidate"] = lambda same: row(same.case, 1.0, 1.2) if same.case.context == slow_at else same
    verdicts, _ = gate(bench, *tasks, metrics=("prefill", "decode"))
    words = {(v.case.split()[2], v.metric): v.word for v in verdicts if v.metric.endswith("_s")}
    assert words == {
        ("c=512", "prefill_cpu_s"): "PASS",
        ("c=512", "decode_cpu_s"): "PASS",
        ("c=2048", "prefill_cpu_s"): "PASS",
        ("c=2048", "decode_cpu_s"): "FAIL",
    }


def test_a_synthetic_fill_has_no_prefill_to_gate() -> None:
    filled = Task(make_case(512, fill="synthetic"), source())
    verdicts, _ = gate(FakeBench(), filled, metrics=("prefill", "decode"))
    assert [verdict.metric for verdict in verdicts if verdict.metric.endswith("_s")] == ["decode_cpu_s"]


def test_much_faster_asks_whether_the_work_is_the_same() -> None:
    verdict = one(FakeBench(slowdown=-0.5))
    assert verdict.word == "PASS"
    assert "same work" in (verdict.advice or "")
    assert one(FakeBench(slowdown=-0.05)).advice is None


def test_nothing_measured_is_a_failure() -> None:
    assert worst([]) == "FAIL"


def test_the_gravest_word_counts_and_inconclusive_may_be_let_through() -> None:
    def said(*words: Any) -> int:
        return exit_code(worst([GateVerdict("cell", "metric", word, "") for word in words]))

    assert [said("PASS"), said("PASS", "INCONCLUSIVE"), said("INCONCLUSIVE", "INCOMPARABLE")] == [0, 3, 4]
    assert said("INCOMPARABLE", "FAIL", "PASS") == 1
    assert exit_code("INCONCLUSIVE", inconclusive_fails=False) == 0
    assert exit_code("FAIL", inconclusive_fails=False) == 1


def test_kept_noise_is_taken_for_what_it_was_measured_for() -> None:
    asked = []

    def find(task: Task) -> dict[Any, Noise]:
        asked.append(task.case.context)
        return {"decode": Noise(0.01, 6, 0.0)}

    bench = FakeBench()
    gate(bench, known_noise=None, find_noise=find)
    assert asked == [512]
    assert bench.ran.count("base") == 6


# One side fell back to another decode step.

EAGER = DecodePath("eager", "cache layer 0 has no rule")
TORCH = DecodePath("static", kernels="plain torch: the cache folder is full")
SAID = "the base static, the candidate eager (cache layer 0 has no rule)"
STATIC = Task(replace(make_case(512), path="static"), source())


def ran(path: DecodePath) -> Any:
    return lambda same: replace(same, decode_path=path)


@pytest.mark.parametrize("fell", ["base", "candidate"])
@pytest.mark.parametrize("path", [EAGER, TORCH], ids=["eager", "plain-torch"])
def test_a_fall_back_of_one_variant_makes_decode_and_its_memory_incomparable(fell: str, path: DecodePath) -> None:
    bench = FakeBench(slowdown=1.0, change={fell: ran(path)})
    verdicts, trial = gate(bench, STATIC, metrics=("prefill", "decode"))
    words = {verdict.metric: verdict.word for verdict in verdicts}
    assert words["decode_cpu_s"] == words["cache_bytes"] == words["process_peak_bytes"] == "INCOMPARABLE"
    assert words["weights_bytes"] == words["decode_tokens"] == "PASS"
    assert words["prefill_cpu_s"] == "FAIL"  # no step takes part in it
    decode = next(verdict for verdict in verdicts if verdict.metric == "decode_cpu_s")
    assert decode.ratio is None and (path.reason or path.kernels or "") in decode.reason
    assert trial.notes == []


def test_a_fall_back_says_which_variant_ran_what_and_why() -> None:
    verdict = one(FakeBench(change={"candidate": ran(EAGER)}), tasks=(STATIC,))
    assert SAID in verdict.reason and "--path eager" in (verdict.advice or "")


def test_a_variant_that_does_not_say_what_ran_ran_what_was_asked_for() -> None:
    assert one(FakeBench(change={"candidate": ran(DecodePath("static"))}), tasks=(STATIC,)).word == "PASS"
    assert "the base static" in one(FakeBench(change={"candidate": ran(EAGER)}), tasks=(STATIC,)).reason


def test_both_variants_on_one_fall_back_are_compared_and_it_is_said() -> None:
    verdicts, trial = gate(FakeBench(change={"base": ran(EAGER), "candidate": ran(EAGER)}), STATIC)
    assert {verdict.word for verdict in verdicts} == {"PASS"}
    (note,) = trial.notes
    assert note.endswith("--path static ran eager (cache layer 0 has no rule)")


def falls_back_after(rows: int) -> Any:
    """A change of the rows of a side: the first ones run as asked for."""
    seen: list[Measurement] = []

    def change(same: Measurement) -> Measurement:
        seen.append(same)
        return replace(same, decode_path=EAGER) if len(seen) > rows else same

    return change


def test_a_fall_back_in_a_later_pair_counts_too() -> None:
    verdict = one(FakeBench(change={"candidate": falls_back_after(4)}), tasks=(STATIC,))
    assert verdict.word == "INCOMPARABLE" and verdict.ratio is None


def test_a_fall_back_in_the_pairs_that_confirm_is_no_confirmation() -> None:
    verdict = one(FakeBench(slowdown=0.2, change={"candidate": falls_back_after(6)}), tasks=(STATIC,))
    assert verdict.word == "INCOMPARABLE"


def test_processes_of_the_base_that_differ_in_step_are_no_noise() -> None:
    kept: list[Any] = []
    verdict = one(
        FakeBench(change={"base": falls_back_after(3)}),
        tasks=(STATIC,),
        known_noise=None,
        keep_noise=lambda task, found: kept.append(found),
    )
    assert verdict.word == "INCONCLUSIVE" and "different decode steps" in verdict.reason
    assert kept == []
