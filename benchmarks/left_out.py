"""Leave-one-device-out validation: each device is predicted from a fit to the others. Gives errors and coverage."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import fitting
import numpy as np
from published_rows import Row

from profiler.cost.roofline import Bounds, of_both, wider

COVER = 0.90
KINDS = ("decode", "batch", "prefill")
LIKE_OTHERS = 16.0  # devices of an engine whose errors weigh as much as those of all engines: least interval score
REPETITIVE = 0.25  # a row of a device with n rows weighs n to the power of minus this
LEAST_ERROR = 0.01  # log units


@dataclass(frozen=True, slots=True)
class Judged:
    """One figure of a row, predicted from other devices. Seconds of the phase."""

    row: Row
    phase: str
    measured: float
    predicted: float
    low: float
    high: float
    wider: float = 1.0  # how much wider a prediction's range is on such a machine, as for vendors without rows
    hosts: Bounds = (1.0, 1.0)  # measured ÷ predicted seconds on other hosts, for an engine that launches from Python

    @property
    def beyond(self) -> float:
        """How far the range of an engine would have to reach on one side to cover it, as a log of seconds."""
        ratio = self.measured / self.predicted
        error, host = math.log(ratio), math.log(self.hosts[int(ratio > 1)])
        return math.sqrt(max(0.0, error**2 - host**2)) - math.log(self.wider)

    def within(self, bounds: Bounds) -> Judged:
        """The figure with the range that a prediction makes of an engine's ``bounds``."""
        low, high = of_both(wider(bounds, self.wider), self.hosts)
        return replace(self, low=self.predicted * low, high=self.predicted * high)

    @property
    def error(self) -> float:
        """Predicted ÷ measured rate − 1, so positive means predicted too fast."""
        return self.measured / self.predicted - 1

    @property
    def covered(self) -> bool:
        """Whether the 90% interval contains the measured value."""
        return self.low <= self.measured <= self.high

    @property
    def batched(self) -> bool:
        """Whether it is a decode rate of several tokens at once."""
        return self.phase == "decode" and self.row.batch > 1

    @property
    def kind(self) -> str:
        """``decode``, ``batch`` or ``prefill``."""
        return "batch" if self.batched else self.phase


@dataclass(frozen=True, slots=True)
class ErrorSummary:
    """Relative errors of rates; positive means predicted too fast. ``width``: median of high ÷ low."""

    name: str
    errors: Sequence[float]
    covered: float | None = None
    width: float | None = None

    def line(self) -> str:
        """A row of the table."""
        if not len(self.errors):
            return f"| {self.name} | 0 | – | – | – | – | – | – |"
        errors = np.array(self.errors)
        cover = "–" if self.covered is None else f"{self.covered:.0%}"
        width = "–" if self.width is None else f"{self.width:.1f} ×"
        return (
            f"| {self.name} | {len(errors)} | {np.abs(errors).mean():.1%} | {np.median(np.abs(errors)):.1%}"
            f" | {np.median(errors):+.1%} | {np.quantile(np.abs(errors), 0.9):.0%} | {cover} | {width} |"
        )


GROUPS: dict[str, Callable[[Judged], bool]] = {
    "decode, one sequence": lambda j: j.phase == "decode" and not j.batched,
    "… dense models": lambda j: j.phase == "decode" and not j.batched and not j.row.experts,
    "… mixtures of experts": lambda j: j.phase == "decode" and not j.batched and j.row.experts,
    "… one device, tiers A and B": lambda j: (
        j.phase == "decode" and not j.batched and j.row.target.count == 1 and j.row.tier != "C"
    ),
    "decode, batch > 1": lambda j: j.batched,
    "… dense models, batch > 1": lambda j: j.batched and not j.row.experts,
    "… mixtures of experts, batch > 1": lambda j: j.batched and j.row.experts,
    "prefill": lambda j: j.phase == "prefill",
    "… dense models, prefill": lambda j: j.phase == "prefill" and not j.row.experts,
    "… mixtures of experts, prefill": lambda j: j.phase == "prefill" and j.row.experts,
    "… one device, tiers A and B, prefill": lambda j: (
        j.phase == "prefill" and j.row.target.count == 1 and j.row.tier != "C"
    ),
}


def summary(name: str, judged: Sequence[Judged]) -> ErrorSummary:
    """The summary of some figures."""
    covered = sum(j.covered for j in judged) / len(judged) if judged else None
    width = float(np.median([j.high / j.low for j in judged])) if judged else None
    return ErrorSummary(name, [j.error for j in judged], covered, width)


