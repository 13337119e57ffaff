"""A server of language models without a model: its answers, delays and faults are scripted.

It speaks in the shapes that LM Studio, Ollama, llama-server, vLLM, SGLang and ``transformers serve`` document. It
runs in a thread of the tests' process on a free port of the loopback, or as a program of its own:

    python -m fakes.openai_server --port 8000 --gap 0.02
"""

from __future__ import annotations

import argparse
import asyncio
import json
import ssl
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

Body = dict[str, Any]

FAULTS = {  # bytes that come after some chunks, beside: hang, stall, reset, short (a proper end without an end), open
    "cut": b'data: {"choices": [{"delta"',
    "broken": b'data: {"choices": [{"delta": {"content": "x}]\n\n',
    "error": b'event: error\ndata: {"error": {"message": "CUDA out of memory", "code": 500}}\n\n',
    "flood": b'data: {"choices": [{"delta": {"content": "' + b"x" * 500_000 + b'"}}]}\n\n',
    "long-line": b"x" * 500_000,
}


@dataclass(frozen=True)
class Script:
    """One answer. ``tokens`` is cut to what is asked for; times in seconds."""

    tokens: tuple[str, ...] = tuple(f"word{n} " for n in range(128))
    reasoning: tuple[str, ...] = ()
    reasoning_as: str = "reasoning_content"  # or reasoning, or think: tags in the content
    first_s: float = 0.0
    gap_s: float = 0.0
    load_s: float = 0.0  # of the first request to a model
    bundle: int = 1  # tokens of a chunk
    usage: bool = True
    prompt_tokens: int | None = None  # else 4 for 3 words, and 20 for the chat template
    cached_tokens: int | None = None
    counted: int | None = None  # tokens of the answer as usage has them, if not all
    fault: str | None = None  # see ``FAULTS``
    fault_after: int = 3  # chunks
    one_answer: bool = False  # a connection that was used once is dead, though nothing says so
    dies_s: float = 0.0  # after which it is
    bytewise: bool = False
    stamped: bool = False  # every token is the time.perf_counter() at which it was sent
    done: bool = True  # whether the stream ends in [DONE]
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None  # sent as it is instead of a stream
    refuses: tuple[str, ...] = ()  # fields of a request that are an error
    timings: Body | None = None  # as the server would state them


