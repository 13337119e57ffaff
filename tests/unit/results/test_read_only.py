"""A store that cannot be written is read all the same, and whoever wants to write is told so in one line."""

from __future__ import annotations

import os
import resource
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes.forked import fork

from profiler.errors import StoreError
from profiler.results import database
from profiler.results.store import Store

NOBODY = 65534
pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


@pytest.fixture
def folder() -> Iterator[Path]:
    """One that other users may look into."""
    with tempfile.TemporaryDirectory(prefix="profile-read-only-") as name:
        Path(name).chmod(0o755)
        yield Path(name)
        Path(name).chmod(0o755)


def written(path: Path, make: Any, environment: Any, rows: int = 3) -> Store:
    Store.open(path).close()
    path.chmod(0o644)  # as it stood when the log was made, which takes the mode of the file
    store = Store.open(path)
    run = store.start_run(["sweep"], environment)
    for context in range(1, rows + 1):
        store.append(run, make(context))
    return store


def as_reader(work: Callable[[], Any]) -> str:
    """What ``work`` returns, or the error it raises, as a user who may write nothing here."""

    def run() -> Any:
        if os.geteuid() == 0:
            os.setgid(NOBODY)
            os.setuid(NOBODY)
        return work()

    return in_fork(run)


def in_fork(work: Callable[[], Any]) -> str:
    """What ``work`` returns, or the error it raises, in another process."""
    read, write = os.pipe()
    pid = fork()
    if pid == 0:
        try:
            answer = repr(work())
        except BaseException as error:
            answer = f"{type(error).__name__}: {error}"
        os.write(write, answer.encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as answers:
        answer = answers.read()
    os.waitpid(pid, 0)
    return answer


def contexts(path: Path) -> list[int]:
    with Store.open(path, create=False) as store:
        return [row.case.context for row in store.rows()]


def closed_to_others(folder: Path) -> None:
    """Nobody but root may write, and root is not who looks."""
    for path in folder.iterdir():
        path.chmod(0o444)
    folder.chmod(0o555)


def test_a_store_in_a_folder_that_may_not_be_written_is_read(folder: Path, make: Any, environment: Any) -> None:
    written(folder / "s.sqlite", make, environment).close()
    closed_to_others(folder)
    before = sorted(folder.iterdir())
    assert as_reader(lambda: contexts(folder / "s.sqlite")) == "[1, 2, 3]"
    assert sorted(folder.iterdir()) == before


def test_rows_that_are_only_in_the_log_are_read_too(folder: Path, make: Any, environment: Any) -> None:
    writer = written(folder / "s.sqlite", make, environment)
    copy = folder / "copy"
    copy.mkdir(mode=0o755)
    for name in ("s.sqlite", "s.sqlite-wal"):  # as a backup has them that was made while the sweep ran
        shutil.copyfile(folder / name, copy / name)
    writer.close()
    closed_to_others(copy)
    assert as_reader(lambda: contexts(copy / "s.sqlite")) == "[1, 2, 3]"
    copy.chmod(0o755)


def test_a_store_is_read_while_another_user_writes_it(folder: Path, make: Any, environment: Any) -> None:
    with written(folder / "s.sqlite", make, environment) as writer:
        assert as_reader(lambda: contexts(folder / "s.sqlite")) == "[1, 2, 3]"
        writer.append(writer.find_run(), make(4))
        assert as_reader(lambda: contexts(folder / "s.sqlite")) == "[1, 2, 3, 4]"


def test_writing_to_a_read_only_store_is_an_error_of_one_line(folder: Path, make: Any, environment: Any) -> None:
    written(folder / "s.sqlite", make, environment).close()
    closed_to_others(folder)
    message, hint = as_reader(lambda: Store.open(folder / "s.sqlite").start_run([], environment)).split("\n")
    assert message == f"StoreError: the store {folder}/s.sqlite is read-only"
    assert "--store FILE" in hint


def test_a_store_is_read_by_a_process_that_may_write_no_file(folder: Path, make: Any, environment: Any) -> None:
    store = folder / "s.sqlite"
    written(store, make, environment).close()

    def limited(work: Callable[[], Any]) -> str:
        def run() -> Any:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))
            return work()

        return in_fork(run)

    assert limited(lambda: contexts(store)) == "[1, 2, 3]"
    message, hint = limited(lambda: Store.open(store).start_run([], environment)).split("\n")
    assert message.endswith("needs larger files than this process may write: ulimit -f allows 1.00 KiB")
    assert "ulimit -f unlimited" in hint


