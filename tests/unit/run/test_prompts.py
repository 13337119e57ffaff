"""Prompts: the shipped ones are what they claim to be, one's own are sent as they are, and no file harms anybody."""

from __future__ import annotations

import json
import os
import sys
import unicodedata
from collections import Counter
from itertools import pairwise, permutations
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from profiler.errors import NotFound, ProfileError
from profiler.run import grid
from profiler.run.prompts import (
    ANSWER_TOKENS,
    MAX_FILE_BYTES,
    MAX_FILES,
    OWN,
    Prompt,
    judged,
    own_prompts,
    prompts,
)

WITH_PROMPTS = {name: prompts(name) for name in grid.names() if grid.load(name).prompts}
SHIPPED = Path(grid.__file__).parents[1] / "scenarios" / "prompts"
SCENARIO = 'description = "mine"\ncontexts = 512\nbatches = 1\nsteps = 8\n'


def by_name(scenario: str) -> dict[str, Prompt]:
    return {prompt.name: prompt for prompt in WITH_PROMPTS[scenario]}


# What is shipped


def test_every_workload_has_its_prompts() -> None:
    named = ("frontend-landing-page", "code", "chat", "summarize-32k", "multilingual", "reasoning", "agent")
    assert {*named, "long-context-128k"} == set(WITH_PROMPTS)
    for name, found in WITH_PROMPTS.items():
        scenario = grid.load(name)
        assert scenario.answer_tokens and {prompt.answer_tokens for prompt in found} == {scenario.answer_tokens}
        assert {prompt.kind for prompt in found} == {name}
        assert len({prompt.name for prompt in found}) == len(found)


def test_every_scenario_says_whose_workload_it_is() -> None:
    for name in grid.names():
        assert 20 < len(grid.load(name).stands_for or "") < 65, name


def test_every_prompt_file_belongs_to_a_scenario() -> None:
    used = {name for scenario in WITH_PROMPTS for name in grid.load(scenario).prompts}
    assert {path.name for path in SHIPPED.iterdir()} == used | {"record.toml"}


@pytest.mark.parametrize("name", WITH_PROMPTS)
def test_no_instruction_of_ours_reaches_the_model(name: str) -> None:
    for prompt in WITH_PROMPTS[name]:
        assert "<!--" not in prompt.text
        assert prompt.messages[-1]["role"] in ("user", "tool")
        texts = [message["content"] for message in prompt.messages]
        assert prompt.tools or texts == [text.strip() for text in texts]


def test_a_document_and_its_questions_are_in_the_prompt_and_the_answers_are_expected() -> None:
    for scenario in ("summarize-32k", "long-context-128k"):
        (prompt,) = WITH_PROMPTS[scenario]
        answers = (prompt.expected or "").splitlines()
        assert len(answers) == 4
        assert [prompt.text.count(answer) for answer in answers] == [1] * 4
        assert all(f"\n{number}. " in prompt.text for number in range(1, 5))


def test_multilingual_is_ten_scripts() -> None:
    scripts = {}
    for prompt in WITH_PROMPTS["multilingual"]:
        letters = [unicodedata.name(sign).split()[0] for sign in prompt.text if sign.isalpha()]
        kana = {"HIRAGANA", "KATAKANA"} & set(letters)
        scripts[prompt.language] = "KANA" if kana else Counter(letters).most_common(1)[0][0]
    assert len(scripts) == len(set(scripts.values())) == 10
    assert scripts["en"] == "LATIN" and scripts["th"] == "THAI" and scripts["zh"] == "CJK"


def test_a_chat_takes_turns() -> None:
    for prompt in WITH_PROMPTS["chat"]:
        roles = [message["role"] for message in prompt.messages if message["role"] != "system"]
        assert roles == ["user" if place % 2 == 0 else "assistant" for place in range(len(roles))]
        assert len(roles) >= 3


