"""What exists is documented: commands, options, plug-ins, scenarios; and what is documented exists."""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from profiler import registry
from profiler.cli import main
from profiler.plan import scenario

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
FOLDERS = ("backends", "commands", "devices", "models.families", "quants", "reports")


def commands() -> Iterator[tuple[str, click.Command]]:
    """Every command and subcommand with its full name."""
    context = click.Context(main)
    for name in main.list_commands(context):
        command = main.get_command(context, name)
        assert command is not None
        yield name, command
        if isinstance(command, click.Group):
            yield from ((f"{name} {inner}", part) for inner, part in command.commands.items())


COMMANDS = dict(commands())
OPTIONS = [
    pytest.param(option, id=f"{name} {option.opts[-1]}")
    for name, command in COMMANDS.items()
    for option in command.params
    if isinstance(option, click.Option)
]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_has_help_of_its_own_and_is_in_the_readme(name: str) -> None:
    assert (COMMANDS[name].help or "").strip()
    assert re.search(rf"profile {name}\b", README), f"README does not name profile {name}"


@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_says_what_it_does(option: click.Option) -> None:
    assert (option.help or "").strip()


def test_the_overview_has_a_line_for_every_command() -> None:
    overview = main.get_help(click.Context(main, info_name="profile"))
    for name in main.list_commands(click.Context(main)):
        assert re.search(rf"^  {name} +\S", overview, re.MULTILINE), name


@pytest.mark.parametrize("name", sorted(set(re.findall(r"profile ([a-z]+)", README))))
def test_the_readme_names_no_command_that_is_not_there(name: str) -> None:
    assert name in COMMANDS


def test_the_readme_names_no_option_that_is_not_there() -> None:
    known = {spelling for command in COMMANDS.values() for option in command.params for spelling in option.opts}
    known |= {spelling for command in COMMANDS.values() for p in command.params for spelling in p.secondary_opts}
    lines = [line for line in re.findall(r"`([^`\n]+)`", README) + README.splitlines() if "profile " in line]
    used = {
        word for line in lines if not line.startswith("|") for word in re.findall(r"(?<=\s)--?[a-z][a-z-]*", line)
    }
    assert used - known - {"--help", "--version", "-h", "-e"} == set()


@pytest.mark.parametrize("folder", ["quants", "reports"])
def test_the_readme_names_every_value_people_can_type(folder: str) -> None:
    assert [name for name in registry.names(folder) if not re.search(rf"[` ]{name}[` ]", README)] == []


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_plugin_file_explains_itself(folder: str) -> None:
    for name in registry.names(folder):
        spec = importlib.util.find_spec(f"profiler.{folder}.{name.replace('-', '_')}")
        assert spec is not None
        assert spec.origin is not None
        text = ast.get_docstring(ast.parse(Path(spec.origin).read_text(encoding="utf-8")))
        assert text and len(text) > 10, f"profiler.{folder}.{name} has no docstring"


@pytest.mark.parametrize("name", scenario.names())
def test_a_scenario_describes_itself(name: str) -> None:
    assert len(scenario.load(name).description) > 20


@pytest.mark.parametrize("seam", ["family", "quantization", "device", "report", "scenario", "backend"])
def test_contributing_has_a_recipe_for_every_seam(seam: str) -> None:
    assert re.search(rf"^### Add a {seam}$", CONTRIBUTING, re.MULTILINE)


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md", "benchmarks/README.md"])
def test_a_document_names_no_file_that_is_not_there(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    paths = re.findall(r"`((?:profiler|kernels|scenarios|tests|benchmarks|\.ci)/[\w./-]+)`", text)
    for path in paths:
        assert (ROOT / path).exists() or "NAME" in path, path
