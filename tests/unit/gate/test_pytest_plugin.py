"""``profile_case`` and ``--profile-gate``: what stock pytest-benchmark lets through, and ours does not.

The suites run in this process, by pytester; what they measure is the fake backend, whose clock is simulated. The
fixture ``machine`` makes that virtual machine slower or larger: the regression.
"""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import re
import shlex
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import pytest_benchmark.plugin
from fakes.variants import BASE, LocalBench

import profiler
from profiler.errors import ProfileError
from profiler.gate import measured as gate_measured
from profiler.gate import suite, variants
from profiler.gate.bench import WorkerBench
from profiler.gate.variants import Variant
from profiler.run.process import Launch

# pytester forgets the modules that a suite inside a test is the first to import. Imported once more, they would be a
# second set of the same classes for the tests that follow, so all that need no torch are imported before.
NEEDS_TORCH = ("profiler.backends.hf", "profiler.devices.cuda", "profiler.kernels", "profiler.__main__")
for module in pkgutil.walk_packages(profiler.__path__, "profiler."):
    if not module.name.startswith(NEEDS_TORCH):
        importlib.import_module(module.name)

pytest_plugins = ["pytester"]

STOCK = """
import time, pytest
NOW = [0.0]
def timer(): return NOW[0]
def work(seconds): NOW[0] += seconds

@pytest.mark.benchmark(timer=timer)
def test_NAME(benchmark):
    benchmark.extra_info["peak_bytes"] = BYTES
    benchmark.pedantic(work, args=(SECONDS,), rounds=5)
"""

OURS = """
def test_NAME(profile_case):
    profile_case(model="gemma-3-270m", backend="fake", context=64, steps=8)
"""


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes the fake machine cost what is said from now on. What a worker does is done in this process."""
    monkeypatch.setattr(suite, "WorkerBench", LocalBench)
    monkeypatch.setattr(variants, "here", lambda: BASE)
    monkeypatch.setattr(pytest_benchmark.plugin, "get_cpu_info", dict)  # a second for each saved file

    def cost(**script: Any) -> None:
        monkeypatch.setenv("PROFILER_FAKE", json.dumps(script))

    return cost


@pytest.fixture
def run(pytester: pytest.Pytester, machine: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run the suite of this folder; the exit status and the output."""
    monkeypatch.setenv("PY_COLORS", "0")
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)  # what is inside is no part of a run with -n
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # other people's take most of a second to load
    plugins = ["-p", "profiler.gate.pytest_plugin", "-p", "no:cacheprovider", "-p", "no:terminalprogress"]

    def pytest_in_process(*arguments: str, benchmark: bool = True) -> pytest.RunResult:
        stock = ["-p", "pytest_benchmark.plugin"] if benchmark else []
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("default")  # as in a user's project, not as in ours
            result = pytester.runpytest_inprocess(*stock, *plugins, *arguments)
        result.errlines += [str(warning.message) for warning in warned]
        return result

    return pytest_in_process


def write(pytester: pytest.Pytester, text: str, name: str = "speed", **values: Any) -> None:
    for word, value in ({"NAME": name} | values).items():
        text = text.replace(word, str(value))
    pytester.makepyfile(test_suite=text)


ACCEPTED: dict[str, str] = {}  # suite → the baseline it gave: most tests start from the same one


def accept(run: Any) -> None:
    suite_text = Path("test_suite.py").read_text()
    if suite_text in ACCEPTED:
        Path("base.json").write_text(ACCEPTED[suite_text])
        return
    result = run("--profile-gate", "base.json", "--profile-gate-accept")
    assert result.ret == 0, result.stdout.str()
    ACCEPTED[suite_text] = Path("base.json").read_text()


def gate(run: Any, *arguments: str) -> pytest.RunResult:
    return run("--profile-gate", "base.json", *arguments)


STRICT = ("--profile-gate-inconclusive", "fail")


def text(result: pytest.RunResult) -> str:
    return "\n".join(result.outlines + result.errlines)


def test_what_is_as_it_was_passes(pytester: pytest.Pytester, run: Any) -> None:
    write(pytester, OURS)
    accept(run)
    result = gate(run)
    assert result.ret == 0
    result.stdout.fnmatch_lines(["*profile gate*", "PASS: 7 PASS"])


