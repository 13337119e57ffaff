"""The kernel's counters of disturbances by other programs, read from files as kernels write them."""

from __future__ import annotations

from pathlib import Path

import pytest

from profiler.devices import base

FILES = {
    "STALLS": "some avg10=1.03 avg60=3.65 avg300=6.45 total=8412682812\nfull avg10=0.00 total=7\n",
    "STAT": "cpu  3176172 14770 370166 2218838 10481 0 3055 34226 0 0\ncpu0 1 2 3 4 5 6 7 8 9 10\n",
    "VMSTAT": "nr_free_pages 5\npswpin 12\npswpout 99\n",
    "STATUS": "Name:\tpython\nVmRSS:\t  100 kB\nVmSwap:\t  64 kB\n",
}


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    paths = {name: tmp_path / name for name in FILES}
    for name, text in FILES.items():
        paths[name].write_text(text)
        monkeypatch.setattr(base, name, paths[name])
    return paths


def test_counters_are_those_of_the_kernel(files: dict[str, Path]) -> None:
    found = base.read()
    assert found.stalled_s == pytest.approx(8412.682812)
    assert found.stolen_s == 34226 / base.TICKS
    assert (found.swapped_in_bytes, found.swapped_bytes) == (12 * base.PAGE, 64 * 1024)


def test_a_kernel_without_a_counter_leaves_it_unknown(files: dict[str, Path]) -> None:
    files["STALLS"].unlink()
    files["VMSTAT"].write_text("nr_free_pages 5\n")
    found = base.read()
    assert found.stalled_s is None and found.swapped_in_bytes is None and found.stolen_s is not None
