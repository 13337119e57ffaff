"""The compiled step is the same step: same tokens, compiled once, and any failure falls back with a reason."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from fakes.architectures import WINDOW, prompt
from transformers import PreTrainedModel

from profiler.kernels import compiled, native
from profiler.kernels.compiled import CompiledRunner
from profiler.kernels.runner import EagerRunner

Tiny = Callable[[str], PreTrainedModel]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gemma3", "gemma4_26b_a4b", "gemma4_e2b", "qwen3_5", "qwen3_5_moe", "llama"])
def test_compiled_tokens_are_those_of_transformers(tiny: Tiny, name: str) -> None:
    if reason := native.missing():
        pytest.skip(reason)
    eager, graph = EagerRunner(tiny(name)), CompiledRunner(tiny(name))
    for runner in (eager, graph):
        runner.prefill(prompt(2, WINDOW - 3))
        runner.prepare(256)
    assert graph.stats().reason is None
    assert graph.stats().path == "graph"
    with torch._dynamo.config.patch(error_on_recompile=True):
        graph.enqueue(256)
    eager.enqueue(256)
    assert graph.read() == eager.read()


def test_a_failed_compilation_falls_back_and_says_why(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise RuntimeError("no luck today\nand more")

    monkeypatch.setattr(compiled.torch, "compile", refuse)
    monkeypatch.setattr(compiled, "native_reason", lambda model: None)
    runner, eager = CompiledRunner(tiny("llama")), EagerRunner(tiny("llama"))
    for each in (runner, eager):
        each.prefill(prompt(1, 7))
        each.prepare(20)
        each.enqueue(20)
    assert runner.read() == eager.read()
    assert (runner.stats().path, runner.stats().reason) == ("static", "not compiled: no luck today and more")


def test_other_logits_are_a_reason_to_fall_back(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(step, **kwargs: object):
        return lambda model, state: step(model, state) * 1.5

    monkeypatch.setattr(compiled.torch, "compile", wrong)
    monkeypatch.setattr(compiled, "native_reason", lambda model: None)
    runner = CompiledRunner(tiny("llama"))
    runner.prefill(prompt(1, 7))
    runner.prepare(4)
    assert runner.stats().path == "static"
    assert "other logits (off by 0.5 of the largest)" in runner.stats().reason
