"""The house stands as designed: floors import downwards, torch stays below, no name collides, files stay small.

Everything is read from the sources of the checkout that these tests lie in.
"""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import profiler

ROOT = Path(__file__).parents[2]

# Each floor imports only itself and what is below it.
FLOORS = [
    {
        "case",
        "console",
        "errors",
        "files",
        "folders",
        "foreign",
        "git",
        "decode_path",
        "registry",
        "settings",
        "shell",
        "units",
    },
    {"models", "quants", "devices", "kernels", "scenarios"},
    {"cost", "backends", "quality", "results"},
    {"run"},
    {"gate", "show"},
    {"api"},
    {"cli", "commands", "__main__"},
]
HEAVY = {"torch", "transformers", "bitsandbytes", "accelerate", "numpy", "safetensors"}
HEAVY_AT_THE_TOP = {"backends", "kernels", "devices.cuda"}  # who may import them at module level
HEAVY_INSIDE = HEAVY_AT_THE_TOP | {"quants"}  # and who only inside a function
NOT_FOR_HELP = [*sorted(HEAVY), "rich", "gguf", "huggingface_hub", "aiohttp"]

FILE_LINES = 500
FUNCTION_LINES = 60


def sources() -> dict[str, Path]:
    """Every module of the package by its dotted name without ``profiler.``: ``quants.nf4``, ``kernels``."""
    found = {}
    for folder, prefix in (("profiler", ()), ("kernels", ("kernels",)), ("scenarios", ("scenarios",))):
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = (*prefix, *path.relative_to(ROOT / folder).with_suffix("").parts)
            name = ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)
            found[name] = path
    return found


SOURCES = sources()
MODULES = [name for name in SOURCES if name != "__init__"]


@cache
def imports(name: str) -> tuple[tuple[str, bool], ...]:
    """Absolute names that a module imports, and whether it does so inside a function."""
    return tuple(_imports(name))


def _imports(name: str) -> Iterator[tuple[str, bool]]:
    tree = ast.parse(SOURCES[name].read_text(encoding="utf-8"))
    inside = {
        node
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
    }
    typing_only = {
        node
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if node in typing_only:
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, node in inside) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module
            if node.level:  # the folder kernels/ has one name here and another once installed, so it names its own so
                assert node.level == 1 and name.startswith("kernels."), f"{name}: imports are absolute"
                module = ".".join(filter(None, ("profiler.kernels", node.module)))
            yield from ((f"{module}.{alias.name}", node in inside) for alias in node.names)


def ours(name: str) -> set[str]:
    """Top folders or files of the package that a module imports."""
    return {target.split(".")[1] for target, _ in imports(name) if target.startswith("profiler.")} - {"__version__"}


def floor(top: str) -> int:
    return next(number for number, tops in enumerate(FLOORS) if top in tops)


def is_part_of(name: str, places: set[str]) -> bool:
    return any(name == place or name.startswith(f"{place}.") for place in places)


def test_every_folder_has_a_floor() -> None:
    tops = {name.split(".")[0] for name in MODULES}
    assert tops <= set().union(*FLOORS)


def test_a_module_imports_only_its_own_floor_and_lower_ones() -> None:
    wrong = [
        f"profiler.{name} imports profiler.{top}"
        for name in MODULES
        for top in sorted(ours(name))
        if floor(top) > floor(name.split(".")[0])
    ]
    assert wrong == []


def test_folders_of_one_floor_do_not_import_each_other_in_a_circle() -> None:
    uses: dict[str, set[str]] = {}
    for name in MODULES:
        top = name.split(".")[0]
        uses.setdefault(top, set()).update(
            other for other in ours(name) if other != top and floor(other) == floor(top)
        )
    for top in uses:
        seen, todo = set(), list(uses[top])
        while todo:
            other = todo.pop()
            assert other != top, f"profiler.{top} and profiler.{sorted(seen) or top} import each other"
            if other not in seen:
                seen.add(other)
                todo.extend(uses.get(other, ()))


def test_torch_and_its_like_are_imported_only_where_a_model_runs() -> None:
    wrong = [
        f"profiler.{name} imports {target}{' inside a function' if inside else ''}"
        for name in MODULES
        for target, inside in imports(name)
        if target.split(".")[0] in HEAVY and not is_part_of(name, HEAVY_INSIDE if inside else HEAVY_AT_THE_TOP)
    ]
    assert wrong == []


def test_pyproject_lists_exactly_the_packages_there_are() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        setuptools = tomllib.load(file)["tool"]["setuptools"]
    folders = {path.parent for path in SOURCES.values()}
    expected = {f"profiler.{folder.relative_to(ROOT)}".replace("/", ".") for folder in folders}
    expected = {name.replace("profiler.profiler", "profiler") for name in expected}
    assert set(setuptools["packages"]) == expected
    assert len(setuptools["packages"]) == len(expected)


