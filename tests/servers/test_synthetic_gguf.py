"""GGUF files of random weights in a real llama.cpp: its loader takes them, and counts the bytes that we wrote."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from fakes.tiny import CONFIGS

from profiler import folders
from profiler.backends.llama_cpp.synthetic import synthetic_gguf
from profiler.case import Source
from profiler.models import families, gguf_mix, gguf_write

MIXES = ("f32", "bf16", "q8_0", "q4_k_m", "q2_k", "iq4_xs", "iq3_xxs", "iq2_xs", "iq1_m")


def llama_bench() -> str:
    """The program in ``LLAMA_CPP_DIR`` (a build, its bin folder or the source tree), else on the PATH."""
    folder = Path(os.environ.get("LLAMA_CPP_DIR") or "/nowhere")
    places = (str(folder / inner / "llama-bench") for inner in ("", "bin", "build/bin"))
    found = next(filter(None, map(shutil.which, (*places, "llama-bench"))), None)
    if found is None:
        pytest.skip("llama-bench is not on the PATH, and LLAMA_CPP_DIR does not lead to it")
    return found


@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "llama4"])
def test_llama_bench_runs_every_architecture(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = llama_bench()
    monkeypatch.setenv(folders.CACHE, str(tmp_path))
    raw: dict[str, Any] = CONFIGS[name] | {"hidden_size": 256, "intermediate_size": 256, "vocab_size": 512}
    geometry = families.geometry(raw)
    for mix in MIXES:
        path = synthetic_gguf(Source("catalog", name, None, raw), geometry, mix, 0, lambda said: None)
        command = (tool, "-m", str(path), "-p", "40", "-n", "4", "-r", "1", "-t", "1", "-ngl", "0", "-o", "json")
        ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert ran.returncode == 0, ran.stderr[-2000:]
        prompt, generation = json.loads(ran.stdout)
        assert (prompt["n_prompt"], generation["n_gen"]) == (40, 4)
        tensors = gguf_write.tensors(raw, geometry, gguf_mix.each(geometry, mix))
        assert prompt["model_size"] == sum(tensor.nbytes for tensor in tensors)
        path.unlink()
