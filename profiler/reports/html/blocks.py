"""Blocks of a page as HTML."""

from __future__ import annotations

import html
import re
from functools import singledispatch

from profiler.reports.base.page import drawing
from profiler.reports.base.page.blocks import Block, Cell, Code, Figure, Figures, Head, Listing, Map, Table, Text

FOLDED = 12  # rows, above which a table is folded
_MARK = re.compile(r'<path((?:\s[\w:-]+="[^"]*")*?) aria-label="([^"]*)"((?:\s[\w:-]+="[^"]*")*)/>')
_ROOT = re.compile(r"<svg[^>]*?viewBox=\"0 0 ([\d.]+) ([\d.]+)\">")


def escaped(text: str) -> str:
    """``text`` as text, in an element or in a quoted attribute."""
    return html.escape(text, quote=True)


@singledispatch
def block_html(block: Block) -> str:
    """One block."""
    raise TypeError(f"no HTML for {type(block).__name__}")


@block_html.register
def _text(block: Text) -> str:
    kind = ' class="lead"' if block.lead else ' class="muted"' if block.muted else ""
    return f"<p{kind}>{escaped(block.text)}</p>"


@block_html.register
def _table(block: Table) -> str:
    """A long one is folded: the charts say the same, and whoever wants the figures opens it."""
    sides = [_side(column) for column in block.columns]
    head = "".join(
        f"<th{side}>{escaped(column.title)}</th>" for side, column in zip(sides, block.columns, strict=True)
    )
    body = "\n".join(
        f"<tr>{''.join(f'<td{side}>{escaped(text)}</td>' for side, text in zip(sides, row, strict=True))}</tr>"
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


def _side(column: Head) -> str:
    return ' class="figure"' if column.right else ""


def _cell(cell: Cell) -> str:
    kind = f"{cell.tone}{' measured' if cell.measured else ''}"
    detail = "".join(f"<small>{escaped(text)}</small>" for text in (cell.span, cell.detail) if text)
    title = f' title="{escaped(cell.title)}"' if cell.title else ""
    return f'<td class="{kind}"{title}><span>{escaped(cell.value)}</span>{detail}</td>'


def _figure(figure: Figure) -> str:
    drawn = inline(drawing.svg(figure.spec), figure.title)
    return f"<figure><figcaption>{escaped(figure.title)}</figcaption>{drawn}</figure>"


def inline(svg: str, title: str) -> str:
    """A drawing for the inside of a page: sized by it, named, and each mark's label where a pointer finds it."""
    found = _ROOT.match(svg)
    if found is None:
        raise ValueError("what was drawn is no SVG")
    width, height = found[1], found[2]
    size = f'viewBox="0 0 {width} {height}" style="max-width:{width}px"'
    root = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{escaped(title)}">'
    return root + _MARK.sub(r"<path\1\3><title>\2</title></path>", svg[found.end() :])


def _scrolling(table: str, label: str | None) -> str:
    """What is wider than the screen scrolls by itself, by keyboard too."""
    name = escaped(label or "table")
    return f'<div class="wide" tabindex="0" role="region" aria-label="{name}">{table}</div>'
