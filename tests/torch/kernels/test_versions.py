"""Versions of transformers: those that were tested run without a word, a newer one with a caution."""

from __future__ import annotations

import pytest

from profiler.backends.hf import session
from profiler.kernels import versions


@pytest.mark.parametrize("version", ["5.23.0", "5.23.1", "5.24.0", "5.24.2.dev0"])
def test_a_tested_version_has_no_caution(version: str) -> None:
    assert versions.untested(version) is None


@pytest.mark.parametrize("version", ["5.22.9", "5.25.0.dev0", "6.0.0"])
def test_another_version_is_named_in_a_caution(version: str) -> None:
    text = versions.untested(version)
    assert text is not None and version in text and "5.23 to 5.24" in text


def test_the_installed_version_is_tested() -> None:
    assert versions.untested() is None


def test_the_caution_is_on_every_row(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(session, "untested", lambda: "transformers 6.0: untested")
    codes = [caution.code for caution in session.describe(torch.nn.Linear(2, 2)).cautions]  # type: ignore[arg-type]
    assert codes == ["untested-version"]
