"""A side of a gate: the interpreter and the code that measure it, and what is known of them before they do.

    --base HEAD~1                       a git revision: our own code as it was then, with the libraries of this one
    --base ../old/.venv                 a virtual environment or an interpreter: with its libraries, and with its
                                        llm-hwprofile if it has one; else ours is lent to it
    --base "taskset -c 0 python3"       a command that becomes an interpreter

A prefix ``rev:``, ``venv:`` or ``cmd:`` says which is meant where it could be two of them.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from profiler.errors import ProfileError
from profiler.gate import staging
from profiler.measure.environ import worker_environment
from profiler.measure.process import Launch
from profiler.results.environment import LIBRARIES
from profiler.units import UNKNOWN, printable

PROBE_S = 60  # an interpreter on a network file system may take its time
FORMS = "A git revision, a folder with a virtual environment, an interpreter, or a command that becomes one."

PROBE = """
import json, sys
from importlib import metadata, util
def version(name):
    try: return metadata.version(name)
    except metadata.PackageNotFoundError: return None
spec = util.find_spec("profiler")
worker = spec and util.find_spec("profiler.measure") and util.find_spec("profiler.measure.worker")
print(json.dumps({"python": sys.version.split()[0], "executable": sys.executable, "prefix": sys.prefix,
    "code": spec and spec.origin, "worker": bool(worker), "libraries": {n: version(n) for n in sys.argv[1:]}}))
"""


@dataclass(frozen=True, slots=True)
class Side:
    """What measures one side."""

    name: str  # as a person typed it
    launch: Launch
    facts: Mapping[str, Any] = field(default_factory=dict)  # what the interpreter says of itself


def here() -> Side:
    """What is installed here."""
    launch = Launch((sys.executable,))
    return Side("what is installed here", launch, probe(launch))


def resolve(text: str, scratch: Path) -> Side:
    """The side that ``text`` means; ``scratch`` is a folder for code, which must live as long as the side.

    Raises ProfileError for what is none, or has no interpreter that can measure.
    """
    kind, _, rest = text.partition(":")
    kinds: dict[str, Callable[[str, Path], Side | None]] = {"rev": _revision, "venv": _venv, "cmd": _command}
    if kind in kinds and rest:
        side = kinds[kind](rest, scratch)
    else:
        side = _venv(text, scratch) or _revision(text, scratch) or _command(text, scratch)
    if side is None:
        raise ProfileError(f"{printable(text)!r} is no side that can be measured", FORMS)
    return side


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


def probe(launch: Launch) -> dict[str, Any]:
    """What an interpreter says of itself. Raises ProfileError when it says nothing of use."""
    command = [*launch.python, "-P", "-c", PROBE, *LIBRARIES]
    what = printable(shlex.join(launch.python))
    try:
        done = subprocess.run(
            command,
            env=worker_environment(os.environ) | dict(launch.environ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=PROBE_S,
            check=False,
        )
        facts: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return facts
    except OSError as error:
        raise ProfileError(f"{what} cannot be started: {printable(error.strerror)}", FORMS) from None
    except subprocess.TimeoutExpired:
        raise ProfileError(f"{what} did not answer within {PROBE_S} s", FORMS) from None
    except (ValueError, IndexError):
        said = printable(" ".join(done.stderr.split()[-12:]))
        raise ProfileError(f"{what} is no Python that answers: {said or 'it said nothing'}", FORMS) from None


def _venv(text: str, scratch: Path) -> Side | None:
    """A folder with ``bin/python``, or an interpreter's path."""
    path = Path(text).expanduser()
    python = path / "bin" / "python" if path.is_dir() else path
    if not (python.is_file() and os.access(python, os.X_OK)) or (path == python and os.sep not in text):
        return None
    return _with_code(text, Launch((os.path.abspath(python),)), scratch)  # not resolved: a venv's python is a link


def _command(text: str, scratch: Path) -> Side | None:
    words = shlex.split(text)
    if not words or shutil.which(words[0]) is None:
        return None
    return _with_code(text, Launch(tuple(words)), scratch)


def _with_code(text: str, launch: Launch, scratch: Path) -> Side:
    """With the llm-hwprofile that it has, else with a copy of ours."""
    facts = probe(launch)
    if facts.get("worker"):
        return Side(text, launch, facts)
    lent = Launch(launch.python, staging.environ(staging.lend(scratch / f"lent-{len(os.listdir(scratch))}")))
    facts = probe(lent)
    if not (facts.get("libraries") or {}).get("torch"):
        raise ProfileError(
            f"{printable(text)}: neither llm-hwprofile nor torch is installed there",
            "Install what runs the models there: torch, transformers; our own code is lent.",
        )
    return Side(f"{text} (with our own code)", lent, facts)


def _revision(text: str, scratch: Path) -> Side | None:
    commit = staging.commit(text)
    if commit is None:
        return None
    folder = staging.revision(commit, scratch / commit[:12])
    launch = Launch((sys.executable,), staging.environ(folder))
    facts = probe(launch)
    if not facts.get("worker") or not str(facts.get("code", "")).startswith(str(folder)):
        raise ProfileError(f"revision {printable(text)} has no profiler that can measure", FORMS)
    return Side(text if text == commit else f"{text} ({commit[:12]})", launch, facts)


def _text(value: object) -> str:
    return UNKNOWN if value is None else printable(value, 60)
