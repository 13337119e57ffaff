"""Files are written whole or not at all, and nobody else decides where."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes import forked

from profiler import files
from profiler.errors import ProfileError

ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder like /tmp, that everybody may write to."""
    folder = forked.common_folder()
    folder.chmod(0o1777)
    yield folder
    subprocess.run(["rm", "-rf", str(folder)], check=True)


def as_another_user(act: str, *arguments: object) -> None:
    """Run Python statements as a user who is not this one; ``argv`` are the arguments."""
    program = f"import os, sys\nos.setgid(65534); os.setuid(65534)\nargv = sys.argv[1:]\n{act}"
    subprocess.run([sys.executable, "-c", program, *map(str, arguments)], check=True)


def test_a_file_has_the_mode_that_the_umask_leaves_and_keeps_the_one_it_has(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        files.write(tmp_path / "new", "é")
        (tmp_path / "old").touch(0o600)
        files.write(tmp_path / "old", "x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o640
    assert stat.S_IMODE((tmp_path / "old").stat().st_mode) == 0o600
    assert (tmp_path / "new").read_bytes() == b"\xc3\xa9"


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "page").write_text("old")

    def full(file: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ProfileError, match="page cannot be written: No space left on device"):
        files.write(tmp_path / "page", "new")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("page", "old")]


def test_a_link_of_ours_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "link").symlink_to("far/page")
    for text in ("one", "two"):  # first a dangling one
        files.write(tmp_path / "link", text)
        assert (tmp_path / "link").is_symlink() and (tmp_path / "far" / "page").read_text() == text


@ROOT_ONLY
def test_another_users_link_is_not_followed(shared: Path) -> None:
    victim = forked.common_folder() / "precious"
    victim.write_text("precious")
    as_another_user("os.symlink(argv[0], argv[1])", victim, shared / "page.html")
    as_another_user("os.symlink(argv[0], argv[1])", victim.parent, shared / "page-charts")
    for attempt in (files.check, lambda path: files.write(path, "x")):
        with pytest.raises(ProfileError, match=r"page.html cannot be written: it is another user's symbolic link"):
            attempt(shared / "page.html")
    with pytest.raises(ProfileError, match="another user's symbolic link"):
        files.make_folder(shared / "page-charts")
    assert victim.read_text() == "precious" and [path.name for path in victim.parent.iterdir()] == ["precious"]


def test_a_temporary_name_that_is_taken_is_not_written_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even one that somebody guessed."""
    monkeypatch.setattr(os, "urandom", bytes)
    (tmp_path / "precious").write_text("precious")
    (tmp_path / f".page.{'0' * 16}.part").symlink_to("precious")
    with pytest.raises(ProfileError, match="page cannot be written: File exists"):
        files.write(tmp_path / "page", "x")
    assert (tmp_path / "precious").read_text() == "precious"
    assert not (tmp_path / "page").exists()


def test_names_do_not_repeat(tmp_path: Path) -> None:
    found = [files._create(tmp_path / "page") for _ in range(2)]
    for file, _ in found:
        os.close(file)
    assert found[0][1] != found[1][1] and str(os.getpid()) not in found[0][1].name.split(".")


def test_pipes_devices_and_open_files_are_written_through(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ProfileError, match="fifo cannot be written: it is a pipe without a reader"):
        files.write(tmp_path / "fifo", "x")
    reader = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    files.write(tmp_path / "fifo", "through")
    assert os.read(reader, 100) == b"through"
    os.close(reader)
    files.write(Path(os.devnull), "x")
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)
    files.write(Path("/dev/stdout"), "to stdout")
    assert capfd.readouterr().out == "to stdout"
    with pytest.raises(ProfileError, match="/dev/full cannot be written: No space left on device"):
        files.write(Path("/dev/full"), "x")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("none/page", "there is no folder"),
        ("file/page", "there is no folder"),
        ("x" * 256, "File name too long"),
        ("x" * 5000, "File name too long"),
        ("folder", "Is a directory"),
        ("loop", "Too many levels of symbolic links"),
        ("a\0b", "NUL byte"),
    ],
)
def test_what_cannot_be_written_is_said_before_and_after(tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    for attempt in (files.check, lambda path: files.write(path, "x")):
        with pytest.raises(ProfileError, match=said) as caught:
            attempt(tmp_path / name)
        assert "\n" not in caught.value.message


def test_a_folder_that_takes_no_files_is_not_said_to_be_missing() -> None:
    for attempt in (files.check, lambda path: files.write(path, "x")):
        with pytest.raises(ProfileError) as caught:
            attempt(Path("/proc/page"))
        assert "there is no folder" not in caught.value.message


def test_the_longest_name_can_be_written(tmp_path: Path) -> None:
    files.check(tmp_path / ("ü" * 127))
    assert list(tmp_path.iterdir()) == []
    files.write(tmp_path / ("ü" * 127), "x")
    assert [path.name for path in tmp_path.iterdir()] == ["ü" * 127]


def test_every_writer_of_the_house_is_this_one() -> None:
    """Whoever opens a file for writing elsewhere has to say here why."""
    import ast

    import profiler

    root = Path(profiler.__file__).parent
    own = {"files.py", "cli.py", "run/worker.py", "devices/cpu.py"}  # this; a log; /proc; /proc
    own |= {"gate/revision.py", "gate/builds.py"}  # the files of a revision, in a folder made for them
    own |= {"quality/sandboxed.py", "backends/hf/quality.py"}  # /proc; predictions in a folder of their own
    wrong = []
    for path in root.rglob("*.py"):
        where = str(path.relative_to(root))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if where in own or not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            if node.func.attr in ("write_text", "write_bytes", "NamedTemporaryFile", "mkstemp"):
                wrong.append(f"{where}:{node.lineno}")
    assert wrong == []
