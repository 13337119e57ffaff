"""A store that somebody else made, or tampered with: read within its size, or refused in one line."""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from profiler.errors import ProfileError, StoreError
from profiler.results import database, reading
from profiler.results.store import Store

Attack = Callable[[sqlite3.Connection], object]


@pytest.fixture
def tampered(tmp_path: Path, make: Any, environment: Any) -> Callable[..., Path]:
    """A store of one run with two rows, changed by SQL."""

    def tamper(*attacks: str | Attack) -> Path:
        path = tmp_path / "theirs.sqlite"
        with Store.open(path) as store:
            run = store.start_run(["sweep"], environment)
            for context in (128, 256):
                store.append(run, make(context))
        db = sqlite3.connect(path, isolation_level=None)
        for attack in attacks:
            db.execute(attack) if isinstance(attack, str) else attack(db)
        db.close()
        return path

    return tamper


def refused(path: Path) -> str:
    """What is said of a store when its rows are read by ``compare``, which takes little time."""
    start = time.process_time()
    with pytest.raises(ProfileError) as caught:
        reading.read(path)
    assert time.process_time() - start < 2
    assert "\n" not in caught.value.message
    return caught.value.message


ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT"


@pytest.mark.parametrize(
    ("attacks", "said"),
    [
        (
            ("DROP TABLE run_rows", f"CREATE VIEW run_rows AS {ENDLESS} i AS run, i AS measurement FROM n"),
            "is a view",
        ),
        (("DROP TABLE runs", f"CREATE VIEW runs AS {ENDLESS} 'x' AS id FROM n"), "runs is a view"),
        (("DROP TABLE environments",), "has no table environments"),
        (("DROP INDEX measurements_by_key",), "has no index measurements_by_key"),
        (
            (
                "DROP TABLE run_rows",
                "CREATE TABLE run_rows (run TEXT, measurement AS (length(zeroblob(900000000))))",
            ),
            "run_rows is a table that profile did not create",
        ),
        (("CREATE TRIGGER t AFTER INSERT ON runs BEGIN DELETE FROM runs; END",), "it has a trigger, t"),
        (("PRAGMA user_version = -1",), "schema -1"),
        (("UPDATE measurements SET steps = zeroblob(40000000) WHERE id = 2",), "a value of more than 32.0 MiB"),
        (("UPDATE measurements SET content = '{'",), "cannot be read"),
        (("UPDATE measurements SET content = 'x], [0'",), "cannot be read"),
        (("UPDATE measurements SET content = replace(hex(zeroblob(100000)), '0', '[')",), "nested too deeply"),
        (("UPDATE measurements SET content = x'00'",), "cannot be read"),
        (("UPDATE measurements SET content = CAST(x'ff' AS TEXT)",), "cannot be used"),
        (("UPDATE measurements SET content = replace(content, '\"batch\":1', '\"batch\":-4')",), "case.batch is -4"),
        (
            ("UPDATE measurements SET content = replace(content, '\"batch\":1', '\"batch\":NaN')",),
            "case.batch is nan",
        ),
        (("UPDATE measurements SET content = replace(content, '\"seconds\":[', '\"seconds\":[9,')",), "columns of"),
        (
            ("UPDATE measurements SET content = replace(content, '\"seconds\"', '\"cpu_s\"')",),
            "samples has no seconds",
        ),
        (("UPDATE measurements SET steps = x'000000000000f87f'",), "samples.step_s contains nan"),
        (("UPDATE measurements SET steps = 'text'",), "cannot be read"),
        (("UPDATE environments SET content = '[1]'",), "environment is a list"),
        (("UPDATE environments SET content = 'no JSON'",), "cannot be read"),
        (("UPDATE environments SET content = '{\"device\": 3}'",), "environment.device is 3"),
        (("PRAGMA foreign_keys = OFF", "DELETE FROM environments"), "cannot be read"),
        (("PRAGMA foreign_keys = OFF", "UPDATE runs SET id = x'00ff'"), "is not text"),
    ],
)
def test_a_hostile_store_is_one_line_at_once(tampered: Any, attacks: tuple[str, ...], said: str) -> None:
    assert said in refused(tampered(*attacks))


def test_pages_that_refer_to_each_other_end_by_the_size_of_the_file(
    tampered: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that claims more rows than the file can hold, as a loop of pages does."""
    path = tampered()
    monkeypatch.setattr(database, "BYTES", 0)
    monkeypatch.setattr(database, "BYTES_PER_BYTE", 0.001)
    assert "returns more than a file of its size can contain" in refused(path)


def test_a_query_that_does_not_end_is_interrupted(tampered: Any) -> None:
    with Store.read_only(tampered()) as store, pytest.raises(StoreError, match="takes longer to read"):
        store._read(f"{ENDLESS} count(*) FROM n")


def test_every_query_has_the_whole_budget(tampered: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "STEPS", 10 * database.TICK)
    monkeypatch.setattr(database, "STEPS_PER_BYTE", 0)
    with Store.read_only(tampered()) as store:
        for _ in range(5):
            query = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 20000) SELECT max(i) FROM n"
            assert store._read(query) == [(20000,)]


def test_reading_another_users_store_leaves_it_and_its_folder_unchanged(tampered: Any) -> None:
    path = tampered()
    before = path.read_bytes(), sorted(path.parent.iterdir())
    assert len(reading.read(path)) == 2
    assert (path.read_bytes(), sorted(path.parent.iterdir())) == before


@pytest.mark.parametrize("name", ["wal", "shm", "journal"])
def test_files_next_to_a_store_must_be_plain_files(tampered: Any, name: str) -> None:
    """SQLite waits for a pipe, and writes through a link."""
    path = tampered()
    beside, victim = path.with_name(f"{path.name}-{name}"), path.with_name("victim")
    victim.write_text("precious")
    for plant in (lambda: os.mkfifo(beside), lambda: beside.symlink_to(victim)):
        plant()
        assert "next to the store, is not a plain file" in refused(path)
        with pytest.raises(StoreError, match="not a plain file"):
            Store.open(path)
        beside.unlink()
    assert victim.read_text() == "precious"


@pytest.mark.parametrize("attack", ["UPDATE runs SET argv = '{'", "UPDATE runs SET argv = '[1]'"])
def test_an_impossible_list_of_runs_is_an_error_of_one_line(tampered: Any, attack: str) -> None:
    with Store.open(tampered(attack)) as store, pytest.raises(StoreError, match=r"a run of .* cannot be read"):
        store.runs()


def test_tables_that_people_add_for_themselves_are_left_alone(tampered: Any) -> None:
    path = tampered("CREATE TABLE mine (note TEXT)", "CREATE VIEW fast AS SELECT * FROM runs")
    with Store.open(path) as store:
        assert len(store.rows()) == 2


def test_names_that_are_not_utf8_are_stored_and_come_back(tmp_path: Path, make: Any, environment: Any) -> None:
    name = "model-\udcff"
    with Store.open(tmp_path / "\udcfe.sqlite") as store:
        run = store.start_run(["sweep", "-m", name], environment | {"settings": {"X": name}})
        store.append(run, make(reason=name))
        assert store.runs()[0].argv[-1] == name
        assert [row.reason for row in store.rows()] == [name]
    assert json.dumps(name)  # and JSON of it is ASCII
    assert len(reading.read(tmp_path / "\udcfe.sqlite")) == 1
