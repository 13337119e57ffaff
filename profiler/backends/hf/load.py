"""A model for a case: real weights from safetensors or GGUF, or synthetic ones. Text tower only, no remote code."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import platformdirs
import torch
import transformers
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from profiler import registry
from profiler.backends.base import Beat
from profiler.backends.hf import synthetic
from profiler.case import Case
from profiler.errors import ProfileError
from profiler.models import families
from profiler.models.source import Source
from profiler.units import printable

# Names of the text tower's weights in a multimodal checkpoint and in the text model: transformers maps them itself
# for Qwen 3.5 only.
TEXT_TOWER = {
    r"^model\.language_model\.": "model.",
    r"^language_model\.model\.": "model.",
    r"^language_model\.lm_head\.": "lm_head.",
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def load(case: Case, source: Source, beat: Beat) -> PreTrainedModel:
    """The model of a case, in evaluation mode. Raises ProfileError when the weights do not fit the model."""
    transformers.logging.set_verbosity_error()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    dtype, device = DTYPES[case.dtype], torch.device(case.device)
    quantization = registry.load("quants", case.quant, "quantization").QUANT.load_config(case.dtype)
    config = text_config(source)
    if case.weights == "synthetic":
        return synthetic.build(config, dtype, device, quantization, case.seed, beat)
    return _real(config, _folder(source, config, beat), dtype, device, quantization, beat)


def text_config(source: Source) -> PretrainedConfig:
    """The transformers config of the text tower."""
    raw = {name: value for name, value in source.config.items() if name not in ("auto_map", "quantization_config")}
    kind = raw.get("model_type")
    if kind not in CONFIG_MAPPING:
        raise ProfileError(f"transformers {transformers.__version__} does not know model_type {printable(kind)}")
    whole: PretrainedConfig = CONFIG_MAPPING[kind].from_dict(raw)
    config: PretrainedConfig = whole.get_text_config(decoder=True)
    config.tie_word_embeddings = families.geometry(raw).tied  # some checkpoints state it outside the text config only
    return config


def _real(
    config: PretrainedConfig, folder: Path, dtype: torch.dtype, device: torch.device, quantization: Any, beat: Beat
) -> PreTrainedModel:
    """Read a folder of safetensors; every weight of the text tower must be in it."""
    beat(f"load {folder.name}")
    loaded, report = AutoModelForCausalLM.from_pretrained(
        folder,
        config=config,
        dtype=dtype,
        quantization_config=quantization,
        device_map={"": device},
        attn_implementation="sdpa",
        use_safetensors=True,
        trust_remote_code=False,
        local_files_only=True,
        output_loading_info=True,
        key_mapping=TEXT_TOWER,
    )
    absent = sorted(report["missing_keys"]) + sorted(str(key) for key in report["mismatched_keys"])
    if absent:
        name = printable(folder.name)
        raise ProfileError(
            f"{name}: {len(absent)} weights are missing or of another shape, first {printable(absent[0])}"
        )
    model: PreTrainedModel = loaded.eval().requires_grad_(False)
    return model


def _folder(source: Source, config: PretrainedConfig, beat: Beat) -> Path:
    """The folder that holds the safetensors of a source."""
    if source.kind == "folder":
        return Path(source.location)
    if source.kind == "gguf":
        return converted(Path(source.location), config, beat)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(source.location, revision=source.revision, local_files_only=True))


def converted(gguf: Path, config: PretrainedConfig, beat: Beat) -> Path:
    """A GGUF file as a folder of safetensors, made once: transformers needs minutes to read GGUF each time.

    Values are those that the quantized file stands for, kept in bf16, or in fp32 when the file itself is fp32. Giving
    the config spares the second of two slow readings of the vocabulary.
    """
    name = f"{_content_id(gguf)}-{transformers.__version__}"
    target = Path(platformdirs.user_cache_dir("profile")) / "gguf" / name
    if target.exists():
        return target
    beat(f"load: converting {gguf.name} to safetensors, once")
    partial = target.with_name(f"{name}.{os.getpid()}.partial")
    dtype = torch.float32 if _is_fp32(gguf) else torch.bfloat16
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, config=config, dtype=dtype)
    model.hf_quantizer = None  # transformers refuses to save what it read from GGUF, though it is plain tensors now
    del model.config.quantization_config
    try:
        model.save_pretrained(partial)
        partial.rename(target)
    except OSError:
        if not target.exists():  # another process may have been first
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def _content_id(path: Path) -> str:
    """Hash of the whole file: a cache must not serve another model."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:32]


def _is_fp32(gguf: Path) -> bool:
    from gguf import GGUFReader

    field = GGUFReader(gguf).get_field("general.file_type")
    return field is not None and int(field.contents()) == 0
