"""Verdicts on predictions: what is compared in which dtype, what fails, and what is unknown."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from fakes.lab import make_case, source

from profiler import backends, devices
from profiler.case import Task
from profiler.errors import ProfileError
from profiler.gate import numerics, page
from profiler.gate.agreement import KL_LIMIT, KL_LIMIT_F32
from profiler.gate.numerics import NOISE_FACTOR, Predictions
from profiler.gate.rule import GateVerdict
from profiler.gate.variants import Variant
from profiler.results.measurement import Measurement
from profiler.run import worker
from profiler.run.process import Launch
from profiler.run.protocol import encode, read_task, task_message
from profiler.run.repetitions import Effort

BF16 = Task(replace(make_case(512), quant="bf16", dtype="bf16"), source())
FP32 = Task(replace(make_case(512), quant="fp32", dtype="fp32"), source())
NF4 = Task(replace(make_case(512), quant="nf4", dtype="bf16"), source())


def answer(
    kept: str, prefill: float = 0.0, decode: float = 0.0, worst: float = 3.0, same: int = 10
) -> dict[str, Any]:
    """10 tokens of prose and of html for each phase; html has ``worst`` times the divergence of prose."""

    def phases(factor: float) -> dict[str, dict[str, float]]:
        values = {"prefill": prefill, "decode": decode}
        return {
            phase: {"tokens": 10, "same": same, "kl": 10 * value * factor * 2 / (1 + worst)}
            for phase, value in values.items()
        }

    identical = prefill == decode == 0
    return {"kept": {"of": kept}, "identical": identical, "kinds": {"prose": phases(1), "html": phases(worst)}}


class Side:
    """A version whose answers are given by dtype; it notes what it was asked."""

    def __init__(self, **answers: dict[str, Any] | str) -> None:
        self.answers, self.asked = answers, list[tuple[str, str, Any]]()

    def __call__(self, task: Task, against: Any) -> Any:
        self.asked.append((task.case.quant, task.case.dtype, against))
        found = self.answers[task.case.dtype]
        if isinstance(found, str):
            raise ProfileError(found)
        return found


def judged(task: Task, base: Side, candidate: Side) -> dict[str, GateVerdict]:
    own = base(task, None)["kept"]
    found = numerics.verdicts("case", task, lambda: numerics.kept(task, base, own), own, candidate)
    return {verdict.metric: verdict for verdict in found}


def words(found: dict[str, GateVerdict]) -> dict[str, str]:
    return {metric: verdict.word for metric, verdict in found.items()}


def test_equal_versions_pass_after_one_pass_of_each() -> None:
    base, candidate = Side(bf16=answer("base")), Side(bf16=answer("base"))
    found = judged(BF16, base, candidate)
    assert words(found) == {"tokens": "PASS", "prefill_kl": "PASS", "decode_kl": "PASS"}
    assert (
        found["decode_kl"].kl == 0
        and "equal to the last bit at 20 tokens of prose, html" in found["decode_kl"].reason
    )
    assert (base.asked, candidate.asked) == ([("bf16", "bf16", None)], [("bf16", "bf16", {"of": "base"})])


def test_a_fault_that_16_bits_hide_is_found_in_fp32_and_named_by_kind_of_text() -> None:
    noise = answer("base in fp32", 1e-3, 1e-3)
    base = Side(bf16=answer("base"), fp32=noise)
    candidate = Side(bf16=answer("now", 1.2e-3, 1.2e-3, same=9), fp32=answer("now", 4e-5, 1e-9))
    found = judged(BF16, base, candidate)
    assert words(found) == {
        "tokens": "FAIL",
        "prefill_kl": "PASS",
        "decode_kl": "PASS",
        "prefill_kl_fp32": "FAIL",
        "decode_kl_fp32": "PASS",
    }
    failed = found["prefill_kl_fp32"]
    assert failed.kl == pytest.approx(4e-5) and failed.kl_limit == KL_LIMIT_F32
    assert list(failed.kinds or ()) == ["html", "prose"]
    assert "most in html: 6e-05 (prose 2e-05); more than 1e-05" in failed.reason
    assert base.asked[1] == ("fp32", "fp32", {"of": "base"})  # the noise of bf16: the same weights in both
    assert candidate.asked[1] == ("fp32", "fp32", {"of": "base in fp32"})
    row = dict(zip(*(line.split() for line in page.table([failed])), strict=False))
    assert (row["metric"], row["verdict"], row["KL,"]) == ("prefill_kl_fp32", "FAIL", "4e-05")


@pytest.mark.parametrize(("factor", "word"), [(0.9, "PASS"), (1.1, "FAIL")])
def test_in_16_bits_the_limit_follows_the_noise_of_the_model(factor: float, word: str) -> None:
    base = Side(bf16=answer("base"), fp32=answer("", 2e-3, 1e-3))
    kl = factor * NOISE_FACTOR * 1e-3
    found = judged(BF16, base, Side(bf16=answer("now", kl, kl), fp32=answer("", 1e-8, 1e-8)))
    assert (found["decode_kl"].word, found["prefill_kl"].word) == (word, "PASS")  # prefill has twice the noise


def test_a_model_in_fp32_is_compared_once() -> None:
    candidate = Side(fp32=answer("now", 1e-9, 2e-5))
    found = judged(FP32, Side(fp32=answer("base")), candidate)
    assert words(found) == {"tokens": "PASS", "prefill_kl": "PASS", "decode_kl": "FAIL"}
    assert len(candidate.asked) == 1


def test_packed_weights_keep_their_quantization_in_fp32() -> None:
    base = Side(bf16=answer("base"), fp32=answer("", 1e-3, 1e-3))
    judged(NF4, base, Side(bf16=answer("now", 1e-3, 1e-3), fp32=answer("", 1e-9, 1e-9)))
    assert base.asked[1][:2] == ("nf4", "fp32")


def test_rounded_activations_have_a_wider_limit() -> None:
    asked = Task(replace(NF4.case, quant="int8"), source())
    base = Side(bf16=answer("base"), fp32=answer("", 1e-4, 1e-4))
    now = Side(bf16=answer("now", 5e-3, 5e-3), fp32=answer("", 5e-3, 2 * KL_LIMIT))
    assert [name for name, verdict in judged(asked, base, now).items() if verdict.word == "FAIL"] == [
        "decode_kl_fp32"
    ]


def test_without_memory_for_fp32_the_limit_is_a_fixed_one_and_says_why() -> None:
    base = Side(bf16=answer("base"), fp32="its weights need 60 GiB")
    found = judged(BF16, base, Side(bf16=answer("now", 2 * KL_LIMIT, 1e-3)))
    assert words(found) == {"tokens": "PASS", "prefill_kl": "FAIL", "decode_kl": "PASS"}
    assert "because fp32 cannot be computed: its weights need 60 GiB" in found["decode_kl"].reason


def test_a_candidate_that_cannot_be_compared_in_fp32_does_not_pass() -> None:
    base = Side(bf16=answer("base"), fp32=answer("", 1e-3, 1e-3))
    found = judged(BF16, base, Side(bf16=answer("now", 1e-3, 1e-3), fp32="out of memory"))
    assert found["kl_fp32"].word == "INCONCLUSIVE"


def test_stored_predictions_are_read_as_they_were_written() -> None:
    stored = numerics.kept(BF16, Side(bf16=answer("base"), fp32=answer("fp32", 1e-3, 2e-3)))
    assert stored.noise == pytest.approx({"prefill": 1e-3, "decode": 2e-3})
    assert Predictions.from_json(stored.to_json()) == stored


@pytest.mark.parametrize(
    "change",
    [
        {"own": None},
        {"precise": "x"},
        {"noise": {"prefill": 1.0}},
        {"noise": {"prefill": -1, "decode": 0}},
        {"reason": 1},
    ],
)
def test_damaged_predictions_of_a_baseline_are_refused(change: dict[str, Any]) -> None:
    content = {"own": {}, "precise": {}, "noise": {"prefill": 0.1, "decode": 0.1}, "reason": None}
    Predictions.from_json(content)
    with pytest.raises(ValueError, match="predictions"):
        Predictions.from_json(content | change)


class OneRow:
    """A bench whose process gives one row."""

    def __init__(self, row: Measurement) -> None:
        self._row = row

    def row(self, variant: Variant, task: Task, effort: Effort | None = None) -> Measurement:
        assert effort is not None and effort.agreement == {"against": {"of": "base"}}
        return self._row


def test_a_version_that_gives_no_predictions_is_named_with_the_reason() -> None:
    device, old = devices.find("cpu"), Variant("HEAD~9", Launch(("python",)))
    row = Measurement(BF16.case, {}, "failed", "TypeError: got an unexpected keyword argument 'agreement'")
    predict = numerics.predictor(OneRow(row), old, device, Effort())  # type: ignore[arg-type]
    with pytest.raises(ProfileError, match="HEAD~9 gives no predictions: its profiler is older"):
        predict(BF16, {"of": "base"})
    good = OneRow(Measurement(BF16.case, {}, "ok", quality={"identical": True}))
    assert numerics.predictor(good, old, device, Effort())(BF16, {"of": "base"}) == {"identical": True}  # type: ignore[arg-type]


def test_a_worker_gives_predictions_instead_of_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    module, sent = ModuleType("fake_predictions"), list[dict[str, Any]]()
    module.measure = lambda session, case, source, wanted, beat: {"kept": wanted["against"]}  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "fake_predictions", module)
    traits = replace(backends.find("fake"), agreement="fake_predictions")
    monkeypatch.setattr(worker.backends, "find", lambda name: traits)
    asked = Effort(agreement={"against": {"of": "base"}})
    message = json.loads(encode(task_message(Task(make_case(512), source()), asked, None)))
    wire = SimpleNamespace(beat=lambda text: None, send=sent.append, phase="start")
    worker.serve(iter([read_task(message)]), wire)  # type: ignore[arg-type]
    row = Measurement.from_json(json.loads(encode(sent[-1]))["row"])
    assert (row.outcome, row.quality, len(row.samples)) == ("ok", {"kept": {"of": "base"}}, 0), row.reason
