"""The quantizations in which a model is measured or predicted: from the options, and from how its checkpoint is
stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path
from typing import Any

from profiler import devices, registry
from profiler.case import CONVERTED, MODEL, ModelNote, Source
from profiler.cost import engines
from profiler.cost.engines.base import GGUF, SAFETENSORS, Engine
from profiler.devices.base import DeviceInfo
from profiler.devices.target import Target
from profiler.errors import NotFound, ProfileError
from profiler.models import gguf as gguf_format
from profiler.models import gguf_mix
from profiler.models import scheme as schemes
from profiler.models.resolve import Model
from profiler.models.scheme import MLX
from profiler.models.stored import Stored
from profiler.quants import checkpoint
from profiler.quants.base import DTYPE_BYTES, Quant
from profiler.shell import command
from profiler.units import bytes_text, printable

FP8_FLOPS = "fp8"
AS_GGUF = {"bf16": "bf16", "fp16": "f16", "fp32": "f32"}
AS_GGUF_PACKED = {"mxfp4": "mxfp4"}  # quantizations of checkpoints that llama.cpp's converter keeps
MEASURE_ANOTHER = "measure the unquantized checkpoint with -q nf4, or predict this one with profile fit --engine vllm"

UNPACKED = "the file is unpacked into {}; --backend llama.cpp measures it as it is"


@dataclass(frozen=True, slots=True)
class QuantChoice:
    """A quantization that a model is measured in."""

    quant: Quant
    checkpoint_format: Stored | None = None  # the checkpoint, if it runs as it is stored
    reason: str | None = None  # why it cannot be measured this way
    note: str | None = None  # what transformers does to the weights


def choices(
    source: Source,
    weights: str,
    stored: Stored | None,
    requested: Sequence[Quant],
    device: DeviceInfo,
    gguf: bool = False,
) -> list[QuantChoice]:
    """The quantizations of one model of a sweep; ``requested`` is empty without -q.

    ``gguf``: the backend runs GGUF files (``Backend.gguf``), and ``requested`` has the quantizations of those that
    are written with synthetic weights.

    A checkpoint runs as it is stored. A quantized one is unpacked into a plain dtype if transformers supports only
    that; quantizing it a second time is refused.
    """
    if gguf:
        if stored is not None:
            return [QuantChoice(checkpoint.quant_of(stored), stored)]
        return [QuantChoice(quant) for quant in requested]
    usual: tuple[Quant, ...] = tuple(requested) or (_registered(own_dtype(stored, device)),)
    if source.kind == "gguf" and weights == "real" and (reason := _in_parts(Path(source.location))) is not None:
        return [QuantChoice(quant, reason=reason) for quant in usual]
    if source.kind == "gguf" and weights == "real":
        return [QuantChoice(quant, reason=_unknown(quant), note=UNPACKED.format(quant.name)) for quant in usual]
    if weights == "synthetic":
        own = schemes.of(source.config)
        if not requested and own is not None and own.name in registry.names("quants"):
            usual = (_registered(own.name),)
        return [QuantChoice(quant, reason=_unknown(quant)) for quant in usual]
    if stored is None or stored.scheme is None:
        return [QuantChoice(quant, reason=_unknown(quant)) for quant in usual]
    return [_of_checkpoint(stored, quant, device) for quant in requested] or [_own(stored, device)]


def _unknown(quant: Quant) -> str | None:
    known = quant.name in registry.names("quants")
    return None if known else f"its weights are not stored in {quant.name}, which can only be read from a checkpoint"


def _in_parts(file: Path) -> str | None:
    """Why transformers cannot read a GGUF file that is the first of several; ``None`` if it is the only one."""
    named = gguf_format.PART.fullmatch(file.name)
    if named is None or not gguf_format.header(file).is_split:
        return None
    whole = file.with_name(f"{named['name'].rstrip('-')}.gguf")
    joined = command("llama-gguf-split", "--merge", str(file), str(whole))
    other = "measure them with profile sweep --backend llama.cpp"
    return f"transformers cannot read a file in parts: join them with {joined}, or {other}"


def _own(stored: Stored, device: DeviceInfo) -> QuantChoice:
    """The choice without -q: as stored if possible, else unpacked, else refused."""
    kept = checkpoint.not_as_stored(stored, device) is None
    if stored.trouble is None and not kept and checkpoint.not_unpacked(stored) is None:
        return _of_checkpoint(stored, _registered(own_dtype(stored, device)), device)
    return _of_checkpoint(stored, checkpoint.quant_of(stored), device)


def _of_checkpoint(stored: Stored, quant: Quant, device: DeviceInfo) -> QuantChoice:
    """The choice ``quant`` for a checkpoint that is already quantized."""
    if stored.trouble is not None:
        as_stored = stored if quant.name == stored.quant else None
        return QuantChoice(quant, as_stored, f"its weights cannot be read: {stored.trouble}")
    if quant.name == stored.quant:
        reason = checkpoint.not_as_stored(stored, device)
        if reason is None:
            return QuantChoice(replace(quant, dtype=stored.dtype), stored)
        unpacking = checkpoint.not_unpacked(stored)
        instead = MEASURE_ANOTHER if unpacking else f"-q {stored.dtype or 'bf16'} measures it unpacked"
        if stored.uneven and unpacking:  # put the file's own problem first; the user knows the device
            reason = f"{unpacking}, and {reason}"
        return QuantChoice(quant, stored, f"its weights are stored in {stored.quant}: {reason}; {instead}")
    if quant.name not in DTYPE_BYTES:
        return QuantChoice(
            quant, reason=f"its weights are quantized already ({stored.quant}): leave -q {quant.name} out"
        )
    reason = checkpoint.not_unpacked(stored)
    if reason is not None:
        return QuantChoice(
            quant, reason=f"its weights are stored in {stored.quant}: {reason}; leave -q out, or {MEASURE_ANOTHER}"
        )
    return QuantChoice(quant, note=f"transformers unpacks {stored.quant} into {quant.name}")


def never_loaded(model: Model, device: DeviceInfo) -> str | None:
    """Why a checkpoint whose headers are not on this machine could not be loaded; ``None`` if it could."""
    stored = held(model)
    return None if stored is None or stored.scheme is None else _own(stored, device).reason


def _registered(name: str) -> Quant:
    found: Quant = registry.load("quants", name, "quantization").QUANT
    return found


@dataclass(frozen=True, slots=True)
class EngineQuant:
    """A quantization in which one engine's predictions for a model are made."""

    quant: str
    checkpoint_format: Stored | None = None  # the checkpoint, if it is predicted as it is stored
    dtype: str | None = None  # of unquantized weights; None: the device's compute dtype
    cautions: tuple[str, ...] = ()
    measurable: bool = True  # as ``Named.measurable``


