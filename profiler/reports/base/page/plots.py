"""Charts as Vega-Lite specifications: data in, a dictionary out; ``drawing.py`` makes a picture of it.

They are written as the grammar itself. A wrapper such as Altair would add half a second to every report and five
packages, and what it gives, validation, is a test's business (``test_plots.py`` holds every chart to its schema).
All are narrow: a page puts them beside each other, and on a phone one below the other at a size that can be read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from profiler.reports.base.page import theme

Spec = dict[str, Any]
Point = dict[str, Any]
Palette = Mapping[str, int]  # series and their places in the row of colours

WIDTH, HEIGHT = 300, 190  # of the plot without its axes
BESIDE_LABELS = 170  # of a plot whose lines have names
SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right", "triangle-left")
LETTER_WIDTH, SYMBOL_WIDTH, LEGEND_LETTERS = 6.0, 26.0, 22  # pixels at 11 px; letters that a legend shows
HEADROOM = 1.15  # of an axis over its highest figure
TOKENS = "datum.value >= 1024 && datum.value % 1024 == 0 ? datum.value / 1024 + 'k' : datum.value"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"


def curves(points: Sequence[Point], x: str, y: str, series: Palette) -> Spec:
    """``x`` and ``y`` with ``low`` and ``high`` of each ``series``, over a logarithmic axis of tokens or sequences.

    Bars are cut at the top of the axis, which the figures set and not their intervals.
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


def stacks(parts: Sequence[Point], names: Palette, limit: float | None, marks: Sequence[Point] = ()) -> Spec:
    """GiB of each ``part`` on each other at each ``x``; ``marks`` are short lines across; ``limit`` if in sight.

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
                "mark": {"type": "tick", "thickness": 2, "color": theme.INK},
                "encoding": {"x": across, "y": up | {"field": "y"}, "description": _said()},
            }
        )
    if limit is not None:
        layers.append(_level(limit))
    return _base() | {"layer": layers}


def roofline(points: Sequence[Point], bytes_s: float, flop_s: float, series: Palette) -> Spec:
    """FLOP/s over FLOP per byte, under the roof of ``bytes_s`` and ``flop_s``."""
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
        "legend": {"title": None, "symbolFillColor": theme.INK, "symbolStrokeColor": theme.INK},
    }
    return _base() | {
        "layer": [
            {
                "data": {"values": roof},
                "mark": {"type": "line", "color": theme.INK, "strokeWidth": 2},
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


def shares(points: Sequence[Point]) -> Spec:
    """Dots between 0 and 1 for each ``label``, one for each phase, and the ceiling."""
    labels = list(dict.fromkeys(point["label"] for point in points))
    top = max([1.0, *(point["x"] * 1.05 for point in points)])
    return _base(height=max(60, 17 * len(labels))) | {
        "width": BESIDE_LABELS,
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
                "mark": {"type": "rule", "color": theme.INK, "strokeWidth": 1.5},
                "encoding": {"x": {"field": "x", "type": "quantitative"}},
            },
        ],
    }


def frontier(points: Sequence[Point], x: str, y: str, series: Palette, zero: bool = True) -> Spec:
    """Cases by two figures; those that no other of their series beats stand out and are joined.

    ``zero``: ``y`` starts there.
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
    axis = {"labelColor": theme.MUTED, "titleColor": theme.MUTED, "titleFontWeight": "normal", "labelFontSize": 11}
    lines = {"gridColor": theme.LINE, "domainColor": theme.LINE, "tickColor": theme.LINE, "titleFontSize": 11}
    return {
        "$schema": SCHEMA,
        "width": WIDTH,
        "height": height,
        "background": theme.GROUND,
        "config": {
            "font": FONT,
            "view": {"stroke": None},
            "axis": axis | lines,
            "legend": {"orient": "bottom", "labelColor": theme.INK, "titleColor": theme.MUTED, "labelFontSize": 11}
            | {"symbolOpacity": 1, "title": None, "labelLimit": LEGEND_LETTERS * LETTER_WIDTH},
        },
    }


def _chart(values: Sequence[Point], layers: Sequence[Spec]) -> Spec:
    return _base() | {"data": {"values": list(values)}, "layer": list(layers)}


def _colour(field: str, palette: Palette) -> Spec:
    colours = [theme.SERIES[place % len(theme.SERIES)] for place in palette.values()]
    scale = {"domain": list(palette), "range": colours}
    legend = {"title": None, "columns": _columns(palette)}
    return {"field": field, "type": "nominal", "scale": scale, "legend": legend}


def _columns(names: Iterable[str]) -> int:
    """Of a legend that is no wider than the plot: wider, and the whole chart would be scaled down."""
    longest = max((min(len(name), LEGEND_LETTERS) for name in names), default=1)
    return max(1, min(4, int(WIDTH / (longest * LETTER_WIDTH + SYMBOL_WIDTH))))


def _shapes(palette: Palette) -> list[str]:
    return [SHAPES[place % len(SHAPES)] for place in palette.values()]


def _said() -> Spec:
    """What a mark says of itself: to a screen reader, and to a pointer that rests on it."""
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
        "mark": {"type": "rule", "color": theme.SERIES[1], "strokeWidth": 2, "strokeDash": [6, 3]},
        "encoding": {"y": {"field": "y", "type": "quantitative"}},
    }
