"""How fast the C++ loops multiply in fp32, bf16 and int8: all matrices of a decode step, with the types in turns.

    python benchmarks/rows.py [--shapes gemma-3-270m] [--rounds 30] [--tokens 1]

This is what a decode step would gain from a smaller type if nothing else took time.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch
from figures import in_turn, ratio_text

from profiler.kernels import native
from profiler.models import families, hub
from profiler.results.stats import summarize

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}


def main() -> None:
    options = _options()
    shapes = _shapes(options.shapes)
    native.load()
    products = {name: _product(shapes, dtype, options.tokens) for name, dtype in DTYPES.items()}
    seconds: dict[str, list[float]] = {name: [] for name in DTYPES}

    def timed(name: str) -> None:
        start = time.perf_counter()
        products[name]()
        seconds[name].append(time.perf_counter() - start)

    for product in products.values():
        product()  # warm-up
    in_turn(options.rounds, *(partial(timed, name) for name in DTYPES))
    elements = sum(rows * columns for rows, columns in shapes)
    print(f"{options.shapes}: {len(shapes)} matrices, {elements / 1e6:.0f} M weights, {options.tokens} tokens")
    for name, values in seconds.items():
        rate = summarize([elements * DTYPES[name].itemsize / value / 1e9 for value in values])
        assert rate is not None
        print(f"{name}: {rate.median:.1f} GB/s; {ratio_text(seconds['fp32'], values)} times as fast as fp32")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--shapes", default="gemma-3-270m", help="catalog name")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--tokens", type=int, default=1)
    return parser.parse_args()


def _shapes(name: str) -> list[tuple[int, int]]:
    """Rows and columns of every matrix that a step multiplies with, including a tied embedding."""
    geometry = families.geometry(hub.shipped_config(name))
    roles = {"linear", "head", *(["embedding"] if geometry.tied else [])}
    return [(weight.shape[0], weight.shape[1]) for weight in geometry.weights() if weight.role in roles]


def _product(shapes: Sequence[tuple[int, int]], dtype: torch.dtype, tokens: int) -> Callable[[], None]:
    """Multiply one token after the other with every matrix."""
    matrices = [torch.randn(shape).mul(30).to(dtype) for shape in shapes]
    inputs = {columns: torch.randn(tokens, columns) for _, columns in shapes}
    scales = {rows: torch.ones(rows) for rows, _ in shapes} if dtype == torch.int8 else {}

    def run() -> None:
        for matrix in matrices:
            torch.ops.hwprofile.matvec(inputs[matrix.shape[1]], matrix, scales.get(matrix.shape[0]))

    return run


if __name__ == "__main__":
    main()
