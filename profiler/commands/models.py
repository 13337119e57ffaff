"""``profile models``: the models that can be named without a path, and what each keeps in memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from profiler.commands import listing
from profiler.models import catalog
from profiler.models.families import geometry
from profiler.models.geometry import Geometry
from profiler.units import bytes_text, significant

ELEMENT_BYTES = 2  # K and V in a 16-bit dtype


@click.command("models")
@listing.output()
def models(output: str) -> None:
    """List the models that can be named without a path.

    Parameters are those of the text decoder; active ones are what a single token goes through. The cache is that of
    transformers in a 16-bit dtype: what grows with each token, and what a sequence keeps whatever its length (sliding
    windows, recurrent state). A folder with config.json, a .gguf file or a hub id can be named as well.
    """
    rows = [row(name, geometry(catalog.raw_config(name))) for name in catalog.names()]
    click.echo(listing.render(rows, shown, output), nl=False)


def row(name: str, model: Geometry) -> dict[str, Any]:
    """One model as plain JSON; bytes and counts are integers."""
    depth = model.max_position
    deep, deeper = model.cache_bytes(depth, 1, ELEMENT_BYTES), model.cache_bytes(depth + 1, 1, ELEMENT_BYTES)
    return {
        "model": name,
        "parameters": model.parameters,
        "active_parameters": model.active_parameters,
        "layers": model.layer_kinds(),
        "cache_bytes_per_token": deeper.growing - deep.growing,
        "window_bytes_per_sequence": deep.window,
        "state_bytes_per_sequence": deep.state,
        "max_context": depth,
    }


def shown(row: Mapping[str, Any]) -> dict[str, str]:
    """A row for people."""
    return {
        "model": row["model"],
        "parameters": _count(row["parameters"]),
        "active": _count(row["active_parameters"]),
        "layers": " + ".join(f"{count} {kind}" for kind, count in row["layers"].items()),
        "cache/token": bytes_text(row["cache_bytes_per_token"]),
        "window": bytes_text(row["window_bytes_per_sequence"]),
        "state": bytes_text(row["state_bytes_per_sequence"]),
        "max context": f"{row['max_context']:,}",
    }


def _count(parameters: int) -> str:
    billions = parameters / 1e9
    return f"{significant(billions)} B" if billions >= 0.9995 else f"{significant(billions * 1000)} M"
