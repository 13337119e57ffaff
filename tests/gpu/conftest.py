"""Tests of this folder need a CUDA device; elsewhere they are skipped, with that reason."""

from __future__ import annotations

from pathlib import Path

import pytest

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = [item for item in items if HERE in item.path.parents]
    missing = _missing() if here else None
    for item in here:
        item.add_marker(pytest.mark.gpu)
        if missing:
            item.add_marker(pytest.mark.skip(reason=missing))


def _missing() -> str | None:
    """Why no CUDA device can be used, in words."""
    import torch

    return None if torch.cuda.is_available() else "no CUDA device"
