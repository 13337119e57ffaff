"""What people type who come from other tools, and what it is called here."""

from __future__ import annotations

import click

from profiler.commands import options
from profiler.shell import quote

ELSEWHERE = {  # options of llama-bench → ours, in words
    "-p": ("-c", "the tokens of a prefill are -c: a case prefills exactly its context"),
    "-d": ("-c", "the depth of decode is -c"),
    "-t": ("--threads", "the number of threads is --threads"),
    "-u": ("--ubatch", "tokens per prefill chunk are --ubatch"),
}


class MeasuringCommand(options.Command):
    """A command whose model is an option: it says so to those who give it as an argument."""

    allow_extra_args = True  # to be looked at below

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            ours, meant = ELSEWHERE.get(error.option_name, (None, ""))
            if not any(ours in option.opts for option in self.params):
                raise
            raise click.UsageError(f"No such option: {error.option_name}; {meant}", ctx) from None
        if ctx.args:
            named = " ".join(f"-m {quote(word)}" for word in ctx.args[:3])
            raise click.UsageError(f"Got unexpected argument; models are named with -m: {named}", ctx)
        return ctx.args
