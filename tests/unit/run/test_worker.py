from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
import time
from typing import Any

import pytest
from fakes.lab import make_case, source

from profiler import folders
from profiler.backends.base import OutOfMemory
from profiler.case import Case, Task
from profiler.devices.cgroup import MemoryLimit
from profiler.errors import ProfileError
from profiler.results.environment import HEAP, settings
from profiler.results.measurement import SHARED_DECODE, SHARED_PREFILL, Measurement
from profiler.run import worker
from profiler.run.process import worker_environment
from profiler.run.protocol import LineBuffer
from profiler.run.repetitions import Effort
from profiler.run.worker import Wire, failure, serve

HEAVY = {"torch", "transformers", "numpy", "bitsandbytes", "click", "rich", "tabulate", "hypothesis", "sqlite3"}
TASK = Task(make_case(), source())


def test_a_worker_starts_quickly_and_imports_no_framework() -> None:
    script = f"import sys, profiler.run.worker; print(sorted({HEAVY} & set(sys.modules)))"
    seconds = []
    for _ in range(3):  # CPU time, so that a busy machine changes little
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        ended = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        assert ended.stdout == "[]\n"
    assert min(seconds) < 0.3


def test_secrets_and_unknown_variables_do_not_reach_the_environment() -> None:
    kept = {"PATH": "/bin", "CUDA_VISIBLE_DEVICES": "0", "OMP_NUM_THREADS": "2", "HF_HOME": "/h", "LC_ALL": "C"}
    secret = {
        "HF_TOKEN": "x", "HUGGING_FACE_HUB_TOKEN": "x", "TORCH_API_KEY": "x", "CUDA_SECRET": "x", "XDG_PASSWORD": "x",
        "pytorch_token": "x", "PYTHON_CREDENTIALS": "x",
    }  # fmt: skip
    strangers = {"EDITOR": "vi", "HTTPS_PROXY": "http://me:pw@host", "HF_ENDPOINT": "https://host", "PATHOLOGY": "x"}
    given = worker_environment(kept | secret | strangers)
    ours = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "PYTHONIOENCODING": "utf-8:backslashreplace"}
    assert given == kept | HEAP | ours | folders.compilers({})


def test_settings_that_break_what_a_worker_imports_do_not_reach_it() -> None:
    """transformers reads its own docstrings, which -OO strips; a library's warning is no failure of a model."""
    breaking = ("PYTHONOPTIMIZE", "PYTHONWARNINGS", "PYTHONINSPECT", "PYTHONSTARTUP", "PYTHONPROFILEIMPORTTIME")
    given = worker_environment(dict.fromkeys(breaking, "2") | {"PYTHONPATH": "/x", "PYTHONIOENCODING": "latin-1"})
    assert not set(given) & set(breaking)
    assert given["PYTHONPATH"] == "/x" and given["PYTHONIOENCODING"] == "utf-8:backslashreplace"


@pytest.mark.parametrize("name", ["GLIBC_TUNABLES", "LD_PRELOAD", "MALLOC_ARENA_MAX", "MALLOC_TRIM_THRESHOLD_"])
def test_heap_settings_of_the_user_are_kept(name: str) -> None:
    assert worker_environment({name: "x"}).items() >= {name: "x"}.items()
    assert not set(worker_environment({name: "x"})) & (set(HEAP) - {name})
    assert not set(settings({name: "x"})) & (set(HEAP) - {name})
    assert settings({"HOME": "/h"}) == HEAP  # recorded where it is ours


@pytest.mark.parametrize(
    ("error", "outcome", "reason"),
    [
        (OutOfMemory("8.00 GiB asked"), "oom", "out of memory in prefill: 8.00 GiB asked"),
        (MemoryError(), "oom", "out of memory in prefill: MemoryError"),
        (OSError(errno.ENOMEM, "no"), "oom", "out of memory in prefill: [Errno 12] no"),
        (OSError(errno.EIO, "lost"), "failed", "prefill failed: OSError: [Errno 5] lost"),
        (ProfileError("no such file", "look\nthere"), "failed", "no such file. look there"),
        (ValueError("a\x1b[2J\n  b" + "c" * 9999), "failed", None),
    ],
)
def test_an_error_becomes_a_reason_of_one_line(error: Exception, outcome: str, reason: str | None) -> None:
    row = failure(error, TASK.case, None, "prefill")
    assert row.outcome == outcome and row.samples == ()
    assert row.reason is not None and "\n" not in row.reason and "\x1b" not in row.reason
    assert row.reason == reason if reason else len(row.reason) <= 500


@pytest.fixture
def pipe():
    fds = os.pipe()
    os.set_blocking(fds[0], False)
    yield fds
    for fd in fds:
        os.close(fd)


def heard(fd: int) -> list[str]:
    return [message["text"] for message in LineBuffer().feed(os.read(fd, 1 << 20))]


def test_beats_of_one_phase_are_rate_limited_and_a_new_phase_is_sent_at_once(pipe: tuple[int, int]) -> None:
    wire = Wire(pipe[1])
    wire.beat("prefill 1/1000")
    for step in range(1000):
        wire.beat(f"prefill {step}/1000")
        wire.beat("")
    wire.beat("decode 1/3")
    texts = heard(pipe[0])
    assert texts[0] == "prefill 1/1000" and texts[-1] == "decode 1/3" and len(texts) < 6
    assert wire.phase == "decode"


