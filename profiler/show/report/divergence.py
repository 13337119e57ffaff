"""What each quantization loses: its KL divergence against speed and memory, and by kind of text.

A divergence is of its texts, window, definition and reference (``quality.KlScale``). Rows share a chart only if all
of these are the same, whatever engine they are of. A table also has rows that differ in the window or in the model,
because each row names both. Rows without a divergence are not part of this section, which is left out if no row has
one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from profiler.quants.base import DTYPE_BYTES
from profiler.results import comparison, quality
from profiler.results.comparison import Ratio
from profiler.results.quality import Estimate, KlScale
from profiler.show.columns import figure, kl_text, plain, ratio_text
from profiler.show.report import charts, selection
from profiler.show.report.blocks import MAX_ROWS, Chart, Figures, Head, Listing, PageBlock, Section, Table, muted
from profiler.show.report.selection import CaseResult, MachineRows
from profiler.units import UNKNOWN, bytes_text, significant

TITLE, SHORT = "How much quality does each quantization lose?", "Quality"
PLAIN = ("bf16", *(name for name in DTYPE_BYTES if name != "bf16"), "f16", "f32")  # what others are compared with
# A loss that counts as none: three to five times what rounding to bf16 loses (0.0009 to 0.0014 nats in the models of
# docs/quality.md). It changes the perplexity by about 0.5%.
LOSSLESS_KL = 0.005
SMALL_KL = 0.01  # a loss for which nobody runs weights in 32 bits, which decode at half the speed of 16 at best
IN_32_BITS = ("fp32", "f32")
WORTH = 1.1  # a faster case is named if it is at least this many times as fast
MAX_CHARTS = 6
NO_CHART = "There is no chart, because no two cases whose losses can be compared have comparable decode rates."
MAX_SAID = 5  # quantizations of a chart that are described in words
MUCH = 1.5  # a kind of text is named if it loses so many times the mean

Series = tuple[str, str]  # model and settings


@dataclass(slots=True, eq=False)
class LossGroup:
    """Rows whose KL divergences have the same scale, the one with the smallest batch of each model and setting."""

    scale: KlScale
    results: list[CaseResult] = field(default_factory=list)

    @property
    def title(self) -> str:
        """The model, by the reference if the rows are of several files."""
        names = dict.fromkeys(result.model for result in self.results)
        return next(iter(names)) if len(names) == 1 else plain(self.scale.model, 60)

    @property
    def rated(self) -> list[CaseResult]:
        """Rows whose decode rates can be compared."""
        return [result for result in self.results if result.comparable and result.decode_tps]


def section(machines: Sequence[MachineRows]) -> Section | None:
    """Charts, sentences and tables of each machine; None if no row has a KL divergence."""
    found = [(machine, groups(machine)) for machine in machines]
    if not any(mine for _, mine in found):
        return None
    blocks: list[PageBlock] = []
    figures, said = [], []
    several = len(machines) > 1
    engines = list(dict.fromkeys(result.engine for machine in machines for result in machine.scored))
    for machine, mine in found:
        where = f" · {machine.title}" if several else ""
        figures += [chart for group in mine if (chart := _chart(group, engines, where)) is not None]
        said += [text for group in mine if (text := _said(group, where))]
        blocks += _tables(mine, where)
    most = figures[:MAX_CHARTS]
    dots = "The area of a dot is the peak memory. The dashed line joins cases that no other beats in speed and loss;"
    dots += " another case is at least as good as a pale one in speed, memory and loss."
    drawn: list[PageBlock] = [Figures(tuple(most)), muted(dots)] if most else [muted(NO_CHART)]
    words: list[PageBlock] = [Listing(tuple(said))] if said else []
    every = [group for _, mine in found for group in mine]
    left = [muted(f"{len(figures) - MAX_CHARTS} more charts are left out.")] if len(figures) > MAX_CHARTS else []
    return Section("quality", TITLE, (*drawn, *left, *words, *blocks, muted(_legend(every))), SHORT)


def groups(machine: MachineRows) -> list[LossGroup]:
    """The rows with a divergence by scale, in order of first appearance."""
    found: list[LossGroup] = []
    smallest: dict[tuple[int, object], CaseResult] = {}
    for result in machine.scored:
        scale = result.scale
        assert scale is not None  # MachineRows
        group = next((each for each in found if quality.unlike(each.scale, scale) is None), None)
        if group is None:
            group = LossGroup(scale)
            found.append(group)
        known = smallest.get((id(group), result.group))
        if known is not None and known.case.batch <= result.case.batch:
            continue
        smallest[id(group), result.group] = result
        if known is not None:
            group.results.remove(known)
        group.results.append(result)
    for group in found:
        group.results.sort(key=lambda result: result.kl or 0.0)
    return found


def _chart(group: LossGroup, engines: Sequence[str], where: str) -> Chart | None:
    """Decode rate and loss of a group; None for a single case. ``engines``: those of all charts, by color."""
    rated = group.rated
    if len(rated) < 2:
        return None
    largest = max((result.peak_bytes or 0 for result in rated), default=0) or 1
    marks = []
    for result in rated:
        kl = mean_kl(result)
        marks.append(
            charts.Mark(
                result.decode_tps or 0.0,
                kl.value if kl.value >= quality.ROUNDING_KL else 0.0,
                result.engine,
                f"{selection.case(result)}: {selection.rate(result.decode)} t/s, loses {interval_text(kl)} nats,"
                f" peak {bytes_text(result.peak_bytes)}",
                kl.low,
                kl.high,
                pale=any(_beats(other, result) for other in rated),
                keys=result.keys,
                label=result.group.settings,
                area=(result.peak_bytes or 0) / largest,
            )
        )
    mine = {result.engine for result in rated}
    palette = {engine: color for color, engine in enumerate(engines) if engine in mine}
    spec = charts.losses(marks, "decode t/s", "KL divergence, nats", palette)
    models = {result.model for result in rated}
    title = f"{group.title}: speed and loss in windows of {charts.count_text(group.scale.window)} tokens{where}"
    return Chart(title, spec, next(iter(models)) if len(models) == 1 else "")


def _beats(other: CaseResult, result: CaseResult, memory: bool = True) -> bool:
    """Whether ``other`` is better in speed, loss or ``memory`` and worse in none, in a case of the same size."""
    if size_of(other) != size_of(result):
        return False
    mine, theirs = (
        (each.decode_tps or 0.0, -(each.kl or 0.0), -(each.peak_bytes or math.inf) if memory else 0.0)
        for each in (result, other)
    )
    return mine != theirs and all(b >= a for a, b in zip(mine, theirs, strict=True))


def _said(group: LossGroup, where: str) -> str | None:
    """The quantized cases that no other beats in speed and loss in words, the least loss first, and the kinds of text
    that lose most.
    """
    rated = group.rated
    if len(rated) < 2:
        return None
    shown = [each for each in rated if not any(_beats(other, each, memory=False) for other in rated)]
    packed = [result for result in shown if result.case.quant not in PLAIN]
    parts: list[str] = []
    said, engine = None, ""
    for result in (packed or shown)[:MAX_SAID]:
        base = counterpart(result, rated)
        ratio = None if base is None else _ratio(base, result)
        speed = "" if ratio is None or ratio.wide else f"{figure(ratio.value, ratio.relative_half)} ×"
        words = (
            f" and decodes {speed} as fast as {named(base, rated)}" if base is not None and base is not said else ""
        )
        words = words if words or not speed else f" at {speed}"
        name = result.group.settings if result.engine == engine else named(result, rated)
        parts.append(f"{name} loses {nats(result)}{words if speed else ''}")
        said, engine = base if speed else said, result.engine
    told = f"{group.title}, windows of {selection.tokens_text(group.scale.window)}{where}: {'; '.join(parts)}."
    return told + _worst(packed[:MAX_SAID], rated)


def _worst(packed: Sequence[CaseResult], rated: Sequence[CaseResult]) -> str:
    """The kind of text in which all of these lose most, if that is much more than the mean."""
    kinds = [by_kind(result) for result in packed if (result.kl or 0) > LOSSLESS_KL]
    worst = {max(each, key=each.__getitem__) for each in kinds if len(each) > 1}
    last = packed[-1] if packed else None
    if len(worst) != 1 or last is None or not last.kl:
        return ""
    (kind,) = worst
    most = kinds[-1][kind]
    if most < MUCH * last.kl:
        return ""
    which = "It loses" if len(kinds) == 1 else "They lose"
    return f" {which} most in {plain(kind, 40)}: {named(last, rated)} {significant(most, 2)} nats."


def least_loss(best: CaseResult, fast: Sequence[CaseResult], machine: MachineRows) -> CaseResult:
    """The case of ``fast`` that loses least by its divergence, of those that have the scale of ``best``; the fastest
    if several lose at most ``LOSSLESS_KL``, and weights in 32 bits only if all others lose more than ``SMALL_KL``.
    ``best`` itself if it has no divergence.
    """
    known = known_kl(best, fast, machine)
    candidates = [result for result in fast if series(result) in known]

    def order(result: CaseResult) -> tuple[float, float]:
        return max(known[series(result)].kl or 0.0, LOSSLESS_KL), -(result.decode_tps or 0.0)

    chosen = min(candidates, key=order, default=best)
    if chosen.case.quant not in IN_32_BITS:
        return chosen
    smaller = [each for each in candidates if each.case.quant not in IN_32_BITS and order(each)[0] <= SMALL_KL]
    return min(smaller, key=order, default=chosen)


def known_kl(best: CaseResult, others: Iterable[CaseResult], machine: MachineRows) -> dict[Series, CaseResult]:
    """The rows with a divergence of the scale of ``best`` by model and settings; empty if ``best`` has none.

    A divergence is also known of cases with another context. If that of ``best`` has several scales, such as windows
    of several lengths, the one that most of the ``others`` have counts.
    """
    wanted = {series(other) for other in others}
    having = [
        {series(result): result for result in group.results}
        for group in groups(machine)
        if any(series(result) == series(best) for result in group.results)
    ]
    return max(having, key=lambda found: len(wanted & found.keys()), default={})


def series(result: CaseResult) -> Series:
    """Model and settings of a case."""
    return result.model, result.group.settings


def loses_more(model: str, settings: str, best: CaseResult, machine: MachineRows) -> bool:
    """Whether a divergence is known by which a quantization loses no less than ``best``."""
    known = known_kl(best, [], machine)
    other, mine = known.get((model, settings)), known.get(series(best))
    if other is None or mine is None:
        return False
    return max(other.kl or 0.0, LOSSLESS_KL) >= max(mine.kl or 0.0, LOSSLESS_KL)


def traded(best: CaseResult, usable: Sequence[CaseResult], machine: MachineRows) -> Iterator[str]:
    """What the recommended case loses and gains, and what faster ones would lose, in sentences."""
    alike = [each for each in usable if size_of(each) == size_of(best)]
    known = known_kl(best, alike, machine)
    mine = known.get(series(best))
    if mine is None or mine.scale is None:
        return
    what = f"It loses {nats(mine)} (KL divergence from {plain(mine.scale.dtype, 20)})"
    peers = [each for each in alike if each.model == best.model or series(each) in known]
    base = counterpart(best, peers)
    yield f"{what} and decodes {times(base, best, peers)}." if base is not None else f"{what}."
    for other in _faster(best, [each for each in alike if series(each) in known], known):
        loss, ratio = nats(known[series(other)]), _ratio(best, other)
        yield f"{named(other, peers)} loses {loss} and decodes {ratio_text(ratio, ' as fast')}."


def _faster(best: CaseResult, others: Sequence[CaseResult], known: Mapping[Series, CaseResult]) -> list[CaseResult]:
    """Of the cases that are certainly faster, the one that loses least and the fastest; none that another beats."""
    faster = [
        (each.decode_tps or 0.0, -(known[series(each)].kl or 0.0), each)
        for each in others
        if (each.decode_tps or 0.0) >= WORTH * (best.decode_tps or 0.0)
        and _ratio(best, each).significant is not False
    ]
    unbeaten = [
        (tps, each)
        for tps, loss, each in faster
        if not any(t >= tps and o >= loss and (t, o) != (tps, loss) for t, o, _ in faster)
    ]
    ordered = [each for _, each in sorted(unbeaten, key=lambda one: one[0])]
    return list(dict.fromkeys([*ordered[:1], *ordered[-1:]]))


def _ratio(base: CaseResult, result: CaseResult) -> Ratio:
    return comparison.pair(base.measurement, result.measurement).rates["decode"]


def size_of(result: CaseResult) -> tuple[int, int, int]:
    """Context, batch and decode steps, without which speeds are not compared."""
    return result.case.context, result.case.batch, result.case.steps


def counterpart(result: CaseResult, others: Iterable[CaseResult]) -> CaseResult | None:
    """The unquantized case that a quantized one is compared with: of the same engine and path, if there is one."""
    if result.case.quant in PLAIN:
        return None
    found = [other for other in others if other.case.quant in PLAIN and size_of(other) == size_of(result)]

    def distance(other: CaseResult) -> tuple[bool, bool, bool, int]:
        here, there = result.case, other.case
        return (
            here.backend != there.backend,
            here.device != there.device,
            here.path != there.path,
            PLAIN.index(there.quant),
        )

    return min(found, key=distance, default=None)


def times(base: CaseResult, result: CaseResult, others: Sequence[CaseResult]) -> str:
    """``1.9 × as fast as bf16 (1.8–2.0)``; ``others`` as for ``named``."""
    ratio = _ratio(base, result)
    return ratio_text(ratio, f" as fast as {named(base, others)}")


def named(result: CaseResult, others: Sequence[CaseResult]) -> str:
    """The settings of a case, with what else tells it from the ``others``, which have the same weights originally."""
    alike = any(other.model != result.model and other.group.settings == result.group.settings for other in others)
    engine = f" in {result.engine}" if len({other.engine for other in others}) > 1 else ""
    return f"{result.model} {result.group.settings}" if alike else f"{result.group.settings}{engine}"


def mean_kl(result: CaseResult) -> Estimate:
    """The mean KL divergence of a row that has one, with its interval."""
    return quality.mean_kl(quality.blocks(result.measurement.quality or {}))


def nats(result: CaseResult) -> str:
    """What a case loses: ``0.021 nats``, or ``nothing``."""
    return f"{kl_text(result.kl)} nats" if result.kl and result.kl >= quality.ROUNDING_KL else "nothing"


def interval_text(kl: Estimate) -> str:
    """``0.021 (0.017–0.026)``."""
    if kl.low is None or kl.high is None or kl.value < quality.ROUNDING_KL:
        return kl_text(kl.value)
    return f"{kl_text(kl.value)} ({kl_text(kl.low)}–{kl_text(kl.high)})"


def by_kind(result: CaseResult) -> dict[str, float]:
    """The mean KL divergence of a row for each kind of text."""
    found = quality.blocks(result.measurement.quality or {})
    sums: dict[str, tuple[float, int]] = {}
    for block in found:
        kl, tokens = sums.get(block.kind, (0.0, 0))
        sums[block.kind] = kl + block.kl, tokens + block.tokens
    return {kind: kl / tokens for kind, (kl, tokens) in sums.items() if tokens}


def _tables(found: Sequence[LossGroup], where: str) -> Iterator[PageBlock]:
    """The figures of each case, and its loss by kind of text. Groups share tables if only model and window differ."""
    tables: dict[tuple[object, ...], list[LossGroup]] = {}
    for group in found:
        scale = group.scale
        tables.setdefault((scale.text, scale.definition, scale.dtype), []).append(group)
    for mine in tables.values():
        over = _over(mine[0].scale) if len(tables) > 1 else ""
        results = [result for group in mine for result in group.results]
        shown = results[:MAX_ROWS]
        heads = (Head("case", right=False), *map(Head, ("KL, nats", "decode t/s", "peak", "top-1", "perplexity")))
        keys = tuple(result.keys for result in shown)
        yield Table(heads, tuple(map(_row, shown)), f"Speed, memory and loss{over}{where}", keys)
        kinds = {id(result): by_kind(result) for result in shown}
        names = list(dict.fromkeys(kind for each in kinds.values() for kind in each))
        if len(names) > 1:
            yield Table(
                (Head("case", right=False), *(Head(plain(name, 40)) for name in names)),
                tuple(
                    (
                        selection.case(result),
                        *(_mean(kinds[id(result)].get(name)) for name in names),
                    )
                    for result in shown
                ),
                f"KL divergence by kind of text, in nats{over}{where}",
                keys,
            )
        if len(results) > MAX_ROWS:
            yield muted(f"Only {MAX_ROWS} of {len(results):,} cases are shown; profile runs show RUN -o csv has all.")


def _row(result: CaseResult) -> tuple[str, ...]:
    blocks = quality.blocks(result.measurement.quality or {})
    tokens = sum(block.tokens for block in blocks)
    same = sum(block.same for block in blocks) / tokens
    perplexity = math.exp(math.fsum(block.nll for block in blocks) / tokens)
    return (
        selection.case(result),
        interval_text(quality.mean_kl(blocks)),
        selection.ranged(result.decode),
        bytes_text(result.peak_bytes),
        f"{same:.1%}",
        significant(perplexity, 3),
    )


def _mean(value: float | None) -> str:
    return UNKNOWN if value is None else kl_text(value)


def _over(scale: KlScale) -> str:
    return f", over {plain(scale.title, 60)} (hash {plain(scale.text, 8)}), from {plain(scale.dtype, 20)}"


def _legend(found: Sequence[LossGroup]) -> str:
    """What the figures are of, and what must not be compared."""
    texts: dict[tuple[str, str], dict[int, list[str]]] = {}
    for group in found:
        of_text = texts.setdefault((plain(group.scale.title, 60), plain(group.scale.dtype, 20)), {})
        of_text.setdefault(sum(group.scale.tokens), []).append(group.title)
    of = selection.several([_tokens(title, dtype, counts) for (title, dtype), counts in texts.items()], 4)
    differ = quality.apart([group.scale for group in found])
    apart = ""
    if differ:
        apart = f" Cases that differ in {selection.joined(differ)} cannot be compared, so they do not share a chart."
    return (
        f"KL divergence: how far predictions are from those of the reference; 0 is no loss. It is the mean over {of},"
        f" with its 95% interval. Top-1: the share of tokens at which both predict the same token first.{apart}"
    )


def _tokens(title: str, dtype: str, counts: Mapping[int, Sequence[str]]) -> str:
    """``the 9,760 tokens of my-texts from fp32``, with the models if their tokenizers count differently."""
    if len(counts) == 1:
        return f"the {next(iter(counts)):,} tokens of {title} from {dtype}"
    each = [f"{tokens:,} for {selection.several(list(dict.fromkeys(names)), 3)}" for tokens, names in counts.items()]
    return f"the tokens of {title} ({selection.several(each, 4)}) from {dtype}"
