"""Which server answers at an address, which models it has, and how it is asked so that figures compare.

Each is recognised by what only it says, since many answer on each other's paths: LM Studio sends 200 with an error
for any path it does not know, and several servers imitate Ollama. Shapes as documented in November 2026: LM Studio's
REST API v0 and v1, Ollama's ``docs/api.md``, llama.cpp's ``tools/server/README.md``, vLLM's and SGLang's
OpenAI-compatible servers, and the source of ``transformers serve`` 5.23.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath, PureWindowsPath
from typing import Any

from profiler import registry
from profiler.backends.endpoint import Failure
from profiler.backends.endpoint.client import BUDGET, Client, Limits, parse_url
from profiler.backends.endpoint.stream import StreamStopped
from profiler.errors import NotFound, ProfileError
from profiler.foreign import BadContent, json_value
from profiler.units import printable

PORTS = {  # on which each listens by default
    1234: "LM Studio",
    11434: "Ollama",
    8080: "llama-server",
    8000: "vLLM",  # and transformers serve
    30000: "SGLang",
}
LOOK_S = 2.0  # for a server on this machine to say what it is
MAX_MODELS = 1000  # of a server's list, which somebody else may have made
LONGEST_NAME = 300
TEMPERATURE = SEED = 0  # greedy, so that runs compare
_QUANT = re.compile(
    r"(?:^|[-_.:@/])((?:iq|q)\d\w*|fp?16|bf16|fp8|f32|nvfp4|mxfp4|awq|gptq|int[48]|\d+bit)(?=$|[-_.])", re.I
)
_FTYPE = re.compile(r"(?:all )?([A-Z]+\d\w*)(?: - ([SML])(?:mall|edium|arge)\b)?(?: |$)")  # not (guessed) Q4_0

PATHS = (
    "/api/v1/models", "/api/v0/models", "/api/version", "/api/tags", "/api/ps", "/props", "/v1/models", "/version",
    "/server_info", "/get_server_info", "/openapi.json", "/api/extra/version",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model that a server offers. What the server does not say is ``None``."""

    name: str
    loaded: bool | None = None
    quant: str | None = None
    context: int | None = None  # tokens, as loaded; of each slot
    max_context: int | None = None
    file_bytes: int | None = None
    vram_bytes: int | None = None
    path: str | None = None  # of its file, as the server names it
    digest: str | None = None  # of its content, by the server
    engine: str | None = None  # that runs it, where it is not the server's usual one
    host: str | None = None  # the other machine that runs it for this server
    slots: int | None = None  # requests that are answered at the same time; others wait

    @property
    def shown(self) -> str:
        """The name for people: some servers take the path of the model's file or folder for its name."""
        path = PureWindowsPath(self.name)  # which knows both kinds of slashes
        is_path = path.root or path.suffix.lower() == ".gguf"
        return printable(path.name if is_path and path.name else self.name, 60)

    @property
    def context_text(self) -> str:
        """``8,192``, or ``4,096 for each of 2 slots, which may share it``.

        llama-server divides its context among the slots of ``-np``. Without ``-np`` it has four, which share the
        whole context. It does not report which of both it does.
        """
        each = f" for each of {self.slots} slots, which may share it" if self.slots and self.slots > 1 else ""
        return f"{self.context or 0:,}{each}"


