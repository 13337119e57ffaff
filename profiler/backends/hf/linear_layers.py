"""The microbenchmarks of linear layers.

        seconds = bytes × byte_s + output features × row_s + call_s

This is the time of the device: on a GPU it is measured in a CUDA graph if possible, and the time to launch a layer
from Python is measured separately. For each quantization and number of tokens, the three coefficients are solved from
three shapes: square, few inputs per row, and small. As in a model, every run uses other weights, from a pool that is
larger than the device's caches if memory allows. Pools of packed layers, which take long to copy, have at most 1,024.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import combinations, cycle
from math import prod
from typing import NamedTuple, TypeVar

import torch
from torch.nn import functional

from profiler import devices, quants, registry
from profiler.backends.hf.ceilings import DTYPES, Stopwatch, past_caches
from profiler.devices.calibration import LayerCost, LayerKernel, Layers, LinearLayer
from profiler.kernels import cuda, native
from profiler.models.layers import Weight
from profiler.quants.base import LayerBenchmark, Quant

TOKENS = (1, 4, 16, 64, 256)
ROW_SHAPES = ((4096, 4096), (2048, 1536), (256, 1536))  # shapes for our own kernels on a GPU, without large ones
TALL, TALL_TOKENS = (65536, 1024), (1, 4, 16)  # an output head, which processes one token per sequence
MIN_POOL_BYTES, MAX_POOL_BYTES = 128 * 1024**2, 1024**3  # of a pool of layers
POOL_LAYERS, PACKED_LAYERS = 4096, 1024  # maximum number in a pool
PATTERN = 2**20  # random numbers, repeated through a pool
RUN_LAYERS = 200  # maximum in a run of one token
OUTLIER = 8.0  # exceeds the threshold of LLM.int8, which computes such features in 16 bits
# Outlier features of an input: as many as SmolLM2-135M has before attention (Gemma 3 270M: 10 to 120), and half as
# many for inputs of fewer than FEW tokens.
OUTLIERS, FEW = 2, 4
TimedLayer = Callable[[torch.Tensor], torch.Tensor]
Shape = tuple[int, int]
Product = tuple[Callable[[], object], int]
K = TypeVar("K")
RATE_S = 0.04  # a rate is the median of runs that take this long
ROUNDS = 3  # and of this many rounds


class TimedKernel(NamedTuple):
    """What multiplies by the weights of one quantization: transformers' layers, or our own decode step."""

    quant: str
    dtype: torch.dtype  # of the inputs
    pool: Callable[[Shape, int], list[TimedLayer]]  # creates layers of a shape, up to a total size in bytes
    repacks: bool  # as ``DeviceInfo.repacks``
    captured: bool = False  # runs in a CUDA graph, which LLM.int8() cannot
    own: bool = False  # one of our own decode step
    more_tokens: tuple[int, ...] = ()  # in addition to TOKENS, unless it is our own
    own_tokens: tuple[int, ...] = ()  # all of them if it is our own

    @property
    def kernel(self) -> LayerKernel:
        """The key of its costs."""
        return LayerKernel(self.quant, self.own)

    @property
    def tokens(self) -> tuple[int, ...]:
        """The numbers of tokens that it is timed with."""
        return self.own_tokens if self.own else (*TOKENS, *self.more_tokens)

    def nbytes(self, shape: Shape) -> int:
        """Bytes of a stored layer, scales included."""
        quant: Quant = registry.load("quants", self.quant, "quantization").QUANT
        return quant.weight_bytes(Weight("linear", shape), quant.dtype or "fp32", self.repacks)

    def expected_s(self, cost: LayerCost, shape: Shape) -> float:
        """Seconds of a layer of ``shape`` according to the costs of other shapes."""
        return self.nbytes(shape) * cost.byte_s + shape[0] * cost.row_s + cost.call_s


