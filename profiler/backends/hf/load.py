"""A model for a case: real weights from safetensors or GGUF, or synthetic ones. Text tower only, no remote code."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import torch
import transformers
from transformers import AutoModelForCausalLM, GenerationConfig, PretrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from profiler import registry
from profiler.backends.base import Beat
from profiler.backends.hf import synthetic, verify
from profiler.backends.hf.unpack import unpacked
from profiler.case import Case
from profiler.devices.base import Meter
from profiler.errors import ProfileError
from profiler.models import families, safetensors_file, scheme
from profiler.models.account import TEXT_TOWER
from profiler.models.checkpoint import NAMED_ELSEWHERE
from profiler.models.scheme import BITSANDBYTES, Scheme
from profiler.models.source import Source
from profiler.models.stored import from_safetensors
from profiler.models.weight import Weight
from profiler.quants import checkpoint
from profiler.quants.base import repackable
from profiler.units import printable

NOT_OF_THE_MODEL = ("auto_map", "quantization_config", NAMED_ELSEWHERE)  # fields of a config, which speak of files
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def load(case: Case, source: Source, meter: Meter, beat: Beat) -> PreTrainedModel:
    """The model of a case, in evaluation mode. Raises ProfileError when the weights do not fit the model.

    The peak that ``meter`` finds afterwards is that of loading alone, without unpacking a GGUF file.
    """
    transformers.logging.set_verbosity_error()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    dtype, device = DTYPES[case.dtype], torch.device(case.device)
    config = text_config(source)
    stated = None if source.kind == "gguf" or case.weights == "synthetic" else scheme.of(source.config)
    quantization = None if stated is not None else _quantization(case)
    if case.weights == "synthetic":
        model = synthetic.build(config, dtype, device, quantization, case.seed, beat)
    else:
        folder = _folder(source, config, beat, case.model_id, dtype)
        if source.kind != "gguf" and (own := _own_quantization(case, source, folder, stated)) is not None:
            config.quantization_config = own  # transformers takes this for a checkpoint that is quantized already
        meter.reset_peak()
        model = _real(config, folder, source, dtype, device, quantization, beat)
    _keep_packing(model)
    return model


def _quantization(case: Case) -> Any:
    """The transformers config that quantizes while loading; ``None`` for a plain dtype."""
    return registry.load("quants", case.quant, "quantization").QUANT.load_config(case.dtype)


def _own_quantization(case: Case, source: Source, folder: Path, stated: Scheme | None) -> dict[str, Any] | None:
    """The quantization that a checkpoint comes with, for transformers' own quantizer; ``None`` for a plain one.

    Raises ProfileError where codes would be taken for values, or where the case asks for another quantization.
    """
    held = from_safetensors(families.geometry(source.config), safetensors_file.verify(folder), stated)
    name = printable(folder.name)
    if held.trouble is not None:
        raise ProfileError(f"{name}: its weights cannot be taken as values: {held.trouble}")
    if stated is None:
        return None
    own = {**stated.config, "bnb_4bit_compute_dtype": str(DTYPES[case.dtype]).removeprefix("torch.")}
    if stated.method != BITSANDBYTES:
        del own["bnb_4bit_compute_dtype"]
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
    promise = verify.Promise.of(folder, source.config, name)
    with verify.weights_alone(folder) as alone, _quantizer_errors(name, config):
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
    verify.taken(loaded, report, promise, name)
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
