"""Every command that we print works as printed: it is collected, quoted by a real shell, and read by its program."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result
from fakes import llama_cpp, printed, stored
from fakes.lab import make_case, source
from fakes.printed import VALUE
from fakes.tiny import CONFIGS
from hypothesis import given, settings
from hypothesis import strategies as st

from profiler.case import Source, Task
from profiler.cli import main
from profiler.gate import baseline, pytest_plugin
from profiler.models import hub
from profiler.results.store import Store
from profiler.shell import Command, command, quote

ROOT = Path(__file__).parents[2]
BASH = shutil.which("bash") or "bash"
HOSTILE = [
    "plain",
    "gemma-3-270m",  # a model of the catalog
    "sweep",
    "two words",
    "$(touch ran)",
    "`touch ran`",
    "it's",
    '"quoted"',
    "-q",
    "--help",
    "~",
    "*",
    "a\\b",
    "a;touch ran",
    "a\nb",
    "tab\there",
    "\x1b[31mred",
    "right\u202eleft",
    "zero\u200bwidth",
    "#comment",
    "!history",
    "naïve 模型",
    "a,b",
    "x,gemma-3-270m",
    "{a,b} c",
    " ",
    " around ",
    "x" * 200,
    os.fsdecode(b"not \xff utf-8"),
]


def run(*words: str) -> Result:
    return CliRunner().invoke(main, words, catch_exceptions=False)


def by_a_shell(lines: list[str], folder: Path) -> list[list[str]]:
    """The words that bash makes of each line, pasted in ``folder``; no other program is on the path."""
    stub = 'show() { printf "%s\\0" "$@"; printf "\\n\\0"; }\n'
    for name in ("profile", "llama-server", "llama-batched-bench", "llama-quantize", "vllm", "python3", "git"):
        stub += f'function {name} {{ show {name} "$@"; }}\n'
    done = subprocess.run(
        [BASH, "-c", stub + "\n".join(lines)], cwd=folder, env={"PATH": "/nowhere"}, capture_output=True, check=True
    )
    assert done.stderr == b"", done.stderr
    found: list[list[str]] = [[]]
    for word in done.stdout.split(b"\0")[:-1]:
        if word == b"\n":
            found.append([])
        else:
            found[-1].append(os.fsdecode(word))
    return found[:-1]


# Quoting


@given(st.lists(st.text(st.characters(exclude_characters="\0"), max_size=8), min_size=1, max_size=4))
@settings(max_examples=60, deadline=None)
def test_what_is_quoted_is_one_printable_line(words: list[str]) -> None:
    line = " ".join(map(quote, words))
    assert line.isprintable()


def test_a_shell_reads_back_what_was_quoted(tmp_path: Path) -> None:
    words = [*HOSTILE, "", "'", "\\'", "\x01\x022", "é\x7f"]
    assert by_a_shell([f"profile {' '.join(map(quote, words))}"], tmp_path) == [["profile", *words]]


def test_a_blank_is_in_capitals_and_says_what_it_stands_for() -> None:
    made = command("profile", "gate", "--base", "REV", REV="a git revision")
    assert (str(made), made.blanks) == ("profile gate --base REV", {"REV": "a git revision"})
    for wrong in ({"rev": "lower"}, {"OTHER": "not there"}):
        with pytest.raises(ValueError, match="not a blank"):
            Command(("profile", "REV", "rev"), wrong)


# What `profile fit` says under its table


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Folders of every kind of name in the current one."""
    monkeypatch.chdir(tmp_path)
    for width, name in enumerate(HOSTILE, start=1):
        Path(name).mkdir()
        config = CONFIGS["gemma3"] | {"vocab_size": 512 + width}  # each its own model
        Path(name, "config.json").write_text(json.dumps(config))
    return HOSTILE


def verified(*words: str) -> list[str]:
    """The commands of `profile fit`, which the page and the JSON must both have."""
    ran = run("fit", "-o", "json", "-c", "64", *words)
    assert ran.exit_code == 0, ran.output
    rows = json.loads(ran.stdout)
    page = re.split(r"\nTo check.*:\n", run("fit", "-c", "64", *words).stdout)[1]
    shown = [line.removeprefix("  ") for line in page.splitlines() if not line.startswith("  # ")]
    assert shown and set(shown) <= {row["verify"] for row in rows}
    for row in rows:
        for name in ("verify", "serve"):
            blanks, line = row[f"{name}_blanks"], row[name] or ""
            assert all(re.search(rf"(?<!\S){re.escape(blank)}(?!\S)", line) for blank in blanks)
    return [row["verify"] for row in rows] + [row["serve"] for row in rows if row["serve"]]


