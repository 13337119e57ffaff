"""A side is found by what a person types, and measured by the code and the libraries that it names."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from fakes.lab import QUICK, make_case, source

from profiler.case import Task
from profiler.errors import ProfileError
from profiler.gate import bench, builds, revision, trial, variants
from profiler.gate.bench import Interrupted, WorkerBench
from profiler.gate.trial import Noise, NoiseCache
from profiler.gate.variants import Variant
from profiler.run.process import Launch
from profiler.run.protocol import read_task, task_message
from profiler.run.supervisor import WorkerLimits

ROOT = Path(__file__).parents[3]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A checkout laid out like ours, with two revisions."""
    root = tmp_path / "checkout"
    (root / "profiler" / "run").mkdir(parents=True)
    (root / "kernels").mkdir()
    (root / "profiler" / "__init__.py").write_text("VERSION = 1\n")
    (root / "profiler" / "run" / "__init__.py").write_text("")
    (root / "profiler" / "run" / "worker.py").write_text("")
    (root / "kernels" / "__init__.py").write_text("")
    mapped = '[tool.setuptools]\npackage-dir = { "profiler.kernels" = "kernels" }\n'
    (root / "pyproject.toml").write_text(mapped)
    git(root, "init", "-q")
    commit(root)
    (root / "profiler" / "__init__.py").write_text("VERSION = 2\n")
    commit(root)
    return root


def git(root: Path, *arguments: str) -> None:
    subprocess.run(["git", "-C", root, *arguments], check=True, capture_output=True)


def commit(root: Path) -> None:
    git(root, "add", "-A")
    git(root, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "x")


def test_a_revision_is_laid_out_as_installed(repository: Path, tmp_path: Path) -> None:
    first = revision.commit("HEAD~1", repository)
    assert first is not None
    folder = revision.revision(first, tmp_path / "then", repository)
    assert (folder / "profiler" / "__init__.py").read_text() == "VERSION = 1\n"
    assert (folder / "profiler" / "kernels" / "__init__.py").exists()
    assert not (folder / "kernels").exists()


def test_taking_a_revision_leaves_the_checkout_as_it_is(repository: Path, tmp_path: Path) -> None:
    (repository / "profiler" / "__init__.py").write_text("VERSION = 3\n")
    before = {path: path.stat().st_mtime_ns for path in repository.rglob("*")}
    revision.revision(revision.commit("HEAD", repository) or "", tmp_path / "then", repository)
    assert {path: path.stat().st_mtime_ns for path in repository.rglob("*")} == before


def test_an_unknown_revision_is_none_and_an_option_is_no_revision(repository: Path) -> None:
    assert revision.commit("nowhere", repository) is None
    assert revision.commit("--help", repository) is None


def test_a_revision_goes_before_what_is_installed(repository: Path, tmp_path: Path) -> None:
    folder = revision.revision(revision.commit("HEAD", repository) or "", tmp_path / "now", repository)
    facts = variants.about(Launch((sys.executable,), revision.environ(folder)))
    assert str(facts["code"]).startswith(str(folder))


def test_our_own_code_can_be_lent(tmp_path: Path) -> None:
    folder = revision.lend(tmp_path / "lent")
    assert (folder / "profiler" / "kernels" / "state.py").exists()
    assert variants.about(Launch((sys.executable,), revision.environ(folder)))["worker"]


def test_an_environment_and_an_interpreter_are_variants(tmp_path: Path) -> None:
    python = Path(sys.executable)
    for typed in (str(python), str(python.parents[1]), f"venv:{python}"):
        found = variants.resolve(typed, tmp_path)
        assert found.reported["worker"]
        assert Path(found.launch.python[0]).parent == python.parent


def test_a_command_is_a_variant(tmp_path: Path) -> None:
    found = variants.resolve(f"env PROFILER_TEST=1 {sys.executable}", tmp_path)
    assert found.launch.python == ("env", "PROFILER_TEST=1", sys.executable)


