"""What a reference keeps of a window of text, how far another model's logits are from it, and what a row stores.

The definition is in ``profiler/quality/definition.py``. This module imports torch, but not transformers: logits may
come from any engine. Reference and measured model share every operation here, and their sums have the same order, so
a model compared with itself has a divergence of 0 to the last bit if its logits are the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any, NamedTuple

import torch

from profiler.quality.definition import ERRORS, MIN_REST, NO_REST, SAMPLES, TOP
from profiler.quality.references import INTEGERS, ReferenceArrays
from profiler.quality.texts import DECODED_TOKENS, TextWindow
from profiler.results.quality import ALL, BLOCK, Block, columns
from profiler.results.stats import percentile

LOGITS_BYTES = 128 << 20  # of logits that are compared at a time, counted as fp32
# Logits of which the exponentials are summed at a time: 1 MiB stays in the cores' caches. A GPU gets few launches.
SUM_BLOCK, OTHER_SUM_BLOCK = {"cpu": 1 << 18}, 1 << 22
LEAST = -1e30  # largest logit of a block whose tokens are all impossible (−∞), so that differences stay numbers
Rows = Callable[[int, torch.Tensor], None]  # takes the first position and the logits ``[rows, vocabulary]``


@dataclass(frozen=True, slots=True)
class PositionFigures:
    """Figures of consecutive positions, each ``[positions]``."""

    kl: torch.Tensor  # float64, nats
    variance: torch.Tensor  # float64, of ``kl``, from what is kept of the reference
    same: torch.Tensor  # bool: greedy decoding would choose the same token
    nll: torch.Tensor  # float64: −log q of the text's next token
    reference_nll: torch.Tensor  # float64: the same of the reference
    rest: torch.Tensor  # float64: mass of the reference outside its top tokens

    @property
    def finite(self) -> bool:
        """Whether the model's logits were numbers."""
        return bool(torch.isfinite(self.kl).all() and torch.isfinite(self.nll).all())


class Summed(NamedTuple):
    """What one pass over rows of logits gives, each ``[rows, 1]``."""

    most: torch.Tensor  # float32: the largest logit
    best: torch.Tensor  # int64: the first token that has it
    log_total: torch.Tensor  # float64: log Σ exp(logit − most)


