"""The charts of a report: colors, plots, and their drawings as SVG.

**Colors.** Charts are drawn once, with the light values. The page's style sheet matches these values
(``[fill="#0969da"]``) and replaces them by variables, so that one drawing follows the reader's theme and also works
as a separate image. The contrast to the background is at least 4.5:1 for text and 3:1 for marks in both themes (WCAG
2.2, 1.4.3 and 1.4.11); a test checks it.

**Plots** are data: two axes, lines and marks. ``curves``, ``stacks``, ``roofline``, ``frontier`` and ``losses`` make
the kinds that a report has. All are narrow, so that a page can put them side by side, and a phone one below another.

**Drawings** are plain SVG 1.1 and complete by themselves: a mark has its figures as a ``<title>``, which browsers
show on hover and screen readers read. ``data-`` attributes say what the page's script needs to zoom and to filter. We
draw them ourselves because a charting library would cost more than the report: Vega inside V8 took a second and 60
MiB to start, and what it draws does not say which mark belongs to which model.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise, repeat

from profiler.units import KIB, significant

COLORS = {  # name: (light, dark)
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
SERIES = tuple(COLORS[f"s{number}"][0] for number in range(1, 9))
GROUND, INK, MUTED, LINE = (COLORS[name][0] for name in ("ground", "ink", "muted", "line"))
TONES = {  # backgrounds of a map's cells, whose text has the color ``ink``
    "fits": ("#dafbe1", "#12361f"),
    "tight": ("#fff1c2", "#3d2e00"),
    "offload": ("#ffe2cc", "#4a2408"),
    "no": ("#ffdcd7", "#4c1512"),
    "none": ("#f6f8fa", "#161b22"),
}

Box = tuple[float, float, float, float]  # left, upper, right and lower end in pixels
Palette = Mapping[str, int]  # series → number of its color
Keys = tuple[str, str]  # model and quantization, by which a reader filters

WIDTH, HEIGHT = 320, 190  # of the plot without axes, in pixels
ABOVE, BELOW, RIGHT, LETTER = 22, 36, 16, 6.2  # pixels around the plot; the width of a letter at 11 px
WIDE_LETTER = 7.0  # in wide fonts: labels within the plot must not touch
HEADROOM = 1.15  # upper end of an axis ÷ its highest figure
TICKS = 5  # about so many on an axis
SYMBOL_WIDTH, LEGEND_LETTERS, LEGEND_LINE = 24.0, 40, 16
BAR = 0.68  # width of a bar ÷ distance of the bars
LARGEST, SMALLEST = 2.0, 0.6  # of points whose area says something ÷ usual size
LINE_BOX = 3  # pixels of a line between two boxes that keep labels away
LABEL_PLACES = (  # of the label of a point: steps to the right and down, and the end of the text that is there
    *((1, 0, "start"), (0.7, 0.7, "start"), (-1, 0, "end"), (-0.7, -0.7, "end")),
    *((0, 1, "middle"), (0, -1, "middle"), (0.7, -0.7, "start"), (-0.7, 0.7, "end")),
    *((-0.1, -1.3, "end"), (0.1, -1.3, "start")),  # where a steep line begins
)
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"
SHAPES = {
    "circle": "M-4,0A4,4 0 1 1 4,0A4,4 0 1 1 -4,0Z",
    "square": "M-3.5,-3.5H3.5V3.5H-3.5Z",
    "triangle-up": "M0,-4.6L4.4,3.4H-4.4Z",
    "diamond": "M0,-5L5,0L0,5L-5,0Z",
    "cross": "M-1.5,-4.5H1.5V-1.5H4.5V1.5H1.5V4.5H-1.5V1.5H-4.5V-1.5H-1.5Z",
    "triangle-down": "M0,4.6L4.4,-3.4H-4.4Z",
    "triangle-right": "M4.6,0L-3.4,4.4V-4.4Z",
    "triangle-left": "M-4.6,0L3.4,4.4V-4.4Z",
}


@dataclass(frozen=True, slots=True)
class Axis:
    """From ``low`` to ``high``. ``ticks``: values and labels; None: round figures."""

    title: str
    low: float
    high: float
    log: bool = False
    ticks: tuple[tuple[float, str], ...] | None = None

    def at(self, value: float) -> float:
        """The place of a value: 0 at ``low``, 1 at ``high``."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


