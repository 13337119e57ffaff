"""``-o html`` and ``--html FILE``: the hardware-fit report as one file that needs nothing but itself.

No script, no request: the charts are drawn already (``base/page/drawing.py``), and the policy in the head forbids the
rest. Every text is escaped here, in ``_text``, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Sequence

from profiler.reports.base.page import drawing
from profiler.reports.base.page.blocks import Page
from profiler.reports.base.page.compose import page
from profiler.reports.html.blocks import block_html, escaped
from profiler.reports.html.style import sheet
from profiler.results.measurement import Measurement

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"


def render(run: str | None, measurements: Sequence[Measurement]) -> str:
    """The page of these rows. All in ASCII: what it is printed to may have another encoding than the page says."""
    return document(page(measurements, run)).encode("ascii", "xmlcharrefreplace").decode()


def document(content: Page) -> str:
    """A composed page as a whole HTML document."""
    links = "".join(
        f'<li><a href="#{section.anchor}">{section.anchor.capitalize()}</a></li>' for section in content.sections
    )
    with drawing.kept():
        sections = "\n".join(
            f'<section id="{section.anchor}">\n<h2>{escaped(section.title)}</h2>\n'
            + "\n".join(map(block_html, section.blocks))
            + "\n</section>"
            for section in content.sections
        )
    facts = " · ".join(map(escaped, content.facts))
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="referrer" content="no-referrer">
<title>{escaped(content.title)}</title>
<link rel="icon" href="data:,">
<style>
{sheet()}
</style>
</head>
<body>
<header>
<h1>{escaped(content.title)}</h1>
<p class="facts">{facts}</p>
</header>
<nav aria-label="Sections"><ul>{links}</ul></nav>
<main>
{sections}
</main>
</body>
</html>
"""
