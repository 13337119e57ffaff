"""Files that somebody else wrote, read within one budget: bytes, values, depth, digits.

A checkpoint, a scenario, a list of scores, rows or a store may come from anywhere. A pipe is waited for without end,
64 KiB of dotted TOML keys become 4 GiB of dictionaries, and ``1e999`` is infinite. So every reader of such a file
opens it with ``open_file`` and parses it with ``read_json`` or ``toml_value``, which refuse in
time. What they raise is one line that names the file.
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
MOST_SHOWN = 40  # characters of a number in a message
TOML_INTEGERS = range(-(2**63), 2**63)  # what the specification asks for (toml.io/en/v1.0.0#integer)

# Cheap signs that a number may be out of range; only then is every number of the text looked at.
_LONG_TEXT = re.compile(r"[0-9]{19}|[eE]\+?[0-9]{3}")
_LONG_BYTES = re.compile(rb"[0-9]{19}|[eE]\+?[0-9]{3}")

# TOML without what is in strings and comments. One that never ends takes the rest of the text, so that a text is
# passed over once. Possessive quantifiers for the same reason: nothing here is ever tried twice.
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
    """How much one text may ask for. The defaults suit a file of a few KiB that people or programs write."""

    nbytes: int = 1 << 20
    values: int = 1 << 18  # numbers, texts, lists and objects, all together
    depth: int = 64  # lists and objects inside each other
    digits: int = 300  # of a whole number: a float still holds it; whether it can be is for the field to say
    twice: bool = False  # whether an object may name a key twice, of which Python takes the last


BUDGET = Budget()


class BadContent(ValueError):
    """What is wrong with a text, in words without its file."""


LFS = b"version https://git-lfs.github.com/spec/"  # how the text begins that stands for a file of Git LFS


def open_file(path: Path, shown: str | None = None) -> BinaryIO:
    """A regular file, opened for reading. NotFound if there is none, else ProfileError that says why not.

    Pipes, devices, sockets and folders are refused before they are opened, because opening alone may wait or act.
    """
    shown = printable(path) if shown is None else shown
    try:
        _refuse_special(os.stat(path).st_mode, shown)
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK)
        try:
            _refuse_special(os.fstat(fd).st_mode, shown)  # another file may have taken the name meanwhile
            if os.pread(fd, len(LFS), 0) == LFS:
                raise ProfileError(f"{shown} is a pointer of Git LFS, not the file itself", "Fetch it: git lfs pull")
        except BaseException:
            os.close(fd)
            raise
        return os.fdopen(fd, "rb")
    except (FileNotFoundError, NotADirectoryError):
        raise NotFound(f"cannot read {shown}: there is no such file") from None
    except (OSError, ValueError) as error:
        raise ProfileError(f"cannot read {shown}: {why(error)}") from None


def read_bytes(path: Path, most: int = BUDGET.nbytes, shown: str | None = None, hint: str | None = None) -> bytes:
    """The content of a regular file of at most ``most`` bytes; ``hint`` is for a larger one. Raises as that."""
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
    """The JSON value in a file. Raises as ``read_bytes``, and ProfileError for what is not JSON or over budget."""
    shown = printable(path) if shown is None else shown
    content = read_bytes(path, budget.nbytes, shown, hint)
    try:
        return json_value(content, budget)
    except BadContent as error:
        raise ProfileError(f"{shown} is not valid JSON: {printable(error)}", hint) from None


def json_value(content: bytes | str, budget: Budget = BUDGET) -> Any:
    """The value of a JSON text. BadContent for anything else, for ``NaN``, ``Infinity`` and numbers without a finite
    value (naming the field), and for more than ``budget`` allows.
    """
    if len(content) > budget.nbytes:
        raise BadContent(f"it is larger than {bytes_text(budget.nbytes)}")
    comma, square, curly = (",", "[", "{") if isinstance(content, str) else (b",", b"[", b"{")
    containers = content.count(square) + content.count(curly)  # type: ignore[arg-type]
    if containers + content.count(comma) > budget.values:  # type: ignore[arg-type]
        raise BadContent(f"it holds more than {budget.values:,} values")
    odd: list[str] = []
    hooks = _hooks(content, budget, odd)
    try:
        value = json.loads(content, **hooks)
    except RecursionError:
        raise BadContent(f"it is nested more than {budget.depth} deep") from None
    except MemoryError:
        raise BadContent("it takes more memory than there is") from None
    except ValueError as error:  # not JSON, not UTF-8, a key that stands there twice
        raise BadContent(str(error)) from None
    if containers > budget.depth:
        _check_depth(value, budget.depth)
    if odd:
        raise BadContent(next(_odd_fields(value), f"{odd[0]}, which no number here can be"))
    return value


def toml_value(text: str, budget: Budget = BUDGET) -> dict[str, Any]:
    """The table of a TOML text. BadContent for anything else and for more than ``budget`` allows.

    ``tomllib`` is quadratic in the parts of a dotted key and recursive in brackets, so both are counted first.
    """
    if len(text) > budget.nbytes:
        raise BadContent(f"it is larger than {bytes_text(budget.nbytes)}")
    bare = _TOML_QUOTED.sub("q", text)
    if bare.count(",") + bare.count("=") + bare.count("[") > budget.values:
        raise BadContent(f"it holds more than {budget.values:,} values")
    if _deepest_bracket(bare) > budget.depth:
        raise BadContent(f"it is nested more than {budget.depth} deep")
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
            raise BadContent(f"{where} is a number of more than 64 bits")
    return value


def is_file(path: Path) -> bool:
    """Whether there is a regular file, behind links if need be. A name that cannot exist names none."""
    return _is(path, stat.S_ISREG)


def exists(path: Path) -> bool:
    """Whether there is anything, likewise."""
    return _is(path, lambda mode: True)


def why(error: Exception) -> str:
    """The reason in an error of the file system, without the path that Python puts behind it."""
    return printable(getattr(error, "strerror", None) or str(error) or type(error).__name__)


def _is(path: Path, kind: Callable[[int], bool]) -> bool:
    try:
        return kind(os.stat(path).st_mode)
    except (OSError, ValueError):  # ValueError: a NUL byte, or a character that no file name holds here
        return False


def _refuse_special(mode: int, shown: str) -> None:
    if not stat.S_ISREG(mode):
        kind = KINDS.get(stat.S_IFMT(mode), "something else")
        raise ProfileError(f"{shown} is {kind}, not a regular file")


class _Odd:
    """Stands in a parsed value where the text has a number that none can be."""

    def __init__(self, text: str) -> None:
        self.text = text


def _hooks(content: bytes | str, budget: Budget, odd: list[str]) -> dict[str, Any]:
    """What ``json.loads`` calls. Python functions for every number are slow, so they are left out where no number
    of the text can be out of range.
    """

    def strange(text: str) -> _Odd:
        odd.append(text if len(text) <= MOST_SHOWN else f"a number of {len(text):,} characters")
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
        raise ValueError(f"{printable(twin, 80)} stands there twice")
    return content


def _odd_fields(value: Any) -> Iterator[str]:
    """What is said of each number that none can be, with the name of its field."""
    for where, leaf in _leaves(value):
        if isinstance(leaf, _Odd):
            yield f"{where or 'it'} is {leaf.text}, which no number here can be"


def _leaves(value: Any) -> Iterator[tuple[str, Any]]:
    """Everything that is no list and no object, with the names that lead to it: ``rope_scaling.factor``, ``a[3]``."""
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
    """BadContent for lists and objects of which more than ``most`` lie inside each other."""
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
        raise BadContent(f"it is nested more than {most} deep")


def _deepest_bracket(text: str) -> int:
    depth = deepest = 0
    for bracket in re.finditer(r"[\[\]{}]", text):
        depth += 1 if bracket[0] in "[{" else -1
        deepest = max(deepest, depth)
    return deepest