def test_every_shipped_data_file_is_named_in_pyproject() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        patterns = tomllib.load(file)["tool"]["setuptools"]["package-data"]
    for package, folder in (("profiler", "profiler"), ("profiler.scenarios", "scenarios")):
        data = {path for path in (ROOT / folder).rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
        named = {path for pattern in patterns[package] for path in (ROOT / folder).glob(pattern)}
        assert data == named


def test_the_tests_run_what_lies_beside_them() -> None:
    """A stale installed copy would make every other test of this file a claim about something else."""
    installed = Path(profiler.__file__).parent
    for name, path in SOURCES.items():
        if not name.startswith(("kernels", "scenarios")):
            assert (installed / path.relative_to(ROOT / "profiler")).read_bytes() == path.read_bytes(), name


@pytest.mark.parametrize("folder", ["kernels", "scenarios"])
def test_top_folders_are_importable_only_inside_the_package(folder: str) -> None:
    assert importlib.util.find_spec(f"profiler.{folder}") is not None
    command = [sys.executable, "-c", f"import importlib.util as u; print(u.find_spec({folder!r}))"]
    found = subprocess.run(command, cwd="/", capture_output=True, text=True, check=True).stdout
    assert found == "None\n"


def test_no_module_has_the_name_profile() -> None:
    """``cProfile``, and with it torch's compiler, imports a module of that name."""
    tops = [path for path in ROOT.iterdir() if not path.name.startswith(".")]
    taken = [path for top in tops for path in (top, *top.rglob("*")) if path.stem == "profile"]
    assert not taken


def test_profilers_of_others_work_from_the_root_of_a_checkout() -> None:
    command = [sys.executable, "-c", "import cProfile, pytest_benchmark.plugin; cProfile.run('1')"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)


def commands() -> list[str]:
    from profiler.cli import main

    return main.list_commands(None)  # type: ignore[arg-type]


def test_help_imports_nothing_heavy() -> None:
    """All in one interpreter: what one of them imported would still be there after the next."""
    calls = [["--help"], *([name, "--help"] for name in commands())]
    program = (
        "import sys\n"
        "from profiler.cli import main\n"
        f"for arguments in {calls}:\n"
        "    try: main(arguments)\n"
        "    except SystemExit as end: code = end.code\n"
        f"    heavy = [name for name in {NOT_FOR_HELP} if name in sys.modules]\n"
        "    assert not code and not heavy, (arguments, code, heavy)"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (answer.returncode, answer.stderr) == (0, "")
    assert answer.stdout.count("Usage: profile") == len(calls)


PARSERS = {
    "json.load",
    "json.loads",
    "tomllib.load",
    "tomllib.loads",
    "sqlite3.connect",
    "csv.reader",
    "csv.DictReader",
}
PARSE_THEMSELVES = {  # beside ``foreign``, and why
    "backends.hf.quality": "what our own process sends",
    "backends.llama_cpp.libllama": "what our own process sends",
    "backends.llama_cpp.scoring": "what our own process sends",
    "quality.sandboxed": "what our own process sends, in a process without ours",
    "run.ceilings": "what our own process printed",
    "devices.target": "ships with the profiler",
    "gate.variants": "what an interpreter printed that the user names, bounded there",
    "gate.revision": "a revision that the user runs",
    "run.protocol": "lines of our own worker, bounded there",
    "cost.rates": "ships with the profiler",
    "show.report.charts": "what our own process printed",
    "results.encoding": "rows of a store, bounded by ``guard`` and checked by ``validity``",
    "results.database": "``guard`` limits the connection",
}


def test_a_calibration_stores_nothing_that_the_predictor_counts() -> None:
    for name in (
        "backends.hf.microbenchmark",
        "backends.hf.ceilings",
        "backends.hf.linear_layers",
        "devices.calibration",
    ):
        assert "cost" not in ours(name), name


def test_no_caller_knows_an_engine_by_its_name() -> None:
    """What differs between engines is an attribute or a method of ``Engine``."""
    asked = re.compile(r"\b(?:engine|runtime)\.(?:name|like)\s+(?:==|!=|in|not in)\s")
    elsewhere = {name: path for name, path in SOURCES.items() if not name.startswith("cost.engines")}
    assert [name for name, path in elsewhere.items() if asked.search(path.read_text(encoding="utf-8"))] == []


def test_files_of_others_are_parsed_within_the_budget() -> None:
    """By ``profiler.foreign``: a parser of the standard library takes whatever memory and time a file asks for."""
    found = {
        name
        for name in MODULES
        for node in ast.walk(ast.parse(SOURCES[name].read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in PARSERS
    }
    assert found - {"foreign"} <= set(PARSE_THEMSELVES)
    assert "foreign" in found


def functions(path: Path) -> Iterator[tuple[str, int]]:
    """Name and lines of every function of a file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, (node.end_lineno or node.lineno) - node.lineno + 1


def test_a_class_name_is_used_once() -> None:
    """A reader who meets a name in one file must not take it for that of another."""
    homes: dict[str, list[str]] = {}
    for name, path in SOURCES.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                homes.setdefault(node.name, []).append(name)
    assert {name: places for name, places in homes.items() if len(places) > 1} == {}


def test_files_stay_small() -> None:
    lines = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8").count("\n") for path in SOURCES.values()}
    assert {where: count for where, count in lines.items() if count > FILE_LINES} == {}


def test_functions_stay_small() -> None:
    lines = {f"{path.relative_to(ROOT)}:{name}": n for path in SOURCES.values() for name, n in functions(path)}
    assert {where: n for where, n in lines.items() if n > FUNCTION_LINES} == {}


def test_the_phases_are_listed_once() -> None:
    found = [
        name
        for name, path in SOURCES.items()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Tuple | ast.List) and ast.unparse(node).strip("[]()") == "'prefill', 'decode'"
    ]
    assert found == ["case", "case"]  # the type and the constant
