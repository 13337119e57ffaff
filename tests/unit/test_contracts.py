"""What every plug-in of a seam must do, whoever wrote it. A new file is tested here without being named."""

from __future__ import annotations

import importlib.util
import inspect
import json
import pkgutil
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from html import unescape
from pathlib import Path
from types import ModuleType
from typing import Any, get_type_hints

import pytest
from click.testing import CliRunner, Result
from fakes import invented, stored, tiny
from fakes.ceilings import MEASURED

from profiler import backends, decode_path, devices, registry
from profiler.case import Case
from profiler.cli import main
from profiler.cost import engines
from profiler.cost.engines.base import GGUF, SAFETENSORS
from profiler.cost.machine import Machine
from profiler.cost.prediction import Predictor
from profiler.devices import target as targets
from profiler.devices.base import DeviceInfo, kind_of
from profiler.errors import ProfileError
from profiler.models import families, hub
from profiler.models import scheme as schemes
from profiler.models.geometry import Geometry, Weight
from profiler.quants import checkpoint
from profiler.quants.base import DTYPE_BYTES, Quant, plain_bytes
from profiler.results.measurement import Caution, Measurement, Memory, Sample
from profiler.run import grid
from profiler.show import report
from profiler.show.report import page as report_page
from profiler.show.report import quality, selection
from profiler.show.report.blocks import Page, Section
from profiler.show.report.predictions import Forecast
from profiler.show.writers import html, md, table

GIB = 1024**3
FOLDERS = {
    "backends": "backend",
    "devices": "device",
    "models.families": "family",
    "quants": "quantization",
    "show.writers": "output format",
}
HOSTILE = "evil\x1b[31m|\n=1+1\u202e"


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_seam_has_plugins(folder: str) -> None:
    assert len(registry.names(folder)) >= 2


@pytest.fixture
def made_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a quantization and a backend whose only trace in the program are their own files."""
    for folder in ("quants", "backends"):
        invented.install(folder, tmp_path, monkeypatch)


@pytest.fixture
def made_up_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Likewise with a kind of device. It is then the first one of this machine."""
    invented.install("devices", tmp_path, monkeypatch)


def rows(*arguments: str) -> list[dict[str, Any]]:
    """What a command prints as JSON lines; it must succeed, unless it is a sweep that could measure nothing."""
    result: Result = CliRunner().invoke(main, [*arguments, "-o", "jsonl"], catch_exceptions=False)
    found = [json.loads(line) for line in result.stdout.splitlines()]
    assert result.exit_code == all(row.get("outcome") == "skipped" for row in found), result.stderr
    return found


@pytest.fixture
def model(tmp_path: Path) -> str:
    """A small model in a folder without weights, which the fake backend runs too."""
    folder = tmp_path / "small"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(tiny.CONFIGS["gemma3"] | {"fake": {}}))
    return str(folder)


# Quantizations

WEIGHTS = [
    Weight("embedding", (262144, 640)),
    Weight("head", (262144, 640)),
    Weight("linear", (2048, 640)),
    Weight("linear", (37, 64)),  # rows that fill no block
    Weight("experts", (8, 1408, 704)),
    Weight("router", (8, 704)),
    Weight("conv", (4096, 1, 4)),
    Weight("vector", (640,)),
]
OLD_GPU = DeviceInfo("cuda:0", "cuda", "Tesla K80", 12 * GIB, 12 * GIB, "fp32", features=("sm_37",))
QUANTS = registry.names("quants")


def quant(name: str) -> Quant:
    found = registry.load("quants", name, "quantization").QUANT
    assert isinstance(found, Quant)
    return found


@pytest.mark.parametrize("name", QUANTS)
def test_a_quant_bears_the_name_of_its_file(name: str) -> None:
    assert quant(name).name == name


