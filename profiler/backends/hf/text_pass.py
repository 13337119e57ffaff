"""Teacher-forced passes over windows of text: what a reference keeps, and how far another model is from it.

**Bounded memory.** The logits of 8,192 positions over a vocabulary of 262,144 would take 8.6 GB. A window is read in
chunks of ``CHUNK`` tokens after what the cache holds, as a prefill is; only the hidden states of a chunk are kept,
and the output head turns ``LOGITS_BYTES`` of them at a time into logits, from which the figures of these positions
follow (``profiler/quality/definition.py``). The head is the model's own: its class computes the logits with the
hidden states in place of its decoder's, so that scaling and soft capping are included, whatever the family.

Reference and measured model share every operation here, and their sums have the same order, so a model compared with
itself has a divergence of 0 to the last bit if its logits are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel
from transformers.utils import ModelOutput

from profiler.backends.base import Beat
from profiler.backends.hf import cache as caches
from profiler.decode_path import EAGER
from profiler.errors import ProfileError
from profiler.kernels.runner import StaticRunner
from profiler.kernels.versions import with_cache
from profiler.quality.definition import MIN_REST, NO_REST, SAMPLES, TOP
from profiler.quality.references import INTEGERS, ReferenceArrays
from profiler.quality.texts import DECODED_TOKENS, TextWindow

CHUNK = 512  # tokens of a pass, whatever --ubatch: sums in another order would not be equal to the last bit
_NOTHING = object()  # stands for an attribute that is not set
LOGITS_BYTES = 128 << 20  # of logits at a time, counted as fp32
BLOCK = {"cpu": 1 << 19}  # logits of which the exponentials are summed at a time: 2 MiB stay in a core's cache
Rows = Callable[[int, torch.Tensor], None]  # takes the first position and the logits ``[rows, vocabulary]``


@dataclass(frozen=True, slots=True)
class PositionFigures:
    """Figures of consecutive positions, each ``[positions]``."""

    kl: torch.Tensor  # float64, nats
    variance: torch.Tensor  # float64, of ``kl``, from what is kept of the reference
    same: torch.Tensor  # bool: the reference's top token has the largest logit
    nll: torch.Tensor  # float64: −log q of the text's next token
    reference_nll: torch.Tensor  # float64: the same of the reference
    rest: torch.Tensor  # float64: mass of the reference outside its top tokens


def read_window(
    model: PreTrainedModel,
    tokens: Sequence[int],
    prompt: Rows,
    beat: Beat,
    decoded: Rows | None = None,
    path: str = EAGER,
    steps: int | None = None,
    chunk: int | None = None,
) -> tuple[str, str | None]:
    """Read a window as a prompt, and give ``prompt`` the logits at each position.

    With ``decoded``, the last ``steps`` tokens (by default ``DECODED_TOKENS``) are read a second time, by decode
    steps of ``path``, whose logits it gets. A pass has ``chunk`` tokens, by default ``CHUNK``. Returns the path that
    ran, and why it is another one.
    """
    ids = torch.tensor([tokens], device=model.device)
    steps = DECODED_TOKENS if steps is None else steps
    first, kv = max(0, len(tokens) - steps), new_cache(model)
    _read(model, ids[:, :first], kv, prompt, 0, beat, chunk)
    with torch.inference_mode():
        saved = None if decoded is None else caches.save(kv)
        _read(model, ids[:, first:], kv, prompt, first, beat, chunk)
        if decoded is None or saved is None:
            return EAGER, None
        caches.restore(kv, saved)
    runner, reason = _runner(model, kv, ids[:, first : first + 1], path, steps)
    for place in range(first, len(tokens)):
        token = ids[:, place : place + 1]
        decoded(place, _eager_step(model, kv, token) if runner is None else _static_step(runner, token))
        beat("")
    if runner is None:
        return EAGER, reason
    stats = runner.stats()
    return stats.path, stats.reason


@torch.inference_mode()
def _read(
    model: PreTrainedModel,
    ids: torch.Tensor,
    kv: DynamicCache,
    take: Rows,
    at: int,
    beat: Beat,
    chunk: int | None = None,
) -> None:
    """Read ``ids [1, tokens]`` after what ``kv`` holds; ``at``: the position of the first of them."""
    size = chunk or CHUNK
    for start in range(0, ids.shape[1], size):
        output = decoder_of(model)(input_ids=ids[:, start : start + size], **with_cache(kv))
        _through_head(model, output, at + start, take)
        beat("")


def decoder_of(model: PreTrainedModel) -> Any:
    """The part of a model that gives hidden states. Called by the whole model, Gemma 4's gives only those whose
    logits are asked for.
    """
    found = model.get_decoder()
    return model.model if found is model else found  # Llama 4 names itself


def _through_head(model: PreTrainedModel, output: ModelOutput, at: int, take: Rows) -> None:
    """Give ``take`` the logits of hidden states, ``LOGITS_BYTES`` at a time."""
    rows = max(1, LOGITS_BYTES // (4 * model.config.get_text_config().vocab_size))
    own, hidden = vars(decoder_of(model)), output.last_hidden_state
    before = own.get("forward", _NOTHING)
    try:
        for start in range(0, hidden.shape[1], rows):
            part = hidden[:, start : start + rows]
            own["forward"] = partial(_instead, type(output)(last_hidden_state=part))
            take(at + start, model(inputs_embeds=part, use_cache=False).logits[0])
    finally:
        if before is _NOTHING:
            del own["forward"]
        else:
            own["forward"] = before


def _instead(output: ModelOutput, *args: Any, **named: Any) -> ModelOutput:
    """Stands for the decoder: returns ``output``, whatever it is called with."""
    return output


def log_total(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The largest logit of each row ``[rows, 1]``, and log Σ exp(logit − largest) in float64 ``[rows, 1]``.

    The sum is over blocks of the vocabulary: a copy of all logits would take longer to allocate than to compute.
    """
    most = logits.amax(dim=-1, keepdim=True).float()
    width = max(1, BLOCK.get(logits.device.type, logits.numel()) // len(logits))
    parts = [
        (part.float() - most).exp_().sum(dim=-1, keepdim=True).double() for part in torch.split(logits, width, dim=1)
    ]
    return most, torch.cat(parts, dim=1).sum(dim=1, keepdim=True).log()


def log_probabilities(
    logits: torch.Tensor, at: torch.Tensor, most: torch.Tensor, total: torch.Tensor
) -> torch.Tensor:
    """Log-probabilities of the tokens ``at [rows, n]``, rounded to float32 as a reference keeps them."""
    return (logits.gather(1, at).double() - most.double() - total).float()


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
        most, total = log_total(logits)
        logits = logits.float()
        ids = logits.topk(min(self._top, logits.shape[1])).indices
        logs = log_probabilities(logits, ids, most, total)
        probabilities = (logits - (most + total.float())).exp_()
        entropy = -(probabilities * (logits - (most + total.float()))).sum(dim=-1).double()
        entropy += (logs.double().exp() * logs.double()).sum(dim=-1)
        sampled = self._drawn(probabilities.scatter_(1, ids, 0.0))
        expected = self._next[at : at + len(logits)].to(logits.device)[:, None]
        part = {
            "ids": ids,
            "logs": logs,
            "rest_entropy": entropy.clamp_(min=0).float(),
            "sampled": sampled,
            "sampled_logs": log_probabilities(logits, sampled, most, total),
            "nll": -log_probabilities(logits, expected, most, total)[:, 0],
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
    most, total = log_total(logits)
    ids = kept["ids"].long()
    log_p, log_q = kept["logs"].double(), log_probabilities(logits, ids, most, total).double()
    kl = (log_p.exp() * (log_p - log_q)).sum(dim=-1)
    rest = 1 - log_p.exp().sum(dim=-1)
    left = (1 - log_q.exp().sum(dim=-1)).clamp_(min=MIN_REST)
    has_rest = rest > NO_REST
    rest = rest.clamp(min=NO_REST)
    log_v = log_probabilities(logits, kept["sampled"].long(), most, total).double() - left.log()[:, None]
    log_r = log_v - (kept["sampled_logs"].double() - rest.log()[:, None])
    terms = log_r.expm1() - log_r
    added = rest * ((rest / left).log() + terms.mean(dim=-1))
    zero = torch.zeros_like(rest)
    return PositionFigures(
        kl=(kl + torch.where(has_rest, added, zero)).clamp_(min=0),  # without a rest, rounding may exceed it
        variance=torch.where(has_rest, rest**2 * terms.var(dim=-1) / terms.shape[1], zero),
        same=logits.gather(1, ids[:, :1])[:, 0] >= most[:, 0],
        nll=-log_probabilities(logits, expected, most, total)[:, 0].double(),
        reference_nll=kept["nll"].double(),
        rest=torch.where(has_rest, rest, zero),
    )


def new_cache(model: PreTrainedModel) -> DynamicCache:
    """An empty cache of transformers' own."""
    return DynamicCache(config=model.config.get_text_config())


def _runner(
    model: PreTrainedModel, kv: DynamicCache, token: torch.Tensor, path: str, steps: int
) -> tuple[StaticRunner | None, str | None]:
    """The runner of a path, which takes over the cache for ``steps`` more tokens, and why there is none; None for
    transformers' own step."""
    if path == EAGER:
        return None, None
    from profiler.backends.hf.session import runner_for  # which imports the module that uses this one

    runner = runner_for(model, path)
    try:
        runner.adopt(kv, token, steps)
    except ProfileError as error:
        return None, error.message
    return runner, None


@torch.inference_mode()
def _eager_step(model: PreTrainedModel, kv: DynamicCache, token: torch.Tensor) -> torch.Tensor:
    """The logits ``[1, vocabulary]`` after ``token [1, 1]``, by transformers as shipped."""
    logits: torch.Tensor = model(input_ids=token, **with_cache(kv), logits_to_keep=1).logits
    return logits[:, -1]


@torch.inference_mode()
def _static_step(runner: StaticRunner, token: torch.Tensor) -> torch.Tensor:
    """The logits ``[1, vocabulary]`` after ``token [1, 1]``, by our own step, which would have chosen one itself."""
    runner.state.token.copy_(token)
    with runner.patches:
        return runner.advance()


def _scored(at: int, logits: torch.Tensor, first: int, end: int) -> tuple[int, torch.Tensor]:
    """The rows at positions ``first`` to ``end`` − 1, with the position of the first of them."""
    skipped = max(0, first - at)
    kept = logits[skipped : max(skipped, end - at)]
    return at + skipped, kept


def _tensor(kept: ReferenceArrays, name: str) -> torch.Tensor:
    dtype = torch.int32 if name in INTEGERS else torch.float32
    return torch.frombuffer(bytearray(kept.arrays[name]), dtype=dtype).view(kept.shape(name))
