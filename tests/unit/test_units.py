"""Numbers and outside text as people read them."""

from __future__ import annotations

import math
import time

import pytest
from fakes.unseen import unseen
from hypothesis import given
from hypothesis import strategies as st

from profiler.units import (
    MAX_SHOWN,
    UNKNOWN,
    bytes_text,
    parse_bytes,
    parse_count,
    parse_percent,
    parse_seconds,
    printable,
    rate_text,
    seconds_text,
    significant,
    spreadsheet_cell,
)


@pytest.mark.parametrize("show", [bytes_text, seconds_text, rate_text])
def test_unknown_is_a_dash_and_never_zero(show) -> None:  # type: ignore[no-untyped-def]
    assert show(None) == UNKNOWN == "–"
    assert show(0) != UNKNOWN


@pytest.mark.parametrize(
    ("text", "count"), [("1", 1), ("4096", 4096), ("4k", 4096), ("128K", 131072), ("1M", 2**20), (" 8 ", 8), ("0", 0)]
)
def test_counts(text: str, count: int) -> None:
    assert parse_count(text) == count


@pytest.mark.parametrize("text", ["", "k", "-1", "1.5", "1.5k", "4 k", "1e3", "4g", "٤٠x", "0x10", "1,000", "nan"])
def test_what_is_no_count_is_an_error_that_shows_one(text: str) -> None:
    with pytest.raises(ValueError, match="4096, 4k or 1m"):
        parse_count(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512B", 512),
        ("1k", 1024),
        ("1.5g", 1610612736),
        ("512MiB", 512 * 1024**2),
        ("1GB", 1024**3),
        ("2 TiB", 2 * 1024**4),
        ("24gib", 24 * 1024**3),
    ],
)
def test_sizes_are_powers_of_1024(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "-1g", "1e9", "1.g", "8 giga", "inf"])
def test_what_is_no_size_is_an_error_that_shows_one(text: str) -> None:
    with pytest.raises(ValueError, match="512MiB or 8GiB"):
        parse_bytes(text)


@pytest.mark.parametrize("text", ["8", " 1.5 ", "0"])
def test_a_size_or_a_time_without_a_unit_could_be_anything(text: str) -> None:
    with pytest.raises(ValueError, match=r"has no unit, such as .*GiB or .*MiB$"):
        parse_bytes(text)
    with pytest.raises(ValueError, match=r"has no unit, such as .*s, .*m or .*h$"):
        parse_seconds(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("0.5s", 0.5),
        ("10m", 600),
        ("1.5h", 5400),
        ("1h30m", 5400),
        ("1h 30m 10s", 5410),
        ("2m30s", 150),
        ("1H5S", 3605),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize(("text", "share"), [("2%", 0.02), ("0.5 %", 0.005), (" 100%", 1.0)])
def test_percents(text: str, share: float) -> None:
    assert parse_percent(text) == share


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("2", "needs a percent sign: 2%"),
        ("0.02", "needs a percent sign: 0.02%"),
        ("-1%", "not a percentage"),
        ("%", "not a percentage"),
        ("", "not a percentage"),
    ],
)
def test_what_is_no_percent_is_an_error_that_shows_one(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_percent(text)


@pytest.mark.parametrize("text", ["", "s", "-1s", "1d", "10ms", "1:30", "inf", "1m1h", "1m2m", "1h30"])
def test_what_is_no_duration_is_an_error_that_shows_one(text: str) -> None:
    with pytest.raises(ValueError, match="90s or 10m"):
        parse_seconds(text)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "0.977 KiB"),
        (1024, "1.00 KiB"),
        (512 * 1024**2, "512 MiB"),
        (9255485440, "8.62 GiB"),
        (400 * 1024**3, "400 GiB"),
    ],
)
def test_bytes_have_three_digits_and_a_binary_unit(size: int, text: str) -> None:
    assert bytes_text(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0000123, "0.0123 ms"),
        (0.0123, "12.3 ms"),
        (0.99949, "999 ms"),
        (4.56, "4.56 s"),
        (59.94, "59.9 s"),
        (59.96, "1m 00s"),
        (99.9, "1m 40s"),
        (200, "3m 20s"),
        (3599.6, "1h 00m"),
        (3600, "1h 00m"),
        (5400, "1h 30m"),
    ],
)
def test_seconds_as_people_say_them(seconds: float, text: str) -> None:
    assert seconds_text(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (4.5649, "4.56"),
        (0.00123456, "0.00123"),
        (999.6, "1,000"),
        (9.996, "10.0"),
        (12345, "12,300"),
        (-4.5649, "-4.56"),
        (1e-7, "0.000000100"),
        (1, "1.00"),
        (100, "100"),
    ],
)
def test_three_significant_digits(value: float, text: str) -> None:
    assert significant(value) == text


@given(st.floats(min_value=1e-9, max_value=1e15))
def test_what_is_shown_is_within_half_a_unit_of_the_third_digit(value: float) -> None:
    shown = float(significant(value).replace(",", ""))
    assert math.isclose(shown, value, rel_tol=5.01e-3)


@given(st.text())
def test_printable_text_is_one_bounded_line_without_controls(text: str) -> None:
    shown = printable(text)
    assert len(shown) <= MAX_SHOWN
    assert unseen(shown) == []
    shown.encode("utf-8")


@pytest.mark.parametrize(
    ("hostile", "shown"),
    [
        ("\x1b[31mred\x1b[0m", "red"),
        ("a\nb\rc\x00d", "abcd"),
        ("\u202egnp.exe", "gnp.exe"),
        ("plain | pipe", "plain | pipe"),
        ("\ud800", "?"),
        ("a\u061cb\u200bc\ufeffd\u2060e\u00adf", "abcdef"),  # bidi mark, zero widths, byte order mark, soft hyphen
        ("\u3164\u115f\ufe0f\u034fx\U000e0100\U000e0061", "x"),  # fillers, selectors, tags
        ("\ue000\U000f0000x", "x"),  # private use: whatever a font makes of it
        ("名前 é🙂\u00a0x", "名前 é🙂\u00a0x"),
    ],
)
def test_terminal_control_does_not_survive(hostile: str, shown: str) -> None:
    assert printable(hostile) == shown


def test_what_python_cannot_turn_into_text_is_said_so() -> None:
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    assert printable(10**5000) == "(int too large to show)"
    assert printable(deep) == "(list too large to show)"


def test_a_huge_text_is_not_looked_at_to_its_end() -> None:
    start = time.process_time()
    assert printable("\u200b" * 50_000_000) == ""
    assert time.process_time() - start < 1


@pytest.mark.parametrize(
    ("value", "cell"),
    [
        ("=1", "'=1"),
        ("\ufeff=1", "'=1"),
        ("\u200b=1", "'=1"),
        ("\t\r\n =1", "'=1"),
        ("\u00a0@x", "'@x"),
        ("－1", "'－1"),
        ("﹢1", "'﹢1"),
        ("⁼1", "'⁼1"),
        ("−1", "'−1"),
        ("a=1", "a=1"),
        ("–", "–"),
        (-1.5, -1.5),
        (None, None),
        (True, True),
    ],
)
def test_text_of_a_spreadsheet_cell_is_no_formula(value: object, cell: object) -> None:
    assert spreadsheet_cell(value) == cell


def test_long_text_ends_in_an_ellipsis() -> None:
    assert printable("x" * 500, limit=10) == "x" * 9 + "…"
    assert printable("x" * 10, limit=10) == "x" * 10