# 1. A regression that is saved becomes the next run's baseline.


COMPARING = ("--benchmark-autosave", "--benchmark-compare", "--benchmark-compare-fail=mean:5%")


def test_stock_a_regression_is_saved_and_passes_the_next_time(pytester: pytest.Pytester, run: Any) -> None:
    write(pytester, STOCK, SECONDS=1.0, BYTES=1)
    assert run("--benchmark-autosave").ret == 0
    write(pytester, STOCK, SECONDS=3.0, BYTES=1)
    result = run(*COMPARING)
    assert result.ret != 0
    assert "PerformanceRegression: Performance has regressed" in text(result)  # with its traceback
    assert run(*COMPARING).ret == 0


def test_a_regression_never_becomes_the_baseline(pytester: pytest.Pytester, run: Any, machine: Any) -> None:
    write(pytester, OURS)
    accept(run)
    before = Path("base.json").read_bytes()
    machine(step_s=0.03)
    for _ in range(2):
        result = gate(run, "--benchmark-autosave")
        assert result.ret == 1
        result.stdout.fnmatch_lines(["*decode_cpu_s*FAIL*3.000*"])
    assert Path("base.json").read_bytes() == before


# 2. A renamed, new or deleted benchmark has no baseline.


def test_stock_a_renamed_benchmark_passes_whatever_it_takes(pytester: pytest.Pytester, run: Any) -> None:
    write(pytester, STOCK, SECONDS=1.0, BYTES=1)
    run("--benchmark-autosave")
    write(pytester, STOCK, "renamed", SECONDS=30.0, BYTES=1)
    assert run("--benchmark-compare", "--benchmark-compare-fail=mean:5%").ret == 0


def test_a_renamed_benchmark_fails_under_both_names(pytester: pytest.Pytester, run: Any) -> None:
    write(pytester, OURS)
    accept(run)
    write(pytester, OURS, "renamed")
    result = gate(run)
    assert result.ret == 1
    assert "test_suite.py::test_renamed case: it is not in the baseline" in text(result)
    assert "test_suite.py::test_speed case: it is in the baseline but was not measured" in text(result)


# 3. Under xdist there are no benchmarks.


