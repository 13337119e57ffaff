"""A worker that breaks the protocol: its case fails in words, soon, and the parent's memory stays bounded."""

from __future__ import annotations

import os
import signal
import sys

import pytest
from fakes.lab import Lab, source

from profiler.devices.cpu import CpuMeter
from profiler.run import process

MIB = 2**20
PRELUDE = "import json, os, sys, time; orders, out = int(sys.argv[1]), int(sys.argv[2])\n"
LIVE_ON = "\ntime.sleep(1000)"
ROW = """
order = json.loads(os.read(orders, 1 << 20))
row = {"case": order["case"], "environment": {}, "outcome": "ok", "reason": None, "samples": [], "memory": {},
       "cautions": []}
def send(**changes):
    os.write(out, json.dumps({"type": "row", "row": row | changes}).encode() + b"\\n")
"""


@pytest.fixture
def rogue(lab: Lab, monkeypatch: pytest.MonkeyPatch):
    """Replaces the worker by a script, runs one case, and returns its outcome and reason."""

    def play(script: str, **limits: float) -> tuple[str, str]:
        monkeypatch.setattr(process, "COMMAND", (sys.executable, "-I", "-S", "-c", PRELUDE + script))
        lab.cases(source(), 64, **limits)
        assert lab.seconds < 5
        return lab.rows[0].outcome, lab.reason

    return play


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (r"b'\x00\xff{nonsense\n'", "a line that is not JSON"),
        (r"b'[1, 2]\n'", "a line that is not a message"),
        (r"b'[' * 5000 + b'\n'", "a line that is not JSON"),
        (r"""b'{"type": "beat", "text": NaN}\n'""", "a line that is not JSON"),
        (r"""b'{"type": "beat", "text": 1e999}\n'""", "a line that is not JSON"),
        (r"""b'{"type": "beat"}\n'""", "an invalid message"),
        (r"""b'{"text": "prefill"}\n'""", "an invalid message"),
        (r"""b'{"type": "row", "row": [1]}\n'""", "an invalid message"),
        (r"""b'{"type": "row", "row": {"case": {"model": 1}}}\n'""", "an invalid message"),
        (r"""b'{"type": "loaded", "load": null}\n'""", "an invalid message"),
        (r"""b'{"type": "\x1b[2J"}\n'""", "a line that is not JSON"),
    ],
)
def test_garbage_on_the_pipe_fails_the_case(rogue, line: str, words: str) -> None:
    outcome, reason = rogue(f"os.write(out, {line})" + LIVE_ON)
    assert outcome == "failed" and reason.startswith(f"the worker sent {words}")
    assert "\x1b" not in reason and len(reason) <= 400


def test_a_row_of_another_case_is_refused(rogue) -> None:
    script = 'row["case"]["context"] += 1\nsend()' + LIVE_ON
    outcome, reason = rogue(ROW + script)
    assert outcome == "failed" and "invalid message" in reason


def test_a_stop_does_not_wait_for_an_idle_worker(rogue, lab: Lab) -> None:
    lab.stored = lambda row: os.kill(os.getpid(), signal.SIGTERM)
    assert rogue(ROW + "send()" + LIVE_ON, grace_s=4) == ("ok", "")
    assert lab.seconds < 3


def test_a_worker_that_does_not_exit_after_its_last_task_is_killed(rogue, lab: Lab) -> None:
    assert rogue(ROW + "send()" + LIVE_ON, grace_s=0.3) == ("ok", "")


@pytest.mark.parametrize("size", [0, 65_000, 1_000_000])
def test_a_complete_row_is_accepted_even_if_the_worker_dies_after_it(rogue, size: int) -> None:
    assert rogue(ROW + f"send(reason='x' * {size}); os.kill(os.getpid(), 9)") == ("ok", "x" * size)


def test_an_endless_line_fails_the_case_with_bounded_memory(rogue) -> None:
    meter = CpuMeter()
    meter.reset_peak()
    before = meter.peak().process_bytes or 0
    script = "os.set_blocking(out, True)\nwhile True: os.write(out, b'x' * (1 << 20))"
    assert rogue(script) == ("failed", "the worker sent a line of more than 16.0 MiB; stopped in start")
    assert (meter.peak().process_bytes or 0) - before < 128 * MIB  # of gigabytes; a large heap gives little back


def test_a_flood_of_output_is_read_and_discarded(rogue) -> None:
    meter = CpuMeter()
    meter.reset_peak()
    before = meter.peak().process_bytes or 0
    script = f"for _ in range(64): os.write(2, b'x' * {MIB})\nos.write(2, b'the last word\\n'); sys.exit(4)"
    outcome, reason = rogue(script)
    assert outcome == "failed" and reason.startswith("the worker exited in start with code 4 and without a result: x")
    assert len(reason) <= 400
    assert (meter.peak().process_bytes or 0) - before < 8 * MIB


def test_a_flood_of_beats_does_not_extend_the_time_limit(rogue) -> None:
    script = """line = b'{"type": "beat", "text": "prefill"}\\n' * 1000\nwhile True: os.write(out, line)"""
    assert rogue(script, case_s=0.5) == ("timeout", "still in prefill after 500 ms; stopped")


def test_a_worker_that_closes_its_pipe_but_does_not_exit_is_killed(rogue) -> None:
    outcome, reason = rogue("os.close(out)" + LIVE_ON, grace_s=0.2)
    assert (outcome, reason) == ("failed", "the worker closed its pipe in start but did not exit; stopped")


def test_an_exit_without_a_result_is_a_failure(rogue) -> None:
    assert rogue("sys.exit(0)") == ("failed", "the worker exited in start with code 0 and without a result")


def test_a_task_that_nobody_reads_does_not_block_the_parent(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """The config is larger than a pipe."""
    monkeypatch.setattr(process, "COMMAND", (sys.executable, "-I", "-S", "-c", PRELUDE + LIVE_ON))
    model = source(weights_bytes=1)
    model.config["vocabulary"] = ["word"] * 300_000  # type: ignore[index]
    assert lab.cases(model, 64, hang_s=0.5) == ["timeout"]


def test_a_large_task_arrives_complete(lab: Lab) -> None:
    model = source(weights_bytes=12345)
    model.config["vocabulary"] = ["word"] * 300_000  # type: ignore[index]
    assert lab.cases(model, 64) == ["ok"]
    assert lab.rows[0].memory.weights_bytes == 12345


def test_a_config_too_large_for_a_line_fails_the_case(lab: Lab) -> None:
    model = source()
    model.config["vocabulary"] = "x" * (17 * MIB)  # type: ignore[index]
    assert lab.cases(model, 64, 128) == ["failed", "skipped"]
    assert "its line has 17.0 MiB, more than 16.0 MiB" in (lab.rows[0].reason or "")


def test_a_config_that_contains_infinity_arrives(lab: Lab) -> None:
    model = source()
    model.config["time_step_limit"] = [0.0, float("inf")]  # type: ignore[index]
    assert lab.cases(model, 64) == ["ok"]
