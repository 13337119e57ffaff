"""``profile fit``: what fits where and how fast, predicted from a config alone, without weights."""

from __future__ import annotations

from typing import Any

import click

from profiler.commands import fit_map, fit_rows, listing, options
from profiler.commands.progress import say
from profiler.paths import PATHS
from profiler.plan import refusal
from profiler.plan.inquiry import Inquiry, answers
from profiler.predict import engines, goal
from profiler.predict.machine import SPLITS


@click.command("fit")
@click.argument("models", nargs=-1, metavar="[MODEL]...")
@click.option("--on", multiple=True, metavar="DEVICE", help='"rtx 4090", 2x3090, vram=24,bandwidth=1008,bf16=165.')
@click.option(
    "--engine", default=engines.DEFAULT, show_default=True, metavar="NAME", help="llama.cpp, transformers, vllm."
)
@options.many(
    "-q",
    "--quant",
    "quants",
    metavar="QUANT",
    help="Formats of the weights. [default: the model's own]",
)
@options.many("-c", "--context", "contexts", metavar="TOKENS", help="In the cache. [default: 8k]")
@options.many("-b", "--batch", "batches", metavar="N", help="Sequences at once. [default: 1]")
@click.option("--kv", metavar="FORMAT", help="Of K and V: q8_0, fp8, … [default: the engine's]")
@click.option("--goal", "wish", metavar="GOAL", help='Only what meets it, best first: "20 tok/s at 64k".')
@options.choice("--path", PATHS, help="Decode steps of transformers. [default: as profile sweep runs them there]")
@options.choice("--split", SPLITS, help="Of several devices. [default: tensor with vllm, else layer]")
@options.size("--ram", "ram_bytes", help="Host memory to offload weights to: 64GiB.")
@click.option("--ram-bandwidth", type=click.FloatRange(min=0.1), metavar="GB/s", help="Of that memory. [default: 60]")
@click.option("--map", "mapped", is_flag=True, help="Speed and what binds for each model × format × context.")
@listing.output()
def fit(output: str, wish: str | None, mapped: bool, **asked: Any) -> int:
    """Predict whether models fit, how fast they run and what holds them back.

    Without a model: the largest Gemma 4 and Qwen 3.5 that fit. Without --on: this machine. Every figure is given with
    the range that nine of ten such cases fall in, and what it rests on: exact, calibrated, fitted or a prior.
    """
    inquiry = Inquiry(**asked, goal=goal.parse(wish) if wish is not None else None, mapped=mapped)
    found = answers(inquiry)
    page = fit_map if mapped else fit_rows
    click.echo(page.render(found.answers, inquiry.goal, output), nl=False)
    for line in refusal.lines(found.refused):
        say(line)
    return refusal.REFUSED if found.refused else 0
