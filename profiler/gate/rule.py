"""The decision rule of a gate: sequential paired tests, corrected for multiple testing, and exact comparisons.

**Pairs.** A *block* measures a case once in a warm worker process; its value is the median of its repetitions. The
unit of inference is a pair of blocks measured back to back, d = ln(candidate ÷ base), so a positive d means slower.
The test looks at the data after 6, 10 and 16 pairs and spends a third of its error at each look (Bonferroni over
looks):

    FAIL          the lower t bound of d is above 0, min(mean, median) ≥ ln(1 + δ), and a sign test has p ≤ 0.05
    PASS          the upper t bound of d is below ln(1 + δ)
    inconclusive  neither, after the last look

Each condition of FAIL guards against a different error: the t bound against noise, the mean *and* the median against
reporting a slowdown below δ, the sign test against a mean that a few outliers dominate. If the true slowdown is
exactly δ, about half of the gates fail; if it is between 0 and δ, many are inconclusive.
``benchmarks/gate_calibration.py`` simulates the error rates.

**Multiple testing.** With ten tests at 5% each, four gates of ten would report a false alarm. Holm's procedure (1979)
bounds the probability of even one false alarm in the whole gate. Each look has its own share of that level, and a
hypothesis rejected at an earlier look passes its share on to the others (Ye, Li, Liu & Yao 2013, "A group sequential
Holm procedure").

**Bytes and tokens** hardly vary, so they are compared without statistics.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Generic, Literal, TypeVar

from profiler import backends
from profiler.devices.base import kind_of
from profiler.results import measurement, stats
from profiler.results.measurement import Measurement
from profiler.units import bytes_text, printable

LOOKS = (6, 10, 16)
CONFIRM_PAIRS = 10
ALPHA = 0.05  # one-sided, for all looks together
SIGN_P = 0.05  # of the sign test, which must agree, so that a few extreme pairs decide nothing
DELTA = 0.05  # the default δ: slowdowns that people act on, and that a machine with unlocked clocks can resolve
POWER_SIGMAS = 1.34  # one-sided: nine of ten gates find a slowdown of the smallest detectable size
DETECT_SIGMAS = 3.7  # the last look's t quantile (2.34 at 16 pairs) plus POWER_SIGMAS, in standard errors, rounded up
Decision = Literal["fail", "pass", "go on"]

K = TypeVar("K", bound=Hashable)

GateWord = Literal["PASS", "FAIL", "INCONCLUSIVE", "INCOMPARABLE"]
EXIT: dict[GateWord, int] = {"PASS": 0, "FAIL": 1, "INCONCLUSIVE": 3, "INCOMPARABLE": 4}
SEVERITY: tuple[GateWord, ...] = ("PASS", "INCONCLUSIVE", "INCOMPARABLE", "FAIL")  # the worst verdict decides

ADVICE = "fix what caused the fallback, or compare transformers without patches: --path eager"
STEP_FIGURES = ("cache_bytes", "decode_allocated_bytes", "process_peak_bytes")  # they depend on the decode step


@dataclass(frozen=True, slots=True)
class RegressionRule:
    """What counts as a regression, and with which confidence."""

    delta: float = DELTA  # relative
    alpha: float = ALPHA
    looks: tuple[int, ...] = LOOKS

    @property
    def log(self) -> float:
        """ln(1 + δ), the threshold for the logarithms of pairs."""
        return math.log1p(self.delta)

    @property
    def level(self) -> float:
        """One-sided error of one look."""
        return self.alpha / len(self.looks)


@dataclass(frozen=True, slots=True)
class Evidence:
    """Statistics of the pairs, in natural logarithms of candidate ÷ base."""

    n: int
    mean: float
    median: float
    sd: float
    low: float  # one-sided bounds of the mean, each at the level of one look
    high: float
    p_slower: float  # one-sided t test of "not slower"
    p_sign: float  # one-sided sign test of the same hypothesis; a difference of 0 counts as not slower


def evidence(logs: Sequence[float], level: float) -> Evidence:
    """Statistics of at least two pairs; ``level`` is the one-sided error of each bound."""
    n, mean, sd = len(logs), math.fsum(logs) / len(logs), stats.stdev(logs)
    error = sd / math.sqrt(n)
    half = stats.quantile(1 - level, n - 1) * error
    p_slower = stats.tail(mean / error, n - 1) if error else float(mean <= 0)
    return Evidence(
        n, mean, statistics.median(logs), sd, mean - half, mean + half, p_slower, sign_p(sum(d > 0 for d in logs), n)
    )


def decide(found: Evidence, rule: RegressionRule, significant: bool | None = None) -> Decision:
    """The decision on these pairs. ``significant``: result of the t test after Holm's correction (``holm``)."""
    if significant is None:
        significant = found.low > 0
    if significant and min(found.mean, found.median) >= rule.log and found.p_sign <= SIGN_P:
        return "fail"
    return "pass" if found.high < rule.log else "go on"


def sign_p(worse: int, n: int) -> float:
    """P(at least ``worse`` heads in ``n`` tosses of a fair coin)."""
    return sum(math.comb(n, k) for k in range(worse, n + 1)) / float(2**n)


