"""The result store: one SQLite file with every measurement, safe even if the process that measured it is killed.

    runs ──< run_rows >── measurements >── environments
      └──< run_models

A measurement is stored as a whole (``encoding``): raw samples, no statistics. Its environment is stored once for all
rows that share it. A run is a list of measurements: its own, and those reused from other runs, which a reader gets
with what this run says about their models (``measurement.RunModel``). With WAL and ``synchronous=FULL``, a row
survives SIGKILL and power loss once ``append`` has returned. Nothing that ``redact`` takes for a secret is written.
"""

from __future__ import annotations

import os
import re
import sqlite3
import string
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from operator import itemgetter
from pathlib import Path
from typing import Any

from profiler import settings
from profiler.case import digest
from profiler.errors import NotFound, StoreError
from profiler.foreign import Budget, json_value
from profiler.results.database import Guarded, check_in_place, connect, connect_to_read, in_words
from profiler.results.encoding import Placed, decode, decode_model, dumps, encode, encode_model, placed
from profiler.results.environment import environment_key
from profiler.results.measurement import Measurement, RunModel
from profiler.results.redact import redact, redact_argv, redact_json
from profiler.results.validity import check_part
from profiler.shell import Command, command
from profiler.units import printable

ORDER_SCHEMA = 3  # the first schema that stores the order of runs
MODELS_SCHEMA = 4  # the first schema that stores what a run says about its models
TIME = "%Y-%m-%dT%H:%M:%SZ"
PART = Budget(nbytes=1 << 24, values=1 << 18, depth=16)  # of an environment or a command line
RUN_ID = "%y%m%d-%H%M%S"
LATEST = re.compile(r"latest(?:~(\d{1,9}))?")
CHUNK = 500  # rows that are decoded together
MAX_CACHED_ROWS = 500  # for reading them again


@dataclass(frozen=True, slots=True)
class Run:
    """A stored run: its command, times, how it ended, and its rows counted by outcome."""

    id: str
    started_at: str  # UTC, ISO 8601
    finished_at: str | None
    how: str | None  # the argument of ``finish_run``; None: it is running, or it died
    argv: tuple[str, ...]
    environment: dict[str, Any]
    models: tuple[str, ...]
    outcomes: dict[str, int]


@dataclass(frozen=True, slots=True)
class StoredRow:
    """A measurement and its place in the store."""

    id: int
    run: str  # the run that measured it
    measurement: Measurement


