"""What a quantization defines. A file ``quants/NAME.py`` has one ``QUANT``. Other files name one only as a default:
``run/choice.py``, ``run/fit.py``, ``run/headline.py``, ``commands/audit.py`` and ``show/report/fits.py``.

Only its bytes are required. The defaults of everything else mean "unknown": without a ``Prior``, predictions treat it
like plain weights and are marked as a guess; without ``modules``, it cannot be measured with synthetic weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from profiler.devices.base import DeviceInfo
from profiler.models.layers import Role, Weight

DTYPE_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
PLAIN_QUANTS = frozenset({*DTYPE_BYTES, "f32", "f16"})  # that quantize nothing, as PyTorch and GGUF files call them


@dataclass(frozen=True, slots=True, eq=False)
class Prior:
    """How fast transformers runs a quantization on a device that was not calibrated, relative to plain weights.

    The mappings have the keys ``cpu``, ``repacking`` (a CPU for which bitsandbytes repacks 4-bit weights, see
    ``DeviceInfo.repacks``) and ``other`` for all other devices.
    """

    source: str  # where the figures come from, in words
    read: float = 1.0  # bytes per second that are read, relative to plain weights
    unpack_bytes: Mapping[str, float] = field(default_factory=dict)
    """Bytes moved by unpacking, writing and reading again in each pass, relative to the packed bytes."""
    unpack_one: float | None = None  # the same for a single token on a GPU; None: as for several
    start_calls: float = 0.0  # operators that a linear layer launches from Python on a GPU, in addition to one
    of_fp32: Mapping[str, float] = field(default_factory=dict)
    """FLOP/s of products of many tokens, relative to fp32. A device without an entry reaches the rate of the compute
    dtype."""


def _never(weight: Weight) -> bool:
    return False


@dataclass(frozen=True, slots=True, eq=False)
class Kernels:
    """How the weights of a quantization are multiplied. The defaults describe one that nobody has timed."""

    prior: Prior | None = None
    same_as: str | None = None  # the quantization that uses the same kernels and is calibrated in place of this one
    unpacks: bool = False  # a CPU unpacks a whole matrix into fp32 before it multiplies
    fused: Callable[[Weight], bool] = _never  # whether a device that repacks multiplies a weight without unpacking it
    cpu_scratch: Callable[[int, int, tuple[str, ...]], tuple[float, float, float]] | None = None
    """Temporary bytes of products on a CPU (low, usual, high), from the tokens of the pass, the bytes of the largest
    matrix in fp32, and the CPU's features."""
    in_graphs: bool = True  # a CUDA graph can capture them
    own: frozenset[str] = frozenset()  # device kinds on which our own decode step multiplies the stored weights
    own_caution: tuple[str, str] | None = None  # code and text of the caution for rows of such a step


@dataclass(frozen=True, slots=True, eq=False)
class StoredForm:
    """How a checkpoint stores weights in a quantization.

    ``needed`` and ``allowed`` are the required and the optional tensors of one weight, by the part of their name
    after the module's. If both are empty, names are not checked. ``types`` and ``bits`` describe quantized values,
    which are not checked without either.
    """

    matches: Callable[[Mapping[str, Any]], bool]  # whether a ``quantization_config`` means this quantization
    needed: frozenset[str] = frozenset()
    allowed: frozenset[str] = frozenset()
    types: frozenset[str] = frozenset()  # number types in safetensors, if each weight has an element of its own
    bits: int | None = None  # per weight, if several weights share an element


class RandomValues(Protocol):
    """Random values for the tensors that ``PackedModules.weight`` creates. Implemented in
    ``backends/hf/synthetic.py``.
    """

    device: Any  # a torch.device
    dtype: Any  # a torch.dtype: of the activations
    std: float  # standard deviation of the model's weights
    seed: int
    patterns: dict[Any, Any]  # where ``weight`` may keep patterns, which are quantized once and repeated

    def normal(self, tensor: Any, std: float, seed: int | None = None) -> None:
        """Fill a contiguous floating tensor with normal values in place. Without a ``seed``, each call takes the next
        one."""

    def tile(self, target: Any, pattern: Any, shift: int = 0) -> None:
        """Repeat ``pattern`` over a flat tensor of the same dtype, in place. Each call starts at another multiple of
        ``shift`` elements."""


@dataclass(frozen=True, slots=True, eq=False)
class LayerBenchmark:
    """The linear layer that `profile calibrate` times."""

    make: Callable[[int, int, Any], Any]  # the layer, from input features, output features and a torch.dtype
    gpu_dtype: str | None = None  # of the inputs on a GPU; None: the device's default
    more_tokens: tuple[int, ...] = ()  # numbers of tokens to time in addition to the usual ones


def _no_tensors(module: Any) -> Iterable[Any]:
    return ()


@dataclass(frozen=True, slots=True, eq=False)
class PackedModules:
    """The modules that hold packed weights in a loaded model. The functions import torch when they are called."""

    names: frozenset[str]  # names of their classes
    tensors: Callable[[Any], Iterable[Any]] = _no_tensors  # tensors of a module that are not parameters or buffers
    weight: Callable[[Any, RandomValues], Any] | None = None  # creates a synthetic weight for a module on ``meta``
    timed: LayerBenchmark | None = None  # None: not timed, or timed as ``Kernels.same_as``


@dataclass(frozen=True, slots=True)
class Quant:
    """How weights are stored.

    ``weight_bytes(weight, dtype, repacks)`` counts every stored byte of a weight, scales included. ``dtype`` is the
    compute dtype, in which unquantized weights are stored; ``repacks`` is ``DeviceInfo.repacks``.
    ``load_config(dtype)`` returns the transformers quantization config (``None`` for a plain dtype) and may import
    torch.
    """

    name: str
    weight_bytes: Callable[[Weight, str, bool], int]
    roles: frozenset[Role]  # of the weights that it quantizes; empty for a plain dtype
    unavailable: Callable[[DeviceInfo], str | None]  # why a device cannot run it, in words; None if it can
    load_config: Callable[[str], Any]
    dtype: str | None = None  # the compute dtype that it requires; None: the device's default
    kernels: Kernels = Kernels()
    stored: StoredForm | None = None  # None: checkpoints are never stored in it
    modules: PackedModules | None = None

    @property
    def timed_as(self) -> str:
        """The quantization that `profile calibrate` times in its place."""
        return self.kernels.same_as or self.name

    @property
    def no_synthetic_weights(self) -> str | None:
        """Why a model with synthetic weights cannot be built in it, in words; ``None`` if it can."""
        if not self.roles or (self.modules is not None and self.modules.weight is not None):
            return None
        return f"{self.name} has no synthetic weights: only a checkpoint can be measured in it"


def plain_bytes(weight: Weight, dtype: str, repacks: bool = False) -> int:
    """Bytes of a weight stored in the compute dtype."""
    return weight.parameters * DTYPE_BYTES[dtype]


def plain(name: str, own: frozenset[str] = frozenset()) -> Quant:
    """A plain dtype: everything is stored and computed in it. ``own`` as in ``Kernels``."""
    kernels = Kernels(own=own)
    return Quant(name, plain_bytes, frozenset(), lambda device: None, lambda dtype: None, dtype=name, kernels=kernels)
