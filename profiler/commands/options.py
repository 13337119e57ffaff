"""Options that several commands share, so that they look and behave the same everywhere.

An option of llama-bench gives an error that names our option.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from profiler import registry, settings
from profiler.console import say
from profiler.settings import Setting
from profiler.shell import quote
from profiler.show.output import MAX_NOTES
from profiler.units import counted, printable, some_bytes, some_seconds, some_share

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]
Callback = Callable[[click.Context, click.Parameter, str | None], Any]
GROUP = "help_group"  # the attribute in which a parameter keeps the title of its group

LLAMA_BENCH_OPTIONS = {  # option of llama-bench → our option, explanation
    "-p": ("-c", "the tokens of a prefill are -c: a case prefills exactly its context"),
    "-d": ("-c", "the depth of decode is -c"),
    "-t": ("--threads", "the number of threads is --threads"),
    "-u": ("--ubatch", "tokens per prefill chunk are --ubatch"),
}


def group(title: str, *declared: Decorator) -> Decorator:
    """Options that the help shows together under ``title``, in the given order."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        before = len(getattr(function, "__click_params__", ()))
        for each in reversed(declared):
            function = each(function)
        for parameter in function.__click_params__[before:]:  # type: ignore[attr-defined]
            setattr(parameter, GROUP, title)
        return function

    return decorate