@dataclass(frozen=True, slots=True)
class Mark:
    """A point or, with a ``base``, a bar. ``said``: all of it in words. ``low`` and ``high``: its interval."""

    x: float
    y: float
    series: str
    said: str
    low: float | None = None
    high: float | None = None
    base: float | None = None
    shape: str | None = None  # of ``SHAPES``; None: the shape of the series; ``tick``: a short line
    pale: bool = False
    keys: Keys | None = None
    label: str = ""  # beside a point, where there is room
    area: float | None = None  # of a point ÷ that of the largest one; None: of the usual size


@dataclass(frozen=True, slots=True)
class Polyline:
    """Joined points of a series; without one, in the color of text."""

    points: tuple[tuple[float, float], ...]
    series: str | None = None
    dashed: bool = False
    keys: Keys | None = None
    joins: bool = False  # cases of several quantizations, or of several models if it has no keys


@dataclass(frozen=True, slots=True)
class Plot:
    """What a chart shows. ``zooms``: whether its axes are continuous, so that a reader may look closer."""

    x: Axis
    y: Axis
    palette: Palette = field(hash=False)
    marks: tuple[Mark, ...] = ()
    lines: tuple[Polyline, ...] = ()
    zooms: bool = True
    shapes: tuple[str, ...] = ()  # explained in the legend, by the order of ``SHAPES``


def curves(marks: Sequence[Mark], x: str, y: str, series: Palette) -> Plot:
    """A line for each series with error bars, over a logarithmic axis of tokens or sequences.

    The figures determine the axis, and bars are cut off at its top.
    """
    top = max(mark.y for mark in marks) * HEADROOM
    top = max([top, *(mark.high for mark in marks if mark.high is not None and mark.high < 2 * top)])
    at = sorted({mark.x for mark in marks})
    across = Axis(x, at[0] / 1.2, at[-1] * 1.2, True, tuple((value, count_text(value)) for value in at))
    cut = tuple(mark if mark.high is None else replace(mark, high=min(mark.high, top)) for mark in marks)
    lines = tuple(
        Polyline(tuple((mark.x, mark.y) for mark in mine), name, keys=mine[0].keys)
        for name in series
        if (mine := sorted((mark for mark in marks if mark.series == name), key=lambda mark: mark.x))
    )
    return Plot(across, Axis(y, 0, top), series, cut, lines)


def stacks(
    bars: Sequence[tuple[str, Mark]],
    names: Palette,
    x: str,
    limit: float | None,
    ticks: Sequence[tuple[str, Mark]] = (),
) -> Plot:
    """Bars in GiB by the label of their place, stacked in the given order; ``ticks`` are short lines, ``limit`` is a
    dashed line.
    """
    labels = list(dict.fromkeys(label for label, _ in bars))
    heights, marks = dict.fromkeys(labels, 0.0), []
    for label, mark in bars:
        base, heights[label] = heights[label], heights[label] + mark.y
        marks.append(replace(mark, x=labels.index(label), y=heights[label], base=base))
    marks += [replace(mark, x=labels.index(label), shape="tick") for label, mark in ticks]
    top = max([*(mark.y for mark in marks), limit or 0]) * 1.05
    across = Axis(x, -0.5, len(labels) - 0.5, ticks=tuple(enumerate(labels)))
    lines = () if limit is None else (Polyline(((-0.5, limit), (len(labels) - 0.5, limit)), None, dashed=True),)
    return Plot(across, Axis("GiB", 0, top), names, tuple(marks), lines, zooms=False)


