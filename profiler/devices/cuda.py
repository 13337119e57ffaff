"""NVIDIA GPUs: found with NVML, timed with CUDA events; memory from PyTorch's allocator and NVML, telemetry from
NVML.

What a board or its driver does not support is queried once per case and then unknown, with NVML's message as the
reason. A lost board ends the telemetry.
"""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from profiler.decode_path import GRAPH
from profiler.devices import allowance, base, nvml
from profiler.devices.base import DeviceInfo, DeviceKind, HostWindow, Lap, Peak, Pressure, Watcher
from profiler.devices.sampler import Sampler
from profiler.devices.telemetry import HW_THERMAL, POWER_BRAKE, SW_POWER_CAP, SW_THERMAL, Snapshot, Unknown
from profiler.errors import ProfileError
from profiler.units import printable

# Numbers of nvml.h since driver 570, written out: earlier bindings had different ones, which newer drivers interpret
# as something else. An older driver answers that it does not know them.
POWER_INSTANT = 186
LIMITED = {74: SW_POWER_CAP, 269: SW_THERMAL, 270: HW_THERMAL, 271: POWER_BRAKE}  # cumulative nanoseconds
FIELDS = [POWER_INSTANT, *LIMITED]
VALUES = ("dVal", "uiVal", "ulVal", "ullVal", "sllVal", "siVal", "usVal")  # by nvmlValueType_t
AVERAGED_SINCE = 7  # NVML_DEVICE_ARCH_AMPERE: nvmlDeviceGetPowerUsage is an average over one second (NVML reference)
SM_CLOCK, MEMORY_CLOCK, GPU_SENSOR = 1, 2, 0

BF16_CAPABILITY = (8, 0)  # Ampere: the first with bf16 tensor cores
FP16_CAPABILITY = (7, 0)  # Volta: the first with fp16 tensor cores; before it fp16 may run at 1/64 of fp32's rate
TORCH_LIBRARY = "lib/libtorch_cuda.so"  # only a CUDA build of torch has it


class Board:
    """Snapshots of the board ``uuid``, or of a MIG slice, which reports less."""

    name = "nvml"
    scope = "gpu-board"
    coarse = True  # it updates every 20 to 100 ms, depending on the board
    guards = True

    def __init__(self, uuid: str) -> None:
        self.unknown: dict[str, str] = {}
        self._uuid = uuid
        self._power_usage_is_instant = False

    def open(self) -> None:
        try:
            self._nvml: Any = nvml.opened()
        except nvml.Missing as missing:
            raise Unknown(str(missing)) from None
        try:
            self._handle = self._nvml.nvmlDeviceGetHandleByUUID(self._uuid)
        except self._nvml.NVMLError as error:
            self.close()
            raise Unknown(f"NVML does not find the GPU by its UUID ({error})") from None
        architecture = self._ask("architecture", ["nvmlDeviceGetArchitecture"])
        self._power_usage_is_instant = architecture is not None and architecture < AVERAGED_SINCE

    def begin(self) -> None:
        self.unknown.clear()

    def close(self) -> None:
        self._nvml.nvmlShutdown()

    def read(self, at_s: float) -> Snapshot:
        energy_mj = self._ask("energy", ["nvmlDeviceGetTotalEnergyConsumption"])  # it belongs to ``at_s``
        fields = self._fields()
        return Snapshot(
            at_s,
            energy_j=None if energy_mj is None else energy_mj / 1000,
            power_w=self._power_w(fields.get(POWER_INSTANT)),
            sm_mhz=self._ask("clock", ["nvmlDeviceGetClockInfo"], SM_CLOCK),
            memory_mhz=self._ask("memory clock", ["nvmlDeviceGetClockInfo"], MEMORY_CLOCK),
            temperature_c=self._ask(
                "temperature", ["nvmlDeviceGetTemperatureV", "nvmlDeviceGetTemperature"], GPU_SENSOR
            ),
            reasons=self._ask(
                "reasons", ["nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons"]
            ),
            limited_s=tuple((bit, fields[number] / 1e9) for number, bit in LIMITED.items() if number in fields),
        )

    def others(self) -> int | None:
        """All processes but one, ours: NVML reports the host's PIDs, so in a container we cannot recognize our own.

        No process at all means that the driver does not report them, since a measurement is running.
        """
        processes = self._ask("processes", ["nvmlDeviceGetComputeRunningProcesses"])
        return len(processes) - 1 if processes else None

    def _power_w(self, instant_mw: float | None) -> float | None:
        """Power at this moment. An average over the last second does not count, since it includes what ran before."""
        if instant_mw is not None:
            return instant_mw / 1000
        if not self._power_usage_is_instant:
            return None
        milliwatts = self._ask("power", ["nvmlDeviceGetPowerUsage"])
        return None if milliwatts is None else milliwatts / 1000

    def _fields(self) -> dict[int, float]:
        """The field values that this driver and board support, by number."""
        values = self._ask("fields", ["nvmlDeviceGetFieldValues"], FIELDS)
        found = {}
        for value in values or ():
            if value.nvmlReturn == self._nvml.NVML_SUCCESS and value.valueType < len(VALUES):
                found[value.fieldId] = getattr(value.value, VALUES[value.valueType])
            elif value.nvmlReturn == self._nvml.NVML_ERROR_GPU_IS_LOST:
                raise Unknown("the GPU is lost")
        return found

    def _ask(self, what: str, names: list[str], *about: Any) -> Any:
        """The result of the first of these functions that exists; None if none does; ``unknown`` has the reason."""
        if what in self.unknown:
            return None
        library, reason = self._nvml, "the driver has no such function"
        for name in names:
            function: Callable[..., Any] | None = getattr(library, name, None)
            try:
                if function is not None:
                    return function(self._handle, *about)
            except library.NVMLError_GpuIsLost:
                raise Unknown("the GPU is lost") from None
            except (library.NVMLError_FunctionNotFound, library.NVMLLibraryMismatchError):
                continue
            except library.NVMLError as error:
                reason = printable(error)
                break
        self.unknown[what] = reason
        return None


