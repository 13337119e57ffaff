"""Every command in every broken environment: it works, or it says in one line what is broken."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from fakes import forked
from fakes.ceilings import MEASURED
from fakes.openai_server import FakeServer
from fakes.tiny import CONFIGS

from profiler import devices
from profiler.cli import main
from profiler.devices import calibration

GRID = ("--backend", "fake", "-c", "128", "-n", "4")
CALLS: dict[str, tuple[str, ...]] = {  # quick calls that read or print what the command is there for
    "accuracy": (),
    "audit": ("no-such-model",),  # what it does else takes torch
    "calibrate": ("--show", "--device", "cpu"),
    "compare": ("{run}", "{run}"),
    "devices": ("--catalog",),
    "endpoint": ("{server}", "-c", "64", "-n", "4", "-r", "1", "-o", "json"),
    "explain": ("gemma-3-270m", "--on", "rtx 3090"),
    "fit": ("{folder}/a,b/tiny", "--on", "rtx 3090", "-c", "1k"),
    "gate": (*GRID, "-m", "{folder}/a,b/tiny", "--baseline", "{folder}/none.json"),
    "models": (),
    "report": (),
    "runs": (),
    "scenarios": (),
    "sweep": (*GRID, "-m", "{folder}/a,b/tiny"),
}
# What a fault may hide is the subject of these.
NO_STORE = ("accuracy", "calibrate", "compare", "endpoint", "report", "runs", "sweep")


@pytest.fixture(scope="module")
def seeded() -> Iterator[Path]:
    """A folder with a model, and a store with one row of it and a calibration beside."""
    folder = forked.common_folder()
    (folder / "a,b" / "tiny").mkdir(parents=True)
    (folder / "a,b" / "tiny" / "config.json").write_text(json.dumps(CONFIGS["gemma3"] | {"fake": {}}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PROFILER_STORE", str(folder / "store.sqlite"))
        patch.setenv("PROFILER_CACHE", str(folder / "cache"))
        done = CliRunner().invoke(main, ["sweep", *GRID, "-m", str(folder / "a,b" / "tiny")], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        calibration.save(replace(MEASURED, fingerprint=calibration.fingerprint(devices.find("cpu"))))
        run = json.loads(CliRunner().invoke(main, ["runs", "-o", "json"]).stdout)[0]["run"]
    (folder / "run").write_text(run)
    with FakeServer("vllm") as server:
        (folder / "server").write_text(server.url)
        yield folder
    shutil.rmtree(folder)


@dataclass(frozen=True)
class Fault:
    """What is broken, and what follows for a command."""

    broken: Callable[[Path], None] = lambda folder: None
    encoding: str = "utf-8"
    terminal: bool = False
    refused: tuple[str, ...] = ()  # commands that may end with one line instead
    mute: bool = False  # there is no stderr to say it on
    silent: bool = False  # nothing arrives on stdout, and that is said
    as_user: bool = False
    gone: bool = False  # the reader has what it wanted, which is no error


def env(**values: str | None) -> Callable[[Path], None]:
    def broken(folder: Path) -> None:
        for name, value in values.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value.replace("{folder}", str(folder))
        tempfile.tempdir = None

    return broken


def no_home(folder: Path) -> None:
    env(HOME=None, PROFILER_STORE="", PROFILER_CACHE="", XDG_DATA_HOME=None, XDG_CACHE_HOME=None, USER=None)(folder)
    forked.as_nobody()


def onto(path: str, *numbers: int, flags: int = os.O_WRONLY) -> Callable[[Path], None]:
    def broken(folder: Path) -> None:
        file = os.open(path, flags)
        for number in numbers:
            os.dup2(file, number)

    return broken


def closed(*numbers: int) -> Callable[[Path], None]:
    def broken(folder: Path) -> None:
        for number in numbers:
            os.close(number)

    return broken


def reader_gone(*numbers: int) -> Callable[[Path], None]:
    def broken(folder: Path) -> None:
        reading, writing = os.pipe()
        os.close(reading)
        for number in numbers:
            os.dup2(writing, number)
        os.close(writing)

    return broken


def not_blocking(folder: Path) -> None:
    os.set_blocking(1, False)


def current_folder_gone(folder: Path) -> None:
    gone = tempfile.mkdtemp()
    os.chdir(gone)
    os.rmdir(gone)


def read_only_folder(folder: Path) -> None:
    place = folder / "read-only"
    place.mkdir(exist_ok=True)
    place.chmod(0o555)
    os.chdir(place)
    forked.as_nobody()
    env(PROFILER_STORE=None, XDG_DATA_HOME=None, HOME=str(place))(folder)


def store_of_another(folder: Path) -> None:
    copy = Path(tempfile.mkdtemp(dir=folder))
    shutil.copy(folder / "store.sqlite", copy / "store.sqlite")
    (copy / "store.sqlite").chmod(0o444)
    copy.chmod(0o555)
    env(PROFILER_STORE=str(copy / "store.sqlite"))(folder)
    forked.as_nobody()


def few(kind: int, most: int) -> Callable[[Path], None]:
    def broken(folder: Path) -> None:
        resource.setrlimit(kind, (most, most))

    return broken


def umask(mask: int) -> Callable[[Path], None]:
    def broken(folder: Path) -> None:
        os.umask(mask)
        env(PROFILER_CACHE=tempfile.mkdtemp(dir=folder) + "/new")(folder)
        if mask == 0o777:
            forked.as_nobody()

    return broken


ALL = tuple(CALLS)
FAULTS: dict[str, Fault] = {
    **{name: Fault(encoding=name) for name in ("latin-1", "ascii", "cp1252", "utf-16")},
    "numbers of another locale": Fault(env(LC_ALL="de_DE.UTF-8", LC_NUMERIC="de_DE.UTF-8", LANG="de_DE.UTF-8")),
    "stdout full": Fault(onto("/dev/full", 1), silent=True),
    "stderr full": Fault(onto("/dev/full", 2), mute=True),
    "both full": Fault(onto("/dev/full", 1, 2), mute=True, silent=True),
    "stdout closed": Fault(closed(1), silent=True),
    "stderr closed": Fault(closed(2), mute=True),
    "all closed": Fault(closed(0, 1, 2), mute=True, silent=True),
    "stdout only for reading": Fault(onto("/dev/null", 1, flags=os.O_RDONLY), silent=True),
    "stdout not blocking": Fault(not_blocking),
    "reader of stdout gone": Fault(reader_gone(1), gone=True),
    "reader of both gone": Fault(reader_gone(1, 2), gone=True, mute=True),
    "reader of stderr gone": Fault(reader_gone(2), mute=True),
    "no home and no name": Fault(no_home, refused=NO_STORE, as_user=True),
    "a home that is a file": Fault(
        env(HOME="/dev/null", PROFILER_STORE=None, XDG_DATA_HOME=None, XDG_CACHE_HOME=None, PROFILER_CACHE=None),
        refused=NO_STORE,
    ),
    "store in another user's folder": Fault(store_of_another, refused=NO_STORE, as_user=True),
    "store is a folder": Fault(env(PROFILER_STORE="{folder}/a,b"), refused=(*NO_STORE, "explain")),
    "store has no folder": Fault(env(PROFILER_STORE="/dev/null/x/store.sqlite"), refused=(*NO_STORE, "explain")),
    "store of no such user": Fault(env(PROFILER_STORE="~nobody-of-this-name/x"), refused=NO_STORE),
    "store with a long name": Fault(env(PROFILER_STORE="x" * 5000), refused=(*NO_STORE, "explain")),
    "cache is a file": Fault(env(PROFILER_CACHE="/dev/null")),
    "cache under a file": Fault(env(PROFILER_CACHE="/dev/null/x")),
    "no temporary folder": Fault(env(TMPDIR="/dev/null/x")),
    "current folder gone": Fault(current_folder_gone),
    "current folder only for reading": Fault(read_only_folder, refused=NO_STORE, as_user=True),
    "three files": Fault(few(resource.RLIMIT_NOFILE, 3), refused=ALL),
    "six files": Fault(few(resource.RLIMIT_NOFILE, 6), refused=ALL),
    "nine files": Fault(few(resource.RLIMIT_NOFILE, 9), refused=ALL),
    "files of one KiB": Fault(few(resource.RLIMIT_FSIZE, 1024), refused=NO_STORE, silent=True),
    "umask 000": Fault(umask(0)),
    "umask 777": Fault(umask(0o777), refused=NO_STORE, as_user=True),
    **{
        f"COLUMNS={columns}": Fault(env(COLUMNS=columns, LINES=columns, TERM="dumb"), terminal=True)
        for columns in ("0", "1", "7", "²", "9" * 5000)
    },
    "NO_COLOR": Fault(env(NO_COLOR="1", FORCE_COLOR="1", TERM="xterm"), terminal=True),
}


@pytest.fixture
def place(seeded: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PROFILER_STORE", str(seeded / "store.sqlite"))
    monkeypatch.setenv("PROFILER_CACHE", str(seeded / "cache"))
    return seeded


def call(command: str, place: Path) -> list[str]:
    blanks = {"folder": str(place), **{name: (place / name).read_text() for name in ("run", "server")}}
    return [command, *(word.format(**blanks) for word in CALLS[command])]


def test_the_walk_knows_every_command() -> None:
    assert sorted(CALLS) == main.list_commands(click.Context(main))


@pytest.mark.parametrize("command", CALLS)
def test_a_command_works_in_a_broken_environment_or_says_in_one_line_what_is_broken(
    command: str, place: Path
) -> None:
    CliRunner().invoke(main, call(command, place))  # imports what the forks then need not
    whole = forked.run(call(command, place))
    assert whole.code in (0, 1, 2) and b"unexpected" not in whole.err, whole
    wrong = {}
    for name, fault in FAULTS.items():
        if fault.as_user and os.geteuid() != 0:
            continue  # only root can become somebody else; CI runs as root
        ended = forked.run(
            call(command, place), lambda fault=fault: fault.broken(place), fault.encoding, fault.terminal
        )
        with contextlib.suppress(AssertionError):
            check(command, fault, whole, ended)
            continue
        wrong[name] = ended
    assert wrong == {}


def check(command: str, fault: Fault, whole: forked.Ended, ended: forked.Ended) -> None:
    said = ended.err.decode(fault.encoding, "replace")
    assert ended.code in (0, 1, 2)
    for word in ("unexpected", "Traceback", "report it", "Exception ignored"):
        assert word not in said and word.encode() not in ended.out
    if fault.gone and whole.out:
        assert (ended.code, ended.out) == (0, b"")
        return
    errors = [line for line in said.splitlines() if line.startswith("Error: ")]
    assert len(errors) == (ended.code != 0 and not fault.mute)
    if fault.silent and whole.out:
        assert ended.code == 1 or command in fault.refused
        return
    if command in fault.refused and (ended.code != whole.code or said):
        return
    assert ended.code == whole.code
    ended.out.decode(fault.encoding)
    assert bool(ended.out) == bool(whole.out)


def no_more_processes(folder: Path) -> None:
    forked.as_nobody()
    resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
    env(PROFILER_STORE=tempfile.mkdtemp() + "/store.sqlite", PROFILER_CACHE="")(folder)


MEASURING = {
    "ascii": Fault(encoding="ascii"),
    "all closed": Fault(closed(0, 1, 2), mute=True, silent=True),
    "stdout full": Fault(onto("/dev/full", 1), silent=True),
    "stderr full": Fault(onto("/dev/full", 2), mute=True),
    "cache is a file": Fault(env(PROFILER_CACHE="/dev/null")),
    "no temporary folder": Fault(env(TMPDIR="/dev/null/x")),
    "umask 000": Fault(umask(0)),
    "current folder gone": Fault(current_folder_gone),
    "twelve files": Fault(few(resource.RLIMIT_NOFILE, 12), refused=("sweep",)),
    "no more processes": Fault(no_more_processes, refused=("sweep",), as_user=True),
}


@pytest.mark.parametrize("name", MEASURING)
def test_a_sweep_measures_in_a_broken_environment_or_says_why_not(name: str, place: Path) -> None:
    fault = MEASURING[name]
    if fault.as_user and os.geteuid() != 0:
        pytest.skip("only root can become a user who has no processes left")
    arguments = ["sweep", *GRID, "--fresh", "-o", "csv", "-m", f"{place}/a,b/tiny"]
    ended = forked.run(arguments, lambda: fault.broken(place), fault.encoding)
    assert b"unexpected" not in ended.err and b"Traceback" not in ended.err
    if fault.silent:
        assert ended.code == 1 and (fault.mute or b"Every row is stored: profile runs show" in ended.err), ended
    elif "sweep" in fault.refused and ended.code:
        assert b"failed" in ended.out or b"Error: " in ended.err, ended
    else:
        assert ended.code == 0 and b",ok," in ended.out, ended


def test_settings_of_python_and_of_the_locale_do_not_reach_what_is_measured(place: Path) -> None:
    settings = {
        "PYTHONOPTIMIZE": "2", "PYTHONWARNINGS": "error", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONSAFEPATH": "1",
        "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C", "PYTHONIOENCODING": "latin-1:strict",
    }  # fmt: skip
    arguments = ["sweep", *GRID, "--fresh", "-o", "table", "-m", f"{place}/a,b/tiny"]
    ended = subprocess.run(
        [sys.executable, "-m", "profiler", *arguments],
        env={**os.environ, **settings},
        capture_output=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    assert ended.returncode == 0, ended
    assert ended.stderr == b""
    assert b"FAKE FIGURES \xb7 run" in ended.stdout  # the middle dot as latin-1 has it


@pytest.mark.parametrize("files", [5, 8, 16])
def test_few_files_are_named_as_the_cause_from_the_first_import_on(files: int) -> None:
    script = f'ulimit -n {files}; exec "$0" -c "from profiler.cli import main; main()" models -o json'
    ended = subprocess.run(["sh", "-c", script, sys.executable], capture_output=True, text=True, check=False)
    assert "unknown" not in ended.stderr and "unexpected" not in ended.stderr
    assert ended.returncode == 0 or "Too many open files" in ended.stderr, ended


def test_a_page_with_charts_is_written_in_little_memory(place: Path) -> None:
    """In a process of its own: a fork of the tests may have more address space already than the limit leaves."""
    page = place / "page.html"
    script = f'ulimit -v {512 << 10}; exec "$0" -c "from profiler.cli import main; main()" report --html "$1"'
    ended = subprocess.run(
        ["sh", "-c", script, sys.executable, str(page)], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended
    assert "<svg" in page.read_text(encoding="utf-8")


def test_a_folder_that_this_user_may_not_read_is_one_refused_model_and_the_others_run(seeded: Path) -> None:
    closed, open_one = seeded / "closed", seeded / "a,b" / "tiny"
    closed.mkdir()
    closed.chmod(0)

    def be_a_user() -> None:
        os.environ["PROFILER_STORE"] = str(seeded / "none.sqlite")
        if os.geteuid() == 0:
            os.setgroups([])
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)

    try:
        alone = forked.run(["fit", str(closed), "--on", "rtx 3090"], be_a_user)
        both = forked.run(["sweep", *GRID, "--dry-run", "-m", str(closed), "-m", str(open_one)], be_a_user)
    finally:
        closed.rmdir()
    assert alone.code == 2
    assert alone.said.splitlines() == [
        f"Error: {closed} cannot be read: {closed}/config.json: Permission denied",
        "  Ask its owner for read permission.",
    ]
    assert both.code == 1
    assert f"refused: {closed} cannot be read: {closed}/config.json: Permission denied" in both.said
    assert "1 case to run" in both.said
