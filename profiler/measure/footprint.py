"""The memory of a phase: its peak, what is left of it when the phase has ended, and so what it took on top.

    peak → give everything unused back → what is held now = weights + framework + cache
    activations = peak − what is held

What is held is read after the phase and not before: mapped weights come into memory while the first prefill reads
them, and libraries as their kernels are first used.
"""

from __future__ import annotations

from dataclasses import dataclass

from profiler.backends.base import CacheState, Loaded, Trial
from profiler.devices.base import Meter, Peak
from profiler.results.measurement import Memory

NO_PEAK = Peak(None, None, None)


@dataclass(frozen=True, slots=True)
class Footprint:
    """Of one phase."""

    peak: Peak
    held: Peak  # right after it
    cache: CacheState | None  # then, too

    @property
    def activation_bytes(self) -> int | None:
        """What the phase took at its peak and gave back."""
        peak, held = headline(self.peak), headline(self.held)
        return None if peak is None or held is None else max(0, peak - held)


def footprint(meter: Meter, trial: Trial) -> Footprint:
    """Of the phase since the last ``reset_peak``; starts a new window."""
    peak = meter.peak()
    meter.reset_peak()
    return Footprint(peak, meter.peak(), trial.cache())


def step_footprint(meter: Meter, trial: Trial) -> Footprint:
    """Of one decode step more, without the saved copy of the cache, which would count."""
    trial.release()
    meter.reset_peak()
    trial.step()
    return footprint(meter, trial)


def taken_apart(loaded: Loaded, prefill: Footprint, decode: Footprint, after: CacheState) -> Memory:
    """The memory of a case; ``after`` is the cache at the end of its decode steps."""
    return Memory(
        weights_bytes=loaded.weights_bytes,
        unquantized_bytes=loaded.unquantized_bytes,
        cache_bytes=after.storage_bytes,
        growing_cache_bytes=after.growing_bytes,
        window_cache_bytes=after.window_bytes,
        recurrent_bytes=after.recurrent_bytes,
        prefill_cache_bytes=None if prefill.cache is None else prefill.cache.storage_bytes,
        retained_bytes=None if prefill.cache is None else prefill.cache.retained_bytes,
        prefill_peak_bytes=headline(prefill.peak),
        decode_peak_bytes=_with_pool(headline(decode.peak), after),
        prefill_activation_bytes=prefill.activation_bytes,
        decode_activation_bytes=decode.activation_bytes,
        graph_pool_bytes=after.pool_bytes,
        framework_bytes=decode.held.framework_bytes,
        left_mapped_bytes=loaded.left_mapped_bytes,
        process_peak_bytes=largest(prefill.peak.process_bytes, decode.peak.process_bytes),
        phases_process_bytes=largest(prefill.peak.process_bytes, decode.peak.process_bytes),
        reserved_bytes=largest(prefill.peak.reserved_bytes, decode.peak.reserved_bytes),
        device_bytes=largest(prefill.peak.device_bytes, decode.peak.device_bytes),
    )


def _with_pool(peak: int | None, cache: CacheState) -> int | None:
    """A replayed graph works in memory that is no living tensor's."""
    return None if peak is None else peak + (cache.pool_bytes or 0)


def headline(peak: Peak) -> int | None:
    """The figure of a phase: live tensors where the device counts them, else the process."""
    return peak.process_bytes if peak.allocated_bytes is None else peak.allocated_bytes


def largest(*values: int | None) -> int | None:
    """The largest of the known values; None when none is."""
    return max((value for value in values if value is not None), default=None)
