"""The text set: what ships, a person's own folder, and windows of tokens."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from profiler.errors import ProfileError
from profiler.quality import texts

HASHES = {"profile-text-2": "9a8574c4d53dd42f"}  # a changed text is another set: give it another name


def test_the_shipped_set_is_the_one_that_its_name_promises() -> None:
    found = texts.shipped()
    assert HASHES[found.name] == found.hash


def test_the_shipped_set_has_text_of_every_kind() -> None:
    kinds = Counter(document.kind for document in texts.shipped().documents)
    assert kinds == {"code": 5, "html": 3, "long": 2, "prose": 4, "reasoning": 4, "scripts": 10}


def test_no_paragraph_of_the_shipped_set_occurs_twice() -> None:
    """Repeated text is predicted from its first copy, so it would say nothing."""
    parts = Counter(
        part.strip()
        for document in texts.shipped().documents
        for part in document.text.split("\n\n")
        if len(part.strip()) > 80
    )
    assert [part for part, count in parts.items() if count > 1] == []


def test_the_ten_scripts_are_ten() -> None:
    import unicodedata

    scripts = {
        document.name: Counter(unicodedata.name(c).split()[0] for c in document.text if c.isalpha()).most_common(1)[
            0
        ][0]
        for document in texts.shipped().documents
        if document.kind == "scripts"
    }
    assert set(scripts.values()) == {
        *("LATIN", "GREEK", "CYRILLIC", "ARABIC", "HEBREW", "DEVANAGARI", "THAI", "HANGUL", "CJK", "HIRAGANA")
    }


def test_a_folder_has_a_kind_for_each_folder_in_it(tmp_path: Path) -> None:
    (tmp_path / "mail").mkdir()
    (tmp_path / "mail" / "a.txt").write_text("Dear all")
    (tmp_path / "b.md").write_text("\ufeffNotes")
    (tmp_path / ".hidden").write_text("no")
    (tmp_path / "empty.txt").write_text(" \n")
    found = texts.of_folder(tmp_path)
    assert [(d.kind, d.name, d.text) for d in found.documents] == [
        ("own", "b.md", "Notes"),
        ("mail", "a.txt", "Dear all"),
    ]
    assert found.license is None
    (tmp_path / "b.md").write_text("Notes!")
    assert texts.of_folder(tmp_path).hash != found.hash


@pytest.mark.parametrize("content, said", [(b"\xff\xfe", "not UTF-8"), (b"  ", "are empty"), (None, "no text files")])
def test_a_folder_without_texts_is_refused(tmp_path: Path, content: bytes | None, said: str) -> None:
    if content is not None:
        (tmp_path / "x.txt").write_bytes(content)
    with pytest.raises(ProfileError, match=said):
        texts.of_folder(tmp_path)
    with pytest.raises(ProfileError, match="cannot read"):
        texts.of_folder(tmp_path / "missing")


def test_each_token_is_predicted_once_and_after_the_start() -> None:
    cut = texts.windows("kind", "d", [1], range(10, 25), 6)
    assert [window.tokens for window in cut] == [(1, *range(10, 15)), (1, *range(15, 20)), (1, *range(20, 25))]
    assert sum(window.scored for window in cut) == 15


def test_without_a_start_the_first_token_of_a_window_is_not_predicted() -> None:
    cut = texts.windows("kind", "d", [], range(13), 6)
    assert [window.scored for window in cut] == [5, 5]  # and of the last window nothing
