"""Cases of this repository's own gate: what CI holds still.

    B=benchmarks/gate_baseline.json
    pytest benchmarks/gate_cases.py --benchmark-only --profile-gate $B --profile-gate-kinds workload

Synthetic weights, so nothing is downloaded. Bytes and tokens follow from the case alone and are the same on every
machine: plain dtypes only, since what a quantization leaves plain is stored in the device's own dtype, and a named
path, since a machine without a compiler takes another. Time is gated against the last commit, in pairs, by ``profile
gate --base``. After a change that is meant: the same command with ``--profile-gate-accept``.
"""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="needs torch")


@pytest.mark.parametrize("quant", ["fp32", "bf16"])
def test_gemma_3_270m(profile_case, quant):
    profile_case(model="gemma-3-270m", quant=quant, context=32, steps=4, reps=1, weights="synthetic", device="cpu",
                 path="eager")  # fmt: skip


def test_a_cache_with_windows_and_a_batch(profile_case):
    """Deeper than the window of Gemma 3, which is 512: its sliding layers have stopped growing."""
    profile_case(model="gemma-3-270m", quant="fp32", context=600, batch=2, steps=2, reps=1, fill="synthetic",
                 weights="synthetic", device="cpu", path="eager")  # fmt: skip
