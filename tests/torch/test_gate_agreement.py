"""Predictions of two versions of the code: equal ones are equal to the last bit, and planted faults are found."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fakes import tiny
from fakes.tiny import with_tokenizer
from transformers import PreTrainedModel

from profiler.backends.hf import agreement
from profiler.backends.hf.session import open_session
from profiler.case import Case, Source, Task
from profiler.errors import ProfileError
from profiler.gate import numerics
from profiler.gate.rule import GateVerdict

Tiny = Callable[[str], Path]
Fault = Callable[[PreTrainedModel], None]


def silent(text: str) -> None:
    """A beat that does nothing."""


def unchanged(model: PreTrainedModel) -> None:
    """No fault."""


def scales(model: PreTrainedModel) -> None:
    """The weights or scales of the linear layers of one layer are off by two percent."""
    layers = model.model.layers
    for module in layers[len(layers) // 2].modules():
        if not hasattr(module, "in_features"):
            continue
        weight: Any = module.weight
        if getattr(weight, "quant_state", None) is not None:
            weight.quant_state.absmax.mul_(1.02)
        elif getattr(weight, "SCB", None) is not None:
            weight.SCB.mul_(1.02)
        else:
            weight.data.mul_(1.02)


class Version:
    """A version of the code, which may have a fault; predicts as a worker of the gate does."""

    def __init__(self, folder: Path, fault: Fault = unchanged) -> None:
        self.source = Source("folder", str(folder), None, json.loads((folder / "config.json").read_text()))
        self.fault = fault

    def __call__(self, task: Task, against: Any) -> Any:
        session = open_session(task.case, self.source, silent)
        self.fault(session.model)
        found = agreement.measure(session, task.case, self.source, {"against": against}, silent)
        return json.loads(json.dumps(found))  # as it arrives


def task(quant: str, dtype: str, path: str = "static", weights: str = "real") -> Task:
    case = Case("m", "m", weights, quant, dtype, "cpu", "hf", path, context=64, batch=1, steps=4, threads=1)
    return Task(case, Source("folder", "m", None, {}))


def judged(asked: Task, base: Version, now: Version) -> dict[str, GateVerdict]:
    own = base(asked, None)["kept"]
    found = numerics.verdicts("m", asked, lambda: numerics.kept(asked, base, own), own, now)
    return {verdict.metric: verdict for verdict in found}


@pytest.mark.parametrize(("quant", "dtype"), [("fp32", "fp32"), ("bf16", "bf16"), ("nf4", "bf16"), ("int8", "bf16")])
def test_equal_code_predicts_the_same_to_the_last_bit(tiny_model: Tiny, quant: str, dtype: str) -> None:
    asked, folder = task(quant, dtype), tiny_model("gemma3")
    found = judged(asked, Version(folder), Version(folder))
    assert {verdict.word for verdict in found.values()} == {"PASS"}
    assert [verdict.kl for verdict in found.values()] == [None, 0.0, 0.0]


def test_every_family_can_be_compared(any_tiny_model: Path) -> None:
    found = judged(task("fp32", "fp32"), Version(any_tiny_model), Version(any_tiny_model))
    assert found["decode_kl"].reason.endswith("tokens of random tokens")  # it has no tokenizer


@pytest.mark.slow
@pytest.mark.parametrize("quant", ["bf16", "int8"])
def test_scales_of_one_layer_off_by_two_percent_fail_by_kind_of_text(smollm2: Path, quant: str) -> None:
    found = judged(task(quant, "bf16"), Version(smollm2), Version(smollm2, scales))
    failed = [verdict for verdict in found.values() if verdict.word == "FAIL" and verdict.kl is not None]
    assert failed, {name: verdict.reason for name, verdict in found.items()}
    assert set(failed[0].kinds or ()) == {"code", "html", "long", "prose", "reasoning", "scripts"}


def test_a_fault_of_decode_alone_is_one_of_decode(tiny_model: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    from profiler.kernels.runner import StaticRunner

    folder, advance = tiny_model("llama"), StaticRunner.advance
    now = Version(
        folder, lambda model: monkeypatch.setattr(StaticRunner, "advance", lambda self: 1.2 * advance(self))
    )
    found = judged(task("fp32", "fp32"), Version(folder), now)
    assert (found["prefill_kl"].word, found["decode_kl"].word) == ("PASS", "FAIL")


def test_the_texts_come_with_the_predictions(tiny_model: Tiny, tmp_path: Path) -> None:
    """The other version may ship other texts, or none."""
    folder = with_tokenizer(tiny_model("llama"), tmp_path / "llama")
    kept = Version(folder)(task("fp32", "fp32"), None)["kept"]
    assert [text["kind"] for text in kept["texts"]] == ["code", "html", "long", "prose", "reasoning", "scripts"]
    found = Version(tiny_model("llama"))(task("fp32", "fp32"), kept)
    assert found["identical"] and found["kept"] == kept


@pytest.mark.parametrize(
    "damage",
    [
        lambda kept: kept.update(definition=0),
        lambda kept: kept.update(texts=[]),
        lambda kept: kept["texts"][0].update(tokens="1 x"),
        lambda kept: kept["texts"][0].update(tokens=" ".join([str(tiny.VOCAB)] * 64)),
        lambda kept: kept["texts"][0].update(unscored=63),
        lambda kept: kept.pop("decode"),
        lambda kept: kept["prefill"].__setitem__(0, "AAAA"),
        lambda kept: kept["prefill"].__setitem__(0, "no base64"),
    ],
)
def test_damaged_predictions_are_refused(tiny_model: Tiny, damage: Callable[[dict[str, Any]], object]) -> None:
    kept = Version(tiny_model("llama"))(task("fp32", "fp32"), None)["kept"]
    damage(kept)
    with pytest.raises(ProfileError, match=r"damaged|another definition"):
        Version(tiny_model("llama"))(task("fp32", "fp32"), kept)


def test_synthetic_weights_are_compared_on_random_tokens(tiny_model: Tiny) -> None:
    found = judged(
        task("fp32", "fp32", weights="synthetic"), Version(tiny_model("llama")), Version(tiny_model("llama"))
    )
    assert found["prefill_kl"].word == "PASS" and "random tokens" in found["prefill_kl"].reason
