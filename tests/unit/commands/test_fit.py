"""``profile fit`` from the command line."""

from __future__ import annotations

import csv
import io
import json
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from fakes import llama_cpp
from fakes.reported import measured, scored
from fakes.tiny import CONFIGS
from gguf import GGUFReader

from profiler import console, folders
from profiler.backends.llama_cpp.synthetic import synthetic_gguf
from profiler.case import Source
from profiler.cli import main
from profiler.models import families, gguf_mix, gguf_write, hub
from profiler.results.store import Store
from profiler.units import GIB

PAIR = ["gemma-4-31b", "qwen3.5-27b", "gemma-4-26b-a4b", "qwen3.5-35b-a3b"]


def fit(*words: str) -> Result:
    return CliRunner().invoke(main, ["fit", *words])


def rows(*words: str) -> list[dict[str, Any]]:
    result = fit(*words, "-o", "json")
    assert result.exit_code == 0, result.output
    found: list[dict[str, Any]] = json.loads(result.stdout)
    return found


def gguf(path: Path, quant: str, name: str = "llama") -> Path:
    """A model of this file's own cache, as llama.cpp's quantizer would make it."""
    raw = CONFIGS[name] | {"hidden_size": 256}
    made = synthetic_gguf(Source("catalog", name, None, raw), families.geometry(raw), quant, 0, lambda said: None)
    path.write_bytes(made.read_bytes())
    return path


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(folders.CACHE, str(tmp_path / "cache"))


@pytest.mark.parametrize("quant", ["f32", "bf16", "q8_0", "q6_k", "q4_k_m", "q4_0", "iq3_xxs"])
@pytest.mark.parametrize("on", ["cpu", "rtx 4090"])
def test_a_gguf_file_is_predicted_in_its_own_quantization_to_the_byte(
    quant: str, on: str, tmp_path: Path, own_cache: None
) -> None:
    path = gguf(tmp_path / f"model-{quant}.gguf", quant)
    (row,) = rows(str(path), "--on", on, "-c", "512")
    assert (row["engine"], row["quant"]) == ("llama.cpp", quant)
    nbytes = sum(int(tensor.n_bytes) for tensor in GGUFReader(path).tensors)
    assert row["weights_bytes"] == {"value": nbytes, "low": nbytes, "high": nbytes, "basis": "exact"}
    assert row["stored"] == {"quant": quant, "bytes": nbytes, "from": "headers"}
    assert f"-m {path} " in row["verify"] and f"-m {path} " in row["serve"]


def test_of_the_servers_only_tensorrt_llm_does_not_read_gguf_files(tmp_path: Path, own_cache: None) -> None:
    path = str(gguf(tmp_path / "model.gguf", "q8_0"))
    for engine, quant in (("vllm", "q8_0"), ("sglang", "q8_0"), ("tensorrt-llm", "bf16")):
        (row,) = rows(path, "--engine", engine, "--on", "rtx 4090", "-c", "512")
        assert row["quant"] == quant
        assert (f"--model {path} " in (row["verify"] or "")) == (engine == "vllm")


def test_a_folder_of_gguf_files_stands_for_all_of_them(tmp_path: Path, own_cache: None) -> None:
    for quant in ("q8_0", "q4_0"):
        gguf(tmp_path / f"tiny-{quant}.gguf", quant)
    assert [(row["engine"], row["quant"]) for row in rows(str(tmp_path))] == [
        ("llama.cpp", "q4_0"),
        ("llama.cpp", "q8_0"),
    ]
    swept = CliRunner().invoke(main, ["sweep", "-m", str(tmp_path), "--dry-run"])
    assert "profile sweep --backend llama.cpp -m takes the folder" in " ".join(swept.stderr.split())


def test_what_only_transformers_has_is_predicted_in_transformers(tmp_path: Path, own_cache: None) -> None:
    path = str(gguf(tmp_path / "model.gguf", "q8_0"))
    for words in (("-q", "nf4"), ("--path", "eager"), ("--engine", "transformers"), ("gemma-3-270m",)):
        assert {row["engine"] for row in rows(path, *words, "-c", "512", "--on", "cpu")} == {"transformers"}
    assert {row["engine"] for row in rows(path, "-q", "q4_k_m", "-c", "512", "--on", "cpu")} == {"llama.cpp"}
    assert rows("gemma-3-270m", "-c", "512", "--on", "cpu")[0]["engine"] == "transformers"


@pytest.mark.parametrize(
    ("words", "command"),
    [
        (("--on", "rtx 4090"), "-c 8192 -np 1 -ngl 61"),  # four slots by default, each with its own windows
        (("--on", "rtx 4090", "-b", "2"), "-c 16384 -np 2 -ngl 61"),
        (("--on", "rtx 4090", "--kv", "q8_0"), "-c 8192 -np 1 -ngl 61 -ctk q8_0 -ctv q8_0 -fa on"),
        (("--on", "2x3090"), "-c 8192 -np 1 -ngl 61 -sm layer -ts 1,1"),
        (("--on", "3090, 4090", "--split", "tensor"), "-c 8192 -np 1 -ngl 61 -sm tensor -ts 1,1"),
        (("--on", "rtx 3060", "--ram", "64g"), "-c 8192 -np 1 -ngl 31"),  # the 30 last layers, and the output
        (("--on", "cpu"), "-c 8192 -np 1 -ngl 0"),
    ],
)
def test_the_server_runs_as_the_prediction_assumes(words: tuple[str, ...], command: str) -> None:
    (row,) = rows("gemma-4-31b", "--engine", "llama.cpp", "-c", "8k", *words)
    if row["verdict"] == "no":
        assert row["serve"] is None
        return
    assert row["serve"] == f"llama-server -m MODEL-Q4_K_M.gguf {command}"