@pytest.mark.parametrize("typed", ["no-such-thing", "rev:no-such-thing", "venv:/nowhere", "cmd:no-such-program"])
def test_what_is_no_variant_is_said(typed: str, tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match=r"cannot be used|is not a revision"):
        variants.resolve(typed, tmp_path)


def test_without_git_a_revision_is_not_said_to_be_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for typed in ("rev:HEAD", "HEAD"):
        with pytest.raises(ProfileError, match="git, which finds revisions, is not installed"):
            variants.resolve(typed, tmp_path)


@pytest.mark.parametrize("typed", ["HEAD", "HEAD~1", "rev:HEAD~1", "only-theirs"])
@pytest.mark.parametrize("from_checkout", [True, False])
def test_revisions_of_another_repository_are_refused(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, typed: str, from_checkout: bool
) -> None:
    ours = tmp_path / "ours"
    git(tmp_path, "clone", "-q", str(repository), str(ours))
    (repository / "src").mkdir()
    git(repository, "tag", "only-theirs")
    monkeypatch.setattr(revision, "checkout", lambda: ours if from_checkout else None)
    monkeypatch.chdir(repository / "src")
    with pytest.raises(ProfileError, match="a gate compares versions of profile itself") as raised:
        variants.resolve(typed, tmp_path)
    assert raised.value.exit_code == 2
    assert str(repository) in raised.value.message and "--candidate NEW/.venv" in (raised.value.hint or "")
    assert "--build 'python3 -m venv .venv && " in (raised.value.hint or "")


def test_a_python_project_of_the_user_is_built_into_an_environment(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROFILER_CACHE", str(tmp_path / "cache"))
    (tmp_path / "scratch").mkdir()
    monkeypatch.chdir(repository)
    line = f"ln -s {sys.prefix} .venv"
    said: list[str] = []
    found = builds.of_project("HEAD", line, None, tmp_path / "scratch", said.append)
    assert (found.name.partition(" ")[0], found.repository) == ("HEAD", str(repository))
    assert found.launch.python[0].startswith(str(tmp_path / "cache")) and "building revision" in said[0]
    with pytest.raises(ProfileError, match=r"made no .venv or venv"):
        builds.of_project("HEAD", "true", None, tmp_path / "scratch", said.append)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ProfileError, match="in no git repository"):
        builds.of_project("HEAD", line, None, tmp_path / "scratch", said.append)


def test_a_worktree_of_the_same_repository_is_not_another(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    git(repository, "worktree", "add", "-q", str(tmp_path / "tree"))
    monkeypatch.setattr(revision, "checkout", lambda: repository)
    monkeypatch.chdir(tmp_path / "tree")
    assert revision.other_repository() is None
    monkeypatch.chdir(tmp_path)
    assert revision.other_repository() is None


def test_a_name_that_is_no_revision_of_the_other_repository_is_read_as_before(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(revision, "checkout", lambda: None)
    monkeypatch.chdir(repository)
    assert variants.meaning(sys.executable).kind == "venv"


def test_a_revision_that_a_shallow_clone_lacks_is_told_how_to_fetch_it(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "-q", "--depth", "1", repository.as_uri(), str(clone))
    monkeypatch.setattr(revision, "checkout", lambda: clone)
    monkeypatch.chdir(clone)
    for typed in ("rev:HEAD~1", "HEAD~1"):
        with pytest.raises(ProfileError, match="a shallow clone") as raised:
            variants.resolve(typed, tmp_path)
        assert raised.value.hint == f"Fetch the others: git -C {clone} fetch --unshallow"
    git(clone, "fetch", "-q", "--unshallow")
    assert revision.commit("HEAD~1") is not None


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("HEAD^{tree}", "it names a tree of"),
        ("HEAD:pyproject.toml", "it names a blob of"),
        ("HEAD~1..HEAD", "no such revision in"),
        ("HEAD@{1}", "no such revision in"),
        (":/no such message", "no such revision in"),
        ("a tree", "no such revision in"),
        ("x.lock", "no such revision in"),
    ],
)
def test_what_no_history_can_hold_is_not_said_to_be_missing_from_a_shallow_clone(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, typed: str, said: str
) -> None:
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "-q", "--depth", "1", repository.as_uri(), str(clone))
    monkeypatch.setattr(revision, "checkout", lambda: clone)
    monkeypatch.chdir(clone)
    with pytest.raises(ProfileError) as raised:
        variants.resolve(f"rev:{typed}", tmp_path)
    assert said in raised.value.message and "shallow" not in raised.value.message
    assert "unshallow" not in (raised.value.hint or "")


