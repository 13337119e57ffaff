"""Which server it is, and how it is asked."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest
from fakes.openai_server import FakeServer

from profiler.backends.endpoint import servers
from profiler.backends.endpoint.client import KEY, Client, Limits, run
from profiler.backends.endpoint.servers import ServedModel, Server, find_local, recognise
from profiler.errors import ProfileError

KINDS = {
    "lmstudio": "LM Studio",
    "ollama": "Ollama",
    "llama-server": "llama-server",
    "vllm": "vLLM",
    "sglang": "SGLang",
    "transformers": "transformers serve",
    "kobold": "KoboldCpp",
    "openai": "OpenAI-compatible server",
}


def look(root: str, seconds: float = 5.0) -> Server:
    async def main() -> Server:
        async with Client(root, Limits(connect_s=2.0)) as client:
            return await recognise(client, seconds)

    return run(main())


@pytest.fixture(params=KINDS)
def server(request: pytest.FixtureRequest) -> Iterator[FakeServer]:
    with FakeServer(request.param, models=("tiny-Q4_K_M", "other-Q8_0")) as found:
        yield found


def test_each_kind_is_recognised_with_its_models(server: FakeServer) -> None:
    found = look(server.url)
    assert found.kind == KINDS[server.kind]
    assert [model.name for model in found.models] == ["tiny-Q4_K_M", "other-Q8_0"]
    assert {model.quant for model in found.models} <= {"Q4_K_M", "Q8_0"}


@pytest.mark.parametrize(
    ("kind", "model"),
    [
        ("lmstudio", ServedModel("tiny-Q4_K_M", True, "Q4_K_M", 8192, 32768, 241410208)),
        ("ollama", ServedModel("tiny-Q4_K_M", True, "Q4_K_M", 8192, None, 241410208, 290_000_000, digest="b0c1")),
        (
            "llama-server",
            ServedModel(
                "tiny-Q4_K_M", True, "Q4_K_M", 8192, 32768, 241410208, path="/models/tiny-Q4_K_M.gguf", slots=4
            ),
        ),
        ("vllm", ServedModel("tiny-Q4_K_M", True, "Q4_K_M", 8192, 8192)),
        ("transformers", ServedModel("tiny-Q4_K_M", None, "Q4_K_M")),
    ],
)
def test_what_a_server_says_of_a_model_is_kept(kind: str, model: ServedModel) -> None:
    with FakeServer(kind) as server:
        assert look(server.url).models == (model,)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("/home/ann/models/gemma-3-270m-q4_k_m.gguf", "gemma-3-270m-q4_k_m.gguf"),
        (r"C:\models\gemma.gguf", "gemma.gguf"),
        ("models/gemma.gguf", "gemma.gguf"),
        ("/srv/smollm2-hf/", "smollm2-hf"),
        ("google/gemma-3-270m-it", "google/gemma-3-270m-it"),
        ("qwen3.5:4b", "qwen3.5:4b"),
        ("/", "/"),
    ],
)
def test_a_model_whose_name_is_a_path_is_shown_by_its_last_part(name: str, shown: str) -> None:
    assert ServedModel(name).shown == shown


@pytest.mark.parametrize(
    ("stated", "quant"),
    [
        ("Q4_K - Medium", "Q4_K_M"),
        ("Q3_K - Large", "Q3_K_L"),
        ("Q6_K", "Q6_K"),
        ("IQ4_NL - 4.5 bpw", "IQ4_NL"),
        ("MXFP4 MoE", "MXFP4"),
        ("all F32", "F32"),
        ("(guessed) Q8_0", "Q5_K_M"),  # then the file's name
        ("unknown, may not work", "Q5_K_M"),
        (None, "Q5_K_M"),
    ],
)
def test_llama_server_states_the_quantization_of_its_file(stated: str | None, quant: str) -> None:
    with FakeServer("llama-server", models=("tiny-Q5_K_M",)) as server:
        server.file_type = stated
        assert look(server.url).models[0].quant == quant


def test_ollama_is_asked_for_a_context_and_not_to_cut_the_prompt() -> None:
    """ollama#14082: its default context depends on VRAM, and what does not fit was dropped silently."""
    with FakeServer("ollama") as server:
        body = look(server.url).request("tiny", [], 100, 4096, fixed=True)
    assert body["options"] == {"num_predict": 100, "temperature": 0, "seed": 0, "num_ctx": 4096}
    assert body["truncate"] is False


def test_ollama_gets_the_arguments_of_tool_calls_as_objects() -> None:
    """It refuses OpenAI's form, JSON in a text, and with it every turn of an agent but the first."""
    call = {"id": "c", "type": "function", "function": {"name": "read", "arguments": '{"path": "a.py"}'}}
    asked = {"role": "assistant", "content": "", "tool_calls": [call]}
    odd = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}
    user = {"role": "user", "content": "Hi"}
    with FakeServer("ollama") as server:
        body = look(server.url).request("tiny", [user, asked, odd], 100, None, fixed=False)
    assert body["messages"][0] == user
    assert body["messages"][1]["tool_calls"] == [{"function": {"name": "read", "arguments": {"path": "a.py"}}}]
    assert body["messages"][2]["tool_calls"][0]["function"]["arguments"] == {"arguments": "{"}
    assert asked["tool_calls"] == [call]  # the scenario's own is as it was


@pytest.mark.parametrize(
    ("kind", "fields"),
    [("vllm", {"min_tokens": 100}), ("sglang", {"min_tokens": 100}), ("llama-server", {"ignore_eos": True}),
     ("lmstudio", {}), ("transformers", {}), ("openai", {})],
)  # fmt: skip
def test_a_fixed_length_is_asked_for_only_where_the_server_takes_it(kind: str, fields: dict[str, Any]) -> None:
    with FakeServer(kind) as server:
        found = look(server.url)
    plain, fixed = (found.request("tiny", [], 100, None, fixed=fixed) for fixed in (False, True))
    assert {name: value for name, value in fixed.items() if name not in plain} == fields


