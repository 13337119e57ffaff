"""A machine with NVIDIA cards, as far as ``pynvml`` can tell."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from profiler.devices import cuda
from profiler.units import GIB


class NVMLError(Exception):
    pass


@dataclass
class Card:
    title: str = "NVIDIA GeForce RTX 4090"
    uuid: str = "GPU-aaaa"
    gib: int = 24
    used: int = 1 * GIB
    capability: tuple[int, int] | None = (8, 9)
    processes: dict[int, int | None] = field(default_factory=dict)
    split: bool | None = None  # into MIG slices; None: it cannot be
    fallen: bool = False  # off the bus
    lanes: int | None = None  # fp32, of all multiprocessors
    multiprocessors: int | None = None  # of a slice
    whole: Card | None = None  # that this slice is of


class FakeNvml(ModuleType):
    """The part of pynvml that we call. ``broken`` makes nvmlInit fail, ``lost`` every question after it."""

    NVMLError = NVMLError

    def __init__(self, *cards: Card) -> None:
        super().__init__("pynvml")
        self.cards = list(cards)
        self.slices: dict[str, Card] = {}
        self.broken = self.lost = False
        self.open = 0

    def nvmlInit(self) -> None:
        if self.broken:
            raise NVMLError("Driver/library version mismatch")
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlDeviceGetCount(self) -> int:
        if self.lost:
            raise NVMLError("GPU is lost")
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Card:
        if self.cards[index].fallen:
            raise NVMLError("GPU is lost")
        return self.cards[index]

    def nvmlDeviceIsMigDeviceHandle(self, card: Card) -> int:
        return int(card in self.slices.values())

    def nvmlDeviceGetMigMode(self, card: Card) -> list[int]:
        if card.split is None:
            raise NVMLError("Not Supported")
        return [int(card.split), int(card.split)]

    def nvmlDeviceGetMaxMigDeviceCount(self, card: Card) -> int:
        if card.split is None:
            raise NVMLError("Not Supported")
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, card: Card, index: int) -> Card:
        known = [each for each in self.slices.values() if each.whole is card]
        if index == 0 or index > len(known):  # numbers have gaps
            raise NVMLError("Not Found")
        return known[index - 1]

    def nvmlDeviceGetDeviceHandleFromMigDeviceHandle(self, card: Card) -> Card:
        if card.whole is None:
            raise NVMLError("Not Supported")
        return card.whole

    def nvmlDeviceGetAttributes_v2(self, card: Card) -> Any:
        if card.multiprocessors is None:
            raise NVMLError("Not Supported")
        return SimpleNamespace(multiprocessorCount=card.multiprocessors)

    def nvmlDeviceGetNumGpuCores(self, card: Card) -> int:
        if card.lanes is None:
            raise NVMLError("Not Supported")
        return card.lanes

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> Card:
        known = {card.uuid: card for card in self.cards} | self.slices
        if uuid not in known or self.lost:
            raise NVMLError("Not Found")
        return known[uuid]

    def nvmlDeviceGetUUID(self, card: Card) -> str:
        return card.uuid

    def nvmlDeviceGetName(self, card: Card) -> str:
        return card.title

    def nvmlDeviceGetMemoryInfo(self, card: Card) -> Any:
        return SimpleNamespace(total=card.gib * GIB, free=card.gib * GIB - card.used, used=card.used)

    def nvmlDeviceGetCudaComputeCapability(self, card: Card) -> list[int]:
        if card.capability is None:
            raise NVMLError("Not Supported")
        return list(card.capability)

    def nvmlSystemGetDriverVersion(self) -> str:
        return "580.10"

    def nvmlDeviceGetComputeRunningProcesses(self, card: Card) -> list[Any]:
        return [SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in card.processes.items()]


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Puts cards into the machine, under a torch that can use them."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    monkeypatch.setattr(cuda, "torch_has_cuda", lambda: True)
    made: list[FakeNvml] = []

    def install(*cards: Card) -> FakeNvml:
        module = FakeNvml(*cards)
        monkeypatch.setitem(sys.modules, "pynvml", module)
        made.append(module)
        return module

    yield install
    assert all(module.open == 0 for module in made), "NVML was left open"


@pytest.fixture
def card() -> type[Card]:
    return Card
