"""What differs between the versions of transformers that we support, in one place.

The test suite is run with the oldest and the newest of ``TESTED``. A newer one is used too, with a caution on its
rows, because its models may compute something else than the predictions and the static decode step assume.
"""

from __future__ import annotations

import inspect
from typing import Any

import transformers
from transformers import LlamaForCausalLM
from transformers.cache_utils import Cache

TESTED = ((5, 23), (5, 24))  # oldest and newest minor version

# transformers 5.24 renamed the argument ``past_key_values`` of every model to ``cache`` and warns about the old name.
CACHE = "cache" if "cache" in inspect.signature(LlamaForCausalLM.forward).parameters else "past_key_values"


def with_cache(cache: Cache | None) -> dict[str, Any]:
    """Keyword arguments of a forward pass that reads and extends ``cache``."""
    return {CACHE: cache, "use_cache": True}


def untested(version: str = transformers.__version__) -> str | None:
    """Why rows measured with this version of transformers carry a caution; ``None`` for a tested version."""
    minor = tuple(int(part) for part in version.split(".")[:2])
    if TESTED[0] <= minor <= TESTED[1]:
        return None
    oldest, newest = (".".join(map(str, tested)) for tested in TESTED)
    return f"transformers {version}: this version of profile was tested with {oldest} to {newest}"