class DocumentedCommand(click.Command):
    """A command whose help shows examples first, and then its options by group.

    ``examples`` maps a command line to a short explanation. Options without a group come last.
    """

    def __init__(self, *args: Any, examples: Mapping[str, str] | None = None, **more: Any) -> None:
        super().__init__(*args, **more)
        self.examples = dict(examples or {})

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command, after saying on stderr what ``profile.toml`` has decided."""
        for name, setting in from_settings(ctx).items():
            value = setting.value if isinstance(setting.value, str) else ",".join(setting.value)
            say(f"{name} {printable(value)} (from {printable(setting.file)})")
        return super().invoke(ctx)

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_help_text(ctx, formatter)
        if self.examples:
            with formatter.section("Examples"):
                for line, purpose in self.examples.items():
                    formatter.write(f"{'':{formatter.current_indent}}# {purpose}\n")
                    formatter.write(f"{'':{formatter.current_indent}}{line}\n")

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and not isinstance(parameter, click.Argument):
                rows.setdefault(getattr(parameter, GROUP, "Other options"), []).append(record)
        titles = sorted(rows, key="Other options".__eq__)
        for title in titles:
            with formatter.section(title if len(titles) > 1 else "Options"):
                formatter.write_dl(rows[title])


def from_settings(ctx: click.Context) -> dict[str, Setting]:
    """The parameters whose values come from ``profile.toml``. Those that a scenario has are removed from ``ctx``."""
    given = [each for each in ctx.params if ctx.get_parameter_source(each) is ParameterSource.DEFAULT_MAP]
    if not given:
        return {}
    if ctx.params.get("scenario"):
        from profiler.run import grid  # commands without a scenario do without it

        scenario = grid.load(ctx.params["scenario"])
        of_scenario = settings.LISTS if ctx.info_name == "sweep" else ("models",)  # fit ignores its quantizations
        for name in [name for name in of_scenario if name in given and getattr(scenario, name)]:
            ctx.params[name] = ()
            given.remove(name)
    known = settings.load()
    return {name: known[name] for name in given}


def parsed(parse: Callable[[str], Any]) -> Callback:
    """A callback that parses a value with a parser of ``units``; its ValueError becomes a usage error."""

    def callback(ctx: click.Context, param: click.Parameter, value: str | None) -> Any:
        try:
            return None if value is None else parse(value)
        except ValueError as error:
            raise click.BadParameter(str(error), ctx, param) from None

    return callback


def plugin(folder: str, what: str) -> Callback:
    """A callback that checks the name of a plug-in, ignoring case; the error lists the known names."""

    def callback(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
        known = None if value is None else registry.canonical(folder, value)
        if value is not None and known is None:
            raise registry.unknown(what, value, registry.names(folder))
        return known

    return callback


def count(*names: str, help: str, most: int | None = None) -> Decorator:
    """An integer from 1 to ``most``."""
    return click.option(*names, callback=parsed(counted(most)), metavar="N", help=help)


def duration(*names: str, help: str, default: str | None = None) -> Decorator:
    """A time such as ``90s`` or ``10m``, in seconds."""
    return click.option(
        *names, callback=parsed(some_seconds), metavar="TIME", help=help, default=default, show_default=True
    )


def percentage(*names: str, help: str, default: str | None = None) -> Decorator:
    """A fraction such as ``2%``."""
    return click.option(
        *names, callback=parsed(some_share), metavar="PERCENT", help=help, default=default, show_default=True
    )


def size(*names: str, help: str) -> Decorator:
    """A size such as ``8GiB``, in bytes."""
    return click.option(*names, callback=parsed(some_bytes), metavar="SIZE", help=help)


def host_memory() -> tuple[Decorator, Decorator]:
    """``--ram`` and ``--ram-bandwidth``: where weights that do not fit on the device may go."""
    speed = click.FloatRange(min=0.1)
    return (
        size("--ram", "ram_bytes", help="Host memory that weights may be offloaded to, such as 64GiB."),
        click.option("--ram-bandwidth", type=speed, metavar="GB/s", help="Speed of that memory. [default: 60]"),
    )


def choice(name: str, words: Sequence[str], help: str, default: str | None = None) -> Decorator:
    """One of a few words."""
    kind = click.Choice(words, case_sensitive=False)
    return click.option(name, type=kind, help=help, default=default, show_default=True)


def plugin_name(name: str, folder: str, default: str, help: str) -> Decorator:
    """The name of a plug-in."""
    callback = plugin(folder, name.lstrip("-"))
    return click.option(name, callback=callback, metavar="NAME", help=help, default=default, show_default=True)


def output(default: str = "table") -> Decorator:
    """``-o``: the format of the rows on stdout."""
    return click.option(
        "-o",
        "--output",
        callback=plugin("show.writers", "output format"),
        metavar="FORMAT",
        default=default,
        show_default=True,
        help=f"Output format: {', '.join(registry.names('show.writers'))}.",
    )


def notes() -> Decorator:
    """``--notes``: how many notes stand below a table. The command gets ``most_notes``."""
    return click.option(
        "--notes",
        "most_notes",
        type=click.Choice(("few", "all"), case_sensitive=False),
        callback=lambda ctx, param, value: None if value == "all" else MAX_NOTES,
        default="few",
        show_default=True,
        help=f"Notes below a table: the {MAX_NOTES} most important ones, or all.",
    )


class FilePath(click.Path):
    """The path of a file, a folder or either. An empty one, such as from an unset variable, is a usage error."""

    def __init__(self, file_okay: bool = True, dir_okay: bool = False) -> None:
        super().__init__(path_type=Path, file_okay=file_okay, dir_okay=dir_okay)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            self.fail(f"it is empty; name a {'file' if self.file_okay else 'folder'}.", param, ctx)
        return super().convert(value, param, ctx)


def html() -> Decorator:
    """``--html``: the report as one file."""
    return click.option(
        "--html",
        type=FilePath(),
        metavar="FILE",
        help="Write the report as a single HTML file that needs no network.",
    )


def store() -> Decorator:
    """``--store``: the file that holds results."""
    return click.option(
        "--store",
        type=FilePath(),
        metavar="FILE",
        help="The file with stored results. [default: $PROFILER_STORE, that of profile.toml, or a file in the user "
        "data folder]",
    )


def learned() -> Decorator:
    """``--no-learned``."""
    return click.option(
        "--no-learned",
        "learned",
        flag_value=False,
        default=True,
        help="Predict as if nothing had been measured on this machine.",
    )


def device() -> Decorator:
    """``--device``: the device that runs the models."""
    return click.option(
        "--device",
        metavar="DEVICE",
        help=f"A kind of device ({', '.join(registry.names('devices'))}) or one of several, such as cuda:1. "
        "[default: the first GPU, or the CPU]",
    )


def many(*names: str, metavar: str, help: str) -> Decorator:
    """A list: repeated, comma-separated, or both."""
    return click.option(*names, multiple=True, metavar=metavar, help=help)


class MeasuringCommand(DocumentedCommand):
    """A command that takes its models as options, with a helpful error if they are given as arguments."""

    allow_extra_args = True  # ``parse_args`` reports them with a hint

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            ours, meant = LLAMA_BENCH_OPTIONS.get(error.option_name, (None, ""))
            if not any(ours in option.opts for option in self.params):
                raise
            raise click.UsageError(f"No such option: {error.option_name}; {meant}", ctx) from None
        if ctx.args:
            named = " ".join(f"-m {quote(word)}" for word in ctx.args[:3])
            raise click.UsageError(f"Got unexpected argument; models are named with -m: {named}", ctx)
        return ctx.args
