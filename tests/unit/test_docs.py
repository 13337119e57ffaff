"""What exists is documented: commands, options, plug-ins, scenarios; and what is documented exists."""

from __future__ import annotations

import ast
import importlib.util
import re
import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from fakes.reported import measured

from profiler import case, registry
from profiler.cli import main
from profiler.results.measurement import DecodePath, Energy
from profiler.results.row import row
from profiler.run import grid, prompts

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {path.name: path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))}
DOCUMENTS = {"README.md": README, **{f"docs/{name}": text for name, text in PAGES.items()}}
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
FOLDERS = ("backends", "commands", "devices", "models.families", "quants", "show.writers")


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
def test_a_command_has_help_of_its_own_and_is_documented(name: str) -> None:
    """In the README or on a page of docs/."""
    assert (COMMANDS[name].help or "").strip()
    assert any(re.search(rf"profile {name}\b", text) for text in DOCUMENTS.values())


@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_says_what_it_does(option: click.Option) -> None:
    assert (option.help or "").strip()


def test_the_overview_has_a_line_for_every_command() -> None:
    overview = main.get_help(click.Context(main, info_name="profile"))
    for name in main.list_commands(click.Context(main)):
        assert re.search(rf"^  {name} +\S", overview, re.MULTILINE), name


@pytest.mark.parametrize("document", DOCUMENTS)
def test_a_document_names_no_command_that_is_not_there(document: str) -> None:
    assert set(re.findall(r"(?:`|^)profile ([a-z]+)", DOCUMENTS[document], re.MULTILINE)) <= set(COMMANDS)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_a_document_names_no_option_that_is_not_there(document: str) -> None:
    text = DOCUMENTS[document]
    known = {spelling for command in COMMANDS.values() for option in command.params for spelling in option.opts}
    known |= {spelling for command in COMMANDS.values() for p in command.params for spelling in p.secondary_opts}
    lines = [line for line in re.findall(r"`([^`\n]+)`", text) + text.splitlines() if "profile " in line]
    used = {
        word for line in lines if not line.startswith("|") for word in re.findall(r"(?<=\s)--?[a-z][a-z-]*", line)
    }
    assert used - known - {"--help", "--version", "-h", "-e"} == set()


@pytest.mark.parametrize(("folder", "page"), [("quants", "models.md"), ("show.writers", "sweep.md")])
def test_a_page_names_every_value_people_can_type(folder: str, page: str) -> None:
    assert [name for name in registry.names(folder) if not re.search(rf"[` ]{name}[` ]", PAGES[page])] == []


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_plugin_file_explains_itself(folder: str) -> None:
    for name in registry.names(folder):
        spec = importlib.util.find_spec(f"profiler.{folder}.{re.sub('[-.]', '_', name)}")
        assert spec is not None
        assert spec.origin is not None
        text = ast.get_docstring(ast.parse(Path(spec.origin).read_text(encoding="utf-8")))
        assert text and len(text) > 10, f"profiler.{folder}.{name} has no docstring"


@pytest.mark.parametrize("name", grid.names())
def test_a_scenario_describes_itself(name: str) -> None:
    assert len(grid.load(name).description) > 20


def test_the_scenario_in_the_docs_is_one_with_every_key(tmp_path: Path) -> None:
    (text,) = re.findall(r"```toml\n(.*?)```", PAGES["scenarios.md"], re.DOTALL)
    path = tmp_path / "mine.toml"
    path.write_text(text)
    found = grid.load(str(path))
    assert (found.contexts, found.quants) == ((512, 4096), ("bf16", "nf4"))
    assert {line.split(" =")[0] for line in text.splitlines()} == grid.KNOWN
    assert prompts.prompts(str(path))


@pytest.mark.parametrize(
    "seam",
    ["family", "quantization", "device", "engine", "writer", "report section", "command", "scenario", "backend"],
)
def test_contributing_has_a_recipe_for_every_seam(seam: str) -> None:
    assert re.search(rf"^### Add an? {seam}$", CONTRIBUTING, re.MULTILINE)


def test_the_readme_is_short_and_begins_with_the_two_commands() -> None:
    """A stranger decides on the first screen. What does not fit here belongs into docs/."""
    assert len(README.split()) <= 1000
    first = "\n".join(README.splitlines()[:40])
    assert re.findall(r"^pip install .*&& (.*)$", first, re.MULTILINE) == ["profile sweep", "pytest -n 2"]


