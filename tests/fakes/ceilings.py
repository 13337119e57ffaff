"""What `profile calibrate` might have measured of a small CPU."""

from __future__ import annotations

from profiler.cost.engines.transformers import COUNTS
from profiler.devices.calibration import Ceilings, LayerCost, LayerKernel, LinearLayer

FP32 = LinearLayer(
    {1: LayerCost(1e-10, 0.0, 5e-6), 16: LayerCost(1.2e-10, 0.0, 5e-6), 256: LayerCost(20e-10, 0.0, 5e-6)}
)
MEASURED = Ceilings(
    title="AMD EPYC", fingerprint="x", measured_at="2026-11-24", seconds=30.0, process_bytes=700 * 1024**2,
    read_bytes_s=12e9, copy_bytes_s=8e9, graph_step_s=None, flops={"fp32": 60e9, "bf16": 5e9},
    step_s={"fp32": 5e-6 * COUNTS.step_operators}, elementwise_s={"fp32": 2e-10 * COUNTS.elementwise},
    fresh_byte_s=0.0, delta_s=0.067108864, convolutions={},
    attention={"fp32": {"step_byte_s": 4e-10, "pass_flop_s": 4e-11}},
    layers={LayerKernel("fp32"): FP32},
)  # fmt: skip
