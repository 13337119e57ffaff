"""The page as a browser gets it: whole, alone, escaped, and with the figures of the rows."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from fakes.reported import OTHER, ended, measured, scored

from profiler.results.row import row
from profiler.show.report import charts as report_charts
from profiler.show.report import page as report_page
from profiler.show.report.charts import Mark
from profiler.show.writers import html
from profiler.show.writers.html import inline

VOID = {"meta", "link", "br"}


class Reader(HTMLParser):
    """Elements, attributes and text; raises AssertionError for elements that do not close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, {name: value or "" for name, value in attributes}))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, {name: value or "" for name, value in attributes}))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open and self._open[-1] not in ("style", "script"):
            self.text.append(data)

    def named(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


def rows():
    return [
        measured(quant=quant, context=context, batch=batch)
        for quant in ("bf16", "nf4")
        for context in (512, 1024)
        for batch in (1, 4)
    ] + [ended("oom", "3 GiB of 2 GiB", context=4096), ended("skipped", "too large", context=8192)]


def test_every_question_has_a_section_and_the_navigation_names_it():
    page = Reader(html.render("261124-093015", rows()))
    anchors = [section["id"] for section in page.named("section")]
    assert anchors == [section.anchor for section in report_page.page(rows(), "261124-093015").sections]
    assert anchors[0] == "run" and len(anchors) > 9
    assert [link["href"] for link in page.named("a")] == [f"#{anchor}" for anchor in anchors]


def test_links_have_words_of_the_titles_and_the_docs_list_the_titles():
    sections = report_page.page([*rows(), scored(measured(context=2048), 0.1)], "261124-093015").sections
    assert [s.link for s in sections if s.link.casefold() not in s.title.casefold()] == []
    docs = Path(__file__).parents[4] / "docs" / "report.md"
    listed = re.findall(r"^\d+\. (.*)$", docs.read_text(encoding="utf-8"), re.M)
    assert [line.split("?")[0] for line in listed] == [s.title.rstrip("?") for s in sections]


def test_an_empty_run_is_a_page_too():
    assert "There is nothing to report yet." in Reader(html.render("r", [])).text


@pytest.fixture(scope="module")
def drawn() -> str:
    return html.render("261124-093015", rows())


def test_the_page_runs_one_script_of_ours_and_asks_for_nothing(drawn):
    text, page = drawn, Reader(drawn)
    (policy,) = [meta["content"] for meta in page.named("meta") if meta.get("http-equiv")]
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'; img-src data:")
    (own,) = re.findall("<script>(.*?)</script>", text, re.DOTALL)
    hashed = base64.b64encode(hashlib.sha256(own.encode()).digest()).decode()
    assert re.findall("script-src ([^;]*)", policy) == [f"'sha256-{hashed}'"]
    assert own == html.script() and page.named("script") == [{}]
    for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "eval", "Function(", "fetch(", "XMLHttp", "import"):
        assert word not in own
    assert not {tag for tag, _ in page.elements} & {"iframe", "object", "embed", "form", "img", "base"}
    for tag, attributes in page.elements:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("src", "href", "xlink:href", "action", "data", "poster", "srcset"):
                assert value.startswith("#") or value == "data:,", (tag, value)
            assert "url(" not in value.lower(), (tag, value)
    assert "url(" not in text.lower() and "@import" not in text.lower()
    assert set(re.findall(r"https?://[^\"' <]+", text)) == {"http://www.w3.org/2000/svg"}  # a name, not a place


def test_charts_are_drawn_in_colors_that_follow_the_theme(drawn):
    text = drawn
    charts = re.findall(r"<svg .*?</svg>", text, re.DOTALL)
    assert len(charts) >= 4 and all(chart.count("<path") > 3 for chart in charts)
    point = Mark(1.0, 1e9, "a", "a", shape="square")
    charts.append(
        inline(report_charts.svg(report_charts.roofline([point], 1e9, 1e10, {"a": 0})), "no row here has a roofline")
    )
    painted = set(re.findall(r' (?:fill|stroke)="([^"]+)"', "".join(charts))) - {"none", "transparent"}
    known = {light for light, _ in report_charts.COLORS.values()}
    assert painted <= known, painted - known
    for color in painted:
        assert f'[fill="{color}"]' in text and f'[stroke="{color}"]' in text
    assert "<title>bf16, context 512: " in text  # a mark says its figure


