"""Energy of a phase, derived from what its device counted: per repetition, per token, and as mean power.

Idle power is part of every figure, as it is part of the bill; what lies above it is an extra. The figure is of what
``scope`` names and nothing else: a board's is not the machine's. Where the device has no energy counter at all, its
power is integrated, and ``source`` says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from profiler.results.measurement import Energy, Measurement, Phase, PhaseEnergy
from profiler.units import seconds_text, significant

RESOLVED_S = 10.0  # counters move every 100 ms, and their ends are known to 40: below it more than 1% is in doubt
SUSPECT = 0.10  # of the larger: a counter and an integral of power that are further apart cannot both be right
FILLED = 0.95  # of a window by repetitions: then what lies between them moves a figure by 2 or 3% at most
PHASES: tuple[Phase, ...] = ("prefill", "decode")


@dataclass(frozen=True, slots=True)
class Consumption:
    """What one phase took on average."""

    joules: float  # of one repetition
    per_token_j: float  # prompt token (prefill) or output token (decode), of all sequences
    watts: float
    above_idle_j: float | None  # per token, without what the device takes when nothing runs


def consumption(measurement: Measurement, phase: Phase) -> Consumption | None:
    """What a phase took, or None where that is not known (``unknown`` says why) or was not asked for."""
    part, energy = _part(measurement, phase), measurement.energy
    if part is None or energy is None or (taken := _joules(energy, part)) is None or _why_not(energy, part):
        return None
    watts = taken / part.window_s
    joules = watts * part.seconds
    above = None if energy.idle_w is None else (watts - energy.idle_w) * part.seconds / part.tokens
    return Consumption(joules / part.repetitions, joules / part.tokens, watts, above)


def unknown(measurement: Measurement) -> str | None:
    """Why the energy of a phase is not known, in words; None where all of it is, or nobody asked."""
    reasons: dict[str, list[str]] = {}
    for phase in PHASES:
        part = _part(measurement, phase)
        if part is not None and measurement.energy is not None and (reason := _why_not(measurement.energy, part)):
            reasons.setdefault(reason, []).append(phase)
    return "; ".join(f"{' and '.join(phases)}: {reason}" for reason, phases in reasons.items()) or None


def suspect(measurement: Measurement) -> str | None:
    """In words where counter and integrated power are too far apart to believe either."""
    found = []
    for phase in PHASES:
        part = _part(measurement, phase)
        if consumption(measurement, phase) is None or part is None or part.counter_j is None or part.power_j is None:
            continue
        apart = abs(part.counter_j - part.power_j)
        if apart > SUSPECT * max(part.counter_j, part.power_j):
            counter, power = (f"{significant(joules)} J" for joules in (part.counter_j, part.power_j))
            found.append(f"{phase}: the energy counter says {counter}, the power it reports comes to {power}")
    return "; ".join(found) or None


def content(measurement: Measurement) -> dict[str, Any] | None:
    """The field ``energy`` of a row; null where nobody asked."""
    energy = measurement.energy
    if energy is None:
        return None
    taken = {phase: consumption(measurement, phase) for phase in PHASES}
    known = any(taken.values())
    row: dict[str, Any] = {}
    for name, suffix in (("joules", "j"), ("per_token_j", "j_per_token"), ("watts", "w")):
        row |= {f"{phase}_{suffix}": getattr(taken[phase], name, None) for phase in PHASES}
    row |= {f"{phase}_j_per_token_above_idle": getattr(taken[phase], "above_idle_j", None) for phase in PHASES}
    return row | {
        "idle_w": energy.idle_w,
        "source": energy.source if known else None,
        "scope": energy.scope if known else None,
        "suspect": suspect(measurement) is not None if known else None,
        "reason": unknown(measurement),
    }


def _part(measurement: Measurement, phase: Phase) -> PhaseEnergy | None:
    energy = measurement.energy
    return None if energy is None else energy.prefill if phase == "prefill" else energy.decode


def _joules(energy: Energy, part: PhaseEnergy) -> float | None:
    return part.counter_j if energy.counts else part.power_j


def _why_not(energy: Energy, part: PhaseEnergy) -> str | None:
    """Why a figure is not known; no figure of a device is 0."""
    reason = part.counter_reason if energy.counts else part.power_reason
    joules = _joules(energy, part)
    if joules is None:
        return reason or "it was not recorded"
    if part.invalid is not None:
        return f"the device was not itself ({part.invalid})"
    if joules <= 0 or part.tokens <= 0:
        return f"{significant(joules)} J for {part.tokens} tokens cannot be"
    if part.window_s < RESOLVED_S:
        return f"it was watched for {seconds_text(part.window_s)}, and below {RESOLVED_S:g} s nothing is resolved"
    if part.seconds < FILLED * part.window_s:
        return f"repetitions filled only {part.seconds / part.window_s:.0%} of the time in which it was counted"
    return None
