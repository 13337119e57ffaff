"""A fake ``libnvidia-ml.so.1`` in C (``nvml.c``), driven by a script with a simulated clock (``control.py``)."""

from fakes.nvml.control import Card, FakeNvml
from fakes.nvml.library import NoCompiler, build

__all__ = ["Card", "FakeNvml", "NoCompiler", "build"]
