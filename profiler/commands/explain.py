"""``profile explain``: one case taken apart: where its time and memory go, and what would help."""

from __future__ import annotations

from pathlib import Path

import click

from profiler.commands import explain_page, listing, options
from profiler.commands.progress import say
from profiler.devices.target import Target
from profiler.models.resolve import Model
from profiler.paths import PATHS
from profiler.plan.inquiry import Inquiry, one_case
from profiler.predict import engines, estimate, explanation
from profiler.predict.engines.base import Setting
from profiler.predict.machine import SPLITS, Split
from profiler.results.measurement import Measurement
from profiler.results.store import Store, existing


@click.command("explain")
@click.argument("model")
@click.option("--on", metavar="DEVICE", help="As with profile fit. [default: this machine]")
@click.option("--engine", default=engines.DEFAULT, show_default=True, metavar="NAME", help="The runtime.")
@click.option("-q", "--quant", metavar="QUANT", help="Format of the weights. [default: the model's own]")
@click.option("-c", "--context", metavar="TOKENS", default="8k", show_default=True, help="In the cache.")
@click.option("-b", "--batch", metavar="N", default="1", show_default=True, help="Sequences at once.")
@click.option("--kv", metavar="FORMAT", help="Of K and V. [default: the engine's]")
@options.choice("--path", PATHS, help="Decode steps of transformers. [default: as profile sweep runs them there]")
@options.choice("--split", SPLITS, help="Of several devices. [default: tensor with vllm, else layer]")
@options.store()
@listing.output()
def explain(
    model: str,
    on: str | None,
    engine: str,
    quant: str | None,
    context: str,
    batch: str,
    kv: str | None,
    path: str | None,
    split: Split | None,
    store: Path | None,
    output: str,
) -> int:
    """Take one case apart: bytes, FLOPs, the ceiling's time and the predicted one for each part of both phases.

    Beside them what was measured of this case here, if it is in the store; what sets the peak of memory from loading
    to decode; and the one change that frees most.
    """
    inquiry = Inquiry(
        (model,), (on,) if on else (), engine, (quant,) if quant else (), (context,), (batch,), kv, split, path=path
    )
    case = one_case(inquiry)
    found = explanation.explain(case.predictor, case.context, case.batch, kv)
    prediction = case.predictor.predict(case.context, case.batch, kv)
    measured: list[Measurement] = []
    if prediction.engine.name == estimate.ENGINE:
        measured = stored(case.model, prediction.machine.target, prediction.setting, store)
    for caution in case.cautions:
        say(f"{case.model.name}: {caution}")
    click.echo(explain_page.render(case.model.name, prediction, found, measured, output), nl=False)
    return 0


def stored(model: Model, target: Target, setting: Setting, store: Path | None) -> list[Measurement]:
    """The measurements of the case on this device, by any decode path, the newest first."""
    if target.local is None or target.count > 1 or existing(store) is None:
        return []
    ids = {model.model_id} | ({model.id_for("real")} if model.checkpoint else set())
    with Store.open(store, create=False) as opened:
        rows = [
            row
            for row in opened.newest()
            if row.case.model_id in ids
            and (row.case.quant, row.case.dtype, row.case.context, row.case.batch, row.case.device)
            == (setting.quant, setting.dtype, setting.context, setting.batch, target.local)
        ]
    return rows[::-1]
