"""``--tasks`` of ``profile endpoint``: one case of all tasks, whose answers are checked once it is over.

Each task is one request, in the order of the files. Nothing unique stands before its prompt, so that two runs ask the
same; what a prefix cache knew is therefore not counted as prefill. Code runs after the last request, so that it
disturbs no figure.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from profiler.backends.endpoint import Exchange
from profiler.errors import ProfileError
from profiler.quality import tasks
from profiler.quality.sandbox import SandboxError
from profiler.results.measurement import Caution, TaskVerdict
from profiler.results.tasks import TaskScore, score
from profiler.run.prompts import EndpointPrompt, Prompt
from profiler.units import printable

if TYPE_CHECKING:  # it uses this module
    from profiler.run.endpoint import EndpointRequest

NAME = "tasks"
ANSWER_TOKENS = 2048  # four times the longest right answer; what a reasoning model thinks takes more


@dataclass(frozen=True, slots=True)
class TaskOutcome:
    """How one task ended, and why if it was not passed."""

    prompt: EndpointPrompt
    outcome: TaskVerdict
    reason: str | None = None
    unchecked: bool = False  # whether it failed here, and not on the server

    @property
    def task(self) -> tasks.CheckedTask:
        return self.prompt.tasks[0]


def prompts(kinds: Iterable[str], tokens: int | None) -> tuple[EndpointPrompt, ...]:
    """A prompt for each task of some kinds. Raises ProfileError, as for code that cannot run here."""
    limit = tokens or ANSWER_TOKENS
    return tuple(_prompt(task, limit) for task in tasks.chosen(kinds))


def _prompt(task: tasks.CheckedTask, limit: int) -> EndpointPrompt:
    written = Prompt(task.title, NAME, ({"role": "user", "content": task.prompt},), limit, task.language)
    return EndpointPrompt(task.title, written=written, answer_tokens=limit, tasks=(task,))


def whole(each: Sequence[EndpointPrompt]) -> EndpointPrompt:
    """All tasks as the prompt of one result."""
    messages = tuple(message for prompt in each if prompt.written for message in prompt.written.messages)
    limit = each[0].answer_tokens
    every = tuple(task for prompt in each for task in prompt.tasks)
    return EndpointPrompt(NAME, written=Prompt(NAME, NAME, messages, limit), answer_tokens=limit, tasks=every)


def refuse(asked: EndpointRequest) -> None:
    """ProfileError for what does not combine with ``--tasks`` in an EndpointRequest."""
    others = {
        "-c": (asked.contexts, "every task has its own prompt"),
        "--prompt": (asked.prompt, "every task has its own prompt"),
        "--scenario": (asked.scenarios, "every task has its own prompt"),
        "--cached": (asked.cached, "every task is sent once"),
        "-r": (asked.reps, "every task is sent once"),
    }
    for option, (given, why) in others.items():
        if given:
            raise ProfileError(f"--tasks and {option} exclude each other: {why}")
    if len(asked.streams) > 1:
        raise ProfileError("--tasks takes one number of streams", "Such as --concurrency 4.")


def judged(each: Sequence[EndpointPrompt], exchanges: Sequence[Sequence[Exchange]]) -> tuple[TaskOutcome, ...]:
    """The outcome of each task that was sent, in the order of the tasks. Runs code, and may take some seconds."""
    return tuple(_outcome(prompt, done[0]) for prompt, done in zip(each, exchanges, strict=True) if done)


def _outcome(prompt: EndpointPrompt, exchange: Exchange) -> TaskOutcome:
    failure = exchange.failure
    if failure is not None and failure.kind != "empty":
        return TaskOutcome(prompt, "failed", printable(failure.words, 200))
    count = exchange.usage.completion
    if exchange.finish == "length" or (exchange.finish is None and (count or 0) >= prompt.answer_tokens):
        limit = prompt.answer_tokens if count is None else count
        return TaskOutcome(prompt, "cut", f"it did not end within {limit:,} tokens")
    try:
        wrong = prompt.tasks[0].wrong(exchange.answer)
    except SandboxError as error:
        return TaskOutcome(prompt, "failed", f"it could not be checked: {error.message}", unchecked=True)
    return TaskOutcome(prompt, "passed" if wrong is None else "wrong", wrong)


def answered(exchanges: Iterable[Exchange]) -> list[Exchange]:
    """Without those in which the model said nothing: that is a wrong answer, and no failure of the server."""
    return [each for each in exchanges if each.failure is None or each.failure.kind != "empty"]


def scored(outcomes: Iterable[TaskOutcome]) -> TaskScore:
    """How many ended in each way."""
    return score(each.outcome for each in outcomes)


def cautions(outcomes: Sequence[TaskOutcome]) -> Iterator[Caution]:
    """What a reader of the pass rate must know."""
    found = scored(outcomes)
    if found.cut:
        limit = outcomes[0].prompt.answer_tokens
        text = f"{found.cut} of {len(outcomes)} answers did not end within {limit:,} tokens: they count as not passed"
        yield Caution("tasks-cut", text, "a larger -n")
    if unchecked := sum(each.unchecked for each in outcomes):
        yield Caution("tasks-unchecked", f"{unchecked} of {len(outcomes)} answers could not be checked")


def row(outcomes: Sequence[TaskOutcome], prompt: EndpointPrompt) -> dict[str, Any] | None:
    """The part ``tasks`` of ``serving``, by columns; None without tasks."""
    if not outcomes:
        return None
    return {
        "set": tasks.SET,
        "hash": tasks.hash_of(prompt.tasks),
        "kind": [each.task.kind for each in outcomes],
        "name": [each.task.name for each in outcomes],
        "outcome": [each.outcome for each in outcomes],
        "reason": [each.reason for each in outcomes],
    }
