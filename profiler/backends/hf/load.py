"""A model for a case: real weights from safetensors or GGUF, or synthetic ones. Text tower only, no remote code.

After loading, what transformers took of a checkpoint is checked against the headers, and its loading errors are put
into words. Read at transformers 5.23, ``utils/loading_report.py``: ``log_state_dict_report`` logs a table of what
could not be converted or has another shape, and raises a RuntimeError that says "look at the above report". The table
is made from ``loading_info``, which is still there in the frames of that exception.
"""

from __future__ import annotations

import logging
import os
import re
import tempfile
import traceback
from collections.abc import Iterator, Mapping, Sized
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import torch
import transformers
from torch import nn
from transformers import AutoModelForCausalLM, GenerationConfig, PretrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from profiler import quants, registry
from profiler.backends.base import Beat
from profiler.backends.hf import synthetic
from profiler.backends.hf.unpack import unpacked
from profiler.case import Case, Source
from profiler.devices.base import Meter
from profiler.errors import ProfileError
from profiler.models import families, safetensors
from profiler.models import scheme as schemes
from profiler.models.account import BASE, TEXT_TOWER, Account, in_text_model
from profiler.models.checkpoint import NAMED_ELSEWHERE, account_of, is_quantized
from profiler.models.geometry import Geometry
from profiler.models.layers import Weight
from profiler.models.safetensors import INDEX, SINGLE
from profiler.models.scheme import BITSANDBYTES, Scheme
from profiler.models.stored import from_safetensors
from profiler.quants import checkpoint
from profiler.quants.base import Quant
from profiler.quants.bitsandbytes import repackable
from profiler.units import printable

NOT_OF_THE_MODEL = ("auto_map", "quantization_config", NAMED_ELSEWHERE)  # fields of a config, which speak of files
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

DISAGREE = "Its config and its tensors do not agree on what is quantized."
CHANGED = "The files may have changed while they were read: try again."

RAISED = re.compile(r"^[A-Za-z_][\w.]*(?:Error|Exception|Warning|Interrupt)\b.*", re.MULTILINE)
HINT = "Config and weights are not of the same model, or one of the files is damaged: download them again."


