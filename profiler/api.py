"""``profiler.fit``, ``profiler.sweep`` and ``profiler.load``: the commands as functions, for notebooks and scripts.

Arguments have the names of the command line's options and take plain values; text is parsed as on the command line.
A value may also come from numpy, pandas or torch. Errors that the user can fix are ``ProfileError`` and name the
argument. This module does not import torch: models run in worker processes.
"""

from __future__ import annotations

import math
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from numbers import Number
from pathlib import Path
from typing import Any, TypeAlias

from profiler import backends, decode_path, devices, folders
from profiler.backends.llama_cpp import build as llama_cpp_build
from profiler.cost import prediction
from profiler.cost.machine import SPLITS
from profiler.errors import ProfileError
from profiler.results import reading, row
from profiler.results.store import Store
from profiler.run import grid, request
from profiler.run import sweep as run_sweep
from profiler.run.fit import FitRequest, predictions
from profiler.run.refusal import Refusal, refusal_lines
from profiler.run.request import SweepRequest, resolve_request
from profiler.run.supervisor import WorkerLimits
from profiler.show import fit as show_fit
from profiler.show.rows import Rows
from profiler.show.sweep import ProgressPrinter
from profiler.units import one_of, printable, some_bytes, some_seconds, some_share

__all__ = ["Rows", "fit", "load", "sweep"]

Name: TypeAlias = str | os.PathLike[str]
Names: TypeAlias = Name | Iterable[Name]
Counts: TypeAlias = int | str | Iterable[int | str]
Size: TypeAlias = int | str  # bytes, or text such as "8GiB"
Duration: TypeAlias = float | str  # seconds, or text such as "10m"

MIN_RAM_GB_S = 0.1  # any memory is faster; 0 would make predictions infinite
MAX_NUMBER = 2**63  # of any argument


def fit(
    models: Names | None = None,
    *,
    on: str | Iterable[str] | None = None,
    engine: str | None = None,
    quants: str | Iterable[str] | None = None,
    contexts: Counts | None = None,
    batches: Counts | None = None,
    scenario: Name | None = None,
    kv: str | None = None,
    path: str | None = None,
    split: str | None = None,
    ram: Size | None = None,
    ram_bandwidth: float | None = None,
    mtp: int | None = None,
    acceptance: float | None = None,
    goal: str | None = None,
    learned: bool = True,
    store: Name | None = None,
) -> Rows:
    """Predict whether models fit, how fast they run and what limits them, from their config or GGUF header alone.

    The rows are those of ``profile fit -o json``. None means the default of that command: without ``models``, the
    largest Gemma 4 and Qwen 3.5 that fit; without ``on``, this machine. ``ram`` is host memory that weights may be
    offloaded to, ``ram_bandwidth`` its speed in GB/s. With ``mtp``, a decode step drafts that many tokens with the
    model's multi-token-prediction layer, and ``acceptance`` is the share of them that you expect the model to accept,
    0 to 1. ``learned=False`` ignores what was measured here, of which the rows are in ``store``. A
    model that cannot be predicted raises if it is the only one; otherwise it is in ``Rows.refused``, with a warning.

    Raises NotFound for unknown names, and ProfileError.
    """
    with _named_as(FIT_OPTIONS):
        wish = None if goal is None else prediction.parse(_text("goal", goal))
        found = predictions(
            FitRequest(
                models=_words("models", models),
                on=_words("on", on),
                engine=None if engine is None else _text("engine", engine),
                quants=_words("quants", quants),
                contexts=_words("contexts", contexts),
                batches=_words("batches", batches),
                kv=None if kv is None else _text("kv", kv),
                path=None if path is None else _parsed("path", _text("path", path), one_of(decode_path.PATHS)),
                split=None if split is None else _parsed("split", _text("split", split), one_of(SPLITS)),
                ram_bytes=None if ram is None else _parsed("ram", _sized("ram", ram), some_bytes),
                ram_bandwidth=None if ram_bandwidth is None else _bandwidth("ram_bandwidth", ram_bandwidth),
                mtp=None if mtp is None else _whole("mtp", mtp),
                acceptance=None if acceptance is None else _real("acceptance", acceptance),
                goal=wish,
                scenario=None if scenario is None else _path_text("scenario", scenario),
                learned=_flag("learned", learned),
                store=_path("store", store),
            )
        )
    rows = [show_fit.row(each, wish) for each in found.predictions]
    return Rows(rows, refused=_refused(found.refused, FIT_OPTIONS, stacklevel=3))


