"""Where a reference runs, by the memory that is free."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from profiler.errors import ProfileError
from profiler.quality import placement
from profiler.quality.placement import ReferencePlace, place

GB = 10**9
BF16 = {"dtype": "bfloat16"}


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Any:
    def set_to(**nbytes: float) -> None:
        found = {name: SimpleNamespace(free_bytes=int(size * GB)) for name, size in nbytes.items()}
        monkeypatch.setattr(placement.devices, "find", found.__getitem__)

    return set_to


@pytest.mark.parametrize(
    ("cpu", "cuda", "dtype", "device", "from_disk"),
    [
        (100, 100, "fp32", "cuda", False),
        (100, 30, "bf16", "cuda", False),
        (100, 5, "fp32", "cpu", False),
        (30, 5, "bf16", "cpu", False),
        (15, 5, "bf16", "cpu", True),
    ],
)
def test_the_first_of_card_host_and_disk_that_has_the_memory(
    free: Any, cpu: float, cuda: float, dtype: str, device: str, from_disk: bool
) -> None:
    free(cpu=cpu, cuda=cuda)
    found = place(12 * GB, "folder", BF16, "cuda")
    assert (found.dtype, found.device, found.from_disk) == (dtype, device, from_disk)


@pytest.mark.parametrize(
    ("kind", "config", "cpu"),
    [("gguf", BF16, 15), ("folder", {"dtype": "float16"}, 15), ("folder", {}, 15), ("folder", BF16, 2)],
    ids=["gguf", "fp16", "unstated", "no room"],
)
def test_only_a_file_that_can_be_mapped_runs_from_disk(free: Any, kind: str, config: Any, cpu: float) -> None:
    free(cpu=cpu)
    with pytest.raises(ProfileError, match="the reference needs"):
        place(12 * GB, kind, config, "cpu")


def test_weights_on_disk_are_read_once_per_chunk_and_at_least_once_per_document() -> None:
    on_disk = ReferencePlace("bf16", "cpu", 60 * GB, from_disk=True)
    assert on_disk.disk_s(tokens=40_960, windows=30, window=32_768) == pytest.approx(40 * 60)
    assert on_disk.disk_s(tokens=40_960, windows=30, window=1024) == pytest.approx(70 * 60)
    assert ReferencePlace("bf16", "cpu", 60 * GB).disk_s(40_960, 30, 1024) == 0
