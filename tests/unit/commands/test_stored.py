"""What `profile fit`, `explain` and the plan of a sweep make of checkpoints that state their own quantization."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from fakes import stored as made

from profiler import devices
from profiler.cli import main
from profiler.quants import checkpoint

SHARED = {  # shapes of Llama 3.1 8B
    "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128256, "max_position_embeddings": 131072,
}  # fmt: skip
ONE = ("--device", "cpu", "-c", "32", "-n", "2", "--path", "eager", "--dry-run")


def run(*words: str) -> Result:
    return CliRunner().invoke(main, list(words))


def fit(*words: str) -> list[dict[str, Any]]:
    result = run("fit", *words, "-o", "json")
    assert result.exit_code == 0, result.output
    found: list[dict[str, Any]] = json.loads(result.stdout)
    return found


def plan(*words: str) -> list[dict[str, Any]]:
    result = run("sweep", *ONE, *words, "-o", "json")
    assert result.exit_code == 0, result.output
    found: list[dict[str, Any]] = json.loads(result.stdout)
    return found


def measure(path: str) -> dict[str, Any]:
    words = ("-c", "32", "-n", "2", "-r", "2", "--backend", "fake", "-o", "json")
    (row,) = json.loads(run("sweep", "-m", path, *words).stdout)
    assert isinstance(row, dict)
    return row


def prefer(monkeypatch: pytest.MonkeyPatch, default: str, unsupported: tuple[str, ...] = ()) -> None:
    """Make the device of this machine one that prefers ``default``."""
    here = replace(devices.find("cpu"), default_dtype=default, unsupported_dtypes=unsupported)
    monkeypatch.setattr(devices, "find", lambda *name: here)


def sizes(row: dict[str, Any]) -> tuple[str, float, str]:
    return row["quant"], row["weights_bytes"]["value"], row["weights_bytes"]["basis"]


PACKED = sorted(set(made.CONFIGS) - {"fp32", "bf16", "fp16", "nf4-dq"})


@pytest.mark.parametrize("quant", PACKED)
def test_fit_prices_the_tensors_of_a_quantized_checkpoint(quant: str, tmp_path: Path) -> None:
    """Never the engine's usual quantization; a byte a tensor that is read once and dropped is not held."""
    path = made.folder(tmp_path / "m", quant)
    (row,) = fit(str(path), "--engine", "vllm", "--on", "rtx 4090")
    held = made.total({name: entry for name, entry in made.tensors(quant).items() if "weight_format" not in name})
    assert sizes(row) == (quant, held, "exact")
    assert row["stored"] == {"quant": quant, "bytes": made.total(made.tensors(quant)), "from": "headers"}


@pytest.mark.parametrize("quant", ["fp32", "bf16", "fp16"])
def test_fit_prices_a_plain_checkpoint_in_its_own_dtype(quant: str, tmp_path: Path) -> None:
    (row,) = fit(str(made.folder(tmp_path / "m", quant)), "-q", quant)
    assert sizes(row) == (quant, made.total(made.tensors(quant)), "exact")
    assert not any("are stored in" in caution for caution in row["cautions"])


