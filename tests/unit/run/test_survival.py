"""Whatever happens to a worker, its case becomes a true row and the rest go on. Real processes, fake models."""

from __future__ import annotations

import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from fakes.lab import Lab, child_pids, fault, group_members, make_case, source, vanishes

from profiler.case import Task
from profiler.devices import cgroup
from profiler.errors import StoreError
from profiler.results.measurement import Measurement
from profiler.run import process
from profiler.run.repetitions import Effort


@pytest.mark.usefixtures("fresh_interpreters")
def test_a_grid_of_two_models_gives_a_row_each_in_planned_order(lab: Lab) -> None:
    other = source(weights_bytes=2 * 1024**3)
    tasks = [Task(make_case(c), source()) for c in (512, 1024)] + [Task(make_case(256, model_id="other"), other)]
    ending = lab.run(*tasks)
    assert (ending.rows, ending.interrupted) == (3, False)
    assert [(row.case.context, row.outcome, row.reason) for row in lab.rows] == [
        (512, "ok", None), (1024, "ok", None), (256, "ok", None),
    ]  # fmt: skip
    assert len(lab.groups) == 2  # one worker per load key


def test_a_worker_that_was_started_early_measures_the_first_load_and_is_ended_if_nobody_takes_it(lab: Lab) -> None:
    tasks = [Task(make_case(512), source()), Task(make_case(256, model_id="other"), source())]
    with process.SpareWorker() as spare:
        spare.start("fake")
        early = set(child_pids())
        assert lab.run(*tasks, spare=spare).rows == 2
    assert [row.outcome for row in lab.rows] == ["ok", "ok"]
    assert early < lab.groups and len(lab.groups) == 2
    with process.SpareWorker() as spare:
        spare.start("no such backend")
        (early_pid,) = child_pids()
        os.kill(early_pid, signal.SIGKILL)
        os.waitid(os.P_PID, early_pid, os.WEXITED | os.WNOWAIT)  # it is dead, and the sweep has yet to find out
        assert lab.run(tasks[0], spare=spare).rows == 1  # by another worker
        assert lab.rows[-1].outcome == "ok"
        spare.start("fake")
        (early_pid,) = child_pids()
    assert vanishes(early_pid)


def test_every_row_has_environment_time_requested_effort_and_load_cost(lab: Lab) -> None:
    before = datetime.now(UTC)
    model = source(fault("exit", 3, context=1024), load_s=7.5)
    tasks = [Task(make_case(c), model) for c in (512, 1024)]
    lab.run(*tasks, effort=Effort(2, 9.0), environment={"torch": "2.13"}, max_memory_bytes=2**30)
    for row in lab.rows:
        assert row.environment == {"torch": "2.13"}
        assert row.asked == {"reps": 2, "max_phase_s": 9.0, "max_memory_bytes": 2**30}
        assert row.load_s == 7.5
        assert row.started_at is not None
        assert before - timedelta(seconds=1) < datetime.fromisoformat(row.started_at) < datetime.now(UTC)
    assert [row.outcome for row in lab.rows] == ["ok", "failed"]
    assert lab.rows[1].samples == () and lab.rows[1].memory.weights_bytes == 1024**3


def test_the_process_peak_includes_the_load(lab: Lab) -> None:
    small = {"weights_bytes": 1000, "cache_bytes_per_token": 1, "activation_bytes_per_token": 0}
    lab.cases(source(**small, load_extra_bytes=500), 64)
    memory = lab.rows[0].memory
    baseline = 64 * 1024**2
    assert (memory.baseline_bytes, memory.load_peak_bytes) == (baseline, baseline + 1500)
    assert memory.prefill_peak_bytes == baseline + 1064
    assert memory.process_peak_bytes == baseline + 1500


def test_the_next_case_is_sent_only_after_the_previous_row_is_stored(lab: Lab) -> None:
    """The worker is killed while the row is stored: a case sent too early would die with it."""

    def kill_the_worker(row: Measurement) -> None:
        for pid in child_pids():
            os.kill(pid, signal.SIGKILL)
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # it is gone, and its parent has yet to notice

    lab.stored = kill_the_worker
    assert lab.cases(source(), 64, 128, 256) == ["ok", "ok", "ok"]


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGTERM])
def test_a_signal_is_named_and_the_other_cases_run(lab: Lab, number: signal.Signals) -> None:
    model = source(fault("signal", int(number), when="decode", context=128))
    assert lab.cases(model, 64, 128, 256) == ["ok", "failed", "ok"]
    assert lab.rows[1].reason == f"the worker was killed by {number.name} in decode"


