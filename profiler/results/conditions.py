"""Cautions that follow from what the device was like in each repetition, and from its energy."""

from __future__ import annotations

from collections.abc import Iterator

from profiler.results import energy
from profiler.results.measurement import Caution, Measurement, Phase

PHASES: tuple[Phase, ...] = ("prefill", "decode")
CAPPED = 0.05  # of the time: two figures further apart in it were taken under different conditions
STATED = ("capped", "sm_mhz")  # fields of samples that are looked at
DIFFERENT = 0.02  # of the clock: more than the step of 15 MHz in which boards set it, and than most figures spread


def cautions(measurement: Measurement) -> Iterator[Caution]:
    """Power limit and clocks of each phase, then energy that is unknown or not to be believed."""
    for phase in PHASES:
        if measurement.states("capped"):
            yield from _capped(measurement, phase)
        if measurement.states("sm_mhz"):
            yield from _clocks(measurement, phase)
    if measurement.energy is None:
        return
    if reason := energy.unknown(measurement):
        yield Caution("energy-unknown", f"energy: {reason}")
    if doubt := energy.suspect(measurement):
        yield Caution("energy-suspect", f"energy: {doubt}")


def _capped(measurement: Measurement, phase: Phase) -> Iterator[Caution]:
    """Usual on a card that is set to less power than it could take: no fault, but the figure is of that limit."""
    known = [(sample.capped, sample.seconds) for sample in measurement.of(phase) if sample.capped is not None]
    total = sum(seconds for _, seconds in known)
    share = sum(capped * seconds for capped, seconds in known) / total if total else 0.0
    if share > CAPPED:
        watts = (measurement.environment.get("device") or {}).get("power_limit_w")
        limit = f" of {watts:g} W" if isinstance(watts, int | float) else ""
        text = f"{phase}: the power limit{limit} held the clocks down for {share:.0%} of the time"
        yield Caution(f"{phase}-power-capped", text)


def _clocks(measurement: Measurement, phase: Phase) -> Iterator[Caution]:
    known = [sample.sm_mhz for sample in measurement.of(phase) if sample.sm_mhz]
    if known and max(known) > (1 + DIFFERENT) * min(known):
        text = f"{phase}: clocks differ between repetitions, {min(known):,.0f} to {max(known):,.0f} MHz"
        yield Caution(f"{phase}-clocks-differ", text, "locked clocks: sudo nvidia-smi --lock-gpu-clocks=MHZ")
