"""Compares predictions with all published rows, leaving out each device in turn. Writes ``accuracy.md``.

    python benchmarks/accuracy.py

For comparison, it scores two other predictors on the rows of one sequence: the plain roofline (bytes over the data
sheet's bandwidth), and the formula of llmfit 1.1.17 (``llmfit-core/src/fit.rs``) with its bytes per weight.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import fit_efficiency
import interval_coverage
import left_out
import noise_floor
import numpy as np
import published_models
import published_rows
import published_truth
from left_out import ErrorSummary, Judged, summary
from published_rows import ExcludedRow, Row
from published_truth import HEAD

from profiler.cost.machine import Machine
from profiler.cost.prediction import Predictor
from profiler.models import hub
from profiler.units import GIB

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
LARGEST = 8  # contributions to a mean error
HOST_BYTES = 64 * GIB  # an assumption about hosts, for rows whose weights do not fit on the device
FAR = 0.6  # of an error: four times the usual one
FEW = 8  # figures below which a group has no line of its own
DEPTHS = (0, 4096, 16384, 65536)
M3_ULTRA, SPARK = "Apple M3 Ultra (80c)", "DGX Spark (GB10)"
SMALL = 5e9  # parameters
LONG = 1000  # tokens of a prompt


def prefilled(judged: Judged, engine: str, machine: str) -> bool:
    """Whether it is a prefill rate of an engine on a machine."""
    return judged.kind == "prefill" and (judged.row.engine.name, judged.row.target.title) == (engine, machine)


# Biased groups whose cause is known, or that we looked into in vain.
CAUSES: tuple[tuple[str, Callable[[Judged], bool], str], ...] = (
    (
        "decode by transformers",
        lambda j: j.kind == "decode" and j.row.engine.name == "transformers",
        "an eager step waits for Python, and hosts differ: an operator takes about 6 µs on that of the RTX 4090,"
        " 16 µs on that of the A100 and 22 µs on that of the T4.",
    ),
    (
        "batches in llama.cpp on four RTX 3090",
        lambda j: j.batched and j.row.engine.name == "llama.cpp" and j.row.target.title == "4x RTX 3090",
        "llama-server picks tokens on the host, one sequence after the other: 0.5 ms each with a vocabulary of 127"
        " thousand (llama.cpp issue 27050), and this model has 262 thousand. Predictions leave that out, as the"
        " programs that measure llama.cpp do.",
    ),
    (
        "decode by vLLM on one RTX 3090",
        lambda j: j.kind == "decode" and j.row.engine.name == "vllm" and j.row.target.title == "RTX 3090",
        "the source limits this card to 220 of its 350 W.",
    ),
    (
        "batches of Qwen 3.6 35B-A3B in vLLM",
        lambda j: j.batched and j.row.engine.name == "vllm" and j.row.model == "qwen3.6-35b-a3b",
        "two machines run this model slower than others of its kind, one of them half as fast as another source does"
        " on the same cards. We know no reason.",
    ),
    (
        "batches of Qwen 3.5 397B-A17B in NVFP4",
        lambda j: j.batched and j.row.model == "qwen3.5-397b-a17b" and j.row.request.quant == "nvfp4",
        "the rows do not say which layers their checkpoint keeps in 16 bits, and the two sources differ by up to"
        " 57%.",
    ),
    (
        "prefill by mlx on the M3 Ultra (80c)",
        lambda j: prefilled(j, "mlx", M3_ULTRA),
        "these rows are of mlx_lm itself. Without them, the fit rests on servers, whose own time is in their rates.",
    ),
    (
        "prefill by vLLM of mixtures of experts in bf16 on the DGX Spark",
        lambda j: prefilled(j, "vllm", SPARK) and j.row.request.quant == "bf16" and j.row.experts,
        "kernels for experts that were tuned for this chip reach 154 of the 356 TFLOP/s that others reach (NVIDIA's"
        " forum, thread 359960), which predictions include. vLLM has none for it, and Qwen 3.6 35B-A3B takes hardly"
        " less time in 8 bits than in 16.",
    ),
    (
        "prefill by vLLM of dense models with fewer than 5 billion parameters in bf16 on the DGX Spark",
        lambda j: (
            prefilled(j, "vllm", SPARK)
            and j.row.request.quant == "bf16"
            and j.row.geometry.parameters < SMALL
            and not j.row.experts
        ),
        "the median of each larger model is off by less than 10%. The time between matrix products is fitted to all"
        " machines, and this one has little bandwidth for its FLOP/s, so what the rule leaves out shows here first.",
    ),
    (
        "prefill by vLLM on four RTX PRO 6000",
        lambda j: prefilled(j, "vllm", "4x RTX PRO 6000 Blackwell"),
        "ten rows of one source. No other machine with prefills in vLLM has this generation. The error grows with the"
        " prompt, so attention may be faster there than on older cards.",
    ),
    (
        "prefill by llama.cpp on an MI300X",
        lambda j: prefilled(j, "llama.cpp", "MI300X"),
        "llama.cpp's products gain little from this chip's matrix units. Without these rows, the fit cannot know.",
    ),
    (
        "prefill by llama.cpp under Vulkan of 1,000 tokens and more",
        lambda j: j.phase == "prefill" and j.row.engine.name == "llama.cpp-vulkan" and j.row.prompt >= LONG,
        "attention is fitted to six rows. One of them, of TinyLlama on an RTX 4090, is from a GitHub issue about slow"
        " attention.",
    ),
    (
        "decode by llama.cpp on the M3 Max from 65,536 tokens",
        lambda j: (
            j.kind == "decode"
            and j.row.engine.name == "llama.cpp"
            and j.row.target.title == "Apple M3 Max (40c)"
            and j.row.depth >= DEPTHS[-1]
        ),
        "most of these rows are of Gemma 4, whose widest heads Metal reads more slowly than CUDA does.",
    ),
)


def roofline(row: Row) -> float:
    """Tokens per second if every byte came at the data sheet's bandwidth and nothing else took time."""
    return row.target.bandwidth_bytes_s / row.step().nbytes


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
    argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        prog="python benchmarks/accuracy.py",
    ).parse_args()
    used, left = published_rows.rows()
    judged, _ = left_out.judge(used, fit_efficiency.start(), note=lambda text: print(text, file=sys.stderr))
    write(used, left, judged)