@pytest.mark.parametrize("name", QUANTS)
@pytest.mark.parametrize("dtype", DTYPE_BYTES)
@pytest.mark.parametrize("weight", WEIGHTS, ids=lambda weight: f"{weight.role}-{weight.parameters}")
def test_a_quant_leaves_a_weight_plain_or_makes_it_smaller_than_fp32(name: str, dtype: str, weight: Weight) -> None:
    scheme = quant(name)
    stored = scheme.weight_bytes(weight, scheme.dtype or dtype)
    assert isinstance(stored, int)
    if weight.role in scheme.roles:
        assert weight.parameters / 8 < stored < 4 * weight.parameters  # more than a bit, less than fp32
    else:
        assert stored == plain_bytes(weight, scheme.dtype or dtype)


@pytest.mark.parametrize("name", QUANTS)
def test_a_quant_says_in_words_why_it_cannot_run(name: str) -> None:
    for device in (*devices.local(), OLD_GPU):
        reason = quant(name).unavailable(device)
        assert reason is None or len(reason) > len("unavailable")


EVERY_QUANT = [*QUANTS, invented.QUANT_NAME, invented.ABSENT_QUANT]


@pytest.mark.usefixtures("made_up")
@pytest.mark.parametrize("name", EVERY_QUANT)
def test_a_quant_is_predicted_on_any_device(name: str) -> None:
    for device in ("rtx 4090", "m3 ultra", "vram=24,bandwidth=500", "cpu"):
        (row,) = rows("fit", "gemma-3-270m", "--engine", "transformers", "--on", device, "-q", name)
        assert row["quant"] == name
        assert row["decode"]["tps"]["value"] > 0, device
    explained = CliRunner().invoke(main, ["explain", "gemma-3-270m", "-q", name], catch_exceptions=False)
    assert explained.exit_code == 0
    assert name in explained.stdout


@pytest.mark.usefixtures("made_up")
@pytest.mark.parametrize("name", EVERY_QUANT)
def test_a_quant_is_planned_and_measured_or_left_out_for_a_reason(name: str, model: str) -> None:
    asked = ("sweep", "-m", model, "-q", name, "-c", "64", "-n", "2", "-r", "2")
    (planned,) = rows(*asked, "--dry-run", "--backend", "fake")
    (row,) = rows(*asked, "--backend", "fake")
    assert planned["quant"] == row["case"]["quant"] == name
    reason = quant(name).unavailable(devices.find())
    if reason is not None:
        assert (planned["action"], row["outcome"]) == ("skip", "skipped")
        assert reason in planned["reason"] and reason in row["reason"]
        return
    assert (planned["action"], row["outcome"]) == ("run", "ok")
    assert planned["weights_bytes"] > 0


@pytest.mark.usefixtures("made_up")
def test_a_quant_that_nobody_timed_is_a_guess_wherever_it_is_predicted() -> None:
    geometry = families.geometry(hub.shipped_config("gemma-3-270m"))
    here = replace(targets.of(devices.find("cpu")), ceilings=replace(MEASURED, layers={**MEASURED.layers}))
    for device in (targets.find("rtx 4090"), here):
        known, guessed = (
            Predictor(geometry, engines.find("transformers"), name, Machine(device), "fp32").predict(512, 1)
            for name in ("fp32", invented.QUANT_NAME)
        )
        assert guessed.basis == "prior"
        assert guessed.decode is not None and known.decode is not None
        sure, unsure = known.decode.seconds, guessed.decode.seconds
        assert unsure.high / unsure.value > 1.7 * sure.high / sure.value


@pytest.mark.usefixtures("made_up")
def test_a_quant_knows_its_own_checkpoints() -> None:
    raw = hub.shipped_config("gemma-3-270m")
    geometry = families.geometry(raw)
    own, other = (schemes.of(raw | {"quantization_config": {"quant_method": word}}) for word in ("six", "seven"))
    assert own is not None and other is not None
    assert (own.name, other.name) == (invented.QUANT_NAME, "seven")
    held = checkpoint.from_config(geometry, own, raw)
    assert held is not None
    assert held.nbytes == sum(quant(own.name).weight_bytes(item.weight, "bf16", False) for item in held.weights)
    assert checkpoint.not_as_stored(held, OLD_GPU) is None
    assert checkpoint.from_config(geometry, other, raw) is None


# Backends

BACKENDS = registry.names("backends")
OPENED = [name for name in BACKENDS if backends.find(name).server_command is None]