def roofline(marks: Sequence[Mark], bytes_s: float, flop_s: float, series: Palette) -> Plot:
    """FLOP/s over FLOP per byte, with the roof given by ``bytes_s`` and ``flop_s``."""
    ridge = flop_s / bytes_s
    left = min([ridge, *(mark.x for mark in marks)]) / 2
    right = max([ridge, *(mark.x for mark in marks)]) * 2
    floor = min([mark.y for mark in marks] + [left * bytes_s]) / 2
    roof = Polyline(tuple((x, min(flop_s, x * bytes_s)) for x in (left, ridge, right)))
    across, up = Axis("FLOP per byte", left, right, True), Axis("FLOP/s", floor, flop_s * 2, True)
    return Plot(across, up, series, tuple(marks), (roof,), shapes=("decode", "prefill"))


def frontier(marks: Sequence[Mark], x: str, y: str, series: Palette, zero: bool = True) -> Plot:
    """Cases by two figures. The ones that are not ``pale`` are the frontier of their series, and joined.

    ``zero``: whether the ``y`` axis starts at 0.
    """
    lines = []
    for name in series:
        best = sorted((mark.x, mark.y) for mark in marks if mark.series == name and not mark.pale)
        keys = next(mark.keys for mark in marks if mark.series == name)
        lines += [Polyline(tuple(best), name, True, keys, joins=True)] if best else []
    highs, lows = max(mark.y for mark in marks), min(mark.y for mark in marks)
    space = (highs - lows or abs(highs) or 1) * (HEADROOM - 1)
    up = Axis(y, 0 if zero else lows - space, highs * HEADROOM if zero else highs + space)
    return Plot(Axis(x, 0, max(mark.x for mark in marks) * HEADROOM), up, series, tuple(marks), tuple(lines))


def losses(marks: Sequence[Mark], x: str, y: str, series: Palette) -> Plot:
    """Cases by a figure and by a loss, over a logarithmic axis of losses whose lower end stands for no loss at all.

    The line joins the marks that no other one beats in both.
    """
    known = [end for mark in marks if mark.y for end in (mark.low, mark.y, mark.high) if end]
    first = math.floor(math.log10(min(known, default=0.001)))
    last = max(math.ceil(math.log10(max(known, default=0.001) * HEADROOM)), first + 1)
    nothing = any(mark.y == 0 for mark in marks)
    first -= nothing
    steps = (1, 2, 5) if last - first - nothing <= 2 else (1,)
    values = [step * 10.0**power for power in range(first + nothing, last + 1) for step in steps]
    ticks = [(value, f"{value:.10f}".rstrip("0").rstrip(".")) for value in values if value <= 10.0**last]
    ticks = [(10.0**first, "0"), *ticks] if nothing else ticks
    across = Axis(x, 0, max(mark.x for mark in marks) * HEADROOM)
    best = [
        mark
        for mark in sorted(marks, key=lambda mark: (mark.x, mark.y))
        if not any(m.x >= mark.x and m.y <= mark.y and (m.x, m.y) != (mark.x, mark.y) for m in marks)
    ]
    line = Polyline(tuple((mark.x, mark.y) for mark in best), None, dashed=True, joins=True)
    drawn = tuple(mark if mark.y else replace(mark, low=None, high=None) for mark in marks)
    return Plot(
        across, Axis(y, 10.0**first, 10.0**last, True, tuple(ticks)), series, drawn, (line,) * (len(best) > 1)
    )


def count_text(value: float) -> str:
    """``512``, ``32k``."""
    whole = round(value)
    return f"{whole // KIB}k" if whole >= KIB and whole % KIB == 0 else f"{whole:,}"


def tick_text(value: float) -> str:
    """``0.5``, ``20``, ``1.5k``, ``20G``."""
    for factor, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor and not (letter == "k" and abs(value) < 1e4):
            return f"{value / factor:.4g}{letter}"
    return f"{value:,.4g}" if abs(value) < 1e3 else f"{value:,.0f}"


