"""The help of a command with many options: examples that work, then the options by what they are for."""

from __future__ import annotations

import re
import shlex

import click
import pytest
from click.testing import CliRunner
from fakes import printed

from profiler.cli import main
from profiler.commands import options

LONG = ("sweep", "fit", "gate", "report", "compare", "explain")
MANY = 9  # options: more than a person takes in at once


def command(name: str) -> click.Command:
    found = main.get_command(click.Context(main), name)
    assert found is not None
    return found


def shown(name: str) -> str:
    ran = CliRunner().invoke(main, [name, "--help"], catch_exceptions=False)
    assert ran.exit_code == 0
    return ran.stdout


def titles(text: str) -> list[str]:
    return re.findall(r"^(\S.*):$", text, re.MULTILINE)


@pytest.mark.parametrize("name", LONG)
def test_a_long_command_shows_examples_that_its_program_takes(name: str) -> None:
    found = command(name)
    assert isinstance(found, options.DocumentedCommand) and len(found.examples) >= 2
    lines = shown(name).splitlines()
    for line, purpose in found.examples.items():
        words = shlex.split(line)
        assert words[:2] == ["profile", name]
        printed.check(words)
        assert lines[lines.index(f"  {line}") - 1] == f"  # {purpose}"  # whole on one line, to be pasted


@pytest.mark.parametrize("name", main.list_commands(click.Context(main)))
def test_many_options_are_in_groups(name: str) -> None:
    own = [option for option in command(name).params if isinstance(option, click.Option)]
    ungrouped = [option.name for option in own if not hasattr(option, options.GROUP)]
    if len(own) > MANY:
        assert ungrouped == []
        assert titles(shown(name))[:1] == ["Examples"]
        assert titles(shown(name))[-1] == "Other options"
    else:
        assert titles(shown(name))[-1] in ("Options", "Other options", "Commands")


def test_groups_and_their_options_keep_their_order_and_none_is_lost() -> None:
    @click.command(cls=options.DocumentedCommand, examples={"profile try": "once"})
    @options.group("First", click.option("--one"), click.option("--two"))
    @options.group("Second", click.option("--three"))
    @click.option("--four")
    def example(**asked: str | None) -> None:
        """Try it."""
        click.echo(asked["two"])

    text = CliRunner().invoke(example, ["--help"]).stdout
    assert titles(text) == ["Examples", "First", "Second", "Other options"]
    assert re.findall(r"^  (--\w+)", text, re.MULTILINE) == ["--one", "--two", "--three", "--four", "--help"]
    assert CliRunner().invoke(example, ["--two", "x"]).stdout == "x\n"
