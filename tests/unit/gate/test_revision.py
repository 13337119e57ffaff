"""A revision is taken to the byte, and nothing that its repository names is run on the way."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from profiler.errors import ProfileError
from profiler.gate import revision
from profiler.git import trusted

AUTHOR = ("-c", "user.name=a", "-c", "user.email=a@b")
CONTENT = "RAW = '$Format:%H$'\r\n"  # export-subst and end-of-line conversion would both change it
PYPROJECT = '[tool.setuptools]\npackage-dir = { "profiler.kernels" = "kernels" }\n'


def git(root: Path, *words: str, **more: object) -> str:
    done = subprocess.run(["git", "-C", root, *words], check=True, capture_output=True, text=True, **more)  # type: ignore[call-overload]
    return str(done.stdout).strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    root = tmp_path / "checkout"
    (root / "profiler" / "run").mkdir(parents=True)
    (root / "kernels").mkdir()
    (root / "profiler" / "__init__.py").write_bytes(CONTENT.encode())
    (root / "profiler" / "run" / "worker.py").write_text("")
    (root / "kernels" / "step.py").write_text("STEP = 1\n")
    (root / "pyproject.toml").write_text(PYPROJECT)
    git(root, "init", "-q")
    git(root, "config", "core.autocrlf", "false")
    return root


def commit(root: Path) -> str:
    git(root, "add", "-A")
    git(root, *AUTHOR, "commit", "-qm", "x")
    return git(root, "rev-parse", "HEAD")


def staged(root: Path, tmp_path: Path) -> Path:
    found = revision.commit("HEAD", root)
    assert found is not None
    return revision.revision(found, tmp_path / "staged", root)


def test_the_commit_is_taken_to_the_byte_and_laid_out_as_installed(repository: Path, tmp_path: Path) -> None:
    (repository / "profiler" / "a name\nwith \N{SNOWMAN} '.py").write_text("1")
    commit(repository)
    folder = staged(repository, tmp_path)
    assert (folder / "profiler" / "__init__.py").read_bytes() == CONTENT.encode()
    assert (folder / "profiler" / "kernels" / "step.py").read_text() == "STEP = 1\n"
    assert (folder / "profiler" / "a name\nwith \N{SNOWMAN} '.py").read_text() == "1"
    assert not (folder / "kernels").exists()


@pytest.fixture
def armed(repository: Path, tmp_path: Path) -> tuple[Path, Path]:
    """The repository, with a command in every place of its settings that git can run one from; the file they make."""
    mark = tmp_path / "ran"
    script = tmp_path / "script"
    script.write_text(f'#!/bin/sh\necho "$0 $@" >> {mark}\ncat\n')
    script.chmod(0o755)
    (repository / ".gitattributes").write_text("* filter=evil diff=evil merge=evil export-subst text eol=crlf\n")
    commit(repository)
    for name in ("smudge", "clean", "process"):
        git(repository, "config", f"filter.evil.{name}", str(script))
    for name in ("diff.evil.textconv", "diff.evil.command", "diff.external", "core.pager", "core.editor"):
        git(repository, "config", name, str(script))
    for name in ("core.fsmonitor", "core.sshCommand", "core.askPass", "core.gitProxy", "gpg.program"):
        git(repository, "config", name, str(script))
    git(repository, "config", "tar.tar.command", str(script))
    git(repository, "config", "core.autocrlf", "true")
    git(repository, "config", "log.showSignature", "true")
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    for name in ("post-checkout", "pre-commit", "reference-transaction", "post-index-change", "fsmonitor-watchman"):
        shutil.copy(script, hooks / name)
    git(repository, "config", "core.hooksPath", str(hooks))
    mark.unlink(missing_ok=True)
    return repository, mark


def test_nothing_that_the_repository_names_is_run(armed: tuple[Path, Path], tmp_path: Path) -> None:
    root, mark = armed
    folder = staged(root, tmp_path)
    assert not mark.exists(), mark.read_text()
    stored = subprocess.run(
        ["git", "-C", root, "cat-file", "blob", "HEAD:profiler/__init__.py"], check=True, capture_output=True
    ).stdout
    assert b"$Format:%H$" in stored
    assert (folder / "profiler" / "__init__.py").read_bytes() == stored


def test_the_traps_are_set(armed: tuple[Path, Path]) -> None:
    """What this package did before: else the test above would prove nothing."""
    root, mark = armed
    subprocess.run(["git", "-C", root, "archive", "--format=tar", "HEAD"], capture_output=True, check=False)
    assert "script" in mark.read_text()


def test_a_partial_clone_fetches_nothing(armed: tuple[Path, Path], tmp_path: Path) -> None:
    root, mark = armed
    blob = git(root, "rev-parse", "HEAD:kernels/step.py")
    git(root, "config", "core.repositoryformatversion", "1")
    git(root, "config", "extensions.partialClone", "origin")
    git(root, "config", "remote.origin.promisor", "true")
    git(root, "config", "remote.origin.url", f"ext::{tmp_path / 'script'}")
    git(root, "config", "remote.origin.uploadpack", str(tmp_path / "script"))
    git(root, "config", "protocol.allow", "always")
    (root / ".git" / "objects" / blob[:2] / blob[2:]).unlink()
    mark.unlink(missing_ok=True)
    with pytest.raises(ProfileError, match="cannot read the content"):
        staged(root, tmp_path)
    assert not mark.exists(), mark.read_text()


def test_settings_of_a_hook_that_we_run_in_are_not_ours(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = commit(repository)
    (tmp_path / "other").mkdir()
    git(tmp_path / "other", "init", "-q")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "other" / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(tmp_path / "other"))
    assert revision.commit("HEAD", repository) == first


def test_a_replaced_object_is_taken_as_it_was(repository: Path, tmp_path: Path) -> None:
    commit(repository)
    blob = git(repository, "rev-parse", "HEAD:kernels/step.py")
    other = git(repository, "hash-object", "-w", "--stdin", input="STEP = 'replaced'\n")
    git(repository, "replace", blob, other)
    assert (staged(repository, tmp_path) / "profiler" / "kernels" / "step.py").read_text() == "STEP = 1\n"


def test_a_link_inside_is_followed_and_one_to_outside_is_refused(repository: Path, tmp_path: Path) -> None:
    (repository / "pyproject.toml").write_text("")
    (repository / "profiler" / "kernels").symlink_to("../kernels")
    commit(repository)
    assert (staged(repository, tmp_path) / "profiler" / "kernels" / "step.py").read_text() == "STEP = 1\n"
    for target in ("/etc/passwd", "../../outside", ".."):
        (repository / "profiler" / "kernels").unlink()
        (repository / "profiler" / "kernels").symlink_to(target)
        commit(repository)
        shutil.rmtree(tmp_path / "staged", ignore_errors=True)
        with pytest.raises(ProfileError, match="link that points outside"):
            staged(repository, tmp_path)


@pytest.mark.parametrize("path", ["../outside", "/etc", ".", "kernels/../.."])
def test_a_package_mapped_to_outside_is_refused(repository: Path, tmp_path: Path, path: str) -> None:
    (repository / "pyproject.toml").write_text(PYPROJECT.replace('"kernels"', f'"{path}"'))
    commit(repository)
    with pytest.raises(ProfileError, match="maps a package outside"):
        staged(repository, tmp_path)


def test_a_submodule_and_a_file_of_lfs_are_said(repository: Path, tmp_path: Path) -> None:
    first = commit(repository)
    git(repository, "update-index", "--add", "--cacheinfo", f"160000,{first},profiler/vendored")
    git(repository, *AUTHOR, "commit", "-qm", "submodule")
    with pytest.raises(ProfileError, match=r"profiler/vendored of revision \w+ is a submodule"):
        staged(repository, tmp_path)
    git(repository, "rm", "-q", "--cached", "profiler/vendored")
    (repository / "kernels" / "weights.py").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    commit(repository)
    with pytest.raises(ProfileError, match=r"profiler/kernels/weights.py of revision \w+ is in Git LFS"):
        staged(repository, tmp_path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a repository to another user")
def test_a_repository_of_another_user_is_refused_with_what_to_do(repository: Path, tmp_path: Path) -> None:
    commit(repository)
    for path in (repository, repository / ".git"):
        os.chown(path, 65534, 65534)
    with pytest.raises(ProfileError, match="belongs to another user") as refused:
        revision.commit("HEAD", repository)
    assert refused.value.hint == f"If you trust that user: git config --global --add safe.directory {repository}"


def test_a_repository_that_the_user_trusts_is_read(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = commit(repository)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / ".gitconfig").write_text(f"[safe]\n\tdirectory = {repository}\n")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    trusted.cache_clear()
    try:
        assert str(repository) in trusted()
        if os.geteuid() == 0:
            for path in (repository, repository / ".git"):
                os.chown(path, 65534, 65534)
        assert revision.commit("HEAD", repository) == first
    finally:
        trusted.cache_clear()
