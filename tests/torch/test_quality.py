"""Passes over text on tiny models: the definition in torch, in blocks, stored and in memory; and the decode paths."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from profiler.backends.hf import comparison, text_pass
from profiler.backends.hf.session import open_session
from profiler.case import Case, Source
from profiler.quality import definition, references, texts

Tiny = Callable[[str], Path]


def nothing(text: str) -> None:
    pass


def window(length: int, seed: int = 0, vocabulary: int = 512) -> texts.TextWindow:
    tokens = torch.randint(vocabulary, (length,), generator=torch.Generator().manual_seed(seed)).tolist()
    return texts.TextWindow("kind", "document", tuple(tokens), 1)


def loaded(folder: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


def changed(folder: Path, amount: float = 0.02) -> PreTrainedModel:
    """The model with noise in its weights, as a quantization would make it."""
    model = loaded(folder)
    noise = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += amount * parameter.std() * torch.randn(parameter.shape, generator=noise)
    return model


def ids(of: texts.TextWindow) -> torch.Tensor:
    return torch.tensor([of.tokens])


def kept_of(
    model: PreTrainedModel, of: texts.TextWindow, top: int = 128, samples: int = 64
) -> references.ReferenceArrays:
    keeper = comparison.Keeper(of, top, samples)
    text_pass.read_window(model, of.tokens, keeper, nothing)
    return keeper.arrays({})


def figures(
    model: PreTrainedModel, of: texts.TextWindow, reference: references.ReferenceArrays
) -> comparison.PositionFigures:
    scorer = comparison.Scorer(of, reference, torch.device("cpu"))
    text_pass.read_window(model, of.tokens, scorer, nothing)
    return scorer.figures()


def logits(model: PreTrainedModel, of: texts.TextWindow) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=ids(of)).logits[0, of.unscored - 1 : -1].double()


def exact(reference: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    p, q = reference.log_softmax(-1), other.log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_sum_of_exponentials_is_that_of_float64(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """In blocks of any width, also where a block has only tokens that are impossible."""
    logits = (torch.randn(5, 1000, generator=torch.Generator().manual_seed(0)) * 20).to(dtype)
    logits[:, 300:420] = -torch.inf
    exact = torch.logsumexp(logits.double(), dim=1, keepdim=True)
    for block in (5, 5 * 7, 5 * 64, 5 * 1000):
        monkeypatch.setattr(comparison, "SUM_BLOCK", {"cpu": block})
        found = comparison.summed(logits)
        assert torch.equal(found.most, logits.amax(dim=1, keepdim=True).float())
        assert torch.equal(found.best, logits.argmax(dim=1, keepdim=True))
        torch.testing.assert_close(found.most.double() + found.log_total, exact, rtol=0, atol=1e-6)
    logits[2, 7] = torch.nan
    assert bool(comparison.summed(logits).log_total[2].isnan())


def test_logits_of_blocks_are_those_of_the_whole_model(any_tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every family, with its own scaling and soft capping, in chunks and blocks that do not divide the length."""
    monkeypatch.setattr(text_pass, "CHUNK", 24)
    monkeypatch.setattr(text_pass, "DECODED_TOKENS", 13)
    monkeypatch.setattr(text_pass, "LOGITS_BYTES", 4 * 512 * 7)
    model, of = loaded(any_tiny_model), window(61)
    rows: dict[int, torch.Tensor] = {}
    text_pass.read_window(model, of.tokens, lambda at, part: rows.update({at: part}), nothing)
    whole = torch.cat([rows[at] for at in sorted(rows)])
    with torch.inference_mode():
        expected = model(input_ids=ids(of)).logits[0]
    torch.testing.assert_close(whole, expected, atol=1e-4, rtol=1e-4)
    assert max(len(part) for part in rows.values()) == 7


def test_a_model_compared_with_itself_differs_by_nothing(any_tiny_model: Path) -> None:
    model, of = loaded(any_tiny_model), window(90)
    found = figures(model, of, kept_of(model, of))
    assert (float(found.kl.abs().max()), float(found.variance.max()), bool(found.same.all())) == (0.0, 0.0, True)


