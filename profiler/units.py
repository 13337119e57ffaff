"""Conversion of numbers and outside text for people. Internal values are SI: bytes, seconds, tokens per second.

Unknown is ``None`` and prints as ``–``, never as 0.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence

UNKNOWN = "–"
KIB = 1024
MIB = 1024**2
GIB = 1024**3
GIGA, TERA = 1e9, 1e12
MAX_SHOWN = 200  # characters of outside text in one line of ours
MAX_DIGITS = 12  # of a count: more than any real number of tokens or bytes
MAX_BYTES = 1 << 60  # an exbibyte: anything larger is a typing error and would overflow the kernel's numbers
MAX_SECONDS = 366 * 24 * 3600.0

_SIZE = re.compile(r"^(\d+(?:\.\d+)?)\s*(b|k|m|g|t|kb|mb|gb|tb|kib|mib|gib|tib)?$", re.IGNORECASE)
_DURATION = re.compile(
    r"^(?=\d)(?:(\d+(?:\.\d+)?)\s*h)?\s*(?:(\d+(?:\.\d+)?)\s*m)?\s*(?:(\d+(?:\.\d+)?)\s*s)?$", re.IGNORECASE
)
_BARE = re.compile(r"^\d+(?:\.\d+)?$")
_PERCENT = re.compile(r"^(\d{1,9}(?:\.\d{1,9})?)\s*%$")
_COUNT = re.compile(r"^(\d+)([km])?$", re.IGNORECASE)
_ESCAPE = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")  # a complete terminal escape sequence
_UNSEEN = {"Cc", "Cf", "Cn", "Co", "Zl", "Zp"}  # control, format (direction, joiners), unassigned, private, line ends
# Invisible characters of other categories (Default_Ignorable_Code_Point in Unicode's DerivedCoreProperties.txt):
# fillers and variation selectors. Two names that differ only in these look the same.
_BLANK = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]")
_READ = 16  # characters of outside text that are examined per character shown; the rest is cut off
_FORMULA = ("=", "+", "-", "@", "\N{MINUS SIGN}")  # how a spreadsheet formula starts (OWASP, "CSV Injection")


def printable(text: object, limit: int = MAX_SHOWN) -> str:
    """Outside text made safe for one line of a terminal, a table or a file.

    Removes control, format, direction and zero-width characters, and limits the length. Bytes that cannot be encoded,
    such as those of a file name that is not UTF-8, become ``?``.
    """
    clean = _visible(_text(text)[: _READ * limit + 1])
    return clean if len(clean) <= limit else clean[: limit - 1] + "…"


def _text(value: object) -> str:
    """``str``, or a placeholder: Python refuses numbers of thousands of digits and deeply nested lists."""
    try:
        return str(value)
    except (ValueError, RecursionError):
        return f"({type(value).__name__} too large to show)"


def _visible(text: str) -> str:
    if text.isascii() and text.isprintable():
        return text
    text = _BLANK.sub("", _ESCAPE.sub("", text))
    if not text.isprintable():  # spaces of other widths may remain
        text = "".join(char for char in text if unicodedata.category(char) not in _UNSEEN)
    return text.encode("utf-8", "replace").decode()


def spreadsheet_cell(value: object) -> object:
    """A value for a CSV file: text that a spreadsheet would run as a formula gets a ``'`` in front.

    Like spreadsheets, this ignores leading blanks, and it recognizes the full-width forms that East Asian versions
    accept. Numbers stay numbers.
    """
    if not isinstance(value, str):
        return value
    text = printable(" ".join(value.split()), max(len(value), MAX_SHOWN))
    return f"'{text}" if unicodedata.normalize("NFKC", text[:8]).lstrip().startswith(_FORMULA) else text


def parse_count(text: str) -> int:
    """Parse ``4096``, ``4k`` or ``1m`` (k = 1024, m = 1024²). Raises ValueError."""
    match = _COUNT.match(text.strip())
    if not match:
        raise ValueError(f"{printable(text)!r} is not a count such as 4096, 4k or 1m")
    unit = {"k": KIB, "m": MIB}[match[2].casefold()] if match[2] else 1
    if len(match[1]) > MAX_DIGITS or int(match[1]) * unit >= 10**MAX_DIGITS:
        raise ValueError(f"{printable(text, 40)!r} is too large")
    return int(match[1]) * unit


def parse_bytes(text: str) -> int:
    """Parse ``512MiB``, ``1.5g``, ``1GiB`` or ``100b``; K, M, G, T are powers of 1024. Raises ValueError."""
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
    """Parse ``90s``, ``10m``, ``1.5h`` or ``1h30m`` to seconds. Raises ValueError, also for a number without a
    unit.
    """
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
    """Parse ``2%`` or ``0.5 %`` to a fraction. Raises ValueError, also for a number without ``%``."""
    match = _PERCENT.match(text.strip())
    if match is None:
        number = printable(text.strip(), 40)
        if _BARE.match(text.strip()):
            raise ValueError(f"{number!r} needs a percent sign: {number}%")
        raise ValueError(f"{number!r} is not a percentage such as 2% or 0.5%")
    return float(match[1]) / 100


def counted(most: int | None = None) -> Callable[[str], int]:
    """A parser of integers from 1 to ``most``, which raises ValueError."""

    def parse(text: str) -> int:
        number = parse_count(text)
        if number < 1:
            raise ValueError("it must be at least 1")
        if most is not None and number > most:
            raise ValueError(f"it must be at most {most:,}")
        return number

    return parse


def one_of(known: Sequence[str]) -> Callable[[str], str]:
    """A parser of a few words, which ignores case. It raises ValueError for others."""

    def parse(text: str) -> str:
        if text.casefold() not in known:
            raise ValueError(f"{printable(repr(text), 60)} is not one of {', '.join(known)}")
        return text.casefold()

    return parse


def some_bytes(text: str) -> int:
    """``parse_bytes`` for a size above 0. Raises ValueError."""
    size = parse_bytes(text)
    if size < 1:
        raise ValueError("it must be more than 0 bytes")
    return size


def some_seconds(text: str) -> float:
    """``parse_seconds`` for a time above 0. Raises ValueError."""
    seconds = parse_seconds(text)
    if seconds <= 0:
        raise ValueError("it must be more than 0 s")
    return seconds


def some_share(text: str) -> float:
    """``parse_percent`` for a value between 0% and 100%. Raises ValueError."""
    percent = parse_percent(text)
    if not 0 < percent < 1:
        raise ValueError("it must be more than 0% and less than 100%")
    return percent


def bytes_text(value: float | None) -> str:
    """``8.62 GiB``, ``512 MiB``; rounded to three significant digits."""
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
    if value < 59.95:  # which rounds to a minute
        return f"{significant(value)} s"
    minutes, seconds = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h {minutes:02}m" if hours else f"{minutes}m {seconds:02}s"


def whole_seconds_text(seconds: float) -> str:
    """``83.4`` as ``1m 23s``, ``7.2`` as ``7 s``: a duration that goes on or is only estimated."""
    rounded = round(seconds)
    return f"{rounded} s" if rounded < 60 else seconds_text(rounded)


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
