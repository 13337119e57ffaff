"""How a checkpoint stores its weights: its quantization scheme, and the bytes of every weight by the headers.

transformers reads ``quantization_config``; MLX writes ``quantization``, and since 2025 also a copy under the other
name. Method names are those of transformers 5.23, ``quantizers/auto.py``.

A quantized weight consists of several tensors (codes, scales, zero points). They are counted together as the one
weight that transformers has, so that predictions read exactly the bytes in the file.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from profiler import registry
from profiler.models.geometry import Geometry
from profiler.models.layers import Weight
from profiler.models.safetensors import SafetensorsTensor, integers
from profiler.units import printable

KEYS = ("quantization_config", "compression_config", "quantization")
MLX = "mlx"
BITSANDBYTES = "bitsandbytes"
COMPRESSED = "compressed-tensors"
UNNAMED = "unnamed"
INT_FORMATS = {4: "int4", 8: "int8"}

PLAIN = {"F32": "fp32", "BF16": "bf16", "F16": "fp16", "F64": "fp64"}
# Prefixes of the decoder's layers in a checkpoint; ``model.`` is transformers' own. Vision and audio towers and
# multi-token-prediction layers have other prefixes and are not counted.
DECODER = ("model.language_model.", "language_model.model.", "language_model.", "model.", "")
LAYER = re.compile(r"layers\.(0|[1-9]\d{0,8})\.(.+)", re.DOTALL)  # "03" is another name, which nothing loads
EXPERT = re.compile(
    r"(?P<place>(?:.*\.)?experts)\.\d+\.(?P<part>gate_proj|up_proj|down_proj|gate_up_proj)\.(?P<rest>.+)"
)
# Tensors that bitsandbytes stores with a weight but does not keep in memory after loading. The offset of nested
# scales is in the first of them and becomes a separate tensor.
SERIALIZED = re.compile(r"\.quant_state\.bitsandbytes__|\.weight_format$")
NESTED_OFFSET_BYTES = 4
# Tensors of one quantized weight, by the part of the name after the module: required ones and optional ones.
# transformers would ignore any others and take the codes for values. Quantizations with a file in ``profiler/quants``
# state theirs there.
PARTS: Mapping[str, tuple[frozenset[str], frozenset[str]]] = {
    "awq": (frozenset({"qweight", "scales"}), frozenset({"qzeros"})),
    "gptq": (frozenset({"qweight", "scales"}), frozenset({"qzeros", "g_idx"})),
    "fp8": (frozenset({"weight", "weight_scale_inv"}), frozenset({"activation_scale"})),
    MLX: (frozenset({"weight", "scales"}), frozenset({"biases"})),
    COMPRESSED: (
        frozenset({"weight_scale"}),
        frozenset({"weight", "weight_packed", "weight_shape", "weight_zero_point", "weight_g_idx",
                   "weight_global_scale", "input_scale", "input_zero_point", "input_global_scale"}),
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class Scheme:
    """One quantization scheme, as stated in a config."""

    method: str  # awq, gptq, fp8 …, ``mlx``, or an unknown method's printable name
    name: str  # the quantization's name for -q
    rate: str | None  # the storage type whose speed applies; None: chosen by bytes per element
    config: Mapping[str, Any]

    @property
    def bits(self) -> int | None:
        """Bits per weight, if the config states one number."""
        return _whole(self.config.get("bits"))

    def number(self, name: str) -> int | None:
        """A positive integer of the scheme; ``None`` if it is absent, -1 or invalid."""
        return _whole(self.config.get(name))


def of(raw: Mapping[str, Any]) -> Scheme | None:
    """The scheme in a raw config, for the whole model or its text part; ``None`` if there is none."""
    inner = raw.get("text_config")
    for part in (raw, inner if isinstance(inner, dict) else {}):
        for key in KEYS:
            stated = part.get(key)
            if isinstance(stated, dict) and stated:
                return _scheme(stated)
    return None


def _scheme(stated: Mapping[str, Any]) -> Scheme:
    method, name = _method(stated), _of_ours(stated)
    if name is not None:
        return Scheme(method, name, name, stated)
    name, rate = _named(method, stated)
    return Scheme(method, name, rate, stated)


def _of_ours(stated: Mapping[str, Any]) -> str | None:
    """The quantization in ``profiler/quants`` that such a config means; ``None`` if there is none."""
    for name in registry.names("quants"):
        form = registry.load("quants", name, "quantization").QUANT.stored
        if form is not None and form.matches(stated):
            return name
    return None


def _method(stated: Mapping[str, Any]) -> str:
    """The method that transformers would choose: bitsandbytes' flags take precedence over ``quant_method``."""
    if stated.get("load_in_4bit") or stated.get("load_in_8bit"):
        return BITSANDBYTES
    method = stated.get("quant_method")
    if isinstance(method, str) and method:
        return printable(method, 40)
    if "bits" in stated and "group_size" in stated:
        return MLX
    return UNNAMED


