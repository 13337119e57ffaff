"""A reader that has seen enough, by real pipes."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from profiler.results.store import Store

SWEEP = ("sweep", "--backend", "fake", "-n", "4", "-b", "1-12+1")


def into_head(command_line: list[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code of the command, what ``head -1`` printed, and stderr."""
    with subprocess.Popen(
        [*command_line, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as command:
        head = subprocess.run(["head", "-1"], stdin=command.stdout, capture_output=True, text=True, check=True)
        assert command.stdout is not None and command.stderr is not None
        command.stdout.close()  # ours; now nobody can read
        err = command.stderr.read()
        return command.wait(timeout=60), head.stdout, err


def test_a_sweep_whose_reader_has_gone_keeps_its_rows_and_ends_its_run(command_line: list[str], model: Any) -> None:
    code, line, err = into_head(command_line, *SWEEP, "-o", "jsonl", "-c", "128", "-m", model(pause_s=0.05))
    assert (code, line[:10]) == (0, '{"schema":')
    with Store.open() as store:
        (run,) = store.runs()
    assert run.how == "interrupted"
    assert 1 <= run.outcomes["ok"] < 12
    assert err == f"the reader of the rows has gone; measured rows are stored: profile runs show {run.id}\n"


@pytest.mark.parametrize("arguments", [("models", "-o", "json"), ("devices", "--catalog", "-o", "json")])
def test_a_list_whose_reader_has_gone_is_no_error(command_line: list[str], arguments: tuple[str, ...]) -> None:
    script = "import sys; from profiler.cli import main; sys.stdout.reconfigure(write_through=True); main()"
    shell = 'exec 3>&1; { "$@" ; echo $? >&3; } | true'
    program = ["sh", "-c", shell, "sh", sys.executable, "-c", script]
    ended = subprocess.run([*program, *arguments], capture_output=True, text=True, check=True, timeout=60)
    assert (ended.stdout, ended.stderr) == ("0\n", "")


def test_a_table_that_nobody_reads_ends_the_run_as_finished(sweep: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import click

    def closed(*_: Any, err: bool = False, **__: Any) -> None:
        if not err:
            raise BrokenPipeError

    monkeypatch.setattr(click, "echo", closed)
    assert sweep("-c", "128", "-n", "4", output="table").code == 0
    with Store.open() as store:
        assert [run.how for run in store.runs()] == ["finished"]