@pytest.mark.parametrize("engine", ["transformers", "llama.cpp", "vllm"])
def test_fit_prints_a_command_that_measures_the_very_folder(engine: str, models: list[str], tmp_path: Path) -> None:
    quant = "q4_k_m" if engine == "llama.cpp" else "bf16"
    lines = verified("--engine", engine, "-q", quant, "--", *(os.path.join(".", name, "") for name in models))
    assert all(line.isprintable() for line in lines)
    for name, words in zip(cycle(models), by_a_shell(lines, tmp_path), strict=False):
        printed.check(words)
        if words[0] == "profile":
            folder = words[words.index("-m") + 1]
            assert Path(folder, "config.json").samefile(Path(name, "config.json"))
    assert not Path("ran").exists()


def test_the_printed_sweep_plans_the_same_model(models: list[str], tmp_path: Path) -> None:
    """Not only its options: `--dry-run` of it comes to this folder's case."""
    for name in ("gemma-3-270m", "two words", "$(touch ran)", "-q", "a\nb"):
        (line,) = {line for line in verified("--", name) if "-q bf16" in line}
        (words,) = by_a_shell([line], tmp_path)
        (planned,) = json.loads(run(*words[1:], "--dry-run", "-o", "json", "--weights", "synthetic").stdout)
        there = json.loads(run("sweep", "-m", str(tmp_path / name), *words[4:], "--dry-run", "-o", "json").stdout)[0]
        assert planned["key"] == there["key"]


def test_the_printed_sweep_of_llama_cpp_plans_what_was_predicted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMA_CPP_DIR", str(llama_cpp.install(tmp_path / "bin")))
    (tmp_path / "config.json").write_text(json.dumps(CONFIGS["gemma3"]))
    held = stored.gguf(tmp_path / "tiny.gguf", "q8_0")
    for name, quant in (
        (str(tmp_path), "q4_k_m"),
        ("gemma-3-270m", "q6_k"),
        (str(held), "q8_0"),
        (str(held), "q4_0"),
    ):
        asked = ("fit", name, "--engine", "llama.cpp", "-c", "64", "-q", quant, "--kv", "q8_0", "-o", "json")
        (row,) = json.loads(run(*asked).stdout)
        (words,) = by_a_shell([row["verify"]], tmp_path)
        (planned,) = json.loads(run(*words[1:], "--dry-run", "-o", "json").stdout)
        assert (planned["action"], planned["quant"]) == ("run", quant)
        assert planned["weights_bytes"] == pytest.approx(row["weights_bytes"]["value"], rel=1e-6)


@pytest.mark.parametrize("engine", ["transformers", "llama.cpp"])
def test_explain_ends_in_the_check_that_fit_prints(engine: str) -> None:
    quant = "q6_k" if engine == "llama.cpp" else "nf4"
    asked = ("gemma-3-270m", "--engine", engine, "-q", quant, "-c", "64", "--on", "rtx 3060")
    (row,) = json.loads(run("fit", *asked, "-o", "json").stdout)
    assert run("explain", *asked).stdout.endswith(f"\nTo check it:\n  {row['verify']}\n")