def write(used: Sequence[Row], left: Sequence[ExcludedRow], judged: list[Judged]) -> None:
    """Write the page, and print its beginning."""
    RESULT.write_text("\n".join(page(used, left, judged)) + "\n", encoding="utf-8")
    print(RESULT.read_text(encoding="utf-8").split("## Other predictors")[0], file=sys.stderr)


def page(used: Sequence[Row], left: Sequence[ExcludedRow], judged: list[Judged]) -> list[str]:
    """The lines of ``accuracy.md``."""
    single = [row for row in used if row.aside is None and plain_decode(row)]
    return [
        "# How far predictions are off",
        "",
        *coverage(used, left),
        "",
        "Each device is predicted by a fit to all others, so these are the errors on devices that no row was fitted"
        " to. A rate is a figure of its own: most rows have one for prefill and one for decode. Rates of a batch are"
        " those of all sequences. «Signed median» is positive where predictions are too fast; «its width» is the"
        " median of the interval's upper ÷ lower bound.",
        "",
        HEAD,
        *(summary(name, [j for j in judged if holds(j)]).line() for name, holds in left_out.GROUPS.items()),
        "",
        *_by_case(judged),
        *interval_coverage.section(judged, left_out.GROUPS),
        "## Other predictors",
        "",
        "Decode rates of one sequence on one device, for engines that read GGUF files and for vLLM:",
        "",
        HEAD,
        *(entry.line() for entry in others(single, judged)),
        "",
        *noise_floor.section(judged),
        *_origins(judged),
        "## Residuals by cause",
        "",
        "A cause that the model lacks would show as a signed median.",
        "",
        HEAD,
        *(entry.line() for key in by_cause() for entry in grouped(judged, key)),
        "",
        "## By device",
        "",
        HEAD,
        *(entry.line() for entry in grouped(judged, lambda j: f"{j.row.target.name}, {j.kind}", 1)),
        "",
        f"## The {WORST} worst figures of each kind",
        "",
        "| file and line | case | measured t/s | predicted | error |",
        "|---|---|--:|--:|--:|",
        *(worst_line(j) for name in ("decode", "batch", "prefill") for j in worst(judged, name)),
        "",
        *published_truth.sections(used),
        "",
        "## Rows predicted and not judged with the others",
        "",
        *aside(used),
        "",
        *LIMITS,
        "",
        "## Rows that cannot be predicted",
        "",
        "| why | rows | lines |",
        "|---|--:|---|",
        *reasons(left),
    ]


def _by_case(judged: Sequence[Judged]) -> list[str]:
    return [
        "## By engine, batch and depth",
        "",
        HEAD,
        *(entry.line() for key in by_case() for entry in grouped(judged, key)),
        "",
    ]


def _origins(judged: Sequence[Judged]) -> list[str]:
    return [
        "## Where the mean error comes from",
        "",
        f"A few figures are far off. Those whose error is above {FAR:.0%}:",
        "",
        *(far_line(name, [j.error for j in judged if j.kind == name]) for name in left_out.KINDS),
        "",
        *contributions([(j.kind, j.row.engine.name, j.row.target.title, j.error) for j in judged]),
        "",
        "What is known of the largest biases that are left, with the number of figures and their signed median:",
        "",
        *(cause_line(name, [j.error for j in judged if holds(j)], why) for name, holds, why in CAUSES),
        "",
    ]


