"""Every output format, to the byte. ``UPDATE_GOLDEN=1 pytest tests/unit/show`` rewrites the files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from profiler import registry
from profiler.show.output import rendered
from profiler.show.writers import llama_bench

GOLDEN = Path(__file__).parents[2] / "golden" / "reports"
FORMATS = [
    name for name in registry.names("show.writers") if name != "html"
]  # a page of drawings: report/test_html.py


def test_the_output_formats_are_the_documented_ones():
    """Scripts name these; another one may join them."""
    assert {"csv", "html", "json", "jsonl", "llama-bench", "md", "table"} <= set(registry.names("show.writers"))


@pytest.mark.parametrize("output", FORMATS)
def test_a_format_prints_the_fixed_set_as_its_golden_file_has_it(output, measurements, monkeypatch):
    monkeypatch.setattr(llama_bench, "__version__", "0.0.0")  # a release is no change of the format
    text, _ = rendered(output, "261124-093015", measurements)
    path = GOLDEN / f"{output}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


def test_a_format_does_not_change_with_the_order_of_dict_hashes_or_calls(measurements):
    for output in FORMATS:
        assert rendered(output, "r", measurements) == rendered(output, "r", measurements)
