"""The benchmarks start: what they import is still there."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


NAMES = ["startup", "loop_cost", "grid_cost", "overhead", "memory_parts", "aa", "telemetry_cost"]
NAMES += ["gate_real", "gate_calibration", "drift", "compare_cost", "report_cost", "quota"]
NAMES += ["endpoint_load", "endpoint_peers", "llama_cpp", "synthetic_gguf", "learned", "quality", "gate_builds"]
NAMES += ["gate_numerics"]


@pytest.mark.parametrize("name", NAMES)
def test_a_benchmark_explains_itself(name: str) -> None:
    command = [sys.executable, str(FOLDER / f"{name}.py"), "--help"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert f"python benchmarks/{name}.py" in said


def test_the_table_of_the_gates_errors_is_that_of_its_rule() -> None:
    """Two lines of ``benchmarks/gate.md``, simulated again: a change of the rule changes the page."""
    spec = importlib.util.spec_from_file_location("gate_calibration", FOLDER / "gate_calibration.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["gate_calibration"] = module  # where its dataclass looks
    spec.loader.exec_module(module)
    page = (FOLDER / "gate.md").read_text(encoding="utf-8")
    assert module.row(module.Line(False, 0.03, 0.05, 0.0), 4000) in page
    assert module.row(module.Line(True, 0.03, 0.05, 2.0), 4000) in page


def test_every_published_row_of_several_devices_gets_a_prediction(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    published = importlib.import_module("published_rows")
    found = [row for row in published.rows()[0] if row.target.count > 1 and row.decode_s and not row.aside]
    assert len(found) >= 10
    for row in found:
        works = [each for part in row.parts("decode") for each in part.works]
        predicted = sum(times * row.timed(row.rates(None), done, None) for times, done in works)
        assert 0.25 < predicted / row.decode_s < 4
