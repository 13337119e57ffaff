"""Our CUDA kernels compared with torch's in a replayed decode step: attention of one token, and small products.

    python benchmarks/kernels_cuda.py [--slots 4096 32768 131072]

torch's attention with a mask is what a step of fixed shape would use; without a mask, what a growing cache uses. GB/s
count keys and values, all slots of which are filled, or weights.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from itertools import cycle

import torch
from figures import in_turn, ratio_text
from torch.nn.functional import scaled_dot_product_attention

from profiler.kernels import cuda  # registers hwprofile_cuda
from profiler.results.stats import summarize

SHAPES = {
    "Qwen 3.5 0.8B": (8, 2, 256),
    "Gemma 4 E2B": (8, 1, 512),
    "Qwen 3 8B": (32, 8, 128),
}  # query heads, K/V heads, head size
PRODUCTS = ((256, 1536), (1536, 256), (2048, 1536), (1536, 6144), (4096, 4096), (12288, 4096))  # rows, columns
CALLS, ROUNDS = 10, 15
POOL_BYTES, MAX_CALLS = 256 * 1024**2, 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--slots", type=int, nargs="+", default=[4096, 32768, 131072])
    for shape in PRODUCTS:
        _products(*shape)
    for slots in parser.parse_args().slots:
        for name, heads in SHAPES.items():
            _attention(name, *heads, slots)


def _products(rows: int, columns: int) -> None:
    """Measure over weights that do not fit into any cache."""
    size = 2 * rows * columns
    many = max(2, POOL_BYTES // size)
    weights = torch.randn(many, rows, columns, device="cuda", dtype=torch.bfloat16)
    x = torch.randn(1, columns, device="cuda", dtype=torch.bfloat16)

    def over(product: Callable[..., object]) -> Callable[[], object]:
        turn = cycle(weights)
        return lambda: product(x, next(turn), None)

    ours, torchs = torch.ops.hwprofile_cuda.matvec, torch.nn.functional.linear
    _compare(f"{rows}×{columns}", {"ours": over(ours), "torch": over(torchs)}, size, min(many, MAX_CALLS))


def _attention(name: str, heads: int, kv_heads: int, width: int, slots: int) -> None:
    assert cuda.missing() is None, cuda.missing()
    random = partial(torch.randn, device="cuda", dtype=torch.bfloat16)
    query, keys, values = (
        random(1, heads, 1, width),
        random(1, kv_heads, slots, width),
        random(1, kv_heads, slots, width),
    )
    mask = torch.ones(slots, dtype=torch.bool, device="cuda")
    kinds: dict[str, Callable[[], object]] = {
        "ours": lambda: torch.ops.hwprofile_cuda.decode_attention(query, keys, values, mask, 0.1),
        "torch, mask": lambda: scaled_dot_product_attention(
            query, *(each.repeat_interleave(heads // kv_heads, dim=1) for each in (keys, values)),
            attn_mask=mask.view(1, 1, 1, -1), scale=0.1),
        "torch": lambda: scaled_dot_product_attention(query, keys, values, scale=0.1, enable_gqa=True),
    }  # fmt: skip
    _compare(f"{name}, {slots} slots", kinds, 2 * keys.nbytes, CALLS)


def _compare(name: str, kinds: dict[str, Callable[[], object]], nbytes: int, calls: int) -> None:
    replays = {kind: _captured(run, calls) for kind, run in kinds.items()}
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    in_turn(ROUNDS, *(partial(_time, replay, calls, seconds[kind]) for kind, replay in replays.items()))
    for kind, values in seconds.items():
        rate = summarize([nbytes / value / 1e9 for value in values])
        assert rate is not None
        taken = f"{nbytes / rate.median / 1e3:.1f} µs, {rate.median:.0f} GB/s"
        print(f"{name}, {kind}: {taken}; {ratio_text(values, seconds['ours'])} × ours")


def _captured(run: Callable[[], object], calls: int) -> Callable[[], object]:
    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(calls):
            run()
    return graph.replay


def _time(replay: Callable[[], object], calls: int, found: list[float]) -> None:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    replay()
    end.record()
    end.synchronize()
    found.append(start.elapsed_time(end) / 1e3 / calls)


if __name__ == "__main__":
    main()