@pytest.mark.parametrize(
    ("words", "has", "lacks"),
    [
        # The pool of pages must hold --max-model-len, which is 262,144 for this model if nothing else is said.
        (("gemma-4-31b", "--on", "2x3090", "-q", "awq", "-c", "8k"), "--max-model-len 8320", "--gpu-memory"),
        (("gemma-4-31b", "--on", "2x3090", "-q", "awq", "-c", "200k"), "--gpu-memory-utilization 0.97", "!"),
        (
            ("qwen3-8b", "--on", "3090", "-c", "40960", "-q", "fp8"),
            "--input-len 40832 --output-len 128",
            "--gpu-memory",
        ),
    ],
)
def test_vllm_gets_room_for_the_case_and_no_more(words: tuple[str, ...], has: str, lacks: str) -> None:
    (row,) = rows(*words, "--engine", "vllm")
    assert has in row["verify"] and lacks not in row["verify"]


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("mi300x --engine tensorrt-llm", "runs on NVIDIA GPUs since Ampere, not on MI300X"),
        ("t4 --engine tensorrt-llm", "runs on NVIDIA GPUs since Ampere, not on T4"),
        ("mi300x --engine mlx", "not on MI300X"),
        ("p40 --engine vllm", "needs compute capability 7.0"),
        ("3090,p40 --engine sglang", "needs compute capability 7.0"),
        ("v100 --engine vllm -q bf16", "use fp16"),
        ("v100 --engine vllm -q fp8", "no kernels for fp8 on Volta"),
        ("k80 --engine transformers", "PyTorch needs CUDA 12"),
    ],
)
@pytest.mark.parametrize("command", ["fit", "explain"])
def test_nothing_is_predicted_for_a_device_on_which_the_engine_does_not_run(
    command: str, words: str, why: str
) -> None:
    result = CliRunner().invoke(main, [command, "qwen3-8b", "--on", *words.split()])
    assert result.exit_code != 0 and why in " ".join(result.stderr.split())


def test_one_impossible_quantization_leaves_the_others() -> None:
    result = CliRunner().invoke(
        main, ["fit", "qwen3-8b", "--on", "v100", "--engine", "vllm", "-q", "fp8,fp16", "-o", "json"]
    )
    assert [row["quant"] for row in json.loads(result.stdout)] == ["fp16"]
    assert result.exit_code == 1 and "no kernels for fp8" in result.stderr


def test_devices_of_two_makers_share_a_model_in_llama_cpp_only() -> None:
    mixed = ("qwen3-8b", "--on", "3090, 7900 xtx", "-c", "4k")
    assert [row["engine"] for row in rows(*mixed)] == ["llama.cpp"]
    for engine in ("vllm", "transformers"):
        result = CliRunner().invoke(main, ["fit", *mixed, "--engine", engine])
        assert result.exit_code != 0 and "devices of AMD and NVIDIA" in result.stderr
    result = CliRunner().invoke(main, ["fit", "qwen3-8b", "--on", "3090, m4 max"])
    assert result.exit_code != 0 and "no machine has Apple's GPU and another" in result.stderr


@pytest.mark.parametrize("on", ["2x m4 max", "2x dgx spark"])
def test_no_command_is_printed_for_two_computers(on: str) -> None:
    """llama-server and vllm bench would look for both devices in one."""
    for engine in ("llama.cpp", "vllm"):
        (row,) = rows("qwen3-8b", "--on", on, "--engine", engine, "-c", "4k")
        assert (row["serve"], row["verify"]) == (None, None)
    (row,) = rows("qwen3-8b", "--on", "strix halo, 3090", "-c", "4k")  # a card at a desktop's chip
    assert row["serve"] is not None


def test_what_a_quantization_leaves_unquantized_is_said() -> None:
    """nf4 of a mixture of experts takes 85 GiB, and a table without that note looks wrong."""
    for words, said in (
        ("mixtral-8x7b -q nf4 --on h100", "nf4 leaves 84.5 GiB of fused experts in bf16"),
        ("gemma-4-e2b -q nf4 --on h100", "nf4 leaves 5.13 GiB of embeddings and output head in bf16"),
    ):
        (row,) = rows(*words.split())
        assert said in row["cautions"]
    result = CliRunner().invoke(main, ["fit", "qwen3-8b", "--on", "4090", "--engine", "vllm", "-q", "mxfp4"])
    assert result.exit_code != 0 and "vllm stores none of its weights in mxfp4" in result.stderr


@pytest.mark.parametrize("engine", ["transformers", "vllm"])
def test_the_default_is_a_dtype_that_the_device_has(engine: str) -> None:
    """As in a sweep there, which measures a catalog model in the device's default dtype."""
    for on in ("v100", "t4", "2x v100", "v100, 3090"):
        assert "bf16" not in {row["quant"] for row in rows("qwen3-8b", "--on", on, "--engine", engine)}
    (row,) = rows("qwen3-8b", "--on", "v100", "-q", "bf16", "--engine", "transformers")
    assert any("only emulates bf16" in caution for caution in row["cautions"])


@pytest.mark.parametrize(
    ("words", "lacking"),
    [
        ("qwen3.5-27b --on 5090 --mtp 2 --acceptance 0.7", "of multi-token prediction."),
        ("qwen3-8b --on m4-max --engine vllm", "of this engine on such a device."),
        ("qwen3-30b-a3b --on 4090 --engine llama.cpp -q q8_0 --ram 64g", "with weights in host memory."),
    ],
)
def test_a_prior_says_what_was_never_measured(words: str, lacking: str) -> None:
    page = CliRunner().invoke(main, ["fit", *words.split(), "--notes", "all"]).stdout
    assert f"prior: we have no measurements {lacking}" in " ".join(page.split())
    assert ("LM Studio" in page) == ("q8_0" in words)  # it has no multi-token prediction


def test_experts_go_to_host_memory_before_whole_layers() -> None:
    """As many as the prediction moves, and no layer more; Ollama cannot."""
    (row,) = rows("gemma-4-26b-a4b", "--engine", "llama.cpp", "-c", "8k", "--on", "rtx 3060", "--ram", "64g")
    found = re.search(r"-ngl 31 -ncmoe (\d+)$", row["serve"])
    assert found is not None
    experts = 30 * 128 * 3 * 704 * 2816  # parameters
    each = experts / 30 * 5.2 / 8  # bytes of a layer's experts at about 5.2 bits
    assert (int(found[1]) - 1.5) * each < row["offloaded_bytes"] < (int(found[1]) + 1) * each
    assert row["serve_settings"]["Ollama"] == "it cannot keep only the experts in host memory"
    assert f"force MoE weights of {found[1]} layers onto CPU" in row["serve_settings"]["LM Studio"]


