from __future__ import annotations

import copy
import json
import math
import os
import sqlite3
import stat
from contextlib import closing
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from profiler.errors import NotFound, StoreError
from profiler.results import database
from profiler.results import store as store_module
from profiler.results.environment import environment_key
from profiler.results.measurement import Caution, RunModel, Sample
from profiler.results.store import Store, default_path, existing

V1 = Path(__file__).with_name("store_v1.sql")


def test_a_measurement_is_read_back_unchanged(store, make, environment):
    run = store.start_run(["sweep"], environment)
    rows = [make(128), make(256, outcome="oom", reason="no memory – 3 GiB", samples=(), cautions=()), make(512)]
    for row in rows:
        store.append(run, row)
    assert store.rows() == rows


def test_samples_of_different_shapes_are_read_back_in_order(store, make, environment):
    samples = (
        Sample("prefill", 0.1, 128),
        Sample("decode", 0.2, 4, (0.05, 0.15), cpu_s=0.1),
        Sample("decode", 0.3, 4, (), sm_mhz=1980.0),
        Sample("decode", 1 / 3, 4, (1 / 3,)),
    )
    run = store.start_run([], environment)
    store.append(run, make(samples=samples))
    assert store.rows()[0].samples == samples


def test_the_newest_row_of_each_case_represents_it(store, make, environment):
    first, second = store.start_run([], environment), store.start_run([], environment)
    old, other = make(128, load_s=1.0), make(256)
    new, failed = make(128, load_s=2.0), make(256, outcome="failed", reason="no", samples=(), cautions=())
    for run, row in ((first, old), (first, other), (second, new), (second, failed)):
        store.append(run, row)
    assert list(store.newest_per_environment()) == [other, new]


DEEP: dict[str, Any] = {"a": {}}
for _ in range(20):
    DEEP = {"a": DEEP}


@pytest.mark.parametrize(
    ("config", "kept"),
    [
        ({"model_type": "llama", "layers": [1, 2]}, True),
        ({}, False),
        (DEEP, False),
        ({"scores": list(range(1 << 16))}, False),
        ({"n": 10**400}, False),
    ],
    ids=["usual", "none", "deep", "long", "endless"],
)
def test_the_config_of_a_model_is_kept_if_it_can_be_read_again(store, make, environment, config, kept):
    run = store.start_run([], environment, [RunModel("ab12", "m", (), {"tensors": 1}, config)])
    store.append(run, make())
    other = store.start_run([], environment, [RunModel("ab12", "m")])  # a run that knows only the name
    store.reuse(other, 1)
    assert [row.case.model for row in store.rows(other)] == ["m"]
    assert store.configs() == ({"ab12": config} if kept else {})


def test_statistics_are_not_stored(store, make, environment):
    run = store.start_run([], environment)
    store.append(run, make())
    (content,) = store._db.execute("SELECT content FROM measurements").fetchone()
    assert not any(word in content for word in ("tps", "median", "stdev", "mean"))


def test_rows_that_share_an_environment_store_it_once(store, make, environment):
    run = store.start_run([], environment)
    for context in (1, 2, 3):
        store.append(run, make(context))
    assert store._db.execute("SELECT count(*) FROM environments").fetchone() == (1,)


def test_the_file_is_durable_and_for_its_owner_alone(store, environment):
    store.start_run([], environment)
    assert store._db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert store._db.execute("PRAGMA synchronous").fetchone() == (2,)
    for path in (store.path, Path(f"{store.path}-wal")):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_ids_of_runs_sort_by_time_and_never_collide(store, environment):
    runs = [store.start_run(["sweep"], environment) for _ in range(30)]
    assert len(set(runs)) == 30
    assert sorted(runs) == runs
    assert store.find_run() == runs[-1]


class Clock:
    """In place of ``datetime``: each run starts a day before the one that was stored before it."""

    days = 28

    @classmethod
    def now(cls, zone: Any) -> datetime:
        cls.days -= 1
        return datetime(2026, 11, cls.days, tzinfo=zone)


def test_the_latest_run_is_the_one_stored_last_though_the_clock_went_back(store, environment, make, monkeypatch):
    monkeypatch.setattr(store_module, "datetime", Clock)
    runs = [store.start_run(["sweep"], environment) for _ in range(3)]
    assert sorted(runs) != runs
    assert [run.id for run in store.runs()] == runs
    assert store.find_run() == runs[-1]
    store.append(runs[-1], make(7))
    assert [row.case.context for row in store.rows()] == [7]
    with pytest.raises(NotFound) as error:
        store.find_run("99")
    assert error.value.hint.startswith(f"The latest: {', '.join(runs)}.")


