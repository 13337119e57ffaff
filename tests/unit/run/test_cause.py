"""A failure is told with its innermost cause, whoever has wrapped it."""

from __future__ import annotations

import errno

import pytest
from fakes.lab import make_case

from profiler.cli import HINTS, fault
from profiler.devices import allowance, cgroup
from profiler.errors import ProfileError
from profiler.run.worker import failure, one_line

CASE = make_case(64)


def raised(error: Exception, cause: BaseException | None = None) -> Exception:
    try:
        raise error from cause
    except Exception as caught:
        return caught


def while_handling(error: Exception, first: Exception) -> Exception:
    try:
        try:
            raise first
        except type(first):
            raise error  # noqa: B904  # as libraries do
    except Exception as caught:
        return caught


INNER = OSError(errno.EPERM, "failed to map segment from shared object: Operation not permitted")


def test_the_innermost_explicit_cause_is_reported() -> None:
    middle = raised(RuntimeError("the middle"), INNER)
    text = one_line(raised(OSError("Could not load this library: decode.so"), middle))
    assert text == (
        "OSError: Could not load this library: decode.so; caused by PermissionError: [Errno 1]"
        " failed to map segment from shared object: Operation not permitted"
    )


def test_an_exception_that_was_being_handled_is_reported_as_after() -> None:
    text = one_line(while_handling(ValueError("no such layer"), KeyError("model.layers.3")))
    assert text == "ValueError: no such layer; after KeyError: 'model.layers.3'"


def test_a_suppressed_cause_stays_hidden() -> None:
    try:
        try:
            raise KeyError("x")
        except KeyError:
            raise ValueError("in words") from None
    except ValueError as error:
        assert one_line(error) == "ValueError: in words"


def test_a_cause_that_the_outer_message_repeats_is_reported_once() -> None:
    assert (
        one_line(raised(RuntimeError("it failed: no space"), OSError("no space")))
        == "RuntimeError: it failed: no space"
    )


def test_a_profile_error_is_reported_without_the_error_that_was_being_handled() -> None:
    assert (
        one_line(while_handling(ProfileError("no weights", "give a folder"), KeyError("x")))
        == "no weights. give a folder"
    )
    assert one_line(ProfileError("no space", "Free some.")) == "no space. Free some."
    assert one_line(raised(ProfileError("no weights"), OSError("gone"))) == "no weights; caused by OSError: gone"


def test_an_assertion_without_a_message_is_reported_by_its_source_line() -> None:
    try:
        vocabulary = 5
        assert vocabulary > 7
    except AssertionError as error:
        error.args = ()
        text = one_line(error)
    assert text.startswith("AssertionError: raised in run/test_cause.py, line ")
    assert "assert vocabulary > 7" in text


def test_an_exception_group_is_reported_by_its_first_exception() -> None:
    text = one_line(ExceptionGroup("several things failed", [ValueError("bad shard"), ValueError("other")]))
    assert text == "ExceptionGroup: several things failed (2 sub-exceptions); caused by ValueError: bad shard"


def test_a_cycle_of_causes_ends() -> None:
    first, second = ValueError("a"), ValueError("b")
    first.__cause__, second.__cause__ = second, first
    assert one_line(first) == "ValueError: a; caused by ValueError: b"


@pytest.mark.parametrize("length", [10, 10_000])
def test_the_cause_is_never_cut_off(length: int) -> None:
    row = failure(raised(RuntimeError("x" * length), ValueError("17 is not a multiple of 32")), CASE, None, "load")
    assert row.outcome == "failed"
    assert row.reason is not None
    assert row.reason.endswith("; caused by ValueError: 17 is not a multiple of 32")
    assert row.reason.startswith("load failed: RuntimeError: x")


def test_out_of_memory_is_recognized_however_it_was_wrapped() -> None:
    assert failure(raised(RuntimeError("loading failed"), MemoryError()), CASE, None, "load").outcome == "oom"
    assert failure(while_handling(ValueError("odd"), MemoryError()), CASE, None, "load").outcome == "failed"


THREADS = RuntimeError("can't start new thread")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (THREADS, "load failed: the system cannot start another thread. "),
        (raised(RuntimeError("loading failed"), THREADS), "load failed: RuntimeError: loading failed; caused by"),
        (BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"), "load failed: BlockingIOError: "),
    ],
)
def test_a_limit_on_threads_is_named_with_what_to_do(
    error: Exception, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cgroup, "tasks", lambda: (64, "pids.max of the control group /box"))
    reason = failure(error, CASE, None, "load").reason or ""
    assert reason.startswith(words)
    assert "pids.max of the control group /box allows 64 processes and threads: raise it" in reason
    assert fault(THREADS) == allowance.exhausted(THREADS)  # a command says the same
    monkeypatch.setattr(cgroup, "tasks", lambda: None)
    assert "raise it (ulimit -u)" in (failure(error, CASE, None, "load").reason or "")


def test_a_full_disk_in_a_worker_says_what_to_do() -> None:
    error = raised(ValueError("odd"), OSError(errno.ENOSPC, "No space left"))
    reason = failure(error, CASE, None, "load").reason or ""
    assert "No space left" in reason and reason.endswith(HINTS[errno.ENOSPC])