class Store:
    """An open store. Use it as a context manager; two processes may open the same file.

    Every method raises StoreError if the file cannot be read or written.
    """

    def __init__(self, path: Path, connection: Guarded) -> None:
        self.path = path
        self._db = connection
        self._environments: dict[str, dict[str, Any]] = {}  # by id: those that were read
        self._models: dict[str, dict[str, RunModel]] = {}  # by run, then by model_id: of runs that reuse rows
        self._rows: dict[tuple[int, str | None], Measurement] = {}  # a cache for rows that are read again
        self._known: tuple[dict[str, Any], str] | None = None  # the environment stored last, and its id

    @classmethod
    def open(cls, path: Path | None = None, create: bool = True) -> Store:
        """Open the store at ``path``; None: ``$PROFILER_STORE``, else ``results.sqlite`` in the user data folder.

        Raises StoreError for a symlink, a file that is not a store, a newer schema, and with ``create=False`` a
        missing file.
        """
        path = path or default_path()
        return cls(path, connect(path, create))

    @classmethod
    def read_only(cls, path: Path) -> Store:
        """Open a store only to read its rows; the file is not changed. Raises StoreError like ``open``."""
        return cls(path, connect_to_read(path))

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; the last process to close it merges the write-ahead log into it."""
        self._db.close()

    def start_run(self, argv: Sequence[str], environment: dict[str, Any], models: Sequence[RunModel] = ()) -> str:
        """Register a run and return its id, which is its start time: ``261124-093015``.

        ``models``: what the run says about the models whose rows it may reuse.
        """
        now = datetime.now(UTC)
        with self._writing() as db:
            run = self._free_id(now.strftime(RUN_ID))
            db.execute(
                "INSERT INTO runs (id, started_at, argv, environment) VALUES (?, ?, ?, ?)",
                (run, now.strftime(TIME), dumps(redact_argv(argv)), self._environment(environment)),
            )
            db.execute(  # this run, after those of an earlier version that still has the file open
                "INSERT INTO run_order (run) SELECT id FROM runs WHERE id NOT IN (SELECT run FROM run_order)"
                " ORDER BY id = ?, id",
                (run,),
            )
            db.executemany(
                "INSERT INTO run_models (run, model_id, model, content) VALUES (?, ?, ?, ?)",
                [_said(run, each) for each in models],
            )
        return run

    def describe_model(self, run: str, model: RunModel) -> None:
        """Add what ``run`` says about one more model, unless it has said something about it before."""
        with self._writing() as db:
            db.execute(
                "INSERT OR IGNORE INTO run_models (run, model_id, model, content) VALUES (?, ?, ?, ?)",
                _said(run, model),
            )

    def append(self, run: str, measurement: Measurement) -> int:
        """Store one row of ``run`` and return its id. The row is then durable, and its lease is released."""
        (row,) = self.append_all(run, [measurement])
        return row

    def append_all(self, run: str, measurements: Sequence[Measurement]) -> list[int]:
        """Store many rows at once: all of them or none, with one disk sync."""
        for measurement in measurements:
            for sample in measurement.samples:
                if not sample.seconds > 0 or sample.tokens < 1:
                    raise StoreError(f"a {sample.phase} sample of {measurement.case.key} has no time or no tokens")
        with self._writing() as db:
            return [self._insert(db, run, measurement) for measurement in measurements]

    def _insert(self, db: sqlite3.Connection, run: str, measurement: Measurement) -> int:
        case = measurement.case
        row = db.execute(
            "INSERT INTO measurements (run, key, model, outcome, environment, content, steps)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            (run, case.key, _encodable(redact(case.model)), measurement.outcome,
             self._environment(measurement.environment), *encode(measurement)),
        ).lastrowid  # fmt: skip
        assert row is not None  # sqlite3 sets it after every INSERT
        db.execute("INSERT INTO run_rows (run, measurement) VALUES (?, ?)", (run, row))
        db.execute("DELETE FROM leases WHERE key = ? AND run = ?", (case.key, run))
        return row

    def reuse(self, run: str, *measurement_ids: int) -> None:
        """Add rows that other runs have measured to ``run``; adding one again changes nothing."""
        with self._writing() as db:
            rows = [(run, measurement_id) for measurement_id in measurement_ids]
            db.executemany("INSERT OR IGNORE INTO run_rows (run, measurement) VALUES (?, ?)", rows)

    def finish_run(self, run: str, how: str) -> None:
        """Record that ``run`` ended, and how: ``finished``, ``interrupted``."""
        with self._writing() as db:
            db.execute(
                "UPDATE runs SET finished_at = ?, how = ? WHERE id = ?",
                (datetime.now(UTC).strftime(TIME), how, run),
            )
        with suppress(sqlite3.Error):  # another sweep may be alive: a copy of the file alone then has this run
            self._db.execute("PRAGMA wal_checkpoint(PASSIVE)")

    def finished(self, key: str, environment_key: str, after: int = 0) -> StoredRow | None:
        """The latest ``ok`` row of a case in an environment of equal speed; ``after``: stored later than that row."""
        found = self._read(
            "SELECT m.id, m.run, m.content, m.steps, e.id FROM measurements m JOIN environments e"
            " ON e.id = m.environment WHERE m.key = ? AND m.outcome = 'ok' AND e.key = ? AND m.id > ?"
            " ORDER BY m.id DESC LIMIT 1",
            (key, environment_key, after),
        )
        for row, run, content, steps, name in found:
            return StoredRow(row, run, *self._decoded([(content, steps, name, None)]))
        return None

    def newest_id(self) -> int:
        """Id of the row that was stored last, by any run; 0 if there is none."""
        return int(self._read("SELECT COALESCE(MAX(id), 0) FROM measurements")[0][0])

    def runs(self, counted: bool = True) -> list[Run]:
        """All runs in the order in which they were stored, whatever the clock said.

        ``counted=False``: without models and outcomes, which need a look at every row.
        """
        found = self._read(
            "SELECT r.id, r.started_at, r.finished_at, r.how, r.argv, e.content FROM runs r"
            f" JOIN environments e ON e.id = r.environment {self._in_order_of_storing()}"
        )
        models: dict[str, list[str]] = {}
        if counted and self._has(MODELS_SCHEMA):
            for run, model in self._read("SELECT run, model FROM run_models ORDER BY rowid"):
                models.setdefault(run, []).append(model)
        said = set(models)
        outcomes: dict[str, dict[str, int]] = {}
        query = (
            "SELECT l.run, m.model, m.outcome, m.run = l.run AS own, count(*) FROM run_rows l"
            " JOIN measurements m ON m.id = l.measurement"
            " GROUP BY l.run, m.model, m.outcome, own ORDER BY min(l.rowid)"
        )
        for run, model, outcome, own, count in self._read(query) if counted else ():
            if own or run not in said:  # a reused row may have another name
                models.setdefault(run, []).append(model)
            counts = outcomes.setdefault(run, {})
            counts[outcome] = counts.get(outcome, 0) + count
        with self._content_in_words("run"):
            return [
                Run(_text(run), _text(started), finished, how, tuple(map(_text, _json(argv))),
                    _environment(environment), tuple(dict.fromkeys(map(_text, models.get(run, ())))),
                    outcomes.get(run, {}))
                for run, started, finished, how, argv, environment in found
            ]  # fmt: skip

    def _in_order_of_storing(self) -> str:
        """The end of a query over ``runs r``. In a store of an older schema only ids give the order."""
        if not self._has(ORDER_SCHEMA):
            return "ORDER BY r.id"
        return "LEFT JOIN run_order o ON o.run = r.id ORDER BY o.number IS NULL, o.number, r.id"

    def _has(self, schema: int) -> bool:
        """Whether the file has at least this schema; reading does not upgrade an older one."""
        return bool(self._read("PRAGMA user_version")[0][0] >= schema)

    def command(self, *words: str) -> Command:
        """A command that reads or writes this store, wherever it is."""
        return command("profile", words, () if self.path == default_path() else ("--store", str(self.path)))

    def find_run(self, prefix: str | None = None) -> str:
        """Id of the latest run, the one before ("latest~1"), or the only one whose id starts with ``prefix``.

        Raises NotFound.
        """
        with self._content_in_words("run"):
            known = [_text(run) for (run,) in self._read(f"SELECT r.id FROM runs r {self._in_order_of_storing()}")]
        if not known:
            hint = f"Measure something first: {self.command('sweep')}"
            raise NotFound(f"no run is stored in {printable(self.path)}", hint)
        if prefix is not None and not prefix.strip():
            raise NotFound("the name of a run is empty", f"All runs: {self.command('runs')}")
        if (back := LATEST.fullmatch(prefix or "")) and int(back[1] or 0) < len(known):
            return known[-1 - int(back[1] or 0)]
        matching = [run for run in known if prefix is None or run.startswith(prefix)]
        if prefix is None or prefix in matching:
            return prefix or matching[-1]
        if len(matching) != 1:
            what = f"{len(matching)} runs start with" if matching else "there is no run"
            hint = f"The latest: {', '.join((matching or known)[-5:])}. All of them: {self.command('runs')}"
            raise NotFound(f"{what} {printable(prefix)!r}", hint)
        return matching[0]

    def rows(self, run: str | None = None) -> list[Measurement]:
        """Rows of a run in their order; ``run`` as for ``find_run``."""
        return list(self._of_run(run, "m.steps"))

    def iter_run(self, run: str | None = None) -> Iterator[Measurement]:
        """Rows of a run one at a time. The store must stay open, because their step times are read on access."""
        return self._of_run(run, "m.id")

    def newest(self, most: int) -> Iterator[Measurement]:
        """The rows that were stored last, the newest first, as ``iter_run`` returns them."""
        return self._each("SELECT content, id, environment, NULL FROM measurements ORDER BY id DESC LIMIT ?", (most,))

    def _of_run(self, run: str | None, steps: str) -> Iterator[Measurement]:
        return self._each(
            f"SELECT m.content, {steps}, m.environment, NULLIF(l.run, m.run) FROM run_rows l JOIN measurements m"
            " ON m.id = l.measurement WHERE l.run = ? ORDER BY l.rowid",
            (self.find_run(run),),
        )

    def in_order(self, run: str, places: Callable[[Sequence[Placed]], list[Any]]) -> Iterator[Measurement]:
        """Rows of a run in another order, one at a time: ``places`` returns a sort key for each."""
        query = "SELECT m.id, m.content FROM run_rows l JOIN measurements m ON m.id = l.measurement"
        with in_words(self.path), self._content_in_words("row"):
            self._db.limit(self.path)  # it may have grown
            stored = self._db.read(f"{query} WHERE l.run = ? ORDER BY l.rowid", (run,))
            found = [(row, placed(content)) for row, content in stored]
            keys = places([place for _, place in found])
            order = [row for _, (row, _) in sorted(zip(keys, found, strict=True), key=itemgetter(0))]
        for start in range(0, len(order), CHUNK):
            ids = order[start : start + CHUNK]
            marks = ", ".join("?" * len(ids))
            query = f"SELECT content, steps, environment, NULLIF(?, run) FROM measurements WHERE id IN ({marks})"
            rows = dict(zip(sorted(ids), self._each(f"{query} ORDER BY id", (run, *ids)), strict=True))
            yield from (rows[row] for row in ids)

    def newest_per_environment(self) -> Iterator[Measurement]:
        """The last row of every case in every environment of equal speed, an ``ok`` one if possible; oldest first.

        A reused row has the name and the notes of the last run that reused it. Step times are read on access, as for
        ``iter_run``.
        """
        ((different,),) = self._read("SELECT COUNT(*) = COUNT(DISTINCT key) FROM measurements")
        # A run that measures a row is the first that has it, so the last of several runs has reused it.
        reused = "SELECT measurement AS id, run, MAX(rowid) FROM run_rows GROUP BY measurement HAVING COUNT(*) > 1"
        columns = "SELECT m.content, m.id, m.environment, r.run"
        query = f"{columns} FROM measurements m LEFT JOIN ({reused}) r ON r.id = m.id"
        if different:  # as in most large stores, where finding the last row of each case takes as long as reading all
            return self._each(f"{query} ORDER BY m.id")
        return self._each(
            f"{query} WHERE m.id IN"
            " (SELECT COALESCE(MAX(CASE WHEN m.outcome = 'ok' THEN m.id END), MAX(m.id)) FROM measurements m"
            " LEFT JOIN environments e ON e.id = m.environment GROUP BY m.key, e.key) ORDER BY m.id"
        )

    def _each(self, query: str, values: tuple[Any, ...] = ()) -> Iterator[Measurement]:
        """Rows of a query that returns what ``_decoded`` takes."""
        with in_words(self.path):
            self._db.limit(self.path)  # it may have grown
            found = self._db.read(query, values)
            while chunk := list(islice(found, CHUNK)):
                yield from self._decoded(chunk)

    def _decoded(self, found: Sequence[tuple[str, bytes | int, str, str | None]]) -> list[Measurement]:
        """Rows from their content, step times or row id, environment id, and the run that reuses the row, if any."""
        with self._content_in_words("row"):
            environments = {name: self._environment_of(name) for name in {name for _, _, name, _ in found}}
            later, read = self._steps, self._row
            rows = decode(
                [
                    (text, partial(later, steps) if isinstance(steps, int) else steps, environments[name])
                    for text, steps, name, _ in found
                ]
            )
        for place, (_, row, _, run) in enumerate(found):
            if run is not None and (model := self._models_of(run).get(rows[place].case.model_id)) is not None:
                rows[place] = model.describe(rows[place])
            if isinstance(row, int):
                rows[place].reloaded_by(partial(read, row, run))
        return rows

    def _row(self, row: int, run: str | None) -> Measurement:
        """A row by its id, as the run that reuses it describes it; the last few are cached."""
        known = self._rows.get((row, run))
        if known is None:
            found = self._read("SELECT content, id, environment, ? FROM measurements WHERE id = ?", (run, row))
            if not found:
                raise StoreError(f"a row of {printable(self.path)} was deleted while it was read", "Try again.")
            (known,) = self._decoded(found)
            if len(self._rows) >= MAX_CACHED_ROWS:
                self._rows.clear()
            self._rows[row, run] = known
        return known

    def _models_of(self, run: str) -> dict[str, RunModel]:
        """What a run says about its models, by their ids; empty for a run of an older version."""
        if run not in self._models:
            self._models[run] = self._said_of_models("run = ?", run)
        return self._models[run]

    def _said_of_models(self, which: str, *values: str) -> dict[str, RunModel]:
        query = f"SELECT model_id, model, content FROM run_models WHERE {which}"
        found = self._read(query, values) if self._has(MODELS_SCHEMA) else []
        with self._content_in_words("run"):
            models = [decode_model(model_id, name, _json(content)) for model_id, name, content in found]
        return {model.model_id: model for model in models}

    def configs(self) -> dict[str, dict[str, Any]]:
        """The config of each model by its id, as far as runs have stored them."""
        newest = """rowid IN (SELECT MAX(rowid) FROM run_models WHERE content LIKE '%"config"%' GROUP BY model_id)"""
        return {name: model.config for name, model in self._said_of_models(newest).items() if model.config}

    def _steps(self, row: int) -> bytes:
        """The packed step times of a row."""
        with in_words(self.path):
            ((steps,),) = self._db.read("SELECT steps FROM measurements WHERE id = ?", (row,))
        if not isinstance(steps, bytes):
            raise ValueError("its step times are not bytes")
        return steps

    @contextmanager
    def _content_in_words(self, what: str) -> Iterator[None]:
        """Convert errors in content that this version cannot have written to a StoreError."""
        try:
            yield
        except (TypeError, KeyError, ValueError, AttributeError, RecursionError, struct.error) as error:
            raise StoreError(
                f"a {what} of {printable(self.path)} cannot be read: {printable(error)}",
                "A newer version of profile may have written it.",
            ) from error

    def _environment_of(self, name: str) -> dict[str, Any]:
        """A stored environment; rows that share it get the same object."""
        if name not in self._environments:
            found = self._read("SELECT content FROM environments WHERE id = ?", (name,))
            with self._content_in_words("row"):
                if not found:
                    raise ValueError("the store does not contain its environment")
                self._environments[name] = _json(found[0][0])
        return self._environments[name]

    def _environment(self, content: dict[str, Any]) -> str:
        """Id of an environment, which is stored if it is new. The last one is cached: a sweep's rows share it."""
        if self._known is not None and self._known[0] == content:
            return self._known[1]
        clean = redact_json(content)
        name = digest(clean)
        self._db.execute(
            "INSERT OR IGNORE INTO environments (id, key, content) VALUES (?, ?, ?)",
            (name, environment_key(clean), dumps(clean)),
        )
        self._known = deepcopy(content), name
        return name

    def _free_id(self, stamp: str) -> str:
        """``stamp``, with the first free letter appended if another run started in the same second."""
        taken = {run for (run,) in self._db.execute("SELECT id FROM runs WHERE id LIKE ?", (f"{stamp}%",))}
        free = (stamp + suffix for suffix in ("", *string.ascii_lowercase) if stamp + suffix not in taken)
        return next(free, f"{stamp}z{len(taken)}")

    def _read(self, query: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        with in_words(self.path):
            return list(self._db.read(query, values))

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction, all or nothing. It takes the write lock at once, so it cannot fail half-way."""
        with in_words(self.path):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                check_in_place(self.path, self._db)
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                self._known = None  # it may be rolled back too
                if self._db.in_transaction:  # a full disk has already rolled back
                    self._db.execute("ROLLBACK")
                raise


def _json(text: str) -> Any:
    """Content of a row as objects. Raises ValueError or TypeError."""
    return json_value(_text(text), PART)


def _said(run: str, model: RunModel) -> tuple[str, str, str, str]:
    return run, model.model_id, _encodable(redact(model.name)), encode_model(model)


def _encodable(text: str) -> str:
    """``text`` for a column, without characters that UTF-8 cannot encode."""
    return text.encode("utf-8", "replace").decode()


def _text(value: Any) -> str:
    """The value of a text column, in which SQLite itself allows any type. Raises ValueError."""
    if not isinstance(value, str):
        raise ValueError(f"{printable(repr(value), 60)} is not text")
    return value


def _environment(text: str) -> dict[str, Any]:
    content: dict[str, Any] = _json(text)
    check_part("environment", content)
    return content


def existing(path: Path | None) -> Path | None:
    """``path``, or the default one, if there is a store to read; also ``None`` if the user has no data folder."""
    return settings.existing_results(path)


def is_named(path: Path | None) -> bool:
    """Whether the user chose the store, so that it should exist."""
    return path is not None or bool(os.environ.get("PROFILER_STORE")) or settings.store() is not None


def default_path() -> Path:
    """Where results are stored unless a command names another store. Raises ProfileError if there is no place."""
    return settings.results()