def round_ticks(axis: Axis) -> tuple[tuple[float, str], ...]:
    """Round figures on an axis: 1, 2 or 5 times a power of ten."""
    if axis.ticks is not None:
        return axis.ticks
    if axis.log:
        first, last = math.floor(math.log10(axis.low)), math.ceil(math.log10(axis.high))
        steps = (1,) if last - first > 3 else (1, 2, 5)
        values = [step * 10.0**power for power in range(first, last + 1) for step in steps]
    else:
        rough = (axis.high - axis.low) / TICKS
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.99)
        values = [step * number for number in range(math.ceil(axis.low / step), math.floor(axis.high / step) + 1)]
    return tuple((value, tick_text(value)) for value in values if axis.low <= value <= axis.high)


def svg(plot: Plot) -> str:
    """The chart as SVG 1.1 in light colors."""
    ups = round_ticks(plot.y)
    left = max([len(label) for _, label in ups], default=1) * LETTER + 12
    legend, depth = _legend(plot, left)
    width, height = left + WIDTH + RIGHT, ABOVE + HEIGHT + BELOW + depth
    scales = "".join(
        f' data-{name}="{"log" if axis.log else "linear"} {axis.low:.6g} {axis.high:.6g}"'
        for name, axis in (("x", plot.x), ("y", plot.y))
    )
    fixed = " data-fixed" if plot.x.ticks is not None else ""
    zooms = scales + fixed.replace("fixed", 'fixed=""') if plot.zooms else ""
    labels = _labels(plot)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}"'
        f' viewBox="0 0 {width:.0f} {height:.0f}" font-family="{FONT}" font-size="11"{zooms}>',
        f'<rect width="{width:.0f}" height="{height:.0f}" fill="{GROUND}"/>',
        f'<text x="2" y="12" fill="{MUTED}">{_escaped(plot.y.title)}</text>',
        _up(plot, ups, left),
        _across(plot, left),
        f'<svg class="plot" x="{left:.0f}" y="{ABOVE}" width="{WIDTH}" height="{HEIGHT}" overflow="visible">',
        f'<g class="lines" fill="none">{"".join(_lines(plot))}</g>',
        f'<g class="marks">{"".join(map(_mark, repeat(plot), plot.marks, labels))}</g>',
        "</svg>",
        legend,
        "</svg>",
    ]
    return "".join(parts)


def _up(plot: Plot, ticks: Sequence[tuple[float, str]], left: float) -> str:
    found = []
    for value, label in ticks:
        y = (1 - plot.y.at(value)) * HEIGHT
        found.append(
            f'<g transform="translate(0,{y:.1f})"><path d="M0,0H{WIDTH}" stroke="{LINE}" fill="none"/>'
            f'<text x="-6" y="4" fill="{MUTED}" text-anchor="end">{_escaped(label)}</text></g>'
        )
    return f'<g class="up" transform="translate({left:.0f},{ABOVE})">{"".join(found)}</g>'


def _across(plot: Plot, left: float) -> str:
    found, free = [], -math.inf
    for value, label in round_ticks(plot.x):
        x, half = plot.x.at(value) * WIDTH, len(label) * LETTER / 2
        shown = x - half > free  # a label that would touch the one before is left out
        free = x + half + 4 if shown else free
        text = f'<text y="16" fill="{MUTED}" text-anchor="middle">{_escaped(label)}</text>' if shown else ""
        found.append(f'<g transform="translate({x:.1f},0)"><path d="M0,0V4" stroke="{LINE}" fill="none"/>{text}</g>')
    bottom = ABOVE + HEIGHT
    return (
        f'<path d="M{left:.0f},{bottom}h{WIDTH}" stroke="{MUTED}" fill="none"/>'
        f'<g class="across" transform="translate({left:.0f},{bottom})">{"".join(found)}</g>'
        f'<text x="{left + WIDTH:.0f}" y="{bottom + 31}" fill="{MUTED}" text-anchor="end">'
        f"{_escaped(plot.x.title)}</text>"
    )


