"""``profile accuracy``: compare predictions with measurements, for everything in the store."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import click

from profiler.commands import options
from profiler.console import say
from profiler.results import stats
from profiler.results.measurement import Measurement, Phase
from profiler.results.store import Store
from profiler.show import output as show_output
from profiler.units import UNKNOWN, bytes_text, printable, rate_text

WORDS = {
    "prefill_tps": "prefill t/s",
    "decode_tps": "decode t/s",
    "peak_bytes": "peak after loading",
    "load_peak_bytes": "peak while loading",
}
FIGURES = tuple(WORDS)
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
    """
    with Store.open(store, create=False) as opened:
        measured = list(opened.rows(opened.find_run(run)) if run is not None else opened.newest_per_environment())
    found = sorted(rows(measured), key=lambda row: -abs(row["error"]))
    if not found:
        say("no stored row has a prediction")
    text = render(found, output)
    if text:  # printing "" would write a byte order mark in UTF-16
        click.echo(text, nl=False)
    lines = summary(found)
    left_out = sum(disturbed(one, figure) for one in measured for figure in FIGURES)
    if left_out:
        speeds = "1 speed is" if left_out == 1 else f"{left_out} speeds are"
        lines.append(f"{speeds} left out because other processes disturbed the measurement")
    for line in lines:
        click.echo(line, err=output != "table")
    return 0


def render(found: Sequence[dict[str, Any]], output: str) -> str:
    """The rows in a format of ``output.FORMATS``."""
    several = len({row["machine"] for row in found}) > 1
    same_batch = len({row["batch"] for row in found}) <= 1
    drop = (*DROPPED, *["batch"] * same_batch, "predicted")  # which the measurement and the error imply
    return show_output.render(found, lambda row: _cells(row, several), output, drop)


def rows(measured: Iterable[Measurement]) -> list[dict[str, Any]]:
    """One row per predicted figure of each measurement; ``error`` is predicted ÷ measured − 1."""
    found = []
    for measurement in measured:
        for figure in FIGURES:
            predicted, value = measurement.expected.get(figure), _measured(measurement, figure)
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


def disturbed(measurement: Measurement, figure: str) -> bool:
    """Whether other processes disturbed the measurement of a speed, which no prediction accounts for."""
    codes = {f"{figure.removesuffix('_tps')}-{ending}" for ending in ("cpu-pressure", "busy")}
    return any(caution.code in codes for caution in measurement.cautions)


def summary(found: Sequence[dict[str, Any]]) -> list[str]:
    """A line for each figure."""
    lines = []
    for figure in FIGURES:
        mine = [row for row in found if row["figure"] == figure]
        if mine:
            errors = [row["error"] for row in mine]
            mean = statistics.fmean(map(abs, errors))
            covered = statistics.fmean(row["covered"] for row in mine)
            lines.append(
                f"{WORDS[figure]}: {len(mine)} {'case' if len(mine) == 1 else 'cases'}, off by {mean:.1%} on average"
                f" (median {statistics.median(errors):+.1%}), {covered:.0%} within the predicted range"
            )
    return lines


def _measured(measurement: Measurement, figure: str) -> float | None:
    memory = measurement.memory
    if figure == "load_peak_bytes":
        return memory.load_peak_bytes
    if figure == "peak_bytes":
        return max((each for each in (memory.prefill_peak_bytes, memory.decode_peak_bytes) if each), default=None)
    phase: Phase = "prefill" if figure == "prefill_tps" else "decode"
    rate = stats.rate(measurement, phase)
    return rate.median if rate else None


def _cells(row: show_output.JsonRow, several: bool) -> dict[str, str]:
    text = bytes_text if row["figure"].endswith("_bytes") else rate_text
    machine = UNKNOWN if row["machine"] is None else printable(row["machine"], 40)
    return ({"machine": machine} if several else {}) | {
        "model": printable(row["model"], 40),
        "quant": printable(row["quant"], 40),
        "context": f"{row['context']:,}",
        "batch": f"{row['batch']:,}",
        "figure": WORDS[row["figure"]],
        "predicted": text(row["predicted"]),
        "range": f"{text(row['low'])} – {text(row['high'])}",
        "measured": text(row["measured"]) or UNKNOWN,
        "error": f"{row['error']:+.0%}",
        "basis": printable(row["basis"], 40),
    }
