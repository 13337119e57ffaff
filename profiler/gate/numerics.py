"""Whether base and candidate compute the same: their predictions over the same short texts, teacher-forced.

A backend that gives logits names a module in ``Backend.agreement``. Its ``measure(session, case, source, wanted,
beat)`` returns ``kept``, the predictions in compact form, and their KL divergence from ``wanted["against"]``, which
are the predictions of the other version. The prompt and the decode steps are compared separately, because other
kernels compute them.

    PASS   both are equal to the last bit
    else   the same model is compared once more, computed in fp32, where rounding hides less:
    FAIL   the mean KL divergence of prompt or decode steps is above the limit
    PASS   otherwise: the versions round differently

**Limits.** In fp32, predictions of correct kernels differ by up to 1.5e-6 nats (``benchmarks/gate_builds.md``).
Scales of one layer that are off by two percent moved those of SmolLM2 135M by 6.6e-4 (prompt) and 9.4e-4 (decode
steps); ``benchmarks/gate_numerics.py`` measures it.
In 16 bits, every rounding changes the predictions, by an amount that depends on the model. It is measured: the
divergence between the base in the case's dtype and the base in fp32. Two correct versions whose rounding is
independent differ by twice as much, and the limit is ``NOISE_FACTOR`` times that noise.

Synthetic weights serve as well: the figures then say whether two versions compute the same from the same weights, and
nothing about the quality of a model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from profiler import devices, quants
from profiler.case import Task
from profiler.devices.base import DeviceInfo
from profiler.errors import ProfileError
from profiler.gate.agreement import KL_LIMIT, KL_LIMIT_F32
from profiler.gate.bench import Bench
from profiler.gate.rule import GateVerdict, nats
from profiler.gate.variants import Variant
from profiler.quality.placement import MARGIN, ROOM_BYTES
from profiler.quants.base import DTYPE_BYTES
from profiler.results.measurement import PHASES, Phase
from profiler.run.repetitions import Effort
from profiler.units import bytes_text, printable

NOISE_FACTOR = 4.0  # two independent roundings differ by twice the noise of one; the rest is for chance
PRECISE = "fp32"
# LLM.int8() rounds activations to 8 bits, which amplifies every small change: with other attention, SmolLM2 135M gave
# 0.0044 nats even in fp32, and scales of one layer that were off by two percent 0.16 to 0.21.
ROUNDS_ACTIVATIONS = ("int8",)
TOO_OLD = "its profiler is older than this comparison"
UNKNOWN_FIELD = "argument 'agreement'"  # in the TypeError of such a worker
ADVICE = "find the change with git bisect; if it is intended, accept it by judging later versions against it"
Content = Mapping[str, Any]
Predict = Callable[[Task, Content | None], Content]
"""Takes a task and the predictions to compare with, and returns the answer of ``measure``."""


@dataclass(frozen=True, slots=True)
class Predictions:
    """What is kept of one version: its predictions of a case and, if they were needed, of the same case in fp32."""

    own: Content
    precise: Content | None = None
    noise: Mapping[str, float] | None = None  # by phase: nats between ``precise`` and ``own``
    reason: str | None = None  # why ``precise`` is unknown

    def to_json(self) -> dict[str, Any]:
        """The predictions as JSON, for a baseline."""
        noise = None if self.noise is None else dict(self.noise)
        return {"own": self.own, "precise": self.precise, "noise": noise, "reason": self.reason}

    @classmethod
    def from_json(cls, content: Content) -> Predictions:
        """The inverse of ``to_json``. Raises ValueError for content of another form; a worker checks the arrays."""
        own: Any = content.get("own")
        precise, noise, reason = (content.get(name) for name in ("precise", "noise", "reason"))
        good = isinstance(own, dict) and isinstance(precise, dict | None) and isinstance(reason, str | None)
        if noise is not None:
            good = good and isinstance(noise, dict) and all(_is_nats(noise.get(phase)) for phase in PHASES)
        if not good:
            raise ValueError("its predictions are not in the form that profile writes")
        return cls(own, precise, noise, None if reason is None else printable(reason, 300))


def _is_nats(value: object) -> bool:
    return type(value) in (int, float) and 0 <= value < 1e9  # type: ignore[operator]


def precise_task(task: Task) -> Task | None:
    """The same weights computed in fp32; None if they are already."""
    case = task.case
    if case.dtype == PRECISE:
        return None
    quant = PRECISE if case.quant in DTYPE_BYTES else case.quant
    return replace(task, case=replace(case, quant=quant, dtype=PRECISE))


def kept(task: Task, predict: Predict, own: Content | None = None) -> Predictions:
    """The predictions of a version, those in fp32 included; ``own``: the ones that are known already.

    Raises ProfileError if it gives none at all.
    """
    if own is None:
        own = predict(task, None)["kept"]
    precise = precise_task(task)
    if precise is None:
        return Predictions(own)
    try:
        answer = predict(precise, own)
    except ProfileError as error:
        return Predictions(own, reason=f"{PRECISE} cannot be computed: {error.message}")
    return Predictions(own, answer["kept"], {phase: mean(answer, phase) for phase in PHASES})


def verdicts(name: str, task: Task, base: Callable[[], Predictions], own: Content, now: Predict) -> list[GateVerdict]:
    """The verdicts on a case: ``own`` are the base's predictions in the case's dtype, ``base`` gives those in fp32
    too, and ``now`` predicts with the candidate. Raises ProfileError if the candidate gives no predictions.
    """
    found = now(task, own)
    if found["identical"]:
        return [_tokens(name, found), *(_same(name, phase, found) for phase in PHASES)]
    precise = precise_task(task)
    if precise is None:
        kl = [_judged(name, phase, found, KL_LIMIT_F32) for phase in PHASES]
        return [_tokens(name, found, kl), *kl]
    before = base()
    least = KL_LIMIT if task.case.quant in ROUNDS_ACTIVATIONS else KL_LIMIT_F32
    kl = [_judged(name, phase, found, max(least, _limit(before, phase)), why=before.reason) for phase in PHASES]
    if before.precise is not None:
        try:
            again = now(precise, before.precise)
        except ProfileError as error:
            kl.append(GateVerdict(name, f"kl_{PRECISE}", "INCONCLUSIVE", f"the candidate: {error.message}"))
        else:
            limit = KL_LIMIT if task.case.quant in ROUNDS_ACTIVATIONS else KL_LIMIT_F32
            kl += [_judged(name, phase, again, limit, f"_{PRECISE}") for phase in PHASES]
    return [_tokens(name, found, kl), *kl]


def _limit(base: Predictions, phase: Phase) -> float:
    """The limit in a case's own dtype, in nats."""
    return KL_LIMIT if base.noise is None else max(KL_LIMIT_F32, NOISE_FACTOR * base.noise[phase])


