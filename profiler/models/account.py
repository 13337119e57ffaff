"""Compares the tensors of a checkpoint with the weights of the model that its config describes.

Nothing is loaded: names, shapes, number types and bytes come from headers. A checkpoint is refused if a weight is
missing, has another shape, or is stored as codes without a quantization that explains them. Tensors that the model
does not use are listed by name and size.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from profiler.case import UNUSED, ModelNote
from profiler.errors import ProfileError
from profiler.models.geometry import EMBEDDING, HEAD, Geometry
from profiler.models.layers import Weight
from profiler.units import bytes_text, printable

# Maps the names in a multimodal checkpoint to those in the text model. The loader passes this table to transformers,
# which has it built in only for Qwen 3.5.
TEXT_TOWER = {
    r"^model\.language_model\.": "model.",
    r"^language_model\.model\.": "model.",
    r"^language_model\.lm_head\.": "lm_head.",
}
# Names of Mixtral's checkpoints, which transformers maps to its own while loading
MIXTRAL = re.compile(r"(.*\blayers\.\d+\.)block_sparse_moe\.(?:(gate|experts\.\d+)\.)(w[123]\.)?(.+)")
PROJECTIONS = {"w1.": "gate_proj.", "w2.": "down_proj.", "w3.": "up_proj.", None: ""}
LAYER = "model.layers."
BASE = "model."  # transformers adds it to the names of a checkpoint that was saved without its head
CODES = frozenset(  # number types of safetensors that are codes, meaningless without a quantization
    [
        *("BOOL", "U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64", "C64"),
        *("F8_E4M3", "F8_E5M2", "F8_E8M0", "F6_E2M3", "F6_E3M2", "F4"),
    ]
)
NEVER_MULTIPLIED = frozenset({"F64", "Q8_1", "Q8_K"})  # ggml types for intermediate results, or unused
VALUES = frozenset({"F64", "F32", "BF16", "F16"})
ADD_SCHEME = "Put the quantization_config that belongs to the checkpoint into its config.json."
SCALE = re.compile(  # of AWQ, GPTQ, compressed-tensors, fp8, bitsandbytes, MLX
    r"(.+?)[._](?:weight_)?(?:scales?|scale_inv|zero_point|qzeros|zeros|biases|absmax|SCB|g_idx|packed|weight\.absmax)"
)
EXPERT = re.compile(  # transformers stacks them on loading
    r"(?P<place>.*\bmlp\.experts)\.(?P<number>0|[1-9]\d{0,6})\.(?P<part>gate|up|down)_proj\.(?P<rest>.+)"
)
WRAPPERS = (  # part of a name → the wrapper around the saved model, and how to save without it
    ("_orig_mod.", "torch.compile", "Save model._orig_mod instead."),
    ("base_model.model.", "PEFT", "Save model.merge_and_unload() instead."),
    ("_fsdp_wrapped_module.", "FSDP", "Save its full state dict instead."),
    ("_checkpoint_wrapped_module.", "activation checkpointing", "Save the model that it wraps instead."),
    ("module.", "DataParallel", "Save model.module instead."),
)
PARTS = (  # prefix → description of tensors that may be left out
    (re.compile(r"(model\.)?(visual|vision_\w+|vision|image_newline|embed_vision)\b"), "vision tower"),
    (re.compile(r"(model\.)?(audio_\w+|embed_audio)\b"), "audio tower"),
    (re.compile(r"(model\.)?multi_modal_projector\b"), "projector of the towers"),
    (re.compile(r"mtp\b|blk\.\d+\.nextn\b"), "multi-token prediction"),
    (re.compile(r".*\brotary_emb\.inv_freq$"), "rotary frequencies, which are computed"),
    (re.compile(r".*\b(lora_\w+|adapters?|ia3_l)\."), "an adapter, which is not applied"),
)
NUMBERED = re.compile(r"(?:model\.)?layers\.(\d{1,9})\.")
SHARED = re.compile(r"model\.layers\.(\d{1,9})\.self_attn\.[kv]_(proj|norm)\.")
ROPE_FACTORS = "rope_f"  # rope_freqs, rope_factors_long: divisors of rotary frequencies in a GGUF file
COMPUTED = "rotary factors, which transformers computes itself"
NOT_APPLIED = "rotary factors, which are not applied: this changes the tokens but not the speed"
OUTPUT_BIAS = (".o_proj.bias", ".attn_output.bias")
OTHER = "not part of this model"


@dataclass(frozen=True, slots=True)
class Description:
    """How messages name the description of a file's model."""

    place: str
    layers: str  # the field with the number of layers
    hint: str
    own_name: Callable[[str], str] = str  # a weight's name in transformers → its name in the file