def test_figures_of_the_page_are_those_of_the_row():
    measurement = measured(decode=(12.0, 12.1, 11.9), context=1024)
    shown = row("r", measurement)
    text = " ".join(Reader(html.render("r", [measurement, measured(context=512)])).text)
    figures = re.search(r"[Ii]t decodes at ([\d.]+) \(([\d.]+)–([\d.]+)\) t/s", text)
    assert figures is not None
    expected = [shown["decode"][name] for name in ("tps", "tps_low", "tps_high")]
    assert [float(value) for value in figures.groups()] == pytest.approx(expected, rel=0.005)
    assert "4.00 GiB of 64.0 GiB" in text and shown["memory"]["process_peak_bytes"] == 4 * 1024**3


def test_machines_stand_side_by_side_with_their_ratio():
    pair = [measured(decode=(10.0, 10.1, 9.9)), measured(decode=(40.0, 40.4, 39.6), environment=OTHER)]
    text = " ".join(Reader(html.render(None, pair)).text)
    assert "Some CPU (64.0 GiB), decode t/s" in text and "Some GPU (24.0 GiB), decode t/s" in text
    assert re.search(r"\b4\.0\d* × \([34]\.\d+–4\.\d+\)", text)
    pair[0] = measured(decode=(10.0, 0.1, 99.0))
    text = " ".join(Reader(html.render(None, pair)).text)
    assert "too noisy" in text and "×" not in text.partition("highest ÷ lowest")[2][:200]


def test_made_up_figures_are_called_so():
    assert "FAKE FIGURES" in html.render("r", [measured(backend="fake")])
    assert "FAKE FIGURES" not in html.render("r", [measured()])


def test_a_name_is_text_wherever_it_stands(hostile_rows):
    page = Reader(html.render("r", hostile_rows))
    tags = [tag for tag, _ in page.elements]
    assert tags.count("script") == 1 and not [a for _, a in page.elements if any(name.startswith("on") for name in a)]


def test_hostile_names_in_drawings_are_text():
    names = [
        "<script>alert(1)</script>",
        "</svg><img src=x onerror=alert(1)>",
        "=cmd()",
        "a|b",
        '" onload="x',
        "datum.y",
    ]
    points = [Mark(x, 1.0, name, name, keys=(name, name)) for name in names for x in (1, 2)]
    plot = report_charts.curves(points, names[0], names[1], {name: place for place, name in enumerate(names)})
    page = Reader(inline(report_charts.svg(plot), names[0]))
    assert not {tag for tag, _ in page.elements} & {"script", "img"}
    assert not [a for _, a in page.elements if {"onload", "onerror"} & a.keys()]
    assert "<script>alert(1)</script>" in page.text


@pytest.mark.parametrize("ground", ["ground", *report_charts.TONES])
@pytest.mark.parametrize("theme_number", [0, 1], ids=["light", "dark"])
def test_text_has_contrast_on_every_ground(ground, theme_number):
    back = (report_charts.COLORS | report_charts.TONES)[ground][theme_number]
    inks = ("ink", "muted", "s1") if ground == "ground" else ("ink",)
    for ink in inks:
        assert contrast(report_charts.COLORS[ink][theme_number], back) >= 4.5, (ink, ground)
    if ground == "ground":
        for number in range(1, 9):
            assert contrast(report_charts.COLORS[f"s{number}"][theme_number], back) >= 3, number


def contrast(one: str, other: str) -> float:
    """WCAG 2.2, relative luminance of sRGB."""

    def luminance(color: str) -> float:
        parts = [int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)
