"""The same page as Markdown and in a terminal, and its charts as separate images."""

from __future__ import annotations

import os
import re
from html import unescape
from pathlib import Path
from xml.etree import ElementTree

from fakes.reported import MEMORY, OTHER, ended, measured
from fakes.unseen import unseen
from hypothesis import given, settings
from hypothesis import strategies as st

from profiler.show.report import charts
from profiler.show.report import page as report_page
from profiler.show.report.blocks import Figures, Page
from profiler.show.writers import html, md, table
from profiler.units import printable

GOLDEN = Path(__file__).parents[3] / "golden" / "reports" / "page.md"
AT = {"ceiling_s": {"prefill": 1.0, "step": 0.05}, "decode_bound": "bandwidth"}
NASTY = st.text(min_size=1, max_size=40) | st.sampled_from(
    ["<script>alert(1)</script>", "=cmd()", "|", "a|b", "\x1b[31mred\x1b[0m", "]]>", "</style>", "&lt;", '"', "```"]
)


def rows():
    return [
        *(measured(quant=quant, context=context, batch=batch, expected=AT) for quant in ("bf16", "nf4")
          for context in (512, 1024) for batch in (1, 4)),
        ended("oom", "3 GiB of 2 GiB", context=4096),
    ]  # fmt: skip


def figures(page: Page):
    return [figure for s in page.sections for b in s.blocks if isinstance(b, Figures) for figure in b.items]


def test_markdown_is_as_the_golden_file_has_it():
    page = report_page.page(rows(), "261124-093015")
    images = {id(figure): f"page-charts/{number:02}.svg" for number, figure in enumerate(figures(page), 1)}
    text = md.markdown(page, images)
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.write_text(text, encoding="utf-8")
    assert text == GOLDEN.read_text(encoding="utf-8")


def test_a_terminal_gets_no_line_wider_than_itself():
    for width in (60, 80, 120):
        text = table.terminal(report_page.page(rows(), "261124-093015"), width)
        assert max(map(len, text.splitlines())) <= width
        assert "What should I run on this machine?" in text and "oom" in text


def test_what_names_a_row_is_in_both_parts_of_a_table_that_is_cut_in_two():
    text = table.terminal(report_page.page(rows(), "261124-093015"), 72)
    lines = [line.split() for line in text.splitlines()]
    first, second = (each for each in lines if each[:4] == ["model", "quantization", "context", "batch"])
    assert first != second and [word for word in second if word == "ms/token"] == ["ms/token"]


def test_every_chart_is_a_drawing_that_stands_alone():
    two = [*rows(), *(measured(environment=OTHER, context=context, expected=AT) for context in (512, 1024))]
    found = figures(report_page.page(two))
    assert len(found) >= 6
    for figure in found:
        root = ElementTree.fromstring(charts.svg(figure.plot))
        width, height = float(root.attrib["width"]), float(root.attrib["height"])
        for mark in root.iter("{http://www.w3.org/2000/svg}path"):
            if mark.get("class") == "mark":
                x, y = map(float, re.findall(r"-?[\d.]+", mark.attrib["transform"]))
                assert -0.1 <= x <= charts.WIDTH + 0.1 <= width and -0.1 <= y <= charts.HEIGHT + 0.1 <= height
                assert mark.find("{http://www.w3.org/2000/svg}title").text


def everywhere(text: str) -> Page:
    """A page that carries ``text`` wherever it can come from outside."""
    place = measured().environment | {
        "device": measured().environment["device"] | {"title": text},
        "libraries": {"torch": text, text: "1"},
    }
    case = {"model": text, "quant": text, "weights": text}
    found = [measured(environment=place, context=context, memory=MEMORY, **case) for context in (512, 1024)]
    return report_page.page([*found, ended("failed", text, model=text, context=2048)], text)


@settings(max_examples=12, deadline=None)
@given(NASTY)
def test_no_text_from_outside_is_more_than_text(nasty):
    page = everywhere(nasty)
    shown = html.document(page)
    ordinary = html.document(everywhere("x"))
    assert unseen(shown) == []
    assert set(re.findall(r"<[a-z/!]+", shown)) <= set(re.findall(r"<[a-z/!]+", ordinary))
    assert shown.count("<td") == ordinary.count("<td") or printable(nasty).strip() == ""
    plain = table.terminal(page)
    assert unseen(plain) == []
    text = md.markdown(page, {})
    assert unseen(text) == []
    assert not re.search(r"<(?!br>)|https?://|@", text)
    for line in text.splitlines():
        if line.startswith("| "):
            assert not re.search(r"(?<!\\)[`#\[\]$]", unescape(line).replace("\\\\", ""))
