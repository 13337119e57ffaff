"""The quality of a row: figures of a text set, derived from sums that the row stores for each block of text.

A block is a document, or ``BLOCK`` tokens of a longer one. Stored for each are its tokens and the sums over them of
the KL divergence, of the agreement with the reference's top token, and of −log q and −log p of the text's next token
(``profiler/quality/definition.py``). The figures are means over all tokens:

    kl    mean KL divergence in nats, and its 99th and 99.9th percentile over tokens, which are stored
    top1  share of tokens at which the reference's top token is the model's
    ppl   perplexity, the exponential of the mean of −log q; ``reference`` is that of the reference

**Interval.** Tokens of a text are not independent, so blocks are drawn anew, within each kind of text because the
kinds are fixed: n − 1 of n with replacement, which makes the variance unbiased (Rao & Wu 1988). The standard
deviation of the logarithm of the figure over ``REPLICATES`` draws, times Student's t, gives the 95% interval. The
degrees of freedom are Satterthwaite's, because a few blocks of the kind that loses most may have most of the
variance. ``benchmarks/quality.py interval`` measures the coverage. An interval needs two blocks of each kind.

``error`` bounds what the stored form of the reference adds, and is not part of the interval.

**Scale.** Divergences over other texts, windows or tokens, by another definition or from another reference differ for
reasons that are not the quantization's, so only rows of one ``KlScale`` may be compared, drawn on one axis or ranked.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from profiler.quants.base import PLAIN_QUANTS
from profiler.results.stats import quantile

BLOCK = 1024  # tokens: a long document is several blocks
REPLICATES = 400  # the standard deviation of a figure is then known to 4%
SEED = 22
ROUNDING_KL = 1e-6  # nats: smaller divergences are the rounding of fp32, and their figures say nothing
SUMS = ("tokens", "kl", "same", "nll", "reference_nll")  # columns of numbers
TEXTS = ("kind", "document")
DERIVED = ("tokens", "kl", "top1", "ppl", "kinds")  # added when a row is printed
ALL = "all"  # the name of the whole set in ``tails``
GGUF_DTYPES = {"f32": "fp32", "f16": "fp16"}  # as references are called that are GGUF files
SAME_REFERENCE = 0.001  # nats of mean −log p, an assumption: what rounding to bf16 loses, and far less than a model


@dataclass(frozen=True, slots=True)
class Block:
    """Sums over the tokens of one block."""

    kind: str
    document: str
    tokens: int
    kl: float
    same: int
    nll: float
    reference_nll: float


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure and the ends of its 95% interval; ``None`` if there are too few blocks."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class KlScale:
    """What the KL divergence of a row is of. Compare two with ``unlike``."""

    definition: Any  # a version of ``quality/definition.py``
    text: str  # hash of the texts
    title: str  # their name
    model: str  # name of the reference
    window: int  # tokens
    dtype: str  # of the reference, as PyTorch's are called
    packed: str | None  # the quantization of the reference's own weights; None: they are not quantized
    reference: str  # its ``model_id``
    tokens: tuple[int, ...]  # of each block, which differ if another tokenizer cut the texts
    tokens_hash: str | None  # of all tokens; None if the row does not say
    reference_nll: float  # mean −log p of the reference over the texts


def scale(stored: Mapping[str, Any] | None) -> KlScale | None:
    """The scale of a row's ``quality``; None if it has no figures or does not say what they are of."""
    if not stored or not (columns := stored.get("blocks")):
        return None
    text, reference = stored.get("text") or {}, stored.get("reference") or {}
    known = (text.get("hash"), reference.get("dtype"), stored.get("window"), stored.get("definition"))
    if None in known or not sum(columns["tokens"]):
        return None
    dtype = GGUF_DTYPES.get(str(reference["dtype"]), str(reference["dtype"]))
    return KlScale(
        stored["definition"],
        str(text["hash"]),
        str(text.get("name") or text["hash"]),
        str(reference.get("model") or "an unnamed model"),
        int(stored["window"]),
        dtype,
        reference.get("packed") or (None if dtype in PLAIN_QUANTS else dtype),
        str(reference.get("model_id")),
        tuple(columns["tokens"]),
        text.get("tokens_hash"),
        math.fsum(columns["reference_nll"]) / sum(columns["tokens"]),
    )


