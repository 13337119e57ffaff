"""A model for a case: real weights from safetensors or GGUF, or synthetic ones. Text tower only, no remote code."""

from __future__ import annotations

import logging
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
from profiler.models import families
from profiler.models.account import TEXT_TOWER
from profiler.models.checkpoint import NAMED_ELSEWHERE
from profiler.models.source import Source
from profiler.models.weight import Weight
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
    quantization = registry.load("quants", case.quant, "quantization").QUANT.load_config(case.dtype)
    config = text_config(source)
    if case.weights == "synthetic":
        model = synthetic.build(config, dtype, device, quantization, case.seed, beat)
    else:
        folder = _folder(source, config, beat, case.model_id)
        meter.reset_peak()
        model = _real(config, folder, source, dtype, device, quantization, beat)
    _keep_packing(model)
    return model


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
    with verify.weights_alone(folder) as alone:
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


def _folder(source: Source, config: PretrainedConfig, beat: Beat, identity: str) -> Path:
    """The folder that holds the safetensors of a source, whose content ``identity`` stands for."""
    if source.kind == "folder":
        return Path(source.location)
    if source.kind == "gguf":
        return unpacked(Path(source.location), config, beat, identity)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(source.location, revision=source.revision, local_files_only=True))
