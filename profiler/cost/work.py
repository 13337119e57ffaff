"""The work of a pass: bytes to read and FLOPs to compute, part by part.

It depends on model, storage, context and batch but not on the device, so it is computed once and timed for many.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from profiler.cost.storage import LARGE_BYTES, UNPACKED_BYTES, Storage, WeightGroup
from profiler.models.geometry import Geometry
from profiler.models.layers import DELTA_CHUNK, IDEAL, RECURRENT_BYTES, Attention, Dense, Execution, GatedDelta, Layer

Kind = Literal["weights", "cache", "state", "activations", "convolution"]
WIDE = "wide cache"  # K and V of heads whose attention runs on vector units: see ``PassRules.matrix_heads``
UNFUSED = "unfused cache"  # K and V of heads that are too wide for the kernel of a step: see ``PassRules.step_heads``
MOVED = "activations"  # that operators between matrix products read and write
CACHES = ("cache", WIDE, UNFUSED)
GROWING_TOUCHES = 3  # reads and writes of a cache that is copied to append to it and then read
STATE_TOUCHES = 2.0  # the minimum for a recurrent state: a step reads it and writes it back
MLP_TENSORS = 4  # tensors as wide as a feed-forward layer: gate, up, activation, product
CONV_TENSORS = 3  # tensors that a convolution writes in addition to its input: padded, transposed, and the result


@dataclass(frozen=True, slots=True)
class Item:
    """One term of the sum. ``flops`` are those of matrix products; ``scheme`` is how the bytes are stored."""

    part: str  # a part of the storage, or the kind of layer whose cache it is
    kind: Kind
    scheme: str
    nbytes: float
    flops: float
    rows: float = 1.0  # tokens that each tensor is multiplied by in one pass; of K, V and states: tokens per sequence
    outputs: float = 0.0  # output features of its matrices times their number, over all passes
    count: float = 0.0  # of its matrices, over all passes; of states in a prefill: runs of ``rows`` tokens in turn
    page_fault_bytes: float = 0.0  # bytes of results too large for the heap to reuse, including unpacked matrices
    avoidable_bytes: float = 0.0  # part of ``nbytes`` that no program without copies moves; excluded from ceilings
    avoidable_flops: float = 0.0  # part of ``flops`` spent on experts that no token chose; excluded from ceilings


@dataclass(frozen=True, slots=True)
class PhaseWork:
    """``passes`` passes over the model. Each processes ``tokens`` tokens of all sequences together."""

    items: tuple[Item, ...]
    passes: int
    tokens: float  # per pass
    layers: int
    expert_layers: int
    calls: float  # operators launched from Python, over all passes; 0 for engines that run their own graph
    how: Execution = IDEAL  # how the engine executes a layer
    sequences: float = 1.0  # per pass, on average
    full_passes: float = 1.0  # passes, a short last one by its part of a full one

    @property
    def nbytes(self) -> float:
        """Bytes read."""
        return sum(item.nbytes for item in self.items)

    @property
    def needed_bytes(self) -> float:
        """Bytes that a program without copies would read."""
        return self.nbytes - sum(item.avoidable_bytes for item in self.items)

    @property
    def flops(self) -> float:
        """FLOPs of matrix products."""
        return sum(item.flops for item in self.items)

    @property
    def needed_flops(self) -> float:
        """FLOPs without those of experts that no token chose."""
        return self.flops - sum(item.avoidable_flops for item in self.items)


@dataclass(frozen=True, slots=True)
class Calls:
    """Operators that an eager engine launches, and the activations that they pass to each other."""

    layer: float  # a layer with attention, any pass
    delta_step: float  # a gated-delta layer, decode
    delta_pass: float  # the same in a prefill pass of any length
    delta_chunk: float  # added for each of its chunks
    outside: float  # outside the layers, per pass
    elementwise: float  # tensors of the hidden width that a layer reads or writes for each token
    state_touches: float  # how often a step reads or writes a recurrent state
    element_bytes: int


@dataclass(frozen=True, slots=True)
class PassRules:
    """How an engine runs a pass, as far as it changes the amount of work."""

    ubatch: int  # tokens per sequence in one prefill pass; of all sequences together if ``shared_passes``
    cache_bytes: float  # per element of K and V
    cache_touches: float = 1.0  # how often a decode step reads or writes the cache
    how: Execution = IDEAL
    calls: Calls | None = None  # for an eager engine
    expert_copies: float | None = None  # how often a step moves each token's experts; None: reads each expert once
    shared_passes: bool = False  # a prefill pass takes its tokens from as many sequences as fit into it
    matrix_heads: int | None = None  # the widest heads whose attention runs on matrix units; None: all of them
    step_heads: int | None = None  # the widest heads that the kernel of a decode step takes; None: all of them
    fused_heads: int = 0  # the widest heads whose scores stay on the chip in a prefill, whatever ``score_bytes`` says
    score_bytes: float = 0.0  # that a prefill moves per query, key and head; 0: none leave the chip (flash attention)
    moved_bytes: float = 0.0  # per element that goes into or out of a product of a prefill; 0: as in ``calls``


def decode(
    geometry: Geometry, storage: Storage, depth: int, batch: int, rules: PassRules, tokens: int = 1
) -> PhaseWork:
    """One decode step of ``batch`` sequences; ``depth`` includes the token of this step.

    ``tokens``: of each sequence, if the step verifies drafted tokens. They read the cache together, and write a state
    each.
    """
    rows = batch * tokens
    items = [
        _weights(
            line,
            (moved := _moved(line, rows, rules)),
            line.share(rows),
            2 * rows,
            _each(line, rows, moved, rules.how),
            rules.how,
        )
        for line in storage.read
    ]
    touches = rules.calls.state_touches if rules.calls else STATE_TOUCHES
    for layer, count in geometry.groups:
        mixer, many = layer.mixer, count * batch
        flops = many * tokens * mixer.decode_flops(depth)
        if isinstance(mixer, GatedDelta):
            nbytes = many * touches * (1 + tokens) / 2 * RECURRENT_BYTES * mixer.recurrent_elements
            avoidable = nbytes * (1 - STATE_TOUCHES / touches)
            items.append(Item(layer.kind, "state", "state", nbytes, flops, tokens, avoidable_bytes=avoidable))
        else:
            nbytes = many * mixer.read_elements(depth) * rules.cache_bytes * rules.cache_touches
            avoidable = nbytes * (1 - 1 / rules.cache_touches)
            scheme = UNFUSED if rules.step_heads and mixer.head_dim > rules.step_heads else "cache"
            items.append(Item(layer.kind, "cache", scheme, nbytes, flops, tokens, avoidable_bytes=avoidable))
    calls = 0.0
    if rules.calls is not None:
        items.append(_activations(geometry, rules.calls, len(geometry.layers) * rows))
        items.append(_convolutions(geometry, rules.calls, 1, rows, batch))
        delta = _delta_layers(geometry)
        attention = len(geometry.layers) - delta
        calls = rules.calls.outside + attention * rules.calls.layer + delta * rules.calls.delta_step
    layers, experts = len(geometry.layers), _expert_layers(geometry)
    return PhaseWork(tuple(items), 1, rows, layers, experts, calls, rules.how, batch)


def prefill(geometry: Geometry, storage: Storage, context: int, batch: int, rules: PassRules) -> PhaseWork:
    """All passes of a prefill of ``context`` tokens per sequence, with one row of logits per sequence and pass."""
    chunk = max(1, min(rules.ubatch, context))  # tokens of a sequence in a pass
    each = -(-context // chunk)  # passes that a sequence takes part in
    sizes = _passes(context * batch if rules.shared_passes else context, rules.ubatch)
    at_once = 1 if rules.shared_passes else batch
    passes = sum(count for _, count in sizes)
    items = []
    for line in storage.read:
        through = [(rules.how.tokens_through(size, line.shared_kv) * at_once, count) for size, count in sizes]
        rows = each * batch if line.part == "head" else sum(tokens * count for tokens, count in through)
        share = sum(count * line.share(tokens, rules.how) for tokens, count in through)
        needed = sum(count * line.share(tokens) for tokens, count in through)
        items.append(_weights(line, share, needed, 2 * rows, _each(line, rows, share, rules.how), rules.how))
    if rules.moved_bytes:
        items.append(_between(items, rules.moved_bytes))
    for layer, count in geometry.groups:
        flops, many = count * batch * layer.mixer.prefill_flops(context, chunk, rules.how), count * batch * each
        if isinstance(layer.mixer, Attention):
            read = sum(layer.mixer.read_elements(chunk * (n + 1)) for n in _few(each)) / len(_few(each))
            scheme = WIDE if rules.matrix_heads and layer.mixer.head_dim > rules.matrix_heads else "cache"
            items.append(Item(layer.kind, "cache", scheme, many * read * rules.cache_bytes, flops, chunk))
            if rules.score_bytes and layer.mixer.head_dim > rules.fused_heads:
                scores = count * batch * layer.mixer.prefill_scores(context, chunk, rules.how) * rules.score_bytes
                items.append(Item("scores", "activations", "copy", scores, 0.0, avoidable_bytes=scores))
        else:
            state = STATE_TOUCHES * RECURRENT_BYTES * layer.mixer.recurrent_elements
            steps = count * context * batch / (sizes[0][0] * at_once)  # the sequences of a pass run side by side
            items.append(Item(layer.kind, "state", "state", many * state, flops, chunk, count=steps))
    calls = 0.0
    if rules.calls is not None:
        written = [
            (layer, rules.how.tokens_through(size, layer.shares_kv) * at_once, count * times)
            for layer, count in geometry.groups
            for size, times in sizes
        ]
        layer_tokens = sum(tokens * times for _, tokens, times in written)
        wide = sum(times * _wide_bytes(layer, tokens, geometry, rules.calls) for layer, tokens, times in written)
        items.append(_activations(geometry, rules.calls, layer_tokens, wide))
        items.append(_convolutions(geometry, rules.calls, passes, context * batch / passes, batch))
        calls = _prefill_calls(geometry, rules.calls, sizes)
    tokens, layers, experts = context * batch / passes, len(geometry.layers), _expert_layers(geometry)
    full = tokens * passes / (sizes[0][0] * at_once)
    return PhaseWork(tuple(items), passes, tokens, layers, experts, calls, rules.how, batch * each / passes, full)


def _passes(tokens: int, most: int) -> list[tuple[int, int]]:
    """The sizes of passes of at most ``most`` tokens, and how many there are of each; the first are the largest."""
    size = max(1, min(most, tokens))
    whole, rest = divmod(tokens, size)
    return [(size, whole), (rest, 1)] if rest else [(size, whole)]


def _moved(line: WeightGroup, batch: int, rules: PassRules) -> float:
    """How often a step of ``batch`` tokens moves a group of weights."""
    if line.experts is None or line.whole(rules.how) or rules.expert_copies is None:
        return line.share(batch, rules.how)
    return rules.expert_copies * batch * line.experts.top_k / line.experts.count


def _each(line: WeightGroup, rows: float, share: float, how: Execution) -> float:
    """Tokens that one matrix of a group is multiplied by in a pass: ``rows`` in total, in passes that together read
    the group ``share`` times. An expert that is read gets those of the tokens that chose it."""
    return max(1.0, rows * line.used_share(how) / share)


def _weights(line: WeightGroup, share: float, needed: float, flops: float, rows: float, how: Execution) -> Item:
    """``share``: how often the whole group is read; ``needed``: the same without copies and unchosen experts;
    ``flops``: per used element, over all passes."""
    nbytes, outputs, count = line.nbytes * share, line.outputs * share, line.count * share
    return Item(
        line.part,
        "weights",
        line.scheme,
        nbytes,
        flops * line.used(how),
        rows,
        outputs,
        count,
        page_fault_bytes=line.large * share * UNPACKED_BYTES,
        avoidable_bytes=line.nbytes * (share - needed),
        avoidable_flops=flops * (line.used(how) - line.used()),
    )


def _convolutions(geometry: Geometry, calls: Calls, passes: int, tokens: float, batch: int) -> Item:
    """Depthwise convolutions of gated-delta layers. ``outputs``: channels of all passes; ``count``: sequences."""
    mixers = [(layer.mixer, count) for layer, count in geometry.groups if isinstance(layer.mixer, GatedDelta)]
    channels = passes * sum(count * mixer.channels for mixer, count in mixers)
    results = [(mixer.channels * tokens * calls.element_bytes, count) for mixer, count in mixers]
    page_fault_bytes = (
        passes * CONV_TENSORS * sum(count * nbytes for nbytes, count in results if nbytes > LARGE_BYTES)
    )
    return Item("convolutions", "convolution", "copy", 0.0, 0.0, tokens, channels, batch, page_fault_bytes)


def _prefill_calls(geometry: Geometry, calls: Calls, sizes: Sequence[tuple[int, int]]) -> float:
    delta = _delta_layers(geometry)
    attention = len(geometry.layers) - delta
    total = 0.0
    for size, times in sizes:
        chunks = -(-size // DELTA_CHUNK)
        delta_calls = calls.delta_pass + chunks * calls.delta_chunk
        total += times * (calls.outside + attention * calls.layer + delta * delta_calls)
    return total


def _activations(geometry: Geometry, calls: Calls, layer_tokens: float, page_fault_bytes: float = 0.0) -> Item:
    """What element-wise operators read and write; ``layer_tokens``: tokens processed, summed over the layers."""
    nbytes = layer_tokens * geometry.hidden * calls.elementwise * calls.element_bytes
    return Item(
        "activations",
        "activations",
        "copy",
        nbytes,
        0.0,
        0.0,
        page_fault_bytes=page_fault_bytes,
        avoidable_bytes=nbytes,
    )


def _between(products: Sequence[Item], element_bytes: float) -> Item:
    """What operators between matrix products read and write: the inputs and outputs of those. Those of a decode step
    are few enough for the caches of a device."""
    elements = sum(
        item.rows * item.outputs + item.flops * item.count / (2 * item.outputs)
        for item in products
        if item.part != "head" and item.outputs
    )
    nbytes = elements * element_bytes
    return Item("activations", "activations", MOVED, nbytes, 0.0, avoidable_bytes=nbytes)


def _wide_bytes(layer: Layer, rows: int, geometry: Geometry, calls: Calls) -> float:
    """Bytes of the tensors that a pass of ``rows`` tokens through ``layer`` writes and the heap cannot reuse."""
    hidden = rows * geometry.hidden * calls.element_bytes
    inner = rows * (layer.mlp.width if isinstance(layer.mlp, Dense) else 0) * calls.element_bytes
    written = ((calls.elementwise / 2, hidden), (MLP_TENSORS, inner))
    return sum(tensors * nbytes for tensors, nbytes in written if nbytes > LARGE_BYTES)


def _few(passes: int) -> tuple[int, ...]:
    """First, middle and last pass: enough to average a cost that grows linearly."""
    return (0, (passes - 1) // 2, passes - 1)


def _delta_layers(geometry: Geometry) -> int:
    return sum(count for layer, count in geometry.groups if layer.kind == "gated delta")


def _expert_layers(geometry: Geometry) -> int:
    return sum(count for layer, count in geometry.groups if layer.mlp.kind == "experts")