def detectable(sd: float, rule: RegressionRule) -> float:
    """The smallest relative slowdown that nine of ten gates find if one pair has the standard deviation ``sd``."""
    error = sd / math.sqrt(rule.looks[-1])
    return math.expm1(max(rule.log + POWER_SIGMAS * error, DETECT_SIGMAS * error))


def supportable(sd: float, rule: RegressionRule) -> float:
    """The smallest δ for which a slowdown of 2 δ is detectable. ``sd`` is in logarithms."""
    error = sd / math.sqrt(rule.looks[-1])
    return math.expm1(max(POWER_SIGMAS * error, DETECT_SIGMAS * error / 2))


def supports(sd: float, rule: RegressionRule) -> bool:
    """Whether a gate with this noise would find a slowdown of 2 δ."""
    return rule.delta >= supportable(sd, rule)


def holm(p: Mapping[K, float], alpha: float) -> set[K]:
    """The hypotheses that Holm's procedure rejects at the familywise error rate ``alpha``."""
    rejected: set[K] = set()
    for place, (name, value) in enumerate(sorted(p.items(), key=lambda item: item[1])):
        if value > alpha / (len(p) - place):
            break
        rejected.add(name)
    return rejected


class HypothesisFamily(Generic[K]):
    """The declared hypotheses with their latest p values. One that is not tested yet has p = 1."""

    def __init__(self, names: Iterable[K], level: float) -> None:
        self.level = level
        self._p: dict[K, float] = dict.fromkeys(names, 1.0)

    def note(self, name: K, p: float) -> None:
        """Record the p value of a hypothesis at its latest look."""
        self._p[name] = p

    def failed(self, name: K) -> None:
        """Record a final rejection, which passes the hypothesis's share of the level to the others."""
        self._p[name] = 0.0

    def rejected(self) -> set[K]:
        """The hypotheses that are rejected now."""
        return holm(self._p, self.level)


@dataclass(frozen=True, slots=True)
class GateVerdict:
    """The verdict on one metric of one case. Ratios are candidate ÷ base: above 1 is worse. Unknown is None."""

    case: str  # the case's label, or the id of a test
    metric: str
    word: GateWord
    reason: str  # also for a PASS
    advice: str | None = None  # what to do
    command: str | None = None  # a command that does it, ready to paste
    ratio: float | None = None
    low: float | None = None  # the bounds that the decision uses, each one-sided
    high: float | None = None
    pairs: int | None = None
    delta: float | None = None  # slowdown that counts as a regression
    noise: float | None = None  # s: standard deviation between A/A pairs, in logarithms
    detectable: float | None = None  # slowdown that nine of ten such gates find
    before: float | None = None  # exact metrics: the figure of the base or the baseline
    now: float | None = None
    evidence: Evidence | None = None
    confirmation: Evidence | None = None  # from the pairs that had to fail again
    kl: float | None = None  # mean KL divergence of the candidate's predictions from the base's, in nats
    kl_limit: float | None = None  # above which it fails
    kinds: Mapping[str, float] | None = None  # the mean of each kind of text, the largest first

    def to_json(self) -> dict[str, Any]:
        """The verdict as JSON. The case is stored as ``cell``, its name since the first version."""
        return {"cell" if name == "case" else name: value for name, value in asdict(self).items()}


def nats(value: float) -> str:
    """``0.0012``, ``3.1e-06``."""
    return f"{value:.2g}"


def worst(verdicts: Iterable[GateVerdict]) -> GateWord:
    """The overall verdict. Without any verdicts it is FAIL: a gate that measured nothing must not pass."""
    return max((verdict.word for verdict in verdicts), key=SEVERITY.index, default="FAIL")


def exit_code(word: GateWord, inconclusive_fails: bool = True) -> int:
    """0 PASS · 1 FAIL · 3 inconclusive · 4 incomparable."""
    return 0 if word == "INCONCLUSIVE" and not inconclusive_fails else EXIT[word]


def difference(base: Measurement, candidate: Measurement) -> str | None:
    """A message if base and candidate ran different decode steps; ``None`` if they ran the same one."""
    return measurement.difference(base, candidate, ("the base", "the candidate"))


def unlike_baseline(before: str | None, rows: Iterable[Measurement]) -> str | None:
    """``difference`` for a stored baseline. ``before`` is ``None`` if its file does not have the decode step."""
    ran = {measurement.step(row): row for row in rows if row.outcome == "ok"}
    if len(ran) > 1:
        return f"its processes ran different decode steps: {', '.join(map(measurement.in_words, ran.values()))}"
    if before is None or not ran or before in ran:
        return None
    return (
        f"different decode steps ran: {printable(before)} in the baseline, {measurement.in_words(*ran.values())} now"
    )


def fallback(row: Measurement) -> str | None:
    """A message if a case ran another decode step than was requested; otherwise ``None``."""
    if measurement.step(row) == row.case.path:
        return None
    return f"{row.case.label}: --path {row.case.path} ran {measurement.in_words(row)}"


