from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

from profiler.devices.allowance import Allowance
from profiler.devices.base import DeviceInfo
from profiler.devices.cgroup import MemoryLimit
from profiler.results import environment
from profiler.results.environment import HEAP, environment_key, settings, snapshot
from profiler.run.process import worker_environment

CPU = DeviceInfo("cpu", "cpu", "Example CPU", 64, 32, "fp32", cores=8, features=("avx2",))
GPU = DeviceInfo("cuda:0", "cuda", "Example GPU", 64, 32, "bf16", uuid="GPU-1234-5678", driver="570.1")


def test_a_snapshot_holds_no_variable_that_is_not_named(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "canary-token")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    content = snapshot(CPU)
    assert content["settings"]["OMP_NUM_THREADS"] == "3"
    assert "canary" not in json.dumps(content)


def test_every_setting_that_reaches_a_worker_and_changes_what_transformers_runs_is_recorded(monkeypatch):
    for name in ("TRANSFORMERS_SDPA_FORCE_GQA", "TRANSFORMERS_DISABLE_DEEPGEMM_LINEAR"):
        monkeypatch.setenv(name, "1")
        assert worker_environment(os.environ)[name] == snapshot(CPU)["settings"][name] == "1"


@pytest.mark.parametrize("name", ["peft", "gptqmodel", "kernels", "causal-conv1d"])
def test_an_optional_package_that_changes_loading_changes_the_key_and_its_absence_does_not(name):
    content = snapshot(CPU)
    absent = copy.deepcopy(content) | {"libraries": {n: v for n, v in content["libraries"].items() if v is not None}}
    assert environment_key(absent) == environment_key(content)
    content["libraries"][name] = "1.2.3"
    assert environment_key(content) != environment_key(absent)


def test_a_token_in_a_setting_that_is_recorded_is_not(monkeypatch):
    canary = "hf_" + "C4nary" * 6
    monkeypatch.setenv("LD_PRELOAD", f"/lib/a.so?token={canary}")
    content = snapshot(CPU)
    assert "/lib/a.so" in content["settings"]["LD_PRELOAD"]
    assert canary not in json.dumps(content)


def test_a_snapshot_is_this_list_and_nothing_else():
    """An allow-list: whoever adds to it says so here."""
    content = snapshot(GPU)
    assert {name: sorted(part) if isinstance(part, dict) else None for name, part in content.items()} == {
        "cpu": ["cores", "cores_installed", "governor", "title"],
        "memory_bytes": None,
        "swap_bytes": None,
        "virtual": None,
        "limits": ["cores", "cpus", "memory_bytes", "physical", "threads"],
        "device": [
            "driver", "features", "free_bytes", "kind", "memory_bytes", "name", "power_limit_w", "title", "uuid_hash",
        ],
        "system": None,
        "python": None,
        "libraries": sorted(environment.LIBRARIES),
        "settings": sorted(content["settings"]),
        "source": content["source"] and ["changed", "commit"],
    }  # fmt: skip


def test_a_machine_without_a_clock_governor_says_unknown(monkeypatch, tmp_path):
    monkeypatch.setattr(environment, "GOVERNOR", tmp_path / "absent")
    assert snapshot(CPU)["cpu"]["governor"] is None


@pytest.mark.parametrize(("flags", "virtual"), [("fpu hypervisor avx2", True), ("fpu avx2", False), (None, None)])
def test_a_virtual_machine_is_distinguished_from_a_physical_one(monkeypatch, flags, virtual):
    text = "processor : 0\n" + (f"flags\t\t: {flags}\n" if flags else "")
    monkeypatch.setattr(environment, "_read", lambda path: text)
    assert environment._is_virtual() is virtual


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
    monkeypatch.setattr(environment.nvml, "power_limit_w", lambda uuid: None)
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
        lambda s: s["limits"].update(cpus=[1, 2**25]),
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
        lambda s: s["limits"].update(threads=8, physical=8, cpus=None),  # recorded since, of the same machine
        lambda s: s.update(source={"commit": "abc", "changed": True}),
        lambda s: s.update(memory_bytes=1),
    ],
)
def test_what_does_not_change_speed_keeps_stored_rows_valid(environment, change):
    changed = copy.deepcopy(environment)
    change(changed)
    assert environment_key(changed) == environment_key(environment)


