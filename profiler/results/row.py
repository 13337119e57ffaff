"""The public result row that ``-o json`` and ``-o jsonl`` print, and its inverse.

Every other format is a view of this row.

docs/result-row.md documents names, units and meaning. Unknown is null, never 0; NaN cannot be written.
``schema`` counts incompatible changes; added fields do not change it.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import asdict
from dataclasses import fields as dataclass_fields
from operator import attrgetter
from typing import Any

from profiler.case import Case
from profiler.results import energy, quality, stats, tasks
from profiler.results.cautions import cautions
from profiler.results.measurement import (
    PHASES,
    SCHEMA,
    Caution,
    DecodePath,
    Measurement,
    Memory,
    Phase,
    Repetitions,
    Sample,
    unaccounted_bytes,
)
from profiler.results.redact import redact_json
from profiler.results.validity import MAX_NUMBER, check_columns, check_part, check_row, check_tokens

MAX_CACHED_ENVIRONMENTS = 64
_environments: dict[int, tuple[dict[str, Any], tuple[dict[str, Any], str]]] = {}  # by identity, which they keep

ENCODER = json.JSONEncoder(ensure_ascii=True, allow_nan=False, separators=(", ", ": "))
COLUMNS = {"cpu_s": "cpu_seconds", "wait_s": "wait_seconds"}  # names of sample fields in a row
MEMORY = {each.name for each in dataclass_fields(Memory)}  # a row also has figures derived from them


def row(run: str | None, measurement: Measurement) -> dict[str, Any]:
    """One measurement as JSON; ``run`` is the id of the run it is shown for, if it is stored."""
    content = _without_environment(run, measurement)
    content["environment"] = _clean(measurement.environment)[0]
    return content


def own_rows(run: str | None, measurements: Iterable[Measurement]) -> list[dict[str, Any]]:
    """``row`` of each measurement, for callers that may modify the rows. Those of one environment share a copy of
    it."""
    copies: dict[int, tuple[dict[str, Any], dict[str, Any]]] = {}  # by identity, which they keep
    rows = []
    for measurement in measurements:
        environment = measurement.environment
        if id(environment) not in copies:
            copies[id(environment)] = environment, deepcopy(_clean(environment)[0])
        content = _without_environment(run, measurement)
        rows.append(content | {"environment": copies[id(environment)][1]})
    return rows


def line(run: str | None, measurement: Measurement) -> str:
    """``dumps(row(run, measurement))``, but faster: most rows share an environment, which is nine tenths of the
    text."""
    start = dumps(_without_environment(run, measurement))
    return f'{start[:-1]}, "environment": {_clean(measurement.environment)[1]}}}'


def _without_environment(run: str | None, measurement: Measurement) -> dict[str, Any]:
    case, medians = measurement.case, stats.medians(measurement)
    content = {
        "schema": SCHEMA,
        "run": run,
        "case": _flat(case),
        "key": None,
        "outcome": measurement.outcome,
        "reason": measurement.reason,
        "prefill": _phase(measurement, "prefill"),
        "decode": _decode(measurement),
        "path": asdict(measurement.decode_path) if measurement.decode_path else None,
        "checkpoint": measurement.checkpoint or None,
        "serving": tasks.content(measurement.serving),
        "memory": _flat(measurement.memory) | {"unaccounted_bytes": unaccounted_bytes(measurement.memory)},
        "energy": _energy(measurement),
        "quality": quality.content(measurement.quality),
        "ceiling": stats.ceiling(measurement, medians),
        "predicted": stats.predicted(measurement),
        "cautions": [asdict(caution) for caution in cautions(measurement, medians)],
        "load_s": measurement.load_s,
        "case_s": measurement.case_s,
        "start_s": measurement.start_s,
        "threads": measurement.threads,
        "started_at": measurement.started_at,
        "asked": measurement.asked,
    }
    clean: dict[str, Any] = redact_json(content)
    clean["key"] = case.key  # a digest, different in every row: redacting each would take long
    return clean


def _clean(environment: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """An environment without secrets, and its text; the last few are cached."""
    known = _environments.get(id(environment))
    if known is None or known[0] is not environment:
        clean: dict[str, Any] = redact_json(environment)
        known = environment, (clean, dumps(clean))
        if len(_environments) >= MAX_CACHED_ENVIRONMENTS:
            _environments.clear()
        _environments[id(environment)] = known
    return known[1]


def dumps(content: dict[str, Any]) -> str:
    """One line of JSON. ASCII only, so that control and bidirectional characters in names cannot reach a terminal."""
    return ENCODER.encode(content)


def _phase(measurement: Measurement, phase: Phase) -> dict[str, Any] | None:
    summary = stats.rate(measurement, phase)
    if summary is None:
        return None
    tokens, warmups = [tokens for _, tokens in measurement.samples.timed(phase)], []
    invalid: list[dict[str, Any]] = []
    if measurement.samples.has("warmup"):
        warmups = [sample.seconds for sample in measurement.samples.record(phase) if sample.warmup]
    if measurement.samples.has("invalid"):
        invalid = [
            {"seconds": sample.seconds, "reason": sample.invalid}
            for sample in measurement.samples.record(phase)
            if sample.invalid is not None and not sample.warmup
        ]
    return {
        "tokens": statistics.median_low(tokens),  # of one repetition: the case determines it, unless a server counts
        "tokens_each": tokens if measurement.case.server else None,
        "seconds": measurement.samples.seconds(phase),
        "cpu_seconds": measurement.samples.column("cpu_s", phase),
        "wait_seconds": measurement.samples.column("wait_s", phase),
        "warmup_seconds": warmups,
        "invalid": invalid,
        "steady": stats.steady(warmups),  # null: too few warm-ups to tell
        "stopped": measurement.stopped.get(phase),
        "tps": _rounded(summary.median),
        "tps_low": _rounded(summary.low),
        "tps_high": _rounded(summary.high),
        "interval": summary.rule,
        "tps_stdev": summary.stdev,
        "tps_between": summary.between,  # process-to-process variation; null: unknown
        "between_basis": measurement.expected["between"]["basis"] if summary.between is not None else None,
    }


def _energy(measurement: Measurement) -> dict[str, Any] | None:
    content = energy.content(measurement)
    if content is None:
        return None
    return {name: _rounded(value) if isinstance(value, float) else value for name, value in content.items()}


def _flat(content: Case | Memory) -> dict[str, Any]:
    """``asdict`` for objects without lists or objects, and many times as fast."""
    names = content.__dataclass_fields__
    return dict(zip(names, attrgetter(*names)(content), strict=True))


def _rounded(value: float | None) -> float | None:
    """Without the last digits, in which ``exp`` and ``log`` differ between machines."""
    return None if value is None else float(f"{value:.12g}")


def _decode(measurement: Measurement) -> dict[str, Any] | None:
    content = _phase(measurement, "decode")
    steps = stats.steps(measurement)
    if content is None or steps is None:
        return content
    return content | {"step_p50_s": steps.p50_s, "step_p95_s": steps.p95_s, "step_p99_s": steps.p99_s}


def from_row(row: Mapping[str, Any]) -> Measurement:
    """The measurement of a public row, without what the row leaves out (the step times).

    Raises KeyError, TypeError, ValueError or AttributeError for invalid content (``validity``).
    """
    if not isinstance(row, Mapping):
        raise ValueError("it is not an object")
    if type(row["schema"]) is not int or row["schema"] > SCHEMA:
        raise ValueError("a newer version of profile wrote it")
    memory = row["memory"]
    content: dict[str, Any] = {
        **{name: row[name] for name in ("case", "outcome", "reason", "load_s", "threads", "started_at")},
        "memory": {name: value for name, value in memory.items() if name in MEMORY},
        **{name: row[name] for name in ("cautions", "asked", "environment")},
        "decode_path": row.get("path"),
        "expected": _expected(row),
        "checkpoint": row.get("checkpoint") or {},
        "serving": tasks.stored(row.get("serving")),
        "quality": quality.stored(row.get("quality")),
    }
    check_row(content, "path")
    content["expected"] |= _ceilings(row)
    check_part("expected", content["expected"])
    path = content["decode_path"]
    return Measurement(
        **content
        | {
            "case": Case.from_row(content["case"]),
            "samples": Repetitions(sample for phase in PHASES for sample in _samples(phase, row[phase], row["case"])),
            "memory": Memory(**content["memory"]),
            "cautions": tuple(Caution(**caution) for caution in content["cautions"]),
            "decode_path": DecodePath(**path) if path else None,
        }
    )


def _expected(row: Mapping[str, Any]) -> dict[str, Any]:
    """The process-to-process variation, without which an interval would be narrower than the row's own."""
    phases = {phase: row[phase] for phase in PHASES if row[phase] is not None}
    known = {phase: value for phase, each in phases.items() if (value := each.get("tps_between")) is not None}
    if not known:
        return {}
    if not all(type(value) in (int, float) and 0 <= value < 1 for value in known.values()):
        raise ValueError("tps_between, the process-to-process variation, is not a number from 0 to 1")
    return {"between": {**known, "basis": next(phases[phase].get("between_basis") for phase in known)}}