def load(case: Case, source: Source, meter: Meter, beat: Beat) -> PreTrainedModel:
    """The model of a case, in evaluation mode. Raises ProfileError when the weights do not fit the model.

    The peak that ``meter`` finds afterwards is that of loading alone, without unpacking a GGUF file.
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
            config.quantization_config = own  # transformers takes this for a checkpoint that is quantized already
        meter.reset_peak()
        model = _real(config, folder, source, dtype, device, quantization, beat)
    _keep_packing(model)
    return model


def _quant(case: Case) -> Quant:
    found: Quant = registry.load("quants", case.quant, "quantization").QUANT
    return found


def _own_quantization(case: Case, source: Source, folder: Path, stated: Scheme | None) -> dict[str, Any] | None:
    """The quantization that a checkpoint comes with, for transformers' own quantizer; ``None`` for a plain one.

    Raises ProfileError where codes would be taken for values, or where the case asks for another quantization.
    """
    held = from_safetensors(families.geometry(source.config), safetensors.verify(folder), stated)
    name = printable(folder.name)
    if held.trouble is not None:
        raise ProfileError(f"{name}: its weights cannot be taken as values: {held.trouble}")
    if stated is None:
        return None
    own = {**stated.config, "bnb_4bit_compute_dtype": str(DTYPES[case.dtype]).removeprefix("torch.")}
    if stated.method != BITSANDBYTES:
        del own["bnb_4bit_compute_dtype"]
    if stated.left_out is not None:  # a multimodal model's modules, by the names that they have in its text part
        own[stated.left_out_by] = list(stated.left_out.words)
    if case.quant == stated.name:
        return own
    reason = checkpoint.not_unpacked(held) if case.quant in DTYPES else "it is not quantized a second time"
    if reason is not None:
        raise ProfileError(f"{name}: its weights are stored in {stated.name}: {reason}")
    return own | {"dequantize": True}


def _keep_packing(model: PreTrainedModel) -> None:
    """Spare bitsandbytes what it cannot repack on CPUs with AVX512-BF16.

    There it repacks 4-bit weights in their first pass, in blocks of 32 rows and 64 columns, and raises where a weight
    has no whole blocks; Qwen 3.5 has projections of 16 and 48 rows.
    """
    for module in model.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            shape = (module.out_features, module.in_features)
            if not repackable(Weight("linear", shape)):
                module.support_avx512bf16_for_cpu = False


def text_config(source: Source) -> PretrainedConfig:
    """The transformers config of the text tower."""
    raw = {name: value for name, value in source.config.items() if name not in NOT_OF_THE_MODEL}
    kind = raw.get("model_type")
    if kind not in CONFIG_MAPPING:
        raise ProfileError(f"transformers {transformers.__version__} does not know model_type {printable(kind)}")
    whole: PretrainedConfig = CONFIG_MAPPING[kind].from_dict(raw)
    config: PretrainedConfig = whole.get_text_config(decoder=True)
    if hasattr(config, "quantization_config"):  # stated for the text part alone; ``load`` sets what is meant
        del config.quantization_config
    config.tie_word_embeddings = families.geometry(raw).tied  # some checkpoints state it outside the text config only
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
    """Read a folder of safetensors; every weight of the text tower must be in it.

    transformers gets a folder of weights and nothing else. In the checkpoint's own it would attach an adapter where
    peft is installed, and prefer a distributed checkpoint or a file that the config names to the one checked here.
    """
    name = printable(Path(source.location).name)
    beat(f"load {name}")
    promise = Promise.of(folder, source.config, name)
    with weights_alone(folder) as alone, _quantizer_errors(name, config):
        loaded, report = AutoModelForCausalLM.from_pretrained(
            alone,
            config=config,
            generation_config=GenerationConfig(),  # tokens are greedy here, whatever a file of the folder asks for
            dtype=dtype,
            quantization_config=quantization,
            device_map={"": device},
            attn_implementation="sdpa",
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported and refused below, in words
            key_mapping=TEXT_TOWER,
        )
    taken(loaded, report, promise, name)
    model: PreTrainedModel = loaded.eval().requires_grad_(False)
    return model


@contextmanager
def _quantizer_errors(name: str, config: PretrainedConfig) -> Iterator[None]:
    """What transformers' quantizers raise for a checkpoint that they cannot load, as one line."""
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
    """The folder that holds the safetensors of a source, whose content ``identity`` stands for."""
    if source.kind == "folder":
        return Path(source.location)
    if source.kind == "gguf":
        return unpacked(Path(source.location), config, beat, identity, dtype)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(source.location, revision=source.revision, local_files_only=True))


@contextmanager
def weights_alone(folder: Path) -> Iterator[Path]:
    """A folder of links to the weight files of ``folder``, as long as they are being read.

    transformers looks at more than weights: it attaches an adapter that lies beside them where peft is installed, and
    prefers a distributed checkpoint. What is measured must not depend on either. Raises ProfileError when no such
    folder can be made.
    """
    paths = safetensors.shards(folder) or []
    if not (folder / SINGLE).is_file():
        paths = [*paths, folder / INDEX]
    with ExitStack() as kept:
        try:
            made = Path(kept.enter_context(tempfile.TemporaryDirectory(prefix="profile-weights-")))
            for path in paths:
                os.symlink(path.absolute(), made / path.name)
        except OSError as error:
            raise ProfileError(
                f"cannot link to the weights in a temporary folder: {printable(error.strerror or error)}",
                "Set TMPDIR to a folder that can be written to.",
            ) from error
        yield made


@dataclass(frozen=True, slots=True)
class Promise:
    """What the headers of a checkpoint and its config say before it is loaded."""

    geometry: Geometry
    account: Account
    quantized: bool  # by a scheme of its own, so that weights have no shapes of their own

    @classmethod
    def of(cls, folder: Path, raw: Mapping[str, Any], name: str) -> Promise:
        """Raises ProfileError where the two do not agree: the files may have changed since they were planned with."""
        try:
            geometry = families.geometry(raw)
            return cls(geometry, account_of(safetensors.verify(folder), raw, geometry), is_quantized(raw))
        except ProfileError as error:
            raise type(error)(f"{name}: {error.message}", error.hint) from None