def held(model: Model) -> Stored | None:
    """How a model's checkpoint is stored, from its headers or its config; ``None`` if neither says."""
    if model.stored is not None:
        return model.stored if model.stored.weights else None
    scheme = schemes.of(model.source.config)
    return None if scheme is None else checkpoint.from_config(model.geometry, scheme, model.source.config)


def engine_quants(
    model: Model,
    stored: Stored | None,
    engine: Engine,
    target: Target,
    requested: Sequence[str],
    usual: Sequence[str],
) -> list[EngineQuant]:
    """The quantizations to predict for ``engine``; ``usual`` are its defaults if nothing else decides.

    Raises NotFound for a name that neither the engine nor the checkpoint has, and ProfileError if the checkpoint is
    not available in it.
    """
    if stored is None:
        scheme = schemes.of(model.source.config)
        if scheme is not None and not requested:
            raise ProfileError(
                f"{model.name}: its config says {scheme.name}, but not enough to compute the size of the weights",
                "Give a folder with the weights, or choose a quantization with -q.",
            )
        known = dict.fromkeys(checked(engine, quant) for quant in requested or usual)
        return [EngineQuant(quant) for quant in known]
    if not requested:
        return _by_itself(model, stored, engine, target, usual)
    found: list[EngineQuant] = []
    for word in dict.fromkeys(word.casefold() for word in requested):
        in_any_dtype = GGUF not in engine.reads  # loads what is not quantized in any dtype
        if _same(word, stored.quant) and not (in_any_dtype and (stored.gguf or not stored.packed)):
            own = _by_itself(model, stored, engine, target, (word,))
            if stored.scheme is not None and own[0].checkpoint_format is None and not _same(word, own[0].quant):
                raise ProfileError(
                    f"{model.name}: -q {stored.quant}: {own[0].cautions[0]}", f"Use -q {own[0].quant}."
                )
            found += own
        else:
            found.append(_another(model, stored, engine, checked(engine, word)))
    return found


