"""The variants that a gate compares: the interpreter and code that run each of them, checked before measuring.

    --base HEAD~1                       a git revision: that version of our code with the installed libraries
    --base ../old/.venv                 a virtual environment or an interpreter, with its libraries; it runs its own
                                        llm-hwprofile if it has one, otherwise a copy of ours
    --base "taskset -c 0 python3"       a command that starts an interpreter
    --base ../old-llama.cpp             a build, for a backend that runs the programs of one (``--backend llama.cpp``)

A prefix ``rev:``, ``venv:`` or ``cmd:`` says which one is meant. Without a prefix, a name that is both a revision and
a program is refused, because the branches of a repository must not decide which code runs. The gate prints what it
will run before it does.

**Querying an interpreter.** A user may type any program, so its output is trusted only in the form that our own few
lines of Python print, which repeat a random token drawn for each query. The output is bounded, and the process is
killed after the query.
"""

from __future__ import annotations

import json
import os
import secrets
import select
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from profiler import folders
from profiler.backends.base import InstalledBuild
from profiler.case import Task
from profiler.errors import ProfileError
from profiler.gate import revision
from profiler.results.environment import LIBRARIES
from profiler.run.process import Launch, worker_environment
from profiler.run.protocol import encode, task_message
from profiler.run.repetitions import Effort
from profiler.shell import command, quote
from profiler.units import UNKNOWN, bytes_text, printable

ANSWER_S = 60.0  # importing torch from a network file system is slow
MAX_OUTPUT = 1024**2  # bytes: `yes` must not fill the memory
LAST_WORDS = 12  # words of the output that the error message quotes
PYTHON = "Use Python 3.11 or newer, or a command that starts one, such as: taskset -c 0 python3"
ABOUT = """
import json, sys
from importlib import metadata, util
def version(name):
    try: return metadata.version(name)
    except metadata.PackageNotFoundError: return None
spec = util.find_spec("profiler")
worker = spec and spec.submodule_search_locations and util.find_spec("profiler.run")
worker = worker and util.find_spec("profiler.run.worker")
print("\\n" + sys.argv[1], json.dumps({"python": sys.version.split()[0], "executable": sys.executable,
    "prefix": sys.prefix, "code": spec and spec.origin, "worker": bool(worker),
    "libraries": {n: version(n) for n in sys.argv[2:]}}))
"""
# Mirrors the start of a worker: read the tasks, then import the backend, which imports the libraries.
READY = """
import importlib, json, sys
def fault():
    from profiler import registry
    from profiler.run import protocol, worker
    kind = getattr(protocol, "WorkerTask", None) or getattr(protocol, "Order", None)  # in earlier revisions
    read = kind.from_json if kind else lambda message: protocol.read_task(message)[0]
    cases = [read(json.loads(line)).case for line in sys.stdin]
    for name in sorted({case.backend for case in cases}):
        module = registry.load("backends", name, "backend")
        if not (hasattr(module, "open_session") or hasattr(module, "open")):  # open: its name in earlier revisions
            importlib.import_module(module.__name__ + ".session")
    for device in sorted({case.device for case in cases}):
        if device.startswith("cuda") and "torch" in sys.modules and not sys.modules["torch"].cuda.is_available():
            return f"its torch {sys.modules['torch'].__version__} cannot use a GPU"
    from profiler import devices
    for case in cases if "torch" in sys.modules else ():
        reason = registry.load("quants", case.quant, "quantization").QUANT.unavailable(devices.find(case.device))
        if reason:
            return reason
try: said = fault()
except BaseException as error: said = f"{type(error).__name__}: {error}"
print("\\n" + sys.argv[1], json.dumps({"fault": said}))
"""

GIT_NAMES = ("HEAD", "@")  # always the revision, though libwww-perl installs a program called HEAD
EXAMPLE = "--build 'python3 -m venv .venv && .venv/bin/pip install -e . torch transformers'"
KINDS = {"rev": "a git revision", "venv": "an environment", "cmd": "a command"}
FORMS = "Use a git revision, a virtual environment's folder, an interpreter, or a command that starts one."
OLD_VARIANT = (
    "Use an environment with a newer llm-hwprofile, torch and transformers; in one without llm-hwprofile, the gate"
    " runs a copy of ours."
)
OLD_REVISION = (
    "Use a revision that works with the installed libraries, or make a virtual environment for that revision and"
    " pass its folder: venv:FOLDER"
)
Say = Callable[[str], None]