def test_stock_under_xdist_nothing_is_measured_and_it_passes(
    pytester: pytest.Pytester, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(pytester, STOCK, SECONDS=1.0, BYTES=1)
    run("--benchmark-autosave")
    write(pytester, STOCK, SECONDS=30.0, BYTES=1)
    monkeypatch.setenv("PYTEST_XDIST_WORKER", "gw0")  # as xdist sets it in its workers
    assert run("--benchmark-compare").ret == 0


@pytest.mark.parametrize("how", ["xdist", "disabled", "skipped"])
def test_where_nothing_can_be_measured_a_gate_is_a_usage_error(
    pytester: pytest.Pytester, run: Any, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    write(pytester, OURS)
    accept(run)
    options = {"xdist": (), "disabled": ("--benchmark-disable",), "skipped": ("--benchmark-skip",)}[how]
    if how == "xdist":
        monkeypatch.setenv("PYTEST_XDIST_WORKER", "gw0")
    assert gate(run, *options).ret == pytest.ExitCode.USAGE_ERROR


# 4. Benchmarks that errored are dropped; a run of errors only passes.

XFAIL = "import pytest\n\n@pytest.mark.xfail\n"


def test_stock_a_run_of_errors_only_passes(pytester: pytest.Pytester, run: Any) -> None:
    write(pytester, STOCK, SECONDS=1.0, BYTES=1)
    run("--benchmark-autosave")
    write(pytester, STOCK.replace("@pytest.mark.b", "@pytest.mark.xfail\n@pytest.mark.b"), SECONDS="None", BYTES=1)
    assert run("--benchmark-compare", "--benchmark-compare-fail=mean:5%").ret == 0


def test_an_errored_case_fails_the_gate_though_the_test_may(
    pytester: pytest.Pytester, run: Any, machine: Any
) -> None:
    write(pytester, OURS)
    accept(run)
    machine(faults=[{"kind": "error", "value": "broken", "when": "decode"}])
    write(pytester, XFAIL + OURS)
    result = gate(run)
    assert result.ret == 1
    assert "decode failed: RuntimeError: broken" in text(result)


def test_no_case_at_all_fails(pytester: pytest.Pytester, run: Any) -> None:
    write(pytester, OURS)
    accept(run)
    write(pytester, "def test_NAME():\n    pass\n")
    assert gate(run).ret == 1
    Path("base.json").write_text(json.dumps(json.loads(Path("base.json").read_text()) | {"cells": {}}))
    result = gate(run)
    assert result.ret == 1
    assert "nothing was measured" in text(result)


# 5. Memory in extra_info is never compared.


def test_stock_ten_times_the_memory_passes(pytester: pytest.Pytester, run: Any) -> None:
    write(pytester, STOCK, SECONDS=1.0, BYTES=1)
    run("--benchmark-autosave")
    write(pytester, STOCK, SECONDS=1.0, BYTES=10)
    assert run("--benchmark-compare", "--benchmark-compare-fail=mean:5%").ret == 0


def test_ten_times_the_cache_fails(pytester: pytest.Pytester, run: Any, machine: Any) -> None:
    write(pytester, OURS)
    accept(run)
    machine(cache_bytes_per_token=160 * 1024)
    result = gate(run)
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*cache_bytes*FAIL*10.00*"])


# 6. Fractions of a percent, rates, thresholds of a test: none of them can be said.


def test_stock_a_fraction_of_a_percent_and_a_rate_are_parse_errors(pytester: pytest.Pytester, run: Any) -> None:
    write(pytester, STOCK, SECONDS=1.0, BYTES=1)
    for what in ("min:2.5%", "ops:5%"):
        assert run("--benchmark-compare", f"--benchmark-compare-fail={what}").ret == pytest.ExitCode.USAGE_ERROR


def test_delta_may_be_a_fraction_of_a_percent_and_each_tests_own(
    pytester: pytest.Pytester, run: Any, machine: Any
) -> None:
    write(pytester, OURS + OURS.replace("NAME", "lenient").replace("steps=8", "steps=8, delta='20%'"))
    accept(run)
    machine(step_s=0.0104)
    assert gate(run).ret == 0
    assert gate(run, *STRICT, "--profile-gate-delta", "2.5%").ret == 3
    machine(step_s=0.011)
    result = gate(run, *STRICT)
    assert result.ret == 3
    result.stdout.fnmatch_lines(["*test_speed*decode_cpu_s*INCONCLUSIVE*"])
    result.stdout.fnmatch_lines(["*test_lenient*decode_cpu_s*PASS*"])


# 7. Another machine only warns; a corrupt baseline is skipped.


def test_stock_another_machine_only_warns(pytester: pytest.Pytester, run: Any) -> None:
    write(pytester, STOCK, SECONDS=1.0, BYTES=1)
    run("--benchmark-autosave")
    (saved,) = Path(".benchmarks").rglob("*.json")
    content = json.loads(saved.read_text())
    saved.write_text(json.dumps(content | {"machine_info": content["machine_info"] | {"node": "elsewhere"}}))
    result = run("--benchmark-compare", "--benchmark-compare-fail=mean:5%")
    assert result.ret == 0
    assert "machine_info is different" in text(result)


def test_another_machine_is_incomparable(pytester: pytest.Pytester, run: Any) -> None:
    write(pytester, OURS)
    accept(run)
    content = json.loads(Path("base.json").read_text())
    for entry in content["cells"].values():
        entry["environment"]["cpu"]["title"] = "Example CPU 9000"
    Path("base.json").write_text(json.dumps(content))
    result = gate(run)
    assert result.ret == 4
    assert "Example CPU 9000" in text(result)
    assert gate(run, "--profile-gate-kinds", "workload").ret == 0  # bytes and tokens follow from the case alone


def test_stock_a_corrupt_baseline_is_passed_over(pytester: pytest.Pytester, run: Any) -> None:
    write(pytester, STOCK, SECONDS=1.0, BYTES=1)
    run("--benchmark-autosave")
    (saved,) = Path(".benchmarks").rglob("*.json")
    saved.write_text("{")
    assert run("--benchmark-compare").ret == 0


@pytest.mark.parametrize("content", ["{", "", "{}", None])
def test_a_corrupt_or_missing_baseline_is_a_usage_error(
    pytester: pytest.Pytester, run: Any, content: str | None
) -> None:
    write(pytester, OURS)
    if content is not None:
        Path("base.json").write_text(content)
    assert gate(run).ret == pytest.ExitCode.USAGE_ERROR


@pytest.mark.parametrize("more", [(), ("--profile-gate-accept",)])
def test_an_empty_name_of_a_baseline_is_usage_as_where_a_variable_of_a_script_is_not_set(
    pytester: pytest.Pytester, run: Any, more: tuple[str, ...]
) -> None:
    write(pytester, OURS)
    result = run("--profile-gate", "", *more)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "--profile-gate needs the name of a file" in text(result)


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("delta", "0%", "--profile-gate-delta: it must be more than 0%"),
        ("delta", "5", "--profile-gate-delta: '5' needs a percent sign"),
        ("kinds", "time,tmie", "--profile-gate-kinds: unknown kind 'tmie'"),
        ("kinds", "", "--profile-gate-kinds: unknown kind ''"),
    ],
)
def test_an_option_that_cannot_be_meant_is_named_with_its_value(
    pytester: pytest.Pytester, run: Any, option: str, value: str, said: str
) -> None:
    write(pytester, OURS)
    accept(run)
    result = gate(run, f"--profile-gate-{option}", value)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert said in text(result)


