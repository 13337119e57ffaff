"""Reads rows by the name that the user gives: a run of the store, a file of rows, or another store.

Files come from anywhere, so their size is limited, and an error names the row and the field.
"""

from __future__ import annotations

import os
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

from profiler.case import Case
from profiler.devices.base import DeviceInfo
from profiler.errors import NotFound, ProfileError
from profiler.files import SQLITE, is_database
from profiler.foreign import BadContent, Budget, exists, json_value, open_file, why
from profiler.results import environment
from profiler.results.measurement import Measurement
from profiler.results.row import from_row
from profiler.results.store import Run, Store, existing
from profiler.units import bytes_text, printable

SUFFIXES = (".jsonl", ".json", ".sqlite")
MAX_FILE_BYTES = 1 << 30  # of a file of rows: a hundred thousand of them with their samples
LINE = Budget(nbytes=1 << 24, values=1 << 19, depth=16, twice=True)  # of one row: a hundred thousand repetitions
ARRAY = Budget(nbytes=1 << 28, values=1 << 23, depth=17, twice=True)  # of all rows, which -o json prints as one value
MAX_FILE_SAMPLES = 1 << 21  # repetitions in all rows of a file


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
        return name, read(path)
    with Store.open(store, create=False) as opened:
        run = opened.find_run(name)
        return (run if run.startswith(name) else f"{run} ({name})"), opened.rows(run)


def read(path: Path) -> list[Measurement]:
    """The rows of a file; for a store, those of its latest run.

    Raises ProfileError for other files, with the number and the field of the invalid row.
    """
    if is_store(path):
        with Store.read_only(path) as store:
            return store.rows()
    with _contents(path) as contents:
        return _measurements(contents, path)


def read_plain(path: Path) -> list[dict[str, Any]]:
    """The rows of a file as they are, with the checks of ``read``."""
    kept: list[dict[str, Any]] = []
    with _contents(path) as contents:
        _measurements(contents, path, kept)
    return kept


def is_store(path: Path) -> bool:
    """Whether a file is a store. Raises ProfileError if it cannot be read."""
    with open_file(path) as file, _readable(path):
        return is_database(file)


@contextmanager
def _contents(path: Path) -> Iterator[Iterator[tuple[int, Any]]]:
    """The rows of a file as JSON content, each with its number."""
    with open_file(path) as file, _readable(path):
        if os.fstat(file.fileno()).st_size > MAX_FILE_BYTES:
            limit = bytes_text(MAX_FILE_BYTES)
            raise ProfileError(f"{printable(path)} is larger than {limit}, too large for result rows")
        start = file.peek(len(SQLITE))[: len(SQLITE)]  # type: ignore[attr-defined]
        if start.startswith((BOM_UTF16_LE, BOM_UTF16_BE)):  # what > writes in PowerShell
            raise ProfileError(f"{printable(path)} is UTF-16 text, but rows must be UTF-8", "Save it as UTF-8.")
        if start.startswith(BOM_UTF8):
            file.read(len(BOM_UTF8))
            start = start.removeprefix(BOM_UTF8)
        yield _array(path, file) if start.lstrip().startswith(b"[") else _lines(path, file)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Name the file in the error if it cannot be read."""
    try:
        yield
    except OSError as error:
        raise ProfileError(f"{printable(path)} cannot be read: {why(error)}") from None


def _array(path: Path, file: BinaryIO) -> Iterator[tuple[int, Any]]:
    content = file.read(ARRAY.nbytes + 1)
    if len(content) > ARRAY.nbytes:
        raise ProfileError(
            f"{printable(path)} is larger than {bytes_text(ARRAY.nbytes)}, too much for one list", "Use -o jsonl."
        )
    yield from enumerate(_loaded(content, path, 1, ARRAY), 1)


def _lines(path: Path, file: BinaryIO) -> Iterator[tuple[int, Any]]:
    number = 0
    while line := file.readline(LINE.nbytes + 1):
        number += 1
        if line.strip():
            yield number, _loaded(line, path, number, LINE)


def _loaded(text: bytes, path: Path, line: int, budget: Budget) -> Any:
    try:
        return json_value(text, budget)
    except BadContent as error:
        raise _no_row(path, line, f"it is not JSON: {error}") from None


def _measurements(
    contents: Iterable[tuple[int, Any]], path: Path, kept: list[dict[str, Any]] | None = None
) -> list[Measurement]:
    """Measurements from rows as JSON content, with the checks of ``from_row``. ``kept`` receives the content of
    each."""
    found: list[Measurement] = []
    environments: dict[str, dict[str, Any]] = {}  # rows of one run share theirs, as in a store
    samples = 0
    for number, content in contents:
        row = _measurement(content, path, number)
        if kept is not None:
            kept.append(content)
        environment = environments.setdefault(repr(row.environment), row.environment)
        found.append(row if environment is row.environment else replace(row, environment=environment))
        samples += len(row.samples)
        if samples > MAX_FILE_SAMPLES:
            raise _no_row(path, number, f"the rows up to it have more than {MAX_FILE_SAMPLES:,} repetitions")
    return found


def _measurement(content: Any, path: Path, line: int) -> Measurement:
    try:
        return from_row(content)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"it has no {error}" if isinstance(error, KeyError) else printable(error)
        raise _no_row(path, line, what) from None


def _no_row(path: Path, line: int, why: str) -> ProfileError:
    hint = "Rows come from -o jsonl or -o json of sweep and of runs show."
    return ProfileError(f"row {line} of {printable(path)} is not a result row: {printable(why)}", hint)


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
            if is_store(path):
                found.append(of_runs(opened.enter_context(Store.read_only(path)), name=path.name))
            else:
                found.append(RowSource(path.name, read(path)))
        yield found


def of_case(
    store: Path | None,
    is_case: Callable[[Case], bool],
    device: DeviceInfo,
    versions: Callable[[Measurement], Mapping[str, str]],
) -> tuple[list[Measurement], list[str]]:
    """The ``ok`` rows of the cases for which ``is_case`` is true, measured on this machine with this software, the
    newest first. If there are only others, what differs here from the newest of them. Raises StoreError.

    ``versions``: of the programs that are here now and ran the newest row (``Backend.versions``).
    """
    if store is None and existing(store) is None:
        return [], []
    with Store.open(store, create=False) as opened:
        rows = [row for row in opened.newest_per_environment() if row.outcome == "ok" and is_case(row.case)]
    if not rows:
        return [], []
    snapshot = environment.snapshot(device, versions(rows[-1]))
    key = environment.environment_key(snapshot)
    here = [row for row in rows if environment.environment_key(row.environment) == key]
    return here[::-1], [] if here else environment.differences(rows[-1].environment, snapshot)


def in_grid_order(rows: Sequence[Measurement]) -> list[Measurement]:
    """Rows in the order of a sweep, whatever was stored first: models and quantizations as seen, then by size."""
    places = grid_places([row.case for row in rows])
    return [row for _, row in sorted(zip(places, rows, strict=True), key=lambda pair: pair[0])]


def grid_places(cases: Sequence[Any]) -> list[tuple[int, ...]]:
    """Sort keys for that order, one for each of ``cases``, which have the fields of ``Case``."""
    models = {case.model_id: place for place, case in reversed(list(enumerate(cases)))}
    quants = {case.quant: place for place, case in reversed(list(enumerate(cases)))}
    return [(models[case.model_id], quants[case.quant], case.context, case.batch, case.steps) for case in cases]
