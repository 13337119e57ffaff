"""What is shown on stderr while a sweep runs."""

from __future__ import annotations

import io
import re
import sys
from dataclasses import replace

import pytest
from fakes.lab import make_case

from profiler.console import width
from profiler.results.measurement import Caution, Measurement, Sample
from profiler.show import progress as module
from profiler.show.progress import Progress, Watched

MARKUP = "[bold red]x[/bold red]\x1b[99m"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def show(monkeypatch: pytest.MonkeyPatch, name: str) -> str:
    stream = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "stderr", stream)
    case = make_case(model=name)
    with Progress(2, lambda: 75.0, shown=True) as progress:
        progress.beat(case, "decode 2/3")
        progress.row(Measurement(case, {}, "oom", reason=f"too large {name}"))
        progress._display.refresh()
    return stream.getvalue()


def test_the_case_its_phase_and_the_time_left_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    text = show(monkeypatch, "tiny")
    for part in ("tiny bf16 c=512 b=1", "decode 2/3", "1/2", "about 1m 15s left", "warning: tiny", "oom: too large"):
        assert part in text.replace("\n", " "), part


def test_a_name_is_no_markup_and_no_escape_code(monkeypatch: pytest.MonkeyPatch) -> None:
    text = show(monkeypatch, MARKUP)
    assert "[bold red]x[/bold red]" in text.replace("\n", "")
    assert "\x1b[99m" not in text


def test_without_a_terminal_only_failures_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    case = make_case(model="tiny")
    with Progress(3, lambda: 1.0, shown=Progress.wanted(streaming=False)) as progress:
        progress.beat(case, "prefill 1/3")
        progress.row(Measurement(case, {}, "ok"))
        progress.row(Measurement(case, {}, "skipped", reason="dominated by c=128 b=1"))
        progress.row(Measurement(case, {}, "failed", reason="exit code 3"))
    assert capsys.readouterr().err == "warning: tiny bf16 c=512 b=1: failed: exit code 3\n"


def measured() -> Measurement:
    samples = (Sample("prefill", 64.0, 512), Sample("decode", 2.0, 4))
    return Measurement(make_case(model="tiny"), {}, "ok", samples=samples)


def test_a_long_sweep_leaves_a_line_for_each_case_in_a_log(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 31.0, 32.0, 40.0])
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    with Progress(3, lambda: 240.0, shown=False) as progress:
        progress.row(measured())
        progress.row(Measurement(make_case(model="tiny"), {}, "skipped", reason="dominated by c=128 b=1"))
        progress.row(measured())
    assert capsys.readouterr().err.splitlines() == [
        "1/3 tiny bf16 c=512 b=1: prefill 8.0 t/s, decode 2.0 t/s, 31.0 s; about 4m 00s left",
        "3/3 tiny bf16 c=512 b=1: prefill 8.0 t/s, decode 2.0 t/s, 8.00 s",
    ]


def test_an_estimate_near_zero_is_not_given_to_the_millisecond(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 3.0])
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    with Progress(4, lambda: 0.0, shown=False, lines=True) as progress:
        progress.row(measured())
    assert capsys.readouterr().err.endswith(", 3.00 s; a few seconds left\n")


def test_a_short_sweep_leaves_no_lines_in_a_log(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(1, lambda: 59.0, shown=False) as progress:
        progress.row(measured())
    assert capsys.readouterr().err == ""


def test_a_terminal_keeps_the_line_of_a_finished_case_above_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "stderr", stream)
    with Progress(2, lambda: 5.0, shown=True) as progress:
        progress.row(measured())
    assert "1/2 tiny bf16 c=512 b=1: prefill 8.0 t/s, decode 2.0 t/s" in stream.getvalue()


def test_rows_that_stream_through_the_terminal_need_no_lines_beside_them(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    with Progress(2, lambda: 500.0, shown=False) as progress:
        progress.row(measured())
    assert stream.getvalue() == ""


def test_only_a_terminal_has_a_width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "77")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert width() == 77
    monkeypatch.setattr(sys.stdout, "isatty", lambda: False, raising=False)
    assert width() is None


