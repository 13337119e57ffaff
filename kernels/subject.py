"""The static decode step as the audit takes it: a call for each step, and what the host does between calls."""

from __future__ import annotations

from dataclasses import replace

import torch
from transformers import PreTrainedModel

from .audit import AuditReport, Finding, audit_step, model_findings
from .runner import StaticRunner
from .step import decode_step
from .substitute import substituted

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


def audit(model: PreTrainedModel) -> AuditReport:
    """Audit the static decode step of a (small) model, round its window and through several buckets."""
    window = getattr(model.config.get_text_config(), "sliding_window", None) or DEFAULT_WINDOW
    steps = WINDOWS * min(window, 4 * DEFAULT_WINDOW)
    listed = tuple(model_findings(model))
    with substituted(model, loops=False):
        try:
            report = audit_step(lambda: StaticStep(model, steps), steps, StaticStep.host)
        except Exception as error:  # a model that the static step refuses or that raises inside it
            return AuditReport((*listed, Finding("step", " ".join(str(error).split()))), 0, 0)
    return replace(report, findings=(*listed, *report.findings))