@pytest.mark.parametrize("on", ["rtx 4090", "strix halo", "m4 pro", "h100", "t4"])
@pytest.mark.parametrize(("engine", "quant"), [("llama.cpp", "q4_k_m"), ("transformers", "nf4")])
def test_every_figure_of_the_headline_models_has_a_basis(on: str, engine: str, quant: str) -> None:
    found = rows(*PAIR, "--on", on, "--engine", engine, "-q", quant, "-c", "8k,128k")
    assert [(row["model"], row["context"]) for row in found] == [(m, c) for m in PAIR for c in (8192, 131072)]
    for row in found:
        for name, value in row.items():
            if isinstance(value, dict) and "value" in value:
                assert value["low"] <= value["value"] <= value["high"], name
                assert value["basis"] in ("exact", "calibrated", "fitted", "prior"), name
        assert (row["decode"] is None) == (row["verdict"] == "no")
        runs = row["verdict"] != "no" and (engine == "llama.cpp" or on in ("rtx 4090", "h100", "t4"))
        assert (row["verify"] is not None) == runs, "a command that measures it, where one can"


def test_the_page_fits_a_page() -> None:
    text = fit(*PAIR, "--on", "rtx 4090", "--engine", "llama.cpp", "-c", "8k,128k").stdout
    assert len(text.splitlines()) < 48
    for word in (
        "RTX 4090",
        "usable",
        "tight",
        "To check the first on RTX 4090:",
        "fitted:",
        "the range that should hold nine cases in ten",
    ):
        assert word in text


def test_few_notes_are_shown_and_the_others_counted() -> None:
    words = (*PAIR, "--on", "rtx 4090", "--engine", "llama.cpp", "-c", "8k,128k")
    few, every = fit(*words).stdout, fit(*words, "--notes", "all").stdout
    counted = re.search(r"^(\d) more notes: --notes all$", few, re.MULTILINE)
    assert counted is not None and "more note" not in every
    assert len(every.splitlines()) - len(few.splitlines()) == int(counted[1]) - 1