def test_each_turn_of_the_agent_begins_with_the_whole_of_the_one_before() -> None:
    turns = WITH_PROMPTS["agent"]
    assert len(turns) > 8
    for earlier, later in pairwise(turns):
        size = len(earlier.messages)
        assert later.messages[:size] == earlier.messages and len(later.messages) > size
        assert later.tools == earlier.tools


def test_the_agent_calls_tools_that_exist_and_each_call_is_answered() -> None:
    prompt = WITH_PROMPTS["agent"][-1]
    known = {tool["function"]["name"]: tool["function"]["parameters"] for tool in prompt.tools}
    calls = [call for message in prompt.messages for call in message.get("tool_calls", ())]
    answered = [message["tool_call_id"] for message in prompt.messages if message["role"] == "tool"]
    assert [call["id"] for call in calls] == answered
    for call in calls:
        arguments = json.loads(call["function"]["arguments"])
        assert set(arguments) == set(known[call["function"]["name"]]["required"])


def test_the_change_of_the_agent_repairs_the_file_that_it_read(monkeypatch: pytest.MonkeyPatch) -> None:
    messages = WITH_PROMPTS["agent"][-1].messages
    (text,) = [message["content"] for message in messages if message["content"].startswith('"""Readings')]
    calls = [call["function"] for message in messages for call in message.get("tool_calls", ())]
    for call in calls:
        if call["name"] == "replace_text":
            change = json.loads(call["arguments"])
            assert text.count(change["old"]) == 1
            text = text.replace(change["old"], change["new"])
    module = ModuleType("ingest_parse")
    monkeypatch.setitem(sys.modules, module.__name__, module)  # where dataclasses looks up annotations
    exec(compile(text, "parse.py", "exec", dont_inherit=True), module.__dict__)
    batch = module.parse(["2023-06-18T02:00;Kell Beck;1,84;12.6", "x;Kell Beck;1,8,4;12.6"], {"Kell Beck"})
    assert [(reading.level, reading.battery) for reading in batch.readings] == [(1.84, 12.6)]
    assert len(batch.rejected) == 1


def test_the_bug_is_in_a_file_of_150_lines_and_in_the_function_that_is_expected() -> None:
    prompt = by_name("code")["code-bug"]
    text = prompt.messages[0]["content"]
    assert 145 <= len(text.split("```go\n")[1].split("```")[0].splitlines()) <= 165
    (line,) = [line for line in text.splitlines() if f") {prompt.expected}(" in line]
    assert "expires.After" in line  # the queue is to begin with the session that expires first


# The answers to the problems, found by trying everything


def ferry() -> str:
    arrivals, moved, quay = [430 + 10 * number for number in range(6)], 0, 420
    while moved < 61 + 3 * len(arrivals):
        moved += min(8, 61 + 3 * sum(time <= quay for time in arrivals) - moved)
        arrival = quay + 5 + 12
        quay = arrival + 5 + 12
    return f"{arrival // 60}:{arrival % 60:02}"


def talks() -> str:
    names = ("Abel", "Boone", "Cruz", "Dietz", "Evans", "Frost")
    found = [
        order
        for order in permutations(range(1, 7))
        for a, b, c, d, e, f in [order]
        if d in (1, 6) and c < e and f > 3 and b == f + 1 and (f, b) != (3, 4) and abs(a - b) > 1 and abs(a - e) == 3
    ]
    (order,) = found
    return ", ".join(sorted(names, key=lambda name: order[names.index(name)]))


def tickets() -> str:
    def day(adults: int, children: int, seniors: int) -> int:
        """The least in cents: every choice of family tickets, group tickets, and who of them uses the group."""
        costs = []
        for family, group in [(f, g) for f in range(2) for g in range(2)]:
            left, small = max(0, adults - 2 * family), max(0, children - 3 * family)
            for a, c, s in [(a, c, s) for a in range(left + 1) for c in range(small + 1) for s in range(seniors + 1)]:
                if a + c + s <= 5 * group:
                    alone = 740 * (left - a) + 370 * (small - c) + 520 * (seniors - s)
                    costs.append(1990 * family + 2450 * group + alone)
        return min(costs)

    return f"{(day(3, 2, 0) + day(2, 1, 0) + day(3, 2, 1)) / 100:.2f}"


