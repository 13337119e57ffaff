"""Skipped cases, cautions, the environment, and the commands to repeat the measurements."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import PurePath
from typing import Any

from profiler.results.redact import redact_argv
from profiler.results.store import Run
from profiler.shell import command
from profiler.show.columns import plain, server_title
from profiler.show.notes import NOTE_LENGTH
from profiler.show.report import selection
from profiler.show.report.blocks import Code, Head, PageBlock, Section, Table, muted
from profiler.show.report.selection import CaseResult, MachineRows
from profiler.units import UNKNOWN, bytes_text

MAX_ROWS = 40  # reasons or cautions
CASES = 4  # cases that a reason names
_FIGURES = re.compile(r"\d[\d.,]*(?: ?[KMG]?i?B\b)?")

MAX_COMMANDS = 12
MAX_VALUES = 4  # values of one property, if rows differ
COMMAND_LENGTH = 2000
FILES = ("--store", "--html")  # options that name output files
GGUF = ".gguf"
ABSOLUTE = re.compile(r"/.|~[\w.-]*/|[A-Za-z]:[\\/]")  # the beginning of an absolute path


def skipped(machines: Sequence[MachineRows]) -> Section:
    """Cases without a result, by outcome and reason."""
    reasons: dict[tuple[str, str, str], list[CaseResult]] = {}
    for machine in machines:
        where = machine.title if len(machines) > 1 else ""
        for result in machine.ended:
            reason = plain(result.reason or "no reason was recorded", NOTE_LENGTH)
            reasons.setdefault((where, result.outcome, reason), []).append(result)
    title, short = "What was not measured, and why?", "Not measured"
    if not reasons:
        return Section("skipped", title, (muted("Nothing: every case has a result."),), short)
    several = len(machines) > 1
    heads = ("machine", "outcome", "reason", "cases") if several else ("outcome", "reason", "cases")
    rows = tuple(
        (
            *((where,) if several else ()),
            outcome,
            reason,
            selection.several([selection.case(result) for result in results], CASES),
        )
        for (where, outcome, reason), results in list(reasons.items())[:MAX_ROWS]
    )
    blocks: list[PageBlock] = [Table(tuple(Head(name, right=False) for name in heads), rows)]
    if len(reasons) > MAX_ROWS:
        blocks.append(muted(f"{MAX_ROWS} of {len(reasons):,} reasons are shown."))
    return Section("skipped", title, tuple(blocks), short)


def cautions(machines: Sequence[MachineRows]) -> Section:
    """Cautions by kind, each once with the number of its cases and their names; kinds with most cases first."""
    blocks: list[PageBlock] = []
    for machine in machines:
        found = _alike(machine)
        kinds = Counter[str]()
        for alike in found:
            kinds[alike.kind] += len(alike.cases)
        found.sort(key=lambda each: (-kinds[each.kind], each.kind, -len(each.cases)))
        rows = tuple(_caution(each, machine) for each in found[:MAX_ROWS])
        heads = (Head("kind", right=False), Head("cases"), Head("caution", right=False), Head("where", right=False))
        count = len({id(case) for each in found for case in each.cases})
        named = f"{count:,} of {len(machine.ok):,} cases have cautions"
        caption = f"{machine.title}: {named}" if len(machines) > 1 else named
        blocks += [Table(heads, rows, caption)] if rows else []
        if len(found) > MAX_ROWS:
            blocks.append(muted(f"Only {MAX_ROWS} of {len(found):,} cautions are shown."))
    return Section("cautions", "Which cautions apply?", tuple(blocks or [muted("There are no cautions.")]))


@dataclass
class _Alike:
    """One note for cautions that differ only in their figures."""

    kind: str  # the caution's code, in words
    text: str
    help: str | None
    vary: bool = False
    cases: list[CaseResult] = field(default_factory=list)


def _alike(machine: MachineRows) -> list[_Alike]:
    found: dict[tuple[str, str], _Alike] = {}
    for result in machine.noted:
        for caution in result.cautions:
            text = plain(caution.text, NOTE_LENGTH)
            helps = plain(caution.help) if caution.help else None
            alike = found.setdefault(
                (caution.code, _FIGURES.sub("0", text)), _Alike(_kind(caution.code), text, helps)
            )
            alike.vary |= text != alike.text
            alike.help = helps if helps == alike.help else None
            alike.cases.append(result)
    return list(found.values())


def _kind(code: str) -> str:
    return plain(code, 40).replace("-", " ")


def _caution(alike: _Alike, machine: MachineRows) -> tuple[str, ...]:
    helps = f"; try {alike.help}" if alike.help else ""
    varies = " (the figures vary)" if alike.vary else ""
    return alike.kind, f"{len(alike.cases):,}", f"{alike.text}{helps}{varies}", _where(alike.cases, machine)


def _where(cases: Sequence[CaseResult], machine: MachineRows) -> str:
    """The names of some cases; only that of a model if all of its cases are among them."""
    if len(cases) == len(machine.ok) > 1:
        return "all cases"
    if len(machine.models) == 1:
        return selection.several([selection.case(each).removeprefix(f"{each.model} ") for each in cases], CASES)
    mine = Counter(result.model for result in cases)
    whole = {model for model, count in mine.items() if count == len(machine.of[model]) > 1}
    named = dict.fromkeys(result.model if result.model in whole else selection.case(result) for result in cases)
    return selection.several(list(named), CASES)


def environment(machines: Sequence[MachineRows]) -> Section:
    """A column for each machine, with all values of a property if its rows differ."""
    columns = [_properties(machine) for machine in machines]
    names = list(dict.fromkeys(name for column in columns for name in column))
    rows = tuple(
        (name, *(selection.several(list(column.get(name) or (UNKNOWN,)), MAX_VALUES) for column in columns))
        for name in names
    )
    heads = (Head("", right=False), *(Head(machine.title, right=False) for machine in machines))
    mixed = any(
        len(column.get(name, ())) > 1 for column in columns for name in names if name not in ("measured", "rows")
    )
    blocks: list[PageBlock] = [Table(heads, rows)]
    if mixed:
        blocks.append(
            muted(
                "Several values mean that the rows were measured with different ones, because the runs of a machine"
                " are combined. profile report RUN shows a single run; profile compare A B compares two."
            )
        )
    return Section("environment", "What was it measured on?", tuple(blocks), "Measured on")


def commands(runs: Sequence[Run], run: str | None, paths: bool = False) -> Section:
    """The command lines of the runs in the report, newest last. ``paths``: with absolute paths in full."""
    title = "How do I repeat it?"
    lines = list(dict.fromkeys(_command(each, paths) for each in runs))
    if not lines:
        shown = f"profile runs show {plain(run)}" if run else "profile runs show RUN"
        return Section(
            "repeat",
            title,
            (muted(f"{shown} prints the rows, profile runs -o json the command that measured them."),),
        )
    blocks: list[PageBlock] = [Code(tuple(lines[-MAX_COMMANDS:]))]
    if len(lines) > MAX_COMMANDS:
        blocks.append(
            muted(f"These are the newest {MAX_COMMANDS} of {len(lines):,}; profile runs -o json has all of them.")
        )
    blocks.append(
        muted(
            "Add --fresh to measure stored cases again."
            + ("" if paths else " Absolute paths are shortened to names; profile report --paths shows them in full.")
        )
    )
    return Section("repeat", title, tuple(blocks))


def _command(run: Run, paths: bool) -> str:
    """The command to paste. One that is too long is replaced by a comment, because a truncated one would differ."""
    words = redact_argv(list(_measuring(run.argv)))
    shown = str(command("profile", words if paths else map(local_name, words)))
    if len(shown) <= COMMAND_LENGTH:
        return shown
    return f"# run {plain(run.id)}: a command of {len(shown):,} characters, which profile runs -o json prints"


def local_name(word: str) -> str:
    """A word of a command with absolute paths replaced by their names: ``-m=/home/me/a.gguf`` → ``-m=./a.gguf``."""
    option, equals, value = word.partition("=") if word.startswith("-") else ("", "", word)
    parts = (f"./{PurePath(part).name}" if ABSOLUTE.match(part) else part for part in value.split(","))
    return f"{option}{equals}{','.join(parts)}"


def typed_models(runs: Sequence[Run], paths: bool = False) -> dict[str, str]:
    """What named each model on the command lines of the runs, by the model's name; the newest counts."""
    found: dict[str, str] = {}
    for run in runs:
        values = [
            value.partition("=")[2] if value.startswith("--model=") else following
            for value, following in pairwise([*run.argv, ""])
            if value in ("-m", "--model") or value.startswith("--model=")
        ]
        for word in (word for value in values for word in value.split(",") if word):
            base = PurePath(word).name
            shown = word if paths else local_name(word)
            found[base[: -len(GGUF)] if base.casefold().endswith(GGUF) else base] = shown
    return found


