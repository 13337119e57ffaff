"""Backend ``llama.cpp``: GGUF files, run by the programs of the user's own build of llama.cpp.

Rates are those that llama-bench and llama-batched-bench print, logits those of libllama. ``build.find`` says which
build runs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from profiler.backends.base import Backend, Completion, InstalledBuild
from profiler.backends.llama_cpp import build
from profiler.case import Case, Source
from profiler.devices.base import Meter

KV_TYPES = ("f16", "bf16", "f32", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")
MAX_LAYERS = 9999  # far more than any model has; a longer number is a typing error


def _kv(text: str) -> str:
    if text.casefold() not in KV_TYPES:
        raise ValueError(f"{text!r} is not one of {', '.join(KV_TYPES)}")
    return text.casefold()


def _switch(text: str) -> str:
    if text.casefold() not in ("on", "off", "auto"):
        raise ValueError(f"{text!r} is not on, off or auto")
    return text.casefold()


def _layers(text: str) -> str:
    if not text.isdecimal() or int(text) > MAX_LAYERS:
        raise ValueError(f"{text!r} is not a number of layers from 0 to {MAX_LAYERS}")
    return str(int(text))


def _split(text: str) -> str:
    if not re.fullmatch(r"\d+(\.\d+)?(/\d+(\.\d+)?)*", text):
        raise ValueError(f"{text!r} is not a list of shares such as 3/1")
    return text


OPTIONS: Mapping[str, Callable[[str], str]] = {
    "kv": _kv,
    "flash-attn": _switch,
    "gpu-layers": _layers,
    "n-cpu-moe": _layers,
    "tensor-split": _split,
}


def _meter(device: str) -> Meter:
    from profiler.backends.llama_cpp.program import ProgramMeter

    return ProgramMeter()


def _complete(case: Case, source: Source, installed: InstalledBuild) -> Sequence[Completion]:
    from profiler.backends.llama_cpp.completion import complete

    return complete(case, source, build.named(installed.folder))


BACKEND = Backend(
    engine="llama.cpp",
    meter=_meter,
    fills=("prefill",),
    weights=("real", "synthetic"),
    kinds=("cpu", "cuda"),
    versions=lambda: build.find().versions(),
    quality="profiler.backends.llama_cpp.quality",
    has_cpu_time=lambda case: case.batch == 1,  # of others, prefill and decode share one
    find_build=build.installed,
    build_command=build.BUILD_COMMAND,
    complete=_complete,
    times_itself=True,
    gguf=True,
    ubatch=build.UBATCH,
    options=OPTIONS,
)
