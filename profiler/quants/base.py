"""What a quantization gives. A file ``quants/NAME.py`` defines one ``QUANT``, and nothing else names it.

Only its bytes must be stated. What else it leaves out is not known, and the profiler goes on without: a quantization
without a ``Prior`` is predicted like plain weights, as a guess, and one without modules gets no random weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from profiler.devices.base import DeviceInfo
from profiler.models.layers import Role, Weight

DTYPE_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}


@dataclass(frozen=True, slots=True, eq=False)
class Prior:
    """What transformers makes of a device that was not calibrated, in shares and times of what plain weights take.

    The keys of a mapping are ``cpu``, ``repacking`` (a CPU for which bitsandbytes packs 4-bit weights anew,
    ``DeviceInfo.repacks``) and ``other``, which stands for every kind that is not named.
    """

    source: str  # where the figures come from, in words
    read: float = 1.0  # rate at which its bytes are read, as a share of the rate for plain weights
    unpack_bytes: Mapping[str, float] = field(default_factory=dict)
    """Bytes that unpacking writes and reads again in each pass, as times of the packed bytes."""
    of_fp32: Mapping[str, float] = field(default_factory=dict)
    """FLOP/s of products of many tokens, as a share of those in fp32; for a kind without an entry, as in the compute
    dtype."""


def _never(weight: Weight) -> bool:
    return False


@dataclass(frozen=True, slots=True, eq=False)
class Kernels:
    """How the weights of a quantization are multiplied. The defaults are those of one that nobody has timed."""

    prior: Prior | None = None
    same_as: str | None = None  # the quantization whose kernels these are, so that its calibration holds here too
    unpacks: bool = False  # a CPU unpacks a whole matrix into fp32 before it multiplies
    fused: Callable[[Weight], bool] = _never  # whether a device that repacks multiplies a weight without unpacking it
    cpu_scratch: Callable[[int, int, tuple[str, ...]], tuple[float, float, float]] | None = None
    """Bytes that products take for a moment on a CPU (low, usual, high), by tokens in the pass, bytes of the largest
    matrix in fp32, and the CPU's features."""
    in_graphs: bool = True  # a CUDA graph can hold them
    own: frozenset[str] = frozenset()  # kinds of devices on which our own decode step multiplies the stored weights
    own_caution: tuple[str, str] | None = None  # code and text of what a reader must know where it does


@dataclass(frozen=True, slots=True, eq=False)
class StoredForm:
    """How transformers stores a checkpoint in a quantization."""

    matches: Callable[[Mapping[str, Any]], bool]  # whether a ``quantization_config`` is of this quantization
    needed: frozenset[str] = frozenset()  # tensors of one weight, by what follows the name of its module,
    allowed: frozenset[str] = frozenset()  # and those that may lie beside them; both empty: they are not checked


class RandomValues(Protocol):
    """What ``PackedModules.weight`` fills tensors with; see ``backends/hf/synthetic.py``."""

    device: Any  # a torch.device
    dtype: Any  # a torch.dtype: of the activations
    std: float  # standard deviation of the model's weights
    seed: int
    patterns: dict[Any, Any]  # to keep what was quantized once and is laid over every weight

    def normal(self, tensor: Any, std: float, seed: int | None = None) -> None:
        """Fill a contiguous floating tensor with normal values in place; None: from another seed each time."""

    def tile(self, target: Any, pattern: Any, shift: int = 0) -> None:
        """Repeat ``pattern`` over a flat tensor of the same dtype in place, from another place for each weight: a
        multiple of ``shift`` elements."""


@dataclass(frozen=True, slots=True, eq=False)
class LayerBenchmark:
    """What `profile calibrate` times."""

    make: Callable[[int, int, Any], Any]  # a linear layer of input and output features, for inputs of a torch.dtype
    gpu_dtype: str | None = None  # of the inputs on a GPU; None: the device's default
    more_tokens: tuple[int, ...] = ()  # passes to time beside the usual ones


def _no_tensors(module: Any) -> Iterable[Any]:
    return ()


@dataclass(frozen=True, slots=True, eq=False)
class PackedModules:
    """The modules that hold packed weights in a loaded model. Functions import torch when they are called."""

    names: frozenset[str]  # of their classes
    tensors: Callable[[Any], Iterable[Any]] = _no_tensors  # that belong to one and are no parameter or buffer of it
    weight: Callable[[Any, RandomValues], Any] | None = None  # random values for one on ``meta``; None: none are made
    timed: LayerBenchmark | None = None  # None: it takes the kernels of another, or is not timed


@dataclass(frozen=True, slots=True)
class Quant:
    """How weights are stored. ``weight_bytes(weight, dtype, repacks)`` counts every stored byte, scales included.

    ``dtype`` is the compute dtype: what stays unquantized is stored in it. ``repacks``: whether the device is one for
    which bitsandbytes packs 4-bit weights anew in their first pass (``DeviceInfo.repacks``). ``load_config(dtype)``
    gives the transformers quantization config (``None`` for a plain dtype) and may import torch.
    """

    name: str
    weight_bytes: Callable[[Weight, str, bool], int]
    roles: frozenset[Role]  # what the scheme quantizes; empty for a plain dtype
    unavailable: Callable[[DeviceInfo], str | None]  # the reason, in words
    load_config: Callable[[str], Any]
    dtype: str | None = None  # the dtype it fixes; None: the device's default compute dtype
    kernels: Kernels = Kernels()
    stored: StoredForm | None = None  # None: no checkpoint comes in it
    modules: PackedModules | None = None

    @property
    def timed_as(self) -> str:
        """The quantization that `profile calibrate` times for it."""
        return self.kernels.same_as or self.name

    @property
    def unmade(self) -> str | None:
        """Why a model of random weights cannot be made in it, in words; ``None`` where it can."""
        if not self.roles or (self.modules is not None and self.modules.weight is not None):
            return None
        return f"there are no random weights in {self.name}: only a checkpoint can be measured in it"


def plain_bytes(weight: Weight, dtype: str, repacks: bool = False) -> int:
    """Bytes of a weight stored in the compute dtype."""
    return weight.parameters * DTYPE_BYTES[dtype]


def plain(name: str, own: frozenset[str] = frozenset()) -> Quant:
    """A plain dtype: everything is stored and computed in it. ``own`` as in ``Kernels``."""
    kernels = Kernels(own=own)
    return Quant(name, plain_bytes, frozenset(), lambda device: None, lambda dtype: None, dtype=name, kernels=kernels)
