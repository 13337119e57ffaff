"""The decision rule of a gate: sequential paired tests, corrected for many cases and metrics, and exact comparisons.

**Pairs.** A *block* is one order to one warm process: its value is the median of its repetitions. The unit of
inference is the pair, d = ln(candidate ÷ base) of two blocks measured one right after the other, so positive is
worse. After 6, 10 and 16 pairs the test looks at them, each time with a third of its error (Bonferroni over looks):

    FAIL          the lower t bound of d is above 0, and min(mean, median) ≥ ln(1 + δ), and a sign test has p ≤ 0.05
    PASS          the upper t bound of d is below ln(1 + δ)
    inconclusive  neither, after the last look

The three conditions of FAIL guard against different things: the t bound against noise, the mean *and* the median
against calling a slowdown below δ one and against a few outliers, the sign test against a mean that they carry. At a
true slowdown of exactly δ about half of the gates fail, and between 0 and δ many are inconclusive: that is what δ
means. How often the rule errs is simulated in ``benchmarks/gate_calibration.py``.

**Many tests.** Ten tests at 5 % find something by chance in four gates of ten. Holm (1979) holds the odds of even one
false alarm at the level of the whole. Each look has its own share of that level, and what was rejected at an earlier
look passes its share on (Ye, Li, Liu & Yao 2013, "A group sequential Holm procedure").

**Bytes and tokens** hardly vary, so they are compared without statistics.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Generic, Literal, TypeVar

from profiler.devices.base import kind_of
from profiler.results import measurement, stats
from profiler.results.measurement import Measurement
from profiler.units import bytes_text, printable

LOOKS = (6, 10, 16)
CONFIRM_PAIRS = 10
ALPHA = 0.05  # one-sided, of all looks together
SIGN_P = 0.05
DELTA = 0.05  # slowdown that is a regression: what people act on, and what a machine with unlocked clocks can tell
POWER_SIGMAS = 1.34  # one-sided: nine of ten gates at the smallest detectable slowdown find it
DETECT_SIGMAS = 3.7  # the last look's t quantile (2.34 at 16 pairs) and those, in standard errors, rounded up
Decision = Literal["fail", "pass", "go on"]

K = TypeVar("K", bound=Hashable)

GateWord = Literal["PASS", "FAIL", "INCONCLUSIVE", "INCOMPARABLE"]
EXIT: dict[GateWord, int] = {"PASS": 0, "FAIL": 1, "INCONCLUSIVE": 3, "INCOMPARABLE": 4}
GRAVITY: tuple[GateWord, ...] = (
    "PASS",
    "INCONCLUSIVE",
    "INCOMPARABLE",
    "FAIL",
)  # of several, the last one here counts

ADVICE = "mend what made it fall back, or compare transformers as shipped: --path eager"
FIGURES = ("cache_bytes", "decode_allocated_bytes", "process_peak_bytes")  # they depend on the step


@dataclass(frozen=True, slots=True)
class RegressionRule:
    """What is a regression, and how sure one must be."""

    delta: float = DELTA  # relative
    alpha: float = ALPHA
    looks: tuple[int, ...] = LOOKS

    @property
    def log(self) -> float:
        """ln(1 + δ), what pairs are compared with."""
        return math.log1p(self.delta)

    @property
    def level(self) -> float:
        """One-sided error of one look."""
        return self.alpha / len(self.looks)


@dataclass(frozen=True, slots=True)
class Evidence:
    """What pairs say, in natural logarithms of candidate ÷ base."""

    n: int
    mean: float
    median: float
    sd: float
    low: float  # one-sided bounds of the mean, each at the level of one look
    high: float
    p_slower: float  # one-sided t test of "not slower"
    p_sign: float  # one-sided sign test of the same; a difference of 0 speaks against slower


def evidence(logs: Sequence[float], level: float) -> Evidence:
    """Of at least two pairs."""
    n, mean, sd = len(logs), math.fsum(logs) / len(logs), stats.stdev(logs)
    error = sd / math.sqrt(n)
    half = stats.quantile(1 - level, n - 1) * error
    p_slower = stats.tail(mean / error, n - 1) if error else float(mean <= 0)
    return Evidence(
        n, mean, statistics.median(logs), sd, mean - half, mean + half, p_slower, sign_p(sum(d > 0 for d in logs), n)
    )


def decide(found: Evidence, rule: RegressionRule, significant: bool | None = None) -> Decision:
    """What these pairs decide. ``significant``: the t test as corrected for other cells and metrics (``holm``)."""
    if significant is None:
        significant = found.low > 0
    if significant and min(found.mean, found.median) >= rule.log and found.p_sign <= SIGN_P:
        return "fail"
    return "pass" if found.high < rule.log else "go on"


def sign_p(worse: int, n: int) -> float:
    """P(at least ``worse`` of ``n`` fair coins)."""
    return sum(math.comb(n, k) for k in range(worse, n + 1)) / float(2**n)


def detectable(sd: float, rule: RegressionRule) -> float:
    """The smallest slowdown (relative) that nine of ten gates find, at this standard deviation of one pair."""
    error = sd / math.sqrt(rule.looks[-1])
    return math.expm1(max(rule.log + POWER_SIGMAS * error, DETECT_SIGMAS * error))


def supportable(sd: float, rule: RegressionRule) -> float:
    """The smallest δ at which a slowdown of 2 δ is detectable (in logarithms, as all of this is)."""
    error = sd / math.sqrt(rule.looks[-1])
    return math.expm1(max(POWER_SIGMAS * error, DETECT_SIGMAS * error / 2))


def supports(sd: float, rule: RegressionRule) -> bool:
    """Whether a gate at this noise would find a slowdown of 2 δ."""
    return rule.delta >= supportable(sd, rule)


def holm(p: Mapping[K, float], alpha: float) -> set[K]:
    """The hypotheses that are rejected, at ``alpha`` for all of them together."""
    rejected: set[K] = set()
    for place, (name, value) in enumerate(sorted(p.items(), key=lambda item: item[1])):
        if value > alpha / (len(p) - place):
            break
        rejected.add(name)
    return rejected


class Family(Generic[K]):
    """The declared hypotheses, with the p of each as far as it is known: what is not measured yet is not rejected."""

    def __init__(self, names: Iterable[K], level: float) -> None:
        self.level = level
        self._p: dict[K, float] = dict.fromkeys(names, 1.0)

    def note(self, name: K, p: float) -> None:
        """The p of a hypothesis at its latest look."""
        self._p[name] = p

    def failed(self, name: K) -> None:
        """It was rejected for good: its share goes to the others."""
        self._p[name] = 0.0

    def rejected(self) -> set[K]:
        """Those that are rejected now."""
        return holm(self._p, self.level)


@dataclass(frozen=True, slots=True)
class GateVerdict:
    """One metric of one cell. Ratios are candidate ÷ base, so above 1 is worse; unknown is None."""

    cell: str  # the cell's name to people: a case's label, or a test's id
    metric: str
    word: GateWord
    reason: str  # in words; of a PASS too
    advice: str | None = None  # what to do
    command: str | None = None  # the command that does it, to paste
    ratio: float | None = None
    low: float | None = None  # bounds that the decision rests on, each one-sided
    high: float | None = None
    pairs: int | None = None
    delta: float | None = None  # slowdown that counts as a regression
    noise: float | None = None  # s: standard deviation of one A/A pair, in logarithms
    detectable: float | None = None  # slowdown that nine of ten such gates find
    before: float | None = None  # exact metrics: the base's or baseline's figure
    now: float | None = None
    evidence: Evidence | None = None
    confirmation: Evidence | None = None  # of the pairs that had to fail again

    def to_json(self) -> dict[str, Any]:
        """Plain JSON content."""
        return asdict(self)


def worst(verdicts: Iterable[GateVerdict]) -> GateWord:
    """The word of all together. Nothing at all is no PASS: a gate that measured nothing has failed."""
    return max((verdict.word for verdict in verdicts), key=GRAVITY.index, default="FAIL")


def exit_code(word: GateWord, inconclusive_fails: bool = True) -> int:
    """0 PASS · 1 FAIL · 3 inconclusive · 4 incomparable."""
    return 0 if word == "INCONCLUSIVE" and not inconclusive_fails else EXIT[word]


def difference(base: Measurement, candidate: Measurement) -> str | None:
    """In words, that the rows of two sides ran different steps; ``None`` if they ran the same one."""
    return measurement.difference(base, candidate, ("the base", "the candidate"))


def unlike_baseline(before: str | None, rows: Iterable[Measurement]) -> str | None:
    """The same against the step of a stored baseline. ``before`` is ``None`` in files from before it was stored."""
    ran = {measurement.step(row): row for row in rows if row.outcome == "ok"}
    if len(ran) > 1:
        return f"different decode steps ran in its processes: {', '.join(map(measurement.in_words, ran.values()))}"
    if before is None or not ran or before in ran:
        return None
    return (
        f"different decode steps ran: {printable(before)} in the baseline, {measurement.in_words(*ran.values())} now"
    )


def fallback(row: Measurement) -> str | None:
    """That a case ran another step than was asked for, in one line, or ``None``."""
    if measurement.step(row) == row.case.path:
        return None
    return f"{row.case.label}: --path {row.case.path} ran {measurement.in_words(row)}"


@dataclass(frozen=True, slots=True)
class Bound:
    """How far a figure may be from the base's. ``of``: what it depends on beside the case."""

    above: float  # relative
    below: float | None  # None: less is no failure
    of: Literal["workload", "machine"]