def test_the_readme_leads_to_every_page() -> None:
    assert [name for name in PAGES if f"](docs/{name})" not in README] == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_output_that_is_shown_is_what_its_command_prints(document: str) -> None:
    """A block that begins with ``$ profile`` holds real output; a line ``…`` stands for what was left out."""
    for block in re.findall(r"^```text\n\$ (profile .*?)^```", DOCUMENTS[document], re.DOTALL | re.MULTILINE):
        line, _, shown = block.partition("\n")
        ran = CliRunner().invoke(main, shlex.split(line)[1:], catch_exceptions=False)
        assert ran.exit_code == 0
        for part in re.split(r"^…\n", shown, flags=re.MULTILINE):
            assert part in ran.stdout, f"{document}: {line} prints something else now:\n{ran.stdout}"


@pytest.mark.parametrize("document", [*DOCUMENTS, "CONTRIBUTING.md"])
def test_links_lead_to_files_and_headings_that_are_there(document: str) -> None:
    path = ROOT / document
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
        if "://" in target:
            continue
        name, _, heading = target.partition("#")
        there = (path.parent / name).resolve() if name else path
        assert there.exists(), f"{document}: {target}"
        if heading:
            titles = re.findall(r"^#+ (.+)$", there.read_text(encoding="utf-8"), re.MULTILINE)
            known = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
            assert heading in known, f"{document}: {target}"


def test_the_accuracy_that_is_claimed_is_the_one_that_was_found() -> None:
    found = (ROOT / "benchmarks" / "accuracy.md").read_text(encoding="utf-8")
    names = {"prefill, mixtures of experts": "… mixtures of experts, prefill"}
    claimed = re.findall(r"^\| ((?:decode|prefill)[\w ,>]*) \|(.*)\|$", PAGES["predictions.md"], re.MULTILINE)
    claimed = [(rows, cells) for rows, cells in claimed if "%" in cells]
    assert len(claimed) == 4
    for rows, cells in claimed:
        line = re.findall(rf"^\| {re.escape(names.get(rows, rows))} \|(.*)\|$", found, re.MULTILINE)[0]
        figures = [cell.strip() for cell in line.split("|")]
        assert [cell.strip() for cell in cells.split("|")] == [*figures[:3], figures[5]], rows
        if rows not in names:
            assert figures[1] in README


def test_every_field_of_a_row_is_documented() -> None:
    plain = measured(expected={"ceiling_s": {"prefill": 0.01, "step": 0.001}, "decode_bound": "bandwidth"})
    timed = [replace(sample, step_s=(0.1,) * 8) if sample.phase == "decode" else sample for sample in plain.samples]
    energy, path = Energy("nvml-counter", "gpu-board"), DecodePath("static")
    content = row("261129-120000", replace(plain, samples=tuple(timed), energy=energy, decode_path=path))
    parts = ("case", "prefill", "decode", "path", "memory", "energy", "ceiling")
    fields = {*content, *(name for part in parts for name in content[part])}
    assert {name for name in fields if f"`{name}`" not in PAGES["result-row.md"]} == set()


def test_every_note_of_a_table_is_documented() -> None:
    """By its code, wherever the source makes a caution or a remark."""
    found = set(case.CODES)
    for path in (ROOT / "profiler").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Caution":
                found |= {_code(node.args[0])} if node.args else set()
    found.discard("")
    assert len(found) > 30
    assert {code for code in found if f"`{code}`" not in PAGES["table.md"]} == set()


def _code(first: ast.expr) -> str:
    """The code that a call of ``Caution`` states; the phase as ``PHASE``. Empty where it is a variable."""
    if isinstance(first, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "PHASE" for part in first.values)
    return first.value if isinstance(first, ast.Constant) else ""


@pytest.mark.parametrize("document", [*DOCUMENTS, "CONTRIBUTING.md", "benchmarks/README.md"])
def test_a_document_names_no_file_that_is_not_there(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    paths = re.findall(r"`((?:profiler|kernels|scenarios|tests|benchmarks|\.ci)/[\w./-]+)`", text)
    for path in paths:
        assert (ROOT / path).exists() or "NAME" in path, path
