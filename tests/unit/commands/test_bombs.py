"""Small files that ask for gigabytes or minutes: each command says no in one line, in two seconds and one gigabyte.

All of them in one process whose memory is limited, so that the limit is real and starting it is paid for once.
"""

from __future__ import annotations

import json
import sqlite3
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fakes.tiny import CONFIGS

from profiler.case import Case
from profiler.models import safetensors
from profiler.results.measurement import Measurement, Sample
from profiler.results.row import dumps, row
from profiler.results.store import Store

SECONDS, BYTES = 2.0, 1 << 30  # of CPU time for one command; of address space for all of them
CASE = Case("gemma-3-270m", "ab12", "real", "nf4", "fp32", "cpu", "hf", "eager", 128, 1, 4)
HERE: dict[str, Any] = {"cpu": {"title": "Example CPU"}, "libraries": {"torch": "2.12.0"}, "device": {}}

CHILD = """
import json, resource, sys, time
from click.testing import CliRunner
from profiler.cli import main
import profiler.commands.compare, profiler.commands.fit, profiler.commands.report, profiler.commands.sweep
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]),) * 2)
for line in sys.stdin:
    start = time.process_time()
    ran = CliRunner().invoke(main, json.loads(line))
    print(json.dumps([ran.exit_code, ran.stderr[:2000], time.process_time() - start]), flush=True)
"""


def measured(**changes: Any) -> Measurement:
    samples = tuple(Sample("prefill", 1 + n / 100, 128) for n in range(3))
    return Measurement(**({"case": CASE, "environment": HERE, "outcome": "ok", "samples": samples} | changes))


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def sparse(path: Path, keys: int, pieces: list[tuple[bytes, int]]) -> list[str]:
    """A GGUF file of holes: each piece is bytes and the length of the hole that follows."""
    with path.open("wb") as file:
        file.write(b"GGUF" + struct.pack("<IQQ", 3, 0, keys))
        for start, hole in pieces:
            file.write(start)
            file.seek(hole, 1)
        file.truncate(file.tell())
    return ["fit", str(path)]


def gguf_of_one_array(folder: Path) -> list[str]:
    start = text("general.architecture") + struct.pack("<IIQ", 9, 8, 1500)
    return sparse(folder / "array.gguf", 1, [(start, 0), *[(struct.pack("<Q", 2**20), 2**20)] * 1500])


def gguf_of_many_strings(folder: Path) -> list[str]:
    pieces = [(text(f"k{n}") + struct.pack("<IQ", 8, 2**20), 2**20) for n in range(6000)]
    return sparse(folder / "strings.gguf", 6000, pieces)


def gguf_of_many_arrays(folder: Path) -> list[str]:
    pieces = [(text(f"k{n}") + struct.pack("<IIQ", 9, 0, 4096), 4096) for n in range(60_000)]
    return sparse(folder / "arrays.gguf", 60_000, pieces)


def gguf_of_an_endless_vocabulary(folder: Path) -> list[str]:
    start = text("tokens") + struct.pack("<IIQ", 9, 8, 2**24)
    return sparse(folder / "vocabulary.gguf", 1, [(start, 2**27)])


def model(folder: Path, name: str, index: Any) -> Path:
    made = folder / name
    made.mkdir()
    (made / "config.json").write_text(json.dumps(CONFIGS["gemma3"]))
    (made / safetensors.INDEX).write_text(index if isinstance(index, str) else json.dumps(index))
    return made


def index_with_a_long_name(folder: Path) -> list[str]:
    return ["fit", str(model(folder, "long", {"weight_map": {"a": "a" * 100_000 + ".safetensors"}}))]


def index_of_links_to_one_shard(folder: Path) -> list[str]:
    names = [f"{n}.safetensors" for n in range(999)]
    made = model(folder, "links", {"weight_map": {name: name for name in names}})
    many = {f"w{n}": {"dtype": "U8", "shape": [1], "data_offsets": [n, n + 1]} for n in range(20_000)}
    header = json.dumps(many).encode()
    (made / names[0]).write_bytes(struct.pack("<Q", len(header)) + header + bytes(20_000))
    for name in names[1:]:
        (made / name).symlink_to(names[0])
    return ["fit", str(made)]


def index_of_lists(folder: Path) -> list[str]:
    return ["fit", str(model(folder, "lists", '{"weight_map": [' + "[]," * 5_000_000 + "0]}"))]


def scenario(name: str, content: str) -> Callable[[Path], list[str]]:
    def make(folder: Path) -> list[str]:
        (folder / name).write_text(content)
        return ["sweep", "--dry-run", "--scenario", str(folder / name)]

    return make


def quality(name: str, content: str) -> Callable[[Path], list[str]]:
    def make(folder: Path) -> list[str]:
        (folder / name).write_text(content)
        return ["report", "--quality", str(folder / name)]

    return make


