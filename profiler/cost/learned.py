"""What rows that were measured on this machine teach its later predictions.

A row stores its **plain** prediction: what the device, the engine and the model's shapes alone say. It teaches the
logarithm of measured ÷ plain, of the seconds of each phase and of the memory besides weights and cache. For another
case, that logarithm is the mean of a Gaussian process (Rasmussen & Williams 2006, algorithm 2.1). Its covariance says
how alike two cases of an engine are: by quantization, model, batch and context.

- Without rows of a similar case the mean is what rows of several models, quantizations and batches have in common; if
  there are fewer, it is 0, which is the plain prediction. Few rows move it little, and a plain prediction that was
  calibrated less than a guess.
- Rows of a phase with a caution that doubts its figure teach nothing, and neither do rows that the others contradict:
  the process predicts each row from all others, and leaves the worst one out as long as it is off by a factor of more
  than 2, and by more than ``MAX_ERROR`` times what is usual among them.
- The interval is as wide as the rows' errors in predicting each other, and wider for cases that are less like them.

Rows of another machine, device, driver or library version than now teach nothing, nor do those whose plain prediction
rests on another version of our model or on a calibration that differs by much.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from operator import mul
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

from profiler.case import PHASES, digest, options_of
from profiler.cost.interval import Interval, exact
from profiler.devices.base import DeviceInfo, kind_of
from profiler.devices.target import Target
from profiler.errors import StoreError
from profiler.quants.base import PLAIN_QUANTS
from profiler.settings import existing_results

if TYPE_CHECKING:  # what reads rows takes as long to import as all of a prediction
    from profiler.results.measurement import Measurement

PLAIN_VERSION = 9  # of plain predictions: raise it when they change, so that rows of the version before teach nothing
SAME_RATES = 1.15  # a calibration that moves the ceilings by a larger factor has changed the plain predictions

# The likeness of two cases is the share of the variance that they have in common: a part for being of one engine, for
# being both plain or both packed, for the same quantization and for the same model. It falls to 1/e where batches or
# contexts are so many doublings apart; in decode batches count most, because few tokens take other kernels than one.
ENGINE, KIND, QUANT, MODEL = 0.15, 0.15, 0.35, 0.35
BATCH_DOUBLINGS = {"prefill": 8.0, "decode": 2.0, "memory": 30.0}
CONTEXT_DOUBLINGS = 30.0
NOISE = 0.12  # standard deviation of a row's logarithm that is not the case's: processes and minutes differ
MAX_SPREAD = 1.0  # of the logarithm before anything is learned: a factor of 5 either way in nine of ten cases
MAX_ERROR = 3.0  # of a row that teaches, in standard deviations of what is usual: the usual limit for outliers
DOUBTFUL = math.log(2)  # of a row's logarithm: a smaller error tells cases apart, and is no sign of a bad row
PRIOR_ROWS = 4  # the assumption that the process describes the errors well weighs as much as so many rows
MIN_GROUPS = 4  # of rows, to say what all cases of an engine have in common
MIN_EXPLAINED = 0.25  # share of the variance that rows must explain to change a prediction
MIN_LIKENESS = 0.3  # of a row to a case, to count among the rows from which its prediction is learned
MAX_ROWS = 40  # rows of a phase that teach, the newest: the time to learn grows with their cube
MAX_ROWS_READ = 200  # rows of the store that are looked at, the newest
Z_90 = 1.645  # standard deviations on either side that hold 90% of a normal distribution
MAD = 0.6745  # the median absolute error of a normal distribution, in standard deviations
RATES = ("prefill_tps", "decode_tps")
HARMLESS = frozenset({"few", "cold", "imprecise", "power-capped", "retained", "launch-bound"})  # endings of codes
DISTURBED = "other work disturbed them, or their repetitions differ too much"
OTHER_SOFTWARE = "they are of other versions of libraries or of llama.cpp"
PREDICTED_OTHERWISE = "they are from before a calibration or a release that predicts differently"
OUR_OWN = "llm-hwprofile"  # the library whose version does not change how fast a model runs


class LearnedCase(NamedTuple):
    """What makes cases of one engine and phase alike."""

    quant: str
    parameters: int  # of the model, which tell models apart
    context: int
    batch: int

    def likeness(self, other: LearnedCase, phase: str) -> float:
        """The share of the variance that both have in common: 0..1."""
        kinds = (self.quant in PLAIN_QUANTS) == (other.quant in PLAIN_QUANTS)
        shared = ENGINE + KIND * kinds + QUANT * (self.quant == other.quant)
        shared += MODEL * (self.parameters == other.parameters)
        apart = abs(math.log2(self.batch / other.batch)) / BATCH_DOUBLINGS[phase]
        return shared * math.exp(-apart - abs(math.log2(self.context / other.context)) / CONTEXT_DOUBLINGS)


class Lesson(NamedTuple):
    """What one row teaches of one phase."""

    key: str  # of the row's case
    case: LearnedCase
    ratio: float  # logarithm of measured ÷ plain
    spread: float  # standard deviation of that logarithm, by the plain prediction's interval


@dataclass(frozen=True, slots=True)
class Correction:
    """The factor on a plain prediction, with the factor by which its 90% interval extends either way."""

    factor: float
    width: float
    rows: int  # that are like the case

    def of(self, plain: Interval) -> Interval:
        """``plain`` corrected; never relatively wider than it was."""
        value = plain.value * self.factor
        low, high = (
            min(self.width, end) for end in (_ratio(plain.value, plain.low), _ratio(plain.high, plain.value))
        )
        return Interval(value, value / low, value * high, "learned", self.rows)


class Process:
    """The Gaussian process of one engine, decode path and phase."""

    def __init__(self, phase: str, lessons: Sequence[Lesson]) -> None:
        self._phase = phase
        self._kept = list(lessons)
        self._common, found = _common(lessons)
        self._spread = min(MAX_SPREAD, max(found, median(each.spread for each in lessons)))
        self._noise = NOISE**2 + (self._spread / len(lessons)) ** 2  # the fewer rows, the less each of them says
        self._inverse = _inverse([[self._covariance(a, b) for b in lessons] for a in lessons])
        while True:
            self._weights = [_dot(row, [each.ratio - self._common for each in self._kept]) for row in self._inverse]
            errors = [
                abs(w) / math.sqrt(row[n])
                for n, (w, row) in enumerate(zip(self._weights, self._inverse, strict=True))
            ]
            usual = (median(errors) / MAD) ** 2
            self._scale = math.sqrt((PRIOR_ROWS + len(errors) * usual) / (PRIOR_ROWS + len(errors)))
            doubtful = [n for n, w in enumerate(self._weights) if abs(w) > DOUBTFUL * self._inverse[n][n]]
            worst = max(doubtful, key=errors.__getitem__, default=0)
            if len(errors) < PRIOR_ROWS or not doubtful or errors[worst] <= MAX_ERROR * self._scale:
                return
            self._leave_out(worst)

    def _covariance(self, a: Lesson, b: Lesson) -> float:
        return self._spread**2 * a.case.likeness(b.case, self._phase) + self._noise * (a is b)

    def _leave_out(self, index: int) -> None:
        """Remove one row: the inverse of the smaller matrix follows from that of the larger one."""
        gone = self._inverse[index]
        self._inverse = [
            [value - row[index] * gone[n] / gone[index] for n, value in enumerate(row) if n != index]
            for place, row in enumerate(self._inverse)
            if place != index
        ]
        del self._kept[index]

    def correction(self, case: LearnedCase) -> Correction | None:
        """What the rows say about a case; ``None`` if none of them is like it and they have nothing in common."""
        shared = [self._spread**2 * case.likeness(each.case, self._phase) for each in self._kept]
        known = _dot(shared, [_dot(row, shared) for row in self._inverse]) / self._spread**2
        return self._made(case, self._common + _dot(shared, self._weights), known)

    def of_others(self, lesson: Lesson) -> Correction | None:
        """What the other rows say about the case of one that taught, as if it had not been measured."""
        if lesson not in self._kept:  # the others contradicted it
            return self.correction(lesson.case)
        place = self._kept.index(lesson)
        variance = 1 / self._inverse[place][place]
        known = 1 - (variance - self._noise) / self._spread**2
        return self._made(lesson.case, lesson.ratio - self._weights[place] * variance, known, lesson)

    def _made(self, case: LearnedCase, mean: float, known: float, without: Lesson | None = None) -> Correction | None:
        """The correction by the logarithm's ``mean``, of whose variance the rows explain the share ``known``."""
        if known < MIN_EXPLAINED and not self._common:
            return None
        scale = known * self._scale + (1 - known)
        deviation = scale * math.sqrt(self._spread**2 * max(0.0, 1 - known) + NOISE**2)
        rows = sum(
            case.likeness(each.case, self._phase) >= MIN_LIKENESS for each in self._kept if each is not without
        )
        return Correction(math.exp(mean), math.exp(Z_90 * deviation), rows or len(self._kept))


