"""Compares predictions with published decode and prefill rates, leaving out each device in turn. Writes
``accuracy.md``.

    python benchmarks/accuracy.py

For comparison, it scores two other predictors on the same rows: the plain roofline (bytes over the data sheet's
bandwidth), and the formula of llmfit 1.1.17 (``llmfit-core/src/fit.rs``) with its bytes per weight.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import fit_efficiency
import left_out
import numpy as np
import published_rows
from left_out import Judged
from published_rows import Row

RESULT = Path(__file__).parent / "accuracy.md"
LLMFIT_EFFICIENCY = 0.55
# bytes per weight by the beginning of a quantization's name: for speed, and as stored
LLMFIT_BYTES = {"q4": 0.5, "q8": 1.0, "q6": 0.75, "q5": 0.625, "q3": 0.375, "q2": 0.25, "bf": 2.0, "fp": 1.0}
LLMFIT_BYTES |= {"nv": 0.5, "iq2": 0.25, "iq3": 0.375, "iq4": 0.5}
LLMFIT_PACKED = {"q4": 0.58, "q8": 1.05, "q6": 0.80, "q5": 0.68, "q3": 0.48, "q2": 0.37, "bf": 2.0, "fp": 1.05}
LLMFIT_PACKED |= {"nv": 0.58, "iq2": 0.37, "iq3": 0.48, "iq4": 0.58}
LLMFIT_FIXED_BYTES = 3.2  # per parameter outside the experts
LLMFIT_PRESSURE_FROM, LLMFIT_PRESSURE_LEAST = 0.6, 0.3
WORST = 15


@dataclass(frozen=True, slots=True)
class ErrorSummary:
    """Relative errors of rates; positive means predicted too fast."""

    name: str
    errors: Sequence[float]
    covered: float | None = None

    def line(self) -> str:
        """A row of the table."""
        errors = np.array(self.errors)
        cover = "–" if self.covered is None else f"{self.covered:.0%}"
        return (
            f"| {self.name} | {len(errors)} | {np.abs(errors).mean():.1%} | {np.median(np.abs(errors)):.1%}"
            f" | {np.median(errors):+.1%} | {np.quantile(np.abs(errors), 0.9):.0%} | {cover} |"
        )


HEAD = (
    "| rows | n | MAPE | median | signed median | 9 of 10 within | 90% interval covers |\n"
    "|---|--:|--:|--:|--:|--:|--:|"
)


def roofline(row: Row) -> float:
    """Tokens per second if every byte came at the data sheet's bandwidth and nothing else took time."""
    return row.target.bandwidth_bytes_s / row.decode_work().nbytes


def llmfit(row: Row) -> float:
    """llmfit's estimate for one GPU: a dense model by all parameters, a mixture of experts by its active ones."""
    key = row.request.quant[:3] if row.request.quant.startswith("iq") else row.request.quant[:2]
    total, bandwidth = row.geometry.parameters, row.target.bandwidth_bytes_s
    if not row.experts:
        return bandwidth / (total * LLMFIT_BYTES[key]) * LLMFIT_EFFICIENCY
    routed = sum(layer.routed * count for layer, count in row.geometry.groups)
    share = next(m.top_k / m.count for layer, _ in row.geometry.groups if (m := layer.mlp).kind == "experts")
    fixed, packed = total - routed, LLMFIT_PACKED[key]
    usage = min(1.0, total * packed / max(row.target.memory_bytes, 1))
    pressure = max(LLMFIT_PRESSURE_LEAST, 1 - max(0.0, usage - LLMFIT_PRESSURE_FROM) * (1 - share))
    return bandwidth / (routed * share * packed + fixed * LLMFIT_FIXED_BYTES) * pressure


