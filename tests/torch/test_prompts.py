"""The token counts that scenarios state, against those of real tokenizers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from fakes import checkpoints
from tokenizers import Tokenizer

from profiler.run import grid
from profiler.run.documents import document
from profiler.run.prompts import prompts

WITHIN = 0.15
DOCUMENT_WITHIN = 0.10
WITH_PROMPTS = [name for name in grid.names() if grid.load(name).prompts]
Count = Callable[[str], int]


def counter(gguf: Path) -> Count:
    tokenizer = Tokenizer.from_file(str(checkpoints.tokenizer(gguf)))
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)


@pytest.fixture(scope="module")
def gemma(gemma3_270m_gguf: Path) -> Count:
    """A vocabulary of 262,144 for many languages."""
    return counter(gemma3_270m_gguf)


@pytest.fixture(scope="module")
def smollm(smollm2_gguf: Path) -> Count:
    """A vocabulary of 49,152 for English and code."""
    return counter(smollm2_gguf)


def wrong(name: str, count: Count, languages: tuple[str, ...] = ()) -> list[str]:
    """Prompts that are too far from every context of the scenario, and contexts without a prompt."""
    stated = grid.load(name).contexts
    tokens = {p.name: count(p.text) for p in prompts(name) if not languages or p.language in languages}
    near = {each: min(stated, key=lambda context: abs(context - size)) for each, size in tokens.items()}
    found = [f"{each}: {tokens[each]}" for each in tokens if abs(tokens[each] / near[each] - 1) > WITHIN]
    return found + [str(context) for context in stated if not languages and context not in near.values()]


@pytest.mark.parametrize("name", WITH_PROMPTS)
def test_contexts_are_the_tokens_of_the_prompts_in_gemma(gemma: Count, name: str) -> None:
    assert wrong(name, gemma) == []


@pytest.mark.parametrize("name", WITH_PROMPTS)
def test_contexts_are_the_tokens_of_the_prompts_in_smollm2(smollm: Count, name: str) -> None:
    """In English only: its vocabulary has almost nothing of other scripts, see the next test."""
    assert wrong(name, smollm, ("en",) if name == "multilingual" else ()) == []


def test_a_vocabulary_without_a_script_takes_twice_as_many_tokens(gemma: Count, smollm: Count) -> None:
    """So tokens per second of two models do not compare across languages; characters per second do."""
    ratios = {prompt.language: smollm(prompt.text) / gemma(prompt.text) for prompt in prompts("multilingual")}
    assert ratios.pop("en") < 1.05
    assert all(ratio > 2 for ratio in ratios.values())


@pytest.mark.parametrize("tokens", [2048, 8192, 28 * 1024])
def test_a_document_has_the_requested_number_of_tokens(gemma: Count, smollm: Count, tokens: int) -> None:
    for seed in range(3):
        text = document(seed, tokens).text
        for count in (gemma, smollm):
            assert abs(count(text) / tokens - 1) < DOCUMENT_WITHIN


@pytest.mark.parametrize("name", ["summarize-32k", "long-context-128k"])
def test_prompt_and_answer_fit_into_the_window_that_the_name_promises(gemma: Count, smollm: Count, name: str) -> None:
    window = int(name.split("-")[-1].removesuffix("k")) * 1024
    (prompt,) = prompts(name)
    for count in (gemma, smollm):
        assert count(prompt.text) + prompt.answer_tokens < window
