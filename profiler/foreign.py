"""Readers for files that somebody else wrote. Every file has a budget of bytes, values, depth and digits.

A checkpoint, a scenario, a list of scores, rows or a store may come from anywhere: opening a pipe may block forever,
64 KiB of dotted TOML keys become 4 GiB of dictionaries, and ``1e999`` is infinite. So every reader of such a file
opens it with ``open_file`` and parses it with ``read_json`` or ``toml_value``, which refuse it in time with one line
that names the file.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from profiler.errors import NotFound, ProfileError
from profiler.units import bytes_text, printable

KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
MAX_TOKENIZER_BYTES = 256 << 20  # of a tokenizer.json; that of Gemma 3, with 262,144 tokens, has 33 MB
MAX_SHOWN_CHARACTERS = 40  # of a number in a message
TOML_INTEGERS = range(-(2**63), 2**63)  # the range that the specification requires (toml.io/en/v1.0.0#integer)

# Signs that a number may be out of range. Without them, no number of the text needs a check.
_LONG_TEXT = re.compile(r"[0-9]{19}|[eE]\+?[0-9]{3}")
_LONG_BYTES = re.compile(rb"[0-9]{19}|[eE]\+?[0-9]{3}")

# Strings and comments of TOML. An unterminated one extends to the end of the text, and quantifiers are possessive, so
# that the text is scanned only once.
_TOML_QUOTED = re.compile(
    r'"""(?:[^\\"]|\\.|"(?!""))*+(?:"{3,5}|\\?\Z)'
    r"|'''(?:[^']|'(?!''))*+(?:'{3,5}|\Z)"
    r'|"(?:[^\\"\n]|\\.)*+"?'
    r"|'[^'\n]*+'?"
    r"|\#[^\n]*+",
    re.DOTALL,
)
_TOML_KEY = re.compile(r"(?<![\w.\-])[\w\-]++(?:[ \t]*+\.[ \t]*+[\w\-]++)*+")


@dataclass(frozen=True, slots=True)
class Budget:
    """Limits for one text. The defaults suit files of a few KiB written by people or programs."""

    nbytes: int = 1 << 20
    values: int = 1 << 18  # numbers, strings, lists and objects, all together
    depth: int = 64  # nesting of lists and objects
    digits: int = 300  # of an integer: a float can still hold it; whether it is in range is for the field to check
    twice: bool = False  # whether an object may contain a key twice, in which case the last one counts


BUDGET = Budget()


class BadContent(ValueError):
    """A text cannot be used. The message says why, without naming the file."""


LFS = b"version https://git-lfs.github.com/spec/"  # the beginning of a Git LFS pointer file


def open_file(path: Path, shown: str | None = None) -> BinaryIO:
    """Open a regular file for reading. NotFound if it does not exist, ProfileError if it cannot be used.

    Pipes, devices, sockets and folders are refused before opening, because opening them may block or have effects.
    """
    shown = printable(path) if shown is None else shown
    try:
        _refuse_special(os.stat(path).st_mode, shown)
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK)
        try:
            _refuse_special(os.fstat(fd).st_mode, shown)  # the name may refer to another file by now
            if os.pread(fd, len(LFS), 0) == LFS:
                raise ProfileError(
                    f"{shown} is a Git LFS pointer, not the file itself", "Fetch the file with: git lfs pull"
                )
        except BaseException:
            os.close(fd)
            raise
        return os.fdopen(fd, "rb")
    except (FileNotFoundError, NotADirectoryError):
        raise NotFound(f"cannot read {shown}: there is no such file") from None
    except (OSError, ValueError) as error:
        raise ProfileError(f"cannot read {shown}: {why(error)}") from None


def read_bytes(path: Path, most: int = BUDGET.nbytes, shown: str | None = None, hint: str | None = None) -> bytes:
    """The content of a regular file of at most ``most`` bytes; ``hint`` is for larger ones. Raises like
    ``open_file``.
    """
    shown = printable(path) if shown is None else shown
    with open_file(path, shown) as file:
        try:
            content = file.read(most + 1)
        except OSError as error:
            raise ProfileError(f"cannot read {shown}: {why(error)}") from None
    if len(content) > most:
        raise ProfileError(f"{shown} is larger than {bytes_text(most)}", hint)
    return content


def read_json(path: Path, budget: Budget = BUDGET, shown: str | None = None, hint: str | None = None) -> Any:
    """The JSON value in a file. Raises like ``read_bytes``, and ProfileError for invalid JSON or exceeded limits."""
    shown = printable(path) if shown is None else shown
    content = read_bytes(path, budget.nbytes, shown, hint)
    try:
        return json_value(content, budget)
    except BadContent as error:
        raise ProfileError(f"{shown} is not valid JSON: {printable(error)}", hint) from None


def json_value(content: bytes | str, budget: Budget = BUDGET, constant: Callable[[str], Any] | None = None) -> Any:
    """The value of a JSON text. BadContent for invalid JSON, for ``NaN``, ``Infinity`` and numbers without a finite
    value (the message names the field), and for exceeding ``budget``. ``constant`` gives the value of ``NaN``,
    ``Infinity`` and ``-Infinity`` where a format allows them, as Python's own JSON does.
    """
    if len(content) > budget.nbytes:
        raise BadContent(f"it is larger than {bytes_text(budget.nbytes)}")
    comma, square, curly = (",", "[", "{") if isinstance(content, str) else (b",", b"[", b"{")
    containers = content.count(square) + content.count(curly)  # type: ignore[arg-type]
    if containers + content.count(comma) > budget.values:  # type: ignore[arg-type]
        raise BadContent(f"it holds more than {budget.values:,} values")
    odd: list[str] = []
    hooks = _hooks(content, budget, odd) | ({} if constant is None else {"parse_constant": constant})
    try:
        value = json.loads(content, **hooks)
    except RecursionError:
        raise BadContent(f"it is nested more than {budget.depth} levels deep") from None
    except MemoryError:
        raise BadContent("there is not enough memory for it") from None
    except ValueError as error:  # not JSON, not UTF-8, or a duplicate key
        raise BadContent(str(error)) from None
    if containers > budget.depth:
        _check_depth(value, budget.depth)
    if odd:
        raise BadContent(next(_odd_fields(value), f"{odd[0]} is not a valid number"))
    return value


