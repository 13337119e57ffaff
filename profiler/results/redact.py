"""Secrets out of text: command lines and error messages carry tokens, and stored rows get shared."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

MARK = "[redacted]"

_TOKENS = re.compile(
    r"(?<![A-Za-z0-9])"
    r"(?:hf_[A-Za-z0-9]{20,}"  # Hugging Face
    r"|api_org_[A-Za-z0-9]{20,}"
    r"|sk-[A-Za-z0-9_-]{16,}"  # OpenAI and those that took its form
    r"|gh[oprsu]_[A-Za-z0-9]{16,}|github_pat_[A-Za-z0-9_]{16,}|glpat-[A-Za-z0-9_-]{16,}"
    r"|AKIA[A-Z0-9]{16})"
)
_HEADER = re.compile(r"\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{8,}", re.IGNORECASE)
_USERINFO = re.compile(r"(\b[a-z][a-z0-9+.-]*://)[^/\s?#]+@", re.IGNORECASE)
_NAMED = re.compile(
    r"([A-Za-z0-9_-]*(?:token|api[_-]?key|apikey|password|passwd|secret)[\"']?\s*[=:]\s*[\"']?)[^\s\"'&,;]+",
    re.IGNORECASE,
)
_SECRET_OPTION = re.compile(r"^--?[a-z0-9-]*(?:token|key|password|secret)$", re.IGNORECASE)


def redact(text: str) -> str:
    """``text`` without known token forms, authorization headers, URL userinfo and ``token=…`` values."""
    text = _TOKENS.sub(MARK, text)
    text = _HEADER.sub(rf"\1 {MARK}", text)
    text = _USERINFO.sub(rf"\1{MARK}@", text)
    return _NAMED.sub(rf"\1{MARK}", text)


def redact_argv(argv: Sequence[str]) -> list[str]:
    """A command line without secrets, also where the value is its own argument (``--api-key VALUE``)."""
    clean: list[str] = []
    hide = False
    for argument in argv:
        clean.append(MARK if hide else redact(argument))
        hide = bool(_SECRET_OPTION.match(argument))
    return clean


def redact_json(content: Any) -> Any:
    """Plain JSON content with every string redacted."""
    if isinstance(content, str):
        return redact(content)
    if isinstance(content, dict):
        return {name: redact_json(value) for name, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [redact_json(value) for value in content]
    return content
