"""What a stream's bytes become, and the figures of it, on stated times: nothing here waits."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from profiler.backends.endpoint import (
    Arrival,
    Exchange,
    Failure,
    Slo,
    Usage,
    Users,
    figures,
    percentiles,
    summarize,
    users,
)
from profiler.backends.endpoint import stream as stream_module
from profiler.backends.endpoint.stream import COUNTED_NOTHING, NO_REASONING, StreamReader, StreamStopped, timings

SENT, FIRST, GAP = 100.0, 0.5, 0.02


def event(**chunk: Any) -> bytes:
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


def delta(**fields: Any) -> bytes:
    return event(choices=[{"index": 0, "delta": fields, "finish_reason": None}])


def end(reason: str = "length", usage: dict[str, Any] | None = None, **more: Any) -> bytes:
    last = event(choices=[{"index": 0, "delta": {}, "finish_reason": reason}], **more)
    return last + (event(choices=[], usage=usage) if usage else b"") + b"data: [DONE]\n\n"


def read(parts: Iterable[bytes], bytewise: bool = False) -> Exchange:
    """``parts`` as they arrive, ``FIRST`` after the request and then every ``GAP``."""
    reader, at = StreamReader(), SENT + FIRST
    failure = None
    try:
        for part in parts:
            for piece in [part[n : n + 1] for n in range(len(part))] if bytewise else [part]:
                reader.feed(piece, at)
            at += GAP
        reader.end(at)
    except StreamStopped as error:
        failure = error.failure
    return reader.exchange(SENT, at, failure)


def words(count: int, name: str = "content") -> list[bytes]:
    return [delta(**{name: f"w{n % 10} "}) for n in range(count)]


def counted(prompt: int, completion: int, **more: Any) -> dict[str, Any]:
    return {"prompt_tokens": prompt, "completion_tokens": completion, **more}


# ExchangeFigures of one request


@pytest.mark.parametrize("bytewise", [False, True])
def test_an_answer_of_one_token_a_chunk_has_the_figures_of_its_script(bytewise: bool) -> None:
    found = read([*words(51), end(usage=counted(1000, 51))], bytewise)
    own = figures(found)
    assert found.failure is None
    assert own.ttft_s == own.ttft_answer_s == own.first_byte_s == pytest.approx(FIRST)
    assert own.ttft_reasoning_s is None
    assert own.decode_tps == pytest.approx(1 / GAP)
    assert own.tpot_s == pytest.approx(GAP)
    assert own.prefill_tps == pytest.approx(1000 / FIRST)
    assert own.gaps_s == pytest.approx([GAP] * 50)
    assert own.characters_per_s == pytest.approx(3 / GAP)
    assert own.e2e_s == pytest.approx(FIRST + 52 * GAP)
    assert own.unknown == {}


def test_a_chunk_is_not_a_token() -> None:
    """llama-benchy#11: four tokens a chunk were shown as a quarter of the rate."""
    found = read([delta(content="abcd " * 4) for _ in range(11)] + [end(usage=counted(10, 44))])
    own = figures(found)
    assert own.decode_tps == pytest.approx(40 / (10 * GAP))
    assert own.tokens_per_chunk == pytest.approx(4)


def test_a_first_chunk_that_bundles_tokens_does_not_raise_the_rate() -> None:
    """aiperf#1279: (n − 1) ÷ t counts eight tokens that came before the clock began."""
    found = read([delta(content="abcd" * 9), *[delta(content="abcd") for _ in range(20)], end(usage=counted(10, 29))])
    assert figures(found).decode_tps == pytest.approx(1 / GAP)


def test_where_the_server_counts_along_the_first_chunk_is_exact() -> None:
    first = event(choices=[{"delta": {"content": "a"}}], usage=counted(10, 5))
    more = [event(choices=[{"delta": {"content": "abcdefgh"}}], usage=counted(10, 5 + n)) for n in range(1, 11)]
    assert figures(read([first, *more, end(usage=counted(10, 15))])).decode_tps == pytest.approx(1 / GAP)


def test_tokens_that_came_after_the_last_text_are_part_of_no_rate() -> None:
    """A part of a character is held back: of 16 tokens, the last text had the 13th."""
    for so_far in (lambda n: {"usage": counted(10, n)}, lambda n: {"timings": {"predicted_n": n}}):
        parts = [event(choices=[{"delta": {"content": "字"}}], **so_far(3 * n + 1)) for n in range(5)]
        found = read([*parts, event(choices=[]), end(usage=counted(10, 16))])
        assert figures(found).decode_tps == pytest.approx(12 / (4 * GAP))


