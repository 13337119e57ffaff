"""What runtimes store and hold, against their logs and against tensors that were really made."""

from __future__ import annotations

from dataclasses import replace

import pytest

from profiler import registry
from profiler.cost import engines
from profiler.cost.engines import llama_cpp, transformers, vllm
from profiler.cost.engines.base import EngineRequest
from profiler.cost.machine import Machine
from profiler.cost.prediction import Predictor
from profiler.devices.target import Target, find
from profiler.errors import NotFound
from profiler.models import families, gguf_mix, hub
from profiler.models.geometry import Geometry

GIB, MIB = 1024**3, 1024**2
ENGINES = engines.names()


def geometry(name: str) -> Geometry:
    return families.geometry(hub.shipped_config(name))


def card() -> Target:
    return find("rtx 4090")


@pytest.mark.parametrize("name", ENGINES)
def test_an_engine_goes_by_every_spelling_of_its_name(name: str) -> None:
    for word in (name, name.upper(), name.replace(".", "-"), name.replace(".", "_")):
        assert engines.find(word).name == name


def test_an_unknown_engine_names_the_nearest() -> None:
    with pytest.raises(NotFound) as caught:
        engines.find("llamacpp")
    assert "llama.cpp" in str(caught.value)
    for program, engine in (("Ollama", "llama.cpp"), ("lm_studio", "llama.cpp"), ("hf", "transformers")):
        with pytest.raises(NotFound, match=f"use --engine {engine}"):
            engines.find(program)


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("model", hub.names())
def test_an_engine_stores_every_parameter_and_copies_only_what_layers_share(name: str, model: str) -> None:
    engine, shape = engines.find(name), geometry(model)
    storage = engine.storage(shape, engine.check(engine.usual_quants[0]), "bf16")
    copies = sum(line.elements for line in storage.lines) - shape.parameters
    head = shape.vocab * shape.hidden if shape.tied else 0
    values = sum(weight.parameters * count for _, count, weight in vllm._copied_values(shape))
    if engine.like == "llama.cpp":  # K and V of layers that share a cache are in the file too, and are loaded
        copies -= sum(t.weight.parameters * t.count for t in gguf_mix.tensors(shape, "f16")) - shape.parameters
    assert copies in (0, head, values, head + values)


def test_transformers_copies_nothing() -> None:
    for model in hub.names():
        storage = engines.find("transformers").storage(geometry(model), "bf16", "bf16")
        assert sum(line.elements for line in storage.lines) == geometry(model).parameters


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("model", ["gemma-4-31b", "gemma-4-26b-a4b", "qwen3.5-2b", "llama-4-scout-17b-16e"])
def test_memory_grows_with_context_and_batch_and_its_bounds_hold_its_value(name: str, model: str) -> None:
    engine, shape = engines.find(name), geometry(model)
    quant = engine.check(engine.usual_quants[0])
    storage = engine.storage(shape, quant, "bf16")
    peaks = []
    for context, batch in ((512, 1), (8192, 1), (8192, 4), (65536, 4)):
        terms = engine.memory(shape, storage, EngineRequest(quant, context, batch), card())
        for term in (terms.weights, terms.cache, terms.buffers, terms.framework, terms.host, terms.peak):
            assert 0 <= term.low <= term.value <= term.high
        peaks.append(terms.peak.value)
    assert peaks == sorted(peaks)