def test_runs_of_an_earlier_version_that_still_has_the_file_open_come_before_ours(store, environment):
    first = store.start_run([], environment)
    store._db.execute("PRAGMA foreign_keys = OFF")
    store._db.execute("INSERT INTO runs SELECT '991231-000000', '', NULL, NULL, '[]', environment FROM runs")
    assert store.find_run() == "991231-000000"
    last = store.start_run([], environment)
    assert [run.id for run in store.runs()] == [first, "991231-000000", last]


def test_a_run_is_found_by_the_start_of_its_id(store, environment):
    store._db.execute("PRAGMA foreign_keys = OFF")
    for run in ("261124-093015", "261124-101500", "261125-080000"):
        store._db.execute("INSERT INTO runs VALUES (?, '', NULL, NULL, '[]', '')", (run,))
    assert store.find_run("261125") == "261125-080000"
    assert store.find_run("261124-093015") == "261124-093015"
    last = ["261125-080000", "261125-080000", "261124-101500"]
    assert [store.find_run(name) for name in ("latest", "latest~0", "latest~1")] == last
    with pytest.raises(NotFound, match="there is no run 'latest~9'"):
        store.find_run("latest~9")
    with pytest.raises(NotFound, match="2 runs start with '261124'"):
        store.find_run("261124")
    with pytest.raises(NotFound, match="there is no run '9'") as error:
        store.find_run("9")
    assert "261125-080000" in error.value.hint


@pytest.mark.parametrize("name", ["", " "])
def test_an_empty_name_is_no_run(store, environment, name):
    store.start_run([], environment)
    with pytest.raises(NotFound, match="is empty"):
        store.find_run(name)


def test_an_empty_store_says_what_to_do(store):
    with pytest.raises(NotFound, match="no run is stored") as error:
        store.rows()
    assert "profile sweep" in error.value.hint


def test_resume_finds_the_latest_ok_row_of_the_same_case_and_environment(store, make, environment):
    key = environment_key(environment)
    run = store.start_run([], environment)
    assert store.finished(make().case.key, key) is None
    store.append(run, make(reason="boom", outcome="failed", samples=()))
    assert store.finished(make().case.key, key) is None
    store.append(run, make(load_s=1.0))
    latest = store.append(run, make(load_s=2.0))
    store.append(run, make(256))
    found = store.finished(make().case.key, key)
    assert (found.id, found.run, found.measurement) == (latest, run, make(load_s=2.0))


def test_resume_ignores_rows_from_before_a_driver_update(store, make, environment):
    updated = copy.deepcopy(environment)
    updated["device"]["driver"] = "999"
    run = store.start_run([], environment)
    store.append(run, make())
    assert store.finished(make().case.key, environment_key(updated)) is None


def test_a_reused_row_belongs_to_both_runs_once(store, make, environment):
    first = store.start_run([], environment)
    row = store.append(first, make())
    second = store.start_run([], environment)
    store.reuse(second, row)
    store.reuse(second, row)
    store.append(second, make(256))
    assert [m.case.context for m in store.rows(first)] == [128]
    assert [m.case.context for m in store.rows(second)] == [128, 256]


def test_runs_are_listed_with_their_outcomes_and_how_they_ended(store, make, environment):
    run = store.start_run(["sweep", "-c", "128"], environment)
    store.append(run, make())
    store.append(run, make(256))
    store.append(run, make(512, outcome="oom", reason="no memory", samples=()))
    store.finish_run(run, "interrupted")
    died = store.start_run([], environment)
    first, second = store.runs()
    assert (first.id, first.outcomes, first.how) == (run, {"ok": 2, "oom": 1}, "interrupted")
    assert (first.argv, first.models, first.environment) == (("sweep", "-c", "128"), ("gemma-3-270m",), environment)
    assert (second.id, second.outcomes, second.how, second.finished_at) == (died, {}, None, None)


def test_a_row_for_a_run_that_does_not_exist_is_refused(store, make):
    with pytest.raises(StoreError, match="no such run"):
        store.append("261124-000000", make())


@pytest.mark.parametrize("seconds", [math.nan, math.inf, 0.0, -1.0])
def test_an_invalid_time_is_refused_and_nothing_is_written(store, make, environment, seconds):
    run = store.start_run([], environment)
    with pytest.raises(StoreError):
        store.append(run, make(samples=(Sample("decode", seconds, 4),)))
    assert store.rows(run) == []


def test_no_secret_reaches_the_file(tmp_path, make, environment):
    canary = "hf_" + "C4nary" * 6
    path = tmp_path / "s.sqlite"
    with Store.open(path) as store:
        run = store.start_run(["sweep", "--token", canary, f"https://{canary}@host/m"], environment)
        case = replace(make().case, model=f"m {canary}")
        cautions = (Caution("x", canary, canary),)
        store.append(
            run, make(case=case, outcome="failed", reason=f"401 for {canary}", samples=(), cautions=cautions)
        )
        files = [file.read_bytes() for file in tmp_path.iterdir()]
    assert not any(canary.encode() in content for content in (*files, path.read_bytes()))


