"""Limits of control groups, from files as the kernel writes them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from profiler.devices import cgroup, cpu

Lay = Callable[..., Path]


@pytest.fixture
def lay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lay:
    """Lays out control groups: the text of ``/proc/self/cgroup``, then files by path below the mount."""

    def make(membership: str, files: dict[str, str]) -> Path:
        for name, text in files.items():
            path = tmp_path / "mount" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{text}\n")
        (tmp_path / "membership").write_text(membership)
        monkeypatch.setattr(cgroup, "ROOT", tmp_path / "mount")
        monkeypatch.setattr(cgroup, "MEMBERSHIP", tmp_path / "membership")
        return tmp_path / "mount"

    return make


@pytest.mark.parametrize(
    ("membership", "folders"),
    [
        ("0::/user.slice/a.scope\n", ["user.slice/a.scope", "user.slice", "."]),
        ("0::/\n", ["."]),
        ("0::/../other\n", ["."]),  # seen from inside a namespace
        ("4:memory:/docker/1\n1:cpu:/\n", ["memory/docker/1", "memory/docker", "memory"]),
        ("5:cpu,memory:/\n0::/\n", ["memory", "."]),
        ("", [".", "memory"]),
    ],
)
def test_a_group_lies_in_others_up_to_the_root(lay: Lay, membership: str, folders: list[str]) -> None:
    mount = lay(membership, {})
    assert cgroup.folders("memory") == [mount / folder for folder in folders]


def test_without_a_list_of_groups_the_root_is_looked_at(lay: Lay, monkeypatch: pytest.MonkeyPatch) -> None:
    mount = lay("", {"memory.max": "1000", "memory.current": "400"})
    monkeypatch.setattr(cgroup, "MEMBERSHIP", mount / "absent")
    assert cgroup.memory() == (1000, 600)


def test_cached_files_of_a_group_count_as_free(lay: Lay) -> None:
    stat = "anon 300\nfile 500\ninactive_file 350\nactive_file 150\nshmem 20"
    lay("0::/\n", {"memory.max": "1000", "memory.current": "900", "memory.stat": stat})
    assert cgroup.memory() == (1000, 600)


def test_version_1_sums_over_the_groups_inside(lay: Lay) -> None:
    stat = "cache 5\ninactive_file 1\nactive_file 2\ntotal_inactive_file 100\ntotal_active_file 50"
    files = {"limit_in_bytes": "1000", "usage_in_bytes": "900", "stat": stat}
    lay("4:memory:/a\n", {f"memory/a/memory.{name}": text for name, text in files.items()})
    assert cgroup.memory() == (1000, 250)


def test_the_tightest_group_on_the_way_up_decides(lay: Lay) -> None:
    groups = {"a/b": ("max", "700"), "a": ("2000", "1500"), ".": ("3000", "2900")}
    files = {f"{group}/memory.max": limit for group, (limit, _) in groups.items()}
    files |= {f"{group}/memory.current": used for group, (_, used) in groups.items()}
    lay("0::/a/b\n", files | {"a/b/cpu.max": "400000 100000", "a/cpu.max": "150000 100000"})
    assert cgroup.memory() == (2000, 100)
    assert cgroup.cores() == 1.5


def test_a_group_over_its_limit_has_nothing_free(lay: Lay) -> None:
    lay("0::/\n", {"memory.max": "1000", "memory.current": "1200"})
    assert cgroup.memory() == (1000, 0)


def test_version_1_has_a_quota_and_a_period(lay: Lay) -> None:
    lay("1:cpu:/\n", {"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "100000"})
    assert cgroup.cores() == 2.0


@pytest.mark.parametrize(("memory", "cpu_max"), [("max", "max 100000"), ("9223372036854771712", "-1 100000")])
def test_no_limit_is_none(lay: Lay, memory: str, cpu_max: str) -> None:
    lay("0::/\n", {"memory.max": memory, "memory.current": "1", "cpu.max": cpu_max})
    assert (cgroup.memory(), cgroup.cores()) == ((None, None), None)


def test_the_cpu_has_no_more_memory_than_its_group(lay: Lay) -> None:
    lay("0::/\n", {"memory.max": str(2**20), "memory.current": str(2**19)})
    (device,) = cpu.find()
    assert (device.memory_bytes, device.free_bytes) == (2**20, 2**19)


def test_a_group_larger_than_the_machine_changes_nothing(lay: Lay) -> None:
    lay("0::/\n", {"memory.max": str(2**60), "memory.current": "0"})
    (device,) = cpu.find()
    assert device.free_bytes < device.memory_bytes < 2**60
