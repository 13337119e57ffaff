"""``profile endpoint`` as people type it: tables, rows, one clear line for what is wrong, and no key anywhere."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from fakes.openai_server import FakeServer, Script

from profiler.backends.endpoint.client import KEY
from profiler.cli import main
from profiler.devices.cpu import process_bytes
from profiler.errors import StoreError
from profiler.results.store import Store

CANARY = "sk-canary-4f9d0c7b2a"
SMALL = ("-n", "16", "-r", "2")


def run(*words: str) -> Result:
    return CliRunner().invoke(main, ["endpoint", *words], catch_exceptions=False)


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY, raising=False)


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer("vllm", Script(gap_s=0.002)) as found:
        yield found


def test_a_table_fits_eighty_columns_and_says_what_was_measured(server: FakeServer) -> None:
    ran = run(server.url, "-c", "64,4k", "--concurrency", "1,4", *SMALL, "--slo", "ttft=2s")
    assert ran.exit_code == 0
    lines = ran.stdout.splitlines()
    assert lines[0] == f"vLLM 0.19.2 at {server.url}"
    assert "tiny-Q4_K_M · Q4_K_M · context 8,192" in lines
    heads = "prompt n TTFT s prefill decode total ITL ms good/s notes"
    start = next(place for place, line in enumerate(lines) if line.split() == heads.split())
    assert [line.split()[:2] for line in lines[start + 2 : start + 6]] == [
        ["64", "1"], ["64", "4"], ["4,096", "1"], ["4,096", "4"],
    ]  # fmt: skip
    assert max(map(len, lines)) <= 80
    assert ran.stderr.splitlines()[0].startswith("tiny-Q4_K_M, 64 tokens, 1 at a time: 2 requests in ")


@pytest.mark.parametrize("output", ["json", "jsonl", "csv", "md"])
def test_rows_come_in_every_format(server: FakeServer, output: str) -> None:
    ran = run(server.url, *SMALL, "-o", output)
    assert ran.exit_code == 0
    if output.startswith("json"):
        rows: list[dict[str, Any]] = json.loads(ran.stdout) if output == "json" else [json.loads(ran.stdout)]
        (row,) = rows
        case, serving = row["case"], row["serving"]
        assert (case["backend"], case["model"], case["quant"]) == ("endpoint", "tiny-Q4_K_M", "q4_k_m")
        assert (serving["server"], serving["model"]) == ("vLLM", "tiny-Q4_K_M")
        assert (row["outcome"], serving["requests"], serving["failed"]) == ("ok", 2, 0)
        assert serving["tokens_by"] == "usage"
        assert serving["output_tokens"] == [16, 16]
        assert serving["cached_tokens"] == [None, None]
        assert serving["ttft_s"]["p95"] is None  # two values have no tail
        assert serving["decode_tps"]["n"] == len(row["decode"]["seconds"]) == 2
    else:
        assert "tiny-Q4_K_M" in ran.stdout.replace("\\", "")


def test_a_failed_case_is_a_row_and_exit_code_one(server: FakeServer) -> None:
    server.choose = lambda asked, number: Script(fault="error") if number == 4 else Script()
    ran = run(server.url, *SMALL)
    assert ran.exit_code == 1
    said = "[1] 1 of 2 requests failed: the server reports an error in the stream: CUDA out of memory"
    assert said in " ".join(ran.stdout.split())


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["{closed}"], 2, "no server there: connection refused"),
        (["{page}"], 2, "it lists no models"),
        (["{vllm}", "-m", "nope"], 2, "vLLM 0.19.2 has no model nope"),
        (["{vllm}", "--prompt", "{empty}"], 2, "is empty"),
        (["{vllm}", "--prompt", "{missing}"], 2, "there is no such file"),
        (["{vllm}", "--slo", "fast"], 2, "is not a limit such as ttft=2s"),
        (["{vllm}", "-c", "x"], 2, "is not a count"),
        (["http://user:pw@host"], 2, "a user name, a password or a query"),
        (["ftp://host"], 2, "is not the URL of a server"),
        (["{tls}"], 2, "TLS failed"),
        (["{vllm}", "--prompt", ""], 2, "it is empty"),
        (["{vllm}", "--concurrency", "1000"], 2, "1,000 streams are more than 512"),
        (["{whole}"], 1, "it does not stream"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_is_wrong_is_one_clear_line(
    server: FakeServer, words: list[str], code: int, said: str, tmp_path: Path
) -> None:
    (tmp_path / "empty.txt").touch()
    with socket.socket() as closed, socket.socket() as plain:
        closed.bind(("127.0.0.1", 0))
        whole = FakeServer("openai", Script(body=b'{"choices": [{"message": {"content": "all at once"}}]}'))
        with whole, FakeServer("page") as page:
            places = {
                "closed": f"http://127.0.0.1:{closed.getsockname()[1]}",
                "page": page.url,
                "vllm": server.url,
                "tls": server.url.replace("http", "https"),
                "whole": whole.url,
                "empty": str(tmp_path / "empty.txt"),
                "missing": str(tmp_path / "missing.txt"),
            }
            ran = run(*(word.format(**places) for word in words), *SMALL, "--timeout", "5s")
        plain.close()
    assert ran.exit_code == code
    assert said in ran.output
    assert "Traceback" not in ran.output and "unexpected" not in ran.output
    assert "pw@" not in ran.output
    if code == 2:
        errors = [line for line in ran.stderr.splitlines() if line.startswith("Error: ")]
        assert said in errors[0] or said == "is not a count"
        assert len(errors) == 1


def test_answers_are_kept_where_they_were_asked_for(server: FakeServer, tmp_path: Path) -> None:
    prompt = tmp_path / "page.txt"
    prompt.write_text("Write a landing page for a bakery.")
    ran = run(server.url, *SMALL, "--prompt", str(prompt), "--keep", str(tmp_path / "kept"))
    assert ran.exit_code == 0
    (file,) = (tmp_path / "kept").glob("answers-*.jsonl")
    kept = [json.loads(line) for line in file.read_text().splitlines()]
    assert [each["number"] for each in kept] == [1, 2]
    assert kept[0]["answer"].startswith("word0 word1")
    assert {each["prompt"] for each in kept} == {"page.txt"}
    assert kept[0]["prompt_text"] == "Write a landing page for a bakery." and len(kept[0]["prompt_sha256"]) == 64
    settings = {"max_tokens": 16, "temperature": 0, "seed": 0, "context": 8192, "streams": 1, "cached": False}
    assert kept[0]["settings"] == settings
    assert (kept[0]["model"], kept[0]["quant"], kept[0]["server"]) == ("tiny-Q4_K_M", "Q4_K_M", "vLLM 0.19.2")
    assert kept[0]["figures"]["output_tokens"] == 16 and kept[0]["figures"]["ttft_s"] > 0
    assert "Write a landing page" in server.requests[-1]["messages"][0]["content"]


def test_runs_on_two_servers_give_one_page(server: FakeServer, tmp_path: Path) -> None:
    """Also within one second, and if the second run ends with an error."""
    words = ("-c", "64", *SMALL, "--keep", str(tmp_path))
    assert f"answers side by side: {tmp_path / 'answers.html'}" in run(server.url, *words).stderr
    with FakeServer("llama-server", Script(tokens=("Bread", " rises")), ("other-Q8_0",)) as other:
        other.choose = lambda asked, number: Script(fault="error") if number == 4 else other.script
        assert run(other.url, *words).exit_code == 1
    page = (tmp_path / "answers.html").read_text()
    assert page.count("<article") == 2 and "word0 word1" in page and "Bread rises" in page
    assert len(list(tmp_path.glob("answers-*.jsonl"))) == 2


def test_right_answers_are_counted_below_the_table_and_in_rows(server: FakeServer) -> None:
    right, wrong = Script(tokens=("So:\n", "Answer: ", "350")), Script(tokens=("Answer:", " 12"))
    server.choose = lambda asked, number: right if number % 2 else wrong
    said = " ".join(run(server.url, "-r", "2", "--scenario", "reasoning").stdout.split())
    assert "- reasoning-count: 1 of 2 right, 1 wrong; expected: 350" in said
    rows = json.loads(run(server.url, "-r", "2", "--scenario", "reasoning", "-o", "json").stdout)
    last = rows[-1]["serving"]
    assert (last["answers"], last["expected"]) == ({"right": 1, "wrong": 1}, "350")


def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_asked(
    server: FakeServer, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    ran = run(server.url, *SMALL, "--keep", str(tmp_path / "file" / "folder"))
    assert ran.exit_code == 2 and "cannot be written" in ran.stderr
    assert server.paths == []


def test_each_language_has_its_tokens_and_characters(server: FakeServer) -> None:
    ran = run(server.url, *SMALL, "--scenario", "multilingual,code")
    assert ran.exit_code == 0
    lines = ran.stdout.splitlines()
    start = next(n for n, line in enumerate(lines) if line.split()[:3] == ["language", "n", "prompt"])
    rows = [line.split() for line in lines[start + 2 : lines.index("", start)]]
    assert [row[0] for row in rows] == ["en", "ru", "el", "ar", "he", "hi", "zh", "ja", "ko", "th"]
    sixteen = sum(len(token) for token in Script().tokens[:16])
    assert {row[3] for row in rows} == {f"{1000 * 16 / sixteen:.0f}"}
    assert max(map(len, lines)) <= 80
    shown = json.loads(run(server.url, *SMALL, "--scenario", "multilingual", "-o", "json").stdout)
    assert [(row["serving"]["scenario"], row["serving"]["language"]) for row in shown][:2] == [
        ("multilingual", "en"),
        ("multilingual", "ru"),
    ]


def test_the_turns_of_an_agent_say_how_much_was_cached(server: FakeServer) -> None:
    server.context, server.script = 100_000, Script(cached_tokens=1234, prompt_tokens=20_000)
    ran = run(server.url, *SMALL, "--scenario", "agent")
    assert ran.exit_code == 0
    lines = ran.stdout.splitlines()
    heads = "prompt n TTFT s prefill decode total ITL ms cached notes"
    start = next(n for n, line in enumerate(lines) if line.split() == heads.split())
    turns = [line.split() for line in lines[start + 2 : start + 13]]
    assert [turn[0] for turn in turns] == [f"agent-{number:02}" for number in range(1, 12)]
    assert all("–" in turn[3:] and "1,234" in turn for turn in turns)  # no total; a rate may be "too noisy"


def test_the_users_that_a_server_bears_are_said(server: FakeServer) -> None:
    """Up to two requests at a time are answered at once; with four, the first token is late."""
    late = Script(first_s=0.6)
    asked = ("-c", "64", "--concurrency", "1,2,4", "--slo", "ttft=500ms", *SMALL)
    server.choose = lambda asked, number: Script() if number <= 2 + 2 + 4 else late
    ran = run(server.url, *asked)
    assert "users at a time, of whose requests 95% meet --slo:" in ran.stdout
    assert "64 tokens: 2 (at 4, 0% of the requests meet the limits)" in ran.stdout
    server.choose = None
    assert "users at a time" not in run(server.url, "-c", "64", "--slo", "ttft=2s", *SMALL).stdout  # no sweep


def test_rows_in_json_have_the_users_too(server: FakeServer) -> None:
    late = Script(first_s=0.6)
    server.choose = lambda asked, number: Script() if number <= 2 + 2 else late
    asked = ("-c", "64", "--concurrency", "1,2", "--slo", "ttft=500ms", *SMALL)
    printed = run(server.url, *asked, "-o", "jsonl").stdout
    rows = [json.loads(line)["serving"] for line in printed.splitlines()]
    assert rows[0]["users_at_slo"] is None  # one number of streams so far
    assert rows[1]["users_at_slo"] == {"count": 1, "why": "at 2, 0% of the requests meet the limits"}


def test_rows_have_the_servers_own_figures_beside_ours() -> None:
    stated = {"prompt_n": 50, "prompt_ms": 100.0, "predicted_n": 16, "predicted_ms": 1500.0}
    script = Script(gap_s=0.002, timings=stated)
    with FakeServer("llama-server", script) as server:
        row = json.loads(run(server.url, *SMALL, "-o", "json").stdout)[0]["serving"]
    assert row["server_prefill_tps"]["p50"] == 500.0
    assert row["server_decode_tps"] == {"n": 2, "p50": 10.0, "p95": None, "p99": None}
    assert row["decode_tps"]["p50"] > 20


def test_rows_have_the_memory_of_a_server_on_this_machine(server: FakeServer) -> None:
    """The fake server is a thread of this process."""
    row = json.loads(run(server.url, *SMALL, "-o", "json").stdout)[0]["serving"]
    here = process_bytes("VmRSS")
    assert here / 2 < row["host_peak_bytes"] <= row["host_highest_bytes"]
    assert row["server_program"]
    assert row["energy_j_per_token"] is None and row["unknown"]["energy"]


def test_a_terminal_is_told_how_a_long_case_goes() -> None:
    """And nothing else is: a log has no use for a line that is replaced."""
    with FakeServer("vllm") as server:
        server.choose = lambda asked, number: Script(gap_s=0.08) if number > 2 else Script()
        words = [sys.executable, "-m", "profiler", "endpoint", server.url, "-n", "20", "-r", "1"]
        main_end, end = pty.openpty()
        with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=end) as process:
            os.close(end)
            said = b""
            with contextlib.suppress(OSError):  # Linux's word for the end of a terminal
                while part := os.read(main_end, 4096):
                    said += part
            process.wait(20)
        os.close(main_end)
        assert re.search(rb"tiny-Q4_K_M, 512 tokens, 1 at a time: 0 of 1 requests, \d+ characters/s", said)
        assert b"\r\x1b[K" in said
        plain = subprocess.run(words, capture_output=True, check=True)
    assert b"characters/s" not in plain.stderr and b"\x1b" not in plain.stderr


HOSTILE = "evil\x1b[31m\u202e|=1+1"


def test_text_of_a_server_cannot_move_a_terminal_or_break_a_table() -> None:
    with FakeServer("openai", Script(status=500, body=json.dumps({"error": HOSTILE}).encode()), (HOSTILE,)) as server:
        for output in ("table", "md", "csv"):
            ran = run(server.url, *SMALL, "-o", output)
            assert ran.exit_code == 1
            assert "\x1b" not in ran.output and "\u202e" not in ran.output


def test_the_key_is_in_nothing_that_is_printed_or_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A server that repeats it in model names, answers and errors."""
    monkeypatch.setenv(KEY, CANARY)
    for script in (
        Script(tokens=(CANARY, " is your key")),
        Script(status=401, body=f'{{"error": "bad key {CANARY}"}}'.encode()),
        Script(fault="error", tokens=(f"{CANARY} ",) * 9),
        Script(status=302, headers={"Location": f"http://{CANARY}.example/"}),
    ):
        with FakeServer("lmstudio", script) as server:
            for output in ("table", "json", "jsonl", "csv"):
                ran = run(server.url, *SMALL, "-o", output, "--keep", str(tmp_path / "kept"))
                assert server.paths[-1][1]["Authorization"] == f"Bearer {CANARY}"
                assert CANARY not in ran.output
                assert ran.exit_code in (0, 1)
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert written
    assert all(CANARY.encode() not in path.read_bytes() for path in written)
    store = Path(os.environ["PROFILER_STORE"])
    assert not store.exists() or CANARY.encode() not in store.read_bytes()