def test_a_kill_by_another_program_is_not_called_out_of_memory(lab: Lab) -> None:
    assert lab.cases(source(fault("signal", 9, context=128)), 64, 128, 256) == ["ok", "failed", "ok"]
    assert "SIGKILL in prefill, neither by this program" in (lab.rows[1].reason or "")


def test_a_kill_counted_by_the_kernel_is_out_of_memory(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = iter(range(1000))
    monkeypatch.setattr(process, "oom_kills", lambda: next(counts))
    assert lab.cases(source(fault("signal", 9)), 128, 256) == ["oom", "skipped"]
    assert "kernel's OOM killer" in (lab.rows[0].reason or "")


def test_an_exit_code_comes_with_the_last_line_of_stderr(lab: Lab) -> None:
    assert lab.cases(source(fault("exit", 3, context=64)), 64, 128) == ["failed", "ok"]
    assert lab.rows[0].reason == "the worker exited in prefill with code 3 and without a result: giving up with 3"


def test_an_error_in_python_is_one_line_and_the_worker_is_replaced(lab: Lab) -> None:
    model = source(fault("error", "size mismatch\nfor \x1b[31mlayer 3", when="decode", context=64))
    assert lab.cases(model, 64, 128) == ["failed", "ok"]
    assert lab.rows[0].reason == "decode failed: RuntimeError: size mismatch for layer 3"
    assert len(lab.groups) == 2


def test_a_wrong_shape_fails_the_case(lab: Lab) -> None:
    assert lab.cases(source(fault("miscount", 1)), 64) == ["failed"]
    assert lab.reason == "prefill failed: ShapeMismatch: prefill processed 65 tokens instead of 1 × 64"


def test_a_result_that_is_not_a_number_fails_with_a_reason(lab: Lab) -> None:
    assert lab.cases(source(fault("nan", when="decode", context=64)), 64, 128) == ["failed", "ok"]
    assert lab.rows[0].reason == "the result cannot be passed on: it contains a number that is not finite"


def test_larger_cases_of_the_load_are_skipped_after_out_of_memory(lab: Lab) -> None:
    model = source(oom_above_tokens=4096)
    outcomes = lab.cases(model, (1024, 1), (2048, 4), (4096, 4), (2048, 8), (4096, 1), (1024, 4))
    assert outcomes == ["ok", "oom", "skipped", "skipped", "ok", "ok"]
    assert "out of memory in prefill: 8192 tokens, and there is room for 4096" in (lab.rows[1].reason or "")
    assert lab.rows[2].reason == "the smaller case c=2048 b=4 ran out of memory"


def test_another_model_is_measured_although_a_smaller_case_ran_out_of_memory(lab: Lab) -> None:
    small = source(oom_above_tokens=100)
    lab.run(Task(make_case(512), small), Task(make_case(512, model_id="other"), source()))
    assert [row.outcome for row in lab.rows] == ["oom", "ok"]


def test_exceeding_a_simulated_capacity_is_out_of_memory_with_the_sizes(lab: Lab) -> None:
    model = source(weights_bytes=2**30, cache_bytes_per_token=2**20, capacity_bytes=2**31)
    assert lab.cases(model, 256, 2048) == ["ok", "oom"]


@pytest.mark.parametrize(
    ("kind", "value", "outcomes", "words"),
    [
        ("oom", "8 GiB", ["oom", "skipped"], "ran out of memory while it was loaded: out of memory in load: 8 GiB"),
        ("error", "bad file", ["failed", "skipped"], "could not be loaded: load failed: RuntimeError: bad file"),
        ("exit", 3, ["failed", "skipped"], "could not be loaded: the worker exited in load with code 3"),
        ("signal", 11, ["failed", "skipped"], "could not be loaded: the worker was killed by SIGSEGV in load"),
    ],
)  # fmt: skip
def test_a_model_that_does_not_load_is_tried_once(
    lab: Lab, kind: str, value: object, outcomes: list[str], words: str
) -> None:
    broken = source(fault(kind, value, when="load"))
    tasks = [Task(make_case(c), broken) for c in (512, 64)] + [Task(make_case(64, model_id="other"), source())]
    lab.run(*tasks)
    assert [row.outcome for row in lab.rows] == [*outcomes, "ok"]
    assert (lab.rows[1].reason or "").startswith(f"the model {words}")
    assert lab.rows[0].load_s is None


def test_an_unknown_backend_is_a_row_too(lab: Lab) -> None:
    lab.run(Task(make_case(backend="nope"), source()))
    assert lab.rows[0].outcome == "failed" and "unknown backend: nope" in lab.reason


def test_a_worker_that_cannot_be_started_is_a_row(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "COMMAND", ("/nowhere/python",))
    assert lab.cases(source(), 64, 128) == ["failed", "skipped"]
    assert lab.rows[0].reason == "no worker could be started: /nowhere/python: No such file or directory"


def test_silence_without_cpu_time_is_a_hang(lab: Lab) -> None:
    assert lab.cases(source(fault("hang", context=64)), 64, 128, hang_s=0.6) == ["timeout", "ok"]
    assert lab.rows[0].reason == "no progress and no CPU time for 600 ms in prefill; the worker was stopped"


def test_a_worker_that_ignores_sigterm_is_killed(lab: Lab) -> None:
    assert lab.cases(source(fault("hang-deaf")), 64, hang_s=0.3, grace_s=0.2) == ["timeout"]
    assert lab.seconds < 4


def test_a_stopped_worker_is_a_hang(lab: Lab) -> None:
    assert lab.cases(source(fault("signal", int(signal.SIGSTOP))), 64, hang_s=0.3, grace_s=0.2) == ["timeout"]


def test_a_worker_that_computes_without_messages_does_not_hang_but_has_a_time_limit(lab: Lab) -> None:
    assert lab.cases(source(fault("spin")), 64, hang_s=0.3, case_s=0.9) == ["timeout"]
    assert lab.reason == "still in prefill after 900 ms; stopped"


def test_a_worker_that_waits_for_a_compiler_does_not_hang(lab: Lab) -> None:
    """The first use compiles our loops, which takes a slow machine minutes; ended half way, it would start anew."""
    assert lab.cases(source(fault("compile", 2.0, calls=[1, 1])), 64, hang_s=0.5) == ["ok"]


def test_a_slow_case_that_keeps_sending_beats_does_not_hang(lab: Lab) -> None:
    assert lab.cases(source(pause_s=0.05), 64, hang_s=0.6) == ["ok"]


def test_after_a_worker_that_cannot_be_killed_its_device_is_not_used_again(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for a process that hangs inside the kernel: its end is not seen."""
    stop = process.WorkerProcess.stop

    def in_vain(worker: process.WorkerProcess, grace_s: float) -> bool:
        stop(worker, 0)
        worker.exited = False
        return False

    monkeypatch.setattr(process.WorkerProcess, "stop", in_vain)
    model = source(fault("hang", context=64))
    assert lab.cases(model, 64, 128, hang_s=0.3) == ["timeout", "skipped"]
    assert (lab.rows[0].reason or "").endswith("hangs inside the kernel and cannot be killed")
    assert "which used cpu before" in lab.reason


@pytest.mark.usefixtures("fresh_interpreters")
def test_private_memory_above_the_limit_is_refused_with_a_reason(lab: Lab) -> None:
    model = source(fault("allocate", 512, context=64))
    assert lab.cases(model, 32, 64, max_memory_bytes=256 * 2**20) == ["ok", "oom"]
    assert lab.reason == "out of memory in prefill under --max-memory 256 MiB: MemoryError"


@pytest.mark.usefixtures("fresh_interpreters")
def test_private_memory_below_the_limit_is_granted(lab: Lab) -> None:
    assert lab.cases(source(fault("allocate", 160)), 64, max_memory_bytes=256 * 2**20) == ["ok"]


@pytest.mark.usefixtures("fresh_interpreters")
def test_a_worker_whose_shared_memory_exceeds_the_limit_is_killed(lab: Lab) -> None:
    model = source(fault("allocate-shared", 300, context=64))
    assert lab.cases(model, 64, 32, max_memory_bytes=200 * 2**20) == ["oom", "ok"]
    reason = lab.rows[0].reason or ""
    assert reason.startswith("the worker held ")
    assert reason.endswith("in prefill, above --max-memory 200 MiB; stopped")


def test_our_own_kill_takes_precedence_over_the_kernels_oom_counter(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = iter(range(1000))
    monkeypatch.setattr(process, "oom_kills", lambda: next(counts))
    assert lab.cases(source(fault("hang-deaf")), 64, hang_s=0.3, grace_s=0.1) == ["timeout"]


def test_output_on_stdout_and_a_flood_on_stderr_do_no_harm(lab: Lab) -> None:
    assert lab.cases(source(fault("print", 22)), 64) == ["ok"]  # 66 MiB in three prefills


def test_processes_that_a_worker_started_end_with_it(lab: Lab) -> None:
    assert lab.cases(source(fault("child", 1000), fault("exit", 1, when="decode")), 64) == ["failed"]
    assert lab.seconds < 3


def test_a_store_that_fails_ends_the_run_and_the_worker(lab: Lab) -> None:
    def full(row: Measurement) -> None:
        raise StoreError("the disk is full")

    lab.stored = full
    with pytest.raises(StoreError, match="disk is full"):
        lab.cases(source(), 64, 128)


def test_an_error_in_the_caller_is_not_blamed_on_the_worker(lab: Lab) -> None:
    def broken(text: str) -> None:
        raise TypeError("a bug in the progress bar")

    lab.during = broken
    with pytest.raises(TypeError, match="progress bar"):
        lab.cases(source(), 64)


@pytest.fixture
def foreground() -> Iterator[None]:
    """Ctrl-C as a terminal gives it; in a background job of a shell it would be ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("foreground")
def test_the_first_interrupt_finishes_the_case_with_a_message(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGINT)
    fired: list[str] = []

    def once(text: str) -> None:
        if not fired:
            fired.append(text)
            os.kill(os.getpid(), signal.SIGINT)

    lab.during, lab.left_s = once, lambda case: 25.0
    ending = lab.run(*(Task(make_case(c), source(pause_s=0.02)) for c in (64, 128)))
    assert (ending.rows, ending.interrupted) == (1, True)
    assert [row.outcome for row in lab.rows] == ["ok"]
    words = capsys.readouterr().err
    assert words.count("\n") == 1 and "again stops now" in words
    assert re.search(r"finishing fake-1b bf16 c=64 b=1 \([a-z][^,()]*, about 25 s more\), then stopping", words), (
        words
    )
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.usefixtures("foreground")
@pytest.mark.parametrize("signals", [(signal.SIGINT, signal.SIGINT), (signal.SIGTERM,)])
def test_the_second_interrupt_or_a_term_stops_at_once_and_stores_nothing(
    lab: Lab, signals: tuple[signal.Signals, ...]
) -> None:
    def fire(text: str) -> None:
        lab.during = lambda text: None
        for number in signals:
            os.kill(os.getpid(), number)

    lab.during = fire
    ending = lab.run(*(Task(make_case(c), source(fault("hang-deaf"))) for c in (64, 128)))
    assert (ending.rows, ending.interrupted, lab.rows) == (0, True, [])
    assert lab.seconds < 4


def test_an_interrupt_while_a_row_is_stored_lets_it_be_stored(lab: Lab) -> None:
    lab.stored = lambda row: os.kill(os.getpid(), signal.SIGTERM)
    ending = lab.run(*(Task(make_case(c), source()) for c in (64, 128)))
    assert (ending.rows, ending.interrupted, len(lab.rows)) == (1, True, 1)


def test_an_ignored_interrupt_stays_ignored(lab: Lab) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        lab.during = lambda text: os.kill(os.getpid(), signal.SIGINT)
        ending = lab.run(Task(make_case(64), source()))
    finally:
        signal.signal(signal.SIGINT, before)
    assert (ending.rows, ending.interrupted) == (1, False)


TESTS = str(Path(__file__).parents[2])
DRIVER = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from fakes.lab import Lab, child_pids, fault, source
lab = Lab()
lab.during = lambda text: print(*child_pids(), text, flush=True)
lab.cases(source(fault(sys.argv[2], 9)), 64, hang_s=60)
"""


@pytest.mark.parametrize("kind", ["hang-deaf", "spin"])
def test_no_worker_outlives_a_parent_that_was_killed(kind: str) -> None:
    command = [sys.executable, "-c", DRIVER, TESTS, kind]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout is not None
        group = next(int(line.split()[0]) for line in driver.stdout if "prefill" in line)
        time.sleep(0.3)  # now it hangs or spins, and would never notice that its pipes are broken
        assert group_members(group)
        driver.kill()
    assert vanishes(group)


def test_a_worker_without_its_parent_does_not_start() -> None:
    command = [*process.COMMAND, "0", "1", "1"]  # process 1 is not the parent
    ended = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, timeout=10, check=False)
    assert ended.returncode == -signal.SIGKILL


@pytest.mark.usefixtures("fresh_interpreters")
def test_the_parent_sleeps_while_a_case_runs(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """It wakes for messages and a few times a second. On a virtual machine, a wake can take five times as long."""
    waits, wait = [], process.WorkerProcess.wait
    monkeypatch.setattr(process.WorkerProcess, "wait", lambda self, s: waits.append(s) or wait(self, s))
    model = source(pause_s=0.04)
    lab.run(Task(make_case(64, steps=4), model), max_memory_bytes=2**30)
    assert lab.rows[0].outcome == "ok" and lab.seconds > 1.2
    assert len(waits) < 25 * lab.seconds
    assert lab.parent_cpu_s < 0.15 * lab.seconds


@pytest.mark.usefixtures("fresh_interpreters")
def test_the_environment_of_a_worker(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Own session, first to go when memory is short, no core dump, and no secret in its environment."""
    core = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (core[1], core[1]))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "AWS_SECRET_ACCESS_KEY", "CUDA_API_KEY", "CI_JOB"):
        monkeypatch.setenv(name, "canary")
    seen: dict[str, str] = {}

    def look(text: str) -> None:
        (pid,) = child_pids()
        seen["session"] = str(os.getsid(pid) == pid == os.getpgid(pid))
        for name in ("environ", "oom_score_adj", "limits"):
            seen[name] = Path(f"/proc/{pid}/{name}").read_text()

    lab.during = look
    assert lab.cases(source(pause_s=0.02), 64) == ["ok"]
    resource.setrlimit(resource.RLIMIT_CORE, core)
    assert "canary" not in seen["environ"] and "HF_HUB_OFFLINE=1" in seen["environ"]
    assert (seen["session"], seen["oom_score_adj"].strip()) == ("True", "1000")
    assert next(line for line in seen["limits"].splitlines() if "core file" in line).split()[4] == "0"


def test_an_oom_kill_by_the_kernel_is_recognized_by_its_counter(tmp_path: Path) -> None:
    """For real, in a memory group of our own, where this machine lets us make one."""
    counter = next((path for path in cgroup._kill_counters() if path.exists()), None)
    group = None if counter is None else counter.parent / f"oom-test-{os.getpid()}"
    try:
        assert group is not None
        group.mkdir()
    except (OSError, AssertionError):
        pytest.skip("no right to make a memory control group")
    try:
        limit = group / ("memory.limit_in_bytes" if (group / "memory.limit_in_bytes").exists() else "memory.max")
        limit.write_text(str(200 * 2**20))
        enter = f"open({str(group / 'cgroup.procs')!r}, 'w').write(str(os.getpid()))"
        script = DRIVER.replace("lab = Lab()", f"{enter}\nlab = Lab()") + "print(lab.rows[0].outcome, lab.reason)"
        script = script.replace("fault(sys.argv[2], 9)", "fault('allocate', 400)")
        command = [sys.executable, "-c", script, TESTS, ""]
        output = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    finally:
        group.rmdir()
    assert output.splitlines()[-1].startswith("oom the kernel's OOM killer ended the worker in prefill")