def test_a_web_page_is_no_server_of_models() -> None:
    with FakeServer("page") as server, pytest.raises(ProfileError, match="it lists no models"):
        look(server.url)


def test_where_nothing_listens_one_line_says_so() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        with pytest.raises(ProfileError, match="no server there: connection refused"):
            look(f"http://127.0.0.1:{free.getsockname()[1]}")


def test_a_server_that_never_answers_is_given_up_in_time() -> None:
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        with pytest.raises(ProfileError, match="no answer within 500 ms"):
            look(f"http://127.0.0.1:{mute.getsockname()[1]}", 0.5)


def test_a_server_too_busy_to_list_its_models_is_not_called_something_else() -> None:
    """Its health page answers, as llama-server's does while all its slots work."""
    with FakeServer("openai") as server:
        server.mute = ("/v1/models",)
        with pytest.raises(ProfileError, match="no answer within 500 ms"):
            look(server.url, 0.5)


def test_local_servers_are_found_and_get_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever listens on a usual port was not named by anybody."""
    monkeypatch.setenv(KEY, "sk-canary-4f9d0c7b2a")
    with FakeServer("lmstudio") as server, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        ports = {int(server.url.rpartition(":")[2]): "LM Studio", free.getsockname()[1]: "Ollama"}
        monkeypatch.setattr(servers, "PORTS", ports)
        assert [found.kind for found in run(find_local())] == ["LM Studio"]
        assert all("Authorization" not in headers for _, headers in server.paths)


@pytest.mark.parametrize("name", ["tiny", "TINY", "tiny:latest"])
def test_a_model_is_found_by_any_way_people_write_its_name(name: str) -> None:
    server = Server("Ollama", "http://x", models=(ServedModel("tiny:latest"),))
    assert server.model(name) == ServedModel("tiny:latest")
    assert server.model("tin") is None


def test_a_model_is_found_by_its_file_where_only_one_has_that_name() -> None:
    server = Server(
        "llama-server", "http://x", models=tuple(map(ServedModel, ("/a/tiny.gguf", "/a/big.gguf", "/b/big.gguf")))
    )
    assert server.model("tiny.gguf") == ServedModel("/a/tiny.gguf")
    assert server.model("big.gguf") is None
    assert server.model("/b/big.gguf") == ServedModel("/b/big.gguf")


@pytest.mark.parametrize(
    ("name", "quant"),
    [("gemma-3-270m-it-Q4_K_M.gguf", "Q4_K_M"), ("qwen3.5:4b-q8_0", "q8_0"), ("Model-AWQ", "AWQ"),
     ("m-IQ2_XXS", "IQ2_XXS"), ("gemma-3-4b-it-4bit", "4bit"), ("Llama-3.1-8B", None), ("bf16-lover", "bf16"),
     ("x" * 10_000, None)],
)  # fmt: skip
def test_a_quantization_is_read_off_a_name(name: str, quant: str | None) -> None:
    assert servers._quant(name) == quant


@pytest.mark.parametrize(
    ("status", "said"),
    [(401, "HTTP 401"), (403, "HTTP 403"), (307, "the server redirects to https://elsewhere.example/")],
)
def test_a_server_that_wants_a_key_or_leads_elsewhere_says_so(status: int, said: str) -> None:
    with FakeServer("vllm") as server:
        server.get_status = status
        with pytest.raises(ProfileError, match=said) as error:
            look(server.url)
    assert KEY in str(error.value) or status == 307


ODD = [None, True, -1, 8192, 1e300, "", "x", "\ud800", 10**400, [], [1], {}, {"x": []}, [[]], [None], "x" * 10_000]


def spoilt(value: Any) -> Iterator[Any]:
    """``value`` with each part of it in turn replaced by something odd, or left out."""
    yield from ODD
    if isinstance(value, dict):
        for name, inner in value.items():
            yield {other: value[other] for other in value if other != name}
            yield from (value | {name: odd} for odd in spoilt(inner))
    elif isinstance(value, list):
        for place, inner in enumerate(value):
            yield from ([*value[:place], odd, *value[place + 1 :]] for odd in spoilt(inner))


def test_a_model_of_another_engine_and_one_on_another_machine_are_told_apart() -> None:
    with FakeServer("lmstudio") as server:
        server.described = {"compatibility_type": "mlx"}
        (model,) = look(server.url).models
        assert model.engine == "mlx"
    with FakeServer("ollama") as server:
        server.described = {"remote_host": "https://ollama.com:443", "remote_model": "gpt-oss:120b"}
        (model,) = look(server.url).models
        assert model.host == "https://ollama.com:443"


def test_a_model_that_only_embeds_is_none_to_measure() -> None:
    with FakeServer("ollama") as server:
        server.described = {"details": {"family": "nomic-bert"}}
        assert look(server.url).models == ()


@pytest.mark.parametrize("kind", KINDS)
def test_no_answer_of_a_server_breaks_the_recognition(kind: str) -> None:
    client, fake = Client("http://127.0.0.1:9", send_key=False), FakeServer(kind)
    whole = {path: getattr(fake, f"_get_{kind.replace('-', '_')}")(path) for path in servers.PATHS}
    fake._loop.close()
    for path, answer in whole.items():
        for odd in spoilt(answer):
            for find in servers.LOOKS:
                found = find(whole | {path: odd}, client)
                assert found is None or all(isinstance(model.name, str) for model in found.models)
