"""Numbers and outside text as people read them. Inside, everything is SI: bytes, seconds, tokens per second.

Unknown is ``None`` and prints ``–``; it is never 0.
"""

from __future__ import annotations

import re

UNKNOWN = "–"
KIB = 1024
GIB = 1024**3
MAX_SHOWN = 200  # characters of outside text that one line of ours carries
MAX_DIGITS = 12  # of a count: more than there are tokens or bytes of anything here
MAX_BYTES = 1 << 60  # an exbibyte: beyond it are slips of the keyboard, and overflows of the kernel's numbers
MAX_SECONDS = 366 * 24 * 3600.0

_SIZE = re.compile(r"^(\d+(?:\.\d+)?)\s*(b|k|m|g|t|kb|mb|gb|tb|kib|mib|gib|tib)?$", re.IGNORECASE)
_DURATION = re.compile(
    r"^(?=\d)(?:(\d+(?:\.\d+)?)\s*h)?\s*(?:(\d+(?:\.\d+)?)\s*m)?\s*(?:(\d+(?:\.\d+)?)\s*s)?$", re.IGNORECASE
)
_BARE = re.compile(r"^\d+(?:\.\d+)?$")
_PERCENT = re.compile(r"^(\d{1,9}(?:\.\d{1,9})?)\s*%$")
_COUNT = re.compile(r"^(\d+)(k)?$", re.IGNORECASE)
_CONTROL = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]|[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069]"
)


def printable(text: object, limit: int = MAX_SHOWN) -> str:
    """Outside text made safe for one line of a terminal: no control characters, no bidi marks, bounded length."""
    clean = _CONTROL.sub("", str(text)).encode("utf-8", "replace").decode()
    return clean if len(clean) <= limit else clean[: limit - 1] + "…"


def parse_count(text: str) -> int:
    """``4096`` and ``4k`` are both 4096 (k = 1024). Raises ValueError on anything else."""
    match = _COUNT.match(text.strip())
    if not match:
        raise ValueError(f"{printable(text)!r} is not a count such as 4096 or 4k")
    if len(match[1]) > MAX_DIGITS:
        raise ValueError(f"{printable(text, 40)!r} is no count of this world")
    return int(match[1]) * (KIB if match[2] else 1)


def parse_bytes(text: str) -> int:
    """``512MiB``, ``1.5g``, ``1GiB``, ``100b`` in bytes; K, M, G, T are powers of 1024. Raises ValueError."""
    match = _SIZE.match(text.strip())
    if not match:
        raise ValueError(f"{printable(text)!r} is not a size such as 512MiB or 8GiB")
    if match[2] is None:
        number = printable(text.strip(), 40)
        raise ValueError(f"{number!r} has no unit, such as {number}GiB or {number}MiB")
    power = {"b": 0, "k": 1, "m": 2, "g": 3, "t": 4}[match[2][0].lower()]
    size = float(match[1]) * KIB**power
    if size > MAX_BYTES:
        raise ValueError(f"{printable(text, 40)!r} is larger than any memory")
    return int(size)


def parse_seconds(text: str) -> float:
    """``90s``, ``10m``, ``1.5h``, ``1h30m`` in seconds; a bare number could be any of them. Raises ValueError."""
    if _BARE.match(text.strip()):
        number = printable(text.strip(), 40)
        raise ValueError(f"{number!r} has no unit, such as {number}s, {number}m or {number}h")
    match = _DURATION.match(text.strip())
    if not match:
        raise ValueError(f"{printable(text)!r} is not a duration such as 90s or 10m")
    hours, minutes, rest = (float(part or 0) for part in match.groups())
    seconds = 3600 * hours + 60 * minutes + rest
    if seconds > MAX_SECONDS:
        raise ValueError(f"{printable(text, 40)!r} is longer than a year")
    return seconds


def parse_percent(text: str) -> float:
    """``2%``, ``0.5 %`` as a part of one; a bare number could be either. Raises ValueError."""
    match = _PERCENT.match(text.strip())
    if match is None:
        number = printable(text.strip(), 40)
        hint = f"no unit, such as {number}%" if _BARE.match(text.strip()) else "another form than 2% or 0.5%"
        raise ValueError(f"{number!r} has {hint}")
    return float(match[1]) / 100


def bytes_text(value: float | None) -> str:
    """``8.62 GiB``, ``512 MiB``; three significant digits."""
    if value is None:
        return UNKNOWN
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1000 or unit == "GiB":
            break
        value /= KIB
    return f"{value:,.0f} B" if unit == "B" else f"{significant(value)} {unit}"


def seconds_text(value: float | None) -> str:
    """``12.3 ms``, ``4.56 s``, ``3m 20s``."""
    if value is None:
        return UNKNOWN
    if value < 1:
        return f"{significant(value * 1000)} ms"
    if value < 100:
        return f"{significant(value)} s"
    minutes, seconds = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h {minutes:02}m" if hours else f"{minutes}m {seconds:02}s"


def rate_text(value: float | None) -> str:
    """Tokens per second with three significant digits and thousands: ``12,300``, ``4.56``."""
    return UNKNOWN if value is None else significant(value)


def significant(value: float, digits: int = 3) -> str:
    """``value`` rounded to ``digits`` significant digits, with thousands separators and no exponent."""
    if value == 0:
        return "0"
    rounded = float(f"{value:.{digits - 1}e}")
    magnitude = len(str(int(abs(rounded)))) if abs(rounded) >= 1 else int(f"{abs(rounded):e}".split("e")[1]) + 1
    return f"{rounded:,.{max(0, digits - magnitude)}f}"