def about(launch: Launch) -> dict[str, Any]:
    """What an interpreter reports about itself: python, executable, prefix, code, worker and libraries.

    Raises ProfileError if it is no Python or does not answer.
    """
    reported = _ask(launch, ABOUT, LIBRARIES)
    texts = all(isinstance(reported.get(name), str) for name in ("python", "executable", "prefix"))
    libraries = reported.get("libraries")
    if not texts or not isinstance(libraries, dict) or not isinstance(reported.get("worker"), bool):
        raise ProfileError(f"{_shown(launch)} does not answer like a Python interpreter", PYTHON)
    return reported


def interpreter_fault(launch: Launch, tasks: Iterable[Task], effort: Effort) -> str | None:
    """Why the profiler of this interpreter cannot take these tasks; None if it can.

    Raises ProfileError if it does not answer at all.
    """
    lines = (encode(task_message(task, effort, None), finite=False) for task in tasks)
    said = _ask(launch, READY, (), b"".join(lines)).get("fault")
    return None if said is None else printable(" ".join(str(said).split()), 300)


def _ask(launch: Launch, program: str, arguments: Iterable[str], stdin: bytes = b"") -> dict[str, Any]:
    """The JSON object that ``program`` prints after its token."""
    word = secrets.token_hex(8)
    command = [*launch.python, "-P", "-c", program, word, *arguments]
    try:
        heard, ended = _hear(command, worker_environment(os.environ) | dict(launch.environ), stdin)
    except (OSError, ValueError) as error:  # ValueError: a NUL byte
        said = getattr(error, "strerror", None) or error
        raise ProfileError(f"{_shown(launch)} cannot be started: {printable(said)}", PYTHON) from None
    for line in heard.decode("utf-8", "replace").splitlines():
        if line.startswith(f"{word} "):
            with suppress(ValueError, RecursionError):
                content = json.loads(line.removeprefix(f"{word} "))
                if isinstance(content, dict):
                    return content
    if ended is not None:
        raise ProfileError(f"{_shown(launch)} {ended}", PYTHON)
    text = printable(" ".join(heard.decode("utf-8", "replace").split()[-LAST_WORDS:]))
    raise ProfileError(f"{_shown(launch)} is not a working Python: {text or 'it printed nothing'}", PYTHON)