def _sum(found: Content, phase: str, name: str) -> float:
    return sum(float(phases[phase][name]) for phases in found["kinds"].values())


def mean(found: Content, phase: str) -> float:
    """The mean KL divergence of a phase, in nats."""
    return _sum(found, phase, "kl") / _sum(found, phase, "tokens")


def by_kind(found: Content, phase: str) -> dict[str, float]:
    """The mean of each kind of text, the largest first."""
    means = {kind: phases[phase]["kl"] / phases[phase]["tokens"] for kind, phases in found["kinds"].items()}
    return dict(sorted(means.items(), key=lambda item: -item[1]))


def _tokens(name: str, found: Content, kl: list[GateVerdict] | None = None) -> GateVerdict:
    """The verdict on the greedy tokens: the token that each version would choose after the same text."""
    total = sum(int(_sum(found, phase, "tokens")) for phase in PHASES)
    same = sum(int(_sum(found, phase, "same")) for phase in PHASES)
    failed = any(each.word == "FAIL" for each in kl or ())
    reason = f"the same greedy token after {same:,} of {total:,} prefixes"
    if same < total and not failed:
        reason += ", as versions that round differently may give"
    word, advice = ("FAIL", ADVICE) if failed and same < total else ("PASS", None)
    return GateVerdict(name, "tokens", word, reason, advice, before=total, now=same)  # type: ignore[arg-type]


def _same(name: str, phase: Phase, found: Content) -> GateVerdict:
    kinds = ", ".join(map(printable, found["kinds"]))
    reason = f"equal to the last bit at {int(_sum(found, phase, 'tokens')):,} tokens of {kinds}"
    return GateVerdict(name, f"{phase}_kl", "PASS", reason, kl=0.0, kinds=by_kind(found, phase))


def _judged(
    name: str, phase: Phase, found: Content, limit: float, suffix: str = "", why: str | None = None
) -> GateVerdict:
    """The verdict on the mean KL divergence of a phase. ``why``: the reason of a limit that is not measured."""
    kl, kinds = mean(found, phase), by_kind(found, phase)
    worst = next(iter(kinds))
    reason = f"{nats(kl)} nats on average, most in {printable(worst)}: {nats(kinds[worst])}"
    verdict = GateVerdict(name, f"{phase}_kl{suffix}", "PASS", reason, kl=kl, kl_limit=limit, kinds=kinds)
    if kl > limit:
        others = ", ".join(f"{printable(kind)} {nats(value)}" for kind, value in list(kinds.items())[1:])
        reason += f"{f' ({others})' if others else ''}; more than {nats(limit)}"
        return replace(verdict, word="FAIL", reason=reason, advice=ADVICE)
    return replace(verdict, reason=f"{reason}; the limit is {nats(limit)}{f', because {why}' if why else ''}")


def predictor(bench: Bench, variant: Variant, device: DeviceInfo, effort: Effort) -> Predict:
    """Predicts with a variant, in a worker process of its own. Raises ProfileError if that is impossible."""

    def predict(task: Task, against: Content | None) -> Content:
        needed = _fp32_bytes(task)
        if needed > devices.find(device.name).free_bytes:
            raise ProfileError(f"its weights in {PRECISE} need {bytes_text(needed)} of memory, which is not free")
        row = bench.row(variant, task, replace(effort, agreement={"against": against}))
        if row.outcome != "ok" or row.quality is None:
            reason = TOO_OLD if UNKNOWN_FIELD in (row.reason or UNKNOWN_FIELD) else row.reason
            raise ProfileError(f"{printable(variant.name)} gives no predictions: {reason}")
        return row.quality

    return predict


def _fp32_bytes(task: Task) -> int:
    """Memory of the weights of a case that computes in fp32, roughly; 0 for any other, which the plan has checked."""
    if task.case.dtype != PRECISE or task.geometry is None:
        return 0
    quant = quants.find(task.case.quant)
    if quant is None:
        return 0
    weights = sum(quant.weight_bytes(weight, PRECISE, False) for weight in task.geometry.weights())
    return int(weights * MARGIN) + ROOM_BYTES
