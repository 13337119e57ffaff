"""Extracts the code of a git revision into a folder, for a variant that does not run the installed code.

The files are read object by object (``git ls-tree``, ``git cat-file``). The checkout is neither read nor written, and
the code is that of the commit to the byte: attributes, filters, hooks and end-of-line conversion apply to a checkout,
which never happens. Only the repository's own git settings are read, and no command that they name is run. The
folders that the revision's ``pyproject.toml`` maps into the package (``kernels/`` is ``profiler.kernels``) are put
where an installation would have them, and the folder goes first on PYTHONPATH, before any installed copy.

Limits: the libraries are those of this environment, not those that the revision requires. Where they matter, make a
virtual environment for that revision and pass its folder. The content of submodules and of Git LFS files is not in
the repository, so revisions that need it are refused.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import profiler
from profiler import git
from profiler.errors import ProfileError
from profiler.foreign import LFS, toml_value
from profiler.units import bytes_text, printable

PACKAGE = "profiler"
RUN_SHIM = {  # a folder ``run`` for revisions that had the worker in ``measure``
    "__init__.py": "",
    "protocol.py": "from profiler.measure.protocol import *\n",
    "worker.py": "import sys\n\nfrom profiler.measure.worker import main\n\n"
    "if __name__ == '__main__':\n    main(*map(int, sys.argv[1:4]))\n",
}
MAX_FILES, MAX_PACKAGE = 20_000, 256 * 1024**2  # of a revision's package, in bytes; ours has a hundredth of that
MAX_PROJECT, MAX_LINK = 256 * 1024, 4096  # bytes of pyproject.toml, and of a link
INSTEAD = "Make a virtual environment for that revision, and pass its folder: venv:FOLDER"
DAMAGED = "The clone is damaged or partial. Fetch that revision with git, or pass a virtual environment: venv:FOLDER"
NAME = re.compile(r"(?P<start>[^\s~^:{}-][^\s~^:{}]*)(?:[~^]\d*)*")  # gitrevisions(7), without its searches
LINK, SUBMODULE = "120000", "160000"


@dataclass(frozen=True, slots=True)
class Blob:
    """A file of a commit."""

    path: PurePosixPath
    mode: str
    name: str  # of the object
    size: int


def environ(folder: Path) -> dict[str, str]:
    """Environment variables that make an interpreter import our package from ``folder``."""
    before = os.environ.get("PYTHONPATH")
    return {"PYTHONPATH": f"{folder}{os.pathsep}{before}" if before else str(folder)}


def commit(revision: str, root: Path | None = None) -> str | None:
    """The commit that ``revision`` names in the running checkout, else in the current folder's; None if there is
    none.

    Raises ProfileError if git refuses the repository.
    """
    root = root or checkout()
    if root is None or revision.startswith("-") or "\0" in revision:
        return None
    found = git.output(root, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    return found.decode().strip() if found else None


def kind(text: str, root: Path) -> str | None:
    """The kind of object named by ``text`` in the repository (commit, tree, blob, tag); None if it names nothing."""
    found = None if "\0" in text else git.output(root, "cat-file", "--batch-check", stdin=f"{text}\n".encode())
    words = found.decode("utf-8", "replace").split() if found else []
    return words[1] if len(words) == 3 and words[2].isdigit() else None  # name, kind, size


def is_name(text: str, root: Path) -> bool:
    """Whether ``text`` has the form of a commit's name: a hash or a branch or tag, and perhaps ~3 or ^2 after it."""
    found = NAME.fullmatch(text)
    if found is None:
        return False
    return git.output(root, "check-ref-format", "--allow-onelevel", found["start"]) is not None


def is_shallow(root: Path) -> bool:
    """Whether the clone at ``root`` holds only part of the history, as on most CI services."""
    return git.output(root, "rev-parse", "--is-shallow-repository") == b"true\n"


def revision(commit: str, folder: Path, root: Path | None = None) -> Path:
    """Put the package of ``commit``, laid out as installed, into ``folder``, unless it exists. Raises
    ProfileError.
    """
    if folder.exists():
        return folder
    root = root or checkout()
    assert root is not None  # the commit was found in it
    inside = _mapped(root, commit)
    blobs = [*_files(root, commit, PACKAGE, PurePosixPath(PACKAGE))]
    if not blobs:
        raise ProfileError(f"{in_words(commit)} has no folder {PACKAGE}/", "It predates this package.")
    for name, path in inside.items():
        blobs += _files(root, commit, path, PurePosixPath(*name.split(".")))
    if len(blobs) > MAX_FILES or sum(blob.size for blob in blobs) > MAX_PACKAGE:
        limit = f"{MAX_FILES:,} files or {bytes_text(MAX_PACKAGE)}"
        raise ProfileError(f"the package of {in_words(commit)} has more than {limit}", INSTEAD)
    for blob, content in zip(blobs, contents(root, blobs), strict=True):
        if content.startswith(LFS):
            raise ProfileError(
                f"{printable(blob.path)} of {in_words(commit)} is in Git LFS, not in the repository", INSTEAD
            )
        target = folder / blob.path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    add_run_folder(folder / PACKAGE)
    return folder


def add_run_folder(package: Path) -> None:
    """Let a gate start the worker of an older revision, which is in ``measure/``, as ``run.worker``."""
    now = package / "run"
    if now.exists() or not (package / "measure" / "worker.py").exists():
        return
    now.mkdir()
    for name, content in RUN_SHIM.items():
        (now / name).write_text(content, encoding="utf-8")


