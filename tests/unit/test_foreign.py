"""Files of others: what is no regular file, and what takes more than it may, is refused in one line at once."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from profiler import foreign
from profiler.errors import NotFound, ProfileError
from profiler.foreign import BadContent, Budget, json_value, open_file, toml_value
from profiler.results import reading
from profiler.show.report import quality


def at_once(call: Callable[[], Any], kind: type[Exception] = BadContent) -> str:
    """What a call says no with; it has to be quick."""
    start = time.process_time()
    with pytest.raises(kind) as caught:
        call()
    assert time.process_time() - start < 1
    assert "\n" not in str(caught.value).partition("\n  ")[0]
    return str(caught.value)


def special(folder: Path) -> dict[str, Path]:
    """One of each kind of file that is not regular, and a link to one."""
    found = {"a pipe": folder / "pipe", "a directory": folder, "a device": Path("/dev/zero")}
    os.mkfifo(found["a pipe"])
    with socket.socket(socket.AF_UNIX) as listener:
        found["a socket"] = folder / "socket"
        listener.bind(os.path.relpath(found["a socket"]))
    return found


READERS: list[Callable[[Path], Any]] = [foreign.read_bytes, foreign.read_json]
READERS += [reading.read, quality.read]


@pytest.mark.parametrize("read", READERS)
def test_special_files_are_refused_and_not_waited_for(tmp_path: Path, read: Callable[[Path], Any]) -> None:
    for kind, path in special(tmp_path).items():
        assert f"is {kind}, not a regular file" in at_once(lambda path=path: read(path), ProfileError)
    (tmp_path / "link").symlink_to("pipe")
    assert "is a pipe" in at_once(lambda: read(tmp_path / "link"), ProfileError)


@pytest.mark.parametrize("read", READERS)
def test_names_that_cannot_exist_are_one_line(tmp_path: Path, read: Callable[[Path], Any]) -> None:
    assert "there is no such file" in at_once(lambda: read(tmp_path / "none"), NotFound)
    assert "there is no such file" in at_once(lambda: read(tmp_path / "none" / "none"), NotFound)
    assert "File name too long" in at_once(lambda: read(tmp_path / ("n" * 300)), ProfileError)
    assert "null" in at_once(lambda: read(tmp_path / "a\0b"), ProfileError)
    assert not foreign.exists(tmp_path / ("n" * 300)) and not foreign.is_file(tmp_path / "a\0b")


def test_an_endless_file_is_read_up_to_its_limit(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(2**40)
    assert "larger than 1.00 MiB" in at_once(lambda: foreign.read_json(path), ProfileError)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[" * 100_000, "nested"),
        ("[" * 900 + "]" * 900, "nested"),
        ('{"a":' * 70 + "1" + "}" * 70, "nested"),
        ("[" + "[]," * 200_000 + "1]", "more than 262,144 values"),
        ("1" * 5000, "it is a number of 5,000 characters"),
        ("-" + "1" * 400, "it is a number of 401 characters"),
        ("1e400", "it is 1e400"),
        ("1e+0400", "it is 1e+0400"),
        ("1" * 20 + "e300", "which is not a valid number"),
        ('{"a": {"b": [0, {"c": NaN}]}}', "a.b[1].c is NaN"),
        ("-Infinity", "it is -Infinity"),
        ('{"a": 1, "b": 2, "a": 3}', "a occurs twice"),
        ('{"a": ', "Expecting value"),
        ("", "Expecting value"),
        (b"\xff", "decode"),
    ],
)
def test_json_that_cannot_be_is_refused(text: str | bytes, said: str) -> None:
    assert said in at_once(lambda: json_value(text))
    if isinstance(text, str):
        assert said in at_once(lambda: json_value(text.encode()))


@pytest.mark.parametrize("text", ["1e308", "-1.5e-400", "12345678901234567890", '"[[[[1e999"', "[" * 64 + "]" * 64])
def test_numbers_and_depths_that_can_be_are_kept(text: str) -> None:
    assert json_value(text) == json.loads(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a." * 30_000 + "a=1", "more than 64 parts"),
        ("[" + "a." * 30_000 + "a]", "more than 64 parts"),
        ("x = {" + "a . " * 30_000 + "a=1}", "more than 64 parts"),
        ('"a".' * 20_000 + "a=1", "more than 64 parts"),
        ("''." * 20_000 + "a=1", "more than 64 parts"),
        ("a=" + "[" * 60_000, "nested"),
        ("a=" + "{a=" * 20_000, "nested"),
        ("a=" + "1" * 5000, "integer string conversion"),
        ("a=" + "1" * 400, "a is a number with more than 64 bits"),
        ("a=0x" + "f" * 60_000, "a is a number with more than 64 bits"),
        ("a=" + "[1," * 200_000, "more than 262,144 values"),
        ("a=1\na=2", "overwrite"),
        ('a="""' + '\\"""' * 100_000, "unterminated"),
        ("\n" * 2_000_000, "larger than"),
    ],
)
def test_toml_that_cannot_be_is_refused(text: str, said: str) -> None:
    assert said in at_once(lambda: toml_value(text)).replace("Unt", "unt")


def test_what_is_in_strings_and_comments_of_toml_counts_for_nothing() -> None:
    dotted, deep = "a." * 1000, "[" * 1000
    text = f'# {dotted}{deep}\na = "{dotted}{deep}"\nb = \'{dotted}{deep}\'\nc = """\n{dotted}"\\"{deep}"""\n'
    text += f"d = '''\n{dotted}'{deep}'''\ne = [1.5, 2.5] # {deep}\n"
    found = toml_value(text)
    assert (found["b"], found["e"]) == (dotted + deep, [1.5, 2.5])


def test_many_floats_on_a_line_are_no_dotted_key() -> None:
    assert len(toml_value("a = [" + "1.5," * 5000 + "]")["a"]) == 5000


@settings(max_examples=150, deadline=2000)
@given(st.text(alphabet="ab.=[]{}\"'\\#\n, 19eEnfi-", max_size=60) | st.binary(max_size=60))
def test_any_text_is_a_value_or_refused(text: str | bytes) -> None:
    small = Budget(nbytes=1000, values=10, depth=3, digits=4)
    for parse in (json_value, toml_value):
        if parse is json_value or isinstance(text, str):
            try:
                parse(text, small)  # type: ignore[operator]
            except BadContent as error:
                assert str(error)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "model.gguf"])
def test_a_pointer_of_git_lfs_is_named_as_such(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 123456\n")
    with pytest.raises(ProfileError, match="is a Git LFS pointer") as caught:
        open_file(path, name)
    assert caught.value.hint == "Fetch the file with: git lfs pull"
