"""What transformers found wrong with a checkpoint, where its exception only points to a report in the log.

Read at transformers 5.23, ``utils/loading_report.py``: ``log_state_dict_report`` logs a table of what could not be
converted or has another shape, and raises a RuntimeError that says "look at the above report". The table is made from
``loading_info``, which is still there in the frames of that exception.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator, Sized
from contextlib import contextmanager
from typing import Any

from profiler.errors import ProfileError
from profiler.units import printable

RAISED = re.compile(r"^[A-Za-z_][\w.]*(?:Error|Exception|Warning|Interrupt)\b.*", re.MULTILINE)
HINT = "Config and weights are not of the same model, or one of the files is damaged: download them again."


@contextmanager
def loading_errors(model: str) -> Iterator[None]:
    """Around loading ``model``: raises ProfileError with the weight and the cause in place of a pointer to a log."""
    try:
        yield
    except RuntimeError as error:
        words = _words(error)
        if words is None:
            raise
        raise ProfileError(f"{printable(model)}: {words}", HINT) from None


def _words(error: RuntimeError) -> str | None:
    """What was wrong with the first of the weights, and with how many; None for an error without a report."""
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    infos = (frame.f_locals.get("loading_info") for frame in frames)
    info: Any = next((info for info in infos if hasattr(info, "conversion_errors")), None)
    if info is None:
        return None
    if info.conversion_errors:
        name, said = sorted(info.conversion_errors.items())[0]
        causes = RAISED.findall(said)  # a traceback: its last exception is the one that was not caught
        cause = _line(causes[-1] if causes else said)
        return f"{_count(info.conversion_errors)} not be converted, first {printable(name)}: {cause}"
    if info.mismatched_keys:
        name, stored, expected = sorted(info.mismatched_keys, key=lambda found: str(found[0]))[0]
        shapes = f"{list(stored)} in the checkpoint, {list(expected)} by the config"
        return f"{_count(info.mismatched_keys)} not be taken for their shape, first {printable(name)}: {shapes}"
    return None


def _count(found: Sized) -> str:
    return f"{len(found)} weight{'s' * (len(found) != 1)} could"


def _line(text: str) -> str:
    return printable(" ".join(text.split()), 200)
