"""The command ``profile``: finds the command's file, runs it, and reports errors. Has the only top-level ``try``.

A command is a file in ``profiler/commands`` that defines a click command of the same name, which returns the exit
code (None: 0). The first line of the file is the command's line in the help.
"""

from __future__ import annotations

import errno
import gc
import importlib
import importlib.util
import os
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from profiler import __version__, console, folders, registry, settings
from profiler.errors import EXHAUSTED, ProfileError
from profiler.units import printable

INTERRUPTED = 128 + signal.SIGINT
COMPLETION = "_PROFILE_COMPLETE"  # a shell asks for the completion of a line
GARBAGE = 100_000  # new objects before garbage is looked for: imports make that many, and hardly any garbage
DEBUG = "PROFILER_DEBUG"  # show tracebacks, for developers of the profiler
ISSUES = "please report it with that file"
HINTS = EXHAUSTED | {
    errno.ENOMEM: "Free some memory, or raise the limit (ulimit -v).",
    errno.EROFS: "Choose a folder on a writable disk.",
    errno.EACCES: "Choose a folder that you own, or ask its owner for access.",
}


class Commands(click.Group):
    """Imports a command only when it runs; its line in the help is read from the file without importing it."""

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
        if not set(ctx.help_option_names) & set(args):  # help works whatever a file of settings contains
            ctx.default_map = {name: settings.default_map(name)}
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary(name)) for name in self.list_commands(ctx)])

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command. Without this, click would report an error when the reader of a pipe has gone."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # `profile … | head`: the reader has enough
            return 0

    def main(self, args: Sequence[str] | None = None, **extra: Any) -> NoReturn:  # type: ignore[override]
        """Run, and exit with 0, what the command returned, 2 for usage errors, or 130 for Ctrl-C."""
        if os.environ.get(COMPLETION):  # click writes bytes, which a guarded stream does not take
            super().main(args, **extra | {"prog_name": "profile"})
        gc.set_threshold(GARBAGE)
        with console.guarded():
            code = self._code(args, extra)
        sys.exit(code if isinstance(code, int) else 0)

    def _code(self, args: Sequence[str] | None, extra: dict[str, Any]) -> Any:
        try:
            if not os.environ.get(DEBUG):
                _calm_warnings()
            return super().main(args, **{"prog_name": "profile", **extra, "standalone_mode": False})
        except ProfileError as error:
            return _say(error.message, error.hint, error.exit_code)
        except click.ClickException as error:
            return _say(printable(error.format_message(), 500), _help(error), error.exit_code)
        except (KeyboardInterrupt, click.Abort) as error:
            return _say(str(error.__cause__ or error) or "interrupted", None, INTERRUPTED)
        except BrokenPipeError:  # from printing the help
            return 0
        except Exception as error:
            found = fault(error)
            return _unexpected(error) if found is None else _say(*found, 1)


def summary(name: str) -> str:
    """A command's line in the help: the first line of its file after ``profile NAME:``, read without an import.

    Empty for files in the folder that are not commands.
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
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option("--on", metavar="DEVICE", help="Without a command: another device, as for profile fit.")
@click.version_option(__version__, prog_name="profile")
@click.pass_context
def main(ctx: click.Context, on: str | None) -> None:
    """Measure and predict how fast language models run on your hardware, and how much memory they take.

    Without a command, it shows what to run on this machine, what was measured, and what to type next. profile fit
    predicts more without running anything, and profile sweep measures a small grid in about five minutes.

    Defaults for models, quants, device and store are read from profile.toml in this folder or one above it, then from
    ~/.config/profile/profile.toml.
    """
    if ctx.invoked_subcommand is None:
        from profiler.show.overview import overview  # commands do without it

        settings.load()  # reports what is wrong with it
        click.echo(overview(on), nl=False)
    elif on is not None:
        name = ctx.invoked_subcommand
        raise click.UsageError(f"--on stands before {name}. Put it after: profile {name} --on DEVICE")


def _say(message: str, hint: str | None, code: int) -> int:
    click.echo(message if code == INTERRUPTED else f"Error: {message}", err=True)
    if hint:
        click.echo(f"  {hint}", err=True)
    return code


def _help(error: click.ClickException) -> str | None:
    context = error.ctx if isinstance(error, click.UsageError) else None
    return f"Try '{context.command_path} --help'." if context else None


def _calm_warnings() -> None:
    """A library's warning must not fail a command, even under ``PYTHONWARNINGS=error``."""
    if any(option.partition(":")[0] == "error" for option in sys.warnoptions):
        warnings.resetwarnings()
        warnings.simplefilter("ignore")


def fault(error: BaseException) -> tuple[str, str] | None:
    """What is wrong with the environment and what to do, if that caused ``error``; ``None`` for a bug."""
    limit = None
    if (isinstance(error, OSError) and error.errno == errno.EAGAIN) or "start new thread" in str(error):
        from profiler.devices import allowance  # the help does without it

        limit = allowance.exhausted(error)
    if isinstance(error, OSError):
        hint = limit[1] if limit else HINTS.get(error.errno or 0, f"Set {DEBUG}=1 to see where it happened.")
        if "temporary directory" in str(error):  # from tempfile, after it has tried several
            return "there is no writable folder for temporary files", "Set TMPDIR to one."
        if isinstance(error, FileNotFoundError) and not _has_current_folder():
            return "the current folder no longer exists", "Change to another one with cd."
        return f"system error: {printable(folders.describe(error), 500)}", hint
    if isinstance(error, MemoryError):
        return "out of memory", "Free some memory, raise the limit (ulimit -v), or ask for less."
    if limit is not None:
        return limit
    if isinstance(error, ImportError) and not (error.name or "profiler").startswith("profiler"):
        what = printable(" ".join(str(error).split()), 300)
        return f"a library cannot be loaded: {what}", "Reinstall it: pip install --force-reinstall llm-hwprofile"
    return None


def _has_current_folder() -> bool:
    try:
        os.getcwd()
    except OSError:
        return False
    return True


def _unexpected(error: Exception) -> int:
    """Report a bug of ours: one line, with the traceback in a file."""
    if os.environ.get(DEBUG):
        traceback.print_exception(error)
        return 1
    from profiler.results.redact import redact, redact_argv

    command, text = " ".join(redact_argv(sys.argv[1:])), redact("".join(traceback.format_exception(error)))
    what = f"unexpected: {type(error).__name__}: {printable(redact(str(error)))}"
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="profile-", suffix=".log", delete=False, encoding="utf-8", errors="backslashreplace"
        ) as file:
            file.write(f"profile {__version__}: {command}\n{text}")
    except OSError as refused:
        kept = f"The details could not be saved ({printable(refused.strerror or refused)})"
        return _say(what, f"{kept}: set {DEBUG}=1 to print them, and please report them.", 1)
    return _say(what, f"The details are in {printable(file.name)}; {ISSUES}. {DEBUG}=1 prints them here.", 1)
