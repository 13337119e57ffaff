"""Long documents for prompts: the record of an invented project, written from a seed.

A prompt of 128k tokens is half a megabyte that nobody wants to install. Repeated text or random words cannot stand in
for it: caches and speculative decoding gain from repetition, and no tokenizer was made for random words. So a
document is written when it is needed: minutes, letters, field notes and logs of a network of river gauges, by date.
Faults are reported, followed up and closed, no sentence occurs twice, and a few facts occur exactly once, for
questions at the end. The sentences are patterns in ``scenarios/prompts/record.toml``.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from functools import cache
from importlib import resources
from typing import Any

from profiler.errors import ProfileError
from profiler.foreign import toml_value

TOKENS = range(1024, 2**18 + 1)  # shorter ones have no room for the facts
CHARACTERS_PER_TOKEN = 3.8  # the mean of the tokenizers that tests/torch/test_prompts.py counts with
FACTS = 4
PEOPLE, STATIONS = 10, 20
MAX_OPEN_FAULTS = 9  # open at once; then the oldest is closed
START = date(2023, 1, 9)
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)

_CHOICE = re.compile(r"\[([^\[\]]*)\]")
_SLOT = re.compile(r"\{([^{}]+)\}")
_NUMBERS = re.compile(r"(\d+)(?:\.(\d+))?-(\d+)(?:\.\d+)?")


@dataclass(frozen=True, slots=True)
class Fact:
    """Something that a document says once: a question, and the answer in the words of the document."""

    question: str
    answer: str


@dataclass(frozen=True, slots=True)
class Document:
    """A text in Markdown, and the facts in it in the order in which it tells them."""

    text: str
    facts: tuple[Fact, ...]


def document(seed: int, tokens: int) -> Document:
    """The document of a seed, of about ``tokens`` tokens.

    From 2,000 tokens on it keeps to within 10% for tokenizers with a vocabulary of 30,000 entries or more. It is the
    same on every machine and version of Python. Raises ProfileError for a length that is not in ``TOKENS``.
    """
    if tokens not in TOKENS:
        raise ProfileError(f"a document has {TOKENS[0]:,} to {TOKENS[-1]:,} tokens, not {tokens:,}")
    return _Record(seed).written(round(tokens * CHARACTERS_PER_TOKEN))


@cache
def _patterns() -> dict[str, Any]:
    file = resources.files("profiler.scenarios") / "prompts" / "record.toml"
    return toml_value(file.read_text(encoding="utf-8"))


class _Record:
    """One document in the making."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed).random  # the one method whose sequence Python promises to keep
        patterns = _patterns()
        names = patterns["names"]
        self.sentences: Mapping[str, Sequence[str]] = patterns["sentences"]
        firsts, places = self.shuffled(names["first"])[:PEOPLE], self.shuffled(names["station"])[:STATIONS]
        self.full = dict(zip(firsts, self.shuffled(names["last"]), strict=False))
        self.lists: Mapping[str, Sequence[str]] = {
            **patterns["words"],
            "supplier": names["supplier"],
            "station": places[FACTS:],
            "weekday": WEEKDAYS,
            "colleague": firsts,
        }
        # Each fact is about a place of its own, and its answer has a form that nothing else is written in.
        whom = zip(places, self.shuffled(names["outsider"]), strict=False)
        about = [{"station": place, "outsider": who} for place, who in whom]
        chosen = self.shuffled(patterns["fact"])[:FACTS]
        self.facts = [self.fact(pattern, details) for pattern, details in zip(chosen, about, strict=False)]
        self.today = START + timedelta(days=self.below(300))
        self.faults: list[dict[str, str]] = []
        self.said: set[str] = set()
        self.intro = (
            f"# Record of the {self.one(names['river'])} gauges\n\n"
            f"Stations: {', '.join(sorted(places))}.\n"
            f"Team: {', '.join(f'{first} {last}' for first, last in self.full.items())}.\n"
        )

    def written(self, characters: int) -> Document:
        """All of it, to within a sentence of ``characters``."""
        lines, length, told = [self.intro], len(self.intro), 0
        entries: list[Callable[[_Record], Entry]] = []
        while length < characters:
            entries = entries or self.shuffled(ENTRIES)  # all kinds in turn: logs take more tokens than letters
            heading, sentences = entries.pop()(self)
            lines.append(f"\n## {_day(self.today)}: {heading}\n")
            length += len(lines[-1])
            for sentence in sentences:
                if length >= characters:
                    break
                more = [sentence]
                if told < FACTS and length > characters * (told + 0.5) / FACTS:
                    more.insert(0, f"- {self.facts[told][0]}" if sentence.startswith("- ") else self.facts[told][0])
                    told += 1
                lines += more
                length += sum(len(line) + 1 for line in more)
            self.today += timedelta(days=1 + self.below(3))
        return Document("\n".join(lines) + "\n", tuple(fact for _, fact in self.facts))

    def below(self, most: int) -> int:
        return int(self.random() * most)

    def one(self, options: Sequence[Any]) -> Any:
        return options[self.below(len(options))]

    def shuffled(self, options: Sequence[Any]) -> list[Any]:
        left = list(options)
        return [left.pop(self.below(len(left))) for _ in options]

    def fact(self, pattern: Mapping[str, str], details: Mapping[str, str]) -> tuple[str, Fact]:
        """The sentence that tells a fact, and the fact."""
        details = {**details, "answer": self.filled(pattern["answer"], details)}
        question = self.filled(pattern["question"], details)
        return self.filled(pattern["sentence"], details), Fact(question, details["answer"])

    def filled(self, pattern: str, details: Mapping[str, str]) -> str:
        """A text of a pattern; ``details`` go before the lists."""
        while "[" in pattern or "{" in pattern:
            pattern = _CHOICE.sub(lambda choice: self.one(choice[1].split("|")), pattern)
            pattern = _SLOT.sub(lambda slot: details.get(slot[1]) or self.drawn(slot[1]), pattern)
        return pattern

    def drawn(self, slot: str) -> str:
        """An entry of the list of that name, or a number of that range and as many decimals."""
        numbers = _NUMBERS.fullmatch(slot)
        if numbers is None:
            return str(self.one(self.lists[slot]))
        first, last = map(float, slot.split("-"))
        return f"{first + self.random() * (last - first):.{len(numbers[2] or '')}f}"

    def say(self, kind: str, details: Mapping[str, str]) -> str:
        """A sentence that was not said before."""
        while True:
            text = self.filled(self.one(self.sentences[kind]), details)
            text = text[0].upper() + text[1:]
            if text not in self.said:
                self.said.add(text)
                return text

    def on_a_fault(self) -> str:
        """A new fault, news of one, or the end of one."""
        step = self.random()
        if len(self.faults) < 2 or (step < 0.3 and len(self.faults) < MAX_OPEN_FAULTS):
            self.faults.append(
                {name: self.filled(f"{{{name}}}", {}) for name in ("station", "part", "fault", "cause")}
                | {"owner": self.drawn("colleague"), "opened": _day(self.today)}
            )
            return self.say("opened", self.faults[-1])
        if step < 0.7:
            return self.say("updated", self.one(self.faults))
        return self.say("closed", self.faults.pop(0))


