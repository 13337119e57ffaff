"""What products with linear layers cost on a device, by format, shape and number of tokens.

    product = bytes × byte_s + output features × row_s + call_s

is solved for each format and number of tokens from three shapes: square, few inputs a row, and small. Weights rotate
through a pool larger than any cache.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import combinations, cycle
from math import prod
from typing import NamedTuple, TypeVar

import torch
from torch.nn import functional

from profiler import registry
from profiler.backends.hf.load import DTYPES
from profiler.backends.hf.stopwatch import Stopwatch
from profiler.models.weight import Weight
from profiler.quants.base import Quant

TOKENS = (1, 4, 16, 64, 256)
SQUARE, NARROW, SMALL = (2048, 2048), (2048, 512), (256, 256)  # output features, input features
TALL, TALL_TOKENS = (65536, 1024), (1, 4, 16)  # an output head; it is given one token a sequence
LARGE, LARGE_TOKENS = (6144, 2048), (1,)  # 48 MiB in fp32
UNPACKED = "nf4"  # unpacks a whole layer to multiply with it
POOL_BYTES = 128 * 1024**2
POOL_LAYERS = 200
OUTLIER = 8.0  # above the threshold of LLM.int8: features of trained models are, the more of them the more tokens
TOKENS_AN_OUTLIER = 16

Layer = Callable[[torch.Tensor], torch.Tensor]
Shape = tuple[int, int]
Product = tuple[Callable[[], None], int]
K = TypeVar("K")
RATE_S = 0.04  # a rate is the median of runs that take so long
ROUNDS = 3  # and that of so many turns

Costs = dict[str, dict[str, dict[str, float]]]  # by format and tokens (as text): the fields of ``ceilings.Cost``


class Format(NamedTuple):
    """A format of weights: its inputs' dtype, and what makes a layer of so many outputs and inputs."""

    name: str
    dtype: torch.dtype
    make: Callable[[int, int], Layer]

    def nbytes(self, shape: Shape) -> int:
        """Of a stored layer, scales included."""
        quant: Quant = registry.load("quants", self.name, "quantization").QUANT
        return quant.weight_bytes(Weight("linear", shape), quant.dtype or "fp32")

    def usual_s(self, cost: Mapping[str, float], shape: Shape) -> float:
        """Seconds of a layer of ``shape`` by what others cost."""
        return self.nbytes(shape) * cost["byte_s"] + shape[0] * cost["row_s"] + cost["call_s"]


