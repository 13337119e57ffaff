"""``profile endpoint --keep FOLDER``: the answers as JSON lines, and one page that shows those of all models.

``answers-DATE-TIME.jsonl`` has an object for each answer of one run. ``answers.html`` is made anew after every run
from all such files in the folder, so that runs on two servers give one page: prompts are rows, models are columns.

Answers are hostile input. All text is escaped. An answer that is an HTML page is shown in a frame whose sandbox
allows nothing, with a content security policy of its own beside the page's, both of which forbid scripts and every
request. Policies do not cover connections that a browser makes in advance, so some elements are made inert as well.
"""

from __future__ import annotations

import hashlib
import json
import re
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from profiler import files
from profiler.backends.endpoint import Exchange, figures
from profiler.backends.endpoint.servers import SEED, TEMPERATURE
from profiler.errors import ProfileError
from profiler.foreign import open_file
from profiler.quality.checkers import HTML, fenced, judged_markup
from profiler.results import tasks
from profiler.results.measurement import TaskVerdict
from profiler.run.endpoint import EndpointResult
from profiler.run.prompts import OWN, EndpointPrompt, Verdict, judged
from profiler.show.report.blocks import Head, Listing, PageBlock, Table
from profiler.show.writers import html
from profiler.show.writers.html import POLICY, escaped
from profiler.units import UNKNOWN, printable, rate_text, seconds_text

SCHEMA = 1
PAGE = "answers.html"
MAX_FILES = 1000
MAX_LINE_BYTES = 1 << 26  # an answer has at most 8 million characters
MAX_MODELS, MAX_PROMPTS = 50, 1000  # on the page
MAX_ANSWER_CHARACTERS = 200_000  # of an answer on the page
MAX_PAGE_CHARACTERS = 24_000_000  # of all answers on the page: a browser takes seconds for more
PROMPT_SHOWN = 20_000  # characters of a prompt that are kept with each of its answers

