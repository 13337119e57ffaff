"""In which quantization a model is measured or predicted: what was asked for, and how its checkpoint is stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from profiler import devices, registry
from profiler.case import Source
from profiler.cost import engines
from profiler.cost.engines.base import Engine
from profiler.devices.base import DeviceInfo
from profiler.devices.target import Target
from profiler.errors import NotFound, ProfileError
from profiler.models import scheme as schemes
from profiler.models.resolve import Model
from profiler.models.scheme import MLX
from profiler.models.stored import Stored
from profiler.quants import checkpoint
from profiler.quants.base import DTYPE_BYTES, Quant
from profiler.units import bytes_text

FP8_FLOPS = "fp8"
GGUF_ENGINES = ("llama.cpp", "vllm")
AS_GGUF = {"bf16": "bf16", "fp16": "f16", "fp32": "f32"}
MEASURE_ANOTHER = "measure the unquantized checkpoint with -q nf4, or predict this one with profile fit --engine vllm"


@dataclass(frozen=True, slots=True)
class QuantChoice:
    """A quantization that a model is measured in."""

    quant: Quant
    stored: Stored | None = None  # the checkpoint, where it is run as it is stored
    refused: str | None = None  # why it cannot be measured so, in words
    note: str | None = None  # what transformers does to the weights, in words


def choices(
    source: Source, weights: str, stored: Stored | None, asked: Sequence[Quant], device: DeviceInfo
) -> list[QuantChoice]:
    """The quantizations of one model of a sweep; ``asked`` is empty where no -q was given.

    A checkpoint that is quantized already is run as it is stored, or unpacked into a plain dtype where transformers
    does only that; a second quantization on top of the first is refused.
    """
    usual: tuple[Quant, ...] = tuple(asked) or (_registered(device.default_dtype),)
    if weights == "synthetic":
        own = schemes.of(source.config)
        if not asked and own is not None and own.name in registry.names("quants"):
            usual = (_registered(own.name),)
        return [QuantChoice(quant, refused=_unknown(quant)) for quant in usual]
    if stored is None or stored.scheme is None:
        return [QuantChoice(quant, refused=_unknown(quant)) for quant in usual]
    return [_of_checkpoint(stored, quant, device) for quant in asked] or [_own(stored, device)]


def _unknown(quant: Quant) -> str | None:
    known = quant.name in registry.names("quants")
    return None if known else f"its weights are not stored in {quant.name}, and nothing here quantizes to it"


def _own(stored: Stored, device: DeviceInfo) -> QuantChoice:
    """Without -q: as it is stored, else unpacked, else not at all."""
    kept = checkpoint.not_as_stored(stored, device) is None
    if stored.trouble is None and not kept and checkpoint.not_unpacked(stored) is None:
        return _of_checkpoint(stored, _registered(stored.dtype or device.default_dtype), device)
    return _of_checkpoint(stored, checkpoint.quant_of(stored), device)


def _of_checkpoint(stored: Stored, quant: Quant, device: DeviceInfo) -> QuantChoice:
    """``quant`` of a checkpoint that is quantized already."""
    if stored.trouble is not None:
        as_stored = stored if quant.name == stored.quant else None
        return QuantChoice(quant, as_stored, f"its weights cannot be taken as values: {stored.trouble}")
    if quant.name == stored.quant:
        reason = checkpoint.not_as_stored(stored, device)
        if reason is None:
            return QuantChoice(replace(quant, dtype=stored.dtype), stored)
        unpacking = checkpoint.not_unpacked(stored)
        instead = MEASURE_ANOTHER if unpacking else f"-q {stored.dtype or 'bf16'} measures it unpacked"
        if stored.uneven and unpacking:  # what is particular to the file comes first; the device is known
            reason = f"{unpacking}, and {reason}"
        return QuantChoice(quant, stored, f"its weights are stored in {stored.quant}: {reason}; {instead}")
    if quant.name not in DTYPE_BYTES:
        return QuantChoice(
            quant, refused=f"its weights are quantized already ({stored.quant}): leave -q {quant.name} out"
        )
    reason = checkpoint.not_unpacked(stored)
    if reason is not None:
        return QuantChoice(
            quant, refused=f"its weights are stored in {stored.quant}: {reason}; leave -q out, or {MEASURE_ANOTHER}"
        )
    return QuantChoice(quant, note=f"transformers unpacks {stored.quant} into {quant.name}")


def never_loaded(model: Model, device: DeviceInfo) -> str | None:
    """Why a checkpoint whose headers are not here yet could not be loaded, in words; ``None`` where it could."""
    stored = held(model)
    return None if stored is None or stored.scheme is None else _own(stored, device).refused


def _registered(name: str) -> Quant:
    found: Quant = registry.load("quants", name, "quantization").QUANT
    return found


@dataclass(frozen=True, slots=True)
class QuantVariant:
    """A quantization that a model is predicted in by one engine."""

    quant: str
    stored: Stored | None = None  # the checkpoint, where it is predicted as it is stored
    dtype: str | None = None  # of what is not quantized; None: as the device computes
    cautions: tuple[str, ...] = ()


def held(model: Model) -> Stored | None:
    """How a model's checkpoint is stored, by its headers or by what its config says; ``None`` where neither does."""
    if model.stored is not None:
        return model.stored if model.stored.weights else None
    scheme = schemes.of(model.source.config)
    return None if scheme is None else checkpoint.from_config(model.geometry, scheme, model.source.config)


