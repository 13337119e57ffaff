"""`profile report` over what a sweep of the fake backend stored, and `profile sweep --html`."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from profiler.results.store import Store


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PROFILER_STORE", str(tmp_path / "store.sqlite"))


def test_a_sweep_leaves_its_page_and_a_report_makes_it_again(sweep, profile, tmp_path):
    page = tmp_path / "page.html"
    assert sweep("-c", "64,128", "-n", "4", "--html", str(page)).code == 0
    first = page.read_text()
    assert first.startswith("<!doctype html>") and "FAKE FIGURES" in first and "2 of 2 cases measured" in first
    run = re.findall(r"run (\d{6}-\d{6})", first)[0]
    again = profile("report", run, "--html", str(page))
    assert (again.code, again.out) == (0, "") and page.read_text() == first
    assert sorted(path.name for path in tmp_path.glob(".page*")) == []


def test_without_a_file_the_page_goes_to_the_terminal(sweep, profile):
    sweep("-c", "64", "-n", "4")
    shown = profile("report")
    assert shown.code == 0 and "What should I run on this machine?" in shown.out
    assert "profile" in shown.out.split("How do I repeat it?")[1]  # and the words that pytest was called with


def test_no_page_takes_the_place_of_results_or_of_another_file(sweep, profile, tmp_path):
    store, page, scores = tmp_path / "store.sqlite", tmp_path / "page", tmp_path / "scores.toml"
    scores.write_text("")
    new = sweep("-c", "64", "-n", "4", "--html", str(store))  # before there is a store
    assert new.code == 2 and not store.exists() and "is given for two" in new.err
    sweep("-c", "64", "-n", "4")
    kept = store.read_bytes()
    other = tmp_path / "other.sqlite"
    other.write_bytes(kept)
    (tmp_path / "link").symlink_to(store)
    for words in (
        ["--html", str(store)],
        ["--html", str(tmp_path / "link")],
        ["--md", str(other)],
        ["--html", str(page), "--md", str(page)],
        ["--md", str(scores), "--quality", str(scores)],
    ):
        ran = profile("report", *words)
        assert ran.code == 2 and ("would be lost" in ran.err or "is given for two" in ran.err), ran.err
    assert store.read_bytes() == other.read_bytes() == kept and not page.exists()


def test_markdown_has_its_charts_beside_it(sweep, profile, tmp_path):
    sweep("-c", "64,128", "-n", "4")
    target = tmp_path / "my page.md"
    assert profile("report", "--md", str(target)).code == 0
    images = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", target.read_text())
    assert images and all((tmp_path / image.replace("%20", " ")).is_file() for image in images)


def test_everything_stored_is_one_report_and_a_run_is_its_own(sweep, profile):
    sweep("-c", "64", "-n", "4")
    sweep("-c", "128", "-n", "4")
    assert "2 of 2 cases measured" in profile("report").out
    runs = [line.split()[0] for line in profile("runs").out.splitlines()[2:]]
    assert "1 of 1 cases measured" in profile("report", runs[0]).out
    assert "2 of 2 cases measured" in profile("report", *runs).out


def test_scores_of_the_readers_own_are_read_and_a_bad_file_is_said(sweep, profile, tmp_path):
    sweep("-c", "64", "-n", "4")
    own = tmp_path / "scores.toml"
    own.write_text(
        '[[score]]\nmodel = "tiny"\nbenchmark = "Mine"\nvalue = 3\nsource = "me"\nquants = ["fp32", "bf16"]\n'
    )
    assert "there is a score only for tiny" in " ".join(profile("report", "--quality", str(own)).out.split())
    own.write_text('[[score]]\nmodel = "tiny"\n')
    refused = profile("report", "--quality", str(own))
    assert refused.code == 2 and "entry 1 has no benchmark" in refused.err


def test_a_name_in_the_scores_that_matches_nothing_is_said_once_on_stderr(sweep, profile, tmp_path):
    sweep("-c", "64", "-n", "4")
    own = tmp_path / "scores.toml"
    entry = '[[score]]\nmodel = "{}"\nbenchmark = "Mine"\nvalue = 3\nsource = "me"\nquants = ["{}"]\n'
    own.write_text("".join(entry.format(*each) for each in (("tiny", "fp32"), ("gemma-4-31b", "q4_k_m"))))
    assert profile("report", "--quality", str(own)).err == ""
    own.write_text("".join(entry.format(*each) for each in (("tiny", "nf4_dq"), ("Gemma-4-E2B", "awq-4bit"))))
    (said,) = profile("report", "--quality", str(own)).err.splitlines()
    assert "entry 1, quantization nf4_dq (did you mean nf4-dq?)" in said
    assert "entry 2, model Gemma-4-E2B (did you mean gemma-4-e2b?)" in said and "awq" not in said


@pytest.mark.parametrize("command", [("report",), ("sweep", "--backend", "fake")])
def test_a_page_that_cannot_be_written_is_said_before_anything_is_measured(profile, command, tmp_path):
    refused = profile(*command, "--html", str(tmp_path / "missing" / "page.html"))
    assert refused.code == 2 and "there is no folder" in refused.err
    assert not (tmp_path / "store.sqlite").exists()


def test_an_empty_store_is_said(profile):
    refused = profile("report")
    assert refused.code != 0 and "Error" in refused.err


def test_files_and_other_stores_stand_beside_the_store_and_say_which_is_which(sweep, profile, tmp_path):
    sweep("-c", "64", "-n", "4")
    rows, store = tmp_path / "laptop.jsonl", tmp_path / "old.sqlite"
    rows.write_text(profile("runs", "show", "latest", "-o", "jsonl").out)
    assert sweep("-c", "128", "-n", "4", "--store", str(store)).code == 0
    both = profile("report", "latest", str(rows), str(store))
    assert both.code == 0, both.err
    shown = " ".join(both.out.split())
    assert "3 of 3 cases measured" in shown and ", laptop.jsonl" in shown and ", old.sqlite" in shown
    assert "highest ÷ lowest" in shown  # the case that two of them have
    alone = profile("report", str(rows))  # without the store
    assert "1 of 1 cases measured" in alone.out and "old.sqlite" not in alone.out
    missing = profile("report", "latest", str(tmp_path / "missing.jsonl"))
    assert missing.code == 2 and "there is no file" in missing.err and len(missing.err.splitlines()) <= 3


def test_a_page_shows_paths_in_full_only_if_asked(sweep, profile, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["profile", "sweep", "-m", str(tmp_path / "model")])
    sweep("-c", "64", "-n", "4", "--weights", "synthetic")
    store = Store.open()
    with store:
        (config,) = store.configs().values()
    assert config["model_type"] == "gemma3_text" or config["architectures"]
    page = tmp_path / "page.html"
    assert profile("report", "--html", str(page)).code == 0
    assert str(tmp_path) not in page.read_text()
    assert str(tmp_path) in profile("report").out.split("How do I repeat it?")[1]
    assert profile("report", "--html", str(page), "--paths").code == 0
