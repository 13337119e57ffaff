"""The output of ``profile explain``: a table per phase with its bottleneck, and the memory from loading to decode."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from profiler import console
from profiler.cost.engines.base import Serving
from profiler.cost.explanation import Explanation, PhaseParts, cause
from profiler.cost.prediction import Prediction
from profiler.decode_path import EAGER
from profiler.results import stats
from profiler.results.measurement import Measurement, Memory, Phase, unaccounted_bytes
from profiler.shell import Command
from profiler.show import columns, fit
from profiler.show import output as show_output
from profiler.units import UNKNOWN, bytes_text, printable, rate_text, seconds_text, significant

DROPPED = ("FLOPs", "bytes")  # by a terminal that is too narrow, the first first
SHOWN_CHANGES = 3
NOTHING = Memory()


@dataclass(frozen=True, slots=True)
class About:
    """What a page says besides the figures."""

    serving: Serving | None = None  # how to run the case for use
    check: Command | None = None  # measures it; shown until it was measured
    left: str | None = None  # what the quantization leaves unquantized, in words
    instead: Prediction | None = None  # what fits instead
    explains: Command | None = None  # explains that; without it, says what fits on the machine


NOTHING_MORE = About()


def render(
    model: str,
    prediction: Prediction,
    found: Explanation,
    stored: Sequence[Measurement],
    output: str,
    about: About = NOTHING_MORE,
) -> str:
    """The explanation in a format of ``output.FORMATS``: a page, or a row for each part of a phase and of memory.

    ``stored``: the measurements of the case, the newest first. Only the one with the predicted path is compared.
    """
    predicted = prediction.request.path
    measured = next((row for row in stored if row.case.path == predicted), None)
    if output not in ("table", "md"):
        return show_output.render(rows(found, measured), dict, output)
    request, width = prediction.request, console.width() if output == "table" else None
    lines = [
        f"{printable(model)} {request.quant}, {request.batch:,} sequence{'s' * (request.batch != 1)} of"
        f" {request.context:,} tokens: {prediction.verdict.word}, {prediction.verdict.reason}",
        fit.place([prediction]),
        *prediction.machine.target.limits,
        *_instead(about),
        "",
    ]
    lines = show_output.wrapped(lines, width)
    for phase in found.phases:
        heading, why = (
            show_output.wrapped([text], width)
            for text in (_heading(phase, prediction, measured), _sentence(cause(phase)))
        )
        lines += [*heading, "", _table(phase, output), *why, ""]
    lines += show_output.folded(memory_lines(found, measured, output, prediction), width)
    if about.serving is not None:
        lines += ["", "To run it, as predicted:", *fit.serving_lines(about.serving)]
    if about.check is not None and measured is None:
        lines += ["", "To check it:", *fit.command_lines(about.check)]
    if others := _others(stored, predicted):
        lines += ["", "measurements with other decode paths:", *show_output.folded(others, width)]
    return "\n".join(lines) + "\n"


def _instead(about: About) -> list[str]:
    """What the quantization leaves unquantized, and what fits instead."""
    lines = [] if about.left is None else [about.left]
    if about.explains is None:
        return lines
    other = about.instead
    if other is None or other.decode is None:
        return [
            *lines,
            "no quantization of this model with 4 bits or more fits; what fits here:",
            f"  {about.explains}",
        ]
    needs = f"{other.request.quant} in {other.engine.name} needs {bytes_text(other.terms.needed.value)}"
    rate = f"decodes at {rate_text(other.decode.tps.value)} t/s"
    return [*lines, f"instead, {needs} and {rate}:", f"  {about.explains}"]


def rows(found: Explanation, measured: Measurement | None) -> list[dict[str, Any]]:
    """The parts of time and then of memory as plain JSON; unknown is null."""
    table = [
        {
            "phase": phase.name,
            "part": share.part,
            "bytes": share.nbytes,
            "measured_bytes": None,
            "flops": share.flops,
            "ceiling_s": share.ceiling_s,
            "predicted_s": share.predicted_s,
            "binds": share.binds,
            "phase_predicted_s": phase.predicted_s,
            "phase_measured_s": measured_s(measured, phase.name),
        }
        for phase in found.phases
        for share in phase.shares
    ]
    empty = dict.fromkeys(table[0])
    return table + [empty | {"phase": "memory"} | row for row in memory_rows(found, measured)]


def measured_s(measured: Measurement | None, phase: str) -> float | None:
    """Measured seconds of a whole prefill, or of one decode step; None if other processes disturbed it too much."""
    name = _phase(phase)
    rate = stats.rate(measured, name) if measured else None
    if rate is None or measured is None or rate.busy:
        return None
    tokens = measured.case.batch * (measured.case.context if name == "prefill" else 1)
    return tokens / rate.median


def _phase(name: str) -> Phase:
    return "prefill" if name == "prefill" else "decode"


def _others(stored: Sequence[Measurement], predicted: str) -> list[str]:
    """A line for each measured path except the predicted one: what it is, and how long its step took."""
    shipped = [row for row in stored if row.case.path == EAGER]
    lines = []
    for row in stored:
        seconds, busy = measured_s(row, "decode"), stats.busy(row, "decode")
        if row.case.path == predicted or (seconds is None and not busy):
            continue
        took = "other processes held the CPU" if seconds is None else f"{seconds_text(seconds)} per step"
        about = columns.path_lines([*shipped, row]) if row.case.path != EAGER else []
        line = about[0] if about else f"{printable(row.case.label)} {row.case.path}"
        lines.append(f"  {line}; {took}")
    return lines


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _heading(phase: PhaseParts, prediction: Prediction, measured: Measurement | None) -> str:
    what = "one step" if phase.name == "decode" else f"{phase.passes} chunk{'s' * (phase.passes != 1)}"
    guessed = prediction.machine.target.guessed
    parts = [
        f"{phase.name}, {what}: at best {seconds_text(phase.ceiling_s)}{' (a guess)' * guessed}",
        f"predicted {seconds_text(phase.predicted_s)} ({phase.fraction:.0%} of the best speed)",
    ]
    own = prediction.prefill if phase.name == "prefill" else prediction.decode
    if own is not None:
        parts.append(f"{significant(own.tps.low, 2)}–{significant(own.tps.high, 2)} t/s, {own.seconds.basis_text}")
    seconds = measured_s(measured, phase.name)
    if measured is not None and stats.busy(measured, _phase(phase.name)):
        parts.append("measured, but not to be compared: other processes held the CPU")
    if seconds is None:
        return " · ".join(parts)
    gap = seconds / phase.predicted_s
    word = "as predicted" if 0.9 <= gap <= 1.1 else f"{significant(gap, 2)} × the prediction"
    parts.append(f"measured {seconds_text(seconds)}, {word}")
    if seconds < phase.ceiling_s:
        found = "profile calibrate can measure it" if guessed else "this is a bug in profile, please report it"
        parts.append(f"faster than the best time: {found}")
    return " · ".join(parts)


def _table(phase: PhaseParts, output: str) -> str:
    total = phase.predicted_s
    cells = [
        {
            "part": share.part,
            "bytes": bytes_text(share.nbytes) if share.nbytes else UNKNOWN,
            "FLOPs": f"{significant(share.flops / 1e9)} G" if share.flops else UNKNOWN,
            "at best": seconds_text(share.ceiling_s) if share.ceiling_s else UNKNOWN,
            "predicted": seconds_text(share.predicted_s),
            "share": f"{share.predicted_s / total:.0%}",
            "limited by": share.binds,
        }
        for share in phase.shares
        if share.predicted_s > 0.001 * total
    ]
    return show_output.render(cells, dict, output, DROPPED, prose="part")


def memory_rows(found: Explanation, measured: Measurement | None) -> list[dict[str, Any]]:
    """Predicted and measured bytes of each part; unknown is null."""
    terms, memory = found.terms, measured.memory if measured else NOTHING
    retained = memory.retained_bytes or 0
    prefill = memory.prefill_activation_bytes
    parts: list[tuple[str, float | None, int | None]] = [
        ("weights", terms.weights.value + terms.repacked.value, memory.weights_bytes),
        ("framework", terms.framework.value, memory.framework_bytes),
        ("cache", terms.cache.value, memory.cache_bytes),
        ("cache, growing layers", None, memory.growing_cache_bytes),
        ("cache, window layers", None, memory.window_cache_bytes),
        ("state, recurrent layers", None, memory.recurrent_bytes),
        ("prefill buffers", terms.prefill.value, None if prefill is None else prefill + retained),
        ("decode buffers", terms.decode.value, memory.decode_activation_bytes),
        ("graph pool", None, memory.graph_pool_bytes),
        ("checkpoint, left mapped", None, memory.left_mapped_bytes),
        ("not accounted for", None, unaccounted_bytes(memory)),
        ("peak of both phases", terms.peak.value, memory.phases_process_bytes),
        ("peak of loading", None, memory.load_peak_bytes),
    ]
    return [{"part": part, "bytes": value, "measured_bytes": known} for part, value, known in parts]


def memory_lines(found: Explanation, measured: Measurement | None, output: str, prediction: Prediction) -> list[str]:
    """Memory from loading to decode, its causes, the measurement, and what would reduce it."""
    terms, offloaded = found.terms, prediction.offloaded_bytes
    loaded, cache = terms.loaded.value - offloaded, terms.cache.value
    copied = terms.repacked.value
    again = f" and {bytes_text(copied)} of them in another layout" if copied else ""
    text = [
        f"memory{fit.each_device(prediction)}: loaded {bytes_text(loaded)}"
        f" (weights {bytes_text(terms.weights.value - offloaded)}{again},"
        f" framework {bytes_text(terms.framework.value)})",
        f"  → prefill {bytes_text(loaded + cache + terms.prefill.value)}: cache {bytes_text(cache)},"
        f" {bytes_text(terms.prefill.value)} for {terms.prefill_reason}",
        f"  → decode {bytes_text(loaded + cache + terms.decode.value)}: cache {bytes_text(cache)},"
        f" {bytes_text(terms.decode.value)} for {terms.decode_reason}",
        f"  the peak is in {terms.peak_phase}: {bytes_text(terms.peak.value - offloaded)}"
        f" ({bytes_text(terms.peak.low - offloaded)} – {bytes_text(terms.peak.high - offloaded)})",
    ]
    weights = f"{bytes_text(prediction.host_bytes)} of weights and " if prediction.host_bytes else ""
    if weights or terms.host.value:
        text.append(f"  plus {weights}{bytes_text(terms.host.value)} of host memory (not counted in the peak)")
    if measured is not None and measured.memory.phases_process_bytes is not None:
        text += ["", *_beside(found, measured, output)]
    if found.changes:
        best, *others = found.changes[:SHOWN_CHANGES]
        text.append(f"to free the most memory: {best.words} frees {bytes_text(best.freed_bytes)}")
        text += [f"  {change.words} frees {bytes_text(change.freed_bytes)}" for change in others]
    return text


def _beside(found: Explanation, measured: Measurement, output: str) -> list[str]:
    """A table of the parts that are predicted or measured, and the memory that sliding layers keep needlessly."""
    known = [row for row in memory_rows(found, measured) if row["bytes"] or row["measured_bytes"]]
    cells = [
        {
            "part": row["part"],
            "predicted": bytes_text(row["bytes"]),
            "measured": bytes_text(row["measured_bytes"]),
        }
        for row in known
    ]
    retained = measured.memory.retained_bytes
    kept = f"sliding-window caches hold on to {bytes_text(retained)} of prefill memory until the first decode step"
    return [show_output.render(cells, dict, output), *([kept] if retained else [])]