def test_rows_are_stored_where_other_commands_find_them(server: FakeServer) -> None:
    ran = run(server.url, "-c", "64", "--concurrency", "1,2", *SMALL)
    assert ran.exit_code == 0
    command = ran.stderr.splitlines()[-1].partition(": ")[2]
    assert command.startswith("profile runs show ")
    shown = CliRunner().invoke(main, command.split()[1:], catch_exceptions=False)
    assert shown.exit_code == 0
    assert "vLLM 0.19.2" in shown.stdout and "prefill from TTFT" in shown.stdout
    again = run(server.url, "-c", "64", "--concurrency", "1,2", *SMALL)
    assert len(server.requests) == 2 * (2 + 2 + 4)  # nothing is reused
    assert again.exit_code == 0
    compared = CliRunner().invoke(main, ["compare", "latest~1", "latest", "-o", "json"], catch_exceptions=False)
    figures = [(row["batch"], row["figure"]) for row in json.loads(compared.stdout)]
    assert (1, "decode_tps") in figures and (2, "total_tps") in figures and (1, "total_tps") not in figures


def test_a_row_that_cannot_be_stored_is_still_shown(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise StoreError("the store cannot be used: no space left on device")

    monkeypatch.setattr(Store, "append", full)
    ran = CliRunner().invoke(main, ["endpoint", server.url, "-c", "64,128", *SMALL])
    assert ran.exit_code != 0
    assert "no space left on device" in ran.output
    assert re.search(r"^ *64 +1 ", ran.stdout, re.MULTILINE)
    assert len(server.requests) == 2 + 2  # nothing more is measured


def test_ctrl_c_prints_what_was_measured(tmp_path: Path) -> None:
    """The first case is done, the second takes a minute."""
    script = Script()
    with FakeServer("vllm") as server:
        server.choose = lambda asked, number: script if number < 5 else Script(fault="hang")
        words = [sys.executable, "-m", "profiler", "endpoint", server.url, "-c", "64,128", *SMALL]
        with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            deadline = time.monotonic() + 30
            while len(server.requests) < 5 and time.monotonic() < deadline:
                time.sleep(0.02)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=20)
    assert process.returncode == 130, err
    assert re.search(r"^ *64 +1 ", out, re.MULTILINE)
    assert "Traceback" not in err
    with Store.open(create=False) as store:
        (stored,) = store.runs()
    assert (stored.how, stored.outcomes) == ("interrupted", {"ok": 1})


def test_ctrl_c_in_the_middle_of_a_case_keeps_its_requests(tmp_path: Path) -> None:
    with FakeServer("vllm") as server:
        server.choose = lambda asked, number: Script(gap_s=0.002) if number < 6 else Script(fault="hang")
        words = [sys.executable, "-m", "profiler", "endpoint", server.url, "-c", "64", "-n", "16", "-r", "40"]
        with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            deadline = time.monotonic() + 30
            while len(server.requests) < 6 and time.monotonic() < deadline:
                time.sleep(0.02)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=20)
    assert process.returncode == 130, err
    assert "interrupted after 3 of 40 requests" in out and "Traceback" not in err
    with Store.open(create=False) as store:
        (row,) = store.rows(store.runs()[0].id)
    assert (row.outcome, row.reason) == ("failed", "interrupted after 3 of 40 requests")
    assert row.serving is not None and row.serving["requests"] == 3 and row.serving["ttft_s"] is not None


def test_help_says_where_the_key_comes_from() -> None:
    ran = run("--help")
    assert KEY in ran.output
    assert shutil.which("profile") is None or "LM Studio" in ran.output
