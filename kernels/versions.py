"""What differs between the versions of the libraries that we support, in one place.

The test suite was run with the newest versions in ``TESTED``, and with transformers 5.23 and torch 2.13. With the
oldest ones, all of them in one environment, the decode step was tested against transformers' own, and rows were
measured in several quantizations. Others that can be installed are used too, with a caution on their rows, because
they may compute something else than the predictions and the static decode step assume.
"""

from __future__ import annotations

import inspect
import re
from contextlib import suppress
from functools import cache
from importlib import metadata
from typing import Any

from transformers import LlamaForCausalLM
from transformers.cache_utils import Cache

TESTED = {  # oldest and newest minor version
    "transformers": ((5, 23), (5, 24)),
    "torch": ((2, 10), (2, 14)),
    "bitsandbytes": ((0, 50), (0, 50)),
    "accelerate": ((1, 1), (1, 15)),
}

# transformers 5.24 renamed the argument ``past_key_values`` of every model to ``cache`` and warns about the old name.
CACHE = "cache" if "cache" in inspect.signature(LlamaForCausalLM.forward).parameters else "past_key_values"


def with_cache(cache: Cache | None) -> dict[str, Any]:
    """Keyword arguments of a forward pass that reads and extends ``cache``."""
    return {CACHE: cache, "use_cache": True}


@cache
def untested() -> str | None:
    """Why rows measured with the installed libraries carry a caution; ``None`` if there is no reason."""
    found = []
    for library in TESTED:
        with suppress(metadata.PackageNotFoundError):  # not installed: nothing can run in it
            found.append(outside(library, metadata.version(library)))
    return "; ".join(filter(None, found)) or None


def outside(library: str, version: str) -> str | None:
    """Why ``version`` of ``library`` is a reason for a caution; ``None`` for one that was tested."""
    parts = re.match(r"(\d+)\.(\d+)", version)
    if parts is None or TESTED[library][0] <= (int(parts[1]), int(parts[2])) <= TESTED[library][1]:
        return None
    oldest, newest = (".".join(map(str, minor)) for minor in TESTED[library])
    tested = oldest if oldest == newest else f"{oldest} to {newest}"
    return f"{library} {version}: this version of profile was tested with {tested}"
