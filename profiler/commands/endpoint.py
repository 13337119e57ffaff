"""``profile endpoint``: measure a running server, such as LM Studio, Ollama, llama-server or vLLM."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from profiler.commands import options
from profiler.console import say, width
from profiler.show.progress import Progress, show_live
from profiler.units import printable, seconds_text

FAILED, INTERRUPTED = 1, 130


def _slo(text: str) -> Any:
    from profiler.backends.endpoint import parse_slo

    return parse_slo(text)


def _kinds(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    """The kinds of ``--tasks``, none for all of them; None without the option."""
    from profiler.run import grid

    return None if value is None else grid.words([value])


@click.command(
    "endpoint",
    cls=options.DocumentedCommand,
    examples={
        "profile endpoint": "the server on a usual port of this machine, and the models it has loaded",
        "profile endpoint localhost:1234 -m gemma-3-4b,qwen3.5-4b": "two models of LM Studio, one after the other",
        "profile endpoint localhost:11434 -m qwen3.5:4b -c 512,8k": "Ollama, with a short and a long prompt",
        "profile endpoint http://box:8000 --concurrency 1,4,16 --slo ttft=2s,itl=100ms": "a server under load",
        "profile endpoint localhost:8080 --scenario frontend-landing-page,multilingual": "prompts of real uses",
        "profile endpoint localhost:8080 --prompt page.txt --keep answers": "your own prompt; keep the answers",
        "profile endpoint localhost:8080 --tasks html,format --keep answers": "tasks with exact checkers",
    },
)
@click.argument("url", required=False, metavar="[URL]")
@options.group(
    "What to ask",
    options.many("-m", "--model", "models", metavar="MODEL", help="Models. [default: those that are loaded]"),
    options.many("-c", "--context", "contexts", metavar="TOKENS", help="Tokens of the prompt. [default: 512]"),
    options.count(
        "-n", "--tokens", "tokens", help="Tokens of the answer. [default: 128, or as the scenario]", most=1_000_000
    ),
    click.option(
        "--prompt",
        type=options.FilePath(dir_okay=True),
        metavar="FILE|FOLDER",
        help="Your own prompt: a text file, or every file of a folder.",
    ),
    options.many("--scenario", "scenarios", metavar="NAME", help="The prompts of scenarios, such as code or agent."),
    click.option(
        "--tasks",
        is_flag=False,
        flag_value="",
        callback=_kinds,
        metavar="[KINDS]",
        help="Solve about 50 tasks with exact checkers: all kinds, or some of code, html, arithmetic, extraction, "
        "format. code runs what the model writes, in a sandbox without network.",
    ),
    click.option(
        "--config",
        metavar="MODEL",
        help="What is served: a .gguf file, a folder, a catalog name or a Hugging Face id, for MBU and predictions.",
    ),
    click.option(
        "--on",
        metavar="DEVICE",
        help="The hardware that the server runs on, as for profile fit, for MBU by its data sheet. [default: this "
        "machine, if the server runs here]",
    ),
    click.option("--cached", is_flag=True, help="Send the same prompt repeatedly, to measure the prefix cache."),
)
@options.group(
    "How to measure",
    options.many("--concurrency", metavar="N", help="Streams: requests at a time, such as 1,2,4. [default: 1]"),
    options.count("-r", "--reps", help="Requests of each stream. [default: 5]", most=10_000),
    click.option(
        "--slo",
        callback=options.parsed(_slo),
        metavar="LIMITS",
        help="Count the requests that meet these limits: ttft=2s,itl=100ms,e2e=1m.",
    ),
    options.duration("--timeout", "timeout_s", default="10m", help="Stop a request that takes longer."),
    click.option(
        "--insecure",
        is_flag=True,
        help="Do not check the server's certificate. Others could then read everything, even the key.",
    ),
)
@options.group(
    "Results",
    click.option(
        "--keep",
        type=options.FilePath(file_okay=False, dir_okay=True),
        metavar="FOLDER",
        help="Keep the answers in this folder, and show all answers in it side by side, in answers.html.",
    ),
    options.store(),
    options.output(),
)
def endpoint(url: str | None, keep: Path | None, store: Path | None, output: str, **asked: Any) -> int:
    """Measure a running OpenAI-compatible server: LM Studio, Ollama, llama-server, vLLM, SGLang and others.

    Without URL, it tries the usual ports of this machine. Each prompt is unique, so that no prefix cache helps. The
    first request of a model loads it and never counts. The server counts the tokens. If it does not, the tokenizer
    in the folder that --config names counts them; otherwise figures in tokens are unknown.

    Each row is stored immediately. Everything is measured again each time, because a server may have changed;
    profile compare latest~1 latest compares the last two runs.

    An API key is read from the environment variable PROFILE_API_KEY and from nowhere else. It is sent to the server
    that URL names, and never stored or shown.

    Exit codes: 0 success, 1 a request failed, 2 usage error or no server, 130 interrupted.
    """
    from profiler.backends.endpoint import client
    from profiler.results.store import Store
    from profiler.run import serving
    from profiler.run.endpoint import EndpointRequest
    from profiler.show import answers
    from profiler.show import endpoint as show_endpoint

    rows = serving.ServedRows(asked.pop("config"), asked.pop("on"))
    request = EndpointRequest(url=url, **asked)
    request.cases()  # report an empty file before waiting for a server
    kept = answers.AnswerFolder(keep) if keep is not None else None
    measured: list[serving.MeasuredResult] = []
    with Store.open(store) as opened:
        run = serving.ServedRun(opened, sys.argv[1:])
        live = show_live if Progress.wanted(streaming=output == "jsonl") else None

        async def measure() -> None:
            async for each in serving.measure(request, rows, run, say, live):
                measured.append(each)
                if kept is not None:
                    kept.add(each.result)
                if output == "jsonl":
                    click.echo(show_endpoint.render([each], output, run.id), nl=False)
                say(_progress(each.result))

        try:
            interrupted = _interrupted(lambda: client.run(measure()))
        finally:
            if kept is not None and (page := kept.finish()) is not None:
                say(f"answers side by side: {printable(page)}")
        run.finish(interrupted)
    if output != "jsonl":
        click.echo(show_endpoint.render(measured, output, run.id, width()), nl=False)
    if run.lost is not None:  # what was measured is shown first, since there is no other copy
        raise run.lost
    if run.id is not None:
        say(f"stored as run {run.id}: {run.store.command('runs', 'show', run.id)}")
    if interrupted:
        return INTERRUPTED
    return FAILED if any(each.result.failure for each in measured) else 0


def _interrupted(work: Callable[[], object]) -> bool:
    """Do ``work``; return whether Ctrl-C ended it."""
    try:
        work()
    except KeyboardInterrupt:
        return True
    return False


def _progress(result: Any) -> str:
    """A line for each finished case."""
    where = f"{result.model.shown}, {printable(result.prompt.name, 60)}, {result.streams} at a time"
    solved = ""
    if result.tasks:
        from profiler.run.tasks import scored

        solved = f", {scored(result.tasks).passed} of {len(result.tasks)} tasks passed"
    if result.failure:
        return f"{where}{solved}: failed: {result.failure}" + (f". {result.hint}" if result.hint else "")
    count = result.summary.requests
    return f"{where}: {count} request{'s' * (count != 1)} in {seconds_text(result.summary.wall_s)}{solved}"
