"""What `profile calibrate` might have measured of a small CPU."""

from __future__ import annotations

from profiler.devices.calibration import Ceilings

MEASURED = Ceilings(
    title="AMD EPYC", fingerprint="x", measured_at="2026-11-24", seconds=30.0, process_bytes=700 * 1024**2,
    read_bytes_s=12e9, copy_bytes_s=8e9, graph_call_s=None, flops={"fp32": 60e9, "bf16": 5e9},
    call_s={"fp32": 5e-6}, activation_s={"fp32": 2e-10}, fresh_byte_s=0.0, delta_flop_s=1e-10, convolutions={},
    attention={"fp32": {"step_byte_s": 4e-10, "pass_flop_s": 4e-11}},
    products={"fp32": {"1": {"byte_s": 1e-10, "row_s": 0.0, "call_s": 5e-6},
                       "16": {"byte_s": 1.2e-10, "row_s": 0.0, "call_s": 5e-6},
                       "256": {"byte_s": 20e-10, "row_s": 0.0, "call_s": 5e-6}}},
    tall={}, host_s={},
)  # fmt: skip
