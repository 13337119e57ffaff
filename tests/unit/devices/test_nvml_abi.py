"""The fake library has the layouts that pynvml hands to a real one, and pynvml's functions get through to it."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

import pynvml
import pytest
from fakes.nvml import FakeNvml
from fakes.nvml.control import Control, Device, Fault, Moment

from profiler.units import GIB

STRUCTS = (  # in the order of fakeSize
    *(Control, Device, Moment, Fault),
    pynvml.c_nvmlMemory_t,
    pynvml.c_nvmlMemory_v2_t,
    pynvml.c_nvmlProcessInfo_v3_t,
    pynvml.c_nvmlUtilization_t,
    pynvml.c_nvmlTemperature_v1_t,
    pynvml.nvmlPciInfo_t,
    pynvml.c_nvmlFieldValue_t,
)


@pytest.mark.parametrize("number", range(len(STRUCTS)), ids=[struct.__name__ for struct in STRUCTS])
def test_a_struct_has_the_size_that_c_gives_it(nvml_library: Callable[..., Path], number: int) -> None:
    size = ctypes.CDLL(str(nvml_library())).fakeSize
    size.restype = ctypes.c_uint64
    assert size(number) == ctypes.sizeof(STRUCTS[number])


def test_the_offsets_that_the_library_writes_to_are_pynvmls() -> None:
    assert pynvml.c_nvmlFieldValue_t.nvmlReturn.offset == 28
    assert pynvml.c_nvmlFieldValue_t.value.offset == 32
    assert pynvml.c_nvmlProcessInfo_v3_t.usedGpuMemory.offset == 8
    assert pynvml.nvmlPciInfo_t.busId.offset == 36


@pytest.fixture
def handle(driver: Callable[..., FakeNvml]):
    machine = driver()
    machine.card(processes={7: GIB, 8: None}, used_bytes=5 * GIB, reasons=0x24).at(2.0, power_w=300, reasons=0)
    machine.now_s = 1.0
    pynvml.nvmlInit()
    yield pynvml.nvmlDeviceGetHandleByUUID("GPU-aaaa")
    pynvml.nvmlShutdown()


ANSWERS = {
    "nvmlDeviceGetUUID": "GPU-aaaa",
    "nvmlDeviceGetName": "NVIDIA GeForce RTX 4090",
    "nvmlDeviceGetArchitecture": pynvml.NVML_DEVICE_ARCH_AMPERE,
    "nvmlDeviceGetCudaComputeCapability": (8, 9),
    "nvmlDeviceGetPowerUsage": 20_000,
    "nvmlDeviceGetEnforcedPowerLimit": 450_000,
    "nvmlDeviceGetTotalEnergyConsumption": 1_000_020_000,
    "nvmlDeviceGetCurrentClocksEventReasons": 0x24,
    "nvmlDeviceGetCurrentClocksThrottleReasons": 0x24,
    "nvmlDeviceGetPersistenceMode": 1,
    "nvmlDeviceGetMigMode": [0, 0],
}


@pytest.mark.parametrize("name", ANSWERS)
def test_a_call_of_pynvml_gives_the_scripted_result(handle: object, name: str) -> None:
    assert getattr(pynvml, name)(handle) == ANSWERS[name]


def test_structs_come_back_as_scripted(handle: object) -> None:
    assert pynvml.nvmlDeviceGetMemoryInfo(handle).used == 5 * GIB
    assert pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2).free == 19 * GIB
    processes = pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
    assert {process.pid: process.usedGpuMemory for process in processes} == {7: GIB, 8: None}
    assert pynvml.nvmlDeviceGetTemperature(handle, 0) == pynvml.nvmlDeviceGetTemperatureV(handle, 0) == 35
    assert pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM) == 210
    assert pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_MEM) == 405
    assert pynvml.nvmlDeviceGetUtilizationRates(handle).gpu == 100
    assert pynvml.nvmlDeviceGetPciInfo(handle).busId == "0000:01:00.0"
    assert pynvml.nvmlDeviceGetCpuAffinity(handle, 1)[0] == 3
    assert pynvml.nvmlSystemGetDriverVersion().startswith("580")
    assert pynvml.nvmlDeviceGetCount() == 1
    assert pynvml.nvmlDeviceGetUUID(pynvml.nvmlDeviceGetHandleByIndex(0)) == "GPU-aaaa"
    assert pynvml.nvmlDeviceGetUUID(pynvml.nvmlDeviceGetHandleByPciBusId("0000:01:00.0")) == "GPU-aaaa"


def test_fields_come_back_as_scripted(handle: object) -> None:
    values = {v.fieldId: v for v in pynvml.nvmlDeviceGetFieldValues(handle, [186, 83, 74, 269, 270, 999])}
    assert values[186].value.uiVal == 20_000
    assert values[83].value.ullVal == 1_000_020_000
    assert [values[number].value.ullVal for number in (74, 269, 270)] == [10**9, 10**9, 0]
    assert values[999].nvmlReturn == pynvml.NVML_ERROR_NOT_SUPPORTED


def test_clocks_need_permission_to_be_locked(handle: object) -> None:
    with pytest.raises(pynvml.NVMLError_NoPermission):
        pynvml.nvmlDeviceSetGpuLockedClocks(handle, 1000, 1000)


def test_without_a_driver_every_call_fails(driver: Callable[..., FakeNvml], monkeypatch: pytest.MonkeyPatch) -> None:
    driver()
    monkeypatch.setenv("FAKE_NVML", "/nowhere")
    with pytest.raises(pynvml.NVMLError_DriverNotLoaded):
        pynvml.nvmlInit()


def test_a_symbol_can_be_missing(driver: Callable[..., FakeNvml]) -> None:
    driver("nvmlDeviceGetCount_v2")
    pynvml.nvmlInit()
    with pytest.raises(pynvml.NVMLError_FunctionNotFound):
        pynvml.nvmlDeviceGetCount()
    pynvml.nvmlShutdown()
