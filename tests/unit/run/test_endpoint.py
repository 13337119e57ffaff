"""Cases on a scripted server: what counts, what is sent, and what a row is told of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakes.openai_server import Body, FakeServer, Script

from profiler.backends.endpoint import Slo, parse_slo, servers
from profiler.backends.endpoint.client import KEY, run
from profiler.errors import ProfileError
from profiler.run import endpoint, serving
from profiler.run.endpoint import (
    EndpointPrompt,
    EndpointRequest,
    EndpointResult,
)
from profiler.run.prompts import Prompt, varied_text

WARM_UP = 2  # requests that do not count: one loads the model, and both tell how many tokens a word takes
ASKED = EndpointRequest(reps=2, tokens=16, timeout_s=5.0)


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY, raising=False)


def measure(server: FakeServer, asked: EndpointRequest = ASKED, **more: Any) -> list[EndpointResult]:
    async def main() -> list[EndpointResult]:
        found = endpoint.measure(replace(asked, **more), server.url, lambda text: None)
        return [result async for result in found]

    return run(main())


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer("vllm") as found:
        yield found


def prompts(server: FakeServer) -> list[str]:
    return [asked["messages"][0]["content"] for asked in server.requests]


def texts(result: EndpointResult) -> list[str]:
    return [caution.text for caution in serving.server_cautions(result)]


def test_every_combination_is_a_result_with_its_requests(server: FakeServer) -> None:
    found = measure(server, contexts=("64,128",), concurrency=("1,3",))
    assert [(each.prompt.tokens, each.streams, len(each.exchanges)) for each in found] == [
        (64, 1, 2), (64, 3, 6), (128, 1, 2), (128, 3, 6),
    ]  # fmt: skip
    assert all(each.outcome == "ok" and each.summary.requests == len(each.exchanges) for each in found)


def test_the_first_request_of_a_model_never_counts(server: FakeServer) -> None:
    """gaia#2911: 44.5 s for a time to the first token of 7.6."""
    server.choose = lambda asked, number: Script(first_s=0.5 if number == 1 else 0.0)
    (found,) = measure(server)
    assert found.warm_up is not None and found.summary.ttft is not None
    assert found.warm_up.exchange.arrivals[0].at - found.warm_up.exchange.sent_s > 0.4
    assert found.summary.ttft.p50 < 0.4
    assert len(found.exchanges) == 2


def test_no_two_prompts_begin_alike_unless_the_cache_is_measured(server: FakeServer) -> None:
    """vllm#53920: random prompts of one seed hit the prefix cache."""
    measure(server, reps=4)
    begins = [text[:12] for text in prompts(server)]
    assert len(set(begins)) == len(begins)
    server.requests.clear()
    measure(server, reps=4)
    assert not set(begins) & {text[:12] for text in prompts(server)}  # nor in another run
    server.requests.clear()
    measure(server, reps=4, cached=True)
    assert len(set(prompts(server)[WARM_UP:])) == 1
    assert len(server.requests) == WARM_UP + 1 + 4  # the one that fills the cache does not count either


def test_every_case_of_a_cached_prompt_begins_with_a_cold_one(server: FakeServer) -> None:
    """A prompt that the case before had sent, or whose beginning it had, would be called cold and be warm."""
    measure(server, cached=True, contexts=("64,256",), concurrency=("1,2",))
    sent = prompts(server)[WARM_UP:]
    assert len({text[:12] for text in sent}) == 4


def test_a_cold_and_a_warm_request_tell_what_usage_does_not(server: FakeServer) -> None:
    """lmstudio-bug-tracker#2390: 57.7 s and 2.0 s with the same usage."""
    server.choose = lambda asked, number: Script(first_s=0.4 if number == WARM_UP + 1 else 0.0)
    (found,) = measure(server, cached=True)
    assert found.cold_ttft_s is not None and found.summary.ttft is not None
    assert found.cold_ttft_s > 0.3 > found.summary.ttft.p50
    assert any(text.startswith("the first request with this prompt") for text in texts(found))