def test_an_end_token_without_text_does_not_count() -> None:
    assert figures(read([*words(21), end("stop", counted(10, 22))])).decode_tps == pytest.approx(1 / GAP)


def test_a_reply_in_one_chunk_has_no_decode_rate_and_says_why() -> None:
    """lemonade#2056: 1,000,000 tokens a second."""
    own = figures(read([delta(content="all of it at once"), end(usage=counted(10, 200))]))
    assert own.decode_tps is own.characters_per_s is None
    assert own.unknown["decode_tps"] == "the whole answer arrived at one moment"
    assert own.ttft_s == pytest.approx(FIRST)


def test_chunks_that_arrive_together_have_no_decode_rate() -> None:
    assert figures(read([b"".join(words(30)), end(usage=counted(10, 30))])).decode_tps is None


def test_an_answer_that_was_held_back_has_no_rate() -> None:
    """A proxy that buffers: two reads, 20 µs or 0.6 ms apart."""
    for gap, said in ((2e-5, "arrived at one moment"), (6e-4, "held it back")):
        reader = StreamReader()
        reader.feed(b"".join(words(30)), SENT + FIRST)
        reader.feed(b"".join(words(30)) + end(usage=counted(10, 60)), SENT + FIRST + gap)
        own = figures(reader.exchange(SENT, SENT + FIRST + 1e-3))
        assert own.decode_tps is own.characters_per_s is None
        assert said in own.unknown["decode_tps"]


def test_chunks_that_a_proxy_sends_together_are_one_arrival() -> None:
    """Eight tokens every 80 ms are 100 tokens/s, of which the first eight came before the clock began."""
    for usage in (counted(10, 40), counted(10, 80)):  # a token a chunk, and two
        reader = StreamReader()
        for burst in range(5):
            reader.feed(b"".join(words(8)), SENT + FIRST + 0.08 * burst)
        reader.feed(end(usage=usage), SENT + FIRST + 0.33)
        own = figures(reader.exchange(SENT, SENT + FIRST + 0.33))
        assert own.decode_tps == pytest.approx(usage["completion_tokens"] * 0.8 / 0.32)
        assert own.gaps_s == pytest.approx((0.08,) * 4)
        assert own.characters_per_s == pytest.approx(len(reader.exchange(0, 1).answer) * 0.8 / 0.32)
    assert not Slo(itl_s=0.05).met(own)  # its median gap is no longer one of nothing


@pytest.mark.parametrize("count", [0, 12])
def test_a_count_that_cannot_be_right_is_unknown(count: int) -> None:
    """Of 20 chunks of reasoning and 12 of answer."""
    thought = [delta(reasoning_content="hm ") for _ in range(20)]
    found = read([*thought, *words(12), end(usage=counted(10, count))])
    own = figures(found)
    assert own.decode_tps is own.output_tokens is own.tpot_s is None
    assert own.unknown["decode_tps"] in (COUNTED_NOTHING, NO_REASONING)
    assert own.prefill_tps is not None and own.characters_per_s is not None
    assert figures(read([*thought, *words(12), end(usage=counted(10, 33))])).output_tokens == 33


@pytest.mark.parametrize("ended", [end("abort"), end("error"), end("stop", stats={"stop_reason": "modelUnloaded"})])
def test_an_answer_that_the_server_gave_up_is_a_failure(ended: bytes) -> None:
    failure = read([*words(4), ended]).failure
    assert failure is not None and "ended the answer early" in failure.words
    assert read([*words(4), end("stop", stats={"stop_reason": ["odd"]})]).failure is None


def test_empty_events_and_a_byte_order_mark_are_no_text() -> None:
    found = read([b"\xef\xbb\xbfdata: {}\n\n", b"data:\n\n", b"data: \n\n", *words(4), end()])
    assert found.failure is None and len(found.arrivals) == 4


def test_without_usage_figures_in_tokens_are_unknown_and_characters_remain() -> None:
    own = figures(read([*words(11), end()]))
    assert own.decode_tps is own.prefill_tps is own.tpot_s is own.output_tokens is None
    assert set(own.unknown.values()) == {"the server sent no token counts"}
    assert own.characters_per_s == pytest.approx(3 / GAP)


