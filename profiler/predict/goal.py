"""A wish such as ``20 tok/s at 64k``, and whether a prediction meets it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from profiler.errors import ProfileError
from profiler.predict.prediction import Prediction
from profiler.units import parse_count, printable

Answer = Literal["yes", "likely", "unlikely", "no"]
EXAMPLE = '--goal "20 tok/s at 64k"'
_GOAL = re.compile(
    r"^\s*(?P<rate>\d+(?:\.\d+)?)\s*(?:tok(?:en)?s?(?:/s| per second)|t/s)?\s*(?:(?:at|@)\s*(?P<context>\w+))?\s*$",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Goal:
    """Decode rate of each sequence, at a context if one is named."""

    tps: float
    context: int | None

    def met(self, prediction: Prediction) -> Answer:
        """``yes`` if even the lower bound does, ``likely`` if the value does, ``unlikely`` if only the upper does."""
        if prediction.decode is None:
            return "no"
        rate = prediction.decode.tps.scaled(1 / prediction.setting.batch)
        if rate.low >= self.tps:
            return "yes" if prediction.verdict.word == "fits" else "likely"
        if rate.value >= self.tps:
            return "likely"
        return "unlikely" if rate.high >= self.tps else "no"


def parse(text: str) -> Goal:
    """``20 tok/s at 64k``, ``20 t/s @ 8192``, ``20``. Raises ProfileError."""
    match = _GOAL.match(text)
    if match is None or float(match["rate"]) <= 0:
        raise ProfileError(f"--goal {printable(text)!r} is not a rate at a context", f"Like this: {EXAMPLE}")
    try:
        context = parse_count(match["context"]) if match["context"] else None
    except ValueError as error:
        raise ProfileError(f"--goal: {error}", f"Like this: {EXAMPLE}") from None
    if context is not None and context < 1:
        raise ProfileError("--goal: a context has at least one token", f"Like this: {EXAMPLE}")
    return Goal(float(match["rate"]), context)
