"""Plug-ins that nobody wrote: a file each, put on the path of its package while a test runs."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

# By folder of the package: the file's name, and what people type for it.
QUANT, QUANT_NAME = "made_up.py", "made-up"
ABSENT_QUANT = "absent"
BACKEND, SMALL_BACKEND = "stand-in", "alone"
DEVICE = "npu"
FAMILY, ENGINE, WRITER, COMMAND = "herd", "in-house", "shout", "greet"
FILES = {
    "quants": {
        QUANT: '''"""Six bits a weight, and a scale of 16 bits for 64 of them. Nobody has timed it."""

from profiler.quants.base import Quant, StoredForm, plain_bytes


def weight_bytes(weight, dtype, repacks=False):
    if weight.role != "linear":
        return plain_bytes(weight, dtype)
    return -(-weight.parameters * 6 // 8) + 2 * -(-weight.parameters // 64)


QUANT = Quant(
    "made-up",
    weight_bytes,
    frozenset({"linear"}),
    unavailable=lambda device: None,
    load_config=lambda dtype: None,
    stored=StoredForm(matches=lambda stated: stated.get("quant_method") == "six"),
)
''',
        "absent.py": '''"""The same in a library that no machine has, so it is predicted but not measured."""

from dataclasses import replace

from profiler.quants import made_up

QUANT = replace(
    made_up.QUANT, name="absent", unavailable=lambda device: "the Python package absent is not installed", stored=None
)
''',
    },
    "backends": {
        "alone.py": '''"""The same in one file."""

from profiler.backends import stand_in
from profiler.backends.stand_in.session import open_session

BACKEND = stand_in.BACKEND
''',
        "stand_in/__init__.py": '''"""Counts tokens on a real device, and takes little of what can be asked for."""

from profiler.backends.base import Backend

BACKEND = Backend(
    quants=("bf16", "fp32"),
    fills=("prefill",),
    versions=lambda: {"counter": "1.2"},
    refuses=lambda case: "it counts in one sequence" if case.batch > 1 else None,
)
''',
        "stand_in/session.py": """from profiler import devices
from profiler.backends.base import CacheState, ModelInfo
from profiler.devices.base import Unwatched


class Session:
    def __init__(self, case):
        self.meter = devices.meter(case.device)
        self.watcher = Unwatched()
        self.info = ModelInfo(2**20, 0, threads=1, cautions=())

    def begin(self, case):
        return Generation(case)

    def close(self):
        pass


class Generation:
    def __init__(self, case):
        self.case, self.tokens, self.length, self.saved = case, [], 0, 0

    def prefill(self):
        self.tokens, self.length = [], self.case.context
        return self.case.batch * self.case.context

    def save(self):
        self.saved = self.length

    def restore(self):
        self.tokens, self.length = [], self.saved

    def release(self):
        self.saved = 0

    def step(self):
        self.length += 1
        self.tokens.append([0] * self.case.batch)

    def cache(self):
        return CacheState(self.length, 64 * self.length, 0, 64 * self.length, 0, 0)

    def path(self):
        return None

    def cautions(self):
        return ()


def open_session(case, source, beat):
    return Session(case)
""",
    },
    "devices": {
        "npu.py": '''"""An accelerator whose clock and memory are those of the process that stands in for it."""

from profiler.devices import cpu
from profiler.devices.base import DeviceInfo, DeviceKind, Unwatched

KIND = DeviceKind(prefill_chunk=48, fill_bytes_s=1e9)
GIB = 1024**3


def find():
    return [DeviceInfo("npu:0", "npu", "Some NPU", 8 * GIB, 7 * GIB, "bf16")]


def unavailable():
    return None


def meter(device):
    return cpu.CpuMeter()


def watcher(device):
    return Unwatched()
'''
    },
    "models.families": {
        "herd.py": '''"""Herd: Llama by another name."""

from profiler.models.families import llama

TEXT = {"herd": llama.LlamaConfig}
WRAPPED = {}
MODEL_TYPES = ("herd",)
geometry = llama.geometry
'''
    },
    "cost.engines": {
        "in_house.py": '''"""An engine that nobody has measured, with the least that an engine has to say."""

from profiler.cost.engines import vllm
from profiler.cost.engines.base import Engine


class InHouse(Engine):
    name = like = "in-house"
    version = "1"
    usual_quants = ("fp8",)
    default_kv = "auto"
    quants = ("bf16", "fp8")
    check = vllm.ENGINE.check
    storage = vllm.ENGINE.storage
    stored = vllm.ENGINE.stored
    timed = vllm.ENGINE.timed
    memory = vllm.ENGINE.memory
    prefill_rules = vllm.ENGINE.prefill_rules


ENGINE = InHouse()
'''
    },
    "show.writers": {
        "shout.py": '''"""``-o shout``: outcomes, loud."""


def render(run, measurements):
    return "".join(f"{measurement.outcome.upper()}!\\n" for measurement in measurements)
'''
    },
    "commands": {
        "greet.py": '''"""``profile greet``: say hello."""

import click


@click.command("greet")
def greet():
    """Say hello."""
    click.echo("hello")
    return 3
'''
    },
}


def install(folder: str, where: Path, patch: pytest.MonkeyPatch) -> None:
    """Add what is invented for ``profiler.<folder>``, until ``patch`` is undone. ``where`` takes the files."""
    package = importlib.import_module(f"profiler.{folder}")
    for name, text in FILES[folder].items():
        path = where / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    patch.setattr(package, "__path__", [*package.__path__, str(where / folder)])
    for name in FILES[folder]:
        top = name.partition("/")[0].removesuffix(".py")
        for module in [each for each in sys.modules if each.startswith(f"profiler.{folder}.{top}")]:
            del sys.modules[module]  # what an earlier test imported from its own folder