# 8. Files are written in place, and a failure surfaces as a traceback. (Writing: test_baseline.)


def test_a_fail_is_words_and_no_traceback(pytester: pytest.Pytester, run: Any, machine: Any) -> None:
    write(pytester, OURS)
    accept(run)
    machine(step_s=0.05)
    result = gate(run)
    assert "Traceback" not in text(result)
    assert "→ to be sure, measure both versions in turns" in text(result)
    assert "      profile gate --base REV -m gemma-3-270m " in text(result)


# 9. No warm-up, and one round.


def test_stock_pedantic_measures_one_cold_round(pytester: pytest.Pytester, run: Any) -> None:
    write(pytester, STOCK.replace(", rounds=5", ""), SECONDS=1.0, BYTES=1)
    run("--benchmark-json=out.json")
    (found,) = json.loads(Path("out.json").read_text())["benchmarks"]
    assert found["stats"]["rounds"] == 1
    assert not found["options"]["warmup"]


def test_ours_repeats_after_a_warm_up(pytester: pytest.Pytester, run: Any) -> None:
    write(pytester, OURS)
    run("--benchmark-json=out.json")
    (found,) = json.loads(Path("out.json").read_text())["benchmarks"]
    assert found["stats"]["rounds"] == 3
    accept(run)
    session = next(iter(json.loads(Path("base.json").read_text())["cells"].values()))["sessions"][0]
    assert len(session["blocks"]["decode"]) == 6  # each the median of three repetitions after one to warm up


# What else a person expects.


def test_figures_are_those_of_the_worker_in_the_table_and_in_the_json(pytester: pytest.Pytester, run: Any) -> None:
    write(pytester, OURS)
    result = run("--benchmark-json=out.json")
    (found,) = json.loads(Path("out.json").read_text())["benchmarks"]
    assert found["stats"]["median"] == pytest.approx(0.010)  # the fake's decode step
    extra = found["extra_info"]["profile"]
    assert extra["decode_tps"] == pytest.approx({"median": 100, "low": 100, "high": 100})
    assert extra["prefill_tps"]["median"] == pytest.approx(10_000)
    assert extra["weights_bytes"] == 1024**3
    assert len(extra["fingerprint"]) == len(extra["key"]) == 16
    result.stdout.fnmatch_lines(["*profile_case: seconds per decode step*", "*test_speed*"])


def test_a_table_may_show_the_prefill(pytester: pytest.Pytester, run: Any) -> None:
    write(pytester, OURS.replace("steps=8", "steps=8, phase='prefill'"))
    run("--benchmark-json=out.json")
    (found,) = json.loads(Path("out.json").read_text())["benchmarks"]
    assert found["stats"]["median"] == pytest.approx(0.0064)