_DOCUMENT = re.compile(  # also a part of one, without a head
    r"\s*(?:<!--.{0,500}?-->\s*)?<(?:!doctype\s+html|(?:html|head|body|header|main|nav|section|div|style|h1)[\s>])",
    re.IGNORECASE | re.DOTALL,
)
# A link within the document may stay, where it is certain that it is one: no attribute before it leads elsewhere.
_WITHIN = r"(?:\s+(?!href)[a-z-]+=\"[^\"<>]*\")*\s+href=\"#[\w-]*\"[\s>]"
_TAG = re.compile(rf"<(link|meta|iframe|animate|set|area|a(?!{_WITHIN}))(?=[\s/>])", re.IGNORECASE)
_INERT = {  # of two attributes of one name, the first counts (HTML, section 13.2.5.33)
    "link": "rel=none",  # preconnect
    "meta": "http-equiv=none",  # refresh
    "iframe": "srcdoc=none sandbox=none",  # whose content may be encoded, so that nothing in it is found here
    "a": "href=#none",  # Chromium connects to the host when a link is pressed, before any policy
    "area": "href=#none",
    "animate": "attributename=none",  # href, for example
    "set": "attributename=none",
}
_HOST = re.compile(
    r"(?:<(?:script|link|img|source|video|audio|iframe|image|use|object|embed)\b[^<>]{0,300}?\b(?:src|href|data)\s*=\s*"
    r"|url\(\s*|@import\s+)[\"']?\s*(?:https?:)?//([\w.-]{1,80})",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class AnswerSettings:
    """What the server was asked for. ``None``: it refuses the field, or says nothing of it."""

    max_tokens: int
    temperature: float | None
    seed: int | None
    context: int | None  # tokens, as the model is loaded
    streams: int  # requests at a time
    cached: bool  # the same prompt repeatedly


@dataclass(frozen=True, slots=True)
class AnswerFigures:
    """Figures of one request; unknown is ``None``."""

    ttft_s: float | None
    ttft_answer_s: float | None
    prefill_tps: float | None
    decode_tps: float | None
    characters_per_s: float | None
    e2e_s: float
    prompt_tokens: int | None
    output_tokens: int | None
    reasoning_tokens: int | None


@dataclass(frozen=True, slots=True)
class KeptAnswer:
    """A line of a file: one answer, and all that is needed to ask for it again."""

    schema: int
    at: str  # the end of its case, UTC
    server: str
    url: str
    model: str
    model_id: str  # as requests name it
    quant: str | None
    scenario: str | None
    prompt: str
    prompt_sha256: str | None  # of the messages as JSON, without the unique beginning; None: varied text
    prompt_text: str | None
    language: str | None
    settings: AnswerSettings
    number: int  # of the request in its case
    finish: str | None
    reasoning: str
    answer: str
    failure: str | None
    figures: AnswerFigures
    expected: str | None = None
    verdict: Verdict | None = None
    task: TaskVerdict | None = None  # how a task of --tasks ended; None: it is none
    reason: str | None = None  # why it was not passed


_READER = msgspec.json.Decoder(KeptAnswer)


def kept(result: EndpointResult) -> list[KeptAnswer]:
    """The answers of a result, each with the prompt that it was sent."""
    if not result.tasks:
        return [_kept(result, result.prompt, each, number) for number, each in enumerate(result.exchanges, start=1)]
    pairs = zip(result.tasks, result.exchanges, strict=True)
    return [replace(_kept(result, t.prompt, e, 1), task=t.outcome, reason=t.reason) for t, e in pairs]


def _kept(result: EndpointResult, prompt: EndpointPrompt, each: Exchange, number: int) -> KeptAnswer:
    written, dropped = prompt.written, result.warm_up.dropped if result.warm_up else ()
    settings = AnswerSettings(
        max_tokens=result.asked_tokens,
        temperature=None if "temperature" in dropped else TEMPERATURE,
        seed=None if "seed" in dropped else SEED,
        context=result.model.context,
        streams=result.streams,
        cached=result.cached,
    )
    now = datetime.now(UTC).isoformat(timespec="seconds")
    messages = written and json.dumps([written.messages, written.tools], ensure_ascii=False, sort_keys=True)
    text = None if written is None else _encodable(written.text)
    return KeptAnswer(
        schema=SCHEMA,
        at=now,
        server=result.server.title,
        url=result.server.root,
        model=result.model.shown,
        model_id=result.model.name,
        quant=result.model.quant,
        scenario=written.kind if written and written.kind != OWN else None,
        prompt=prompt.name,
        prompt_sha256=hashlib.sha256(messages.encode("utf-8", "replace")).hexdigest() if messages else None,
        prompt_text=text if text is not None and len(text) <= PROMPT_SHOWN else None,
        language=written.language if written else None,
        settings=settings,
        number=number,
        finish=each.finish and _encodable(each.finish),
        reasoning=_encodable(each.reasoning),
        answer=_encodable(each.answer),
        failure=None if each.failure is None else each.failure.words,
        figures=_figures(each, result.cached or prompt.may_be_cached),
        expected=written.expected if written else None,
        verdict=judged(written, each.answer) if written and each.failure is None else None,
    )


def verdict_text(counts: Counter[Verdict], expected: str | None) -> str:
    """``2 of 5 right, 1 wrong, 2 without an answer; expected: 350``."""
    parts = [f"{counts['right']} of {counts.total()} right"]
    parts += [f"{counts['wrong']} wrong"] if counts["wrong"] else []
    parts += [f"{counts['none']} without an answer"] if counts["none"] else []
    return f"{', '.join(parts)}; expected: {printable(expected or UNKNOWN, 120)}"


class AnswerFolder:
    """The folder of ``--keep``: ``add`` appends the answers of a result, ``finish`` makes the page."""

    def __init__(self, folder: Path) -> None:
        """Raises ProfileError if nothing can be written there, before anything is measured."""
        files.make_folder(folder)
        files.check(folder / PAGE)
        self._folder = folder
        self._file: files.GrowingFile | None = None

    def add(self, result: EndpointResult) -> None:
        """Raises ProfileError, as for a full disk."""
        if self._file is None:
            self._file = files.GrowingFile(self._folder, f"answers-{time.strftime('%y%m%d-%H%M%S')}", ".jsonl")
        self._file.append(b"".join(msgspec.json.encode(each) + b"\n" for each in kept(result)))

    def finish(self) -> Path | None:
        """The page, made anew; None if nothing was added. Raises ProfileError."""
        if self._file is None:
            return None
        self._file.close()
        files.write(self._folder / PAGE, page(self._folder))
        return self._folder / PAGE


def _figures(exchange: Exchange, cached: bool) -> AnswerFigures:
    own = figures(exchange, cached)
    return AnswerFigures(
        own.ttft_s,
        own.ttft_answer_s,
        own.prefill_tps,
        own.decode_tps,
        own.characters_per_s,
        own.e2e_s,
        own.prompt_tokens,
        own.output_tokens,
        exchange.usage.reasoning,
    )


def _encodable(text: str) -> str:
    """Without halves of characters, which JSON can state and UTF-8 cannot."""
    return text.encode("utf-8", "replace").decode()


# The page

Model = tuple[str, str | None, str]  # name, quantization, server
PromptKey = tuple[str | None, str, str | None]  # scenario, name, hash


@dataclass(slots=True)
class _Shown:
    """The answers of one model to one prompt in the newest file that has any."""

    file: str
    first: KeptAnswer  # the one to show: of the fewest streams, and one that succeeded
    count: int = 1
    verdicts: Counter[Verdict] = field(default_factory=Counter)

    def add(self, answer: KeptAnswer) -> None:
        self.count += 1
        if _order(answer) < _order(self.first):
            self.first = answer


def _order(answer: KeptAnswer) -> tuple[bool, int, int]:
    return answer.failure is not None, answer.settings.streams, answer.number


@dataclass(slots=True)
class _Collection:
    """What a folder holds."""

    prompts: dict[PromptKey, dict[Model, _Shown]] = field(default_factory=dict)
    models: list[Model] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)  # by reason

    def add(self, file: str, answer: KeptAnswer) -> None:
        model = (answer.model, answer.quant, answer.server)
        prompt = (answer.scenario, answer.prompt, answer.prompt_sha256)
        if model not in self.models and len(self.models) >= MAX_MODELS:
            self.left_out[f"answers of more than {MAX_MODELS} models"] += 1
            return
        if prompt not in self.prompts and len(self.prompts) >= MAX_PROMPTS:
            self.left_out[f"answers to more than {MAX_PROMPTS:,} prompts"] += 1
            return
        if model not in self.models:
            self.models.append(model)
        answers = self.prompts.setdefault(prompt, {})
        if model in answers and answers[model].file == file:
            answers[model].add(answer)
        else:
            answers[model] = _Shown(file, answer)
        if answer.verdict is not None:
            answers[model].verdicts[answer.verdict] += 1


