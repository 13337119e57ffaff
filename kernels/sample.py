"""Choosing the next token inside the step, without a word to the host.

``torch.multinomial`` synchronises, so sampling is the Gumbel trick (Gumbel 1954; Maddison et al., arXiv 1411.0030):
``argmax(logits / temperature + g)`` with ``g = -log(-log(u))`` draws from the softmax. The noise is a table made
before the first step and indexed by the write position, so eager, static and replayed steps choose alike.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from profiler.errors import ProfileError

MAX_NOISE = 1 << 26  # elements, 256 MiB: more is asked for by mistake, since top-k 50 needs 50 a token


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to choose: greedy when ``temperature`` is 0; otherwise among the ``top_k`` likeliest (0: all)."""

    temperature: float = 0.0
    top_k: int = 50
    seed: int = 0


GREEDY = Sampling()


def noise_table(sampling: Sampling, rows: int, batch: int, vocabulary: int, device: torch.device) -> torch.Tensor:
    """Gumbel noise ``[rows, batch, choices]``; drawn on the CPU, so that every device gets the same.

    Raises ProfileError when it would be larger than any sensible request.
    """
    if sampling.temperature == 0:
        return torch.zeros((1, 1, 1), device=device)
    choices = min(sampling.top_k or vocabulary, vocabulary)
    if rows * batch * choices > MAX_NOISE:
        raise ProfileError(f"sampling among {choices} tokens needs a noise table of {rows} × {batch} × {choices}",
                           "set top_k, or decode fewer tokens at a time")  # fmt: skip
    generator = torch.Generator().manual_seed(sampling.seed)
    uniform = torch.rand((rows, batch, choices), generator=generator).clamp_(1e-20, 1 - 1e-7)
    return (-torch.log(-torch.log(uniform))).to(device)


def choose(logits: torch.Tensor, sampling: Sampling, noise: torch.Tensor, write: torch.Tensor) -> torch.Tensor:
    """The next token ``[batch, 1]`` from ``logits [batch, vocabulary]``, with the noise of position ``write [1]``."""
    if sampling.temperature == 0:
        return logits.argmax(dim=-1, keepdim=True)
    values, tokens = logits.float().topk(noise.shape[-1], dim=-1)
    choice = (values / sampling.temperature + noise.index_select(0, write)[0]).argmax(dim=-1, keepdim=True)
    return tokens.gather(-1, choice)
