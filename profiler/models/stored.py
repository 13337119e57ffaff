"""How a checkpoint stores its weights: their bytes by the headers, and whether its scheme explains the tensors.

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
from profiler.models.account import renamed
from profiler.models.geometry import EMBEDDING, HEAD, Geometry
from profiler.models.layers import Weight
from profiler.models.safetensors import SafetensorsTensor, integers
from profiler.models.scheme import BITSANDBYTES, COMPRESSED, MLX, Scheme
from profiler.units import printable

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

NOTHING: tuple[frozenset[str], frozenset[str]] = (frozenset(), frozenset())
CODES: Mapping[str, frozenset[str]] = {  # number types of codes that keep the shape of their weight
    "fp8": frozenset({"F8_E4M3", "F8_E5M2"}),
}


@dataclass(frozen=True, slots=True)
class StoredWeight:
    """One weight of the decoder, and the bytes that it takes when loaded as it is stored."""

    weight: Weight
    layer: int | None  # None: outside the layers
    scheme: str  # a dtype (bf16), a storage type of the cost model (int4, nf4), or a GGUF type (q4_k)
    nbytes: int

    @property
    def path(self) -> str:
        """Its name in the text model."""
        return _path(self.layer, self.weight)


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
    weights: list[StoredWeight] = []
    packed: list[_Group] = []
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
    missing = _missing(geometry, weights)
    return Stored(
        quant=scheme.name if scheme is not None else plain or "unknown",
        dtype=plain,
        packed=scheme is not None,
        weights=tuple(weights),
        nbytes=sum(tensor.end - tensor.begin for group in groups for _, tensor in group.tensors),
        scheme=scheme,
        missing=len(missing),
        trouble=None if scheme is None else _trouble(groups, packed, missing, scheme),
        uneven=_uneven(packed, scheme),
    )


def _missing(geometry: Geometry, found: Iterable[StoredWeight]) -> list[str]:
    """Weights of the model for which there is no tensor."""
    held = {(each.layer, each.weight.name) for each in found}
    places: list[tuple[int | None, Weight]] = [(None, weight) for weight in geometry.outside]
    places += [(number, weight) for number, layer in enumerate(geometry.layers) for weight in layer.weights]
    return [_path(number, weight) for number, weight in places if (number, weight.name) not in held]


def _path(layer: int | None, weight: Weight) -> str:
    """The name of a weight in the text model."""
    return weight.name if layer is None else f"model.layers.{layer}.{weight.name}"


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
    if geometry.tied and (None, EMBEDDING) not in groups:  # transformers then ties the other way round
        heads = [pair for pair in tensors.items() if _place(pair[0], outside, layers)[2] == HEAD]
        if heads:
            groups[None, EMBEDDING] = _Group(outside.exact[EMBEDDING], None, {"weight": heads})
    return list(groups.values())


def _place(name: str, outside: _Names, layers: list[_Names]) -> tuple[int | None, _Names | None, str]:
    """The layer of a tensor, the names known in that layer, and the tensor's name within it."""
    if name.startswith(("lm_head.", "language_model.lm_head.", "model.lm_head.")):
        return None, outside, name[name.index("lm_head.") :]
    prefix = next(prefix for prefix in DECODER if name.startswith(prefix))
    local = renamed(name[len(prefix) :])
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