def count() -> str:
    return str(sum((n % 3 == 0 or n % 5 == 0) and n % 4 != 0 for n in range(1, 1001)))


@pytest.mark.parametrize("solve", [ferry, talks, tickets, count], ids=lambda solve: solve.__name__)
def test_the_expected_answer_of_a_problem_is_the_right_one(solve: Any) -> None:
    prompt = by_name("reasoning")[f"reasoning-{solve.__name__}"]
    assert prompt.expected == solve()
    assert 'End with a line "Answer: "' in prompt.text


# A scenario of one's own


def mine(folder: Path, names: str, **files: str) -> str:
    (folder / "mine.toml").write_text(f"{SCENARIO}prompts = {names}\n")
    for name, text in files.items():
        (folder / name.replace("_", ".")).write_text(text)
    return str(folder / "mine.toml")


def test_prompts_of_a_scenario_file_are_next_to_it_or_shipped(tmp_path: Path) -> None:
    first, second = prompts(mine(tmp_path, '["hello.md", "code-bug.md"]', hello_md="Hello\n"))
    assert first == Prompt("hello", "mine", ({"role": "user", "content": "Hello"},), ANSWER_TOKENS)
    assert second.messages == by_name("code")["code-bug"].messages


@pytest.mark.parametrize(
    ("name", "answer", "verdict"),
    [
        ("count", "First 467, then 117.\n\nAnswer: 350", "right"),
        ("count", "**Answer:** 350 numbers.", "right"),
        ("count", "Answer:\n\n$\\boxed{350}$", "right"),
        ("count", "Answer: 350 (467 without the last condition)", "right"),
        ("count", "The answer: 349.\nNo.\nAnswer: 350", "right"),
        ("count", "Answer: 351", "wrong"),
        ("count", "Answer: 350 or 351", "wrong"),
        ("count", "It is 350.", "none"),
        ("count", "Answer: ", "none"),
        ("count", "", "none"),
        ("tickets", "Answer: €71.2", "right"),
        ("tickets", "Answer: 71,20 euros", "right"),
        ("tickets", "Answer: 7120", "wrong"),
        ("ferry", "Answer: **12:23** PM", "right"),
        ("ferry", "Answer: 12:32", "wrong"),
        ("talks", "Answer: Dietz, Cruz, Abel, Frost, Boone and Evans.", "right"),
        ("talks", "**Answer: the order is dietz → Cruz → Abel → Frost → Boone → Evans**", "right"),
        ("talks", "Answer: Cruz, Dietz, Abel, Frost, Boone, Evans", "wrong"),
        ("talks", "Answer: nobody knows", "wrong"),
    ],
)
def test_the_last_line_of_an_answer_is_compared_with_what_is_expected(name: str, answer: str, verdict: str) -> None:
    (prompt,) = (each for each in prompts("reasoning") if each.name == f"reasoning-{name}")
    assert judged(prompt, answer) == verdict


def test_only_prompts_that_ask_for_a_line_with_the_answer_are_judged() -> None:
    found = {each.name for name in grid.names() if grid.load(name).prompts for each in prompts(name)
             if judged(each, "Answer: 350") is not None}  # fmt: skip
    assert found == {f"reasoning-{name}" for name in ("count", "ferry", "talks", "tickets")}


def test_turns_language_and_expected_answer_are_read(tmp_path: Path) -> None:
    text = (
        "<!-- language: de -->\n<!-- expected: vier -->\n\n<!-- system -->\nKurz.\n<!-- user -->\nZwei\nund zwei?\n"
    )
    (prompt,) = prompts(mine(tmp_path, '"a.md"', a_md=text.replace("\n", "\r\n")))
    assert (prompt.language, prompt.expected) == ("de", "vier")
    assert prompt.messages == (
        {"role": "system", "content": "Kurz."},
        {"role": "user", "content": "Zwei\nund zwei?"},
    )


