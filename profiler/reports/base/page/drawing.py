"""A Vega-Lite specification as a picture, offline: Vega runs inside ``vl-convert`` and reaches for nothing."""

from __future__ import annotations

from profiler.reports.base.page.plots import Spec


def svg(spec: Spec) -> str:
    """SVG 1.1, in the light colours of ``theme``. The first one takes a second: Vega starts."""
    import vl_convert  # a JavaScript engine, so only where something is drawn

    text: str = vl_convert.vegalite_to_svg(spec, allowed_base_urls=[])
    return text
