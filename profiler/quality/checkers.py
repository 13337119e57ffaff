"""Exact checkers of answers: each says what is wrong, or None for a right answer. No model judges.

They look for the part of an answer that they are about (the final line, the JSON object, the fenced block), so that
what a model says before it does not count. Answers are hostile input: no checker takes more than linear time.
"""

from __future__ import annotations

import json
import re
import textwrap
import unicodedata
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from profiler.foreign import BadContent, Budget, json_value
from profiler.quality import markup, sandbox
from profiler.units import printable

Rules = Mapping[str, Any]
MAX_ANSWER = 100_000  # characters; the longest right answer has a thousand
SHOWN = 60  # characters of a text in a reason
BUDGET = Budget(nbytes=4 * MAX_ANSWER, depth=16)
HTML = ("html", "htm")  # languages of a fenced block

FENCE = re.compile(r"^[ \t]*(```+|~~~+)[ \t]*(\w*)[^\n]*\n(.*?)(?:^[ \t]*\1[ \t]*$|\Z)", re.MULTILINE | re.DOTALL)
_FINAL_LINE = re.compile(r"\banswer\b[*_` ]*[:：]\W*?(\S.*)", re.IGNORECASE)  # or the line below it
_ASIDE = re.compile(r"\([^()]*\)")
_GAPS = " \u00a0\u2009\u202f"  # spaces between groups of digits
_NUMBER = re.compile(rf"(?<![\d.])[-−]?(?:\d{{1,3}}(?:(?:,\d{{3}})+|(?:[{_GAPS}]\d{{3}})+)|\d+)(?:\.\d+)?(?!\d)")
_UNGROUPED = str.maketrans("−", "-", f",{_GAPS}")
_TEX = re.compile(r"\\[()\[\]]|\\(?:boxed|text|mathbf)\b|[{}$]|\\[,!;]")


def final_line(answer: str) -> str | None:
    """What stands after the last "Answer:", without what is in parentheses; None if it is nowhere."""
    found = list(_FINAL_LINE.finditer(answer))
    return _ASIDE.sub("", found[-1][1]) if found else None


def fenced(answer: str) -> list[tuple[str, str]]:
    """The fenced blocks of an answer in Markdown: the language in lower case, and the text."""
    return [(found[2].lower(), found[3]) for found in FENCE.finditer(answer)]


def judged_markup(answer: str) -> str:
    """The part of an answer that a task about HTML judges: its last block, because what stands before is a draft."""
    blocks = [text for word, text in fenced(answer) if word in ("", *HTML) and "<" in text]
    return blocks[-1] if blocks else answer


def check(kind: str, rules: Rules, answer: str) -> str | None:
    """What is wrong with an answer to a task of a kind, on one line; None if it is right. Raises SandboxError."""
    if len(answer) > MAX_ANSWER:
        return f"the answer is longer than {MAX_ANSWER:,} characters"
    if not answer.strip():
        return "the answer is empty"
    wrong = CHECKERS[kind](rules, answer)
    return None if wrong is None else printable(" ".join(wrong.split()), 200)


def _arithmetic(rules: Rules, answer: str) -> str | None:
    """Whether the final line has the one number that is right: 71.2 is 71.20, and -5 is not 5."""
    said = final_line(_TEX.sub("", answer))
    if said is None:
        return 'there is no line "Answer: "'
    numbers = dict.fromkeys(_decimal(each) for each in _NUMBER.findall(said))
    if len(numbers) != 1:
        return f"the final line has {len(numbers)} numbers: {_short(said)}"
    (given,) = numbers
    if "%" in said:
        return f"{given} is a percentage"
    return None if given == _decimal(rules["number"]) else f"{given}, not {rules['number']}"


def _decimal(text: str) -> Decimal:
    return Decimal(text.translate(_UNGROUPED))


def _extraction(rules: Rules, answer: str) -> str | None:
    """Whether the JSON object has exactly the fields that are expected; ``also``: other words for the same."""
    wanted, also = rules["fields"], rules.get("also", {})
    blocks = [text for _, text in fenced(answer) if "{" in text]
    text = blocks[-1] if blocks else answer
    try:
        given = json_value(text[text.find("{") : text.rfind("}") + 1], BUDGET)
    except BadContent:
        return "there is no valid JSON object" if "{" in text else "there is no JSON object"
    if not isinstance(given, dict):
        return "there is no JSON object"
    if missing := [name for name in wanted if name not in given]:
        return f"{missing[0]} is missing"
    if more := [name for name in given if name not in wanted]:
        return f"it has another field, {_short(more[0])}"
    for name, value in wanted.items():
        if not any(same(each, given[name]) for each in (value, *also.get(name, ()))):
            return f"{name} is {_value(given[name])}, not {_value(value)}"
    return None