def _measuring(argv: Sequence[str]) -> Iterable[str]:
    """A command line without its output files, which do not affect figures and may be private."""
    named = False
    for word in argv:
        if not named and word.partition("=")[0] not in FILES:
            yield word
        named = not named and word in FILES


def _properties(machine: MachineRows) -> dict[str, tuple[str, ...]]:
    """Name and distinct values of every recorded property of a machine's rows, as text."""
    found: dict[str, dict[str, None]] = {}
    seen: set[int] = set()
    for result in machine.results:
        if id(result.environment) not in seen:  # many rows share one
            seen.add(id(result.environment))
            for name, value in _pairs(result.environment):
                found.setdefault(name, {})[value] = None
    starts = [start for result in machine.results if (start := result.started_at)]
    first = {"rows": (f"{len(machine.results):,}",)}
    if starts:
        days = list(dict.fromkeys(plain(start, 40)[:16].replace("T", " ") for start in (min(starts), max(starts))))
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
        ("server", server_title(environment)),
        ("Python", environment.get("python")),
        *(environment.get("libraries") or {}).items(),
        *(environment.get("settings") or {}).items(),
        ("profiler's source", f"{str(source['commit'])[:12]}{changed}" if source.get("commit") else None),
    ]
    return [(plain(name, 60), plain(value)) for name, value in pairs if value not in (None, "")]


def _bytes(value: Any) -> str | None:
    return bytes_text(value) if isinstance(value, int) else None
