"""What a page is made of. All text is as people read it, already ``plain``; a writer escapes it for its format."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Tone = Literal["fits", "tight", "offload", "no", "none"]


@dataclass(frozen=True, slots=True)
class Text:
    """A paragraph. ``muted``: what a figure means, what was left out, why there is nothing."""

    text: str
    muted: bool = False
    lead: bool = False  # the answer of the page


@dataclass(frozen=True, slots=True)
class Head:
    """A column of a table."""

    title: str
    right: bool = True


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of texts, as many in each as there are columns."""

    columns: tuple[Head, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str | None = None


@dataclass(frozen=True, slots=True)
class MapCell:
    """A field of a map. ``tone`` is said in ``detail`` too: colour alone says nothing to many."""

    value: str
    span: str = ""  # where the figure may lie, if it is far from sure
    detail: str = ""
    tone: Tone = "none"
    measured: bool = False
    title: str = ""  # the whole of it in one line


@dataclass(frozen=True, slots=True)
class Map:
    """Labelled rows of cells under labelled columns."""

    corner: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[MapCell, ...]], ...]
    caption: str | None = None
    key: str = ""  # what the details of its cells mean, for writers that show them


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart as a Vega-Lite specification (``plots.py``), and in words what it shows."""

    title: str
    spec: dict[str, Any] = field(hash=False)


@dataclass(frozen=True, slots=True)
class Figures:
    """Charts that are read beside each other."""

    items: tuple[Chart, ...]
    title: str | None = None


@dataclass(frozen=True, slots=True)
class Listing:
    """Items of equal rank."""

    items: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Code:
    """Command lines, to be copied."""

    lines: tuple[str, ...]


PageBlock = Text | Table | Map | Figures | Listing | Code


@dataclass(frozen=True, slots=True)
class Section:
    """One question and its answer. ``anchor``, one word, is the target of links and stays as it is.

    ``short`` are the words of the title that the navigation shows; empty: the anchor is one of them.
    """

    anchor: str
    title: str
    blocks: tuple[PageBlock, ...]
    short: str = ""

    @property
    def link(self) -> str:
        """The text of a link to the section."""
        return self.short or self.anchor.capitalize()


@dataclass(frozen=True, slots=True)
class Page:
    """The whole report. ``summary`` is what is true of all of it, below the title."""

    title: str
    summary: tuple[str, ...]
    sections: tuple[Section, ...]


def muted(text: str) -> Text:
    """A remark."""
    return Text(text, muted=True)