def unlike(a: KlScale, b: KlScale) -> str | None:
    """What keeps two scales from being compared, such as ``the texts``; None if nothing does.

    References count as the same if they predict the texts equally well, as the same weights do in two engines. Even
    one file may become two references: transformers unpacks GGUF files to bf16.
    """
    if a.definition != b.definition:
        return "the definition of the divergence"
    if a.text != b.text:
        return "the texts"
    if a.window != b.window:
        return "the window"
    if a.tokens != b.tokens or (a.tokens_hash and b.tokens_hash and a.tokens_hash != b.tokens_hash):
        return "the tokens of the texts"
    if (a.dtype, a.packed) != (b.dtype, b.packed) or abs(a.reference_nll - b.reference_nll) > SAME_REFERENCE:
        return "the reference"
    return None


def apart(scales: Iterable[KlScale]) -> list[str]:
    """All that keeps some of these scales from being compared with others; empty if they are one."""
    kinds: list[KlScale] = []
    for scale in scales:
        if all(unlike(scale, other) is not None for other in kinds):
            kinds.append(scale)
    found = (unlike(one, other) for number, one in enumerate(kinds) for other in kinds[:number])
    return list(dict.fromkeys(what for what in found if what is not None))


def quick_kl(stored: Mapping[str, Any]) -> float:
    """The mean KL divergence of a row with a ``scale``, without its interval, which takes much longer."""
    columns = stored["blocks"]
    return math.fsum(columns["kl"]) / int(sum(columns["tokens"]))


def blocks(stored: Mapping[str, Any]) -> list[Block]:
    """The blocks of a row's ``quality``; none if it only says why it is unknown."""
    columns = stored.get("blocks") or {}
    return (
        [Block(*values) for values in zip(*(columns[name] for name in (*TEXTS, *SUMS)), strict=True)]
        if columns
        else []
    )


def stored(row: Any) -> Any:
    """What a row stores, from the ``quality`` of a public row."""
    return {name: value for name, value in row.items() if name not in DERIVED} if isinstance(row, dict) else row


def reference_dtype(stored: Mapping[str, Any] | None) -> str | None:
    """The dtype of the reference of a row's ``quality``; None if it has no figures."""
    return (stored.get("reference") or {}).get("dtype") if stored and stored.get("blocks") else None


def columns(found: Sequence[Block]) -> dict[str, list[Any]]:
    """Blocks as a row stores them: a list for each field."""
    return {name: [getattr(block, name) for block in found] for name in (*TEXTS, *SUMS)}


def mean_kl(found: Sequence[Block]) -> Estimate:
    """The mean KL divergence in nats."""
    return _estimate(found, lambda block: block.kl)


def kl_ratio(a: Sequence[Block], b: Sequence[Block]) -> Estimate | None:
    """The KL divergence of ``b`` ÷ that of ``a``, over the same blocks; None if one of them is 0.

    A block is drawn with both of its sums, because a text on which one model loses much is difficult for the other,
    too. The interval of the ratio is therefore much narrower than those of the two divergences.
    """
    strata: dict[str, list[tuple[float, float]]] = {}
    for one, other in zip(a, b, strict=True):
        strata.setdefault(one.kind, []).append((one.kl, other.kl))
    every = [pair for pairs in strata.values() for pair in pairs]
    if not (sum(one for one, _ in every) > 0 and sum(other for _, other in every) > 0):
        return None
    if min(map(min, every)) <= 0:  # a draw of such blocks alone has no ratio
        return Estimate(_ratio(every), None, None)
    return _of_strata(list(strata.values()), logarithmic=True)


def top1(found: Sequence[Block]) -> Estimate:
    """The share of tokens with the reference's top token; its interval is that of the other tokens."""
    other = _estimate(found, lambda block: block.tokens - block.same)
    if not other.value and any(block.kl > 0 for block in found):  # no disagreement was seen, which has no spread
        return Estimate(1.0, None, None)
    low, high = (None if end is None else 1 - end for end in (other.high, other.low))
    return Estimate(1 - other.value, None if low is None else max(0.0, low), high)


