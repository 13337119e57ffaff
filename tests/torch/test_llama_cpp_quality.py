"""The quality of GGUF files, with a library whose logits are a formula: figures, options, resuming, and refusals."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from fakes import libllama, llama_cpp, stored

from profiler import folders
from profiler.backends.base import OutOfMemory
from profiler.backends.llama_cpp import build
from profiler.backends.llama_cpp.logits import LogitsReader
from profiler.case import Case
from profiler.cli import main
from profiler.errors import ProfileError
from profiler.quality import definition

TEXTS = {"even": ("A cat sat on the mat. " * 9, "The dog ran. " * 14), "odd": ("x = y + 1\n" * 17, "def f(): " * 20)}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(folders.CACHE, str(tmp_path / "cache"))


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a fake build with a library."""
    folder = libllama.install(llama_cpp.install(tmp_path / "bin"))
    monkeypatch.setenv(build.VARIABLE, str(folder))
    return folder


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A folder with the same model in three quantizations."""
    folder = tmp_path / "models"
    folder.mkdir()
    for kind, number in (("f32", 0), ("q8_0", 7), ("q4_0", 2)):
        stored.gguf(folder / f"tiny-{kind}.gguf", kind, file_type=number)
    return folder


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    for kind, documents in TEXTS.items():
        (tmp_path / "texts" / kind).mkdir(parents=True)
        for number, text in enumerate(documents):
            (tmp_path / "texts" / kind / f"{number}.txt").write_text(text)
    return tmp_path / "texts"


def case(**changed: Any) -> Case:
    usual = {"model": "tiny", "model_id": "0", "weights": "real", "quant": "q8_0", "dtype": "bf16", "device": "cpu"}
    sizes = {"backend": "llama.cpp", "path": "eager", "context": 64, "batch": 1, "steps": 2, "threads": 1}
    return Case(**(usual | sizes | changed))


def nothing(text: str) -> None:
    pass


def sweep(models: Path, texts: Path | None, *arguments: str, context: int = 64) -> tuple[int, list[Any], str]:
    asked = ["sweep", "--backend", "llama.cpp", "--device", "cpu", "-n", "2", "-r", "1", "-o", "jsonl"]
    own = [] if texts is None else ["--quality-text", str(texts)]
    words = [*asked, "-c", str(context), "-m", str(models), "--quality", *own, *arguments]
    answer = CliRunner().invoke(main, words)
    return answer.exit_code, [json.loads(line) for line in answer.stdout.splitlines()], answer.stderr


def expected(quant: str) -> tuple[float, float]:
    """Mean KL divergence and perplexity over ``TEXTS`` in windows of 64 tokens, from the formula."""
    kl, nll = [], []
    for documents in TEXTS.values():
        for text in documents:
            ids = libllama.tokens(text)
            for at in range(0, len(ids), 63):
                window = [libllama.BOS, *ids[at : at + 63]]
                rows = [map(definition.log_softmax, libllama.logits(q, window[:-1])) for q in ("f32", quant)]
                for p, q, token in zip(*rows, window[1:], strict=True):
                    kl.append(definition.exact(p, q))
                    nll.append(-q[token])
    return sum(kl) / len(kl), math.exp(sum(nll) / len(nll))


@pytest.mark.slow
def test_rows_have_the_figures_of_the_definition(programs: Path, models: Path, texts: Path) -> None:
    code, rows, said = sweep(models, texts)
    assert code == 0, said
    found = {row["case"]["quant"]: row["quality"] for row in rows}
    for quant in ("q8_0", "q4_0"):
        kl, perplexity = expected(quant)
        assert found[quant]["kl"]["value"] == pytest.approx(kl, rel=1e-4)
        assert found[quant]["ppl"]["value"] == pytest.approx(perplexity, rel=1e-5)
    same = found["f32"]
    assert (same["kl"]["value"], same["top1"]["value"], same["kl"]["p99"]) == (0, 1, 0)
    one = found["q4_0"]
    assert one["reference"]["model"] == "tiny-f32" and one["reference"]["dtype"] == "f32"
    assert one["reference"]["llama.cpp"].startswith("b9993")
    assert list(one["kinds"]) == ["even", "odd"]
    assert one["tokens"] == sum(len(text) for documents in TEXTS.values() for text in documents)
    assert one["kl"]["low"] < one["kl"]["value"] < one["kl"]["high"]
    _, again, said = sweep(models, texts, "-q", "q4_0")
    assert again[0]["quality"] == one and "reuse" in said
    _, (named,), _ = sweep(models, texts, "-q", "q4_0", "--reference", str(models / "tiny-q4_0.gguf"))
    assert named["quality"]["kl"]["value"] == 0 and named["quality"]["reference"]["dtype"] == "q4_0"


@pytest.mark.slow
def test_decode_steps_are_compared_over_the_last_tokens_of_a_window_of_each_kind(
    programs: Path, models: Path, texts: Path
) -> None:
    _, (row,), said = sweep(models, texts, "-q", "q4_0", context=160)
    decode = row["quality"]["decode"]
    assert decode["tokens"] == 2 * 63, said  # the last predicts nothing
    assert decode["kl"] == pytest.approx(decode["prompt_kl"], rel=1e-9) and decode["kl"] > 0


def test_logits_are_those_after_each_token_in_chunks_and_in_steps(programs: Path, tmp_path: Path) -> None:
    file = tmp_path / "tiny-q8_0.gguf"
    window = [libllama.BOS, *libllama.tokens("The quick brown fox. " * 30)]
    rows: dict[int, torch.Tensor] = {}
    with LogitsReader(case(), file, 700, nothing) as reader:
        assert (reader.vocabulary, reader.start) == (libllama.VOCABULARY, [libllama.BOS])
        text = "naïve \0 text"
        assert reader.tokens(text) == libllama.tokens(text)
        for steps_from in (None, 600):
            rows.clear()
            reader.read(window, 5, lambda at, part: rows.update({at: part.clone()}), steps_from)
            whole = torch.cat([rows[at] for at in sorted(rows)])
            torch.testing.assert_close(whole, torch.tensor(libllama.logits("q8_0", window)[5:]), rtol=0, atol=1e-5)
        pid = reader._process.pid
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("", ("n_gpu_layers = 0", "K (f16)", "flash_attn    = auto")),
        ("flash-attn=off kv=q8_0", ("K (q8_0): 0.50 MiB, V (q8_0)", "flash_attn    = disabled")),
        ("n-cpu-moe=2 tensor-split=3/1", ("split 3.0/1.0", r"blk\.1\.ffn_(up|down|gate|gate_up)_(ch|)exps on host")),
    ],
)
def test_options_of_a_case_reach_the_library(
    programs: Path, tmp_path: Path, options: str, said: tuple[str, ...]
) -> None:
    with LogitsReader(case(options=options), tmp_path / "tiny.gguf", 64, nothing) as reader:
        for part in said:
            assert part in reader._said()


def test_an_older_build_gives_the_same_logits_but_refuses_what_it_lacks(programs: Path, tmp_path: Path) -> None:
    libllama.install(programs, "OLDER")
    window, rows = [libllama.BOS, 5, 6, 7], []
    with LogitsReader(case(options="kv=q8_0"), tmp_path / "tiny-q4_0.gguf", 64, nothing) as reader:
        reader.read(window, 0, lambda at, part: rows.append(part.clone()))
    torch.testing.assert_close(rows[0], torch.tensor(libllama.logits("q4_0", window)), rtol=0, atol=1e-5)
    for option in ("flash-attn=on", "n-cpu-moe=1"):
        with pytest.raises(ProfileError, match="this build has no"):
            LogitsReader(case(options=option), tmp_path / "tiny.gguf", 64, nothing)


@pytest.mark.parametrize(
    ("name", "variants", "kind", "said"),
    [
        ("aborts", (), ProfileError, "GGML_ASSERT"),
        ("too-large", (), OutOfMemory, "failed to allocate buffer of size 9"),
        ("tiny", ("STRANGE",), ProfileError, "this build has other parameters of a context"),
    ],
)
def test_a_library_that_fails_is_a_reason(
    programs: Path, tmp_path: Path, name: str, variants: tuple[str, ...], kind: type[Exception], said: str
) -> None:
    libllama.install(programs, *variants)
    with pytest.raises(kind, match=said):
        LogitsReader(case(), tmp_path / f"{name}.gguf", 64, nothing)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "reason"),
    [
        ("tiny-other-tokens-q8_0.gguf", "tiny-f32 and tiny-other-tokens-q8_0 have different tokens"),
        ("tiny-no-number-q8_0.gguf", "predicts values that are not numbers"),
    ],
)
def test_what_cannot_be_compared_leaves_the_speed_and_says_why(
    programs: Path, models: Path, texts: Path, file: str, reason: str
) -> None:
    stored.gguf(models / file, "q8_0", file_type=7)
    code, (row,), _ = sweep(models / file, texts)
    assert code == 0 and row["decode"]["tps"] > 0
    assert reason in row["quality"]["reason"]
    assert [caution["code"] for caution in row["cautions"]].count("quality-unknown") == 1


def test_a_build_without_a_library_leaves_the_speed_and_says_why(programs: Path, models: Path, texts: Path) -> None:
    (programs / "libllama.so").unlink()
    code, (row,), _ = sweep(models, texts, "-q", "q8_0")
    assert code == 0 and row["decode"]["tps"] > 0
    assert "logits are read from libllama" in row["quality"]["reason"]


Change = Callable[[Path], None]


@pytest.mark.parametrize(
    ("arguments", "change", "said"),
    [
        ((), lambda models: (models / "tiny-f32.gguf").unlink(), "themselves quantized (q8_0)"),
        (("--weights", "synthetic"), lambda models: None, "--quality needs real weights"),
        (("--reference", "gemma-3-270m"), lambda models: None, "no real weights"),
    ],
)
def test_what_has_no_reference_is_refused(
    programs: Path, models: Path, arguments: tuple[str, ...], change: Change, said: str
) -> None:
    change(models)
    code, rows, error = sweep(models / "tiny-q8_0.gguf", None, *arguments)
    assert code in (1, 2) and rows == []
    assert said in error and "Traceback" not in error
