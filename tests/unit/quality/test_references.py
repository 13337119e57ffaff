"""References on disk: whole or not at all, ours alone, and within a limit."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from profiler import folders
from profiler.errors import ProfileError
from profiler.quality import references


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(folders.CACHE, str(tmp_path / "cache"))
    return tmp_path / "cache" / references.FOLDER


def reference(positions: int = 3, fill: bytes = b"\1") -> references.ReferenceArrays:
    empty = references.ReferenceArrays(positions, 4, 2, {}, {"device": "cpu"})
    arrays = {name: fill * empty.nbytes(name) for name in references.NAMES}
    return references.ReferenceArrays(positions, 4, 2, arrays, empty.made)


def test_what_is_written_is_read(cache: Path) -> None:
    references.write("name", reference())
    assert references.read("name") == reference()
    assert [path.name for path in cache.iterdir()] == ["name"]
    assert references.read("other") is None


@pytest.mark.parametrize(
    "spoil", [lambda data: data[:-1], lambda data: data[:-1] + b"\0", lambda data: b"{}\n" + data]
)
def test_a_damaged_file_is_no_reference(cache: Path, spoil: object) -> None:
    references.write("name", reference())
    path = cache / "name"
    path.write_bytes(spoil(path.read_bytes()))  # type: ignore[operator]
    assert references.read("name") is None


def test_a_file_that_others_may_write_is_no_reference(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    references.write("name", reference())
    (cache / "name").chmod(0o666)
    assert references.read("name") is None
    assert "computed again" in capsys.readouterr().err


def test_the_files_that_were_not_used_for_the_longest_time_make_room(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for age, name in enumerate(["newest", "middle", "oldest"]):
        references.write(name, reference())
        os.utime(cache / name, (1e9 - age, 1e9 - age))
    references.read("oldest")  # now it was used last
    size = (cache / "newest").stat().st_size
    monkeypatch.setattr(references, "MAX_FOLDER_BYTES", 3 * size)
    references.write("fourth", reference())
    assert sorted(path.name for path in cache.iterdir()) == ["fourth", "newest", "oldest"]


def test_a_full_disk_is_one_clear_line(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(references, "MIN_FREE_BYTES", 1 << 60)
    with pytest.raises(ProfileError, match="left to others"):
        references.write("name", reference())


def test_names_differ_with_all_that_determines_the_content() -> None:
    names = {
        references.key("a", "fp32", [1, 2], 1),
        references.key("b", "fp32", [1, 2], 1),
        references.key("a", "bf16", [1, 2], 1),
        references.key("a", "fp32", [1, 3], 1),
        references.key("a", "fp32", [1, 2], 2),
    }
    assert len(names) == 5
