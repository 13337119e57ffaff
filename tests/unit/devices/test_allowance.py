"""What this process may use of the machine, under the tightest of its limits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from profiler.devices import allowance, base, cgroup, cpu
from profiler.devices.cgroup import MemoryLimit, Quota
from profiler.units import GIB

Machine = Callable[..., None]
V1 = Path("/sys/fs/cgroup/cpu")
ASK = """
import json, os, sys
cpus = json.loads(sys.argv[1])
if cpus:
    os.sched_setaffinity(0, cpus)
from profiler.devices import allowance
from profiler.devices.cpu import find
found, (device,) = allowance.find(), find()
print(json.dumps([found.cpus, found.cores, found.threads, found.confined is not None, list(device.limits)]))
"""


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A machine of so many CPUs, of which this process may use some; ``smt`` hardware threads make a core."""

    def make(cpus: int, usable: set[int] | None = None, smt: int = 1, quota: float | None = None) -> None:
        for number in range(cpus):
            folder = tmp_path / f"cpu{number}" / "topology"
            folder.mkdir(parents=True, exist_ok=True)
            first = number - number % smt
            (folder / "core_cpus_list").write_text(f"{first}-{first + smt - 1}\n")
        made = None if quota is None else Quota(quota, 0.1, "cpu.max of the control group /a", tmp_path)
        monkeypatch.setattr(allowance, "CPUS", tmp_path)
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: usable or set(range(cpus)))
        monkeypatch.setattr(os, "sysconf", lambda name: cpus)
        monkeypatch.setattr(cgroup, "quota", lambda: made)
        monkeypatch.setattr(cgroup, "cpus", lambda: None)
        monkeypatch.setattr(cgroup, "memory_limit", lambda: None)

    return make


@pytest.mark.parametrize(
    ("quota", "threads"),
    [
        (0.01, 1),
        (0.5, 1),
        (1.0, 1),
        (1.25, 1),
        (1.5, 2),
        (2.0, 2),
        (2.4, 2),
        (3.9, 4),
        (7.5, 8),
        (64.0, 8),
        (None, 8),
    ],
)
def test_threads_are_the_whole_number_nearest_to_the_quota(
    machine: Machine, quota: float | None, threads: int
) -> None:
    machine(8, quota=quota)
    found = allowance.find({})
    assert found.threads == threads
    assert found.cores == min(quota or 8, 8)


def test_hardware_threads_of_one_core_count_once_as_torch_counts_them(machine: Machine) -> None:
    machine(8, smt=2)
    assert (allowance.find({}).cpus, allowance.find({}).threads) == (8, 4)
    machine(8, usable={0, 1}, smt=2)
    assert allowance.find({}).threads == 1
    machine(8, usable={0, 2}, smt=2)
    assert allowance.find({}).threads == 2


def test_two_cores_differ_from_two_hardware_threads_of_one(machine: Machine) -> None:
    machine(8, usable={0, 1}, smt=2)
    one = allowance.find({}).confined
    machine(8, usable={0, 2}, smt=2)
    assert one is not None and one != allowance.find({}).confined
    machine(8, smt=2)
    assert allowance.find({}).confined is None


