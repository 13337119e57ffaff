"""``profile fit``: predict what fits and how fast, on this machine or another, without weights."""

from __future__ import annotations

from typing import Any

import click

from profiler.commands import options
from profiler.console import say
from profiler.cost import prediction
from profiler.cost.machine import SPLITS
from profiler.decode_path import PATHS
from profiler.run.fit import FitRequest, predictions
from profiler.run.refusal import REFUSED, refusal_lines
from profiler.show import fit as show_fit
from profiler.show import output as show_output


@click.command(
    "fit",
    cls=options.DocumentedCommand,
    examples={
        "profile fit": "the largest Gemma 4 and Qwen 3.5 that fit this machine",
        'profile fit gemma-4-e4b --on "rtx 4090" -q bf16,nf4 -c 4k,32k': "a model on a GPU you do not have",
        "profile fit model.gguf": "a GGUF file in llama.cpp, from the tensors in its header",
        'profile fit qwen3.5-27b --on 2x3090 --engine vllm --goal "20 tok/s at 64k"': "only what meets a goal",
        'profile fit qwen3.5-27b --on "rtx 5090" --mtp 2 --acceptance 0.7': "with multi-token prediction",
        'profile fit gemma-4-e4b --on "rtx 4090" -q bf16,int8,nf4 -c 4k,32k,128k --map': "a map instead of a table",
    },
)
@click.argument("models", nargs=-1, metavar="[MODEL]...")
@options.group(
    "What to predict",
    options.many(
        "-q",
        "--quant",
        "quants",
        metavar="QUANT",
        help="Quantizations. [default: as the checkpoint is stored, otherwise the usual ones of the engine]",
    ),
    options.many(
        "-c",
        "--context",
        "contexts",
        metavar="TOKENS",
        help="Tokens in the cache when decode starts. [default: 8k, or the model's maximum]",
    ),
    options.many("-b", "--batch", "batches", metavar="N", help="Sequences processed together. [default: 1]"),
    click.option(
        "--scenario",
        metavar="NAME|FILE",
        help="Take models, contexts and batches from a scenario (see profile scenarios). Options override it.",
    ),
    click.option("--kv", metavar="TYPE", help="Type of the KV cache, such as q8_0 or fp8. [default: the engine's]"),
    click.option(
        "--mtp",
        type=int,
        metavar="N",
        help="Decode with the model's multi-token-prediction layer, which drafts N tokens per step.",
    ),
    click.option(
        "--acceptance",
        type=float,
        metavar="SHARE",
        help="With --mtp: the share of drafted tokens that you expect the model to accept, 0 to 1.",
    ),
)
@options.group(
    "Where it would run",
    click.option(
        "--on",
        multiple=True,
        metavar="DEVICE",
        help='A device from profile devices --catalog ("rtx 4090", "m4 max 64gb"), several ("3090, 4060 ti 16gb", '
        "2x3090), or a data sheet (vram=24,bandwidth=1008,bf16=165). [default: this machine]",
    ),
    click.option(
        "--engine",
        metavar="NAME",
        help="The engine that would run the model: transformers, llama.cpp, llama.cpp-vulkan, llamafile, mlx, vllm,"
        " sglang or tensorrt-llm. [default: transformers; llama.cpp for GGUF files and its quantizations, for --mtp,"
        " and on AMD, Apple and Intel devices]",
    ),
    options.choice(
        "--path", PATHS, help="How transformers decodes. [default: as profile sweep would on that device]"
    ),
    options.choice(
        "--split", SPLITS, help="How several devices share a model. [default: tensor for vllm, otherwise layer]"
    ),
    *options.host_memory(),
)
@options.group(
    "Results",
    options.learned(),
    click.option(
        "--goal",
        "wish",
        metavar="GOAL",
        help='Show what meets this goal, best first, and what it costs: "20 tok/s at 64k". "20 tok/s at 64k, '
        'kl<0.05" also limits the KL divergence.',
    ),
    click.option(
        "--map", "mapped", is_flag=True, help="Show decode speed and bottleneck as a grid of quantization × context."
    ),
    options.notes(),
    options.store(),
    show_output.output(),
)
def fit(output: str, wish: str | None, mapped: bool, most_notes: int | None, **asked: Any) -> int:
    """Predict whether a model fits, how fast it runs and what limits it, without loading it.

    Only the model's config.json or GGUF header is read. Each figure comes with the range that should hold nine cases
    in ten, and with its basis: exact, learned from rows of this machine, calibrated, fitted or prior. Without MODEL,
    these are the largest Gemma 4 and Qwen 3.5 that fit and decode as fast as people read.

    Exit codes: 0 success, 1 a model was refused, 2 usage error.
    """
    fit_request = FitRequest(**asked, goal=prediction.parse(wish) if wish is not None else None, mapped=mapped)
    found = predictions(fit_request)
    click.echo(show_fit.render(found, fit_request.goal, output, mapped, most_notes), nl=False)
    for line in refusal_lines(found.refused):
        say(line)
    return REFUSED if found.refused else 0
