"""What is said to a server: the prompts of a scenario, a person's own text files, and text of a stated length.

A scenario names files in ``scenarios/prompts/``, or beside its own file where somebody wrote it. There are two forms.

``NAME.md`` is one prompt, as Markdown. Comments on a line of their own are instructions; a file without them is what
the user says. A conversation has one prompt, which ends with its last turn.

    <!-- language: el -->                            the language, as in HTML (BCP 47)
    <!-- expected: 12:23 -->                         what a right answer says; ``judged`` compares it where the
                                                     prompt asks for a last line "Answer: "
    <!-- system -->, <!-- user -->, <!-- assistant -->    a turn begins
    <!-- document: seed 1, 28000 tokens -->          a generated document (``profiler.run.documents``)
    <!-- questions -->                               the questions that the documents answer; they are then expected

``NAME.json`` is the history of an agent in the form of OpenAI's chat completions: ``{"tools": [...], "messages":
[...]}``. It has a prompt for each turn of the assistant, so that each prompt begins with the whole one before it.

A person's own prompts, ``own_prompts``, are sent as they are: nothing in them is an instruction. ``varied_text`` is
text without a meaning, where only its length matters.
"""

from __future__ import annotations

import json
import os
import random
import re
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from importlib import resources
from importlib.resources.abc import Traversable
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from profiler import registry
from profiler.case import Source
from profiler.errors import ProfileError
from profiler.foreign import MAX_TOKENIZER_BYTES, BadContent, Budget, exists, json_value, read_bytes, why
from profiler.quality.checkers import final_line
from profiler.quality.tasks import CheckedTask
from profiler.run import documents, grid
from profiler.units import bytes_text, printable

ANSWER_TOKENS = 512  # where a scenario does not say
DEFAULT_TOKENS = 128  # of an answer of which only the speed matters
TASK = "\n\nContinue these notes in your own words, in as much detail as you can. Do not stop early."
OWN = "own"
MAX_FILE_BYTES = 4 << 20  # a million tokens, which is the longest window that is offered
MAX_FILES = 1000
MAX_TOTAL_BYTES = 64 << 20
TOKENIZER = "tokenizer.json"
BUDGET = Budget(nbytes=MAX_FILE_BYTES, depth=32)
ROLES = ("system", "user", "assistant", "tool")
FORMS = "Write <!-- document: seed 1, 28000 tokens -->, <!-- questions -->, <!-- user --> or <!-- language: el -->."
MESSAGE_KEYS = {"role", "content", "tool_calls", "tool_call_id"}

WORDS = (
    "river market stone winter letter garden engine window harbor paper bridge morning valley signal copper "
    "teacher island summer candle machine forest mirror silver journey kitchen ladder ocean meadow pocket quarry "
    "ribbon saddle tunnel village wagon yellow anchor basket canyon dinner effort fabric gallery hammer iron "
    "jacket kettle lantern motor needle orchard pillow quiet railway shadow ticket uncle velvet weather answer "
    "button carries follows becomes remembers crosses builds repairs opens measures watches sells paints counts "
    "finds before after under beyond without between against during beside around slowly often never again "
    "together the a its every another some this that old new small bright heavy narrow early late and but while "
    "because"
)
VOCABULARY = WORDS.split()

_TURN = re.compile(r"^<!-- (system|user|assistant) -->$", re.MULTILINE)
_HEADER = re.compile(r"^<!-- (language|expected): (.+) -->$\n?", re.MULTILINE)
_DOCUMENT = re.compile(r"^<!-- document: seed (\d{1,9}), (\d{1,9}) tokens -->$", re.MULTILINE)
_QUESTIONS = re.compile(r"^<!-- questions -->$", re.MULTILINE)
_MEANT = re.compile(  # what is left of an instruction that none of these read
    r"^[ \t]*<!--\s*(?:(?:system|user|assistant|questions)\s*-->|(?:language|expected|document)\s*:).*$",
    re.MULTILINE | re.IGNORECASE,
)
_NUMBER = re.compile(r"\d+(?:[:.,]\d+)*")
_WORD = re.compile(r"[^\W\d_]+")
_REPEATED = re.compile(r"([\W_])\1+")
_DECIMAL_COMMA = re.compile(r"\d+,\d{1,2}")

