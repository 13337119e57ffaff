"""``-o html`` and ``--html FILE``: the hardware-fit report as one self-contained file.

It has no scripts and makes no requests: the charts are already drawn (``show/report/charts.py``), and the content
security policy in the head forbids everything else. ``escaped`` escapes all text.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from functools import cache, singledispatch
from importlib import resources

from profiler.results.measurement import Measurement
from profiler.show.report import charts
from profiler.show.report.blocks import (
    Chart,
    Code,
    Figures,
    Head,
    Listing,
    Map,
    MapCell,
    Page,
    PageBlock,
    Table,
    Text,
)
from profiler.show.report.charts import COLOURS, TONES
from profiler.show.report.page import page

FOLDED = 12  # rows above which a table is collapsed
_MARK = re.compile(r'<path((?:\s[\w:-]+="[^"]*")*?) aria-label="([^"]*)"((?:\s[\w:-]+="[^"]*")*)/>')
_ROOT = re.compile(r"<svg[^>]*?viewBox=\"0 0 ([\d.]+) ([\d.]+)\">")

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"


@cache
def sheet() -> str:
    """The style sheet. Charts follow the theme: a light colour in a drawing is replaced by that colour's variable."""
    named = COLOURS | {f"tone-{name}": pair for name, pair in TONES.items()}
    light = "".join(f"--{name}:{pair[0]};" for name, pair in named.items())
    dark = "".join(f"--{name}:{pair[1]};" for name, pair in named.items())
    painted = "\n".join(
        f'svg [{what}="{pair[0]}"]{{{what}:var(--{name})}}'
        for name, pair in COLOURS.items()
        for what in ("fill", "stroke")
    )
    own = (resources.files("profiler.show.writers") / "style.css").read_text(encoding="utf-8")
    themes = f":root{{{light}}}\n@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}"
    return f"{themes}\n{painted}\n{own}".rstrip()


def escaped(text: str) -> str:
    """``text`` escaped for an element or a quoted attribute."""
    return html.escape(text, quote=True)


@singledispatch
def block_html(block: PageBlock) -> str:
    """The HTML of one block."""
    raise TypeError(f"no HTML for {type(block).__name__}")


@block_html.register
def _text(block: Text) -> str:
    kind = ' class="lead"' if block.lead else ' class="muted"' if block.muted else ""
    return f"<p{kind}>{escaped(block.text)}</p>"


@block_html.register
def _table(block: Table) -> str:
    """A long table is collapsed, because the charts show the same figures."""
    classes = [_class(column) for column in block.columns]
    head = "".join(
        f"<th{kind}>{escaped(column.title)}</th>" for kind, column in zip(classes, block.columns, strict=True)
    )
    body = "\n".join(
        f"<tr>{''.join(f'<td{kind}>{escaped(text)}</td>' for kind, text in zip(classes, row, strict=True))}</tr>"
        for row in block.rows
    )
    folded = len(block.rows) > FOLDED
    caption = f"<caption>{escaped(block.caption)}</caption>" if block.caption and not folded else ""
    table = f"<table>{caption}<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table>"
    if not folded:
        return _scrolling(table, block.caption)
    summary = f"{escaped(block.caption or 'Table')} ({len(block.rows):,} rows)"
    return f"<details><summary>{summary}</summary>{_scrolling(table, block.caption)}</details>"


@block_html.register
def _map(block: Map) -> str:
    head = "".join(f'<th scope="col">{escaped(column)}</th>' for column in block.columns)
    body = "\n".join(
        f'<tr><th scope="row">{escaped(label)}</th>{"".join(map(_cell, cells))}</tr>' for label, cells in block.rows
    )
    caption = f"<caption>{escaped(block.caption)}</caption>" if block.caption else ""
    table = (
        f'<table class="map">{caption}<thead><tr><th scope="col">{escaped(block.corner)}</th>{head}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table>"
    )
    key = f'<p class="muted">{escaped(block.key)}</p>' if block.key else ""
    return _scrolling(table, block.caption) + key


@block_html.register
def _figures(block: Figures) -> str:
    title = f"<h3>{escaped(block.title)}</h3>" if block.title else ""
    return f'{title}<div class="figures">{"".join(map(_figure, block.items))}</div>'


@block_html.register
def _listing(block: Listing) -> str:
    return f"<ul>{''.join(f'<li>{escaped(item)}</li>' for item in block.items)}</ul>"


@block_html.register
def _code(block: Code) -> str:
    return f"<pre><code>{escaped(chr(10).join(block.lines))}</code></pre>"


def _class(column: Head) -> str:
    return ' class="figure"' if column.right else ""


def _cell(cell: MapCell) -> str:
    kind = f"{cell.tone}{' measured' if cell.measured else ''}"
    detail = "".join(f"<small>{escaped(text)}</small>" for text in (cell.span, cell.detail) if text)
    title = f' title="{escaped(cell.title)}"' if cell.title else ""
    return f'<td class="{kind}"{title}><span>{escaped(cell.value)}</span>{detail}</td>'


def _figure(figure: Chart) -> str:
    drawn = inline(charts.svg(figure.spec), figure.title)
    return f"<figure><figcaption>{escaped(figure.title)}</figcaption>{drawn}</figure>"


def inline(svg: str, title: str) -> str:
    """A drawing to embed in a page: it scales with the page, has a name, and shows each mark's label on hover."""
    found = _ROOT.match(svg)
    if found is None:
        raise ValueError("the drawing is not SVG")
    width, height = found[1], found[2]
    size = f'viewBox="0 0 {width} {height}" style="max-width:{width}px"'
    root = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{escaped(title)}">'
    return root + _MARK.sub(r"<path\1\3><title>\2</title></path>", svg[found.end() :])


def _scrolling(table: str, label: str | None) -> str:
    """A table that scrolls by itself, also by keyboard, if it is wider than the screen."""
    name = escaped(label or "table")
    return f'<div class="wide" tabindex="0" role="region" aria-label="{name}">{table}</div>'


def render(run: str | None, measurements: Sequence[Measurement]) -> str:
    """The page of these rows in ASCII only, because stdout may have another encoding than the page declares."""
    return document(page(measurements, run)).encode("ascii", "xmlcharrefreplace").decode()


def document(content: Page) -> str:
    """A composed page as a complete HTML document."""
    with charts.kept():
        sections = "\n".join(
            f'<section id="{section.anchor}">\n<h2>{escaped(section.title)}</h2>\n'
            + "\n".join(map(block_html, section.blocks))
            + "\n</section>"
            for section in content.sections
        )
    return wrapped(content.title, content.summary, [(s.anchor, s.link) for s in content.sections], sections)


def wrapped(
    title: str, summary: Sequence[str], links: Sequence[tuple[str, str]], sections: str, look: str = ""
) -> str:
    """Sections as a complete document. ``links``: their anchors and titles; ``look``: a class of the style sheet."""
    navigation = "".join(f'<li><a href="#{anchor}">{escaped(name)}</a></li>' for anchor, name in links)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="referrer" content="no-referrer">
<title>{escaped(title)}</title>
<link rel="icon" href="data:,">
<style>
{sheet()}
</style>
</head>
<body{f' class="{look}"' if look else ""}>
<header>
<h1>{escaped(title)}</h1>
<p class="facts">{" · ".join(map(escaped, summary))}</p>
</header>
<nav aria-label="Sections"><ul>{navigation}</ul></nav>
<main>
{sections}
</main>
</body>
</html>
"""
