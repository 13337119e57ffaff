"""One file per family: ``geometry(config) -> Geometry``, written like the paper's equations.

A file also has ``TEXT``, which maps every ``model_type`` of a text decoder that it serves to the fields of
transformers' config class, and ``WRAPPED``, which maps those of multimodal models to the decoder's ``model_type`` and
the fields of the outer config; ``MODEL_TYPES`` are both. ``base`` holds shared code.
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
# Other names for the decoder's part in transformers, and fields that belong inside that part
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
    """Geometry of a raw ``config.json``, or of an equivalent config from another file.

    ``where`` and ``names`` are for errors: the kind of file, and the names of the config's fields in it. ProfileError
    for an unsupported ``model_type``, and for a field that is missing, invalid or contradictory.
    """
    config = decoder(raw, where, names)
    result: Geometry = by_model_type()[raw["model_type"]].geometry(config)
    return result


def decoder(raw: Mapping[str, Any], where: str = "config", names: Mapping[str, str] = MappingProxyType({})) -> Config:
    """The fields of the text decoder, which a multimodal config holds as a part. Arguments and errors as above."""
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
            f"auto_map names code that comes with the model; it is not run, this is plain {model_type}",
        )
    return config


def _plain(outer: Config, family: ModuleType, model_type: str) -> Config:
    """The config of a bare text decoder. With a nested part, transformers would take that part for the whole."""
    config = Config(outer.raw, outer.where, family.TEXT[model_type], model_type=model_type, names=outer.names)
    _refuse_parts(config)
    return config


def _tied_otherwise(outer: Config, inner: Mapping[str, Any], fields: type) -> list[str]:
    """A caution if the multimodal model ties its head and the decoder, which is measured, does not, or vice versa."""
    usual = getattr(fields, TIED, None)  # transformers' default
    whole, decoder = outer.raw.get(TIED, usual), inner.get(TIED)
    if None in (whole, decoder) or whole == decoder:
        return []
    default = "" if TIED in outer.raw else ", by default,"
    return [f"{TIED} is {_json(whole)} outside text_config{default} but {_json(decoder)} inside it, which is used"]


def _refuse_parts(config: Config) -> None:
    for name in ("text_config", *OTHER_PARTS):
        if name in config:
            raise config.error(f"{name} is given, but model_type {config.model_type} is a decoder without that part")


def _wrapped(outer: Config, family: ModuleType, model_type: str) -> Config:
    """The decoder's part of a multimodal config.

    Without that part, transformers builds its default decoder and ignores all other fields. ``tie_word_embeddings``
    may be set only outside ``text_config``, where transformers' text classes do not look.
    """
    inside, fields = family.WRAPPED[model_type]
    Config(outer.raw, outer.where, fields).check()
    for name in OTHER_PARTS:
        if name in outer:
            raise outer.error(f"{name} is given in addition to text_config, so it is unclear which is the decoder")
    for name in DECODERS:
        if name in outer:
            raise outer.error(f"{name} is given outside text_config, where transformers does not look for it")
    inner = outer.part("text_config") or {}
    stated = inner.get("model_type")
    if stated not in (None, inside, model_type):
        raise outer.error(f"model_type {model_type} holds a text_config of {printable(stated)}")
    towers = [word for key, word in TOWERS.items() if outer.part(key)]
    which = f"the {' and '.join(towers)} tower{'s are' if len(towers) > 1 else ' is'} left out"
    cautions = [f"text tower only: {which}" if towers else "text tower only"]
    if not inner:
        cautions.append(f"the config has no text_config, so its sizes are transformers' defaults for {inside}")
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
    """The family of a model is not supported. This is a property of its file, not a typing error."""


def unserved(what: str, sizes: list[str]) -> Unserved:
    """The error for such a model; ``sizes`` describes it."""
    size = f" ({', '.join(sizes)})" if sizes else ""
    return Unserved(
        f"{what}{size}: this family is not supported yet, so nothing is predicted or measured",
        f"Supported families: {'; '.join(titles())}. profile models lists their models.",
    )


@cache
def titles() -> tuple[str, ...]:
    """The display name of each family: the beginning of its docstring."""
    files = (registry.load(FOLDER, name, "family") for name in registry.names(FOLDER))
    return tuple((file.__doc__ or file.__name__).partition(":")[0] for file in files)


def _sizes(raw: Mapping[str, Any]) -> list[str]:
    """The sizes in the config of an unsupported family, if it uses the usual field names."""
    inner = raw.get("text_config")
    part = {**raw, **inner} if isinstance(inner, Mapping) else raw
    found = ((words, part.get(name)) for name, words in SIZES.items())
    return [words(value) for words, value in found if type(value) is int and 0 < value < 2**40]


def counted(count: int, noun: str) -> str:
    """``1 layer``, ``2 layers``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