class Learned:
    """What the rows of this machine teach, by engine, decode path and phase (``memory`` is one, too)."""

    def __init__(
        self,
        lessons: Mapping[tuple[str, str, str], Sequence[Lesson]],
        useless: Mapping[str, Mapping[str, int]] | None = None,
    ) -> None:
        """``useless``: by engine and reason, how many rows of this machine teach nothing about speed."""
        self._lessons, self._useless = lessons, useless or {}
        self._processes: dict[tuple[str, str, str], Process] = {}

    def __bool__(self) -> bool:
        return bool(self._lessons)

    def notes(self, engine: str) -> tuple[str, ...]:
        """Why no row corrects the speeds of an engine although there are some."""
        reasons = self._useless.get(engine, {})
        count = sum(reasons.values())
        if not count or any(name == engine and phase in PHASES for name, _, phase in self._lessons):
            return ()
        rows = f"{count} rows that were measured here do" if count > 1 else "the row that was measured here does"
        return (f"{rows} not correct these speeds: {'; '.join(reason for reason, n in reasons.items() if n)}",)

    def correction(self, engine: str, path: str, phase: str, case: LearnedCase) -> Correction | None:
        """The correction of a plain prediction; ``None`` if no row is like the case."""
        process = self._process((engine, path, phase))
        return None if process is None else process.correction(case)

    def of_others(self) -> Iterator[tuple[str, str, Correction]]:
        """The key of each row that taught, the phase, and what the other rows say about it."""
        for (engine, path, phase), lessons in self._lessons.items():
            process = self._process((engine, path, phase))
            for lesson in lessons[-MAX_ROWS:]:
                if process is not None and (found := process.of_others(lesson)) is not None:
                    yield lesson.key, phase, found

    def _process(self, key: tuple[str, str, str]) -> Process | None:
        if key not in self._lessons:
            return None
        if key not in self._processes:
            self._processes[key] = Process(key[2], self._lessons[key][-MAX_ROWS:])
        return self._processes[key]