def test_cached_tokens_that_are_not_stated_are_unknown_and_not_zero() -> None:
    """lmstudio-bug-tracker#2419: 57.7 s became 2.0 s with the same usage."""
    silent, stated = (
        read([*words(5), end(usage=counted(1000, 5, **more))])
        for more in ({}, {"prompt_tokens_details": {"cached_tokens": 900}})
    )
    assert silent.usage.cached is None
    assert figures(silent, cached=True).prefill_tps is None
    assert "does not say" in figures(silent, cached=True).unknown["prefill_tps"]
    assert figures(silent).prefill_tps == pytest.approx(1000 / FIRST)  # unique prompts are not cached
    assert figures(stated, cached=True).prefill_tps == pytest.approx(100 / FIRST)


# Reasoning in its three shapes


@pytest.mark.parametrize("name", ["reasoning", "reasoning_content"])
def test_reasoning_in_a_field_has_its_own_clock(name: str) -> None:
    found = read([delta(role="assistant", content=""), *words(10, name), *words(5), end(usage=counted(10, 15))])
    own = figures(found)
    assert own.first_byte_s == pytest.approx(FIRST)
    assert own.ttft_s == own.ttft_reasoning_s == pytest.approx(FIRST + GAP)
    assert own.ttft_answer_s == pytest.approx(FIRST + 11 * GAP)
    whole = summarize([found])
    assert whole.ttft_reasoning is not None and whole.ttft_reasoning.p50 == pytest.approx(FIRST + GAP)
    assert (len(found.reasoning), len(found.answer)) == (30, 15)


def test_reasoning_that_is_sent_under_both_names_counts_once() -> None:
    found = read([delta(reasoning="a", reasoning_content="a"), *words(2), end()])
    assert found.reasoning == "a"
    assert found.arrivals[0].characters == 1


THOUGHT, ANSWER = "let me see. ", "Forty-two."


@pytest.mark.parametrize("size", range(1, 12))
@pytest.mark.parametrize("opened", [True, False], ids=["both tags", "the first tag is part of the prompt"])
def test_think_tags_are_found_however_they_are_cut(size: int, opened: bool) -> None:
    text = f"{'<think>' if opened else ''}{THOUGHT}</think>\n\n{ANSWER}"
    pieces = [text[n : n + size] for n in range(0, len(text), size)]
    found = read([*(delta(content=piece) for piece in pieces), end(usage=counted(1, len(pieces)))])
    assert (found.reasoning, found.answer.strip()) == (THOUGHT, ANSWER)
    assert found.first_reasoning_s is not None
    assert found.first_answer_s is not None
    chunk = (text.index(ANSWER)) // size  # the chunk that holds the first character of the answer
    assert found.first_answer_s == pytest.approx(SENT + FIRST + chunk * GAP)
    assert found.first_reasoning_s < found.first_answer_s or size > len(THOUGHT)


@pytest.mark.parametrize("text", ["<b>bold</b>", "<", "< think", "<thinking>", "<think", "  <table>"])
def test_text_that_only_begins_like_a_tag_is_answer(text: str) -> None:
    found = read([*(delta(content=char) for char in text), end("stop")])
    assert (found.answer, found.reasoning) == (text, "")
    assert found.first_answer_s == pytest.approx(SENT + FIRST + (len(text) - len(text.lstrip())) * GAP, abs=GAP * 2.5)


def test_reasoning_that_never_ends_is_no_answer() -> None:
    found = read([delta(content="<think>"), *words(5), end(usage=counted(1, 6))])
    assert (found.answer, found.first_answer_s) == ("", None)
    assert figures(found).decode_tps == pytest.approx(1 / GAP)


def test_ollama_has_lines_of_json_with_its_own_counts_and_times() -> None:
    lines = [
        {"message": {"role": "assistant", "content": "", "thinking": "hm"}, "done": False},
        *({"message": {"role": "assistant", "content": f"w{n}"}, "done": False} for n in range(10)),
        {"message": {"role": "assistant", "content": ""}, "done": True, "done_reason": "length",
         "total_duration": 9_000_000_000, "load_duration": 5_000_000_000, "prompt_eval_count": 500,
         "prompt_eval_duration": 400_000_000, "eval_count": 11, "eval_duration": 200_000_000},
    ]  # fmt: skip
    found = read([json.dumps(line).encode() + b"\n" for line in lines])
    assert found.failure is None
    assert (found.reasoning, found.answer[:4], found.finish) == ("hm", "w0w1", "length")
    assert found.usage == Usage(prompt=500, completion=11)
    assert found.timings.load_s == pytest.approx(5)
    assert found.timings.prompt_tokens is not None and found.timings.prompt_s is not None
    assert found.timings.prompt_tokens / found.timings.prompt_s == pytest.approx(1250)
    assert found.timings.output_tps == pytest.approx(10 / 0.2)
    assert summarize([found]).server_decode == pytest.approx(0.0, abs=1e-9)