@pytest.mark.parametrize("typed", ["gemma-3-270m", "Gemma-3-270M", "google/gemma-3-270m"])
def test_a_name_that_is_no_path_is_repeated_as_it_was_typed(typed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = hub.shipped_config("gemma-3-270m")
    monkeypatch.setattr("profiler.models.hub.downloaded_snapshot", lambda repository, revision: None)
    monkeypatch.setattr("profiler.models.hub.raw_config", lambda *words: (config, "0123abcd"))
    assert f"-m {typed} " in verified(typed)[0]


@pytest.mark.parametrize(
    ("source", "typed", "argument"),
    [
        (Source("folder", "/models/a", None, {}), "a", "./a"),
        (Source("folder", "/models/a", None, {}), "../a", "../a"),
        (Source("folder", "/models/a", None, {}), ".", "."),
        (Source("folder", "/models/a ", None, {}), "a ", "./a /"),
        (Source("folder", "/models/a", None, {}), None, "/models/a"),
        (Source("gguf", "/models/-x.gguf", None, {}), "-x.gguf", "./-x.gguf"),
        (Source("hub", "owner/name", "0123abcd", {}), None, "owner/name@0123abcd"),
        (Source("hub", "owner/name", "0123abcd", {}), "owner/name", "owner/name"),
        (Source("catalog", "gemma-3-270m", None, {}), None, "gemma-3-270m"),
    ],
)
def test_a_source_is_named_so_that_it_is_found_again(source: Source, typed: str | None, argument: str) -> None:
    assert source.argument(typed) == argument


@pytest.mark.parametrize("engine", ["transformers", "llama.cpp", "vllm"])
@pytest.mark.parametrize("on", [(), ("--on", "rtx 4090"), ("--on", '2x"rtx 3090"')])
def test_commands_of_every_engine_setting_are_taken(engine: str, on: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIGS["gemma3"]))
    quants = {
        "transformers": "bf16,nf4",
        "llama.cpp": "q4_k_m,f16,iq4_xs",
        "vllm": "bf16,fp16,fp8,int4,nvfp4",
    }
    kvs = {"transformers": [()], "llama.cpp": [(), ("--kv", "q8_0")], "vllm": [(), ("--kv", "fp8"), ("--kv", "int8")]}
    lines = []
    if engine == "transformers" and on == ("--on", '2x"rtx 3090"'):
        return  # no sweep runs on two devices: no command is printed
    if engine == "llama.cpp":
        lines += verified("gemma-4-26b-a4b", "gemma-4-31b", "--on", "rtx 3060", "--ram", "64GiB", "--engine", engine)
    for kv in kvs[engine]:
        named = (str(tmp_path), "qwen3-0.6b") if not on else ("qwen3-0.6b",)
        lines += verified(*named, "--engine", engine, "-q", quants[engine], "-b", "1,4", *on, *kv)
    assert len(lines) > 3
    for words in by_a_shell(lines, tmp_path):
        printed.check(words)


def test_a_build_that_a_sweep_would_not_find_is_named(gguf: Path, tmp_path: Path) -> None:
    """As the newest run named it, if it is still there; otherwise it is a blank."""

    def check() -> tuple[str, Any]:
        (row,) = json.loads(run("fit", str(gguf), "-c", "64", "-o", "json").stdout)
        assert run("explain", str(gguf), "-c", "64").stdout.partition("To check it:\n  ")[2].startswith(row["verify"])
        return row["verify"].partition("-m ")[0], row["verify_blanks"]

    blank = "profile sweep --backend llama.cpp --llama-cpp DIR "
    told = {"DIR": "the folder of a build of llama.cpp, since none is found here"}
    assert check() == (blank, told)
    older, newer = (llama_cpp.install(tmp_path / name) for name in ("older", "newer"))
    with Store.open() as store:
        for argv in (["--llama-cpp", str(older)], [f"--llama-cpp={newer}"], ["-m", "x"]):
            store.start_run(["sweep", *argv], {})
    assert check() == (f"profile sweep --backend llama.cpp --llama-cpp {newer} ", {})
    shutil.rmtree(newer)
    assert check() == (f"profile sweep --backend llama.cpp --llama-cpp {older} ", {})


