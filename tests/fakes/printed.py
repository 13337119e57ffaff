"""Commands in what we print: found in text, and held to the command line of the program that they name.

Our own are read by click itself. For other programs there is a table of the options that their documentation has.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import click
import pytest

from profiler.cli import main

VALUE = "…"  # in place of what an f-string fills in
PROSE = re.compile(r"[A-Za-z][a-z]*[.,:;]?")  # an argument in prose is in capitals, or holds a digit or a mark
LATEST = "latest"  # a word that names a run

# option → whether it takes a value. Positional arguments: the least and the most.
Table = tuple[dict[str, bool], int, int]


def _options(values: str, flags: str = "") -> dict[str, bool]:
    return dict.fromkeys(values.split(), True) | dict.fromkeys(flags.split(), False)


HELP = Path(__file__).parents[1] / "golden" / "llama_help.json"


def _of_llama_cpp(tool: str) -> dict[str, bool]:
    """The options of a program of llama.cpp, as its ``--help`` of build 9993 lists them."""
    options: dict[str, bool] = json.loads(HELP.read_text(encoding="utf-8"))[tool]
    return options


OTHERS: dict[tuple[str, ...], Table] = {
    ("llama-bench",): (_of_llama_cpp("llama-bench"), 0, 0),
    ("llama-batched-bench",): (_of_llama_cpp("llama-batched-bench"), 0, 0),
    ("llama-server",): (_of_llama_cpp("llama-server"), 0, 0),
    # llama.cpp, tools/quantize/README.md: llama-quantize [options] input output type
    ("llama-quantize",): (_options("", "--allow-requantize --pure --leave-output-tensor"), 3, 4),
    # llama.cpp, convert_hf_to_gguf.py --help: model directory, --outfile, --outtype
    ("python3", "convert_hf_to_gguf.py"): (_options("--outfile --outtype"), 1, 1),
    # llama.cpp, tools/gguf-split/README.md
    ("llama-gguf-split",): (_options("", "--merge --split"), 2, 2),
    # cmake(1)
    ("cmake", "-B"): (_options("", "-DGGML_CUDA"), 1, 1),
    ("cmake", "--build"): (_options("--target", "-j"), 1, 2),  # of two targets, the second
    # vLLM, vllm/benchmarks/latency.py and vllm/engine/arg_utils.py
    ("vllm", "bench", "latency"): (
        _options(
            "--model --revision --input-len --output-len --batch-size --dtype --quantization --kv-cache-dtype"
            " --tensor-parallel-size --pipeline-parallel-size --max-model-len --gpu-memory-utilization"
        ),
        0,
        0,
    ),
    # pip install --help
    ("pip", "install"): (_options("", "-U -e --force-reinstall"), 1, 9),
    # huggingface_hub, docs/source/en/guides/cli.md
    ("hf", "auth", "login"): ({}, 0, 0),
    # git-config(1)
    ("git", "config"): (_options("", "--global --add"), 2, 2),
    # nvidia-smi --help
    ("sudo", "nvidia-smi"): (_options("--lock-gpu-clocks"), 0, 0),
}


def ours() -> dict[tuple[str, ...], click.Command]:
    """Every command of ``profile`` by its words."""
    context, found = click.Context(main), {}
    for name in main.list_commands(context):
        command = main.get_command(context, name)
        assert command is not None
        found[("profile", name)] = command
        if isinstance(command, click.Group):
            found |= {("profile", name, inner): part for inner, part in command.commands.items()}
    return found


OURS = ours()


def check(words: Sequence[str]) -> None:
    """Fail unless a whole command line is one that its program takes; nothing of it runs."""
    start = max((start for start in (*OURS, *OTHERS) if tuple(words[: len(start)]) == start), key=len, default=None)
    assert start is not None, f"not a command that we know: {words}"
    rest = list(words[len(start) :])
    if start in OURS:
        try:
            with OURS[start].make_context(start[-1], rest, parent=click.Context(main)):
                pass
        except click.ClickException as error:
            pytest.fail(f"{' '.join(words)}: {error.format_message()}")
        return
    options, least, most = OTHERS[start]
    positional = 0
    while rest:
        word, _, value = rest.pop(0).partition("=")
        if not word.startswith("-"):
            positional += 1
            continue
        assert word in options, f"{' '.join(start)} has no option {word}: {words}"
        if options[word] and not value:
            assert rest, f"{word} of {words} has no value"
            rest.pop(0)
    assert least <= positional <= most, f"{' '.join(start)} takes {least} to {most} arguments: {words}"


def in_prose(text: str) -> Iterator[list[str]]:
    """The commands that a sentence names: as many words after their name as belong to them.

    Raises AssertionError for an option that the command does not have, or that lacks its value.
    """
    for start in (*OURS, *OTHERS):
        for found in re.finditer(r"(?<![\w./-])" + r"\s+".join(map(re.escape, start)) + r"(?![\w-])", text):
            rest = re.split(r"[`)(>\n]|&&|: ", text[found.end() :], maxsplit=1)[0]
            words = [*start, *_taken(start, rest.split())]
            if not any((*start, word) in OURS for word in rest.split()[:1]):  # else the longer one is looked at
                yield words


def _taken(start: tuple[str, ...], rest: list[str]) -> Iterator[str]:
    options, most = _known(start)
    while rest:
        word = rest.pop(0)
        last = word.endswith((".", ",", ";", ":")) or not rest
        word = word.rstrip(".,;:'\"")
        if word.startswith("-"):
            name = word.partition("=")[0]
            assert name in options, f"{' '.join(start)} has no option {name}"
            yield word
            if options[name] and "=" not in word:
                assert rest and not last, f"{name} of {' '.join(start)} lacks its value"
                yield rest.pop(0).rstrip(".,;:'\"")
        elif most > 0 and (word == LATEST or not PROSE.fullmatch(word)):
            most -= 1
            yield word
        else:
            return
        if last:
            return


def _known(start: tuple[str, ...]) -> tuple[dict[str, bool], int]:
    """Options of a command, and how many arguments it takes."""
    if start not in OURS:
        options, _, most = OTHERS[start]
        return options, most
    known: dict[str, bool] = {"--help": False, "-h": False}
    most = 0
    for parameter in OURS[start].params:
        if isinstance(parameter, click.Option):
            names = [*parameter.opts, *parameter.secondary_opts]
            known |= dict.fromkeys(names, not (parameter.is_flag or parameter.count))
        else:
            most += 9 if parameter.nargs == -1 else parameter.nargs
    return known, most
