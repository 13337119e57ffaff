"""Which device a name means, and which is the default."""

from __future__ import annotations

import builtins
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from profiler import cli, devices
from profiler.cost import rates
from profiler.devices import cgroup, cuda, target
from profiler.devices import nvml as nvml_module
from profiler.devices.cgroup import Quota
from profiler.errors import NotFound, ProfileError
from profiler.units import GIB


def test_accelerators_come_before_the_host() -> None:
    hosts = [module.KIND.is_host for module in devices.kinds()]
    assert hosts == sorted(hosts) and sum(hosts) == 1
    assert devices.names()[-1] == "cpu" and "cuda" in devices.names()


def test_the_first_gpu_is_the_default(nvml: Any, card: Any) -> None:
    nvml(card(title="NVIDIA GeForce RTX 3090", capability=(8, 6)), card(uuid="GPU-bbbb"))
    found = devices.find()
    assert (found.name, found.title, found.default_dtype) == ("cuda:0", "NVIDIA GeForce RTX 3090", "bf16")
    assert (found.memory_bytes, found.free_bytes) == (24 * GIB, 23 * GIB)
    assert (found.features, found.uuid, found.driver) == (("sm_86",), "GPU-aaaa", "580.10")


def test_without_a_gpu_the_cpu_is_the_default(nvml: Any) -> None:
    nvml()
    assert devices.find().name == "cpu"


def test_a_name_means_a_kind_or_one_device_of_it(nvml: Any, card: Any) -> None:
    nvml(card(), card(uuid="GPU-bbbb"))
    assert devices.find("cuda").name == "cuda:0"
    assert devices.find("cuda:1").uuid == "GPU-bbbb"
    assert devices.find("cpu").kind == "cpu"


@pytest.mark.parametrize("name", ["cuda:2", "cuda:", "cuda:x", "cuda:00"])
def test_an_unknown_gpu_lists_the_known_ones(nvml: Any, card: Any, name: str) -> None:
    nvml(card(), card(uuid="GPU-bbbb"))
    with pytest.raises(NotFound) as caught:
        devices.find(name)
    assert caught.value.hint == "Known: cuda:0, cuda:1."


@pytest.mark.parametrize("name", ["gpu", "tpu:0", "", "\x1b[31mcuda"])
def test_an_unknown_kind_is_one_clear_line(name: str) -> None:
    with pytest.raises(NotFound) as caught:
        devices.find(name)
    assert "unknown device" in caught.value.message
    assert "\x1b" not in caught.value.message


@pytest.mark.parametrize("ask", [devices.meter, devices.watcher])
def test_a_device_is_metered_and_watched_by_the_module_of_its_kind(ask: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, ask.__name__, lambda name: f"{ask.__name__} of {name}")
    assert ask("cuda:1") == f"{ask.__name__} of cuda:1"
    with pytest.raises(NotFound, match="unknown device"):
        ask("tpu:0")