def test_a_revision_that_does_not_import_is_not_told_to_lend_our_code(tmp_path: Path) -> None:
    broken = Variant("HEAD~1", Launch((sys.executable,), {"PYTHONPATH": str(tmp_path)}), of_revision=True)
    (tmp_path / "profiler").mkdir()
    (tmp_path / "profiler" / "__init__.py").write_text("import no_such_library\n")
    with pytest.raises(ProfileError, match="No module named 'no_such_library'") as raised:
        variants.check(broken, [], QUICK)
    assert "Use a revision" in (raised.value.hint or "")


@pytest.mark.parametrize("typed", ["cmd:true", "cmd:false", "cmd:echo no"])
def test_a_command_that_is_no_interpreter_is_said(typed: str, tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="is not a working Python"):
        variants.resolve(typed, tmp_path)


def test_what_the_variants_have_of_their_own_is_said_in_words() -> None:
    a = Variant("a", Launch(("python",)), {"python": "3.11.9", "libraries": {"torch": "2.12.0", "triton": None}})
    b = Variant("b", Launch(("python",)), {"python": "3.12.1", "libraries": {"torch": "2.13.0", "triton": None}})
    assert variants.differences(a, b) == ["Python 3.11.9 → 3.12.1", "torch 2.12.0 → 2.13.0"]
    assert variants.is_same(a, a)
    assert not variants.is_same(a, b)


def test_blocks_run_in_two_processes_that_stay() -> None:
    here = Variant("here", Launch((sys.executable,)))
    slow = Variant("slow", Launch((sys.executable,), {"PROFILER_FAKE": '{"step_s": 0.02}'}))
    task = Task(make_case(64), source())
    with WorkerBench(QUICK, WorkerLimits(), {}, seed=1) as running:
        running.start((here, slow))
        blocks = [running.block(slot, task) for slot in (0, 1, 1, 0)]
    assert [block.process for block in blocks] == [1, 2, 2, 1]
    assert [round(block.seconds("decode", "cpu") or 0, 6) for block in blocks] == [0.04, 0.08, 0.08, 0.04]
    assert running.resident is True


def test_without_room_for_two_each_process_ends_before_the_other_starts() -> None:
    here = Variant("here", Launch((sys.executable,)))
    task = Task(make_case(64), source(weights_bytes=1 << 50))
    with WorkerBench(QUICK, WorkerLimits(), {}, seed=1) as running:
        running.start((here, here))
        blocks = [running.block(slot, task) for slot in (0, 1, 0)]
        alive = [slot.supervisor.has_worker for slot in running._slots]
    assert running.resident is False
    assert alive == [True, False]
    assert len({block.process for block in blocks}) == 3


def test_an_interrupted_bench_gives_no_block() -> None:
    with WorkerBench(QUICK, WorkerLimits(), {}, seed=1) as running:
        running.start((Variant("here", Launch((sys.executable,))),) * 2)
        running._interrupts.stop_requested = True
        with pytest.raises(Interrupted):
            running.block(0, Task(make_case(64), source()))