def test_two_prompts_of_one_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "a.md").write_text("two")
    with pytest.raises(ProfileError, match="two prompts named a"):
        prompts(mine(tmp_path, '["a.md", "b/a.md"]', a_md="one"))


def test_a_comment_of_html_is_no_instruction(tmp_path: Path) -> None:
    (prompt,) = prompts(mine(tmp_path, '"a.md"', a_md="Improve this:\n<!-- navigation -->\n<nav>"))
    assert prompt.text == "Improve this:\n<!-- navigation -->\n<nav>"


@pytest.mark.parametrize("name", ["../secret.md", "/etc/hostname", "link.md", "sub/../../secret.md"])
def test_a_scenario_sends_nothing_from_outside_its_folder(tmp_path: Path, name: str) -> None:
    """It may be somebody else's, and what it names goes to a server."""
    (tmp_path / "secret.md").write_text("secret")
    folder = tmp_path / "scenarios"
    (folder / "sub").mkdir(parents=True)
    (folder / "link.md").symlink_to(tmp_path / "secret.md")
    with pytest.raises(ProfileError, match="outside the scenario's folder"):
        prompts(mine(folder, f'["{name}"]'))


def test_a_scenario_without_prompts_names_those_that_have_some() -> None:
    with pytest.raises(ProfileError, match="scenario quick has no prompts") as caught:
        prompts("quick")
    assert "reasoning" in (caught.value.hint or "") and "batch" not in (caught.value.hint or "")


def test_an_unknown_prompt_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"unknown prompt: chat-bred\.md") as caught:
        prompts(mine(tmp_path, '"chat-bred.md"'))
    assert "Did you mean chat-bread.md" in (caught.value.hint or "")


USER = {"role": "user", "content": "x"}
DOCUMENT = "<!-- document: seed 1, {} tokens -->\n"


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.md", "", "is empty"),
        ("a.md", "Hello\n<!-- user -->\nx", "has text before its first turn"),
        ("a.md", "<!-- user -->\n\n<!-- assistant -->\n", "ends with the turn of assistant"),
        ("a.md", "<!-- assistant -->\n\n<!-- user -->\nx", "has an empty turn of assistant"),
        ("a.md", "<!-- language: de -->\n", "has an empty turn of user"),
        ("a.md", DOCUMENT.format(10), "a document has 1,024 to 262,144 tokens, not 10"),
        ("a.md", "<!-- document: seed 1, 28k tokens -->\nx", "cannot be read: <!-- document: seed 1, 28k tokens -->"),
        ("a.md", "<!-- Document: seed 1, 2800 tokens -->\nx", "cannot be read: <!-- Document"),
        ("a.md", "<!--questions-->\nx", "cannot be read: <!--questions-->"),
        ("a.md", "<!-- User -->\nx", "cannot be read: <!-- User -->"),
        ("a.md", "<!-- user -->\nx\n<!-- expected: 5 -->\n", "cannot be read: <!-- expected: 5 -->"),
        ("a.md", "<!-- expected: -->\nx", "cannot be read: <!-- expected: -->"),
        ("a.JSON", "[", "is not valid JSON"),
        ("a.md", DOCUMENT.format(200_000) * 2, "documents of more than 262,144 tokens"),
        ("a.json", "[", "is not valid JSON"),
        ("a.json", "[" * 40 + "]" * 40, "nested"),
        ("a.json", "[]", '"tools" is not a list'),
        ("a.json", "{}", 'has no list of "messages"'),
        ("a.json", '{"messages": []}', 'has no list of "messages"'),
        ("a.json", '{"messages": [1]}', "message 1 is not an object"),
        ("a.json", json.dumps({"messages": [USER | {"role": "god"}]}), "message 1 is not an object"),
        (
            "a.json",
            json.dumps({"messages": [USER, USER | {"content": 5}]}),
            "message 2 has a content that is not text",
        ),
        ("a.json", json.dumps({"messages": [USER | {"tool_calls": [5]}]}), "tool calls without a function"),
        ("a.json", json.dumps({"messages": [USER | {"role": "assistant"}]}), "holds nothing to answer"),
        ("a.json", json.dumps({"messages": [USER | {"content": None}]}), "has an empty turn of user"),
    ],
)
def test_a_broken_prompt_is_one_clear_line(tmp_path: Path, name: str, text: str, said: str) -> None:
    scenario = mine(tmp_path, f'"{name}"')
    (tmp_path / name).write_text(text)
    with pytest.raises(ProfileError) as caught:
        prompts(scenario)
    assert said in caught.value.message
    assert "\n" not in caught.value.message


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3) | st.sampled_from(["user", "tool", "assistant"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "tool_calls", "function", "tools", "messages"]), inner)
    ),
    max_leaves=12,
)
MARKS = ["user -->", "assistant -->", "questions -->", "language: x -->", "document: seed 1, 1024 tokens -->"]
LINES = st.sampled_from([f"<!-- {mark}" for mark in MARKS]) | st.text(max_size=5)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(LINES), JSON | st.builds(lambda message: {"messages": [message]}, JSON))
def test_any_prompt_is_refused_in_words_or_can_be_sent(tmp_path: Path, lines: list[str], value: Any) -> None:
    (tmp_path / "a.md").write_text("\n".join(lines), encoding="utf-8", errors="replace")
    (tmp_path / "b.json").write_text(json.dumps(value))
    for name in ("a.md", "b.json"):
        try:
            found = prompts(mine(tmp_path, f'"{name}"'))
        except ProfileError as error:
            assert "\n" not in error.message
        else:
            assert found and all(prompt.text is not None and json.dumps(prompt.messages) for prompt in found)


