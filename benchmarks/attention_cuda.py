"""Attention of one token on a GPU: our kernel, and torch's own over a mask, as in a step of fixed shape, and without one.

    python benchmarks/attention_cuda.py [--slots 4096 32768 131072]

Each is replayed as a CUDA graph, kinds in turn; GB/s are of keys and values that are filled, all of them here.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import torch
from figures import in_turn, ratio_text
from torch.nn.functional import scaled_dot_product_attention

from profiler.kernels import cuda  # registers hwprofile_cuda
from profiler.results.stats import summarize

SHAPES = {"Qwen 3.5 0.8B": (8, 2, 256), "Gemma 4 E2B": (8, 1, 512), "Qwen 3 8B": (32, 8, 128)}  # heads, of K and V, width
CALLS, ROUNDS = 10, 15


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--slots", type=int, nargs="+", default=[4096, 32768, 131072])
    for slots in parser.parse_args().slots:
        for name, shape in SHAPES.items():
            _compare(name, *shape, slots)


def _compare(name: str, heads: int, kv_heads: int, width: int, slots: int) -> None:
    assert cuda.missing() is None, cuda.missing()
    random = partial(torch.randn, device="cuda", dtype=torch.bfloat16)
    query, keys, values = random(1, heads, 1, width), random(1, kv_heads, slots, width), random(1, kv_heads, slots, width)
    mask = torch.ones(slots, dtype=torch.bool, device="cuda")
    kinds: dict[str, Callable[[], object]] = {
        "ours": lambda: torch.ops.hwprofile_cuda.decode_attention(query, keys, values, mask, 0.1),
        "torch, mask": lambda: scaled_dot_product_attention(
            query, *(each.repeat_interleave(heads // kv_heads, dim=1) for each in (keys, values)),
            attn_mask=mask.view(1, 1, 1, -1), scale=0.1),
        "torch": lambda: scaled_dot_product_attention(query, keys, values, scale=0.1, enable_gqa=True),
    }  # fmt: skip
    replays = {kind: _captured(run) for kind, run in kinds.items()}
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    in_turn(ROUNDS, *(partial(_time, replay, seconds[kind]) for kind, replay in replays.items()))
    held = 2 * keys.numel() * keys.element_size()
    for kind, values_s in seconds.items():
        rate = summarize([held / value / 1e9 for value in values_s])
        assert rate is not None
        us = 1e6 * held / rate.median / 1e9
        print(f"{name}, {slots} slots, {kind}: {us:.1f} µs, {rate.median:.0f} GB/s; {ratio_text(values_s, seconds['ours'])} × ours")


def _captured(run: Callable[[], object]) -> Callable[[], object]:
    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(CALLS):
            run()
    return graph.replay


def _time(replay: Callable[[], object], found: list[float]) -> None:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    replay()
    end.record()
    end.synchronize()
    found.append(start.elapsed_time(end) / 1e3 / CALLS)


if __name__ == "__main__":
    main()
