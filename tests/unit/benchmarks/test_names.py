"""Benchmarks run seldom: what they use of the profiler has to exist without running them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SCRIPTS = sorted((ROOT / "benchmarks").glob("*.py"))


def place(module: str) -> Path | None:
    """The file of a module of the profiler, or the folder of a package, from its name."""
    path = ROOT.joinpath(*module.split("."))
    return next((each for each in (path.with_suffix(".py"), path) if each.exists()), None)


@cache
def names(module: str) -> frozenset[str]:
    """What a module defines or imports at its top level, and its submodules."""
    found: set[str] = set()
    file = place(module)
    assert file is not None, f"there is no module {module}"
    if file.is_dir():
        found |= {each.stem for each in file.iterdir()}
        file = file / "__init__.py"
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if file.exists() else ():
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
    return frozenset(found | {"__file__", "__path__"})


def used(script: Path) -> Iterator[tuple[str, str]]:
    """Module and name of everything that a script takes from the profiler."""
    tree = ast.parse(script.read_text(encoding="utf-8"))
    modules: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "profiler":
            for alias in node.names:
                yield str(node.module), alias.name
                if place(whole := f"{node.module}.{alias.name}") is not None:
                    modules[alias.asname or alias.name] = whole
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
            yield modules[node.value.id], node.attr


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_what_a_benchmark_uses_exists(script: Path) -> None:
    missing = [f"{module}.{name}" for module, name in used(script) if name not in names(module)]
    assert not missing