ALLOCATED = 0.005  # blocks of the allocator are rounded, and which ones are split depends on the order of frees

PROCESS = 0.10  # resident pages of libraries, thread stacks, arenas: percents of a small model from run to run

BOUNDS: dict[str, Bound] = {
    "weights_bytes": Bound(0.0, 0.0, "workload"),
    "cache_bytes": Bound(0.0, 0.0, "workload"),
    "prefill_tokens": Bound(0.0, 0.0, "workload"),
    "decode_tokens": Bound(0.0, 0.0, "workload"),
    "prefill_allocated_bytes": Bound(ALLOCATED, None, "machine"),
    "decode_allocated_bytes": Bound(ALLOCATED, None, "machine"),
    "process_peak_bytes": Bound(PROCESS, None, "machine"),
}


def facts(row: Measurement) -> dict[str, int]:
    """What a row has of ``BOUNDS``. Allocated bytes exist where the device counts live tensors (CUDA)."""
    memory = row.memory
    found = {
        "weights_bytes": memory.weights_bytes,
        "cache_bytes": memory.cache_bytes,
        "prefill_tokens": next((sample.tokens for sample in row.of("prefill")), None),
        "decode_tokens": next((sample.tokens for sample in row.of("decode")), None),
        "process_peak_bytes": memory.process_peak_bytes,
    }
    if not kind_of(row.case.device).is_host:
        found["prefill_allocated_bytes"] = memory.prefill_peak_bytes
        found["decode_allocated_bytes"] = memory.decode_peak_bytes
    return {name: value for name, value in found.items() if value is not None}


