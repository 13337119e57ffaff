"""The engine of a prediction if nobody names one: one that runs the model on the device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from profiler.cost import engines
from profiler.cost.engines.base import Engine
from profiler.cost.engines.transformers import swept
from profiler.devices.target import Target
from profiler.errors import ProfileError
from profiler.models import config, gguf, hub
from profiler.models import scheme as schemes
from profiler.models.scheme import MLX, Scheme
from profiler.registry import listed
from profiler.run.quantization import AS_GGUF_PACKED, has

OF_MLX, OF_PACKED = "mlx", "vllm"  # run checkpoints that llama.cpp cannot read
CHANGE = "--engine chooses another"


@dataclass(frozen=True, slots=True)
class ChosenEngine:
    """An engine, and a sentence on why it was chosen, if that is not obvious."""

    engine: Engine
    reasons: tuple[str, ...] = ()


def chosen(
    named: str | None,
    models: Sequence[str],
    quants: Sequence[str],
    on: Sequence[Target],
    *,
    path: str | None = None,
    drafts: bool = False,
) -> ChosenEngine:
    """The engine that was named; otherwise transformers, which sweeps measure, where it runs what is asked for.

    llama.cpp runs GGUF files, decodes with ``drafts`` of multi-token-prediction layers, has quantizations that
    transformers has not, and runs on devices on which transformers is not measured (AMD, Apple, Intel), except
    quantized checkpoints: those are predicted in MLX or vLLM there.
    """
    if named is not None:
        return ChosenEngine(engines.find(named))
    usual, other = engines.find(engines.DEFAULT), engines.find(engines.OF_GGUF)
    only_usual = [quant for quant in quants if has(usual, quant) and not has(other, quant)]
    if path is not None or only_usual:
        return ChosenEngine(usual)
    if models and all(map(_is_gguf, models)):
        return ChosenEngine(other)
    if drafts:
        return _instead(other, "transformers does not decode with multi-token-prediction layers")
    packed = _schemes(models)
    if not quants and packed and all(scheme.name in AS_GGUF_PACKED for scheme in packed):
        return _instead(other, f"profile sweep does not run {packed[0].name} in transformers")
    foreign = [quant for quant in quants if has(other, quant) and not has(usual, quant)]
    if foreign:
        return _instead(other, f"transformers has no {listed(foreign, 'or')}")
    unmeasured = next((target for target in on if not swept(target)), None)
    if unmeasured is None:
        return ChosenEngine(usual)
    if not models:
        return ChosenEngine(other) if not quants else ChosenEngine(usual)
    reader = next((_reader(scheme) for scheme in packed if scheme.name not in AS_GGUF_PACKED), other)
    return _instead(reader, f"profile does not measure transformers on {' and '.join(unmeasured.makers)} devices")


def _instead(engine: Engine, because: str) -> ChosenEngine:
    return ChosenEngine(engine, (f"Predicted in {engine.name}, because {because}; {CHANGE}",))


def _reader(scheme: Scheme) -> Engine:
    """An engine that reads checkpoints of this scheme, which llama.cpp does not."""
    return engines.find(OF_MLX if scheme.method == MLX else OF_PACKED)


def _schemes(models: Sequence[str]) -> list[Scheme]:
    """The quantizations that configs on this machine state."""
    found: list[Scheme] = []
    for name in models:
        with suppress(ProfileError, OSError):  # reported when the model is resolved
            scheme = schemes.of(_config(name))
            found += [] if scheme is None else [scheme]
    return found


def _config(name: str) -> Mapping[str, Any]:
    """The config of a folder, a catalog name or a downloaded Hugging Face id; empty if there is none."""
    folder: Path | None = Path(name).expanduser()
    if folder is not None and folder.suffix == ".json" and folder.is_file():
        return config.read(folder)
    if folder is None or not folder.is_dir():
        known = hub.find(name)
        if known is not None:
            return hub.shipped_config(known)
        folder = hub.downloaded_snapshot(*hub.split(name)) if name.count("/") == 1 else None
    return {} if folder is None else config.read(folder / "config.json")


def _is_gguf(name: str) -> bool:
    path = Path(name).expanduser()
    return path.is_file() and gguf.is_gguf(path)