def _named(method: str, stated: Mapping[str, Any]) -> tuple[str, str | None]:
    """The quantization's name, and the storage type whose speed applies."""
    bits = _whole(stated.get("bits"))
    if method == BITSANDBYTES:
        return "fp4-dq", "fp4"  # the one of its quantizations that nothing here makes
    if method in ("awq", "gptq"):
        return method if bits in (4, None) else f"{method}-{bits}bit", INT_FORMATS.get(bits or 4)
    if method == MLX:
        mode = stated.get("mode")
        if isinstance(mode, str) and mode != "affine":
            return f"mlx-{printable(mode, 20)}", None
        return f"mlx-{bits}bit", INT_FORMATS.get(bits or 0)
    return method, {"fp8": "fp8", "mxfp8": "fp8", "mxfp4": "nvfp4", "nvfp4": "nvfp4"}.get(method)


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**20 else None


@dataclass(frozen=True, slots=True)
class StoredWeight:
    """One weight of the decoder, and the bytes that it takes when loaded as it is stored."""

    weight: Weight
    layer: int | None  # None: outside the layers
    scheme: str  # a dtype (bf16), a storage type of the cost model (int4, nf4), or a GGUF type (q4_k)
    nbytes: int


@dataclass(frozen=True, slots=True, eq=False)
class Stored:
    """How a checkpoint is stored. Instances compare by identity, so that they can be part of a cache key."""

    quant: str  # its quantization: bf16, awq, q4_k_m …
    dtype: str | None  # of most unquantized weights: fp32, bf16, fp16; None: unknown, or GGUF
    packed: bool  # whether it is quantized
    weights: tuple[StoredWeight, ...]
    nbytes: int  # size in the file of all tensors that the decoder uses
    scheme: Scheme | None = None
    gguf: bool = False
    from_headers: bool = True  # False: derived from the scheme in the config
    missing: int = 0  # weights of the decoder that the file does not hold
    trouble: str | None = None  # why transformers would misread its weights
    uneven: str | None = None  # why transformers would apply the wrong scales

    @property
    def exact(self) -> bool:
        """Whether the bytes come from the headers for every weight of the model."""
        return self.from_headers and not self.missing


@dataclass(slots=True)
class _Group:
    """The tensors of one weight, by the part of the name after the module."""

    weight: Weight
    layer: int | None
    parts: dict[str, list[tuple[str, SafetensorsTensor]]]

    @property
    def tensors(self) -> list[tuple[str, SafetensorsTensor]]:
        return [pair for pairs in self.parts.values() for pair in pairs]


def from_safetensors(geometry: Geometry, tensors: Mapping[str, SafetensorsTensor], scheme: Scheme | None) -> Stored:
    """Assign the tensors of a folder's safetensors files to the weights of ``geometry``.

    Without a ``scheme``, codes and scales are not expected: ``account`` refuses such files.
    """
    groups = _grouped(geometry, tensors, packed=scheme is not None)
    weights, packed = [], []
    taken: Counter[str] = Counter()
    for group in groups:
        nbytes = sum(_runtime_bytes(name, tensor) for name, tensor in group.tensors)
        dtype = _plain_dtype(group)
        if dtype is None:
            packed.append(group)
            nbytes += NESTED_OFFSET_BYTES if "weight.nested_absmax" in group.parts else 0
        else:
            taken[dtype] += nbytes
        weights.append(StoredWeight(group.weight, group.layer, dtype or _rate(group.weight, nbytes, scheme), nbytes))
    plain = max(taken, key=lambda name: taken[name]) if taken else None
    return Stored(
        quant=scheme.name if scheme is not None else plain or "unknown",
        dtype=plain,
        packed=scheme is not None,
        weights=tuple(weights),
        nbytes=sum(tensor.end - tensor.begin for group in groups for _, tensor in group.tensors),
        scheme=scheme,
        missing=_expected(geometry) - len(weights),
        trouble=None if scheme is None else _trouble(packed, scheme),
        uneven=_uneven(packed, scheme),
    )


def _expected(geometry: Geometry) -> int:
    return len(geometry.outside) + sum(count * len(layer.weights) for layer, count in geometry.groups)


