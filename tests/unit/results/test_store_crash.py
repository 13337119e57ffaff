"""What the store promises when processes die, disks fill and writers meet."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fakes.forked import fork

from profiler.results.store import Store

KILLS = 50
# Children here are forked: starting an interpreter fifty times would take half a minute. They only touch SQLite.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


def in_child(work) -> int:
    """Run ``work`` in a forked process and return its pid."""
    pid = fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        except BaseException as error:
            os.write(2, f"child: {error!r}\n".encode())
            os._exit(1)
    return pid


def test_sigkill_loses_no_acknowledged_row_in_fifty_kills(tmp_path, make, environment):
    path = tmp_path / "s.sqlite"
    generator = random.Random(20261124)
    acknowledged: dict[str, list[int]] = {}
    for kill in range(KILLS):
        with Store.open(path) as store:
            run = store.start_run([str(kill)], environment)
        acknowledged[run] = killed_writer(path, run, make, generator.uniform(0.0, 0.03))
    with Store.open(path) as store:
        for run, contexts in acknowledged.items():
            rows = store.rows(run)
            stored = [row.case.context for row in rows]
            assert stored[: len(contexts)] == contexts, "an acknowledged row is lost"
            assert len(stored) <= len(contexts) + 1 and len(set(stored)) == len(stored)
            assert rows == [make(context) for context in stored], "a row is torn"
        assert store._db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert sum(map(len, acknowledged.values())) > KILLS, "the writers hardly wrote: the test shows nothing"


def killed_writer(path: Path, run: str, make, delay: float) -> list[int]:
    """Contexts that a writer acknowledged before it was killed, ``delay`` seconds after its first row."""
    reader, writer = os.pipe()

    def work() -> None:
        os.close(reader)
        with Store.open(path) as store:
            for context in range(1, 10_000):
                store.append(run, make(context))
                os.write(writer, context.to_bytes(4, "little"))

    pid = in_child(work)
    os.close(writer)
    content = os.read(reader, 4)
    time.sleep(delay)
    os.kill(pid, signal.SIGKILL)
    while chunk := os.read(reader, 65536):
        content += chunk
    os.close(reader)
    assert os.WIFSIGNALED(os.waitpid(pid, 0)[1])
    return [int.from_bytes(content[i : i + 4], "little") for i in range(0, len(content), 4)]


def test_writers_at_once_lose_nothing_even_while_the_file_is_made(tmp_path, make, environment):
    path = tmp_path / "s.sqlite"

    def work() -> None:
        with Store.open(path) as store:
            run = store.start_run([], environment)
            for context in range(1, 21):
                store.append(run, make(context))

    children = [in_child(work) for _ in range(4)]
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0, 0, 0, 0]
    with Store.open(path) as store:
        assert [len(store.rows(run.id)) for run in store.runs()] == [20, 20, 20, 20]


FILL = """
import json, sys
sys.path.insert(0, {tests!r})
from conftest import ENVIRONMENT, measured
from pathlib import Path
from profiler.errors import StoreError
from profiler.results.store import Store
{limit}
path = Path({folder!r}) / "s.sqlite"
acknowledged, error = [], None
store = Store.open(path)
run = store.start_run([], ENVIRONMENT)
for context in range(1, 5000):
    try:
        store.append(run, measured(context))
    except StoreError as failure:
        error = str(failure)
        break
    acknowledged.append(context)
same = [row.case.context for row in store.rows(run)]
with Store.open(path) as again:
    later = [row.case.context for row in again.rows(run)]
print(json.dumps([error, acknowledged, same, later]))
"""
LIMIT = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, 600_000))
"""


def filled(folder: Path, limit: str, *before: str) -> tuple[str, list[int], list[int], list[int]]:
    """Error and rows (acknowledged, read at once, read by another connection) of a writer that fills its disk."""
    code = FILL.format(tests=str(Path(__file__).parent), folder=str(folder), limit=limit)
    done = subprocess.run([*before, sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return tuple(json.loads(done.stdout))


def test_a_full_disk_is_an_error_in_words_and_committed_rows_stay(tmp_path):
    mount = mounting(tmp_path)
    if mount is None:
        pytest.skip("this machine lets us mount no small file system; the next test fills a file instead")
    error, acknowledged, same, later = filled(tmp_path, "", *mount)
    assert "no space left" in error and "Rows stored earlier are safe" in error
    assert len(acknowledged) > 20
    assert acknowledged == same == later


def test_the_limit_on_the_size_of_files_is_named_and_committed_rows_stay(tmp_path):
    error, acknowledged, same, later = filled(tmp_path, LIMIT)
    assert "ulimit -f allows 586 KiB" in error and "ulimit -f unlimited" in error
    assert "Rows stored earlier are safe" in error and "disk" not in error
    assert len(acknowledged) > 20
    assert acknowledged == same == later


def mounting(folder: Path) -> list[str] | None:
    """A command prefix under which ``folder`` is a file system of 1 MiB; it goes with the process."""
    if not shutil.which("unshare"):
        return None
    for spaces in (["--mount"], ["--user", "--map-root-user", "--mount"]):
        mount = f'mount -t tmpfs -o size=1m tmpfs "{folder}" && exec "$@"'
        prefix = ["unshare", *spaces, "sh", "-c", mount, "sh"]
        if subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode == 0:
            return prefix
    return None
