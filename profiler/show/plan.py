"""The output of ``profile sweep`` besides its rows: the plan as a table, warnings before, and messages after."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from profiler.case import Case, Task
from profiler.errors import ProfileError
from profiler.results.measurement import Measurement
from profiler.results.store import StoredRow
from profiler.run.grid import Subject
from profiler.run.plan import SweepPlan
from profiler.run.refusal import Refusal
from profiler.show import output as show_output
from profiler.show.columns import stated
from profiler.units import UNKNOWN, bytes_text, printable, seconds_text

LONG_S = 600.0  # for longer sweeps a warning is printed first
REASON_LENGTH = 300
DROPPED = ("compute", "source", "cache", "load", "weights")  # by a terminal that is too narrow, the first first


def render(
    plan: SweepPlan,
    reused: Mapping[Case, StoredRow],
    available_bytes: int,
    output: str,
    subjects: Sequence[Subject] = (),
) -> str:
    """The plan as a table with notes: the cases that would run, in order, then those that reuse a row or are skipped.

    JSON rows also contain the notes on each model. A table has no room for them; ``about`` returns them as lines.
    Raises ProfileError for a format that exists for measurements only.
    """
    if output not in show_output.FORMATS:
        raise ProfileError(f"--dry-run does not support -o {output}", f"Known: {', '.join(show_output.FORMATS)}.")
    rows = [_row(task.case, "run") | _estimates(task, available_bytes) for task in plan.tasks]
    rows += [_row(case, "stored", f"measured in run {row.run}") | _measured(row) for case, row in reused.items()]
    rows += [_row(task.case, "skip", task.reason) | _sizes(task) for task in plan.skipped]
    by_model = {subject.model_id: subject.notes for subject in subjects}
    cases = [*(task.case for task in plan.tasks), *reused, *(task.case for task in plan.skipped)]
    for row, case in zip(rows, cases, strict=True):
        row["cautions"] = [{"code": each.code, "text": each.text} for each in by_model.get(case.model_id, ())]
    more = [name for name in ("path", "options") if len({row[name] for row in rows}) > 1]

    def shown(row: show_output.JsonRow) -> dict[str, str]:
        return _shown(row, more)

    same_batch = len({row["batch"] for row in rows}) == 1
    text = show_output.render(rows, shown, output, (*DROPPED, *["batch"] * same_batch, "run", "peak"), prose="reason")
    columns = text.partition("\n")[0].split()
    notes = _notes(plan) if output in ("table", "md") else []
    notes = [note for note in notes if note.partition(":")[0] in columns]  # a narrow terminal leaves some out
    return text + "\n" * bool(notes) + "".join(f"{note}\n" for note in notes)


def _notes(plan: SweepPlan) -> list[str]:
    """What the columns ``load`` and ``run`` do not show by themselves."""
    loads, growing = Counter(task.case.load_key for task in plan.tasks), dict[tuple[Any, ...], list[float]]()
    for task in plan.tasks:
        alike = task.case.load_key, task.case.batch, task.case.steps
        growing.setdefault(alike, []).append(task.run_s)
    notes = []
    if any(cases > 1 for cases in loads.values()):
        notes.append("load: paid once by cases that share a worker.")
    if any(later < earlier for runs in growing.values() for earlier, later in pairwise(runs)):
        notes.append("run: slower cases repeat fewer times, so a larger one can take less time.")
    return notes


def about(subjects: Sequence[Subject]) -> list[str]:
    """The notes on the models of a plan, one line each."""
    return [f"{printable(each.name, 60)}: {note.text}" for each in subjects for note in each.notes]


def summary(plan: SweepPlan) -> str:
    """The plan in one line."""
    if not plan.tasks:
        return "nothing to run"
    loads = len({task.case.load_key for task in plan.tasks})
    cases, models = len(plan.tasks), "model load" if loads == 1 else "model loads"
    return f"{cases} case{'s' * (cases != 1)} to run, {loads} {models}, about {seconds_text(plan.seconds)}"


def _row(case: Case, action: str, reason: str | None = None) -> dict[str, Any]:
    names = ("model", "weights", "quant", "dtype", "device", "backend", "path", "context", "batch", "steps", "fill")
    return {name: getattr(case, name) for name in (*names, "options")} | {
        "key": case.key,
        "action": action,
        "reason": reason,
        "note": None,
        "load_s": None,
        "run_s": None,
        "may_not_fit": False,
        "weights_bytes": None,
        "cache_bytes": None,
        "peak_bytes": None,
    }


def _estimates(task: Task, available_bytes: int) -> dict[str, Any]:
    assert task.estimate is not None
    return _sizes(task) | {
        "load_s": task.load_s,
        "run_s": task.run_s,
        "may_not_fit": task.estimate.peak.high > available_bytes,
        "note": "; ".join(filter(None, (task.note, task.estimate.left_plain))) or None,
    }


def _sizes(task: Task) -> dict[str, Any]:
    """The predicted sizes of a task, in bytes; empty if it has no estimate."""
    predicted = task.estimate
    if predicted is None:
        return {}
    return {
        "weights_bytes": round(predicted.weights.value),
        "cache_bytes": round(predicted.cache.value),
        "peak_bytes": predicted.peak.to_json(),
    }


def _measured(row: StoredRow) -> dict[str, Any]:
    """The measured sizes of a stored case, in bytes."""
    found = row.measurement.memory
    peak = found.process_peak_bytes
    return {
        "weights_bytes": found.weights_bytes,
        "cache_bytes": found.cache_bytes,
        "peak_bytes": None if peak is None else {"value": peak, "low": peak, "high": peak, "basis": "measured"},
    }


def _shown(row: show_output.JsonRow, more: Sequence[str]) -> dict[str, str]:
    """The cells of a row; ``more``: settings of which the plan has more than one value."""
    peak = row["peak_bytes"]
    return {
        "model": printable(row["model"], 60),
        "source": row["weights"],
        "quant": row["quant"],
        "compute": stated(row["backend"], row["dtype"]),
        "context": f"{row['context']:,}",
        "batch": f"{row['batch']:,}",
        **{name: row[name] for name in more},
        "plan": "run (may not fit)" if row["may_not_fit"] else row["action"],
        "weights": bytes_text(row["weights_bytes"]),
        "cache": bytes_text(row["cache_bytes"]),
        "peak": UNKNOWN if peak is None else _range(bytes_text(peak["low"]), bytes_text(peak["high"])),
        "load": seconds_text(row["load_s"]),
        "run": seconds_text(row["run_s"]),
        "reason": row["reason"] or row["note"] or "",
    }


def _range(low: str, high: str) -> str:
    """``1.36–1.86 GiB``, ``740 MiB–1.34 GiB``."""
    if low == high:
        return low
    (number, _, unit), ends = low.partition(" "), high.rpartition(" ")[2]
    return f"{number if unit == ends else low}–{high}"


def warning(plan: SweepPlan, budget_s: float | None) -> str | None:
    """A warning that a sweep without a budget will take long, and what to do."""
    if budget_s is not None or plan.seconds <= LONG_S:
        return None
    return f"{summary(plan)}. --budget 30m limits it; --dry-run shows the plan"


def ending(rows: Sequence[Measurement], total: int, interrupted: bool, resumed: bool) -> str | None:
    """A message if a sweep of ``total`` cases was interrupted, or measured nothing; otherwise None."""
    measured = sum(row.outcome != "skipped" for row in rows)
    if interrupted:
        again = "the same command continues" if resumed else "the same command without --fresh continues"
        return f"stopped: {measured} of {total} {'case' if total == 1 else 'cases'} measured; {again}"
    if measured or not rows:
        return None
    return f"nothing measured: {printable(rows[0].case.label)}: {printable(rows[0].reason, REASON_LENGTH)}"


def refused(models: Sequence[Refusal]) -> str | None:
    """A reminder of refused models below the table, in case the first message has scrolled away."""
    if not models:
        return None
    names = ", ".join(printable(each.name, 80) for each in models)
    return f"no rows for {names}: refused, see above"