CONFIG = Description("config.json", "num_hidden_layers", "The config and the weights belong to different models.")
SHOWN, KEPT = 2, 32  # names in a message, and in a row


@dataclass(frozen=True, slots=True)
class FileTensor:
    """One tensor of a header. ``name`` is the file's name, ``target`` the one in transformers' text model."""

    name: str
    target: str | None  # None: the format has no mapping for the name
    shape: tuple[int, ...]
    dtype: str  # F32, BF16, Q4_K …
    nbytes: int

    @property
    def parameters(self) -> int:
        """Number of elements."""
        count = 1
        for size in self.shape:
            count *= size
        return count


@dataclass(frozen=True, slots=True)
class Left:
    """Tensors of the file that the model does not use, all for one reason."""

    why: str
    names: tuple[str, ...]
    parameters: int
    nbytes: int

    def __str__(self) -> str:
        count = len(self.names)
        shown = ", ".join(printable(name, 60) for name in self.names[:SHOWN]) + (" …" if count > SHOWN else "")
        return f"{self.why}: {count} tensor{'s' * (count != 1)}, {bytes_text(self.nbytes)} ({shown})"


@dataclass(frozen=True, slots=True)
class Account:
    """What a checkpoint holds, and how much of it the model uses."""

    tensors: int  # in the file
    nbytes: int
    parameters: int  # that the model uses
    dtypes: Mapping[str, int]  # bytes that the model uses, by stored number type
    left: tuple[Left, ...] = ()

    @property
    def left_names(self) -> frozenset[str]:
        """Every tensor of the file that the model does not use."""
        return frozenset(name for group in self.left for name in group.names)

    @property
    def notes(self) -> tuple[ModelNote, ...]:
        """A sentence about what is not used; empty if everything is."""
        if not self.left:
            return ()
        count, size = len(self.left_names), sum(group.nbytes for group in self.left)
        text = f"{count} of the file's {self.tensors} tensors ({bytes_text(size)} of {bytes_text(self.nbytes)})"
        return (ModelNote(f"{text} are not used: {'; '.join(map(str, self.left))}", UNUSED),)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON for a row. A long list of names is truncated; ``count`` is not."""
        return {
            "tensors": self.tensors,
            "bytes": self.nbytes,
            "parameters": self.parameters,
            "dtypes": dict(self.dtypes),
            "unused": [
                {
                    "why": group.why,
                    "count": len(group.names),
                    "parameters": group.parameters,
                    "bytes": group.nbytes,
                    "names": [printable(name, 120) for name in group.names[:KEPT]],
                }
                for group in self.left
            ],
        }


def account(
    stored: Iterable[FileTensor], geometry: Geometry, *, scheme: bool = False, by: Description = CONFIG
) -> Account:
    """Account for every tensor of ``stored``.

    ``scheme``: the config states a quantization, so a weight may consist of several tensors of other shapes and
    number types; those of one module are counted as its weight. ``by`` is where the geometry comes from.

    Raises ProfileError for a weight that is missing, has another shape or is stored as codes, and for whole layers
    that the model does not have.
    """
    found = list(stored)
    expected = dict(_expected(geometry))
    taken: dict[str, list[FileTensor]] = {}
    rest: list[FileTensor] = []
    owners = _modules(expected) if scheme else {}
    for tensor in found:
        target = _target(tensor, expected, owners)
        if target is None:
            rest.append(tensor)
        else:
            taken.setdefault(target, []).append(tensor)
    if geometry.tied and EMBEDDING not in taken:
        rest = _head_for_embedding(rest, taken)
    _refuse_layers(rest, len(geometry.layers), by)
    if not scheme:
        _refuse_codes(taken, rest, expected, by)
    if not (scheme and rest):  # a quantization may use its own names
        _refuse_missing(expected, taken, rest, geometry.model_type, by)
    for name, tensors in taken.items():
        if expected[name].role == "experts" and (len(tensors) > 1 or EXPERT.fullmatch(tensors[0].target or "")):
            _refuse_experts(expected[name], tensors, scheme, by)
    _refuse_shapes(expected, _values(taken) if scheme else taken, by)
    if not scheme:
        _refuse_scales(rest, expected)
    every = [tensor for tensors in taken.values() for tensor in tensors]
    dtypes: dict[str, int] = {}
    for tensor in every:
        dtypes[tensor.dtype] = dtypes.get(tensor.dtype, 0) + tensor.nbytes
    return Account(
        tensors=len(found),
        nbytes=sum(tensor.nbytes for tensor in found),
        parameters=sum(expected[name].parameters for name in taken),
        dtypes=dtypes,
        left=_left(rest, geometry),
    )


def in_text_model(name: str) -> str:
    """The name in the text model of a tensor in a safetensors checkpoint."""
    for pattern, replacement in TEXT_TOWER.items():
        name, count = re.subn(pattern, replacement, name)
        if count:
            break
    return renamed(name)


def renamed(name: str) -> str:
    """A name of Mixtral's checkpoints as transformers has it; any other unchanged."""
    older = MIXTRAL.fullmatch(name) if ".block_sparse_moe." in name else None
    if older is None:
        return name
    layer, module, projection, rest = older.groups()
    return f"{layer}mlp.{module}.{PROJECTIONS[projection]}{rest}"