Entry = tuple[str, Iterator[str]]  # a heading and the sentences below it


def _minutes(record: _Record) -> Entry:
    chair, reader, *others = record.shuffled(record.lists["colleague"])

    def sentences() -> Iterator[str]:
        for _ in range(5 + record.below(5)):
            if record.random() < 0.45:
                yield f"- {record.on_a_fault()}"
            else:
                yield f"- {record.say('talk', {'reader': reader, 'colleague': record.one(others)})}"

    return f"minutes, {record.full[chair]} in the chair", sentences()


def _letter(record: _Record) -> Entry:
    writer, reader, *others = record.shuffled(record.lists["colleague"])
    details = {"writer": writer, "reader": reader}

    def sentences() -> Iterator[str]:
        yield record.filled(record.one(record.sentences["greeting"]), details) + "\n"
        for _ in range(3 + record.below(5)):
            if record.random() < 0.25:
                yield record.on_a_fault()
            else:
                yield record.say("mail", {**details, "colleague": record.one(others)})
        yield "\n" + record.filled(record.one(record.sentences["farewell"]), details)

    return f"{writer} {record.full[writer]} to {reader} {record.full[reader]}", sentences()


def _field(record: _Record) -> Entry:
    who, *others = record.shuffled(record.lists["colleague"])
    details = {"station": record.drawn("station"), "part": record.filled("{part}", {})}
    return f"field notes, {who} {record.full[who]}", _timed(record, "field", details, others)


def _log(record: _Record) -> Entry:
    return "from the log of the night desk", _timed(record, "log", {}, record.lists["colleague"])


def _timed(record: _Record, kind: str, details: Mapping[str, str], others: Sequence[str]) -> Iterator[str]:
    """Sentences with the time of day in front, in which ``others`` may occur."""
    minute = 300 + record.below(400)
    for _ in range(4 + record.below(4)):
        minute += 3 + record.below(70)
        hour = f"{minute // 60:02}:{minute % 60:02}"
        yield "- " + record.say(kind, {**details, "hour": hour, "colleague": record.one(others)})


ENTRIES: tuple[Callable[[_Record], Entry], ...] = (_minutes, _minutes, _letter, _letter, _letter, _field, _log)


def _day(when: date) -> str:
    return f"{when.day} {MONTHS[when.month - 1]} {when.year}"
