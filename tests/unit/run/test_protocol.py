from __future__ import annotations

import json
import math
from contextlib import suppress

import pytest
from fakes.lab import make_case, source
from hypothesis import given, settings
from hypothesis import strategies as st

from profiler.case import Task
from profiler.results.measurement import Memory
from profiler.run.protocol import MAX_LINE_BYTES, LineBuffer, LoadCost, ProtocolError, encode, read_task, task_message
from profiler.run.repetitions import Effort

FLOATS = st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.none() | st.booleans() | st.integers(-(2**60), 2**60) | FLOATS | st.text(max_size=10)
MESSAGES = st.lists(
    st.dictionaries(st.text(max_size=5), VALUES | st.lists(VALUES, max_size=3), max_size=3), max_size=5
)
BRIEF = settings(max_examples=100, deadline=None)


def test_a_task_survives_the_pipe() -> None:
    task = Task(make_case(512, 4, threads=2), source(step_s=0.5))
    for effort, max_memory_bytes in ((Effort(7, 1.5), 2**30), (Effort(), None)):
        sent = json.loads(encode(task_message(task, effort, max_memory_bytes)))
        assert read_task(sent) == (task, effort, max_memory_bytes)


def test_a_load_cost_survives_the_pipe() -> None:
    load = LoadCost(1.5, Memory(weights_bytes=1, baseline_bytes=2, load_peak_bytes=3))
    assert LoadCost.from_json(json.loads(encode(load.to_json()))) == load


@BRIEF
@given(MESSAGES, st.lists(st.integers(1, 50), min_size=1, max_size=5))
def test_messages_arrive_complete_however_the_pipe_splits_them(messages: list[dict], cuts: list[int]) -> None:
    stream = b"".join(encode(message) for message in messages)
    buffer, heard, index = LineBuffer(), [], 0
    while stream:
        size = cuts[index % len(cuts)]
        heard += buffer.feed(stream[:size])
        stream, index = stream[size:], index + 1
    assert heard == messages


@BRIEF
@given(st.binary(max_size=200))
def test_any_bytes_give_messages_or_a_protocol_error(noise: bytes) -> None:
    with suppress(ProtocolError):
        assert all(isinstance(message, dict) for message in LineBuffer().feed(noise + b"\n"))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nan_and_infinity_cannot_be_sent(value: float) -> None:
    with pytest.raises(ProtocolError, match="not finite"):
        encode({"seconds": [value]})
    assert encode({"limit": value}, finite=False)


@pytest.mark.parametrize("word", [b"NaN", b"Infinity", b"-Infinity", b"1e999"])
def test_nan_and_infinity_are_not_accepted(word: bytes) -> None:
    with pytest.raises(ProtocolError, match="not JSON"):
        list(LineBuffer().feed(b'{"seconds": ' + word + b"}\n"))
    assert len(list(LineBuffer(finite=False).feed(b'{"limit": ' + word + b"}\n"))) == 1


def test_a_line_of_the_maximum_length_passes_and_one_byte_more_does_not() -> None:
    frame = len(encode({"text": ""}))
    fits = encode({"text": "x" * (MAX_LINE_BYTES - frame)})
    assert len(fits) == MAX_LINE_BYTES
    assert len(list(LineBuffer().feed(fits))) == 1
    with pytest.raises(ProtocolError, match="more than 16"):
        encode({"text": "x" * (MAX_LINE_BYTES - frame + 1)})


def test_an_endless_line_is_rejected_at_the_limit() -> None:
    buffer = LineBuffer()
    for _ in range(MAX_LINE_BYTES // 2**16):
        assert list(buffer.feed(b"x" * 2**16)) == []
    with pytest.raises(ProtocolError, match="a line of more than"):
        list(buffer.feed(b"x"))
