"""What does not vary, or hardly: bytes and tokens, compared with a base or a stored baseline without statistics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from profiler.gate import step
from profiler.gate.verdict import Verdict
from profiler.results.measurement import Measurement
from profiler.units import bytes_text


@dataclass(frozen=True, slots=True)
class Bound:
    """How far a figure may be from the base's. ``of``: what it depends on beside the case."""

    above: float  # relative
    below: float | None  # None: less is no failure
    of: Literal["workload", "machine"]


ALLOCATED = 0.005  # blocks of the allocator are rounded, and which ones are split depends on the order of frees
PROCESS = 0.10  # resident pages of libraries, thread stacks, arenas: percents of a small model from run to run
BOUNDS: dict[str, Bound] = {
    "weights_bytes": Bound(0.0, 0.0, "workload"),
    "cache_bytes": Bound(0.0, 0.0, "workload"),
    "prefill_tokens": Bound(0.0, 0.0, "workload"),
    "decode_tokens": Bound(0.0, 0.0, "workload"),
    "prefill_allocated_bytes": Bound(ALLOCATED, None, "machine"),
    "decode_allocated_bytes": Bound(ALLOCATED, None, "machine"),
    "process_peak_bytes": Bound(PROCESS, None, "machine"),
}


def facts(row: Measurement) -> dict[str, int]:
    """What a row has of ``BOUNDS``. Allocated bytes exist where the device counts live tensors (CUDA)."""
    memory = row.memory
    found = {
        "weights_bytes": memory.weights_bytes,
        "cache_bytes": memory.cache_bytes,
        "prefill_tokens": next((sample.tokens for sample in row.of("prefill")), None),
        "decode_tokens": next((sample.tokens for sample in row.of("decode")), None),
        "process_peak_bytes": memory.process_peak_bytes,
    }
    if row.case.device.partition(":")[0] != "cpu":
        found["prefill_allocated_bytes"] = memory.prefill_peak_bytes
        found["decode_allocated_bytes"] = memory.decode_peak_bytes
    return {name: value for name, value in found.items() if value is not None}


def verdicts(
    cell: str,
    before: Mapping[str, int],
    now: Mapping[str, int],
    against: str,
    same_machine: bool = True,
    if_meant: str | None = None,
    other_step: str | None = None,
) -> list[Verdict]:
    """One for each figure that either side has. ``against`` names the other side to people: the base, the
    baseline. ``if_meant`` tells them what to do about a change that is no mistake, where there is something.
    ``other_step`` says that the sides ran different decode steps, where they did.
    """
    found = []
    for name, bound in BOUNDS.items():
        before_, now_ = before.get(name), now.get(name)
        if before_ is None and now_ is None:
            continue
        if other_step and name in step.FIGURES:
            found.append(Verdict(cell, name, "INCOMPARABLE", other_step, step.ADVICE, before=before_, now=now_))
        else:
            found.append(_verdict(cell, name, bound, before_, now_, against, same_machine, if_meant))
    return found


def _verdict(
    cell: str,
    name: str,
    bound: Bound,
    before: int | None,
    now: int | None,
    against: str,
    same_machine: bool,
    if_meant: str | None,
) -> Verdict:
    if bound.of == "machine" and not same_machine:
        reason = f"it depends on the machine and its software, which are not those of {against}"
        return Verdict(cell, name, "INCOMPARABLE", reason, before=before, now=now)
    if before is None or now is None:
        word = "INCOMPARABLE" if before is None else "FAIL"
        who = against if before is None else "the candidate"
        return Verdict(cell, name, word, f"{who} has no such figure", before=before, now=now)  # type: ignore[arg-type]
    ratio = now / before if before else None
    parts = {"before": before, "now": now, "ratio": ratio}
    if now > before * (1 + bound.above):
        return Verdict(cell, name, "FAIL", _change(name, before, now), _advice(bound, if_meant), **parts)  # type: ignore[arg-type]
    if bound.below is not None and now < before * (1 - bound.below):
        reason = f"{_change(name, before, now)}: another workload, or an improvement that is to be accepted"
        return Verdict(cell, name, "FAIL", reason, _advice(bound, if_meant), **parts)  # type: ignore[arg-type]
    return Verdict(cell, name, "PASS", "the same" if now == before else _change(name, before, now), **parts)  # type: ignore[arg-type]


def _change(name: str, before: int, now: int) -> str:
    text = bytes_text if name.endswith("_bytes") else (lambda value: f"{value:,}")
    a, b = text(before), text(now)
    if a == b:  # too close for three digits
        a, b = f"{before:,}", f"{now:,}"
    return f"{a} → {b}"


def _advice(bound: Bound, if_meant: str | None) -> str | None:
    parts = ["find what holds it" if bound.of == "machine" else None, if_meant]
    return "; ".join(part for part in parts if part) or None
