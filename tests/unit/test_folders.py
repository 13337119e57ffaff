"""The cache is used only where nobody else can have written to it."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes import forked

from profiler import folders
from profiler.errors import ProfileError
from profiler.folders import COMPILERS, NOWHERE, compilers
from profiler.run.process import worker_environment

ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")
NOBODY = 65534


@pytest.fixture
def top(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """The cache folder; nothing is noted from before."""
    monkeypatch.setenv(folders.CACHE, str(tmp_path / "cache"))
    monkeypatch.setattr(folders, "_notes", [])
    folders._private.cache_clear()
    yield tmp_path / "cache"
    folders._private.cache_clear()


@pytest.fixture
def shared() -> Iterator[Path]:
    folder = forked.common_folder()
    folder.chmod(0o1777)
    yield folder
    subprocess.run(["rm", "-rf", str(folder)], check=True)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o777])
def test_a_cache_is_for_its_user_alone_whatever_the_umask(top: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        assert folders.cache("native") == top / "native"
    finally:
        os.umask(before)
    assert mode(top) == mode(top / "native") == 0o700
    assert folders.notes() == ()


def test_an_own_folder_that_was_open_to_others_is_closed(top: Path) -> None:
    (top / "native").mkdir(parents=True)
    top.chmod(0o777)
    (top / "native").chmod(0o777)
    assert folders.cache("native") == top / "native"
    assert mode(top) == mode(top / "native") == 0o700


def test_a_file_is_not_trusted_if_others_may_write_it_or_it_is_a_link(top: Path) -> None:
    folder = folders.cache("native")
    good, open_, link = folder / "good", folder / "open", folder / "link"
    for path in (good, open_):
        path.touch()
    good.chmod(0o755)
    open_.chmod(0o666)
    link.symlink_to("good")
    assert folders.distrust(good, folder) is None
    assert str(folders.distrust(open_, folder)).endswith("open is writable by other users")
    assert str(folders.distrust(link, folder)).endswith("link is a symbolic link")
    with pytest.raises(FileNotFoundError):
        folders.distrust(folder / "none", folder)


@pytest.mark.parametrize("what", ["top", "folder"])
def test_a_link_in_place_of_the_cache_is_not_followed(
    top: Path, tmp_path: Path, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "elsewhere").mkdir()
    if what == "folder":
        top.mkdir(0o700)
    (top if what == "top" else top / "native").symlink_to(tmp_path / "elsewhere")
    found = folders.cache("native")
    assert tmp_path not in found.parents and mode(found) == 0o700
    assert "is a symbolic link; using a private folder" in capsys.readouterr().err
    assert list((tmp_path / "elsewhere").iterdir()) == []


@ROOT_ONLY
def test_what_another_user_has_made_is_not_used(
    shared: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(folders.CACHE, str(shared / "profile"))
    folders._private.cache_clear()
    planted = shared / "profile" / "native"
    planted.mkdir(parents=True)
    (planted / "decode.so").touch()
    for path in (planted.parent, planted, planted / "decode.so"):
        path.chmod(0o755)
        os.chown(path, NOBODY, NOBODY)
    found = folders.cache("native")
    assert shared not in found.parents and list(found.iterdir()) == []
    assert f"{shared}/profile belongs to another user" in capsys.readouterr().err
    for variable, folder in compilers({}).items():
        assert shared not in Path(folder).parents, variable
    folders._private.cache_clear()
    os.chown(planted.parent, 0, 0)
    os.chown(planted, 0, 0)
    assert folders.cache("native") == planted
    assert str(folders.distrust(planted / "decode.so", planted)).endswith("decode.so belongs to another user")


def test_a_cache_in_a_folder_in_which_anybody_may_replace_it_is_not_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "open" / "in" / "profile"
    folder.mkdir(parents=True)
    (tmp_path / "open").chmod(0o777)
    monkeypatch.setenv(folders.CACHE, str(folder))
    assert tmp_path not in folders.cache("native").parents


@ROOT_ONLY
def test_a_cache_that_cannot_be_written_is_said_once_for_all_folders_in_it(shared: Path) -> None:
    (shared / "profile").mkdir(0o755)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        sys.stderr = os.fdopen(write, "w")
        os.environ[folders.CACHE] = str(shared / "profile")
        folders._private.cache_clear()
        compilers({})
        sys.stderr.flush()
        os._exit(0)
    os.close(write)
    os.waitpid(child, 0)
    with os.fdopen(read) as said:
        text = said.read()
    assert text.count("the cache is not used") == 1
    assert f"{shared}/profile is not writable" in text


@pytest.mark.parametrize("place", ["/dev/null", "/dev/null/x", "~nobody-of-this-name/x"])
def test_a_cache_that_cannot_be_made_is_replaced_and_that_is_said_once(
    top: Path, monkeypatch: pytest.MonkeyPatch, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(folders.CACHE, place)
    assert folders.cache("native").parent == folders.scratch("inductor").parent
    assert capsys.readouterr().err.count("warning: the cache is not used, because") == 1
    assert len(folders.notes()) == 1


def test_a_worker_keeps_compiled_code_in_folders_of_its_user(top: Path) -> None:
    given = worker_environment({"PATH": "/bin"})
    for name in COMPILERS:
        assert Path(given[name]).parent == top and mode(Path(given[name])) == 0o700
    assert given[folders.CACHE] == str(top)


def test_a_folder_that_the_user_has_named_stays_if_it_is_private(top: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir(0o700)
    assert compilers({"TRITON_CACHE_DIR": str(tmp_path / "mine")})["TRITON_CACHE_DIR"] == str(tmp_path / "mine")
    (tmp_path / "link").symlink_to("mine")
    assert compilers({"TRITON_CACHE_DIR": str(tmp_path / "link")})["TRITON_CACHE_DIR"] == str(top / "triton")


def test_without_any_folder_to_write_to_nothing_is_taken_from_a_common_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def none(name: str) -> Path:
        raise OSError(13, "Permission denied")

    monkeypatch.setattr(folders, "scratch", none)
    found = compilers({})
    assert set(found) == set(COMPILERS) and set(found.values()) == {NOWHERE}


def test_a_private_folder_ends_with_its_process(top: Path) -> None:
    found: list[str] = []
    reading, writing = os.pipe()
    child = forked.fork()
    if child == 0:
        os.environ[folders.CACHE] = os.devnull
        os.write(writing, bytes(folders.cache("native")))
        import atexit

        atexit._run_exitfuncs()
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        found.append(pipe.read())
    os.waitpid(child, 0)
    assert found[0] and not Path(found[0]).parent.exists()


def test_no_home_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import platformdirs

    def none(*_: object, **__: object) -> Path:
        raise RuntimeError("no home")

    for stand_in in (none, lambda *_, **__: Path("~/.local/share/profile")):  # newer and older platformdirs
        monkeypatch.setattr(platformdirs, "user_data_path", stand_in)
        with pytest.raises(ProfileError, match="this user has no home folder") as caught:
            folders.data()
        assert "PROFILER_STORE" in str(caught.value.hint)
