"""Which weights a model gets, and what the options come to."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from profiler import devices
from profiler.case import Source
from profiler.errors import ProfileError
from profiler.models import hub
from profiler.models.account import Account
from profiler.models.checkpoint import Checkpoint
from profiler.models.resolve import Model, resolve
from profiler.models.stored import Stored
from profiler.run import headline, request
from profiler.run.repetitions import Effort
from profiler.run.request import SweepRequest, resolve_request, subject
from profiler.units import GIB


@pytest.fixture
def hub_model(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A model of a hub whose weights are downloaded or not; the list tells what was asked of the hub."""
    calls: list[str] = []
    base = resolve("gemma-3-1b")
    source = Source("hub", "owner/name", "abc", base.source.config)
    absent = replace(base, name="owner/name", source=source, no_weights="its weights are not in the hub's cache")
    here = replace(
        absent,
        checkpoint=Checkpoint(Account(1, 2, 1, {"BF16": 2}), Stored("bf16", "bf16", False, (), 2), ()),
        no_weights=None,
    )
    state = {"model": absent}

    def download(repository: str, revision: str | None) -> None:
        calls.append(f"download {repository}@{revision}")
        state["model"] = here

    def size(repository: str, revision: str | None) -> int:
        calls.append("size")
        return 2 * GIB

    def install(downloaded: bool) -> list[str]:
        state["model"] = here if downloaded else absent
        return calls

    monkeypatch.setattr(request, "resolve", lambda name: state["model"])
    monkeypatch.setattr(hub, "download_size", size)
    monkeypatch.setattr(hub, "download", download)
    return install


def silent(text: str) -> None:
    raise AssertionError(f"nothing should be said: {text}")


def test_auto_never_downloads(hub_model: Any) -> None:
    calls = hub_model(downloaded=False)
    assert subject("owner/name", "auto", silent).weights == "synthetic"
    assert calls == []


def test_auto_takes_real_weights_that_are_here(hub_model: Any) -> None:
    calls = hub_model(downloaded=True)
    real = subject("owner/name", "auto", silent)
    synthetic = subject("owner/name", "synthetic", silent)
    assert (real.weights, synthetic.weights, calls) == ("real", "synthetic", [])
    assert real.model_id != synthetic.model_id


def test_real_says_how_much_before_it_downloads(hub_model: Any) -> None:
    calls = hub_model(downloaded=False)
    found = subject("owner/name", "real", lambda text: calls.append(text))
    assert calls == ["size", "downloading owner/name: 2.00 GiB", "download owner/name@abc"]
    assert found.weights == "real"


def test_real_that_is_here_is_not_downloaded_again(hub_model: Any) -> None:
    calls = hub_model(downloaded=True)
    assert subject("owner/name", "real", silent).weights == "real"
    assert calls == []


def test_real_weights_that_do_not_exist_are_one_clear_line() -> None:
    with pytest.raises(ProfileError, match="gemma-3-1b: no real weights: a catalog entry has no weights"):
        subject("gemma-3-1b", "real", silent)


def test_a_caution_of_the_model_goes_with_it() -> None:
    model: Model = resolve("gemma-4-e2b")
    assert subject("gemma-4-e2b", "auto", silent).cautions == model.cautions != ()


def test_defaults_depend_on_the_device(make_cpu: Any, make_gpu: Any) -> None:
    ask = SweepRequest(models=("gemma-3-1b",), contexts=("8k",))
    (on_cpu,) = resolve_request(ask, make_cpu(), 20 * GIB, silent).tasks
    (on_gpu,) = resolve_request(ask, make_gpu(), 20 * GIB, silent).tasks
    assert (on_cpu.case.quant, on_cpu.case.ubatch, on_cpu.case.steps) == ("fp32", 512, 32)
    assert (on_gpu.case.quant, on_gpu.case.ubatch, on_gpu.case.steps) == ("bf16", 2048, 32)


def test_options_go_before_a_scenario_and_a_scenario_before_defaults(make_cpu: Any) -> None:
    ask = SweepRequest(models=("gemma-3-1b",), scenario="batch", quants=("fp32",), steps=("4",))
    found = resolve_request(ask, make_cpu(), 20 * GIB, silent)
    assert [task.case.batch for task in found.tasks] == [1, 2, 4, 8, 16, 32, 64]
    assert {(task.case.quant, task.case.context, task.case.steps) for task in found.tasks} == {("fp32", 512, 4)}


def test_a_named_model_has_no_budget_unless_one_is_given(make_cpu: Any) -> None:
    ask = SweepRequest(models=("gemma-3-1b",))
    assert resolve_request(ask, make_cpu(), 20 * GIB, silent).budget_s is None
    assert resolve_request(replace(ask, budget_s=60.0), make_cpu(), 20 * GIB, silent).budget_s == 60


def test_the_headline_keeps_to_options_that_were_given(make_cpu: Any) -> None:
    said: list[str] = []
    found = resolve_request(
        SweepRequest(contexts=("64",), quants=("bf16",), reps=1), make_cpu(), 20 * GIB, said.append
    )
    assert {(task.case.quant, task.case.context) for task in found.tasks} == {("bf16", 64)}
    assert found.effort.reps == 1
    assert found.budget_s == 300
    assert len(said) == 1


def test_a_number_of_repetitions_or_a_precision_decides_but_not_both(make_cpu: Any) -> None:
    def effort(**asked: Any) -> Effort:
        return resolve_request(SweepRequest(models=("gemma-3-1b",), **asked), make_cpu(), 20 * GIB, print).effort

    assert effort() == Effort(None, 60.0, 0.02)
    assert effort(precision=0.05, max_phase_s=9.0) == Effort(None, 9.0, 0.05)
    assert effort(reps=7).requested == {"reps": 7, "max_phase_s": 60.0}
    with pytest.raises(ProfileError, match="-r and --precision contradict each other"):
        effort(reps=7, precision=0.05)


def test_the_headline_pair_is_measured_twice_unless_a_precision_is_requested(make_cpu: Any) -> None:
    def effort(**asked: Any) -> Effort:
        request = SweepRequest(contexts=("64",), quants=("bf16",), **asked)
        return resolve_request(request, make_cpu(), 20 * GIB, lambda text: None).effort

    assert effort().reps == headline.REPS
    assert effort(precision=0.1) == Effort(None, 60.0, 0.1)


def test_folders_of_the_same_name_are_distinguished_by_their_paths(tmp_path: Path) -> None:
    for run, layers in (("run1", 1), ("run2", 2)):
        folder = tmp_path / run / "merged"
        folder.mkdir(parents=True)
        raw = resolve("gemma-3-270m").source.config | {"num_hidden_layers": layers, "layer_types": None}
        (folder / "config.json").write_text(json.dumps(raw))
    names = tuple(str(tmp_path / run / "merged") for run in ("run1", "run2"))
    asked = SweepRequest(models=names, contexts=("64",), backend="fake")
    found = resolve_request(asked, devices.find("cpu"), 64 * GIB, lambda text: None)
    assert [each.name for each in found.subjects] == ["run1/merged", "run2/merged"]
    assert {task.case.model for task in found.tasks} == {"run1/merged", "run2/merged"}


def test_a_parent_folder_has_its_own_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine" / "inner").mkdir(parents=True)
    (tmp_path / "mine" / "config.json").write_text(json.dumps(resolve("gemma-3-270m").source.config))
    monkeypatch.chdir(tmp_path / "mine" / "inner")
    assert resolve("..").name == "mine"
