"""RoPE scaling: checks a config's parameters and computes the largest context.

Fields and checks are those of transformers 5.23, ``modeling_rope_utils.py``: the older ``rope_scaling`` takes
precedence over ``rope_parameters``, ``type`` is the older name of ``rope_type``, and both fields may hold one object
per layer type. transformers itself does not limit the context. The limit is vLLM's (``derive_max_model_len_info``):

- ``yarn``: ``factor`` × ``original_max_position_embeddings``, which defaults to ``max_position_embeddings``.
- ``linear``, ``dynamic``, and ``proportional`` with a factor: ``factor`` × ``max_position_embeddings``.
- ``longrope``, ``llama3`` and ``default``: ``max_position_embeddings``, which already includes the scaling.
- Gemma 3: always ``max_position_embeddings``, because its published configs already include the scaling.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from profiler.errors import ProfileError
from profiler.models.config import RANGES, Config, is_object, shown

Parameters = Mapping[str, Any]

REQUIRED: Mapping[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "proportional": (),
    "yarn": ("factor",),
    "longrope": ("short_factor", "long_factor"),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
}
"""The types that transformers supports, with their required fields."""
EXTENDING = ("linear", "dynamic", "proportional")  # the factor multiplies max_position_embeddings
WITH_ORIGINAL = ("yarn", "longrope", "llama3")
MAX_FACTOR = 100_000  # far above any published one
SHARE = "partial_rotary_factor"
POSITIONS = "max_position_embeddings"
ORIGINAL = "original_max_position_embeddings"


def largest_context(config: Config, head_dim: int, types: Collection[str], rotated: float | None = None) -> int:
    """The largest context in tokens of a model with one set of RoPE parameters; ProfileError if they are invalid.

    ``types`` are the types of the model's layers. ``rotated`` is the share of a head's channels that the family
    rotates by default; None if it rotates all of them.
    """
    source = "rope_scaling" if config.raw.get("rope_scaling") else "rope_parameters"
    found = dict(config.part(source) or {})
    if not set(found).isdisjoint(types):
        raise config.error(f"{source} is given per layer type, but {config.model_type} takes one for all layers")
    outside = {name: name for name in ("rope_theta", SHARE) if name in config.raw and name not in found}
    found |= {name: config.raw[name] for name in outside}
    if SHARE in outside and found[SHARE] is None:
        del found[SHARE]  # null removes the family's default
    elif rotated is not None:
        found.setdefault(SHARE, rotated)
    return _Scaling(config, source, found, head_dim, outside, partial=rotated is not None).largest_context()


def check_by_type(
    config: Config,
    types: Collection[str],
    thetas: Mapping[str, str],
    head_dims: Mapping[str, int],
    complete: bool = False,
) -> int:
    """The largest context of a model with separate RoPE parameters for each layer type of ``types``.

    ``thetas`` names the field outside these parameters that gives a type's ``rope_theta``, if there is one.
    ``complete``: transformers checks this family's parameters before it fills in defaults, so they must be complete.
    It also assumes one head size, so it refuses ``longrope`` if there are two.
    """
    given = config.part("rope_parameters")
    older = config.part("rope_scaling")
    if older is not None and given is not None and not given.get("full_attention"):
        raise config.error("rope_scaling is given, but rope_parameters has no entry for full_attention layers")
    reach = [config.number(POSITIONS)]
    for kind in sorted(set(types)):
        where = f"rope_parameters.{kind}"
        found = (given or {}).get(kind)
        if found is not None and not is_object(found):
            raise config.error(f"{where} is {shown(found)}, must be an object")
        scaled = dict(older or {}) if kind == "full_attention" else {}
        found = dict(found or {}) | scaled
        outside = {"rope_theta": thetas.get(kind, ""), SHARE: SHARE}
        outside = {name: field for name, field in outside.items() if field in config.raw and name not in found}
        found |= {name: config.raw[field] for name, field in outside.items()}
        if found.get(SHARE, 0) is None and SHARE in outside:
            del found[SHARE]
        outside |= {name: f"rope_scaling.{name}" for name in scaled}
        scaling = _Scaling(config, where, found, head_dims[kind], outside, by_type=True)
        if complete:
            scaling.check_complete(one_size=len(set(head_dims.values())) == 1)
        reach.append(scaling.largest_context())
    return max(reach)


class _Scaling:
    """One set of RoPE parameters and its place in the config; ``outside`` names fields that are elsewhere."""

    def __init__(
        self,
        config: Config,
        where: str,
        found: Parameters,
        head_dim: int,
        outside: Mapping[str, str],
        partial: bool = False,
        by_type: bool = False,
    ) -> None:
        self.config = config
        self.where = where
        self.found = found
        self.head_dim = head_dim
        self.outside = outside
        self.partial = partial
        self.by_type = by_type
        self.kind = found.get("rope_type", found.get("type", "default"))

    def largest_context(self) -> int:
        """In tokens. ProfileError if the parameters are invalid or the result is absurd."""
        self.check()
        positions = self.config.number(POSITIONS)
        if self.kind == "yarn":
            original = self.original()
            factor = self.found["factor"]
            reach = original * (positions / original if factor is None else factor)
        else:
            reach = positions * (self.found.get("factor", 1) if self.kind in EXTENDING else 1)
        low, high = RANGES[POSITIONS]
        if not low <= reach <= high:
            raise self.error(
                "factor", f"gives a context of {reach:,.0f} tokens, which must be from {low} to {high:,}"
            )
        return int(reach)

    def check(self) -> None:
        """ProfileError for parameters that transformers cannot use."""
        if not isinstance(self.kind, str) or self.kind not in REQUIRED:
            raise self.error(
                "rope_type", f"is {shown(self.kind)}, which is not supported; known: {', '.join(REQUIRED)}"
            )
        missing = [name for name in REQUIRED[self.kind] if name not in self.found]
        if missing:
            raise self.error(missing[0], f'is missing, but rope_type "{self.kind}" requires it')
        self.expect("rope_theta", _is_number, "a number")
        if self.partial:
            self.expect("mrope_section", _is_section, "a list of three whole numbers")
        if self.kind == "default" and not self.partial:
            return
        self.check_share()
        if self.kind == "default":
            return
        nullable = self.kind in ("yarn", "longrope")
        self.expect("factor", _is_factor, f"a number from 1 to {MAX_FACTOR:,}", nullable)
        if self.kind in WITH_ORIGINAL:
            self.original()
        if self.kind == "llama3":
            for name in ("low_freq_factor", "high_freq_factor"):
                self.expect(name, lambda value: _is_number(value) and value != 0, "a number other than 0")
        if self.kind == "longrope":
            self.check_longrope()

    def check_complete(self, one_size: bool) -> None:
        """ProfileError for parameters that transformers refuses because it checks them before adding defaults."""
        if self.kind == "longrope" and not one_size:
            raise self.error("rope_type", f'is "longrope", which {self.config.model_type} does not support')
        if self.kind in WITH_ORIGINAL and ORIGINAL not in self.found:
            raise self.error(ORIGINAL, f'is missing, but rope_type "{self.kind}" requires it')

    def check_share(self) -> None:
        """Families that rotate all channels cannot rotate only a part of them in transformers."""
        name = SHARE
        self.expect(name, _is_share, "a number above 0, 1 at most")
        if (
            not self.partial
            and self.kind != "proportional"
            and int(self.head_dim * self.found.get(name, 1)) < self.head_dim
        ):
            raise self.error(name, f"is {shown(self.found[name])}, but {self.config.model_type} rotates whole heads")

    def check_longrope(self) -> None:
        """There must be one factor per pair of rotated channels."""
        rotated = int(self.head_dim * self.found.get(SHARE, 1.0))
        pairs = -(-rotated // 2)
        for name in ("short_factor", "long_factor"):
            value = self.found[name]
            if not isinstance(value, list) or len(value) != pairs or not all(map(_is_number, value)):
                raise self.error(name, f"must be a list of {pairs} numbers, half of the {rotated} rotated channels")

    def original(self) -> int:
        """The context before scaling. Without layer types, a value outside the parameters takes precedence."""
        low, high = 2, RANGES[POSITIONS][1]
        outside = ORIGINAL in self.config.raw and not self.by_type
        value = (self.config.raw if outside else self.found).get(ORIGINAL, self.config.number(POSITIONS))
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            wanted = f"is {shown(value)}, must be a whole number from {low} to {high}"
            raise self.config.error(f"{ORIGINAL} {wanted}") if outside else self.error(ORIGINAL, wanted)
        return value

    def expect(self, name: str, good: Callable[[Any], bool], wanted: str, nullable: bool = False) -> None:
        """ProfileError if ``name`` is set and not ``good``."""
        if name in self.found and not (nullable and self.found[name] is None) and not good(self.found[name]):
            raise self.error(name, f"is {shown(self.found[name])}, must be {wanted}")

    def error(self, name: str, text: str) -> ProfileError:
        """The error about one parameter."""
        stated = self.outside.get(name, f"{self.where}.{name}")
        return self.config.error(f"{self.config.named(stated)} {text}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**63


def _is_factor(value: object) -> bool:
    return _is_number(value) and 1 <= value <= MAX_FACTOR  # type: ignore[operator]


def _is_share(value: object) -> bool:
    return _is_number(value) and 0 < value <= 1  # type: ignore[operator]


def _is_section(value: object) -> bool:
    return isinstance(value, list) and len(value) >= 3 and all(type(entry) is int for entry in value)
