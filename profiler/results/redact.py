"""Removes secrets from text: command lines and error messages contain tokens, and stored rows get shared."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

MARK = "[redacted]"
SHORT = 200  # characters of a text that is cached

_TOKENS = re.compile(
    r"(?<![A-Za-z0-9])"
    r"(?:hf_[A-Za-z0-9]{20,}"  # Hugging Face
    r"|api_org_[A-Za-z0-9]{20,}"
    r"|sk-[A-Za-z0-9_-]{16,}"  # OpenAI, and others that use its form
    r"|gh[oprsu]_[A-Za-z0-9]{16,}|github_pat_[A-Za-z0-9_]{16,}|glpat-[A-Za-z0-9_-]{16,}"
    r"|AKIA[A-Z0-9]{16})"
)
_HEADER = re.compile(r"\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{8,}", re.IGNORECASE)

# No expression below starts with a repeated class or has an unbounded lookahead: on a long run of letters it would be
# tried again at every letter, and 100,000 of them took 40 s. The text before a match is kept anyway.
_USERINFO = re.compile(r"((?<=[a-z0-9+.-])://)[^/\s?#]+@", re.IGNORECASE)
_NAMES = r"(?:token|api[_-]?key|password|passwd|secret)"
_VALUE = r"[^\s\"'&,;]+"
_LONG = 256  # characters: longer than any word or number, so there is no need to look further
_TOKEN_LIKE = (  # neither a word nor a number
    rf"(?:(?=[^\s\"'&,;]{{{_LONG}}})"
    rf"|(?=[^\s\"'&,;]{{0,{_LONG}}}[0-9])(?=[^\s\"'&,;]{{0,{_LONG}}}[A-Za-z])(?=[^\s\"'&,;]{{12}}))"
)
_NAMED = re.compile(
    rf"({_NAMES}(?:"
    r"[\"']?\s*=\s*[\"']?"  # name=value
    r"|[\"']\s*:\s*[\"']"  # JSON
    r"|(?<!token)\s*:\s*"
    rf"|\s*:\s*{_TOKEN_LIKE}"  # but not "ms per token: 13"
    rf")){_VALUE}",
    re.IGNORECASE,
)
_SECRET_OPTION = re.compile(r"^--?[a-z0-9-]*(?:token|key|password|secret)$", re.IGNORECASE)


def redact(text: str) -> str:
    """``text`` without known token forms, authorization headers, URL userinfo and ``token=…`` values."""
    return _short(text) if len(text) <= SHORT else _redacted(text)


@lru_cache(maxsize=8192)  # thousands of rows share their names, versions and settings
def _short(text: str) -> str:
    return _redacted(text)


def _redacted(text: str) -> str:
    text = _TOKENS.sub(MARK, text)
    text = _HEADER.sub(rf"\1 {MARK}", text)
    text = _USERINFO.sub(rf"\1{MARK}@", text)
    return _NAMED.sub(rf"\1{MARK}", text)


def redact_argv(argv: Sequence[str]) -> list[str]:
    """A command line without secrets, even if the value is a separate argument (``--api-key VALUE``)."""
    clean: list[str] = []
    hide = False
    for argument in argv:
        clean.append(MARK if hide else redact(argument))
        hide = bool(_SECRET_OPTION.match(argument))
    return clean


def redact_json(content: Any) -> Any:
    """JSON content with every string redacted."""
    kind = type(content)
    if kind in _TEXTLESS:
        return content
    if kind is str:
        return redact(content)
    if isinstance(content, dict):
        if _TEXTLESS.issuperset(map(type, content.values())):  # memory
            return dict(content)
        return {name: value if type(value) in _TEXTLESS else redact_json(value) for name, value in content.items()}
    if isinstance(content, (list, tuple)):
        if _TEXTLESS.issuperset(map(type, content)):  # the times of repetitions
            return list(content)
        return [redact_json(value) for value in content]
    return redact(content) if isinstance(content, str) else content


_TEXTLESS = frozenset({int, float, bool, type(None)})  # nine tenths of a row
