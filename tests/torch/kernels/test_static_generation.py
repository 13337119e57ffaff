"""The paths static and graph in the hf backend: the measuring loop sees the same phases, lengths and tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fakes.architectures import WINDOW, build

from profiler import decode_path
from profiler.backends.hf.session import HfGeneration, StaticGeneration
from profiler.case import Case
from profiler.errors import ProfileError
from profiler.kernels import native, patches, runner, state
from profiler.kernels.graph import CompiledRunner

CASE = Case("tiny", "0", "synthetic", "fp32", "fp32", "cpu", "hf", "static", context=WINDOW + 7, batch=2, steps=20)


def decode(generation: HfGeneration, case: Case) -> list[list[int]]:
    """The phases of the measuring loop, each checked as it checks them."""
    if case.fill == "prefill":
        assert generation.prefill() == case.batch * case.context
    else:
        generation.fill()
    assert generation.cache().length == case.context
    generation.save()
    for _ in range(2):
        generation.restore()
        for _ in range(case.steps):
            generation.step()
        assert generation.cache().length == case.context + case.steps
    return generation.tokens


@pytest.mark.parametrize("fill", ["prefill", "synthetic"])
@pytest.mark.parametrize("name", ["gemma4_e2b", "qwen3_5_moe"])
def test_a_static_generation_decodes_the_tokens_of_an_eager_one(name: str, fill: str) -> None:
    case, model = replace(CASE, fill=fill), build(name)
    static = StaticGeneration(model, case, lambda words: None)
    assert decode(static, case) == decode(HfGeneration(model, case, lambda words: None), case)
    static.release()
    static.step()  # the one more that the loop takes for the peak
    assert static.cache().retained_bytes == 0


def test_window_layers_stay_small_at_a_great_depth() -> None:
    model = build("gemma3")
    case = replace(CASE, fill="synthetic", context=8192, batch=1, steps=2)
    generation = StaticGeneration(model, case, lambda words: None)
    decode(generation, case)
    token = 2 * 2 * 16 * 4  # K and V, two heads of 16, fp32
    assert generation.cache().storage_bytes == token * (3 * WINDOW + 8192 + 2 + 1)
    assert generation.runner is not None
    needed, read = generation.runner.state.read_bytes()
    assert needed <= read <= 2 * needed
    assert needed == token * (3 * WINDOW + 8192 + 3)


def test_a_failed_compilation_is_a_caution(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CompiledRunner, "_compile", lambda self: "not compiled: no luck")
    case = replace(CASE, path="graph")
    generation = StaticGeneration(build("llama"), case, lambda words: None)
    generation.prefill()
    generation.save()
    assert [caution.text for caution in generation.cautions()] == [
        "path static instead of graph: not compiled: no luck"
    ]


@pytest.mark.parametrize("fill", ["prefill", "synthetic"])
def test_an_unsupported_model_runs_as_shipped_and_says_so(monkeypatch: pytest.MonkeyPatch, fill: str) -> None:
    def refuse(cache: object) -> list[int | None]:
        raise ProfileError("cache layer 0 is a StrangeLayer, for which the static decode step has no rule", "…")

    monkeypatch.setattr(state, "layer_kinds", refuse)
    case, model = replace(CASE, fill=fill), build("qwen3")
    generation = StaticGeneration(model, case, lambda words: None)
    tokens = decode(generation, case)
    assert tokens == decode(HfGeneration(model, case, lambda words: None), case)
    assert generation.path().ran == "eager"
    (caution,) = generation.cautions()
    assert caution.text.startswith("path eager instead of static: cache layer 0 is a StrangeLayer")
    generation.release()
    generation.step()


def prepared(case: Case, dtype: torch.dtype = torch.float32) -> StaticGeneration:
    generation = StaticGeneration(build("llama", dtype), case, lambda words: None)
    generation.prefill()
    generation.save()
    return generation


def test_a_fallback_is_stored_with_the_state_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A later sweep needs it, to know whether the case would fall back again."""
    assert prepared(CASE).path().machine is None
    monkeypatch.setattr(native, "missing", lambda: "cannot build: No space left on device")
    generation = prepared(CASE)
    assert generation.path().machine == decode_path.machine_state()
    (caution,) = generation.cautions()
    assert (caution.code, caution.text) == (
        "plain-torch",
        "decode on plain torch: cannot build: No space left on device",
    )


@pytest.mark.parametrize(
    ("reason", "state"),
    [
        ("not compiled: no luck", decode_path.machine_state),
        ("not compiled: out of memory", lambda: decode_path.SHORT_OF_MEMORY),
    ],
)
def test_a_failed_compilation_is_a_fallback_of_the_machine(
    monkeypatch: pytest.MonkeyPatch, reason: str, state: Callable[[], str]
) -> None:
    monkeypatch.setattr(CompiledRunner, "_compile", lambda self: reason)
    assert prepared(replace(CASE, path="graph")).path().machine == state()


@pytest.mark.parametrize("path", ["static", "graph"])
def test_an_unsupported_dtype_is_not_a_fallback_of_the_machine(path: str) -> None:
    generation = prepared(replace(CASE, path=path), torch.float16)
    assert generation.path().machine is None
    assert "plain torch: no loops for torch.float16" in [generation.path().kernels]


@pytest.mark.parametrize(
    ("dtype", "reason", "fault"),
    [(torch.bfloat16, "no NVRTC", True), (torch.float16, "no kernels for torch.float16", False)],
)
def test_a_gpu_without_our_kernels_says_so(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, reason: str, fault: bool
) -> None:
    """It used to decode on plain torch without a caution."""
    monkeypatch.setattr(patches.cuda, "missing", lambda device: "no NVRTC")
    model: Any = SimpleNamespace(device=torch.device("cuda:0"), dtype=dtype)
    assert runner.describe_kernels(model) == f"plain torch: {reason}"
    assert runner.falls_back(model) is fault
    monkeypatch.setattr(patches.cuda, "missing", lambda device: None)
    model.dtype = torch.bfloat16
    assert runner.describe_kernels(model) is None and not runner.falls_back(model)