@pytest.mark.parametrize("lines", [24, 40])
def test_notes_fit_the_screen_of_a_terminal(lines: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "width", lambda: 80)
    monkeypatch.setattr(console, "size", lambda: (80, lines))
    for on in ("rtx 4090", "m4 max", "2x3090"):
        text = fit("--on", on, "--engine", "llama.cpp").stdout
        assert sum(-(-max(1, len(line)) // 80) for line in text.splitlines()) < lines
        assert ("--notes all" in text) == (lines == 24 or text.count("more note") == 1)


def test_a_range_is_explained_only_where_one_is_shown() -> None:
    words = ("gemma-4-31b", "--on", "rtx 4090", "-q")
    assert "in parentheses" in fit(*words, "nf4").stdout
    assert "in parentheses" not in fit(*words, "bf16").stdout


def test_a_scenario_gives_contexts_batches_and_models_that_options_override(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    text = 'description = "mine"\ncontexts = "1k,4k"\nbatches = [1, 2]\nsteps = 8\nquants = ["bf16"]\n'
    path.write_text(f'{text}models = ["gemma-4-e2b"]\n')

    def cases(*words: str) -> list[tuple[str, int, int]]:
        found = rows("--on", "rtx 4090", "--engine", "llama.cpp", "--scenario", str(path), *words)
        return [(row["model"], row["context"], row["batch"]) for row in found]

    assert cases() == [("gemma-4-e2b", context, batch) for context in (1024, 4096) for batch in (1, 2)]
    assert cases("-c", "2k") == [("gemma-4-e2b", 2048, 1), ("gemma-4-e2b", 2048, 2)]
    assert cases("-b", "4", "gemma-4-e4b") == [("gemma-4-e4b", 1024, 4), ("gemma-4-e4b", 4096, 4)]


def test_an_unknown_scenario_is_one_line() -> None:
    result = fit("gemma-4-e2b", "--scenario", "chats")
    assert (result.exit_code, result.stderr.splitlines()[0]) == (2, "Error: unknown scenario: chats")


@pytest.mark.parametrize("output", ["table", "md", "csv", "json", "jsonl"])
def test_all_formats(output: str) -> None:
    result = fit("qwen3.5-9b", "--on", "4090", "-o", output)
    assert result.exit_code == 0
    assert "qwen3.5-9b" in result.stdout
    if output == "csv":
        row = next(csv.DictReader(io.StringIO(result.stdout)))
        assert row["model"] == "qwen3.5-9b"
        assert float(row["decode.tps.low"]) < float(row["decode.tps.value"]) < float(row["decode.tps.high"])


def test_without_a_model_it_chooses_the_model_with_its_quantization() -> None:
    """Dense models in 4 bits before smaller ones in 16, and the 27B before a mixture of 3B of 35."""
    found = rows("--on", "rtx 4090", "--engine", "llama.cpp")
    assert [(row["model"], row["quant"]) for row in found] == [("gemma-4-31b", "q4_k_m"), ("qwen3.5-27b", "q6_k")]
    found = rows("--on", "rtx 4090")
    assert [(row["model"], row["quant"]) for row in found] == [("gemma-4-31b", "nf4"), ("qwen3.5-27b", "nf4")]
    text = fit("--on", "rtx 4090").stdout
    assert "Chosen: the largest model of each family that fits at 8k in 4 bits or more and decodes as fast as" in text
    assert "people read (5.3 t/s)" in text


def test_without_a_model_the_engine_is_one_that_runs_there() -> None:
    assert {row["engine"] for row in rows("--on", "m4 max")} == {"llama.cpp"}
    assert {row["engine"] for row in rows("--on", "rtx 4090")} == {"transformers"}
    assert {row["engine"] for row in rows("--on", "m4 max", "--engine", "mlx")} == {"mlx"}


@pytest.mark.parametrize("on", ["macbook pro m4 max", "rx 7900 xtx", "arc b580"])
def test_a_named_model_is_predicted_in_an_engine_that_runs_on_the_device(on: str) -> None:
    result = fit("gemma-4-e4b", "--on", on)
    assert "llama.cpp" in result.stdout.splitlines()[0]
    maker = {"m": "Apple", "r": "AMD", "a": "Intel"}[on[0]]
    told = (
        f"Predicted in llama.cpp, because profile does not measure transformers on {maker} devices; --engine chooses"
    )
    assert told in " ".join(result.stdout.split())
    (row,) = rows("gemma-4-e4b", "--on", on, "-q", "nf4")
    assert row["engine"] == "transformers", "nothing else has nf4"


@pytest.mark.parametrize(("quant", "packed"), [("mxfp4", "q8_0"), ("q4_k_l", "q4_k"), ("q4_k_m", "q4_k")])
def test_a_quantization_that_transformers_has_not_is_predicted_in_llama_cpp(quant: str, packed: str) -> None:
    (row,) = rows("qwen3-8b", "--on", "rtx 4090", "-q", quant)
    assert (row["engine"], row["quant"], row["verdict"]) == ("llama.cpp", quant, "fits")
    assert row["decode"]["seconds"]["basis"] in ("fitted", "prior")
    assert f"transformers has no {quant}" in fit("qwen3-8b", "--on", "rtx 4090", "-q", quant).stdout


@pytest.mark.parametrize(
    ("model", "gib"),
    [("gpt-oss-20b", 11.27), ("gpt-oss-120b", 59.02)],  # llama-bench prints these sizes
)
def test_gpt_oss_has_the_bytes_of_the_published_files(model: str, gib: float) -> None:
    (row,) = rows(model, "--on", "m3 ultra", "-c", "8k")
    assert (row["engine"], row["quant"]) == ("llama.cpp", "mxfp4")
    assert (row["weights_bytes"]["value"] + row["host_bytes"]["value"]) / GIB == pytest.approx(gib, abs=0.01)


def test_a_mix_of_gpt_oss_is_said_not_to_be_what_publishers_call_so() -> None:
    """They keep the experts in MXFP4, so that all their files have about the same size."""
    mix, own = rows("gpt-oss-20b", "--on", "rtx 4090", "--engine", "llama.cpp", "-q", "q4_k_m,mxfp4")
    said = "predicted as q4_k_m in every layer; published files of this name keep the experts in mxfp4"
    assert f"{said}, which -q mxfp4 predicts" in mix["cautions"]
    assert own["quant"] == "mxfp4" and own["weights_bytes"]["value"] < 0.8 * mix["weights_bytes"]["value"]


def test_an_mlx_checkpoint_on_a_mac_is_predicted_in_mlx(tmp_path: Path) -> None:
    raw = hub.shipped_config("qwen3-8b") | {"quantization": {"bits": 4, "group_size": 64}}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    (row,) = rows(str(tmp_path), "--on", "m4 max 64gb")
    assert (row["engine"], row["quant"]) == ("mlx", "mlx-4bit")


def test_cards_that_differ_share_a_model() -> None:
    (row,) = rows("qwen3.5-27b", "--on", "3090,4060 ti 16gb", "--engine", "llama.cpp")
    assert (row["devices"], row["verdict"], row["split"]) == (2, "fits", "layer")


def test_a_dynamic_mix_has_the_bytes_of_its_header(tmp_path: Path) -> None:
    """As Unsloth publishes them (UD-Q4_K_XL): the name of a plain mix, and other types in some layers."""
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 8}
    raw = CONFIGS["llama"] | sizes | {"tie_word_embeddings": False}
    geometry = families.geometry(raw)
    dynamic = [
        (number, weight, "iq4_xs" if kind == "q4_k" and number and number % 2 else kind)
        for number, weight, kind in gguf_mix.each(geometry, "q4_k_m")
    ]
    tensors = gguf_write.tensors(raw, geometry, dynamic)
    head = gguf_write.header(gguf_write.metadata(raw, geometry, "dynamic", 15), tensors)
    path = tmp_path / "model-UD-Q4_K_XL.gguf"
    path.write_bytes(head + bytes(sum(tensor.padded for tensor in tensors)))
    (row,) = rows(str(path), "--on", "rtx 4090", "-c", "512")
    nbytes = sum(tensor.nbytes for tensor in tensors)
    assert row["weights_bytes"]["value"] + row["host_bytes"]["value"] == pytest.approx(nbytes, rel=0.001)
    assert (row["quant"], row["weights_bytes"]["basis"]) == ("mixed", "exact")
    assert row["decode"]["seconds"]["basis"] == "fitted"


def test_drafts_of_a_multi_token_prediction_layer() -> None:
    words = ("qwen3.5-27b", "--on", "rtx 5090", "--mtp", "2", "--acceptance", "0.7")
    (row,) = rows(*words)
    assert row["mtp"] == {"drafted": 2, "acceptance": 0.7, "tokens_per_step": pytest.approx(2.19)}
    (plain,) = rows(*words[:3], "--engine", "llama.cpp")
    assert plain["mtp"] is None
    assert 1.2 < row["decode"]["tps"]["value"] / plain["decode"]["tps"]["value"] < 2.19
    text = " ".join(fit(*words).stdout.split())
    assert "a step yields 2.19 tokens on average if each of the 2 drafted tokens is accepted with a chance" in text
    assert "--spec-type draft-mtp --spec-draft-n-max 2" in text
    assert "is left out" not in text.replace("the vision tower is left out", "")


def test_a_model_without_such_a_layer_is_refused_in_one_line() -> None:
    result = fit("gemma-4-e2b", "--mtp", "2", "--acceptance", "0.7", "--on", "rtx 4090")
    assert result.exit_code != 0
    assert "this model has no multi-token-prediction layer" in result.output
    assert "Traceback" not in result.output


def test_windows_that_an_engine_ignores_are_said_and_not_predicted() -> None:
    (there,) = rows("mistral-7b-v0.1", "--on", "rtx 4090", "--engine", "llama.cpp", "-c", "32k")
    (vllm,) = rows("mistral-7b-v0.1", "--on", "rtx 4090", "--engine", "vllm", "-c", "32k")
    assert there["cache_bytes"]["value"] > 2 * vllm["cache_bytes"]["value"]
    assert any("ignores the sliding window" in caution for caution in there["cautions"])


def test_a_family_that_our_step_cannot_run_is_predicted_eager_and_says_so() -> None:
    (row,) = rows("gpt-oss-20b", "--on", "h100", "--engine", "transformers", "-q", "bf16")
    assert row["path"] == "eager"
    assert any("ours does not support attention sinks" in caution for caution in row["cautions"])


def test_a_choice_names_the_engine_that_is_much_faster_and_the_command_for_it() -> None:
    text = fit("--on", "rtx 4090").stdout
    assert re.search(
        r"^In llama.cpp, gemma-4-31b q4_k_m and qwen3.5-27b q6_k decode at 3\d\.\d t/s or more:$", text, re.M
    )
    assert "\n  profile fit --on 'rtx 4090' --engine llama.cpp\n" in text
    for words in (("--engine", "transformers"), ("-q", "nf4"), ("--engine", "llama.cpp")):
        assert "In llama.cpp" not in fit("--on", "rtx 4090", *words).stdout


def test_a_slow_model_names_the_engine_in_which_it_is_as_fast_as_people_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(hub.shipped_config("gemma-4-e2b")))
    text = fit(str(tmp_path), "--on", "cpu", "-c", "1k").stdout
    reads = any(row["decode"] and row["decode"]["tps"]["value"] >= 5.3 for row in rows(str(tmp_path), "-c", "1k"))
    assert (" in llama.cpp decodes at " in text) == (not reads)
    assert "decodes at" not in fit(str(tmp_path), "--on", "rtx 4090").stdout, "it is fast enough"


def test_each_machine_has_a_choice_of_its_own() -> None:
    found = rows("--on", "rtx 4090", "--on", "h100", "--engine", "llama.cpp")
    assert [row["model"] for row in found] == ["gemma-4-31b", "qwen3.5-27b", "gemma-4-31b", "qwen3.5-122b-a10b"]


def test_a_machine_on_which_nothing_is_fast_or_fits_is_told_so() -> None:
    slow = fit("--on", "vram=64,bandwidth=5,bf16=1").stdout
    assert "Gemma 4: no model decodes that fast here; gemma-4-e2b" in slow
    tiny = fit("--on", "vram=1,bandwidth=50,bf16=1").stdout
    assert "Gemma 4: no model fits at 8k; gemma-4-e2b is the smallest." in tiny


def test_without_a_device_it_means_this_machine() -> None:
    assert "profile sweep -m gemma-3-270m" in fit("gemma-3-270m").stdout


def test_a_goal_ranks_by_quality_class_then_by_the_loss_of_the_quantization() -> None:
    found = rows("--on", "rtx 4090", "--engine", "llama.cpp", "--goal", "30 tok/s at 64k")
    assert {row["goal"] for row in found} <= {"yes", "likely"}
    assert {row["context"] for row in found} == {65536}
    best = [(row["model"], row["quant"]) for row in found[:2]]
    assert best == [("qwen3.5-27b", "q5_k_m"), ("gemma-4-31b", "q3_k_m")]
    assert len({row["model"] for row in found}) == len(found)


def test_a_goal_takes_no_fewer_bits_than_it_must_and_no_more_than_help() -> None:
    """Never iq2 where q3_k_m meets it, and never f32 or bf16 where q8_0 loses nothing."""
    machine, bits = ("--on", "rtx 3060 12gb", "--engine", "llama.cpp"), ("q8_0", "q6_k", "q5_k_m", "q4_k_m", "q3_k_m")
    for goal in ("8 tok/s at 4k", "30 tok/s at 32k", "100 tok/s at 8k"):
        for row in rows(*machine, "--goal", goal):
            better = json.loads(
                fit(row["model"], *machine, "--goal", goal, "-q", ",".join(bits), "-o", "json").stdout
            )
            assert not better or row["quant"] in (better[0]["quant"], "iq4_xs")
            assert row["quant"] not in ("f32", "f16", "bf16")


def test_a_goal_says_what_was_given_up_for_it() -> None:
    text = fit("--on", "rtx 4090", "--engine", "llama.cpp", "--goal", "30 tok/s at 64k").stdout
    assert "qwen3.5-27b is in q5_k_m because q6_k does not fit.\n" in text
    assert "Larger models do not meet the goal: qwen3.5-122b-a10b does not fit" in text
    text = fit("qwen3.5-9b", "--on", "rtx 4090", "--engine", "llama.cpp", "--goal", "100 tok/s at 64k").stdout
    assert re.search(r"qwen3.5-9b is in q4_k_m because q5_k_m decodes at 9\d\.\d t/s\.", text)


def test_an_unmet_goal_is_told_with_the_best_there_is() -> None:
    words = ("gemma-4-e2b", "gemma-4-31b", "--on", "t4", "--engine", "llama.cpp")
    best = max(row["decode"]["tps"]["value"] for row in rows(*words, "-c", "64k", "-q", "q4_k_m") if row["decode"])
    asked = (*words, "--goal", "5000 tok/s at 64k", "-q", "q4_k_m")
    said = (
        f"nothing reaches 5,000 tok/s at 64k; the best is {best:.1f} tok/s (gemma-4-e2b q4_k_m). Try a smaller model,"
    )
    assert fit(*asked).stdout == fit(*asked, "--map").stdout
    assert fit(*asked).stdout.startswith(said)
    advised = fit(*words, "-q", "q4_k_m", *re.findall(r'(--goal) "(.*)"', fit(*asked).stdout)[0])
    assert "gemma-4-e2b" in advised.stdout and "nothing reaches" not in advised.stdout
    assert (
        fit("gemma-4-31b", *asked[2:], "-q", "f16").stdout
        == "nothing reaches 5,000 tok/s at 64k: nothing fits. A smaller model, quantization (-q) or context would\n"
    )


LOSSY = ("qwen3.5-27b", "--on", "rtx 4090", "--engine", "llama.cpp")


def keep(*kls: tuple[str, float], parameters: float = 1.0, options: str = "", **scale: Any) -> None:
    """Store rows of Qwen 3.5 9B in transformers, with these losses of quantizations."""
    count = families.geometry(hub.shipped_config("qwen3.5-9b")).parameters
    with Store.open() as store:
        run = store.start_run(["sweep"], {})
        for quant, kl in kls:
            row = scored(measured(model="qwen3.5-9b", quant=quant, options=options), kl, **scale)
            store.append(run, replace(row, checkpoint={"parameters": round(count * parameters)}))
        store.finish_run(run, "done")


def known(goal: str, *words: str) -> dict[str, tuple[str, float | None]]:
    """Quantizations of Qwen 3.5 9B in transformers that meet a goal, in their order, with their losses."""
    found = rows("qwen3.5-9b", "--on", "h100", "-q", "bf16,int8,nf4,fp4", *words, "--goal", goal)
    return {row["quant"]: (row["goal"], row["kl"] and row["kl"]["value"]) for row in found}


def test_a_limit_of_the_loss_goes_by_published_tables_with_their_source() -> None:
    (best, *_) = rows(*LOSSY, "--goal", "20 tok/s at 8k, kl<0.006")
    assert (best["quant"], best["goal"], best["kl"]["value"]) == ("q4_k_m", "likely", 0.0056)
    text = " ".join(fit(*LOSSY, "--goal", "20 tok/s at 8k, kl<0.006").stdout.split())
    assert "KL: qwen3.5-27b q4_k_m, published (bartowski Q4_K_M; chat texts of TitwitMuffbiscuit" in text
    assert "qwen3.5-27b is in q4_k_m because q5_k_m has no known loss" in text
    all_of_them = rows(*LOSSY, "--goal", "20 tok/s at 8k, kl<0.01", "-q", "q6_k,iq4_xs,q4_k_m")
    assert [(row["quant"], row["goal"]) for row in all_of_them] == [
        ("q4_k_m", "likely"), ("iq4_xs", "likely"), ("q6_k", "unknown"),
    ]  # fmt: skip
    assert all_of_them[-1]["kl"] is None


def test_a_limit_of_the_loss_goes_by_what_was_measured_here() -> None:
    keep(("bf16", 0.001), ("int8", 0.03), ("nf4", 0.02), ("fp4", 0.2))
    assert known("5 tok/s at 8k, kl<0.1") == {
        "bf16": ("yes", pytest.approx(0.001)),
        "nf4": ("yes", pytest.approx(0.02)),
        "int8": ("yes", pytest.approx(0.03)),
    }
    assert known("5 tok/s at 8k, kl<0.021")["nf4"][0] == "likely"  # the interval holds the limit
    text = " ".join(fit("qwen3.5-9b", "--on", "h100", "-q", "nf4", "--goal", "5 tok/s at 8k, kl<0.1").stdout.split())
    assert (
        "KL: qwen3.5-9b nf4, measured here over 4,800 tokens of some texts in windows of 512, from fp32 (0.0" in text
    )


def test_a_loss_beside_that_of_the_reference_or_by_the_cache_meets_no_limit() -> None:
    """A quantized file compared with itself has exactly 0."""
    keep(("nf4", 0.0), packed="q4_0")
    assert known("5 tok/s at 8k, kl<0.1")["nf4"] == ("unknown", None)
    keep(("nf4", 0.3), options="kv=q4_0")
    assert known("5 tok/s at 8k, kl<0.1")["nf4"] == ("unknown", None)
    keep(("nf4", 0.02))
    assert known("5 tok/s at 8k, kl<0.1")["nf4"] == ("yes", pytest.approx(0.02))


def test_losses_of_two_scales_are_not_compared_with_each_other() -> None:
    """Each is compared with the limit; bits decide between them."""
    keep(("nf4", 0.001), ("fp4", 0.002))
    keep(("int8", 0.03), texts="other")
    found = known("5 tok/s at 8k, kl<0.1")
    assert list(found) == ["int8", "nf4", "fp4", "bf16"]
    assert {word for word, _ in found.values()} == {"yes", "unknown"} and found["bf16"] == ("unknown", None)


def test_rows_of_another_model_or_engine_say_nothing_about_a_loss() -> None:
    keep(("nf4", 0.001), parameters=0.5)
    assert known("5 tok/s at 8k, kl<0.1")["nf4"] == ("unknown", None)
    keep(("nf4", 0.001))
    assert known("5 tok/s at 8k, kl<0.1")["nf4"] == ("yes", pytest.approx(0.001))
    (row,) = rows("qwen3.5-9b", "--on", "h100", "--engine", "vllm", "-q", "bf16", "--goal", "5 tok/s at 8k, kl<0.1")
    assert (row["goal"], row["kl"]) == ("unknown", None)


def test_a_figure_of_another_definition_never_meets_a_limit() -> None:
    """localbench has 0.16 for q8_0 by its own definition."""
    (row,) = rows("gemma-4-31b", "--on", "h100", "--engine", "llama.cpp", "-q", "q8_0", "--goal", "5 tok/s, kl<9")
    assert (row["goal"], row["kl"]) == ("unknown", None)
    text = fit("gemma-4-31b", "--on", "h100", "--engine", "llama.cpp", "--goal", "5 tok/s, kl<9").stdout
    assert "is neither measured here nor published as a mean divergence" in " ".join(text.split())


def test_a_limit_that_nothing_meets_is_told_with_the_least_loss() -> None:
    words = (*LOSSY, "-q", "q4_k_m,iq4_xs", "--goal")
    text = fit(*words, "20 tok/s at 8k, kl<0.001").stdout
    assert text.startswith("nothing reaches 20 tok/s at 8k and loses less than 0.001 nats: qwen3.5-27b q4_k_m loses")
    (wider,) = re.findall(r'--goal "([^"]*)"', text)
    assert [row["quant"] for row in rows(*words, wider)] == ["q4_k_m"]


def test_a_model_that_loses_too_much_is_named_with_its_loss() -> None:
    keep(("nf4", 0.2))
    text = fit("qwen3.5-9b", "qwen3.5-27b", "--on", "h100", "-q", "nf4", "--goal", "5 tok/s at 8k, kl<0.1").stdout
    assert "Left out: qwen3.5-9b loses 0.20 nats in nf4." in " ".join(text.split())


def test_an_unknown_loss_ends_in_the_command_that_measures_it(
    tmp_path: Path, own_cache: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMA_CPP_DIR", str(llama_cpp.install(tmp_path / "bin")))
    goal = ("--goal", "0.001 tok/s at 1k, kl<0.05")
    file = gguf(tmp_path / "tiny-q8_0.gguf", "q8_0")
    text = fit(str(file), *goal).stdout
    assert "beside an F32, BF16 or F16 file of the model" in " ".join(text.split())
    assert text.splitlines()[-1].split() == [
        *("profile", "sweep", "--backend", "llama.cpp", "-m", str(file), "--quality")
    ]
    asked = ("gemma-3-270m", "--on", "h100", *goal)
    assert fit(*asked, "--engine", "llama.cpp", "-q", "q4_0").stdout.endswith(
        "  profile sweep --backend llama.cpp -m MODEL-Q4_0.gguf --quality\n"
        "  # MODEL-Q4_0.gguf: a GGUF file of gemma-3-270m in Q4_0\n"
    )
    assert "  profile sweep -m MODEL --weights real -q nf4 --quality\n" in fit(*asked, "-q", "nf4").stdout


def test_a_goal_that_another_engine_meets_ends_in_its_command() -> None:
    asked = ("gemma-4-31b", "--on", "rtx 4090", "--goal", "30 tok/s at 64k, kl<0.1")
    text = fit(*asked).stdout
    assert text.startswith("nothing reaches 30 tok/s at 64k: nothing fits")
    (line,) = [line for line in text.splitlines() if line.startswith("  profile fit ")]
    assert "gemma-4-31b" in [row["model"] for row in rows(*shlex.split(line)[2:])]


def test_the_goal_that_is_proposed_keeps_the_limit_of_the_loss_and_is_met() -> None:
    asked = ("gemma-4-e2b", "--on", "t4", "-q", "nf4", "--goal")
    text = fit(*asked, "5000 tok/s at 8k, kl<0.1").stdout
    (slower,) = re.findall(r'--goal "([^"]*)"', text)
    assert slower.endswith(" tok/s at 8k, kl<0.1")
    assert [row["goal"] for row in rows(*asked, slower)] == ["unknown"]


def test_a_table_with_losses_fits_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "size", lambda: (80, 24))
    monkeypatch.setattr(console, "width", lambda: 80)
    lines = fit(*LOSSY, "--goal", "20 tok/s at 8k, kl<0.006").stdout.splitlines()
    assert "KL, nats" in lines[2] and "goal" in lines[2] and len(lines[2]) <= 80
    assert max(len(line) for line in lines if not line.startswith("  ")) <= 80  # commands are not wrapped


def test_a_goal_without_a_context_is_asked_of_what_a_short_model_reaches(model: Any) -> None:
    (row,) = rows(model(), "--on", "rtx 4090", "--goal", "1 tok/s", "-q", "bf16")
    assert row["context"] == 4096


def test_the_map_names_what_binds_in_each_cell() -> None:
    text = fit(*PAIR, "--on", "rtx 4090", "--engine", "llama.cpp", "--map").stdout
    lines = [line.split() for line in text.splitlines() if line.startswith(("gemma", "qwen"))]
    assert len(lines) == 4
    assert {word for line in lines for word in line[3:]} & {"B", "E", "L"}
    signs = [part[0] for part in text.splitlines()[-1].partition(". ")[2].split("; ")]
    assert signs[-2:] == ["+", "·"] and set(signs[:-2]) <= set("BCELH")


def test_several_devices_and_host_memory_are_named() -> None:
    words = ("qwen3.5-122b-a10b", "--on", '2x"rtx 3090"', "--ram", "64g", "--engine", "llama.cpp")
    text = fit(*words).stdout
    assert "2x RTX 3090, layer split" in text
    assert "of weights in host memory" in text
    assert "weights, cache and peak: of the fullest device; t/s: of all devices together." in text
    (row,) = rows(*words)
    head, _, cells = (re.split(r" {2,}", line) for line in text.splitlines()[2:5])
    shown = dict(zip(head, cells, strict=True))
    here = (row["peak_bytes"]["value"] - row["offloaded_bytes"] / 2) / GIB
    assert shown["in host memory"] == f"{row['offloaded_bytes'] / GIB:.1f} GiB"
    assert shown["peak"] == f"{here:.1f} GiB" and here < row["usable_bytes"] / GIB + 0.01


def test_the_decode_path_is_named_and_what_is_assumed_of_a_described_device() -> None:
    described = ("--on", "vram=24,bandwidth=1008,bf16=165")
    title = "24,bandwidth=1008,bf16=165, 23.5 GiB usable · transformers 5.23"
    for words, path, told in (
        ((), "eager", True),
        (("--path", "graph"), "graph", False),
        (("--path", "eager"), "eager", False),
    ):
        text = fit("gemma-4-e4b", *described, *words).stdout
        assert f"{title}, {path} decode\n" in text
        assert ("for an NVIDIA GPU add --path graph" in text) == told
        assert f"-b 1 --path {path}\n" in text  # a sweep there may have another default
    text = fit("gemma-4-e4b", "--on", "rtx 4090", "-q", "bf16,int8").stdout
    assert "transformers 5.23, graph decode, static for int8\n" in text
    assert "--path" not in text
    assert "--path eager" in fit("gemma-4-e4b", "--on", "rtx 4090", "--path", "eager").stdout
    assert "decode\n" not in fit("gemma-4-e4b", "--on", "rtx 4090", "--engine", "llama.cpp").stdout


@pytest.mark.parametrize(
    ("words", "runs"),
    [
        (("gemma-4-e4b", "--on", "rtx 4090"), True),
        (("gemma-4-31b", "--on", "rtx 4090", "-q", "bf16"), False),  # does not fit
        (("gemma-4-31b", "--on", "rtx 4090", "-q", "bf16", "--ram", "64g"), False),
        (("gemma-4-31b", "--on", "rtx 4090", "-q", "q8_0", "--ram", "64g", "--engine", "llama.cpp"), True),
        (("gemma-4-e4b", "--on", "2x3090"), False),
        (("gemma-4-e4b", "--on", "2x3090", "--engine", "llama.cpp"), True),
        (("gemma-4-e4b", "--on", "mi300x", "--engine", "transformers"), False),
        (("gemma-4-e4b", "--on", "m4 max", "--engine", "transformers"), False),
        (("gemma-4-e4b", "--on", "m4 max"), True),  # in llama.cpp
    ],
)
def test_a_command_to_check_is_printed_only_where_it_runs(words: tuple[str, ...], runs: bool) -> None:
    assert ("To check" in fit(*words).stdout) == runs
    assert all((row["verify"] is not None) == runs for row in rows(*words))


@pytest.mark.parametrize(("on", "shares"), [("2x3090", "1/1"), ("3090, 4060 ti 16gb", "24/16")])
def test_the_command_to_check_splits_the_model_as_the_prediction_does(on: str, shares: str) -> None:
    (row,) = rows("gemma-4-31b", "--on", on, "--engine", "llama.cpp")
    assert f" --tensor-split {shares}" in row["verify"]
    assert f" -ts {shares.replace('/', ',')}" in row["serve"]


def test_each_machine_has_commands_and_figures_of_its_own() -> None:
    words = ("gemma-3-270m", "-q", "bf16", "--on", "rtx 4090", "--on", "cpu", "--ram", "8GiB")
    text = fit(*words).stdout
    assert "To check on RTX 4090:\n  profile sweep -m gemma-3-270m -q bf16 -c 8192 -b 1\n" in text
    assert "To check:\n  profile sweep -m gemma-3-270m -q bf16 -c 8192 -b 1 --device cpu\n" in text
    assert [" of host memory" in line for line in text.splitlines() if " usable" in line] == [True, False]


def test_a_device_that_no_sweep_runs_on_is_told_so() -> None:
    text = fit("gemma-4-e4b", "--on", "m4 max", "-q", "bf16,nf4", "--notes", "all").stdout
    assert "profile sweep does not run on Apple devices, so it cannot check these figures." in text
    assert "nf4 assumes that bitsandbytes is as efficient there as on NVIDIA GPUs." in text
    assert "bf16 assumes" not in text and "profile calibrate" not in text


def test_only_this_machine_is_told_to_calibrate() -> None:
    assert "profile calibrate" in fit("gemma-3-270m", "--on", "cpu").stdout
    for words in (("--on", "rtx 4090"), ("--on", "cpu", "--engine", "llama.cpp")):
        assert "profile calibrate" not in fit("gemma-3-270m", *words).stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nosuch"], "unknown model: nosuch"),
        (["gemma-4-e2b", "-c", "256k"], "gemma-4-e2b supports at most 131,072 tokens, not 262,144"),
        (["gemma-4-e2b", "--path", "graph", "--engine", "vllm"], "--path: vllm has a single decode path"),
        (["gemma-4-e2b", "--on", "cpu", "--ram", "8GiB"], "already uses the host's memory"),
        (["gemma-4-e2b", "--on", "rtx 4090", "--ram-bandwidth", "60"], "--ram-bandwidth needs --ram"),
        (["gemma-4-e2b", "--on", "rtx 4090", "--split", "tensor"], "--split needs several devices"),
        (["--on", "rtx 9999"], "unknown device: rtx 9999"),
        (["--engine", "tensorrt"], "unknown engine: tensorrt"),
        (["--engine", "transformers", "-q", "q4_k_m"], "unknown quantization of transformers: q4_k_m"),
        (["qwen3-8b", "--on", "h100", "--kv", "q8_0"], "--kv needs --engine llama.cpp or vllm"),
        (["qwen3-8b", "--engine", "llama.cpp", "--kv", "q2"], "unknown KV cache type of llama.cpp: q2"),
        (["--goal", "soon"], "--goal 'soon' is not a decode rate with an optional context and KL limit"),
        (
            ["--goal", "20 tok/s, kl<"],
            "--goal '20 tok/s, kl<' is not a decode rate with an optional context and KL limit",
        ),
        (["--goal", "20 tok/s at 8k, kl<0"], "--goal: no loss is below 0, so nothing meets kl<0"),
        (["--goal", "kl<0.05"], "--goal 'kl<0.05' is not a decode rate"),
        (["-c", "0"], "-c: '0' is less than 1"),
        (["--on", "vram=24"], "--on vram=24: bandwidth is missing"),
        (["-b", "1-200+1", "-c", "1-200+1", "--on", "4090"], "predictions are too many to print"),
    ],
)
def test_a_mistake_is_one_clear_line(words: list[str], said: str) -> None:
    result = fit(*words)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"Error: {said}") or said in result.stderr.splitlines()[0]
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["-q", "q4_k_m", "--engine", "transformers"], "--engine llama.cpp has it. Known: bf16, fp16,"),
        (["-q", "nvfp4", "--engine", "llama.cpp"], "--engine mlx or --engine vllm has it. "),
        (["-q", "nonsense"], "Known: bf16, fp16,"),
        (["-q", "q4km"], "Did you mean q4_k_m, q5_k_m or q4_k_s? Known: bf16, fp16,"),
        (["-q", "q1_0"], "Pass a GGUF file that is stored in it. Known: bf16, fp16,"),
        (["-q", "q1_0", "--engine", "llama.cpp"], "Pass the file in place of the model, or choose one of f32,"),
        (["gemma-4-e2b", "-c", "256k"], "Use -c 131072."),
        (["--on", "vram=24"], "For example: --on vram=24,bandwidth=1008,bf16=165"),
    ],
)
def test_a_hint_is_a_sentence_that_says_what_to_do(words: list[str], hint: str) -> None:
    assert fit(*words).stderr.splitlines()[1].strip().startswith(hint)


