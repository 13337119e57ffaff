"""Energy of a phase, derived from the device's counters: per repetition, per token, and as mean power.

Idle power is included in every figure, since it is on the bill too; the energy above idle is given separately. A
figure covers what ``scope`` names and nothing else: a board's is not the machine's. If the device has no energy
counter, its power is integrated, and ``source`` says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from profiler.results.measurement import PHASES, Energy, Measurement, Phase, PhaseEnergy
from profiler.units import seconds_text, significant

RESOLVED_S = 10.0  # counters update every 100 ms and ends are known to 40 ms: over 1% error below this
SUSPECT = 0.10  # of the larger: if counter and integrated power differ by more, one of them is wrong
FILLED = 0.95  # of a window must be repetitions: then the gaps change the figure by at most 2 or 3%


@dataclass(frozen=True, slots=True)
class Consumption:
    """Mean energy of one phase."""

    joules: float  # per repetition
    per_token_j: float  # per prompt token (prefill) or output token (decode) of all sequences
    watts: float
    above_idle_j: float | None  # per token, without the idle power


def consumption(measurement: Measurement, phase: Phase) -> Consumption | None:
    """The energy of a phase; None if it is not known (``unknown`` says why) or was not requested."""
    part, energy = _part(measurement, phase), measurement.energy
    return None if part is None or energy is None else of_part(energy, part)


def of_part(energy: Energy, part: PhaseEnergy) -> Consumption | None:
    """The energy of one phase or request, whose source and idle power ``energy`` has; None if it is unknown."""
    if (taken := _joules(energy, part)) is None or why_unknown(energy, part):
        return None
    watts = taken / part.window_s
    joules = watts * part.seconds
    above = None if energy.idle_w is None else (watts - energy.idle_w) * part.seconds / part.tokens
    return Consumption(joules / part.repetitions, joules / part.tokens, watts, above)


def unknown(measurement: Measurement) -> str | None:
    """Why the energy of a phase is not known; None if all of it is, or it was not requested."""
    reasons: dict[str, list[str]] = {}
    for phase in PHASES:
        part = _part(measurement, phase)
        if part is not None and measurement.energy is not None and (reason := why_unknown(measurement.energy, part)):
            reasons.setdefault(reason, []).append(phase)
    return "; ".join(f"{' and '.join(phases)}: {reason}" for reason, phases in reasons.items()) or None


def suspect(measurement: Measurement) -> str | None:
    """A message if counter and integrated power differ too much to trust either."""
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
    """The field ``energy`` of a row; null if energy was not requested. A server's is that of whole requests."""
    energy = measurement.energy
    if energy is None:
        return None if measurement.serving is None else _of_requests(measurement.serving)
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


def _of_requests(serving: Mapping[str, Any]) -> dict[str, Any]:
    """The fields for a server, whose prefill and decode cannot be told apart."""
    return {
        "request_j": serving.get("energy_j_per_request"),
        "request_j_per_token": serving.get("energy_j_per_token"),
        "request_w": serving.get("power_w"),
        "source": serving.get("energy_source"),
        "scope": serving.get("energy_scope"),
        "reason": (serving.get("unknown") or {}).get("energy"),
    }


def _part(measurement: Measurement, phase: Phase) -> PhaseEnergy | None:
    energy = measurement.energy
    return None if energy is None else energy.prefill if phase == "prefill" else energy.decode


def _joules(energy: Energy, part: PhaseEnergy) -> float | None:
    return part.counter_j if energy.from_counter else part.power_j


def why_unknown(energy: Energy, part: PhaseEnergy) -> str | None:
    """Why ``of_part`` gives no figure; None if it does. A device never uses 0 J."""
    reason = part.counter_reason if energy.from_counter else part.power_reason
    joules = _joules(energy, part)
    if joules is None:
        return reason or "it was not recorded"
    if part.invalid is not None:
        return f"the device was disturbed ({part.invalid})"
    if joules <= 0 or part.tokens <= 0:
        return f"{significant(joules)} J for {part.tokens} tokens is impossible"
    if part.window_s < RESOLVED_S:
        return f"the window of {seconds_text(part.window_s)} is shorter than the {RESOLVED_S:g} s that counters need"
    if part.seconds < FILLED * part.window_s:
        return f"repetitions filled only {part.seconds / part.window_s:.0%} of the measured window"
    return None