def sweep(
    models: Names | None = None,
    *,
    quants: str | Iterable[str] | None = None,
    contexts: Counts | None = None,
    batches: Counts | None = None,
    steps: Counts | None = None,
    scenario: Name | None = None,
    weights: str = "auto",
    fill: str | None = None,
    energy: bool = False,
    quality: bool = False,
    quality_text: Name | None = None,
    reference: Name | None = None,
    seed: int = 0,
    device: str | None = None,
    backend: str = backends.DEFAULT,
    llama_cpp: Name | None = None,
    kv: str | Iterable[str] | None = None,
    flash_attn: str | Iterable[str] | None = None,
    gpu_layers: Counts | None = None,
    n_cpu_moe: Counts | None = None,
    tensor_split: str | Iterable[str] | None = None,
    paths: str | Iterable[str] | None = None,
    ubatch: int | str | None = None,
    threads: int | None = None,
    max_memory: Size | None = None,
    reps: int | None = None,
    precision: float | str | None = None,
    quick: bool = False,
    max_phase: Duration | None = None,
    budget: Duration | None = None,
    timeout: Duration = "1h",
    fresh: bool = False,
    learned: bool = True,
    store: Name | None = None,
    progress: bool = False,
) -> Rows:
    """Measure every combination of model, quantization, context and batch, as ``profile sweep`` does.

    Each model runs in a worker process, and each row is stored before the next case starts. Cases that the store
    already holds are not measured again unless ``fresh`` is true. A failed case is a row with another ``outcome``.
    ``precision`` is a fraction (0.02 is 2%), durations are in seconds, ``max_memory`` is in bytes; "2%", "10m" and
    "8GiB" work as well. ``learned``: whether earlier rows correct the predictions. ``progress`` reports on stderr.
    Ctrl-C finishes the current case; a second Ctrl-C or SIGTERM stops at once. Both raise KeyboardInterrupt. Rows
    that were measured before are stored, and the same call continues. Raises NotFound, StoreError and ProfileError. A
    model that cannot be used raises if it is the only one; otherwise it is in ``Rows.refused``, with a warning.
    """
    given = locals()
    energy, quality, quick, fresh, learned, progress = (_flag(n, given[n]) for n in (*FLAGS, "learned", "progress"))
    lists: dict[str, Any] = {name: _words(name, given[name]) for name in LISTS}
    texts = {name: text for name in SINGLE if (text := _option_text(name, given[name])) is not None}
    single = {n + "_s" * (n in SECONDS): _parsed(n, text, OPTIONS[n].parse) for n, text in texts.items()}
    limits = WorkerLimits(max_memory_bytes=single.pop("max_memory", None), case_s=single.pop("timeout_s"))
    argv = _command_line(lists, texts, {f"--{n}": given[n] for n in FLAGS} | {"--no-learned": not learned})
    single["options"] = {name: lists.pop(name) for name in request.OF_BACKENDS}
    with _named_as(SWEEP_OPTIONS):
        ways, device = {"resumed": not fresh, "learned": learned}, single.pop("device", None)
        wanted = SweepRequest(**lists, **single, energy=energy, quality=quality, quick=quick)
        return _sweep(wanted, device, limits, ways, store, progress, argv)


