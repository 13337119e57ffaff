"""Judges what the published files state besides rates: file sizes, peak memory, time to first token, and energy.

``accuracy.py`` puts the sections into ``accuracy.md``. Times and energy are predicted with the shipped efficiencies,
to which rows of the same devices were fitted.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import published_rows
from left_out import ErrorSummary
from published_rows import POOL, Row

from profiler.cost.engines.base import EngineRequest, Terms
from profiler.cost.prediction import POWER, Predictor, shared_out
from profiler.models.layers import Attention
from profiler.units import GIB

HEAD = (
    "| figures | n | MAPE | median | signed median | 9 of 10 within | 90% interval covers | its width |\n"
    "|---|--:|--:|--:|--:|--:|--:|--:|"
)
TTFT = re.compile(r"\bttft(?:_p50)? (\d+(?:\.\d+)?)(?: / cold (\d+(?:\.\d+)?))? ms")
TTFT_SELF_REPORTED = re.compile(r"\bP=(\d+) .*\bttft=(\d+(?:\.\d+)?)")
COLD = "alexhiesch-m3max"  # states a TTFT after a cache hit and, for some rows, a cold one
COPIES = re.compile(r"topo-tp\d+-pp\d+-dp(\d+)")
RESERVED = re.compile(r"max_model_len (\d+)")
LEAST_PEAK = 0.25  # of the weights: a smaller peak is that of something else
Raws = Mapping[tuple[str, int], Mapping[str, str]]


def sections(used: Sequence[Row]) -> list[str]:
    """The lines of all sections."""
    raws = {(file, line): raw for file, line, raw in published_rows.published()}
    return [*sizes(used, raws), "", *memory(used, raws), "", *first_token(used, raws), "", *energy(used, raws)]


def summaries(groups: Mapping[str, Sequence[float]]) -> list[str]:
    """A table with a line per group of relative errors."""
    return [HEAD, *(ErrorSummary(name, list(groups[name])).line() for name in sorted(groups))]


def _raw(row: Row, raws: Raws) -> Mapping[str, str]:
    return raws[row.file, row.line]


def sizes(used: Iterable[Row], raws: Raws) -> list[str]:
    """Bytes of GGUF files, which one source states instead of the memory."""
    groups: dict[str, list[float]] = defaultdict(list)
    for row in used:
        raw = _raw(row, raws)
        if "vram_gib here = GGUF size" in row.notes and raw["vram_gib"]:
            held = row.storage
            copied = held.part_bytes("head") if row.geometry.tied else 0  # once in the file, twice in memory
            nbytes = held.device_bytes + held.host_bytes - copied
            groups[row.request.quant].append(nbytes / GIB / float(raw["vram_gib"]) - 1)
    told = "Predicted from the model's shape and the rules of llama-quantize."
    return ["## Sizes of GGUF files", "", told, "", *summaries(groups)]


def memory(used: Iterable[Row], raws: Raws) -> list[str]:
    """Peak memory by engine and by how it was read."""
    groups: dict[str, list[float]] = defaultdict(list)
    pools: dict[str, list[float]] = defaultdict(list)
    stated = unusable = least = 0
    for row in used:
        raw = _raw(row, raws)
        if not raw.get("peak_memory_gib"):
            continue
        stated += 1
        peak = float(raw["peak_memory_gib"]) * GIB
        if row.engine.like == "vllm":
            cards = row.target.count * _copies(raw["source"])
            pools[f"{row.engine.name}, {row.source}"].append(POOL * row.target.memory_bytes * cards / peak - 1)
            least += shared_out(_terms(row), row.geometry, row.machine).needed.value * cards <= peak
        elif row.tier == "C" or peak < LEAST_PEAK * row.storage.device_bytes:
            unusable += 1
        else:
            groups[f"{row.engine.name}, {row.source}, {_how(row)}"].append(_predicted(row) / peak - 1)
    own = sum(map(len, pools.values()))
    return [
        "## Peak memory",
        "",
        f"{stated} of the predicted rows state a peak. Positive where more is predicted than was measured."
        f" {unusable} self-reported figures are not judged: most are the same for every model or context of a"
        " machine, or smaller than the weights.",
        "",
        "- transformers of 2023 held the cache twice during a decode step, since `generate` kept the old one until"
        " the step was over. These predictions have that second cache, which later versions do not need. What is left is"
        " the CUDA context and, where NVML was read, memory that the allocator reserved without using it.",
        "- Peaks over several cards are sums.",
        "",
        *summaries(groups),
        "",
        "vLLM reserves a pool, whatever a case needs: `--gpu-memory-utilization` × memory, here compared with the"
        f" default of {POOL}. Sources that set another value are off by as much. The least memory that `profile fit`"
        f" predicts for these cases is below the pool in {least} of {own} rows.",
        "",
        *summaries(pools),
    ]


def _how(row: Row) -> str:
    if row.engine.name == "mlx":
        return "peak of Metal's allocator"
    return "allocated" if "ALLOCATED" in row.notes else "used, by NVML"


def _request(row: Row) -> EngineRequest:
    """The case at the end of the answer. llama-server reserves the cache for its whole context at the start."""
    context, kv = row.prompt + row.answered, row.request.kv
    if row.engine.like == "llama.cpp":
        reserved = RESERVED.search(row.notes)
        context = int(reserved[1]) if reserved else context
        kv = "q8_0" if "KV q8_0" in row.notes else kv
    return replace(row.request, context=max(context, 1), kv=kv)


def _terms(row: Row) -> Terms:
    """Memory of a single device that holds everything."""
    return row.engine.memory(row.geometry, row.storage, _request(row), row.target)


def _predicted(row: Row) -> float:
    """The peak of all devices together, as the source read it. Each has its own buffers and context."""
    terms, count = _terms(row), row.target.count
    framework = 0.0 if "ALLOCATED" in row.notes or row.engine.name == "mlx" else terms.framework.value
    held = terms.weights.value + terms.cache.value + count * (terms.buffers.value + framework)
    return held + (_second_cache(row, terms) if row.engine.name == "transformers" else 0.0)


def _second_cache(row: Row, terms: Terms) -> float:
    """What transformers of 2023 held more than today: the whole cache again, instead of the copy of one layer."""
    mixers = (layer.mixer for layer, _ in row.geometry.groups)
    copied = max(mixer.cache_elements(_request(row).context) for mixer in mixers if isinstance(mixer, Attention))
    return terms.cache.value - 2 * copied * row.request.batch


def _copies(source: str) -> int:
    """Copies of the model whose memory a peak is the sum of."""
    found = COPIES.search(source)
    return int(found[1]) if found else 1


def first_token(used: Iterable[Row], raws: Raws) -> list[str]:
    """Time to first token of one sequence."""
    groups: dict[str, list[float]] = defaultdict(list)
    unknown = 0
    for row in used:
        found = _ttft(row, _raw(row, raws))
        if found is None:
            unknown += "ttft" in _raw(row, raws).get("quote", "")
            continue
        tokens, seconds = found
        predictor = Predictor(row.geometry, row.engine, row.request.quant, row.machine, row.request.dtype)
        prefill, _ = predictor.phases(tokens, tokens, 1, row.request.kv)
        length = "to 1,024 tokens" if tokens <= 1024 else "longer"
        groups[f"{row.engine.name}, {row.source}, {length}"].append(prefill.seconds.value / seconds - 1)
    return [
        "## Time to first token",
        "",
        f"Of one sequence, with nothing cached. {unknown} more rows state a TTFT that cannot be compared: of"
        " several requests at once, after a hit in the prompt cache, or of a prompt of unknown length. TTFT over HTTP also"
        " has the server's own time, which matters for short prompts.",
        "",
        *summaries(groups),
    ]


def _ttft(row: Row, raw: Mapping[str, str]) -> tuple[int, float] | None:
    """The prompt's tokens and the seconds to the first token; ``None`` where the row does not state both."""
    quote = raw.get("quote") or ""
    if row.request.batch > 1 or row.aside is not None:
        return None
    reported = TTFT_SELF_REPORTED.search(quote)
    if reported:
        tokens, ms = int(reported[1]), float(reported[2])
        return (tokens, ms / 1e3) if tokens > 0 and ms > 0 else None
    stated = TTFT.search(quote)
    if stated is None or not raw.get("prompt_tokens") or (row.source == COLD and stated[2] is None):
        return None
    return row.prompt, float(stated[2] or stated[1]) / 1e3


