"""Every test that runs workers is checked for what it left behind."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from fakes.lab import Lab, child_pids, group_members


@pytest.fixture
def lab() -> Iterator[Lab]:
    lab = Lab()
    fds = set(os.listdir("/proc/self/fd"))
    yield lab
    assert not [pid for group in lab.groups for pid in group_members(group)], "a process outlived its run"
    assert not child_pids(), "a process was not waited for"
    assert len(os.listdir("/proc/self/fd")) == len(fds), "a file was left open"