def test_the_default_file_is_the_variables_or_in_the_user_data_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("PROFILER_STORE", str(tmp_path / "named.sqlite"))
    assert default_path() == tmp_path / "named.sqlite"
    monkeypatch.delenv("PROFILER_STORE")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    with Store.open() as store:
        assert store.path == tmp_path / "profile" / "results.sqlite"


def test_reading_does_not_create_a_store(tmp_path):
    with pytest.raises(StoreError, match="there is no store"):
        Store.open(tmp_path / "none.sqlite", create=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("exists", [True, False])
def test_a_symbolic_link_is_refused(tmp_path, exists):
    target = tmp_path / "target"
    if exists:
        Store.open(target).close()
    link = tmp_path / "link.sqlite"
    link.symlink_to(target)
    with pytest.raises(StoreError, match="symbolic link"):
        Store.open(link)
    assert target.exists() == exists


def test_a_folder_a_text_file_and_another_programs_file_are_refused(tmp_path):
    with pytest.raises(StoreError, match="not a plain file"):
        Store.open(tmp_path)
    text = tmp_path / "notes.txt"
    text.write_text("no database at all, " * 100)
    with pytest.raises(StoreError, match="is not a store"):
        Store.open(text)
    other = tmp_path / "other.sqlite"
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE places (url TEXT)")
    connection.close()
    with pytest.raises(StoreError, match="another program"):
        Store.open(other)


def test_a_store_of_a_newer_version_is_refused_in_one_line(tmp_path):
    with Store.open(tmp_path / "s.sqlite") as store:
        store._db.execute("PRAGMA user_version = 99")
    with pytest.raises(StoreError) as error:
        Store.open(tmp_path / "s.sqlite")
    assert "schema 99" in error.value.message and "\n" not in error.value.message
    assert "Update profile" in error.value.hint


def test_a_row_of_a_newer_version_is_an_error_in_words(store, make, environment):
    run = store.start_run([], environment)
    store.append(run, make())
    (content,) = store._db.execute("SELECT content FROM measurements").fetchone()
    newer = json.loads(content) | {"quality": 0.9}
    store._db.execute("UPDATE measurements SET content = ?", (json.dumps(newer),))
    with pytest.raises(StoreError, match="cannot be read") as error:
        store.rows(run)
    assert "newer version" in error.value.hint


def test_a_damaged_store_is_an_error_in_words(tmp_path, make, environment):
    path = tmp_path / "s.sqlite"
    with Store.open(path) as store:
        run = store.start_run([], environment)
        for context in range(1, 100):
            store.append(run, make(context))
    content = path.read_bytes()
    path.write_bytes(content[:8192] + bytes([0xAB]) * (len(content) - 8192))
    with pytest.raises(StoreError, match="damaged"), Store.open(path) as store:
        store.rows()


def test_a_store_that_another_process_holds_is_an_error_in_words(tmp_path, make, environment, monkeypatch):
    monkeypatch.setattr(database, "BUSY_TIMEOUT_S", 0.05)
    with Store.open(tmp_path / "s.sqlite") as mine, Store.open(tmp_path / "s.sqlite") as other:
        run = mine.start_run([], environment)
        other._db.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="locked by another process"):
            mine.append(run, make())
        other._db.execute("ROLLBACK")
        mine.append(run, make())
        assert len(other.rows()) == 1


def test_a_store_that_may_only_be_read_is_an_error_in_words(tmp_path, make, environment):
    path = tmp_path / "s.sqlite"
    with Store.open(path) as store:
        run = store.start_run([], environment)
        store._db.execute("PRAGMA query_only = ON")  # what SQLite says of any file it may not write
        with pytest.raises(StoreError, match="is read-only"):
            store.append(run, make())


def test_a_store_of_schema_1_reads_as_it_did(tmp_path, make):
    path = old_store(tmp_path)
    with Store.open(path) as store:
        assert [(run.id, run.argv, run.how) for run in store.runs()] == [("261124-093015", ("sweep",), "finished")]
        assert store.rows() == [make(128), make(256, outcome="oom", reason="no memory", samples=(), cautions=())]


def test_an_older_store_is_upgraded_and_keeps_its_rows(tmp_path, make, monkeypatch):
    path = old_store(tmp_path)
    monkeypatch.setattr(database, "SCHEMAS", (*database.SCHEMAS, "ALTER TABLE runs ADD COLUMN title TEXT;"))
    with Store.open(path) as store:
        assert store._db.execute("PRAGMA user_version").fetchone() == (len(database.SCHEMAS),)
        assert store._db.execute("SELECT title FROM runs").fetchall() == [(None,)]
        assert store.rows()[0] == make(128)