def energy(used: Iterable[Row], raws: Raws) -> list[str]:
    """Joules per decoded token, and the share of the power limit that they imply."""
    groups: dict[str, list[float]] = defaultdict(list)
    covered: dict[str, list[bool]] = defaultdict(list)
    shares: dict[str, list[float]] = defaultdict(list)
    for row in used:
        published, watts = _raw(row, raws).get("energy_j_token"), row.target.tdp_w
        if not published or watts is None or row.decode_s is None:
            continue
        name, joules = f"{row.engine.name}, {row.source}", float(published)
        predictor = Predictor(row.geometry, row.engine, row.request.quant, row.machine, row.request.dtype)
        prefill, step = predictor.phases(row.prompt, row.depth, row.request.batch, row.request.kv)
        each = step.seconds if row.answer is None else prefill.seconds.scaled(1 / row.answer) + step.seconds
        per_token = watts * row.target.count / row.request.batch
        low, usual, high = (share * per_token for share in POWER)
        groups[name].append(usual * each.value / joules - 1)
        covered[name].append(low * each.low <= joules <= high * each.high)
        shares[name].append(joules * row.decode_tps / (watts * row.target.count))
    lines = [
        f"- {name}: the range covers {np.mean(covered[name]):.0%}. The measured power is"
        f" {np.median(shares[name]):.0%} of the limit at the median,"
        f" from {min(shares[name]):.0%} to {max(shares[name]):.0%}."
        for name in sorted(groups)
    ]
    return [
        "## Energy per token",
        "",
        f"Predicted as {POWER[1]:.0%} of the board's power limit ({POWER[0]:.0%} to {POWER[2]:.0%} for the range)"
        " times the predicted seconds. Rates over whole requests include the prefill.",
        "",
        *summaries(groups),
        "",
        *lines,
    ]
