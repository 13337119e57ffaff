"""Limits of control groups, from files as the kernel writes them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from profiler.devices import allowance, cgroup, cpu

Lay = Callable[..., Path]

V2 = "31 23 0:28 {shows} {mount} rw,nosuid - cgroup2 cgroup2 rw,nsdelegate"
MEMORY = "35 31 0:32 {shows} {mount}/memory rw,nosuid - cgroup cgroup rw,memory"
CPU = "32 31 0:29 {shows} {mount}/cpu,cpuacct rw,nosuid - cgroup cgroup rw,cpu,cpuacct"
DISK = "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/vda rw"
HYBRID = "41 31 0:38 {shows} {mount}/unified rw,nosuid - cgroup2 cgroup2 rw"


@pytest.fixture
def lay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lay:
    """Lays out control groups: the text of ``/proc/self/cgroup``, files by path below the mount, and the mounts."""

    def make(membership: str, files: dict[str, str], *mounts: str, shows: str = "/") -> Path:
        mount = tmp_path / "the mount"
        for name, text in files.items():
            path = mount / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{text}\n")
        escaped = str(mount).replace(" ", "\\040")
        lines = (line.format(shows=shows, mount=escaped) for line in mounts or (V2, MEMORY, CPU))
        (tmp_path / "mounts").write_text(
            "".join(f"{line}\n" for line in ("22 1 8:1 / / rw - ext4 /dev/vda rw", *lines))
        )
        (tmp_path / "membership").write_text(membership)
        monkeypatch.setattr(cgroup, "ROOT", tmp_path)
        monkeypatch.setattr(cgroup, "MOUNTS", tmp_path / "mounts")
        monkeypatch.setattr(cgroup, "MEMBERSHIP", tmp_path / "membership")
        return mount

    return make


@pytest.mark.parametrize(
    ("membership", "folders"),
    [
        ("0::/user.slice/a.scope\n", ["user.slice/a.scope", "user.slice", "."]),
        ("0::/\n", ["."]),
        ("0::/../other\n", ["."]),  # seen from inside a namespace
        ("0::/a (deleted)\n", ["a", "."]),  # the group was removed while we ran in it
        ("4:memory:/docker/1\n1:cpu,cpuacct:/\n", ["memory/docker/1", "memory/docker", "memory"]),
        ("5:cpu,cpuacct,memory:/\n0::/\n", ["memory", "."]),
        ("4:memory:/a:b\n", ["memory/a:b", "memory"]),
        ("", [".", "memory"]),
        ("nonsense\n", [".", "memory"]),
    ],
)
def test_a_group_lies_in_others_up_to_the_root(lay: Lay, membership: str, folders: list[str]) -> None:
    mount = lay(membership, {})
    assert cgroup.folders("memory") == [mount / folder for folder in folders]


def test_without_a_list_of_groups_the_root_is_read(lay: Lay, monkeypatch: pytest.MonkeyPatch) -> None:
    mount = lay("", {"memory.max": "1000", "memory.current": "400"})
    monkeypatch.setattr(cgroup, "MEMBERSHIP", mount / "absent")
    assert cgroup.memory() == (1000, 600)


def test_without_a_list_of_mounts_the_usual_places_are_read(lay: Lay, monkeypatch: pytest.MonkeyPatch) -> None:
    mount = lay("1:cpu:/a\n0::/\n", {"cpu/a/cpu.cfs_quota_us": "50000", "cpu/a/cpu.cfs_period_us": "100000"})
    monkeypatch.setattr(cgroup, "MOUNTS", mount / "absent")
    monkeypatch.setattr(cgroup, "ROOT", mount)
    assert cgroup.cores() == 0.5


def test_groups_that_are_mounted_elsewhere_only_are_found_there(lay: Lay, monkeypatch: pytest.MonkeyPatch) -> None:
    mount = lay("0::/a\n", {"a/cpu.max": "50000 100000"})
    monkeypatch.setattr(cgroup, "ROOT", mount / "absent")
    assert cgroup.cores() == 0.5


def test_the_hosts_groups_in_a_container_are_ignored(lay: Lay) -> None:
    mount = lay("0::/a\n", {"a/cpu.max": "50000 100000"})
    host = mount.parent.with_name(f"{mount.parent.name} of the host")
    (host / "a").mkdir(parents=True)
    (host / "a" / "cpu.max").write_text("10000 100000")
    with cgroup.MOUNTS.open("a") as mounts:
        mounts.write(V2.format(shows="/", mount=str(host).replace(" ", "\\040")) + "\n")
    assert cgroup.cores() == 0.5


def test_a_mount_may_show_the_containers_own_group_as_its_root(lay: Lay) -> None:
    """Docker with cgroup v1 and no namespace: the list has the host's path, and the mount begins there."""
    files = {"cpu,cpuacct/cpu.cfs_quota_us": "150000", "cpu,cpuacct/cpu.cfs_period_us": "100000"}
    lay("3:cpu,cpuacct:/docker/abc\n", files, CPU, shows="/docker/abc")
    assert cgroup.cores() == 1.5
    lay(
        "3:cpu,cpuacct:/docker/abc/inner\n", {"cpu,cpuacct/inner/cpu.cfs_quota_us": "50000"}, CPU, shows="/docker/abc"
    )
    assert cgroup.cores() == 0.5


