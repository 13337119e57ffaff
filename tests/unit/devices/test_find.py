"""Which device a name means, and which is the default."""

from __future__ import annotations

import builtins
import os
import sys
from typing import Any

import pytest

from profiler import devices
from profiler.devices import cuda
from profiler.errors import NotFound, ProfileError
from profiler.units import GIB


def test_the_kinds_are_the_files_with_a_meter_and_the_cpu_is_last() -> None:
    assert [module.__name__ for module in devices.kinds()] == ["profiler.devices.cuda", "profiler.devices.cpu"]


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
def test_a_gpu_that_is_not_there_lists_those_that_are(nvml: Any, card: Any, name: str) -> None:
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


def test_cuda_that_is_not_here_says_why(nvml: Any, card: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    module = nvml(card())
    module.broken = True
    with pytest.raises(ProfileError, match=r"no cuda device here: .*version mismatch"):
        devices.find("cuda")
    assert devices.unavailable() == {"cuda": "no NVIDIA driver answers (Driver/library version mismatch)"}
    assert devices.find().name == "cpu"
    module.broken = False
    monkeypatch.setattr(cuda, "torch_has_cuda", lambda: False)
    assert devices.find().name == "cpu"
    assert devices.unavailable() == {"cuda": "the installed torch is a build without CUDA"}


def test_a_missing_library_is_a_reason_and_no_error(nvml: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "pynvml", raising=False)
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


def test_a_cuda_build_of_torch_is_told_from_its_files(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "torch"
    (package / "lib").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    assert not cuda.torch_has_cuda()
    (package / "lib" / "libtorch_cuda.so").write_text("")
    assert cuda.torch_has_cuda()
