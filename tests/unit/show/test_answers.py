"""The kept answers and their page: what is in it, how large it gets, and that a hostile answer reaches nobody."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import msgspec
import pytest
from fakes import browser

from profiler.show import answers
from profiler.show.answers import AnswerFigures, AnswerSettings, KeptAnswer, framed, html_answer
from profiler.show.writers import html

DOCUMENT = "<!doctype html>\n<html><body><h1>Bread</h1></body></html>"
ANSWER = KeptAnswer(
    schema=answers.SCHEMA,
    at="2026-11-29T10:00:00+00:00",
    server="llama-server b1",
    url="http://localhost:8080",
    model="gemma.gguf",
    model_id="/models/gemma.gguf",
    quant="Q4_K_M",
    scenario="frontend-landing-page",
    prompt="landing-page",
    prompt_sha256="ab" * 32,
    prompt_text="Build a page.",
    language=None,
    settings=AnswerSettings(512, 0, 0, 8192, 1, False),
    number=1,
    finish="stop",
    reasoning="",
    answer="Some bread.",
    failure=None,
    figures=AnswerFigures(0.5, 0.5, 1000.0, 50.0, 200.0, 2.5, 500, 100, None),
)


class Reader(HTMLParser):
    """Elements with their attributes in order, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self._parts: list[str] = []
        self.feed(text)
        self.close()
        self.text = "".join(self._parts)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        self._parts.append(data)

    def named(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture
def keep(tmp_path: Path) -> Callable[..., Reader]:
    """Keeps answers in a file of that name, and gives the page."""

    def write(*found: KeptAnswer, name: str = "answers-261129-100000.jsonl") -> Reader:
        (tmp_path / name).write_bytes(b"".join(msgspec.json.encode(each) + b"\n" for each in found))
        return Reader(answers.page(tmp_path))

    return write


OTHER = replace(ANSWER, model="smollm2.gguf", quant="Q4_1", answer="More bread.")


def test_prompts_are_rows_and_models_are_columns_with_their_figures(keep: Callable[..., Reader]) -> None:
    second = replace(ANSWER, prompt="other", figures=replace(ANSWER.figures, decode_tps=70.0))
    page = keep(ANSWER, second, OTHER)
    assert [each["id"] for each in page.named("section")] == ["models", "prompt-1", "prompt-2"]
    assert [each["id"] for each in page.named("article")] == ["prompt-1-1", "prompt-1-2", "prompt-2-1"]
    assert "TTFT 500 ms · 50.0 tokens/s · 200 characters/s · 100 tokens in 2.50 s · greedy" in page.text
    assert "60.0" in page.text  # the median of 50 and 70
    assert "Some bread." in page.text and "More bread." in page.text and "Build a page." in page.text


def test_a_second_run_joins_the_page_and_a_newer_answer_replaces_an_older_one(keep: Callable[..., Reader]) -> None:
    keep(ANSWER)
    page = keep(OTHER, replace(ANSWER, answer="Better bread."), name="answers-261129-110000.jsonl")
    assert len(page.named("article")) == 2
    assert "Better bread." in page.text and "Some bread." not in page.text


def test_of_several_answers_the_first_that_succeeded_alone_is_shown(keep: Callable[..., Reader]) -> None:
    crowded = replace(ANSWER, settings=replace(ANSWER.settings, streams=4), answer="crowded")
    failed = replace(ANSWER, failure="HTTP 500", answer="")
    page = keep(
        crowded, failed, replace(ANSWER, number=2, answer="second"), replace(ANSWER, number=3, answer="third")
    )
    assert "second" in page.text and "third" not in page.text and "crowded" not in page.text
    assert "the first of 4 answers" in page.text
    assert "failed: HTTP 500" in keep(failed).text


def test_right_answers_are_counted_with_what_was_expected(keep: Callable[..., Reader]) -> None:
    right, wrong = (replace(ANSWER, expected="350", verdict=verdict) for verdict in ("right", "wrong"))
    page = keep(right, wrong, replace(wrong, verdict="none"))
    assert "1 of 3 right, 1 wrong, 1 without an answer; expected: 350" in page.text
    assert "1 of 3" in page.text


@pytest.mark.parametrize(
    ("answer", "document"),
    [
        (DOCUMENT, DOCUMENT),
        (f"  <!-- made by a model -->\n{DOCUMENT}", f"  <!-- made by a model -->\n{DOCUMENT}"),
        (f"Here it is:\n\n```html\n{DOCUMENT}\n```\nEnjoy.", f"{DOCUMENT}\n"),
        (f"```HTML\n{DOCUMENT}", DOCUMENT),  # cut
        (f"```\n{DOCUMENT}\n```", f"{DOCUMENT}\n"),
        ("```html\n<p>a\n```\n```html\n<p>longer\n```", "<p>longer\n"),
        ("~~~~html\n```\n<p>\n~~~~", "```\n<p>\n"),
        ("# Bread\n\n```python\nprint('<html>')\n```", None),
        ('```\n<div class="header">\n```', '<div class="header">\n'),
        ("<section>\n<h2>Bread</h2>", "<section>\n<h2>Bread</h2>"),
        ("<think>so</think>", None),
        ("The tag <html> begins a page.", None),
        ("", None),
    ],
)
def test_html_is_found_bare_and_fenced(answer: str, document: str | None) -> None:
    assert html_answer(answer) == document


@pytest.mark.parametrize(
    ("answer", "document"),
    [
        ("```html\n<p>a long draft\n```\nFinally:\n```html\n<p>a\n```", "<p>a\n"),
        (DOCUMENT, DOCUMENT),
        ("```html\n<p>a\n```\nOpen it:\n```sh\nfirefox page.html\n```", "<p>a\n"),
        ("```html\n<p>a\n```\n```\nfirefox <page>\n```", None),  # whatever it is, it was judged
        ("```python\nprint(1 < 2)\n```", None),
    ],
)
def test_the_frame_of_a_task_shows_what_was_judged(
    answer: str, document: str | None, keep: Callable[..., Reader]
) -> None:
    assert html_answer(answer, judged=True) == document
    frames = [each["srcdoc"] for each in keep(replace(ANSWER, answer=answer, task="passed")).named("iframe")]
    assert frames == ([] if document is None else [framed(document)])


def test_html_is_a_frame_that_may_do_nothing_beside_its_source(keep: Callable[..., Reader]) -> None:
    page = keep(replace(ANSWER, answer=f"```html\n{DOCUMENT}\n```"))
    (frame,) = page.named("iframe")
    assert frame["sandbox"] == ""
    assert frame["srcdoc"].startswith(
        f'<!doctype html><meta http-equiv="Content-Security-Policy" content="{html.POLICY}">'
    )
    assert "<h1>Bread</h1>" in frame["srcdoc"]
    assert "<h1>Bread</h1>" in page.text  # as source
    assert len(page.named("h1")) == 1
    assert keep(replace(ANSWER, answer="# Bread")).named("iframe") == []


def test_what_a_frame_does_not_load_is_said(keep: Callable[..., Reader]) -> None:
    document = DOCUMENT.replace("<body>", '<script src="https://cdn.tailwindcss.com"></script><body>')
    page = keep(replace(ANSWER, answer=document))
    assert "It would load from cdn.tailwindcss.com, which is blocked" in page.text
    assert "blocked" not in keep(replace(ANSWER, answer=DOCUMENT)).text.replace("which is blocked", "")


HOSTILE = (
    "</iframe></pre></article><script>evil()</script>\"><img src=x onerror=evil()>' srcdoc='<script>evil()</script>\n"
    '<meta http-equiv=refresh content="0;url=http://evil.example/"><svg onload=evil()><style>*{display:none}</style>'
    "&quot;&lt;"
)


@pytest.mark.parametrize("as_page", [False, True])
def test_no_text_of_an_answer_becomes_an_element_of_the_page(keep: Callable[..., Reader], as_page: bool) -> None:
    names = ("model", "server", "quant", "scenario", "prompt", "prompt_text", "language", "reasoning", "failure")
    more: dict[str, Any] = dict.fromkeys((*names, "expected", "finish"), HOSTILE)
    answer = f"<!doctype html>{HOSTILE}" if as_page else HOSTILE
    hostile = replace(ANSWER, **more, verdict="wrong", answer=answer)
    plain = keep(
        replace(ANSWER, answer=DOCUMENT if as_page else "text", reasoning="text", language="el", verdict="wrong")
    )
    page = keep(hostile)
    kinds = {name for name, _ in page.elements}
    assert kinds <= {name for name, _ in plain.elements} | {"details", "summary"}
    assert not [key for _, attributes in page.elements for key in attributes if key.startswith("on")]
    assert len(page.named("style")) == 1
    assert HOSTILE.splitlines()[0] in page.text  # it is all there to read


@pytest.mark.parametrize(
    ("tag", "inert"),
    [
        ("<link rel=preconnect href=//evil>", "<link rel=none  rel=preconnect href=//evil>"),
        ("<LINK/rel=preconnect>", "<LINK rel=none /rel=preconnect>"),
        ('<meta http-equiv="refresh">', '<meta http-equiv=none  http-equiv="refresh">'),
        ('<iframe srcdoc="&lt;link>">', '<iframe srcdoc=none sandbox=none  srcdoc="&lt;link>">'),
        ('<a href="http://evil">', '<a href=#none  href="http://evil">'),
        ('<a class="big" href="#bread">', '<a class="big" href="#bread">'),
        ('<a title="href=#a" HREF="//evil" href="#a">', '<a href=#none  title="href=#a" HREF="//evil" href="#a">'),
        ('<a/href="//evil" href="#a">', '<a href=#none /href="//evil" href="#a">'),
        ('<a href="#a"href="//evil">', '<a href=#none  href="#a"href="//evil">'),
        ("<article><links><address>", "<article><links><address>"),
    ],
)
def test_what_policies_do_not_cover_is_inert(tag: str, inert: str) -> None:
    assert framed(tag).endswith(f">{inert}")


def test_an_answer_of_a_megabyte_and_five_hundred_answers_are_a_page_that_opens(tmp_path: Path) -> None:
    large, small = DOCUMENT + "<p>bread" * 131072, DOCUMENT + "<p>bread" * 8192
    with (tmp_path / "answers-261129-100000.jsonl").open("wb") as file:
        for number in range(500):
            found = replace(ANSWER, answer=large if number < 4 else small, prompt=f"page-{number}")
            file.write(msgspec.json.encode(found) + b"\n")
    text = answers.page(tmp_path)
    assert len(text) < answers.MAX_PAGE_CHARACTERS + 1_000_000
    assert text.count("<article") == 500
    assert 50 < text.count("<iframe") < 500
    assert "The page has no room for this answer. It is in answers-261129-100000.jsonl." in text
    assert text.count(f"(cut: {len(large):,} characters)") == 4 * 2  # framed, and as source


@pytest.mark.parametrize(
    "part",
    ["```html\n", "~~~\n ", "<a " + " " * 99, "<!--", "<img ", "<img" + " src" * 80, '<a b="', "@import ", " "],
)
def test_no_answer_takes_long_to_show(part: str) -> None:
    text = "<html>" + part * (answers.MAX_ANSWER_CHARACTERS // len(part))
    start = time.process_time()
    answers._content(replace(ANSWER, answer=text), "a", "title")
    assert time.process_time() - start < 1.0


def test_what_is_no_answer_is_counted_and_left_out(tmp_path: Path, keep: Callable[..., Reader]) -> None:
    good = msgspec.json.encode(ANSWER)
    old = json.dumps({"server": "x", "model": "y", "answer": "z"}).encode()
    (tmp_path / "answers-261129-090000.jsonl").write_bytes(b"\n".join((old, b"{", b"[" * 100_000, b"\xff", good)))
    (tmp_path / "answers-261129-090001.jsonl").mkdir()
    page = keep(OTHER)
    assert len(page.named("article")) == 2
    assert "left out: 4 lines that are no answers, or those of another version" in page.text
    assert "left out: 1 files that cannot be read" in page.text


def test_an_empty_folder_is_a_page_too(tmp_path: Path) -> None:
    assert "0 prompts" in Reader(answers.page(tmp_path)).text


VECTORS = {
    "img": '<img src="{url}img"><img srcset="{url}srcset 1x">',
    "script": '<script src="{url}script"></script><script>fetch("{url}fetch")</script>',
    "event": "<img src=x onerror=\"fetch('{url}onerror')\"><svg onload=\"fetch('{url}onload')\">",
    "refresh": '<meta http-equiv="refresh" content="0;url={url}refresh">',
    "links": '<link rel="stylesheet" href="{url}sheet"><link rel="icon" href="{url}icon">',
    "preconnect": '<link rel="preconnect" href="{url}"><LINK/REL="preconnect"/HREF="{url}">',
    "prefetch": '<link rel="prefetch" href="{url}prefetch"><link rel="modulepreload" href="{url}module">',
    "css": '<style>@import "{url}import"; @font-face {{ font-family: x; src: url("{url}font") }} '
    "p {{ font-family: x; background: url({url}background) }}</style><p style=\"cursor: url('{url}inline')\">x</p>",
    "nested": "<iframe srcdoc=\"&lt;link rel=preconnect href={url}>&lt;img src={url}nested>\"></iframe>",
    "frames": '<iframe src="{url}iframe"></iframe><object data="{url}object"></object><embed src="{url}embed">',
    "media": '<video autoplay poster="{url}poster" src="{url}video"></video><audio autoplay src="{url}sound">',
    "svg": '<svg><image href="{url}svg"/><use href="{url}use#x"/></svg>',
    "base": '<base href="{url}"><img src="based">',
    "breakout": "</iframe><img src='{url}out'>\"><img src=\"{url}quote\">' onload='fetch(\"{url}attribute\")'",
    "click": '<a href="{url}link" style="position:fixed;inset:0">a</a>',
    "popup": '<a href="{url}popup" target="_blank" style="position:fixed;inset:0">a</a>',
    "top": '<a href="{url}top" target="_top" ping="{url}ping" style="position:fixed;inset:0">a</a>',
    "animated": '<svg style="position:fixed;inset:0"><a href="#x"><set attributeName="href" to="{url}set"/>'
    '<animate attributeName="href" values="{url}animated" dur="9s"/><rect width="999" height="999"/></a></svg>',
    "linked": '<svg style="position:fixed;inset:0"><a xlink:href="{url}svga">'
    '<rect width="999" height="999"/></a></svg>',
    "math": '<math href="{url}math" style="position:fixed;inset:0"><mtext href="{url}mtext">aaaaaaaaa</mtext></math>',
    "form": '<form action="{url}form"><button style="position:fixed;inset:0">a</button></form>',
}  # fmt: skip
CLICKED = ("click", "popup", "top", "animated", "linked", "math", "form")
LOADED = ("img", "sheet", "import", "background", "svg", "poster", "iframe", "link")  # without protection


@pytest.fixture
def chromium() -> None:
    if browser.program() is None:
        pytest.skip("no Chromium is installed")


def seen(folder: Path, wanted: Sequence[str] = ()) -> list[str]:
    """What the listener sees of a browser that shows an answer of each kind, and clicks into some.

    For four seconds, and for longer if not all of ``wanted`` was asked for by then.
    """
    with browser.Listener() as listener:
        url = f"http://127.0.0.1:{listener.port}/"
        found = [
            replace(ANSWER, prompt=name, answer=f"<!doctype html><body>{text.format(url=url)}</body>")
            for name, text in VECTORS.items()
        ]
        lines = b"".join(msgspec.json.encode(each) + b"\n" for each in found)
        (folder / "answers-261129-100000.jsonl").write_bytes(lines)
        page = folder / "answers.html"
        page.write_text(answers.page(folder).replace('loading="lazy"', ""))
        clicks = [f"#prompt-{list(VECTORS).index(name) + 1} iframe" for name in CLICKED]
        browser.visit(page.as_uri(), clicks, size=(1200, 18_000), seconds=4)
        for _ in range(2):
            if missing(listener.seen, wanted):
                browser.visit(page.as_uri(), clicks, size=(1200, 18_000), seconds=25)  # the machine is busy
        return listener.seen


def missing(requests: Sequence[str], wanted: Sequence[str]) -> list[str]:
    return [each for each in wanted if f"/{each} " not in " ".join(requests)]


def test_a_hostile_answer_reaches_nobody_in_a_real_browser(tmp_path: Path, chromium: None) -> None:
    assert seen(tmp_path) == []


def test_the_same_answers_reach_the_listener_without_our_protection(
    tmp_path: Path, chromium: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So the test above can fail: the browser shows the frames, and the listener sees what they load."""
    monkeypatch.setattr(html, "POLICY", "")
    monkeypatch.setattr(answers, "framed", lambda document: document)
    assert missing(seen(tmp_path, LOADED), LOADED) == []