def summed(logits: torch.Tensor) -> Summed:
    """The largest of ``logits [rows, vocabulary]``, and the logarithm of their sum.

    The sum is over blocks of the vocabulary, each relative to its own largest logit, so that logits are read once and
    converted to float32 in one buffer, which stays in the cores' caches. New memory would take longer to allocate
    than the sum to compute.
    """
    width = max(1, SUM_BLOCK.get(logits.device.type, OTHER_SUM_BLOCK) // len(logits))
    buffer = torch.empty((len(logits), min(width, logits.shape[1])), dtype=torch.float32, device=logits.device)
    tops, sums = [], []
    for part in torch.split(logits, width, dim=1):
        block = buffer[:, : part.shape[1]].copy_(part)
        tops.append(block.amax(dim=-1, keepdim=True).clamp_(min=LEAST))
        sums.append(block.sub_(tops[-1]).exp_().sum(dim=-1, keepdim=True).double())
    top = torch.cat(tops, dim=1)
    most, block = top.max(dim=1, keepdim=True)
    places = (block * width + torch.arange(width, device=logits.device)).clamp_(max=logits.shape[1] - 1)
    best = places.gather(1, logits.gather(1, places).argmax(dim=1, keepdim=True))
    total = (torch.cat(sums, dim=1) * (top - most).double().exp()).sum(dim=1, keepdim=True)
    return Summed(most, best, total.log())


def log_probabilities(logits: torch.Tensor, at: torch.Tensor, sums: Summed) -> torch.Tensor:
    """Log-probabilities of the tokens ``at [rows, n]``, rounded to float32 as a reference keeps them."""
    return (logits.gather(1, at).double() - sums.most.double() - sums.log_total).float()


class Keeper:
    """Collects what is kept of a reference over one window; it is called with rows of logits, as ``Rows``."""

    def __init__(self, window: TextWindow, top: int = TOP, samples: int = SAMPLES) -> None:
        self._next = torch.tensor(window.tokens[1:])
        self._first = window.unscored - 1  # the position before the first scored token
        self._top, self._samples = top, samples
        self._random = torch.Generator().manual_seed(sum(window.tokens))
        self._parts: list[dict[str, torch.Tensor]] = []

    def __call__(self, at: int, logits: torch.Tensor) -> None:
        """Keep these rows, but for those that predict no scored token."""
        at, logits = _scored(at, logits, self._first, len(self._next))
        if not len(logits):
            return
        sums = summed(logits)
        logits = logits.float()
        ids = _first(sums.best, logits.topk(min(self._top, logits.shape[1])).indices)
        logs = log_probabilities(logits, ids, sums)
        shift = sums.most + sums.log_total.float()
        probabilities = (logits - shift).exp_()
        entropy = -(probabilities * (logits - shift)).sum(dim=-1).double()
        entropy += (logs.double().exp() * logs.double()).sum(dim=-1)
        sampled = self._drawn(probabilities.scatter_(1, ids, 0.0))
        expected = self._next[at : at + len(logits)].to(logits.device)[:, None]
        part = {
            "ids": ids,
            "logs": logs,
            "rest_entropy": entropy.clamp_(min=0).float(),
            "sampled": sampled,
            "sampled_logs": log_probabilities(logits, sampled, sums),
            "nll": -log_probabilities(logits, expected, sums)[:, 0],
        }
        self._parts.append({name: tensor.cpu() for name, tensor in part.items()})

    def _drawn(self, rest: torch.Tensor) -> torch.Tensor:
        """One token from each of ``samples`` equal parts of the mass of ``rest [rows, vocabulary]``."""
        sums = rest.cumsum(dim=-1)
        chance = torch.rand((len(rest), self._samples), generator=self._random).to(rest.device)
        places = (torch.arange(self._samples, device=rest.device) + chance) / self._samples
        found = torch.searchsorted(sums, places * sums[:, -1:], right=True)
        return found.clamp_(max=rest.shape[1] - 1)

    def arrays(self, made: dict[str, Any]) -> ReferenceArrays:
        """What was kept, as it is stored; ``made`` says what computed it."""
        whole = {name: torch.cat([part[name] for part in self._parts]) for name in self._parts[0]}
        positions, top = whole["ids"].shape
        stored = {
            name: tensor.to(torch.int32 if name in INTEGERS else torch.float32).contiguous().numpy().tobytes()
            for name, tensor in whole.items()
        }
        return ReferenceArrays(positions, top, self._samples, stored, made)


class Scorer:
    """Compares a model with what is kept of its reference over one window; it is called as ``Rows``."""

    def __init__(self, window: TextWindow, kept: ReferenceArrays, device: torch.device) -> None:
        self._next = torch.tensor(window.tokens[1:])
        self._first = window.unscored - 1
        self._kept = {name: _tensor(kept, name).to(device) for name in kept.arrays}
        self._parts: list[PositionFigures] = []

    def __call__(self, at: int, logits: torch.Tensor) -> None:
        """Score these rows, but for those that predict no scored token."""
        at, logits = _scored(at, logits, self._first, len(self._next))
        if len(logits):
            rows = slice(at - self._first, at - self._first + len(logits))
            expected = self._next[at : at + len(logits)].to(logits.device)[:, None]
            found = compared(logits, {name: tensor[rows] for name, tensor in self._kept.items()}, expected)
            self._parts.append(found)

    def figures(self) -> PositionFigures:
        """Figures of all positions that were scored, in the order in which they came, on the host."""
        parts = [[getattr(part, each.name) for part in self._parts] for each in fields(PositionFigures)]
        return PositionFigures(*(torch.cat(part).cpu() for part in parts))


def compared(logits: torch.Tensor, kept: dict[str, torch.Tensor], expected: torch.Tensor) -> PositionFigures:
    """``definition.divergence`` and the other figures for rows of ``logits [rows, vocabulary]``; ``expected [rows,
    1]`` are the text's next tokens."""
    sums = summed(logits)
    ids = kept["ids"].long()
    log_p, log_q = kept["logs"].double(), log_probabilities(logits, ids, sums).double()
    kl = (log_p.exp() * (log_p - log_q)).sum(dim=-1)
    rest = 1 - log_p.exp().sum(dim=-1)
    left = (1 - log_q.exp().sum(dim=-1)).clamp_(min=MIN_REST)
    has_rest = rest > NO_REST
    rest = rest.clamp(min=NO_REST)
    log_v = log_probabilities(logits, kept["sampled"].long(), sums).double() - left.log()[:, None]
    log_r = log_v - (kept["sampled_logs"].double() - rest.log()[:, None])
    terms = log_r.expm1() - log_r
    added = rest * ((rest / left).log() + terms.mean(dim=-1))
    zero = torch.zeros_like(rest)
    return PositionFigures(
        kl=(kl + torch.where(has_rest, added, zero)).clamp_(min=0),  # without a rest, rounding may exceed it
        variance=torch.where(has_rest, rest**2 * terms.var(dim=-1) / terms.shape[1], zero),
        same=ids[:, 0] == sums.best[:, 0],
        nll=-log_probabilities(logits, expected, sums)[:, 0].double(),
        reference_nll=kept["nll"].double(),
        rest=torch.where(has_rest, rest, zero),
    )


def _first(best: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """``ids [rows, n]`` with ``best [rows, 1]``, which is one of them, in the first place: of equal logits, ``topk``
    may put any first.
    """
    place = (ids == best).to(torch.int8).argmax(dim=1, keepdim=True)
    return ids.scatter(1, place, ids[:, :1]).scatter(1, torch.zeros_like(place), best)


def _scored(at: int, logits: torch.Tensor, first: int, end: int) -> tuple[int, torch.Tensor]:
    """The rows at positions ``first`` to ``end`` − 1, with the position of the first of them."""
    skipped = max(0, first - at)
    kept = logits[skipped : max(skipped, end - at)]
    return at + skipped, kept


def _tensor(kept: ReferenceArrays, name: str) -> torch.Tensor:
    dtype = torch.int32 if name in INTEGERS else torch.float32
    return torch.frombuffer(bytearray(kept.arrays[name]), dtype=dtype).view(kept.shape(name))


class DecodeFigures:
    """Figures of the tokens that decode steps of ``path`` have read, beside those of the same tokens as a prompt.

    One window of each kind of text is enough.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._kinds: set[str] = set()
        self._ran = path
        self._reason: str | None = None
        self._sums = dict.fromkeys(("tokens", "kl", "same", "prompt_kl", "prompt_same"), 0.0)

    def lacks(self, window: TextWindow) -> bool:
        """Whether decode steps should read the end of this window: it is the first of its kind, and long enough."""
        return window.kind not in self._kinds and window.scored >= 2 * DECODED_TOKENS

    def add(
        self, kind: str, steps: PositionFigures, prompt: PositionFigures, ran: str, reason: str | None = None
    ) -> None:
        """Count a window, of which ``prompt`` ends with the same positions as ``steps``.

        ``ran`` is the path that ran, and ``reason`` says why if it is another one than was asked for.
        """
        count = len(steps.kl)
        self._kinds.add(kind)
        self._ran, self._reason = ran, reason
        summed = (steps.kl, steps.same, prompt.kl[-count:], prompt.same[-count:])
        for name, value in zip(self._sums, [count, *(float(each.sum()) for each in summed)], strict=True):
            self._sums[name] += value

    def content(self) -> dict[str, Any]:
        """Means over these tokens: by decode steps, and as a prompt."""
        count = self._sums["tokens"]
        if not count:
            return {}
        means = {name: value / count for name, value in self._sums.items() if name != "tokens"}
        content = {"path": self._ran, "tokens": int(count), **means}
        return {"decode": content | ({"reason": self._reason} if self._reason else {})}


def stored(found: Sequence[tuple[TextWindow, PositionFigures]], decode: Mapping[str, Any]) -> dict[str, Any]:
    """What a row stores of scored windows: sums over blocks, percentiles, and the error of what is kept."""
    documents: dict[tuple[str, str], list[PositionFigures]] = {}
    values: dict[str, list[float]] = {}
    for window, figures in found:
        values.setdefault(window.kind, []).extend(figures.kl.tolist())
        documents.setdefault((window.kind, window.document), []).append(figures)
    blocks = [block for (kind, name), parts in documents.items() for block in _blocks(kind, name, parts)]
    count = sum(len(figures.kl) for _, figures in found)
    variance = sum(float(figures.variance.sum()) for _, figures in found)
    values[ALL] = [value for kind in list(values) for value in values[kind]]
    return {
        "blocks": columns(blocks),
        "tails": {kind: _tails(sorted(each)) for kind, each in values.items()},
        "error": ERRORS * math.sqrt(variance) / count,
        "rest": sum(float(figures.rest.sum()) for _, figures in found) / count,
        **decode,
    }


def _blocks(kind: str, document: str, parts: Sequence[PositionFigures]) -> list[Block]:
    """A document in blocks of equal length, about ``BLOCK`` tokens, whatever the length of its windows."""
    summed = [torch.cat([getattr(part, name) for part in parts]) for name in ("kl", "same", "nll", "reference_nll")]
    length = len(summed[0])
    count = max(1, round(length / BLOCK))
    ends = [number * length // count for number in range(count + 1)]
    return [
        Block(kind, document, end - start, float(kl[start:end].sum()), int(same[start:end].sum()),
              float(nll[start:end].sum()), float(reference[start:end].sum()))
        for kl, same, nll, reference in [summed]
        for start, end in pairwise(ends)
    ]  # fmt: skip


def _tails(ordered: Sequence[float]) -> dict[str, float]:
    """The percentiles that so many values determine."""
    known = (("p99", 0.99, 100), ("p999", 0.999, 1000))
    return {name: percentile(ordered, share) for name, share, needed in known if len(ordered) >= needed}
