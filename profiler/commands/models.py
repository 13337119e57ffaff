"""``profile models``: list the models you can name without a path, and their cache sizes."""

from __future__ import annotations

import click

from profiler.models import hub
from profiler.models.families import geometry
from profiler.show import lists
from profiler.show import output as show_output


@click.command("models")
@show_output.output()
def models(output: str) -> None:
    """List the models that you can name without a path.

    A model can also be a folder with config.json, a .gguf file or a Hugging Face id.

    Parameters are those of the text decoder; active ones are those that a single token uses. Layers are listed by how
    they attend: full layers to every token, sliding ones to a window, and chunked ones within a chunk. Gated delta
    layers have a recurrent state instead, and shared layers use the K and V of an earlier layer. Cache sizes are
    those of transformers in a 16-bit dtype, for one sequence: KV/token is added by every token, and the fixed cache
    (full windows, recurrent state) does not grow.
    """
    click.echo(lists.models([(name, geometry(hub.shipped_config(name))) for name in hub.names()], output), nl=False)