def _lines(plot: Plot) -> list[str]:
    """Lines, then the error bars of marks. Their strokes keep their width when the group is scaled."""
    found = []
    for line in plot.lines:
        places = [_place(plot, x, y) for x, y in line.points]
        path = "M" + "L".join(f"{x:.1f},{y:.1f}" for x, y in places)
        dash = ' stroke-dasharray="6 4"' if line.dashed else ""
        stroke = INK if line.series is None else _color(plot, line.series)
        found.append(f'<path d="{path}" stroke="{stroke}" stroke-width="1.8"{dash}{_of_line(line)}/>')
    for mark in plot.marks:
        if mark.low is not None and mark.high is not None:
            (x, low), (_, high) = _place(plot, mark.x, mark.low), _place(plot, mark.x, mark.high)
            stroke = _color(plot, mark.series)
            found.append(
                f'<path d="M{x:.1f},{low:.1f}V{high:.1f}" stroke="{stroke}" stroke-width="1.2"{_kept(mark.keys)}/>'
            )
    return [each.replace("<path ", '<path vector-effect="non-scaling-stroke" ', 1) for each in found]


def _mark(plot: Plot, mark: Mark, label: str) -> str:
    """A mark; ``label``: its drawn label. A labelled one is a group, which moves and fades as one."""
    x, y = _place(plot, mark.x, mark.y)
    wide = BAR * WIDTH / (plot.x.high - plot.x.low)
    if mark.base is not None:
        _, bottom = _place(plot, mark.x, mark.base)
        shape = f"M{-wide / 2:.1f},0h{wide:.1f}v{bottom - y:.1f}h{-wide:.1f}Z"
    elif mark.shape == "tick":
        shape = f"M{-wide / 2:.1f},-1h{wide:.1f}v2h{-wide:.1f}Z"
    else:
        shape = SHAPES[mark.shape or _shape(plot, mark.series)]
    fill = INK if mark.shape == "tick" else _color(plot, mark.series)
    pale = ' opacity="0.4"' if mark.pale else ""
    place, title = f' transform="translate({x:.1f},{y:.1f})"', f"<title>{_escaped(mark.said)}</title>"
    if not mark.label:
        return f'<path class="mark" d="{shape}"{place} fill="{fill}"{pale}{_kept(mark.keys)}>{title}</path>'
    point = f'<path d="{shape}" transform="scale({_scale(mark):.2f})" fill="{fill}"{pale}/>'
    return f'<g class="mark"{place}{_kept(mark.keys)}>{point}{label}{title}</g>'


def _scale(mark: Mark) -> float:
    """The size of a point ÷ that of its shape."""
    return 1.0 if mark.area is None else max(SMALLEST, LARGEST * math.sqrt(mark.area))


def _labels(plot: Plot) -> list[str]:
    """The label of each mark, empty if it has none or if there is no room: its figures are also its ``<title>``.

    Pale marks come last, because they matter least.
    """
    taken: list[Box] = []
    for mark in plot.marks if any(mark.label for mark in plot.marks) else ():
        (x, y), radius = _place(plot, mark.x, mark.y), 4 * _scale(mark)
        taken.append((x - radius, y - radius, x + radius, y + radius))
    if taken:
        taken += [box for line in plot.lines for box in _along(plot, line)]
    places = [(mark, _place(plot, mark.x, mark.y)) for mark in plot.marks]
    named = sorted((mark for mark in plot.marks if mark.label), key=lambda mark: mark.pale)
    drawn = {id(mark): _label(plot, mark, taken, places) for mark in named}
    return [drawn.get(id(mark), "") for mark in plot.marks]


def _along(plot: Plot, line: Polyline) -> list[Box]:
    """Small boxes that cover a line."""
    places = [_place(plot, x, y) for x, y in line.points]
    found = []
    for (x0, y0), (x1, y1) in pairwise(places):
        count = max(1, int(math.dist((x0, y0), (x1, y1)) / LINE_BOX))
        for n in range(count + 1):
            x, y = x0 + (x1 - x0) * n / count, y0 + (y1 - y0) * n / count
            found.append((x - 1, y - 1, x + 1, y + 1))
    return found