Verdict = Literal["right", "wrong", "none"]
Message = dict[str, Any]  # role, content, and of tools tool_calls or tool_call_id


@dataclass(frozen=True, slots=True)
class Prompt:
    """One request to a model."""

    name: str
    kind: str  # the scenario's name, or OWN
    messages: tuple[Message, ...]  # in the form of OpenAI's chat completions; the last one is the user's or a tool's
    answer_tokens: int  # how long an answer is expected to be
    language: str | None = None  # BCP 47
    expected: str | None = None  # what a right answer says, a line for each part; None: there is no single right one
    tools: tuple[dict[str, Any], ...] = ()
    conversation: str | None = None  # the history it is a turn of; each turn begins with the whole one before it
    turn: int = 1

    @property
    def text(self) -> str:
        """All that a model reads, without the marks of a chat template: what is counted in tokens and characters."""
        parts = [json.dumps(tool, ensure_ascii=False) for tool in self.tools]
        for message in self.messages:
            parts += [message["content"]] if message.get("content") else []
            parts += [json.dumps(each["function"], ensure_ascii=False) for each in message.get("tool_calls", ())]
        return "\n".join(parts)


def judged(prompt: Prompt, answer: str) -> Verdict | None:
    """Whether the line "Answer: " at the end of ``answer`` says what was expected; "none": there is no such line.

    None for a prompt that does not ask for the line, or of which no right answer is known. What is in parentheses
    does not count, and of the rest only numbers, or only the expected words: ``**Answer:** 71.2 euros`` is ``71.20``.
    """
    if prompt.expected is None or '"Answer: "' not in prompt.messages[-1]["content"]:
        return None
    said, pattern = final_line(answer), _NUMBER if _NUMBER.search(prompt.expected) else _WORD
    if said is None:
        return "none"
    wanted = [_part(each) for each in pattern.findall(prompt.expected)]
    parts = [_part(each) for each in pattern.findall(said)]
    if not parts:
        return "none"
    given = dict.fromkeys(parts) if pattern is _NUMBER else [each for each in parts if each in wanted]
    return "right" if list(given) == wanted else "wrong"


def _part(text: str) -> Decimal | str:
    """A number by its value, anything else as it is but for upper case."""
    if _DECIMAL_COMMA.fullmatch(text):
        text = text.replace(",", ".")
    try:
        return Decimal(text.replace(",", ""))
    except InvalidOperation:
        return text.casefold()


@dataclass(frozen=True, slots=True)
class EndpointPrompt:
    """What is sent: varied text of about ``tokens`` tokens or of so many words, or what somebody wrote."""

    name: str
    tokens: int | None = None
    words: int | None = None
    written: Prompt | None = None
    answer_tokens: int = DEFAULT_TOKENS
    tasks: tuple[CheckedTask, ...] = ()  # that it asks for, of which each has a checker (run/tasks.py)

    @property
    def conversation(self) -> str | None:
        return self.written.conversation if self.written else None

    @property
    def turn(self) -> int:
        return self.written.turn if self.written else 1

    @property
    def may_be_cached(self) -> bool:
        """Whether a prefix cache may know its beginning: it continues a conversation, or is the same in every run."""
        return self.turn > 1 or bool(self.tasks)

    @property
    def characters(self) -> int:
        """Characters of all written messages; a repeated space or mark counts once, as in an indent or a rule."""
        written = self.written.messages if self.written else ()
        return sum(len(_REPEATED.sub(r"\1", message.get("content") or "")) for message in written)

    @property
    def most_tokens(self) -> int:
        """An upper estimate of its length: three ASCII characters a token, and a token for each byte of the rest."""
        if self.written is None:
            return self.tokens or 0
        text = self.written.text
        return (plain := len(text.encode("ascii", "ignore"))) // 3 + len(text.encode()) - plain

    def sent(self, unique: str, per_word: float, overhead: float) -> list[Mapping[str, Any]]:
        """The messages of one request. ``unique`` comes first, where a prefix cache begins to compare; not in tasks,
        whose answers it would change.

        ``per_word``: tokens of a word of varied text; ``overhead``: of all the rest.
        """
        if self.written is not None and self.tasks:
            return list(self.written.messages)
        if self.written is not None:
            first, *others = self.written.messages
            return [{**first, "content": f"{unique}\n\n{first.get('content') or ''}"}, *others]
        words = self.words or max(4, round(((self.tokens or 0) - overhead) / per_word))
        return [{"role": "user", "content": f"{unique}\n\n{varied_text(words, unique)}{TASK}"}]