def test_missing_cuda_says_why(nvml: Any, card: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    module = nvml(card())
    module.broken = True
    with pytest.raises(ProfileError, match=r"no cuda device here: .*version mismatch"):
        devices.find("cuda")
    assert devices.unavailable()["cuda"] == "no NVIDIA driver answers (Driver/library version mismatch)"
    assert devices.find().name == "cpu"
    module.broken = False
    monkeypatch.setattr(cuda, "torch_has_cuda", lambda: False)
    assert devices.find().name == "cpu"
    assert devices.unavailable()["cuda"] == "the installed torch is a build without CUDA"


def test_a_missing_library_is_a_reason_and_no_error(nvml: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "pynvml", raising=False)
    monkeypatch.setattr(nvml_module, "DRIVER", None)  # the loader finds a driver: it opens the program itself
    real = builtins.__import__

    def without(name: str, *arguments: Any) -> Any:
        if name == "pynvml":
            raise ImportError(name)
        return real(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without)
    assert cuda.find() == []
    assert cuda.unavailable() == "the Python package nvidia-ml-py is not installed"


def test_a_gpu_that_is_lost_is_a_reason_and_no_error(nvml: Any, card: Any) -> None:
    nvml(card()).lost = True
    assert cuda.find() == []
    assert cuda.unavailable() == "the NVIDIA driver reports: GPU is lost"


@pytest.mark.parametrize(
    ("visible", "uuids"),
    [
        ("1", ["GPU-bbbb"]),
        ("1,0", ["GPU-bbbb", "GPU-aaaa"]),
        ("GPU-b", ["GPU-bbbb"]),
        ("0,7,1", ["GPU-aaaa"]),  # as CUDA does: the first that is not there ends the list
        ("-1", []),
        ("", []),
        ("GPU-", []),  # ambiguous
        ("MIG-1", ["GPU-slice"]),
        ("MIG-1,MIG-2", ["GPU-slice"]),  # a process gets one slice
        ("MIG-1,0", ["GPU-slice"]),
        ("MIG-9,0", []),
        ("0,0", []),  # named twice: CUDA takes it for an empty list
        ("1,0,1", []),
        ("GPU-b,GPU-bbbb", []),
        ("GPU-b,0", ["GPU-bbbb"]),  # the first word says what all are
        ("1,GPU-a", ["GPU-bbbb"]),
        (" 1 , 0 ", ["GPU-bbbb", "GPU-aaaa"]),
        ("1,,0", ["GPU-bbbb"]),
        (",1", []),
        ("1gpu,0", ["GPU-bbbb", "GPU-aaaa"]),  # as strtoul reads it
        ("+1", ["GPU-bbbb"]),
        ("²", []),
        ("9" * 5000, []),
        ("NoDevFiles", []),
    ],
)
def test_only_visible_gpus_are_found_in_the_order_given(
    nvml: Any, card: Any, monkeypatch: pytest.MonkeyPatch, visible: str, uuids: list[str]
) -> None:
    module = nvml(card(), card(uuid="GPU-bbbb"))
    module.slices["MIG-1"] = card(uuid="GPU-slice", capability=None)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [device.uuid for device in cuda.find()] == uuids
    assert [device.name for device in cuda.find()] == [f"cuda:{index}" for index in range(len(uuids))]


@pytest.mark.parametrize(
    ("capability", "dtype"),
    [((8, 0), "bf16"), ((12, 0), "bf16"), ((7, 5), "fp16"), ((7, 0), "fp16"), ((6, 1), "fp32"), (None, "bf16")],
)
def test_the_default_dtype_is_one_the_card_has_units_for(
    nvml: Any, card: Any, capability: tuple[int, int] | None, dtype: str
) -> None:
    nvml(card(capability=capability))
    assert devices.find().default_dtype == dtype
    assert devices.find().unsupported_dtypes == (() if dtype == "bf16" else ("bf16",))


def test_cards_are_numbered_as_the_workers_will_number_them(
    nvml: Any, card: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvml(card())
    monkeypatch.delenv("CUDA_DEVICE_ORDER")
    cuda.find()
    assert os.environ["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "FASTEST_FIRST")
    cuda.find()
    assert os.environ["CUDA_DEVICE_ORDER"] == "FASTEST_FIRST"


def test_a_cuda_build_of_torch_is_recognized_by_its_files(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "torch"
    (package / "lib").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    assert not cuda.torch_has_cuda()
    (package / "lib" / "libtorch_cuda.so").write_text("")
    assert cuda.torch_has_cuda()


def test_a_card_that_is_lost_hides_no_other(nvml: Any, card: Any) -> None:
    nvml(card(fallen=True), card(uuid="GPU-bbbb"))
    assert [device.uuid for device in cuda.find()] == ["GPU-bbbb"]
    nvml(card(fallen=True))
    assert cuda.unavailable() == "the NVIDIA driver reports: GPU is lost"


@pytest.mark.parametrize(
    ("visible", "words"),
    [
        ("", "CUDA_VISIBLE_DEVICES is empty, which hides every GPU"),
        ("-1", "CUDA_VISIBLE_DEVICES=-1 shows none of 2 GPUs"),
        ("1,1", "shows none of 2 GPUs: it names one twice, which CUDA takes for an empty list"),
        ("\x1b[31m", "shows none of 2 GPUs"),
    ],
)
def test_a_list_that_hides_every_gpu_is_the_reason(
    nvml: Any, card: Any, monkeypatch: pytest.MonkeyPatch, visible: str, words: str
) -> None:
    nvml(card(), card(uuid="GPU-bbbb"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    reason = devices.unavailable()["cuda"]
    assert words in reason and "\x1b" not in reason


def test_a_container_that_was_given_no_gpu_says_so(nvml: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    nvml()
    monkeypatch.setenv("NVIDIA_VISIBLE_DEVICES", "void")
    assert devices.unavailable()["cuda"] == "NVML finds no GPU; NVIDIA_VISIBLE_DEVICES=void gave this container none"


def test_a_lost_card_does_not_change_the_numbers_of_others(
    nvml: Any, card: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvml(card(fallen=True), card(uuid="GPU-bbbb"), card(uuid="GPU-cccc"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,1")
    assert [device.uuid for device in cuda.find()] == ["GPU-cccc", "GPU-bbbb"]


H100 = {"title": "NVIDIA H100 80GB HBM3", "gib": 80, "capability": (9, 0), "lanes": 132 * 128}
A30 = {"title": "NVIDIA A30", "gib": 24, "capability": (8, 0), "lanes": 56 * 64}


@pytest.mark.parametrize(
    ("whole", "profile", "gib", "multiprocessors", "memory", "compute"),
    [
        (H100, "1g.10gb", 10, 16, 1 / 8, 16 / 132),
        (H100, "1g.20gb", 20, 16, 2 / 8, 16 / 132),  # another memory controller with the same multiprocessors
        (H100, "3g.40gb", 39, 60, 4 / 8, 60 / 132),
        (H100, "1c.3g.40gb", 39, 16, 4 / 8, 16 / 132),
        (H100, "7g.80gb", 79, 132, 1.0, 1.0),
        (H100, "2g.20gb", 20, None, 2 / 8, None),
        (A30, "1g.6gb", 6, 14, 2 / 8, 14 / 56),
    ],
)
def test_a_slice_is_predicted_by_its_share_of_the_card(
    nvml: Any,
    card: Any,
    monkeypatch: pytest.MonkeyPatch,
    whole: dict[str, Any],
    profile: str,
    gib: int,
    multiprocessors: int | None,
    memory: float,
    compute: float | None,
) -> None:
    parent = card(**whole, split=True)
    module = nvml(parent, card(uuid="GPU-bbbb"))
    title = f"{parent.title} MIG {profile}"
    module.slices["MIG-1"] = card(
        title, "MIG-1", gib, capability=None, multiprocessors=multiprocessors, whole=parent, used=0
    )
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-1")
    found = devices.find()
    assert (found.uuid, found.title, found.memory_bytes) == ("MIG-1", title, gib * GIB)
    assert found.features == (f"sm_{parent.capability[0]}{parent.capability[1]}",)
    assert found.slice is not None
    assert (found.slice.profile, found.slice.memory_share, found.slice.compute_share) == (profile, memory, compute)
    on, all_of_it = target.of(found), target.find("H100 SXM" if whole is H100 else "A30")
    assert on.title == f"{all_of_it.name} MIG {profile}"
    assert on.bandwidth_bytes_s == all_of_it.bandwidth_bytes_s * memory
    assert on.flops["bf16"] == all_of_it.flops["bf16"] * (compute or memory)
    assert (on.memory_bytes, on.tdp_w, on.local) == (gib * GIB, None, "cuda:0")
    assert on.guessed  # nobody measured a slice for us, and its maker states no figures of one


def test_a_slice_is_found_by_the_start_of_its_uuid_and_measured_by_the_whole(
    nvml: Any, card: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = card(**H100, split=True)
    module = nvml(parent)
    for uuid in ("MIG-aa11", "MIG-bb22"):
        module.slices[uuid] = card(f"{parent.title} MIG 1g.10gb", uuid, 10, capability=None, whole=parent)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-b")
    assert devices.find().uuid == nvml_module.visible_slice(0) == "MIG-bb22"
    assert nvml_module.visible_slice(1) is None
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-")
    assert cuda.find() == []
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    with pytest.raises(ProfileError) as caught:
        devices.find()
    assert "CUDA_VISIBLE_DEVICES=MIG-aa11 or CUDA_VISIBLE_DEVICES=MIG-bb22" in (caught.value.hint or "")
    assert nvml_module.visible_slice(0) is None


def test_devices_lists_the_cpu_next_to_a_split_card(nvml: Any, card: Any) -> None:
    nvml(card(**H100, split=True))
    result = CliRunner().invoke(cli.main, ["devices", "-o", "json"])
    assert [row["device"] for row in json.loads(result.stdout)] == ["cpu"]
    assert "no cuda device: NVIDIA H100 80GB HBM3 is split into MIG slices" in result.stderr


def test_a_quota_below_one_core_slows_what_python_starts_on_a_gpu(
    nvml: Any, card: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvml(card())
    free = devices.find()
    slow = Quota(0.5, 0.1, "cpu.max of the control group /", Path("/"))
    monkeypatch.setattr(cgroup, "quota", lambda: slow)
    found = devices.find()
    assert (found.duty_cycle, free.duty_cycle) == (0.5, 1.0)
    assert "0.5 of" in found.limits[0]
    assert target.of(found).bandwidth_bytes_s == target.of(free).bandwidth_bytes_s
    one, half = (rates.rates(target.of(each), "transformers", "bf16") for each in (free, found))
    assert half.launches.call_s == 2 * one.launches.call_s > 0 and half.roofline == one.roofline


def test_a_split_card_is_not_used_as_a_whole(nvml: Any, card: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    module = nvml(card(title="NVIDIA A100", gib=80, split=True), card(uuid="GPU-bbbb", split=False))
    with pytest.raises(ProfileError, match="NVIDIA A100 is split into MIG slices") as caught:
        devices.find()
    assert "CUDA_VISIBLE_DEVICES=MIG-" in (caught.value.hint or "")
    assert devices.find("cpu").name == "cpu"
    module.slices["MIG-1"] = card(uuid="MIG-1", gib=10, split=True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-1")
    assert (devices.find().uuid, devices.find().memory_bytes) == ("MIG-1", 10 * GIB)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert devices.find().uuid == "GPU-bbbb"


@pytest.mark.parametrize("visible", [None, "1", "0,GPU-a"])
def test_numbers_in_an_order_that_only_cuda_knows_are_refused(
    nvml: Any, card: Any, monkeypatch: pytest.MonkeyPatch, visible: str | None
) -> None:
    nvml(card(), card(uuid="GPU-bbbb"))
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "FASTEST_FIRST")
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with pytest.raises(ProfileError, match="CUDA_DEVICE_ORDER is FASTEST_FIRST"):
        devices.find("cuda")


def test_the_order_does_not_matter_for_uuids_or_a_single_card(
    nvml: Any, card: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "FASTEST_FIRST")
    nvml(card())
    assert devices.find("cuda").uuid == "GPU-aaaa"
    nvml(card(), card(uuid="GPU-bbbb"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-b,GPU-a")
    assert [device.uuid for device in cuda.find()] == ["GPU-bbbb", "GPU-aaaa"]
