"""Reads rows by the name that the user gives: a run of the store, a file of rows, or another store."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from profiler.errors import NotFound, ProfileError
from profiler.foreign import exists
from profiler.results import row
from profiler.results.measurement import Measurement
from profiler.results.store import Run, Store
from profiler.units import printable

SUFFIXES = (".jsonl", ".json", ".sqlite")


def file_named(name: str) -> Path | None:
    """The file of rows, or the store, called ``name``; None if it names a run. Files take precedence over runs.

    Raises ProfileError for an empty text, and for a missing file whose name cannot be a run's.
    """
    if not name.strip():
        raise ProfileError("the name of a run is empty", "Give a run (profile runs) or a file of rows.")
    path = Path(name)
    if exists(path):
        return path
    if os.sep in name or path.suffix in SUFFIXES:
        raise ProfileError(f"there is no file {printable(name)}", "Give a run (profile runs) or a file of rows.")
    return None


def named(name: str, store: Path | None) -> list[Measurement]:
    """The rows of a run of ``store``, or of a file. Raises ProfileError."""
    return identified(name, store)[1]


def identified(name: str, store: Path | None) -> tuple[str, list[Measurement]]:
    """What ``name`` stands for, such as ``261124-053912 (latest~1)``, and its rows. Raises ProfileError."""
    path = file_named(name)
    if path is not None:
        return name, row.read(path)
    with Store.open(store, create=False) as opened:
        run = opened.find_run(name)
        return (run if run.startswith(name) else f"{run} ({name})"), opened.rows(run)


@dataclass(frozen=True, slots=True)
class RowSource:
    """Rows that are reported together, read while they are iterated over. ``name``: that of their file; empty: the
    default store.
    """

    name: str
    rows: Iterable[Measurement]
    run: str | None = None  # if they are of a single run
    runs: Sequence[Run] = ()
    configs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # of their models, by id


def of_runs(store: Store, names: Sequence[str] = (), name: str = "") -> RowSource:
    """The rows of some runs, or the newest row of every case.

    The rows are valid while ``store`` is open. Raises NotFound if there are none.
    """
    chosen = list(dict.fromkeys(store.find_run(each) for each in names))
    runs = [run for run in store.runs(counted=False) if not chosen or run.id in chosen]
    rows = (row for run in chosen for row in store.iter_run(run)) if chosen else store.newest_per_environment()
    first = next(rows, None)
    if first is None:
        raise NotFound("there are no rows to report", f"Measure something first: {store.command('sweep')}")
    return RowSource(name, chain([first], rows), chosen[0] if len(chosen) == 1 else None, runs, store.configs())


@contextmanager
def sources(names: Sequence[str], store: Path | None) -> Iterator[list[RowSource]]:
    """The rows that ``names`` stand for: runs of ``store`` together, and each file of rows and each other store.

    Without names, or with only runs, these are the rows of ``store`` alone. Raises ProfileError.
    """
    files = {name: path for name in names if (path := file_named(name)) is not None}
    found: list[RowSource] = []
    with ExitStack() as opened:
        if not files or len(files) < len(names):
            own = opened.enter_context(Store.open(store, create=False))
            found.append(of_runs(own, [name for name in names if name not in files]))
        for path in files.values():
            if row.is_store(path):
                found.append(of_runs(opened.enter_context(Store.read_only(path)), name=path.name))
            else:
                found.append(RowSource(path.name, row.read(path)))
        yield found


def in_grid_order(rows: Sequence[Measurement]) -> list[Measurement]:
    """Rows in the order of a sweep, whatever was stored first: models and quantizations as seen, then by size."""
    places = grid_places([row.case for row in rows])
    return [row for _, row in sorted(zip(places, rows, strict=True), key=lambda pair: pair[0])]


def grid_places(cases: Sequence[Any]) -> list[tuple[int, ...]]:
    """Sort keys for that order, one for each of ``cases``, which have the fields of ``Case``."""
    models = {case.model_id: place for place, case in reversed(list(enumerate(cases)))}
    quants = {case.quant: place for place, case in reversed(list(enumerate(cases)))}
    return [(models[case.model_id], quants[case.quant], case.context, case.batch, case.steps) for case in cases]