def test_a_group_that_the_mount_does_not_show_is_read_at_its_root(lay: Lay) -> None:
    lay("0::/elsewhere/b\n", {"cpu.max": "50000 100000"}, V2, shows="/docker/abc")
    assert cgroup.cores() == 0.5
    lay("0::/\n", {"cpu.max": "50000 100000"}, V2, shows="/../..")
    assert cgroup.cores() == 0.5


def test_in_a_namespace_without_a_mount_of_its_own_the_process_is_looked_for(lay: Lay) -> None:
    """As in bubblewrap: the list says ``/``, and the mount shows the tree from two levels above us."""
    files = {"a/cpu.max": "50000 100000", "a/b/cgroup.procs": f"1\n{os.getpid()}", "c/d/cpu.max": "1000 100000"}
    lay("0::/\n", files | {"c/d/cgroup.procs": f"1{os.getpid()}"}, V2, shows="/../..")
    assert cgroup.cores() == 0.5
    (cgroup.ROOT / "the mount" / "a" / "b" / "e").mkdir()
    (cgroup.ROOT / "the mount" / "a" / "b" / "e" / "cgroup.procs").write_text(str(os.getpid()))
    cgroup.MEMBERSHIP.write_text("0::/e\n")
    assert [folder.name for folder in cgroup.folders("cpu")] == ["e", "b", "a", "the mount"]


def test_in_a_hybrid_layout_each_controller_is_read_where_it_is(lay: Lay) -> None:
    files = {
        "cpu,cpuacct/a/cpu.cfs_quota_us": "120000",
        "unified/a/memory.max": "1000",
        "unified/a/memory.current": "0",
    }
    lay("3:cpu,cpuacct:/a\n1:name=systemd:/x\n0::/a\n", files, CPU, HYBRID)
    assert cgroup.cores() == 1.2  # the period that is not written is the kernel's default
    assert cgroup.memory() == (1000, 1000)


def test_cached_files_of_a_group_count_as_free(lay: Lay) -> None:
    stat = "anon 300\nfile 500\ninactive_file 350\nactive_file 150\nshmem 20"
    lay("0::/\n", {"memory.max": "1000", "memory.current": "900", "memory.stat": stat})
    assert cgroup.memory() == (1000, 600)


def test_version_1_sums_over_the_groups_inside(lay: Lay) -> None:
    stat = "cache 5\ninactive_file 1\nactive_file 2\ntotal_inactive_file 100\ntotal_active_file 50"
    files = {"limit_in_bytes": "1000", "usage_in_bytes": "900", "stat": stat}
    lay("4:memory:/a\n", {f"memory/a/memory.{name}": text for name, text in files.items()})
    assert cgroup.memory() == (1000, 250)