def _sweep(
    sweep_request: SweepRequest,
    device: str | None,
    limits: WorkerLimits,
    ways: dict[str, bool],
    store: Name | None,
    progress: bool,
    argv: Sequence[str],
) -> Rows:
    path = _path("store", store)
    listener = PythonPrinter() if progress else run_sweep.SweepListener()
    found = devices.find(device)
    available = run_sweep.available_bytes(found, limits.max_memory_bytes)
    early = run_sweep.early_worker(sweep_request.backend, found)
    with llama_cpp_build.using(sweep_request.llama_cpp), early as spare:
        resolved = resolve_request(sweep_request, found, available, listener.say)
        refused = _refused(resolved.refused, SWEEP_OPTIONS, stacklevel=4)
        with Store.open(path) as opened:
            result = run_sweep.sweep(resolved, found, opened, limits, listener, argv=argv, spare=spare, **ways)
            measured = opened.rows(result.run)
    if result.interrupted:
        again = "the same call" if ways["resumed"] else "the same call without fresh=True"
        raise KeyboardInterrupt(
            f"{len(measured)} of {len(resolved.tasks)} cases are stored in run {result.run}; "
            f"{again} measures the others"
        )
    place = {task.case.key: index for index, task in enumerate(resolved.tasks)}
    measured.sort(key=lambda each: place[each.case.key])
    return Rows(row.own_rows(result.run, measured), run=result.run, refused=refused)


def load(run: Name | None = None, *, store: Name | None = None, newest: bool = False) -> Rows:
    """Read results: the latest run in the store, the run whose id starts with ``run``, or a file.

    ``run`` may also be the path of a file written with ``-o json`` or ``-o jsonl``, whose rows are returned
    unchanged, or of another store, whose latest run is read. An existing file takes precedence over a run. With
    ``newest``, the rows are the newest of every case in the whole store, which is what ``profile report`` shows.

    Raises NotFound for an unknown run, StoreError if the store is missing or cannot be read, and ProfileError for a
    file without rows.
    """
    newest = _flag("newest", newest)
    if newest and run is not None:
        raise ProfileError("newest=True reads all runs, so do not pass a run with it")
    named = None if run is None else _path_text("run", run)
    path = None if named is None or isinstance(run, str) else _path("run", run)
    if named is not None and path is None:
        path = reading.file_named(named)
    with _named_as(LOAD_OPTIONS):
        if path is not None and not reading.is_store(path):
            return Rows(reading.read_plain(path))
        if path is not None:
            with Store.read_only(path) as opened:
                return _stored(opened, None)
        with Store.open(_path("store", store), create=False) as opened:
            if newest:
                rows = reading.of_runs(opened).rows
                return Rows(row.own_rows(None, rows))
            return _stored(opened, named)


def _stored(store: Store, run: str | None) -> Rows:
    found = store.find_run(run)
    return Rows(row.own_rows(found, store.in_order(found, reading.grid_places)), run=found)


class PythonPrinter(ProgressPrinter):
    """Prints a sweep's progress on stderr with the names of arguments instead of options."""

    def say(self, text: str) -> None:
        super().say(_in_python(text, SWEEP_OPTIONS))


def _refused(refused: Sequence[Refusal], options: Mapping[str, str], stacklevel: int) -> tuple[str, ...]:
    """The refused models as texts. Each is also a warning, so that no script loses one unnoticed."""
    texts = tuple(_in_python(text, options) for text in refusal_lines(refused))
    for text in texts:
        warnings.warn(text, stacklevel=stacklevel)
    return texts


@contextmanager
def _named_as(options: Mapping[str, str]) -> Iterator[None]:
    """Errors inside name the arguments of Python, which ``options`` maps the command line's options to."""
    try:
        yield
    except ProfileError as error:
        error.message = _in_python(error.message, options)
        error.hint = _in_python(error.hint, options) if error.hint else error.hint
        error.args = (error.message,)
        raise