@pytest.mark.parametrize("stated", ["same", "other", None])
@pytest.mark.parametrize("held", ["fp32", "bf16", "fp16", "mixed"])
def test_fit_plan_and_row_take_a_plain_checkpoint_as_it_is_stored(
    held: str, stated: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the dtype of most bytes of its tensors, whatever the config says and the device prefers."""
    monkeypatch.setenv("PROFILER_STORE", str(tmp_path / "store.sqlite"))
    most = made.most(held)
    path = str(made.plain(tmp_path / "m", held, stated and (most if stated == "same" else made.another(most))))
    for default in {"fp32", "bf16", "fp16"} - {most}:
        prefer(monkeypatch, default)
        predicted, planned = fit(path)[0], plan("-m", path)[0]
        assert sizes(predicted) == (most, made.total(made.tensors(most)), "exact")
        assert predicted["stored"]["bytes"] == made.total(made.tensors(held))
        assert (planned["quant"], planned["dtype"], planned["weights_bytes"]) == (
            most, most, made.total(made.tensors(most))
        )  # fmt: skip
    measured = measure(path)
    assert (measured["case"]["quant"], measured["case"]["dtype"]) == (most, most)
    notes = {caution["code"]: caution["text"] for caution in measured["cautions"]}
    assert [notes[code] for code in ("converted-dtype", "model") if code in notes] == predicted["cautions"]
    assert ("converted-dtype" in notes) == (held == "mixed") and ("model" in notes) == (stated == "other")
    if held == "mixed":
        said = "1.01 MiB of weights (lm_head.weight and 9 more) are stored in fp32 and loaded in bf16"
        assert notes["converted-dtype"] == said
    if stated == "other":
        assert f"config.json says {made.another(most)}, but most of the checkpoint" in notes["model"]


@pytest.mark.parametrize(("held", "default", "kept"), [("bf16", "fp16", "; -q bf16 keeps it"), ("fp64", "fp32", "")])
def test_a_dtype_that_the_device_does_not_support_is_converted_to_its_default_and_that_is_said(
    held: str, default: str, kept: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefer(monkeypatch, default, ("bf16",))
    monkeypatch.setenv("PROFILER_STORE", str(tmp_path / "store.sqlite"))
    path = str(made.plain(tmp_path / "m", held, held))
    predicted, planned, measured = fit(path)[0], plan("-m", path)[0], measure(path)
    assert predicted["quant"] == planned["quant"] == measured["case"]["quant"] == default
    assert predicted["weights_bytes"]["value"] == planned["weights_bytes"] == made.total(made.tensors(default))
    said = f"the checkpoint's weights are stored in {held} and loaded in {default}, the device's default{kept}"
    assert predicted["cautions"] == [said]
    assert [caution["text"] for caution in measured["cautions"] if caution["code"] == "converted-dtype"] == [said]
    assert said in run("sweep", *ONE, "-m", path).stderr


@pytest.mark.parametrize(("on", "loaded"), [("t4", "fp16"), ("v100 32gb", "fp16"), ("rtx 4090", "bf16")])
def test_a_card_of_the_catalog_loads_bf16_if_it_has_units_for_it(on: str, loaded: str, tmp_path: Path) -> None:
    (row,) = fit(str(made.folder(tmp_path / "m", "bf16")), "--on", on)
    assert row["quant"] == loaded
    (row,) = fit(str(made.folder(tmp_path / "wide", "fp32")), "--on", on)
    assert row["quant"] == "fp32"


def test_what_is_no_plain_checkpoint_keeps_the_dtype_of_the_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A catalog entry, random weights in the shapes of a folder, and a GGUF file that is unpacked."""
    prefer(monkeypatch, "fp16")
    folder, gguf = str(made.folder(tmp_path / "m", "fp32")), str(made.gguf(tmp_path / "m.gguf", "f32"))
    for words in (("gemma-3-270m",), (folder, "--weights", "synthetic"), (gguf,)):
        assert plan("-m", *words)[0]["quant"] == "fp16"


def test_an_explicit_quantization_needs_no_note_on_dtypes(tmp_path: Path) -> None:
    path = str(made.plain(tmp_path / "m", "mixed", "fp16"))
    assert fit(path, "-q", "fp32")[0]["cautions"] == plan("-m", path, "-q", "fp32")[0]["cautions"] == []
    assert fit(path, "-q", "fp32")[0]["weights_bytes"]["value"] == made.total(made.tensors("fp32"))


def test_an_engine_without_the_dtype_of_a_checkpoint_says_what_it_is_predicted_in(tmp_path: Path) -> None:
    (row,) = fit(str(made.folder(tmp_path / "m", "fp32")), "--engine", "vllm", "--on", "rtx 4090")
    assert row["quant"] == "bf16"
    assert "the checkpoint's weights are stored in fp32, and vllm loads them in bf16" in row["cautions"]


@pytest.mark.parametrize("kind", made.GGUF)
def test_fit_prices_a_gguf_file_as_itself(kind: str, tmp_path: Path) -> None:
    """On a GPU the table from which rows are looked up stays on the host; on a CPU there is one memory."""
    path = str(made.gguf(tmp_path / "m.gguf", kind))
    whole = sum(made.gguf_size(*entry) for entry in made.gguf_tensors(kind).values())
    (gpu,) = fit(path, "--engine", "llama.cpp", "--on", "rtx 4090")
    table = made.gguf_size(kind, (made.VOCAB, made.HIDDEN))
    assert sizes(gpu) == (kind, whole - table, "exact") and gpu["host_bytes"]["value"] == table
    (cpu,) = fit(path, "--engine", "llama.cpp")
    assert sizes(cpu) == (kind, whole, "exact") and cpu["host_bytes"]["value"] == 0


def test_a_tied_gguf_file_is_held_whole_on_a_device(tmp_path: Path) -> None:
    held = made.gguf_tensors("q8_0", head=False)
    path = made.gguf(tmp_path / "m.gguf", found=held)
    (row,) = fit(str(path), "--engine", "llama.cpp", "--on", "rtx 4090")
    assert sizes(row) == ("q8_0", sum(made.gguf_size(*entry) for entry in held.values()), "exact")


def test_two_files_of_one_model_differ_in_speed_as_in_bytes(tmp_path: Path) -> None:
    """Reading the file's tensors is what a decode step does."""
    files = [str(made.gguf(tmp_path / f"{kind}.gguf", kind)) for kind in ("f32", "q4_0")]
    explained = [json.loads(run("explain", path, "--engine", "llama.cpp", "-o", "json").stdout) for path in files]
    matrices = ("attention", "feed-forward")
    read = [
        sum(part["bytes"] for part in parts if part["phase"] == "decode" and part["part"] in matrices)
        for parts in explained
    ]
    assert read[0] == 32 / (18 * 8 / 32) * read[1]


def test_the_speed_of_a_format_that_nobody_timed_is_a_prior(tmp_path: Path) -> None:
    """AWQ in vLLM, q4_0 and MXFP4 in llama.cpp were fitted; AWQ checkpoints in transformers were not."""
    awq = str(made.folder(tmp_path / "m", "awq"))
    files = {kind: str(made.gguf(tmp_path / f"{kind}.gguf", kind)) for kind in ("q4_0", "mxfp4")}
    on = ("--on", "rtx 4090")
    bases = [
        fit(path, "--engine", engine, *on)[0]["decode"]["tps"]["basis"]
        for path, engine in ((files["q4_0"], "llama.cpp"), (files["mxfp4"], "llama.cpp"), (awq, "transformers"))
    ]
    assert bases == ["fitted", "fitted", "prior"]


def test_another_quantization_of_a_file_is_said_not_to_be_the_file(tmp_path: Path) -> None:
    path = str(made.gguf(tmp_path / "m.gguf", "q8_0"))
    own, other = fit(path, "--engine", "llama.cpp", "-q", "Q8_0,q4_k_m")
    assert own["quant"] == "q8_0" and own["weights_bytes"]["value"] == own["stored"]["bytes"]
    assert not any("predicted as" in caution for caution in own["cautions"])
    assert "predicted as q4_k_m, not as the q8_0 of this checkpoint" in other["cautions"]
    assert "predicted as q4_k_m" in run("explain", path, "--engine", "llama.cpp", "-q", "q4_k_m").stderr


def test_an_engine_that_cannot_read_a_checkpoint_says_what_can(tmp_path: Path) -> None:
    result = run("fit", str(made.folder(tmp_path / "m", "awq")), "--engine", "llama.cpp")
    assert result.exit_code == 2
    assert "its weights are stored in awq, and llama.cpp reads GGUF files only" in result.stderr
    (row,) = fit(str(made.folder(tmp_path / "plain", "bf16")), "--engine", "llama.cpp")
    assert row["quant"] == "bf16" and any("converted to bf16" in caution for caution in row["cautions"])


@pytest.mark.parametrize(
    ("quant", "gib"),
    [
        ("awq", 5.33),
        ("gptq", 5.34),
        ("fp8", 8.46),
        ("compressed-tensors", 5.31),
        ("nf4-dq", 5.31),
        ("mlx-4bit", 4.21),
    ],
)
def test_a_config_alone_is_priced_by_its_scheme_and_not_called_exact(quant: str, gib: float, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(made.LLAMA | SHARED | made.CONFIGS[quant]))
    (row,) = fit(str(tmp_path), "--engine", "vllm", "--on", "rtx 4090")
    name, nbytes, basis = sizes(row)
    assert name == quant and basis == "prior"
    assert nbytes / 2**30 == pytest.approx(gib, abs=0.01)
    assert row["stored"]["from"] == "config"


def test_a_sweep_that_cannot_run_a_checkpoint_as_it_is_stored_is_not_offered_to_check_it(tmp_path: Path) -> None:
    offered = {}
    for quant in ("awq", "gptq", "fp8", "compressed-tensors", "nf4-dq"):
        (tmp_path / "config.json").write_text(json.dumps(made.LLAMA | SHARED | made.CONFIGS[quant]))
        (row,) = fit(str(tmp_path), "--on", "rtx 4090")
        offered[quant] = row["verify"] is not None
        assert offered[quant] != any("profile sweep cannot run it" in caution for caution in row["cautions"])
    assert offered["awq"] and not offered["compressed-tensors"]


# MXFP4 is of the experts of gpt-oss only: nobody stores the linear layers of a Llama so.
@pytest.mark.parametrize("quant", sorted({*checkpoint.RULES} - {"mxfp4"}))
def test_the_bytes_by_a_scheme_are_those_of_the_tensors_that_it_makes(quant: str, tmp_path: Path) -> None:
    quant = {"bitsandbytes": "nf4-dq", "mlx": "mlx-4bit"}.get(quant, quant)
    (tmp_path / "config.json").write_text(json.dumps(made.LLAMA | made.CONFIGS[quant]))
    (alone,) = fit(str(tmp_path), "--engine", "vllm", "--on", "rtx 4090")
    (whole,) = fit(str(made.folder(tmp_path / "m", quant)), "--engine", "vllm", "--on", "rtx 4090")
    assert alone["weights_bytes"]["value"] == whole["weights_bytes"]["value"]


@pytest.mark.parametrize(
    "scheme",
    [
        {"quant_method": "aqlm", "nbits_per_codebook": 16},
        {"quant_method": "compressed-tensors", "config_groups": {"a": {}, "b": {}}},
        {"quant_method": "compressed-tensors", "config_groups": {"a": {"targets": 1, "weights": {"num_bits": 4}}}},
        {"quant_method": "compressed-tensors", "ignore": ["re:(a+)+$"]}
        | {"config_groups": {"a": {"targets": ["Linear"], "weights": {"num_bits": 4}}}},
        {"quant_method": "awq", "bits": 4, "modules_to_not_convert": ["x"] * 5000},
        {"bits": 4, "group_size": 32, "mode": "mxfp4"},
        {"quant_method": "gptq", "bits": 4, "group_size": 128, "dynamic": {"a": {}}},
        {"quant_method": 7},
    ],
    ids=lambda scheme: str(scheme.get("quant_method", "mlx mxfp4")),
)
def test_a_scheme_that_cannot_be_priced_is_one_line(scheme: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(made.LLAMA | {"quantization_config": scheme}))
    result = run("fit", str(tmp_path), "--engine", "vllm")
    assert result.exit_code == 2
    assert "not enough to compute the size of the weights" in result.stderr
    assert fit(str(tmp_path), "--engine", "vllm", "-q", "bf16")  # what a person names is predicted


@pytest.mark.parametrize(
    ("quant", "says"),
    [
        ("awq", "its weights are stored in awq: gptqmodel is not installed: pip install gptqmodel"),
        ("gptq", "its weights are stored in gptq: optimum and gptqmodel are not installed: pip install"),
        ("mlx-4bit", "its weights are stored in mlx-4bit: transformers does not read MLX checkpoints"),
        ("mxfp4", "its weights are stored in mxfp4: transformers keeps MXFP4 in the experts of gpt-oss only"),
    ],
)
def test_the_plan_refuses_what_cannot_be_loaded_and_runs_the_other_models(
    quant: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "_installed", lambda module: False)
    packed = str(made.folder(tmp_path / "packed", quant))
    rows = {row["model"]: row for row in plan("-m", packed, "-m", str(made.folder(tmp_path / "plain", "bf16")))}
    assert rows["plain"]["action"] == "run"
    assert rows["packed"]["action"] == "skip" and rows["packed"]["reason"].startswith(says)
    assert "measure the unquantized checkpoint with -q nf4" in rows["packed"]["reason"]
    assert rows["packed"]["weights_bytes"] == made.total(made.tensors(quant))


def test_the_plan_runs_a_checkpoint_as_it_is_stored_once_the_library_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "_installed", lambda module: True)
    (row,) = plan("-m", str(made.folder(tmp_path / "m", "awq")))
    assert (row["action"], row["quant"], row["dtype"]) == ("run", "awq", "bf16")
    assert row["weights_bytes"] == made.total(made.tensors("awq"))


