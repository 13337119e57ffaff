"""The hub, against a stand-in of its HTTP interface: what is fetched, what is not, and what is said when it fails.

Each case runs in a process of its own, because huggingface_hub reads its environment when it is imported.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from fakes import weights

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CONFIG = {
    "model_type": "llama",
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 5,
    "tie_word_embeddings": True,
}


WEIGHTS = weights.described(CONFIG)
FIRST = "model.embed_tokens.weight"
REST = {name: shape for name, shape in WEIGHTS.items() if name != FIRST}


INDEX = {
    "metadata": {},
    "weight_map": {name: "a.safetensors" if name == FIRST else "b.safetensors" for name in WEIGHTS},
}
FILES = {
    "config.json": json.dumps(CONFIG).encode(),
    "a.safetensors": weights.content({FIRST: WEIGHTS[FIRST]}),
    "b.safetensors": weights.content(REST),
    "model.safetensors.index.json": json.dumps(INDEX).encode(),
    "pytorch_model.bin": b"a pickle",
    "modeling_evil.py": b"raise SystemExit",
    "original/consolidated.safetensors": b"x" * 1000,
}


class Hub(BaseHTTPRequestHandler):
    """The part of the hub's interface that a client needs to look at and download a model."""

    protocol_version = "HTTP/1.1"
    seen: list[tuple[str, str, str | None]]  # method, path, range

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def log_message(self, *args: Any) -> None:
        pass

    def _answer(self, body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        type(self).seen.append((self.command, path, self.headers.get("Range")))
        if "/gated" in path:
            return self._send(403, b"{}", {"X-Error-Code": "GatedRepo"}, body)
        if "/owner/small" not in path:
            return self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"}, body)
        if "/nope" in path:
            return self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"}, body)
        file = re.fullmatch(r"/owner/small/resolve/[^/]+/(.+)", path)
        if file:
            return self._file(file[1], body)
        return self._send(200, json.dumps(self._listing(path)).encode(), {}, body)

    def _listing(self, path: str) -> Any:
        if "/tree/" in path:
            return [
                {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for name, data in FILES.items()
            ]
        siblings = [{"rfilename": name} for name in FILES]
        return {"id": "owner/small", "sha": COMMIT, "siblings": siblings, "private": False, "tags": []}

    def _file(self, name: str, body: bool) -> None:
        data = FILES.get(name)
        if data is None:
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}, body)
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha1(data).hexdigest()}"', "Accept-Ranges": "bytes"}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted and body:
            start, end = int(wanted[1]), min(int(wanted[2] or len(data)), len(data) - 1)
            headers["Content-Range"] = f"bytes {start}-{end}/{len(data)}"
            return self._send(206, data[start : end + 1], headers, body)
        return self._send(200, data, headers, body)

    def _send(self, status: int, data: bytes, headers: dict[str, str], body: bool) -> None:
        self.send_response(status)
        for key, value in {"Content-Type": "application/json", **headers, "Content-Length": str(len(data))}.items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            self.wfile.write(data)


SCRIPT = """
import json, sys
from profiler.errors import ProfileError
from profiler.models import hub
from profiler.models.resolve import resolve

def value(expression):
    try:
        return eval(expression)
    except ProfileError as error:
        return str(error)

print(json.dumps([value(expression) for expression in sys.argv[1:]], default=str))
"""


class Client:
    """Runs expressions in a process of their own, with a cache of their own, against the stand-in."""

    def __init__(self, endpoint: str, cache: Path, seen: list[tuple[str, str, str | None]]) -> None:
        self.endpoint, self.cache, self.seen = endpoint, cache, seen

    def run(self, *expressions: str, **environment: str) -> list[Any]:
        """The values of ``expressions``, worked out in one new process; a ProfileError becomes its text."""
        self.seen.clear()
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
        kept |= {"HF_ENDPOINT": self.endpoint, "HF_HOME": str(self.cache), "HF_HUB_DISABLE_TELEMETRY": "1"}
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, *expressions],
            env=kept | environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        values: list[Any] = json.loads(done.stdout)
        return values

    def fetched(self) -> list[str]:
        """Names of the files whose content was asked for."""
        return [path.rpartition("/")[2] for method, path, _ in self.seen if method == "GET" and "/resolve/" in path]


RESOLVED = (
    "(lambda m: [m.source.kind, m.source.revision, m.real_id is not None, m.geometry.parameters])"
    "(resolve({name!r}{more}))"
)