def _expected(geometry: Geometry) -> Iterable[tuple[str, Weight]]:
    yield from ((weight.name, weight) for weight in geometry.outside)
    for index, layer in enumerate(geometry.layers):
        yield from ((f"{LAYER}{index}.{weight.name}", weight) for weight in layer.weights)


def _modules(expected: Mapping[str, Weight]) -> dict[str, str]:
    """Module → its weight: quantizers store codes, scales and zero points side by side in a module."""
    return {name.removesuffix(".weight"): name for name in expected if not name.endswith(".bias")}


def _target(tensor: FileTensor, expected: Mapping[str, Weight], owners: Mapping[str, str]) -> str | None:
    """The weight that a tensor is, or is part of."""
    if tensor.target is None:
        return None
    for name in (tensor.target, BASE + tensor.target):
        if name in expected:
            return name
        if (expert := EXPERT.fullmatch(name)) is not None:
            fused = _fused(expert)
            if fused in expected and (owners or expert["rest"] == "weight"):
                return fused
        module = name
        while owners and module:
            if module in owners:
                return owners[module]
            if module.removesuffix("_blocks").removesuffix("_scales") in owners:  # MXFP4 parts of a fused parameter
                return owners[module.removesuffix("_blocks").removesuffix("_scales")]
            module = module.rpartition(".")[0]
    return None


def _head_for_embedding(rest: list[FileTensor], taken: dict[str, list[FileTensor]]) -> list[FileTensor]:
    """A tied model may store only its head; transformers then ties the embedding to it."""
    heads = [tensor for tensor in rest if tensor.target == HEAD]
    if heads:
        taken[EMBEDDING] = heads
    return [tensor for tensor in rest if tensor.target != HEAD]


def _refuse_missing(
    expected: Mapping[str, Weight], taken: Mapping[str, object], rest: list[FileTensor], kind: str, by: Description
) -> None:
    missing = [by.own_name(name) for name in expected if name not in taken]
    if not missing:
        return
    for part, program, hint in WRAPPERS:
        wrapped = [tensor.name for tensor in rest if f".{part}" in f".{tensor.name}"]
        if wrapped:
            raise ProfileError(f"its weights have the names of a model wrapped by {program}: {_few(wrapped)}", hint)
    if not taken and rest:
        names = _few([tensor.name for tensor in rest])
        raise ProfileError(f"no tensor of the file has a name that transformers uses for {kind}: {names}", by.hint)
    count = f"{len(missing)} of the {len(expected)} weights" if len(missing) > 1 else "a weight"
    hint = by.hint
    if missing == [HEAD]:
        hint = 'If the head is the embedding, set "tie_word_embeddings": true in config.json.'
    elif all(name.endswith(OUTPUT_BIAS) for name in missing):
        hint = "transformers puts a bias on all four attention projections or on none, so it cannot run this model."
    are = "are" if len(missing) > 1 else "is"
    raise ProfileError(f"{count} that {by.place} describes {are} not in the file: {_few(missing)}", hint)