@dataclass(frozen=True, slots=True)
class Server:
    """A recognised server, and how a request to it looks."""

    kind: str
    root: str
    version: str | None = None
    models: tuple[ServedModel, ...] = ()
    chat: str = "/v1/chat/completions"
    native: bool = False  # Ollama's own form of requests
    fixed_length: Mapping[str, Any] = field(
        default_factory=dict
    )  # what makes every answer as long as asked; N: tokens
    stream_options: Mapping[str, Any] = field(default_factory=lambda: {"include_usage": True})
    engine: str | None = None  # that runs its models, by its name in ``cost/engines``
    counts_along: bool = False  # llama-server: counts in each chunk, for tokens that are only a part of a character

    @property
    def title(self) -> str:
        return f"{self.kind} {self.version}" if self.version else self.kind

    def model(self, name: str) -> ServedModel | None:
        """The model of that name, in any case; ``:latest`` and the folders before a file's name need not be said."""
        wanted = (name.casefold(), f"{name.casefold()}:latest")
        whole = [model for model in self.models if model.name.casefold() in wanted]
        files = [model for model in self.models if PurePath(model.name).name.casefold() == wanted[0]]
        return whole[0] if whole else files[0] if len(files) == 1 else None

    def request(
        self, model: str, messages: Sequence[Mapping[str, Any]], tokens: int, context: int | None, fixed: bool
    ) -> dict[str, Any]:
        """The body of a streamed chat request for ``tokens`` tokens of answer."""
        if self.native:
            options = {"num_predict": tokens, "temperature": TEMPERATURE, "seed": SEED} | (
                {"num_ctx": context} if context else {}
            )
            # A prompt that is too long is to be an error: by default Ollama cuts it and says nothing.
            told = [_native(message) for message in messages]
            return {"model": model, "messages": told, "stream": True, "options": options, "truncate": False}
        length = {name: tokens if value == "N" else value for name, value in self.fixed_length.items()}
        return {
            "model": model,
            "messages": messages,
            "stream": True,
            "stream_options": self.stream_options,
            "max_tokens": tokens,
            "temperature": TEMPERATURE,
            "seed": SEED,
            **({"timings_per_token": True} if self.counts_along else {}),
            **(length if fixed else {}),
        }

    def completion(self, body: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """Path and body of the same request for a model that has no chat template."""
        text = "\n\n".join(message.get("content") or "" for message in body["messages"])
        rest = {name: value for name, value in body.items() if name != "messages"}
        return self.chat.replace("/chat/completions", "/completions"), rest | {"prompt": text}


def _native(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """A message in Ollama's form: arguments of tool calls are objects, which OpenAI's form has as JSON in a text."""
    if not message.get("tool_calls"):
        return message
    functions = [call["function"] for call in message["tool_calls"]]
    calls = [{"function": {**each, "arguments": _parsed(each.get("arguments"))}} for each in functions]
    return {**message, "tool_calls": calls}


def _parsed(arguments: Any) -> Any:
    try:
        return json_value(arguments.encode(), BUDGET) if isinstance(arguments, str) else arguments
    except BadContent:
        return {"arguments": arguments}


async def recognise(client: Client, seconds: float = 5.0) -> Server:
    """The server behind ``client``. Raises ProfileError if there is none, or none that speaks a form we know."""
    found = await asyncio.gather(*(client.get(path, seconds) for path in PATHS), return_exceptions=True)
    failures = [each.failure for each in found if isinstance(each, StreamStopped)]
    for each in found:
        if isinstance(each, BaseException) and not isinstance(each, StreamStopped):
            raise each
    if len(failures) == len(found):
        raise _no_server(client, failures[0])
    said = {path: value for path, value in zip(PATHS, found, strict=True) if not isinstance(value, BaseException)}
    for look in LOOKS:
        server = look(said, client)
        if server is not None:
            return server
    told = [failure for failure in failures if failure.kind in ("status", "redirect", "timeout")]
    if told:
        raise _no_server(client, told[0])
    raise ProfileError(
        f"{printable(client.root)} answers, but not like a server of language models: it lists no models",
        "An OpenAI-compatible server has them at /v1/models.",
    )


async def find_local(limits: Limits | None = None) -> list[Server]:
    """The servers on the usual ports of this machine."""

    async def look(port: int) -> Server | None:
        async with Client(f"http://127.0.0.1:{port}", limits, send_key=False) as client:
            try:
                return await recognise(client, LOOK_S)
            except ProfileError:
                return None

    found = await asyncio.gather(*map(look, PORTS))
    return [server for server in found if server is not None]


async def choose_server(url: str | None, limits: Limits, say: Callable[[str], None]) -> str:
    """The root of the server: the one that was named, or the only one on the usual ports. Raises ProfileError."""
    if url is not None:
        return parse_url(url)
    found = await find_local(limits)
    for server in found:
        say(f"found {server.title} at {server.root}: {_models(server)}")
    usual = ", ".join(f"{port} ({name})" for port, name in PORTS.items())
    if not found:
        raise ProfileError(
            "no server on the usual ports of this machine", f"Looked at {usual}. Name another: profile endpoint URL."
        )
    if len(found) > 1:
        raise ProfileError(f"{len(found)} servers run on this machine", f"Name one: profile endpoint {found[0].root}")
    return found[0].root


def _models(server: Server) -> str:
    loaded = [model.shown for model in server.models if model.loaded]
    if loaded:
        return "loaded " + printable(", ".join(loaded), 120)
    return f"{len(server.models)} models, none loaded" if len(server.models) != 1 else server.models[0].shown


def choose_models(server: Server, names: Iterable[str]) -> list[ServedModel]:
    """The models that were named, or those that are loaded, or the only one. Raises ProfileError that lists them."""
    known = [model.shown for model in server.models]
    chosen: dict[str, ServedModel] = {}
    for name in names:
        model = server.model(name) or (None if known else ServedModel(name))
        if model is None:
            error = registry.unknown("model", name, known[:30])
            raise NotFound(f"{server.title} has no model {printable(name, 80)}", error.hint)
        chosen[model.name] = model
    if chosen:
        return list(chosen.values())
    loaded = [model for model in server.models if model.loaded]
    if loaded or len(known) == 1:
        return loaded or list(server.models)
    listed = printable(", ".join(known), 400)
    hint = f"It has {listed}." if known else "The server lists none; ask whoever runs it for a name."
    raise ProfileError(f"{server.title} at {server.root} has no model loaded: choose one with -m", hint)


def _no_server(client: Client, failure: Failure) -> ProfileError:
    hint = failure.hint or "Is it running? Without a URL, profile endpoint looks on the usual ports of this machine."
    return ProfileError(f"{printable(client.root)}: {client.clean(failure.words)}", hint)


Said = Mapping[str, Any]


def _lm_studio(said: Said, client: Client) -> Server | None:
    new = [each for each in _items(said, "/api/v1/models", "models", "key") if "loaded_instances" in each]
    old = [each for each in _items(said, "/api/v0/models", "data", "id") if "state" in each]
    if not new and not old:
        return None
    sizes = {each["key"]: each for each in new}
    if old:
        models = [
            ServedModel(
                name=_name(each["id"], client),
                loaded=each["state"] == "loaded",
                quant=_word(each.get("quantization"), client),
                context=_whole(each.get("loaded_context_length")) or _instance_context(sizes.get(each["id"])),
                max_context=_whole(each.get("max_context_length")),
                file_bytes=_whole(sizes.get(each["id"], {}).get("size_bytes")),
                engine="mlx" if each.get("compatibility_type") == "mlx" else None,
            )
            for each in old
            if each.get("type") != "embeddings"
        ]
    else:
        models = [
            ServedModel(
                name=_name(each["key"], client),
                loaded=bool(each["loaded_instances"]),
                quant=_word(_dict(each.get("quantization")).get("name"), client),
                context=_instance_context(each),
                max_context=_whole(each.get("max_context_length")),
                file_bytes=_whole(each.get("size_bytes")),
                engine="mlx" if each.get("format") == "mlx" else None,
            )
            for each in new
            if each.get("type") != "embedding"
        ]
    # Version 0 of its API is OpenAI's with LM Studio's statistics in the last chunk.
    chat = "/api/v0/chat/completions" if old else "/v1/chat/completions"
    return Server("LM Studio", client.root, None, tuple(models), chat, engine="llama.cpp")


def _instance_context(model: Any) -> int | None:
    instances = _dict(model).get("loaded_instances")
    first = instances[0] if isinstance(instances, list) and instances else None
    return _whole(_dict(_dict(first).get("config")).get("context_length"))


def _ollama(said: Said, client: Client) -> Server | None:
    version = _dict(said.get("/api/version")).get("version")
    imitated = _dict(said.get("/api/extra/version")).get("result") == "KoboldCpp"
    if not isinstance(version, str) or "models" not in _dict(said.get("/api/tags")) or imitated:
        return None
    running = {each["name"]: each for each in _items(said, "/api/ps", "models", "name")}
    models = [
        ServedModel(
            name=_name(each["name"], client),
            loaded=each["name"] in running,
            quant=_word(_dict(each.get("details")).get("quantization_level"), client),
            context=_whole(running.get(each["name"], {}).get("context_length")),
            file_bytes=_whole(each.get("size")),
            vram_bytes=_whole(running.get(each["name"], {}).get("size_vram")),
            digest=_word(each.get("digest"), client),
            host=_word(each.get("remote_host"), client),  # of a model in its cloud
        )
        for each in _items(said, "/api/tags", "models", "name")
        if not str(_dict(each.get("details")).get("family")).endswith("bert")  # embeds and does not answer
    ]
    return Server(
        "Ollama", client.root, _word(version, client), tuple(models), "/api/chat", native=True, engine="llama.cpp"
    )


def _llama_server(said: Said, client: Client) -> Server | None:
    props = _dict(said.get("/props"))
    listed = _items(said, "/v1/models", "data", "id")
    if "default_generation_settings" not in props and not any(each.get("owned_by") == "llamacpp" for each in listed):
        return None
    context = _whole(_dict(props.get("default_generation_settings")).get("n_ctx"))
    slots, path = _whole(props.get("total_slots")), props.get("model_path")
    models = []
    for each in listed:
        meta, name = _dict(each.get("meta")), _name(each["id"], client)
        status = _dict(each.get("status")).get("value")  # of a router of several models
        models.append(
            ServedModel(
                name=name,
                loaded=status == "loaded" if status else True,
                quant=_file_type(meta.get("ftype"))
                or _file_type(props.get("model_ftype") if len(listed) == 1 else None)
                or _quant(PurePath(path if isinstance(path, str) and len(listed) == 1 else name).name),
                context=context if len(listed) == 1 else None,
                max_context=_whole(meta.get("n_ctx_train")),
                file_bytes=_whole(meta.get("size")),
                path=path if isinstance(path, str) and len(listed) == 1 else None,
                slots=slots if len(listed) == 1 else None,
            )
        )
    version = _word(props.get("build_info"), client)
    fixed = {"ignore_eos": True}
    return Server(
        "llama-server", client.root, version, tuple(models), fixed_length=fixed, engine="llama.cpp", counts_along=True
    )


def _file_type(value: Any) -> str | None:
    """``Q4_K_M`` for ``Q4_K - Medium``, as llama.cpp calls the type of a file (src/llama-model-loader.cpp).

    None for what it has guessed from the tensors, since the file did not state it.
    """
    found = _FTYPE.match(value) if isinstance(value, str) else None
    return f"{found[1]}_{found[2]}" if found and found[2] else found[1] if found else None


def _openai_models(said: Said, client: Client, loaded: bool | None) -> tuple[ServedModel, ...]:
    return tuple(
        ServedModel(
            name=(name := _name(each["id"], client)),
            loaded=loaded,
            quant=_quant(PurePath(name).name),
            context=_whole(each.get("max_model_len")),
            max_context=_whole(each.get("max_model_len")),
        )
        for each in _items(said, "/v1/models", "data", "id")
    )


# min_tokens rather than ignore_eos: it keeps the end token from being chosen, where ignore_eos lets a model run on
# after it, which some do not survive (guidellm#982).
MIN_TOKENS = {"min_tokens": "N"}
EVERY_CHUNK = {"include_usage": True, "continuous_usage_stats": True}  # counts in each chunk, for bundled tokens


def _sglang(said: Said, client: Client) -> Server | None:
    info = _dict(said.get("/server_info")) or _dict(said.get("/get_server_info"))
    owned = any(each.get("owned_by") == "sglang" for each in _items(said, "/v1/models", "data", "id"))
    if not owned and not {"model_path", "mem_fraction_static"} <= info.keys():
        return None
    models = _openai_models(said, client, True)
    version = _word(info.get("version"), client)
    return Server(
        "SGLang", client.root, version, models, fixed_length=MIN_TOKENS, stream_options=EVERY_CHUNK, engine="sglang"
    )


def _vllm(said: Said, client: Client) -> Server | None:
    if not any(each.get("owned_by") == "vllm" for each in _items(said, "/v1/models", "data", "id")):
        return None
    version = _word(_dict(said.get("/version")).get("version"), client)
    models = _openai_models(said, client, True)
    return Server(
        "vLLM", client.root, version, models, fixed_length=MIN_TOKENS, stream_options=EVERY_CHUNK, engine="vllm"
    )


def _transformers(said: Said, client: Client) -> Server | None:
    routes = _dict(_dict(said.get("/openapi.json")).get("paths"))
    if not {"/load_model", "/reset", "/v1/chat/completions"} <= routes.keys():
        return None
    models = _openai_models(said, client, None)
    return Server("transformers serve", client.root, None, models, engine="transformers")


def _kobold(said: Said, client: Client) -> Server | None:
    """KoboldCpp, which answers on Ollama's paths too."""
    stated = _dict(said.get("/api/extra/version"))
    if stated.get("result") != "KoboldCpp":
        return None
    models = _openai_models(said, client, True)
    return Server("KoboldCpp", client.root, _word(stated.get("version"), client), models, engine="llama.cpp")


def _other(said: Said, client: Client) -> Server | None:
    if not isinstance(_dict(said.get("/v1/models")).get("data"), list):
        return None
    return Server("OpenAI-compatible server", client.root, None, _openai_models(said, client, None))


LOOKS = (_lm_studio, _ollama, _kobold, _llama_server, _sglang, _vllm, _transformers, _other)


def _items(said: Said, path: str, name: str, identity: str) -> list[dict[str, Any]]:
    """The objects of a list that a server gave at ``path``: those with a text as ``identity``."""
    value = _dict(said.get(path)).get(name)
    items = value[:MAX_MODELS] if isinstance(value, list) else []
    return [each for each in items if isinstance(each, dict) and isinstance(each.get(identity), str)]


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**60 else None


def _name(value: str, client: Client) -> str:
    """The id of a model as requests must repeat it."""
    return client.clean(value)[:LONGEST_NAME].encode("utf-8", "replace").decode()


def _word(value: Any, client: Client) -> str | None:
    return printable(client.clean(value), 40) if isinstance(value, str) and value else None


def _quant(name: str) -> str | None:
    """The quantization in the name of a model or file, such as ``Q4_K_M``."""
    found = _QUANT.search(re.sub(r"\.gguf$", "", name[:LONGEST_NAME], flags=re.IGNORECASE))
    return found[1] if found else None