def _in_python(text: str, options: Mapping[str, str]) -> str:
    """``text`` with options as arguments: ``Use -c 4096.`` becomes ``Use contexts=4096.``

    Whole commands such as ``profile fit --engine vllm`` stay as they are.
    """

    def argument(found: re.Match[str]) -> str:
        name, value = options.get(found["option"] or ""), found["value"]
        if name is None:
            return found[0]
        if value is None:
            return f"{name}=True" if name in FLAGS else name
        value = value if "'" in value[:1] + value[-1:] else value.replace('"', "")
        return f"{name}={value}" if value.isdecimal() or value[:1] == "'" else f'{name}="{value}"'

    return OPTION.sub(argument, text)


def _words(name: str, value: Any) -> tuple[str, ...]:
    """One value or several as the words of an option. An empty list is an error; None means the default."""
    value = _plain(value)
    if value is None:
        return ()
    if isinstance(value, Mapping | bytearray | memoryview):
        raise ProfileError(f"{name}: {_shown(value)} is not text, a number or a list")
    no_list = isinstance(value, str | bytes | os.PathLike) or getattr(value, "ndim", None) == 0
    one = no_list or not isinstance(value, Iterable)
    several = [value] if one else list(islice(value, grid.MAX_CASES + 1))
    if not several:
        raise ProfileError(f"{name} is an empty list", "Leave it out for the default.")
    if len(several) > grid.MAX_CASES:
        raise ProfileError(f"{name} has more than {grid.MAX_CASES:,} values")
    return tuple(_word(name, each) for each in several)


def _word(name: str, value: Any) -> str:
    """Text, a path or a number as a word of the command line."""
    value = _plain(value)
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if isinstance(value, str):
        return value
    if not _is_number(value):  # the text of others means something else, or nothing
        raise ProfileError(f"{name}: {_shown(value)} is not text or a number")
    return str(_number(name, value))


def _text(name: str, value: Any) -> str:
    value = _plain(value)
    if not isinstance(value, str):
        raise ProfileError(f"{name}: {_shown(value)} is not text")
    return value


def _path_text(name: str, value: Any) -> str:
    value = _plain(value)
    text = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(text, str):
        raise ProfileError(f"{name}: {_shown(value)} is not text or a path")
    return text


def _flag(name: str, value: Any) -> bool:
    value = _plain(value)
    if value is None or (isinstance(value, int) and value in (0, 1)):
        return bool(value)
    raise ProfileError(f"{name}: {_shown(value)} is not True or False")


def _plain(value: Any) -> Any:
    """Scalars of numpy and torch as Python's own, and text as ``str`` itself, such as the values of an Enum."""
    if getattr(value, "ndim", None) == 0 and callable(getattr(value, "item", None)):
        try:
            value = value.item()
        except Exception:  # a tensor without data, for example: it is then refused for what it is
            return value
    return str.__str__(value) if isinstance(value, str) else value


def _is_number(value: Any) -> bool:
    return isinstance(value, Number) and not isinstance(value, bool | complex)


def _number(name: str, value: Any) -> int | float:
    """A number of any kind as an integer if it is one. Raises ProfileError."""
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    except (TypeError, ValueError):  # Decimal("sNaN")
        number = math.nan
    if math.isnan(number):
        raise ProfileError(f"{name}: {_shown(value)} is not a number")
    if abs(number) > MAX_NUMBER:
        raise ProfileError(f"{name}: {_shown(value)} is too large")
    return int(value) if int(value) == value else number


def _shown(value: Any) -> str:
    """A value for a message, whatever its type does."""
    try:
        return printable(repr(value), 60)
    except Exception:  # also of an integer of more than 4,300 digits
        return f"a value of type {printable(type(value).__name__)}"


def _bandwidth(name: str, value: Any) -> float:
    """In GB/s."""
    value = _plain(value)
    number = float(_number(name, value)) if _is_number(value) else 0.0
    if number < MIN_RAM_GB_S:
        raise ProfileError(f"{name}: {_shown(value)} is not at least {MIN_RAM_GB_S} GB/s")
    return number


def _real(name: str, value: Any) -> float:
    """A number, which is checked where it is used."""
    value = _plain(value)
    if not _is_number(value):
        raise ProfileError(f"{name}: {_shown(value)} is not a number")
    return float(_number(name, value))


