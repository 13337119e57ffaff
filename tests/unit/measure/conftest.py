"""Every test that runs workers is checked for what it left behind."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator

import pytest
from fakes.lab import Lab, child_pids, vanishes


@pytest.fixture
def lab() -> Iterator[Lab]:
    lab = Lab()
    gc.collect()  # what an earlier test left in a cycle may hold files, which would close in between
    fds = set(os.listdir("/proc/self/fd"))
    yield lab
    assert all(vanishes(group) for group in lab.groups), "a process outlived its run"
    assert not child_pids(), "a process was not waited for"
    assert len(os.listdir("/proc/self/fd")) == len(fds), "a file was left open"