def test_a_test_may_look_at_its_measurement_and_keep_its_own_marker(pytester: pytest.Pytester, run: Any) -> None:
    marked = "import pytest\n\n@pytest.mark.benchmark(group='mine')" + OURS.replace("    profile", "    it = profile")
    write(pytester, marked + "    assert it.memory.weights_bytes == 1024**3\n")
    result = run()
    assert result.ret == 0
    result.stdout.fnmatch_lines(["*benchmark 'mine'*"])


def test_without_pytest_benchmark_cases_are_measured_and_gated(pytester: pytest.Pytester, run: Any) -> None:
    write(pytester, OURS)
    loaded = "ignore::pytest.PytestAssertRewriteWarning"  # the plugin is in this process already
    options = ("--profile-gate", "base.json", "--strict-markers", "-W", "error", "-W", loaded)
    assert run(*options, "--profile-gate-accept", benchmark=False).ret == 0
    assert run(*options, benchmark=False).ret == 0


@pytest.mark.parametrize(
    ("call", "said"),
    [
        ("model='no-such-model'", "no-such-model"),
        ("model='gemma-3-270m', context='1k,2k'", "one case"),
        ("model='gemma-3-270m', colour=1", "profile_case has no argument colour"),
        ("model='gemma-3-270m', delta='5'", "needs a percent sign"),
        ("model='gemma-3-270m', context='x'", "context: 'x' is not a count"),
        ("model='gemma-3-270m', quant='q4_k_m'", "Add backend llama.cpp"),
        ("model='gemma-3-270m', weights='real'", "Without weights real, the model is measured with random values"),
    ],
)
def test_a_call_that_cannot_be_meant_fails_in_words(
    pytester: pytest.Pytester, run: Any, call: str, said: str
) -> None:
    write(pytester, f"def test_NAME(profile_case):\n    profile_case({call}, backend='fake')\n")
    result = run()
    assert result.ret == 1
    assert said in text(result)
    assert "Traceback" not in text(result)
    assert "During handling" not in text(result)


def test_a_second_case_in_one_test_fails(pytester: pytest.Pytester, run: Any) -> None:
    write(pytester, OURS + "    profile_case(model='gemma-3-270m', backend='fake', context=64, steps=9)\n")
    result = run()
    assert result.ret == 1
    assert "one case per test" in text(result)


def test_a_baseline_is_not_written_where_a_test_fails(pytester: pytest.Pytester, run: Any) -> None:
    write(pytester, OURS + "    assert False\n")
    result = run("--profile-gate", "base.json", "--profile-gate-accept")
    assert result.ret == 1
    assert not Path("base.json").exists()
    assert "not every test passed" in text(result)


def test_accepting_a_part_keeps_the_rest(pytester: pytest.Pytester, run: Any) -> None:
    write(pytester, OURS + OURS.replace("NAME", "other"))
    accept(run)
    assert run("--profile-gate", "base.json", "--profile-gate-accept", "-k", "other").ret == 0
    assert gate(run).ret == 0
    result = gate(run, "-k", "other")
    assert result.ret == 1
    assert "not selected" in text(result)


def test_a_noisy_stored_time_warns_unless_it_is_to_fail_and_a_fail_always_fails(
    pytester: pytest.Pytester, run: Any, machine: Any
) -> None:
    write(pytester, OURS)
    accept(run)
    machine(step_s=0.011)
    result = gate(run)
    assert result.ret == 0
    result.stdout.fnmatch_lines(["INCONCLUSIVE: *", "*decode_cpu_s*INCONCLUSIVE*", "warning: some times are*"])
    strict = gate(run, *STRICT)
    assert strict.ret == 3
    assert "warning:" not in text(strict)
    machine(step_s=0.05)
    assert gate(run).ret == 1


def test_a_missing_baseline_names_the_option_of_the_plugin(pytester: pytest.Pytester, run: Any) -> None:
    write(pytester, OURS)
    result = gate(run)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "add --profile-gate-accept" in text(result)
    assert run("--profile-gate", "base.json", "--profile-gate-accept").ret == 0