def collected(folder: Path) -> _Collection:
    """The answers in the files of ``folder``, older files first. What cannot be read is counted and left out."""
    found = _Collection()
    paths = sorted(folder.glob("answers-*.jsonl"), key=lambda path: path.name)
    if len(paths) > MAX_FILES:
        found.left_out[f"files before the newest {MAX_FILES:,}"] += len(paths) - MAX_FILES
    for file in paths[-MAX_FILES:]:
        try:
            with open_file(file) as opened:
                while line := opened.readline(MAX_LINE_BYTES + 1):
                    if len(line) > MAX_LINE_BYTES:
                        found.left_out["files with a line that is too long"] += 1
                        break
                    _read(line, file.name, found)
        except (ProfileError, OSError):
            found.left_out["files that cannot be read"] += 1
    return found


def _read(line: bytes, file: str, found: _Collection) -> None:
    try:
        answer = _READER.decode(line)
    except (msgspec.DecodeError, ValueError, RecursionError):
        found.left_out["lines that are no answers, or those of another version"] += 1
        return
    found.add(file, replace(answer, answer=_cut(answer.answer), reasoning=_cut(answer.reasoning)))


def _cut(text: str) -> str:
    return (
        text
        if len(text) <= MAX_ANSWER_CHARACTERS
        else f"{text[:MAX_ANSWER_CHARACTERS]}\n… (cut: {len(text):,} characters)"
    )