def judge(
    rows: Sequence[Row],
    start: fitting.Content,
    note: Callable[[str], None] = lambda text: None,
    near: fitting.Content | None = None,
) -> tuple[list[Judged], fitting.Content]:
    """All figures of ``rows``, each predicted without its device; and the fit to all of them.

    ``start`` has every parameter at its prior. A fit without a device starts from the fit to all, and forgets what
    only that device's rows say: factors of the device itself return to their priors. ``near``: the content of an
    earlier fit, from which this one needs fewer steps.
    """
    timed = fitting.Timed(rows)
    fit = fitting.Fit(timed, start, note)
    at, logs, slopes = fit.run(at=fit.known(near) if near else None)
    without = fit.without(at, logs, slopes)
    devices = [_devices(row) for row in timed.rows]
    predicted = np.zeros(len(timed.rows))
    for device in sorted({name for names in devices for name in names}):
        own = np.array([index for index, names in enumerate(devices) if device in names])
        predicted[own] = timed.predict(fit.content(without(own)), own)
    content = fit.content(at)
    machines = {key: row for row, key in zip(timed.rows, timed.keys, strict=True)}
    widths = {key: widening(row, start) for key, row in machines.items()}
    rates = {key: row.rates(content) for key, row in machines.items()}
    bare = []
    for row, phase, seconds, value, key, parts in zip(
        timed.rows, timed.phases, timed.measured, predicted, timed.keys, timed.parts, strict=True
    ):
        hosts = rates[key].on_any_host(parts[0].works[-1][1], (1.0, 1.0))  # the last work takes most of a request
        bare.append(Judged(row, phase, seconds, value, value, value, widths[key], hosts))
    return bounded(bare), content


def widening(row: Row, content: fitting.Content) -> float:
    """How much a prediction for the row's machine widens the range of its engine, by the rules of the product."""
    return row.rates(content).decode[1] / float(content["engine"][row.engine.name]["spread"]["decode"][1])


def bounded(bare: Sequence[Judged]) -> list[Judged]:
    """The figures with intervals that the errors of other devices give."""
    bounds: dict[tuple[frozenset[str], str, str, bool], tuple[float, float]] = {}
    judged = []
    for each in bare:
        key = _devices(each.row), each.row.engine.name, each.kind, each.row.experts
        if key not in bounds:
            bounds[key] = spread([other for other in bare if not _devices(other.row) & key[0]], *key[1:])
        judged.append(each.within(bounds[key]))
    return judged


def spread(judged: Sequence[Judged], engine: str, kind: str, experts: bool) -> tuple[float, float]:
    """Factors on predicted seconds that contain 90% of the figures of a kind, of an engine, for such models.

    The errors of all engines of the kind give the first estimate, those for such models the second, and those of the
    engine the last. Each moves the estimate before it as far as its number of devices allows, so an engine with few
    devices keeps most of the width of the others, and an engine with many has its own; its range is never narrower
    than its own errors. A new device may be off in either direction, so both ends are as far away.
    """
    levels: tuple[Callable[[Judged], bool], ...] = (
        lambda j: j.kind == kind,
        lambda j: (j.kind, j.row.experts) == (kind, experts),
        lambda j: (j.kind, j.row.experts, j.row.engine.name) == (kind, experts, engine),
    )
    found = own = 0.0
    for number, holds in enumerate(levels):
        entries = [each for each in judged if holds(each)]
        if entries:
            own, devices = largest_error(entries)
            share = devices / (devices + LIKE_OTHERS) if number else 1.0
            found = share * own + (1 - share) * found
            found = max(found, own) if number == len(levels) - 1 else found
    found = max(found, LEAST_ERROR)
    return math.exp(-found), math.exp(found)


def largest_error(entries: Sequence[Judged]) -> tuple[float, float]:
    """How far 90% of the figures are off at most, as a log of seconds, and how many devices that rests on.

    A device with more rows has more weight, but less for each, and devices with little weight count less than one.
    """
    errors = np.array([each.beyond for each in entries])
    rows = Counter(each.row.target.name for each in entries)
    weights = np.array([rows[each.row.target.name] ** -REPETITIVE for each in entries])
    order = np.argsort(errors)
    share = (np.cumsum(weights[order]) - weights[order] / 2) / weights.sum()
    of_devices = np.array([count ** (1 - REPETITIVE) for count in rows.values()])
    devices = of_devices.sum() ** 2 / (of_devices**2).sum()
    return float(np.interp(COVER, share, errors[order])), float(devices)


def _devices(row: Row) -> frozenset[str]:
    return frozenset(device.name for device in row.target.members or (row.target,))
