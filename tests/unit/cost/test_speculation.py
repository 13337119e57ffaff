"""Multi-token prediction: more tokens per step, for the price of drafting and verifying them."""

from __future__ import annotations

import math

import pytest

from profiler.cost import engines
from profiler.cost.machine import Machine
from profiler.cost.prediction import Predictor
from profiler.cost.speculation import Speculation, speculation
from profiler.devices.target import find
from profiler.errors import ProfileError
from profiler.models import families, hub

K2 = Speculation(2, 0.7)


def predictor(
    model: str = "qwen3.5-27b", engine: str = "llama.cpp", quant: str = "q4_k_m", drafts: Speculation | None = K2
) -> Predictor:
    geometry = families.geometry(hub.shipped_config(model))
    machine = Machine(find("rtx pro 6000"))
    return Predictor(geometry, engines.find(engine), quant, machine, speculation=drafts)


@pytest.mark.parametrize(("drafted", "acceptance"), [(1, 0.5), (2, 0.7), (4, 0.9), (3, 0.0), (3, 1.0)])
def test_tokens_per_step_are_the_geometric_sum(drafted: int, acceptance: float) -> None:
    expected = drafted + 1 if acceptance == 1 else (1 - acceptance ** (drafted + 1)) / (1 - acceptance)
    assert math.isclose(Speculation(drafted, acceptance).tokens_per_step, expected)


def test_the_draft_layer_is_a_full_layer_of_the_model_with_a_projection() -> None:
    geometry = families.geometry(hub.shipped_config("qwen3.5-27b"))
    assert geometry.draft is not None
    full = next(layer for layer in geometry.layers if layer.kind == "full")
    hidden = geometry.hidden
    assert geometry.draft.parameters == full.parameters + 2 * hidden**2 + 3 * hidden


@pytest.mark.parametrize(("engine", "quant"), [("llama.cpp", "q4_k_m"), ("vllm", "fp8")])
@pytest.mark.parametrize("model", ["qwen3.5-9b", "qwen3.5-35b-a3b"])
def test_the_rate_rises_with_acceptance_and_memory_with_the_draft(model: str, engine: str, quant: str) -> None:
    plain = predictor(model, engine, quant, None).predict(8192, 1)
    found = [predictor(model, engine, quant, Speculation(2, a / 10)).predict(8192, 1) for a in range(11)]
    assert plain.decode is not None
    rates = [each.decode.tps.value for each in found if each.decode is not None]
    assert rates == sorted(rates)
    assert rates[0] < plain.decode.tps.value < rates[-1] < 3 * plain.decode.tps.value
    assert found[0].terms.weights.value > plain.terms.weights.value
    assert found[0].terms.cache.value > plain.terms.cache.value
    assert {each.terms.peak.value for each in found} == {found[0].terms.peak.value}


def test_more_drafted_tokens_take_longer_and_more_memory() -> None:
    found = [predictor(drafts=Speculation(k, 0.7)).predict(8192, 1) for k in (1, 2, 4, 8)]
    steps = [each.decode.seconds.value for each in found if each.decode is not None]
    assert steps == sorted(set(steps)) and len(steps) == 4
    peaks = [each.terms.peak.value for each in found]
    assert peaks == sorted(set(peaks))


def test_a_range_is_wider_than_without_drafts_and_possible() -> None:
    plain, drafted = (predictor(drafts=each).predict(8192, 1).decode for each in (None, K2))
    assert plain is not None and drafted is not None
    assert drafted.seconds.high / drafted.seconds.low > plain.seconds.high / plain.seconds.low
    assert drafted.seconds.basis == "prior"
    bandwidth = find("rtx pro 6000").bandwidth_bytes_s
    read = predictor().storage.device_bytes - predictor().storage.part_bytes("tables")
    assert drafted.seconds.low >= read / bandwidth


def test_verifying_one_token_is_a_plain_step() -> None:
    """Without a draft, the formula of a verifying step is that of a decode step."""
    case = predictor(drafts=None)
    _, step = case.works(4096, 4096, 3)
    assert step.tokens == 3
    assert step.nbytes == step.needed_bytes


def test_a_command_to_serve_drafts_and_none_that_measures() -> None:
    case = predictor()
    request = case.request(8192, 1)
    assert request.mtp == 2


@pytest.mark.parametrize(
    ("drafted", "acceptance", "says"),
    [
        (2, None, "--mtp needs --acceptance"),
        (None, 0.7, "--acceptance needs --mtp"),
        (0, 0.7, "from 1 to 16"),
        (17, 0.7, "from 1 to 16"),
        (2, -0.1, "must be from 0 to 1"),
        (2, math.nan, "must be from 0 to 1"),
    ],
)
def test_options_that_do_not_go_together_are_one_line(
    drafted: int | None, acceptance: float | None, says: str
) -> None:
    with pytest.raises(ProfileError, match=says) as caught:
        speculation(drafted, acceptance)
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("model", "engine", "quant", "says"),
    [
        ("gemma-4-e2b", "llama.cpp", "q4_k_m", "this model has no multi-token-prediction layer"),
        ("qwen3.5-9b", "transformers", "bf16", "transformers does not decode with multi-token-prediction layers"),
        ("qwen3.5-9b", "mlx", "4bit", "mlx does not decode with"),
    ],
)
def test_models_and_engines_without_it_are_refused(model: str, engine: str, quant: str, says: str) -> None:
    with pytest.raises(ProfileError, match=says):
        predictor(model, engine, quant)