def _whole(name: str, value: Any) -> int:
    """A whole number, which is checked where it is used."""
    number = _real(name, value)
    if not number.is_integer():
        raise ProfileError(f"{name}: {_shown(value)} is not a whole number")
    return int(number)


def _with_unit(unit: str, scale: int = 1) -> Callable[[str, Any], str]:
    """A function that formats a number for the command line: with its unit, without an exponent."""

    def write(name: str, value: Any) -> str:
        value = _plain(value)
        if isinstance(value, str):
            return value
        if not _is_number(value):
            raise ProfileError(f"{name}: {_shown(value)} is not text or a number")
        return f"{_number(name, value) * scale:.9f}".rstrip("0").rstrip(".") + unit

    return write


_sized = _with_unit("b")


def _option_text(name: str, value: Any) -> str | None:
    """``value`` as text of the command line. None leaves the choice to the option's default, which may be none."""
    option = OPTIONS[name]
    return option.default if value is None else WRITERS.get(option.parse, _word)(name, value)


def _parsed(name: str, text: str, parse: Callable[[str], Any]) -> Any:
    try:
        return parse(text)
    except ValueError as error:
        raise ProfileError(f"{name}: {error}") from None


def _path(name: str, value: Name | None) -> Path | None:
    if value is None:
        return None
    text = _path_text(name, value)
    if not text.strip():
        raise ProfileError(f"{name} is empty", "Leave it out for the default.")
    return folders.expanded(text)


OPTIONS = request.OPTIONS
LISTS = [name for name, option in OPTIONS.items() if option.many]
SINGLE = [name for name, option in OPTIONS.items() if not option.many]
WRITERS: dict[Any, Callable[[str, Any], str]] = {  # by the parser that reads what they write
    str: _text,
    os.fspath: _path_text,
    some_bytes: _sized,
    some_share: _with_unit("%", 100),
    some_seconds: _with_unit("s"),
}
SECONDS = ("max_phase", "budget", "timeout")
FLAGS = ("energy", "quality", "quick", "fresh")
SWEEP_OPTIONS = {
    **{spelling: name for name, option in OPTIONS.items() for spelling in option.names},
    **{f"--{name}": name for name in FLAGS},
    "--store": "store",
    "--no-learned": "learned=False",
}
FIT_OPTIONS = {
    **{spelling: name for name in ("models", "quants", "contexts", "batches") for spelling in OPTIONS[name].names},
    **{f"--{name}": name for name in ("on", "engine", "scenario", "kv", "path", "split", "ram", "goal", "mtp")},
    "--acceptance": "acceptance",
    "--ram-bandwidth": "ram_bandwidth",
    "--no-learned": "learned=False",
    "--store": "store",
}
LOAD_OPTIONS = {"--store": "store"}
OPTION = re.compile(
    r"profile [a-z]+(?:(?![.;](?:\s|$)).)*"  # a command, to the end of its sentence
    r"|(?<![\w/-])(?P<option>--?[a-z][a-z-]*)"
    r"(?: (?P<value>\d*x?\"[^\"]*\"|'[^']*'|[^\s;\"']*\d[^\s;\"']*?(?=[.,;:)]?(?:\s|$))"
    r"|(?:eager|static|graph|layer|tensor|real|synthetic|cpu|vllm|llama\.cpp|FILE\.gguf)\b))?(?![\w-])"
)


def _command_line(lists: dict[str, tuple[str, ...]], texts: dict[str, str], flags: dict[str, bool]) -> list[str]:
    """The words after ``profile`` of a command that repeats the sweep; the store keeps them with the run."""
    several = [word for name, values in lists.items() for value in values for word in (OPTIONS[name].names[0], value)]
    changed = {name: text for name, text in texts.items() if text != OPTIONS[name].default}
    single = [word for name, text in changed.items() for word in (OPTIONS[name].names[0], text)]
    return ["sweep", *several, *single, *(flag for flag, on in flags.items() if on)]
