"""The entry point: what is imported, what goes where, and which exit code comes out."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest

from profiler import devices
from profiler.cli import main, summary

HEAVY = ("torch", "transformers", "bitsandbytes", "huggingface_hub", "numpy", "rich", "gguf", "pynvml")


def test_a_command_imports_only_what_it_needs() -> None:
    """In one fresh interpreter: modules stay imported, so the commands that may import least come first."""
    calls: list[tuple[list[str], tuple[str, ...]]] = [
        (["--help"], ()),
        (["sweep", "--help"], ()),
        (["scenarios"], ()),
        (["models"], ()),
        (["--on", "4090"], ()),
        (["fit", "qwen3.5-9b", "--on", "4090"], ()),
        ([], ("pynvml",)),
        (["devices"], ("pynvml",)),
        (["sweep", "-m", "gemma-3-1b", "--dry-run"], ("pynvml",)),
    ]
    code = (
        "import sys; from profiler.cli import main\n"
        f"for arguments, allowed in {calls!r}:\n"
        "    try: main(arguments)\n"
        "    except SystemExit as error: assert error.code == 0, error.code\n"
        f"    wrong = [name for name in {HEAVY!r} if name in sys.modules and name not in allowed]\n"
        "    assert not wrong, (arguments, wrong)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_overview_of_a_machine_reads_no_rows() -> None:
    """A third of a second is all there is: what reads and shows measurements takes as long to import."""
    rows = ("sqlite3", "msgspec", "profiler.results.store", "profiler.results.measurement", "profiler.show.columns")
    code = (
        "import sys; from profiler.cli import main\n"
        "try: main(['--on', 'rtx 4090'])\n"
        "except SystemExit as error: assert error.code == 0, error.code\n"
        f"assert not [name for name in {rows!r} if name in sys.modules]"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_command_has_a_line_in_the_help(profile: Any) -> None:
    ran = profile("--help")
    assert ran.code == 0
    for name in ("devices", "models", "runs", "scenarios", "sweep"):
        assert summary(name)
        assert f"  {name} " in ran.out
    assert summary("options") == ""
    assert "options" not in main.list_commands(click.Context(main))


def test_an_option_of_the_overview_before_a_command_says_where_it_belongs(profile: Any) -> None:
    ran = profile("--on", "rtx 4090", "fit")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("Error: --on stands before fit. Put it after: profile fit --on DEVICE\n")


def test_an_unknown_command_names_the_nearest(profile: Any) -> None:
    ran = profile("sweeep")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.splitlines()[0] == "Error: unknown command: sweeep"
    assert "Did you mean sweep?" in ran.err


def test_the_version_is_shown(profile: Any) -> None:
    assert profile("--version").out.startswith("profile, version ")


def test_a_bug_is_one_line_and_a_log_with_the_traceback(profile: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise RuntimeError("oh no\x1b[31m: token=hf_abcdefghijklmnopqrstuvwxyz")

    monkeypatch.setattr(devices, "listed", broken)
    ran = profile("devices")
    assert ran.code == 1
    first, second = ran.err.splitlines()
    assert first.startswith("Error: unexpected: RuntimeError: oh no")
    assert "hf_abc" not in ran.err and "\x1b" not in ran.err
    assert "please report it" in second
    log = Path(second.split("The details are in ")[1].split(";")[0])
    text = log.read_text()
    log.unlink()
    assert "Traceback" in text and "hf_abc" not in text


def test_debug_shows_the_traceback(profile: Any, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    def broken() -> None:
        raise RuntimeError("oh no")

    monkeypatch.setattr(devices, "listed", broken)
    monkeypatch.setenv("PROFILER_DEBUG", "1")
    ran = profile("devices")
    assert ran.code == 1
    assert "Traceback" in ran.err + capfd.readouterr().err


def test_ctrl_c_before_anything_runs_is_130(profile: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(devices, "listed", interrupted)
    ran = profile("devices")
    assert (ran.code, ran.err.strip()) == (130, "interrupted")


def start(command_line: list[str], *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*command_line, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=dict(os.environ),
        preexec_fn=_hears_ctrl_c,
    )


def _hears_ctrl_c() -> None:
    """A shell has its background jobs ignore Ctrl-C, the tests among them, and what they start would inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_ctrl_c_keeps_what_is_finished_and_resume_does_the_rest(
    command_line: list[str], model: Any, sweep: Any
) -> None:
    grid = ("-c", "128,256,384,512", "-n", "2", "-r", "1")
    name = model(pause_s=0.05)
    running = start(command_line, "sweep", "--backend", "fake", "-m", name, *grid, "-o", "jsonl")
    assert running.stdout is not None and running.stderr is not None
    first = running.stdout.readline()
    running.send_signal(signal.SIGINT)
    rest, errors = running.communicate(timeout=30)
    assert running.returncode == 130
    assert "Traceback" not in errors
    finished = len((first + rest).splitlines())
    assert 1 <= finished < 4
    said = f"stopped: {finished} of 4 cases measured; the same command continues"
    assert errors.splitlines()[-1] == said
    again = sweep("-m", name, *grid)
    assert again.outcomes == ["ok"] * 4
    assert again.err.startswith(f"{finished} of 4 cases reuse")


def raising(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def broken() -> None:
        raise error

    monkeypatch.setattr(devices, "listed", broken)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(24, "Too many open files", "/x"), "system error: /x: Too many open files|ulimit -n"),
        (OSError(28, "No space left on device", "/x"), "/x: No space left on device|Free some space"),
        (PermissionError(13, "Permission denied", b"/x"), "/x: Permission denied|ask its owner"),
        (BlockingIOError(11, "Resource temporarily unavailable"), "Resource temporarily unavailable|ulimit -u"),
        (FileNotFoundError(2, "No usable temporary directory found in ['/x']"), "temporary files|Set TMPDIR to one"),
        (OSError(5, "Input/output error"), "Input/output error|PROFILER_DEBUG=1"),
        (MemoryError(), "out of memory|ulimit -v"),
        (RuntimeError("can't start new thread"), "the system cannot start another thread|ulimit -u"),
        (ImportError("x.so: Too many files", name="rich"), "cannot be loaded: x.so: Too many|Reinstall it"),
        (ImportError("no\nlines", name="torch._C"), "cannot be loaded: no lines|Reinstall it"),
    ],
)  # fmt: skip
def test_a_fault_of_the_environment_is_one_line_and_what_to_do(
    profile: Any, monkeypatch: pytest.MonkeyPatch, error: Exception, said: str
) -> None:
    raising(monkeypatch, error)
    ran = profile("devices")
    what, _, hint = said.partition("|")
    first, second = ran.err.splitlines()
    assert (ran.code, ran.out) == (1, "") and first.startswith("Error: ") and what in first and hint in second
    assert "report it" not in ran.err


@pytest.mark.parametrize("error", [RuntimeError("x"), ImportError("x", name="profiler.devices"), AssertionError()])
def test_a_bug_stays_a_bug(profile: Any, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    raising(monkeypatch, error)
    assert "unexpected: " in profile("devices").err


def test_a_bug_is_told_where_no_log_can_be_kept(profile: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere(*_: Any, **__: Any) -> None:
        raise FileNotFoundError(2, "No usable temporary directory found")

    raising(monkeypatch, RuntimeError("a\udcff"))
    monkeypatch.setattr("tempfile.NamedTemporaryFile", nowhere)
    first, second = profile("devices").err.splitlines()
    assert first == "Error: unexpected: RuntimeError: a?"
    assert "could not be saved (No usable temporary directory found)" in second and "PROFILER_DEBUG=1" in second
