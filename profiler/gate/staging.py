"""Code of ours in a folder of its own, for a side that does not run what is installed here.

A revision is taken by ``git archive``, so the checkout is neither touched nor written to. The folders that
``pyproject.toml`` of that revision maps into the package (``kernels/`` is ``profiler.kernels``) are put where an
installation would have them, and the folder goes first on PYTHONPATH, before any installed copy.

What this cannot do: the libraries are those of this environment, not those that the revision asked for. Where those
matter, make a virtual environment of that revision and name it.
"""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import profiler
from profiler.errors import ProfileError
from profiler.foreign import toml_value
from profiler.units import printable

GIT_S = 60
PACKAGE = "profiler"


def environ(folder: Path) -> dict[str, str]:
    """What makes an interpreter import our package from ``folder``."""
    before = os.environ.get("PYTHONPATH")
    return {"PYTHONPATH": f"{folder}{os.pathsep}{before}" if before else str(folder)}


def commit(revision: str, root: Path | None = None) -> str | None:
    """The commit that ``revision`` names in the checkout that runs here, or the one we stand in; None if none."""
    root = root or checkout()
    if root is None or revision.startswith("-"):
        return None
    found = _git(root, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    return found.decode().strip() if found else None


def revision(commit: str, folder: Path, root: Path | None = None) -> Path:
    """The package of ``commit``, laid out as installed, in ``folder``, unless it is there. Raises ProfileError."""
    if folder.exists():
        return folder
    root = root or checkout()
    assert root is not None  # the commit was found in it
    short = printable(commit[:12])
    project = _git(root, "show", f"{commit}:pyproject.toml")
    if project is None:
        raise ProfileError(f"revision {short} has no pyproject.toml", "It is older than this package.")
    try:
        mapped = toml_value(project.decode())["tool"]["setuptools"]["package-dir"]
    except (ValueError, KeyError, TypeError):
        mapped = {}
    folders = mapped.items() if isinstance(mapped, dict) else ()
    inside = {name: str(path) for name, path in folders if name.startswith(f"{PACKAGE}.")}
    archive = _git(root, "archive", "--format=tar", commit, "--", PACKAGE, *inside.values())
    if archive is None:
        raise ProfileError(f"revision {short} has no folder {PACKAGE}/", "It is older than this package.")
    folder.mkdir(parents=True)
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        tar.extractall(folder, filter="data")
    for name, path in inside.items():
        shutil.move(folder / path, folder.joinpath(*name.split(".")))
    return folder


def lend(folder: Path) -> Path:
    """A copy of the package that runs here, in the new folder ``folder``."""
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(Path(profiler.__file__).parent, folder / PACKAGE, ignore=ignored)
    for name in ("kernels", "scenarios"):  # in a checkout they lie beside the package
        if not (folder / PACKAGE / name).exists():
            shutil.copytree(Path(profiler.__file__).parents[1] / name, folder / PACKAGE / name, ignore=ignored)
    return folder


def checkout() -> Path | None:
    """The git checkout that runs here; else the one that the current folder is in, if it is one of ours."""
    installed = Path(profiler.__file__).parents[1]
    if (installed / ".git").exists():
        return installed
    top = _git(Path.cwd(), "rev-parse", "--show-toplevel")
    root = Path(top.decode().strip()) if top else None
    return root if root and (root / PACKAGE / "measure" / "worker.py").exists() else None


def _git(root: Path, *arguments: str) -> bytes | None:
    """What git prints, or None when it refuses. No hook and no pager of the checkout runs."""
    command = ["git", "--no-optional-locks", "-C", str(root), "-c", "core.fsmonitor=false", *arguments]
    try:
        return subprocess.run(command, capture_output=True, timeout=GIT_S, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
