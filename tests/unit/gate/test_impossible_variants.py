"""A side that cannot measure is a mistake of usage, said in one line before anything is measured: never a FAIL."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from fakes.lab import QUICK, make_case, source
from fakes.tiny import CONFIGS

from profiler.case import Task
from profiler.cli import main
from profiler.errors import ProfileError
from profiler.gate import revision, variants
from profiler.gate.bench import WorkerBench
from profiler.gate.variants import Variant
from profiler.run.process import Launch
from profiler.run.supervisor import WorkerLimits

PYTHON = shlex.quote(sys.executable)
SILENT = "import sys; sys.exit(0)"


@pytest.fixture
def gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """``profile gate`` on a fake model; nothing may be measured."""

    def never(*arguments: Any) -> None:
        raise AssertionError("a block was measured")

    (tmp_path / "config.json").write_text(json.dumps(CONFIGS["gemma3"]))
    monkeypatch.setattr(WorkerBench, "block", never)

    def run(*arguments: str) -> Any:
        where = ("-m", str(tmp_path), "--backend", "fake", "-c", "64", "-n", "8")
        return CliRunner().invoke(main, ["gate", *where, *arguments], catch_exceptions=False)

    return run


def package(folder: Path, worker: str = "", protocol: str | None = None) -> str:
    """A command that becomes a Python whose ``profiler`` is this one."""
    (folder / "profiler" / "run").mkdir(parents=True)
    (folder / "profiler" / "__init__.py").write_text("")
    (folder / "profiler" / "registry.py").write_text("def load(*names): pass\n")
    (folder / "profiler" / "run" / "__init__.py").write_text("")
    (folder / "profiler" / "run" / "worker.py").write_text(worker)
    if protocol is not None:
        (folder / "profiler" / "run" / "protocol.py").write_text(protocol)
    return f"env PYTHONPATH={shlex.quote(str(folder))} {PYTHON}"


PROTOCOL = """
from types import SimpleNamespace
class WorkerTask:
    @classmethod
    def from_json(cls, message):
        return SimpleNamespace(case=SimpleNamespace(backend="fake", device="cpu"))
"""
OLD = """
class WorkerTask:
    @classmethod
    def from_json(cls, message):
        raise TypeError("Case() got an unexpected keyword argument 'path'")
"""

IMPOSSIBLE: dict[str, Callable[[Path], str]] = {
    "prints a number": lambda folder: f"{PYTHON} -c 'print(1)'",
    "prints JSON that is not ours": lambda folder: f"""{PYTHON} -c 'print("{{}}")'""",
    "prints a list": lambda folder: f"{PYTHON} -c 'print([])'",
    "prints what it was given": lambda folder: "cmd:echo",
    "prints without end": lambda folder: "sh -c yes",
    "says nothing": lambda folder: f"{PYTHON} -c {shlex.quote(SILENT)}",
    "fails": lambda folder: "cmd:false",
    "no such thing": lambda folder: "no-such-thing",
    "nothing": lambda folder: " ",
    "unbalanced quotes": lambda folder: "python3 -c 'print(1)",
    "a name as long as no file system takes": lambda folder: "/" + "x" * 5000,
    "the home of nobody": lambda folder: "~no-such-user/venv",
    "a NUL byte": lambda folder: "venv:a\0b",
    "a folder without an interpreter": lambda folder: str(folder),
    "an interpreter that is no program": lambda folder: (_python(folder, "not a program\n"), str(folder))[1],
    "a file without permission": lambda folder: (_python(folder, "#!/bin/sh\n", 0o644), str(folder))[1],
    "no such interpreter behind env": lambda folder: "env no-such-python",
    "no such revision": lambda folder: "rev:no-such-revision",
    "an option of git": lambda folder: "rev:--help",
    "a worker that cannot be imported": lambda folder: package(folder, "raise ImportError('gone')", PROTOCOL),
    "a profiler without the protocol": lambda folder: package(folder),
    "a profiler that does not know a field": lambda folder: package(folder, "", OLD),
    "a worker that ends at once": lambda folder: package(folder, "", PROTOCOL),
    "a worker that writes garbage": lambda folder: package(
        folder, "import os, sys\nif __name__ == '__main__': os.write(int(sys.argv[2]), b'garbage\\n')\n", PROTOCOL
    ),
}


def _python(folder: Path, content: str, mode: int = 0o755) -> None:
    (folder / "bin").mkdir()
    (folder / "bin" / "python").write_text(content)
    (folder / "bin" / "python").chmod(mode)


CANDIDATES = (
    "prints a number",
    "no such thing",
    "a worker that ends at once",
    "a profiler that does not know a field",
)


@pytest.mark.parametrize(
    ("option", "what"),
    [("--base", what) for what in IMPOSSIBLE] + [("--candidate", what) for what in CANDIDATES],
)
def test_an_impossible_variant_is_a_usage_error(what: str, option: str, gate: Any, tmp_path: Path) -> None:
    (tmp_path / "side").mkdir()
    other = () if option == "--base" else ("--base", sys.executable)
    ran = gate(*other, option, IMPOSSIBLE[what](tmp_path / "side"))
    assert ran.exit_code == 2, ran.output
    (line,) = [line for line in ran.stderr.splitlines() if line.startswith("Error: ")]
    assert "Traceback" not in ran.output and "unexpected:" not in line
    assert ran.stdout == ""


def test_a_worker_behind_a_command_that_closes_its_pipes_is_no_variant() -> None:
    """The interpreter answers, but no worker of it can be talked to."""
    close = 'for fd in $(seq 3 99); do eval "exec $fd>&-"; done'
    closing = Launch(("bash", "-c", f'{close}; exec {PYTHON} "$@"', "bash"))
    with (
        WorkerBench(QUICK, WorkerLimits(), {}, seed=1) as running,
        pytest.raises(ProfileError, match="cannot measure"),
    ):
        running.check(Variant("closing", closing, {}), [Task(make_case(64), source())])


def test_a_variant_that_can_measure_is_tried_out_and_leaves_nothing() -> None:
    with WorkerBench(QUICK, WorkerLimits(), {}, seed=1) as running:
        running.check(Variant("here", Launch((sys.executable,)), {}), [Task(make_case(64), source())])
        assert running._slots == []


def test_a_backend_that_does_not_import_there_is_said() -> None:
    launch = Launch((sys.executable,), {"PYTHONPATH": "/nowhere"})
    task = Task(make_case(64, backend="no-such"), source())
    assert "no-such" in (variants.interpreter_fault(launch, [task], QUICK) or "")


@pytest.fixture
def named_python3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with a branch called ``python3``, and a program of that name."""
    root = tmp_path / "checkout"
    (root / "profiler" / "run").mkdir(parents=True)
    (root / "profiler" / "__init__.py").write_text("")
    (root / "profiler" / "run" / "worker.py").write_text("")
    (root / "pyproject.toml").write_text("")
    for words in (["init", "-q"], ["add", "-A"], [*AUTHOR, "commit", "-qm", "x"], ["branch", "python3"]):
        subprocess.run(["git", "-C", root, *words], check=True, capture_output=True)
    monkeypatch.setattr(revision, "checkout", lambda: root)
    monkeypatch.chdir(root)
    return root