class LinearLayers:
    """Times the linear layers of one device, whose caches hold ``cache_bytes``."""

    def __init__(self, watch: Stopwatch, cache_bytes: int = 0) -> None:
        self.watch, self.device, self.cuda = watch, watch.device, watch.device.type == "cuda"
        self.sizes = watch.kind.sizes
        self.pool_bytes = past_caches(cache_bytes, MIN_POOL_BYTES, MAX_POOL_BYTES)

    def all(self) -> Layers:
        """The costs of linear layers by kernel and tokens, the slowdown of an output head, and the time to launch a
        layer, which on a GPU is not part of the costs.
        """
        kernels = list(self._kernels())
        runs = {
            (one.kernel, shape, tokens): self._product(one, layers, shape, tokens)
            for one in kernels
            for shape, layers in self._pools(one)
            for tokens in (tuple(n for n in one.tokens if n in TALL_TOKENS) if shape == TALL else one.tokens)
        }
        captured = {one.kernel for one in kernels if one.captured}
        seconds = self._rounds(
            {key: (self.watch.captured(run), many) if key[0] in captured else (run, many)
             for key, (run, many) in runs.items()}
        )  # fmt: skip
        launches = {one.kernel: runs[one.kernel, self._shapes(one)[-1], 1] for one in kernels}
        launch_s = {} if self.watch.kind.is_host else self._rounds(launches)
        found = {}
        for one in kernels:
            costs, head = {}, {}
            for tokens in one.tokens:
                timed = [(shape, seconds[one.kernel, shape, tokens]) for shape in self._shapes(one)]
                costs[tokens] = solve([(one.nbytes(shape), shape[0], taken) for shape, taken in timed])
                if (taken := seconds.get((one.kernel, TALL, tokens))) is not None:
                    head[tokens] = taken / one.expected_s(costs[tokens], TALL)
            found[one.kernel] = LinearLayer(costs, head, launch_s.get(one.kernel))
        return found

    def _rounds(self, runs: Mapping[K, Product]) -> dict[K, float]:
        """Seconds per layer of each run. Every round times all of them, so that a slow minute affects all equally."""
        found: dict[K, list[float]] = {key: [] for key in runs}
        for number in range(ROUNDS):
            self.watch.doing(f"linear layers, round {number + 1} of {ROUNDS}")
            for key, (run, many) in runs.items():
                found[key].append(self.watch.time(run, RATE_S).median / many)
        return {key: statistics.median(values) for key, values in found.items()}

    def _product(self, one: TimedKernel, layers: Sequence[TimedLayer], shape: Shape, tokens: int) -> Product:
        """A run through the next layers of the pool, and how many these are."""
        inputs = torch.randn(1, tokens, shape[1], device=self.device).to(one.dtype)
        inputs[..., : OUTLIERS if tokens >= FEW else OUTLIERS // 2] = OUTLIER
        turn = cycle(layers)
        most = min(len(layers), RUN_LAYERS, self.sizes.run_bytes // one.nbytes(shape))
        # On a GPU, even a product of many tokens is short compared with a synchronization.
        many = max(1, most // max(1, tokens // 4)) if self.watch.kind.is_host else most

        def run() -> None:
            for _ in range(many):
                next(turn)(inputs)

        return run, many

    def _pools(self, one: TimedKernel) -> Iterator[tuple[Shape, list[TimedLayer]]]:
        tall = (TALL,) if one.quant in DTYPES and not (one.own and self.cuda) else ()
        for shape in (*self._shapes(one), *tall):
            yield shape, one.pool(shape, self.pool_bytes)

    def _shapes(self, one: TimedKernel) -> tuple[Shape, Shape, Shape]:
        square, narrow, small = ROW_SHAPES if one.own and self.cuda else self.sizes.shapes
        return square, narrow, small

    def _own_kernels(self) -> Iterator[TimedKernel]:
        """Our matvec kernels, for each quantization that they support on this device."""

        def pool_of(dtype: torch.dtype) -> Callable[[Shape, int], list[TimedLayer]]:
            pattern = torch.randint(-127, 127, (PATTERN,), device=self.device).to(dtype)

            def pool(shape: Shape, nbytes: int) -> list[TimedLayer]:
                many = max(1, min(nbytes // dtype.itemsize // prod(shape), POOL_LAYERS))
                weights = pattern.repeat(-(-many * prod(shape) // PATTERN))[: many * prod(shape)].view(many, *shape)
                if self.cuda:
                    return [partial(torch.ops.hwprofile_cuda.matvec, weight=weight, bias=None) for weight in weights]
                scale = torch.ones(shape[0]) if dtype == torch.int8 else None
                return [partial(_multiplied, weight=weight, scale=scale) for weight in weights]

            return pool

        if (cuda.missing() if self.cuda else native.missing()) is not None:
            return
        usual = DTYPES[devices.find(str(self.device)).default_dtype]
        for quant in quants.every():
            if self.device.type in quant.kernels.own:
                stored = DTYPES.get(quant.name, torch.int8)
                inputs = DTYPES.get(quant.name, usual)
                tokens = self.sizes.own_tokens
                yield TimedKernel(quant.name, inputs, pool_of(stored), False, self.cuda, own=True, own_tokens=tokens)

    def _kernels(self) -> Iterator[TimedKernel]:
        """Everything that can be timed on this device."""
        here = devices.find(str(self.device))

        def plain(dtype: torch.dtype) -> Callable[[Shape, int], list[TimedLayer]]:
            """All shapes share one buffer, so that a pool is created at once."""
            size = max(self.pool_bytes // dtype.itemsize, prod(TALL))
            pattern = torch.randn(min(size, PATTERN), device=self.device).to(dtype)
            buffer = pattern.repeat(-(-size // len(pattern)))[:size]

            def pool(shape: Shape, nbytes: int) -> list[TimedLayer]:
                many = max(1, min(nbytes // dtype.itemsize // prod(shape), POOL_LAYERS))
                weights = buffer[: many * prod(shape)].view(many, *shape)
                return [partial(functional.linear, weight=weight) for weight in weights]

            return pool

        for name, dtype in DTYPES.items():
            yield TimedKernel(name, dtype, plain(dtype), repacks=False, captured=self.cuda)
        yield from self._own_kernels()

        def packed(quant: Quant, layer: LayerBenchmark) -> TimedKernel:
            """The pool packs one layer and copies it, because packing is slow."""
            dtype = DTYPES[(not self.watch.kind.is_host and layer.gpu_dtype) or here.default_dtype]

            def pool(shape: Shape, nbytes: int) -> list[TimedLayer]:
                rows, columns = shape
                first = layer.make(columns, rows, dtype).to(self.device).eval()  # training uses other kernels
                first(torch.zeros(1, columns, dtype=dtype, device=self.device))
                many = max(2, min(nbytes // one.nbytes(shape), PACKED_LAYERS))
                return [first, *(copy.deepcopy(first) for _ in range(many - 1))]

            captured = self.cuda and quant.kernels.in_graphs
            one = TimedKernel(quant.name, dtype, pool, here.repacks, captured, more_tokens=layer.more_tokens)
            return one

        for quant in quants.every():
            layer = quant.modules.timed if quant.modules is not None else None
            if layer is not None and quant.unavailable(here) is None:
                yield packed(quant, layer)


def _multiplied(inputs: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor | None) -> torch.Tensor:
    return torch.ops.hwprofile.matvec(inputs[0], weight, scale)  # type: ignore[no-any-return]


def solve(points: Sequence[tuple[float, int, float]]) -> LayerCost:
    """Solve for the costs per byte, output feature and call from (bytes, output features, seconds) of three shapes.

    No cost may be negative. If solving for all three gives a negative one, some are set to 0: those that leave the
    smallest relative error.
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
    return LayerCost(*best)
