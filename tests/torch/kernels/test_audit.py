"""The audit passes the static step of every family, and fails steps that a capture would break."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from fakes.architectures import WINDOW, build, prompt
from transformers import Cache, DynamicCache, PreTrainedModel, StaticCache

from profiler.kernels.audit import AuditReport, StaticStep, audit, audit_step, meta_findings, model_findings
from profiler.kernels.patches import Patches
from profiler.kernels.versions import with_cache

Tiny = Callable[[str], PreTrainedModel]
STEPS = 2 * WINDOW + 6


class StockStep:
    """Greedy decoding as transformers does it, on one of its own caches."""

    def __init__(self, model: PreTrainedModel, cache: Cache) -> None:
        self.model, self.cache = model, cache
        with torch.inference_mode():
            logits = model(input_ids=prompt(1, 5), **with_cache(cache)).logits[:, -1]
            self.token = logits.argmax(-1, keepdim=True)

    def __call__(self) -> torch.Tensor:
        logits = self.model(input_ids=self.token, **with_cache(self.cache)).logits[:, -1]
        self.token.copy_(logits.argmax(-1, keepdim=True))
        return logits


def gates(report: AuditReport) -> set[str]:
    return {finding.check for finding in report.findings}


# The other layers are those of catalog models, which test_audit_command.py audits, or of these in other sizes.
@pytest.mark.parametrize("name", ["gemma3", "gemma4_26b_a4b", "qwen3"])
def test_the_static_step_passes(tiny: Tiny, name: str) -> None:
    report = audit(tiny(name))
    assert report.findings == ()
    assert report.kernels > 50
    assert report.pool_bytes > 0


def test_stock_gemma4_on_a_static_cache_fails(tiny: Tiny) -> None:
    model = tiny("gemma4_e4b")
    report = audit_step(lambda: StockStep(model, StaticCache(config=model.config, max_cache_len=64)), STEPS)
    assert {"trace", "twin"} <= gates(report)


@pytest.mark.parametrize("name", ["llama", "qwen3_5"])
def test_a_growing_cache_fails(tiny: Tiny, name: str) -> None:
    model = tiny(name)
    report = audit_step(lambda: StockStep(model, DynamicCache(config=model.config)), STEPS)
    assert {"trace", "twin"} <= gates(report)


def test_experts_in_a_loop_fail(tiny: Tiny) -> None:
    model = build("qwen3_5_moe")

    def make() -> StaticStep:
        step = StaticStep(model, STEPS)
        model.config._experts_implementation = "eager"
        return step

    report = audit_step(make, STEPS, StaticStep.host)
    assert "operators" in gates(report)
    assert any("shape depends on data" in finding.text for finding in report.findings)


def test_grouped_experts_fail_on_most_gpus(tiny: Tiny) -> None:
    model = build("gemma4_26b_a4b", torch.bfloat16)
    model.config._experts_implementation = "grouped_mm"
    report = audit_step(lambda: StaticStep(model, 6), 6, StaticStep.host)
    assert any("use batched_mm" in finding.text for finding in report.findings)


class Frozen(StaticStep):
    """Keeps its position as a Python number."""

    def __init__(self, model: PreTrainedModel, steps: int) -> None:
        super().__init__(model, steps)
        self.number = self.state.context

    def __call__(self) -> torch.Tensor:
        self.state.position.fill_(self.number)
        self.number += 1
        return super().__call__()


class Swapped(StaticStep):
    """Replaces its recurrent state with new buffers instead of writing into it."""

    def __init__(self, model: PreTrainedModel, steps: int) -> None:
        super().__init__(model, steps)
        for layer in self.state.cache.layers:
            if hasattr(layer, "recurrent_states"):
                layer.update_recurrent_state = functools.partial(self.rebind, layer)

    @staticmethod
    def rebind(layer: Any, new: torch.Tensor, state_idx: int = 0) -> torch.Tensor:
        layer.recurrent_states[state_idx] = new
        return new


@pytest.mark.parametrize("kind, name", [(Frozen, "llama"), (Swapped, "qwen3_5")])
def test_host_state_fails(tiny: Tiny, kind: type[StaticStep], name: str) -> None:
    model = tiny(name)
    with Patches(model, loops=False):
        report = audit_step(lambda: kind(model, STEPS), STEPS, StaticStep.host)
    assert {"trace", "twin"} <= gates(report)


def test_reading_a_token_on_the_host_fails(tiny: Tiny) -> None:
    class Asking(StaticStep):
        def __call__(self) -> torch.Tensor:
            logits = super().__call__()
            self.state.token.fill_(int(logits.argmax()))
            return logits

    report = audit_step(lambda: Asking(tiny("llama"), STEPS), STEPS, StaticStep.host)
    assert any("reads a value on the host" in finding.text for finding in report.findings)


def test_a_host_tensor_in_the_step_is_seen_on_another_device(tiny: Tiny) -> None:
    class FromHost(StaticStep):
        def __call__(self) -> torch.Tensor:
            self.state.position.copy_(torch.full((1,), 7))
            return super().__call__()

    found = meta_findings(tiny("llama"), lambda model: FromHost(model, 1))
    assert any("moves data between devices" in finding.text for finding in found)


def int8(name: str, threshold: float) -> PreTrainedModel:
    """A tiny model with its linear layers quantized by bitsandbytes."""
    import bitsandbytes as bnb
    from torch import nn

    model = copy.deepcopy(build(name))
    for parent in list(model.modules()):
        for child, linear in list(parent.named_children()):
            if type(linear) is nn.Linear and child != "lm_head":
                shape = linear.in_features, linear.out_features
                made = bnb.nn.Linear8bitLt(*shape, bias=False, has_fp16_weights=False, threshold=threshold)
                weight = linear.weight.data.clone()
                made.weight = bnb.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
                setattr(parent, child, made.to("cpu"))
    return model.eval()


def test_int8_with_a_threshold_is_refused_and_without_one_passes() -> None:
    refused = audit(int8("qwen3", threshold=6.0))
    assert any("threshold 6 finds outliers on the host" in finding.text for finding in refused.findings)
    assert not list(model_findings(int8("qwen3", threshold=0.0)))


def test_dynamic_rotary_positions_are_refused() -> None:
    model = build("llama", rope_parameters={"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0})
    assert [finding.text for finding in model_findings(model)] == [
        "dynamic rotary positions read the sequence length on the host"
    ]
