"""Loads the model of a case: real weights from safetensors or GGUF, or synthetic ones.

Only the text decoder is loaded, and never remote code. After loading, the tensors that transformers used are compared
with the headers of the checkpoint.

**Loading errors.** ``utils/loading_report.py`` of transformers 5.23 logs a table of the weights that could not be
converted or have another shape, and raises a RuntimeError that says "look at the above report". Our message comes
from ``loading_info``, the source of that table, which the frames of the exception still hold.

**GGUF.** transformers needs minutes to read a GGUF file, so it is unpacked once, into a folder of safetensors in the
user's cache under ``profile/gguf``. The folder may be deleted at any time. It holds the values that the quantized
file stands for, in the dtype of the case, or in fp32 if the file itself is fp32, which 16 bits would round.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import sys
import tempfile
import traceback
from collections.abc import Iterator, Mapping, Sized
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from math import prod
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoModelForCausalLM, GenerationConfig, PretrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from profiler import folders, quants, registry
from profiler.backends.base import Beat
from profiler.backends.hf import synthetic
from profiler.backends.hf.ceilings import DTYPES
from profiler.case import Case, Source
from profiler.devices.base import Meter
from profiler.errors import ProfileError
from profiler.files import content_id
from profiler.models import families, safetensors
from profiler.models import gguf as models_gguf
from profiler.models import scheme as schemes
from profiler.models.account import BASE, TEXT_TOWER, Account, in_text_model
from profiler.models.checkpoint import NAMED_ELSEWHERE, account_of, gguf_spans, is_quantized
from profiler.models.geometry import Geometry
from profiler.models.layers import Weight
from profiler.models.safetensors import INDEX, SINGLE
from profiler.models.scheme import BITSANDBYTES, Scheme
from profiler.models.stored import from_safetensors
from profiler.quants import checkpoint
from profiler.quants.base import Quant
from profiler.quants.bitsandbytes import repackable
from profiler.units import bytes_text, printable

ABOUT_FILES = ("auto_map", "quantization_config", NAMED_ELSEWHERE)  # fields of a config that describe files

DISAGREE = "The config and the tensors do not agree on which weights are quantized."
CHANGED = "The files may have changed while they were read: try again."
MISMATCH = "Config and weights belong to different models, or one of the files is damaged: download them again."
LAST_LINE = re.compile(r"^[A-Za-z_][\w.]*(?:Error|Exception|Warning|Interrupt)\b.*", re.MULTILINE)  # of a traceback

UNPACKED_VERSION = 2  # of the way in which GGUF files are unpacked; folders of another version are not used
UNPACKED_DTYPE = torch.bfloat16  # unless a case needs another one
DISK_MARGIN = 1.1  # free disk space that is required ÷ the size of the unpacked tensors


def load(case: Case, source: Source, meter: Meter, beat: Beat) -> PreTrainedModel:
    """The model of a case, in evaluation mode. Raises ProfileError when the weights do not fit the model.

    Afterwards, the peak of ``meter`` is that of loading alone, without unpacking a GGUF file.
    """
    transformers.logging.set_verbosity_error()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    dtype, device = DTYPES[case.dtype], torch.device(case.device)
    config = text_config(source)
    stated = None if source.kind == "gguf" or case.weights == "synthetic" else schemes.of(source.config)
    if case.weights == "synthetic":
        model = synthetic.build(config, dtype, device, _quant(case), case.seed, beat)
    else:
        quantization = None if stated is not None else _quant(case).load_config(case.dtype)
        folder = _folder(source, config, beat, case.model_id, dtype)
        if source.kind != "gguf" and (own := _own_quantization(case, source, folder, stated)) is not None:
            config.quantization_config = (
                own  # makes transformers load the checkpoint as one that is quantized already
            )
        meter.reset_peak()
        model = _real(config, folder, source, dtype, device, quantization, beat)
    _keep_packing(model)
    return model


def _quant(case: Case) -> Quant:
    found: Quant = registry.load("quants", case.quant, "quantization").QUANT
    return found


def _own_quantization(case: Case, source: Source, folder: Path, stated: Scheme | None) -> dict[str, Any] | None:
    """The quantization config of a checkpoint, for transformers' own quantizer; ``None`` for a plain checkpoint.

    Raises ProfileError if transformers would misread the weights, or if it can neither run the checkpoint as it is
    stored nor unpack it into the case's quantization.
    """
    stored = from_safetensors(families.geometry(source.config), safetensors.verify(folder), stated)
    name = printable(folder.name)
    if stored.trouble is not None:
        raise ProfileError(f"{name}: its weights cannot be read: {stored.trouble}")
    if stated is None:
        return None
    own = {**stated.config, "bnb_4bit_compute_dtype": str(DTYPES[case.dtype]).removeprefix("torch.")}
    if stated.method != BITSANDBYTES:
        del own["bnb_4bit_compute_dtype"]
    if stated.left_out is not None:  # in a multimodal model, by the names that the modules have in its text decoder
        own[stated.left_out_by] = list(stated.left_out.words)
    if case.quant == stated.name:
        return own
    reason = checkpoint.not_unpacked(stored) if case.quant in DTYPES else "it cannot be quantized a second time"
    if reason is not None:
        raise ProfileError(f"{name}: its weights are stored in {stated.name}: {reason}")
    return own | {"dequantize": True}


def _keep_packing(model: PreTrainedModel) -> None:
    """Keep bitsandbytes from repacking weights that it cannot repack.

    On CPUs with AVX512-BF16, it repacks 4-bit weights in their first pass, in blocks of 32 rows and 64 columns. It
    raises an error for a weight that does not consist of whole blocks: Qwen 3.5 has projections of 16 and 48 rows.
    """
    bitsandbytes = sys.modules.get("bitsandbytes")
    if bitsandbytes is None:  # a model with its modules has imported it
        return
    for module in model.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            shape = (module.out_features, module.in_features)
            if not repackable(Weight("linear", shape)):
                module.support_avx512bf16_for_cpu = False


def text_config(source: Source) -> PretrainedConfig:
    """The transformers config of the text decoder. Raises ProfileError for a model_type unknown to transformers."""
    raw = {name: value for name, value in source.config.items() if name not in ABOUT_FILES}
    kind = raw.get("model_type")
    if kind not in CONFIG_MAPPING:
        raise ProfileError(f"transformers {transformers.__version__} does not know model_type {printable(kind)}")
    whole: PretrainedConfig = CONFIG_MAPPING[kind].from_dict(raw)
    config: PretrainedConfig = whole.get_text_config(decoder=True)
    if hasattr(
        config, "quantization_config"
    ):  # stated for the text decoder alone; ``load`` sets the one that applies
        del config.quantization_config
    config.tie_word_embeddings = families.geometry(raw).tied  # some checkpoints state it only outside the text config
    return config


def _real(
    config: PretrainedConfig,
    folder: Path,
    source: Source,
    dtype: torch.dtype,
    device: torch.device,
    quantization: Any,
    beat: Beat,
) -> PreTrainedModel:
    """Load a folder of safetensors, which must hold every weight of the text decoder."""
    name = printable(Path(source.location).name)
    beat(f"load {name}")
    expected = Expected.of(folder, source.config, name)
    with weights_alone(folder) as alone, _quantizer_errors(name, config):
        loaded, report = AutoModelForCausalLM.from_pretrained(
            alone,
            config=config,
            generation_config=GenerationConfig(),  # decoding is greedy, whatever the checkpoint's own config says
            dtype=dtype,
            quantization_config=quantization,
            device_map={"": device},
            attn_implementation=synthetic.attention_of(config),
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # check_loaded refuses them with a clearer message
            key_mapping=TEXT_TOWER,
        )
    check_loaded(loaded, report, expected, name)
    model: PreTrainedModel = loaded.eval().requires_grad_(False)
    return model


@contextmanager
def _quantizer_errors(name: str, config: PretrainedConfig) -> Iterator[None]:
    """Raises ProfileError for the errors that transformers' quantizers raise if they cannot load a checkpoint."""
    own = getattr(config, "quantization_config", None)
    try:
        yield
    except (ImportError, ValueError, TypeError, LookupError, AttributeError, NotImplementedError) as error:
        if own is None:
            raise
        words = printable(str(error).partition("\n")[0] or type(error).__name__, 200)
        method = printable(own.get("quant_method", "its quantization"), 40)
        raise ProfileError(f"{name}: transformers cannot load {method}: {words}") from error