def test_a_migration_that_fails_leaves_the_store_as_it_was(tmp_path, make, monkeypatch):
    path = old_store(tmp_path)
    broken = (*database.SCHEMAS, "ALTER TABLE runs ADD COLUMN title TEXT; NONSENSE;")
    with monkeypatch.context() as patch:
        patch.setattr(database, "SCHEMAS", broken)
        with pytest.raises(StoreError):
            Store.open(path)
    with Store.open(path) as store:
        assert store.rows()[0] == make(128)


def old_store(folder: Path) -> Path:
    path = folder / "old.sqlite"
    connection = sqlite3.connect(path)
    connection.executescript(V1.read_text(encoding="utf-8"))
    connection.close()
    os.chmod(path, 0o600)
    return path


def test_hints_can_be_pasted_as_commands(tmp_path):
    (tmp_path / "text").write_text("no database at all, but long enough to be looked at" * 100)
    with pytest.raises(StoreError) as caught:
        Store.open(tmp_path / "text")
    assert caught.value.hint == "Choose another file with --store or PROFILER_STORE."


@pytest.mark.parametrize("how", ["removed", "renamed", "replaced"])
def test_no_row_is_written_to_a_store_that_was_moved_or_replaced(tmp_path, make, environment, how):
    """SQLite would write on and report success: the rows would be in a file that nobody finds."""
    path = tmp_path / "results.sqlite"
    with Store.open(path) as store:
        run = store.start_run([], environment)
        store.append(run, make(128))
        if how == "removed":
            path.unlink()
        else:
            path.rename(tmp_path / "old.sqlite")
        if how == "replaced":
            with Store.open(path) as other:
                other.start_run([], environment)
        for write in (lambda: store.append(run, make(256)), lambda: store.finish_run(run, "finished")):
            with pytest.raises(StoreError, match="was removed, renamed or replaced while it was in use"):
                write()


def test_a_name_that_sqlite_treats_as_special_is_a_file(tmp_path, make, environment, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = Path(":memory:")
    with Store.open(path) as store:
        store.append(store.start_run([], environment), make(128))
    with Store.open(path) as store:
        assert len(store.rows()) == 1


def test_a_file_with_another_programs_mark_is_not_called_a_newer_store(tmp_path):
    path = tmp_path / "other.sqlite"
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA application_id = 12345")
        db.execute("PRAGMA user_version = 7")
    with pytest.raises(StoreError, match="is an SQLite file of another program"):
        Store.open(path)


@pytest.mark.parametrize("read", [lambda path: Store.open(path, create=False), Store.read_only])
def test_tables_without_the_number_of_their_schema_are_no_empty_store(tmp_path, store, read):
    with closing(sqlite3.connect(store.path)) as db:
        db.execute("PRAGMA user_version = 0")
    with pytest.raises(StoreError, match="is not a store of profile: it has schema 0"):
        read(store.path)


def test_a_damaged_store_names_a_command_that_can_be_pasted(tmp_path, store, environment):
    path = tmp_path / "a b.sqlite"
    with Store.open(path) as opened:
        opened.start_run([], environment)
    os.truncate(path, 3 * 4096)
    with pytest.raises(StoreError, match="is damaged") as caught:
        Store.open(path)
    assert f"sqlite3 '{path}' .recover" in caught.value.hint


def test_a_dangling_link_and_a_path_below_a_file_are_not_taken_for_a_missing_store(tmp_path):
    link = tmp_path / "link.sqlite"
    link.symlink_to(tmp_path / "nowhere.sqlite")
    (tmp_path / "file").touch()
    assert existing(link) == link
    assert existing(tmp_path / "file" / "x") == tmp_path / "file" / "x"
    assert existing(tmp_path / "none") is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("DELETE FROM environments", "the store does not contain its environment"),
        ("UPDATE measurements SET content = 'null'", "its content is not an object"),
        ("UPDATE measurements SET content = x'00ff'", "its content is not text"),
    ],
)
def test_a_row_that_was_tampered_with_is_an_error_and_not_left_out(store, make, environment, change, said):
    store.append(store.start_run([], environment), make(128))
    with closing(sqlite3.connect(store.path)) as db:
        db.execute(change)
        db.commit()
    with Store.open(store.path) as opened:
        for read in (opened.rows, lambda: list(opened.newest_per_environment())):
            with pytest.raises(StoreError, match=said):
                read()


def test_a_copy_of_the_file_has_a_finished_run_while_another_sweep_is_alive(store, make, environment, tmp_path):
    with Store.open(store.path) as other:
        other.start_run(["sweep"], environment)
        run = store.start_run(["sweep"], environment)
        store.append(run, make())
        store.finish_run(run, "finished")
        copy = tmp_path / "copy.sqlite"
        copy.write_bytes(store.path.read_bytes())
        with Store.read_only(copy) as copied:
            assert len(copied.rows(run)) == 1
