"""Text reaches stdout in whatever encoding it has, and reasons why it does not."""

from __future__ import annotations

import io
import os
import sys
import threading
from collections.abc import Callable

import click
import pytest

from profiler import console


def printed(text: str, encoding: str) -> bytes:
    raw = io.BytesIO()
    stream = console.Stream(io.TextIOWrapper(raw, encoding), console.OutputLost)
    stream.write(text)
    return raw.getvalue()


@pytest.mark.parametrize(
    ("encoding", "text", "shown"),
    [
        ("ascii", "– × ± µ … é \udcff 漢", rb"- x +- u ... \xe9 \udcff \u6f22"),
        ("latin-1", "– × ±", b"- \xd7 \xb1"),
        ("cp1252", "– × ≥", b"\x96 \xd7 >="),
        ("utf-8", "– \udcff", b"\xe2\x80\x93 \\udcff"),
    ],
)
def test_what_an_encoding_lacks_is_written_in_ascii(encoding: str, text: str, shown: bytes) -> None:
    assert printed(text, encoding) == shown


def test_every_replacement_is_ascii_and_needed() -> None:
    assert all(instead.isascii() and not char.isascii() for char, instead in console.INSTEAD.items())


def test_click_writes_by_the_encoding_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would take an ASCII stream for a mistake, and write UTF-8 to what is below it."""
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, "ascii"))
    with console.guarded():
        click.echo("–")
    assert raw.getvalue() == b"-\n"


@pytest.fixture
def onto() -> Callable[[int], console.Stream]:
    return lambda file: console.Stream(io.TextIOWrapper(io.FileIO(file, "w", closefd=False)), console.OutputLost)


def test_a_pipe_that_does_not_block_gets_everything(onto: Callable[[int], console.Stream]) -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    got = bytearray()

    def read() -> None:
        while chunk := os.read(reading, 1000):
            got.extend(chunk)

    reader = threading.Thread(target=read)
    reader.start()
    onto(writing).write("x" * 1_000_000)
    os.close(writing)
    reader.join()
    os.close(reading)
    assert len(got) == 1_000_000


def test_a_reader_that_has_gone_is_told_apart_from_a_full_disk(onto: Callable[[int], console.Stream]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with pytest.raises(BrokenPipeError):
        onto(writing).write("x")
    os.close(writing)
    full = os.open("/dev/full", os.O_WRONLY)
    with pytest.raises(console.OutputLost, match="stdout cannot be written: No space left on device"):
        onto(full).write("x")
    os.close(full)


@pytest.mark.parametrize("columns", ["0", "1", "-5", "x", "²", "9" * 9, "9" * 5000, ""])
def test_a_terminal_has_a_width_that_tables_can_have(columns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setenv("LINES", columns)
    width, height = console.size()
    assert console.NARROWEST <= width <= console.WIDEST and 1 <= height <= console.WIDEST


def test_a_progress_bar_can_be_drawn_whatever_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    from profiler.show import progress

    for columns in ("0", "²", "9" * 5000):
        monkeypatch.setenv("COLUMNS", columns)
        monkeypatch.setenv("LINES", columns)
        assert progress._display().console.width >= console.NARROWEST