def _folder(source: Source, config: PretrainedConfig, beat: Beat, identity: str, dtype: torch.dtype) -> Path:
    """The folder with the safetensors of a source. ``identity`` is the hash of its content."""
    if source.kind == "folder":
        return Path(source.location)
    if source.kind == "gguf":
        return unpack_gguf(Path(source.location), config, beat, identity, dtype)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(source.location, revision=source.revision, local_files_only=True))


def unpack_gguf(
    gguf: Path,
    config: PretrainedConfig,
    beat: Beat,
    identity: str | None = None,
    computed_in: torch.dtype = UNPACKED_DTYPE,
) -> Path:
    """The folder of safetensors for ``gguf`` and cases in the dtype ``computed_in``, created on first use.

    ``identity`` is the hash of the file's content, if it is known already. Raises ProfileError if the disk is too
    small, or if transformers finds no values for a weight.
    """
    cache = folders.cache("gguf")
    header = models_gguf.header(gguf)
    if header.is_split:
        raise ProfileError(
            f"{printable(gguf.name)} is one part of a split file, which transformers cannot read",
            "Merge its parts: llama-gguf-split --merge FIRST.gguf MERGED.gguf",
        )
    identity = identity or content_id(gguf_spans(gguf, header))
    dtype = _unpacked_dtype(header, computed_in)
    other = "" if dtype == _unpacked_dtype(header, UNPACKED_DTYPE) else f"-{str(dtype).removeprefix('torch.')}"
    target = cache / f"{identity}-transformers-{transformers.__version__}-{UNPACKED_VERSION}{other}"
    if os.path.lexists(target):
        if _is_ours(target, cache):
            return target
        _move_away(target)
    if not os.access(cache, os.W_OK):
        cache = folders.scratch("gguf")
        target = cache / target.name
    _remove_partial(cache)
    size = sum(prod(tensor.shape) for tensor in header.tensors.values()) * dtype.itemsize
    free = shutil.disk_usage(cache).free
    if size * DISK_MARGIN > free:
        name = printable(gguf.name)
        raise ProfileError(f"{name} takes {bytes_text(size)} unpacked, and {cache} has {bytes_text(free)} free")
    beat(f"load: unpacking {printable(gguf.name)} into {bytes_text(size)} of safetensors, once")
    partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
    try:
        _write_unpacked(gguf, config, dtype, partial)
        partial.rename(target)
    except OSError:
        if not target.exists():  # another process may have been first
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def _unpacked_dtype(header: models_gguf.GgufHeader, computed_in: torch.dtype) -> torch.dtype:
    """The smallest dtype that holds all values of the file as exactly as a case in ``computed_in`` uses them."""
    types = {
        models_gguf.TYPE_NAMES.get(tensor.type_id) for tensor in header.tensors.values() if len(tensor.shape) > 1
    }
    if types == {"f32"}:
        return torch.float32
    return UNPACKED_DTYPE if types == {"bf16"} else computed_in