@pytest.mark.parametrize(
    ("stderr", "stdout", "streaming", "wanted"),
    [
        (True, True, False, True),
        (True, True, True, False),  # rows would run through it
        (True, False, True, True),
        (False, True, False, False),
        (False, False, True, False),
    ],
)
def test_progress_is_for_terminals(
    monkeypatch: pytest.MonkeyPatch, stderr: bool, stdout: bool, streaming: bool, wanted: bool
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: stderr, raising=False)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: stdout, raising=False)
    assert Progress.wanted(streaming) is wanted


@pytest.mark.parametrize(
    ("elapsed", "shown"),
    [
        (0.0, "about 50 s left"),
        (20.0, "about 30 s left"),
        (46.0, "a few seconds left"),
        (585.0, "longer than expected"),
    ],
)
def test_the_time_left_counts_down_between_rows(monkeypatch: pytest.MonkeyPatch, elapsed: float, shown: str) -> None:
    clock = iter([0.0, elapsed])
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    progress = Progress(2, lambda: 48.4, shown=False, lines=False)
    assert f"{module._Now(progress._left)}" == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(58.9, "1m 00s"), (75.0, "1m 15s"), (131.0, "2m 15s"), (592.0, "9m 45s"), (4000.0, "1h 07m")],
)
def test_an_estimate_is_rounded(seconds: float, shown: str) -> None:
    assert Progress(2, lambda: seconds, shown=False)._left(0.0) == f"about {shown} left"


def test_phase_repetition_elapsed_and_time_left_fit_eighty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys, "stderr", stream)
    case = make_case(model="a-model-with-a-long-name-27b-instruct")
    with Progress(12, lambda: 240.0, shown=True) as progress:
        progress._start -= 83
        progress.beat(case, "decode 3 of at most 20")
        stream.truncate(0)
        progress._display.refresh()
        drawn = re.sub(r"\x1b\[[0-9?]*[a-zA-Z]|[\r\x00]", "", stream.getvalue()).strip()
    assert len(drawn) < 80 and "\n" not in drawn
    for part in ("a-model", "b=1 · decode 3 of at most 20", "0/12", "1m 23s", "about 4m 00s left"):
        assert part in drawn, part


def test_something_long_shows_what_it_does_its_time_and_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    stream, now = Terminal(), [0.0]
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    with Watched("calibrating cpu", 50.0) as watched:
        watched.tick("attention")
        now[0] = 20.0
        watched.tick("")
    assert "calibrating cpu: attention · 20 s · about 30 s left" in stream.getvalue()
    assert stream.getvalue().endswith("\r\x1b[K")


def test_a_log_has_one_line_about_something_long(capsys: pytest.CaptureFixture[str]) -> None:
    with Watched("calibrating cpu", 50.0) as watched:
        watched.tick("attention")
    assert capsys.readouterr().err == "calibrating cpu, which takes about 50 s\n"


def test_a_log_says_that_something_takes_longer_than_usual_and_why(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    with Watched("calibrating cpu", 50.0) as watched:
        for now[0] in (10.0, 60.0, 70.0, 101.0):
            watched.tick("attention again, because other processes took 40% of the CPU time")
    _, *lines = capsys.readouterr().err.splitlines()
    assert [line.partition("; ")[2] for line in lines] == [
        "1m 00s so far, which is longer than usual",
        "1m 41s so far, which is longer than usual",
    ]
    assert all("attention again, because other processes took 40%" in line for line in lines)


def test_a_line_about_a_case_on_a_busy_machine_has_no_figures() -> None:
    row = replace(measured(), cautions=(Caution("decode-busy", "the CPU was busy"),))
    assert "prefill 8.0 t/s, decode busy: 2.0," in Progress(1, lambda: 0.0, shown=False)._finished(row, 1.0)
