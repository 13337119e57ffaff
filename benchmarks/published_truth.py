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
from published_rows import Row
from row_checks import POOL

from profiler.cost.engines.base import EngineRequest, Terms
from profiler.cost.prediction import POWER, Predictor, shared_out
from profiler.units import GIB

HEAD = (
    "| figures | n | MAPE | median | signed median | 9 of 10 within | 90% interval covers | its width |\n"
    "|---|--:|--:|--:|--:|--:|--:|--:|"
)
TTFT = re.compile(r"\bttft(?:_p50)? (\d+(?:\.\d+)?)(?: / cold (\d+(?:\.\d+)?))? ms")
TTFT_SELF_REPORTED = re.compile(r"\bP=(\d+) .*\bttft=(\d+(?:\.\d+)?)")
COLD = "alexhiesch-m3max"  # states a TTFT after a cache hit and, for some rows, a cold one
ALL_CARDS = re.compile(r"_tp(\d+)x1_")  # of a host with four: copies of the model on groups of so many cards
HOST_CARDS = 4
ONE_CARD = "vllm026-rs"  # a part of a source that states the peak of one of two cards
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
        if row.engine.like == "vllm" and row.tier != "C":
            cards = _cards(row, raw["source"])
            pools[f"{row.engine.name}, {row.source}"].append(POOL * row.target.memory_bytes * cards / peak - 1)
            least += shared_out(_terms(row), row.geometry, row.machine).needed.value * cards <= peak
        elif row.tier == "C" or peak < LEAST_PEAK * row.storage.device_bytes / row.target.count:
            unusable += 1
        else:
            groups[_read(row)].append(_predicted(row, raw["source"]) / peak - 1)
    own = sum(map(len, pools.values()))
    return [
        "## Peak memory",
        "",
        f"{stated} of the predicted rows state a peak. Positive where more is predicted than was measured."
        f" {unusable} self-reported figures are not judged: most are the same for every model or context of a"
        " machine, or smaller than the weights.",
        "",
        "- transformers of 2023 kept the logits of whole prompts, and `generate` held the cache twice, because the"
        " old one lived until a step was over. Its peaks are compared with that. What NVML reads also has the CUDA"
        " context, which was larger then. The NVML rows of `optimum-benchmark` fit a single cache instead, for which"
        " we know no reason.",
        "- MLX writes the attention scores of Gemma 2 to memory, whose buffers no rule of ours covers."
        " Buffers of one machine were fitted to these rows.",
        "- Peaks over several cards of one source are sums over its host, those of MLX are per machine.",
        "",
        *summaries(groups),
        "",
        "vLLM reserves a pool, whatever a case needs: `--gpu-memory-utilization` × memory, here compared with the"
        f" default of {POOL}. Sources that set another value are off by as much. The least memory that `profile fit`"
        f" predicts for these cases is below the pool in {least} of {own} rows.",
        "",
        *summaries(pools),
    ]


def _read(row: Row) -> str:
    """The name of a group: engine, source, and how the peak was read."""
    if row.engine.name == "mlx":
        part = row.model if row.model.startswith("gemma-2") else f"{row.target.count} machines"
        return f"mlx, {row.source}, {'one machine' if part == '1 machines' else part}"
    how = "by the allocator" if "ALLOCATED" in row.notes else "by NVML"
    return f"{row.engine.name}, {row.source}, {how}"


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


def _predicted(row: Row, source: str) -> float:
    """The peak as the source read it."""
    terms = _terms(row)
    if row.engine.name == "mlx":
        return shared_out(terms, row.geometry, row.machine).peak.value - terms.framework.value
    if row.engine.name == "transformers":
        return _of_2023(row, terms)
    cards = _cards(row, source)
    copies = cards / _group(row, source)
    held = terms.weights.value + terms.cache.value
    return copies * held + cards * (terms.buffers.value + terms.framework.value)


def _of_2023(row: Row, terms: Terms) -> float:
    """The larger of the peaks of prefill and decode in that version."""
    request, width = _request(row), 2
    batch, logits = request.batch, request.batch * row.geometry.vocab * (width + 4)
    caches = [row.geometry.cache_bytes(tokens, batch, width).total for tokens in (row.prompt, request.context)]
    prefill = caches[0] + row.prompt * logits
    decode = 2 * caches[1] + logits if row.answered else 0
    framework = 0.0 if "ALLOCATED" in row.notes else terms.framework.value
    return terms.weights.value + max(prefill, decode) + framework


def _group(row: Row, source: str) -> int:
    """Cards that hold the model together."""
    found = ALL_CARDS.search(source)
    return int(found[1]) if found else row.target.count


def _cards(row: Row, source: str) -> int:
    """Cards that a peak is the sum of."""
    if ONE_CARD in source:
        return 1
    return HOST_CARDS if ALL_CARDS.search(source) else row.target.count


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
        " several requests at once, after a hit in the prompt cache, or of a prompt of unknown length. TTFT over"
        " HTTP also has the server's own time, which matters for short prompts. Efficiencies are the shipped ones, to"
        " which rows of the same devices were fitted. In the rows of `lotto-4x3090` with 512 tokens in llama.cpp, a"
        " 12B in q8_0 on an RTX 3090 would prefill 7,700 tokens/s, more than any other row of that card implies: we"
        " take them for prompts that were cached in part.",
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
    seconds = float(stated[2] or stated[1]) / 1e3
    return (row.prompt, seconds) if seconds > 0 else None


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