def prompts(scenario: str) -> list[Prompt]:
    """The prompts of a shipped scenario or of a scenario file. Raises NotFound, and ProfileError if it has none."""
    found = grid.load(scenario)
    if not found.prompts:
        named = [name for name in grid.names() if grid.load(name).prompts]
        raise ProfileError(f"scenario {found.name} has no prompts", f"Scenarios with prompts: {', '.join(named)}.")
    folder = None if scenario in grid.names() else Path(scenario).parent
    answer_tokens = found.answer_tokens or ANSWER_TOKENS
    read = [prompt for name in found.prompts for prompt in _read(name, folder, found.name, answer_tokens)]
    counted = Counter(prompt.name for prompt in read)
    if twice := next((name for name, count in counted.items() if count > 1), None):
        raise ProfileError(
            f"scenario {found.name} has two prompts named {twice}, whose results could not be told apart"
        )
    return read


def contexts_of(scenario: str, source: Source) -> tuple[tuple[int, ...], str | None]:
    """The contexts of a scenario for one model, and a note that says who counted their tokens; None without prompts.

    The model's own tokenizer counts if its folder has one. There are then as many contexts as the scenario states:
    prompts of about the same length are a group, whose median counts. Raises ProfileError for a damaged tokenizer.
    """
    found = grid.load(scenario)
    if not found.prompts:
        return found.contexts, None
    count = counter(source)
    if count is None:
        return found.contexts, f"the contexts of scenario {found.name} are as it states them: no {TOKENIZER} is here"
    counted = sorted(count(prompt.text) for prompt in prompts(scenario))
    groups = _groups(counted, min(len(counted), len(found.contexts)))
    medians = dict.fromkeys(statistics.median_low(group) for group in groups)
    return tuple(medians), f"the contexts of scenario {found.name} are counted by the model's own tokenizer"


def _groups(ordered: Sequence[int], count: int) -> list[Sequence[int]]:
    """Sorted positive numbers in ``count`` groups, between which their ratios are largest."""
    ratios = sorted(range(1, len(ordered)), key=lambda place: ordered[place] / ordered[place - 1], reverse=True)
    ends = sorted(ratios[: count - 1])
    return [ordered[begin:end] for begin, end in pairwise([0, *ends, len(ordered)])]


def counter(source: Source) -> Callable[[str], int] | None:
    """A function that counts the tokens of a text by the model's own tokenizer, without those of a chat template.

    None if the model has no folder with a tokenizer. Raises ProfileError for a damaged one.
    """
    file = Path(source.location) / TOKENIZER
    if source.kind != "folder" or not exists(file):
        return None
    from tokenizers import Tokenizer

    content = read_bytes(file, MAX_TOKENIZER_BYTES)
    try:
        tokenizer = Tokenizer.from_buffer(content)
    except Exception as error:  # its only class of errors
        raise ProfileError(f"{printable(file)} is not a tokenizer: {printable(error, 120)}") from None
    return lambda text: max(1, len(tokenizer.encode(text, add_special_tokens=False).ids))


