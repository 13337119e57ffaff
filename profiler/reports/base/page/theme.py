"""The colours of a report, each with its light and its dark value.

Charts are drawn once, in the light values. A page names the same values in its style sheet (``[fill="#0969da"]``) and
gives them variables there, so the one drawing follows the reader's theme and is an image by itself as well.
Text has at least 4.5:1 against its ground in both themes and marks 3:1 (WCAG 2.2, 1.4.3 and 1.4.11); a test counts.
"""

from __future__ import annotations

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