def _values(taken: Mapping[str, list[FileTensor]]) -> dict[str, list[FileTensor]]:
    """The weights of a quantized checkpoint that are stored as values; codes have shapes of their own."""
    return {
        name: tensors
        for name, tensors in taken.items()
        if all(tensor.dtype in VALUES and tensor.target in (name, name.removeprefix(BASE)) for tensor in tensors)
    }


def _refuse_shapes(expected: Mapping[str, Weight], taken: Mapping[str, list[FileTensor]], by: Description) -> None:
    for name, tensors in taken.items():
        wanted, first = expected[name], tensors[0]
        if len(tensors) == 1 and first.shape != wanted.shape:
            given = f"{printable(first.name)} is {list(first.shape)} in the weights"
            raise ProfileError(f"{given}, {list(wanted.shape)} in {by.place}", by.hint)
        if len(tensors) > 1 and all(tensor.shape == wanted.shape for tensor in tensors):
            raise ProfileError(
                f"the file holds {len(tensors)} tensors for one weight of the model, {by.own_name(name)}: "
                f"{_few([tensor.name for tensor in tensors])}; it does not say which one to use",
                "Save the checkpoint with one of them.",
            )
        total = sum(tensor.parameters for tensor in tensors)  # experts, or gate and up, stored separately
        if total != wanted.parameters:
            given = f"{by.own_name(name)} has {total:,} parameters in the weights ({len(tensors)} tensors)"
            raise ProfileError(f"{given}, {wanted.parameters:,} in {by.place}", by.hint)