@pytest.mark.parametrize("quant", ["int8", "nf4-dq"])
def test_the_plan_of_a_bitsandbytes_checkpoint_has_its_own_name_and_bytes(quant: str, tmp_path: Path) -> None:
    path = str(made.folder(tmp_path / "m", quant))
    (own,) = plan("-m", path)
    assert (own["action"], own["quant"]) == ("run", quant)
    (predicted,) = fit(path)  # here: some CPUs make bitsandbytes pack 4-bit weights in another way
    assert own["weights_bytes"] == predicted["weights_bytes"]["value"]
    if not devices.find("cpu").repacks:
        (predicted,) = fit(path, "--engine", "vllm", "--on", "rtx 4090")
        assert own["weights_bytes"] == predicted["weights_bytes"]["value"]
    assert plan("-m", path, "-q", quant) == [own]


def test_fp8_on_a_cpu_is_unpacked_and_said_to_be(tmp_path: Path) -> None:
    (row,) = plan("-m", str(made.folder(tmp_path / "m", "fp8")))
    assert (row["action"], row["quant"], row["note"]) == ("run", "bf16", "transformers unpacks fp8 into bf16")
    assert row["weights_bytes"] == made.total(made.tensors("bf16"))
    (kept,) = plan("-m", str(tmp_path / "m"), "-q", "fp8")
    assert kept["action"] == "skip" and kept["reason"].endswith("-q bf16 measures it unpacked")


