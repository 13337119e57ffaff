"""A backend without a model: a virtual clock with stated costs, stated sizes, and faults on demand.

It makes every number of a row exact and every way of dying repeatable, without torch and without sleeping. What it
does is read from the model's config, so a ``config.json`` in a folder is a whole script:

    {"fake": {"prefill_s_per_token": 1e-4, "step_s": 0.01, "weights_bytes": 1073741824,
              "faults": [{"kind": "signal", "value": 11, "when": "decode", "context": 2048}]}}
"""

from __future__ import annotations

from profiler.backends.base import Beat, Session
from profiler.backends.fake.meter import FakeMeter
from profiler.backends.fake.session import FakeSession, Script
from profiler.case import Case, Source
from profiler.devices.base import Meter

__all__ = ["meter", "open"]


def open(case: Case, source: Source, beat: Beat) -> Session:
    """Load nothing, in ``load_s`` virtual seconds. Raises ProfileError when the script is not one."""
    session = FakeSession(Script.read(source.config), beat)
    beat("load")
    session.begin(case).strike("load")
    session.machine.hold(session.script.weights_bytes + session.script.load_extra_bytes)
    session.machine.hold(-session.script.load_extra_bytes)
    session.machine.seconds += session.script.load_s
    return session


def meter(device: str) -> Meter:
    """The virtual device before the load. A backend that measures its own machine brings its own meter."""
    return FakeMeter()
