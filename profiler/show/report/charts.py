"""The charts of a report: colours, Vega-Lite specifications, and their drawings.

**Colours.** Charts are drawn once, with the light values. The page's style sheet matches these values
(``[fill="#0969da"]``) and replaces them by variables, so that one drawing follows the reader's theme and also works
as a separate image. The contrast to the background is at least 4.5:1 for text and 3:1 for marks in both themes (WCAG
2.2, 1.4.3 and 1.4.11); a test checks it.

**Specifications** are plain Vega-Lite. A wrapper such as Altair would add half a second to every report, and five
packages; the validation that it offers is done in tests. All charts are narrow, so that a page can put them side by
side, and a phone one below the other at a readable size.

**Drawings** are made offline: Vega runs inside ``vl-convert`` and makes no requests. It runs in a separate process,
because V8 crashes the process if memory allocation fails.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from profiler.errors import ProfileError
from profiler.units import printable

COLOURS = {  # name: (light, dark)
    "ground": ("#ffffff", "#0d1117"),
    "ink": ("#1f2328", "#e6edf3"),
    "muted": ("#59636e", "#9198a1"),
    "line": ("#d1d9e0", "#30363d"),
    "s1": ("#0969da", "#58a6ff"),
    "s2": ("#bc4c00", "#f0883e"),
    "s3": ("#1a7f37", "#3fb950"),
    "s4": ("#8250df", "#bc8cff"),
    "s5": ("#bf3989", "#f778ba"),
    "s6": ("#0b7285", "#39c5cf"),
    "s7": ("#9a6700", "#d29922"),
    "s8": ("#6e7781", "#8b949e"),
}
SERIES = tuple(COLOURS[f"s{number}"][0] for number in range(1, 9))
GROUND, INK, MUTED, LINE = (COLOURS[name][0] for name in ("ground", "ink", "muted", "line"))
TONES = {  # backgrounds of a map's cells, whose text has the colour ``ink``
    "fits": ("#dafbe1", "#12361f"),
    "tight": ("#fff1c2", "#3d2e00"),
    "offload": ("#ffe2cc", "#4a2408"),
    "no": ("#ffdcd7", "#4c1512"),
    "none": ("#f6f8fa", "#161b22"),
}

Spec = dict[str, Any]
ChartPoint = dict[str, Any]
Palette = Mapping[str, int]  # series → number of its colour
WIDTH, HEIGHT = 300, 190  # of the plot without axes, in pixels
WIDTH_WITH_LABELS = 170  # of a plot with labelled lines, in pixels
SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right", "triangle-left")
LETTER_WIDTH, SYMBOL_WIDTH, LEGEND_LETTERS = 6.0, 26.0, 22  # pixels at 11 px; letters that a legend shows
HEADROOM = 1.15  # upper end of an axis ÷ its highest figure
TOKENS = "datum.value >= 1024 && datum.value % 1024 == 0 ? datum.value / 1024 + 'k' : datum.value"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"

# Reads a specification in JSON per line, and writes a drawing or an error per line.
PROGRAM = """
import json, resource, sys
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
import vl_convert
for line in sys.stdin.buffer:
    try:
        answer = {"svg": vl_convert.vegalite_to_svg(json.loads(line), allowed_base_urls=[])}
    except Exception as error:
        answer = {"error": f"{type(error).__name__}: {error}"}
    sys.stdout.buffer.write(json.dumps(answer).encode() + b"\\n")
    sys.stdout.buffer.flush()