def _trouble(groups: list[_Group], packed: list[_Group], missing: list[str], scheme: Scheme) -> str | None:
    """Why transformers would misread the checkpoint: tensors that contradict the ``scheme``, or that it ignores."""
    if not packed:
        return f"config.json says {scheme.method}, but no tensor of the decoder is quantized"
    if missing:
        which = f"{len(missing)} weights of the model are" if len(missing) > 1 else "a weight of the model is"
        return f"{which} not in the file: {printable(missing[0], 80)}{' …' if len(missing) > 1 else ''}"
    kind = scheme.method
    if kind == BITSANDBYTES:
        contradiction = _against_bitsandbytes(groups, packed, scheme)
        if contradiction is not None:
            return contradiction
    if kind == "fp8" and (contradiction := _against_blocks(packed, scheme)) is not None:
        return contradiction
    if kind == COMPRESSED and (contradiction := _against_shapes(packed)) is not None:
        return contradiction
    form = None if kind in PARTS else _form_of_ours(scheme)
    needed, allowed = PARTS.get(kind, (form.needed, form.allowed) if form is not None else NOTHING)
    for group in packed if needed else ():
        parts = {part for part in group.parts if not SERIALIZED.search(f".{part}")}
        if group.weight.role != "experts" and not (needed <= parts <= needed | allowed):
            wrong = sorted(parts - needed - allowed) or sorted(needed - parts)
            word = "has the part" if parts - needed - allowed else "lacks the part"
            name = printable(group.tensors[0][0], 80)
            return f"{name} {word} {printable(wrong[0], 40)}, which is not how transformers reads {scheme.method}"
    return _against_sizes(packed, form, scheme)


def _against_sizes(packed: list[_Group], form: Any, scheme: Scheme) -> str | None:
    """The first weight whose codes differ from its values in number, shape or type, as a message.

    ``form`` is the ``StoredForm`` of a quantization in ``profiler/quants``, if it is one of those.
    """
    kind, own_bits = scheme.method, None if form is None else form.bits
    bits = own_bits or scheme.bits or 4
    uniform = own_bits or (kind in ("awq", "gptq") and bits in (2, 4, 8) and not scheme.config.get("dynamic"))
    types: frozenset[str] = CODES.get(kind, frozenset()) if form is None else form.types
    for group in packed:
        if group.weight.role == "experts":  # fused, or one by one
            continue
        for part in ("weight", "qweight"):
            for name, tensor in group.parts.get(part, []):
                if (types or kind == COMPRESSED) and tensor.shape != group.weight.shape:
                    shape = _times(group.weight.shape)
                    return f"{printable(name, 80)} is {_times(tensor.shape)}, and the model's weight is {shape}"
                if types and tensor.dtype not in types:
                    return (
                        f"{printable(name, 80)} is {tensor.dtype}, which is not how transformers reads {scheme.name}"
                    )
                if uniform and tensor.nbytes != -(-group.weight.parameters * bits // 8):
                    held, needed = f"{8 * tensor.nbytes // bits:,} codes", f"{group.weight.parameters:,} values"
                    return f"{printable(name, 80)} has {held} of {bits} bits, and the model's weight has {needed}"
        for name, scales in group.parts.get("SCB", []):
            if scales.shape != group.weight.shape[:1]:
                rows = group.weight.shape[0]
                return f"{printable(name, 80)} has {_times(scales.shape)} scales, and the weight has {rows} rows"
    return None


def _form_of_ours(scheme: Scheme) -> Any:
    """The ``StoredForm`` of the quantization in ``profiler/quants`` that is read like ``scheme``, or ``None``."""
    known = scheme.rate in registry.names("quants")
    return registry.load("quants", scheme.rate or "", "quantization").QUANT.stored if known else None


def _against_bitsandbytes(groups: list[_Group], packed: list[_Group], scheme: Scheme) -> str | None:
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
    coded = {id(group) for group in packed}
    for group in groups:
        module = _path(group.layer, group.weight).removesuffix(".weight")
        if id(group) in coded and scheme.leaves_out(module):
            return f"config.json says that {printable(module, 80)} is not quantized ({scheme.left_out_by}), but it is"
        if id(group) not in coded and group.weight.role == "linear" and not scheme.leaves_out(module):
            return f"{printable(module, 80)} is not quantized, but config.json does not say so ({scheme.left_out_by})"
    head = HEAD.removesuffix(".weight")  # left out by default, but not once there is a list
    head_coded = any(group.weight.name == HEAD and id(group) in coded for group in groups)
    if scheme.left_out is not None and not head_coded and not scheme.leaves_out(head):
        return f"{head} is not quantized, but config.json does not say so ({scheme.left_out_by})"
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