def test_a_beat_does_not_wait_for_a_parent_that_does_not_read(pipe: tuple[int, int]) -> None:
    wire = Wire(pipe[1])
    for number in range(20_000):
        wire.beat(f"phase{number % 2}x{number} of a name that takes some room in the pipe")
    texts = heard(pipe[0])  # whole lines only
    assert 100 < len(texts) < 20_000


def test_a_beat_costs_almost_nothing(pipe: tuple[int, int]) -> None:
    wire = Wire(pipe[1])
    start = time.perf_counter()
    for _ in range(10_000):
        wire.beat("")
    assert (time.perf_counter() - start) / 10_000 < 20e-6


class Kept:
    """A wire that keeps what is sent."""

    phase = "prefill"

    def __init__(self) -> None:
        self.rows: list[Any] = []

    def beat(self, text: str) -> None:
        """Nobody listens."""

    def send(self, message: dict[str, Any]) -> None:
        if message["type"] == "row":
            self.rows.append(Measurement.from_json(message["row"]))


def test_a_process_settles_once_and_a_case_that_it_measures_again_warms_up_for_a_second() -> None:
    noisy = source(noise=0.3, prefill_s_per_token=0.4 / 64, step_s=0.1)  # half a second each, and never steady
    first, other = (Task(make_case(context=64, steps=4, batch=b), noisy) for b in (1, 2))
    kept = Kept()
    serve(((task, Effort(reps=2), None) for task in (first, first, other)), kept)  # type: ignore[arg-type]
    assert [row.outcome for row in kept.rows] == ["ok"] * 3
    for phase in ("prefill", "decode"):
        taken = [sum(s.seconds for s in row.samples.record(phase) if s.warmup) for row in kept.rows]
        assert taken[0] >= 5 and 1 <= taken[1] < 2
        assert sum(s.warmup for s in kept.rows[2].samples.record(phase)) == 1  # a new shape


def served(effort: Effort, *cases: Case, **script: Any) -> list[Measurement]:
    """The rows of cases that one process measures after each other."""
    kept, model = Kept(), source(path={"ran": "static"}, prefill_s_per_token=0.001, **script)
    serve(((Task(case, model), effort, None) for case in cases), kept)  # type: ignore[arg-type]
    return kept.rows


def test_a_quick_look_measures_one_prefill_for_all_numbers_of_decode_steps() -> None:
    cases = [make_case(64, steps=4), make_case(64, steps=8), make_case(128, steps=8)]
    quick = Effort(quick=True, precision=0.05)
    first, second, other = served(quick, *cases, noise=0.01)
    assert second.samples.record("prefill") == first.samples.record("prefill") != other.samples.record("prefill")
    assert second.memory.prefill_peak_bytes == first.memory.prefill_peak_bytes
    assert second.stopped == first.stopped
    (said,) = [each.text for each in second.cautions if each.code == SHARED_PREFILL]
    assert said.endswith("in the case with 4")
    assert SHARED_PREFILL not in [each.code for row in (first, other) for each in row.cautions]
    for effort in (Effort(reps=3), Effort(quick=True, energy=True), Effort(quick=True)):
        rows = served(effort, cases[0], cases[1 if effort.energy or not effort.quick else 0], noise=0.01, idle_w=10.0)
        assert rows[1].samples.record("prefill") != rows[0].samples.record("prefill")


def test_a_quick_look_takes_fewer_decode_steps_from_a_longer_decode() -> None:
    cases = [make_case(64, batch=2, steps=8), make_case(64, batch=2, steps=3)]
    longer, shorter = served(Effort(quick=True, precision=0.05), *cases, noise=0.01)
    found = zip(longer.samples.of("decode"), shorter.samples.of("decode"), strict=True)
    for whole, part in found:
        assert part.step_s == whole.step_s[:3] and part.seconds == pytest.approx(sum(part.step_s))
        assert (whole.tokens, part.tokens) == (16, 6)
    assert shorter.memory.cache_bytes is not None and longer.memory.cache_bytes is not None
    assert shorter.memory.cache_bytes < longer.memory.cache_bytes  # its own memory
    (alone,) = served(Effort(quick=True, precision=0.05), cases[1], noise=0.01)
    assert shorter.memory == alone.memory
    assert [each.code for each in shorter.cautions] == [SHARED_PREFILL, SHARED_DECODE]
    assert longer.cautions == ()


def test_a_quick_look_warms_up_decode_by_a_few_steps_where_they_have_one_shape() -> None:
    cases = [make_case(64, steps=8), make_case(128, steps=8)]
    quick = Effort(quick=True, precision=0.05)
    warm = [sum(sample.warmup for sample in row.samples.record("decode")) for row in served(quick, *cases)]
    assert warm == [2, 0]
    eager = Kept()
    serve(((Task(case, source()), quick, None) for case in cases), eager)  # type: ignore[arg-type]
    assert [sum(s.warmup for s in row.samples.record("decode")) for row in eager.rows] == [2, 1]
    usual = served(Effort(reps=3), *cases)
    assert sum(sample.warmup for sample in usual[1].samples.record("decode")) == 1


def test_a_refused_allocation_names_the_limit_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker.allowance, "memory_limit", lambda: MemoryLimit(2**30, "RLIMIT_DATA (ulimit -d)"))
    row = failure(MemoryError("no more"), TASK.case, None, "load")
    assert row.outcome == "oom"
    assert row.reason == "out of memory in load with 1.00 GiB allowed by RLIMIT_DATA (ulimit -d): no more"
