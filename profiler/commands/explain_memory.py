"""The memory of one case on the page of `profile explain`: from load to decode, and predicted beside measured."""

from __future__ import annotations

from typing import Any

from profiler.commands import listing
from profiler.predict.explanation import Explanation
from profiler.results.measurement import Measurement, Memory
from profiler.results.memory_parts import unaccounted_bytes
from profiler.units import bytes_text

SHOWN_CHANGES = 3
NOTHING = Memory()


def rows(found: Explanation, measured: Measurement | None) -> list[dict[str, Any]]:
    """Part, predicted and measured bytes; unknown is null."""
    terms, memory = found.terms, measured.memory if measured else NOTHING
    retained = memory.retained_bytes or 0
    prefill = memory.prefill_activation_bytes
    parts: list[tuple[str, float | None, int | None]] = [
        ("weights", terms.weights.value, memory.weights_bytes),
        ("framework", terms.framework.value, memory.framework_bytes),
        ("cache", terms.cache.value, memory.cache_bytes),
        ("cache, growing layers", None, memory.growing_cache_bytes),
        ("cache, window layers", None, memory.window_cache_bytes),
        ("state, recurrent layers", None, memory.recurrent_bytes),
        ("prefill buffers", terms.prefill.value, None if prefill is None else prefill + retained),
        ("decode buffers", terms.decode.value, memory.decode_activation_bytes),
        ("graph pool", None, memory.graph_pool_bytes),
        ("checkpoint, left mapped", None, memory.left_mapped_bytes),
        ("not accounted for", None, unaccounted_bytes(memory)),
        ("peak of both phases", terms.peak.value, memory.phases_process_bytes),
        ("peak of loading", None, memory.load_peak_bytes),
    ]
    return [{"part": part, "bytes": value, "measured_bytes": known} for part, value, known in parts]


def lines(found: Explanation, measured: Measurement | None, output: str) -> list[str]:
    """From loading to decode, what sets each, what was measured of it, and what to change."""
    terms = found.terms
    loaded, cache = terms.loaded.value, terms.cache.value
    text = [
        f"memory: loaded {bytes_text(loaded)} (weights {bytes_text(terms.weights.value)},"
        f" runtime {bytes_text(terms.framework.value)})",
        f"  → prefill {bytes_text(loaded + cache + terms.prefill.value)}: cache {bytes_text(cache)},"
        f" {bytes_text(terms.prefill.value)} for {terms.prefill_reason}",
        f"  → decode {bytes_text(loaded + cache + terms.decode.value)}: cache {bytes_text(cache)},"
        f" {bytes_text(terms.decode.value)} for {terms.decode_reason}",
        f"  the peak is in {terms.peak_phase}: {bytes_text(terms.peak.value)}"
        f" ({bytes_text(terms.peak.low)} – {bytes_text(terms.peak.high)})",
    ]
    if terms.host.value:
        text.append(f"  and {bytes_text(terms.host.value)} in the host's memory")
    if measured is not None and measured.memory.phases_process_bytes is not None:
        text += ["", *_beside(found, measured, output)]
    if found.changes:
        best, *others = found.changes[:SHOWN_CHANGES]
        text.append(f"what frees most: {best.words}, {bytes_text(best.freed_bytes)}")
        text += [f"  then {change.words}, {bytes_text(change.freed_bytes)}" for change in others]
    return text


def _beside(found: Explanation, measured: Measurement, output: str) -> list[str]:
    """A table of the parts that are or were to be had, and what the sliding layers keep without need."""
    known = [row for row in rows(found, measured) if row["bytes"] or row["measured_bytes"]]
    cells = [
        {
            "part": row["part"],
            "predicted": bytes_text(row["bytes"]),
            "measured": bytes_text(row["measured_bytes"]),
        }
        for row in known
    ]
    retained = measured.memory.retained_bytes
    kept = f"prefill buffers hold {bytes_text(retained)} behind views of sliding layers until the first decode step"
    return [listing.render(cells, dict, output), *([kept] if retained else [])]
