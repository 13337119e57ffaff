"""Backend ``hf``: transformers, with bitsandbytes for quantization and our own decode step."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from profiler import quants
from profiler.backends.base import Backend
from profiler.case import Case, Source
from profiler.decode_path import PATHS
from profiler.quants.base import DTYPE_BYTES, Quant

if TYPE_CHECKING:
    from profiler.kernels.audit import AuditReport

DTYPE = "fp32"  # of unquantized weights in an audit, because it is the fastest on a CPU without bf16 units


def _refuses(case: Case) -> str | None:
    quant = quants.find(case.quant)
    return quant.no_synthetic_weights if quant is not None and case.weights == "synthetic" else None


BACKEND = Backend(
    engine="transformers",
    own_step=True,
    imports_slowly=True,
    paths=PATHS,
    dtypes=tuple(DTYPE_BYTES),
    refuses=_refuses,
    microbenchmark="profiler.backends.hf.microbenchmark",
    quality="profiler.backends.hf.quality",
    agreement="profiler.backends.hf.agreement",
    ceilings="profiler.backends.hf.ceilings",
)


def audited(source: Source, quant: Quant) -> AuditReport:
    """Build a small model with the architecture of ``source``, quantized as ``quant``, and audit its decode step.

    Raises ProfileError for a model or a quantization that cannot be built.
    """
    import torch
    import transformers

    from profiler.backends.hf import synthetic
    from profiler.backends.hf.ceilings import DTYPES
    from profiler.backends.hf.load import text_config
    from profiler.kernels.audit import audit, miniature

    transformers.logging.set_verbosity_error()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    raw = miniature(text_config(source).to_dict())
    small = text_config(Source(source.kind, source.location, source.revision, raw))
    dtype = DTYPES[quant.dtype or DTYPE]
    return audit(synthetic.build(small, dtype, torch.device("cpu"), quant, 0, lambda words: None))
