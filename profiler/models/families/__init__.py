"""One file a ``model_type``: ``geometry(config) -> Geometry``, written like the paper's equations.

A file also gives ``MODEL_TYPES``, every ``model_type`` that it serves. ``base`` holds what files share.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from types import ModuleType
from typing import Any

from profiler import registry
from profiler.errors import NotFound
from profiler.models.config import Config
from profiler.models.geometry import Geometry
from profiler.units import printable

FOLDER = "models.families"


@cache
def by_model_type() -> Mapping[str, ModuleType]:
    """The family file of each known ``model_type``."""
    families = (registry.load(FOLDER, name, "family") for name in registry.names(FOLDER))
    return {model_type: family for family in families for model_type in family.MODEL_TYPES}


def geometry(raw: Mapping[str, Any]) -> Geometry:
    """Geometry of a raw ``config.json``.

    NotFound for a ``model_type`` without a rule, ProfileError for a field that is missing, bad or contradictory.
    """
    config = Config(raw)
    family = _family(config, raw.get("model_type"))
    inner = config.part("text_config")
    if inner is not None and inner.get("model_type") is not None:
        other = _family(Config(inner, "text_config"), inner["model_type"])
        if other is not family:
            raise config.error(f"model_type {raw['model_type']} holds a text_config of {inner['model_type']}")
    result: Geometry = family.geometry(raw)
    return result


def _family(config: Config, model_type: object) -> ModuleType:
    if model_type is None:
        raise config.error("model_type is missing")
    known = by_model_type()
    if isinstance(model_type, str) and model_type in known:
        return known[model_type]
    shown = printable(model_type)
    raise NotFound(f"no rule for model_type {shown}", registry.unknown("model_type", shown, known).hint)
