"""``-o html`` and ``--html FILE``: the hardware-fit report as one self-contained file.

It makes no requests, and its charts are already drawn (``show/report/charts.py``), so everything can be read without
scripts. One script of ours, ``report.js``, sorts tables, filters, and makes charts answer to the pointer. The content
security policy in the head names its hash and forbids everything else. ``escaped`` escapes all text.
"""

from __future__ import annotations

import base64
import hashlib
import html
import re
from collections.abc import Sequence
from functools import cache, singledispatch
from importlib import resources

from profiler.results.measurement import Measurement
from profiler.show.report import charts
from profiler.show.report.blocks import (
    Bar,
    Bars,
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
from profiler.show.report.charts import COLORS, TONES, Keys
from profiler.show.report.page import page

FOLDED = 12  # rows above which a table is collapsed
_ROOT = re.compile(r'<svg xmlns="[^"]*" width="(\d+)" height="\d+"')
SHORT = 8  # letters of a heading that fits above a figure of the map
MAX_CHART_SCALE = 1.35  # size of a chart ÷ its drawn size: beyond it, text would be larger than that of the page

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"


@cache
def sheet() -> str:
    """The style sheet. Charts follow the theme: a light color in a drawing is replaced by that color's variable."""
    named = COLORS | {f"tone-{name}": pair for name, pair in TONES.items()}
    light = "".join(f"--{name}:{pair[0]};" for name, pair in named.items())
    dark = "".join(f"--{name}:{pair[1]};" for name, pair in named.items())
    painted = "\n".join(
        f'svg [{what}="{pair[0]}"]{{{what}:var(--{name})}}'
        for name, pair in COLORS.items()
        for what in ("fill", "stroke")
    )
    own = (resources.files("profiler.show.writers") / "style.css").read_text(encoding="utf-8")
    themes = f":root{{{light}}}\n@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}"
    return f"{themes}\n{painted}\n{own}".rstrip()


@cache
def script() -> str:
    """The script of the page."""
    return (resources.files("profiler.show.writers") / "report.js").read_text(encoding="ascii").rstrip()


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
    text = f"<p{kind}>{escaped(block.text)}</p>"
    return f"<details><summary>{escaped(block.folded)}</summary>{text}</details>" if block.folded else text


@block_html.register
def _table(block: Table) -> str:
    """A long table is collapsed, because the charts show the same figures."""
    classes = [_class(column) for column in block.columns]
    head = "".join(
        f"<th{kind}>{escaped(column.title)}</th>" for kind, column in zip(classes, block.columns, strict=True)
    )
    keys = block.keys or (None,) * len(block.rows)
    cells = ("".join(map("<td{}>{}</td>".format, classes, map(escaped, row))) for row in block.rows)
    body = "\n".join(f"<tr{_kept(key)}>{row}</tr>" for row, key in zip(cells, keys, strict=True))
    folded = len(block.rows) > FOLDED
    caption = f"<caption>{escaped(block.caption)}</caption>" if block.caption and not folded else ""
    table = f"<table>{caption}<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table>"
    if not folded:
        return _scrolling(table, block.caption)
    summary = f"{escaped(block.caption or 'Table')} ({len(block.rows):,} rows)"
    return f"<details><summary>{summary}</summary>{_scrolling(table, block.caption)}</details>"


@block_html.register
def _map(block: Map) -> str:
    """The heading of a column is also on its cells, for screens that are too narrow for a table."""
    about = [_kept(key) for key in block.column_keys or (None,) * len(block.columns)]
    heads = zip(about, block.columns, strict=True)
    head = "".join(f'<th scope="col"{key}>{escaped(column)}</th>' for key, column in heads)
    keys = block.keys or (None,) * len(block.rows)
    lines = ((label, "".join(map(_cell, cells, block.columns, about))) for label, cells in block.rows)
    body = "\n".join(
        f'<tr{_kept(key)}><th scope="row">{escaped(label)}</th>{cells}</tr>'
        for (label, cells), key in zip(lines, keys, strict=True)
    )
    look = "map named" if max(map(len, block.columns), default=0) > SHORT else "map"
    caption = f"<caption>{escaped(block.caption)}</caption>" if block.caption else ""
    table = (
        f'<table class="{look}">{caption}<thead><tr><th scope="col">{escaped(block.corner)}</th>{head}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table>"
    )
    return _scrolling(table, block.caption)


@block_html.register
def _bars(block: Bars) -> str:
    rows = "".join(map(_bar, block.rows))
    return f'<figure class="bars"><figcaption>{escaped(block.title)}</figcaption>{rows}</figure>'


def _bar(bar: Bar) -> str:
    sizes = f"--value:{100 * bar.value:.1f}%;--ceiling:{100 * (bar.ceiling or 0):.1f}%"
    return (
        f'<div class="bar"{_kept(bar.keys)}><span>{escaped(bar.label)}</span><span class="amount">{escaped(bar.text)}'
        f'</span><span class="track" style="{sizes}"></span></div>'
    )


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


def _kept(keys: Keys | None) -> str:
    """The attributes by which the script filters."""
    return "" if keys is None else f' data-model="{escaped(keys[0])}" data-quant="{escaped(keys[1])}"'


def _cell(cell: MapCell, column: str, about: str) -> str:
    kind = f"{cell.tone}{' measured' if cell.measured else ''}"
    detail = "".join(f"<small>{escaped(text)}</small>" for text in (cell.span, cell.detail) if text)
    title = f' title="{escaped(cell.title)}"' if cell.title else ""
    at = f'data-at="{escaped(column)}"{about}'
    return f'<td class="{kind}" {at}{title}><span>{escaped(cell.value)}</span>{detail}</td>'


def _figure(figure: Chart) -> str:
    drawn = inline(charts.svg(figure.plot), figure.title)
    about = f' data-model="{escaped(figure.model)}"' if figure.model else ""
    return f"<figure{about}><figcaption>{escaped(figure.title)}</figcaption>{drawn}</figure>"


def inline(svg: str, title: str) -> str:
    """A drawing to embed in a page: it scales with the page, and has a name."""
    found = _ROOT.match(svg)
    if found is None:
        raise ValueError("the drawing is not SVG")
    size = f'style="max-width:{MAX_CHART_SCALE * int(found[1]):.0f}px"'
    root = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{escaped(title)}"'
    return root + svg[found.end() :]


def _scrolling(table: str, label: str | None) -> str:
    """A table that scrolls by itself, also by keyboard, if it is wider than the screen."""
    name = escaped(label or "table")
    return f'<div class="wide" tabindex="0" role="region" aria-label="{name}">{table}</div>'


def render(run: str | None, measurements: Sequence[Measurement]) -> str:
    """The page of these rows in ASCII only, because stdout may have another encoding than the page declares."""
    return document(page(measurements, run)).encode("ascii", "xmlcharrefreplace").decode()


def document(content: Page) -> str:
    """A composed page as a complete HTML document."""
    sections = "\n".join(
        f'<section id="{section.anchor}">\n<h2>{escaped(section.title)}</h2>\n'
        + "\n".join(map(block_html, section.blocks))
        + "\n</section>"
        for section in content.sections
    )
    links = [(section.anchor, section.link) for section in content.sections]
    return wrapped(content.title, content.summary, links, sections, "report", script())


def wrapped(
    title: str,
    summary: Sequence[str],
    links: Sequence[tuple[str, str]],
    sections: str,
    look: str = "",
    code: str = "",
) -> str:
    """Sections as a complete document. ``links``: their anchors and titles; ``look``: a class of the style sheet;
    ``code``: a script in ASCII, the only one that may run.
    """
    hashed = base64.b64encode(hashlib.sha256(code.encode("ascii")).digest()).decode()
    policy = f"{POLICY}; script-src 'sha256-{hashed}'" if code else POLICY
    navigation = "".join(f'<li><a href="#{anchor}">{escaped(name)}</a></li>' for anchor, name in links)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
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
</main>{f"{chr(10)}<script>{code}</script>" if code else ""}
</body>
</html>
"""
