"""Checkpoints that are already quantized: whether transformers can run or unpack them, and their bytes by config.

transformers runs a checkpoint as it is stored, or unpacks it into a plain dtype while loading it, or does neither.
The rules follow transformers 5.23 (``quantizers/``).
"""

from __future__ import annotations

import importlib.util
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from profiler import quants
from profiler.devices.base import DeviceInfo
from profiler.errors import ProfileError
from profiler.models.geometry import Geometry
from profiler.models.layers import Weight
from profiler.models.scheme import BITSANDBYTES, COMPRESSED, MLX, Scheme
from profiler.models.stored import Stored, StoredWeight
from profiler.quants import bitsandbytes
from profiler.quants.base import DTYPE_BYTES, Quant, plain_bytes

# The packages that transformers needs to run a checkpoint as it is stored.
LIBRARIES: Mapping[str, tuple[str, ...]] = {
    BITSANDBYTES: ("bitsandbytes",),
    "awq": ("gptqmodel",),
    "gptq": ("optimum", "gptqmodel"),
    "fp8": ("kernels",),
}
NEVER: Mapping[str, str] = {  # what transformers never runs as it is stored, and why
    COMPRESSED: "transformers unpacks compressed-tensors in the first pass",
    "mxfp4": "transformers keeps MXFP4 in the experts of gpt-oss only, with kernels that profile does not load",
    MLX: "transformers does not read MLX checkpoints; mlx-lm runs them",
}
FP8_CAPABILITY = 89  # compute capability × 10
CHECKPOINT_DTYPES = {
    "bfloat16": "bf16",
    "float16": "fp16",
    "half": "fp16",
    "float32": "fp32",
    "float": "fp32",
    "float64": "fp64",
    "double": "fp64",
}
PLAIN_EXPRESSION = re.compile(r"re:(?:\.\*|[\w.^$-]|\\\.)*")  # a regular expression that is quick to match,
MAX_WILDCARDS = 4  # if it has no more wildcards than this
MAX_SKIPPED = 4096  # modules that a config may exclude one by one, since each is compared with every weight
SCALE_BYTES = 2  # of AWQ, GPTQ, MLX and most of compressed-tensors


def not_as_stored(stored: Stored, device: DeviceInfo) -> str | None:
    """Why transformers cannot run the checkpoint as it is stored on ``device``, in words; ``None`` if it can."""
    scheme = stored.scheme
    if scheme is None:
        return None
    if (ours := quant_of_scheme(scheme)) is not None:
        return ours.unavailable(device)
    never = never_as_stored(stored, _multiplies_fp8(device))
    if never is not None:
        return never
    if scheme.method == BITSANDBYTES:
        return bitsandbytes.missing(device)
    return _missing(*LIBRARIES[scheme.method])


def never_as_stored(stored: Stored, multiplies_fp8: bool) -> str | None:
    """Why transformers cannot run the checkpoint as it is stored, whatever is installed; ``None`` if it can.

    ``multiplies_fp8``: whether the device has units for fp8.
    """
    if stored.scheme is None or quant_of_scheme(stored.scheme) is not None:
        return None
    method = stored.scheme.method
    if method in NEVER:
        return NEVER[method]
    if method == "fp8" and not multiplies_fp8:
        return "transformers multiplies fp8 on GPUs of compute capability 8.9 or newer only"
    return None if method in LIBRARIES else "it is not known how transformers loads this format"


def not_unpacked(stored: Stored) -> str | None:
    """Why transformers cannot unpack the checkpoint into a plain dtype, in words; ``None`` if it can."""
    method = stored.scheme.method if stored.scheme is not None else ""
    if method == "fp8":
        return f"transformers would unpack it wrongly: {stored.uneven}" if stored.uneven else None
    if method == COMPRESSED:
        return _missing("compressed_tensors")
    return "transformers cannot unpack it"


def _missing(*modules: str) -> str | None:
    absent = [name.replace("_", "-") for name in modules if not _installed(name)]
    if not absent:
        return None
    verb = "is" if len(absent) == 1 else "are"
    return f"{' and '.join(absent)} {verb} not installed: pip install {' '.join(absent)}"


def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _multiplies_fp8(device: DeviceInfo) -> bool:
    known = [int(feature[3:]) for feature in device.features if feature[:3] == "sm_" and feature[3:].isdigit()]
    return max(known, default=0) >= FP8_CAPABILITY


def quant_of_scheme(scheme: Scheme) -> Quant | None:
    """The quantization in ``profiler/quants`` that a scheme stands for; ``None`` for any other scheme."""
    found = quants.find(scheme.name)
    return found if found and found.stored and found.stored.matches(scheme.config) else None


def quant_of(stored: Stored) -> Quant:
    """The quantization of a checkpoint that runs as it is stored, so that nothing is quantized while loading."""
    ours = quants.find(stored.quant)
    return replace(ours, dtype=stored.dtype) if ours is not None else _foreign(stored.quant, stored.dtype)


def of_gguf(name: str) -> Quant:
    """The quantization of a GGUF file that would be made with ``name``, as ``quant_of`` gives it for a real one."""
    ours = quants.find(name)
    return replace(ours, dtype=None) if ours is not None else _foreign(name, None)


