"""The tasks of ``--tasks`` of ``profile endpoint``: prompts with exact checkers, in ``scenarios/tasks/KIND.toml``.

description = "..."       # one line
answer = "..."            # how to answer: follows every prompt of the file

[[task]]
name = "tiles"
prompt = "..."
number = "168"            # what is right, in the form of the kind

arithmetic    number
code          function, and cases with args and either gives or raises (the name of an exception or of its base)
html          the rules of ``markup.py``
extraction    fields, and also: other words that are as right for a field; language
format        exact (the whole text), or lines, line (a regular expression), distinct, words, different, has, lacks
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from profiler import registry
from profiler.case import digest
from profiler.errors import ProfileError
from profiler.foreign import toml_value
from profiler.quality import sandbox
from profiler.quality.checkers import KINDS, check

SET = "profile-tasks-2"  # a change of a prompt or of what is right is another set, with another name
ALL = "all"
CODE = "code"
ABOUT = ("name", "prompt", "language")  # what is not part of the rules


@dataclass(frozen=True, slots=True)
class CheckedTask:
    """A prompt, and the rules by which an answer to it is right or wrong."""

    kind: str
    name: str
    prompt: str
    rules: Mapping[str, Any]
    language: str | None = None

    @property
    def title(self) -> str:
        """``code: roman``."""
        return f"{self.kind}: {self.name}"

    def wrong(self, answer: str) -> str | None:
        """What is wrong with an answer, in a few words; None if it is right. Raises SandboxError."""
        return check(self.kind, self.rules, answer)


@cache
def of_kind(kind: str) -> tuple[CheckedTask, ...]:
    """The tasks of a kind, in the order of their file."""
    file = resources.files("profiler.scenarios") / "tasks" / f"{kind}.toml"
    content = toml_value(file.read_text(encoding="utf-8"))
    found = []
    for entry in content["task"]:
        rules = {name: value for name, value in entry.items() if name not in ABOUT}
        prompt = "\n\n".join(filter(None, (entry["prompt"].strip(), content["answer"])))
        found.append(CheckedTask(kind, entry["name"], prompt, rules, entry.get("language")))
    return tuple(found)


def chosen(words: Iterable[str]) -> tuple[CheckedTask, ...]:
    """The tasks of the kinds that ``words`` name, or of all. Raises ProfileError if code cannot run here, too."""
    named = set(words)
    unknown = sorted(named - {ALL, *KINDS})
    if unknown:
        error = registry.unknown("kind of tasks", unknown[0], [ALL, *KINDS])
        hint = "The URL comes before --tasks." if ":" in unknown[0] or "/" in unknown[0] else error.hint
        raise type(error)(error.message, hint)
    kinds = [kind for kind in KINDS if kind in named or ALL in named or not named]
    if CODE in kinds and (why := sandbox.unavailable()) is not None:
        rest = ",".join(kind for kind in KINDS if kind != CODE)
        raise ProfileError(f"code of a model cannot run here: {why}", f"The other kinds can: --tasks {rest}")
    return tuple(task for kind in kinds for task in of_kind(kind))


def hash_of(found: Iterable[CheckedTask]) -> str:
    """16 hex digits over the prompts and rules of tasks."""
    return digest([[task.kind, task.name, task.prompt, task.rules] for task in found])