def _grouped(geometry: Geometry, tensors: Mapping[str, SafetensorsTensor], packed: bool) -> list[_Group]:
    """The decoder's tensors grouped by weight. ``packed``: a weight may consist of several tensors."""
    outside = _Names(geometry.outside)
    kinds = {layer: _Names(layer.weights) for layer, _ in geometry.groups}
    layers = [kinds[layer] for layer in geometry.layers]
    groups: dict[tuple[int | None, str], _Group] = {}
    for name, tensor in tensors.items():
        number, names, local = _place(name, outside, layers)
        found = names.find(local, packed) if names is not None else None
        if found is None:
            continue
        weight, part = found
        group = groups.setdefault((number, weight.name), _Group(weight, number, {}))
        group.parts.setdefault(part, []).append((name, tensor))
    return list(groups.values())


def _place(name: str, outside: _Names, layers: list[_Names]) -> tuple[int | None, _Names | None, str]:
    """The layer of a tensor, the names known in that layer, and the tensor's name within it."""
    if name.startswith(("lm_head.", "language_model.lm_head.", "model.lm_head.")):
        return None, outside, name[name.index("lm_head.") :]
    prefix = next(prefix for prefix in DECODER if name.startswith(prefix))
    local = name[len(prefix) :]
    match = LAYER.fullmatch(local)
    if match is None:
        return None, outside, f"model.{local}"
    number = int(match[1])
    return number, layers[number] if number < len(layers) else None, match[2]


class _Names:
    """The weights of a layer, or those outside the layers, by the possible names of their tensors."""

    def __init__(self, weights: Iterable[Weight]) -> None:
        self.exact = {weight.name: weight for weight in weights}
        self.modules = {
            name.removesuffix(".weight"): weight for name, weight in self.exact.items() if weight.role != "vector"
        }

    def find(self, name: str, packed: bool) -> tuple[Weight, str] | None:
        """The weight of a tensor, and the part of its name after the module. ``packed``: it may be one part of
        several.
        """
        if name in self.exact:
            return self.exact[name], "weight"
        match = EXPERT.fullmatch(name)
        if match is not None:
            fused = "down_proj" if match["part"] == "down_proj" else "gate_up_proj"
            weight = self.exact.get(f"{match['place']}.{fused}")
            return None if weight is None else (weight, match["rest"])
        module, _, last = name.rpartition(".")
        if not packed:
            return None
        if last == "bias":  # of a module without a bias in the model
            return None
        while module:
            if module in self.modules:
                return self.modules[module], name[len(module) + 1 :]
            module, _, _ = module.rpartition(".")
        for module, weight in self.modules.items():  # fused experts are a parameter, not a module
            if weight.role == "experts" and name.startswith(f"{module}_"):
                return weight, name[len(module) :]
        return None


def _plain_dtype(group: _Group) -> str | None:
    """The dtype of a weight that is stored as values; ``None`` if it is stored as codes.

    Experts stored one by one may have different dtypes; the one with most bytes counts.
    """
    sizes: Counter[str] = Counter()
    for _, tensor in group.tensors:
        sizes[tensor.dtype] += tensor.nbytes
    if set(group.parts) != {"weight"} or not sizes.keys() <= PLAIN.keys():
        return None
    return PLAIN[sizes.most_common(1)[0][0]]


def _runtime_bytes(name: str, tensor: SafetensorsTensor) -> int:
    return 0 if SERIALIZED.search(name) else tensor.end - tensor.begin


def _rate(weight: Weight, nbytes: int, scheme: Scheme | None) -> str:
    """The storage type whose speed applies to a packed weight."""
    if scheme is not None and scheme.rate is not None:
        return scheme.rate
    return "int4" if nbytes < 0.8 * weight.parameters else "fp8"


def _trouble(packed: list[_Group], scheme: Scheme) -> str | None:
    """Why transformers would misread the checkpoint: tensors that contradict the ``scheme``, or that it ignores."""
    if not packed:
        return f"config.json says {scheme.method}, but no tensor of the decoder is quantized"
    kind = scheme.method
    if kind == BITSANDBYTES:
        contradiction = _against_bitsandbytes(packed, scheme)
        if contradiction is not None:
            return contradiction
    if kind == "fp8" and (contradiction := _against_blocks(packed, scheme)) is not None:
        return contradiction
    if kind == COMPRESSED and (contradiction := _against_shapes(packed)) is not None:
        return contradiction
    rule = PARTS.get(kind) or _parts_of_ours(scheme)
    for group in packed if rule else ():
        assert rule is not None
        needed, allowed = rule
        parts = {part for part in group.parts if not SERIALIZED.search(f".{part}")}
        if group.weight.role != "experts" and not (needed <= parts <= needed | allowed):
            wrong = sorted(parts - needed - allowed) or sorted(needed - parts)
            word = "has the part" if parts - needed - allowed else "lacks the part"
            name = printable(group.tensors[0][0], 80)
            return f"{name} {word} {printable(wrong[0], 40)}, which is not how transformers reads {scheme.method}"
    return None


