"""On a CUDA device: the captured step replays what the static step computes, faster, and its memory is counted."""

from __future__ import annotations

import time

import pytest
import torch
from fakes.architectures import CONFIGS, WINDOW, build, prompt
from transformers import PreTrainedModel
from transformers.models.qwen3_5.modeling_qwen3_5 import torch_recurrent_gated_delta_rule

from profiler.kernels import delta_cuda
from profiler.kernels.graph import CudaGraphRunner
from profiler.kernels.runner import EagerRunner, StaticRunner

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def on_gpu(name: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    return build(name, dtype).to("cuda")


def run(
    kind: type[EagerRunner] | type[StaticRunner], model: PreTrainedModel, steps: int, batch: int = 1
) -> list[list[int]]:
    runner = kind(model)
    runner.prefill(prompt(batch, WINDOW - 3).to("cuda"))
    runner.prepare(steps)
    runner.enqueue(steps)
    tokens: list[list[int]] = runner.read()
    return tokens


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", CONFIGS)
def test_replay_gives_the_tokens_of_the_static_step_round_the_ring_and_through_buckets(name: str, batch: int) -> None:
    model = on_gpu(name)
    runner = CudaGraphRunner(model)
    runner.prefill(prompt(batch, WINDOW - 3).to("cuda"))
    runner.prepare(300)
    assert runner.stats().reason is None
    assert runner.stats().graphs == 2
    runner.enqueue(300)
    assert runner.read() == run(StaticRunner, model, 300, batch) == run(EagerRunner, model, 300, batch)


def test_the_pool_is_counted() -> None:
    runner = CudaGraphRunner(on_gpu("qwen3_5"))
    runner.prefill(prompt(1, 8).to("cuda"))
    runner.prepare(16)
    stats = runner.stats()
    assert stats.pool_bytes is not None
    assert stats.pool_bytes > 0
    assert stats.prepare_s > 0


def test_a_restored_state_replays_the_same_tokens() -> None:
    runner = CudaGraphRunner(on_gpu("gemma4_e2b"))
    runner.prefill(prompt(1, 8).to("cuda"))
    runner.prepare(60)
    saved = runner.state.save()
    runner.enqueue(60)
    first = runner.read()
    runner.state.restore(saved)
    runner.enqueue(60)
    assert runner.read() == first


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_nf4_is_captured_and_int8_with_a_threshold_is_not(quantization: str) -> None:
    from profiler import registry
    from profiler.backends.hf import synthetic

    config = build("qwen3").config
    load = registry.load("quants", quantization, "quantization").QUANT.load_config("bf16")
    model = synthetic.build(config, torch.bfloat16, torch.device("cuda"), load, 0, lambda words: None)
    runner = CudaGraphRunner(model)
    runner.prefill(prompt(1, 8).to("cuda"))
    runner.prepare(40)
    runner.enqueue(40)
    assert (runner.stats().path == "graph") == (quantization == "nf4")
    if quantization == "int8":
        assert "threshold" in str(runner.stats().reason)
    assert runner.read() == run_again(model)


def run_again(model: PreTrainedModel) -> list[list[int]]:
    runner = StaticRunner(model)
    runner.prefill(prompt(1, 8).to("cuda"))
    runner.prepare(40)
    runner.enqueue(40)
    return runner.read()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_fused_delta_step_is_the_recurrent_rule(dtype: torch.dtype) -> None:
    state = torch.randn(2, 8, 128, 128, device="cuda")
    reference = state.clone()
    tolerance = 1e-4 if dtype == torch.float32 else 3e-2
    for _ in range(8):
        q, k = (torch.randn(2, 1, 4, 128, device="cuda", dtype=dtype) for _ in range(2))
        v = torch.randn(2, 1, 8, 128, device="cuda", dtype=dtype)
        g, beta = -torch.rand(2, 1, 8, device="cuda"), torch.rand(2, 1, 8, device="cuda", dtype=dtype)
        if not delta_cuda.serves(q, v, state):
            pytest.skip("nvcc is not installed")
        expected, reference = torch_recurrent_gated_delta_rule(q, k, v, g, beta, reference, True, True)
        given = delta_cuda.delta_step(q, k, v, g, beta, state)
        torch.testing.assert_close(given, expected, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(state, reference, atol=tolerance, rtol=tolerance)


def test_replay_is_faster_than_eager() -> None:
    model, seconds = on_gpu("gemma4_e4b", torch.bfloat16), {}
    for kind in (EagerRunner, CudaGraphRunner):
        runner = kind(model)
        runner.prefill(prompt(1, 8).to("cuda"))
        runner.prepare(128)
        runner.enqueue(28)
        torch.cuda.synchronize()
        start = time.perf_counter()
        runner.enqueue(100)
        torch.cuda.synchronize()
        seconds[kind] = time.perf_counter() - start
    assert seconds[EagerRunner] > 2 * seconds[CudaGraphRunner], "a model this small is bound by launches alone"