class FakeServer:
    """A context manager; ``url`` is where it listens, ``requests`` what it was asked, ``script`` what comes next."""

    def __init__(
        self,
        kind: str = "openai",
        script: Script | None = None,
        models: tuple[str, ...] = ("tiny-Q4_K_M",),
        tls: ssl.SSLContext | None = None,
        port: int = 0,
    ):
        self.kind, self.models, self.loaded = kind, models, set(models[:1])
        self.script = script or Script()
        self.choose: Callable[[Body, int], Script] | None = None  # another script by request
        self.requests: list[Body] = []
        self.paths: list[tuple[str, dict[str, str]]] = []  # every path that was asked for, with its headers
        self.context = 8192
        self.get_status = 200
        self.mute: tuple[str, ...] = ()  # paths that are not answered in time
        self.file_type: str | None = None  # as llama-server states it of its model
        self.described: Body = {}  # more of a model in the list of LM Studio or Ollama
        self.url = ""
        self._used: weakref.WeakSet[asyncio.Transport] = weakref.WeakSet()
        self._tls, self._port = tls, port
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> FakeServer:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        """Stop, unless it has stopped already."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self.serve(self._ready.set, self._port, self._tls))
        self._loop.close()

    async def serve(self, ready: Callable[[], None], port: int = 0, tls: ssl.SSLContext | None = None) -> None:
        self._stop = asyncio.Event()
        app = web.Application(client_max_size=1 << 26)
        app.router.add_route("*", "/{path:.*}", self._handle)
        runner = web.AppRunner(app, shutdown_timeout=0.01, handler_cancellation=True)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", port, ssl_context=tls)
        await site.start()
        assert runner.addresses
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{runner.addresses[0][1]}"
        ready()
        await self._stop.wait()
        await runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        self.paths.append((request.path, dict(request.headers)))
        if request.path in self.mute:
            await asyncio.sleep(60)
        if request.method == "GET" and self.get_status != 200:
            headers = {"Location": "https://elsewhere.example/"}
            return web.json_response({"error": "not for you"}, status=self.get_status, headers=headers)
        if request.method == "GET":
            return self._get(request.path)
        if not request.path.endswith(("/chat/completions", "/completions", "/api/chat")):
            return web.json_response({"error": "not found"}, status=404)
        assert request.transport is not None
        if request.transport in self._used and self.script.one_answer:
            await asyncio.sleep(self.script.dies_s)
            request.transport.abort()
            return web.Response()
        self._used.add(request.transport)
        asked = await request.json()
        self.requests.append(asked)
        script = self.choose(asked, len(self.requests)) if self.choose else self.script
        refused = [name for name in script.refuses if name in asked]
        if refused:
            return web.json_response({"detail": f"Unexpected fields in the request: {refused}"}, status=422)
        if asked.get("model") not in self.models:
            words = f"model '{asked.get('model')}' not found"
            return web.json_response({"error": {"message": words, "code": 404}}, status=404)
        return await self._answer(request, asked, script)

    # What each kind says of itself

    def _get(self, path: str) -> web.Response:
        known = getattr(self, f"_get_{self.kind.replace('-', '_')}")(path)
        if known is None and self.kind == "lmstudio":
            return web.json_response(
                {"error": f"Unexpected endpoint or method. (GET {path})"}
            )  # with 200, as it does
        if isinstance(known, str):
            return web.Response(text=known, content_type="text/html")
        return web.json_response(
            known if known is not None else {"detail": "Not Found"}, status=200 if known else 404
        )

    def _listed(self, **more: Any) -> Body:
        return {"object": "list", "data": [{"id": name, "object": "model", **more} for name in self.models]}

    def _get_openai(self, path: str) -> Body | None:
        return self._listed(owned_by="someone") if path == "/v1/models" else None

    def _get_vllm(self, path: str) -> Body | None:
        listed = self._listed(owned_by="vllm", max_model_len=self.context, root="/models/tiny")
        return {"/v1/models": listed, "/version": {"version": "0.19.2"}}.get(path)

    def _get_sglang(self, path: str) -> Body | None:
        listed = self._listed(owned_by="sglang", max_model_len=self.context)
        info = {"model_path": "/models/tiny", "mem_fraction_static": 0.88, "version": "0.5.9"}
        return {"/v1/models": listed, "/get_server_info": info}.get(path)

    def _get_transformers(self, path: str) -> Body | None:
        routes: Body = {"/load_model": {}, "/reset": {}, "/v1/chat/completions": {}, "/v1/models": {}}
        return {"/v1/models": self._listed(owned_by="org"), "/openapi.json": {"paths": routes}}.get(path)

    def _get_llama_server(self, path: str) -> Body | None:
        meta = {"n_ctx_train": 32768, "n_params": 268098176, "size": 241410208}
        props = {
            "default_generation_settings": {"n_ctx": self.context, "params": {}},
            "total_slots": 4,
            "model_path": f"/models/{self.models[0]}.gguf",
            "build_info": "b7700-abcdef0",
            "model_ftype": self.file_type,
        }
        return {"/v1/models": self._listed(owned_by="llamacpp", meta=meta), "/props": props}.get(path)

    def _get_lmstudio(self, path: str) -> Body | None:
        old, new = [], []
        for name in self.models:
            loaded = name in self.loaded
            old.append(
                {"id": name, "object": "model", "type": "llm", "arch": "gemma3", "compatibility_type": "gguf",
                 "quantization": "Q4_K_M", "state": "loaded" if loaded else "not-loaded", "max_context_length": 32768}
                | ({"loaded_context_length": self.context} if loaded else {}) | self.described
            )  # fmt: skip
            instances = [{"id": name, "config": {"context_length": self.context}}] if loaded else []
            new.append(
                {"type": "llm", "key": name, "quantization": {"name": "Q4_K_M", "bits_per_weight": 4},
                 "size_bytes": 241410208, "loaded_instances": instances, "max_context_length": 32768}
            )  # fmt: skip
        old.append({"id": "text-embedding-nomic", "type": "embeddings", "state": "not-loaded"})
        return {
            "/api/v0/models": {"object": "list", "data": old},
            "/api/v1/models": {"models": new},
            "/v1/models": self._listed(owned_by="organization_owner"),
        }.get(path)

    def _get_ollama(self, path: str) -> Body | None:
        details = {"format": "gguf", "family": "gemma3", "quantization_level": "Q4_K_M"}
        tags = [
            {"name": name, "model": name, "size": 241410208, "digest": "b0c1", "details": details} | self.described
            for name in self.models
        ]
        running = [
            {"name": name, "size": 300_000_000, "size_vram": 290_000_000, "context_length": self.context}
            for name in self.models
            if name in self.loaded
        ]
        return {
            "/api/version": {"version": "0.13.1"},
            "/api/tags": {"models": tags},
            "/api/ps": {"models": running},
            "/v1/models": self._listed(owned_by="library"),
        }.get(path)

    def _get_kobold(self, path: str) -> Body | None:
        told = {"/api/extra/version": {"result": "KoboldCpp", "version": "1.103"}}
        return told.get(path) or (self._get_ollama(path) if path != "/api/ps" else None)

    def _get_page(self, path: str) -> str:
        return "<!DOCTYPE html><html><body>a router's login</body></html>"

    # Answers

    async def _answer(self, request: web.Request, asked: Body, script: Script) -> web.StreamResponse:
        cold = asked["model"] not in self.loaded
        self.loaded.add(asked["model"])
        if script.fault == "hang":
            await asyncio.sleep(3600)
        if script.body is not None or script.status != 200:
            body = script.body if script.body is not None else b'{"error": {"message": "overloaded"}}'
            return web.Response(
                body=body, status=script.status, headers=script.headers or {"Content-Type": "application/json"}
            )
        if cold and script.load_s:
            await asyncio.sleep(script.load_s)
        native = request.path == "/api/chat"
        kind = "application/x-ndjson" if native else "text/event-stream"
        response = web.StreamResponse(headers={"Content-Type": kind} | script.headers)
        await response.prepare(request)
        count = 0
        async for chunk in self._chunks(asked, script, native, cold):
            if script.fault and count == script.fault_after and await self._fault(request, response, script.fault):
                return response
            await self._write(response, chunk, native, script.bytewise)
            count += 1
        if script.done and not native:
            await response.write(b"data: [DONE]\n\n")
        if script.fault == "open":
            await asyncio.sleep(3600)
        return response

    async def _write(self, response: web.StreamResponse, chunk: Body, native: bool, bytewise: bool) -> None:
        text = json.dumps(chunk)
        data = f"{text}\n".encode() if native else f"data: {text}\n\n".encode()
        for part in [data[n : n + 1] for n in range(len(data))] if bytewise else [data]:
            await response.write(part)

    async def _fault(self, request: web.Request, response: web.StreamResponse, fault: str) -> bool:
        """Whether the answer ends here."""
        if fault == "open":
            return False
        await response.write(FAULTS.get(fault, b""))
        if fault in ("cut", "reset"):
            assert request.transport is not None
            request.transport.abort() if fault == "reset" else request.transport.close()
        elif fault == "stall":
            await asyncio.sleep(3600)
        while fault in ("flood", "long-line"):
            await response.write(FAULTS[fault])
        return True

    async def _chunks(self, asked: Body, script: Script, native: bool, cold: bool) -> AsyncIterator[Body]:
        most = asked.get("options", asked).get("num_predict" if native else "max_tokens", 1 << 30)
        pieces = [(text, True) for text in script.reasoning] + [(text, False) for text in script.tokens]
        if script.reasoning_as == "think" and script.reasoning:
            pieces = [("<think>", False), *((text, False) for text, _ in pieces[: len(script.reasoning)]),
                      ("</think>", False), *pieces[len(script.reasoning) :]]  # fmt: skip
        pieces = pieces[:most]
        prompt = script.prompt_tokens if script.prompt_tokens is not None else _prompt_tokens(asked)
        if script.first_s:
            await asyncio.sleep(script.first_s)
        begin = asyncio.get_running_loop().time()
        for number, start in enumerate(range(0, len(pieces), script.bundle)):
            part = pieces[start : start + script.bundle]
            at = begin + number * script.gap_s
            delay = at - asyncio.get_running_loop().time()
            if delay > 0:
                await asyncio.sleep(delay)
            content = "".join(text for text, thought in part if not thought)
            if script.stamped:
                content = f"{time.perf_counter():.7f} "
            thinking = "".join(text for text, thought in part if thought)
            yield self._piece(asked, script, native, content, thinking, prompt, start + len(part))
        yield self._last(asked, script, native, prompt, len(pieces), len(pieces) == most, cold)
        if not native and script.usage and "stream_options" in asked:
            counted = len(pieces) if script.counted is None else min(script.counted, len(pieces))
            yield {"choices": [], "usage": _usage(prompt, counted, script)}

    def _piece(
        self, asked: Body, script: Script, native: bool, content: str, thinking: str, prompt: int, so_far: int
    ) -> Body:
        if native:
            message = {"role": "assistant", "content": content} | ({"thinking": thinking} if thinking else {})
            return {"model": asked["model"], "created_at": "2026-11-29T00:00:00Z", "message": message, "done": False}
        if "prompt" in asked:
            return {"object": "text_completion", "choices": [{"index": 0, "text": content, "finish_reason": None}]}
        delta = ({"content": content} if content else {}) | ({script.reasoning_as: thinking} if thinking else {})
        counting = asked.get("stream_options", {}).get("continuous_usage_stats")
        return {
            "id": "chatcmpl-1",
            "object": "chat.completion.chunk",
            "model": asked["model"],
            "choices": [{"index": 0, "delta": delta, "finish_reason": None}],
        } | ({"usage": _usage(prompt, so_far, script)} if counting else {})

    def _last(
        self, asked: Body, script: Script, native: bool, prompt: int, tokens: int, full: bool, cold: bool
    ) -> Body:
        reason = "length" if full else "stop"
        if native:
            counts = {"prompt_eval_count": prompt, "eval_count": tokens} if script.usage else {}
            load = {"load_duration": int(1e9 * script.load_s) if cold else 1_000_000}
            message = {"role": "assistant", "content": ""}
            return {
                "message": message,
                "done": True,
                "done_reason": reason,
                **load,
                **counts,
                **(script.timings or {}),
            }
        last: Body = {"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]}
        if script.timings is not None:
            last |= {"stats" if self.kind == "lmstudio" else "timings": script.timings}
        if self.kind == "lmstudio":
            last |= {"runtime": {"name": "llama.cpp-linux-x86_64-avx2", "version": "1.24.0"}}
        return last


def _usage(prompt: int, completion: int, script: Script) -> Body:
    found: Body = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    if script.cached_tokens is not None:
        found["prompt_tokens_details"] = {"cached_tokens": script.cached_tokens}
    if script.reasoning:
        found["completion_tokens_details"] = {"reasoning_tokens": min(completion, len(script.reasoning))}
    return found


def _prompt_tokens(asked: Body) -> int:
    text = asked.get("prompt") or " ".join(message["content"] for message in asked["messages"])
    return 20 + len(text.split()) * 4 // 3 + sum(not char.isascii() for char in text) // 2


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--kind", default="vllm")
    parser.add_argument("--gap", type=float, default=0.02)
    parser.add_argument("--first", type=float, default=0.1)
    parser.add_argument("--tokens", type=int, default=100_000)
    parser.add_argument("--stamped", action="store_true")
    asked = parser.parse_args()
    script = Script(("word ",) * asked.tokens, gap_s=asked.gap, first_s=asked.first, stamped=asked.stamped)
    server = FakeServer(asked.kind, script)
    asyncio.run(server.serve(lambda: print(server.url, flush=True), asked.port))


if __name__ == "__main__":
    main()