def test_a_store_that_replaced_one_in_use_is_not_reported_as_a_bad_disk(
    folder: Path, make: Any, environment: Any
) -> None:
    store = folder / "s.sqlite"

    def measure_again() -> None:
        Store.open(store).start_run([], environment)

    with written(store, make, environment):
        store.unlink()
        message, hint = in_fork(measure_again).split("\n")
        assert "was removed or replaced while another process was using it" in message
        assert "end it" in hint and "disk" not in message + hint
    assert in_fork(measure_again) == "None"


def test_an_unreadable_store_is_an_error_of_one_line(folder: Path, make: Any, environment: Any) -> None:
    written(folder / "s.sqlite", make, environment).close()
    (folder / "s.sqlite").chmod(0o600)
    answer = as_reader(lambda: contexts(folder / "s.sqlite"))
    if os.geteuid() != 0:
        pytest.skip("the owner may read the file; only root can ask as another user")
    assert answer.startswith(f"StoreError: the store {folder}/s.sqlite cannot be read by this user\n")


def test_a_store_of_schema_1_is_read_and_left_as_it_is(tmp_path: Path, make: Any) -> None:
    path = tmp_path / "old.sqlite"
    connection = sqlite3.connect(path)
    connection.executescript(Path(__file__).with_name("store_v1.sql").read_text(encoding="utf-8"))
    connection.close()
    path.chmod(0o600)
    assert contexts(path) == [128, 256]
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA user_version").fetchone() == (1,), "the version that wrote it can open it"
    connection.close()


COMMANDS = """
from click.testing import CliRunner
from profiler.cli import main
for line in {lines!r}:
    result = CliRunner().invoke(main, line)
    print(result.exit_code, (result.stderr.splitlines() or ["-"])[0])
"""


def mounting(folder: Path) -> list[str] | None:
    """A command prefix under which ``folder`` is a read-only file system that holds what it holds now."""
    if not shutil.which("unshare"):
        return None
    mount = f'mount --bind "{folder}" "{folder}" && mount -o remount,ro,bind "{folder}" && exec "$@"'
    for spaces in (["--mount"], ["--user", "--map-root-user", "--mount"]):
        prefix = ["unshare", *spaces, "sh", "-c", mount, "sh"]
        if subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode == 0:
            return prefix
    return None


def test_every_command_that_reads_does_so_on_a_read_only_file_system(
    folder: Path, make: Any, environment: Any
) -> None:
    prefix = mounting(folder)
    if prefix is None:
        pytest.skip("this machine lets us mount nothing; the tests above have folders that may not be written")
    path = folder / "s.sqlite"
    written(path, make, environment).close()
    with Store.open(path) as store:
        run = store.find_run()
    place = ["--store", str(path)]
    lines = [
        ["runs", *place],
        ["runs", "show", *place],
        ["report", *place],
        ["accuracy", *place],
        ["compare", run, run, *place],
        ["compare", str(path), str(path)],
        ["sweep", "--backend", "fake", "-m", "gemma-3-270m", *place],
    ]
    command = [*prefix, sys.executable, "-c", COMMANDS.format(lines=lines)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    *reading, writing = done.stdout.splitlines()
    assert reading == [*["0 -"] * 3, "0 no stored row has a prediction", *["0 -"] * 2], done.stdout
    assert writing == f"1 Error: the store {path} is read-only"


def test_other_errors_are_not_taken_for_a_file_that_cannot_be_written() -> None:
    assert not database.may_be(sqlite3.OperationalError("database is locked"))
    with pytest.raises(StoreError, match="there is no store"):
        Store.open(Path("/nowhere/s.sqlite"), create=False)
