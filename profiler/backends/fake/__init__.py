"""A backend without a model: a virtual clock with stated costs, stated sizes, and faults on demand.

It makes every number of a row exact and every failure repeatable, without torch and without sleeping. Its behaviour
comes from the model's config, so a ``config.json`` in a folder is a complete script:

    {"fake": {"prefill_s_per_token": 1e-4, "step_s": 0.01, "weights_bytes": 1073741824,
              "faults": [{"kind": "signal", "value": 11, "when": "decode", "context": 2048}]}}
"""

from __future__ import annotations

from profiler.backends.base import Backend
from profiler.backends.fake.meter import FakeMeter
from profiler.decode_path import PATHS

BACKEND = Backend(
    predicted=False,
    made_up="a device that is made up",
    meter=lambda device: FakeMeter(),
    paths=PATHS,
)