def own_prompts(path: Path, answer_tokens: int = ANSWER_TOKENS) -> list[Prompt]:
    """A text file as a prompt, or each file of a folder in the order of their names; hidden files and folders aside.

    Raises NotFound, and ProfileError for a file that is empty, too large or not UTF-8, and a folder without files.
    """
    files = _files(path) if os.path.isdir(path) else [path]
    found, size = [], 0
    for file in files:
        content = read_bytes(file, MAX_FILE_BYTES)
        size += len(content)
        if size > MAX_TOTAL_BYTES:
            raise ProfileError(f"the prompts in {printable(path)} are larger than {bytes_text(MAX_TOTAL_BYTES)}")
        text = _text(content, printable(file))
        message = {"role": "user", "content": text.rstrip("\r\n")}
        found.append(Prompt(printable(file.name), OWN, (message,), answer_tokens))
    return found


def varied_text(words: int, seed: int | str) -> str:
    """``words`` words in sentences that do not repeat; the same for the same seed."""
    chance = random.Random(seed)
    sentences: list[str] = []
    while words > 0:
        length = min(words, chance.randint(6, 14))
        sentences.append(" ".join(chance.choices(VOCABULARY, k=length)).capitalize() + ".")
        words -= length
    return " ".join(sentences)


def _files(folder: Path) -> list[Path]:
    shown = printable(folder)
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if not entry.name.startswith(".") and not entry.is_dir())
    except OSError as error:
        raise ProfileError(f"cannot read {shown}: {why(error)}") from None
    if not names:
        raise ProfileError(f"{shown} holds no files", "A prompt is a text file, such as landing-page.txt.")
    if len(names) > MAX_FILES:
        raise ProfileError(f"{shown} holds {len(names):,} files, more than {MAX_FILES:,}")
    return [folder / name for name in names]


def _text(content: bytes, shown: str) -> str:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ProfileError(f"{shown} is not a text in UTF-8: byte {error.start:,} belongs to no character") from None
    if "\0" in text:
        raise ProfileError(f"{shown} is not a text: it holds a NUL byte")
    if not text.strip():
        raise ProfileError(f"{shown} is empty, and a prompt has to say something")
    return text


def _read(name: str, folder: Path | None, kind: str, answer_tokens: int) -> Iterator[Prompt]:
    file = _located(name, folder)
    shown = f"prompt {printable(file)}" if isinstance(file, Path) else f"prompt {name}"
    content = read_bytes(file, MAX_FILE_BYTES, shown) if isinstance(file, Path) else file.read_bytes()
    stem = printable(PurePosixPath(name).stem)
    if name.casefold().endswith(".json"):
        yield from _agent(content, shown, stem, kind, answer_tokens)
    else:
        yield _conversation(_text(content, shown), shown, stem, kind, answer_tokens)


def _located(name: str, folder: Path | None) -> Traversable:
    """The file of that name beside the scenario, else the shipped one.

    A scenario may be somebody else's, and what it names goes to a server: so it names nothing outside its folder.
    """
    if folder is not None and exists(folder / name):
        if not (folder / name).resolve().is_relative_to(folder.resolve()):
            raise ProfileError(f"prompts names {printable(name)}, which is outside the scenario's folder")
        return folder / name
    shipped = resources.files("profiler.scenarios") / "prompts"
    names = sorted(entry.name for entry in shipped.iterdir() if entry.name.endswith((".md", ".json")))
    if name not in names:
        raise registry.unknown("prompt", name, names)
    return shipped / name


def _conversation(text: str, shown: str, name: str, kind: str, answer_tokens: int) -> Prompt:
    before, *turns = _TURN.split(text.replace("\r\n", "\n"))
    header = dict(_HEADER.findall(before))
    opening = _HEADER.sub("", before)
    if not turns:
        turns = ["user", opening]
    elif opening.strip():
        raise ProfileError(f"{shown} has text before its first turn")
    written = _Writer(shown)
    messages = tuple(
        {"role": role, "content": written.filled(content).strip()}
        for role, content in zip(turns[::2], turns[1::2], strict=True)
    )
    _check(messages, shown)
    expected = header.get("expected") or written.expected
    return Prompt(name, kind, messages, answer_tokens, header.get("language"), expected)