def coverage(used: Sequence[Row], left: Sequence[ExcludedRow]) -> list[str]:
    """How many rows of each file are predicted."""
    lines = ["| file | rows | predicted | of these judged | of models by shape alone |", "|---|--:|--:|--:|--:|"]
    known = set(hub.names())
    for file in published_rows.FILES:
        own = [row for row in used if row.file == file]
        total = len(own) + sum(entry.file == file for entry in left)
        judged = sum(row.aside is None for row in own)
        shaped = sum(row.model not in known for row in own)
        lines.append(f"| {file} | {total} | {len(own)} ({len(own) / total:.1%}) | {judged} | {shaped} |")
    devices = len({row.target.title for row in used})
    return [
        f"Written by `benchmarks/accuracy.py` from the rows in `benchmarks/published/`, of {devices} machines.",
        "",
        *lines,
        "",
        f"Models that the catalog does not have are predicted by their shape (`published/models.toml`,"
        f" {len(published_models.shapes())} models); a user predicts them with their `config.json` if their family is"
        " supported.",
    ]


def plain_decode(row: Row) -> bool:
    """Whether its decode rate is one that the other predictors know."""
    likes = row.engine.like in ("llama.cpp", "vllm") and row.engine.name != "tensorrt-llm"
    return row.decode_s is not None and row.batch == 1 and row.answer is None and row.target.count == 1 and likes


def by_case() -> tuple[Callable[[Judged], str], ...]:
    """Groups that a user asks for."""
    return (
        lambda j: f"{j.kind}, {j.row.engine.name}",
        lambda j: f"batch of {_power(j.row.batch)}" if j.batched else "",
        lambda j: (
            f"{j.kind}, {j.row.target.count} devices, {j.row.machine.split} split" if j.row.target.count > 1 else ""
        ),
        lambda j: f"{j.kind}, {_depth(j)}",
    )


def by_cause() -> tuple[Callable[[Judged], str], ...]:
    """Groups by properties that the model knows."""
    return (
        lambda j: f"{j.kind}, {j.row.target.vendor}, {j.row.target.kind}",
        lambda j: f"{j.kind}, {j.row.engine.name}, {j.row.target.generation}",
        lambda j: f"{j.kind}, {j.row.request.quant}",
        lambda j: f"{j.kind}, tier {j.row.tier}",
        lambda j: f"{j.kind}, {j.row.source}",
    )


def others(rows: Sequence[Row], judged: Sequence[Judged]) -> list[ErrorSummary]:
    """Ours, the roofline and llmfit on the same rows."""
    same = [row for row in rows if _llmfit_knows(row)]
    known = {(row.file, row.line) for row in same}
    ours = [j for j in judged if (j.row.file, j.row.line) in known and j.phase == "decode"]
    found = [summary("profile", ours)]
    for name, formula in (("plain roofline", roofline), ("llmfit 1.1.17", llmfit)):
        found.append(ErrorSummary(name, [formula(row) / row.decode_tps - 1 for row in same]))
    return found


def _llmfit_knows(row: Row) -> bool:
    key = row.request.quant[:3] if row.request.quant.startswith("iq") else row.request.quant[:2]
    return key in LLMFIT_PACKED


def grouped(judged: Sequence[Judged], key: Callable[[Judged], str], few: int = FEW) -> list[ErrorSummary]:
    """A summary per value of ``key`` that has enough figures."""
    groups: dict[str, list[Judged]] = defaultdict(list)
    for entry in judged:
        groups[key(entry)].append(entry)
    return [summary(name, groups[name]) for name in sorted(groups) if name and len(groups[name]) >= few]


def _power(batch: int) -> str:
    """``2``, ``3 to 4``, ``5 to 8`` and so on."""
    high = 2
    while high < batch:
        high *= 2
    return "2" if high == 2 else f"{high // 2 + 1:03d} to {high:03d}"


def _depth(judged: Judged) -> str:
    row = judged.row
    tokens = row.prefill_depth + row.prompt if judged.phase == "prefill" else row.depth
    return f"from {max(depth for depth in DEPTHS if depth <= tokens):05d} tokens"


def contributions(errors: Sequence[tuple[str, str, str, float]]) -> list[str]:
    """The engines and devices with the largest parts of each kind's mean error. ``errors``: kind, engine, device, and
    relative error of each figure.
    """
    lines = [
        "Points of the mean error of each kind, by engine and device. A few figures can make up a large part.",
        "",
        "| kind | engine and device | n | points | MAPE | signed median |",
        "|---|---|--:|--:|--:|--:|",
    ]
    for name in ("decode", "batch", "prefill"):
        own = [each for each in errors if each[0] == name]
        groups: dict[str, list[float]] = defaultdict(list)
        for _, engine, device, error in own:
            groups[f"{engine}, {device}"].append(error)
        largest = sorted(groups.items(), key=lambda item: -sum(map(abs, item[1])))[:LARGEST]
        for key, found in largest:
            total = sum(map(abs, found))
            lines.append(
                f"| {name} | {key} | {len(found)} | {total / len(own):.1%} | {total / len(found):.0%}"
                f" | {np.median(found):+.0%} |"
            )
    return lines


