"""The KL divergence of a GGUF file against what llama-perplexity of the same build prints, over the same tokens."""

from __future__ import annotations

import math
import re
import struct
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fakes import checkpoints
from fakes.reported import measured

from profiler.backends.hf.comparison import Keeper, Scorer
from profiler.backends.llama_cpp import build
from profiler.backends.llama_cpp.logits import LogitsReader
from profiler.errors import ProfileError
from profiler.quality import texts


@pytest.fixture(scope="module")
def found() -> build.Build:
    try:
        return build.find()
    except ProfileError as error:
        pytest.skip(f"{error.message}: see tests/servers/README.md")


@pytest.fixture(scope="module")
def model() -> Path:
    return checkpoints.available(checkpoints.smollm2_gguf)


def perplexity_program(found: build.Build, *arguments: str) -> str:
    command = [str(found.folder / "llama-perplexity"), "-t", "1", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=found.environment("cpu"))
    return done.stdout + done.stderr


@pytest.mark.slow
def test_kl_divergence_is_that_of_llama_perplexity_over_the_same_tokens(
    found: build.Build, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It scores the second half of each chunk, after replacing the first token by BOS, against 16-bit logarithms."""
    if not all((found.folder / name).exists() for name in ("llama-perplexity", "llama-quantize")):
        pytest.skip("the build has no llama-perplexity or llama-quantize: see tests/servers/README.md")
    monkeypatch.setenv(build.VARIABLE, str(found.folder))
    coarse, text, kept = tmp_path / "coarse.gguf", tmp_path / "text.txt", tmp_path / "kept"
    quantize = [str(found.folder / "llama-quantize"), "--allow-requantize", str(model), str(coarse), "Q3_K_M"]
    subprocess.run(quantize, check=True, capture_output=True, env=found.environment("cpu"))
    text.write_text("\n".join(document.text for document in texts.shipped().documents[:3]), encoding="utf-8")
    sizes = ["-f", str(text), "-c", "128", "--chunks", "6", "--kl-divergence-base", str(kept)]
    perplexity_program(found, "-m", str(model), *sizes)
    said = perplexity_program(
        found, "-m", str(coarse), "--kl-divergence", "-c", "128", "--kl-divergence-base", str(kept)
    )
    _, size, _, chunks = struct.unpack_from("<8sIII", (data := kept.read_bytes()))
    tokens = struct.unpack_from(f"<{size * chunks}i", data, 20)
    kept.unlink()

    plain = measured().case
    case = replace(plain, backend="llama.cpp", device="cpu", threads=1, options="")
    arrays, figures = [], []
    for file in (model, coarse):
        with LogitsReader(case, file, size, lambda text: None) as reader:
            for at in range(0, len(tokens), size):
                chunk = (*reader.start, *tokens[at + len(reader.start) : at + size])
                window = texts.TextWindow("chunk", str(at), chunk, size // 2 + 1)
                if file is model:
                    reader.read(chunk, size // 2, keeper := Keeper(window))
                    arrays.append(keeper.arrays({}))
                else:
                    reader.read(chunk, size // 2, scorer := Scorer(window, arrays[at // size], torch.device("cpu")))
                    figures.append(scorer.figures())
    ours = {
        "Mean    KLD": float(torch.cat([each.kl for each in figures]).mean()),
        "Mean PPL\\(Q\\) ": math.exp(float(torch.cat([each.nll for each in figures]).mean())),
        "Same top p": 100 * float(torch.cat([each.same for each in figures]).double().mean()),
    }
    assert sum(len(each.kl) for each in figures) == chunks * (size - 1 - size // 2)
    for name, value in ours.items():
        match = re.search(rf"^{name}\s*: +([\d.]+)", said, re.MULTILINE)
        assert match is not None, said
        assert value == pytest.approx(float(match[1]), rel=0.02), name