def _is_ours(target: Path, cache: Path) -> bool:
    """Whether no other user can have written the folder or a file in it. If one may have, the user is told."""
    for path in chain([target], target.rglob("*")):  # links are not followed
        why = folders.distrust(path, cache)
        if why is not None:
            folders.note(f"{why}: the file is unpacked again")
            return False
    return True


def _move_away(target: Path) -> None:
    """Rename a folder that we do not trust, so that its name is free, and remove what can be removed of it."""
    away = target.with_name(f"{target.name}.{os.getpid()}.partial")
    target.rename(away)
    if away.is_symlink() or not away.is_dir():
        away.unlink()
    else:
        shutil.rmtree(away, ignore_errors=True)


def _write_unpacked(gguf: Path, config: PretrainedConfig, dtype: torch.dtype, folder: Path) -> None:
    """Write ``gguf`` to ``folder`` in ``dtype``. Passing the config saves one slow read of the vocabulary.

    Raises ProfileError if transformers found no values for a weight, which would be saved with random ones.
    """
    model, report = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, config=config, dtype=dtype, output_loading_info=True
    )
    absent = sorted(report["missing_keys"]) + sorted(str(key) for key in report["mismatched_keys"])
    if absent:
        raise ProfileError(f"{printable(gguf.name)}: transformers found no values for {_several(absent, 'weight')}")
    model.hf_quantizer = None  # otherwise transformers refuses to save it, although it is now plain tensors
    with suppress(AttributeError):
        del model.config.quantization_config
    model.save_pretrained(folder)
    _make_private(folder)