def _foreign(name: str, dtype: str | None) -> Quant:
    """A quantization of other programs. We count its bytes from the tensors."""
    return Quant(name, plain_bytes, frozenset(), lambda device: None, lambda dtype: None, dtype=dtype or "bf16")


def from_config(geometry: Geometry, scheme: Scheme, raw: Mapping[str, Any]) -> Stored | None:
    """The bytes of a checkpoint's weights according to the scheme that its config states; ``None`` if the config does
    not say enough.
    """
    stated = stated_dtype(raw)
    dtype = stated if stated is not None and stated in DTYPE_BYTES else "bf16"
    weights = []
    places: list[tuple[int | None, Weight]] = [(None, weight) for weight in geometry.outside]
    places += [(number, weight) for number, layer in enumerate(geometry.layers) for weight in layer.weights]
    try:
        rule = (_Ours if scheme.method not in RULES and quant_of_scheme(scheme) else RULES[scheme.method])(scheme)
    except (KeyError, ProfileError):
        return None
    for number, weight in places:
        module = weight.name.removesuffix(".weight")
        path = module if number is None else f"model.layers.{number}.{module}"
        packed = rule(weight, path)
        nbytes = plain_bytes(weight, dtype) if packed is None else packed
        rate = dtype if packed is None else scheme.rate or ("int4" if nbytes < 0.8 * weight.parameters else "fp8")
        weights.append(StoredWeight(weight, number, rate, nbytes))
    return Stored(
        quant=scheme.name,
        dtype=dtype,
        packed=True,
        weights=tuple(weights),
        nbytes=sum(weight.nbytes for weight in weights),
        scheme=scheme,
        from_headers=False,
    )


def stated_dtype(raw: Mapping[str, Any]) -> str | None:
    """The dtype of the weights according to a config; ``None`` if it names no float dtype.

    ``dtype`` counts before ``torch_dtype``, its older name, as in transformers.
    """
    inner = raw.get("text_config")
    for part in (raw, inner if isinstance(inner, dict) else {}):
        for key in ("dtype", "torch_dtype"):
            stated = part.get(key)
            if isinstance(stated, str) and stated in CHECKPOINT_DTYPES:
                return CHECKPOINT_DTYPES[stated]
    return None