def same(wanted: Any, given: Any) -> bool:
    """Whether two JSON values are equal. 2 is 2.0 but not true; texts are compared without blanks around them."""
    if isinstance(wanted, str) and isinstance(given, str):
        return _plain(wanted) == _plain(given)
    return exactly(wanted, given) if not isinstance(wanted, list) else (
        isinstance(given, list) and len(wanted) == len(given) and all(map(same, wanted, given))
    )  # fmt: skip


def exactly(wanted: Any, given: Any) -> bool:
    """Whether two JSON values are equal to the character. 2 is 2.0 but not true."""
    if isinstance(wanted, bool) or isinstance(given, bool):
        return wanted is given
    if isinstance(wanted, list):
        return isinstance(given, list) and len(wanted) == len(given) and all(map(exactly, wanted, given))
    return bool(wanted == given)


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).split())


def _format(rules: Rules, answer: str) -> str | None:
    """Whether the whole answer keeps to the rules. A fence around all of it does not count."""
    text = answer.strip()
    blocks = [found for found in FENCE.finditer(text) if found[0].strip() == text]
    text = blocks[0][3].strip() if blocks else text
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if "exact" in rules and lines != rules["exact"].splitlines():
        return f"it is not as asked for: {_short(text)}"
    if len(lines) != rules.get("lines", len(lines)):
        return f"it has {len(lines)} lines, not {rules['lines']}"
    if "line" in rules and (odd := [line for line in lines if not re.fullmatch(rules["line"], line)]):
        return f"a line is not as asked for: {_short(odd[0])}"
    if rules.get("distinct") and len(set(lines)) < len(lines):
        return "a line is there twice"
    count, (least, most) = len(text.split()), rules.get("words", (0, MAX_ANSWER))
    if not least <= count <= most:
        return f"it has {count} words, not {least} to {most}"
    words = re.findall(r"\w+", text.casefold())
    if (few := len(set(words))) < rules.get("different", 0):
        return f"it has {few} different words, not at least {rules['different']}"
    if absent := [word for word in rules.get("has", ()) if word not in words]:
        return f"it does not have {absent[0]}"
    if present := [part for part in rules.get("lacks", ()) if part in text.casefold()]:
        return f"it has {present[0]}"
    return None


def _html(rules: Rules, answer: str) -> str | None:
    """Whether the page of the answer keeps to the rules of ``markup``."""
    return markup.wrong(rules, judged_markup(answer))


def _code(rules: Rules, answer: str) -> str | None:
    """Whether the function gives what is expected for each case. It runs in the sandbox, without those results."""
    function, cases = rules["function"], rules["cases"]
    blocks = [text for _, text in fenced(answer)]
    names = rf"def[ \t]+{function}\b|{function}[ \t]*=(?!=)|from[ \t]+[\w.]+[ \t]+import[ \t][^\n]*\b{function}\b"
    defined = [text for text in blocks if re.search(rf"^[ \t]*(?:{names})", text, re.MULTILINE)]
    code = textwrap.dedent((defined or blocks or [answer])[-1])  # a block in a list is indented
    ran = sandbox.run(code, function, [case["args"] for case in cases])
    right = 0
    first: str | None = None
    for case, result in zip(cases, ran.results, strict=False):
        if (wrong := _of_case(case, result)) is None:
            right += 1
        else:
            first = first or f"{function}({', '.join(map(_value, case['args']))}) {wrong}"
    if right == len(cases):
        return None
    return f"{right} of {len(cases)} cases right: {first or ran.failure}" if ran.results else ran.failure


def _of_case(case: Mapping[str, Any], result: sandbox.CallResult) -> str | None:
    expected = f"and not {case['raises']}" if "raises" in case else f"and not {_value(case['gives'])}"
    if result.raised:  # an exception of a subclass is one of the class that the task asks for
        return None if case.get("raises") in result.raised else f"raises {_short(result.text)} {expected}"
    if "gives" in case and exactly(case["gives"], result.value):
        return None
    return f"gives {_value(result.value)} {expected}"


def _short(text: str) -> str:
    """A text on one line, its lines apart."""
    return printable(" / ".join(text.strip().splitlines()), SHOWN)


def _value(value: Any) -> str:
    """A JSON value, in which "14" is not 14."""
    return printable(json.dumps(value, ensure_ascii=False), SHOWN)


CHECKERS = {"code": _code, "html": _html, "arithmetic": _arithmetic, "extraction": _extraction, "format": _format}
KINDS: Sequence[str] = tuple(CHECKERS)