def _make_private(folder: Path) -> None:
    """Allow access to nobody but the user, whatever the umask."""
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o700 if path.is_dir() else 0o600)


def _remove_partial(cache: Path) -> None:
    """Remove unfinished folders of processes that were killed."""
    for partial in cache.glob("*.partial"):
        pid = partial.name.split(".")[-2]
        if not Path(f"/proc/{pid}").exists():
            shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def weights_alone(folder: Path) -> Iterator[Path]:
    """A temporary folder of links to the weight files of ``folder``.

    In ``folder`` itself, transformers would also attach an adapter if peft is installed, and would prefer a
    distributed checkpoint, or a file that the config names, to the weights that we checked. Raises ProfileError if
    the temporary folder cannot be created.
    """
    paths = safetensors.shards(folder) or []
    if not (folder / SINGLE).is_file():
        paths = [*paths, folder / INDEX]
    with ExitStack() as kept:
        try:
            links = Path(kept.enter_context(tempfile.TemporaryDirectory(prefix="profile-weights-")))
            for path in paths:
                os.symlink(path.absolute(), links / path.name)
        except OSError as error:
            raise ProfileError(
                f"cannot link to the weights in a temporary folder: {printable(error.strerror or error)}",
                "Set TMPDIR to a folder that can be written to.",
            ) from error
        yield links


@dataclass(frozen=True, slots=True)
class Expected:
    """The model that a checkpoint should give, according to its config and headers."""

    geometry: Geometry
    account: Account
    quantized: bool  # the checkpoint is stored quantized, so its tensors do not have the shapes of the weights

    @classmethod
    def of(cls, folder: Path, raw: Mapping[str, Any], name: str) -> Expected:
        """Raises ProfileError if config and headers disagree: the files may have changed since the plan was made."""
        try:
            geometry = families.geometry(raw)
            return cls(geometry, account_of(safetensors.verify(folder), raw, geometry), is_quantized(raw))
        except ProfileError as error:
            raise type(error)(f"{name}: {error.message}", error.hint) from None


def check_loaded(model: PreTrainedModel, report: Mapping[str, Any], expected: Expected, name: str) -> None:
    """Raise ProfileError unless the model uses every tensor that it should, and no other."""
    absent = sorted(report["missing_keys"]) + sorted(str(key[0]) for key in report["mismatched_keys"])
    if absent:
        hint = DISAGREE if expected.quantized else CHANGED
        which = _several(absent, "weight")
        raise ProfileError(f"{name}: missing from the file, or of another shape: {which}", hint)
    ignored = sorted(set(report["unexpected_keys"]) - _unused_names(expected.account))
    if ignored:
        raise ProfileError(f"{name}: transformers ignored part of the file: {_several(ignored, 'tensor')}")
    if not expected.quantized:
        _check_tie(model, expected.geometry, name)
        _check_count(model, expected.geometry, name)
        _check_values(model, name)