NOTHING = Learned({})


def from_rows(
    rows: Iterable[Measurement], device: DeviceInfo, target: Target, software: Mapping[str, Any] | None = None
) -> Learned:
    """What ``rows``, the newest first, teach about ``device``; ``target`` describes it as the predictions do.

    ``software``: an environment with the library versions that a row must have; None: those of the newest row of each
    engine.
    """
    found: dict[tuple[str, str, str], list[Lesson]] = {}
    versions: dict[str, Any] = {}
    useless: dict[str, Counter[str]] = {}
    seen: set[str] = set()
    for row in rows:
        engine = _engine(row)
        if engine is None or row.case.key in seen or not _is_of(device, row.environment):
            continue
        seen.add(row.case.key)
        useless.setdefault(engine, Counter())
        wanted = versions.setdefault(engine, _software(software or row.environment))
        if wanted != _software(row.environment):
            useless[engine][OTHER_SOFTWARE] += 1
            continue
        if not _rests_on(target, row.expected.get("plain")):
            useless[engine][PREDICTED_OTHERWISE] += 1
            continue
        path = row.expected.get("path") or row.case.path
        with suppress(KeyError, TypeError, ValueError, ArithmeticError):  # a row that we did not write
            taught = list(_lessons(row))
            for phase, lesson in taught:
                found.setdefault((engine, path, phase), []).append(lesson)
            useless[engine][DISTURBED] += not any(phase in PHASES for phase, _ in taught)
    return Learned({key: lessons[::-1] for key, lessons in found.items()}, useless)