# transformers: research on bitsandbytes and fused experts, exact bytes of meta models (GiB)
@pytest.mark.parametrize(
    ("model", "bf16", "nf4", "double"),
    [
        ("gemma-4-e2b", 8.62, 6.11, 6.03),
        ("gemma-4-e4b", 13.90, 8.58, 8.41),
        ("gemma-4-26b-a4b", 47.00, 44.78, 44.71),
        ("gemma-4-31b", 57.18, 17.97, 16.70),
        ("qwen3.5-27b", 50.10, 17.50, 16.44),
        ("qwen3.5-35b-a3b", 64.56, 62.67, 62.61),
        ("qwen3.5-122b-a10b", 227.45, 221.3, 221.1),
    ],
)
def test_bitsandbytes_leaves_tables_heads_and_experts_alone(
    model: str, bf16: float, nf4: float, double: float
) -> None:
    engine = engines.find("transformers")
    for quant, expected in (("bf16", bf16), ("nf4", nf4), ("nf4-dq", double)):
        assert engine.storage(geometry(model), quant, "bf16").device_bytes / GIB == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize(
    ("model", "context", "after_prefill", "after_a_step"),
    [("gemma-4-31b", 8192, 6.88, 1.41), ("gemma-4-31b", 32768, 27.50, 3.28), ("gemma-4-26b-a4b", 8192, 1.719, 0.351),
     ("gemma-4-e4b", 32768, 1.750, 0.520), ("qwen3.5-35b-a3b", 8192, 0.217, 0.217)],
)  # fmt: skip
def test_views_keep_a_whole_prefill_alive_in_sliding_layers(
    model: str, context: int, after_prefill: float, after_a_step: float
) -> None:
    # storage bytes of transformers 5.23 traced on FakeTensor, one pass over the whole context
    shape, request = geometry(model), EngineRequest("bf16", context, 1)
    held = shape.cache_bytes(context, 1, 2).total
    kept = transformers.retained_bytes(shape, request, context, 2)
    assert held / GIB == pytest.approx(after_a_step, rel=0.01)
    assert (held + kept) / GIB == pytest.approx(after_prefill, rel=0.01)


def test_passes_of_a_prefill_bound_what_views_keep() -> None:
    shape, request = geometry("gemma-4-31b"), EngineRequest("bf16", 32768, 1)
    whole = transformers.retained_bytes(shape, request, 32768, 2)
    assert transformers.retained_bytes(shape, request, 2048, 2) < whole / 10


@pytest.mark.parametrize("model", ["gemma-3-4b", "gemma-4-e2b", "qwen3.5-0.8b"])
def test_the_peak_never_falls_as_the_context_grows(model: str) -> None:
    predictor = Predictor(geometry(model), engines.find("transformers"), "bf16", Machine(find("rtx 4090")))
    peaks = [predictor.predict(context, 4).terms.peak.value for context in (2047, 2048, 2049, 16384, 16385, 18433)]
    assert peaks == sorted(peaks)


# llama.cpp: cells and states in its logs
@pytest.mark.parametrize(
    ("model", "context", "kv", "full", "window"),
    [("gemma-4-12b", 16384, "f16", None, 480), ("gemma-4-12b", 16384, "q8_0", 136, 255),
     ("gemma-4-12b", 98304, "q8_0", 816, 255)],
)  # fmt: skip
def test_llama_cpp_holds_the_cells_that_its_log_names(
    model: str, context: int, kv: str, full: float | None, window: float
) -> None:
    shape = geometry(model)
    total = llama_cpp.cache_bytes(shape, EngineRequest("q4_k_m", context, 1, kv=kv)) / MIB
    growing = shape.cache_bytes(context, 1, llama_cpp.KV_BYTES[kv]).growing / MIB
    if full is not None:
        assert growing == pytest.approx(full, abs=0.5)
    assert total - growing == pytest.approx(window, abs=0.5)


@pytest.mark.parametrize(("kv", "growing"), [("f16", 8192.0), ("q8_0", 4352.0)])
def test_llama_cpp_keeps_three_columns_of_the_convolution_in_fp32(kv: str, growing: float) -> None:
    # Qwen 27B at 131072: 8192 MiB f16 or 4352 MiB q8_0, and 149.62 MiB of state
    total = llama_cpp.cache_bytes(geometry("qwen3.6-27b"), EngineRequest("q4_k_m", 131072, 1, kv=kv)) / MIB
    assert total == pytest.approx(growing + 149.62, abs=0.02)


# The highest VmHWM of llama-bench and llama-batched-bench b9993 (AVX2, 16 decode steps), in MiB
@pytest.mark.parametrize(
    ("quant", "context", "batch", "peak"),
    [
        ("q4_k_m", 128, 1, 316.1),
        ("q4_k_m", 512, 1, 346.5),
        ("q4_k_m", 1024, 1, 354.1),
        ("q4_k_m", 1024, 4, 404.7),
        ("q8_0", 128, 4, 368.1),
        ("q8_0", 512, 1, 370.2),
        ("q8_0", 1024, 4, 428.4),
        ("f32", 512, 1, 1120.3),
        ("f32", 512, 4, 1156.2),
    ],
)
def test_llama_cpp_peaks_on_a_cpu_where_it_was_measured(quant: str, context: int, batch: int, peak: float) -> None:
    engine, shape, here = (
        engines.find("llama.cpp"),
        geometry("gemma-3-270m"),
        replace(find("cpu"), features=("avx2",)),
    )
    request = EngineRequest(quant, context, batch)
    found = engine.memory(shape, engine.storage(shape, quant, "bf16"), request, here).peak
    measuring = engine.measuring_bytes(shape, request, 16, here)
    assert (found.value + measuring) / MIB == pytest.approx(peak, rel=0.02)
    assert found.low < peak * MIB < found.high + measuring