def test_a_sweep_of_a_gguf_file_says_that_it_is_unpacked_and_what_runs_it_as_it_is(tmp_path: Path) -> None:
    (row,) = plan("-m", str(made.gguf(tmp_path / "m.gguf", "q8_0")), "-q", "nf4")
    assert row["action"] == "run"
    assert row["note"].startswith("the file is unpacked into nf4; --backend llama.cpp measures it as it is")


@pytest.mark.parametrize(
    ("quant", "asked", "says"),
    [
        ("awq", "nf4", "its weights are quantized already (awq): leave -q nf4 out"),
        ("fp8", "int8", "its weights are quantized already (fp8): leave -q int8 out"),
        ("nf4-dq", "nf4", "its weights are quantized already (nf4-dq): leave -q nf4 out"),
        ("int8", "bf16", "its weights are stored in int8: transformers cannot unpack it; leave -q out"),
        ("bf16", "awq", "its weights are not stored in awq, which can only be read from a checkpoint"),
    ],
)
def test_a_second_quantization_is_refused(quant: str, asked: str, says: str, tmp_path: Path) -> None:
    path, other = str(made.folder(tmp_path / "m", quant)), str(made.folder(tmp_path / "awq", "awq"))
    rows = {row["model"]: row for row in plan("-m", path, "-m", other, "-q", asked)}
    assert rows["m"]["action"] == "skip" and rows["m"]["reason"].startswith(says)


