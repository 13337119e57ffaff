"""The checkpoints that other tests stand on are what they claim to be."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from fakes import tiny
from transformers import AutoModelForCausalLM


def test_tiny_checkpoints_are_the_same_on_every_run(tmp_path: Path) -> None:
    first, second = (tiny.write("qwen3.5-moe", tmp_path / name) / "model.safetensors" for name in ("a", "b"))
    assert first.read_bytes() == second.read_bytes()


def test_a_tiny_checkpoint_loads_and_depends_on_all_of_its_context(any_tiny_model: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(any_tiny_model).eval()
    ids = torch.randint(3, tiny.VOCAB, (1, 24), generator=torch.Generator().manual_seed(0))
    other = ids.clone()
    other[0, 0] = 3 if ids[0, 0] != 3 else 4
    with torch.inference_mode():
        one, two = model(ids).logits[0, -1], model(other).logits[0, -1]
    assert torch.isfinite(one).all()
    assert not torch.equal(one, two)


# Token ids of the published vocabularies: what starts a text, a comma, the digits 1 to 5.
COUNTS = {
    "gemma3_270m": ([2], 236764, [236770, 236778, 236800, 236812, 236810]),
    "smollm2": ([1], 28, [33, 34, 35, 36, 37]),
}


@pytest.mark.parametrize("name", COUNTS)
def test_a_real_checkpoint_continues_a_count(name: str, request: pytest.FixtureRequest) -> None:
    """``1,2,3,4,`` goes on with 5: weights in the wrong places would not know."""
    start, comma, digits = COUNTS[name]
    ids = torch.tensor([start + [token for digit in digits[:4] for token in (digit, comma)]])
    model = AutoModelForCausalLM.from_pretrained(request.getfixturevalue(name), dtype=torch.float32).eval()
    with torch.inference_mode():
        assert int(model(ids).logits[0, -1].argmax()) == digits[4]