def find() -> list[DeviceInfo]:
    """The GPUs that a worker could use, as ``cuda:0``, ``cuda:1``, …; none when ``unavailable``.

    CUDA's own order is fastest first, NVML's is by PCI bus. This sets the environment so that this process and its
    workers number the cards like NVML, unless the user has chosen an order.
    """
    os.environ.setdefault("CUDA_DEVICE_ORDER", nvml.BY_BUS)
    if not torch_has_cuda():
        return []
    try:
        return [_info(index, gpu) for index, gpu in enumerate(nvml.gpus())]
    except nvml.Missing:
        return []


def unavailable() -> str | None:
    """Why there is no CUDA device; None if there is one."""
    try:
        if not nvml.gpus():
            return nvml.hidden()
    except nvml.Missing as reason:
        return str(reason)
    return None if torch_has_cuda() else "the installed torch is a build without CUDA"


def torch_has_cuda() -> bool:
    """Whether the installed torch is a CUDA build, judged by its files, since importing it takes seconds."""
    spec = importlib.util.find_spec("torch")
    return spec is not None and spec.origin is not None and os.path.exists(Path(spec.origin).parent / TORCH_LIBRARY)


def meter(device: str) -> CudaMeter:
    """The meter of ``cuda:N`` for this process."""
    return CudaMeter(device)


def watcher(device: str) -> Watcher:
    """Watches ``cuda:N`` while repetitions run."""
    return Sampler(Board(_nvml_uuid(device)))


def _select(device: str) -> None:
    """Our kernels and graphs run on the current stream."""
    import torch

    torch.cuda.set_device(torch.device(device))


def _wait(device: Any) -> None:
    import torch

    torch.cuda.synchronize(device)


def _cache_bytes(device: Any) -> int:
    import torch

    found: int = torch.cuda.get_device_properties(device).L2_cache_size
    return found


KIND = DeviceKind(
    maker="NVIDIA", step_path=lambda here: GRAPH, select=_select, wait=_wait, cache_bytes=_cache_bytes
)  # the rest is as of any accelerator: those figures are of NVIDIA's