def test_version_1_gives_the_limit_of_invisible_groups(lay: Lay) -> None:
    stat = "cache 5\nhierarchical_memory_limit 700\nhierarchical_memsw_limit 9223372036854771712"
    files = {"limit_in_bytes": "9223372036854771712", "usage_in_bytes": "100", "stat": stat}
    lay("4:memory:/a\n", {f"memory/memory.{name}": text for name, text in files.items()}, MEMORY, shows="/a")
    assert cgroup.memory() == (700, None)
    limit = cgroup.memory_limit()
    assert limit is not None and "above" in limit.where


def test_the_tightest_group_on_the_way_up_decides(lay: Lay) -> None:
    groups = {"a/b": ("max", "700"), "a": ("2000", "1500"), ".": ("3000", "2900")}
    files = {f"{group}/memory.max": limit for group, (limit, _) in groups.items()}
    files |= {f"{group}/memory.current": used for group, (_, used) in groups.items()}
    mount = lay("0::/a/b\n", files | {"a/b/cpu.max": "400000 100000", "a/cpu.max": "150000 100000"})
    assert cgroup.memory() == (2000, 100)
    limit, quota = cgroup.memory_limit(), cgroup.quota()
    assert limit is not None and limit.where == "memory.max of the control group /a"
    assert quota is not None and (quota.cores, quota.folder) == (1.5, mount / "a")
    assert quota.where == "cpu.max of the control group /a"


def test_the_tightest_limit_on_tasks_is_named(lay: Lay) -> None:
    lay("0::/a/b\n", {"a/b/pids.max": "max", "a/pids.max": "64", "pids.max": "900"})
    assert cgroup.tasks() == (64, "pids.max of the control group /a")
    lay("0::/a/b\n", {"a/pids.max": "max", "pids.max": "max"})
    assert cgroup.tasks() is None


def test_the_name_of_a_group_is_short_and_printable(lay: Lay) -> None:
    path = f"kubepods.slice/kubepods-burstable.slice/pod\x1b[31m/{'ab' * 32}"
    lay(f"0::/{path}\n", {f"{path}/cpu.max": "50000 100000"})
    quota = cgroup.quota()
    assert quota is not None and quota.cores == 0.5
    assert "\x1b" not in quota.where and len(quota.where) < 90
    assert "of the control group …/abab" in quota.where


def test_memory_high_applies_if_it_is_lower_than_the_limit(lay: Lay) -> None:
    """Above it, the kernel reclaims pages and slows the group down."""
    lay("0::/\n", {"memory.max": "1000", "memory.high": "800", "memory.current": "300"})
    assert cgroup.memory() == (800, 500)
    limit = cgroup.memory_limit()
    assert limit is not None and limit.where == "memory.high of the control group /"


def test_a_group_over_its_limit_has_nothing_free(lay: Lay) -> None:
    lay("0::/\n", {"memory.max": "1000", "memory.current": "1200"})
    assert cgroup.memory() == (1000, 0)


def test_a_limit_of_nothing_is_a_limit(lay: Lay) -> None:
    lay("0::/\n", {"memory.max": "0", "memory.current": "0"})
    assert cgroup.memory() == (0, 0)


@pytest.mark.parametrize(
    ("quota", "period", "cores"),
    [("200000", "100000", 2.0), ("50000", "100000", 0.5), ("1000", "100000", 0.01), ("3000", "2000", 1.5)],
)
def test_a_quota_is_of_its_period_in_both_versions(lay: Lay, quota: str, period: str, cores: float) -> None:
    lay("1:cpu,cpuacct:/\n", {"cpu,cpuacct/cpu.cfs_quota_us": quota, "cpu,cpuacct/cpu.cfs_period_us": period})
    assert cgroup.cores() == cores
    lay("0::/a\n", {"a/cpu.max": f"{quota} {period}"})
    assert cgroup.cores() == cores