def test_llama_server_and_lm_studio_times_are_read() -> None:
    llama = {"cache_n": 236, "prompt_n": 1, "prompt_ms": 30.9, "predicted_n": 35, "predicted_ms": 661.0}
    found = timings(llama)
    assert (found.cached_tokens, found.prompt_tokens) == (236, 1)
    assert found.output_tps == pytest.approx(34 / 0.661)
    studio = timings({"tokens_per_second": 51.4, "time_to_first_token": 0.111, "generation_time": 0.954})
    assert (studio.output_tps, studio.ttft_s, studio.output_s) == (51.4, 0.111, 0.954)


@pytest.mark.parametrize(
    "odd", [{}, {"predicted_n": -1, "predicted_ms": 0}, {"eval_duration": "x"}, {"prompt_ms": 1e300}]
)
def test_odd_timings_are_unknown(odd: dict[str, Any]) -> None:
    assert timings(odd).output_tps is None


# Faults


@pytest.mark.parametrize(
    ("error", "said"),
    [
        ({"message": "CUDA out of memory", "code": 500}, "CUDA out of memory"),
        ("plain text", "plain text"),
        ('{"error":{"code":400,"message":"request exceeds the context"}}', "request exceeds the context"),
        ({"error": {"message": "nested"}}, "nested"),
        ({}, "no message"),
        ([{"message": "in a list"}], "in a list"),
    ],
)
def test_an_error_inside_a_200_stream_is_a_failure_with_its_words(error: Any, said: str) -> None:
    found = read([*words(3), b"event: error\n" + event(error=error)])
    assert found.failure is not None
    assert found.failure.kind == "error"
    assert said in found.failure.words
    assert len(found.arrivals) == 3  # what had arrived is kept
    assert summarize([found]).requests == 0


def test_the_older_error_of_vllm_is_one_too() -> None:
    found = read([event(object="error", message="engine dead", code=500)])
    assert found.failure is not None
    assert "engine dead" in found.failure.words


@pytest.mark.parametrize(
    ("parts", "kind", "said"),
    [
        ([b'data: {"choices": [{"delta": {"content": "x}]\n\n'], "broken", "broken JSON"),
        ([b"data: 17\n\n"], "broken", "cannot be read"),
        ([b'data: {"choices": 5}\n\n'], "broken", "cannot be read"),
        ([b"data: " + b"[" * 100_000 + b"\n\n"], "broken", ""),
        ([b"<html>hello</html>\n"], "no-stream", "not a stream"),
        ([*words(3)], "cut", "before the answer was complete"),
        ([b": ping\n\n"], "cut", "before the first token"),
        ([*words(3), b'data: {"choi'], "broken", "broken JSON"),
        ([b"data: " + b"x" * (stream_module.MAX_LINE + 10)], "too-large", "a line"),
        ([delta(content="x" * 1_000_000)] * 10, "too-large", "8,388,608 characters"),
        ([end("stop", counted(10, 0))], "empty", "empty"),
        ([b'data: {"a\n', *([b"data: x\n"] * 100)], "broken", "broken JSON"),
    ],
    ids=range(12),
)
def test_a_faulty_stream_is_a_failure_in_words(parts: list[bytes], kind: str, said: str) -> None:
    found = read(parts)
    assert found.failure is not None
    assert (found.failure.kind, said in found.failure.words) == (kind, True), found.failure
    assert "\n" not in found.failure.words
    assert len(found.failure.words) < 400


def test_an_answer_of_endless_chunks_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_module, "MAX_CHUNKS", 100)
    failure = read(words(101)).failure
    assert failure is not None and failure.kind == "too-large"


def test_lines_may_end_in_crlf_comments_may_stand_between_and_events_may_span_lines() -> None:
    parts = [
        b": ping\r\n\r\n",
        delta(content="a").replace(b"\n", b"\r\n"),
        b'data: {"choices":\ndata: [{"text": "b"}]}\n\n',
    ]
    assert read([*parts, end()]).answer == "ab"


def test_an_end_without_done_is_an_end_where_a_reason_was_given() -> None:
    found = read([*words(3), event(choices=[{"delta": {}, "finish_reason": "stop"}], usage=counted(1, 3)).rstrip()])
    assert found.failure is None
    assert found.usage.completion == 3


def test_a_tool_call_of_ollama_has_an_object_as_arguments() -> None:
    call = {"function": {"name": "read", "arguments": {"path": "a.py"}}}
    message = {"role": "assistant", "content": "", "tool_calls": [call]}
    last = {"message": {"content": ""}, "done": True, "done_reason": "stop", "eval_count": 9}
    found = read(json.dumps(each).encode() + b"\n" for each in ({"message": message, "done": False}, last))
    assert found.failure is None and found.answer == 'read{"path":"a.py"}'


