"""Versions of libraries: those that are supported run without a word, a newer one with a caution."""

from __future__ import annotations

from importlib import metadata

import pytest

from profiler.backends.hf import session
from profiler.kernels import versions


@pytest.mark.parametrize("version", ["5.23.0", "5.23.1", "5.24.0", "5.24.2.dev0"])
def test_a_supported_version_has_no_caution(version: str) -> None:
    assert versions.outside("transformers", version) is None


@pytest.mark.parametrize("version", ["5.22.9", "5.25.0.dev0", "6.0.0"])
def test_another_version_is_named_in_a_caution(version: str) -> None:
    text = versions.outside("transformers", version)
    assert text is not None and version in text and "5.23 to 5.24" in text


def test_the_installed_versions_are_tested() -> None:
    assert versions.untested.__wrapped__() is None


@pytest.mark.parametrize("library", versions.TESTED)
def test_a_newer_version_of_any_library_is_a_caution(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "99.0a1+cpu" if name == library else usual(name))
    text = versions.untested.__wrapped__()
    assert text is not None and f"{library} 99.0a1+cpu: this version of profile was tested with " in text


def test_every_version_of_torch_from_the_oldest_that_can_be_installed_is_tested() -> None:
    assert all(versions.outside("torch", f"2.{minor}.0") is None for minor in range(10, 15))
    assert "2.10 to 2.14" in (versions.outside("torch", "2.15.0") or "")


def test_every_tested_version_can_be_installed() -> None:
    required = {word.partition(">=")[0]: word.partition(">=")[2] for word in metadata.requires("llm-hwprofile") or ()}
    for library, (oldest, _) in versions.TESTED.items():
        assert tuple(map(int, required[library].split("."))) <= oldest


def test_the_caution_is_on_every_row(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(session, "untested", lambda: "transformers 6.0: untested")
    codes = [caution.code for caution in session.describe(torch.nn.Linear(2, 2)).cautions]  # type: ignore[arg-type]
    assert codes == ["untested-version"]