def perplexity(found: Sequence[Block]) -> Estimate:
    """The perplexity of the text."""
    logs = _estimate(found, lambda block: block.nll, logarithmic=False)
    return Estimate(*(None if each is None else math.exp(each) for each in (logs.value, logs.low, logs.high)))  # type: ignore[arg-type]


def content(stored: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The ``quality`` of a public row: what is stored, and the figures by kind of text and for all of them."""
    if stored is None or not (found := blocks(stored)):
        return None if stored is None else dict(stored)
    kinds = dict.fromkeys(block.kind for block in found)
    tails = stored.get("tails") or {}
    by_kind = {kind: _figures([b for b in found if b.kind == kind], tails.get(kind) or {}) for kind in kinds}
    return {**stored, **_figures(found, tails.get(ALL) or {}), "kinds": by_kind}


def _figures(found: Sequence[Block], tails: Mapping[str, Any]) -> dict[str, Any]:
    count = sum(block.tokens for block in found)
    reference = math.exp(math.fsum(block.reference_nll for block in found) / count)
    return {
        "tokens": count,
        "kl": {**_row(mean_kl(found)), "p99": tails.get("p99"), "p999": tails.get("p999")},
        "top1": _row(top1(found)),
        "ppl": {**_row(perplexity(found)), "reference": _rounded(reference)},
    }


def _row(estimate: Estimate) -> dict[str, Any]:
    return {name: _rounded(getattr(estimate, name)) for name in ("value", "low", "high")}


def _rounded(value: float | None) -> float | None:
    """Without the last digits, in which ``exp`` and ``log`` differ between machines."""
    return None if value is None else float(f"{value:.9g}")


def _estimate(found: Sequence[Block], of: Callable[[Block], float], logarithmic: bool = True) -> Estimate:
    """The mean of a sum over tokens, with its interval on a logarithmic scale or on its own."""
    strata: dict[str, list[tuple[float, float]]] = {}
    for block in found:
        strata.setdefault(block.kind, []).append((block.tokens, of(block)))
    return _of_strata(list(strata.values()), logarithmic)


def _of_strata(strata: Sequence[Sequence[tuple[float, float]]], logarithmic: bool) -> Estimate:
    """The sum of the second of each pair ÷ that of the first, with its interval."""
    mean = _ratio([pair for pairs in strata for pair in pairs])
    if any(len(pairs) < 2 for pairs in strata):
        return Estimate(mean, None, None)
    freedom = _freedom(strata, mean)
    if freedom is None:
        return Estimate(mean, mean, mean)
    chance = random.Random(SEED)
    drawn = [_ratio(_drawn(strata, chance)) for _ in range(REPLICATES)]
    reach = quantile(0.975, round(freedom, 1))
    if logarithmic and min(drawn) > 0:
        reach *= statistics.stdev(map(math.log, drawn))
        return Estimate(mean, mean * math.exp(-reach), mean * math.exp(reach))
    reach *= statistics.stdev(drawn)
    return Estimate(mean, max(0.0, mean - reach), mean + reach)


def _drawn(strata: Sequence[Sequence[tuple[float, float]]], chance: random.Random) -> list[tuple[float, float]]:
    """One less of each stratum, with replacement, and with the stratum's own weight."""
    found = []
    for pairs in strata:
        weight = len(pairs) / (len(pairs) - 1)
        found += [(weight * n, weight * value) for n, value in chance.choices(pairs, k=len(pairs) - 1)]
    return found


def _ratio(pairs: Sequence[tuple[float, float]]) -> float:
    return math.fsum(value for _, value in pairs) / math.fsum(n for n, _ in pairs)


def _freedom(strata: Sequence[Sequence[tuple[float, float]]], mean: float) -> float | None:
    """Satterthwaite's degrees of freedom for the linearized variance of the mean; None if it does not vary."""
    parts = []
    for pairs in strata:
        rests = [value - mean * n for n, value in pairs]
        parts.append((len(pairs) * statistics.variance(rests), len(pairs) - 1))
    total = math.fsum(part for part, _ in parts)
    return total**2 / math.fsum(part**2 / freedom for part, freedom in parts) if total > 0 else None
