"""A side of a gate: the interpreter and the code that measure it, and what is known of them before they do.

    --base HEAD~1                       a git revision: our own code as it was then, with the libraries of this one
    --base ../old/.venv                 a virtual environment or an interpreter: with its libraries, and with its
                                        llm-hwprofile if it has one; else ours is lent to it
    --base "taskset -c 0 python3"       a command that becomes an interpreter

A prefix ``rev:``, ``venv:`` or ``cmd:`` says which is meant. Without one, a name that is both a revision and a
program is refused: which code runs must not depend on what branches a repository has. What will run is said before it
does.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from profiler import checkout
from profiler.errors import ProfileError
from profiler.gate import interpreter, staging
from profiler.measure.process import Launch
from profiler.measure.protocol import Order
from profiler.results.environment import LIBRARIES
from profiler.shell import command, quote
from profiler.units import UNKNOWN, printable

KINDS = {"rev": "a git revision", "venv": "an environment", "cmd": "a command"}
FORMS = "A git revision, a folder with a virtual environment, an interpreter, or a command that becomes one."

OLD_SIDE = (
    "Name a side with a newer llm-hwprofile, torch and transformers, or one without any llm-hwprofile: then ours is"
    " lent to it."
)
OLD_REVISION = (
    "Name a revision that runs with the libraries installed here, or make a virtual environment of that revision and"
    " name its folder: venv:FOLDER"
)

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Side:
    """What measures one side."""

    name: str  # as a person typed it
    launch: Launch
    facts: Mapping[str, Any] = field(default_factory=dict)  # what the interpreter says of itself
    of_revision: bool = False  # with the libraries that are installed here


@dataclass(frozen=True, slots=True)
class Meaning:
    """What a person's word for a side may mean. Finding it runs nothing but git."""

    kind: str  # of KINDS
    text: str  # without a prefix
    words: str  # what runs, for people
    python: tuple[str, ...]  # what starts the interpreter
    commit: str | None = None


def here() -> Side:
    """What is installed here."""
    launch = Launch((sys.executable,), checkout.environ(os.environ))
    return Side("what is installed here", launch, interpreter.about(launch))


def resolve(text: str, scratch: Path, say: Say = lambda text: None) -> Side:
    """The side that ``text`` means; ``scratch`` is a folder for code, which must live as long as the side.

    ``say`` gets what runs, before it does. Raises ProfileError for what is none, or has no interpreter that can
    measure.
    """
    found = meaning(text)
    say(found.words)
    if found.commit is not None:
        return _of_revision(found, found.commit, scratch)
    return _with_code(text, Launch(found.python), scratch)


def meaning(text: str) -> Meaning:
    """What ``text`` means. Raises ProfileError where that is nothing that could be run, or two things."""
    if not text.strip():
        raise ProfileError("the side to compare is an empty text", FORMS)
    kind, _, rest = text.partition(":")
    if kind in KINDS and rest:
        return _only(kind, rest)
    found: list[Meaning] = []
    faults: list[ProfileError] = []
    for look in (_environment, _revision, _command):
        try:
            found.append(look(text))
        except ProfileError as error:
            faults.append(error)
    if not found:
        reasons = "; ".join(dict.fromkeys(error.message for error in faults))
        hint = next((error.hint for error in faults if error.hint), FORMS)
        raise ProfileError(f"{_quoted(text)} is not a revision, environment or command we can run: {reasons}", hint)
    code = [each for each in found if each.kind == "rev"]
    programs = [each for each in found if each.kind != "rev"]
    if code and programs:
        two = (code[0], programs[0])
        both = " and ".join(f"{KINDS[each.kind]}, which {each.words}" for each in two)
        spelled = " or ".join(quote(f"{each.kind}:{text}") for each in two)
        raise ProfileError(f"{_quoted(text)} is two things here: {both}", f"Say which is meant: {spelled}")
    return found[0]


def check(side: Side, orders: Sequence[Order]) -> None:
    """Raises ProfileError where the profiler of this side cannot take these orders: too old, or broken."""
    fault = interpreter.fault(side.launch, orders)
    if fault is not None:
        version = (side.facts.get("libraries") or {}).get("llm-hwprofile")
        what = f"its profiler{f' ({_text(version)})' if version else ''} cannot measure this: {fault}"
        raise ProfileError(f"{printable(side.name)}: {what}", OLD_REVISION if side.of_revision else OLD_SIDE)


def differences(base: Side, candidate: Side) -> list[str]:
    """What the two sides have of their own, in words: that is what the gate is about."""
    found = []
    a, b = base.facts.get("python"), candidate.facts.get("python")
    if a != b:
        found.append(f"Python {_text(a)} → {_text(b)}")
    a_libraries, b_libraries = (side.facts.get("libraries") or {} for side in (base, candidate))
    for name in LIBRARIES[1:]:
        a, b = a_libraries.get(name), b_libraries.get(name)
        if a != b:
            found.append(f"{name} {_text(a)} → {_text(b)}")
    return found