class _Rule:
    """Counts the bytes of a quantized weight. ``None`` for one that stays in the checkpoint's dtype."""

    roles = frozenset({"linear", "experts"})

    def __init__(self, scheme: Scheme) -> None:
        self.scheme = scheme
        self.skipped = scheme.left_out.words if scheme.left_out is not None else ()
        if len(self.skipped) > MAX_SKIPPED:
            raise ProfileError(f"{len(self.skipped):,} modules that are not quantized")

    def __call__(self, weight: Weight, path: str) -> int | None:
        return None if self.scheme.leaves_out(path) else self.weight_bytes(weight)

    def weight_bytes(self, weight: Weight) -> int | None:
        """Bytes of a weight by its role and shape, whatever its name."""
        if weight.role not in self.roles or weight.expert_bias:
            return None
        matrices = math.prod(weight.shape[:-2])
        outputs, inputs = weight.shape[-2:]
        return int(matrices * self.matrix_bytes(outputs, inputs))

    def matrix_bytes(self, outputs: int, inputs: int) -> int:
        """Bytes of one quantized matrix, including its scales and other tensors."""
        raise NotImplementedError

    def groups(self, inputs: int, usual: int) -> int:
        """Number of groups of inputs that share a scale. A group size of -1 means one group."""
        size = self.scheme.config.get("group_size", usual)
        return 1 if size == -1 else -(-inputs // (self.scheme.number("group_size") or usual))


class _Awq(_Rule):
    """Values of several outputs in words of 32 bits, with scales and zero points for each group of inputs."""

    def matrix_bytes(self, outputs: int, inputs: int) -> int:
        bits, groups = self.scheme.bits or 4, self.groups(inputs, 128)
        words = -(-outputs * bits // 32)
        return 4 * inputs * words + groups * (4 * words + SCALE_BYTES * outputs)


class _Gptq(_Rule):
    """Values of several inputs in words of 32 bits, with scales and zero points for each group, and the group of each
    input.
    """

    def __init__(self, scheme: Scheme) -> None:
        super().__init__(scheme)
        if scheme.config.get("dynamic"):
            raise ProfileError("gptq with rules for single modules")

    def matrix_bytes(self, outputs: int, inputs: int) -> int:
        bits, groups = self.scheme.bits or 4, self.groups(inputs, 128)
        zeros = groups * 4 * -(-outputs * bits // 32)
        return 4 * -(-inputs * bits // 32) * outputs + zeros + SCALE_BYTES * groups * outputs + 4 * inputs


class _Fp8(_Rule):
    """One byte per weight, and a scale of 32 bits (8 with ue8m0) per block, or one for the whole matrix."""

    def matrix_bytes(self, outputs: int, inputs: int) -> int:
        block = self.scheme.config.get("weight_block_size", [128, 128])
        scale = 1 if self.scheme.config.get("scale_fmt") == "ue8m0" else 4
        if not isinstance(block, list) or len(block) != 2 or not all(isinstance(n, int) and n > 0 for n in block):
            return outputs * inputs + 4
        return int(outputs * inputs + scale * -(-outputs // block[0]) * -(-inputs // block[1]))


class _Mxfp4(_Rule):
    """The experts of gpt-oss: 4 bits, and an exponent of 8 bits for every 32 inputs. Their matrices are stored
    ``[experts, in, out]``, and inputs always fill the groups.
    """

    roles = frozenset({"experts"})

    def matrix_bytes(self, outputs: int, inputs: int) -> int:
        return outputs * inputs // 2 + outputs * inputs // 32


class _Ours(_Rule):
    """A quantization in ``profiler/quants``. The config may exclude modules by name."""

    def __init__(self, scheme: Scheme) -> None:
        super().__init__(scheme)
        found = quants.find({"fp4-dq": "nf4-dq"}.get(scheme.name, scheme.name))  # these have the same size
        if found is None:
            raise ProfileError(f"there is no rule for {scheme.name}")
        self.ours = found

    def weight_bytes(self, weight: Weight) -> int | None:
        return self.ours.weight_bytes(weight, "bf16", False) if weight.role in self.ours.roles else None


class _Mlx(_Rule):
    """Quantizes the embedding and the output head too. Each group has a scale and a bias of 16 bits; the config may
    give a module its own number of bits and group size.
    """

    roles = frozenset({"linear", "experts", "embedding", "head"})

    def __init__(self, scheme: Scheme) -> None:
        super().__init__(scheme)
        if scheme.config.get("mode", "affine") != "affine" or scheme.bits is None or not scheme.number("group_size"):
            raise ProfileError("an MLX mode without a rule")

    def __call__(self, weight: Weight, path: str) -> int | None:
        own = self.scheme.config.get(path)
        if weight.role not in self.roles or weight.expert_bias or own is False:
            return None
        bits, group = self.scheme.bits or 4, self.scheme.number("group_size") or 64
        if isinstance(own, dict):
            bits, group = own.get("bits", bits), own.get("group_size", group)
        if not (isinstance(bits, int) and isinstance(group, int) and group > 0):
            return None
        rows = weight.parameters // weight.shape[-1]
        return rows * (4 * -(-weight.shape[-1] * bits // 32) + 2 * SCALE_BYTES * -(-weight.shape[-1] // group))


class _Compressed(_Rule):
    """A config with a single group of modules, ``Linear``, which means all of them, including the output head."""

    roles = frozenset({"linear", "experts", "head"})

    def __init__(self, scheme: Scheme) -> None:
        super().__init__(scheme)
        groups = scheme.config.get("config_groups")
        stated = list(groups.values()) if isinstance(groups, dict) else []
        if len(stated) != 1 or not isinstance(stated[0], dict) or not isinstance(stated[0].get("weights"), dict):
            raise ProfileError("compressed-tensors with several groups")
        targets = stated[0].get("targets")
        self.weights: Mapping[str, Any] = stated[0]["weights"]
        if self.weights.get("num_bits") not in (4, 8) or not isinstance(targets, list) or "Linear" not in targets:
            raise ProfileError("compressed-tensors of an unusual kind")
        if not all(_bounded(word) for word in self.skipped):
            raise ProfileError("compressed-tensors of an unusual kind")
        self.names = {word for word in self.skipped if not word.startswith("re:")}
        self.patterns = [re.compile(word[3:]) for word in self.skipped if word.startswith("re:")]

    def __call__(self, weight: Weight, path: str) -> int | None:
        if path in self.names or any(pattern.match(path) for pattern in self.patterns):
            return None
        return self.weight_bytes(weight)

    def matrix_bytes(self, outputs: int, inputs: int) -> int:
        bits, floats = self.weights["num_bits"], self.weights.get("type") == "float"
        size = self.weights.get("group_size")
        groups = -(-inputs // size) if isinstance(size, int) and size > 0 else 1
        scale = (1 if floats and bits == 4 else SCALE_BYTES) * outputs * groups
        if self.weights.get("strategy") == "tensor":
            scale = SCALE_BYTES
        shape = 16 if bits == 4 and not floats else 0
        zeros = 0 if self.weights.get("symmetric", True) else 4 * -(-outputs * bits // 32) * groups
        return int(-(-inputs * bits // 8) * outputs + scale + shape + zeros)


def _bounded(word: str) -> bool:
    """Whether an expression in a config is a plain name, or simple enough to be matched quickly."""
    return not word.startswith("re:") or (
        PLAIN_EXPRESSION.fullmatch(word) is not None and word.count(".*") <= MAX_WILDCARDS
    )


RULES: Mapping[str, type[_Rule]] = {
    "awq": _Awq,
    "gptq": _Gptq,
    "fp8": _Fp8,
    "mxfp4": _Mxfp4,
    BITSANDBYTES: _Ours,
    COMPRESSED: _Compressed,
    MLX: _Mlx,
}