def from_store(
    path: Path | None,
    device: DeviceInfo,
    target: Target,
    threads: int | None = None,
    software: Mapping[str, Any] | None = None,
) -> Learned:
    """What the newest rows of a store teach; ``path`` is None for the default store, and ``threads`` as in ``Case``.

    Nothing if there is no store, or if it cannot be read: predictions do not need one.
    """
    place = existing_results(path)
    if place is None:
        return NOTHING
    from profiler.results.store import Store

    try:
        with Store.read_only(place) as store:
            rows = (row for row in store.newest(MAX_ROWS_READ) if row.case.threads == threads)
            return from_rows(rows, device, target, software)
    except StoreError:
        return NOTHING


def plain_figures(content: Mapping[str, Any], rest: Interval, parameters: int, target: Target) -> dict[str, Any]:
    """The part ``plain`` of a row's prediction: the plain figures in ``content``, and what they rest on."""
    rates = {name: content[name] for name in RATES if name in content}
    return {
        **rates,
        "peak_bytes": content["peak_bytes"],
        "rest_bytes": rest.to_json(),
        "parameters": parameters,
        "version": PLAIN_VERSION,
        "calibrated": target.ceilings is not None,
        "bytes_s": target.bandwidth_bytes_s,
        "flop_s": max(target.flops.values(), default=0.0),
    }


def corrected(plain: Mapping[str, Any], figure: str, correction: Correction) -> Interval:
    """A figure of the part ``plain`` of a row's prediction, with a correction of its phase or of ``memory``."""
    value, low, high, basis = (plain[figure][name] for name in ("value", "low", "high", "basis"))
    if figure in RATES:  # a correction is one of seconds
        seconds = correction.of(Interval(1 / value, 1 / high, 1 / low, basis))
        return Interval(1 / seconds.value, 1 / seconds.high, 1 / seconds.low, seconds.basis, seconds.rows)
    rest = correction.of(Interval(*(plain["rest_bytes"][name] for name in ("value", "low", "high", "basis"))))
    return rest + exact(value - plain["rest_bytes"]["value"])


def _rests_on(target: Target, plain: Mapping[str, Any] | None) -> bool:
    """Whether a plain prediction is one that would be made now for the same case."""
    if not plain or plain.get("version") != PLAIN_VERSION or plain.get("calibrated") != (target.ceilings is not None):
        return False
    now = (target.bandwidth_bytes_s, max(target.flops.values(), default=0.0))
    then = (plain.get("bytes_s") or 0.0, plain.get("flop_s") or 0.0)
    return all(1 / SAME_RATES <= (a + 1) / (b + 1) <= SAME_RATES for a, b in zip(now, then, strict=True))


def _engine(row: Measurement) -> str | None:
    """The engine that a row teaches about; None for a failed row, a server, a simulated device, and for options that
    predictions do not know."""
    from profiler import backends

    backend = backends.of_row(row.case.backend)
    if row.outcome != "ok" or backend is None or not backend.predicted or backend.simulated or backend.server_command:
        return None
    return backend.engine if options_of(row.case.options).keys() <= {"kv"} else None


def _is_of(device: DeviceInfo, environment: Mapping[str, Any]) -> bool:
    """Whether a row was measured on this device; if that is the processor, with the same limits."""
    stated, limits = environment.get("device") or {}, environment.get("limits") or {}
    named = (stated.get("title"), stated.get("driver"), tuple(stated.get("features") or ()), stated.get("uuid_hash"))
    if named != (device.title, device.driver, device.features, device.uuid and digest(device.uuid)):
        return False
    if not kind_of(device.kind).is_host:
        return True
    cores, quota = (environment.get("cpu") or {}).get("cores"), limits.get("cores")
    quota = quota if quota is not None and cores and quota < cores else None
    confined = None if device.confined is None else list(device.confined)
    return (cores, quota, limits.get("cpus") or None) == (device.cores, device.quota, confined)


