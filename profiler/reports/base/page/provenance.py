"""On what it was measured, and the commands that repeat it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from profiler.reports.base.page import words
from profiler.reports.base.page.blocks import Block, Code, Head, Section, Table, muted
from profiler.reports.base.page.side import Side
from profiler.reports.base.text import plain
from profiler.results.redact import redact_argv
from profiler.results.store import Run
from profiler.shell import command
from profiler.units import UNKNOWN, bytes_text

MOST_COMMANDS = 12
MOST_VALUES = 4  # of one property, where rows differ
COMMAND_LENGTH = 2000
FILES = ("--store", "--html")  # options that name where results go


def environment(sides: Sequence[Side]) -> Section:
    """A column for each machine; where its rows differ in something, all values."""
    columns = [_properties(side) for side in sides]
    names = list(dict.fromkeys(name for column in columns for name in column))
    rows = tuple(
        (name, *(words.several(list(column.get(name) or (UNKNOWN,)), MOST_VALUES) for column in columns))
        for name in names
    )
    heads = (Head("", right=False), *(Head(side.title, right=False) for side in sides))
    mixed = any(
        len(column.get(name, ())) > 1 for column in columns for name in names if name not in ("measured", "rows")
    )
    blocks: list[Block] = [Table(heads, rows)]
    if mixed:
        blocks.append(
            muted(
                "Where there are several values, the rows were measured with different ones: runs of one machine are"
                " read together. profile report RUN shows one alone, profile compare A B two against each other."
            )
        )
    return Section("environment", "On what was it measured?", tuple(blocks))


def commands(runs: Sequence[Run], run: str | None) -> Section:
    """The command lines of the runs that were read, newest last."""
    title = "How do I repeat it?"
    lines = list(dict.fromkeys(_command(each) for each in runs))
    if not lines:
        shown = f"profile runs show {plain(run)}" if run else "profile runs show RUN"
        return Section(
            "repeat", title, (muted(f"{shown} has the rows, profile runs -o json the command that measured them."),)
        )
    blocks: list[Block] = [Code(tuple(lines[-MOST_COMMANDS:]))]
    if len(lines) > MOST_COMMANDS:
        blocks.append(muted(f"The newest {MOST_COMMANDS} of {len(lines):,}; profile runs -o json has all of them."))
    blocks.append(
        muted("Add --fresh to measure again what is stored. Files and folders are as they were named then.")
    )
    return Section("repeat", title, tuple(blocks))


def _command(run: Run) -> str:
    """As it can be pasted. One that is too long for a page is described instead: a part of it does something else."""
    shown = str(command("profile", redact_argv(list(_measuring(run.argv)))))
    if len(shown) <= COMMAND_LENGTH:
        return shown
    return f"# a command of {len(shown):,} characters: profile runs -o json has it, as run {plain(run.id)}"


def _measuring(argv: Sequence[str]) -> Iterable[str]:
    """A command line without the files it wrote to: they change no figure, and a page is passed on."""
    named = False
    for word in argv:
        if not named and word.partition("=")[0] not in FILES:
            yield word
        named = not named and word in FILES


def _properties(side: Side) -> dict[str, tuple[str, ...]]:
    """Name and distinct values of everything that is recorded of a side's rows, as text."""
    found: dict[str, dict[str, None]] = {}
    seen: set[int] = set()
    for fact in side.facts:
        if id(fact.environment) not in seen:  # many rows share one
            seen.add(id(fact.environment))
            for name, value in _pairs(fact.environment):
                found.setdefault(name, {})[value] = None
    starts = sorted(start for fact in side.facts if (start := fact.started_at))
    first = {"rows": (f"{len(side.facts):,}",)}
    if starts:
        days = list(dict.fromkeys(plain(start, 40)[:16].replace("T", " ") for start in (starts[0], starts[-1])))
        first["measured"] = (" to ".join(days) + " UTC",)
    return first | {name: tuple(values) for name, values in found.items()}


def _pairs(environment: dict[str, Any]) -> Iterable[tuple[str, str]]:
    device, cpu = environment.get("device") or {}, environment.get("cpu") or {}
    limits, source = environment.get("limits") or {}, environment.get("source") or {}
    changed = " and changes" if source.get("changed") else ""
    pairs: list[tuple[str, Any]] = [
        ("device", device.get("title")),
        ("device memory", _bytes(device.get("memory_bytes"))),
        ("features", " ".join(map(str, device.get("features") or ()))),
        ("driver", device.get("driver")),
        ("power limit", f"{device['power_limit_w']} W" if device.get("power_limit_w") else None),
        ("CPU", cpu.get("title")),
        ("cores", cpu.get("cores")),
        ("memory", _bytes(environment.get("memory_bytes"))),
        ("memory allowed", _bytes(limits.get("memory_bytes"))),
        ("cores allowed", limits.get("cores")),
        ("system", environment.get("system")),
        ("Python", environment.get("python")),
        *(environment.get("libraries") or {}).items(),
        *(environment.get("settings") or {}).items(),
        ("profiler's source", f"{str(source['commit'])[:12]}{changed}" if source.get("commit") else None),
    ]
    return [(plain(name, 60), plain(value)) for name, value in pairs if value not in (None, "")]


def _bytes(value: Any) -> str | None:
    return bytes_text(value) if isinstance(value, int) else None
