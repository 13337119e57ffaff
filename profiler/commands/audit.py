"""``profile audit``: check whether a model's decode step can be captured as a graph, and if not, show why."""

from __future__ import annotations

import click

from profiler import registry
from profiler.console import say
from profiler.errors import ProfileError
from profiler.run.grid import words
from profiler.units import printable

QUANTS = ("fp32", "bf16", "nf4", "int8")


@click.command("audit")
@click.argument("model")
@click.option("-q", "--quant", metavar="QUANT", multiple=True, help=f"Quantizations. [default: {','.join(QUANTS)}]")
def audit(model: str, quant: tuple[str, ...]) -> int:
    """Check for each quantization of MODEL whether its decode step can run as a graph, on CUDA and on a CPU.

    The check builds a small copy of the architecture with random weights. It records the decode step, replays it with
    poisoned intermediate results, compares consecutive steps and compiles them. It needs no GPU, weights or download.
    On a CPU, a graph is compiled code around our C++ loops and needs a compiler.

    Exit codes: 0 all can run as a CUDA graph, 1 one cannot or cannot be built, 2 usage error.
    """
    from profiler.models.resolve import resolve

    source = resolve(model).source  # before torch is imported, which takes seconds
    names = words(quant or QUANTS)
    plugins = {name: registry.load("quants", name, "quantization").QUANT for name in names}  # finds typing errors
    from profiler.backends.hf import audited
    from profiler.kernels import native

    refused = 0
    for name, plugin in plugins.items():
        try:
            found = audited(source, plugin)
        except ProfileError as error:  # the other quantizations are still checked
            say(f"{printable(model)} {name}: {error.message}")
            refused += 1
            continue
        refused += not found.passed
        size = f": {found.kernels} kernels per token in the small model" if found.kernels else ""
        click.echo(f"{printable(model)} {name}{size}")
        click.echo(f"  cuda: {'graph' if found.passed else 'static only'}")
        for finding in found.findings:
            click.echo(f"    {finding.check}: {finding.text}")
        without = native.missing()
        click.echo(f"  cpu: {'graph' if without is None else f'static only: {without}'}")
    return int(refused > 0)