def test_blocks_the_stored_reference_and_memory_agree_within_the_stated_bound(tiny_model: Tiny) -> None:
    base, other, of = loaded(tiny_model("gemma3")), changed(tiny_model("gemma3")), window(400)
    truth = exact(logits(base, of), logits(other, of))
    whole = figures(other, of, kept_of(base, of, top=512))
    assert torch.allclose(whole.kl, truth, rtol=0, atol=1e-6)  # no rest: only float32 rounds
    found = figures(other, of, kept_of(base, of))
    error = definition.ERRORS * float(found.variance.sum().sqrt()) / len(found.kl)
    assert float(found.rest.mean()) > 0.3  # a random model: most of the mass is estimated
    assert 0 < error < 0.1 * float(truth.mean())
    assert abs(float(found.kl.mean() - truth.mean())) < error


def test_the_torch_figures_are_those_of_the_definition(tiny_model: Tiny) -> None:
    base, other, of = loaded(tiny_model("llama")), changed(tiny_model("llama"), 0.1), window(24)
    reference = kept_of(base, of, top=16, samples=8)
    found = figures(other, of, reference)
    for place, (p, q) in enumerate(zip(logits(base, of).tolist(), logits(other, of).tolist(), strict=True)):
        log_p, log_q = definition.log_softmax(p), definition.log_softmax(q)
        rows = {name: comparison._tensor(reference, name)[place].tolist() for name in references.NAMES}
        expected = definition.keep(log_p, 16, 8)
        assert rows["ids"] == expected.ids
        assert rows["logs"] == pytest.approx(expected.logs, abs=1e-5)
        assert rows["rest_entropy"] == pytest.approx(expected.rest_entropy, rel=1e-4)
        assert not set(rows["sampled"]) & set(rows["ids"])
        same = definition.Reference(
            rows["ids"], rows["logs"], rows["rest_entropy"], rows["sampled"], rows["sampled_logs"]
        )
        divergence = definition.divergence(same, log_q)
        assert float(found.kl[place]) == pytest.approx(divergence.value, rel=1e-3, abs=1e-6)
        assert float(found.variance[place]) == pytest.approx(divergence.variance, rel=2e-2, abs=1e-12)
        assert bool(found.same[place]) == definition.is_same_top(same, log_q)
        assert divergence.low <= definition.exact(log_p, log_q) <= divergence.high
        assert float(found.nll[place]) == pytest.approx(-log_q[of.tokens[place + 1]], abs=1e-4)


def test_tokens_are_drawn_as_often_as_the_reference_predicts_them() -> None:
    keeper = comparison.Keeper(texts.TextWindow("k", "d", (0, 1), 1), top=1, samples=20_000)
    logits = torch.tensor([[3.0, 1.0, 0.0, -1.0, -math.inf]])
    keeper(0, logits)
    counts = torch.frombuffer(bytearray(keeper.arrays({}).arrays["sampled"]), dtype=torch.int32).bincount(minlength=5)
    rest = torch.tensor([1.0, 0.0, -1.0]).softmax(0)
    assert counts[0] == counts[4] == 0
    torch.testing.assert_close(counts[1:4] / 20_000, rest, atol=1e-3, rtol=0)


def decoded(model: PreTrainedModel, of: texts.TextWindow, path: str) -> tuple[list[int], torch.Tensor]:
    """The positions and the logits of the decode steps of a window."""
    rows: dict[int, torch.Tensor] = {}
    keep = lambda at, part: rows.update({at: part[0].clone()})  # noqa: E731
    text_pass.read_window(model, of.tokens, lambda at, part: None, nothing, keep, path)
    return list(rows), torch.stack([*rows.values()]).double()


