"""Measures a device's ceilings and PyTorch's own rates; runs as a separate process and prints one JSON object.

    python -m profiler.backends.hf.microbenchmark DEVICE THREADS DUTY_CYCLE

THREADS is the number of CPU threads, 0 for PyTorch's default; DUTY_CYCLE is ``DeviceInfo.duty_cycle``. Ceilings are
the fastest of many runs: the most that the device can do. Rates are medians: what a long run reaches once clocks have
settled.
"""

from __future__ import annotations

import importlib
import logging
import statistics
import sys
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from profiler.backends.hf.ceilings import DTYPES, LOOP_S, CeilingBenchmark, Stopwatch, past_caches, report
from profiler.backends.hf.linear_layers import MAX_POOL_BYTES, MIN_POOL_BYTES, RATE_S, LinearLayers
from profiler.backends.hf.synthetic import log_decays
from profiler.devices.calibration import DELTA, DELTA_TOKENS, STEP_LAYERS, layers_json
from profiler.devices.cpu import process_bytes
from profiler.kernels import cuda, native
from profiler.kernels.versions import with_cache

FRESH_BYTES = 48 * 1024**2  # size of a result so large that malloc maps new pages for it
STEP_S, STEP_ROUNDS = 0.1, 5
STEP_MODEL = {  # so small that its matrix products take no longer than the rest; its weights exceed the caches
    "num_hidden_layers": STEP_LAYERS,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 64,
}
STEP_INNER = 2  # size of the feed-forward layer ÷ hidden size
STEP_MODEL_DEPTH = 64
PASS_MODEL = {  # so wide that its prefill consists of matrix products and element-wise operators
    "num_hidden_layers": 2,
    "vocab_size": 64,
}
PASS_INNER = 3  # size of the feed-forward layer ÷ hidden size
PASS_S, PASS_ROUNDS = 0.3, 3
MIN_ELEMENTWISE_S = 7.5e-13  # used where the difference of two noisy times is smaller, or negative
CONV_CHANNELS, CONV_WIDTH, CONV_TOKENS = 6144, 4, 512
HEADS, KV_HEADS, HEAD_DIM = 8, 2, 128
PASS_DEPTH = 2  # tokens that masked attention reads ÷ tokens of the pass