@dataclass(frozen=True, slots=True)
class Bound:
    """How far a figure may be from the base's. A figure of the machine depends on the workload too."""

    above: float  # relative
    below: float | None  # None: a decrease is never a failure
    depends_on: Literal["workload", "machine"]


ALLOCATED = 0.005  # the allocator rounds blocks, and the order of frees decides which ones it splits

PROCESS = 0.10  # resident library pages, thread stacks, malloc arenas: a few percent of a small model between runs

BOUNDS: dict[str, Bound] = {
    "weights_bytes": Bound(0.0, 0.0, "workload"),
    "cache_bytes": Bound(0.0, 0.0, "workload"),
    "prefill_tokens": Bound(0.0, 0.0, "workload"),
    "decode_tokens": Bound(0.0, 0.0, "workload"),
    "prefill_allocated_bytes": Bound(ALLOCATED, None, "machine"),
    "decode_allocated_bytes": Bound(ALLOCATED, None, "machine"),
    "process_peak_bytes": Bound(PROCESS, None, "machine"),
}


def exact_figures(row: Measurement) -> dict[str, int]:
    """A row's figures for ``BOUNDS``. Only devices that count live tensors (CUDA) report allocated bytes.

    A server has none: its prompts differ by a few tokens, and its memory depends on what it was asked before. An
    engine's own programs have only their peak, since each version may arrange weights and buffers as it likes.
    """
    if row.case.server is not None:
        return {}
    memory = row.memory
    if backends.find(row.case.backend).times_itself:
        peak = memory.process_peak_bytes
        return {} if peak is None else {"process_peak_bytes": peak}
    found = {
        "weights_bytes": memory.weights_bytes,
        "cache_bytes": memory.cache_bytes,
        "prefill_tokens": next((sample.tokens for sample in row.samples.of("prefill")), None),
        "decode_tokens": next((sample.tokens for sample in row.samples.of("decode")), None),
        "process_peak_bytes": memory.process_peak_bytes,
    }
    if not kind_of(row.case.device).is_host:
        found["prefill_allocated_bytes"] = memory.prefill_peak_bytes
        found["decode_allocated_bytes"] = memory.decode_peak_bytes
    return {name: value for name, value in found.items() if value is not None}


def verdicts(
    case: str,
    before: Mapping[str, int],
    now: Mapping[str, int],
    against: str,
    same_machine: bool = True,
    if_meant: str | None = None,
    other_step: str | None = None,
) -> list[GateVerdict]:
    """A verdict on each figure that either side has.

    ``against`` names the reference in messages: "the base" or "the baseline". ``if_meant`` is the advice for an
    intended change. ``other_step`` is the message of a difference between the decode steps.
    """
    found = []
    for name, bound in BOUNDS.items():
        before_, now_ = before.get(name), now.get(name)
        if before_ is None and now_ is None:
            continue
        if other_step and name in STEP_FIGURES:
            found.append(GateVerdict(case, name, "INCOMPARABLE", other_step, ADVICE, before=before_, now=now_))
        else:
            found.append(_verdict(case, name, bound, before_, now_, against, same_machine, if_meant))
    return found


def _verdict(
    case: str,
    name: str,
    bound: Bound,
    before: int | None,
    now: int | None,
    against: str,
    same_machine: bool,
    if_meant: str | None,
) -> GateVerdict:
    if bound.depends_on == "machine" and not same_machine:
        reason = f"it depends on the machine and its software, which differ from those of {against}"
        return GateVerdict(case, name, "INCOMPARABLE", reason, before=before, now=now)
    if before is None or now is None:
        word = "INCOMPARABLE" if before is None else "FAIL"
        who = against if before is None else "the candidate"
        return GateVerdict(case, name, word, f"{who} has no such figure", before=before, now=now)  # type: ignore[arg-type]
    ratio = now / before if before else None
    parts = {"before": before, "now": now, "ratio": ratio}
    if now > before * (1 + bound.above):
        return GateVerdict(case, name, "FAIL", _change(name, before, now), _advice(bound, if_meant), **parts)  # type: ignore[arg-type]
    if bound.below is not None and now < before * (1 - bound.below):
        reason = f"{_change(name, before, now)}: a different workload, or an improvement to accept"
        return GateVerdict(case, name, "FAIL", reason, _advice(bound, if_meant), **parts)  # type: ignore[arg-type]
    return GateVerdict(case, name, "PASS", "unchanged" if now == before else _change(name, before, now), **parts)  # type: ignore[arg-type]


def _change(name: str, before: int, now: int) -> str:
    text = bytes_text if name.endswith("_bytes") else (lambda value: f"{value:,}")
    a, b = text(before), text(now)
    if a == b:  # the rounded texts do not show the difference
        a, b = f"{before:,}", f"{now:,}"
    return f"{a} → {b}"


def _advice(bound: Bound, if_meant: str | None) -> str | None:
    parts = ["find what uses the memory" if bound.depends_on == "machine" else None, if_meant]
    return "; ".join(part for part in parts if part) or None