class Products:
    """Of one device."""

    def __init__(self, watch: Stopwatch) -> None:
        self.watch, self.device, self.cuda = watch, watch.device, watch.device.type == "cuda"

    def all(self) -> tuple[Costs, dict[str, dict[str, float]], float]:
        """Costs of linear layers by format and tokens; how much longer than that an output head takes; and how much
        longer, by the byte, a packed layer takes whose unpacked weights are too large for the heap.
        """
        formats = list(self._formats())
        runs = {
            (one.name, shape, tokens): self._product(layers, shape, tokens, one.dtype)
            for one in formats
            for shape, layers in self._pools(one)
            for tokens in {TALL: TALL_TOKENS, LARGE: LARGE_TOKENS}.get(shape, TOKENS)
        }
        seconds = self._rounds(runs)
        found: Costs = {one.name: {} for one in formats}
        tall: dict[str, dict[str, float]] = {one.name: {} for one in formats}
        fresh = 0.0
        for one in formats:
            for tokens in TOKENS:
                shapes = (SQUARE, NARROW, SMALL)
                points = [(one.nbytes(shape), shape[0], seconds[one.name, shape, tokens]) for shape in shapes]
                cost = found[one.name][str(tokens)] = solve(points)
                if (one.name, TALL, tokens) in seconds:
                    taken = seconds[one.name, TALL, tokens]
                    tall[one.name][str(tokens)] = taken / one.usual_s(cost, TALL)
                if (one.name, LARGE, tokens) in seconds:
                    longer = seconds[one.name, LARGE, tokens] - one.usual_s(cost, LARGE)
                    fresh = max(0.0, longer) / (prod(LARGE) * torch.float32.itemsize)
        return found, tall, fresh

    def _rounds(self, runs: Mapping[K, Product]) -> dict[K, float]:
        """Seconds of one layer each. All take their turn several times: what a slower minute does, it does to all."""
        found: dict[K, list[float]] = {key: [] for key in runs}
        for _ in range(ROUNDS):
            for key, (run, many) in runs.items():
                found[key].append(self.watch.time(run, RATE_S).median / many)
        return {key: statistics.median(values) for key, values in found.items()}

    def _product(self, layers: Sequence[Layer], shape: Shape, tokens: int, dtype: torch.dtype) -> Product:
        """A run, and the layers that it multiplies with."""
        inputs = torch.randn(1, tokens, shape[1], device=self.device).to(dtype)
        inputs[..., : tokens // TOKENS_AN_OUTLIER] = OUTLIER
        turn = cycle(layers)
        many = max(1, len(layers) // max(1, tokens // 4))  # few tokens: a whole round through the pool

        def run() -> None:
            for _ in range(many):
                next(turn)(inputs)

        return run, many

    def _pools(self, one: Format) -> Iterator[tuple[Shape, list[Layer]]]:
        for shape in (SQUARE, NARROW, SMALL):
            yield shape, self._pool(one, shape)
        if one.name in DTYPES:
            yield TALL, [one.make(*TALL)]
        if one.name == UNPACKED and not self.cuda:  # there a kernel multiplies packed weights as they are
            yield LARGE, [one.make(*LARGE) for _ in range(2)]

    def _pool(self, one: Format, shape: Shape) -> list[Layer]:
        pool = POOL_BYTES if one.name in DTYPES else POOL_BYTES // 4  # packing layers takes long
        return [one.make(*shape) for _ in range(max(2, min(pool // one.nbytes(shape), POOL_LAYERS)))]

    def _formats(self) -> Iterator[Format]:
        """Those that can be measured here."""

        def plain(dtype: torch.dtype, rows: int, columns: int) -> Layer:
            weight = torch.randn(rows, columns, device=self.device).to(dtype)
            return partial(functional.linear, weight=weight)

        for name, dtype in DTYPES.items():
            yield Format(name, dtype, partial(plain, dtype))
        try:
            import bitsandbytes as bnb
        except ImportError:
            return
        dtype = torch.float32 if not self.cuda else torch.bfloat16

        def nf4(rows: int, columns: int) -> Layer:
            layer: Layer = bnb.nn.Linear4bit(columns, rows, False, dtype, quant_type="nf4").to(self.device).eval()
            return layer

        def int8(rows: int, columns: int) -> Layer:
            layer = bnb.nn.Linear8bitLt(columns, rows, False, has_fp16_weights=False, threshold=6.0)
            moved: Layer = layer.to(self.device).eval()  # training takes other kernels
            return moved

        yield Format(UNPACKED, dtype, nf4)
        yield Format("int8", torch.float16 if self.cuda else dtype, int8)


def solve(points: Sequence[tuple[float, int, float]]) -> dict[str, float]:
    """Costs per byte, output feature and call, none below 0, from (bytes, output features, seconds) of three shapes.

    The fullest set of costs that all come out positive, by relative error: a shape may take less than the sum of what
    others show.
    """
    seconds = torch.tensor([point[2] for point in points], dtype=torch.float64)
    columns = torch.tensor([[point[0], point[1], 1.0] for point in points], dtype=torch.float64) / seconds[:, None]
    best, error = [0.0, 0.0, 0.0], float("inf")
    for size in (1, 2, 3):
        for chosen in combinations(range(3), size):
            part = columns[:, chosen]
            costs = torch.linalg.lstsq(part, torch.ones(len(points), 1, dtype=torch.float64)).solution
            miss = float((part @ costs - 1).square().sum())
            if bool((costs >= 0).all()) and miss < error:
                best, error = [0.0, 0.0, 0.0], miss
                for index, value in zip(chosen, costs.flatten().tolist(), strict=True):
                    best[index] = value
    return dict(zip(("byte_s", "row_s", "call_s"), best, strict=True))