@pytest.mark.parametrize("path", ["eager", "static"])
def test_forced_steps_of_a_path_predict_what_the_prompt_pass_does(any_tiny_model: Path, path: str) -> None:
    model, of = loaded(any_tiny_model), window(104)
    places, found = decoded(model, of, path)
    assert places == list(range(40, 104))
    with torch.inference_mode():
        expected = model(input_ids=ids(of)).logits[0, 40:]
    assert float(exact(expected.double(), found).max()) < 1e-6


def test_in_bf16_our_step_adds_no_more_noise_than_bf16_itself(any_tiny_model: Path) -> None:
    of = window(104)
    with torch.inference_mode():
        reference = loaded(any_tiny_model)(input_ids=ids(of)).logits[0, 40:].double()
    noise = {
        path: float(exact(reference, decoded(loaded(any_tiny_model, torch.bfloat16), of, path)[1]).mean())
        for path in ("eager", "static")
    }
    assert 0 < noise["static"] <= 2 * noise["eager"]


FOUR_BITS = ("nf4", "nf4-dq", "fp4")


def packed(folder: Path, quant: str, dtype: str) -> PreTrainedModel:
    """The model in a quantization of bitsandbytes."""
    asked = Case("m", "m", "real", quant, dtype, "cpu", "hf", "static", context=64, batch=1, steps=4, threads=1)
    source = Source("folder", str(folder), None, json.loads((folder / "config.json").read_text()))
    return open_session(asked, source, nothing).model


@pytest.mark.parametrize("quant", FOUR_BITS)
def test_on_packed_weights_our_step_predicts_what_eager_steps_do(tiny_model: Tiny, quant: str) -> None:
    of, model = window(104), packed(tiny_model("gemma3"), quant, "fp32")
    eager, static = (decoded(model, of, path)[1] for path in ("eager", "static"))
    assert float(exact(eager, static).max()) < 1e-6


@pytest.mark.parametrize("quant", FOUR_BITS)
def test_on_packed_weights_our_step_adds_no_more_noise_than_bf16_itself(tiny_model: Tiny, quant: str) -> None:
    of, folder = window(104), tiny_model("gemma3")
    reference = decoded(packed(folder, quant, "fp32"), of, "eager")[1]
    eager, static = (decoded(packed(folder, quant, "bf16"), of, path)[1] for path in ("eager", "static"))
    assert 0 < float(exact(reference, static).mean()) <= 2 * float(exact(reference, eager).mean())


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_our_step_on_8_bit_rows_is_nearer_to_their_values_than_llm_int8(tiny_model: Tiny, dtype: str) -> None:
    """LLM.int8() rounds activations to 8 bits as well; our step on a CPU does not."""
    of, folder = window(104), tiny_model("gemma3")
    model, plain = packed(folder, "int8", dtype), loaded(folder)
    for name, module in model.named_modules():
        if type(module).__name__ == "Linear8bitLt":
            values = module.weight.CB.float() * module.weight.SCB[:, None] / 127
            plain.get_submodule(name).weight.data.copy_(values)
    reference = decoded(plain, of, "eager")[1]
    eager, static = (float(exact(reference, decoded(model, of, path)[1]).mean()) for path in ("eager", "static"))
    assert static <= eager


@pytest.mark.slow
def test_the_compiled_step_loses_nothing_on_packed_weights(tiny_model: Tiny) -> None:
    of, model = window(104), packed(tiny_model("gemma3"), "nf4", "fp32")
    eager, graph = (decoded(model, of, path)[1] for path in ("eager", "graph"))
    assert float(exact(eager, graph).max()) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_compiled_step_loses_nothing_against_eager(tiny_model: Tiny, dtype: torch.dtype) -> None:
    of, folder = window(104), tiny_model("gemma3")
    with torch.inference_mode():
        reference = loaded(folder)(input_ids=ids(of)).logits[0, 40:].double()
    eager, graph = (decoded(loaded(folder, dtype), of, path)[1] for path in ("eager", "graph"))
    if dtype == torch.float32:
        assert float(exact(eager, graph).max()) < 1e-6
    else:
        assert float(exact(reference, graph).mean()) <= 2 * float(exact(reference, eager).mean())
