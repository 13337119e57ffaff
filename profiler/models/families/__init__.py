"""One file a family: ``geometry(config) -> Geometry``, written like the paper's equations.

A file also gives ``TEXT``, which maps every ``model_type`` of a text decoder that it serves to the fields of
transformers' config class, and ``WRAPPED``, which maps those of multimodal models to the decoder's ``model_type`` and
their own fields; ``MODEL_TYPES`` are both. ``base`` holds what files share.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from types import MappingProxyType, ModuleType
from typing import Any

from profiler import registry
from profiler.errors import ProfileError
from profiler.models.config import Config
from profiler.models.families import base
from profiler.models.geometry import Geometry
from profiler.units import printable

FOLDER = "models.families"
TIED = "tie_word_embeddings"
TOWERS = {"vision_config": "vision", "audio_config": "audio"}
# Other names of the part that transformers takes for the decoder, and fields that must not stand outside of it
OTHER_PARTS = ("decoder", "generator", "text_encoder")
DECODERS = ("rope_scaling", "rope_parameters", "per_layer_config", "layer_types")
SIZES: Mapping[str, Callable[[int], str]] = {
    "num_hidden_layers": lambda count: counted(count, "layer"),
    "hidden_size": "hidden size {:,}".format,
    "vocab_size": "vocabulary {:,}".format,
}


@cache
def by_model_type() -> Mapping[str, ModuleType]:
    """The family file of each known ``model_type``."""
    families = (registry.load(FOLDER, name, "family") for name in registry.names(FOLDER))
    return {model_type: family for family in families for model_type in family.MODEL_TYPES}


def geometry(
    raw: Mapping[str, Any], where: str = "config", names: Mapping[str, str] = MappingProxyType({})
) -> Geometry:
    """Geometry of a raw ``config.json``, or of what another file says in its place.

    ``where`` and ``names`` are for errors: the kind of file, and the names that the config's fields have in it.
    ProfileError for a ``model_type`` without a rule, or for a field that is missing, bad or contradictory.
    """
    outer = Config(raw, where, names=names)
    family = _family(outer)
    model_type = raw["model_type"]
    config = (
        _wrapped(outer, family, model_type) if model_type in family.WRAPPED else _plain(outer, family, model_type)
    )
    config.check()
    for part in (outer, config):
        base.check_any(part)
    if "auto_map" in outer:
        config.cautions += (
            f"auto_map names code that came with the model; it is never run, this is plain {model_type}",
        )
    result: Geometry = family.geometry(config)
    return result


def _plain(outer: Config, family: ModuleType, model_type: str) -> Config:
    """The config of a text decoder by itself. transformers would take a part of it for the whole, and fail."""
    config = Config(outer.raw, outer.where, family.TEXT[model_type], model_type=model_type, names=outer.names)
    _refuse_parts(config)
    return config


def _tied_otherwise(outer: Config, inner: Mapping[str, Any], fields: type) -> list[str]:
    """A caution where the whole model ties its head and the decoder by itself, which is measured, does not, or so."""
    usual = getattr(fields, TIED, None)  # of the class of transformers, where the config does not say
    whole, decoder = outer.raw.get(TIED, usual), inner.get(TIED)
    if None in (whole, decoder) or whole == decoder:
        return []
    default = "" if TIED in outer.raw else ", by default,"
    return [f"{TIED} is {_json(whole)} outside text_config{default} and {_json(decoder)} inside it, which counts"]


def _refuse_parts(config: Config) -> None:
    for name in ("text_config", *OTHER_PARTS):
        if name in config:
            raise config.error(
                f"{name} is given, but model_type {config.model_type} is a decoder without such a part"
            )


def _wrapped(outer: Config, family: ModuleType, model_type: str) -> Config:
    """The decoder's part of a multimodal config.

    Without one, transformers builds its default decoder and reads nothing else. Whether the head is tied may be said
    outside ``text_config`` only; transformers' text classes would not see it.
    """
    inside, fields = family.WRAPPED[model_type]
    Config(outer.raw, outer.where, fields).check()
    for name in OTHER_PARTS:
        if name in outer:
            raise outer.error(f"{name} is given beside text_config: which of them is the decoder is not clear")
    for name in DECODERS:
        if name in outer:
            raise outer.error(f"{name} is given outside text_config, where transformers does not look for it")
    inner = outer.part("text_config") or {}
    stated = inner.get("model_type")
    if stated not in (None, inside, model_type):
        raise outer.error(f"model_type {model_type} holds a text_config of {printable(stated)}")
    towers = " and ".join(word for key, word in TOWERS.items() if outer.part(key))
    cautions = [f"text tower only: the {towers} tower is left out" if towers else "text tower only"]
    if not inner:
        cautions.append(f"the config has no text_config: its sizes are transformers' defaults for {inside}")
    cautions += _tied_otherwise(outer, inner, fields)
    tied = {} if outer.raw.get(TIED) is None else {TIED: outer.raw[TIED]}
    fields = family.TEXT[inside]
    config = Config(tied | dict(inner), "text_config", fields, model_type=inside, cautions=tuple(cautions))
    _refuse_parts(config)
    return config


def _json(value: object) -> str:
    return printable(value).lower()


def _family(config: Config) -> ModuleType:
    model_type = config.raw.get("model_type")
    if model_type is None:
        raise config.error("model_type is missing")
    known = by_model_type()
    if isinstance(model_type, str) and model_type in known:
        return known[model_type]
    raise unserved(f"{config.where}: model_type {printable(model_type, 60)}", _sizes(config.raw))


class Unserved(ProfileError):
    """A model of a family without a rule. That is a fact of its file, not a typing mistake."""


def unserved(what: str, sizes: list[str]) -> Unserved:
    """The error for such a model; ``sizes`` is what its file says of it, in words."""
    size = f" ({', '.join(sizes)})" if sizes else ""
    return Unserved(
        f"{what}{size}: no rule for this family yet, so nothing is predicted or measured",
        f"These families have one: {'; '.join(titles())}. profile models lists models of them.",
    )


@cache
def titles() -> tuple[str, ...]:
    """What people call each family: the first words of its file."""
    files = (registry.load(FOLDER, name, "family") for name in registry.names(FOLDER))
    return tuple((file.__doc__ or file.__name__).partition(":")[0] for file in files)


def _sizes(raw: Mapping[str, Any]) -> list[str]:
    """What the config of an unknown family says of its size, where it uses the usual names."""
    inner = raw.get("text_config")
    part = {**raw, **inner} if isinstance(inner, Mapping) else raw
    found = ((words, part.get(name)) for name, words in SIZES.items())
    return [words(value) for words, value in found if type(value) is int and 0 < value < 2**40]


def counted(count: int, noun: str) -> str:
    """``1 layer``, ``2 layers``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
