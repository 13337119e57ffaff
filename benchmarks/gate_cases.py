"""The cases of this repository's own gate, which CI runs.

    B=benchmarks/gate_baseline.json
    pytest benchmarks/gate_cases.py --benchmark-only --profile-gate $B --profile-gate-kinds workload

Weights are synthetic, so nothing is downloaded. Bytes and tokens must be the same on every machine. So the cases use
plain dtypes only, because a quantization stores unquantized weights in the device's own dtype, and a fixed path,
because a machine without a compiler would use another one. Time is not compared here, but with the previous commit by
``profile gate --base``. After an intended change, run the same command with ``--profile-gate-accept``.
"""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="needs torch")


@pytest.mark.parametrize("quant", ["fp32", "bf16"])
def test_gemma_3_270m(profile_case, quant):
    profile_case(model="gemma-3-270m", quant=quant, context=32, steps=4, reps=1, weights="synthetic", device="cpu",
                 path="eager")  # fmt: skip


def test_a_cache_with_windows_and_a_batch(profile_case):
    """The context is longer than Gemma 3's window of 512, so its sliding layers have stopped growing."""
    profile_case(model="gemma-3-270m", quant="fp32", context=600, batch=2, steps=2, reps=1, fill="synthetic",
                 weights="synthetic", device="cpu", path="eager")  # fmt: skip
