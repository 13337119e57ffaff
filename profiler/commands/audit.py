"""``profile audit``: what the graph path may capture, and why not."""

from __future__ import annotations

from typing import Any

import click

from profiler import registry
from profiler.models.source import Source
from profiler.units import printable

QUANTS = ("fp32", "bf16", "nf4", "int8")
DTYPE = "fp32"  # of what a quantization leaves plain; a CPU without bf16 units computes it best


@click.command("audit")
@click.argument("model")
@click.option(
    "-q", "--quant", multiple=True, help=f"Quantizations, by comma or repeated (default {','.join(QUANTS)})."
)
def audit(model: str, quant: tuple[str, ...]) -> int:
    """Say for MODEL and each quantization whether its decode step may be a graph on CUDA and on a CPU, and why not.

    The architecture is built small, with random weights, and its step is recorded, replayed with poisoned
    intermediates, compared from step to step and compiled. No GPU, no weights and no download are needed. On a CPU
    the graph is compiled code around C++ loops, so it needs a compiler. Exit code 1 when CUDA refuses one.
    """
    from profiler.kernels import native
    from profiler.models.resolve import resolve

    source = resolve(model).source
    names = [name for item in quant or QUANTS for name in item.split(",")]
    refused = 0
    for name in names:
        plugin = registry.load("quants", name, "quantization")
        found = report(source, plugin.QUANT)
        refused += not found.passed
        size = f": {found.kernels} kernels a token in the small model" if found.kernels else ""
        click.echo(f"{printable(model)} {name}{size}")
        click.echo(f"  cuda: {'graph' if found.passed else 'static only'}")
        for finding in found.findings:
            click.echo(f"    {finding.gate}: {finding.text}")
        without = native.missing()
        click.echo(f"  cpu: {'graph' if without is None else f'static only: {without}'}")
    return int(refused > 0)


def report(source: Source, quant: Any) -> Any:
    """Build the small model of a quantization and audit its step."""
    import logging

    import torch
    import transformers

    from profiler.backends.hf import synthetic
    from profiler.backends.hf.load import DTYPES, text_config
    from profiler.kernels.miniature import miniature
    from profiler.kernels.subject import audit as audit_model

    transformers.logging.set_verbosity_error()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    dtype = quant.dtype or DTYPE
    raw = miniature(text_config(source).to_dict())
    small = text_config(Source(source.kind, source.location, source.revision, raw))
    plain, cpu = DTYPES[dtype], torch.device("cpu")
    built = synthetic.build(small, plain, cpu, quant.load_config(dtype), 0, lambda words: None)
    return audit_model(built)