def checked(engine: Engine, quant: str) -> str:
    """``quant`` as ``engine`` spells it. Raises NotFound naming the engines that have it, or similar names of any."""
    try:
        return engine.check(quant)
    except NotFound as error:
        every = [each for each in map(engines.find, engines.names()) if each.like == each.name]  # none twice
        having = [f"--engine {each.name}" for each in every if has(each, quant)]
        if having:
            raise NotFound(error.message, f"{registry.listed(having, 'or')} has it. {error.hint}") from None
        if registry.nearest(quant, engine.quants):
            raise
        if gguf_mix.only_in_files(quant):
            raise NotFound(error.message, f"Pass a GGUF file that is stored in it. {error.hint}") from None
        near = registry.nearest(quant, dict.fromkeys(name for each in every for name in each.quants))
        raise NotFound(error.message, f"{registry.did_you_mean(near)}{error.hint}") from None


def defaults(engine: Engine, target: Target) -> tuple[str, ...]:
    """What people usually run in ``engine``, in a dtype that the device has."""
    own = (target.default_dtype if quant in target.unsupported_dtypes else quant for quant in engine.usual_quants)
    return tuple(dict.fromkeys(own))


def has(engine: Engine, quant: str) -> bool:
    """Whether an engine has a quantization of this name."""
    try:
        return bool(engine.check(quant))
    except NotFound:
        return False


def _same(word: str, quant: str) -> bool:
    return word.casefold().replace("_", "-") == quant.casefold().replace("_", "-")


def _by_itself(
    model: Model, stored: Stored, engine: Engine, target: Target, usual: Sequence[str]
) -> list[EngineQuant]:
    """The checkpoint as ``engine`` runs it by default."""
    if stored.gguf:
        if GGUF in engine.reads:
            return [EngineQuant(stored.quant, stored)]
        return [_unpacked_gguf(stored, checked(engine, quant)) for quant in usual]
    if SAFETENSORS not in engine.reads:
        return [_converted(model, stored, engine)]
    if not stored.packed:
        return [_plain(model, stored, engine, target)]
    if engine.loads_with_transformers:
        return [_by_transformers(stored, target)]
    mlx = stored.scheme is not None and stored.scheme.method == MLX
    told = f"{engine.name} does not read MLX checkpoints" if mlx and MLX not in engine.reads else None
    return [EngineQuant(stored.quant, stored, stored.dtype or "bf16", (told,) if told else ())]


def _plain(model: Model, stored: Stored, engine: Engine, target: Target) -> EngineQuant:
    """A checkpoint that is not quantized, in the dtype in which ``engine`` loads it."""
    if engine.loads_with_transformers:
        notes = dtype_notes(stored, model.source.config, target)
        return EngineQuant(own_dtype(stored, target), cautions=tuple(note.text for note in notes))
    if stored.dtype is not None and stored.dtype in engine.quants and stored.dtype not in target.unsupported_dtypes:
        return EngineQuant(stored.dtype)
    dtype = defaults(engine, target)[0]
    told = f"the checkpoint's weights are stored in {stored.dtype}, and {engine.name} loads them in {dtype}"
    return EngineQuant(dtype, cautions=(told,))


def own_dtype(stored: Stored | None, device: DeviceInfo | Target) -> str:
    """The dtype in which transformers loads weights that are not quantized, if no -q names one.

    It is that of most bytes of the checkpoint, so that the model runs as it is stored. Weights that do not come from
    safetensors, or whose dtype ``device`` does not support, are loaded in the device's default dtype.
    """
    if stored is None or stored.gguf or stored.dtype not in DTYPE_BYTES:
        return device.default_dtype
    return device.default_dtype if stored.dtype in device.unsupported_dtypes else stored.dtype


def dtype_notes(stored: Stored | None, config: Mapping[str, Any], device: DeviceInfo | Target) -> list[ModelNote]:
    """Notes on a checkpoint that is not quantized, if ``own_dtype`` is not that of all its weights and its config."""
    if stored is None or stored.packed or stored.gguf or stored.dtype is None:
        return []
    dtype = own_dtype(stored, device)
    found: list[ModelNote] = []
    if stored.dtype != dtype:
        kept = f"; -q {stored.dtype} keeps it" if stored.dtype in DTYPE_BYTES else ""
        text = f"the checkpoint's weights are stored in {stored.dtype} and loaded in {dtype}, the device's default"
        found.append(ModelNote(f"{text}{kept}", CONVERTED))
    for other in sorted({each.scheme for each in stored.weights} - {stored.dtype, dtype}):
        held = [each for each in stored.weights if each.scheme == other]
        size, most = bytes_text(sum(each.nbytes for each in held)), max(held, key=attrgetter("nbytes"))
        names = printable(most.path, 80) + (f" and {len(held) - 1} more" if len(held) > 1 else "")
        found.append(ModelNote(f"{size} of weights ({names}) are stored in {other} and loaded in {dtype}", CONVERTED))
    stated = checkpoint.stated_dtype(config)
    if stated not in (None, stored.dtype):
        text = f"config.json says {stated}, but most of the checkpoint's weights are stored in {stored.dtype}"
        found.append(ModelNote(f"{text}; transformers by itself would load them in {stated}", MODEL))
    return found


