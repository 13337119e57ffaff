"""Runners execute decode steps. All runners take the same prompt and return the same tokens.

    runner.prefill(ids); runner.prepare(max_new); runner.enqueue(k); tokens = runner.read()

``ids`` are ``[batch, tokens]``. ``prepare`` makes room for ``max_new`` decode steps, ``enqueue`` runs some of them
without waiting for the device, and ``read`` waits and returns the tokens of each sequence, the first of which is the
one that the prefill chose. Static and graph runners share the forward pass in ``decode_step``.
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
from .versions import with_cache


def decode_step(model: PreTrainedModel, state: DecodeState) -> torch.Tensor:
    """Feed ``state.token`` and advance the state to the most likely next token; returns logits ``[batch,
    vocabulary]``.

    The model is transformers' own. Position and masks are passed as tensors: the model would derive them from the
    cache as Python numbers, which a captured graph would repeat forever.
    """
    logits: torch.Tensor = model(
        input_ids=state.token,
        position_ids=state.position[None].expand(state.token.shape[0], 1),
        attention_mask=state.masks(),
        **with_cache(state.cache),
    ).logits[:, -1]
    state.advance(logits.argmax(dim=-1, keepdim=True))
    return logits


@dataclass(frozen=True, slots=True)
class RunnerStats:
    """How a runner was prepared. ``None`` means unknown or not applicable."""

    path: str  # eager | static | graph: the path that actually runs
    reason: str | None = None  # why it is not the requested path
    nodes_per_token: int | None = None  # kernels of one captured step
    graphs: int = 0
    prepare_s: float = 0.0  # warm-up, capture or compilation; never part of a measurement
    pool_bytes: int | None = None  # device memory that the graphs keep
    kernels: str | None = None  # what computes matrix–vector products, or why plain torch does
    fault: bool = False  # whether the machine is the reason for the fallback, so that it may not recur


def prefill(
    model: PreTrainedModel, ids: torch.Tensor, attention_mask: torch.Tensor | None = None
) -> tuple[DynamicCache, torch.Tensor]:
    """Run a prompt ``ids [batch, tokens]`` in chunks, unpatched; returns the cache and the last logits ``[batch,
    vocabulary]``.

    Raises ProfileError for padded prompts: all sequences share one position, so shorter ones would be wrong.
    """
    if attention_mask is not None and not bool(attention_mask.all()):
        raise ProfileError("prompts of different lengths in one batch are not supported",
                           "give each length its own batch")  # fmt: skip
    cache = DynamicCache(config=model.config.get_text_config())
    for start in range(0, ids.shape[1], PREFILL_CHUNK):
        chunk = ids[:, start : start + PREFILL_CHUNK]
        logits = model(input_ids=chunk, **with_cache(cache), logits_to_keep=1).logits
    return cache, logits[:, -1]


def cut(row: Sequence[int], eos: frozenset[int]) -> list[int]:
    """Tokens up to and including the first end-of-sequence token."""
    for index, token in enumerate(row):
        if token in eos:
            return list(row[: index + 1])
    return list(row)


def describe_kernels(model: PreTrainedModel) -> str | None:
    """What computes the matrix–vector products of a decode step; ``None`` on a GPU with our kernels."""
    missing = fallback(model)
    if missing is not None:
        return f"plain torch: {missing[0]}"
    return f"C++ ({native.load()})" if model.device.type == "cpu" else None


def falls_back(model: PreTrainedModel) -> bool:
    """Whether the machine, and not the model, is the reason that a step runs on plain torch."""
    missing = fallback(model)
    return missing is not None and missing[1]


class EagerRunner:
    """transformers as shipped, with its growing cache: the reference for the other runners."""

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
                output = self.model(input_ids=self.tokens[-1], **with_cache(self.cache))
                self.logits = output.logits[:, -1]
                self.tokens.append(self.logits.argmax(dim=-1, keepdim=True))

    def read(self) -> list[list[int]]:
        return [cut(row, self.eos) for row in torch.cat(self.tokens, dim=1).tolist()]

    def stats(self) -> RunnerStats:
        return RunnerStats("eager")


class StaticRunner:
    """Runs the static-shape step from Python."""

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
        """Take over a filled cache, and the token ``[batch, 1]`` that was chosen after it."""
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
        """One step, with the patches active; returns its logits ``[batch, vocabulary]``."""
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
