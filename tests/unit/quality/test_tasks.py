"""The tasks: every checker takes a right answer and no wrong one that looks right, and says what is wrong with it."""

from __future__ import annotations

import time
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from profiler.errors import NotFound, ProfileError
from profiler.quality import sandbox, tasks
from profiler.quality.checkers import KINDS, MAX_ANSWER, check
from profiler.quality.markup import BROKEN

GOLDEN = Path(__file__).parents[2] / "golden" / "tasks"
ANSWERS: dict[str, dict[str, Any]] = {kind: tomllib.loads((GOLDEN / f"{kind}.toml").read_text()) for kind in KINDS}
TASKS = [pytest.param(task, id=task.title) for kind in KINDS for task in tasks.of_kind(kind)]


def needs_sandbox(task: tasks.CheckedTask) -> None:
    if task.kind == tasks.CODE and (why := sandbox.unavailable()) is not None:
        pytest.skip(why)


@pytest.mark.parametrize("task", TASKS)
def test_a_right_answer_passes_and_a_wrong_one_that_looks_right_does_not(task: tasks.CheckedTask) -> None:
    needs_sandbox(task)
    answers = ANSWERS[task.kind][task.name]
    assert {answer: why for answer in answers["right"] if (why := task.wrong(answer)) is not None} == {}
    assert answers["wrong"]
    for answer in answers["wrong"]:
        why = task.wrong(answer)
        assert why and len(why) <= 200 and "\n" not in why, answer


def test_there_are_fifty_tasks_and_each_has_a_name_of_its_own() -> None:
    titles = Counter(task.title for kind in KINDS for task in tasks.of_kind(kind))
    assert (len(titles), max(titles.values())) == (50, 1)
    assert {f"{kind}: {name}" for kind, known in ANSWERS.items() for name in known} == set(titles)


def test_every_rule_of_an_html_task_is_one_that_is_checked() -> None:
    assert {name for task in tasks.of_kind("html") for name in task.rules} == set(BROKEN)


def test_the_set_is_the_one_of_its_name() -> None:
    """Pass rates are compared by it: whoever changes a task changes the name and this hash."""
    every = [task for kind in KINDS for task in tasks.of_kind(kind)]
    assert (tasks.SET, tasks.hash_of(every)) == ("profile-tasks-2", "9869069f878bafaf")


def test_kinds_are_chosen_by_name_and_an_unknown_one_is_an_error() -> None:
    assert {task.kind for task in tasks.chosen(["html", "format"])} == {"html", "format"}
    with pytest.raises(NotFound, match="unknown kind of tasks: htm") as error:
        tasks.chosen(["htm"])
    assert error.value.hint is not None and "html" in error.value.hint
    with pytest.raises(NotFound) as error:
        tasks.chosen(["localhost:8080"])
    assert error.value.hint == "The URL comes before --tasks."


def test_code_is_refused_where_there_is_no_sandbox(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "unavailable", lambda: "new namespaces: Operation not permitted")
    with pytest.raises(ProfileError, match="new namespaces: Operation not permitted") as error:
        tasks.chosen([])
    assert error.value.hint == "The other kinds can: --tasks html,arithmetic,extraction,format"
    assert tasks.chosen(["arithmetic"])


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != tasks.CODE])
@pytest.mark.parametrize(
    "part",
    [
        "<div>",
        "</p>",
        "<label for=a>x",
        "<h2>x",
        "<a b=",
        "<!--",
        "<a b='>",
        "<p ><",
        "<![CDATA[",
        "answer: ",
        "(",
        "```\n",
        "{",
        '{"a":',
        "[",
        "x\n",
    ],
)
def test_no_answer_takes_long_to_check(kind: str, part: str) -> None:
    """Python's parser of HTML alone would take a minute for the third."""
    task, text = tasks.of_kind(kind)[0], (part * MAX_ANSWER)[:MAX_ANSWER]
    begin = time.process_time()
    assert task.wrong(text) is not None
    assert time.process_time() - begin < 3


def test_an_answer_of_a_megabyte_is_wrong_without_a_look() -> None:
    assert check("format", {}, "x" * (MAX_ANSWER + 1)) == "the answer is longer than 100,000 characters"
    assert check("format", {}, " \n") == "the answer is empty"
