"""Teacher-forced passes of a loaded model over windows of text, which give the logits at each position.

**Bounded memory.** The logits of 8,192 positions over a vocabulary of 262,144 would take 8.6 GB. A window is read in
chunks of ``CHUNK`` tokens after what the cache holds, as a prefill is; only the hidden states of a chunk are kept,
and the output head turns as many of them at a time into logits as take ``HEAD_BYTES``. The figures of their positions
follow from ``LOGITS_BYTES`` of logits at a time (``profiler/quality/definition.py``). The head is the model's own:
its class computes the logits with the hidden states in place of its decoder's, so that scaling and soft capping are
included, whatever the family.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel
from transformers.utils import ModelOutput

from profiler.backends.base import Beat
from profiler.backends.hf import cache as caches
from profiler.backends.hf.comparison import LOGITS_BYTES, Rows
from profiler.decode_path import EAGER
from profiler.errors import ProfileError
from profiler.kernels.runner import StaticRunner
from profiler.kernels.versions import with_cache
from profiler.quality.texts import DECODED_TOKENS

CHUNK = 512  # tokens of a pass, whatever --ubatch: sums in another order would not be equal to the last bit
HEAD_BYTES = 512 << 20  # of logits that the head computes at a time, counted as fp32: fewer rows take it longer
_NOTHING = object()  # stands for an attribute that is not set


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
    row_bytes = 4 * model.config.get_text_config().vocab_size
    rows, taken = (max(1, nbytes // row_bytes) for nbytes in (HEAD_BYTES, LOGITS_BYTES))
    own, hidden = vars(decoder_of(model)), output.last_hidden_state
    before = own.get("forward", _NOTHING)
    try:
        for start in range(0, hidden.shape[1], rows):
            part = hidden[:, start : start + rows]
            own["forward"] = partial(_instead, type(output)(last_hidden_state=part))
            logits = model(inputs_embeds=part, use_cache=False).logits[0]
            for number, some in enumerate(logits.split(taken)):
                take(at + start + number * taken, some)
            del logits, some  # before the head computes more of them
    finally:
        if before is _NOTHING:
            del own["forward"]
        else:
            own["forward"] = before


def _instead(output: ModelOutput, *args: Any, **named: Any) -> ModelOutput:
    """Stands for the decoder: returns ``output``, whatever it is called with."""
    return output


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
