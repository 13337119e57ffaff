"""The charts of a report: colours, Vega-Lite specifications, and their drawings.

**Colours.** Charts are drawn once, in the light values. A page names the same values in its style sheet
(``[fill="#0969da"]``) and gives them variables there, so the one drawing follows the reader's theme and is an image
by itself as well. Text has at least 4.5:1 against its ground in both themes and marks 3:1 (WCAG 2.2, 1.4.3 and
1.4.11); a test counts.

**Specifications.** They are written as the grammar itself. A wrapper such as Altair would add half a second to every
report and five packages, and what it gives, validation, is a test's business (``test_plots.py`` holds every chart to
its schema). All are narrow: a page puts them beside each other, and on a phone one below the other at a size that can
be read.

**Drawings** are made offline: Vega runs inside ``vl-convert`` and fetches nothing. It runs in a process of its own:
V8 takes a refused allocation for a bug and ends the process by a trap, and what ends must not be the one that holds a
report.
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
TONES = {  # grounds of a map's cells, under text in ``ink``
    "fits": ("#dafbe1", "#12361f"),
    "tight": ("#fff1c2", "#3d2e00"),
    "offload": ("#ffe2cc", "#4a2408"),
    "no": ("#ffdcd7", "#4c1512"),
    "none": ("#f6f8fa", "#161b22"),
}

Spec = dict[str, Any]
ChartPoint = dict[str, Any]
Palette = Mapping[str, int]  # series and their places in the row of colours
WIDTH, HEIGHT = 300, 190  # of the plot without its axes
BESIDE_LABELS = 170  # of a plot whose lines have names
SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right", "triangle-left")
LETTER_WIDTH, SYMBOL_WIDTH, LEGEND_LETTERS = 6.0, 26.0, 22  # pixels at 11 px; letters that a legend shows
HEADROOM = 1.15  # of an axis over its highest figure
TOKENS = "datum.value >= 1024 && datum.value % 1024 == 0 ? datum.value / 1024 + 'k' : datum.value"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"

# A specification in JSON on each line, a picture or what is wrong on each line.
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


def stacks(
    parts: Sequence[ChartPoint], names: Palette, limit: float | None, marks: Sequence[ChartPoint] = ()
) -> Spec:
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
                "mark": {"type": "tick", "thickness": 2, "color": INK},
                "encoding": {"x": across, "y": up | {"field": "y"}, "description": _said()},
            }
        )
    if limit is not None:
        layers.append(_level(limit))
    return _base() | {"layer": layers}


def roofline(points: Sequence[ChartPoint], bytes_s: float, flop_s: float, series: Palette) -> Spec:
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
                "mark": {"type": "rule", "color": INK, "strokeWidth": 1.5},
                "encoding": {"x": {"field": "x", "type": "quantitative"}},
            },
        ],
    }


def frontier(points: Sequence[ChartPoint], x: str, y: str, series: Palette, zero: bool = True) -> Spec:
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
        "mark": {"type": "rule", "color": SERIES[1], "strokeWidth": 2, "strokeDash": [6, 3]},
        "encoding": {"y": {"field": "y", "type": "quantitative"}},
    }


_open: list[
    _Pen | None
] = []  # the drawing process of each ``kept`` that is entered; none yet where nothing was drawn


def svg(spec: Spec) -> str:
    """SVG 1.1, in the light colours of ``theme``. The first one takes a second: Vega starts. Raises ProfileError."""
    if not _open:
        with kept():
            return svg(spec)
    pen = _open[-1] = _open[-1] or _Pen()
    return pen.draw(spec)


@contextmanager
def kept() -> Iterator[None]:
    """Have all drawings inside come from one process."""
    _open.append(None)
    try:
        yield
    finally:
        pen = _open.pop()
        if pen is not None:
            pen.close()


class _Pen:
    """The process that draws."""

    def __init__(self) -> None:
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", PROGRAM],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        except OSError as error:
            raise ProfileError(f"{FAILED}: no process can be started: {error.strerror}", WITHOUT) from None

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
            return f"vl-convert, which draws them, does not start (exit code {code})"
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        return f"vl-convert, which draws them, was ended by {name}, as it is where memory is refused"

    def _remedy(self) -> str:
        if self._process.returncode > 0:
            return "Install it again: pip install --force-reinstall vl-convert-python."
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        if limit == resource.RLIM_INFINITY:
            return "Free some memory."
        return f"It reserves far more address space than this limit (ulimit -v {limit // 1024}): raise it."

    def close(self) -> None:
        self._process.kill()  # it has nothing to tidy up
        self._process.communicate()