def verdicts(
    cell: str,
    before: Mapping[str, int],
    now: Mapping[str, int],
    against: str,
    same_machine: bool = True,
    if_meant: str | None = None,
    other_step: str | None = None,
) -> list[GateVerdict]:
    """One for each figure that either side has. ``against`` names the other side to people: the base, the
    baseline. ``if_meant`` tells them what to do about a change that is no mistake, where there is something.
    ``other_step`` says that the sides ran different decode steps, where they did.
    """
    found = []
    for name, bound in BOUNDS.items():
        before_, now_ = before.get(name), now.get(name)
        if before_ is None and now_ is None:
            continue
        if other_step and name in FIGURES:
            found.append(GateVerdict(cell, name, "INCOMPARABLE", other_step, ADVICE, before=before_, now=now_))
        else:
            found.append(_verdict(cell, name, bound, before_, now_, against, same_machine, if_meant))
    return found


def _verdict(
    cell: str,
    name: str,
    bound: Bound,
    before: int | None,
    now: int | None,
    against: str,
    same_machine: bool,
    if_meant: str | None,
) -> GateVerdict:
    if bound.of == "machine" and not same_machine:
        reason = f"it depends on the machine and its software, which are not those of {against}"
        return GateVerdict(cell, name, "INCOMPARABLE", reason, before=before, now=now)
    if before is None or now is None:
        word = "INCOMPARABLE" if before is None else "FAIL"
        who = against if before is None else "the candidate"
        return GateVerdict(cell, name, word, f"{who} has no such figure", before=before, now=now)  # type: ignore[arg-type]
    ratio = now / before if before else None
    parts = {"before": before, "now": now, "ratio": ratio}
    if now > before * (1 + bound.above):
        return GateVerdict(cell, name, "FAIL", _change(name, before, now), _advice(bound, if_meant), **parts)  # type: ignore[arg-type]
    if bound.below is not None and now < before * (1 - bound.below):
        reason = f"{_change(name, before, now)}: another workload, or an improvement that is to be accepted"
        return GateVerdict(cell, name, "FAIL", reason, _advice(bound, if_meant), **parts)  # type: ignore[arg-type]
    return GateVerdict(cell, name, "PASS", "the same" if now == before else _change(name, before, now), **parts)  # type: ignore[arg-type]


def _change(name: str, before: int, now: int) -> str:
    text = bytes_text if name.endswith("_bytes") else (lambda value: f"{value:,}")
    a, b = text(before), text(now)
    if a == b:  # too close for three digits
        a, b = f"{before:,}", f"{now:,}"
    return f"{a} → {b}"


def _advice(bound: Bound, if_meant: str | None) -> str | None:
    parts = ["find what holds it" if bound.of == "machine" else None, if_meant]
    return "; ".join(part for part in parts if part) or None
