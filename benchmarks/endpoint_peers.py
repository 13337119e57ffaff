"""The same llama-server measured by `profile endpoint`, llama-benchy and GuideLLM in turns, against its own log.

    LLAMA_SERVER=… python benchmarks/endpoint_peers.py model.gguf --tokenizer FOLDER --bin clients/bin --rounds 3

``--bin`` has the programs ``llama-benchy`` and ``guidellm``, in an environment of their own, since their dependencies
differ from ours. ``--tokenizer`` is a folder with the model's tokenizer, which both want.

The server logs the tokens and the time of every request. So each client is compared with what the server says of the
requests of that client, and it does not matter that a busy machine makes some requests slower than others.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from statistics import median
from typing import Any

from profiler.run.prompts import varied_text

TESTS = Path(__file__).parents[1] / "tests"
LOGGED = re.compile(
    r"prompt eval time = +([\d.]+) ms / +(\d+) tokens.*?\n(?:.*\n)*?.*?  eval time = +([\d.]+) ms / +(\d+) tokens"
)


@dataclass(frozen=True)
class Seen:
    """What a client reports: medians. Seconds, tokens a second, tokens."""

    requests: int
    sent: int
    prompt_tokens: float | None
    ttft_s: float
    prefill_tps: float | None
    decode_tps: float
    tpot_s: float | None


@dataclass(frozen=True)
class Asked:
    url: str
    context: int
    tokens: int
    reps: int
    tokenizer: Path
    programs: Path
    folder: Path
    book: str
    seed: int  # of GuideLLM's prompts: those of one seed are found in the prefix cache of the server


def ours(asked: Asked) -> Seen:
    command = [sys.executable, "-m", "profiler", "endpoint", asked.url, "-c", asked.context, "-n", asked.tokens]
    (stored,) = json.loads(_run([*command, "-r", asked.reps, "-o", "json"]))
    row = stored["serving"]
    return Seen(
        row["requests"],
        asked.reps,
        median(row["prompt_tokens"]),
        row["ttft_s"]["p50"],
        row["prefill_tps"]["p50"],
        row["decode_tps"]["p50"],
        row["tpot_s"]["p50"],
    )


def llama_benchy(asked: Asked) -> Seen:
    file = asked.folder / "benchy.json"
    options = ["--model", "model", "--tokenizer", asked.tokenizer, "--pp", asked.context, "--tg", asked.tokens]
    options += ["--runs", asked.reps, "--no-cache", "--exact-tg", "--latency-mode", "none", "--skip-coherence"]
    options += ["--book-url", asked.book, "--format", "json", "--save-result", file]
    _run([asked.programs / "llama-benchy", "--base-url", f"{asked.url}/v1", *options])
    (found,) = json.loads(file.read_text())["benchmarks"]
    ttft = found["ttfr"]["values"]
    prefill, decode = (median(found[name]["values"]) for name in ("pp_throughput", "tg_throughput"))
    return Seen(len(ttft), asked.reps, None, median(ttft) / 1000, prefill, decode, None)


def guidellm(asked: Asked) -> Seen:
    file = asked.folder / "guidellm.json"
    options = ["--profile", "kind=synchronous", "--constraint", f"kind=max_requests,count={asked.reps}"]
    options += ["--tokenizer", f"kind=huggingface_auto,model={asked.tokenizer}", "--disable-console"]
    options += ["--data", f"kind=synthetic_text,prompt_tokens={asked.context},output_tokens={asked.tokens}"]
    options += ["--seed", f"kind=static,value={asked.seed}", "--output", f"kind=json,path={file}"]
    _run([asked.programs / "guidellm", "run", "--backend", f"kind=openai_http,target={asked.url},model=m", *options])
    (found,) = json.loads(file.read_text())["benchmarks"]
    done = found["requests"]["successful"]

    def middle(name: str) -> float:
        return median(each[name] for each in done)

    return Seen(
        len(done),
        asked.reps,
        middle("prompt_tokens"),
        middle("time_to_first_token_ms") / 1000,
        None,
        1000 / middle("inter_token_latency_ms"),
        middle("time_per_output_token_ms") / 1000,
    )


def _run(command: Sequence[Any]) -> str:
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    ran = subprocess.run(
        [str(word) for word in command], env=environment, capture_output=True, text=True, check=False
    )
    if ran.returncode:
        raise SystemExit(f"{command[0]} failed:\n{ran.stdout[-1000:]}\n{ran.stderr[-2000:]}")
    return ran.stdout


def logged(text: str, asked: Asked, seen: Seen) -> dict[str, float]:
    """Medians of what the server logged of the requests that ``seen`` is of: the last ones with such an answer."""
    whole = [tuple(map(float, match)) for match in LOGGED.findall(text)]
    own = [each for each in whole if each[3] == asked.tokens][-seen.requests :]
    return {
        "prompt_s": median(each[0] for each in own) / 1000,
        "prompt_tokens": median(each[1] for each in own),
        "prefill_tps": median(1000 * each[1] / each[0] for each in own),
        "decode_tps": median(1000 * (each[3] - 1) / each[2] for each in own),
    }


def served(folder: Path) -> str:
    """The URL of a text for llama-benchy, which otherwise fetches a novel."""
    (folder / "book.txt").write_text(varied_text(60_000, 1))
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_address[1]}/book.txt"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gguf", type=Path)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--bin", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--reps", type=int, default=5)
    parser.add_argument("--same-seed", action="store_true", help="GuideLLM sends the same prompts in each round")
    parser.add_argument("--only", default="ours,llama_benchy,guidellm")
    given = parser.parse_args()
    sys.path.insert(0, str(TESTS))
    from servers.launch import llama_server

    clients: list[Callable[[Asked], Seen]] = [
        each for each in (ours, llama_benchy, guidellm) if each.__name__ in given.only
    ]
    ratios: dict[str, list[dict[str, float | None]]] = {client.__name__: [] for client in clients}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        log = folder / "server.log"
        book = served(folder)
        with llama_server(given.gguf, "--log-file", str(log)) as url:
            for turn in range(given.rounds):
                seed = 1 if given.same_seed else turn + 1
                asked = Asked(
                    url, given.context, given.tokens, given.reps, given.tokenizer, given.bin, folder, book, seed
                )
                for client in clients[turn % len(clients) :] + clients[: turn % len(clients)]:
                    before = len(log.read_text())
                    seen = client(asked)
                    own = logged(log.read_text()[before:], asked, seen)
                    ratios[client.__name__].append(
                        {
                            "answered": seen.requests / seen.sent,
                            "TTFT ÷ prompt time": seen.ttft_s / own["prompt_s"],
                            "prefill ÷ server's": seen.prefill_tps and seen.prefill_tps / own["prefill_tps"],
                            "decode ÷ server's": seen.decode_tps / own["decode_tps"],
                            "TPOT × decode": seen.tpot_s and seen.tpot_s * own["decode_tps"],
                            "prompt tokens": seen.prompt_tokens,
                            "processed": own["prompt_tokens"],
                        }
                    )
                    print(turn, client.__name__, seen, own, file=sys.stderr, flush=True)
    for client_name, rounds in ratios.items():
        print(client_name)
        for figure in rounds[0]:
            values = [value for each in rounds if (value := each[figure]) is not None]
            print(f"  {figure:20} {' '.join(f'{value:.3f}' for value in values) or '–'}")


if __name__ == "__main__":
    main()