@pytest.mark.parametrize(
    ("memory", "cpu_max"),
    [("max", "max 100000"), ("9223372036854771712", "-1 100000"), ("", ""), ("x", "x y"), ("max", "0 0")],
)
def test_no_limit_is_none(lay: Lay, memory: str, cpu_max: str) -> None:
    lay("0::/\n", {"memory.max": memory, "memory.current": "1", "cpu.max": cpu_max})
    assert (cgroup.memory(), cgroup.cores(), cgroup.memory_limit()) == ((None, None), None, None)


@pytest.mark.parametrize(
    ("stat", "found"),
    [
        ("usage_usec 9\nnr_periods 50\nnr_throttled 20\nthrottled_usec 1500000", (50, 20, 1.5)),
        ("nr_periods 50\nnr_throttled 20\nthrottled_time 1500000000\nnr_bursts 0", (50, 20, 1.5)),
        ("nr_periods 0\nnr_throttled 0\nthrottled_usec 0", (0, 0, 0.0)),
        ("usage_usec 9", None),  # the controller is not switched on here
        (None, None),
    ],
)
def test_throttled_periods_are_counted_by_the_group_with_the_quota(
    lay: Lay, stat: str | None, found: tuple[int, int, float] | None
) -> None:
    lay("0::/a/b\n", {"a/cpu.max": "50000 100000"} | ({} if stat is None else {"a/cpu.stat": stat}))
    quota = cgroup.quota()
    assert quota is not None and quota.throttled() == found


def test_time_stopped_by_an_invisible_quota_is_counted_by_our_own_group(lay: Lay) -> None:
    lay("0::/a\n", {"a/cpu.stat.local": "throttled_usec 1500000", "cpu.stat.local": "throttled_usec 9"})
    assert cgroup.held_s() == 1.5
    lay("0::/b\n", {})
    assert cgroup.held_s() is None


def test_of_two_mounts_at_one_place_the_last_counts(lay: Lay) -> None:
    lay("0::/\n", {"cpu.max": "50000 100000"}, V2.replace("{shows}", "/../.."), V2)
    assert cgroup.cores() == 0.5 and len(cgroup.folders("cpu")) == 1


@pytest.mark.parametrize(
    ("text", "cpus"),
    [("0-3,8", {0, 1, 2, 3, 8}), ("5", {5}), ("", None), ("3-1", None), ("0-99999999999", None), ("a", None)],
)
def test_cpusets_are_lists_of_ranges(lay: Lay, text: str, cpus: set[int] | None) -> None:
    lay("0::/a\n", {"a/cpuset.cpus.effective": text})
    assert cgroup.cpus() == cpus


def test_cpusets_of_version_1_have_the_name_of_version_1(lay: Lay) -> None:
    cpuset = "33 31 0:31 {shows} {mount}/cpuset rw - cgroup cgroup rw,cpuset"
    lay("3:cpuset:/a\n", {"cpuset/a/cpuset.effective_cpus": "1", "cpuset/a/cpuset.cpus": "0-1"}, cpuset)
    assert cgroup.cpus() == {1}


def test_the_cpu_has_no_more_memory_than_its_group(lay: Lay) -> None:
    lay("0::/\n", {"memory.max": str(2**20), "memory.current": str(2**19)})
    (device,) = cpu.find()
    assert (device.memory_bytes, device.free_bytes) == (2**20, 2**19)
    assert device.memory_limit == "memory.max of the control group /"
    assert any("memory.max of the control group / allows 1.00 MiB of" in text for text in device.limits)


def test_a_group_larger_than_the_machine_changes_nothing(lay: Lay) -> None:
    lay("0::/\n", {"memory.max": str(2**60), "memory.current": "0", "cpu.max": "100000000 1000"})
    (device,) = cpu.find()
    assert device.free_bytes < device.memory_bytes < 2**60
    assert (device.memory_limit, device.quota, allowance.find().quota) == (None, None, None)