def is_same(base: Side, candidate: Side) -> bool:
    """Whether nothing tells the sides apart: then a gate compares a program with itself."""
    told = ("prefix", "code", "libraries")
    return base.launch.environ == candidate.launch.environ and (
        len(base.launch.python) == len(candidate.launch.python) == 1
        and [base.facts.get(name) for name in told] == [candidate.facts.get(name) for name in told]
    )


def _only(kind: str, text: str) -> Meaning:
    look = {"rev": _revision, "venv": _environment, "cmd": _command}[kind]
    try:
        return look(text)
    except ProfileError as error:
        raise ProfileError(
            f"{kind}:{printable(text)} cannot be a side: {error.message}", error.hint or FORMS
        ) from None


def _environment(text: str) -> Meaning:
    """A folder with ``bin/python``, or an interpreter's path."""
    try:
        path = Path(os.path.expanduser(text))
        folder, file = path.is_dir(), path.is_file()
    except (OSError, ValueError, RuntimeError):  # too long, a NUL byte, no such user
        raise ProfileError("there is no such path") from None
    python = path / "bin" / "python" if folder else path
    if not text or not (folder or file):
        raise ProfileError("there is no such path")
    if file and os.sep not in text:
        raise ProfileError("a file in the current folder is named as a path: ./NAME")
    if not python.is_file():
        raise ProfileError(f"the folder {printable(text)} has no bin/python")
    if not os.access(python, os.X_OK):
        raise ProfileError(f"{printable(python)} cannot be executed")
    start = os.path.abspath(python)  # not resolved: a venv's python is a link
    return Meaning("venv", text, f"runs the interpreter {printable(start)}", (start,))


def _command(text: str) -> Meaning:
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ProfileError(f"as a command it does not parse: {printable(error)}") from None
    if not words or "\0" in text:
        raise ProfileError("as a command it is empty")
    program = shutil.which(words[0])
    if program is None:
        raise ProfileError(f"there is no program {printable(words[0])}")
    shown = " ".join(map(quote, (program, *words[1:])))
    return Meaning("cmd", text, f"runs the command {shown}", tuple(words))


def _revision(text: str) -> Meaning:
    found = staging.commit(text) if text else None
    if found is None:
        if shutil.which("git") is None:
            raise ProfileError("git is not installed, which finds revisions")
        where = staging.checkout()
        if where and staging.is_shallow(where):
            what = f"there is no such revision in {printable(where)}, a shallow clone, which holds the latest commits"
            raise ProfileError(what, f"Fetch the others: {command('git', '-C', str(where), 'fetch', '--unshallow')}")
        place = f" in {printable(where)}" if where else ": the profiler does not run from a git checkout"
        raise ProfileError(f"there is no such revision{place}")
    words = (
        f"runs the code of commit {found[:12]} of {printable(staging.checkout())} with {printable(sys.executable)}"
    )
    return Meaning("rev", text, words, (sys.executable,), found)


def _with_code(text: str, launch: Launch, scratch: Path) -> Side:
    """With the llm-hwprofile that it has, else with a copy of ours."""
    facts = interpreter.about(launch)
    if facts.get("worker"):
        return Side(text, launch, facts)
    lent = Launch(launch.python, staging.environ(staging.lend(scratch / f"lent-{len(os.listdir(scratch))}")))
    facts = interpreter.about(lent)
    if not facts["worker"]:
        raise ProfileError(
            f"{printable(text)} neither has llm-hwprofile nor imports ours from PYTHONPATH",
            "Name an interpreter that is not started with -I or -E, or install llm-hwprofile there.",
        )
    if not facts["libraries"].get("torch"):
        raise ProfileError(
            f"{printable(text)}: neither llm-hwprofile nor torch is installed there",
            "Install what runs the models there: torch, transformers; our own code is lent.",
        )
    return Side(f"{text} (with our own code)", lent, facts)


def _of_revision(found: Meaning, commit: str, scratch: Path) -> Side:
    folder = staging.revision(commit, scratch / commit[:12])
    launch = Launch(found.python, staging.environ(folder))
    facts = interpreter.about(launch)
    if not facts["worker"] or not str(facts.get("code", "")).startswith(str(folder)):
        raise ProfileError(f"revision {printable(found.text)} has no profiler that can measure", FORMS)
    return Side(found.text if found.text == commit else f"{found.text} ({commit[:12]})", launch, facts, True)


def _quoted(text: str) -> str:
    return repr(printable(text))


def _text(value: object) -> str:
    return UNKNOWN if value is None else printable(value, 60)