def _several(names: list[str], what: str) -> str:
    """``model.norm.weight``, or ``3 weights, the first of which is model.norm.weight``."""
    first = printable(names[0])
    return first if len(names) == 1 else f"{len(names)} {what}s, the first of which is {first}"


def _unused_names(accounted: Account) -> set[str]:
    """Names of tensors that the model does not use, in every form in which transformers may report them."""
    names = {in_text_model(name) for name in accounted.left_names}
    return names | {BASE + name for name in names} | {name.removeprefix(BASE) for name in names}


def _check_count(model: PreTrainedModel, geometry: Geometry, name: str) -> None:
    count = parameters(model)
    if count != geometry.parameters:
        raise ProfileError(
            f"{name}: the loaded model has {count:,} parameters, and its config describes {geometry.parameters:,}"
        )


def _check_values(model: PreTrainedModel, name: str) -> None:
    """Raise ProfileError for quantized weights in a module that would multiply them as if they were plain values."""
    packed = quants.packed_modules()
    for path, module in model.named_modules():
        for label, tensor in _own(module):
            if not tensor.is_floating_point() and type(module).__name__ not in packed:
                dtype = str(tensor.dtype).removeprefix("torch.")
                raise ProfileError(
                    f"{name}: {path}.{label} was loaded as {dtype} into a module that needs plain values"
                )


def parameters(model: PreTrainedModel) -> int:
    """Number of parameters of a loaded model, whether or not they are packed. Tied ones count once."""
    counts: dict[int, int] = {}
    packed = quants.packed_modules()
    for module in model.modules():
        for label, tensor in _own(module):
            is_packed = label == "weight" and type(module).__name__ in packed
            counts[id(tensor)] = module.in_features * module.out_features if is_packed else tensor.numel()
    return sum(counts.values())


def _own(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """A module's own parameters, and those of its buffers that checkpoints store."""
    yield from module.named_parameters(recurse=False)
    for label, buffer in module.named_buffers(recurse=False):
        if label not in module._non_persistent_buffers_set:
            yield label, buffer


def _check_tie(model: PreTrainedModel, geometry: Geometry, name: str) -> None:
    head, table = model.get_output_embeddings(), model.get_input_embeddings()
    tied = head is not None and head.weight is table.weight
    if tied != geometry.tied:
        does = "tied the output head to the embedding" if tied else "did not tie the output head to the embedding"
        raise ProfileError(f"{name}: transformers {does}, contrary to the config")


@contextmanager
def loading_errors(model: str) -> Iterator[None]:
    """Raises ProfileError with the weight and the cause, where transformers' error only refers to its log."""
    try:
        yield
    except RuntimeError as error:
        cause = _cause(error)
        if cause is None:
            raise
        raise ProfileError(f"{printable(model)}: {cause}", MISMATCH) from None


def _cause(error: RuntimeError) -> str | None:
    """How many weights could not be loaded, and why the first could not; None for an error without a report."""
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    infos = (frame.f_locals.get("loading_info") for frame in frames)
    info: Any = next((info for info in infos if hasattr(info, "conversion_errors")), None)
    if info is None:
        return None
    if info.conversion_errors:
        name, text = sorted(info.conversion_errors.items())[0]
        causes = LAST_LINE.findall(text)  # of several exceptions in a traceback, the last one was not caught
        cause = _line(causes[-1] if causes else text)
        return f"{_count(info.conversion_errors)} not be converted, first {printable(name)}: {cause}"
    if info.mismatched_keys:
        name, stored, expected = sorted(info.mismatched_keys, key=lambda found: str(found[0]))[0]
        shapes = f"{list(stored)} in the checkpoint, {list(expected)} according to the config"
        return f"{_count(info.mismatched_keys)} not be loaded because of the shape, first {printable(name)}: {shapes}"
    return None


def _count(found: Sized) -> str:
    return f"{len(found)} weight{'s' * (len(found) != 1)} could"


def _line(text: str) -> str:
    return printable(" ".join(text.split()), 200)