def test_a_folder_with_an_unknown_or_contradictory_config_is_one_line(tmp_path: Any) -> None:
    for content, said in (
        ({"model_type": "mamba9"}, "model_type mamba9: this family is not supported yet"),
        ({}, "model_type is missing"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(content))
        result = fit(str(tmp_path))
        assert result.exit_code == 2
        assert said in result.stderr.splitlines()[0]


def test_a_model_of_fewer_positions_than_the_usual_context_is_predicted_at_its_longest(tmp_path: Path) -> None:
    config = hub.shipped_config("qwen3-0.6b") | {"max_position_embeddings": 2048}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (row,) = rows(str(tmp_path), "--on", "4090", "-q", "bf16")
    assert row["context"] == 2048


@pytest.mark.parametrize("engine", ["transformers", "llama.cpp", "vllm"])
def test_experts_without_a_shared_one_are_predicted(engine: str, tmp_path: Path) -> None:
    """A width of 0 is a model that transformers builds and runs; nothing may be divided by it."""
    raw = hub.shipped_config("qwen3.5-35b-a3b")
    (tmp_path / "config.json").write_text(
        json.dumps(raw | {"text_config": raw["text_config"] | {"shared_expert_intermediate_size": 0}})
    )
    (without,) = rows(str(tmp_path), "--on", "h100", "--engine", engine, "-q", "bf16", "-c", "4k")
    (usual,) = rows("qwen3.5-35b-a3b", "--on", "h100", "--engine", engine, "-q", "bf16", "-c", "4k")
    assert 0.98 < without["weights_bytes"]["value"] / usual["weights_bytes"]["value"] < 1