def page(folder: Path) -> str:
    """The page of all answers in ``folder``, as HTML."""
    found = collected(folder)
    numbers = range(1, len(found.prompts) + 1)
    names = [prompt for _, prompt, _ in found.prompts]
    links = [(f"prompt-{number}", printable(name, 60)) for number, name in zip(numbers, names, strict=True)]
    counts = ((len(found.prompts), "prompt"), (len(found.models), "model"))
    summary = [f"{count:,} {name}{'s' * (count != 1)}" for count, name in counts]
    summary.append("HTML answers are shown without scripts, and without what they load from other hosts")
    size = 0
    sections = []
    for (anchor, name), (prompt, answers) in zip(links, found.prompts.items(), strict=True):
        articles = []
        for model in found.models:
            if model not in answers:
                continue
            article = _article(f"{anchor}-{found.models.index(model) + 1}", model, answers[model], whole=True)
            if size + len(article) > MAX_PAGE_CHARACTERS:
                article = _article("", model, answers[model], whole=False)
            size += len(article)
            articles.append(article)
        heading = f"{escaped(printable(prompt[0], 60))}: {escaped(name)}" if prompt[0] else escaped(name)
        asked = _folded("Prompt", next(iter(answers.values())).first.prompt_text or "")
        sections.append(
            f'<section id="{anchor}">\n<h2>{heading}</h2>\n{asked}'
            f'<div class="answers">\n{"".join(articles)}</div>\n</section>'
        )
    top = f'<section id="models">\n<h2>Models</h2>\n{"".join(map(html.block_html, _overview(found)))}\n</section>\n'
    return html.wrapped("Answers", summary, [("models", "Models"), *links], top + "\n".join(sections), "broad")


def _overview(found: _Collection) -> Iterator[PageBlock]:
    """The models and their figures over all prompts, and what was left out."""
    judged_any = any(each.verdicts for answers in found.prompts.values() for each in answers.values())
    tasks_any = any(each.first.task for answers in found.prompts.values() for each in answers.values())
    more = ("right",) * judged_any + ("tasks passed",) * tasks_any
    heads = ("model", "quantization", "server", "prompts", *more, "TTFT", "decode", "chars/s")
    rows = []
    for model in found.models:
        shown = [answers[model] for answers in found.prompts.values() if model in answers]
        of_all = [each.first.figures for each in shown if each.first.failure is None]
        counts: Counter[Verdict] = sum((each.verdicts for each in shown), Counter())
        rows.append(
            (
                printable(model[0], 60),
                printable(model[1] or UNKNOWN, 20),
                printable(model[2], 40),
                str(len(shown)),
                *([f"{counts['right']} of {counts.total()}" if counts else UNKNOWN] if judged_any else []),
                *([_tasks_text(each.first.task for each in shown)] if tasks_any else []),
                _median((each.ttft_s for each in of_all), seconds_text),
                _median((each.decode_tps for each in of_all), rate_text),
                _median((each.characters_per_s for each in of_all), rate_text),
            )
        )
    caption = "Medians over the answers on this page; decode in tokens/s"
    columns = tuple(Head(head, right=head not in ("model", "quantization", "server")) for head in heads)
    yield Table(columns, tuple(rows), caption)
    if found.left_out:
        yield Listing(tuple(f"left out: {count:,} {reason}" for reason, count in found.left_out.items()))


def _tasks_text(outcomes: Iterable[TaskVerdict | None]) -> str:
    """``31 of 50: 62% (48–74)``."""
    found = tasks.score(each for each in outcomes if each is not None)
    return f"{found.passed} of {found.answered}: {tasks.rate_text(found)}" if found.answered else UNKNOWN


def _median(values: Iterable[float | None], text: Callable[[float], str]) -> str:
    known = [value for value in values if value is not None]
    return text(statistics.median(known)) if known else UNKNOWN


