"""Every match of a published row to a case is meant, and what is left out has a reason."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest

from profiler.devices import target as device_catalog

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
FILE = "more-2026-11.csv"


@pytest.fixture(scope="module")
def published(request: pytest.FixtureRequest) -> ModuleType:
    sys.path.insert(0, str(BENCHMARKS))
    request.addfinalizer(lambda: sys.path.remove(str(BENCHMARKS)))
    return importlib.import_module("published_rows")


def raw(**changes: str) -> dict[str, str]:
    row = {
        "model": "qwen3.6-27b", "device": "RTX 5090", "engine": "llama.cpp b8828", "quant": "Q4_K_M",
        "context": "4096", "batch": "1", "prefill_tps": "", "decode_tps": "61.4", "tier": "A",
        "source": "s", "notes": "",
    }  # fmt: skip
    return row | changes


def more(**changes: str) -> dict[str, str]:
    return raw(
        prompt_tokens="512", prefill_depth="0", depth="0", ubatch="512", gpus="1", split="", backend="CUDA",
        device_base="RTX 5090", source_id="llama.cpp-benches", decode_kind="per_stream", quote="", weight="1",
    ) | changes  # fmt: skip


def test_most_rows_are_predicted_and_the_others_have_a_reason(published: ModuleType) -> None:
    used, left = published.rows()
    wanted = [(file, line) for file, line, _ in published.published()]
    assert sorted([(row.file, row.line) for row in used] + [(each.file, each.line) for each in left]) == sorted(
        wanted
    )
    assert all(each.reason for each in left)
    for file in published.FILES:
        assert sum(row.file == file for row in used) >= 0.85 * sum(name == file for name, _ in wanted)


def test_every_named_device_is_in_the_catalog(published: ModuleType) -> None:
    known = {device.name for device in device_catalog.data_sheets()}
    assert set(published.DEVICES.values()) <= known


def test_shapes_have_as_many_parameters_as_their_models(published: ModuleType) -> None:
    models = published.published_models
    for name, shape in models.shapes().items():
        assert models.geometry(name).parameters / 1e9 == pytest.approx(shape["billion"], rel=0.01), name


def test_a_row_becomes_the_case_it_says(published: ModuleType) -> None:
    row = published.match("f", 2, raw(quant="UD-Q4_K_XL", device="Apple M4 (16GB)", context="32768"))
    assert (row.model, row.target.name, row.engine.name) == ("qwen3.6-27b", "Apple M4 (10c)", "llama.cpp")
    assert (row.request.quant, row.request.context, row.depth) == ("q4_k_m", 32768, 32768 + 64)
    assert row.decode_s == pytest.approx(1 / 61.4)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"device": "CPU (96 threads)"}, "a CPU"),
        ({"device": "GitHub 4-core runner CPU"}, "a CPU"),
        ({"device": "Jetson TX2"}, "the catalog does not have"),
        ({"model": "nemotron-3-nano-4b"}, "no rule for this architecture"),
        ({"engine": "exllamav3 1.0.0"}, "is not supported"),
        ({"quant": "Q4-XYZ-v2"}, "is not supported"),
        ({"engine": "vLLM 0.26.0", "quant": "Q4_K_M"}, "is not supported"),
    ],
)
def test_what_does_not_match_is_left_out(published: ModuleType, changes: dict[str, str], reason: str) -> None:
    assert reason in published.match("f", 2, raw(**changes))


@pytest.mark.parametrize(
    ("changes", "engine", "quant"),
    [
        ({"engine": "Rapid-MLX 0.7.26 (mlx 0.31.2)", "quant": "MLX 4bit QAT", "device": "Apple M4"}, "mlx", "4bit"),
        ({"engine": "ollama", "quant": "MLX 4bit (ollama default)", "device": "Apple M4"}, "mlx", "4bit"),
        ({"engine": "llama.cpp (Vulkan) b9174"}, "llama.cpp-vulkan", "q4_k_m"),
        ({"engine": "LocalScore (llamafile)"}, "llamafile", "q4_k_m"),
        ({"engine": "vLLM 0.23.0", "quant": "INT4 (AutoRound)"}, "vllm", "int4"),
        ({"engine": "transformers 4.46.3", "quant": "GPTQ 4bit (exllama)"}, "transformers", "gptq"),
        ({"quant": "FP16"}, "llama.cpp", "f16"),
        ({"quant": "MXFP4_MOE"}, "llama.cpp", "mxfp4"),
    ],
)
def test_engines_and_quantizations_go_by_the_names_of_their_users(
    published: ModuleType, changes: dict[str, str], engine: str, quant: str
) -> None:
    row = published.match("f", 2, raw(**changes))
    assert (row.engine.name, row.request.quant) == (engine, quant)


def test_a_rate_of_a_batch_is_of_all_its_sequences(published: ModuleType) -> None:
    row = published.match(FILE, 2, more(batch="8", decode_tps="400", decode_kind="aggregate"))
    assert row.decode_s == pytest.approx(8 / 400)
    assert (row.batch, row.answer) == (8, None)


def test_a_rate_over_the_whole_time_of_requests_has_the_prefill_inside(published: ModuleType) -> None:
    changes = {"batch": "8", "decode_tps": "400", "decode_kind": "aggregate_wall", "notes": "128 in + 256 out"}
    row = published.match(FILE, 2, more(**changes))
    assert (row.answer, row.decode_s) == (256, pytest.approx(8 * 256 / 400))
    (part,) = row.parts("decode")
    assert [times for times, _ in part.works] == [1.0, 256.0]


def test_tokens_of_one_sequence_in_micro_batches_read_its_cache_once(published: ModuleType) -> None:
    notes = "a micro-batch of 1-8 tokens equals the rate of that many parallel tokens on one sequence"
    row = published.match(FILE, 2, more(batch="4", ubatch="4", prefill_depth="32768", notes=notes))
    assert (row.batch, row.request.batch, row.request.ubatch) == (4, 1, 4)


def test_several_cards_share_a_model_as_the_row_says(published: ModuleType) -> None:
    row = published.match(FILE, 2, more(device="2x RTX 3090 (TP2)", device_base="RTX 3090", gpus="2", split="tensor"))
    assert (row.target.count, row.machine.split) == (2, "tensor")
    pair = published.match(FILE, 2, more(device="RTX 5090 + RTX 3080 (layer split)", gpus="2", split="layer"))
    assert [member.name for member in pair.target.members] == ["RTX 5090", "RTX 3080"]


def test_allocated_context_is_no_depth(published: ModuleType) -> None:
    row = published.match("f", 2, raw(context="131072", notes="context = allocated, default q4_0 KV unless noted"))
    assert row.depth == published.CHAT_DEPTH
    assert row.request.kv == "q4_0"


def test_faster_than_memory_is_impossible_and_rejected(
    published: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [("f", 2, raw(decode_tps="111")), ("f", 3, raw(decode_tps="90"))]  # 15.8 GB a step at 1792 GB/s
    monkeypatch.setattr(published, "published", lambda: iter(rows))
    used, left = published.rows()
    assert [row.line for row in used] == [3]
    assert "impossible: 102%" in left[0].reason


def test_a_batch_is_no_faster_than_its_experts_are_read(
    published: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {
        "model": "mixtral-8x7b", "device": "4x A100 40GB SXM (TP4)", "device_base": "A100 40GB SXM", "gpus": "4",
        "split": "tensor", "engine": "TensorRT-LLM", "quant": "FP16", "batch": "16", "decode_kind": "aggregate_wall",
        "notes": "128 in + 128 out",
    }  # fmt: skip
    rates = ("1450", "700")  # 93 GB a step at 4 × 1555 GB/s allow 1,060 tokens per second
    rows = [(FILE, line, more(**changes, decode_tps=rate)) for line, rate in enumerate(rates, start=2)]
    monkeypatch.setattr(published, "published", lambda: iter(rows))
    used, left = published.rows()
    assert [row.aside for row in used] == [published.row_checks.SHARED_EXPERTS, None]
    assert not left


def prefills(published: ModuleType, monkeypatch: pytest.MonkeyPatch, *rows: dict[str, str]) -> list[str | None]:
    numbered = [(FILE, line, row) for line, row in enumerate(rows, start=2)]
    monkeypatch.setattr(published, "published", lambda: iter(numbered))
    used, _ = published.rows()
    assert [row.counts("decode") for row in used] == [True] * len(rows)
    assert all(row.counts("prefill") == (row.prefill_aside is None) for row in used)
    return [row.prefill_aside for row in used]


def test_a_prefill_that_takes_longer_than_that_of_a_longer_prompt_is_not_judged(
    published: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    short, long = more(prefill_tps="100"), more(prefill_tps="2000", prompt_tokens="4096")  # 5.1 s and 2 s
    other = long | {"device": "RTX 4090", "device_base": "RTX 4090", "decode_tps": "40"}
    assert prefills(published, monkeypatch, short, long) == [published.row_checks.LONGER, None]
    assert prefills(published, monkeypatch, short, other) == [None, None]
    assert prefills(published, monkeypatch, short | {"prefill_tps": "500"}, long) == [None, None]


def test_the_warm_up_of_a_run_is_not_judged(published: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    notes = "decode_tps is the SUM over the batch; first rows of a run include warm-up"
    rows = [more(prefill_tps="3000", notes=notes, batch=batch, prompt_tokens="512") for batch in ("1", "2")]
    longer = more(prefill_tps="3000", notes=notes, prompt_tokens="4096")
    assert prefills(published, monkeypatch, *rows, longer) == [published.row_checks.WARMED_UP, None, None]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model": "qwen3.5-27b", "engine": "llama.cpp (rocm7.1.1) b7423"}, "OLD_DELTA"),
        ({"model": "qwen3.5-27b", "engine": "llama.cpp b8240"}, None),
        ({"model": "gemma-3-12b", "engine": "llama.cpp (rocm7.1.1) b7423"}, None),
        ({"engine": "vLLM (2023-11)", "quant": "AWQ/GPTQ 4bit"}, "OLD_AWQ"),
        ({"engine": "vLLM (2023-11)", "quant": "FP16"}, "OLD_VLLM"),
        ({"engine": "vLLM 0.23.0", "quant": "INT4"}, None),
        ({"engine": "llama.cpp (2023-11)", "gpus": "2"}, "OLD_SPLIT"),
        ({"engine": "llama.cpp (2023-11)", "gpus": "1"}, None),
        ({"engine": "llama.cpp (2024-05)", "gpus": "2"}, None),
    ],
)
def test_rows_of_kernels_that_were_replaced_are_set_aside(
    published: ModuleType, changes: dict[str, str], reason: str | None
) -> None:
    assert published.match("f", 2, raw(**changes)).aside == (reason and getattr(published.row_checks, reason))


@pytest.mark.parametrize(
    ("changes", "judged"),
    [
        ({}, False),
        ({"prefill_depth": "0"}, True),  # attention takes a small part of the time
        ({"model": "gemma-3-12b"}, True),  # heads of 256, for which the kernel is still the same
        ({"engine": "llama.cpp b10604"}, True),
        ({"engine": "llama.cpp (Vulkan) dd1ea52", "backend": "Vulkan"}, True),
    ],
)
def test_attention_before_it_used_matrix_units_is_not_judged(
    published: ModuleType, changes: dict[str, str], judged: bool
) -> None:
    card = "Radeon AI PRO R9700"
    deep = more(
        model="qwen3-8b", engine="llama.cpp (rocm7.1.1) b7423", device=card, device_base=card, backend="ROCm",
        prefill_depth="16384", prefill_tps="1000",
    )  # fmt: skip
    row = published.match(FILE, 2, deep | changes)
    assert (row.counts("prefill"), row.counts("decode")) == (judged, True)


@pytest.mark.parametrize(
    ("changes", "judged"),
    [
        ({}, False),
        ({"engine": "llama.cpp (Vulkan, 2025-05)"}, False),
        ({"engine": "llama.cpp (Vulkan) b9174"}, True),
        ({"engine": "llama.cpp (Vulkan) dd1ea52"}, True),  # a commit whose date is unknown
        ({"device_base": "RX 6800"}, True),  # without matrix units
        ({"engine": "llama.cpp (rocm7.1.1) b7423", "backend": "ROCm"}, True),
    ],
)
def test_products_under_vulkan_before_their_tiles_were_large_are_not_judged(
    published: ModuleType, changes: dict[str, str], judged: bool
) -> None:
    card = "Radeon AI PRO R9700"
    old = more(engine="llama.cpp (vulkan_radv) b7423", device=card, device_base=card, backend="Vulkan")
    row = published.match(FILE, 2, old | {"model": "gemma-3-4b", "prefill_tps": "2400"} | changes)
    assert (row.counts("prefill"), row.counts("decode")) == (judged, True)


@pytest.mark.parametrize(
    ("changes", "judged"),
    [
        ({}, False),
        ({"engine": "llama.cpp (CUDA) b7941"}, True),
        ({"quant": "Q4_K_M"}, True),
        ({"device": "RTX 4090", "device_base": "RTX 4090"}, True),
    ],
)
def test_fp4_before_it_used_units_of_its_own_is_not_judged(
    published: ModuleType, changes: dict[str, str], judged: bool
) -> None:
    old = more(model="gpt-oss-20b", engine="llama.cpp (CUDA, 2025-08)", quant="MXFP4", prefill_tps="9848")
    row = published.match(FILE, 2, old | changes)
    assert (row.counts("prefill"), row.counts("decode")) == (judged, True)


@pytest.mark.parametrize(
    ("engine", "quant", "judged"),
    [
        ("transformers + optimum GPTQ (2023-08)", "GPTQ 4bit (cuda-old)", False),
        ("transformers (optimum-benchmark, 2023-09)", "GPTQ 4bit", False),
        ("transformers (optimum-benchmark, 2023-11)", "GPTQ 4bit (exllamav1)", False),
        ("transformers (optimum-benchmark, 2023-11)", "GPTQ 4bit (exllamav2)", True),
        ("transformers (optimum-benchmark, 2023-09)", "FP16", True),
    ],
)
def test_steps_by_kernels_that_a_library_dropped_are_not_judged(
    published: ModuleType, engine: str, quant: str, judged: bool
) -> None:
    row = published.match("f", 2, raw(engine=engine, quant=quant, device="A100 80GB SXM", prefill_tps="5000"))
    assert (row.counts("decode"), row.counts("prefill")) == (judged, True)


@pytest.mark.parametrize(
    ("each", "test", "prompt", "judged"),
    [
        ("11.5", "03-long-output", "256", False),  # 80 of 115 tokens/s: seven requests ran on average
        ("8.3", "03-long-output", "256", True),
        ("11.5", "05-big-context", "4096", True),  # its requests wait for each other's long prompts
    ],
)
def test_a_batch_whose_answers_ended_early_is_not_judged(
    published: ModuleType, monkeypatch: pytest.MonkeyPatch, each: str, test: str, prompt: str, judged: bool
) -> None:
    notes = f"c>1 rows are TOTAL tok/s over all streams; {each} tok/s per request"
    row = raw(
        model="qwen3-8b", engine="vLLM 0.26.0", quant="BF16", device="DGX Spark (GB10, 128GB)", batch="10",
        decode_tps="80", prefill_tps="3000", context=prompt, source=f"results/{test}.md", notes=notes,
    )  # fmt: skip
    monkeypatch.setattr(published, "published", lambda: iter([("f", 2, row)]))
    ((only,), _) = published.rows()
    assert (only.counts("decode"), only.counts("prefill")) == (judged, True)


def test_what_does_not_fit_is_set_aside(published: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [("f", 2, raw(device="RTX 3060 12GB", decode_tps="5")), ("f", 3, raw(notes="PARTIAL CPU OFFLOAD"))]
    monkeypatch.setattr(published, "published", lambda: iter(rows))
    used, _ = published.rows()
    assert [row.aside for row in used] == [published.row_checks.OFFLOADED] * 2
