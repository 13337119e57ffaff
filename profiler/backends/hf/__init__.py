"""Backend ``hf``: transformers as shipped, with bitsandbytes for the quantizations.

session = open(case, source, beat)    # loads or makes the model
trial = session.begin(case)           # inputs and cache of one case
"""

from __future__ import annotations

from profiler.backends.hf.session import open

__all__ = ["open"]
