"""Runners execute decode steps. All of them take the same prompt and return the same tokens.

    runner.prefill(ids); runner.prepare(max_new); runner.enqueue(k); tokens = runner.read()

``decode_step`` is the only forward pass of a single token there is, whichever runner calls it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import Cache

from profiler.case import PREFILL_CHUNK
from profiler.errors import ProfileError

from . import native
from .patches import Patches, fallback, skips_empty_slots
from .state import DecodeState


def decode_step(model: PreTrainedModel, state: DecodeState) -> torch.Tensor:
    """Feed ``state.token`` and move the state on to the likeliest next token; returns logits ``[batch, vocabulary]``.

    The model is transformers' own, unmodified. It is given the position and the masks as tensors, since what it would
    derive from the cache are Python numbers, which a captured graph repeats for ever.
    """
    logits: torch.Tensor = model(
        input_ids=state.token,
        position_ids=state.position[None].expand(state.token.shape[0], 1),
        attention_mask=state.masks(),
        past_key_values=state.cache,
        use_cache=True,
    ).logits[:, -1]
    state.advance(logits.argmax(dim=-1, keepdim=True))
    return logits


@dataclass(frozen=True, slots=True)
class RunnerStats:
    """What a runner did to get ready. ``None``: does not apply, or cannot be known."""

    path: str  # eager | static | graph: what really runs
    reason: str | None = None  # why not the path that was asked for
    nodes_per_token: int | None = None  # kernels of one captured step
    graphs: int = 0
    prepare_s: float = 0.0  # warm-up, capture or compilation: never part of a measurement
    pool_bytes: int | None = None  # device memory that the graphs keep
    kernels: str | None = None  # what computes matrix–vector products, or why plain torch does
    fault: bool = False  # whether it fell back because of this machine: next time it may not


def prefill(
    model: PreTrainedModel, ids: torch.Tensor, attention_mask: torch.Tensor | None = None
) -> tuple[DynamicCache, torch.Tensor]:
    """Run a prompt as transformers ships it, in chunks; gives the cache and the last logits ``[batch, vocabulary]``.

    Raises ProfileError for padded prompts: sequences share one position, so shorter ones would be silently wrong.
    """
    if attention_mask is not None and not bool(attention_mask.all()):
        raise ProfileError("prompts of different lengths in one batch are not supported",
                           "give each length its own batch")  # fmt: skip
    cache = DynamicCache(config=model.config.get_text_config())
    for start in range(0, ids.shape[1], PREFILL_CHUNK):
        chunk = ids[:, start : start + PREFILL_CHUNK]
        logits = model(input_ids=chunk, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
    return cache, logits[:, -1]


def cut(row: Sequence[int], eos: frozenset[int]) -> list[int]:
    """Tokens up to and including the first end-of-sequence token."""
    for index, token in enumerate(row):
        if token in eos:
            return list(row[: index + 1])
    return list(row)


def describe_kernels(model: PreTrainedModel) -> str | None:
    """What computes the matrix–vector products of a decode step: on a GPU only told where our kernels are missing."""
    missing = fallback(model)
    if missing is not None:
        return f"plain torch: {missing[0]}"
    return f"C++ ({native.load()})" if model.device.type == "cpu" else None


def falls_back(model: PreTrainedModel) -> bool:
    """Whether this machine, and not the model, is why a step runs on plain torch."""
    missing = fallback(model)
    return missing is not None and missing[1]


class EagerRunner:
    """transformers as shipped, with its growing cache: what the others are compared with."""

    def __init__(self, model: PreTrainedModel, eos: Sequence[int] = ()) -> None:
        self.model, self.eos = model, frozenset(eos)
        self.cache: Cache | None = None
        self.logits: torch.Tensor | None = None
        self.tokens: list[torch.Tensor] = []

    def prefill(self, ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> None:
        with torch.inference_mode():
            self.cache, self.logits = prefill(self.model, ids, attention_mask)

    def prepare(self, max_new: int) -> None:
        assert self.logits is not None, "prefill comes first"
        self.tokens = [self.logits.argmax(dim=-1, keepdim=True)]

    def enqueue(self, steps: int) -> None:
        with torch.inference_mode():
            for _ in range(steps):
                output = self.model(input_ids=self.tokens[-1], past_key_values=self.cache, use_cache=True)
                self.logits = output.logits[:, -1]
                self.tokens.append(self.logits.argmax(dim=-1, keepdim=True))

    def read(self) -> list[list[int]]:
        return [cut(row, self.eos) for row in torch.cat(self.tokens, dim=1).tolist()]

    def stats(self) -> RunnerStats:
        return RunnerStats("eager")


class StaticRunner:
    """The static-shape step, called from Python."""

    path = "static"

    def __init__(self, model: PreTrainedModel, eos: Sequence[int] = ()) -> None:
        self.model, self.eos = model, frozenset(eos)
        self.prompt: tuple[Any, torch.Tensor] | None = None
        self.state: DecodeState
        self.patches: Patches

    def prefill(self, ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> None:
        with torch.inference_mode():
            self.prompt = prefill(self.model, ids, attention_mask)

    def prepare(self, max_new: int) -> None:
        assert self.prompt is not None, "prefill comes first"
        (cache, logits), self.prompt = self.prompt, None
        self.adopt(cache, logits.argmax(dim=-1, keepdim=True), max_new)

    def adopt(self, cache: Cache, token: torch.Tensor, max_new: int) -> None:
        """Take over a cache that was filled elsewhere, and the token ``[batch, 1]`` that was chosen after it."""
        with torch.inference_mode():
            self.state = DecodeState(self.model, cache, token, max_new)
        self.patches = Patches(self.model)
        self.state.exact = skips_empty_slots(self.model, self.state.cache.layers)

    def enqueue(self, steps: int) -> None:
        with self.patches:
            for _ in range(steps):
                self.advance()

    @torch.inference_mode()
    def advance(self) -> torch.Tensor:
        """One step, inside ``substitutes``; gives its logits ``[batch, vocabulary]``."""
        self.state.set_bucket(self.state.bucket)
        self.state.claim(1)
        return self._run()

    def _run(self) -> torch.Tensor:
        return decode_step(self.model, self.state)

    def read(self) -> list[list[int]]:
        done = self.state.length - self.state.context + 1
        return [cut(row, self.eos) for row in self.state.out[:, :done].tolist()]

    def stats(self) -> RunnerStats:
        return RunnerStats(self.path, kernels=describe_kernels(self.model), fault=falls_back(self.model))
