"""The elements of a page. All text is ready for display (``columns.plain``); a writer escapes it for its format.

``keys`` are the model and the quantization that a row, a bar or a chart is about, by which a reader may filter.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from profiler.show.report.charts import Keys, Plot

Tone = Literal["fits", "tight", "offload", "no", "none"]
MAX_ROWS = 60  # of a table with a row per case: more than a reader looks through


@dataclass(frozen=True, slots=True)
class Text:
    """A paragraph. ``muted``: an explanation, or what was left out and why."""

    text: str
    muted: bool = False
    lead: bool = False  # the main statement of the page
    folded: str = ""  # the title under which formats that can fold hide the paragraph at first


@dataclass(frozen=True, slots=True)
class Head:
    """A column of a table."""

    title: str
    right: bool = True


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of texts, one per column."""

    columns: tuple[Head, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str | None = None
    keys: tuple[Keys | None, ...] = ()  # of each row; empty: of none


@dataclass(frozen=True, slots=True)
class MapCell:
    """A cell of a map. ``detail`` also states the ``tone``, because not everyone can tell the colors apart."""

    value: str
    span: str = ""  # the range of an uncertain figure
    detail: str = ""
    tone: Tone = "none"
    measured: bool = False
    title: str = ""  # all details in one line


@dataclass(frozen=True, slots=True)
class Map:
    """Labelled rows and columns of cells."""

    corner: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[MapCell, ...]], ...]
    caption: str | None = None
    keys: tuple[Keys | None, ...] = ()  # of each row; empty: of none
    column_keys: tuple[Keys | None, ...] = ()  # of each column


@dataclass(frozen=True, slots=True)
class Bar:
    """A figure against its ceiling, both as shares of the longest bar of its block. ``ceiling``: None if unknown."""

    label: str
    text: str  # the figure in words
    value: float
    ceiling: float | None = None
    keys: Keys | None = None


@dataclass(frozen=True, slots=True)
class Bars:
    """Horizontal bars with a common scale."""

    title: str
    rows: tuple[Bar, ...]


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart, and a title that says what it shows. ``model``: the only model in it, if it has only one."""

    title: str
    plot: Plot = field(hash=False)
    model: str = ""


@dataclass(frozen=True, slots=True)
class Figures:
    """Charts that are shown side by side."""

    items: tuple[Chart, ...]
    title: str | None = None


@dataclass(frozen=True, slots=True)
class Listing:
    """A bulleted list."""

    items: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Code:
    """Command lines to copy."""

    lines: tuple[str, ...]


PageBlock = Text | Table | Map | Bars | Figures | Listing | Code


@dataclass(frozen=True, slots=True)
class Section:
    """One question and its answer. ``anchor`` is its stable name in links, a single word.

    ``short``: the words of the title that the navigation shows; empty if the anchor is one of them.
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
    """The whole report. ``summary`` is the line below the title; ``warnings`` go to stderr."""

    title: str
    summary: tuple[str, ...]
    sections: tuple[Section, ...]
    warnings: tuple[str, ...] = ()


def muted(text: str) -> Text:
    """A muted paragraph."""
    return Text(text, muted=True)