def _mapped(root: Path, commit: str) -> Mapping[str, str]:
    """Subpackages whose folder is elsewhere in that revision: ``profiler.kernels`` → ``kernels``."""
    project = [blob for blob in tree(root, commit, "pyproject.toml") if str(blob.path) == "pyproject.toml"]
    if not project:
        raise ProfileError(f"{in_words(commit)} has no pyproject.toml", "It predates this package.")
    if project[0].size > MAX_PROJECT:
        raise ProfileError(f"pyproject.toml of {in_words(commit)} is larger than {bytes_text(MAX_PROJECT)}", INSTEAD)
    (content,) = contents(root, project)
    try:
        mapped = toml_value(content.decode())["tool"]["setuptools"]["package-dir"]
        inside = {name: path for name, path in mapped.items() if name.startswith(f"{PACKAGE}.")}
        whole = all(isinstance(path, str) and _is_inside(PurePosixPath(path)) for path in inside.values())
        if not whole or not all(part.isidentifier() for name in inside for part in name.split(".")):
            what = f"pyproject.toml of {in_words(commit)} maps a package outside the repository"
            raise ProfileError(what, INSTEAD)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}
    return inside


def _files(root: Path, commit: str, path: str, place: PurePosixPath, linked: bool = False) -> Iterator[Blob]:
    """The files below ``path``, relocated below ``place``; a link inside the commit becomes what it points to."""
    for blob in tree(root, commit, path):
        target = place / blob.path.relative_to(path)
        if not _is_inside(target):
            raise ProfileError(f"{in_words(commit)} has a file outside its folder: {printable(blob.path)}")
        if blob.mode == SUBMODULE:
            raise ProfileError(
                f"{printable(blob.path)} of {in_words(commit)} is a submodule, whose code is in another repository",
                INSTEAD,
            )
        if blob.mode != LINK:
            yield Blob(target, blob.mode, blob.name, blob.size)
            continue
        if blob.size > MAX_LINK:
            raise ProfileError(f"{printable(blob.path)} of {in_words(commit)} is not a valid link")
        (named,) = contents(root, [blob])
        found = PurePosixPath(os.path.normpath(blob.path.parent / os.fsdecode(named)))
        if linked or not _is_inside(found):
            what = f"{printable(blob.path)} of {in_words(commit)} is a link that points outside the repository"
            raise ProfileError(what, INSTEAD)
        yield from _files(root, commit, str(found), target, linked=True)


def _is_inside(path: PurePosixPath) -> bool:
    return bool(path.parts) and not path.is_absolute() and not {"..", ".git"} & set(path.parts)


def tree(root: Path, commit: str, path: str | None) -> list[Blob]:
    """The files at or below ``path`` in a commit, or all; empty if the path does not exist there."""
    where = () if path is None else ("--", path)
    listed = git.output(root, "ls-tree", "-r", "-z", "-l", "--full-tree", commit, *where)
    if listed is None:
        raise ProfileError(f"git cannot list {printable(path or 'the files')} of {in_words(commit)}", DAMAGED)
    found = []
    for entry in listed.split(b"\0")[:-1]:
        fields, _, name = entry.partition(b"\t")
        mode, _, digest, size = fields.decode().split()
        found.append(Blob(PurePosixPath(os.fsdecode(name)), mode, digest, int(size) if size.isdigit() else 0))
    return found


def contents(root: Path, blobs: Sequence[Blob]) -> list[bytes]:
    """The stored content of each blob."""
    printed = git.output(root, "cat-file", "--batch", stdin="".join(f"{blob.name}\n" for blob in blobs).encode())
    at, found = 0, []
    for blob in blobs:
        header = f"{blob.name} blob {blob.size}\n".encode()
        if printed is None or not printed.startswith(header, at):
            raise ProfileError(f"git cannot read the content of {printable(blob.path)}", DAMAGED)
        at += len(header)
        found.append(printed[at : at + blob.size])
        at += blob.size + 1  # a newline follows the content
    return found


def lend(folder: Path) -> Path:
    """Copy the running package into the new folder ``folder``."""
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(Path(profiler.__file__).parent, folder / PACKAGE, ignore=ignored)
    for name in ("kernels", "scenarios"):  # in a checkout they are next to the package
        if not (folder / PACKAGE / name).exists():
            shutil.copytree(Path(profiler.__file__).parents[1] / name, folder / PACKAGE / name, ignore=ignored)
    return folder


def checkout() -> Path | None:
    """The git checkout that this package runs from, else the current folder's if it is a checkout of this package.

    Raises ProfileError if git refuses it.
    """
    installed = Path(profiler.__file__).parents[1]
    if (installed / ".git").exists():
        return installed
    try:
        top = git.output(Path.cwd(), "rev-parse", "--show-toplevel")
    except FileNotFoundError:  # the current folder was removed
        return None
    root = Path(os.fsdecode(top).rstrip("\n")) if top else None
    return root if root and (root / PACKAGE / "run" / "worker.py").exists() else None


def other_repository() -> Path | None:
    """The git repository of the current folder, if it is not the one whose revisions a gate compares."""
    try:
        here = Path.cwd()
    except FileNotFoundError:  # the current folder was removed
        return None
    top, ours = toplevel(here), checkout()
    return None if top is None or (ours is not None and _common(here) == _common(ours)) else top  # or its worktree


def toplevel(folder: Path) -> Path | None:
    """The root of the checkout that ``folder`` is in. Raises ProfileError if git refuses it."""
    top = git.output(folder, "rev-parse", "--show-toplevel")
    return Path(os.fsdecode(top).rstrip("\n")) if top else None


def _common(root: Path) -> str | None:
    """The folder that all worktrees of a repository share."""
    found = git.output(root, "rev-parse", "--path-format=absolute", "--git-common-dir")
    return os.path.realpath(os.fsdecode(found).rstrip("\n")) if found else None


def in_words(commit: str) -> str:
    return f"revision {printable(commit[:12])}"
