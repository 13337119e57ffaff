"""Fits the efficiency of engines on devices to published rows, and writes ``scenarios/efficiency.toml``.

python benchmarks/fit_efficiency.py
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import fitting
import left_out
import published_rows

HERE = Path(__file__).parent
TEMPLATE = HERE / "efficiency.toml.in"
RESULT = HERE.parent / "scenarios" / "efficiency.toml"
_HOLE = re.compile(r"\{([a-z]+(?:\.[\w~]+)+)\}")
BEFORE_ANY_FIT = {"spread.decode": "[0.5, 2.0]", "spread.prefill": "[0.5, 2.0]"}


def template(values: dict[str, str] | None = None) -> str:
    """The template with ``values`` filled in; without them, every parameter is at its prior."""
    known = BEFORE_ANY_FIT | {name(p): f"{p.prior:.6g}" for p in (*fitting.DECODE, *fitting.PREFILL)} | (values or {})
    return _HOLE.sub(lambda match: known[match[1]], TEMPLATE.read_text(encoding="utf-8"))


def name(parameter: fitting.Parameter) -> str:
    """A parameter's path in the template's notation, where ``~`` stands for a dot in a key."""
    return ".".join(part.replace(".", "~") for part in parameter.path)


def start() -> fitting.Content:
    """Every parameter at its prior, the start of each fit."""
    return tomllib.loads(template())


def main() -> None:
    """Fit to all rows, estimate the error by leaving out devices, and write the file."""
    used, _ = published_rows.rows()
    content = start()
    values: dict[str, str] = {}
    for phase, parameters in (("decode", fitting.DECODE), ("prefill", fitting.PREFILL)):
        content = fitting.fit(used, content, phase)
        values |= {name(p): f"{p.read(content):.4g}" for p in parameters}
        judged = left_out.judge(used, start(), phase)
        low, high = left_out.spread([(j.row, j.measured, j.predicted) for j in judged])
        values[f"spread.{phase}"] = f"[{low:.3f}, {high:.3f}]"
    RESULT.write_text(template(values) + evidence(used), encoding="utf-8")
    print(f"{len(used)} rows → {RESULT.name}", file=sys.stderr)


def evidence(used: list[Any]) -> str:
    """The rows behind the fit: lines of the published file, by device."""
    lines = ["\n[evidence]  # lines of benchmarks/published/throughput.csv, by device\n"]
    for device in sorted({row.target.name for row in used}):
        rows = sorted(row.line for row in used if row.target.name == device)
        lines.append(f'"{device}" = {rows}\n')
    return "".join(lines)


if __name__ == "__main__":
    main()