def variants(
    model: Model, stored: Stored | None, engine: Engine, target: Target, asked: Sequence[str], usual: Sequence[str]
) -> list[QuantVariant]:
    """The quantizations that ``engine`` is predicted with; ``usual`` are the engine's own where nothing else decides.

    Raises NotFound for a name that neither the engine nor the checkpoint has, ProfileError where the checkpoint
    cannot be had in it.
    """
    if stored is None:
        scheme = schemes.of(model.source.config)
        if scheme is not None and not asked:
            raise ProfileError(
                f"{model.name}: its config says {scheme.name}, and not enough of it to tell what its weights take",
                "Give a folder with the weights, or name a quantization with -q.",
            )
        return [QuantVariant(quant) for quant in dict.fromkeys(checked(engine, quant) for quant in asked or usual)]
    if not asked:
        return _by_itself(model, stored, engine, target, usual)
    found: list[QuantVariant] = []
    for word in dict.fromkeys(word.casefold() for word in asked):
        if _same(word, stored.quant) and not (stored.gguf and engine.name not in GGUF_ENGINES):
            own = _by_itself(model, stored, engine, target, (word,))
            if stored.scheme is not None and own[0].stored is None:
                raise ProfileError(
                    f"{model.name}: -q {stored.quant}: {own[0].cautions[0]}", f"Use -q {own[0].quant}."
                )
            found += own
        else:
            found.append(_another(model, stored, engine, checked(engine, word)))
    return found


def checked(engine: Engine, quant: str) -> str:
    """``quant`` as ``engine`` spells it. NotFound, which names the engines that have it."""
    try:
        return engine.check(quant)
    except NotFound as error:
        others = registry.listed([f"--engine {name}" for name in engines.names() if _has(name, quant)], "or")
        raise NotFound(error.message, f"{others} has it. {error.hint}" if others else error.hint) from None


def _has(engine: str, quant: str) -> bool:
    try:
        return bool(engines.find(engine).check(quant))
    except NotFound:
        return False


def _same(word: str, quant: str) -> bool:
    return word.casefold().replace("_", "-") == quant.casefold().replace("_", "-")


def _by_itself(
    model: Model, stored: Stored, engine: Engine, target: Target, usual: Sequence[str]
) -> list[QuantVariant]:
    """A checkpoint as ``engine`` runs it when it is told nothing more."""
    if stored.gguf:
        if engine.name in GGUF_ENGINES:
            return [QuantVariant(stored.quant, stored)]
        return [_unpacked_gguf(stored, checked(engine, quant)) for quant in usual]
    if engine.name == "llama.cpp":
        return [_converted(model, stored, engine)]
    if not stored.packed:
        dtype = stored.dtype if stored.dtype in DTYPE_BYTES else None
        return (
            [QuantVariant(_plain(engine, dtype))]
            if dtype
            else [QuantVariant(checked(engine, quant)) for quant in usual]
        )
    if engine.name == "transformers":
        return [_by_transformers(stored, target)]
    mlx = stored.scheme is not None and stored.scheme.method == MLX
    told = f"{engine.name} does not read MLX checkpoints" if mlx else None
    return [QuantVariant(stored.quant, stored, stored.dtype or "bf16", (told,) if told else ())]


def _plain(engine: Engine, dtype: str) -> str:
    return dtype if dtype in engine.quants else engine.default_quant


def _converted(model: Model, stored: Stored, engine: Engine) -> QuantVariant:
    if stored.packed or stored.dtype not in AS_GGUF:
        raise ProfileError(
            f"{model.name}: its weights are stored in {stored.quant}, and {engine.name} reads GGUF files only",
            "-q q4_k_m predicts a GGUF file of the unquantized model, --engine vllm this checkpoint.",
        )
    quant = AS_GGUF[stored.dtype]
    return QuantVariant(quant, cautions=(f"{engine.name} reads GGUF files: predicted as converted to {quant}",))


def _by_transformers(stored: Stored, target: Target) -> QuantVariant:
    """As stored, unpacked, or priced as it is stored with the reason why a sweep would not run it."""
    reason = _not_kept(stored, target)
    if reason is None:
        return QuantVariant(stored.quant, stored, stored.dtype)
    size = f"{stored.quant} takes {bytes_text(stored.nbytes)}"
    if checkpoint.not_unpacked(stored) is None and stored.trouble is None:
        dtype = stored.dtype or "bf16"
        return QuantVariant(dtype, None, dtype, (f"{reason}: it is unpacked into {dtype}; {size}",))
    return QuantVariant(stored.quant, stored, stored.dtype, (f"profile sweep cannot run it: {reason}",))


def _not_kept(stored: Stored, target: Target) -> str | None:
    """Why transformers does not run it as it is stored. What is installed on another machine is not known here."""
    if target.local:
        return checkpoint.not_as_stored(stored, devices.find(target.local))
    return checkpoint.never_as_stored(stored, FP8_FLOPS in target.flops)


def _another(model: Model, stored: Stored, engine: Engine, quant: str) -> QuantVariant:
    """Not the checkpoint as it is, but what would be made of it."""
    if engine.name == "transformers" and stored.scheme is not None:
        reason = checkpoint.not_unpacked(stored) if quant in DTYPE_BYTES else "it is not quantized a second time"
        if reason is not None:
            raise ProfileError(f"{model.name}: its weights are stored in {stored.quant}: {reason}", "Leave -q out.")
        return QuantVariant(quant, None, quant, (f"predicted as unpacked into {quant}",))
    if not stored.packed and not stored.gguf:
        return QuantVariant(quant)
    if stored.gguf and engine.name not in GGUF_ENGINES:
        return _unpacked_gguf(stored, quant)
    return QuantVariant(quant, cautions=(f"predicted as {quant}, not as the {stored.quant} of this checkpoint",))


def _unpacked_gguf(stored: Stored, quant: str) -> QuantVariant:
    told = f"the file's {bytes_text(stored.nbytes)} of {stored.quant} are unpacked and stored again as -q says"
    return QuantVariant(quant, cautions=(told,))
