"""The static decode step as the audit takes it: a call for each step, and what the host does between calls."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import torch
from transformers import PreTrainedModel

from .audit import AuditReport, Finding, Step, audit_step, model_findings, step_findings
from .runner import StaticRunner
from .step import decode_step
from .substitute import Substitutes

CONTEXT = 5
SMALLEST_BUCKET = 16  # so that some dozen steps pass through several
DEFAULT_WINDOW = 16
WINDOWS = 3


class StaticStep:
    """A fresh state of ``model`` after a short prompt; calling it is one decode step."""

    def __init__(self, model: PreTrainedModel, steps: int) -> None:
        vocabulary = model.config.get_text_config().vocab_size
        ids = torch.randint(vocabulary, (1, CONTEXT), generator=torch.Generator().manual_seed(0))
        runner = StaticRunner(model)
        runner.prefill(ids.to(model.device))
        runner.prepare(steps)
        self.model, self.state = model, runner.state
        self.state.exact, self.state.smallest_bucket = False, SMALLEST_BUCKET
        self.state.set_bucket(self.state.bucket)

    def __call__(self) -> torch.Tensor:
        return decode_step(self.model, self.state)

    @staticmethod
    def host(step: StaticStep) -> int:
        """Choose the bucket and count the step, as every runner does."""
        bucket = step.state.bucket
        step.state.set_bucket(bucket)
        step.state.claim(1)
        return bucket


def away_findings(model: PreTrainedModel, make: Callable[[PreTrainedModel], Step]) -> tuple[Finding, ...]:
    """What a step takes from the host, seen by running it on the ``meta`` device: there every host tensor is foreign,
    and reading a value raises. Quantized models are left out, since bitsandbytes has no kernels there.
    """
    if getattr(model, "quantization_method", None) or any("bit" in type(m).__name__ for m in model.modules()):
        return ()
    away = copy.deepcopy(model).to("meta")
    with Substitutes(away, loops=False):
        try:
            step = make(away)
        except Exception as error:
            return (Finding("step", " ".join(str(error).split())),)
        return tuple(replace(finding, gate="device") for finding in step_findings(step))


def audit(model: PreTrainedModel) -> AuditReport:
    """Audit the static decode step of a (small) model, round its window and through several buckets."""
    window = getattr(model.config.get_text_config(), "sliding_window", None) or DEFAULT_WINDOW
    steps = WINDOWS * min(window, 4 * DEFAULT_WINDOW)
    listed = (*model_findings(model), *away_findings(model, lambda copied: StaticStep(copied, 1)))
    if listed:  # refused already; a recording would only find the same again
        return AuditReport(listed, 0, 0)
    with Substitutes(model, loops=False):
        try:
            report = audit_step(lambda: StaticStep(model, steps), steps, StaticStep.host)
        except Exception as error:  # a model that the static step refuses or that raises inside it
            return AuditReport((*listed, Finding("step", " ".join(str(error).split()))), 0, 0)
    return report