@pytest.mark.parametrize("name", BACKENDS)
def test_a_backend_says_what_it_takes_in_words_that_others_know(name: str) -> None:
    backend = backends.find(name)
    assert backend.engine in engines.names()
    assert backend.paths and set(backend.paths) <= set(decode_path.PATHS)
    assert set(backend.quants or ()) <= set(QUANTS)
    assert set(backend.dtypes or ()) <= DTYPE_BYTES.keys()
    assert set(backend.fills or ()) <= set(grid.FILLS)
    assert set(backend.kinds or ()) <= set(registry.names("devices"))
    assert backend.microbenchmark is None or importlib.util.find_spec(backend.microbenchmark)


def test_asking_a_backend_imports_no_framework() -> None:
    asked = f"from profiler import backends\nfor name in {BACKENDS}: backends.find(name)\n"
    heavy = "import sys; assert not {'torch', 'transformers', 'bitsandbytes'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", asked + heavy], check=True)


@pytest.mark.usefixtures("made_up")
@pytest.mark.parametrize("name", [name for name in BACKENDS if name not in OPENED])
def test_a_server_is_measured_by_a_command_of_its_own(name: str, model: str) -> None:
    for command in (("sweep",), ("gate", "--base", "HEAD")):
        refused = CliRunner().invoke(main, [*command, "-m", model, "--backend", name], catch_exceptions=False)
        assert refused.exit_code == 2
        assert f"Use {backends.find(name).server_command}." in refused.stderr


@pytest.mark.usefixtures("made_up")
@pytest.mark.parametrize("name", [*(name for name in OPENED if not backends.find(name).gguf), invented.BACKEND])
def test_a_backend_is_planned_with(name: str, model: str) -> None:
    asked = ("sweep", "-m", model, "-q", "fp32,nf4", "-c", "64", "-b", "1,2", "--backend", name, "--dry-run")
    planned = {(row["quant"], row["batch"]): row for row in rows(*asked)}
    took = {case for case, row in planned.items() if row["action"] == "run"}
    assert took == ({("fp32", 1)} if name == invented.BACKEND else planned.keys())
    for case in planned.keys() - took:
        assert planned[case]["reason"]


@pytest.mark.usefixtures("made_up")
@pytest.mark.parametrize("name", [invented.BACKEND, invented.SMALL_BACKEND])
def test_a_backend_that_was_not_there_a_moment_ago_measures_the_device_that_is_there(name: str, model: str) -> None:
    asked = ("sweep", "-m", model, "-q", "fp32", "-n", "2", "-r", "2", "--backend", name)
    (row,) = rows(*asked, "-c", "64")
    assert (row["outcome"], row["case"]["path"]) == ("ok", "eager")
    assert 0 < row["decode"]["seconds"][0] < 1
    assert row["predicted"]
    assert row["environment"]["libraries"]["counter"] == "1.2"
    shown = CliRunner().invoke(main, [*asked, "-c", "64"], catch_exceptions=False)
    assert "FAKE" not in shown.stdout
    skipped = {
        ("--fill", "synthetic"): "does not support cache fill synthetic, only prefill",
        ("--path", "static"): "does not support decode path static, only eager",
        ("-b", "2"): "it counts in one sequence",
    }
    for option, reason in skipped.items():
        (row,) = rows(*asked, "-c", "32", *option)
        assert row["outcome"] == "skipped"
        assert reason in row["reason"]


