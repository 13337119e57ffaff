"""LLM.int8() (arXiv 2208.07339): 8-bit rows with one fp32 scale each; outlier columns are computed in 16 bits."""

from __future__ import annotations

from typing import Any

from profiler.devices.base import DeviceInfo
from profiler.models.layers import Weight
from profiler.quants.base import LINEAR_ROLES, Quant, bitsandbytes_missing, plain_bytes

SCALE_BYTES = 4
CAPABILITY = 75


def weight_bytes(weight: Weight, dtype: str, repacks: bool = False) -> int:
    """One byte a weight and a scale a row."""
    if weight.role not in LINEAR_ROLES:
        return plain_bytes(weight, dtype)
    return weight.parameters + SCALE_BYTES * weight.shape[0]


def load_config(dtype: str) -> Any:
    """The threshold stays the library's default (6.0): what people get who ask for 8 bits."""
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(load_in_8bit=True)


def unavailable(device: DeviceInfo) -> str | None:
    """Its matrix products need the integer tensor cores of Turing."""
    return bitsandbytes_missing(device, CAPABILITY)


QUANT = Quant("int8", weight_bytes, LINEAR_ROLES, unavailable, load_config)