# One's own text


def test_a_text_file_is_sent_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_bytes(b"\xef\xbb\xbf  <!-- user -->\n<!-- document: seed 1, 2000 tokens -->\nGr\xc3\xbc\xc3\x9fe\n")
    (prompt,) = own_prompts(path, 70)
    message = {"role": "user", "content": "  <!-- user -->\n<!-- document: seed 1, 2000 tokens -->\nGrüße"}
    assert prompt == Prompt("mine.txt", OWN, (message,), 70)


def test_a_folder_is_its_files_in_order(tmp_path: Path) -> None:
    for name in ("b.txt", "a.md", ".hidden", "c"):
        (tmp_path / name).write_text(name)
    (tmp_path / "sub").mkdir()
    assert [(prompt.name, prompt.text) for prompt in own_prompts(tmp_path)] == [
        ("a.md", "a.md"),
        ("b.txt", "b.txt"),
        ("c", "c"),
    ]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b" \n\t\n", "is empty"),
        (b"\xef\xbb\xbf", "is empty"),
        (b"caf\xe9", "is not a text in UTF-8: byte 3 belongs to no character"),
        (b"a\0b", "it holds a NUL byte"),
        (b"x" * (MAX_FILE_BYTES + 1), "is larger than 4.00 MiB"),
    ],
)
def test_a_file_that_is_no_prompt_is_refused_by_name(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "a.txt").write_text("fine")
    (tmp_path / "b.txt").write_bytes(content)
    for path in (tmp_path / "b.txt", tmp_path):
        with pytest.raises(ProfileError) as caught:
            own_prompts(path)
        assert "b.txt" in caught.value.message and said in caught.value.message
        assert "\n" not in caught.value.message


def test_a_folder_without_files_or_with_too_many_is_refused(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    with pytest.raises(ProfileError, match="holds no files"):
        own_prompts(tmp_path)
    for number in range(MAX_FILES + 1):
        (tmp_path / f"{number}.txt").touch()
    with pytest.raises(ProfileError, match="holds 1,001 files, more than 1,000"):
        own_prompts(tmp_path)


def test_a_pipe_and_a_missing_file_are_refused_with_the_reason(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(ProfileError, match="is a pipe"):
        own_prompts(tmp_path)
    with pytest.raises(NotFound, match="there is no such file"):
        own_prompts(tmp_path / "none.txt")
