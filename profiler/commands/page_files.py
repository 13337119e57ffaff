"""Files that a report is written to: whole or not at all, and known to be writable before anything is measured."""

from __future__ import annotations

import os
from pathlib import Path

from profiler.errors import ProfileError
from profiler.reports.base.page.blocks import Figures, Page
from profiler.results.store import Store
from profiler.units import printable


def check(path: Path | None) -> None:
    """ProfileError if ``path`` cannot be written: a sweep takes hours, and its page comes last."""
    if path is None:
        return
    if not path.parent.is_dir():
        raise ProfileError(f"there is no folder {printable(path.parent)} to write {printable(path.name)} to")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ProfileError(f"{printable(path)} cannot be written", "Name a file in a folder of yours.")


def write_html(path: Path, page: Page) -> None:
    """One file that needs nothing else."""
    from profiler.reports.html import document

    _write(path, document(page))


def write_rows(path: Path, store: Store, run: str) -> None:
    """The report of one stored run."""
    from profiler.reports.base.page.compose import page

    runs = [each for each in store.runs() if each.id == run]
    write_html(path, page(store.rows(run), run, runs))


def write_markdown(path: Path, page: Page) -> None:
    """The text, and its charts as ``STEM-charts/N.svg`` beside it."""
    from profiler.reports.base.page import drawing, markdown

    folder = path.with_name(f"{path.stem}-charts")
    figures = [
        figure
        for section in page.sections
        for block in section.blocks
        if isinstance(block, Figures)
        for figure in block.items
    ]
    images: dict[int, str] = {}
    if figures:
        try:
            folder.mkdir(exist_ok=True)
        except OSError as error:
            raise ProfileError(f"cannot make {printable(folder)}: {error.strerror}") from None
    for number, figure in enumerate(figures, 1):
        image = folder / f"{number:02}.svg"
        _write(image, drawing.svg(figure.spec))
        images[id(figure)] = markdown.address(folder.name, image.name)
    _write(path, markdown.markdown(page, images))


def _write(path: Path, text: str) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise ProfileError(f"cannot write {printable(path)}: {error.strerror}") from None
