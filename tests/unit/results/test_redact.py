from __future__ import annotations

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
    ],
)
def test_a_secret_is_gone_from_text(text, secret):
    assert secret not in redact(text)
    assert "[redacted]" in redact(text)


@pytest.mark.parametrize(
    "text",
    ["prefill processed 120 tokens, not 128", "hf_transfer is not installed", "https://example.org/a@b", "task-sk-1"],
)
def test_ordinary_text_stays_as_it_is(text):
    assert redact(text) == text


def test_the_value_behind_a_secret_option_is_hidden():
    argv = ["sweep", "-m", "x", "--api-key", "opaque", "--token=opaque", "-c", "128"]
    assert redact_argv(argv) == ["sweep", "-m", "x", "--api-key", "[redacted]", "--token=[redacted]", "-c", "128"]


def test_json_is_redacted_at_every_depth_and_numbers_are_kept():
    assert redact_json({"a": [{"b": HF}, 1.5, None, True]}) == {"a": [{"b": "[redacted]"}, 1.5, None, True]}
