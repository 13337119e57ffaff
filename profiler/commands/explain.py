"""``profile explain``: show where the time and memory of one case go, and what would help."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import click

from profiler import backends, devices
from profiler.case import Case
from profiler.commands import options
from profiler.console import say
from profiler.cost import explanation
from profiler.cost.machine import SPLITS, Split
from profiler.cost.prediction import Prediction
from profiler.cost.storage import left_plain
from profiler.decode_path import PATHS
from profiler.errors import ProfileError
from profiler.models.resolve import Model
from profiler.results import reading
from profiler.results.environment import LIBRARIES
from profiler.results.measurement import Measurement
from profiler.run import choice
from profiler.run.fit import FitRequest, OneCase, one_case
from profiler.shell import Command, command
from profiler.show import explain as show_explain
from profiler.show import output as show_output

MAX_CHANGES = 3  # differences of machine and software that a message names


@click.command(
    "explain",
    cls=options.DocumentedCommand,
    examples={
        "profile explain qwen3.5-4b -q nf4 -c 32k": "one case on this machine, with the measurement if there is one",
        'profile explain qwen3.5-4b --on "rtx 4090" -q nf4': "the same model on a GPU you do not have",
    },
)
@click.argument("model")
@options.group(
    "What to explain",
    click.option(
        "-q",
        "--quant",
        metavar="QUANT",
        help="Quantization. [default: as the checkpoint is stored, otherwise the usual one of the engine]",
    ),
    click.option(
        "-c",
        "--context",
        metavar="TOKENS",
        help="Tokens in the cache when decode starts. [default: 8192, or the model's maximum]",
    ),
    click.option("-b", "--batch", metavar="N", default="1", show_default=True, help="Sequences processed together."),
    click.option("--kv", metavar="TYPE", help="Type of the KV cache, such as q8_0 or fp8. [default: the engine's]"),
)
@options.group(
    "Where it would run",
    click.option("--on", metavar="DEVICE", help="A device, as for profile fit. [default: this machine]"),
    click.option(
        "--engine",
        metavar="NAME",
        help="The engine that would run the model: transformers, llama.cpp, llama.cpp-vulkan, llamafile, mlx, vllm,"
        " sglang or tensorrt-llm. [default: transformers; llama.cpp for GGUF files and its quantizations, and on AMD,"
        " Apple and Intel devices]",
    ),
    options.choice(
        "--path", PATHS, help="How transformers decodes. [default: as profile sweep would on that device]"
    ),
    options.choice(
        "--split", SPLITS, help="How several devices share a model. [default: tensor for vllm, otherwise layer]"
    ),
    *options.host_memory(),
)
@options.group("Results", options.learned(), options.store(), show_output.output())
def explain(
    model: str,
    on: str | None,
    engine: str | None,
    quant: str | None,
    context: str | None,
    batch: str,
    kv: str | None,
    path: str | None,
    split: Split | None,
    ram_bytes: int | None,
    ram_bandwidth: float | None,
    learned: bool,
    store: Path | None,
    output: str,
) -> int:
    """Show where the time and memory of one case go.

    For each part of prefill and decode, this prints bytes, FLOPs, the time that the device takes at best and the
    predicted time; then what determines peak memory, and which single change would free the most. If the case was
    measured on this machine, the measurement is shown with the prediction.
    """
    fit_request = FitRequest(
        models=(model,),
        on=(on,) if on else (),
        engine=engine,
        quants=(quant,) if quant else (),
        contexts=(context,) if context else (),
        batches=(batch,),
        kv=kv,
        split=split,
        ram_bytes=ram_bytes,
        ram_bandwidth=ram_bandwidth,
        path=path,
        learned=learned,
        store=store,
    )
    case = one_case(fit_request)
    found = explanation.explain(case.predictor, case.context, case.batch, kv)
    prediction = case.predictor.predict(case.context, case.batch, kv)
    measured = measurements_of(case.model, prediction, store)
    shown = () if output in ("table", "md") else prediction.machine.target.limits  # those have them in the heading
    for caution in (*case.cautions, *shown):
        say(f"{case.model.name}: {caution}")
    about = show_explain.About(
        case.serving(prediction), case.check(prediction), *_instead(case, prediction, on, split, batch)
    )
    click.echo(show_explain.render(case.model.name, prediction, found, measured, output, about), nl=False)
    return 0


def _instead(
    case: OneCase, prediction: Prediction, on: str | None, split: Split | None, batch: str
) -> tuple[str | None, Prediction | None, Command | None]:
    """What the quantization leaves unquantized, and if that is most of the model or the case does not fit, what fits
    instead, and the command that explains that.
    """
    request, predictor, where = prediction.request, case.predictor, ("--on", on) if on else ()
    left = left_plain(predictor.storage, request.quant, request.dtype)
    fits = prediction.verdict.word != "no"
    if (fits and choice.shrinks(predictor)) or case.model.source.kind == "gguf":
        return left, None, None
    most = choice.MOST_BITS if choice.shrinks(predictor) else choice.bits(request.quant)
    other = choice.instead(predictor.geometry, predictor.machine, case.context, request.batch, most)
    if other is None:
        return left, None, None if fits else command("profile", where)
    asked = ("--engine", other.engine.name, "-q", other.request.quant, "-c", str(case.context))
    shared = (*(("-b", batch) if request.batch > 1 else ()), *(("--split", split) if split else ()))
    return left, other, command("profile", "explain", case.named.argument, asked, shared, where)


def _versions(row: Measurement) -> Mapping[str, str]:
    """The versions of the programs that a row's backend runs; without them, those of the row, since there are no
    others to compare it with."""
    backend = backends.of_row(row.case.backend)
    try:
        return {} if backend is None else backend.versions()
    except ProfileError:
        libraries = row.environment.get("libraries") or {}
        return {name: version for name, version in libraries.items() if name not in LIBRARIES}


def measurements_of(model: Model, prediction: Prediction, store: Path | None) -> list[Measurement]:
    """The measurements of the case in this engine on this machine with any decode path, the newest first.

    If there are only others, a line on stderr says so.
    """
    target, request = prediction.machine.target, prediction.request
    if target.local is None or target.count > 1:
        return []
    ids = {model.model_id} | ({model.id_for("real")} if model.checkpoint else set())

    def is_case(case: Case) -> bool:
        backend = backends.of_row(case.backend)
        return (
            case.model_id in ids
            and backend is not None
            and backend.simulated is None
            and backend.engine == prediction.engine.name
            and (case.quant, case.dtype, case.context, case.batch, case.device, case.threads)
            == (request.quant, request.dtype, request.context, request.batch, target.local, None)
        )

    rows, changed = reading.of_case(store, is_case, devices.find(target.local), _versions)
    if changed:
        changes = "; ".join(changed[:MAX_CHANGES])
        say(f"this case was measured only on another machine or with other software: {changes}")
    return rows