class CudaMeter:
    """Clock and peak memory of this process on one GPU.

    ``Peak.process_bytes`` is NVML's figure for our process: the allocator's segments, the CUDA context and the
    libraries' workspaces, none of which shrink during a window. If NVML cannot distinguish processes, it is the
    growth of the whole card's memory since the meter started; changes by other processes then count as ours.
    """

    def __init__(self, device: str) -> None:
        import torch

        self._cuda: Any = torch.cuda
        self._device = torch.device(device)
        self._uuid = _nvml_uuid(device)
        _check_card(device, self._uuid)
        self._silent = False
        self._before = self._asked(nvml.used_bytes, self._uuid)

    def now(self) -> float:
        self._cuda.synchronize(self._device)
        return time.perf_counter()

    def window(self) -> CudaWindow:
        self._cuda.synchronize(self._device)
        return CudaWindow(self)

    def timestamp(self) -> object:
        event = self._cuda.Event(enable_timing=True)
        event.record(self._cuda.current_stream(self._device))
        return event

    def elapsed(self, timestamps: Sequence[Any]) -> list[float]:
        if timestamps:
            timestamps[-1].synchronize()
        return [before.elapsed_time(after) / 1000 for before, after in pairwise(timestamps)]

    def reset_peak(self) -> None:
        """Free the allocator's unused segments first, or those of the last case would count in the next peak."""
        self._cuda.synchronize(self._device)
        self._cuda.empty_cache()
        self._cuda.reset_peak_memory_stats(self._device)

    def peak(self) -> Peak:
        self._cuda.synchronize(self._device)
        process, segments = self._process_bytes(), self._cuda.memory_reserved(self._device)
        return Peak(
            allocated_bytes=self._cuda.max_memory_allocated(self._device),
            reserved_bytes=self._cuda.max_memory_reserved(self._device),
            process_bytes=process,
            framework_bytes=None if process is None else max(0, process - segments),
            device_bytes=self._asked(nvml.used_bytes, self._uuid),
        )

    def pressure(self) -> Pressure:
        return replace(base.read(), retries=self._cuda.memory_stats(self._device).get("num_alloc_retries"))

    def _process_bytes(self) -> int | None:
        own = self._asked(nvml.process_bytes, self._uuid, os.getpid())
        if own is not None or self._before is None:
            return own
        used = self._asked(nvml.used_bytes, self._uuid)
        return None if used is None else max(0, used - self._before)

    def _asked(self, question: Any, *about: Any) -> int | None:
        """NVML's answer; None if it cannot be queried. A query that hangs is not repeated."""
        if self._silent:
            return None
        try:
            answer: int | None = nvml.within(nvml.PATIENCE_S, question, *about)
        except nvml.Missing as reason:
            self._silent = isinstance(reason, nvml.TimedOut)
            return None
        return answer


class CudaWindow:
    """The host's window, and an event at each end of the device's queue.

    The events give the time from the device's first to its last work, including pauses between kernels, so they
    cannot show whether it waited for launches. The work left after the last launch can: a device that was kept
    waiting has none left.
    """

    def __init__(self, meter: CudaMeter) -> None:
        self._meter = meter
        self._host = HostWindow()
        self._first = meter.timestamp()

    def close(self) -> Lap:
        last = self._meter.timestamp()
        launched = time.perf_counter()
        finished = self._meter.now()
        lap = self._host.close()
        (device_s,) = self._meter.elapsed([self._first, last])
        return replace(lap, device_s=device_s, drain_s=finished - launched)


def _nvml_uuid(device: str) -> str:
    """NVML's UUID of ``cuda:N`` in this process, since the two number devices differently."""
    import torch

    slice_ = nvml.visible_slice(int(device.partition(":")[2] or 0))
    return slice_ or _uuid(str(torch.cuda.get_device_properties(torch.device(device)).uuid))


def _check_card(device: str, uuid: str) -> None:
    """Raise ProfileError if CUDA numbers cards differently from NVML: the row would name the wrong card.

    CUDA leaves out cards that it cannot use, and the others move up.
    """
    other = next((each.name for each in find() if each.uuid == uuid and each.name != device), None)
    if other is not None:
        raise ProfileError(
            f"{device} of CUDA is {other} by NVML, so it is not known which card would be measured",
            f"Name it: CUDA_VISIBLE_DEVICES={printable(uuid)}",
        )


def _uuid(text: str) -> str:
    """NVML's spelling of the UUID torch gives (torch leaves out ``GPU-``)."""
    return text if text.startswith(("GPU-", "MIG-")) else f"GPU-{text}"


def _info(index: int, gpu: nvml.Gpu) -> DeviceInfo:
    allowed = allowance.find()
    slow = allowed.quota is not None and allowed.cores < 1  # one thread starts a GPU's work
    return DeviceInfo(
        name=f"cuda:{index}",
        kind="cuda",
        title=gpu.title,
        memory_bytes=gpu.memory_bytes,
        free_bytes=gpu.free_bytes,
        default_dtype=_default_dtype(gpu.capability),
        unsupported_dtypes=() if _has_bf16(gpu.capability) else ("bf16",),
        features=() if gpu.capability is None else (f"sm_{gpu.capability[0]}{gpu.capability[1]}",),
        uuid=gpu.uuid,
        driver=gpu.driver,
        quota=allowed.cores if slow else None,
        limits=(allowed.quota_text(1),) if slow else (),
        slice=gpu.slice,
    )


def _default_dtype(capability: tuple[int, int] | None) -> str:
    if capability is None or _has_bf16(capability):
        return "bf16"
    return "fp16" if capability >= FP16_CAPABILITY else "fp32"


def _has_bf16(capability: tuple[int, int] | None) -> bool:
    return capability is None or capability >= BF16_CAPABILITY  # only cards of that age can be sliced (MIG)
