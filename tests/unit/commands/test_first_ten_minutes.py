"""``profile`` alone, and the transcripts of ``docs/first-ten-minutes.md``: each runs as printed, on one screen."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from profiler import console, settings
from profiler.backends.llama_cpp import build
from profiler.cli import main
from profiler.devices import cpu, cuda
from profiler.devices.base import DeviceInfo
from profiler.errors import ProfileError
from profiler.models import hub
from profiler.units import GIB

PAGE = (Path(__file__).parents[3] / "docs" / "first-ten-minutes.md").read_text(encoding="utf-8")
TRANSCRIPTS = re.findall(r"^```console\n\$ (profile.*?)\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
WIDTH, LINES = 80, 24
LAPTOP = DeviceInfo(
    "cpu",
    "cpu",
    "12th Gen Intel Core i5-1240P",
    int(15.3 * GIB),
    int(11.6 * GIB),
    "fp32",
    cores=16,
    physical=12,
    threads=8,
    features=("avx2",),
    installed=16,
)


@pytest.fixture(autouse=True)
def laptop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A newcomer's laptop without a GPU or results, a terminal of 80 × 24, and a checkpoint in the current folder."""
    monkeypatch.setattr(cpu, "find", lambda: [LAPTOP])
    monkeypatch.setattr(cuda, "find", list)
    monkeypatch.setattr(console, "width", lambda: WIDTH)
    monkeypatch.setattr(console, "size", lambda: (WIDTH, LINES))
    monkeypatch.setenv("PROFILER_STORE", str(tmp_path / "none" / "store.sqlite"))
    monkeypatch.setattr(build, "find", no_build)
    (tmp_path / "my-model").mkdir()
    (tmp_path / "my-model" / "config.json").write_text(json.dumps(hub.shipped_config("qwen3-8b")))
    monkeypatch.chdir(tmp_path)


def no_build() -> build.Build:
    raise ProfileError("llama.cpp is not found", "Build llama-bench.")


def run(line: str) -> Result:
    return CliRunner().invoke(main, shlex.split(line)[1:], catch_exceptions=False)


def screen_lines(text: str) -> int:
    """Lines of a terminal that ``text`` fills."""
    return sum(-(-max(1, len(line)) // WIDTH) for line in text.splitlines())


def commands(text: str) -> list[str]:
    return re.findall(r"^  (profile .*)$", text, re.MULTILINE)


def test_the_page_has_three_people() -> None:
    assert len(TRANSCRIPTS) >= 4
    typed = " ".join(line for line, _ in TRANSCRIPTS)
    assert TRANSCRIPTS[0][0] == "profile" and '--on "rtx 4090"' in typed and "./my-model" in typed


@pytest.mark.parametrize(("line", "shown"), TRANSCRIPTS, ids=[line for line, _ in TRANSCRIPTS])
def test_a_transcript_is_what_its_command_prints_on_one_screen(line: str, shown: str) -> None:
    ran = run(line)
    assert ran.exit_code == 0
    assert ran.stdout == shown
    assert screen_lines(shown) < LINES, "the prompt below takes a line"


@pytest.mark.parametrize(("line", "shown"), TRANSCRIPTS, ids=[line for line, _ in TRANSCRIPTS])
def test_what_a_transcript_says_to_type_next_runs(line: str, shown: str) -> None:
    typed = commands(shown)
    assert typed
    for each in typed:
        measures = each.startswith("profile sweep") and "--backend" not in each  # without a build, the rest says so
        ran = run(f"{each} --dry-run" if measures else each)
        assert ran.exit_code == (2 if "--backend" in each else 0), ran.output
        assert "--backend" not in each or "llama-bench" in ran.stderr


@pytest.mark.parametrize("on", ["rtx 3060 12gb", "2x3090", "m4 max", "strix halo", "h100", "vram=6,bandwidth=100"])
def test_the_overview_of_any_machine_is_one_screen_with_commands_that_run(on: str) -> None:
    text = run(shlex.join(["profile", "--on", on])).stdout
    assert screen_lines(text) < LINES
    assert {"pick", "model", "quant", "engine", "decode", "memory"} <= {*text.split()}
    assert len(commands(text)) == 2
    for each in commands(text):
        assert run(each).exit_code == 0


@pytest.mark.parametrize(
    ("titles", "named", "on"),
    [
        (("RTX 3090", "RTX 3090"), "2x RTX 3090, ", "2xcuda"),
        (("RTX 3090", "RTX 4090"), "RTX 3090 + RTX 4090, ", "cuda:0,cuda:1"),
    ],
)
def test_a_machine_with_two_gpus_is_predicted_for_both(
    titles: tuple[str, ...], named: str, on: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cards = [
        DeviceInfo(f"cuda:{n}", "cuda", f"NVIDIA GeForce {title}", 24 * GIB, 23 * GIB, "bf16")
        for n, title in enumerate(titles)
    ]
    monkeypatch.setattr(cuda, "find", lambda: cards)
    text = run("profile").stdout
    assert text.startswith(named)
    fit, measure = commands(text)
    assert shlex.split(fit)[-2:] == ["--on", on] and measure == "profile sweep"
    (best,) = re.findall(r"^best +(\S+) +(\S+) ", text, re.MULTILINE)
    shown = run(fit).stdout
    assert {*best} <= {*shown.split()} and " fits " in shown
    assert run("profile --on cuda:0").stdout.splitlines()[2:] != text.splitlines()[2:]


def test_the_device_of_profile_toml_is_the_one_that_is_predicted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(cuda, "find", lambda: [replace(LAPTOP, name="cuda:0", kind="cuda", title="NVIDIA L4")])
    (tmp_path / "own.toml").write_text('device = "cpu"')
    monkeypatch.setenv(settings.VARIABLE, str(tmp_path / "own.toml"))
    text = run("profile").stdout
    assert text.startswith(LAPTOP.title)
    assert "--on cpu" in commands(text)[0]
    assert run("profile --on cpu").stdout.splitlines()[2:6] == text.splitlines()[2:6]


@pytest.mark.parametrize(
    ("on", "said"), [("m4 pro 24gb", "qwen3.5-27b and gemma-4-26b-a4b may not fit"), ("rtx 4090", None)]
)
def test_a_pick_that_may_not_fit_is_told(on: str, said: str | None) -> None:
    text = run(shlex.join(["profile", "--on", on])).stdout
    assert f"Tight: {said} at 8k." in text if said else "Tight" not in text
    verdicts = run(commands(text)[0]).stdout
    assert (" tight " in verdicts) == (said is not None)


def test_a_machine_that_nothing_fits_is_told_what_is_needed() -> None:
    text = run("profile --on vram=0.2,bandwidth=10").stdout
    assert "No model of the catalog fits." in text
    (typed,) = commands(text)
    assert "no model fits at 8k" in run(typed).stdout


def test_what_was_measured_is_told_and_a_report_is_next(sweep: Any) -> None:
    (Path.cwd() / "none").mkdir()
    assert sweep("-c", "128", "-r", "2").code == 0
    text = run("profile").stdout
    assert re.search(r"^Measured so far: 1 case of tiny, the last on \d{4}-\d\d-\d\d\.$", text, re.MULTILINE)
    assert commands(text)[-1] == "profile report --html report.html"


def test_a_store_that_cannot_be_read_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "broken.sqlite").write_text("no database")
    monkeypatch.setenv("PROFILER_STORE", str(tmp_path / "broken.sqlite"))
    ran = run("profile")
    assert ran.exit_code == 0
    assert "The results cannot be read: " in ran.stdout
