"""Reading config files that nobody should have to trust."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from profiler.errors import ProfileError
from profiler.models import config


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"\xff\xfe{}", "not valid JSON"),
        (b"[1]", "is not a JSON object"),
        (b'"text"', "is not a JSON object"),
        (b'{"a": ' + b"9" * 100_000 + b"}", "not valid JSON"),
        (b'{"a": {"b": 1e999}}', r"a\.b is 1e999, which is not a valid number"),
        (b'{"a": 1' + b"0" * 400 + b".5}", "a is a number of 403 characters"),
        (b'{"a": 1, "a": 2}', "a occurs twice"),
        (b'{"a": ' + b"[" * 70 + b"]" * 70 + b"}", "nested more than 64 levels deep"),
        (b'{"a": [' + b"[]," * 300_000 + b"0]}", "more than 262,144 values"),
        (b'{"a": ' + b"[" * 200_000 + b"}", "nested more than 64 levels deep"),
        (b'{"a": "' + b"x" * 20 * 1024 * 1024 + b'"}', "larger than 1.00 MiB"),
    ],
    ids=[
        *("empty", "cut", "utf16", "list", "text", "huge number"),
        *("overflow", "400 digits", "twice", "70 deep", "many", "deep", "20 MiB"),
    ],
)
def test_a_bad_file_is_refused_in_one_line_at_once(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    start = time.monotonic()
    with pytest.raises(ProfileError, match=says) as caught:
        config.read(path)
    assert time.monotonic() - start < 2
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_pipe_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="cannot read"):
        config.read(tmp_path / "config.json")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(ProfileError, match="not a regular file"):
        config.read(pipe)


def test_a_good_file_is_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"model_type": "llama", "a": [1, null, true]}')
    assert config.read(path) == {"model_type": "llama", "a": [1, None, True]}


def test_numbers_that_json_has_no_word_for_are_read_as_transformers_writes_them(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"time_step_limit": [0.0, Infinity], "a": {"b": NaN, "c": -Infinity}}')
    limit, *others = ({"__float__": word} for word in ("Infinity", "NaN", "-Infinity"))
    found = config.read(path)
    assert found == {"time_step_limit": [0.0, limit], "a": dict(zip("bc", others, strict=True))}
    json.dumps(found, allow_nan=False)