def main() -> None:
    """Predict, compare, and write the page."""
    used, left = published_rows.rows()
    decode = left_out.judge(used, fit_efficiency.start(), "decode")
    prefill = left_out.judge(used, fit_efficiency.start(), "prefill")
    RESULT.write_text("\n".join(page(used, left, decode, prefill)) + "\n", encoding="utf-8")
    print(RESULT.read_text(encoding="utf-8").split("## Residuals")[0], file=sys.stderr)


def page(
    used: Sequence[Row], left: Sequence[published_rows.ExcludedRow], decode: list[Judged], prefill: list[Judged]
) -> list[str]:
    """The lines of ``accuracy.md``."""
    return [
        "# How far predictions are off",
        "",
        f"Written by `benchmarks/accuracy.py`. {len(used)} published single-stream rows (tiers A and B) on"
        f" {len({row.target.name for row in used})} devices; each device is predicted by a fit to all others.",
        "",
        "## Decode",
        "",
        HEAD,
        *(summary.line() for summary in summaries(decode)),
        "",
        "The same rows with other predictors, for decode rates:",
        "",
        HEAD,
        *(summary.line() for summary in others(used)),
        "",
        "## Prefill",
        "",
        HEAD,
        *(summary.line() for summary in summaries(prefill) if summary.errors),
        "",
        "## Several devices",
        "",
        "The fit uses none of these rows.",
        "",
        "| case | engine | measured t/s | predicted | error |",
        "|---|---|--:|--:|--:|",
        *several_lines(),
        "",
        "## The noise floor",
        "",
        *noise(used),
        "",
        "## Residuals by cause",
        "",
        "Decode, with the device left out. A cause that the model lacks would show as a signed median.",
        "",
        HEAD,
        *(summary.line() for summary in by_cause(decode)),
        "",
        "By device:",
        "",
        HEAD,
        *(summary.line() for summary in grouped(decode, lambda j: j.row.target.name)),
        "",
        f"The {WORST} worst rows:",
        "",
        "| line | case | measured t/s | predicted | error |",
        "|--:|---|--:|--:|--:|",
        *(worst_line(j) for j in sorted(decode, key=lambda j: -abs(j.error))[:WORST]),
        "",
        *LIMITS,
        "",
        "## Rows left out",
        "",
        "| line | row | why |",
        "|--:|---|---|",
        *(f"| {entry.line} | {entry.what} | {entry.reason} |" for entry in left),
    ]


def summaries(judged: list[Judged]) -> list[ErrorSummary]:
    """All rows, and the classes that have targets."""
    classes: dict[str, Callable[[Judged], bool]] = {
        "**all**": lambda j: True,
        "dense models": lambda j: not j.row.experts,
        "mixtures of experts": lambda j: j.row.experts,
        "llama.cpp": lambda j: j.row.engine.name == "llama.cpp",
        "vllm": lambda j: j.row.engine.name == "vllm",
    }
    found = [summary(name, [j for j in judged if holds(j)]) for name, holds in classes.items()]
    devices = [np.mean([abs(j.error) for j in group]) for group in by_device(judged).values()]
    return [*found, ErrorSummary("each device once (mean of its rows)", devices)] if judged else []


def summary(name: str, judged: Sequence[Judged]) -> ErrorSummary:
    """The summary of some rows."""
    covered = sum(j.covered for j in judged) / len(judged) if judged else None
    return ErrorSummary(name, [j.error for j in judged], covered)


def others(used: Sequence[Row]) -> list[ErrorSummary]:
    """The roofline and llmfit, for all rows and by class."""
    found = []
    for name, formula in (("plain roofline", roofline), ("llmfit 1.1.17", llmfit)):
        for part, keep in (("all", (True, False)), ("dense", (False,)), ("experts", (True,))):
            rows = [row for row in used if row.experts in keep]
            found.append(ErrorSummary(f"{name}, {part}", [formula(row) / row.decode_tps - 1 for row in rows]))
    return found


def by_device(judged: Iterable[Judged]) -> dict[str, list[Judged]]:
    """A line per device."""
    groups: dict[str, list[Judged]] = defaultdict(list)
    for entry in judged:
        groups[entry.row.target.name].append(entry)
    return groups


