"""The script of the fake library, as Python writes it: ``struct control`` of ``nvml.c``, in a file mapped by both."""

from __future__ import annotations

import ctypes
import mmap
from pathlib import Path
from typing import Any

from profiler.units import GIB

MOMENTS, DEVICES, PROCESSES, FAULTS = 64, 4, 8, 16
STEPS, FROZEN, BACKWARDS, RESET = range(4)  # what an energy counter does
HANG = -1
NOT_SUPPORTED, UNKNOWN_ERROR, GPU_IS_LOST = 3, 999, 15  # nvmlReturn_t
SINCE_LOAD_J = 1e6
AMPERE, TURING = 7, 6


class Moment(ctypes.Structure):
    """What a device is like from a time on."""

    _fields_ = (
        ("from_s", ctypes.c_double),
        ("reasons", ctypes.c_uint64),
        ("used_bytes", ctypes.c_uint64),
        ("process_bytes", ctypes.c_uint64 * PROCESSES),
        ("pids", ctypes.c_uint32 * PROCESSES),
        ("processes", ctypes.c_uint32),
        ("power_mw", ctypes.c_uint32),
        ("sm_mhz", ctypes.c_uint32),
        ("mem_mhz", ctypes.c_uint32),
        ("temperature_c", ctypes.c_uint32),
    )


class Device(ctypes.Structure):
    _fields_ = (
        ("uuid", ctypes.c_char * 96),
        ("name", ctypes.c_char * 96),
        ("bus_id", ctypes.c_char * 32),
        ("total_bytes", ctypes.c_uint64),
        ("step_s", ctypes.c_double),
        ("odd_at_s", ctypes.c_double),
        ("architecture", ctypes.c_uint32),
        ("capability", ctypes.c_uint32 * 2),
        ("limit_mw", ctypes.c_uint32),
        ("counter", ctypes.c_uint32),
        ("moments", ctypes.c_uint32),
        ("moment", Moment * MOMENTS),
    )


class Fault(ctypes.Structure):
    _fields_ = (
        ("symbol", ctypes.c_char * 80),
        ("code", ctypes.c_int32),
        ("after", ctypes.c_uint32),
        ("calls", ctypes.c_uint32),
    )


class Control(ctypes.Structure):
    _fields_ = (
        ("now_s", ctypes.c_double),
        ("let_go", ctypes.c_uint32),
        ("devices", ctypes.c_uint32),
        ("faults", ctypes.c_uint32),
        ("latency_us", ctypes.c_uint32),
        ("fault", Fault * FAULTS),
        ("device", Device * DEVICES),
    )


class Card:
    """One scripted GPU. ``at`` adds a moment: what is not said stays as it was."""

    def __init__(self, device: Any) -> None:
        self._device = device

    def at(self, from_s: float, **changes: Any) -> Card:
        """From ``from_s`` on: power_w, processes ({pid: bytes}), and the other fields of ``Moment`` by name."""
        count = self._device.moments
        moment = self._device.moment[count]
        if count:
            ctypes.pointer(moment)[0] = self._device.moment[count - 1]
        moment.from_s = from_s
        if "power_w" in changes:
            moment.power_mw = round(changes.pop("power_w") * 1000)
        processes = changes.pop("processes", None)
        if processes is not None:
            moment.processes = len(processes)
            for place, (pid, size) in enumerate(processes.items()):
                moment.pids[place] = pid
                moment.process_bytes[place] = 2**64 - 1 if size is None else size
        for name, value in changes.items():
            setattr(moment, name, value)
        self._device.moments = count + 1
        return self

    def counter(self, does: int, at_s: float = 0.0) -> Card:
        """The energy counter freezes, goes back or starts again from ``at_s`` on."""
        self._device.counter, self._device.odd_at_s = does, at_s
        return self


class FakeNvml:
    """The machine: cards, a clock, and what goes wrong."""

    def __init__(self, path: Path) -> None:
        path.write_bytes(bytes(ctypes.sizeof(Control)))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)
        self.control = Control.from_buffer(self._map)

    def card(
        self,
        uuid: str = "GPU-aaaa",
        name: str = "NVIDIA GeForce RTX 4090",
        *,
        step_s: float = 0.1,
        architecture: int = AMPERE,
        limit_w: float = 450,
        gib: int = 24,
        **first: Any,
    ) -> Card:
        """Plug in a card, idle unless it is said otherwise."""
        place = self.control.devices
        device = self.control.device[place]
        device.uuid, device.name, device.bus_id = uuid.encode(), name.encode(), f"0000:{place + 1:02x}:00.0".encode()
        device.total_bytes, device.step_s, device.architecture = gib * GIB, step_s, architecture
        device.capability[:] = (8, 9) if architecture >= AMPERE else (7, 5)
        device.limit_mw = round(limit_w * 1000)
        idle = {"power_w": 20.0, "sm_mhz": 210, "mem_mhz": 405, "temperature_c": 35, "reasons": 1, "used_bytes": GIB}
        self.control.devices = place + 1
        return Card(device).at(0.0, **(idle | first))

    def fault(self, symbol: str, code: int, after: int = 0) -> None:
        """``symbol`` (``*``: all; ``field 186``: one) returns ``code``, or hangs, after so many good calls."""
        fault = self.control.fault[self.control.faults]
        fault.symbol, fault.code, fault.after = symbol.encode(), code, after
        self.control.faults += 1

    @property
    def now_s(self) -> float:
        return float(self.control.now_s)

    @now_s.setter
    def now_s(self, seconds: float) -> None:
        self.control.now_s = seconds

    def let_go(self) -> None:
        """Hanging calls return."""
        self.control.let_go = 1
