"""Variants that are built: another build of an engine's programs, or a revision of the user's own project.

**A revision** is extracted as a whole, and the command of ``--build`` runs in that folder. It is in the user's cache,
because builds take minutes and gates are repeated. ``KEPT_BUILDS`` are kept.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from profiler import folders
from profiler.backends.base import InstalledBuild
from profiler.case import digest
from profiler.errors import ProfileError
from profiler.gate import revision
from profiler.gate.variants import EXAMPLE, Say, Variant, here, quoted, with_code
from profiler.run.process import Launch
from profiler.shell import quote
from profiler.units import bytes_text, printable

ENVIRONMENTS = (".venv", "venv")  # folders in which --build of a Python project may make its environment
PROGRAM = "100755"  # git's mode of an executable file
KEPT_BUILDS = 3
BUILT = ".built-by-profile"  # in a folder whose command has succeeded
BATCH = 64 * 1024**2  # bytes of files that are read at a time
MAX_TREE = 8 * 1024**3  # bytes of a project's files
LOG_LINES = 12  # of a build that failed


def of_build(folder: str | None, find: Callable[[str | None], InstalledBuild]) -> Variant:
    """The current installation with the build in a folder, or with the usual one. Raises ProfileError."""
    if folder is not None and not folder.strip():  # such as an unset variable, not the current folder
        raise ProfileError("--base or --candidate is empty", "Name the folder of a build.")
    build, variant = find(folder), here()
    libraries = (variant.reported.get("libraries") or {}) | dict(build.versions)
    return replace(
        variant,
        name=build.folder if folder is None else folder,
        launch=replace(variant.launch, environ={**variant.launch.environ, **build.variables}),
        reported={**variant.reported, "executable": build.program, "libraries": libraries},
        repository=None,
        build=build,
    )


def of_project(
    text: str, line: str, find: Callable[[str | None], InstalledBuild] | None, scratch: Path, say: Say
) -> Variant:
    """A revision of the repository that the user stands in, built by the shell command ``line``.

    It gives a build of the engine's programs (``find``), else a virtual environment. Raises ProfileError.
    """
    folder, name, root = of_revision(text, line, say)
    if find is not None:
        return replace(of_build(str(folder), find), name=name, repository=printable(root))
    environments = [folder / each for each in ENVIRONMENTS if (folder / each / "bin" / "python").exists()]
    if not environments:
        raise ProfileError(
            f"the build of {name} made no {' or '.join(ENVIRONMENTS)} with an interpreter in {printable(folder)}",
            f"Let --build make one: {EXAMPLE}",
        )
    found = with_code(text, Launch((str(environments[0] / "bin" / "python"),)), scratch)
    return replace(found, name=name, repository=printable(root))


def of_revision(text: str, line: str, say: Say) -> tuple[Path, str, Path]:
    """The folder in which a revision was built, the revision's name in words, and the repository that the user stands
    in. Raises ProfileError."""
    root = revision.toplevel(Path.cwd())
    if root is None:
        raise ProfileError(
            "--build builds a revision of your project, but the current folder is in no git repository"
        )
    typed = text.removeprefix("rev:")
    commit = revision.commit(typed, root)
    if commit is None:
        raise ProfileError(f"{quoted(typed)} is no revision of {printable(root)}, which --build is about")
    return built(commit, root, line, say), f"{printable(typed)} ({commit[:12]})", root


def refuse_shared_libraries(base: Variant, candidate: Variant) -> None:
    """Raises ProfileError if two builds in different folders load the same libraries of the engine."""
    if base.build is None or candidate.build is None or base.build.folder == candidate.build.folder:
        return
    shared = sorted({*base.build.libraries} & {*candidate.build.libraries})
    if shared:
        folders = f"{printable(base.build.folder)} and {printable(candidate.build.folder)}"
        raise ProfileError(
            f"the programs in {folders} load the same {printable(shared[0])}",
            "Keep the libraries of the old build with its programs: copy the whole folder before you build anew.",
        )


def refuse_unbuilt(text: str, example: str) -> None:
    """Raises ProfileError if ``text`` is a revision of the repository that the user stands in, not a folder."""
    root = None if Path(text).exists() else revision.toplevel(Path.cwd())
    if root is not None and revision.commit(text.removeprefix("rev:"), root) is not None:
        what = f"{quoted(text)} is a revision of {printable(root)}, which has to be built"
        raise ProfileError(what, f"Add the command that does it: --build {quote(example)}")


def built(commit: str, root: Path, line: str, say: Say) -> Path:
    """The folder of ``commit`` of the repository at ``root`` in which the shell command ``line`` has succeeded.

    Raises ProfileError with the end of the command's output if it fails.
    """
    builds = folders.scratch("gate") / "builds"
    folder = builds / digest([str(root), commit, line])
    builds.mkdir(exist_ok=True)
    with (builds / f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another gate may be building it
        if not (folder / BUILT).exists():
            _drop(builds, folder)
            where = f"{printable(root)} in {printable(folder)}"
            say(f"building {revision.in_words(commit)} of {where}: {printable(line, 200)}")
            _export(commit, root, folder)
            _build(line, folder)
            (folder / BUILT).touch()
        os.utime(folder)
    return folder


def _drop(builds: Path, folder: Path) -> None:
    """Remove what an interrupted build left, and the least recently used builds."""
    shutil.rmtree(folder, ignore_errors=True)
    others = sorted((path for path in builds.iterdir() if path.is_dir()), key=lambda path: path.stat().st_mtime)
    for old in others[: max(0, len(others) - KEPT_BUILDS + 1)]:
        shutil.rmtree(old, ignore_errors=True)
        (builds / f"{old.name}.lock").unlink(missing_ok=True)


def _build(line: str, folder: Path) -> None:
    log = folder / f"{BUILT}.log"
    with log.open("wb") as output:
        done = subprocess.run(line, shell=True, cwd=folder, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    if done.returncode != 0:
        said = log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES:]
        raise ProfileError(
            f"the build command ended with code {done.returncode}: {printable(line, 200)}",
            "\n  ".join([f"The end of {printable(log)}:", *(printable(each, 200) for each in said)]),
        )


def _export(commit: str, root: Path, folder: Path) -> None:
    """Write all files of a commit below the new folder ``folder``. Raises ProfileError."""
    blobs = revision.tree(root, commit, None)
    if any(blob.mode == revision.SUBMODULE for blob in blobs):
        path = next(blob.path for blob in blobs if blob.mode == revision.SUBMODULE)
        what = f"{printable(path)} of {revision.in_words(commit)} is a submodule, whose code is in another repository"
        raise ProfileError(what, "Build that revision yourself, and pass its folder to --base.")
    if sum(blob.size for blob in blobs) > MAX_TREE:
        raise ProfileError(f"the files of {revision.in_words(commit)} take more than {bytes_text(MAX_TREE)}")
    folder.mkdir(parents=True)
    for batch in _batches(blobs):
        for blob, content in zip(batch, revision.contents(root, batch), strict=True):
            target = folder / blob.path
            target.parent.mkdir(parents=True, exist_ok=True)
            if blob.mode == revision.LINK:
                target.symlink_to(os.fsdecode(content))
            else:
                target.write_bytes(content)
                target.chmod(0o755 if blob.mode == PROGRAM else 0o644)


def _batches(blobs: Sequence[revision.Blob]) -> Iterator[list[revision.Blob]]:
    batch: list[revision.Blob] = []
    for blob in blobs:
        if batch and sum(each.size for each in batch) + blob.size > BATCH:
            yield batch
            batch = []
        batch.append(blob)
    yield batch
