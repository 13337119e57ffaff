"""``profile endpoint`` on servers that nobody here wrote: their own counts and times against ours."""

from __future__ import annotations

import json
import os
import urllib.request
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from fakes import checkpoints

from profiler.backends.endpoint import DIFFERS
from profiler.backends.endpoint.client import KEY, Client, run
from profiler.quality import tasks
from profiler.run import endpoint
from profiler.run.endpoint import EndpointRequest, EndpointResult
from profiler.run.tasks import scored
from profiler.units import GIB
from servers import launch

Body = dict[str, Any]
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[Body]:
    """The bodies of all requests."""
    bodies: list[Body] = []
    stream = Client.stream

    async def noted(self: Client, path: str, body: Body) -> Any:
        bodies.append(body)
        return await stream(self, path, body)

    monkeypatch.delenv(KEY, raising=False)
    monkeypatch.setattr(Client, "stream", noted)
    return bodies


def measure(url: str, **asked: Any) -> list[EndpointResult]:
    async def main() -> list[EndpointResult]:
        found = endpoint.measure(EndpointRequest(**asked), url, lambda text: None)
        return [result async for result in found]

    return run(main())


def post(url: str, body: Body) -> Any:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


# llama.cpp's server


@pytest.fixture(scope="module", params=["smollm2", "gemma3_270m"])
def llama_server(request: pytest.FixtureRequest) -> Iterator[str]:
    make = {"smollm2": checkpoints.smollm2_gguf, "gemma3_270m": checkpoints.gemma3_270m_gguf}[request.param]
    try:
        launch.llama_server_binary()
    except launch.NotHere as error:
        pytest.skip(str(error))
    with launch.llama_server(checkpoints.available(make)) as url:
        yield url


@pytest.mark.slow
def test_llama_server_counts_the_tokens_that_we_report_and_takes_the_time_that_we_measure(
    llama_server: str, sent: list[Body]
) -> None:
    (found,) = measure(llama_server, contexts=("256",), tokens=48, reps=5)
    assert (found.server.kind, found.outcome) == ("llama-server", "ok")
    for exchange, body in zip(found.exchanges, sent[-5:], strict=True):
        text = post(f"{llama_server}/apply-template", {"messages": body["messages"]})["prompt"]
        words = {"content": text, "add_special": True, "parse_special": True}
        tokens = post(f"{llama_server}/tokenize", words)["tokens"]
        usage, own = exchange.usage, exchange.timings
        assert usage.prompt == len(tokens)
        assert own.prompt_tokens == usage.prompt - (usage.cached or 0)
        assert usage.completion == own.output_tokens == 48
        # One chunk per token, except for tokens that end in the middle of a character.
        assert abs(len(exchange.arrivals) - 48) <= 8
    assert found.summary.server_decode is not None and abs(found.summary.server_decode) < DIFFERS
    assert found.summary.server_prompt is not None and abs(found.summary.server_prompt) < DIFFERS


@pytest.mark.slow
def test_llama_server_caches_the_turns_of_a_conversation_and_no_other(llama_server: str, tmp_path: Path) -> None:
    history = [{"role": "system", "content": "You answer in one sentence. " * 20}]
    for question in ("Where is the key?", "And the lock?", "Why?"):
        history += [{"role": "user", "content": question}, {"role": "assistant", "content": "On the table."}]
    (tmp_path / "history.json").write_text(json.dumps({"messages": history[:-1]}))
    scenario = tmp_path / "mine.toml"
    scenario.write_text(
        'description = "x"\ncontexts = "64"\nbatches = [1]\nsteps = 8\n'
        'prompts = ["history.json"]\nanswer_tokens = 4\n'
    )
    turns = measure(llama_server, scenarios=(str(scenario),), reps=2)
    assert len(turns) == 3
    first = [each.cached_tokens for each in turns[0].exchanges]
    assert all(count is not None and count < 40 for count in first)  # at most what the chat template begins with
    for before, after in pairwise(turns):
        for one, two in zip(before.exchanges, after.exchanges, strict=True):
            assert two.cached_tokens is not None and one.usage.prompt is not None
            assert two.cached_tokens > 0.8 * one.usage.prompt


@pytest.mark.slow
def test_the_memory_of_llama_server_is_that_of_its_process(llama_server: str) -> None:
    (found,) = measure(llama_server, contexts=("64",), tokens=8, reps=1)
    assert found.use.program == "llama-server"
    assert found.model.file_bytes is not None and found.use.host_peak_bytes is not None
    assert found.model.file_bytes < found.use.host_peak_bytes < found.model.file_bytes + 2 * GIB
    assert found.model.quant in ("Q4_1", "Q4_K_M")
    assert "/" not in found.model.shown


@pytest.mark.slow
def test_every_task_ends_in_a_verdict(llama_server: str) -> None:
    """Every checker understands what real models write; the smaller one, a base model, seldom comes to an end."""
    kinds = ("arithmetic", "format")
    (found,) = measure(llama_server, tasks=kinds, tokens=48)
    assert (found.outcome, found.failure) == ("ok", None)
    assert len(found.tasks) == len(tasks.chosen(kinds))
    assert scored(found.tasks).failed == 0 and scored(found.tasks).answered == len(found.tasks)
    cut = [exchange.finish == "length" for exchange in found.exchanges]
    assert cut == [each.outcome == "cut" for each in found.tasks]
    assert all(each.reason for each in found.tasks if each.outcome != "passed")


# transformers serve


@pytest.fixture(scope="module")
def small_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2's tokenizer and shape with two layers of random weights: it starts in seconds, and its text is none."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    folder = tmp_path_factory.mktemp("small")
    tokenizer_file = checkpoints.tokenizer(checkpoints.available(checkpoints.smollm2_gguf))
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(tokenizer_file), bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|im_end|>"
    )
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(folder)
    small = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    given = {key: value for key, value in checkpoints.SMOLLM2_CONFIG.items() if key != "model_type"}
    config = transformers.LlamaConfig(**given | small | {"num_key_value_heads": 2})
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def transformers_serve(small_checkpoint: Path) -> Iterator[str]:
    try:
        with launch.transformers_serve(small_checkpoint) as url:
            yield url
    except launch.NotHere as error:
        if os.environ.get("CI"):
            pytest.fail(str(error))
        pytest.skip(str(error))


@pytest.mark.slow
def test_transformers_serve_counts_the_tokens_that_we_report(
    transformers_serve: str, small_checkpoint: Path, sent: list[Body]
) -> None:
    from transformers import AutoTokenizer

    (found,) = measure(transformers_serve, models=(str(small_checkpoint),), contexts=("200",), tokens=24, reps=3)
    assert (found.server.kind, found.failure) == ("transformers serve", None)
    tokenizer = AutoTokenizer.from_pretrained(small_checkpoint)
    for exchange, body in zip(found.exchanges, sent[-3:], strict=True):
        tokens = tokenizer.apply_chat_template(body["messages"], add_generation_prompt=True, return_dict=False)
        assert exchange.usage.prompt == len(tokens)
        assert exchange.usage.completion == 24 or exchange.finish == "stop"
    assert found.summary.decode_tps is not None and found.summary.prefill_tps is not None