def toml_value(text: str, budget: Budget = BUDGET) -> dict[str, Any]:
    """The table of a TOML text. BadContent for invalid TOML and for exceeding ``budget``.

    ``tomllib`` takes quadratic time for dotted keys and recurses into brackets, so both are limited first.
    """
    if len(text) > budget.nbytes:
        raise BadContent(f"it is larger than {bytes_text(budget.nbytes)}")
    bare = _TOML_QUOTED.sub("q", text)
    if bare.count(",") + bare.count("=") + bare.count("[") > budget.values:
        raise BadContent(f"it holds more than {budget.values:,} values")
    if _deepest_bracket(bare) > budget.depth:
        raise BadContent(f"it is nested more than {budget.depth} levels deep")
    for key in _TOML_KEY.finditer(bare):
        if key[0].count(".") >= budget.depth:
            raise BadContent(f"a key has more than {budget.depth} parts")
    try:
        value = tomllib.loads(text)
    except (ValueError, RecursionError, MemoryError, OverflowError) as error:
        raise BadContent(str(error) or type(error).__name__) from None
    _check_depth(value, budget.depth)
    for where, number in _leaves(value):
        if type(number) is int and number not in TOML_INTEGERS:
            raise BadContent(f"{where} is a number with more than 64 bits")
    return value


def is_file(path: Path) -> bool:
    """Whether ``path`` is a regular file or a link to one. False for a name that cannot exist."""
    return _is(path, stat.S_ISREG)


def exists(path: Path) -> bool:
    """Whether ``path`` exists. False for a name that cannot exist."""
    return _is(path, lambda mode: True)


def why(error: Exception) -> str:
    """The reason in a file system error, without the path that Python appends."""
    return printable(getattr(error, "strerror", None) or str(error) or type(error).__name__)


def _is(path: Path, kind: Callable[[int], bool]) -> bool:
    try:
        return kind(os.stat(path).st_mode)
    except (OSError, ValueError):  # ValueError: a NUL byte, or a character that file names cannot contain
        return False


def _refuse_special(mode: int, shown: str) -> None:
    if not stat.S_ISREG(mode):
        kind = KINDS.get(stat.S_IFMT(mode), "something else")
        raise ProfileError(f"{shown} is {kind}, not a regular file")


class _Odd:
    """A placeholder in a parsed value for a number without a finite value."""

    def __init__(self, text: str) -> None:
        self.text = text


def _hooks(content: bytes | str, budget: Budget, odd: list[str]) -> dict[str, Any]:
    """The hooks for ``json.loads``. Python functions for every number are slow, so they are used only if a number in
    the text may be out of range.
    """

    def strange(text: str) -> _Odd:
        odd.append(text if len(text) <= MAX_SHOWN_CHARACTERS else f"a number of {len(text):,} characters")
        return _Odd(odd[-1])

    def whole(text: str) -> Any:
        return int(text) if len(text) <= budget.digits else strange(text)

    def real(text: str) -> Any:
        value = float(text)
        return value if math.isfinite(value) else strange(text)

    hooks: dict[str, Any] = {"parse_constant": strange}
    if not budget.twice:
        hooks["object_pairs_hook"] = _without_twins
    sign = _LONG_TEXT.search(content) if isinstance(content, str) else _LONG_BYTES.search(content)
    return hooks | {"parse_int": whole, "parse_float": real} if sign else hooks


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        seen: set[str] = set()
        twin = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"{printable(twin, 80)} occurs twice")
    return content


def _odd_fields(value: Any) -> Iterator[str]:
    """A message for each number without a finite value, with the name of its field."""
    for where, leaf in _leaves(value):
        if isinstance(leaf, _Odd):
            yield f"{where or 'it'} is {leaf.text}, which is not a valid number"


def _leaves(value: Any) -> Iterator[tuple[str, Any]]:
    """Every value that is not a list or an object, with its path: ``rope_scaling.factor``, ``a[3]``."""
    todo: list[tuple[str, Any]] = [("", value)]
    while todo:
        where, node = todo.pop()
        if isinstance(node, dict):
            stem = f"{where}." if where else ""
            todo += [(f"{stem}{printable(name, 80)}", child) for name, child in node.items()]
        elif isinstance(node, list):
            todo += [(f"{where}[{place}]", child) for place, child in enumerate(node)]
        else:
            yield where, node


def _check_depth(value: Any, most: int) -> None:
    """BadContent if lists and objects are nested more than ``most`` levels deep."""
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(most):
        if not level:
            return
        level = [
            child
            for node in level
            for child in (node.values() if isinstance(node, dict) else node)
            if isinstance(child, dict | list)
        ]
    if level:
        raise BadContent(f"it is nested more than {most} levels deep")


def _deepest_bracket(text: str) -> int:
    depth = deepest = 0
    for bracket in re.finditer(r"[\[\]{}]", text):
        depth += 1 if bracket[0] in "[{" else -1
        deepest = max(deepest, depth)
    return deepest
