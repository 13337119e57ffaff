"""One NVIDIA board as a source of snapshots, by NVML; matched by UUID, never by a number.

What a board or its driver does not support is asked once a case and is then unknown, with NVML's words as the reason;
a board that is lost ends the telemetry.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from profiler.devices.snapshot import HW_THERMAL, POWER_BRAKE, SW_POWER_CAP, SW_THERMAL, Snapshot, Unknown
from profiler.units import printable

# Numbers of nvml.h since driver 570, written out: earlier bindings had other ones, which newer drivers take for
# something else. An older driver answers that it does not know them.
POWER_INSTANT = 186
LIMITED = {74: SW_POWER_CAP, 269: SW_THERMAL, 270: HW_THERMAL, 271: POWER_BRAKE}  # cumulative nanoseconds
FIELDS = [POWER_INSTANT, *LIMITED]
VALUES = ("dVal", "uiVal", "ulVal", "ullVal", "sllVal", "siVal", "usVal")  # by nvmlValueType_t

AVERAGED_SINCE = 7  # NVML_DEVICE_ARCH_AMPERE: nvmlDeviceGetPowerUsage is an average over one second (NVML reference)
SM_CLOCK, MEMORY_CLOCK, GPU_SENSOR = 1, 2, 0


class Board:
    """Snapshots of the board ``uuid``, or of a MIG slice, which tells less."""

    name = "nvml"
    scope = "gpu-board"
    coarse = True  # every 20 to 100 ms, by board
    guards = True

    def __init__(self, uuid: str) -> None:
        self.unknown: dict[str, str] = {}
        self._uuid = uuid
        self._power_usage_is_instant = False

    def open(self) -> None:
        try:
            import pynvml
        except ImportError:
            raise Unknown("the Python package nvidia-ml-py is not installed") from None
        self._nvml: Any = pynvml
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            raise Unknown(f"no NVIDIA driver answers ({error})") from None
        try:
            self._handle = pynvml.nvmlDeviceGetHandleByUUID(self._uuid)
        except pynvml.NVMLError as error:
            self.close()
            raise Unknown(f"NVML does not find the GPU by its UUID ({error})") from None
        architecture = self._ask("architecture", ["nvmlDeviceGetArchitecture"])
        self._power_usage_is_instant = architecture is not None and architecture < AVERAGED_SINCE

    def begin(self) -> None:
        self.unknown.clear()

    def close(self) -> None:
        self._nvml.nvmlShutdown()

    def read(self, at_s: float) -> Snapshot:
        energy_mj = self._ask("energy", ["nvmlDeviceGetTotalEnergyConsumption"])  # first: it belongs to ``at_s``
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
        """All but one: in a container processes have the host's numbers, so this one may bear another name.

        Nobody at all means that the driver does not tell, since a measurement runs there.
        """
        processes = self._ask("processes", ["nvmlDeviceGetComputeRunningProcesses"])
        return len(processes) - 1 if processes else None

    def _power_w(self, instant_mw: float | None) -> float | None:
        """Power at this moment. An average over the last second is none: it belongs to what ran before as well."""
        if instant_mw is not None:
            return instant_mw / 1000
        if not self._power_usage_is_instant:
            return None
        milliwatts = self._ask("power", ["nvmlDeviceGetPowerUsage"])
        return None if milliwatts is None else milliwatts / 1000

    def _fields(self) -> dict[int, float]:
        """The field values that this driver and board have, by number."""
        values = self._ask("fields", ["nvmlDeviceGetFieldValues"], FIELDS)
        found = {}
        for value in values or ():
            if value.nvmlReturn == self._nvml.NVML_SUCCESS and value.valueType < len(VALUES):
                found[value.fieldId] = getattr(value.value, VALUES[value.valueType])
            elif value.nvmlReturn == self._nvml.NVML_ERROR_GPU_IS_LOST:
                raise Unknown("the GPU is lost")
        return found

    def _ask(self, what: str, names: list[str], *about: Any) -> Any:
        """What the first of these functions that exists answers; None, and why in ``unknown``, where none does."""
        if what in self.unknown:
            return None
        nvml, reason = self._nvml, "the driver has no such function"
        for name in names:
            function: Callable[..., Any] | None = getattr(nvml, name, None)
            try:
                if function is not None:
                    return function(self._handle, *about)
            except nvml.NVMLError_GpuIsLost:
                raise Unknown("the GPU is lost") from None
            except (nvml.NVMLError_FunctionNotFound, nvml.NVMLLibraryMismatchError):
                continue
            except nvml.NVMLError as error:
                reason = printable(error)
                break
        self.unknown[what] = reason
        return None