def test_llama_cpp_copies_what_a_cpu_multiplies_in_another_layout() -> None:
    engine, shape = engines.find("llama.cpp"), geometry("gemma-3-270m")
    storage, request = engine.storage(shape, "q4_k_m", "bf16"), EngineRequest("q4_k_m", 512, 1)
    copied = {
        features: engine.memory(shape, storage, request, replace(find("cpu"), features=features)).repacked.value / MIB
        for features in ((), ("avx2",), ("asimd",))
    }
    assert copied[()] == 0
    assert copied["avx2",] == pytest.approx(12.66, abs=0.01)  # "CPU_REPACK model buffer size"
    assert copied["asimd",] > copied["avx2",]
    assert engine.memory(shape, storage, request, card()).repacked.value == 0


def test_llama_cpp_looks_rows_up_on_the_host_and_copies_a_tied_head() -> None:
    engine = engines.find("llama.cpp")
    storage = engine.storage(geometry("gemma-4-e2b"), "q4_0", "bf16")
    assert {line.part for line in storage.lines if line.on_host} == {"tables"}
    assert storage.part_bytes("head") == pytest.approx(330.3e6, rel=1e-3)


def test_what_llama_cpp_loads_and_never_reads_takes_memory_but_no_time() -> None:
    """K and V of the 20 layers of Gemma 4 E2B that use the cache of another layer; the published file has them."""
    storage = engines.find("llama.cpp").storage(geometry("gemma-4-e2b"), "q4_0", "bf16")
    matrices = 2 * (16 * 256 + 4 * 512) * 1536 * 18 // 32
    assert storage.part_bytes("tables") == matrices + (16 * 256 + 4 * 512) * 4
    assert "tables" not in {line.part for line in storage.read}


def test_the_9b_on_a_12_gb_card_takes_what_its_log_says() -> None:
    # Qwen 3.5 9B: KV 4352 MiB for 262,144 q8_0 cells; states of two sequences 100.5 MiB
    shape = geometry("qwen3.5-9b")
    both = llama_cpp.cache_bytes(shape, EngineRequest("q4_k_m", 131072, 2, kv="q8_0")) / MIB
    assert both == pytest.approx(4352 + 100.5, abs=0.1)


# vllm
def test_vllm_reserves_33_gib_for_gemma_4_31b_at_its_full_context() -> None:
    request = EngineRequest("bf16", 262144, 1, ubatch=16384)
    assert vllm.cache_bytes(geometry("gemma-4-31b"), request) / GIB == pytest.approx(33.3, rel=0.01)


@pytest.mark.parametrize(("model", "gib"), [("qwen3.8-27b", 16.32), ("qwen3.6-35b-a3b", 5.136)])
def test_vllm_reserves_for_qwen_what_its_log_says(model: str, gib: float) -> None:
    assert vllm.cache_bytes(geometry(model), EngineRequest("bf16", 262144, 1)) / GIB == pytest.approx(gib, rel=0.02)


def test_vllm_copies_keys_into_the_missing_value_projections_of_gemma_4() -> None:
    engine, shape = engines.find("vllm"), geometry("gemma-4-31b")
    more = engine.storage(shape, "bf16", "bf16").device_bytes - 2 * shape.parameters
    assert more / MIB == pytest.approx(210, rel=0.01)


@pytest.mark.parametrize("name", ENGINES)
def test_an_engine_refuses_a_format_by_name(name: str) -> None:
    with pytest.raises(NotFound, match="unknown"):
        engines.find(name).check("q9_z")


@pytest.mark.parametrize("file", registry.names("cost.engines"))
def test_an_engine_names_the_version_that_its_rules_were_read_from(file: str) -> None:
    engine = registry.load("cost.engines", file, "engine").ENGINE
    assert any(digit.isdigit() for digit in engine.version)
    assert engine.check(engine.usual_quants[0]) in engine.quants
