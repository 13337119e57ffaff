"""The style sheet: ``style.css``, and the colours of the theme as variables in both of their values."""

from __future__ import annotations

from functools import cache
from importlib import resources

from profiler.reports.base.page.theme import COLOURS, TONES


@cache
def sheet() -> str:
    """All of it. Charts follow the theme: what is painted in a light colour takes that colour's variable."""
    named = COLOURS | {f"tone-{name}": pair for name, pair in TONES.items()}
    light = "".join(f"--{name}:{pair[0]};" for name, pair in named.items())
    dark = "".join(f"--{name}:{pair[1]};" for name, pair in named.items())
    painted = "\n".join(
        f'svg [{what}="{pair[0]}"]{{{what}:var(--{name})}}'
        for name, pair in COLOURS.items()
        for what in ("fill", "stroke")
    )
    own = (resources.files("profiler.reports.html") / "style.css").read_text(encoding="utf-8")
    themes = f":root{{{light}}}\n@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}"
    return f"{themes}\n{painted}\n{own}".rstrip()