def _label(plot: Plot, mark: Mark, taken: list[Box], places: Sequence[tuple[Mark, tuple[float, float]]]) -> str:
    """The label of a mark at the first of ``LABEL_PLACES`` that is free, and then ``taken``, and that is nearer to it
    than to any other of the marks, whose ``places`` are given.
    """
    (x, y), away, wide = _place(plot, mark.x, mark.y), 4 * _scale(mark) + 4, len(mark.label) * WIDE_LETTER
    for across, down, anchor in LABEL_PLACES:
        dx, dy = across * away, down * (away + 4) + 4
        left = x + dx - {"start": 0, "middle": wide / 2, "end": wide}[anchor]
        box = (left, y + dy - 9, left + wide, y + dy + 2)
        inside = box[0] > 2 and box[2] < WIDTH + RIGHT and box[1] > 0 and box[3] < HEIGHT
        apart = not any(_meet(box, other) for other in taken)
        own = _gap(box, (x, y))
        if inside and apart and all(mark is other or _gap(box, at) > own for other, at in places):
            taken.append(box)
            place = f'x="{dx:.1f}" y="{dy:.1f}" fill="{INK}" text-anchor="{anchor}"'
            return f"<text {place}>{_escaped(mark.label)}</text>"
    return ""


def _gap(box: Box, place: tuple[float, float]) -> float:
    """The distance of a place from a box, in pixels."""
    (left, upper, right, lower), (x, y) = box, place
    return math.hypot(max(left - x, 0, x - right), max(upper - y, 0, y - lower))


def _meet(a: Box, b: Box) -> bool:
    """Whether two boxes overlap."""
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _place(plot: Plot, x: float, y: float) -> tuple[float, float]:
    return plot.x.at(x) * WIDTH, (1 - plot.y.at(max(y, plot.y.low))) * HEIGHT


def _color(plot: Plot, series: str) -> str:
    return SERIES[plot.palette[series] % len(SERIES)]


def _shape(plot: Plot, series: str) -> str:
    return [*SHAPES][plot.palette[series] % len(SHAPES)]


def _kept(keys: Keys | None) -> str:
    """The attributes by which the page's script filters."""
    if keys is None:
        return ""
    return f' data-model="{_escaped(keys[0])}" data-quant="{_escaped(keys[1])}"'


def _of_line(line: Polyline) -> str:
    """The same for a line. One that joins quantizations is hidden as soon as the reader hides some."""
    if not line.joins:
        return _kept(line.keys)
    return ' data-joins=""' + ("" if line.keys is None else f' data-model="{_escaped(line.keys[0])}"')


def _legend(plot: Plot, left: float) -> tuple[str, float]:
    """The series below the plot in as many columns as fit, and the height that they take."""
    points = any(mark.base is None and mark.shape is None for mark in plot.marks)
    entries = [
        (name, _color(plot, name), SHAPES[_shape(plot, name) if points else "square"]) for name in plot.palette
    ]
    entries += [(name, MUTED, list(SHAPES.values())[place]) for place, name in enumerate(plot.shapes)]
    shown = [name if len(name) <= LEGEND_LETTERS else f"{name[: LEGEND_LETTERS - 1]}…" for name, *_ in entries]
    if not entries:
        return "", 0
    room = left + WIDTH + RIGHT - 8
    columns = max(1, min(4, int(room / (max(map(len, shown)) * LETTER + SYMBOL_WIDTH))))
    found = []
    for place, (text, (_, color, shape)) in enumerate(zip(shown, entries, strict=True)):
        x, y = 10 + place % columns * room / columns, ABOVE + HEIGHT + BELOW + place // columns * LEGEND_LINE + 10
        found.append(
            f'<g transform="translate({x:.0f},{y:.0f})"><path d="{shape}" fill="{color}"/>'
            f'<text x="10" y="4" fill="{INK}">{_escaped(text)}</text></g>'
        )
    return f'<g class="legend">{"".join(found)}</g>', -(-len(entries) // columns) * LEGEND_LINE + 6


def _escaped(text: str) -> str:
    return html.escape(text, quote=True)


def rates_text(bytes_s: float, flop_s: float) -> str:
    """The two ceilings of a roofline, for its title."""
    return f"{significant(bytes_s / 1e9)} GB/s, {significant(flop_s / 1e9)} GFLOP/s"