class Microbenchmark(CeilingBenchmark):
    """Measures the figures of one device."""

    def __init__(self, device: str, threads: int | None = None, duty_cycle: float = 1.0) -> None:
        Stopwatch.tell("preparing our CPU kernels")
        native.missing()  # builds them before anything is timed
        super().__init__(device, threads, duty_cycle)
        self.own = dict.fromkeys(("fp32", self.here.default_dtype))

    def all(self) -> dict[str, Any]:
        """Measures everything. The keys are those of ``calibration.Ceilings``, with ``how`` for a person."""
        for name in ("profiler.backends.hf.session", "bitsandbytes"):  # as a worker has before it loads 4-bit weights
            importlib.import_module(name)
        idle, doing = process_bytes("VmRSS") if sys.platform == "linux" else 0, self.watch.doing
        with torch.inference_mode():
            before = self.ceilings()
            doing("attention")
            attention = {name: self.attention(dtype) for name, dtype in DTYPES.items()}
            doing("operators")
            rates = {
                "step_s": {name: self.step(DTYPES[name]) for name in self.own},
                "graph_step_s": self.graph_step(DTYPES[self.here.default_dtype]) if self.cuda else None,
                "convolutions": {name: self.convolution(dtype) for name, dtype in DTYPES.items()},
                "attention": attention,
                "elementwise_s": {
                    name: self.elementwise(DTYPES[name], attention[name]["pass_flop_s"]) for name in self.own
                },
                "delta_s": self.delta(),
                "fresh_byte_s": self.fresh() if self.on_host else 0.0,
            }
            layers = LinearLayers(self.watch, self.cache_bytes).all()
            after = self.ceilings()  # again, because clocks change over minutes
        return rates | {
            "process_bytes": idle,
            "read_bytes_s": max(before.read_bytes_s, after.read_bytes_s),
            "copy_bytes_s": max(before.copy_bytes_s, after.copy_bytes_s),
            "flops": {name: max(value, after.flops[name]) for name, value in before.flops.items()},
            "layers": layers_json(layers),
            "how": {"read": max(before, after, key=lambda rates: rates.read_bytes_s).reader},
        }

    def fresh(self) -> float:
        """Extra seconds per byte written to freshly mapped pages."""
        source = torch.ones(FRESH_BYTES // 4, device=self.device)
        target = torch.empty_like(source)
        fresh = self.watch.time(lambda: source + 1, LOOP_S).median
        reused = self.watch.time(lambda: torch.add(source, 1, out=target), LOOP_S).median
        return max(0.0, fresh - reused) / FRESH_BYTES

    def step(self, dtype: torch.dtype) -> float:
        """Seconds of a small Llama's decode step in transformers, without its linear layers.

        It cannot be put together from operators: one that is timed alone in a loop takes a third of its time in a
        model, where there is Python code between operators, and linear layers evict the caches.
        """
        return self.between_products(self._step_sizes(), dtype, 1, STEP_S, STEP_ROUNDS)

    def graph_step(self, dtype: torch.dtype) -> float:
        """The same step as a CUDA graph: the time of the device itself, without launching kernels."""
        return self.between_products(self._step_sizes(), dtype, 1, STEP_S, STEP_ROUNDS, self.watch.captured)

    def _step_sizes(self) -> dict[str, int]:
        hidden = self.sizes.step_hidden
        return STEP_MODEL | {"hidden_size": hidden, "intermediate_size": STEP_INNER * hidden}

    def elementwise(self, dtype: torch.dtype, attention_flop_s: float) -> float:
        """Seconds of a prefill's element-wise operators, per layer and byte of its hidden states: those of a small
        model, without its matrix products and attention.
        """
        layers, hidden = PASS_MODEL["num_hidden_layers"], self.sizes.pass_hidden
        tokens = self.sizes.pass_tokens
        heads = {
            "num_attention_heads": hidden // HEAD_DIM,
            "num_key_value_heads": hidden // HEAD_DIM * KV_HEADS // HEADS,
        }
        sizes = PASS_MODEL | heads | {"hidden_size": hidden, "intermediate_size": PASS_INNER * hidden}
        attention = 4 * layers * hidden * tokens**2 * attention_flop_s
        attention /= 2 if self.cuda else 1  # on CUDA, the first pass needs no mask and skips later tokens
        seconds = self.between_products(sizes, dtype, tokens, PASS_S, PASS_ROUNDS) - attention
        return max(MIN_ELEMENTWISE_S, seconds / (layers * hidden * tokens * dtype.itemsize))

    def between_products(
        self,
        model_sizes: Mapping[str, int],
        dtype: torch.dtype,
        tokens: int,
        seconds: float,
        rounds: int,
        how: Callable[[Callable[[], object]], Callable[[], object]] = lambda run: run,
    ) -> float:
        """Seconds of a pass of ``tokens`` through a small transformers model, without the matrix products with its
        weights. ``how`` turns a run into what is timed, such as a CUDA graph.
        """
        from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

        with self.device:
            model = LlamaForCausalLM(LlamaConfig(**model_sizes)).eval().to(dtype)
        products = [module for module in model.modules() if isinstance(module, nn.Linear)]
        inputs = {
            layer.in_features: torch.ones(1, tokens, layer.in_features, device=self.device, dtype=dtype)
            for layer in products
        }
        ids = torch.ones(1, tokens, dtype=torch.long, device=self.device)
        cache = DynamicCache(config=model.config)
        model(input_ids=ids.expand(-1, STEP_MODEL_DEPTH) if tokens == 1 else ids, **with_cache(cache))
        filled = [(layer.keys, layer.values) for layer in cache.layers]

        def step() -> None:
            held = cache if tokens == 1 else DynamicCache(config=model.config)  # decode appends; prefill does not
            model(input_ids=ids, **with_cache(held), logits_to_keep=1)
            if self.cuda:  # cuDNN makes a plan for each new length, which takes longer than the step
                for layer, kept in zip(cache.layers, filled, strict=True):
                    layer.keys, layer.values = kept

        def multiply() -> None:
            for layer in products:
                functional.linear(inputs[layer.in_features], layer.weight)

        whole_step, products_alone = how(step), how(multiply)
        found = [(self.watch.time(whole_step, seconds).median, self.watch.time(products_alone, seconds).median)
                 for _ in range(rounds)]  # fmt: skip
        return max(1e-9, statistics.median(whole - alone for whole, alone in found))

    def convolution(self, dtype: torch.dtype) -> dict[str, float]:
        """Seconds of a depthwise convolution as models call it: per channel, per channel of a further sequence, and
        per channel of a further token.

        The input of a prefill is a transposed view, which takes 1.6 to 1.9 times as long in fp32 as a contiguous one.
        """
        kernel = torch.randn(CONV_CHANNELS, 1, CONV_WIDTH, device=self.device).to(dtype)

        def each(inputs: torch.Tensor, padding: int) -> float:
            run = partial(functional.conv1d, inputs.to(dtype), kernel, groups=CONV_CHANNELS, padding=padding)
            return self.watch.time(run, RATE_S).median / CONV_CHANNELS

        one, more = (each(torch.randn(n, CONV_CHANNELS, CONV_WIDTH, device=self.device), 0) for n in (1, 4))
        longer = each(torch.randn(1, CONV_TOKENS, CONV_CHANNELS, device=self.device).mT, CONV_WIDTH - 1)
        further, token = max(0.0, more - one) / 3, max(0.0, longer - one) / (CONV_TOKENS - 1)
        return {"channel_s": one, "sequence_s": further, "token_s": token}

    def delta(self) -> float:
        """Seconds of the gated delta rule over one sequence, in chunks as in transformers."""
        from transformers.models.qwen3_5.modeling_qwen3_5 import torch_chunk_gated_delta_rule

        tokens, batch = DELTA_TOKENS, self.sizes.delta_batch

        def random(*more: int) -> torch.Tensor:
            return torch.randn(batch, tokens, DELTA.value_heads, *more, device=self.device)

        query, key, value = random(DELTA.key_dim), random(DELTA.key_dim), random(DELTA.value_dim)
        decay = log_decays(DELTA.value_heads).to(self.device).expand(batch, tokens, -1)
        beta = random().sigmoid()

        def run() -> None:
            torch_chunk_gated_delta_rule(query, key, value, decay, beta,
                                         output_final_state=True, use_qk_l2norm_in_kernel=True)  # fmt: skip

        return self.watch.time(run, LOOP_S).median / batch

    def attention(self, dtype: torch.dtype) -> dict[str, float]:
        """Seconds of attention over a growing cache: per byte of K and V in a decode step, and per FLOP in a masked
        prefill pass.
        """

        def random(heads: int, tokens: int) -> torch.Tensor:
            return torch.randn(1, heads, tokens, HEAD_DIM, device=self.device).to(dtype)

        query, new = random(HEADS, 1), random(KV_HEADS, 1)
        depth = self.sizes.step_depth
        first = random(KV_HEADS, depth)
        many = max(2, past_caches(self.cache_bytes, MIN_POOL_BYTES, MAX_POOL_BYTES) // (2 * first.nbytes))
        pool = deque((first.clone(), first.clone()) for _ in range(many))

        def step() -> None:
            kept = pool.popleft()
            keys, values = (torch.cat((each, new), dim=2) for each in kept)
            # As in a model, the longer cache replaces the old one; but cuDNN makes a plan for each new length.
            pool.append(kept if self.cuda else (keys, values))
            functional.scaled_dot_product_attention(query, keys, values, enable_gqa=True)

        for _ in range(many):  # from now on, freed blocks have room for one more token
            step()
        held = 2 * KV_HEADS * depth * HEAD_DIM * dtype.itemsize
        tokens = self.sizes.pass_tokens
        cached = PASS_DEPTH * tokens
        queries, keys, values = random(HEADS, tokens), random(KV_HEADS, cached), random(KV_HEADS, cached)
        mask = torch.ones(tokens, cached, dtype=torch.bool, device=self.device).tril(cached - tokens)[None, None]

        def run() -> None:
            functional.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, enable_gqa=True)

        flops = 4 * HEADS * HEAD_DIM * tokens * cached
        found = {
            "step_byte_s": self.watch.time(step, LOOP_S).median / held,
            "pass_flop_s": self.watch.time(run, LOOP_S).median / flops,
        }
        own = self.own_attention(query, first, many)
        return found if own is None else found | {"own_byte_s": self.watch.time(own, LOOP_S).median / (many * held)}

    def own_attention(self, query: torch.Tensor, first: torch.Tensor, many: int) -> Callable[[], object] | None:
        """The attention of our own decode step over ``many`` caches, which together exceed the device's hardware
        caches; ``None`` if our kernels are unavailable.
        """
        if not (self.cuda or self.on_host):
            return None
        missing = cuda.missing(self.device.index or 0) if self.cuda else native.missing()
        if query.dtype not in (torch.float32, torch.bfloat16) or missing is not None:
            return None
        attend = (torch.ops.hwprofile_cuda if self.cuda else torch.ops.hwprofile).decode_attention
        pool = [(first.clone(), first.clone()) for _ in range(many)]
        mask = torch.ones(first.shape[2], dtype=torch.bool, device=self.device)

        def step() -> None:
            for keys, values in pool:
                attend(query, keys, values, mask, 1.0)

        return self.watch.captured(step) if self.cuda else step


def measured(device: str, threads: int | None, duty_cycle: float) -> dict[str, Any]:
    """Every figure of a device, with the keys of ``calibration.Ceilings``."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # otherwise it logs a line for every matrix product
    return Microbenchmark(device, threads, duty_cycle).all()


if __name__ == "__main__":
    report(measured)