def test_a_quantization_that_nobody_has_a_file_of_is_a_blank_with_the_way_to_it(
    gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMA_CPP_DIR", str(llama_cpp.install(tmp_path / "bin")))

    def said(*more: str) -> dict[str, Any]:
        (row,) = json.loads(run("fit", str(gguf), "--engine", "llama.cpp", "-c", "64", *more, "-o", "json").stdout)
        assert isinstance(row, dict)
        return row

    for own in (said(), said("-q", "f32")):
        assert own["verify"] == f"profile sweep --backend llama.cpp -m '{gguf}' -c 64 -b 1 --device cpu"
        assert own["serve"] == f"llama-server -m '{gguf}' -c 64 -np 1 -ngl 0"
        assert own["verify_blanks"] == {}
    other = said("-q", "q5_k_m")
    assert f"-m '{gguf}' -q q5_k_m --weights synthetic " in other["verify"]
    (made,) = other["serve_blanks"].values()
    assert f"llama-quantize --allow-requantize '{gguf}' MODEL-Q5_K_M.gguf Q5_K_M" in made
    page = run("fit", str(gguf), "--engine", "llama.cpp", "-c", "64", "-q", "q5_k_m").stdout
    assert "  # MODEL-Q5_K_M.gguf: made by: llama-quantize --allow-requantize" in page


def test_a_file_is_measured_as_a_mix_only_where_its_tensors_are_that_mix(tmp_path: Path) -> None:
    """A third party's dynamic mix keeps ``general.file_type``: it is no measurement of Q4_K_M."""
    held = stored.gguf_tensors("q4_k")
    dynamic = held | {key: ("iq4_xs", shape) for key, (_, shape) in held.items() if "ffn_down" in key}
    said = {}
    for name, tensors in (("plain", held), ("dynamic", dynamic)):
        path = stored.gguf(tmp_path / f"{name}.gguf", found=tensors, file_type=15)
        asked = ("--engine", "llama.cpp", "-c", "64", "-q", "q4_k_m", "-o", "json")
        (row,) = json.loads(run("fit", str(path), *asked).stdout)
        said[name] = row["verify"]
    assert f"-m {tmp_path / 'plain.gguf'} " in said["plain"]
    assert f"-m {tmp_path / 'dynamic.gguf'} -q q4_k_m --weights synthetic " in said["dynamic"]


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    """A whole model of one layer, which says that it is f32."""
    import numpy
    from gguf import GGUFWriter

    path = tmp_path / "my model.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(128)
    writer.add_embedding_length(256)
    writer.add_feed_forward_length(256)
    writer.add_head_count(4)
    writer.add_file_type(0)
    writer.add_token_list([f"t{number}" for number in range(512)])
    square = dict.fromkeys(
        ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"), (256, 256)
    )
    layer = square | dict.fromkeys(("attn_norm", "ffn_norm"), (256,))
    shapes = {f"blk.0.{name}": shape for name, shape in layer.items()}
    for name, shape in (shapes | {"token_embd": (512, 256), "output_norm": (256,)}).items():
        writer.add_tensor(f"{name}.weight", numpy.zeros(shape, numpy.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_the_way_from_a_folder_to_a_file_works_from_the_checkout_of_llama_cpp(
    models: list[str], tmp_path: Path
) -> None:
    """So the folder is named by its whole path, whatever was typed; the commands are quoted as any."""
    (row,) = json.loads(run("fit", "$(touch ran)", "--engine", "llama.cpp", "-c", "64", "-o", "json").stdout)
    (said,) = row["serve_blanks"].values()
    convert, quantize = by_a_shell(said.partition(": ")[2].split(" && "), tmp_path)
    for words in (convert, quantize):
        printed.check(words)
    assert convert[2] == str(tmp_path / "$(touch ran)")
    assert not Path("ran").exists()


# Advice of the gate and of the plugin


def test_the_gate_that_settles_a_stored_time_is_a_command_of_the_same_case(tmp_path: Path) -> None:
    cases = [
        Task(make_case(64), source()),
        Task(make_case(4096, 4, quant="nf4", path="static", device="cuda:1", threads=3, fill="synthetic"), source()),
        Task(make_case(64, model="gemma-3-270m", backend="hf"), Source("catalog", "gemma-3-270m", None, {})),
        Task(make_case(64), Source("folder", "/models/$(touch ran)", None, {})),
    ]
    for task, words in zip(
        cases, by_a_shell([str(baseline.advice_for(task).command) for task in cases], tmp_path), strict=True
    ):
        printed.check(words)
        assert words[words.index("-c") + 1] == str(task.case.context)
        assert words[words.index("-m") + 1] == task.source.location
    assert not (tmp_path / "ran").exists()


# Commands about a store name the store


def test_a_hint_about_another_store_names_it(tmp_path: Path) -> None:
    path = tmp_path / "my rows.sqlite"
    with Store.open(path) as store:
        store.start_run(["sweep"], {})
    ran = run("runs", "show", "999", "--store", str(path))
    (words,) = by_a_shell([ran.stderr.rpartition("All of them: ")[2]], tmp_path)
    assert words == ["profile", "runs", "--store", str(path)]
    assert run(*words[1:]).exit_code == 0


@pytest.mark.parametrize("words", [("report",), ("runs", "show"), ("accuracy",)])
def test_a_store_that_is_not_there_is_made_by_the_printed_command(words: tuple[str, ...], tmp_path: Path) -> None:
    path = tmp_path / "no $(touch ran).sqlite"
    ran = run(*words, "--store", str(path))
    (printed_words,) = by_a_shell([ran.stderr.rpartition("Measure something first: ")[2]], tmp_path)
    assert printed_words == ["profile", "sweep", "--store", str(path)]
    printed.check(printed_words)


def test_the_listed_command_of_a_run_can_be_pasted(tmp_path: Path) -> None:
    path = tmp_path / "rows.sqlite"
    argv = ["sweep", "-m", "./two words", "-q", "nf4", "-c", "512,4k", "--store", str(path)]
    with Store.open(path) as store:
        store.start_run(argv, {"device": {"title": "Example"}})
    line = run("runs", "--store", str(path)).stdout.splitlines()[-1]
    assert by_a_shell([line[line.index("profile ") :]], tmp_path) == [["profile", *argv]]


def test_models_that_were_given_as_arguments_are_quoted(tmp_path: Path) -> None:
    ran = run("sweep", "two words", "$(touch ran)")
    named = ran.stderr.splitlines()[0].rpartition("models are named with -m: ")[2]
    assert by_a_shell([f"profile sweep {named}"], tmp_path) == [
        ["profile", "sweep", "-m", "two words", "-m", "$(touch ran)"]
    ]


# Texts in the source, the documents and the golden pages


def texts(path: Path) -> Iterator[str]:
    """Every text of a module, with a mark where an f-string fills something in."""
    inside: set[ast.AST] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.JoinedStr):
            inside.update(node.values)
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else VALUE for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in inside:
            yield node.value


SOURCES = sorted(path for folder in ("profiler", "kernels") for path in (ROOT / folder).rglob("*.py"))
DOCUMENTS = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "tests" / "golden" / "reports").iterdir()),
    *sorted((ROOT / "scenarios").glob("*.toml")),  # `profile scenarios NAME` prints them
]


