"""Backend ``hf``: transformers as shipped, with bitsandbytes for the quantizations.

session = open(case, source, beat)    # loads or makes the model
trial = session.begin(case)           # inputs and cache of one case

``audited`` builds a small model of an architecture and audits its decode step, for ``profile audit``.
"""

from __future__ import annotations

import logging

import torch
import transformers

from profiler.backends.hf import synthetic
from profiler.backends.hf.load import DTYPES, text_config
from profiler.backends.hf.session import open
from profiler.case import Source
from profiler.kernels.audit import AuditReport, audit, miniature
from profiler.quants.base import Quant

__all__ = ["open"]

DTYPE = "fp32"  # of what a quantization leaves plain; a CPU without bf16 units computes it best


def audited(source: Source, quant: Quant) -> AuditReport:
    """Build the small model of ``source`` in a quantization and audit its step."""
    transformers.logging.set_verbosity_error()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    dtype = quant.dtype or DTYPE
    raw = miniature(text_config(source).to_dict())
    small = text_config(Source(source.kind, source.location, source.revision, raw))
    built = synthetic.build(small, DTYPES[dtype], torch.device("cpu"), quant, 0, lambda words: None)
    return audit(built)
