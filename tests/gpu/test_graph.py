"""On a CUDA device: the captured step replays what the static step computes, faster, and its memory is counted."""

from __future__ import annotations

import time
from functools import partial

import pytest
import torch
from fakes.architectures import CONFIGS, WINDOW, build, prompt
from torch.nn.functional import scaled_dot_product_attention
from transformers import PreTrainedModel
from transformers.models.qwen3_5.modeling_qwen3_5 import torch_recurrent_gated_delta_rule

from profiler.kernels import cuda
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
def test_replay_gives_the_tokens_of_the_static_step_and_of_transformers_round_the_ring(name: str, batch: int) -> None:
    model, steps = on_gpu(name), 3 * WINDOW
    runner = CudaGraphRunner(model)
    runner.prefill(prompt(batch, WINDOW - 3).to("cuda"))
    runner.prepare(steps)
    assert runner.stats().reason is None
    assert runner.stats().graphs == 1  # attention reads what is filled, whatever the size of the cache
    runner.enqueue(steps)
    tokens = runner.read()
    assert tokens == run(StaticRunner, model, steps, batch)
    assert tokens == run(EagerRunner, model, steps, batch)


@pytest.mark.parametrize("name", ["llama", "gemma4_e2b", "qwen3_5"])
def test_where_our_attention_does_not_serve_there_is_a_graph_for_each_bucket(name: str) -> None:
    model = on_gpu(name, torch.float16)
    runner = CudaGraphRunner(model)
    runner.prefill(prompt(1, WINDOW - 3).to("cuda"))
    runner.prepare(260)
    assert runner.stats().reason is None
    assert runner.stats().graphs == 2
    runner.enqueue(260)
    assert runner.read() == run(StaticRunner, model, 260)


@pytest.mark.parametrize("dtype", cuda.DTYPES)
@pytest.mark.parametrize(
    ("width", "heads", "kv_heads", "slots"),
    [(64, 32, 8, 545), (128, 16, 8, 4096), (256, 8, 2, 33000), (512, 8, 1, 5000)],
)
def test_attention_is_that_of_torch_over_the_filled_slots(
    dtype: torch.dtype, width: int, heads: int, kv_heads: int, slots: int
) -> None:
    q = torch.randn(2, heads, 1, width, device="cuda", dtype=dtype)
    keys, values = (torch.randn(2, kv_heads, slots, width, device="cuda", dtype=dtype) for _ in range(2))
    for filled in (1, slots // 3, slots):
        mask = (torch.arange(slots, device="cuda") < filled).view(1, 1, 1, -1)
        keys[:, :, filled:] = torch.nan  # empty slots are not read
        given = torch.ops.hwprofile_cuda.decode_attention(q, keys, values, mask.view(-1), 0.1)
        wide = (each[:, :, :filled].float().repeat_interleave(heads // kv_heads, dim=1) for each in (keys, values))
        expected = scaled_dot_product_attention(q.float(), *wide, scale=0.1)
        tolerance = 1e-4 if dtype == torch.float32 else 1e-2
        torch.testing.assert_close(given.transpose(1, 2).float(), expected, atol=tolerance, rtol=tolerance)
        keys = torch.randn_like(keys)


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
    config.hidden_size, config.intermediate_size = 128, 256  # whole blocks of 64, as in any real model
    quant = registry.load("quants", quantization, "quantization").QUANT
    model = synthetic.build(config, torch.bfloat16, torch.device("cuda"), quant, 0, lambda words: None)
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


@pytest.mark.parametrize("tokens", [1, 2, 4])
@pytest.mark.parametrize("shape", [(16, 1024), (1536, 6144), (2048, 520)])
def test_small_products_are_those_of_torch(tokens: int, shape: tuple[int, int]) -> None:
    random = partial(torch.randn, device="cuda", dtype=torch.bfloat16)
    x, weight, bias = random(tokens, shape[1]), random(shape), random(shape[0])
    assert cuda.serves_matvec(x, weight)
    for added in (bias, None):
        given = torch.ops.hwprofile_cuda.matvec(x, weight, added)
        wide = None if added is None else added.float()
        expected = torch.nn.functional.linear(x.float(), weight.float(), wide)
        torch.testing.assert_close(given.float(), expected, atol=0.3, rtol=1e-2)


@pytest.mark.parametrize("dtype", cuda.DTYPES)
def test_each_token_is_multiplied_with_its_own_expert(dtype: torch.dtype) -> None:
    x, weight = (torch.randn(shape, device="cuda").to(dtype) for shape in ((5, 2048), (3, 600, 2048)))
    ids = torch.tensor([2, 0, 0, 1, 2], device="cuda")
    given = torch.ops.hwprofile_cuda.expert_matvec(x, weight, ids)
    expected = torch.einsum("tk,trk->tr", x.float(), weight[ids].float())
    torch.testing.assert_close(given.float(), expected, atol=0.5 if dtype == torch.bfloat16 else 1e-2, rtol=1e-2)


@pytest.mark.parametrize("dtype", cuda.DTYPES)
@pytest.mark.parametrize("width", [64, 1536, 5120])
def test_the_norm_is_that_of_its_formula(dtype: torch.dtype, width: int) -> None:
    x, gate, weight = torch.randn(5, width), torch.randn(5, width), torch.randn(width)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    for inputs in ((x, weight, None), (x, weight, gate), (x, None, None)):
        here = [None if each is None else each.to(dtype) for each in inputs]
        there = [None if each is None else each.cuda() for each in here]
        given = torch.ops.hwprofile_cuda.rms_norm(*there, 1.0, 1e-6).cpu()
        expected = torch.ops.hwprofile_cuda.rms_norm(*here, 1.0, 1e-6)
        torch.testing.assert_close(given, expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype", cuda.DTYPES)
def test_the_fused_delta_step_is_the_recurrent_rule(dtype: torch.dtype) -> None:
    state = torch.randn(2, 8, 128, 128, device="cuda")
    reference = state.clone()
    tolerance = 1e-4 if dtype == torch.float32 else 3e-2
    for _ in range(8):
        q, k = (torch.randn(2, 1, 4, 128, device="cuda", dtype=dtype) for _ in range(2))
        wide = (each.repeat_interleave(2, dim=2) for each in (q, k))
        v = torch.randn(2, 1, 8, 128, device="cuda", dtype=dtype)
        g, beta = -torch.rand(2, 1, 8, device="cuda"), torch.rand(2, 1, 8, device="cuda", dtype=dtype)
        assert cuda.missing() is None
        expected, reference = torch_recurrent_gated_delta_rule(*wide, v, g, beta, reference, True, True)
        given = torch.ops.hwprofile_cuda.gated_delta_step(q, k, v, g, beta, state)
        torch.testing.assert_close(given, expected, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(state, reference, atol=tolerance, rtol=tolerance)


def test_replay_is_faster_than_eager() -> None:
    model, seconds = on_gpu("gemma4_e4b", torch.bfloat16), {}
    for kind in (EagerRunner, CudaGraphRunner):
        runner = kind(model)
        runner.prefill(prompt(1, 8).to("cuda"))
        runner.prepare(64)
        runner.enqueue(32)
        torch.cuda.synchronize()
        start = time.perf_counter()
        runner.enqueue(32)
        torch.cuda.synchronize()
        seconds[kind] = time.perf_counter() - start
    assert seconds[EagerRunner] > 2 * seconds[CudaGraphRunner], "a model this small is bound by launches alone"
