from __future__ import annotations

import time

import pytest

from profiler.results.redact import redact, redact_argv, redact_json

HF = "hf_" + "aB3dE" * 7


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        (f"cannot download with {HF}", HF),
        ("key sk-proj-abcdefghijklmnop1234 refused", "sk-proj-abcdefghijklmnop1234"),
        ("Authorization: Bearer abc.def-123456789", "abc.def-123456789"),
        ("authorization: basic dXNlcjpwYXNzd29yZA==", "dXNlcjpwYXNzd29yZA=="),
        ("GET https://me:s3cret@example.org/x", "s3cret"),
        ("https://token123@example.org/x", "token123"),
        ("https://example.org/x?token=abcd1234&y=1", "abcd1234"),
        ("HF_TOKEN=opaque-value", "opaque-value"),
        ('{"api_key": "opaque-value"}', "opaque-value"),
        ("ghp_" + "a1" * 18, "a1a1a1"),
        (f"\n{HF}\n", HF),
        ("Invalid token: 0p4que-value-9", "0p4que-value-9"),
        ("{'access_token': 'opaque'}", "opaque"),
        ("password: hunter2", "hunter2"),
    ],
)
def test_a_secret_is_removed_from_text(text, secret):
    assert secret not in redact(text)
    assert "[redacted]" in redact(text)


@pytest.mark.parametrize(
    "text",
    [
        *("prefill processed 120 tokens, not 128", "hf_transfer is not installed", "https://example.org/a@b"),
        *("task-sk-1", "2.1 ms per token: 13", "ms/token: 0.123456789012345", "unknown token: mixture-of-experts"),
    ],
)
def test_ordinary_text_stays_as_it_is(text):
    assert redact(text) == text


@pytest.mark.parametrize(
    "piece",
    [
        *("a", "a.", "a-", "token", "token:", "token: ", "token ", "secret'", '"token" : ', "bearer ", "hf_", "sk-"),
        *("://a", "a://", "a@", "http://", "api_", "api-key=", " ", "é", "gho_", "0a", "a:", "password"),
    ],
)
def test_redaction_takes_time_in_proportion_to_the_text(piece):
    """Expressions that look again from every letter took 40 s for 100,000 of them."""
    start = time.process_time()
    redact(piece * (400_000 // len(piece)))
    redact("token:" + piece * (400_000 // len(piece)))
    assert time.process_time() - start < 2


def test_a_long_value_is_a_secret_whatever_it_holds():
    assert "a" * 300 not in redact("token: " + "a" * 300)
    assert redact("x" * 10_000 + "token=abc" + "y" * 10_000) == "x" * 10_000 + "token=[redacted]"


def test_the_value_after_a_secret_option_is_hidden():
    argv = ["sweep", "-m", "x", "--api-key", "opaque", "--token=opaque", "-c", "128"]
    assert redact_argv(argv) == ["sweep", "-m", "x", "--api-key", "[redacted]", "--token=[redacted]", "-c", "128"]


def test_json_is_redacted_at_every_depth_and_numbers_are_kept():
    assert redact_json({"a": [{"b": HF}, 1.5, None, True]}) == {"a": [{"b": "[redacted]"}, 1.5, None, True]}
