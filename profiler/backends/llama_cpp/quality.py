"""The quality of a GGUF file, as a worker measures it: ``scoring.py`` does so in a process of its own.

That process imports PyTorch, which no other part of this backend needs. Its memory would hide the peaks of small
models.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from profiler import folders
from profiler.backends.base import Beat, OutOfMemory
from profiler.backends.llama_cpp import build as builds
from profiler.backends.llama_cpp.program import MAX_REASON, ProgramFailed
from profiler.case import Case, Source
from profiler.errors import ProfileError
from profiler.foreign import BadContent, Budget, json_value
from profiler.units import printable

RESULT = Budget(nbytes=1 << 26, values=1 << 22)  # the sums of a thousand documents; more blocks than any set has
LAST_LINES = 20  # of its output that are kept for an error message


def prepare(case: Case, source: Source, wanted: Mapping[str, Any], beat: Beat) -> None:
    """Raise ProfileError if the build cannot give logits. ``measure`` computes the reference, since the windows are
    in the tokens of the case's file, and no model is loaded then either.
    """
    builds.find().library  # noqa: B018 - looks for it


def measure(session: Any, case: Case, source: Source, wanted: Mapping[str, Any], beat: Beat) -> dict[str, Any]:
    """The ``quality`` of a row of ``case``. Raises ProfileError, OutOfMemory.

    It depends on the context, but not on the batch or the steps, so ``session`` keeps it for cases that follow.
    """
    known: dict[int, dict[str, Any]] = session.scored
    if case.context not in known:
        known[case.context] = _run(case, source, wanted, beat)
    return known[case.context]


def _run(case: Case, source: Source, wanted: Mapping[str, Any], beat: Beat) -> dict[str, Any]:
    reference, origin = _reference(case, source, wanted)
    request = {
        "case": asdict(case),
        "location": source.location,
        "reference": asdict(reference),
        "reference_location": origin.location,
        "text": wanted["text"],
        "hash": wanted["hash"],
    }
    beat("quality: starting")
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "profiler.backends.llama_cpp.scoring", str(os.getpid())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, **folders.child_environ(os.environ)},
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(json.dumps(request).encode())
        process.stdin.close()
        last: deque[str] = deque(maxlen=LAST_LINES)
        found: dict[str, Any] = {}
        for line in process.stdout:
            said = _said(line)
            if "beat" in said:
                beat(said["beat"])
            elif said:
                found = said
            elif line.strip():
                last.append(line.decode("utf-8", "replace").strip())
    if "out of memory" in found:
        raise OutOfMemory(found["out of memory"])
    if "error" in found:
        raise ProfileError(found["error"])
    if "quality" not in found:
        why = last[-1] if last else "it printed no reason"
        raise ProgramFailed(printable(f"the comparison ended with code {process.returncode}: {why}", MAX_REASON))
    return dict(found["quality"])


def _said(line: bytes) -> dict[str, Any]:
    """What a line of the process says; empty for the text of a library."""
    try:
        return dict(json_value(line, RESULT)) if line.startswith(b"{") else {}
    except (BadContent, ValueError):
        return {}


def _reference(case: Case, source: Source, wanted: Mapping[str, Any]) -> tuple[Case, Source]:
    """The file to compare with, read with llama.cpp's defaults: that of --reference, else the one found beside it."""
    plain = replace(case, options="")
    other = wanted["reference"] or (wanted.get("references") or {}).get(case.model_id)
    if other is None:
        return plain, source
    found = Source(other["kind"], other["location"], other["revision"], other["config"])
    return replace(plain, model=other["name"], model_id=other["model_id"], quant=other["quant"]), found
