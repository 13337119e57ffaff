"""Plug-ins that nobody wrote: a file each, put on the path of its package while a test runs."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

# By folder of the package: the file's name, and what people type for it.
QUANT, QUANT_NAME = "made_up.py", "made-up"
FILES = {
    "quants": {
        QUANT: '''"""Six bits a weight, and a scale of 16 bits for 64 of them. Nobody has timed it."""

from profiler.quants.base import Quant, StoredForm, plain_bytes


def weight_bytes(weight, dtype, repacks=False):
    if weight.role != "linear":
        return plain_bytes(weight, dtype)
    return -(-weight.parameters * 6 // 8) + 2 * -(-weight.parameters // 64)


QUANT = Quant(
    "made-up",
    weight_bytes,
    frozenset({"linear"}),
    unavailable=lambda device: None,
    load_config=lambda dtype: None,
    stored=StoredForm(matches=lambda stated: stated.get("quant_method") == "six"),
)
'''
    },
}


def install(folder: str, where: Path, patch: pytest.MonkeyPatch) -> None:
    """Add what is invented for ``profiler.<folder>``, until ``patch`` is undone. ``where`` takes the files."""
    package = importlib.import_module(f"profiler.{folder}")
    for name, text in FILES[folder].items():
        path = where / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    patch.setattr(package, "__path__", [*package.__path__, str(where / folder)])
    for name in FILES[folder]:
        top = name.partition("/")[0].removesuffix(".py")
        for module in [each for each in sys.modules if each.startswith(f"profiler.{folder}.{top}")]:
            del sys.modules[module]  # what an earlier test imported from its own folder