def test_arguments_of_tool_calls_are_text() -> None:
    call = [{"index": 0, "function": {"name": "look", "arguments": '{"at": 1}'}}]
    assert read([delta(tool_calls=call), end("tool_calls")]).answer == 'look{"at": 1}'


@given(st.lists(st.binary(max_size=60), max_size=12))
@settings(max_examples=200, deadline=None)
def test_no_bytes_break_the_reader(parts: list[bytes]) -> None:
    for prefix in (b"", b"data: ", b'data: {"choices": [{"delta": {"content": "'):
        found = read([prefix + part + b"\n" for part in parts])
        assert found.failure is not None or found.arrivals


# Many requests


def exchange(sent: float, first: float, gap: float, tokens: int, prompt: int = 100) -> Exchange:
    arrivals = tuple(Arrival(sent + first + n * gap, 4) for n in range(tokens))
    end_s = arrivals[-1].at
    return Exchange(
        sent, end_s, sent + first, None, sent + first, arrivals, "word" * tokens, usage=Usage(prompt, tokens)
    )


def test_totals_come_from_wall_time_and_not_from_a_rate_times_streams() -> None:
    short, long = exchange(0.0, 0.5, 0.01, 51), exchange(0.0, 0.5, 0.01, 151)
    found = summarize([short, long])
    assert found.wall_s == pytest.approx(2.0)
    assert found.total_tps == pytest.approx(202 / 2.0)
    assert found.decode_tps is not None
    assert found.decode_tps.p50 == pytest.approx(100)
    assert found.tokens_per_1k_characters == pytest.approx(250)


def test_a_tail_of_too_few_values_is_unknown() -> None:
    few, some, many = (percentiles([float(n) for n in range(count)]) for count in (5, 20, 100))
    assert few is not None and some is not None and many is not None
    assert (few.p95, few.p99) == (None, None)
    assert some.p95 == pytest.approx(18.05)
    assert some.p99 is None
    assert many.p99 == pytest.approx(98.01)
    assert percentiles([None]) is None


def test_goodput_counts_the_requests_that_meet_every_limit() -> None:
    fast, late, slow = exchange(0, 0.1, 0.01, 11), exchange(0, 3.0, 0.01, 11), exchange(0, 0.1, 0.2, 11)
    slo = Slo(ttft_s=2.0, itl_s=0.1)
    assert [slo.met(figures(each)) for each in (fast, late, slow)] == [True, False, False]
    assert summarize([fast, late, slow], slo=slo).goodput_per_s == pytest.approx(1 / 3.1)


def test_the_share_within_the_limits_is_of_all_requests_and_unknown_where_nothing_can_be_told() -> None:
    fast, late = exchange(0, 0.1, 0.01, 11), exchange(0, 3.0, 0.01, 11)
    failed = replace(fast, failure=Failure("cut", "cut"))
    assert summarize([fast, late, failed, fast], slo=Slo(ttft_s=2.0)).slo_met == 0.5
    assert summarize([fast], slo=None).slo_met is None
    at_once = exchange(0, 0.1, 0.0, 1)
    assert summarize([at_once], slo=Slo(itl_s=0.1)).slo_met is None


@pytest.mark.parametrize(
    ("met", "count", "why"),
    [
        ({1: 1.0, 2: 0.95, 4: 0.9, 8: 0.0}, 2, "at 4, 90% of the requests meet the limits"),
        ({8: 0.2, 1: 1.0, 2: 1.0}, 2, "at 8, 20% of the requests meet the limits"),
        ({1: 1.0, 2: 1.0}, 2, "or more: no larger number was tried"),
        ({1: 0.5, 2: 0.1}, 0, "1 at a time: 50% of the requests meet the limits"),
        ({4: 0.5, 8: 0.1}, None, "4 at a time: 50% of the requests meet the limits, and fewer were not tried"),
        ({1: None, 2: None}, None, "whether the limits are met at 1 at a time is unknown"),
        ({1: 1.0, 2: None}, 1, "at 2, it is unknown"),
        ({1: 1.0, 2: 0.9, 4: 1.0}, 4, "or more: no larger number was tried; at 2, fewer requests than at 4 did"),
    ],
)
def test_users_are_the_most_streams_at_which_nearly_all_requests_meet_the_limits(
    met: dict[int, float | None], count: int | None, why: str
) -> None:
    assert users(met) == Users(count, why)