def _ceilings(row: Mapping[str, Any]) -> dict[str, Any]:
    """The seconds at the ceilings, from the shares of them that the row states (the inverse of ``stats.shares``)."""
    stated = row.get("ceiling")
    if not isinstance(stated, Mapping):
        return {}
    case = Case.from_row(row["case"])
    count = stats.sequences(case)
    tokens = {"prefill": count * case.context, "decode": count}

    def seconds(share: Any, phase: Phase) -> float | None:
        tps = (row[phase] or {}).get("tps")
        if share is None or tps is None:
            return None
        if any(type(each) not in (int, float) or not 0 < each < MAX_NUMBER for each in (share, tps)):
            raise ValueError(f"the share of the ceiling of {phase} is not a number above 0")
        return float(share) * tokens[phase] / float(tps)

    found: dict[str, Any] = {"decode_bound": stated["bound"]} if stated.get("bound") is not None else {}
    used = seconds(stated.get("prefill_mfu"), "prefill"), seconds(stated.get("decode_mbu"), "decode")
    if stated.get("basis") is not None and used != (None, None):
        found["utilization"] = {"prefill_s": used[0] or 0.0, "step_s": used[1] or 0.0, "basis": stated["basis"]}
    each = seconds(stated.get("prefill_fraction"), "prefill"), seconds(stated.get("decode_fraction"), "decode")
    if each != (None, None):
        found["ceiling_s"] = {"prefill": each[0] or 0.0, "step": each[1] or 0.0}
    return found


def _samples(phase: Phase, content: Mapping[str, Any] | None, case: Mapping[str, Any]) -> Iterable[Sample]:
    if content is None:
        return []
    seconds = content["seconds"]
    count = len(seconds)
    cpu, waited = (content.get(name) or [None] * count for name in ("cpu_seconds", "wait_seconds"))
    tokens = content.get("tokens_each") or [content["tokens"]] * count
    columns = {
        "phase": [phase] * count,
        "seconds": seconds,
        "tokens": tokens,
        "cpu_s": cpu,
        "wait_s": waited,
        "step_s": [0] * count,
    }
    check_columns(columns, phase, COLUMNS)
    check_tokens(case, columns["phase"], columns["tokens"])
    return [Sample(phase, s, n, cpu_s=c, wait_s=w) for s, n, c, w in zip(seconds, tokens, cpu, waited, strict=True)]
