"""``profile sweep``: measure a grid of model × quantization × context × batch on this machine."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import click

from profiler import devices
from profiler.backends.llama_cpp import build as llama_cpp
from profiler.commands import options
from profiler.commands.options import Decorator, MeasuringCommand
from profiler.console import say, tell
from profiler.devices.base import DeviceInfo
from profiler.results.store import Store, existing
from profiler.run import grid
from profiler.run import sweep as run_sweep
from profiler.run.refusal import REFUSED, refusal_lines
from profiler.run.request import (
    OF_BACKENDS,
    OPTIONS,
    WEIGHTS,
    ResolvedRequest,
    SweepRequest,
    resolve_request,
)
from profiler.run.reuse import fallbacks
from profiler.run.supervisor import WorkerLimits
from profiler.show import plan as show_plan
from profiler.show.report import files
from profiler.show.sweep import RowPrinter
from profiler.units import some_bytes, some_seconds, some_share

FAILURES = ("oom", "failed", "timeout")  # a case that the plan left out is no failure, unless every case was
FAILED, INTERRUPTED = 1, 130
METAVARS: dict[Any, str] = {some_seconds: "TIME", some_share: "PERCENT", some_bytes: "SIZE"}  # by parser


def option(name: str, help: str, metavar: str | None = None, choices: Sequence[str] = ()) -> Decorator:
    """The option ``name`` of ``run.request.OPTIONS``; ``choices`` if its values are a few words."""
    known = OPTIONS[name]
    return click.option(
        *sorted(known.names, key=len),
        f"{name}_s" if known.parse is some_seconds else name,
        type=click.Choice(choices, case_sensitive=False) if choices else None,
        multiple=known.many,
        callback=None if known.many else options.parsed(known.parse),
        metavar=None if choices else metavar or METAVARS.get(known.parse, "N"),
        default=known.default,
        show_default=True,
        help=help,
    )


def llama_cpp_options() -> Decorator:
    """The options that only llama.cpp has."""
    return options.group(
        "Only with --backend llama.cpp",
        option(
            "llama_cpp",
            "The build, its bin folder or the source tree. [default: $LLAMA_CPP_DIR, or llama-bench on the PATH]",
            "DIR",
        ),
        option("kv", "Types of the KV cache, such as f16,q8_0,q4_0. [default: f16]", "TYPE"),
        option("flash_attn", "Flash attention. [default: the build's choice]", "on|off|auto"),
        option("gpu_layers", "Layers on the GPU. [default: all that fit]"),
        option("n_cpu_moe", "Layers whose experts stay in the host's memory. [default: 0]"),
        option("tensor_split", "Shares of several GPUs, such as 3/1 (3 to 1).", "SHARES"),
    )


@click.command(
    "sweep",
    cls=MeasuringCommand,
    examples={
        "profile sweep": "the largest Gemma 4 and Qwen 3.5 that fit, in about five minutes",
        "profile sweep -m gemma-4-e2b,qwen3.5-2b -q bf16,nf4 -c 512,4k,32k": "a grid of twelve cases",
        "profile sweep -m gemma-4-e2b -c '512-8k*2' -b 1,4 --quick": "a first look at a grid, in seconds per case",
        "profile sweep -m ./my-model -q nf4 -c '1k-32k*2'": "your own checkpoint, from 1k to 32k by doubling",
        "profile sweep -m qwen3.5-4b -c 128k --fill synthetic": "decode at 128k without the long prefill",
        "profile sweep --scenario chat --budget 30m --dry-run": "what would run within 30 minutes, and why",
    },
)
@options.group(
    "What to measure",
    option(
        "models", "Models: catalog names (see profile models), folders, .gguf files or Hugging Face ids.", "MODEL"
    ),
    option(
        "quants",
        "Quantizations, such as bf16,nf4, or q4_k_m for llama.cpp. "
        "[default: as the checkpoint is stored, otherwise the device's dtype, or q4_k_m]",
        "QUANT",
    ),
    option("contexts", "Tokens in the cache when decode starts. [default: 512]", "TOKENS"),
    option("batches", "Sequences processed together. [default: 1]"),
    option("steps", "Tokens to decode for each sequence. [default: 32]"),
    option(
        "scenario",
        "Take the grid from a scenario (see profile scenarios). The options above override it.",
        "NAME|FILE",
    ),
    option(
        "weights",
        "auto: real weights if they are on this machine, otherwise random values. Only real downloads them.",
        choices=WEIGHTS,
    ),
    option(
        "fill",
        "Fill the cache by a real prefill, or with random values to save that time. [default: prefill]",
        choices=grid.FILLS,
    ),
    click.option(
        "--quality",
        is_flag=True,
        help="Also measure what a quantization loses: the KL divergence from the model in fp32, over texts.",
    ),
    click.option(
        "--quality-text", metavar="FOLDER", help="Texts of your own for --quality, in a folder for each kind."
    ),
    click.option(
        "--reference", metavar="MODEL", help="Compare with this model, for a checkpoint that is itself quantized."
    ),
    click.option("--energy", is_flag=True, help="Also measure joules per token; adds about ten seconds per phase."),
    option("seed", "Seed of synthetic weights and prompt tokens."),
)
@options.group(
    "How to run it",
    options.device(),
    option("backend", "What runs the models; hf is Hugging Face transformers.", "NAME"),
    option(
        "paths",
        "How decode runs: eager (transformers as shipped), static or graph. "
        "[default: graph on a GPU, static on a CPU]",
        "PATH",
    ),
    option("ubatch", "Tokens per prefill chunk. [default: 512 on a CPU, 2048 on a GPU]"),
    option("threads", "CPU threads. [default: the backend's choice]"),
    option("max_memory", "Host memory that one worker process may use, such as 8GiB."),
)
@llama_cpp_options()
@options.group(
    "How long to measure",
    option("reps", "Repetitions of each phase. [default: as many as --precision needs; 2 without -m]"),
    option("precision", "Repeat, 5 to 20 times, until the 95% interval of the rate is within this. [default: 2%]"),
    click.option(
        "--quick",
        is_flag=True,
        help="A first look: 3 to 6 repetitions for a --precision of 5%, and short warm-ups.",
    ),
    option("max_phase", "Start no further repetition of a phase after this time. [default: 60s]"),
    option("budget", "Choose the cases that fit into this time, such as 10m."),
    option("timeout", "Stop a case that takes longer than this."),
)
@options.group(
    "Results",
    click.option(
        "--dry-run",
        is_flag=True,
        help="Print what would run, with sizes, time estimates and reasons; measure nothing.",
    ),
    click.option(
        "--resume/--fresh",
        "resumed",
        default=True,
        help="Reuse stored rows of the same cases, or measure them again.",
    ),
    options.learned(),
    options.html(),
    options.store(),
    options.output(),
    options.notes(),
)
def sweep(
    device: str | None,
    timeout_s: float,
    max_memory: int | None,
    dry_run: bool,
    resumed: bool,
    learned: bool,
    html: Path | None,
    store: Path | None,
    output: str,
    most_notes: int | None,
    **given: Any,
) -> int:
    """Measure every combination of model, quantization, context and batch.

    Separate values with commas or repeat the option: -c 512,4k -b 1 -b 4. Ranges are written '1k-128k*2' or 1-8+1; k
    is 1024 and m is 1024². Without -m, the sweep picks the largest Gemma 4 and Qwen 3.5 that fit, decode as fast as
    people read, and finish in about five minutes.

    Each row is stored immediately; the same command continues an interrupted sweep. Several sweeps may share a store.

    Exit codes: 0 success, 1 a case failed, a model was refused or nothing could be measured, 2 usage error, 130
    interrupted.
    """
    files.check(html, store)
    context = click.get_current_context()
    context.with_resource(llama_cpp.using(given["llama_cpp"]))
    found = devices.find(device)
    available = run_sweep.available_bytes(found, max_memory)
    own = {name: given.pop(name) for name in OF_BACKENDS}
    spare = context.with_resource(run_sweep.early_worker(given["backend"], found, measures=not dry_run))
    resolved = resolve_request(SweepRequest(**given, options=own), found, available, say)
    for line in refusal_lines(resolved.refused):  # before the rows, so that nobody waits for them
        say(line)
    refused = REFUSED if resolved.refused else 0
    if dry_run:
        show_dry_run(resolved, found, max_memory, store, resumed, output, learned)
        return refused
    with Store.open(store) as opened, RowPrinter(opened, resolved, output, most_notes) as printer:
        limits = WorkerLimits(max_memory_bytes=max_memory, case_s=timeout_s)
        argv = [*sys.argv[1:], *_from_settings()]
        ways = {"resumed": resumed, "learned": learned}
        result = run_sweep.sweep(resolved, found, opened, limits, printer, argv=argv, spare=spare, **ways)
        complete = printer.finish()
        if html is not None:
            files.write_rows(html, opened, result.run)
    tell(show_plan.ending(result.rows, len(resolved.tasks), result.interrupted, resumed))
    tell(show_plan.refused(resolved.refused))
    if result.interrupted:
        return INTERRUPTED
    failed = not complete or any(row.outcome in FAILURES for row in result.rows)
    failed |= all(row.outcome == "skipped" for row in result.rows)  # otherwise a script would go on without figures
    return FAILED if failed else refused


def _from_settings() -> Iterator[str]:
    """The options that ``profile.toml`` has decided, as words: a stored run must not depend on that file."""
    for name, setting in options.from_settings(click.get_current_context()).items():
        for value in [setting.value] if isinstance(setting.value, str) else setting.value:
            yield from (OPTIONS[name].names[0], value)


def show_dry_run(
    resolved: ResolvedRequest,
    device: DeviceInfo,
    max_memory: int | None,
    store: Path | None,
    resumed: bool,
    output: str,
    learned: bool,
) -> None:
    """Print what would run and why; with ``resumed``, which stored rows would be reused, without creating a store."""
    place = existing(store)
    with Store.open(store, create=False) if resumed and place is not None else nullcontext() as opened:
        prepared = run_sweep.prepare(resolved, device, opened, max_memory, learned_from=place if learned else None)
    plan, reused = prepared.plan, prepared.reused
    click.echo(show_plan.render(plan, reused, prepared.available_bytes, output, resolved.subjects), nl=False)
    for line in (*device.limits, *show_plan.about(resolved.subjects)):
        say(line)
    tell(fallbacks(reused.values()))
    say(show_plan.summary(plan))
