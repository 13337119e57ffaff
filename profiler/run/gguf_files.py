"""The GGUF files of a sweep: those in a folder, by quantization, and those that are written with random weights."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from profiler import folders
from profiler.backends.llama_cpp import synthetic
from profiler.case import Task
from profiler.devices.base import DeviceInfo
from profiler.errors import NotFound, ProfileError
from profiler.models import gguf_mix
from profiler.registry import unknown
from profiler.run.grid import Subject, words
from profiler.units import bytes_text, printable

NO_MODEL = re.compile(r"mmproj|-(?!00001)\d{5}-of-\d{5}\.gguf$", re.IGNORECASE)  # a projector, a further part


def announced(tasks: Sequence[Task], say: Callable[[str], None]) -> list[Task]:
    """The tasks. Says which GGUF files will be written for them; those of a file that cannot be are left out."""
    reasons: dict[tuple[str, str], str | None] = {}
    for task in tasks:
        case = task.case
        if case.weights != "synthetic" or (case.model_id, case.quant) in reasons:
            continue
        assert task.geometry is not None
        try:
            size = synthetic.file_bytes(task.source, task.geometry, case.quant)
        except ProfileError as error:
            reasons[case.model_id, case.quant] = error.message
            continue
        reasons[case.model_id, case.quant] = None
        where = folders.place(synthetic.FOLDER)
        say(
            f"{case.model} {case.quant}: runs from a GGUF file of random weights, {bytes_text(size)}"
            + (f" in {printable(where)}" if where else "")
        )
    return [replace(task, reason=task.reason or reasons.get((task.case.model_id, task.case.quant))) for task in tasks]


def check_options(paths: Sequence[str], options: Mapping[str, Sequence[str]], device: DeviceInfo) -> None:
    """Raise ProfileError for an option of a sweep that would have no effect."""
    if paths:
        raise ProfileError("--path: llama.cpp has a single decode path", "Leave --path out.")
    layers = words(options.get("gpu_layers", ()))
    if device.kind == "cpu" and any(value != "0" for value in layers):
        raise ProfileError(f"--gpu-layers {','.join(layers)}: the device is the CPU", "Leave --gpu-layers out.")


def of_folder(name: str, weights: str = "auto") -> list[str]:
    """``name`` itself, or the models in the folder of that name: no projectors, and of a split model the first part.

    A folder with a config and synthetic weights stands for itself, and so does one without GGUF files. Raises
    NotFound for a folder with neither.
    """
    folder = Path(os.path.expanduser(name))
    if not folder.is_dir():
        return [name]
    described = (folder / "config.json").is_file()
    if described and weights == "synthetic":
        return [name]
    found = [str(path) for path in sorted(folder.glob("*.gguf")) if not NO_MODEL.search(path.name)]
    if not found and not described:
        raise NotFound(f"folder {printable(name)} has no .gguf file of a model, and no config.json")
    return found or [name]


def in_quants(subjects: Sequence[Subject], requested: Sequence[str], others: bool) -> tuple[Subject, ...]:
    """The files in one of these quantizations, as read from their tensors, and all models with synthetic weights.

    Raises NotFound for a quantization that no file has; ``others``: unless one with synthetic weights can have it.
    """
    has = {each.name: _plain_name(each.checkpoint_format.quant) for each in subjects if each.checkpoint_format}
    for name in requested:
        if _plain_name(name) not in has.values() and not (others and gguf_mix.known(name)):
            raise unknown("quantization among the files", name, sorted(set(has.values())))
    wanted = set(map(_plain_name, requested))
    return tuple(each for each in subjects if each.weights == "synthetic" or has.get(each.name) in wanted)


def _plain_name(quant: str) -> str:
    return quant.casefold().replace("-", "_")
