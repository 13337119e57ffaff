"""``profile models``: list the models you can name without a path, and their cache sizes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import click

from profiler.models import hub
from profiler.models.families import geometry
from profiler.models.geometry import Geometry
from profiler.show import output as show_output
from profiler.units import bytes_text, significant

ELEMENT_BYTES = 2  # K and V in a 16-bit dtype
DROPPED = ("active", "fixed cache")  # by a terminal that is too narrow
SHARED = "shared "  # the prefix of a layer kind without its own cache


@click.command("models")
@show_output.output()
def models(output: str) -> None:
    """List the models that you can name without a path.

    A model can also be a folder with config.json, a .gguf file or a Hugging Face id.

    Parameters are those of the text decoder; active ones are those that a single token uses. Layers are listed by how
    they attend: full layers to every token, sliding ones to a window, chunked ones within a chunk; gated delta layers
    have a recurrent state instead, and shared layers use the K and V of an earlier layer. Cache sizes are those of
    transformers in a 16-bit dtype: KV/token grows with every token, the fixed cache (full windows, recurrent state)
    is the rest, per sequence.
    """
    rows = [row(name, geometry(hub.shipped_config(name))) for name in hub.names()]
    click.echo(show_output.render(rows, shown, output, DROPPED), nl=False)


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
    """The cells of a table row."""
    return {
        "model": row["model"],
        "params": _count(row["parameters"]),
        "active": _count(row["active_parameters"]),
        "layers": _layers(row["layers"]),
        "KV/token": bytes_text(row["cache_bytes_per_token"]),
        "fixed cache": bytes_text(row["window_bytes_per_sequence"] + row["state_bytes_per_sequence"]),
        "max context": f"{row['max_context']:,}",
    }


def _layers(kinds: Mapping[str, int]) -> str:
    """``28 sliding + 7 full, 20 shared``: layers by kind, and how many of them share K/V."""
    counts: Counter[str] = Counter()
    for kind, count in kinds.items():
        counts[kind.removeprefix(SHARED)] += count
    shared = sum(count for kind, count in kinds.items() if kind.startswith(SHARED))
    text = " + ".join(f"{count} {kind}" for kind, count in counts.items())
    return f"{text}, {shared} shared" if shared else text


def _count(parameters: int) -> str:
    billions = parameters / 1e9
    return f"{significant(billions)} B" if billions >= 0.9995 else f"{significant(billions * 1000)} M"