"""
FAILED = "the charts cannot be drawn"
WITHOUT = "profile report without --html and --md needs no charts."


def curves(points: Sequence[ChartPoint], x: str, y: str, series: Palette) -> Spec:
    """A line for each ``series`` with error bars (``low``, ``high``), over a logarithmic axis of tokens or sequences.

    The figures determine the axis, and bars are cut off at its top.
    """
    top = max(point["y"] for point in points) * HEADROOM
    top = max([top, *(point["high"] for point in points if point["high"] is not None and point["high"] < 2 * top)])
    values = [point | {"bar": None if point["high"] is None else min(point["high"], top)} for point in points]
    at = sorted({point["x"] for point in points})
    across = {
        "field": "x",
        "type": "quantitative",
        "title": x,
        "scale": {"type": "log", "base": 2, "domain": [at[0] / 1.2, at[-1] * 1.2], "nice": False},
        "axis": {"values": at, "labelExpr": TOKENS, "grid": False, "labelOverlap": True},
    }
    up = {"field": "y", "type": "quantitative", "title": y, "scale": {"domain": [0, top], "nice": False}}
    colour = _colour("series", series)
    shape = {"field": "series", "type": "nominal", "scale": {"domain": list(series), "range": _shapes(series)}}
    return _chart(
        values,
        [
            {"mark": {"type": "line", "strokeWidth": 1.8}, "encoding": {"x": across, "y": up, "color": colour}},
            {
                "transform": [{"filter": "datum.bar != null"}],
                "mark": {"type": "rule", "strokeWidth": 1.2},
                "encoding": {"x": across, "y": up | {"field": "low"}, "y2": {"field": "bar"}, "color": colour},
            },
            {
                "mark": {"type": "point", "filled": True, "size": 46, "opacity": 1},
                "encoding": {"x": across, "y": up, "color": colour, "shape": shape, "description": _said()},
            },
        ],
    )


def stacks(
    parts: Sequence[ChartPoint], names: Palette, limit: float | None, marks: Sequence[ChartPoint] = ()
) -> Spec:
    """Stacked bars in GiB of each ``part`` at each ``x``; ``marks`` are short lines, ``limit`` is a dashed line.

    Predicted bars are pale.
    """
    at = list(dict.fromkeys(point["x"] for point in parts))
    across = {"field": "x", "type": "ordinal", "title": "context", "sort": at, "axis": {"labelAngle": 0}}
    up = {"type": "quantitative", "title": "GiB", "axis": {"tickCount": 5}}
    layers: list[Spec] = [
        {
            "data": {"values": list(parts)},
            "mark": {"type": "bar"},
            "encoding": {
                "x": across,
                "y": up | {"field": "y", "stack": "zero"},
                "color": _colour("part", names),
                "order": {"field": "place", "type": "quantitative"},
                "opacity": {
                    "field": "how",
                    "type": "nominal",
                    "scale": {"domain": ["measured", "predicted"], "range": [1, 0.45]},
                    "legend": None,
                },
                "description": _said(),
            },
        }
    ]
    if marks:
        layers.append(
            {
                "data": {"values": list(marks)},
                "mark": {"type": "tick", "thickness": 2, "color": INK},
                "encoding": {"x": across, "y": up | {"field": "y"}, "description": _said()},
            }
        )
    if limit is not None:
        layers.append(_level(limit))
    return _base() | {"layer": layers}


def roofline(points: Sequence[ChartPoint], bytes_s: float, flop_s: float, series: Palette) -> Spec:
    """FLOP/s over FLOP per byte, with the roof given by ``bytes_s`` and ``flop_s``."""
    ridge = flop_s / bytes_s
    left = min([ridge, *(point["x"] for point in points)]) / 2
    right = max([ridge, *(point["x"] for point in points)]) * 2
    floor = min(point["y"] for point in points) / 2
    roof = [{"x": x, "y": min(flop_s, x * bytes_s)} for x in (left, ridge, right)]
    across = _log("x", "FLOP per byte", [left, right], "~g")
    up = _log("y", "FLOP/s", [min(floor, roof[0]["y"]), flop_s * 2], "~s")
    shape = {
        "field": "phase",
        "type": "nominal",
        "scale": {"domain": ["prefill", "decode"], "range": ["square", "circle"]},
        "legend": {"title": None, "symbolFillColor": INK, "symbolStrokeColor": INK},
    }
    return _base() | {
        "layer": [
            {
                "data": {"values": roof},
                "mark": {"type": "line", "color": INK, "strokeWidth": 2},
                "encoding": {"x": across, "y": up},
            },
            {
                "data": {"values": list(points)},
                "mark": {"type": "point", "filled": True, "size": 52, "opacity": 0.9},
                "encoding": {
                    "x": across,
                    "y": up,
                    "color": _colour("series", series),
                    "shape": shape,
                    "description": _said(),
                },
            },
        ]
    }


def shares(points: Sequence[ChartPoint]) -> Spec:
    """A dot per ``label`` and phase between 0 and 1, and a line at the ceiling."""
    labels = list(dict.fromkeys(point["label"] for point in points))
    top = max([1.0, *(point["x"] * 1.05 for point in points)])
    return _base(height=max(60, 17 * len(labels))) | {
        "width": WIDTH_WITH_LABELS,
        "layer": [
            {
                "data": {"values": list(points)},
                "mark": {"type": "point", "filled": True, "size": 52, "opacity": 1},
                "encoding": {
                    "x": {
                        "field": "x",
                        "type": "quantitative",
                        "title": "share of the ceiling",
                        "axis": {"format": "%", "tickCount": 5},
                        "scale": {"domain": [0, top], "nice": False},
                    },
                    "y": {
                        "field": "label",
                        "type": "nominal",
                        "sort": labels,
                        "title": None,
                        "axis": {"grid": True, "labelLimit": 190},
                    },
                    "color": _colour("phase", {"prefill": 0, "decode": 1}),
                    "shape": {
                        "field": "phase",
                        "type": "nominal",
                        "scale": {"domain": ["prefill", "decode"], "range": ["square", "circle"]},
                    },
                    "description": _said(),
                },
            },
            {
                "data": {"values": [{"x": 1}]},
                "mark": {"type": "rule", "color": INK, "strokeWidth": 1.5},
                "encoding": {"x": {"field": "x", "type": "quantitative"}},
            },
        ],
    }


def frontier(points: Sequence[ChartPoint], x: str, y: str, series: Palette, zero: bool = True) -> Spec:
    """Cases by two figures; those on the frontier of their series are highlighted and joined.

    ``zero``: whether the ``y`` axis starts at 0.
    """
    across = {"field": "x", "type": "quantitative", "title": x, "scale": {"zero": True}}
    up = {"field": "y", "type": "quantitative", "title": y, "axis": {"tickCount": 5}, "scale": {"zero": zero}}
    best = sorted((point for point in points if point["best"]), key=lambda point: point["x"])
    return _base() | {
        "layer": [
            {
                "data": {"values": best},
                "mark": {"type": "line", "strokeDash": [4, 3]},
                "encoding": {"x": across, "y": up, "color": _colour("series", series)},
            },
            {
                "data": {"values": list(points)},
                "mark": {"type": "point", "filled": True, "size": 60},
                "encoding": {
                    "x": across,
                    "y": up,
                    "color": _colour("series", series),
                    "shape": {
                        "field": "series",
                        "type": "nominal",
                        "scale": {"domain": list(series), "range": _shapes(series)},
                    },
                    "opacity": {
                        "field": "best",
                        "type": "nominal",
                        "scale": {"domain": [True, False], "range": [1, 0.35]},
                        "legend": None,
                    },
                    "description": _said(),
                },
            },
        ]
    }


def _base(height: int = HEIGHT) -> Spec:
    axis = {"labelColor": MUTED, "titleColor": MUTED, "titleFontWeight": "normal", "labelFontSize": 11}
    lines = {"gridColor": LINE, "domainColor": LINE, "tickColor": LINE, "titleFontSize": 11}
    return {
        "$schema": SCHEMA,
        "width": WIDTH,
        "height": height,
        "background": GROUND,
        "config": {
            "font": FONT,
            "view": {"stroke": None},
            "axis": axis | lines,
            "legend": {"orient": "bottom", "labelColor": INK, "titleColor": MUTED, "labelFontSize": 11}
            | {"symbolOpacity": 1, "title": None, "labelLimit": LEGEND_LETTERS * LETTER_WIDTH},
        },
    }


def _chart(values: Sequence[ChartPoint], layers: Sequence[Spec]) -> Spec:
    return _base() | {"data": {"values": list(values)}, "layer": list(layers)}


def _colour(field: str, palette: Palette) -> Spec:
    colours = [SERIES[place % len(SERIES)] for place in palette.values()]
    scale = {"domain": list(palette), "range": colours}
    legend = {"title": None, "columns": _columns(palette)}
    return {"field": field, "type": "nominal", "scale": scale, "legend": legend}


def _columns(names: Iterable[str]) -> int:
    """The number of legend columns that fit the width of the plot; a wider legend would shrink the chart."""
    longest = max((min(len(name), LEGEND_LETTERS) for name in names), default=1)
    return max(1, min(4, int(WIDTH / (longest * LETTER_WIDTH + SYMBOL_WIDTH))))


def _shapes(palette: Palette) -> list[str]:
    return [SHAPES[place % len(SHAPES)] for place in palette.values()]


def _said() -> Spec:
    """The description of a mark, for screen readers and on hover."""
    return {"field": "said", "type": "nominal"}


def _log(field: str, title: str, domain: list[float], form: str) -> Spec:
    return {
        "field": field,
        "type": "quantitative",
        "title": title,
        "scale": {"type": "log", "domain": domain, "nice": False},
        "axis": {"format": form, "grid": False, "labelOverlap": True},
    }


def _level(limit: float) -> Spec:
    return {
        "data": {"values": [{"y": limit}]},
        "mark": {"type": "rule", "color": SERIES[1], "strokeWidth": 2, "strokeDash": [6, 3]},
        "encoding": {"y": {"field": "y", "type": "quantitative"}},
    }


_open: list[_Pen | None] = []  # the drawing process of each active ``kept``; None until something is drawn


def svg(spec: Spec) -> str:
    """The chart as SVG 1.1 in light colours. The first one takes a second to start Vega. Raises ProfileError."""
    if not _open:
        with kept():
            return svg(spec)
    pen = _open[-1] = _open[-1] or _Pen()
    return pen.draw(spec)


@contextmanager
def kept() -> Iterator[None]:
    """Use one process for all drawings inside this context."""
    _open.append(None)
    try:
        yield
    finally:
        pen = _open.pop()
        if pen is not None:
            pen.close()


class _Pen:
    """The drawing process."""

    def __init__(self) -> None:
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", PROGRAM],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        except OSError as error:
            raise ProfileError(f"{FAILED}: cannot start a process: {error.strerror}", WITHOUT) from None

    def draw(self, spec: Spec) -> str:
        orders, answers = self._process.stdin, self._process.stdout
        assert orders is not None and answers is not None  # asked for above
        try:
            orders.write(json.dumps(spec).encode() + b"\n")
            orders.flush()
            line = answers.readline()
        except BrokenPipeError:
            line = b""
        if not line.endswith(b"\n"):
            raise ProfileError(f"{FAILED}: {self._ending()}", f"{self._remedy()} {WITHOUT}")
        answer: dict[str, Any] = json.loads(line)
        if "svg" not in answer:
            raise ProfileError(f"{FAILED}: vl-convert: {printable(answer['error'])}", WITHOUT)
        return str(answer["svg"])

    def _ending(self) -> str:
        code = self._process.wait()
        if code >= 0:
            return f"vl-convert, which draws them, failed to start (exit code {code})"
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        return f"vl-convert, which draws them, was killed by {name}, which happens when memory runs out"

    def _remedy(self) -> str:
        if self._process.returncode > 0:
            return "Reinstall it: pip install --force-reinstall vl-convert-python."
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        if limit == resource.RLIM_INFINITY:
            return "Free some memory."
        return f"It reserves more address space than the limit allows (ulimit -v {limit // 1024}); raise the limit."

    def close(self) -> None:
        self._process.kill()  # it has nothing to clean up
        self._process.communicate()