def _agent(content: bytes, shown: str, name: str, kind: str, answer_tokens: int) -> Iterator[Prompt]:
    try:
        value = json_value(content, BUDGET)
    except BadContent as error:
        raise ProfileError(f"{shown} is not valid JSON: {printable(error)}") from None
    tools, messages = _parts(value, shown)
    written = _Writer(shown)
    history = tuple({**each, "content": written.filled(each.get("content") or "")} for each in messages)
    ends = [place for place, message in enumerate(history) if message["role"] == "assistant" and place]
    if history[-1]["role"] != "assistant":
        ends.append(len(history))
    if not ends:
        raise ProfileError(f"{shown} holds nothing to answer")
    for number, end in enumerate(ends, 1):
        _check(history[:end], shown)
        yield Prompt(
            f"{name}-{number:02}", kind, history[:end], answer_tokens, tools=tools, conversation=name, turn=number
        )


def _parts(value: Any, shown: str) -> tuple[tuple[dict[str, Any], ...], list[Message]]:
    """The tools and messages of an agent's history, with the fields that are read here. Raises ProfileError."""
    tools = value.get("tools", []) if isinstance(value, dict) else None
    messages = value.get("messages") if isinstance(value, dict) else None
    if not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
        raise ProfileError(f'{shown}: "tools" is not a list of objects')
    if not (isinstance(messages, list) and messages):
        raise ProfileError(f'{shown} has no list of "messages"')
    for place, message in enumerate(messages):
        where = f"{shown}: message {place + 1}"
        if not (isinstance(message, dict) and message.get("role") in ROLES and message.keys() <= MESSAGE_KEYS):
            raise ProfileError(f"{where} is not an object with a role of {', '.join(ROLES)}, content and tool calls")
        if not isinstance(message.get("content"), str | None):
            raise ProfileError(f"{where} has a content that is not text")
        calls = message.get("tool_calls", [])
        if not (isinstance(calls, list) and all(isinstance(c, dict) and "function" in c for c in calls)):
            raise ProfileError(f"{where} has tool calls without a function")
    return tuple(tools), messages


def _check(messages: Sequence[Message], shown: str) -> None:
    if messages[-1]["role"] not in ("user", "tool"):
        raise ProfileError(f"{shown} ends with the turn of {messages[-1]['role']}, so there is nothing to answer")
    for message in messages:
        if not (message["content"] or message.get("tool_calls") or message["role"] == "tool"):
            raise ProfileError(f"{shown} has an empty turn of {message['role']}")


class _Writer:
    """Puts documents and their questions into the texts of one file."""

    def __init__(self, shown: str) -> None:
        self.shown = shown
        self.tokens = 0
        self.facts: list[documents.Fact] = []
        self.asked = False

    @property
    def expected(self) -> str | None:
        return "\n".join(fact.answer for fact in self.facts) if self.asked else None

    def filled(self, text: str) -> str:
        self.check(_QUESTIONS.sub("", _DOCUMENT.sub("", text)))
        text = _DOCUMENT.sub(lambda mark: self.document(int(mark[1]), int(mark[2])), text)
        return _QUESTIONS.sub(lambda mark: self.questions(), text)

    def check(self, text: str) -> None:
        """ProfileError for a misspelt instruction: sent as it is, a prompt of 28,000 tokens would have twenty."""
        if left := _MEANT.search(text):
            what = f"{self.shown} has an instruction that cannot be read"
            raise ProfileError(f"{what}: {printable(left[0].strip(), 80)}", FORMS)

    def document(self, seed: int, tokens: int) -> str:
        self.tokens += tokens
        if self.tokens > documents.TOKENS[-1]:
            raise ProfileError(f"{self.shown} asks for documents of more than {documents.TOKENS[-1]:,} tokens")
        found = documents.document(seed, tokens)
        self.facts += found.facts
        return found.text.strip()

    def questions(self) -> str:
        self.asked = True
        return "\n".join(f"{number}. {fact.question}" for number, fact in enumerate(self.facts, 1))
