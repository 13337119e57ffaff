"""The table of measured rows: columns, significant digits, notes, and a summary of the fastest cases."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from operator import attrgetter
from typing import Any, Protocol

from profiler import backends
from profiler.case import PROMPT, SERVER, UNSTATED, Case
from profiler.decode_path import EAGER
from profiler.results import energy, quality, stats, tasks
from profiler.results.comparison import Ratio, pair, ratio, too_noisy
from profiler.results.measurement import PHASES, DecodePath, Measurement, Phase
from profiler.results.redact import redact
from profiler.results.stats import Summary
from profiler.units import UNKNOWN, bytes_text, printable, seconds_text, significant

TOO_NOISY = "too noisy"  # instead of a figure whose repetitions differ too much to compare
BUSY = "busy"  # instead of a figure that other processes disturbed so much that it is not the model's
TOO_FEW = "too few"  # repetitions: there are two, and their interval is wide although they are close
ID_SHOWN = 6  # hex digits of a model's id: two of a handful of models coincide with odds of one in a million
OF_GGUF = " (GGUF)"  # after the name of GGUF files, if something else has that name, too
GGUF_TYPE = re.compile(r"I?Q\d|TQ\d|MXFP4")  # tensor types that only GGUF files have
LONGEST = 100_000  # characters of outside text that are processed

UNSPREAD_DIGITS = 2  # significant digits of a figure measured once, whose spread is unknown
MIN_DIGITS = 2  # of any other figure: a single digit looks like a mistake, and the interval shows its uncertainty
MAX_DIGITS = 4

STAYS = 10  # the ``worth`` of a column that is never dropped
SOME_WASTE = 1.01  # bytes read ÷ bytes needed by attention, above which the ratio is shown
MODELS_NAMED = 6
RatedRow = tuple[Summary, Measurement]


def plain(text: object, limit: int = 200) -> str:
    """Outside text on one line, without control characters or secrets."""
    return _plain(str(text), limit)


@lru_cache(maxsize=4096)  # thousands of rows share a few names, and searching for secrets is slow
def _plain(text: str, limit: int) -> str:
    clean = printable(" ".join(text.split()), LONGEST)  # before redact: a control character may hide a token
    return printable(redact(clean), limit)


def rate_cell(measurement: Measurement, phase: Phase) -> str:
    """``1,230 ±4%``: the median and the farther end of its interval; ``too noisy: 17–30`` if that is too wide."""
    summary = stats.rate(measurement, phase)
    if summary is None:
        return UNKNOWN
    if summary.wide:
        return noisy_text(summary)
    return f"{figure(summary.median, summary.relative_half)}{_half_width(summary.relative_half)}"


def noisy_text(summary: Summary) -> str:
    """``too noisy: 17–30``: the range of repetitions that cannot be compared, and why."""
    if summary.least is None or summary.most is None:
        return noisy_word(summary)
    ends = dict.fromkeys(significant(end, MIN_DIGITS) for end in (summary.least, summary.most))
    return f"{noisy_word(summary)}: {'–'.join(ends)}"


def noisy_word(summary: Summary) -> str:
    """Why a figure cannot be compared: ``busy``, ``too noisy``, or ``too few`` for two repetitions that are close."""
    if summary.busy:
        return BUSY
    return TOO_FEW if summary.too_few else TOO_NOISY


def ratio_text(ratio: Ratio, words: str = "") -> str:
    """``3.4 × (3.2–3.6)``: with its 95% interval, and the digits that it supports; ``words`` follow the ×."""
    if ratio.wide:
        return TOO_NOISY
    shown = figure(ratio.value, ratio.relative_half)
    if ratio.low is None or ratio.high is None:
        return f"{shown} ×{words} (measured once)"
    decimals = len(shown.partition(".")[2])
    return f"{shown} ×{words} ({ratio.low:,.{decimals}f}–{ratio.high:,.{decimals}f})"


def figure(value: float, relative_half: float | None) -> str:
    """``value`` with the digits that its interval supports: up to the place of the interval's leading digit.

    If that digit is 1 or 2, there is one more (the rule of the Particle Data Group's Review, §5.3, simplified).
    """
    return significant(value, _digits(value, relative_half))


def context_cell(measurement: Measurement) -> str:
    """The context of the case. The case of a written prompt has only an estimate, so the server's count is shown."""
    counts = (measurement.serving or {}).get("prompt_tokens") if measurement.case.prompt else None
    known = [count for count in counts or () if isinstance(count, int)]
    return f"{statistics.median_low(known) if known else measurement.case.context:,}"


def ttft_cell(measurement: Measurement) -> str:
    """Time to first token, in ms or s."""
    summary = stats.ttft(measurement)
    if summary is None:
        return UNKNOWN
    if summary.wide:
        return noisy_word(summary)
    if summary.median < 1:
        return f"{figure(summary.median * 1000, summary.relative_half)} ms"
    return f"{figure(summary.median, summary.relative_half)} s"


def token_cell(measurement: Measurement) -> str:
    """Milliseconds per token of one sequence: the inverse of the decode rate beside it.

    The median of single steps is another figure, and differs if few of many steps are slow: ``stats.steps`` has it.
    """
    rate = stats.rate(measurement, "decode")
    if rate is None:
        return UNKNOWN
    if rate.wide:
        return noisy_word(rate)
    return figure(1000 * stats.sequences(measurement.case) / rate.median, rate.relative_half)


def share_cell(measurement: Measurement, phase: Phase) -> str:
    """MFU of the prefill or MBU of decode: ``62%``."""
    share = stats.utilization(measurement, phase)
    return UNKNOWN if share is None else f"{share:.0%}"


def energy_cell(measurement: Measurement, phase: Phase) -> str:
    """Joules per token of a phase, with a ``?`` if they are doubtful."""
    taken = energy.consumption(measurement, phase)
    if taken is None:
        return UNKNOWN
    return f"{significant(taken.per_token_j)}{'?' if energy.suspect(measurement) else ''}"


def quality_cell(measurement: Measurement) -> str:
    """``0.021 ±12%``: the mean KL divergence in nats, and the farther end of its interval."""
    found = quality.blocks(measurement.quality or {})
    if not found:
        return UNKNOWN
    kl = quality.mean_kl(found)
    if kl.low is None or kl.high is None or kl.value < quality.ROUNDING_KL:
        return kl_text(kl.value)
    half = max(kl.high - kl.value, kl.value - kl.low) / kl.value
    return f"{figure(kl.value, half)}{_half_width(half)}"


def kl_text(nats: float) -> str:
    """``0.021``, ``<0.000001``: a KL divergence without its interval."""
    rounding = significant(quality.ROUNDING_KL, 1)
    return f"<{rounding}" if 0 < nats < quality.ROUNDING_KL else significant(nats, UNSPREAD_DIGITS)


def reps_cell(measurement: Measurement) -> str:
    """``3``, or ``1+3`` if prefill and decode have different numbers of repetitions."""
    shown = repetitions(measurement)
    return "+".join(str(count) for count in (shown if len(set(shown)) > 1 else shown[:1])) or UNKNOWN


def repetitions(measurement: Measurement) -> list[int]:
    """The number of repetitions of each phase that ran."""
    return [count for count in (len(measurement.samples.timed(phase)) for phase in PHASES) if count]


def _digits(value: float, relative_half: float | None) -> int:
    if relative_half is None:
        return UNSPREAD_DIGITS
    if relative_half == 0:
        return MAX_DIGITS
    half = value * relative_half
    place = math.floor(math.log10(half))
    if half / 10**place < 3:
        place -= 1
    return min(MAX_DIGITS, max(MIN_DIGITS, math.floor(math.log10(value)) - place + 1))


def _half_width(relative_half: float | None) -> str:
    if relative_half is None:
        return ""
    percent = relative_half * 100
    if percent < 0.05:
        return " ±<0.1%"
    return f" ±{percent:.1f}%" if percent < 0.95 else f" ±{percent:,.0f}%"


@dataclass(frozen=True, slots=True)
class Column:
    """One column. A table that is too wide drops columns with the lowest ``worth`` first, but none with STAYS."""

    title: str
    cell: Callable[[Any], str]  # takes a measurement; for ``SETTINGS``, anything with a case
    worth: int
    words: str = ""  # for ``SETTINGS``: the text for the heading if all rows share the value
    usual: str | None = None  # for ``SETTINGS``: a default that the heading omits
    right: bool = True


def figures(cells: Sequence[str], measurements: Sequence[Measurement]) -> list[Column]:
    """The columns of the table, the most important first; ``cells`` are those of the column for notes."""
    noted = {id(measurement): cell for measurement, cell in zip(measurements, cells, strict=True)}
    distinct = distinct_settings(measurements)
    columns = [
        Column("quant", lambda m: plain(m.case.quant), STAYS, right=False),
        *(column for column in _settings(distinct) if len({column.cell(m) for m in distinct}) > 1),
        Column("context", context_cell, STAYS),
        Column("batch", lambda m: f"{m.case.batch:,}", STAYS),
        Column("prefill t/s", lambda m: rate_cell(m, "prefill"), 6),
        Column("decode t/s", lambda m: rate_cell(m, "decode"), STAYS),
        Column("TTFT", ttft_cell, STAYS),
        *(EFFICIENCY if any(m.expected.get("utilization") for m in measurements) else ()),
        Column("ms/token", token_cell, 3),
        *(WEIGHTS if not all(m.case.server is not None for m in distinct) else ()),
        Column("peak", lambda m: bytes_text(m.memory.process_peak_bytes), STAYS),
        *(ENERGY if any(measurement.energy is not None for measurement in measurements) else ()),
        *(QUALITY if any(measurement.quality is not None for measurement in measurements) else ()),
        *(TASKS if any(tasks.score_of(measurement.serving) for measurement in measurements) else ()),
        Column("reps", reps_cell, 5 if any(map(_fell_short, measurements)) else 1),
    ]
    if any(measurement.outcome != "ok" for measurement in measurements):
        columns.append(Column("outcome", lambda m: m.outcome, 5, right=False))
    if any(noted.values()):
        columns.append(Column("notes", lambda m: noted[id(m)], STAYS, right=False))
    return columns


def heading(run: str | None, measurements: Sequence[Measurement]) -> list[str]:
    """What all rows have in common: the run, the device and the shared settings."""
    distinct = distinct_settings(measurements)
    parts = ["FAKE FIGURES"] if any(backends.simulated(m.case.backend) for m in distinct) else []
    parts += [f"run {plain(run)}"] if run else []
    devices = dict.fromkeys(device_title(m) for m in distinct)
    parts += [title for title in devices if title]
    parts += list(dict.fromkeys(title for m in distinct if (title := server_title(m.environment))))
    if shared := _shared_options(distinct):
        parts.append(" ".join(shared))
    for column in _settings(distinct):
        values = {column.cell(m) for m in distinct}
        if len(values) == 1 and column.words and not values & {UNKNOWN, column.usual}:
            parts.append(column.words.format(values.pop()))
    return parts


def _settings(measurements: Sequence[Measurement]) -> list[Column]:
    """The columns of ``SETTINGS``; that of the options has only those in which these rows differ."""
    shared = _shared_options(measurements)

    def own(measurement: Measurement) -> str:
        return " ".join(word for word in _options(measurement.case).split() if word not in shared)

    return [replace(column, cell=own) if column is OPTIONS else column for column in SETTINGS]


def _shared_options(measurements: Sequence[Measurement]) -> list[str]:
    """The options that all of these rows have, in the order of the first."""
    first, *others = ([_options(m.case).split() for m in measurements]) or [[]]
    return [word for word in first if all(word in each for each in others)]


def distinct_settings(measurements: Sequence[Measurement]) -> list[Measurement]:
    """One row for each combination of environment and settings, of which a run has few."""
    return list({(id(row.environment), *SHOWN_SETTINGS(row.case)): row for row in measurements}.values())


def told_apart(measurements: Sequence[Measurement]) -> Sequence[Measurement]:
    """The rows, with a suffix to names that several models have, such as a folder and a GGUF file."""
    ids: dict[tuple[str, str], dict[str, bool]] = {}
    for row in measurements:
        known = ids.setdefault((row.case.model, row.case.weights), {})
        known[row.case.model_id] = known.get(row.case.model_id, False) or is_gguf(row)
    if all(len(known) == 1 for known in ids.values()):
        return measurements
    added = {name: suffixes(known) for name, known in ids.items()}
    names = [row.case.model + added[row.case.model, row.case.weights][row.case.model_id] for row in measurements]
    return [replace(row, case=replace(row.case, model=name)) for row, name in zip(measurements, names, strict=True)]


def suffixes(ids: Mapping[str, bool]) -> dict[str, str]:
    """What tells models of one name apart, by their ids: ``(GGUF)`` for the only GGUF file of two, otherwise the
    start of the id. ``ids``: whether each is a GGUF file.
    """
    if len(ids) < 2:
        return dict.fromkeys(ids, "")
    by_kind = len(ids) == 2 and sum(ids.values()) == 1
    return {each: (OF_GGUF if gguf else "") if by_kind else f" #{each[:ID_SHOWN]}" for each, gguf in ids.items()}


def is_gguf(row: Measurement) -> bool:
    """Whether the weights are a GGUF file, by the backend or by the types of its tensors."""
    backend = backends.of_row(row.case.backend)
    types = row.checkpoint.get("dtypes")
    return (backend is not None and backend.gguf) or (
        isinstance(types, dict) and any(GGUF_TYPE.match(str(name)) for name in types)
    )


class OfDevice(Protocol):
    """Anything with a case and an environment, such as a row."""

    @property
    def case(self) -> Case: ...

    @property
    def environment(self) -> dict[str, Any]: ...


def device_title(measurement: OfDevice) -> str:
    """``AMD EPYC 7763 (64.0 GiB)`` if the environment has it, otherwise the device's name."""
    device: dict[str, Any] = measurement.environment.get("device") or {}
    title, memory = plain(device.get("title") or measurement.case.device), device_memory(measurement)
    return title if memory is None else f"{title} ({bytes_text(memory)})"


def server_title(environment: dict[str, Any]) -> str | None:
    """``LM Studio 0.3.31``; None for a row without a server."""
    server: dict[str, Any] = environment.get("server") or {}
    return plain(" ".join(str(part) for part in (server.get("kind"), server.get("version")) if part)) or None


def device_memory(measurement: OfDevice) -> int | None:
    """Memory in bytes of the device that a row was measured on."""
    device: dict[str, Any] = measurement.environment.get("device") or {}
    memory = device.get("memory_bytes")
    return memory if isinstance(memory, int) else None


def _fell_short(measurement: Measurement) -> bool:
    """Whether a phase has another number of repetitions than requested."""
    asked = measurement.asked.get("reps")
    return asked is not None and any(count != asked for count in repetitions(measurement))


def _options(case: Case) -> str:
    """Options without those that have a column of their own."""
    words = (word for word in case.options.split() if word.partition("=")[0] not in (SERVER, PROMPT))
    return plain(" ".join(words))


def options_text(case: Case) -> str:
    """``llama-server reasoning-ferry cached=yes``: what only the case's backend has; empty for most."""
    return " ".join(filter(None, [plain(case.server or ""), plain(case.prompt or "", 40), _options(case)]))


def stated(backend: str, value: str) -> str:
    """The compute dtype or decode path of a case; unknown for a server, which does not report it, and for programs
    that run GGUF files, which know neither: they compute in the types of the tensors."""
    known = backends.of_row(backend)
    return UNKNOWN if value == UNSTATED or (known is not None and known.gguf) else plain(value)


BASES = {  # of the ceilings behind MFU and MBU
    "calibrated": "as calibrated",
    "quick": "as measured in a few seconds (profile calibrate is more exact)",
    "data sheet": "by its data sheet",
}

WEIGHTS = (  # shown unless all rows are of servers, which state neither
    Column("weights", lambda m: bytes_text(m.memory.weights_bytes), 4),
    Column("cache", lambda m: bytes_text(m.memory.cache_bytes), 2),
)
EFFICIENCY = (  # shown if a ceiling of the device is known
    Column("MFU", lambda m: share_cell(m, "prefill"), 7),
    Column("MBU", lambda m: share_cell(m, "decode"), 8),
)
ENERGY = (  # shown if a row has energy figures
    Column("J/prompt", lambda m: energy_cell(m, "prefill"), 7),
    Column("J/token", lambda m: energy_cell(m, "decode"), 7),
)

QUALITY = (Column("KL, nats", quality_cell, 7),)  # shown if a row has it
TASKS = (Column("tasks", lambda m: tasks.rate_text(tasks.score_of(m.serving)), 8),)  # shown if a row has them

OPTIONS = Column("options", lambda m: _options(m.case), STAYS, usual="", right=False)
SETTINGS = (  # in the heading if all rows agree, otherwise columns
    Column("source", lambda m: plain(m.case.weights), 7, words="{} weights", right=False),
    Column("compute", lambda m: stated(m.case.backend, m.case.dtype), 9, words="compute {}", right=False),
    Column("device", lambda m: plain(m.case.device), 9, words="{}", right=False),
    Column("backend", lambda m: plain(m.case.backend), 9, words="{}", right=False),
    Column("path", lambda m: stated(m.case.backend, m.case.path), 9, words="{}", right=False),
    Column("fill", lambda m: plain(m.case.fill), 7, words="{} fill", usual="prefill", right=False),
    Column("steps", lambda m: f"{m.case.steps:,}", 7, words="{} steps"),
    Column("server", lambda m: plain(m.case.server or UNKNOWN), 9, right=False),  # the heading has its version too
    Column("prompt", lambda m: plain(m.case.prompt or UNKNOWN), STAYS, words="prompt {}", right=False),
    OPTIONS,
)
SHOWN_SETTINGS = attrgetter("weights", "dtype", "device", "backend", "path", "fill", "steps", "options")


def path_lines(measurements: Sequence[Measurement], brief: bool = False) -> list[str]:
    """A line for each case that did not decode by ``eager``; ``brief``: only lines that say something noteworthy."""
    others = [
        (row, row.decode_path)
        for row in measurements
        if row.decode_path is not None and (row.case.path, row.decode_path.ran) != (EAGER, EAGER)
    ]
    shipped = {row.case: row for row in measurements if row.case.path == EAGER} if others else {}
    lines = (_line(row, path, shipped.get(replace(row.case, path=EAGER)), brief) for row, path in others)
    return [line for line in lines if line]


def _gain(row: Measurement, eager: Measurement, path: DecodePath) -> list[str]:
    """How much faster a path is than ``eager``, and what share of an eager step a graph of its kernels saves."""
    found = pair(eager, row).rates.get("decode")
    if found is None:
        return []
    if found.wide or too_noisy(eager, row, "decode"):
        words = [noisy_word(rate) for rate in (stats.rate(eager, "decode"), stats.rate(row, "decode")) if rate]
        return [f"no ratio to {EAGER}: the rates are {BUSY if BUSY in words else TOO_NOISY}"]
    parts = [f"decodes {ratio_text(found, f' as fast as {EAGER}')}"]
    if path.nodes_per_token is not None:
        ends = f" ({_saved(found.low)}–{_saved(found.high)})" if found.low and found.high else " (measured once)"
        parts.append(f"launch-bound share of {EAGER} {_saved(found.value)}{ends}")
    return parts


def _saved(ratio: float) -> str:
    """1 − graph time ÷ eager time, for the ratio of their rates."""
    return f"{max(0.0, 1 - 1 / ratio):.0%}"


def _line(row: Measurement, path: DecodePath, eager: Measurement | None, brief: bool) -> str | None:
    if stats.rate(row, "decode") is None:
        return None
    parts = _gain(row, eager, path) if eager is not None and path.ran == row.case.path else []
    if path.graphs:
        graphs = f"{path.graphs} graph{'s' * (path.graphs != 1)} prepared in {seconds_text(path.prepare_s)}"
        parts.append(
            graphs + (f", {path.nodes_per_token:,} nodes per token" if path.nodes_per_token is not None else "")
        )
    if path.cache_needed_bytes and path.cache_read_bytes:
        waste = path.cache_read_bytes / path.cache_needed_bytes
        if not brief or waste > SOME_WASTE:
            parts.append(
                f"reads {bytes_text(path.cache_read_bytes)} of the cache, {waste:.2f} × what attention needs"
            )
    if row.memory.graph_pool_bytes:
        parts.append(f"pool of {bytes_text(row.memory.graph_pool_bytes)}")
    if path.kernels and path.ran == row.case.path and (parts or not brief):
        parts.append(f"matrix products by {plain(path.kernels)}")
    return f"{plain(row.case.label)} {plain(row.case.path)}: {'; '.join(parts)}" if parts else None


def fastest(measurements: Sequence[Measurement]) -> str | None:
    """The fastest decode of each model, fastest model first; None with fewer than two comparable rows."""
    models: dict[tuple[str, str], list[RatedRow]] = {}
    for measurement in measurements:
        rate = stats.rate(measurement, "decode")
        if measurement.outcome == "ok" and rate is not None and not rate.wide:
            model = (measurement.case.model, measurement.case.model_id)
            models.setdefault(model, []).append((rate, measurement))
    if sum(map(len, models.values())) < 2:
        return None
    best = [(max(rated, key=lambda pair: pair[0].median), rated) for rated in models.values()]
    best = sorted(best, key=lambda each: each[0][0].median, reverse=True)[:MODELS_NAMED]
    by_model = " by model" if len(models) > 1 else ""
    return f"fastest decode{by_model}: {'; '.join(_words(*first, _level(first, rated)) for first, rated in best)}"


def _level(first: RatedRow, rated: Sequence[RatedRow]) -> int:
    """How many other rows may be as fast as the fastest: those whose ratio to it has an interval that includes 1."""
    rate, fastest = first
    if rate.low is None:
        return 0
    near = [row for other, row in rated if row is not fastest and other.high is not None and other.high >= rate.low]
    found = (ratio(stats.rates(row, "decode"), stats.rates(fastest, "decode")) for row in near)
    return sum(each is not None and not each.significant for each in found)


def _words(rate: Summary, measurement: Measurement, level: int) -> str:
    words = f"{plain(measurement.case.label)} at {figure(rate.median, rate.relative_half)} t/s"
    if rate.low is None:
        words += " (measured once)"
    elif level:
        words += f" ({level} other{'s' * (level != 1)} not distinguishable from it)"
    peak, memory = measurement.memory.process_peak_bytes, device_memory(measurement)
    if peak is None or memory is None:
        return words
    return f"{words}, {bytes_text(memory - peak)} of {bytes_text(memory)} free"