def test_every_advice_of_the_plugin_names_options_of_the_plugin(pytester: pytest.Pytester, run: Any) -> None:
    write(pytester, OURS)
    accept(run)
    write(pytester, OURS, "renamed")
    said = text(gate(run))
    assert "--profile-gate-accept" in said
    assert re.findall(r"(?<![\w-])--accept", said) == []


@pytest.mark.parametrize("where", ["none/base.json", "file/base.json", "."])
def test_a_baseline_that_cannot_be_written_is_one_line_before_measuring(
    pytester: pytest.Pytester, run: Any, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(pytester, OURS)
    Path("file").write_text("")
    monkeypatch.setattr(suite, "WorkerBench", None)  # nothing is measured
    result = run("--profile-gate", where, "--profile-gate-accept")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "cannot be written" in text(result)
    assert "INTERNALERROR" not in text(result)


def test_a_baseline_on_a_disk_that_fills_up_meanwhile_is_one_line(
    pytester: pytest.Pytester, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any) -> None:
        raise ProfileError("base.json cannot be written: No space left on device")

    write(pytester, OURS)
    monkeypatch.setattr(gate_measured, "write", full)
    result = run("--profile-gate", "base.json", "--profile-gate-accept")
    assert result.ret == 1
    assert "No space left on device" in text(result)
    assert "INTERNALERROR" not in text(result)


def test_a_failing_test_keeps_pytests_own_status(pytester: pytest.Pytester, run: Any) -> None:
    write(pytester, OURS)
    accept(run)
    content = json.loads(Path("base.json").read_text())
    for entry in content["cells"].values():
        entry["environment"]["cpu"]["title"] = "Example CPU 9000"
    Path("base.json").write_text(json.dumps(content))
    write(pytester, OURS + "    assert False\n")
    assert gate(run).ret == 1


def test_collecting_only_gates_nothing(pytester: pytest.Pytester, run: Any) -> None:
    write(pytester, OURS)
    accept(run)
    assert gate(run, "--collect-only").ret == 0


def test_loading_the_plugin_imports_nothing_heavy() -> None:
    program = (
        "import sys, pytest; before = set(sys.modules); import profiler.gate.pytest_plugin\n"
        "print(sorted(name for name in set(sys.modules) - before if not name.startswith('profiler')))\n"
        "print(sorted(name for name in sys.modules if name.startswith('profiler')))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    others, mine = done.stdout.splitlines()
    assert others == "[]"
    assert mine == "['profiler', 'profiler.gate', 'profiler.gate.pytest_plugin']"


def test_pytest_finds_the_plugin_as_installed() -> None:
    from importlib.metadata import distribution

    tasks = [task for task in distribution("llm-hwprofile").entry_points if task.group == "pytest11"]
    assert [task.value for task in tasks] == ["profiler.gate.pytest_plugin"]


def test_real_workers_give_the_same_and_none_is_left(
    pytester: pytest.Pytester, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(pytester, OURS)
    accept(run)  # without workers
    monkeypatch.setattr(suite, "WorkerBench", WorkerBench)
    monkeypatch.setattr(variants, "here", lambda: Variant("here", Launch((sys.executable,))))
    assert gate(run).ret == 0
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    assert children.read_text().split() == []


def test_the_documented_suite_works_in_a_fresh_project(pytester: pytest.Pytester, run: Any) -> None:
    """Copied and pasted; only the backend is another, so that it takes no minute."""
    page = (Path(__file__).parents[3] / "docs" / "gates.md").read_text(encoding="utf-8")
    (suite_text,) = re.findall(r"```python\n(.*?profile_case.*?)```", page, re.DOTALL)
    (named,) = re.findall(r"`(test_\w+\.py)` in the folder\s+`tests`:", page)
    commands = [shlex.split(line, comments=True) for line in page.splitlines() if line.startswith("pytest tests ")]
    assert len(commands) == 2
    Path("tests").mkdir()
    Path("tests", named).write_text(suite_text.replace("model=", 'backend="fake", model='))
    for command in commands:
        result = run(*command[1:])
        assert result.ret == 0, text(result)
    result.stdout.fnmatch_lines(["*test_speed?64?*", "PASS: 14 PASS"])
