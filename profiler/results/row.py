"""The public result row: what ``-o json`` and ``-o jsonl`` print, and what every other format is a view of.

Names, units and meaning are in docs/result-row.md. Unknown is null, never 0; NaN cannot be written.
``schema`` counts changes that a reader must know of; a field that is only added does not change it.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from profiler.case import Case
from profiler.results import beside, energy, stats, trend
from profiler.results.cautions import cautions
from profiler.results.measurement import SCHEMA, Measurement, Memory, Phase
from profiler.results.memory_parts import unaccounted_bytes
from profiler.results.redact import redact_json

MOST_ENVIRONMENTS = 64
_environments: dict[int, tuple[dict[str, Any], tuple[dict[str, Any], str]]] = {}  # by identity, which they keep


def row(run: str | None, measurement: Measurement) -> dict[str, Any]:
    """One measurement as plain JSON content; ``run`` is the id of the run it is shown for, if it is stored."""
    content = _without_environment(run, measurement)
    content["environment"] = _clean(measurement.environment)[0]
    return content


def line(run: str | None, measurement: Measurement) -> str:
    """``dumps(row(run, measurement))``, whose environment most rows share: nine tenths of the text."""
    start = dumps(_without_environment(run, measurement))
    return f'{start[:-1]}, "environment": {_clean(measurement.environment)[1]}}}'


def _without_environment(run: str | None, measurement: Measurement) -> dict[str, Any]:
    case = measurement.case
    content = {
        "schema": SCHEMA,
        "run": run,
        "case": _flat(case),
        "key": case.key,
        "outcome": measurement.outcome,
        "reason": measurement.reason,
        "prefill": _phase(measurement, "prefill"),
        "decode": _decode(measurement),
        "path": asdict(measurement.decode_path) if measurement.decode_path else None,
        "checkpoint": measurement.checkpoint or None,
        "memory": _flat(measurement.memory) | {"unaccounted_bytes": unaccounted_bytes(measurement.memory)},
        "energy": _energy(measurement),
        "ceiling": beside.ceiling(measurement),
        "predicted": beside.predicted(measurement),
        "cautions": [asdict(caution) for caution in cautions(measurement)],
        "load_s": measurement.load_s,
        "threads": measurement.threads,
        "started_at": measurement.started_at,
        "asked": measurement.asked,
    }
    clean: dict[str, Any] = redact_json(content)
    return clean


def _clean(environment: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """An environment without secrets, and as text; that of the last few is remembered."""
    known = _environments.get(id(environment))
    if known is None or known[0] is not environment:
        clean: dict[str, Any] = redact_json(environment)
        known = environment, (clean, dumps(clean))
        if len(_environments) >= MOST_ENVIRONMENTS:
            _environments.clear()
        _environments[id(environment)] = known
    return known[1]


def dumps(content: dict[str, Any]) -> str:
    """One line of JSON. ASCII only, so that no control or direction character of a name reaches a terminal."""
    return json.dumps(content, ensure_ascii=True, allow_nan=False, separators=(", ", ": "))


def _phase(measurement: Measurement, phase: Phase) -> dict[str, Any] | None:
    summary = stats.rate(measurement, phase)
    if summary is None:
        return None
    timed, warmups = measurement.timed(phase), []
    invalid: list[dict[str, Any]] = []
    if measurement.states("warmup"):
        warmups = [sample.seconds for sample in measurement.record(phase) if sample.warmup]
    if measurement.states("invalid"):
        invalid = [
            {"seconds": sample.seconds, "reason": sample.invalid}
            for sample in measurement.record(phase)
            if sample.invalid is not None and not sample.warmup
        ]
    return {
        "tokens": timed[0][1],  # of one repetition; the case fixes it
        "seconds": measurement.seconds(phase),
        "cpu_seconds": measurement.column("cpu_s", phase),
        "wait_seconds": measurement.column("wait_s", phase),
        "warmup_seconds": warmups,
        "invalid": invalid,
        "steady": trend.steady(warmups),  # null: there were too few warm-ups to tell
        "stopped": measurement.stopped.get(phase),
        "tps": _rounded(summary.median),
        "tps_low": _rounded(summary.low),
        "tps_high": _rounded(summary.high),
        "interval": summary.rule,
        "tps_stdev": summary.stdev,
        "tps_between": summary.between,  # how much processes differ, and how that is known; null: it is not
        "between_basis": measurement.expected["between"]["basis"] if summary.between is not None else None,
    }


def _energy(measurement: Measurement) -> dict[str, Any] | None:
    content = energy.content(measurement)
    if content is None:
        return None
    return {name: _rounded(value) if isinstance(value, float) else value for name, value in content.items()}


def _flat(content: Case | Memory) -> dict[str, Any]:
    """``asdict`` of what holds no lists or objects, and many times as fast."""
    return {name: getattr(content, name) for name in content.__dataclass_fields__}


def _rounded(value: float | None) -> float | None:
    """Without the last digits, in which the ``exp`` and ``log`` of two machines differ."""
    return None if value is None else float(f"{value:.12g}")


def _decode(measurement: Measurement) -> dict[str, Any] | None:
    content = _phase(measurement, "decode")
    steps = stats.steps(measurement)
    if content is None or steps is None:
        return content
    return content | {"step_p50_s": steps.p50_s, "step_p95_s": steps.p95_s, "step_p99_s": steps.p99_s}