def _software(environment: Mapping[str, Any]) -> dict[str, Any]:
    libraries = environment.get("libraries") or {}
    known = {name: version for name, version in libraries.items() if version is not None and name != OUR_OWN}
    return {**known, **(environment.get("settings") or {})}


def _lessons(row: Measurement) -> Iterable[tuple[str, Lesson]]:
    from profiler.results import stats
    from profiler.results.cautions import cautions

    plain = row.expected["plain"]
    case = LearnedCase(row.case.quant, int(plain["parameters"]), row.case.context, row.case.batch)
    doubted = {caution.text.partition(":")[0] for caution in cautions(row) if not _is_harmless(caution.code)}
    predicted = stats.predicted(row) or {}
    for phase in PHASES:
        rate, figure = stats.rate(row, phase), plain.get(f"{phase}_tps")
        if rate and figure and predicted.get(f"{phase}_tps") and phase not in doubted:
            yield phase, _lesson(row.case.key, case, figure, figure["value"] / rate.median)
    rest, peak = plain["rest_bytes"], row.memory.phases_peak_bytes
    held = 0 if peak is None else peak - (plain["peak_bytes"]["value"] - rest["value"])
    if held > 0:
        yield "memory", _lesson(row.case.key, case, rest, held / rest["value"])


def _lesson(key: str, case: LearnedCase, figure: Mapping[str, float], ratio: float) -> Lesson:
    spread = math.log(figure["high"] / figure["low"]) / (2 * Z_90)
    if not (0 < spread < math.inf and 0 < ratio < math.inf):
        raise ValueError("a figure without a range, or beyond all numbers")
    return Lesson(key, case, math.log(ratio), spread)


def _common(lessons: Sequence[Lesson]) -> tuple[float, float]:
    """The logarithm that all cases of an engine seem to have in common, and the standard deviation of rows around it.

    Rows of one model, quantization and batch count once: many of them say little about other cases. Zeros if there
    are too few such groups.
    """
    groups: dict[tuple[str, int, int], list[float]] = {}
    for each in lessons:
        groups.setdefault((each.case.quant, each.case.parameters, each.case.batch), []).append(each.ratio)
    if len(groups) < MIN_GROUPS:
        return 0.0, 0.0
    common = median(median(ratios) for ratios in groups.values()) * len(groups) / (len(groups) + 1)
    return common, median(abs(each.ratio - common) for each in lessons) / MAD


def _is_harmless(code: str) -> bool:
    return code.removeprefix("prefill-").removeprefix("decode-") in HARMLESS


def _ratio(more: float, less: float) -> float:
    return more / less if less > 0 else math.inf


def _dot(a: Sequence[float], b: Sequence[float]) -> float:
    return float(sum(map(mul, a, b)))


def _inverse(matrix: Sequence[Sequence[float]]) -> list[list[float]]:
    """The inverse of a positive definite matrix, by its Cholesky decomposition."""
    size = len(matrix)
    lower: list[list[float]] = []  # of the decomposition, row by row
    for i, row in enumerate(matrix):
        new: list[float] = []
        for j in range(i):
            new.append((row[j] - _dot(new, lower[j][:j])) / lower[j][j])
        new.append(math.sqrt(row[i] - _dot(new, new)))
        lower.append(new)
    columns: list[list[float]] = []  # of the inverse of ``lower``, from the diagonal down
    for j in range(size):
        column = [1 / lower[j][j]]
        for i in range(j + 1, size):
            column.append(-_dot(lower[i][j:i], column) / lower[i][i])
        columns.append(column)
    found = [[0.0] * size for _ in range(size)]
    for i in range(size):
        for j in range(i + 1):
            found[i][j] = found[j][i] = _dot(columns[j][i - j :], columns[i])
    return found