def ranges(folder: Path) -> list[str]:
    listed = ",".join(f"{n}-{n + 99_998}+1" for n in range(1, 1_000_000, 99_999))
    return ["sweep", "--dry-run", "-m", "gemma-3-270m", "-c", listed]


def one_range_again_and_again(folder: Path) -> list[str]:
    return ["fit", "gemma-3-270m", "-b", ",".join(f"{n}-{n + 90_000}+1" for n in range(1, 9000))]


def rows(name: str, content: str) -> Callable[[Path], list[str]]:
    def make(folder: Path) -> list[str]:
        (folder / name).write_text(content)
        return ["compare", str(folder / name), str(folder / name)]

    return make


def row_with(old: str, new: str) -> str:
    content = dumps(row(None, measured()))
    assert old in content
    return content.replace(old, new)


def store(name: str, *attacks: str) -> Callable[[Path], list[str]]:
    def make(folder: Path) -> list[str]:
        with Store.open(folder / name) as opened:
            opened.append(opened.start_run([], HERE), measured())
        db = sqlite3.connect(folder / name, isolation_level=None)
        for attack in attacks:
            db.execute(attack)
        db.close()
        return ["compare", str(folder / name), str(folder / name)]

    return make


def own_store(name: str, *attacks: str) -> Callable[[Path], list[str]]:
    return lambda folder: ["report", "--store", store(name, *attacks)(folder)[1]]


ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT"
VIEW = ("DROP TABLE run_rows", f"CREATE VIEW run_rows AS {ENDLESS} i AS run, i AS measurement FROM n")
SCORE = '[[score]]\nmodel = "m"\nbenchmark = "b"\nsource = "s"\nvalue = '

BOMBS: list[tuple[Callable[[Path], list[str]], str]] = [
    (gguf_of_one_array, "more than 16.0 MiB of metadata"),
    (gguf_of_many_strings, "more than 16.0 MiB of metadata"),
    (gguf_of_many_arrays, "more than 16.0 MiB of metadata"),
    (gguf_of_an_endless_vocabulary, "took more than"),
    (index_with_a_long_name, "is missing"),
    (index_of_links_to_one_shard, "links: "),
    (index_of_lists, "more than 1,048,576 values"),
    (scenario("dotted.toml", "a." * 32_000 + "a=1"), "more than 8 parts"),
    (scenario("deep.toml", "contexts=" + "[" * 9_000), "nested"),
    (scenario("digits.toml", "contexts=" + "9" * 400), "64 bits"),
    (quality("quality-dotted.toml", "a." * 500_000 + "a=1"), "more than 8 parts"),
    (quality("quality-deep.toml", SCORE + "[" * 100_000), "nested"),
    (quality("quality-digits.toml", SCORE + "9" * 400), "64 bits"),
    (ranges, "more than 100,000 numbers"),
    (one_range_again_and_again, "more than 100,000 numbers"),
    (rows("long.jsonl", row_with('"quant": "nf4"', f'"quant": "{"q" * 10_000_000}"')), "case.quant is"),
    (rows("deep.jsonl", "[" * 10_000_000), "not JSON"),
    (rows("many.json", "[" + "{}," * 4_500_000 + "{}]"), "more than 8,388,608 values"),
    (rows("samples.jsonl", row_with("[1.0,", "[" + "1," * 250_000)), "columns of 250,002"),
    (store("view.sqlite", *VIEW), "run_rows is a view"),
    (own_store("own-view.sqlite", *VIEW), "run_rows is a view"),
    (store("blob.sqlite", "UPDATE measurements SET steps = zeroblob(100000000)"), "more than 32.0 MiB"),
    (
        own_store("own-blob.sqlite", "UPDATE measurements SET content = CAST(zeroblob(100000000) AS TEXT)"),
        "more than 32.0 MiB",
    ),
]


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[int, str, float]]:
    """Exit code, stderr and CPU seconds of each command."""
    folder = tmp_path_factory.mktemp("bombs")
    lines = "".join(json.dumps(make(folder)) + "\n" for make, _ in BOMBS)
    child = [sys.executable, "-c", CHILD, str(BYTES)]
    done = subprocess.run(child, input=lines, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]  # type: ignore[misc]


@pytest.mark.parametrize("number", range(len(BOMBS)), ids=[f"{n}-{said[:20]}" for n, (_, said) in enumerate(BOMBS)])
def test_a_bomb_is_one_line_in_time_and_memory(ends: list[tuple[int, str, float]], number: int) -> None:
    code, stderr, seconds = ends[number]
    message, _, hint = stderr.removeprefix("Error: ").removesuffix("\n").partition("\n  ")
    assert BOMBS[number][1] in message
    assert "\n" not in message + hint and "unexpected" not in message
    assert code in (1, 2) and len(message) < 1000
    assert seconds < SECONDS