def test_a_cpuset_and_an_affinity_both_apply(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(8, usable={0, 1, 2})
    monkeypatch.setattr(cgroup, "cpus", lambda: frozenset({2, 3}))
    assert (allowance.find({}).cpus, allowance.find({}).threads) == (1, 1)
    monkeypatch.setattr(cgroup, "cpus", lambda: frozenset({6}))  # of another process: ours runs somewhere
    assert allowance.find({}).cpus == 3


@pytest.mark.parametrize(
    ("settings", "threads", "named"),
    [
        ({}, 4, None),
        ({"OMP_NUM_THREADS": "3"}, 3, "OMP_NUM_THREADS"),
        ({"OMP_NUM_THREADS": " 2,1 "}, 2, "OMP_NUM_THREADS"),  # a level of nesting each
        ({"OMP_NUM_THREADS": "16"}, 4, None),  # torch takes no more than there are
        ({"MKL_NUM_THREADS": "3", "OMP_NUM_THREADS": "2"}, 3, "MKL_NUM_THREADS"),
        ({"MKL_NUM_THREADS": "0", "OMP_NUM_THREADS": "2"}, 2, "OMP_NUM_THREADS"),
        ({"OMP_NUM_THREADS": "3", "OMP_THREAD_LIMIT": "1"}, 1, "OMP_THREAD_LIMIT"),
        *(({"OMP_NUM_THREADS": text}, 4, None) for text in ("", "0", "-1", "abc", "²", "1" * 5000)),
    ],
)
def test_settings_apply_as_torch_reads_them(
    machine: Machine, settings: dict[str, str], threads: int, named: str | None
) -> None:
    machine(4)
    found = allowance.find(settings)
    assert (found.threads, found.threads_from) == (threads, named)


def test_the_tightest_of_quota_and_setting_decides(machine: Machine) -> None:
    machine(8, quota=2.0)
    assert allowance.find({"OMP_NUM_THREADS": "4"}).threads == 2
    assert allowance.find({"OMP_NUM_THREADS": "1"}).threads == 1


def test_every_limit_has_a_message(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(8, usable={0, 1}, quota=0.5)
    monkeypatch.setattr(cgroup, "memory_limit", lambda: MemoryLimit(GIB, "memory.max of the control group /a"))
    monkeypatch.setattr(allowance, "_meminfo", lambda field: 8 * GIB)
    assert allowance.find({}).reasons == (
        "CPU affinity or a cpuset allows 2 of 8 cores",
        "a CPU quota allows 0.5 of 2 cores (cpu.max of the control group /a) and throttles 1 thread",
        "memory.max of the control group /a allows 1.00 GiB of 8.00 GiB of memory",
    )
    machine(8)
    assert allowance.find({}).reasons == ()


def test_a_limit_of_the_process_bounds_memory_and_one_that_linux_ignores_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limits = {"RLIMIT_AS": 20 * GIB, "RLIMIT_DATA": GIB, "RLIMIT_RSS": 1}
    numbers = {getattr(allowance.resource, name): size for name, size in limits.items()}
    monkeypatch.setattr(allowance.resource, "getrlimit", lambda number: (numbers[number], -1))
    monkeypatch.setattr(cgroup, "memory", lambda: (None, None))
    monkeypatch.setattr(cgroup, "memory_limit", lambda: None)
    monkeypatch.setattr(allowance, "_meminfo", lambda field: 8 * GIB)
    assert allowance.memory_limit() == MemoryLimit(GIB, "RLIMIT_DATA (ulimit -d)")
    assert allowance.memory(allowance.memory_limit()) == (GIB, GIB)
    monkeypatch.setattr(cgroup, "memory_limit", lambda: MemoryLimit(GIB // 2, "memory.max of the control group /"))
    monkeypatch.setattr(cgroup, "memory", lambda: (GIB // 2, GIB // 4))
    assert allowance.memory(allowance.memory_limit()) == (GIB // 2, GIB // 4)


def test_a_limit_of_address_space_leaves_less_memory_than_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """About 3 GiB of a worker's address space are never in memory, so 3.8 GiB cannot hold a model of 1 GiB."""
    sizes = {allowance.resource.RLIMIT_AS: 4 * GIB, allowance.resource.RLIMIT_DATA: -1}
    monkeypatch.setattr(allowance.resource, "getrlimit", lambda number: (sizes[number], -1))
    monkeypatch.setattr(allowance.os, "sched_getaffinity", lambda pid: {0, 1})
    monkeypatch.setattr(cgroup, "memory_limit", lambda: None)
    limit = allowance.memory_limit()
    assert limit is not None and limit.nbytes == GIB - 2 * 72 * 2**20
    assert "address space" in limit.where
    sizes[allowance.resource.RLIMIT_AS] = 2 * GIB
    limit = allowance.memory_limit()
    assert limit is not None and limit.nbytes == 0


@pytest.mark.parametrize(
    ("allowed", "nodes", "total", "free"),
    [("0", "node 0", 3 * GIB, 2 * GIB), ("0,2", "nodes 0, 2", 7 * GIB, 5 * GIB), ("0-1023", None, 8 * GIB, 6 * GIB)],
)
def test_a_cpuset_of_memory_nodes_bounds_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, allowed: str, nodes: str | None, total: int, free: int
) -> None:
    kib = GIB // 1024
    for node, size in ((0, 3), (1, 1), (2, 4)):
        folder = tmp_path / f"node{node}"
        folder.mkdir()
        lines = [("MemTotal", size), ("MemFree", size - 2), ("Active(file)", 1), ("Inactive(file)", 0)]
        text = "\n".join(f"Node {node} {name}: {gib * kib} kB" for name, gib in lines)
        (folder / "meminfo").write_text(text)
    (tmp_path / "status").write_text(f"Cpus_allowed_list:\t0-1\nMems_allowed_list:\t{allowed}\n")
    monkeypatch.setattr(allowance, "NODES", tmp_path)
    monkeypatch.setattr(allowance, "STATUS", tmp_path / "status")
    monkeypatch.setattr(cgroup, "memory", lambda: (None, None))
    monkeypatch.setattr(cgroup, "memory_limit", lambda: None)
    monkeypatch.setattr(allowance, "_meminfo", lambda field: {"MemTotal": 8 * GIB, "MemAvailable": 6 * GIB}[field])
    assert allowance.memory(allowance.memory_limit()) == (total, free)
    limit = allowance.memory_limit()
    assert (None if limit is None else limit.where) == (nodes and f"a cpuset with memory of {nodes}")


def ask(*before: str, cpus: list[int] | None = None) -> list[object]:
    """The allowance that a process finds if it is started by a command, or with an affinity."""
    command = [*before, sys.executable, "-c", ASK, json.dumps(cpus or [])]
    environ = {name: value for name, value in os.environ.items() if not name.endswith("NUM_THREADS")}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environ)
    found: list[object] = json.loads(done.stdout)
    return found


def test_a_process_with_an_affinity_of_one_cpu_has_one_core() -> None:
    usable = sorted(allowance.usable_cpus())
    if len(usable) < 2:
        pytest.skip("this process may run on one CPU only")
    cpus, cores, threads, confined, limits = ask(cpus=usable[:1])
    assert (cpus, threads, confined) == (1, 1, True)
    assert isinstance(cores, int | float) and cores <= 1
    assert isinstance(limits, list) and "CPU affinity or a cpuset allows 1 of" in limits[0]


@pytest.fixture
def group() -> Iterator[Callable[[int], Path]]:
    """Makes a real group of cgroup v1 with a quota in microseconds of a period of 100 ms."""
    made: list[Path] = []

    def make(quota_us: int) -> Path:
        folder = V1 / f"profile-test-{os.getpid()}"
        try:
            folder.mkdir()
            made.append(folder)
            (folder / "cpu.cfs_quota_us").write_text(str(quota_us))
        except OSError as error:
            pytest.skip(f"no control group with a CPU quota can be made here: {error.strerror}")
        return folder

    yield make
    for folder in made:
        with suppress(OSError):
            folder.rmdir()


def test_a_real_quota_is_found_by_a_process_under_it(group: Callable[[int], Path]) -> None:
    if len(allowance.usable_cpus()) < 2:
        pytest.skip("this process may run on one CPU only")
    folder = group(50_000)
    enter = f'echo $$ > {folder}/cgroup.procs && exec "$@"'
    _, cores, threads, _, limits = ask("sh", "-c", enter, "sh")
    assert (cores, threads) == (0.5, 1)
    assert isinstance(limits, list) and f"cpu.cfs_quota_us of the control group /{folder.name}" in limits[-1]


def test_counters_of_the_quota_are_part_of_the_pressure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cpu.stat").write_text("nr_periods 50\nnr_throttled 20\nthrottled_usec 1500000\n")
    monkeypatch.setattr(cgroup, "quota", lambda: Quota(0.5, 0.1, "here", tmp_path))
    found = base.read()
    assert (found.period_s, found.periods, found.throttled, found.throttled_s) == (0.1, 50, 20, 1.5)
    monkeypatch.setattr(cgroup, "quota", lambda: None)
    assert base.read().periods is None


def test_the_device_is_what_the_process_may_use(machine: Machine) -> None:
    machine(8, usable={0, 1, 2, 3}, quota=1.5)
    (device,) = cpu.find()
    assert (device.cores, device.usable_cores, device.threads, device.installed) == (4, 1.5, 2, 8)
    assert device.duty_cycle == 0.75  # two threads use 1.5 cores' time up after three quarters of each period
