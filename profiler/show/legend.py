"""The legend below a table of rows."""

from __future__ import annotations

from collections.abc import Sequence

from profiler.results import quality, stats
from profiler.results.measurement import PHASES, Measurement
from profiler.show.columns import BASES, BUSY, distinct_settings, noisy_word, plain

SCOPES = {  # what the energy figures cover
    "gpu-board": "the GPU's board alone",
    "cpu-package": "the CPU alone, without memory and other parts",
    "fake": "a simulated device",
}


def legend(measurements: Sequence[Measurement], titles: str | None = None) -> str | None:
    """Explanations of ±, ranges and joules, if the rows have them; ``titles``: of the columns that are shown, if a
    narrow table may lack some.
    """

    def shown(*names: str) -> bool:
        return titles is None or any(name in titles for name in names)

    summaries = [summary for m in measurements for phase in PHASES if (summary := stats.rate(m, phase))]
    parts = []
    if any(summary.low is not None and not summary.busy for summary in summaries):
        served = [m.case.server is not None for m in distinct_settings(measurements)]
        parts += [] if all(served) else ["t/s: median of the repetitions, all sequences together"]
        parts += ["t/s of a server: median of the requests, per stream; prefill from TTFT"] if any(served) else []
        between = any(summary.between for summary in summaries)
        included = ", which includes process-to-process variation" if between else ""
        parts.append(f"±: distance from the median to the farther end of its 95% interval{included}")
    words = dict.fromkeys(noisy_word(each) for each in summaries if each.wide)
    if BUSY in words:
        del words[BUSY]
        parts.append(f"{BUSY}: measured while other processes held the CPU; the range is not the model's speed")
    if words:
        what = " or ".join(words)
        parts.append(f"{what}: the interval exceeds ±{stats.WIDE:.0%}; the range is that of the repetitions")
    bases = dict.fromkeys(used["basis"] for m in measurements if (used := m.expected.get("utilization")))
    if bases and shown("MFU", "MBU"):
        whose = " or ".join(BASES.get(basis, plain(basis)) for basis in bases)
        parts.append(f"MFU, MBU: FLOPs of prefill and bytes of decode ÷ seconds ÷ the device's rate {whose}")
    references = dict.fromkeys(dtype for m in measurements if (dtype := quality.reference_dtype(m.quality)))
    if references and shown("KL"):
        whose = " or ".join(plain(dtype) for dtype in references)
        parts.append(f"KL: how far predictions are from those of the reference in {whose}, mean over a set of texts")
        scales = filter(None, (quality.scale(m.quality) for m in measurements))
        if differ := quality.apart(scales):
            parts[-1] += (
                f"; compare only rows with the same {' and '.join(what.removeprefix('the ') for what in differ)}"
            )
    scopes = dict.fromkeys(m.energy.scope for m in measurements if m.energy and m.energy.scope)
    if scopes and shown("J"):
        whose = " or of ".join(SCOPES.get(scope, plain(scope)) for scope in scopes)
        parts.append(f"J: energy per prompt token and per output token of {whose}, idle power included")
    return "; ".join(parts) or None
