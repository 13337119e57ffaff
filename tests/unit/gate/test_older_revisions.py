"""Revisions from before the worker moved to ``run`` are started by the name it has now."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from profiler.gate import revision

WORKER = """
import sys

def main(orders, messages, parent):
    print("old worker", orders, messages, parent)
"""


def test_an_older_worker_is_started_by_its_present_name(tmp_path: Path) -> None:
    package = tmp_path / "profiler"
    (package / "measure").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "measure" / "__init__.py").write_text("")
    (package / "measure" / "worker.py").write_text(WORKER)
    (package / "measure" / "protocol.py").write_text("Order = 1\n")
    revision.add_run_folder(package)
    environ = os.environ | {"PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-P", "-m", "profiler.run.worker", "3", "4", "5"]
    assert (
        subprocess.run(command, env=environ, capture_output=True, text=True, check=True).stdout
        == "old worker 3 4 5\n"
    )
    program = "from profiler.run import protocol, worker; print(protocol.Order)"
    said = subprocess.run(
        [sys.executable, "-P", "-c", program], env=environ, capture_output=True, text=True, check=True
    )
    assert said.stdout == "1\n"


def test_a_revision_that_has_run_already_is_left_alone(tmp_path: Path) -> None:
    for folder in ("measure", "run"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "worker.py").write_text(folder)
    revision.add_run_folder(tmp_path)
    assert (tmp_path / "run" / "worker.py").read_text() == "run"