def resolved(name: str, more: str = "") -> str:
    return RESOLVED.format(name=name, more=more)


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    handler = type("Seen", (Hub,), {"seen": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield Client(f"http://127.0.0.1:{server.server_port}", tmp_path / "cache", handler.seen)
    server.shutdown()
    server.server_close()
    thread.join()


PARAMETERS = 5 * 8 + 8 + 4 * 8 * 8 + 3 * 8 * 16 + 2 * 8


def test_looking_at_a_model_fetches_its_config_and_nothing_else(client: Client) -> None:
    assert client.run(resolved("owner/small")) == [["hub", COMMIT, False, PARAMETERS]]
    assert client.fetched() == ["config.json"]


def test_once_looked_at_a_model_is_known_offline(client: Client) -> None:
    client.run(resolved("owner/small"))
    assert client.run(resolved("owner/small", ", offline=True")) == [["hub", COMMIT, False, PARAMETERS]]
    assert client.seen == []


def test_a_download_takes_safetensors_and_configs_and_never_pickles_or_code(client: Client) -> None:
    wanted = {"config.json", "a.safetensors", "b.safetensors", "model.safetensors.index.json"}
    size = "hub.download_size('owner/small')"
    before, folder, after = client.run(size, "hub.download('owner/small')", size)
    assert before == sum(len(FILES[name]) for name in wanted) and after == 0
    assert {path.name for path in Path(folder).iterdir()} == wanted
    assert set(client.fetched()) == wanted


def test_a_downloaded_model_is_real_and_the_hub_is_not_asked_again(client: Client) -> None:
    snapshot = "hub.downloaded_snapshot('owner/small')"
    before, folder, after = client.run(snapshot, "hub.download('owner/small')", snapshot)
    assert before is None and folder == after
    assert client.run(resolved("owner/small")) == [["hub", COMMIT, True, PARAMETERS]]
    assert client.seen == []
    (Path(folder) / "b.safetensors").unlink()
    missing, why = client.run(snapshot, "hub.why_not_downloaded('owner/small')")
    assert missing is None
    assert why.startswith("its download is not complete")


def test_what_the_hub_refuses_is_said_in_words(client: Client) -> None:
    expected = {
        "owner/absent": "no model owner/absent on the hub, or no permission to see it",
        "owner/gated": "owner/gated is gated on the hub",
        "owner/small@nope": "owner/small has no revision nope",
        "own er/small": "own er/small is not a valid Hugging Face id",
    }
    said = client.run(*(resolved(name) for name in expected))
    assert [line.partition("\n")[0] for line in said] == list(expected.values())


def test_without_a_connection_a_model_that_is_not_in_the_cache_is_one_line_at_once(client: Client) -> None:
    nowhere = {"HF_ENDPOINT": "http://127.0.0.1:9"}
    [unreachable] = client.run(resolved("owner/small"), **nowhere)
    [offline] = client.run(resolved("owner/small"), HF_HUB_OFFLINE="1")
    first, hint = unreachable.split("\n")
    assert first == "owner/small is not in the hub's cache and the hub cannot be reached (Connection refused)"
    assert "a folder, a .gguf file or a catalog name" in hint
    assert "is not in the hub's cache" in offline


def test_without_a_connection_the_cache_is_used(client: Client) -> None:
    client.run(resolved("owner/small"))
    known = client.run(resolved("owner/small"), HF_ENDPOINT="http://127.0.0.1:9")
    assert known == client.run(resolved("owner/small"), HF_HUB_OFFLINE="1") == [["hub", COMMIT, False, PARAMETERS]]


def test_a_model_without_a_config_says_what_to_do(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(FILES, "config.json")
    [said] = client.run(resolved("owner/small"))
    assert said.startswith("owner/small has no config.json") and "GGUF" in said


def test_a_pipe_or_a_huge_file_as_cached_reference_is_not_read(client: Client) -> None:
    refs = client.cache / "hub" / "models--owner--name" / "refs"
    refs.mkdir(parents=True)
    os.mkfifo(refs / "main")
    (refs / "big").write_bytes(b"0" * 5000)
    pipe, big = client.run("hub.downloaded_snapshot('owner/name')", "hub.downloaded_snapshot('owner/name', 'big')")
    assert "the cached reference of owner/name is a pipe" in pipe
    assert "the cached reference of owner/name is larger than 1.00 KiB" in big
