"""The benchmarks start: what they import is still there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.parametrize(
    "name", ["startup", "loop_cost", "grid_cost", "overhead", "memory_parts", "aa", "telemetry_cost"]
)
def test_a_benchmark_explains_itself(name: str) -> None:
    command = [sys.executable, str(FOLDER / f"{name}.py"), "--help"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert f"python benchmarks/{name}.py" in said