AUTHOR = ["-c", "user.name=a", "-c", "user.email=a@b"]


def test_a_word_that_is_a_revision_and_a_program_is_refused_with_both_spellings(named_python3: Path) -> None:
    with pytest.raises(ProfileError, match="is ambiguous") as refused:
        variants.meaning("python3")
    assert refused.value.hint == "Say which is meant: rev:python3 or cmd:python3"
    assert variants.meaning("rev:python3").kind == "rev"
    assert variants.meaning("cmd:python3").kind == "cmd"
    assert variants.meaning(sys.executable).kind == "venv"
    assert variants.meaning("HEAD").commit == variants.meaning("rev:python3").commit


def test_head_is_the_revision_whatever_programs_there_are(
    named_python3: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = named_python3 / "programs" / "HEAD"  # libwww-perl has one
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    assert variants.meaning("HEAD").kind == "rev"
    assert variants.meaning("cmd:HEAD").kind == "cmd"


def test_a_folder_that_is_a_revision_too_is_refused(named_python3: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(named_python3)
    _python(named_python3, "")
    (named_python3 / "bin").rename(named_python3 / "x")
    (named_python3 / "old").mkdir()
    (named_python3 / "x").rename(named_python3 / "old" / "bin")
    subprocess.run(["git", "-C", named_python3, "branch", "old"], check=True)
    with pytest.raises(ProfileError, match="is ambiguous") as refused:
        variants.meaning("old")
    assert refused.value.hint == "Say which is meant: rev:old or venv:old"


def test_finding_out_what_a_variant_means_runs_no_program(tmp_path: Path) -> None:
    _python(tmp_path, f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    program = tmp_path / "bin" / "python"
    for typed in (str(tmp_path), str(program), f"{program} -x", f"cmd:{program}"):
        variants.meaning(typed)
    assert not (tmp_path / "ran").exists()


def test_what_runs_is_said_before_it_runs(gate: Any, tmp_path: Path) -> None:
    said: list[str] = []

    def say(words: str) -> None:
        said.append(words)
        assert not (tmp_path / "ran").exists()

    _python(tmp_path, f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    with pytest.raises(ProfileError):
        variants.resolve(str(tmp_path), tmp_path, say)
    assert said == [f"runs the interpreter {tmp_path}/bin/python"]
    assert (tmp_path / "ran").exists()
    assert f"the base runs the interpreter {tmp_path}/bin/python\n" in gate("--base", str(tmp_path)).stderr


@pytest.mark.parametrize("words", [("--base", ""), ("--base", " "), ("--base", "cmd:" + PYTHON, "--candidate", "")])
def test_an_empty_variant_is_usage_as_where_a_variable_of_a_script_is_not_set(
    words: tuple[str, ...], gate: Any
) -> None:
    result = gate(*words)
    assert result.exit_code == 2 and "--base or --candidate is empty" in result.stderr