def test_limits_are_those_of_this_process(monkeypatch):
    limit = MemoryLimit(2**31, "memory.max of the control group /")
    found = Allowance(1, 2, 1, 1, None, None, (1, 2**25), limit)
    monkeypatch.setattr(environment.allowance, "find", lambda: found)
    monkeypatch.setattr(environment.cgroup, "cores", lambda: 1.5)
    expected = {"memory_bytes": 2**31, "cores": 1.5, "threads": 1, "physical": 1, "cpus": [1, 2**25]}
    assert snapshot(CPU)["limits"] == expected


def test_every_library_that_replaces_kernels_is_recorded():
    names = ("triton", "kernels", "flash-attn", "flash-linear-attention", "fla-core", "causal-conv1d")
    assert set(names) <= snapshot(CPU)["libraries"].keys()


@pytest.mark.parametrize(
    "name",
    [
        *("OMP_NUM_THREADS", "DNNL_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS", "ATEN_CPU_CAPABILITY", "GLIBC_TUNABLES"),
        *("LD_PRELOAD", "LD_LIBRARY_PATH", "MALLOC_ARENA_MAX", "TORCHINDUCTOR_FREEZING", "PYTHONMALLOC"),
        *("CUBLAS_WORKSPACE_CONFIG", "CUDA_LAUNCH_BLOCKING", "BNB_CUDA_VERSION", "TRITON_PTXAS_PATH"),
    ],
)
def test_a_setting_that_reaches_the_worker_and_changes_speed_makes_rows_stale(monkeypatch, name):
    monkeypatch.delenv(name, raising=False)
    before = environment_key(snapshot(CPU))
    monkeypatch.setenv(name, "2")
    content = snapshot(CPU)
    assert worker_environment(dict(os.environ))[name] == content["settings"][name] == "2"
    assert environment_key(content) != before


@pytest.mark.parametrize(
    "name", ["CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "CUDA_HOME", "TRITON_CACHE_DIR", "CUDA_API_KEY", "HF_HOME"]
)
def test_places_and_secrets_are_no_settings(name):
    assert settings({name: "canary"}) == HEAP


def test_long_settings_are_truncated_but_still_distinguished():
    one, two = (settings({"LD_PRELOAD": "/lib/x" * 1000 + end})["LD_PRELOAD"] for end in ("a", "b"))
    assert one != two and len(one) < 250


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with a commit, whose settings and attributes name programs for every occasion."""
    root = tmp_path / "checkout"
    (root / "profiler").mkdir(parents=True)
    (root / "profiler" / "units.py").write_text("MIB = 1\n")
    (root / "profiler" / "link.py").symlink_to("units.py")
    (root / "README.md").write_text("text\n")
    for words in (
        ("init", "-q"),
        ("add", "-A"),
        ("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "x"),
        *(
            ("config", name, f"touch {tmp_path}/ran")
            for name in ("filter.x.clean", "filter.x.process", "core.fsmonitor")
        ),
    ):
        subprocess.run(["git", "-C", root, *words], check=True, capture_output=True)
    (root / ".gitattributes").write_text("* filter=x\n")
    return root


def test_the_state_of_a_checkout_is_that_of_the_code_that_runs(checkout: Path) -> None:
    found = environment._source(checkout)
    assert found is not None and len(found["commit"]) == 40
    assert found["changed"] is False
    (checkout / "README.md").write_text("no code\n")
    os.utime(checkout / "profiler" / "units.py", (1, 1))
    assert environment._source(checkout) == found
    (checkout / "profiler" / "units.py").write_text("MIB = 2\n")
    assert environment._source(checkout) == {**found, "changed": True}
    (checkout / "profiler" / "units.py").unlink()
    assert environment._source(checkout) == {**found, "changed": True}


def test_reading_the_state_of_a_checkout_runs_nothing_and_takes_no_lock(checkout: Path) -> None:
    """``git status`` runs the filters that a repository names, and if it is cut off leaves its index.lock."""
    (checkout / "profiler" / "units.py").write_text("MIB = 3\n")
    before = sorted(path.name for path in (checkout / ".git").iterdir())
    assert environment._source(checkout) is not None
    assert sorted(path.name for path in (checkout / ".git").iterdir()) == before
    assert not (checkout.parent / "ran").exists()
    subprocess.run(["git", "-C", checkout, "status"], capture_output=True, check=False)
    assert (checkout.parent / "ran").exists()  # the trap works


def test_a_checkout_that_git_cannot_describe_is_unknown(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(checkout))
    assert environment._source(checkout) == {"commit": None, "changed": None}