def test_a_quantization_that_no_checkpoint_of_the_sweep_has_is_unknown(tmp_path: Path) -> None:
    result = run("sweep", *ONE, "-m", str(made.folder(tmp_path / "m", "bf16")), "-q", "awq")
    assert result.exit_code == 2 and "unknown quantization: awq" in result.stderr


def test_codes_without_a_scheme_are_not_measured(tmp_path: Path) -> None:
    path = str(made.folder(tmp_path / "m", "fp8", config={}))
    for asked in ((), ("-q", "bf16")):
        result = run("sweep", *ONE, "-m", path, *asked)
        assert result.exit_code == 2 and "stored as codes" in result.stderr


def test_codes_without_a_scheme_are_not_predicted(tmp_path: Path) -> None:
    path = str(made.folder(tmp_path / "m", "fp8", config={}))
    for engine in ("transformers", "vllm"):
        result = run("fit", path, "--engine", engine)
        assert result.exit_code == 2 and "stored as codes" in result.stderr


def test_random_weights_are_not_said_to_be_in_a_quantization_that_nothing_here_makes(tmp_path: Path) -> None:
    path = str(made.folder(tmp_path / "m", "awq"))
    (row,) = plan("-m", path, "--weights", "synthetic", "-q", "bf16")
    assert (row["action"], row["quant"]) == ("run", "bf16")
    (own,) = plan("-m", str(made.folder(tmp_path / "b", "nf4-dq")), "--weights", "synthetic")
    assert own["quant"] == "nf4-dq"