def test_a_ctrl_c_while_a_variant_is_tried_out_ends_the_gate() -> None:
    """The bench that measures afterwards is another one, and the signal is not sent again."""
    with WorkerBench(QUICK, WorkerLimits(), {}, seed=0) as running:
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(Interrupted):
            running.check(variants.here(), [])


def test_workers_get_environments_of_different_sizes() -> None:
    """The start of the stack, and with it speed, depends on that size."""
    running = WorkerBench(QUICK, WorkerLimits(), {}, seed=1)
    running.start((Variant("here", Launch((sys.executable,))),) * 2)
    launches = [slot.supervisor._launch for slot in running._slots]
    sizes = [len(launch.environ["PROFILER_PADDING"]) for launch in launches if launch is not None]
    assert len(set(sizes)) == 2
    assert max(sizes) < bench.PADDING


def test_an_order_holds_nothing_that_an_earlier_worker_does_not_know() -> None:
    sent = task_message(Task(make_case(64), source()), QUICK, None)
    assert set(sent["effort"]) == {"reps", "max_phase_s"}
    assert read_task(sent)[0].case == make_case(64)


def test_noise_is_kept_for_a_week(tmp_path: Path) -> None:
    kept = NoiseCache(tmp_path)
    kept.keep("k", {"decode": Noise(0.02, 6, 1000.0)})
    assert kept.find("k", now=2000.0) == {"decode": Noise(0.02, 6, 1000.0)}
    assert kept.find("k", now=1000.0 + trial.KEPT_S) is None
    assert kept.find("k", now=0.0) is None  # from the future: a clock was set
    assert kept.find("other", now=2000.0) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "{}",
        "[]",
        '{"decode": 3}',
        '{"decode": {"sd": -1, "pairs": 6, "measured_at": 1}}',
        '{"decode": {"sd": NaN, "pairs": 6, "measured_at": 1}}',
    ],
)
def test_a_damaged_noise_file_is_treated_as_absent(text: str, tmp_path: Path) -> None:
    (tmp_path / "k.json").write_text(text)
    assert NoiseCache(tmp_path).find("k", now=2.0) is None


def test_noise_belongs_to_a_case_a_machine_a_base_and_an_effort() -> None:
    keys = {
        trial.key_of(case, machine, {"name": base}, {"reps": reps})
        for case in "ab"
        for machine in "ab"
        for base in "ab"
        for reps in (3, 5)
    }
    assert len(keys) == 16


def pressed(monkeypatch: pytest.MonkeyPatch, path: Path, share: float) -> None:
    path.write_text(f"some avg10={share} avg60=0.00 avg300=0.00 total=0\nfull avg10=0.00 avg60=0.00 avg300=0.00\n")
    monkeypatch.setattr(bench, "PRESSURE", path)
    monkeypatch.setattr(bench, "SUPPLIES", path.parent)


def test_a_busy_machine_is_waited_for_and_then_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from profiler import devices

    cpu, slept, said = devices.find("cpu"), [], []
    pressed(monkeypatch, tmp_path / "cpu", 40.0)
    assert "40%" in bench.wait_until_quiet(cpu, "wall", said.append, 20.0, slept.append)[0]
    assert (sum(slept), len(said)) == (20.0, 1)
    assert bench.wait_until_quiet(cpu, "cpu", said.append, 20.0, slept.append) == []  # waiting is no CPU time
    pressed(monkeypatch, tmp_path / "cpu", 3.0)
    assert bench.wait_until_quiet(cpu, "wall", said.append, 20.0, slept.append) == []


def test_a_notebook_on_its_battery_is_not_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from profiler import devices

    pressed(monkeypatch, tmp_path / "cpu", 0.0)
    supply = tmp_path / "AC"
    supply.mkdir()
    (supply / "type").write_text("Mains\n")
    (supply / "online").write_text("0\n")
    assert "battery" in bench.obstacles(devices.find("cpu"), "cpu")[0]
    (supply / "online").write_text("1\n")
    assert bench.obstacles(devices.find("cpu"), "cpu") == []