def far_line(kind: str, errors: Sequence[float]) -> str:
    """How much of the mean error of a kind is in few figures that are far off."""
    sizes, slower = np.abs(errors), np.asarray(errors) > FAR
    far = sizes > FAR
    part = sizes[far].sum() / sizes.sum()
    return (
        f"- {kind}: {far.sum()} of {len(errors)} figures, {slower.sum()} of them slower than predicted, make"
        f" {part:.0%} of the mean error. The others have a MAPE of {sizes[~far].mean():.1%}."
    )


def cause_line(name: str, errors: Sequence[float], why: str) -> str:
    """A biased group and what is known of its cause."""
    return f"- {name} ({len(errors)}, {np.median(errors):+.0%}): {why}"


def worst(judged: Sequence[Judged], name: str) -> list[Judged]:
    """The figures of a kind that are furthest off, by their ratio."""
    return sorted((j for j in judged if j.kind == name), key=lambda j: -abs(np.log(j.measured / j.predicted)))[:WORST]


def worst_line(judged: Judged) -> str:
    """One of the worst figures."""
    row, tokens = judged.row, judged.row.tokens(judged.phase)
    batch = f", batch {row.batch}" if row.batch > 1 else ""
    at = row.prompt if judged.phase == "prefill" else row.depth
    what = f"{judged.kind}: {row.model} {row.request.quant} at {at:,}{batch} on {row.target.title}, {row.engine.name}"
    rates = f"{tokens / judged.measured:.1f} | {tokens / judged.predicted:.1f}"
    return f"| {row.file}:{row.line} | {what} | {rates} | {judged.error:+.0%} |"


def aside(used: Sequence[Row]) -> list[str]:
    """Errors of rows that are predicted but not judged with the others, by reason."""
    groups: dict[str, list[float]] = defaultdict(list)
    for row in used:
        if row.aside is not None and row.decode_s is not None and row.answer is None:
            groups[row.aside].append(_shipped(row) / row.decode_tps - 1)
    lines = [
        "Decode rates by the shipped file; of offloaded weights as much is in host memory as does not fit.",
        "",
        HEAD,
    ]
    lines += [ErrorSummary(reason, groups[reason]).line() for reason in sorted(groups)]
    for phase, other in (("Prefill", "decode"), ("Decode", "prefill")):
        found: dict[str, list[str]] = defaultdict(list)
        for row in used:
            reason = row.prefill_aside if phase == "Prefill" else row.decode_aside
            if row.aside is None and reason is not None:
                found[reason].append(f"{row.file[0]}{row.line}")
        lines += ["", f"{phase} rates that are not judged, while the {other} rates of such rows are:", ""]
        lines += [f"- {reason}: {' '.join(found[reason])}" for reason in sorted(found)]
    return lines


def _shipped(row: Row) -> float:
    host = row.machine if row.target.unified else Machine(row.target, row.machine.split, HOST_BYTES)
    predictor = Predictor(row.geometry, row.engine, row.request.quant, host, row.request.dtype)
    found = predictor.predict(row.depth, row.batch, row.request.kv)
    if found.decode is not None:
        return found.decode.tps.value
    _, step = predictor.phases(row.depth, row.depth, row.batch, row.request.kv)
    return step.tps.value


def reasons(left: Sequence[ExcludedRow]) -> list[str]:
    """The rows that cannot be predicted, by reason."""
    lines: dict[str, list[str]] = defaultdict(list)
    for entry in left:
        reason = "impossible: more than the memory's bandwidth" if entry.reason.startswith("imposs") else entry.reason
        lines[reason].append(f"{entry.file[0]}{entry.line}")
    counted = Counter({reason: len(found) for reason, found in lines.items()})
    return [f"| {reason} | {number} | {' '.join(lines[reason])} |" for reason, number in counted.most_common()]


LIMITS = [
    "## What this does not show",
    "",
    "- The priors (`benchmarks/fitting.py`) were set with these rows in mind. They are wide.",
    "- A fit without a device solves the equations around the fit to all, without the device's rows.",
    "- Tier C is self-reported, with unknown clocks, power caps and versions; it has 0.3 of the weight in a fit.",
    "- Rates over the whole time of requests are compared with a prefill and as many steps as the answer has tokens.",
    "- `t` in the list below is `throughput.csv`, `m` is `more-2026-11.csv`.",
]


if __name__ == "__main__":
    main()