@pytest.mark.parametrize("tokens", [64, 128, 2000, 7000])
def test_a_prompt_has_about_the_tokens_that_were_asked_for(server: FakeServer, tokens: int) -> None:
    (found,) = measure(server, contexts=(str(tokens),))
    counted = {each.usage.prompt for each in found.exchanges}
    assert all(count is not None and abs(count / tokens - 1) < 0.04 for count in counted), counted


def test_a_prompt_that_the_server_cut_is_a_failed_case(server: FakeServer) -> None:
    """ollama#14082: the default context cuts what is longer and says nothing."""
    server.choose = lambda asked, number: Script(prompt_tokens=(370, 40, 2048, 2048)[number - 1])
    (found,) = measure(server, contexts=("6000",))
    assert found.outcome == "failed"
    assert "the server cut the prompt: it processed 2,048 tokens of at least 5,100" in str(found.failure)
    assert found.summary.requests == 0


def test_a_prompt_of_ones_own_that_the_server_cut_is_one_too(server: FakeServer, tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text(varied_text(4000, 1))
    server.choose = lambda asked, number: Script(prompt_tokens=(370, 40, 1024, 1024)[number - 1])
    (found,) = measure(server, prompt=tmp_path / "long.txt")
    assert "the server cut the prompt" in str(found.failure)


def test_a_prompt_that_cannot_fit_is_not_sent(server: FakeServer) -> None:
    """lmstudio-bug-tracker#2339: a prompt longer than the loaded context gets an empty answer."""
    (found,) = measure(server, contexts=("10k",))
    assert found.failure == "the model is loaded with a context of 8,192; prompt and answer take 10,256 tokens"
    assert len(server.requests) == WARM_UP


def test_slots_of_a_server_are_told_where_they_matter() -> None:
    """llama-server divides its context among its slots, and lets requests wait that find none."""
    with FakeServer("llama-server", Script(gap_s=0.001)) as server:
        (found,) = measure(server, contexts=("10k",))
        loaded = "the model is loaded with a context of 8,192 for each of 4 slots, which may share it"
        assert found.failure == f"{loaded}; prompt and answer take 10,256 tokens"
        few, many = measure(server, contexts=("64",), concurrency=("4,5",), reps=1)
    queued = "the server answers 4 requests at a time and lets others wait, which is part of their TTFT"
    assert queued not in texts(few) and queued in texts(many)


def test_failed_requests_are_part_of_no_figure(server: FakeServer) -> None:
    server.choose = lambda asked, number: Script(status=500) if number == WARM_UP + 2 else Script(gap_s=0.005)
    (found,) = measure(server, reps=4)
    assert found.failure == "1 of 4 requests failed: HTTP 500: overloaded"
    assert (found.summary.requests, len(found.exchanges)) == (3, 4)
    assert found.summary.decode_tps is not None


def test_a_server_that_asks_to_be_left_alone_is(server: FakeServer) -> None:
    server.choose = lambda asked, number: (
        Script() if number <= WARM_UP else Script(status=429, headers={"Retry-After": "60"})
    )
    found = measure(server, reps=50)[0]
    assert len(server.requests) == WARM_UP + 1
    assert "it asks to wait 1m 00s" in str(found.failure)


def test_a_stream_gives_up_after_a_few_failures(server: FakeServer) -> None:
    server.choose = lambda asked, number: Script() if number <= WARM_UP else Script(fault="reset")
    measure(server, reps=50)
    assert len(server.requests) == WARM_UP + endpoint.GIVE_UP


def test_requests_that_were_given_up_are_said(server: FakeServer) -> None:
    server.choose = lambda asked, number: Script() if number <= WARM_UP else Script(fault="reset")
    (found,) = measure(server, reps=50)
    assert str(found.failure).endswith("in the middle of the answer (47 more were not sent)")


def test_a_model_that_is_loaded_again_is_said_to_be() -> None:
    """gaia#2911 again: another client has the server load another model, and our next request waits for ours."""
    with FakeServer("ollama", Script(gap_s=0.002)) as server:
        reload = Script(gap_s=0.002, timings={"load_duration": 9_000_000_000})
        server.choose = lambda asked, number: reload if number == WARM_UP + 1 else Script(gap_s=0.002)
        (found,) = measure(server)
    assert "the server loaded the model again in 1 of 2 requests, which is part of their TTFT" in texts(found)


def test_cautions_have_a_code_for_each_kind(server: FakeServer) -> None:
    server.script = Script(bundle=4, gap_s=0.02, refuses=("seed",))
    (found,) = measure(server, cached=True, tokens=9)
    codes = [caution.code for caution in serving.server_cautions(found) if caution.code != "client-late"]
    assert codes == ["bundled-tokens", "cache-filled", "refused-fields"]


def test_a_restart_in_the_middle_loses_nothing_that_was_measured() -> None:
    """The server goes away in one case and is back for the next."""
    with FakeServer("vllm", Script(gap_s=0.04)) as first:
        port = int(first.url.rpartition(":")[2])
        second = FakeServer("vllm", Script(gap_s=0.04), port=port)
        stopped = threading.Event()

        def restart() -> None:
            while len(first.requests) < WARM_UP + 2:
                time.sleep(0.005)
            first.__exit__()
            second.__enter__()
            stopped.set()

        thread = threading.Thread(target=restart)
        thread.start()

        async def main() -> list[EndpointResult]:
            results = []
            asked = replace(ASKED, reps=2, contexts=("64,65",))
            async for result in endpoint.measure(asked, first.url, lambda text: None):
                results.append(result)
                stopped.wait(10)
            return results

        cut, whole = run(main())
        thread.join(10)
        second.__exit__()
        assert cut.outcome == "failed"
        assert cut.summary.requests >= 1
        assert whole.outcome == "ok"


@pytest.mark.parametrize("field", ["stream_options", "seed", "min_tokens"])
def test_a_field_that_the_server_refuses_is_left_out_and_said(server: FakeServer, field: str) -> None:
    server.script = Script(refuses=(field,))
    (found,) = measure(server)
    assert found.outcome == "ok"
    assert field not in server.requests[-1]
    assert f"the server refuses {field}, which were left out" in texts(found)


def test_transformers_serve_takes_what_it_is_sent() -> None:
    """It refuses every field that it does not know."""
    with FakeServer("transformers", Script(refuses=("min_tokens", "ignore_eos", "cache_prompt"))) as server:
        (found,) = measure(server)
    assert (found.outcome, found.fixed_length) == ("ok", False)
    assert len(server.requests) == WARM_UP + 2


def test_a_model_without_a_chat_template_is_asked_for_a_completion(server: FakeServer) -> None:
    chatless = b'{"error": {"message": "This tokenizer has no chat template", "code": 400}}'
    server.choose = lambda asked, number: Script(status=400, body=chatless) if "messages" in asked else Script()
    (found,) = measure(server)
    assert found.outcome == "ok"
    assert server.paths[-1][0] == "/v1/completions"
    assert any("no chat template" in text for text in texts(found))


def test_a_model_that_fails_does_not_stop_the_others() -> None:
    with FakeServer("vllm", models=("bad", "good")) as server:
        server.choose = lambda asked, number: Script(status=500) if asked["model"] == "bad" else Script()
        bad, good = measure(server)
    assert bad.failure == "the first request failed: HTTP 500: overloaded"
    assert good.outcome == "ok"


def test_ollama_loads_a_model_once_for_all_contexts_and_says_how_long_it_took() -> None:
    """Another num_ctx would load it anew."""
    with FakeServer("ollama", Script(load_s=0.2), models=("a:latest", "b:latest")) as server:
        found = measure(server, models=("b",), contexts=("64,1k",))
    assert [each.outcome for each in found] == ["ok", "ok"]
    assert {asked["options"]["num_ctx"] for asked in server.requests} == {1536}
    assert found[0].warm_up is not None
    assert found[0].warm_up.exchange.timings.load_s == pytest.approx(0.2)
    assert found[0].model.vram_bytes == 290_000_000  # as it is once loaded


def test_a_server_that_tells_other_times_is_said_to() -> None:
    """Ours: 64 tokens a second and more; the server's own: 1,000."""
    timings = {"prompt_n": 500, "prompt_ms": 1.0, "predicted_n": 16, "predicted_ms": 15.0}
    with FakeServer("llama-server", Script(gap_s=0.01, first_s=0.05, timings=timings)) as server:
        found, queued = measure(server, concurrency=("1,2",))
    assert found.summary.server_decode is not None
    assert found.summary.server_decode < -0.5
    said = {each.streams: [t for t in texts(each) if t.startswith("our time")] for each in (found, queued)}
    assert said[1][0].endswith("above the server's own")
    assert said[2][0].endswith("above the server's own, which leaves out the wait for other requests")
    assert any(text.startswith("our decode rate is") and "below the server's own" in text for text in texts(found))


def test_answers_of_their_own_length_are_said_to_be() -> None:
    with FakeServer("lmstudio", Script(tokens=("x ",) * 9)) as server:
        (found,) = measure(server)
    assert "answers have 9 tokens; 16 were asked for" in texts(found)


def test_lm_studio_is_asked_where_it_counts_tokens() -> None:
    """lmstudio-bug-tracker#676: no usage in a stream of its own API."""
    with FakeServer("lmstudio") as server:
        server.choose = lambda asked, number: Script(usage=not server.paths[-1][0].startswith("/api/v0"))
        (found,) = measure(server)
    assert server.paths[-1][0] == "/v1/chat/completions"
    assert found.summary.total_tps is not None
    timings = {"tokens_per_second": 50.0, "time_to_first_token": 0.1}
    with FakeServer("lmstudio", Script(timings=timings, gap_s=0.002)) as server:
        (found,) = measure(server)
    assert server.paths[-1][0] == "/api/v0/chat/completions"
    assert found.summary.server_decode is not None


def test_models_are_a_list_with_commas() -> None:
    with FakeServer("vllm", models=("a", "b", "c")) as server:
        assert [each.model.name for each in measure(server, models=("c,a",))] == ["c", "a"]


def test_chunks_of_several_tokens_and_missing_usage_are_said(server: FakeServer) -> None:
    server.script = Script(bundle=4, gap_s=0.02)
    assert any("tokens arrive 4.0 at a time" in text for text in texts(measure(server)[0]))
    server.script = Script(usage=False)
    with FakeServer("openai", Script(usage=False, gap_s=0.002)) as silent:
        (found,) = measure(silent)
    assert "the server sent no token counts: figures in tokens are unknown" in texts(found)
    assert found.summary.total_tps is found.summary.decode_tps is None
    assert found.summary.characters_per_s is not None


def test_without_usage_the_models_tokenizer_counts_the_answer() -> None:
    script = Script(usage=False, gap_s=0.002, tokens=("one ", "two ", "three"))
    with FakeServer("openai", script) as silent:
        (found,) = measure(silent, count=lambda text: len(text.split()))
    assert {each.usage.completion for each in found.exchanges} == {3}
    assert any("counted by the tokenizer" in text for text in texts(found))
    assert found.summary.decode_tps is not None and found.summary.prefill_tps is None
    with FakeServer("openai", replace(script, usage=True)) as server:  # whose own counts take precedence
        (found,) = measure(server, count=lambda text: 99)
    assert {each.usage.by for each in found.exchanges} == {"usage"}


def test_an_answer_to_ones_own_prompt_may_end_by_itself(server: FakeServer, tmp_path: Path) -> None:
    """Text that is forced beyond the end of an answer is none that anybody wants to read."""
    (tmp_path / "own.txt").write_text("Write a haiku.")
    (found,) = measure(server, prompt=tmp_path / "own.txt")
    assert not found.fixed_length
    assert "min_tokens" not in server.requests[-1]
    assert server.requests[-1]["messages"][0]["content"].endswith("\n\nWrite a haiku.")


def test_messages_and_tools_are_sent_as_they_are_but_for_the_unique_beginning() -> None:
    messages = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"})
    prompt = EndpointPrompt("x", written=Prompt("x", "own", messages, 16))
    assert prompt.sent("unique", 1.4, 20) == [
        {"role": "system", "content": "unique\n\nBe brief."},
        {"role": "user", "content": "Hi"},
    ]


def test_tokens_that_the_server_does_not_count_are_said(server: FakeServer) -> None:
    """Reasoning, most often."""
    server.kind = "openai"
    server.script = Script(counted=5, gap_s=0.002)
    (found,) = measure(server)
    assert "the server counted 10 tokens in 32 chunks: it may leave out reasoning" in texts(found)


def test_no_stream_is_starved(server: FakeServer) -> None:
    server.script = Script(gap_s=0.01)
    (found,) = measure(server, concurrency=("8",), reps=2)
    assert found.summary.slowest_tps is not None and found.summary.decode_tps is not None
    assert (
        found.summary.slowest_tps > 0.2 * found.summary.decode_tps.p50
    )  # benchmarks/endpoint_load.py says it better


def test_goodput_is_there_where_limits_were_given(server: FakeServer) -> None:
    (found,) = measure(server, slo=Slo(ttft_s=5.0))
    assert found.summary.goodput_per_s == found.summary.requests_per_s
    assert measure(server)[0].summary.goodput_per_s is None


# Which server and which model


def test_the_loaded_models_are_measured_if_none_is_named() -> None:
    with FakeServer("lmstudio", models=("loaded", "other")) as server:
        assert [each.model.name for each in measure(server)] == ["loaded"]


def test_a_list_to_choose_from_where_none_is_loaded() -> None:
    with FakeServer("ollama", models=("a:1b", "b:2b")) as server:
        server.loaded.clear()
        with pytest.raises(ProfileError, match="no model loaded: choose one with -m") as error:
            measure(server)
    assert "a:1b, b:2b" in str(error.value)


def test_a_model_that_is_not_there_is_refused_before_anything_is_asked(server: FakeServer) -> None:
    with pytest.raises(ProfileError, match="has no model tiny-Q4") as error:
        measure(server, models=("tiny-Q4",))
    assert "Did you mean tiny-Q4_K_M?" in str(error.value)
    assert server.requests == []


def test_what_is_found_without_an_address_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    from profiler.backends.endpoint.client import Limits

    with FakeServer("lmstudio") as one, FakeServer("vllm") as two:
        ports = {int(one.url.rpartition(":")[2]): "LM Studio"}
        monkeypatch.setattr(servers, "PORTS", ports)
        said: list[str] = []
        assert run(servers.choose_server(None, Limits(), said.append)) == one.url
        assert said == [f"found LM Studio at {one.url}: loaded tiny-Q4_K_M"]
        ports[int(two.url.rpartition(":")[2])] = "vLLM"
        with pytest.raises(ProfileError, match="2 servers run on this machine"):
            run(servers.choose_server(None, Limits(), said.append))
    with pytest.raises(ProfileError, match="no server on the usual ports"):
        run(servers.choose_server(None, Limits(), said.append))


def test_a_key_that_leaves_the_machine_unencrypted_is_said_to(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY, "sk-canary-4f9d0c7b2a")
    said: list[str] = []

    async def main(root: str) -> None:
        async for _ in endpoint.measure(ASKED, root, said.append):
            pass

    run(main(server.url))
    assert said == []
    monkeypatch.setattr(endpoint, "is_here", lambda root: False)
    run(main(server.url))
    assert len(said) == 1 and "unencrypted" in said[0] and "canary" not in said[0]


# Prompts and limits


def test_our_text_is_varied_and_the_same_for_a_seed() -> None:
    text = varied_text(2000, "a")
    assert text == varied_text(2000, "a") != varied_text(2000, "b")
    assert len(text.split()) == 2000
    windows = [text[n : n + 60] for n in range(len(text) - 60)]
    assert len(set(windows)) == len(windows)


def test_limits_are_read_with_their_units() -> None:
    assert parse_slo("ttft=2s,itl=100ms") == Slo(2.0, 0.1)
    assert parse_slo(" E2E = 1m ") == Slo(e2e_s=60.0)
    for wrong in ("ttft=2", "ttft", "tps=3s", "itl=-1s", "", "ttft=0s"):
        with pytest.raises(ValueError, match="is not a limit"):
            parse_slo(wrong)


def scripted(tmp_path: Path, prompts: str, answer_tokens: int = 16) -> str:
    """A scenario file of somebody's own."""
    file = tmp_path / "mine.toml"
    file.write_text(
        f'description = "Mine"\ncontexts = "64"\nbatches = [1]\nsteps = 8\nprompts = [{prompts}]\n'
        f"answer_tokens = {answer_tokens}\n"
    )
    return str(file)


HISTORY = """{"messages": [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Which files are there?"}, {"role": "assistant", "content": "a.py"},
    {"role": "user", "content": "And folders?"}, {"role": "assistant", "content": "None."},
    {"role": "user", "content": "Thanks."}]}"""


def test_prompts_of_scenarios_are_cases_with_answers_as_long_as_they_are_expected(server: FakeServer) -> None:
    found = measure(server, scenarios=("code,multilingual",), tokens=None, reps=1)
    assert [each.prompt.name for each in found[:4]] == [
        "code-durations", "code-refactor", "code-bug", "multilingual-en",
    ]  # fmt: skip
    assert len(found) == 13
    assert {each.asked_tokens for each in found} == {1500, 350}
    assert {asked["max_tokens"] for asked in server.requests[WARM_UP:]} == {1500, 350}
    begins = [text[:12] for text in prompts(server)]
    assert len(set(begins)) == len(begins)
    assert [each.asked_tokens for each in measure(server, scenarios=("chat",), tokens=16, reps=1)] == [16] * 3


def test_a_conversation_keeps_its_beginning_and_shares_it_with_no_other(server: FakeServer, tmp_path: Path) -> None:
    """In real use, a turn finds the ones before it in the prefix cache, and nothing of other conversations."""
    (tmp_path / "history.json").write_text(HISTORY)
    found = measure(server, scenarios=(scripted(tmp_path, '"history.json"'),), concurrency=("2",), reps=2)
    assert [(each.prompt.name, len(each.exchanges)) for each in found] == [
        ("history-01", 4), ("history-02", 4), ("history-03", 4),
    ]  # fmt: skip
    conversations: dict[str, list[int]] = {}
    for asked in server.requests[WARM_UP:]:
        unique, _, rest = asked["messages"][0]["content"].partition("\n\n")
        assert rest == "Be brief."
        conversations.setdefault(unique, []).append(len(asked["messages"]))
    assert list(conversations.values()) == [[2, 4, 6]] * 4


def test_a_turn_says_what_was_cached_and_has_no_wall_time_of_its_own(server: FakeServer, tmp_path: Path) -> None:
    (tmp_path / "history.json").write_text(HISTORY)
    server.choose = lambda asked, number: Script(cached_tokens=0 if len(asked["messages"]) == 2 else 15)
    found = measure(server, scenarios=(scripted(tmp_path, '"history.json"'),))
    assert [[each.cached_tokens for each in turn.exchanges] for turn in found] == [[0, 0], [15, 15], [15, 15]]
    assert all(each.summary.total_tps is None for each in found)
    assert "alternate" in found[0].summary.unknown["total_tps"]
    server.choose = None
    first, second, _ = measure(server, scenarios=(scripted(tmp_path, '"history.json"'),))
    assert first.summary.prefill_tps is not None  # nothing before it can be cached
    assert second.summary.prefill_tps is None  # the server does not say how much was


def test_a_conversation_ends_with_its_first_failure(server: FakeServer, tmp_path: Path) -> None:
    (tmp_path / "history.json").write_text(HISTORY)
    server.choose = lambda asked, number: Script(status=500 if len(asked.get("messages", ())) == 4 else 200)
    found = measure(server, scenarios=(scripted(tmp_path, '"history.json"'),), reps=1)
    assert [(each.outcome, len(each.exchanges)) for each in found] == [("ok", 1), ("failed", 1), ("failed", 0)]
    assert found[2].failure == "no conversation came this far"
    server.choose = lambda asked, number: Script(tokens=() if len(asked.get("messages", ())) == 4 else ("a ", "b "))
    found = measure(server, scenarios=(scripted(tmp_path, '"history.json"'),), reps=1)
    assert [each.failure for each in found] == [None, "the answer is empty", None]  # its history does not need it


def test_the_context_that_ollama_loads_holds_the_longest_prompt_and_not_much_more() -> None:
    with FakeServer("ollama") as server:
        measure(server, scenarios=("summarize-32k",), reps=1, tokens=16)
    (context,) = {asked["options"]["num_ctx"] for asked in server.requests}
    assert 28_000 < context < 50_000


def test_a_running_case_says_how_it_goes(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "LIVE_S", 0.02)
    server.choose = lambda asked, number: Script(gap_s=0.02) if number > WARM_UP else Script()
    told: list[str] = []

    async def main() -> None:
        async for _ in endpoint.measure(ASKED, server.url, lambda text: None, told.append):
            pass

    run(main())
    assert told[0].startswith("tiny-Q4_K_M, 512 tokens, 1 at a time: 0 of 2 requests, ")
    assert any(not text.endswith(" 0 characters/s") for text in told[:-1])
    assert told[-1] == ""


def test_what_is_sent_is_one_of_length_prompt_and_scenario(server: FakeServer) -> None:
    with pytest.raises(ProfileError, match="exclude each other"):
        EndpointRequest(scenarios=("code",), contexts=("1k",)).cases()
    with pytest.raises(ProfileError, match="--cached is for single prompts"):
        EndpointRequest(scenarios=("agent",), cached=True).cases()


def test_a_scenario_without_prompts_has_its_contexts_and_batches_as_in_a_sweep(server: FakeServer) -> None:
    asked = EndpointRequest(scenarios=("batch",))
    ((prompt,),) = asked.cases()
    assert (prompt.tokens, prompt.answer_tokens, asked.streams) == (512, 32, (1, 2, 4, 8, 16, 32, 64))
    assert replace(asked, concurrency=("3",)).streams == (3,)
    assert EndpointRequest(scenarios=("code",)).streams == (1,)
    lengths = [each.tokens for (each, *_) in EndpointRequest(scenarios=("quick,code",)).cases()]
    assert lengths == [128, None, None, None]
    with pytest.raises(ProfileError, match="different batches"):
        _ = EndpointRequest(scenarios=("batch,quick",)).streams


def test_a_prompt_and_a_length_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="exclude each other"):
        EndpointRequest(prompt=tmp_path, contexts=("1k",)).cases()


def test_requests_have_no_body_that_is_left_out(server: FakeServer) -> None:
    measure(server)
    last: Body = server.requests[-1]
    assert last["stream_options"] == {"include_usage": True, "continuous_usage_stats": True}
    assert (last["max_tokens"], last["min_tokens"], last["stream"]) == (16, 16, True)