def _article(anchor: str, model: Model, shown: _Shown, whole: bool) -> str:
    """One answer with its figures. ``whole``: with its text."""
    answer = shown.first
    title = " · ".join(escaped(printable(part, 60)) for part in model[:2] if part)
    facts = [model[2], *_facts(answer)] + ([f"the first of {shown.count} answers"] if shown.count > 1 else [])
    parts = [f"<h3>{title}</h3>", f'<p class="muted">{escaped(printable(" · ".join(facts), 400))}</p>']
    if shown.verdicts:
        parts.append(f"<p>{escaped(verdict_text(shown.verdicts, answer.expected))}</p>")
    if answer.task is not None:
        why = f": {answer.reason}" if answer.reason else ""
        parts.append(f"<p><strong>{escaped(answer.task)}</strong>{escaped(printable(why, 400))}</p>")
    elif answer.failure is not None:
        parts.append(f"<p>failed: {escaped(printable(answer.failure, 400))}</p>")
    if not whole:
        parts.append(f'<p class="muted">The page has no room for this answer. It is in {escaped(shown.file)}.</p>')
    else:
        parts += [_folded("Reasoning", answer.reasoning), _content(answer, anchor, title)]
    return (
        f'<article id="{anchor}">\n{"".join(parts)}\n</article>\n'
        if anchor
        else f"<article>{''.join(parts)}</article>\n"
    )


def _facts(answer: KeptAnswer) -> Iterator[str]:
    own, settings = answer.figures, answer.settings
    if own.ttft_s is not None:
        yield f"TTFT {seconds_text(own.ttft_s)}"
    if own.decode_tps is not None:
        yield f"{rate_text(own.decode_tps)} tokens/s"
    if own.characters_per_s is not None:
        yield f"{rate_text(own.characters_per_s)} characters/s"
    if own.output_tokens is not None:
        yield f"{own.output_tokens:,} tokens in {seconds_text(own.e2e_s)}"
    if answer.finish == "length":
        yield f"cut at {settings.max_tokens:,} tokens"
    if settings.streams > 1:
        yield f"{settings.streams} requests at a time"
    yield "greedy" if settings.temperature == 0 else "temperature unknown"


def _content(answer: KeptAnswer, anchor: str, title: str) -> str:
    document = html_answer(answer.answer, answer.task is not None)
    if document is None:
        language = f' lang="{escaped(printable(answer.language, 20))}"' if answer.language else ""
        return f'<pre dir="auto"{language}>{escaped(answer.answer)}</pre>' if answer.answer else "<p>no answer</p>"
    hosts = list(dict.fromkeys(host.lower() for host in _HOST.findall(document)))
    blocked = (
        f"It would load from {', '.join(hosts[:3])}, which is blocked, so styles may be missing." if hosts else ""
    )
    section = anchor.rpartition("-")[0]
    links = f'<a class="more" href="#{anchor}">Enlarge</a><a class="less" href="#{section}">Side by side</a>'
    note = f'<p class="muted">{escaped(blocked)} {links}</p>'
    frame = f'<iframe sandbox="" loading="lazy" title="{title}" srcdoc="{escaped(framed(document))}"></iframe>'
    return f"{frame}{note}{_folded('Source', answer.answer)}"


def _folded(title: str, text: str) -> str:
    if not text:
        return ""
    summary = f"{title} ({len(text):,} characters)"
    return f'<details><summary>{summary}</summary><pre dir="auto">{escaped(text)}</pre></details>'


def html_answer(answer: str, judged: bool = False) -> str | None:
    """The HTML page that an answer is, bare or as its longest fenced block; None for any other text.

    ``judged``: the answer is that of a task, whose verdict is about its last block.
    """
    found = [text for word, text in fenced(answer) if word in HTML or (not word and _DOCUMENT.match(text))]
    if judged:
        text = judged_markup(answer)
        return text if text in found or _DOCUMENT.match(text) else None
    return max(found, key=len) if found else answer if _DOCUMENT.match(answer) else None


def framed(document: str) -> str:
    """``document`` as the content of a frame that makes no request and runs no script, whatever is in it."""
    inert = _TAG.sub(lambda tag: f"<{tag[1]} {_INERT[tag[1].lower()]} ", document)
    policy = f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
    return f'<!doctype html>{policy}<meta http-equiv="x-dns-prefetch-control" content="off">{inert}'
