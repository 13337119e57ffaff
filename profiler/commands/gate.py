"""``profile gate``: decide whether a change made inference slower or larger."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from profiler import backends, files
from profiler.commands import options
from profiler.commands.options import MeasuringCommand
from profiler.commands.sweep import llama_cpp_options
from profiler.console import say
from profiler.decode_path import EAGER
from profiler.gate import page
from profiler.gate import session as gate_session
from profiler.gate.rule import DELTA, exit_code, worst
from profiler.gate.session import REPS, GateRequest
from profiler.run.request import MAX_THREADS, OF_BACKENDS, SweepRequest

INTERRUPTED = 130
FORMATS = page.FORMATS


@click.command(
    "gate",
    cls=MeasuringCommand,
    examples={
        "profile gate --base HEAD~1 -m gemma-3-270m -c 64 -n 16": "this checkout against its previous commit",
        "profile gate --base ../old/.venv -m ./my-model -q nf4": "against an environment with other library versions",
        "profile gate --baseline speed.json --accept -m gemma-3-270m": "store a baseline; without --accept, compare",
        "profile gate --baseline server.json --rows latest": "judge the latest run of profile endpoint",
        "profile gate --backend llama.cpp --base ../old-llama.cpp -m FILE.gguf": "a new build against an earlier one",
    },
)
@options.group(
    "What to compare",
    click.option(
        "--base",
        metavar="REV|VENV|CMD|DIR",
        help="What to compare with: a git revision, a virtual environment or a Python command; with --backend "
        "llama.cpp, the folder of a build.",
    ),
    click.option(
        "--candidate",
        metavar="REV|VENV|CMD|DIR",
        help="What to judge. [default: this installation, or the usual build]",
    ),
    click.option(
        "--build",
        metavar="CMD",
        help="Build a revision of the project that you are in, which --base names, with this shell command. It has "
        "to make .venv or, with --backend llama.cpp, the programs.",
    ),
    click.option(
        "--baseline",
        "stored",
        type=options.FilePath(),
        metavar="FILE",
        help="Compare with this stored baseline: bytes and tokens exactly, times only coarsely.",
    ),
    click.option(
        "--rows",
        metavar="RUN|FILE",
        help="Compare stored rows of profile endpoint with --baseline, instead of measuring.",
    ),
    click.option(
        "--accept", is_flag=True, help="Store the new measurements in --baseline. Nothing else changes that file."
    ),
)
@options.group(
    "Cases",
    options.many(
        "-m",
        "--model",
        "models",
        metavar="MODEL",
        help="Models: catalog names (see profile models), folders, .gguf files or Hugging Face ids.",
    ),
    options.many(
        "-q", "--quant", "quants", metavar="QUANT", help="Quantizations, such as bf16,nf4. [default: as in a sweep]"
    ),
    options.many(
        "-c", "--context", "contexts", metavar="TOKENS", help="Tokens in the cache when decode starts. [default: 512]"
    ),
    options.many("-b", "--batch", "batches", metavar="N", help="Sequences processed together. [default: 1]"),
    options.many("-n", "--steps", "steps", metavar="N", help="Tokens to decode for each sequence. [default: 32]"),
    options.choice(
        "--weights",
        ("auto", "real", "synthetic"),
        default="auto",
        help="auto: real weights if they are on this machine, otherwise random values.",
    ),
    options.choice(
        "--fill",
        ("prefill", "synthetic"),
        help="Fill the cache by a real prefill or with random values. [default: prefill]",
    ),
)
@options.group(
    "Decision",
    options.percentage(
        "--delta", default=f"{100 * DELTA:g}%", help="The smallest slowdown that counts as a regression."
    ),
    options.many("--metric", "metrics", metavar="METRIC", help="Time prefill or decode. [default: both]"),
    options.choice(
        "--inconclusive",
        ("fail", "warn"),
        help="Exit with 3 (fail) or 0 (warn) when the gate cannot decide. [default: fail with --base, warn with "
        "--baseline, whose times cannot decide more]",
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
    options.choice(
        "--path",
        ("eager", "static", "graph"),
        default="eager",
        help="How decode runs. A sweep uses static or graph unless told otherwise.",
    ),
    options.count(
        "--threads", most=MAX_THREADS, help="CPU threads. [default: 1 on a CPU, where idle threads use CPU time]"
    ),
    options.count("-r", "--reps", help=f"Repetitions of each phase in each measurement of a pair. [default: {REPS}]"),
    options.duration(
        "--max-phase", "max_phase_s", help="Start no further repetition of a phase after this time. [default: 60s]"
    ),
    options.duration("--wait", "wait_s", default="60s", help="How long to wait for the machine to become quiet."),
    click.option(
        "--seed",
        type=click.IntRange(0),
        metavar="N",
        help="Seed of the order within pairs. [default: random, and recorded]",
    ),
)
@llama_cpp_options()
@options.group(
    "Results",
    click.option(
        "--record",
        type=options.FilePath(),
        metavar="FILE",
        help="Write all measurements to this JSON file, including those that do not count.",
    ),
    options.store(),
    click.option(
        "-o",
        "--output",
        type=click.Choice(FORMATS, case_sensitive=False),
        default="table",
        show_default=True,
        help="Output format.",
    ),
)
def gate(
    base: str | None,
    candidate: str | None,
    build: str | None,
    stored: Path | None,
    rows: str | None,
    store: Path | None,
    accept: bool,
    delta: float,
    metrics: tuple[str, ...],
    inconclusive: str | None,
    device: str | None,
    wait_s: float,
    seed: int | None,
    record: Path | None,
    output: str,
    **asked: Any,
) -> int:
    """Decide whether a change made inference slower or larger.

    With --base, the gate runs both versions in turns, in worker processes, as pairs in random order. After 6, 10 and
    16 pairs it decides PASS or FAIL, or continues; a FAIL has to be confirmed in new processes. On a CPU it compares
    CPU time. With --baseline, it compares bytes and tokens exactly with a stored file, and times only coarsely.
    Predictions of the next token that differ by more than rounding are a FAIL, too.

    Exit codes: 0 PASS, 1 FAIL, 2 usage error, 3 inconclusive, 4 incomparable, 130 interrupted.
    """
    path = asked.pop("path")
    asked["paths"] = () if path == EAGER and backends.find(asked["backend"]).gguf else (path,)
    asked["options"] = {name: asked.pop(name) for name in OF_BACKENDS}
    request = GateRequest(
        SweepRequest(**asked),
        base,
        candidate,
        build,
        stored,
        rows,
        store,
        accept,
        delta,
        metrics,
        device,
        wait_s,
        seed,
    )
    request.check()
    if record is not None:
        files.check(record, (stored,))
    result = gate_session.run(request, say)
    content = result.to_json()
    if record is not None:
        page.keep(record, content)
    if result.interrupted:
        say("interrupted: there is no verdict")
        return INTERRUPTED
    click.echo(page.render(content, result.verdicts, output), nl=False)
    word, fails = worst(result.verdicts), base is not None if inconclusive is None else inconclusive == "fail"
    if word == "INCONCLUSIVE" and not fails:
        say(page.undecided("command", "--inconclusive fail"))
    return exit_code(word, fails)