def grouped(judged: Sequence[Judged], key: Callable[[Judged], str]) -> list[ErrorSummary]:
    """A summary per value of ``key``."""
    groups: dict[str, list[Judged]] = defaultdict(list)
    for entry in judged:
        groups[key(entry)].append(entry)
    return [summary(name, groups[name]) for name in sorted(groups)]


def by_cause(judged: Sequence[Judged]) -> list[ErrorSummary]:
    """Summaries by properties that the model knows of a row."""
    keys: tuple[Callable[[Judged], str], ...] = (
        lambda j: f"engine {j.row.engine.name}",
        lambda j: f"vendor {j.row.target.vendor}, {j.row.target.kind}",
        lambda j: "experts" if j.row.experts else "dense",
        lambda j: f"quantization {j.row.request.quant}",
        lambda j: f"family {j.row.model.split('-')[0]}",
        lambda j: f"reads {_size(j.row.decode_work().nbytes)}",
        lambda j: f"depth {'above' if j.row.depth > 8192 else 'up to'} 8k",
    )
    return [entry for key in keys for entry in grouped(judged, key)]


def noise(used: Sequence[Row]) -> list[str]:
    """How far sources differ on the same model, quantization, engine and device at similar depth."""
    groups: dict[tuple[str, ...], list[Row]] = defaultdict(list)
    for row in used:
        depth = "deep" if row.depth > 8192 else "shallow"
        groups[row.model, row.request.quant, row.engine.name, row.target.name, depth].append(row)
    pairs = [
        (key, max(r.decode_tps for r in rows) / min(r.decode_tps for r in rows) - 1)
        for key, rows in groups.items()
        if len({row.source for row in rows}) > 1 and len({_origin(row) for row in rows}) > 1
    ]
    if not pairs:
        return ["No case was published by two sources."]
    lines = [f"{len(pairs)} cases were published by more than one source; fastest ÷ slowest − 1:", ""]
    lines += [f"- {' · '.join(key)}: {gap:.0%}" for key, gap in sorted(pairs, key=lambda pair: -pair[1])]
    return [
        *lines,
        "",
        f"Median gap {np.median([gap for _, gap in pairs]):.0%}; no formula can be closer to both than half of that.",
    ]


def several_lines() -> list[str]:
    """Published rows for several identical devices."""
    lines = []
    for raw, predicted in published_rows.several():
        measured = float(raw["decode_tps"])
        what = f"{raw['model']} {raw['quant']} on {raw['device']}"
        error = f"{predicted / measured - 1:+.0%}"
        lines.append(f"| {what} | {raw['engine']} | {measured:.1f} | {predicted:.1f} | {error} |")
    return lines


def worst_line(judged: Judged) -> str:
    """One of the worst rows."""
    row = judged.row
    what = f"{row.model} {row.request.quant} at {row.depth:,} on {row.target.name}, {row.engine.name}"
    return f"| {row.line} | {what} | {1 / judged.measured:.1f} | {1 / judged.predicted:.1f} | {judged.error:+.0%} |"


LIMITS = [
    "## What this does not show",
    "",
    "- vllm has rows for one device only. With it left out, its rows are predicted from llama.cpp's fit alone.",
    "- Eager transformers has no published rows: its parameters are priors, and `profile calibrate` measures them.",
    "- The priors of the two engines (`benchmarks/fitting.py`) were set with these rows in mind. They are wide.",
    "- Half of the rows for prefill at 1,024 tokens include a server's first-request costs, so they are slower.",
]


def _origin(row: Row) -> str:
    return row.source.split("#")[0].split("@")[0].split(" ")[0]


def _size(nbytes: float) -> str:
    for limit in (2, 6, 20):
        if nbytes < limit * 1e9:
            return f"up to {limit:02d} GB"
    return "more than 20 GB"


if __name__ == "__main__":
    main()
