"""A checkout runs without an install, and its folder ``kernels`` hides nobody's package."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from profiler import folders

ROOT = Path(__file__).parents[2]


def test_children_of_an_uninstalled_checkout_are_told_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(folders.ROOT), *sys.path])
    assert folders.child_environ({}) == {"PYTHONPATH": str(folders.ROOT)}
    assert folders.child_environ({"PYTHONPATH": "/other"}) == {"PYTHONPATH": f"{folders.ROOT}{os.pathsep}/other"}


def test_children_of_an_installed_package_get_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    assert folders.child_environ({}) == {}


def test_the_folders_beside_the_package_are_reached_by_links() -> None:
    for name in ("kernels", "scenarios"):
        link = ROOT / "profiler" / name
        assert link.is_symlink() and os.readlink(link) == f"../{name}"


def test_the_kernels_of_hugging_face_are_found_from_the_root_of_a_checkout(tmp_path: Path) -> None:
    """bitsandbytes imports ``get_kernel`` from it. Without ``__init__.py`` ours is a namespace, which comes last."""
    package = tmp_path / "kernels"
    package.mkdir()
    (package / "__init__.py").write_text("def get_kernel(): return 'theirs'\n")
    program = f"import sys; sys.path.append({str(tmp_path)!r}); from kernels import get_kernel; print(get_kernel())"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "theirs\n"
