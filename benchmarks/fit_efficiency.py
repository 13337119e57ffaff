"""Fits the efficiency of engines on devices to published rows, and writes ``scenarios/efficiency.toml``.

python benchmarks/fit_efficiency.py
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import fitting
import left_out
import published_rows
from left_out import Judged
from published_rows import Row

HERE = Path(__file__).parent
TEMPLATE = HERE / "efficiency.toml.in"
RESULT = HERE.parent / "scenarios" / "efficiency.toml"
FITTED = ("llama.cpp", "llamafile", "llama.cpp-vulkan", "mlx", "vllm", "tensorrt-llm", "transformers")
_HOLE = re.compile(r"\{([a-z]+(?:\.[\w~ -]+)*)\}")
BEFORE_ANY_FIT = {
    f"spread.{name.replace('.', '~')}.{kind}{models}": "[0.5, 2.0]"
    for name in FITTED
    for kind in left_out.KINDS
    for models in ("", "_experts")
}
HEADS = {
    "generation": "# Factors on those shares by generation: of the bandwidth, and of each engine's peak. Fitted",
    "device": "# The same by device, on top of its generation's. Fitted",
}


def template(values: dict[str, str] | None = None) -> str:
    """The template with ``values`` filled in; without them, every parameter is at its prior."""
    known = BEFORE_ANY_FIT | {name(p): f"{p.prior:.6g}" for p in fitting.PARAMETERS} | (values or {})
    return _HOLE.sub(lambda match: known[match[1]], TEMPLATE.read_text(encoding="utf-8"))


def name(parameter: fitting.Parameter) -> str:
    """A parameter's path in the template's notation, where ``~`` stands for a dot in a key."""
    return ".".join(part.replace(".", "~") for part in parameter.path)


def start() -> fitting.Content:
    """Every parameter at its prior, the start of each fit."""
    content = tomllib.loads(template())
    return content | {"generation": {}, "device": {}, fitting.COPIES: copies()}


def copies() -> dict[tuple[str, ...], list[tuple[str, ...]]]:
    """Where else the template has a parameter: engines that share figures of another one."""
    marks = {name(p): f"{1000 + index}.5" for index, p in enumerate(fitting.PARAMETERS)}
    found: dict[float, list[tuple[str, ...]]] = defaultdict(list)
    _leaves(tomllib.loads(template(marks)), (), found)
    paths = {p.path: found[float(marks[name(p)])] for p in fitting.PARAMETERS}
    return {path: [each for each in where if each != path] for path, where in paths.items()}


def _leaves(content: Mapping[str, Any], path: tuple[str, ...], found: dict[float, list[tuple[str, ...]]]) -> None:
    for key, value in content.items():
        if isinstance(value, Mapping):
            _leaves(value, (*path, key), found)
        elif isinstance(value, float):
            found[value].append((*path, key))


def main() -> None:
    """Fit to all rows, estimate the error by leaving out devices, and write the file."""
    used, _ = published_rows.rows()
    write(used, *left_out.judge(used, start(), note=lambda text: print(text, file=sys.stderr)))


def write(used: Sequence[Row], judged: Sequence[Judged], content: fitting.Content) -> None:
    """Write the file, with the intervals that ``judged`` justifies."""
    values = {name(p): f"{p.read(content):.4g}" for p in fitting.PARAMETERS}
    for engine in FITTED:
        for kind, models in product(left_out.KINDS, ("", "_experts")):
            low, high = left_out.spread(judged, engine, kind, bool(models))
            values[f"spread.{engine.replace('.', '~')}.{kind}{models}"] = f"[{low:.3f}, {high:.3f}]"
    RESULT.write_text(template(values) + levels(content) + evidence(used), encoding="utf-8")
    print(f"{len(used)} rows → {RESULT.name}", file=sys.stderr)
    report(judged)


def levels(content: fitting.Content) -> str:
    """The factors of generations and devices as sections of the file."""
    lines = []
    for level, head in HEADS.items():
        lines.append(f"\n{head}\n")
        for what in sorted(content[level]):
            lines.append(f'[{level}."{what}"]\n')
            known = content[level][what]
            lines += [f'"{key}" = {known[key]:.4g}\n' for key in sorted(known) if abs(known[key] - 1) >= 5e-3]
    return "".join(lines)


def evidence(used: Sequence[Row]) -> str:
    """The rows behind the fit: how many of each file, by device."""
    lines = ["\n[evidence]  # rows of the files in benchmarks/published/, by device\n"]
    counted: dict[str, int] = defaultdict(int)
    for row in used:
        for device in row.target.members or (row.target,):
            counted[device.name] += 1
    return "".join([*lines, *(f'"{device}" = {counted[device]}\n' for device in sorted(counted))])


def report(judged: Sequence[Judged]) -> None:
    """A few groups, to watch a fit by."""
    for title, holds in left_out.GROUPS.items():
        print(left_out.summary(title, [each for each in judged if holds(each)]).line(), file=sys.stderr)


if __name__ == "__main__":
    main()
