"""The compiled step is the same step: same tokens, compiled once, and any failure falls back with a reason."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from fakes.architectures import WINDOW, prompt
from transformers import PreTrainedModel

from profiler.kernels import graph as kernels_graph
from profiler.kernels import native
from profiler.kernels.graph import CompiledRunner
from profiler.kernels.runner import EagerRunner

Tiny = Callable[[str], PreTrainedModel]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gemma4_26b_a4b", "gemma4_e2b", "qwen3_5_moe", "llama"])
def test_compiled_tokens_are_those_of_transformers(tiny: Tiny, name: str) -> None:
    """Past the end of the ring and into the second bucket of 256 slots; the next test has gemma3."""
    if reason := native.missing():
        pytest.skip(reason)
    eager, graph = EagerRunner(tiny(name)), CompiledRunner(tiny(name))
    for runner in (eager, graph):
        runner.prefill(prompt(2, 256 - WINDOW))
        runner.prepare(3 * WINDOW)
    assert graph.stats().reason is None
    assert graph.stats().path == "graph"
    with torch._dynamo.config.patch(error_on_recompile=True):
        graph.enqueue(3 * WINDOW)
    eager.enqueue(3 * WINDOW)
    assert graph.read() == eager.read()


@pytest.mark.slow
def test_other_contexts_run_the_same_code_and_other_models_do_not(tiny: Tiny) -> None:
    """The number of slots is dynamic: of rings that are not full, of full ones and of growing layers."""
    if reason := native.missing():
        pytest.skip(reason)

    def tokens(kind: type[EagerRunner] | type[CompiledRunner], model: PreTrainedModel, context: int) -> object:
        runner = kind(model)
        runner.prefill(prompt(1, context))
        runner.prepare(24)
        assert kind is EagerRunner or (runner.stats().path, runner.stats().reason) == ("graph", None)
        runner.enqueue(24)
        return runner.read()

    first, second = tiny("gemma3"), copy.deepcopy(tiny("gemma3"))
    with torch.no_grad():
        for parameter in second.parameters():
            parameter.mul_(1.3)
    assert tokens(CompiledRunner, first, 2 * WINDOW) == tokens(EagerRunner, first, 2 * WINDOW)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for context in (5, WINDOW - 3, 5 * WINDOW):
            assert tokens(CompiledRunner, first, context) == tokens(EagerRunner, first, context)
    assert tokens(EagerRunner, second, 9) != tokens(EagerRunner, first, 9)
    assert tokens(CompiledRunner, second, 9) == tokens(EagerRunner, second, 9)


def test_a_failed_compilation_falls_back_and_says_why(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise RuntimeError("no luck today\nand more")

    monkeypatch.setattr(kernels_graph.torch, "compile", refuse)
    monkeypatch.setattr(kernels_graph, "native_reason", lambda model: None)
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

    monkeypatch.setattr(kernels_graph.torch, "compile", wrong)
    monkeypatch.setattr(kernels_graph, "native_reason", lambda model: None)
    runner = CompiledRunner(tiny("llama"))
    runner.prefill(prompt(1, 7))
    runner.prepare(4)
    assert runner.stats().path == "static"
    assert "other logits (off by 0.5 of the largest)" in runner.stats().reason