def test_a_quant_without_random_weights_is_left_out_where_they_are_needed(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    invented.install("quants", tmp_path, monkeypatch)
    asked = ("sweep", "-m", model, "-q", invented.QUANT_NAME, "-c", "64", "--backend", "hf", "--dry-run")
    (row,) = rows(*asked)
    assert row["action"] == "skip"
    assert "made-up has no synthetic weights" in row["reason"]


# Families


def one_config_of_each_type() -> dict[str, dict[str, Any]]:
    return {raw["model_type"]: raw for raw in map(hub.shipped_config, reversed(hub.names()))}


CONFIGS = one_config_of_each_type()


@pytest.mark.parametrize("name", registry.names("models.families"))
def test_a_family_names_the_model_types_it_serves(name: str) -> None:
    family = registry.load("models.families", name, "family")
    assert family.MODEL_TYPES
    for model_type in family.MODEL_TYPES:
        assert families.by_model_type()[model_type] is family, f"{model_type} is claimed twice"


@pytest.mark.parametrize("model_type", CONFIGS)
def test_a_cache_never_shrinks_with_depth_and_is_in_proportion_to_batch(model_type: str) -> None:
    geometry = families.geometry(CONFIGS[model_type])
    sizes = [geometry.cache_bytes(depth, 1, 2).total for depth in (1, 100, 513, 4096, 100_000)]
    assert sizes == sorted(sizes)
    assert sizes[0] > 0
    assert geometry.cache_bytes(4096, 3, 2).total == 3 * sizes[3]


def spoilt(raw: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The config with each field in turn left out or made absurd, in the part that describes the decoder."""
    part = raw.get("text_config")
    decoder = part if isinstance(part, dict) else raw
    found = []
    for key in decoder:
        for value in (None, -1, 0, 10**9, 1.5, float("nan"), "x", [], {}, True):
            other = decoder | {key: value}
            found.append((f"{key} = {value}", other if decoder is raw else raw | {"text_config": other}))
        left = {name: value for name, value in decoder.items() if name != key}
        found.append((f"no {key}", left if decoder is raw else raw | {"text_config": left}))
    return found


@pytest.mark.parametrize("model_type", CONFIGS)
def test_a_family_meets_a_spoilt_config_with_a_geometry_or_one_clear_line(model_type: str) -> None:
    for what, raw in spoilt(CONFIGS[model_type]):
        try:
            geometry = families.geometry(raw)
        except ProfileError as error:
            assert "\n" not in error.message, what
            continue
        assert isinstance(geometry, Geometry), what
        assert geometry.parameters > 0, what
        assert geometry.cache_bytes(4096, 1, 2).total >= 0, what


def test_a_family_that_was_a_file_a_moment_ago_is_predicted_and_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    invented.install("models.families", tmp_path, monkeypatch)
    for known in (families.by_model_type, families.titles):
        known.cache_clear()
        request.addfinalizer(known.cache_clear)
    folder = tmp_path / "model"
    folder.mkdir()
    raw = tiny.CONFIGS["llama"] | {"model_type": invented.FAMILY, "fake": {}}
    (folder / "config.json").write_text(json.dumps(raw))
    (predicted,) = rows("fit", str(folder), "--on", "rtx 4090", "-q", "bf16", "-c", "32")
    assert predicted["parameters"] == families.geometry(tiny.CONFIGS["llama"]).parameters
    (row,) = rows("sweep", "-m", str(folder), "-c", "16", "-n", "2", "-r", "2", "--backend", "fake")
    assert row["outcome"] == "ok"


# Engines


@pytest.fixture
def made_up_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With an engine whose only trace in the program is its own file."""
    invented.install("cost.engines", tmp_path, monkeypatch)


ENGINES = [*engines.names(), invented.ENGINE]


@pytest.mark.usefixtures("made_up_engine")
def test_an_engine_that_was_a_file_a_moment_ago_is_predicted_as_a_guess() -> None:
    for device in ("rtx 4090", "mi300x", "cpu"):
        (row,) = rows("fit", "gemma-3-270m", "--on", device, "--engine", "in_house")
        assert (row["engine"], row["quant"], row["decode"]["tps"]["basis"]) == (invented.ENGINE, "fp8", "prior")


@pytest.mark.usefixtures("made_up_engine")
@pytest.mark.parametrize("name", ENGINES)
def test_an_engine_predicts_every_quantization_that_it_names(name: str) -> None:
    engine = engines.find(name)
    for device in ("rtx 4090", "m3 ultra", "cpu"):
        if engine.unavailable(targets.find(device), engine.quants[0]) is not None:
            continue
        found = rows("fit", "gemma-4-26b-a4b", "--on", device, "--engine", name, "-q", ",".join(engine.quants))
        assert [row["quant"] for row in found] == list(engine.quants)
        assert all(row["weights_bytes"]["value"] > 0 for row in found)


@pytest.mark.usefixtures("made_up_engine")
@pytest.mark.parametrize("name", ENGINES)
def test_an_engine_runs_what_it_reads_and_says_what_it_makes_of_the_rest(name: str, tmp_path: Path) -> None:
    engine = engines.find(name)
    file, plain = stored.gguf(tmp_path / "tiny.gguf", "q8_0"), stored.plain(tmp_path / "plain", "bf16", "bf16")
    asked = ("-c", "64", "--on", "rtx 4090", "--engine", name)
    for row in rows("fit", str(file), *asked):
        assert row["quant"] == "q8_0" if GGUF in engine.reads else row["quant"] in engine.usual_quants
        assert (GGUF in engine.reads) != any("unpacked" in caution for caution in row["cautions"])
    for row in rows("fit", str(plain), *asked):
        assert row["quant"] in (*engine.quants, "f32")
        assert (SAFETENSORS in engine.reads) != any("GGUF files" in caution for caution in row["cautions"])


@pytest.mark.usefixtures("made_up_engine")
@pytest.mark.parametrize("name", ENGINES)
def test_an_engine_is_explained_split_and_offloaded_by_what_it_says_of_itself(name: str) -> None:
    engine = engines.find(name)
    (row,) = rows("fit", "gemma-3-270m", "--on", "2xrtx 3090", "--engine", name, "-q", engine.usual_quants[0])
    assert row["split"] == engine.default_split
    assert (row["path"] is not None) == (len(engine.paths) > 1)
    (offloaded,) = rows(
        *("fit", "gemma-4-26b-a4b", "--on", "rtx 3060", "--ram", "200GiB", "-c", "512"),
        *("--engine", name, "-q", engine.usual_quants[0]),
    )
    assert offloaded["verdict"] == "offload" and offloaded["decode"]["tps"]["basis"] == "prior"
    explained = CliRunner().invoke(main, ["explain", "gemma-3-270m", "-c", "32k", "--engine", name, "--on", "3090"])
    assert explained.exit_code == 0
    assert (f"--kv {engine.smaller_kv}" in explained.stdout) == (engine.smaller_kv is not None)
    refused = CliRunner().invoke(main, ["fit", "gemma-3-270m", "--engine", name, "--path", "eager"])
    assert (refused.exit_code == 2) == (len(engine.paths) == 1)


# Devices


@pytest.mark.parametrize("kind", devices.kinds(), ids=lambda kind: kind.__name__)
def test_a_device_kind_is_here_or_says_why_not(kind: ModuleType) -> None:
    found = kind.find()
    if not found:
        assert len(kind.unavailable()) > len("unavailable")
    for device in found:
        assert isinstance(device, DeviceInfo)
        assert 0 < device.free_bytes <= device.memory_bytes
        assert device.default_dtype in DTYPE_BYTES
        assert re.fullmatch(device.kind if kind.KIND.is_host else rf"{device.kind}:\d+", device.name)
        again = devices.find(device.name)  # what is free changes meanwhile
        assert again == replace(device, free_bytes=again.free_bytes)


@pytest.mark.parametrize("name", devices.names())
def test_a_device_kind_is_predicted_and_planned_for(name: str, model: str) -> None:
    try:
        (device, *_) = (found for found in devices.local() if found.kind == name)
    except ValueError:
        ran = CliRunner().invoke(main, ["sweep", "-m", model, "--device", name, "--dry-run"], catch_exceptions=False)
        assert ran.exit_code == 2 and f"no {name} device here" in ran.stderr
        return
    kind, target = kind_of(name), targets.of(device)
    assert target.device_kind is kind
    assert kind.step_path(True) in decode_path.PATHS
    asked = ("sweep", "-m", model, "--device", device.name, "-c", "4k", "-n", "2", "-r", "2")
    (planned,) = rows(*asked, "--dry-run")
    assert planned["action"] == "run" and planned["run_s"] > 0
    (row,) = rows(*asked, "--backend", "fake")
    assert (row["outcome"], row["case"]["device"], row["case"]["ubatch"]) == ("ok", device.name, kind.prefill_chunk)


@pytest.mark.usefixtures("made_up_device", "made_up")
def test_a_device_kind_that_was_a_file_a_moment_ago_is_found_predicted_and_measured(model: str) -> None:
    listed = CliRunner().invoke(main, ["devices", "-o", "json"], catch_exceptions=False)
    assert next(row["device"] for row in json.loads(listed.stdout)) == "npu:0"
    for on in ("npu", "npu:0"):
        (predicted,) = rows("fit", "gemma-3-270m", "--on", on, "-q", "nf4", "-c", "512")
        assert predicted["device"] == "Some NPU"
        assert predicted["decode"]["tps"]["value"] > 0
    assert devices.find().name == "npu:0"
    asked = ("sweep", "-m", model, "-c", "64", "-n", "2", "-r", "2")
    (planned,) = rows(*asked, "--dry-run")
    assert (planned["action"], planned["device"]) == ("run", "npu:0")
    for backend in ("fake", invented.BACKEND):
        (row,) = rows(*asked, "--backend", backend)
        assert (row["outcome"], row["case"]["device"], row["case"]["ubatch"]) == ("ok", "npu:0", 48)
        assert row["environment"]["device"]["title"] == "Some NPU"
        assert row["case"]["path"] == "eager"
    (limited,) = rows(*asked, "--dry-run", "--max-memory", "1MiB", "--fresh")
    assert limited["action"] == "run"  # that bounds the memory of the host, which is not this device's


@pytest.mark.parametrize("device", [found.name for found in devices.local() if found.kind == "cpu"])
def test_a_meter_measures_time_and_a_peak(device: str) -> None:
    meter = devices.meter(device)
    meter.reset_peak()
    marks = [meter.timestamp(), meter.timestamp()]
    start = meter.now()
    ballast = bytearray(64 * 1024**2)
    assert len(ballast) <= (meter.peak().process_bytes or 0)
    assert meter.now() > start
    assert [seconds >= 0 for seconds in meter.elapsed(marks)] == [True]


# Writers

CASE = Case("gemma-4-e2b", "id", "synthetic", "nf4", "bf16", "cuda:0", "hf", "eager", context=4096, batch=1, steps=32)
PREFILL = tuple(Sample("prefill", seconds, 4096, cpu_s=0.1) for seconds in (1.0, 1.1, 0.9))
DECODE = tuple(Sample("decode", seconds, 32, step_s=(seconds / 32,) * 32) for seconds in (2.0, 2.1, 1.9))
OK = Measurement(
    CASE,
    {},
    "ok",
    samples=PREFILL + DECODE,
    memory=Memory(weights_bytes=2 * GIB, cache_bytes=GIB, process_peak_bytes=4 * GIB),
    cautions=(Caution("unquantized", "2 of 3 GiB are not quantized", "-q int8"),),
    load_s=1.0,
    started_at="2026-01-01T00:00:00Z",
)
MIXED = [
    OK,
    replace(OK, case=replace(CASE, fill="synthetic", context=131072), samples=DECODE[:1], memory=Memory()),
    Measurement(replace(CASE, model=HOSTILE, model_id="other"), {}, "failed", reason=f"died: {HOSTILE}"),
    Measurement(replace(CASE, context=8192), {}, "oom", reason="worker was killed for memory"),
    Measurement(replace(CASE, batch=64), {}, "skipped", reason="dominated by a smaller case"),
    Measurement(replace(CASE, steps=1), {}, "timeout", reason="no sign of life for 60 s"),
]
WRITERS = registry.names("show.writers")


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("run", ["20260101-000000-abcd", None])
@pytest.mark.parametrize("count", range(len(MIXED) + 1))
def test_a_writer_renders_any_number_of_rows_as_whole_lines(name: str, run: str | None, count: int) -> None:
    text = registry.load("show.writers", name, "output format").render(run, MIXED[:count])
    assert text == "" or text.endswith("\n")


@pytest.mark.parametrize("name", WRITERS)
def test_a_writer_shows_every_row_or_says_that_it_does_not(name: str) -> None:
    writer = registry.load("show.writers", name, "output format")
    left_out = getattr(writer, "left_out", None)
    if left_out is not None:
        assert left_out(MIXED)
        assert left_out([OK]) is None
        return
    text = writer.render("run", MIXED)
    for shown in ("gemma-4-e2b", "evil", "131072|131,072|128k", "8192|8,192|8k", "dominated by", "no sign of life"):
        assert re.search(shown, text), shown


@pytest.mark.parametrize("name", WRITERS)
def test_a_writer_lets_no_terminal_control_through(name: str) -> None:
    text = registry.load("show.writers", name, "output format").render("run", MIXED)
    assert not set(text) & {"\x1b", "\u202e", "\r", "\x00"}


def test_a_writer_and_a_command_that_were_files_a_moment_ago_are_there(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("show.writers", "commands"):
        invented.install(folder, tmp_path, monkeypatch)
    asked = ["sweep", "-m", model, "-q", "fp32", "-c", "16,32", "-n", "2", "-r", "2", "--backend", "fake"]
    shown = CliRunner().invoke(main, [*asked, "-o", invented.WRITER], catch_exceptions=False)
    assert (shown.exit_code, shown.stdout) == (0, "OK!\nOK!\n")
    said = CliRunner().invoke(main, [invented.COMMAND], catch_exceptions=False)
    assert (said.exit_code, said.stdout) == (3, "hello\n")
    assert "Say hello" in CliRunner().invoke(main, ["--help"], catch_exceptions=False).stdout


@pytest.mark.parametrize("name", [name for name in WRITERS if name in ("json", "jsonl", "llama-bench")])
def test_a_json_format_is_json_even_with_unknown_figures(name: str) -> None:
    text = registry.load("show.writers", name, "output format").render("run", MIXED)
    rows = [json.loads(line) for line in text.splitlines()] if name == "jsonl" else json.loads(text)
    assert len(rows) >= 2


# Sections of the report


def sections() -> dict[str, Callable[..., Section]]:
    """Every public function in a file of ``profiler/show/report`` that returns a section, by its full name."""
    files = [
        importlib.import_module(f"{report.__name__}.{file.name}") for file in pkgutil.iter_modules(report.__path__)
    ]
    return {
        f"{file.__name__.rpartition('.')[2]}.{name}": function
        for file in files
        for name, function in inspect.getmembers(file, inspect.isfunction)
        if function.__module__ == file.__name__ and get_type_hints(function).get("return") is Section
    }


SECTIONS = sections()
ROWS = {"no row with a result": MIXED[2:], "one row": [OK], "all outcomes": MIXED}


def composed(name: str, rows: Sequence[Measurement]) -> Section:
    """A section of these rows, with what ``page`` gives it."""
    found = selection.machines(rows)
    given = {
        "machines": found,
        "forecasts": [Forecast.of(machine) for machine in found],
        "scores": quality.shipped(),
        "runs": (),
        "run": None,
        "typed": {},
        "build": None,
        "paths": False,
    }
    return SECTIONS[name](*(given[parameter] for parameter in inspect.signature(SECTIONS[name]).parameters))


def test_every_section_is_on_the_page_once() -> None:
    shown = [section.anchor for section in report_page.page(MIXED).sections]
    assert sorted(shown) == sorted(composed(name, MIXED).anchor for name in SECTIONS)
    assert len(set(shown)) == len(shown)


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
@pytest.mark.parametrize("name", SECTIONS)
def test_a_section_has_a_name_a_title_and_an_answer_or_the_reason_why_not(
    name: str, rows: Sequence[Measurement]
) -> None:
    section = composed(name, rows)
    assert re.fullmatch("[a-z]+", section.anchor)
    assert section.title and section.title == composed(name, [OK]).title  # links and readers find it again
    shown = Page("Page", (), (section,))
    for text in (html.document(shown), md.markdown(shown, {}), table.terminal(shown, 80)):
        assert section.title in unescape(text)
        assert not set(text) & {"\x1b", "\u202e", "\r", "\x00"}
        assert len(text.split()) > len(section.title.split()) + 3