def test_commands_in_messages_and_help_are_ones_that_their_programs_take() -> None:
    """`profile NAME` with its options and arguments, `pip install`, `llama-bench` …, wherever a sentence has them."""
    wrong, seen = [], 0
    for path in SOURCES:
        for text in texts(path):
            try:
                for words in printed.in_prose(text):
                    seen += 1
                    if len(words) > 2 and not any(VALUE in word for word in words):
                        printed.check(words)
            except (AssertionError, pytest.fail.Exception) as error:
                wrong.append(f"{path.relative_to(ROOT)}: {error}")
    assert wrong == []
    assert seen > 60


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_commands_in_documents_are_ones_that_their_programs_take(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for line in text.splitlines():
        for words in printed.in_prose(line.split("  #")[0]):
            assert words[0] in line
    for block in re.findall(r"^```(?:sh|text)?\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        for line in block.splitlines():
            if re.match(r"profile [a-z]", line):
                printed.check(shlex.split(line.split(" > ")[0], comments=True))


def test_shells_leave_printed_commands_alone() -> None:
    """An unquoted ``*`` is an error in zsh where no file matches it."""
    lines = [line for command in printed.OURS.values() for line in getattr(command, "examples", ())]
    for path in DOCUMENTS:
        text = path.read_text(encoding="utf-8")
        for block in re.findall(r"^```(?:sh|text)?\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
            lines += [line.split("  #")[0] for line in block.splitlines() if re.match(r"(\$ )?profile [a-z]", line)]
    assert len(lines) > 60
    unquoted = [line for line in lines if re.search(r"[*?\[]", re.sub(r"'[^']*'|\"[^\"]*\"", "", line))]
    assert unquoted == []


def options(*commands: click.Command) -> set[str]:
    return {name for each in commands for option in each.params for name in (*option.opts, *option.secondary_opts)}


def test_options_in_messages_are_ones_of_ours() -> None:
    """And those of the plugin stand only where the plugin speaks."""

    names: set[str] = set()

    class Parser:
        def getgroup(self, *words: str) -> Parser:
            return self

        def addoption(self, name: str, **more: Any) -> None:
            names.add(name)

    pytest_plugin.pytest_addoption(Parser())  # type: ignore[arg-type]
    known = options(*printed.OURS.values()) | {"--help", "--version"}
    foreign = {name for table, _, _ in printed.OTHERS.values() for name in table} | {"--benchmark-disable"}
    foreign |= {"--pids-limit", "--build", "--benchmark-skip", "--api-key", "--resume"}
    wrong = []
    for path in SOURCES:
        plugin = path.name in ("pytest_plugin.py", "suite.py", "advice.py")
        allowed = known | foreign | (names if plugin else set())
        for text in texts(path):
            if " " in text:
                found = set(re.findall(r"(?<![\w`-])--[a-z][a-z-]+", text)) - allowed
                wrong += [f"{path.relative_to(ROOT)}: {name}" for name in found]
    assert wrong == []
