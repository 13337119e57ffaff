"""The command ``profile``: finds the command's file, runs it, and turns what went wrong into words. The one try.

A command is a file of ``profiler/commands`` whose first line is its line in the help, and which defines a click
command of the same name; what that returns is the exit code (None: 0).
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from profiler import __version__, registry
from profiler.errors import ProfileError
from profiler.units import printable

INTERRUPTED = 128 + signal.SIGINT
DEBUG = "PROFILER_DEBUG"  # show tracebacks, for those who mend the profiler
ISSUES = "please report it with that file"


class Commands(click.Group):
    """Imports a command only when it is chosen; its line in the help is read from its file without importing it."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for name in registry.names("commands") if summary(name)]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in self.list_commands(ctx):
            return None
        command: click.Command = getattr(importlib.import_module(f"profiler.commands.{name}"), name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in self.list_commands(ctx) and not name.startswith("-"):
            raise registry.unknown("command", name, self.list_commands(ctx))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary(name)) for name in self.list_commands(ctx)])

    def main(self, args: Sequence[str] | None = None, **extra: Any) -> NoReturn:  # type: ignore[override]
        """Run, and leave with the exit code of design: 0, what the command returned, 2 for usage, 130 for Ctrl-C."""
        try:
            code = super().main(args, **{"prog_name": "profile", **extra, "standalone_mode": False})
        except ProfileError as error:
            code = _say(error.message, error.hint, error.exit_code)
        except click.ClickException as error:
            code = _say(printable(error.format_message(), 500), _help(error), error.exit_code)
        except (KeyboardInterrupt, click.Abort):
            code = INTERRUPTED
        except BrokenPipeError:  # `profile … | head`: the reader has what it wanted
            _forget_stdout()
            code = 0
        except Exception as error:
            code = _unexpected(error)
        sys.exit(code if isinstance(code, int) else 0)


def summary(name: str) -> str:
    """A command's line in the help: what the first line of its file says after ``profile NAME:``, unimported.

    Empty for the files beside the commands that only hold parts of them.
    """
    spec = importlib.util.find_spec(f"profiler.commands.{name.replace('-', '_')}")
    if spec is None or spec.origin is None:
        return ""
    with open(spec.origin, encoding="utf-8") as file:
        start, _, said = file.readline().rstrip('."\n').partition("``: ")
    said = said.replace("``", "")
    return said[:1].upper() + said[1:] if start == f'"""``profile {name}' else ""


@click.command(
    cls=Commands,
    name="profile",
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, prog_name="profile")
@click.pass_context
def main(ctx: click.Context) -> None:
    """How fast models run on this machine: each model × quantization × context × batch, measured.

    Start with `profile sweep`: it measures a small grid sized to this machine.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def _say(message: str, hint: str | None, code: int) -> int:
    click.echo(f"Error: {message}", err=True)
    if hint:
        click.echo(f"  {hint}", err=True)
    return code


def _help(error: click.ClickException) -> str | None:
    context = error.ctx if isinstance(error, click.UsageError) else None
    return f"Try '{context.command_path} --help'." if context else None


def _forget_stdout() -> None:
    """Point stdout at nothing, so that Python's own flush at exit does not fail on the closed pipe."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, sys.stdout.fileno())
    os.close(devnull)


def _unexpected(error: Exception) -> int:
    """A bug of ours: one line, and the traceback in a file."""
    if os.environ.get(DEBUG):
        traceback.print_exception(error)
        return 1
    from profiler.results.redact import redact, redact_argv

    command, text = " ".join(redact_argv(sys.argv[1:])), redact("".join(traceback.format_exception(error)))
    with tempfile.NamedTemporaryFile("w", prefix="profile-", suffix=".log", delete=False, encoding="utf-8") as file:
        file.write(f"profile {__version__}: {command}\n{text}")
    what = f"{type(error).__name__}: {printable(redact(str(error)))}"
    return _say(f"unexpected: {what}", f"The details are in {file.name}; {ISSUES}. {DEBUG}=1 shows them here.", 1)