def _refuse_experts(weight: Weight, tensors: list[FileTensor], scheme: bool, by: Description) -> None:
    """Refuse experts that are stored one by one if one of them is missing, or shaped unlike the others.

    Otherwise only loading would fail: one expert more and another one less make the right number of parameters.
    """
    if weight.expert_bias:
        for tensor in tensors:  # gate and up of all experts
            _refuse_shape(tensor, (weight.shape[0], weight.shape[1] // 2), by)
        return
    count, rows, columns = weight.shape
    halves = {(count, rows // 2, columns), (count, rows, columns // 2)}  # the latter with inputs first
    kinds: dict[tuple[str, str], tuple[int, ...]] = {}  # shapes by part and kind of tensor, such as gate and scales
    numbers: dict[str, dict[int, str]] = {}  # names of the experts of each part
    for tensor in tensors:
        expert = EXPERT.fullmatch(tensor.target or "")
        if expert is None:  # gate and up of all experts, as in GGUF files
            if not scheme and tensor.shape not in halves:
                _refuse_shape(tensor, (count, rows // 2, columns), by)
            continue
        part, number = expert["part"], int(expert["number"])
        if number >= count:
            raise ProfileError(f"{by.place} describes {count} experts, not {printable(tensor.name, 120)}", by.hint)
        numbers.setdefault(part, {})[number] = tensor.name
        values = (rows if part == "down" else rows // 2, columns)
        _refuse_shape(tensor, kinds.setdefault((part, expert["rest"]), tensor.shape) if scheme else values, by)
    parts = ("down",) if weight.name.endswith("down_proj") else ("gate", "up")
    for part in parts if numbers else ():
        found = numbers.get(part, {})
        gone = next((number for number in range(count) if number not in found), None)
        if gone is not None:
            name = f"expert {gone}, {part}_proj" if not found else _numbered(found, gone)
            raise ProfileError(f"an expert that {by.place} describes is not in the file: {name}", by.hint)


def _numbered(names: Mapping[int, str], number: int) -> str:
    """The name of an expert's tensor, after that of another one."""
    first, name = next(iter(names.items()))
    return printable(name.replace(f".experts.{first}.", f".experts.{number}."), 120)


def _refuse_shape(tensor: FileTensor, wanted: tuple[int, ...], by: Description) -> None:
    if tensor.shape != wanted:
        given = f"{printable(tensor.name, 120)} is {list(tensor.shape)} in the weights"
        raise ProfileError(f"{given}, and should be {list(wanted)}", by.hint)


def _refuse_codes(
    taken: Mapping[str, list[FileTensor]], rest: list[FileTensor], expected: Mapping[str, Weight], by: Description
) -> None:
    """Refuse codes under a weight's own name, or in its module as AWQ and GPTQ store them (``q_proj.qweight``)."""
    codes = CODES if by is CONFIG else CODES | NEVER_MULTIPLIED
    coded = [tensor for tensors in taken.values() for tensor in tensors if tensor.dtype in codes]
    modules = _modules(expected)
    coded += [t for t in rest if t.dtype in CODES and (t.target or "").rpartition(".")[0] in modules]
    if coded:
        which = f"{len(coded)} tensors of weights are" if len(coded) > 1 else "a weight is"
        if by is not CONFIG:
            raise ProfileError(
                f"{which} stored in a type that no engine computes with: {printable(coded[0].name)} is "
                f"{coded[0].dtype}",
                "Convert or quantize the model again.",
            )
        raise ProfileError(
            f"{which} stored as codes, but config.json has no quantization_config that defines their values: "
            f"{printable(coded[0].name)} is {coded[0].dtype}",
            ADD_SCHEME,
        )


def _refuse_scales(rest: list[FileTensor], expected: Mapping[str, Weight]) -> None:
    """Refuse weights with scales: they hold codes, whatever their number type."""
    modules = _modules(expected)
    scales = [tensor for tensor in rest if _scaled(tensor.target or "", expected, modules)]
    if scales:
        raise ProfileError(
            f"the file holds scales of weights, but config.json has no quantization_config that says how to apply "
            f"them: {_few([tensor.name for tensor in scales])}",
            ADD_SCHEME,
        )


def _scaled(name: str, expected: Mapping[str, Weight], modules: Mapping[str, str]) -> bool:
    """Whether a tensor is the scale of one of the model's weights, or of one expert of such a weight."""
    scale = SCALE.fullmatch(name)
    if scale is None:
        return False
    expert = EXPERT.fullmatch(name)
    return scale[1] in modules or (expert is not None and _fused(expert) in expected)


def _fused(expert: re.Match[str]) -> str:
    """The weight of the model that holds a tensor of one expert."""
    return f"{expert['place']}.{'down_proj' if expert['part'] == 'down' else 'gate_up_proj'}"


def _refuse_layers(rest: list[FileTensor], count: int, by: Description) -> None:
    """Refuse whole decoder layers that the model does not have: the config belongs to another model."""
    beyond: dict[int, list[FileTensor]] = {}
    for tensor in rest:
        number = NUMBERED.match(tensor.target or "")
        if number is not None and int(number[1]) >= count:
            beyond.setdefault(int(number[1]), []).append(tensor)
    if not beyond:
        return
    layers = f"layer {min(beyond)}" if len(beyond) == 1 else f"layers {min(beyond)} to {max(beyond)}"
    tensors = [tensor for each in beyond.values() for tensor in each]
    size = bytes_text(sum(tensor.nbytes for tensor in tensors))
    described = f"{count} layer{'s' * (count != 1)}"
    raise ProfileError(
        f"{by.place} describes {described} ({by.layers}), but the file also holds {layers}: "
        f"{len(tensors)} tensor{'s' * (len(tensors) != 1)}, {size} ({_few([tensor.name for tensor in tensors])})",
        by.hint,
    )


def _left(rest: list[FileTensor], geometry: Geometry) -> tuple[Left, ...]:
    """The unused tensors grouped by reason, the largest group first."""
    groups: dict[str, list[FileTensor]] = {}
    for tensor in rest:
        groups.setdefault(_why(tensor, geometry), []).append(tensor)
    found = (
        Left(why, tuple(t.name for t in group), sum(t.parameters for t in group), sum(t.nbytes for t in group))
        for why, group in groups.items()
    )
    return tuple(sorted(found, key=lambda left: -left.nbytes))


def _why(tensor: FileTensor, geometry: Geometry) -> str:
    if tensor.name.startswith(ROPE_FACTORS):
        return COMPUTED if geometry.model_type.startswith("gemma4") else NOT_APPLIED
    if tensor.target == HEAD and geometry.tied:
        return "a second copy of the tied embedding"
    for pattern, why in PARTS:
        if pattern.match(tensor.target or tensor.name):
            return why
    shared = SHARED.match(tensor.target or "")
    if shared is not None and int(shared[1]) < len(geometry.layers):
        mixer = geometry.layers[int(shared[1])].mixer
        if not getattr(mixer, "owns_cache", True):
            return "keys and values of layers that reuse those of an earlier layer"
    return OTHER


def _few(names: list[str]) -> str:
    return ", ".join(printable(name, 60) for name in names[:SHOWN]) + (" …" if len(names) > SHOWN else "")
