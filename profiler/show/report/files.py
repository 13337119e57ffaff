"""Writes a report to files. They are checked before anything is measured and written atomically."""

from __future__ import annotations

from pathlib import Path

from profiler import files
from profiler.results.store import Store, default_path
from profiler.show.report.blocks import Figures, Page


def check(path: Path | None, store: Path | None, *others: Path | None) -> None:
    """ProfileError if ``path`` cannot be written, to be raised before a sweep that takes hours.

    ``store`` (None for the default one) and ``others`` are files that ``path`` must not be.
    """
    if path is not None:
        files.check(path, (store or default_path(), *others))


def write_html(path: Path, page: Page) -> None:
    """Write the page as one self-contained HTML file."""
    from profiler.show.writers.html import document

    files.write(path, document(page))


def write_rows(path: Path, store: Store, run: str) -> None:
    """Write the report of one stored run."""
    from profiler.show.report.page import page

    runs = [each for each in store.runs(counted=False) if each.id == run]
    write_html(path, page(store.rows(run), run, runs, configs=store.configs()))


def write_markdown(path: Path, page: Page) -> None:
    """Write the page as Markdown, with its charts as ``STEM-charts/N.svg`` in the same folder."""
    from profiler.show.report import charts
    from profiler.show.writers import md

    if not files.is_plain(path):  # a pipe has no folder for charts
        files.write(path, md.markdown(page, {}))
        return
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
        files.make_folder(folder)
    for number, figure in enumerate(figures, 1):
        image = folder / f"{number:02}.svg"
        files.write(image, charts.svg(figure.plot))
        images[id(figure)] = md.address(folder.name, image.name)
    files.write(path, md.markdown(page, images))