def taken(model: PreTrainedModel, report: Mapping[str, Any], promise: Promise, name: str) -> None:
    """Raise ProfileError unless the model took every tensor that was promised, and no other."""
    absent = sorted(report["missing_keys"]) + sorted(str(key[0]) for key in report["mismatched_keys"])
    if absent:
        which = f"{len(absent)} weights are missing or of another shape" if len(absent) > 1 else "a weight is missing"
        hint = DISAGREE if promise.quantized else CHANGED
        raise ProfileError(f"{name}: {which}, first {printable(absent[0])}", hint)
    ignored = sorted(set(report["unexpected_keys"]) - _left(promise.account))
    if ignored:
        count = f"{len(ignored)} tensors" if len(ignored) > 1 else "a tensor"
        raise ProfileError(f"{name}: transformers did not take {count} of the file, first {printable(ignored[0])}")
    if not promise.quantized:
        _check_tie(model, promise.geometry, name)
        _check_count(model, promise.geometry, name)
        _check_values(model, name)


def _left(accounted: Account) -> set[str]:
    """Names that transformers may report as unexpected."""
    names = {in_text_model(name) for name in accounted.left_names}
    return names | {BASE + name for name in names} | {name.removeprefix(BASE) for name in names}


def _check_count(model: PreTrainedModel, geometry: Geometry, name: str) -> None:
    count = parameters(model)
    if count != geometry.parameters:
        raise ProfileError(
            f"{name}: the loaded model has {count:,} parameters, and its config describes {geometry.parameters:,}"
        )


def _check_values(model: PreTrainedModel, name: str) -> None:
    """Codes in a module that does not unpack them would be multiplied as if they were values."""
    packed = quants.packed_modules()
    for path, module in model.named_modules():
        for label, tensor in _own(module):
            if not tensor.is_floating_point() and type(module).__name__ not in packed:
                dtype = str(tensor.dtype).removeprefix("torch.")
                raise ProfileError(f"{name}: {path}.{label} was loaded as {dtype}, which are no values")


def parameters(model: PreTrainedModel) -> int:
    """Parameters of a loaded model as values, however they are packed; tied ones once."""
    counts: dict[int, int] = {}
    packed = quants.packed_modules()
    for module in model.modules():
        for label, tensor in _own(module):
            codes = label == "weight" and type(module).__name__ in packed
            counts[id(tensor)] = module.in_features * module.out_features if codes else tensor.numel()
    return sum(counts.values())


def _own(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters of a module itself, and its buffers that checkpoints store."""
    yield from module.named_parameters(recurse=False)
    for label, buffer in module.named_buffers(recurse=False):
        if label not in module._non_persistent_buffers_set:
            yield label, buffer


def _check_tie(model: PreTrainedModel, geometry: Geometry, name: str) -> None:
    head, table = model.get_output_embeddings(), model.get_input_embeddings()
    tied = head is not None and head.weight is table.weight
    if tied != geometry.tied:
        does = "tied the output head to the embedding" if tied else "did not tie the output head to the embedding"
        raise ProfileError(f"{name}: transformers {does}, against the config")


@contextmanager
def loading_errors(model: str) -> Iterator[None]:
    """Around loading ``model``: raises ProfileError with the weight and the cause in place of a pointer to a log."""
    try:
        yield
    except RuntimeError as error:
        words = _words(error)
        if words is None:
            raise
        raise ProfileError(f"{printable(model)}: {words}", HINT) from None


def _words(error: RuntimeError) -> str | None:
    """What was wrong with the first of the weights, and with how many; None for an error without a report."""
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    infos = (frame.f_locals.get("loading_info") for frame in frames)
    info: Any = next((info for info in infos if hasattr(info, "conversion_errors")), None)
    if info is None:
        return None
    if info.conversion_errors:
        name, said = sorted(info.conversion_errors.items())[0]
        causes = RAISED.findall(said)  # a traceback: its last exception is the one that was not caught
        cause = _line(causes[-1] if causes else said)
        return f"{_count(info.conversion_errors)} not be converted, first {printable(name)}: {cause}"
    if info.mismatched_keys:
        name, stored, expected = sorted(info.mismatched_keys, key=lambda found: str(found[0]))[0]
        shapes = f"{list(stored)} in the checkpoint, {list(expected)} by the config"
        return f"{_count(info.mismatched_keys)} not be taken for their shape, first {printable(name)}: {shapes}"
    return None


def _count(found: Sized) -> str:
    return f"{len(found)} weight{'s' * (len(found) != 1)} could"


def _line(text: str) -> str:
    return printable(" ".join(text.split()), 200)