def compute_dtype(target: Target, quant: str = "") -> str:
    """The compute dtype: the one that the quantization fixes, or the default one of the device."""
    return quant if quant in DTYPE_BYTES else target.default_dtype


def _converted(model: Model, stored: Stored, engine: Engine) -> EngineQuant:
    if stored.quant in AS_GGUF_PACKED:
        kept = AS_GGUF_PACKED[stored.quant]
        return EngineQuant(kept, cautions=(f"{engine.name} reads GGUF files: predicted as if converted to {kept}",))
    if stored.packed or stored.dtype not in AS_GGUF:
        raise ProfileError(
            f"{model.name}: its weights are stored in {stored.quant}, and {engine.name} reads GGUF files only",
            "-q q4_k_m predicts a GGUF file of the unquantized model; --engine vllm predicts this checkpoint.",
        )
    quant = AS_GGUF[stored.dtype]
    return EngineQuant(quant, cautions=(f"{engine.name} reads GGUF files: predicted as if converted to {quant}",))


def _by_transformers(stored: Stored, target: Target) -> EngineQuant:
    """As stored if transformers can run that, else unpacked; if neither, as stored with the reason why no sweep
    can."""
    reason = _not_kept(stored, target)
    if reason is None:
        return EngineQuant(stored.quant, stored, stored.dtype)
    size = f"{stored.quant} takes {bytes_text(stored.nbytes)}"
    if checkpoint.not_unpacked(stored) is None and stored.trouble is None:
        dtype = own_dtype(stored, target)
        return EngineQuant(dtype, None, dtype, (f"{reason}: it is unpacked into {dtype}; {size}",))
    told = (f"profile sweep cannot run it: {reason}",)
    return EngineQuant(stored.quant, stored, stored.dtype, told, measurable=False)


def _not_kept(stored: Stored, target: Target) -> str | None:
    """Why transformers does not run it as stored. Which packages another machine has is unknown here."""
    if target.local:
        return checkpoint.not_as_stored(stored, devices.find(target.local))
    return checkpoint.never_as_stored(stored, FP8_FLOPS in target.flops)


def _another(model: Model, stored: Stored, engine: Engine, quant: str) -> EngineQuant:
    """A quantization that would be made from the checkpoint."""
    if engine.loads_with_transformers and stored.quant in AS_GGUF_PACKED and quant in DTYPE_BYTES:
        told = f"predicted as unpacked into {quant}, which transformers does where it cannot run {stored.quant}"
        return EngineQuant(quant, None, quant, (told,))
    if engine.loads_with_transformers and stored.scheme is not None:
        reason = checkpoint.not_unpacked(stored) if quant in DTYPE_BYTES else "it cannot be quantized a second time"
        if reason is not None:
            raise ProfileError(f"{model.name}: its weights are stored in {stored.quant}: {reason}", "Leave -q out.")
        return EngineQuant(quant, None, quant, (f"predicted as unpacked into {quant}",))
    if not stored.packed and not stored.gguf:
        return EngineQuant(quant)
    if stored.gguf and GGUF not in engine.reads:
        return _unpacked_gguf(stored, quant)
    if not stored.gguf and stored.quant in AS_GGUF_PACKED and GGUF in engine.reads:
        # All files on bartowski's page of gpt-oss-20b keep the feed-forward weights in MXFP4.
        kept = AS_GGUF_PACKED[stored.quant]
        told = f"predicted as {quant} in every layer; published files of this name keep the experts in {kept}"
        return EngineQuant(quant, cautions=(f"{told}, which -q {kept} predicts",))
    return EngineQuant(quant, cautions=(f"predicted as {quant}, not as the {stored.quant} of this checkpoint",))


def _unpacked_gguf(stored: Stored, quant: str) -> EngineQuant:
    told = f"the file's {bytes_text(stored.nbytes)} of {stored.quant} are unpacked and stored again as {quant}"
    return EngineQuant(quant, cautions=(told,))
