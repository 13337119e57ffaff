"""``profile accuracy``: compare predictions with measurements, for everything in the store."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import Any

import click

from profiler import console, devices
from profiler.commands import options
from profiler.console import say
from profiler.cost.cases import host_of
from profiler.cost.learned import Correction, corrected, from_rows
from profiler.errors import ProfileError
from profiler.results import stats
from profiler.results.measurement import Measurement, Phase
from profiler.results.store import Store
from profiler.show import output as show_output
from profiler.show.settings import SETTINGS, differing
from profiler.units import UNKNOWN, bytes_text, printable, rate_text

WORDS = {
    "prefill_tps": "prefill t/s",
    "decode_tps": "decode t/s",
    "peak_bytes": "peak after loading",
    "load_peak_bytes": "peak while loading",
}
FIGURES = tuple(WORDS)
LEARNED = ("plain", "plain_error", "learned", "learned_error", "learned_covered")
PHASES = {"prefill_tps": "prefill", "decode_tps": "decode", "peak_bytes": "memory", "load_peak_bytes": ""}
DROPPED = ("basis", "machine", "range")  # by a terminal that is too narrow, the first first


@click.command("accuracy")
@click.argument("run", required=False)
@options.store()
@show_output.output()
def accuracy(run: str | None, store: Path | None, output: str) -> int:
    """Compare each stored measurement with its prediction, the largest errors first.

    The rows are those of RUN, or the newest of every case on every machine in the store. An error of +20% means that
    the prediction is too high by a fifth of the measurement. The peak after loading is the higher one of prefill and
    decode. A summary below the table has the mean size of the errors, their median, and the share of measurements
    within the predicted range, which should be about nine in ten.

    The column learned has the error that the prediction would have now if the case were not measured yet: the rows of
    other cases on this machine correct it. The summary has these errors beside those of plain predictions, which
    nothing corrects.
    """
    with Store.open(store, create=False) as opened:
        measured = list(opened.rows(opened.find_run(run)) if run is not None else opened.newest_per_environment())
    found = sorted(with_learned(rows(measured), measured), key=lambda row: -abs(row["error"]))
    if not found:
        say("no stored row has a prediction")
    text = render(found, output, differing(measured))
    if text:  # printing "" would write a byte order mark in UTF-16
        click.echo(text, nl=False)
    lines = summary(found)
    left_out = sum(disturbed(one, figure) for one in measured for figure in FIGURES)
    if left_out:
        speeds = "1 speed is" if left_out == 1 else f"{left_out} speeds are"
        lines.append(f"{speeds} left out because other processes disturbed the measurement")
    for line in show_output.folded(lines, console.width()):
        click.echo(line, err=output != "table")
    return 0


def render(found: Sequence[dict[str, Any]], output: str, settings: Mapping[str, str] | None = None) -> str:
    """The rows in a format of ``output.FORMATS``; a table has ``settings`` by key, if there are any."""
    several = len({row["machine"] for row in found}) > 1
    taught = any(row.get("learned_error") is not None for row in found)
    same = [name for name in ("batch", "context", "quant") if len({row[name] for row in found}) <= 1]
    drop = (*DROPPED, *same, "predicted", "measured", SETTINGS)  # the error says the most
    return show_output.render(found, lambda row: _cells(row, several, taught, settings), output, drop)


def rows(measured: Iterable[Measurement]) -> list[dict[str, Any]]:
    """One row per predicted figure of each measurement; ``error`` is predicted ÷ measured − 1."""
    found = []
    for measurement in measured:
        for figure in FIGURES:
            predicted, value = measurement.expected.get(figure), measured_value(measurement, figure)
            if measurement.outcome != "ok" or not predicted or not value or disturbed(measurement, figure):
                continue
            case = measurement.case
            found.append(
                {
                    "model": case.model,
                    "quant": case.quant,
                    "context": case.context,
                    "batch": case.batch,
                    "device": case.device,
                    "backend": case.backend,
                    "options": case.options,
                    "machine": (measurement.environment.get("device") or {}).get("title"),
                    "figure": figure,
                    "predicted": predicted["value"],
                    "low": predicted["low"],
                    "high": predicted["high"],
                    "basis": predicted["basis"],
                    "measured": value,
                    "error": predicted["value"] / value - 1,
                    "covered": predicted["low"] <= value <= predicted["high"],
                    "key": case.key,
                }
            )
    return found


def with_learned(found: Sequence[dict[str, Any]], measured: Sequence[Measurement]) -> list[dict[str, Any]]:
    """``found`` with the plain prediction, its error, and the same as the rows of other cases correct it; null for
    rows that were not measured on this machine, or that teach nothing."""
    taught: dict[tuple[str, str], Correction] = {}
    for name, threads in dict.fromkeys((row.case.device, row.case.threads) for row in measured):
        with suppress(ProfileError):  # a device of another machine
            device = devices.find(name)
            here = [row for row in measured if (row.case.device, row.case.threads) == (name, threads)]
            learned = from_rows(reversed(here), device, host_of(device, threads))
            taught |= {(key, phase): correction for key, phase, correction in learned.of_others()}
    plain = {row.case.key: row.expected.get("plain") or {} for row in measured}
    return [row | _learned(row, plain[row["key"]], taught.get((row["key"], PHASES[row["figure"]]))) for row in found]


def _learned(row: Mapping[str, Any], plain: Mapping[str, Any], correction: Correction | None) -> dict[str, Any]:
    content: dict[str, Any] = dict.fromkeys(LEARNED)
    with suppress(KeyError, TypeError, ArithmeticError):  # a row from before there were plain predictions, or spoilt
        figure = plain[row["figure"]]
        content |= {"plain": figure["value"], "plain_error": figure["value"] / row["measured"] - 1}
        if correction is not None:
            found = corrected(plain, row["figure"], correction)
            content |= {
                "learned": found.to_json(),
                "learned_error": found.value / row["measured"] - 1,
                "learned_covered": found.low <= row["measured"] <= found.high,
            }
    return content


def disturbed(measurement: Measurement, figure: str) -> bool:
    """Whether other processes disturbed the measurement of a speed, which no prediction accounts for."""
    codes = {f"{figure.removesuffix('_tps')}-{ending}" for ending in ("cpu-pressure", "busy")}
    return any(caution.code in codes for caution in measurement.cautions)


def summary(found: Sequence[dict[str, Any]]) -> list[str]:
    """A line for each figure of each backend, and one for what rows teach about it."""
    lines = []
    backends = dict.fromkeys(row["backend"] for row in found)
    for backend, figure in product(backends, FIGURES):
        mine = [row for row in found if (row["backend"], row["figure"]) == (backend, figure)]
        if mine:
            name = f"{printable(backend, 40)}, " if len(backends) > 1 else ""
            covered = _share(mine, "covered")
            lines.append(f"{name}{WORDS[figure]}: {_errors(mine, 'error')}, {covered} within the predicted range")
        taught = [row for row in mine if row.get("learned_error") is not None]
        if taught:
            after, covered = _errors(taught, "learned_error"), _share(taught, "learned_covered")
            before = statistics.fmean(abs(row["plain_error"]) for row in taught)
            lines.append(f"  learned from other cases here: {after}, {covered} within; plain {before:.1%}")
    return lines


def _errors(found: Sequence[dict[str, Any]], name: str) -> str:
    errors = [row[name] for row in found]
    mean, cases = statistics.fmean(map(abs, errors)), "case" if len(errors) == 1 else "cases"
    return f"{len(errors)} {cases}, off by {mean:.1%} on average (median {statistics.median(errors):+.1%})"


def _share(found: Sequence[dict[str, Any]], name: str) -> str:
    return f"{statistics.fmean(row[name] for row in found):.0%}"


def measured_value(measurement: Measurement, figure: str) -> float | None:
    memory = measurement.memory
    if figure == "load_peak_bytes":
        return memory.load_peak_bytes
    if figure == "peak_bytes":
        return memory.phases_peak_bytes
    phase: Phase = "prefill" if figure == "prefill_tps" else "decode"
    rate = stats.rate(measurement, phase)
    return rate.median if rate else None


def _cells(
    row: show_output.JsonRow, several: bool, taught: bool = False, settings: Mapping[str, str] | None = None
) -> dict[str, str]:
    text = bytes_text if row["figure"].endswith("_bytes") else rate_text
    machine = UNKNOWN if row["machine"] is None else printable(row["machine"], 40)
    learned = UNKNOWN if row.get("learned_error") is None else f"{row['learned_error']:+.0%}"
    return ({"machine": machine} if several else {}) | {
        "model": printable(row["model"], 40),
        "quant": printable(row["quant"], 40),
        **({SETTINGS: settings[row["key"]]} if settings else {}),
        "context": f"{row['context']:,}",
        "batch": f"{row['batch']:,}",
        "figure": WORDS[row["figure"]],
        "predicted": text(row["predicted"]),
        "range": f"{text(row['low'])} – {text(row['high'])}",
        "measured": text(row["measured"]) or UNKNOWN,
        "error": f"{row['error']:+.0%}",
        **({"learned": learned} if taught else {}),
        "basis": printable(row["basis"], 40),
    }
