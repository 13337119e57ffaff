"""Versions that are read from the names of folders are those that the metadata states."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest

from profiler import packages
from profiler.devices.calibration import PACKAGES
from profiler.results.environment import LIBRARIES


def test_every_version_that_we_record_is_the_one_in_the_metadata() -> None:
    installed = {found.name for found in metadata.distributions()}
    names = [name for name in {*LIBRARIES, *PACKAGES, "click", "pytest-benchmark"} if name in installed]
    assert len(names) > 2
    assert {name: packages.version(name) for name in names} == {name: metadata.version(name) for name in names}
    assert packages.code("click") == Path(str(metadata.distribution("click").locate_file("")))


def test_the_first_folder_of_the_path_counts_as_in_an_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place, number in (("first", "2.0+cpu"), ("second", "1.0")):
        (tmp_path / place / f"some_tool-{number}.dist-info").mkdir(parents=True)
        (tmp_path / place / "some_tool_more-9.dist-info").mkdir()
        monkeypatch.syspath_prepend(str(tmp_path / place))
    assert packages.version("some-tool") == "1.0"
    assert packages.version("no-such-tool") is None and packages.code("no-such-tool") is None
