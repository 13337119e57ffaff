"""A page as Markdown, with its charts as SVG files beside it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import singledispatch
from urllib.parse import quote

from profiler.reports.base.page.blocks import Block, Cell, Code, Figures, Listing, Map, Page, Table, Text
from profiler.reports.md import escaped, line

_TICKS = re.compile(r"`+")


def markdown(page: Page, images: Mapping[int, str]) -> str:
    """``images``: the address of a chart by the identity of its figure (``figures``); without one only its title."""
    parts = [f"# {escaped(page.title)}", " · ".join(map(escaped, page.facts))]
    for section in page.sections:
        parts.append(f"## {escaped(section.title)}")
        parts += [
            _pictures(block, images) if isinstance(block, Figures) else _block(block) for block in section.blocks
        ]
    return "\n\n".join(part for part in parts if part) + "\n"


def address(folder: str, file: str) -> str:
    """Of a file beside the text, as a link takes it."""
    return f"{quote(folder)}/{quote(file)}"


@singledispatch
def _block(block: Block) -> str:
    raise TypeError(f"no Markdown for {type(block).__name__}")


@_block.register
def _text(block: Text) -> str:
    if block.lead:
        return f"> {escaped(block.text)}"
    return escaped(block.text)


@_block.register
def _table(block: Table) -> str:
    lines = [
        line(column.title and escaped(column.title) for column in block.columns),
        line("---:" if column.right else "---" for column in block.columns),
        *(line(map(escaped, row)) for row in block.rows),
    ]
    return _captioned(block.caption, lines)


@_block.register
def _map(block: Map) -> str:
    lines = [
        line(map(escaped, (block.corner, *block.columns))),
        line(["---", *("---:" for _ in block.columns)]),
        *(line([escaped(label), *map(_cell, cells)]) for label, cells in block.rows),
        *(["", escaped(block.key)] if block.key else []),
    ]
    return _captioned(block.caption, lines)


@_block.register
def _listing(block: Listing) -> str:
    return "\n".join(f"- {escaped(item)}" for item in block.items)


@_block.register
def _code(block: Code) -> str:
    """In a fence that is longer than any run of ticks inside."""
    content = "\n".join(block.lines)
    fence = "`" * max(3, *(len(run) + 1 for run in _TICKS.findall(content)), 3)
    return f"{fence}sh\n{content}\n{fence}"


def _cell(cell: Cell) -> str:
    value = f"**{escaped(cell.value)}**" if cell.measured else escaped(cell.value)
    span = f" ({escaped(cell.span)})" if cell.span else ""
    return f"{value}{span}<br>{escaped(cell.detail)}" if cell.detail else f"{value}{span}"


def _captioned(caption: str | None, lines: Iterable[str]) -> str:
    text = "\n".join(lines)
    return f"{escaped(caption)}\n\n{text}" if caption else text


def _pictures(block: Figures, images: Mapping[int, str]) -> str:
    title = [f"### {escaped(block.title)}"] if block.title and block.items else []
    pictures = (
        f"![{escaped(figure.title)}]({images[id(figure)]})\n\n{escaped(figure.title)}"
        for figure in block.items
        if id(figure) in images
    )
    return "\n\n".join([*title, *pictures])