def _hear(command: list[str], environ: Mapping[str, str], stdin: bytes) -> tuple[bytes, str | None]:
    """What a command prints, and why it was killed, if it was. Raises OSError, ValueError."""
    with tempfile.TemporaryFile() as given:
        given.write(stdin)
        given.seek(0)
        process = subprocess.Popen(
            command,
            env=dict(environ),
            stdin=given,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    assert process.stdout is not None  # asked for
    heard, deadline = bytearray(), time.monotonic() + ANSWER_S
    try:
        while len(heard) < MAX_OUTPUT:
            left = deadline - time.monotonic()
            if left <= 0:
                return bytes(heard), f"did not answer within {ANSWER_S:.0f} s"
            gone = process.poll() is not None
            if select.select([process.stdout], [], [], 0.0 if gone else min(left, 0.1))[0]:
                chunk = os.read(process.stdout.fileno(), 1 << 16)
                if not chunk and gone:
                    return bytes(heard), None
                if not chunk:  # it closed its output but still runs
                    time.sleep(0.01)
                heard += chunk
            elif gone:  # a child that it left behind holds the pipe
                return bytes(heard), None
        return bytes(heard), f"printed more than {bytes_text(MAX_OUTPUT)} instead of an answer"
    finally:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()


def _shown(launch: Launch) -> str:
    return printable(shlex.join(launch.python))


@dataclass(frozen=True, slots=True)
class Variant:
    """The program that measures one side of a gate."""

    name: str  # as the user typed it
    launch: Launch
    reported: Mapping[str, Any] = field(default_factory=dict)  # what the interpreter reports about itself
    of_revision: bool = False  # a revision of our code, with the installed libraries
    repository: str | None = None  # the git checkout that the code is from; None: an installed package
    build: InstalledBuild | None = None  # of the engine's programs, for a backend that runs those


class OtherRepository(ProfileError):
    """A revision was named in a repository that is not the profiler's, which a gate cannot compare."""


@dataclass(frozen=True, slots=True)
class Meaning:
    """One reading of a variant's name. Finding it runs nothing but git."""

    kind: str  # a key of KINDS
    text: str  # without a prefix
    words: str  # what runs, for the user
    python: tuple[str, ...]  # the command that starts the interpreter
    commit: str | None = None


def here() -> Variant:
    """The current installation."""
    launch = Launch((sys.executable,), folders.child_environ(os.environ))
    return Variant("this installation", launch, about(launch), repository=_repository())


def _repository() -> str | None:
    """The git checkout that this installation runs from."""
    root = Path(revision.__file__).parents[2]
    return printable(root) if (root / ".git").exists() else None


def resolve(text: str, scratch: Path, say: Say = lambda text: None) -> Variant:
    """The variant that ``text`` names.

    ``scratch`` is a folder for code, which must exist as long as the variant is used. ``say`` gets what will run,
    before it runs. Raises ProfileError if ``text`` names nothing, or no interpreter that can measure.
    """
    found = meaning(text)
    say(found.words)
    if found.commit is not None:
        return _of_revision(found, found.commit, scratch)
    return with_code(text, Launch(found.python), scratch)


def meaning(text: str) -> Meaning:
    """The one reading of ``text``. Raises ProfileError if there is none, or more than one."""
    if not text.strip():
        raise ProfileError("--base or --candidate is empty", FORMS)
    kind, _, rest = text.partition(":")
    if kind in KINDS and rest:
        return _only(kind, rest)
    if text in GIT_NAMES:
        return _only("rev", text)
    found: list[Meaning] = []
    faults: list[ProfileError] = []
    for look in (_environment, _revision, _command):
        try:
            found.append(look(text))
        except OtherRepository:
            raise
        except ProfileError as error:
            faults.append(error)
    if not found:
        reasons = "; ".join(dict.fromkeys(error.message for error in faults))
        hint = next((error.hint for error in faults if error.hint), FORMS)
        raise ProfileError(f"{quoted(text)} is not a revision, environment or command we can run: {reasons}", hint)
    code = [each for each in found if each.kind == "rev"]
    programs = [each for each in found if each.kind != "rev"]
    if code and programs:
        two = (code[0], programs[0])
        both = " and ".join(f"{KINDS[each.kind]}, which {each.words}" for each in two)
        spelled = " or ".join(quote(f"{each.kind}:{text}") for each in two)
        raise ProfileError(f"{quoted(text)} is ambiguous: {both}", f"Say which is meant: {spelled}")
    return found[0]


def check(variant: Variant, tasks: Sequence[Task], effort: Effort) -> None:
    """Raises ProfileError if the profiler of this variant cannot take these tasks: it is too old, or broken."""
    fault = interpreter_fault(variant.launch, tasks, effort)
    if fault is not None:
        version = (variant.reported.get("libraries") or {}).get("llm-hwprofile")
        what = f"its profiler{f' ({_text(version)})' if version else ''} cannot measure this: {fault}"
        raise ProfileError(f"{printable(variant.name)}: {what}", OLD_REVISION if variant.of_revision else OLD_VARIANT)


def differences(base: Variant, candidate: Variant) -> list[str]:
    """Versions in which the variants differ, one line each: that is what the gate compares."""
    found = []
    a, b = base.reported.get("python"), candidate.reported.get("python")
    if a != b:
        found.append(f"Python {_text(a)} → {_text(b)}")
    a_libraries, b_libraries = (variant.reported.get("libraries") or {} for variant in (base, candidate))
    for name in dict.fromkeys((*LIBRARIES[1:], *a_libraries, *b_libraries)):
        a, b = a_libraries.get(name), b_libraries.get(name)
        if a != b and name != LIBRARIES[0]:  # this package: the names of the variants say more
            found.append(f"{name} {_text(a)} → {_text(b)}")
    return found


def is_same(base: Variant, candidate: Variant) -> bool:
    """Whether the variants are identical: then a gate compares a program with itself."""
    identity = ("prefix", "code", "libraries")
    environs = [
        {
            name: value
            for name, value in each.launch.environ.items()
            if each.build is None or name not in each.build.variables
        }
        for each in (base, candidate)
    ]
    return environs[0] == environs[1] and (
        len(base.launch.python) == len(candidate.launch.python) == 1
        and [base.reported.get(name) for name in identity] == [candidate.reported.get(name) for name in identity]
    )


def _only(kind: str, text: str) -> Meaning:
    look = {"rev": _revision, "venv": _environment, "cmd": _command}[kind]
    try:
        return look(text)
    except OtherRepository:
        raise
    except ProfileError as error:
        raise ProfileError(f"{kind}:{printable(text)} cannot be used: {error.message}", error.hint or FORMS) from None


def _environment(text: str) -> Meaning:
    """A folder with ``bin/python``, or an interpreter's path."""
    try:
        path = Path(os.path.expanduser(text))
        folder, file = path.is_dir(), path.is_file()
    except (OSError, ValueError, RuntimeError):  # too long, a NUL byte, no such user
        raise ProfileError("no such path") from None
    python = path / "bin" / "python" if folder else path
    if not text or not (folder or file):
        raise ProfileError("no such path")
    if file and os.sep not in text:
        raise ProfileError("a file in the current folder has to be written as ./NAME")
    if not python.is_file():
        raise ProfileError(f"the folder {printable(text)} has no bin/python")
    if not os.access(python, os.X_OK):
        raise ProfileError(f"{printable(python)} is not executable")
    start = os.path.abspath(python)  # not resolved: a venv's python is a link
    return Meaning("venv", text, f"runs the interpreter {printable(start)}", (start,))


def _command(text: str) -> Meaning:
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ProfileError(f"it does not parse as a command: {printable(error)}") from None
    if not words or "\0" in text:
        raise ProfileError("the command is empty")
    program = shutil.which(words[0])
    if program is None:
        raise ProfileError(f"no program {printable(words[0])} on the PATH")
    shown = " ".join(map(quote, (program, *words[1:])))
    return Meaning("cmd", text, f"runs the command {shown}", tuple(words))


def _revision(text: str) -> Meaning:
    found = revision.commit(text) if text else None
    _refuse_other_repository(text, found)
    if found is None:
        if shutil.which("git") is None:
            raise ProfileError("git, which finds revisions, is not installed")
        where = revision.checkout()
        other = revision.kind(text, where) if where and text else None
        if other is not None:
            raise ProfileError(f"it names a {other} of {printable(where)}, not a commit")
        if where and revision.is_name(text, where) and revision.is_shallow(where):
            what = f"no such revision in {printable(where)}, a shallow clone that holds only the latest commits"
            raise ProfileError(what, f"Fetch the others: {command('git', '-C', str(where), 'fetch', '--unshallow')}")
        place = f" in {printable(where)}" if where else ": the profiler does not run from a git checkout"
        raise ProfileError(f"no such revision{place}")
    words = (
        f"runs the code of commit {found[:12]} of {printable(revision.checkout())} with {printable(sys.executable)}"
    )
    return Meaning("rev", text, words, (sys.executable,), found)


def _refuse_other_repository(text: str, found: str | None) -> None:
    """A person in a repository of their own means its revisions, whether the profiler has one of that name or not."""
    other = revision.other_repository() if text else None
    if other is None or (found is None and revision.commit(text, other) is None):
        return
    ours = revision.checkout()
    where = f"its own repository {printable(ours)}" if ours else "its own repository, which it does not run from here"
    raise OtherRepository(
        f"{quoted(text)} is a revision, and the current folder is in the repository {printable(other)}: a gate"
        f" compares versions of profile itself and of the libraries, with revisions of {where}",
        f"To build that revision of your project and compare with it: {EXAMPLE}. To compare two environments of"
        " your own: --base OLD/.venv --candidate NEW/.venv. To compare a server before and after a change: profile"
        " endpoint twice, then profile compare latest~1 latest. To compare revisions of profile, change to its"
        " repository.",
    )


def with_code(text: str, launch: Launch, scratch: Path) -> Variant:
    """A variant that runs its own llm-hwprofile, or a copy of ours if it has none."""
    reported = about(launch)
    if reported.get("worker"):
        return Variant(text, launch, reported)
    lent = Launch(launch.python, revision.environ(revision.lend(scratch / f"lent-{len(os.listdir(scratch))}")))
    reported = about(lent)
    if not reported["worker"]:
        raise ProfileError(
            f"{printable(text)} has no llm-hwprofile and does not import ours from PYTHONPATH",
            "Use an interpreter that is not started with -I or -E, or install llm-hwprofile there.",
        )
    if not reported["libraries"].get("torch"):
        raise ProfileError(
            f"{printable(text)}: neither llm-hwprofile nor torch is installed there",
            "Install torch and transformers there; a copy of our own code will do.",
        )
    return Variant(f"{text} (with a copy of our code)", lent, reported)


def _of_revision(found: Meaning, commit: str, scratch: Path) -> Variant:
    folder = revision.revision(commit, scratch / commit[:12])
    launch = Launch(found.python, revision.environ(folder))
    reported = about(launch)
    if not reported["worker"] or not str(reported.get("code", "")).startswith(str(folder)):
        raise ProfileError(f"revision {printable(found.text)} has no profiler that can measure", FORMS)
    name = found.text if found.text == commit else f"{found.text} ({commit[:12]})"
    return Variant(name, launch, reported, True, printable(revision.checkout()))


def quoted(text: str) -> str:
    """What the user typed, for a message."""
    return repr(printable(text))


def _text(value: object) -> str:
    return UNKNOWN if value is None else printable(value, 60)