def _parts_of_ours(scheme: Scheme) -> tuple[frozenset[str], frozenset[str]] | None:
    """The ``PARTS`` of a quantization in ``profiler/quants``."""
    if scheme.rate not in registry.names("quants"):
        return None
    form = registry.load("quants", scheme.rate, "quantization").QUANT.stored
    return (form.needed, form.allowed) if form is not None and form.needed else None


def _against_bitsandbytes(packed: list[_Group], scheme: Scheme) -> str | None:
    """A contradiction between the config of a bitsandbytes checkpoint and its tensors.

    transformers takes the loading method from the config, but the meaning of the codes from the file.
    """
    if scheme.config.get("load_in_4bit") and scheme.config.get("load_in_8bit"):
        return "config.json has both load_in_4bit and load_in_8bit"
    if scheme.config.get("load_in_4bit"):
        held = {_four_bit_name(group) for group in packed} - {None}
        if held - {scheme.name}:
            fields = "bnb_4bit_quant_type, bnb_4bit_use_double_quant"
            names = " and ".join(sorted(map(str, held)))
            return f"config.json says {scheme.name} ({fields}), but the file holds {names}"
    skipped = scheme.config.get("llm_int8_skip_modules")
    words = [word for word in skipped if isinstance(word, str) and word] if isinstance(skipped, list) else []
    for group in packed:
        module = next((name.removesuffix(".weight") for name, _ in group.parts.get("weight", ())), "")
        for word in words:
            if module and (module.startswith(word) or module.endswith(word)):  # as transformers compares them
                return (
                    f"config.json says that {printable(word, 60)} is not quantized (llm_int8_skip_modules), but "
                    f"{printable(module, 80)} is"
                )
    return None


def _four_bit_name(group: _Group) -> str | None:
    """``nf4``, ``fp4-dq``: the quantization that the tensors of a weight state; ``None`` if they do not."""
    state = next((part for part in group.parts if "quant_state.bitsandbytes__" in part), None)
    if state is None:
        return None
    return state.rpartition("__")[2] + ("-dq" if "weight.nested_absmax" in group.parts else "")


def _blocks(packed: list[_Group], scheme: Scheme) -> Iterator[tuple[str, list[tuple[int, int, int]]]]:
    """Each fp8 tensor with a grid of scales; for its rows and its columns: size, number of scales, block length."""
    block = scheme.config.get("weight_block_size", [128, 128])
    if (
        not isinstance(block, list)
        or len(block) != 2
        or not all(type(length) is int and length > 0 for length in block)
    ):
        return  # one scale per weight
    for group in packed:
        codes, scales = group.parts.get("weight", []), group.parts.get("weight_scale_inv", [])
        if len(codes) == len(scales):
            for (name, code), (_, scale) in zip(codes, scales, strict=True):
                if len(scale.shape) >= 2:
                    yield name, list(zip(code.shape[-2:], scale.shape[-2:], block, strict=False))


def _against_blocks(packed: list[_Group], scheme: Scheme) -> str | None:
    """A mismatch between the number of scales and the block size in the config."""
    for name, axes in _blocks(packed, scheme):
        grid, needed = [scales for _, scales, _ in axes], [-(-size // length) for size, _, length in axes]
        if grid != needed and any(scales > 1 for scales in grid):
            stated = _times(length for _, _, length in axes)
            return (
                f"{printable(name, 80)} has {_times(grid)} scales, but its config's weight_block_size of {stated} "
                f"needs {_times(needed)}"
            )
    return None


def _against_shapes(packed: list[_Group]) -> str | None:
    """A packed weight that states another shape than the model's: its codes would be unpacked to wrong positions."""
    for group in packed:
        for name, tensor in group.parts.get("weight_shape", []) if group.weight.role != "experts" else []:
            stated = integers(tensor)
            if stated is not None and stated != group.weight.shape:
                shape = _times(group.weight.shape)
                return f"{printable(name, 80)} says {_times(stated)}, but the model's weight is {shape}"
    return None


def _times(sizes: Iterable[int]) -> str:
    return " × ".join(printable(size, 10) for size in sizes)


def _uneven(packed: list[_Group], scheme: Scheme | None) -> str | None:
    """Whether ``Fp8Dequantize`` of transformers 5.23 would be wrong: it assumes blocks of equal length, also the
    last.
    """
    if scheme is None or scheme.method != "fp8":
        return None
    for name, axes in _blocks(packed, scheme):
        if any(scales > 1 and size != scales * length for size, scales, length in axes):
            return f"{printable(name, 80)} does not divide into blocks of {_times(length for _, _, length in axes)}"
    return None
