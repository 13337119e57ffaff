from __future__ import annotations

import copy
import json
import subprocess
import sys
import types

import pytest

from profiler.devices.base import DeviceInfo
from profiler.results import environment
from profiler.results.environment import environment_key, limits, snapshot

CPU = DeviceInfo("cpu", "cpu", "Example CPU", 64, 32, "fp32", cores=8, features=("avx2",))
GPU = DeviceInfo("cuda:0", "cuda", "Example GPU", 64, 32, "bf16", uuid="GPU-1234-5678", driver="570.1")


def test_a_snapshot_holds_no_variable_that_is_not_named(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "canary-token")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    content = snapshot(CPU)
    assert content["settings"]["OMP_NUM_THREADS"] == "3"
    assert "canary" not in json.dumps(content)


def test_a_snapshot_names_the_torch_build_and_imports_no_torch():
    code = (
        "import sys, json; from profiler.devices.cpu import find; from profiler.results.environment import snapshot;"
        "libraries = snapshot(find()[0])['libraries'];"
        "print(json.dumps([libraries, [name for name in ('torch', 'numpy') if name in sys.modules]]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    libraries, imported = json.loads(done.stdout)
    assert imported == []
    assert "+" in libraries["torch"]
    assert libraries["llm-hwprofile"]


def test_the_uuid_of_a_card_is_only_kept_as_a_hash(monkeypatch):
    monkeypatch.setattr(environment, "_power_limit_w", lambda uuid: None)
    content = snapshot(GPU)
    assert "1234" not in json.dumps(content["device"])
    assert content["device"]["uuid_hash"]


def test_the_power_limit_is_what_nvml_enforces_in_watts(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml(lambda handle: 320_000))
    assert snapshot(GPU)["device"]["power_limit_w"] == 320.0


def test_a_board_without_a_power_limit_gives_unknown(monkeypatch):
    nvml = fake_nvml(None)

    def refuse(handle):
        raise nvml.NVMLError

    nvml.nvmlDeviceGetEnforcedPowerLimit = refuse
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    assert snapshot(GPU)["device"]["power_limit_w"] is None


def fake_nvml(limit):
    nvml = types.ModuleType("pynvml")
    nvml.NVMLError = type("NVMLError", (Exception,), {})
    nvml.nvmlInit = nvml.nvmlShutdown = lambda: None
    nvml.nvmlDeviceGetHandleByUUID = lambda uuid: uuid
    nvml.nvmlDeviceGetEnforcedPowerLimit = limit
    return nvml


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s["libraries"].update(torch="2.14.0+cpu"),
        lambda s: s["device"].update(driver="580.1"),
        lambda s: s["device"].update(power_limit_w=250.0),
        lambda s: s["settings"].update(OMP_NUM_THREADS="1"),
        lambda s: s["cpu"].update(cores=1),
        lambda s: s["limits"].update(cores=1.5),
        lambda s: s.update(system="Linux 7.0"),
    ],
)
def test_what_changes_speed_makes_stored_rows_stale(environment, change):
    changed = copy.deepcopy(environment)
    change(changed)
    assert environment_key(changed) != environment_key(environment)


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s["device"].update(free_bytes=1),
        lambda s: s["limits"].update(memory_bytes=2**30),
        lambda s: s.update(source={"commit": "abc", "changed": True}),
        lambda s: s.update(memory_bytes=1),
    ],
)
def test_what_does_not_change_speed_keeps_stored_rows_valid(environment, change):
    changed = copy.deepcopy(environment)
    change(changed)
    assert environment_key(changed) == environment_key(environment)


def test_limits_of_control_groups_version_2(tmp_path):
    (tmp_path / "memory.max").write_text("2147483648\n")
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    assert limits(tmp_path) == {"memory_bytes": 2**31, "cores": 1.5}


def test_limits_of_control_groups_version_1(tmp_path):
    for name, text in (
        ("memory/memory.limit_in_bytes", "1073741824"),
        ("cpu/cpu.cfs_quota_us", "200000"),
        ("cpu/cpu.cfs_period_us", "100000"),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert limits(tmp_path) == {"memory_bytes": 2**30, "cores": 2.0}


@pytest.mark.parametrize(("memory", "cpu"), [("max", "max 100000"), ("9223372036854771712", "-1 100000")])
def test_no_limit_is_none_in_both_versions(tmp_path, memory, cpu):
    (tmp_path / "memory.max").write_text(memory)
    (tmp_path / "cpu.max").write_text(cpu)
    assert limits(tmp_path) == {"memory_bytes": None, "cores": None}
    assert limits(tmp_path / "absent") == {"memory_bytes": None, "cores": None}
