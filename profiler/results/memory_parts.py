"""The peak of a case taken apart: what the measured parts add up to, and what is left over.

    process at the peak = framework + weights + cache + activations + graph pool + left mapped + unaccounted

of the phase whose peak is the higher one. On a GPU the remainder holds what the allocator reserved and did not use;
on a CPU the model's Python objects, what the heap keeps between blocks, and tables that kernels made of weights.
"""

from __future__ import annotations

from profiler.results.measurement import Memory, Phase


def peak_phase(memory: Memory) -> Phase | None:
    """The phase that takes more at its peak; None where neither is known."""
    prefill, decode = memory.prefill_peak_bytes, memory.decode_peak_bytes
    if prefill is None and decode is None:
        return None
    return "prefill" if (prefill or 0) >= (decode or 0) else "decode"


def parts(memory: Memory) -> dict[str, int | None]:
    """Bytes of each part at the peak of ``peak_phase``; None where one was not measured. Empty without a peak."""
    phase = peak_phase(memory)
    if phase is None:
        return {}
    in_prefill = phase == "prefill"
    return {
        "weights": memory.weights_bytes,
        "framework": memory.framework_bytes,
        "cache": memory.prefill_cache_bytes if in_prefill else memory.cache_bytes,
        "activations": memory.prefill_activation_bytes if in_prefill else memory.decode_activation_bytes,
        "graph pool": memory.graph_pool_bytes or 0,
        "checkpoint, left mapped": memory.left_mapped_bytes or 0,
    }


def unaccounted_bytes(memory: Memory) -> int | None:
    """What the process held at the peak beyond its parts, negative where they are counted too high; None: unknown."""
    known = [size for size in parts(memory).values() if size is not None]
    if memory.phases_process_bytes is None or not known or len(known) < len(parts(memory)):
        return None
    return memory.phases_process_bytes - sum(known)
