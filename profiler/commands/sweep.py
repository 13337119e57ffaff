"""``profile sweep``: measure a grid of model × quantization × context × batch on this machine."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import click

from profiler import backends, devices
from profiler.commands import options
from profiler.commands.options import MeasuringCommand
from profiler.console import say, tell
from profiler.devices.base import DeviceInfo
from profiler.results.store import Store, existing
from profiler.run import grid
from profiler.run import sweep as run_sweep
from profiler.run.refusal import REFUSED, refusal_lines
from profiler.run.request import (
    MAX_SEED,
    MAX_THREADS,
    OF_BACKENDS,
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

FAILURES = ("oom", "failed", "timeout")  # a case that the plan left out is no failure, unless every case was
FAILED, INTERRUPTED = 1, 130


@click.command(
    "sweep",
    cls=MeasuringCommand,
    examples={
        "profile sweep": "the largest Gemma 4 and Qwen 3.5 that fit, in about five minutes",
        "profile sweep -m gemma-4-e2b,qwen3.5-2b -q bf16,nf4 -c 512,4k,32k": "a grid of twelve cases",
        "profile sweep -m ./my-model -q nf4 -c '1k-32k*2'": "your own checkpoint, from 1k to 32k by doubling",
        "profile sweep -m qwen3.5-4b -c 128k --fill synthetic": "decode at 128k without the long prefill",
        "profile sweep --scenario chat --budget 30m --dry-run": "what would run within 30 minutes, and why",
    },
)
@options.group(
    "What to measure",
    options.many(
        "-m",
        "--model",
        "models",
        metavar="MODEL",
        help="Models: catalog names (see profile models), folders, .gguf files or Hugging Face ids.",
    ),
    options.many(
        "-q",
        "--quant",
        "quants",
        metavar="QUANT",
        help="Quantizations, such as bf16,nf4, or q4_k_m for llama.cpp. "
        "[default: as the checkpoint is stored, otherwise the device's dtype, or q4_k_m]",
    ),
    options.many(
        "-c", "--context", "contexts", metavar="TOKENS", help="Tokens in the cache when decode starts. [default: 512]"
    ),
    options.many("-b", "--batch", "batches", metavar="N", help="Sequences processed together. [default: 1]"),
    options.many("-n", "--steps", "steps", metavar="N", help="Tokens to decode for each sequence. [default: 32]"),
    click.option(
        "--scenario",
        metavar="NAME|FILE",
        help="Take the grid from a scenario (see profile scenarios). The options above override it.",
    ),
    options.choice(
        "--weights",
        WEIGHTS,
        default="auto",
        help="auto: real weights if they are on this machine, otherwise random values. Only real downloads them.",
    ),
    options.choice(
        "--fill",
        grid.FILLS,
        help="Fill the cache by a real prefill or with random values, which costs no prefill. [default: prefill]",
    ),
    click.option(
        "--quality",
        is_flag=True,
        help="Also measure the KL divergence from the model in fp32, over a set of texts.",
    ),
    click.option(
        "--quality-text", metavar="FOLDER", help="Texts of your own for --quality, in a folder for each kind."
    ),
    click.option(
        "--reference", metavar="MODEL", help="Compare with this model, for a checkpoint that is itself quantized."
    ),
    click.option("--energy", is_flag=True, help="Also measure joules per token; adds about ten seconds per phase."),
    click.option(
        "--seed",
        type=click.IntRange(0, MAX_SEED),
        default=0,
        metavar="N",
        help="Seed of synthetic weights and prompt tokens.",
    ),
)
@options.group(
    "How to run it",
    options.device(),
    options.plugin_name(
        "--backend",
        folder=backends.FOLDER,
        default=backends.DEFAULT,
        help="What runs the models; hf is Hugging Face transformers.",
    ),
    options.many(
        "--path",
        "paths",
        metavar="PATH",
        help="How decode runs: eager (transformers as shipped), static or graph. "
        "[default: graph on a GPU, static on a CPU]",
    ),
    options.count("--ubatch", help="Tokens per prefill chunk. [default: 512 on a CPU, 2048 on a GPU]"),
    options.count("--threads", most=MAX_THREADS, help="CPU threads. [default: the backend's choice]"),
    options.size("--max-memory", help="Host memory that one worker process may use, such as 8GiB."),
)
@options.group(
    "Only with --backend llama.cpp",
    click.option(
        "--llama-cpp",
        metavar="DIR",
        help="The build, its bin folder or the source tree. [default: $LLAMA_CPP_DIR, or llama-bench on the PATH]",
    ),
    options.many("--kv", "kv", metavar="TYPE", help="Types of the KV cache, such as f16,q8_0,q4_0. [default: f16]"),
    options.many(
        "--flash-attn", "flash_attn", metavar="on|off|auto", help="Flash attention. [default: the build's choice]"
    ),
    options.many("--gpu-layers", "gpu_layers", metavar="N", help="Layers on the GPU. [default: all that fit]"),
    options.many(
        "--n-cpu-moe", "n_cpu_moe", metavar="N", help="Layers whose experts stay in the host's memory. [default: 0]"
    ),
    options.many(
        "--tensor-split", "tensor_split", metavar="SHARES", help="Shares of several GPUs, such as 3/1 (3 to 1)."
    ),
)
@options.group(
    "How long to measure",
    options.count(
        "-r", "--reps", help="Repetitions of each phase. [default: as many as --precision needs; 2 without -m]"
    ),
    options.percentage(
        "--precision",
        help="Repeat, 5 to 20 times, until the 95% interval of the rate is within this. [default: 2%]",
    ),
    options.duration(
        "--max-phase", "max_phase_s", help="Start no further repetition of a phase after this time. [default: 60s]"
    ),
    options.duration("--budget", "budget_s", help="Choose the cases that fit into this time, such as 10m."),
    options.duration("--timeout", "timeout_s", default="1h", help="Stop a case that takes longer than this."),
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
    html: Path | None,
    store: Path | None,
    output: str,
    most_notes: int | None,
    **asked: Any,
) -> int:
    """Measure every combination of model, quantization, context and batch.

    Separate values with commas or repeat the option: -c 512,4k -b 1 -b 4. Ranges are written '1k-128k*2' or 1-8+1; k
    is 1024. Without -m, the sweep picks the largest Gemma 4 and Qwen 3.5 that fit and finish in about five minutes.

    Each row is stored immediately; the same command continues an interrupted sweep. Several sweeps may share a store.

    Exit codes: 0 success, 1 a case failed, a model was refused or nothing could be measured, 2 usage error, 130
    interrupted.
    """
    files.check(html, store)
    found = devices.find(device)
    available = run_sweep.available_bytes(found, max_memory)
    own = {name: asked.pop(name) for name in OF_BACKENDS}
    resolved = resolve_request(SweepRequest(**asked, options=own), found, available, say)
    for line in refusal_lines(resolved.refused):  # before the rows, so that nobody waits for them
        say(line)
    refused = REFUSED if resolved.refused else 0
    if dry_run:
        show_dry_run(resolved, found, max_memory, store, resumed, output)
        return refused
    with Store.open(store) as opened, RowPrinter(opened, resolved, output, most_notes) as printer:
        limits = WorkerLimits(max_memory_bytes=max_memory, case_s=timeout_s)
        result = run_sweep.sweep(resolved, found, opened, limits, printer, argv=sys.argv[1:], resumed=resumed)
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


def show_dry_run(
    resolved: ResolvedRequest,
    device: DeviceInfo,
    max_memory: int | None,
    store: Path | None,
    resumed: bool,
    output: str,
) -> None:
    """Print what would run and why; with ``resumed``, which stored rows would be reused, without creating a store."""
    has_rows = resumed and existing(store) is not None
    with Store.open(store, create=False) if has_rows else nullcontext() as opened:
        prepared = run_sweep.prepare(resolved, device, opened, max_memory)
    plan, reused = prepared.plan, prepared.reused
    click.echo(show_plan.render(plan, reused, prepared.available_bytes, output, resolved.subjects), nl=False)
    for line in (*device.limits, *show_plan.about(resolved.subjects)):
        say(line)
    tell(fallbacks(reused.values()))
    say(show_plan.summary(plan))
