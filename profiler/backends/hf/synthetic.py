"""Builds a model with random weights, directly in the storage format of its quantization.

The modules are created on the ``meta`` device, and transformers' quantizer replaces some of them, as it does for a
checkpoint. Then the weights are allocated and filled on the target device one by one, so the unquantized model never
exists. The model's own initialization sets norms, positions and other small tensors.

**Noise.** ``torch.Tensor.normal_`` generates about 100 million values per second on one core, so a large model would
take minutes. Timing does not depend on the exact values, as long as they are neither constant nor extreme. So a block
of noise is drawn once and copied into a tensor piece by piece, each piece from another offset.

**Decay of gated-delta layers.** Here, timing does depend on the values. They are drawn as the authors of these layers
initialize them: the decay per token is γ = exp(−A · Δ), with A uniform between 0 and 16 and Δ log-uniform between
0.001 and 0.1 (Mamba-2, Gated DeltaNet; ``gated_deltanet.py`` of flash-linear-attention). transformers initializes
every Δ near 1.3, because a checkpoint overwrites it. A state then shrinks by e^−10 per token, products over a chunk
become denormal numbers, and a chunk takes twice as long on an Intel CPU, or six times with Δ near 0.2.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.quantizers.auto import AutoHfQuantizer

from profiler.backends.base import Beat
from profiler.errors import ProfileError
from profiler.quants.base import PackedModules, Quant
from profiler.quants.checkpoint import CHECKPOINT_DTYPES

BLOCK = 4_194_301  # elements; prime, so that it does not line up with the rows of any matrix

MAX_A = 16.0  # transformers initializes A of a gated delta layer uniformly between 0 and 16
DELTA = (0.001, 0.1)

BEFORE_ATTENTION = "input_layernorm"
OUTLIERS, OUTLIER_WEIGHT = 2, 16.0  # features, and their weight: most of their values exceed the threshold of 6
VECTOR_NOISE = 0.02  # standard deviation of the noise that is added to norms and biases, so that none is constant


@lru_cache(maxsize=4)
def _block(dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Standard normal values, repeated once, so that a piece can start anywhere in the first half."""
    noise = torch.randn(BLOCK, generator=torch.Generator().manual_seed(0)).to(device=device, dtype=dtype)
    return torch.cat([noise, noise])


def forget() -> None:
    """Free the blocks of noise, so that they are not part of the next measured peak."""
    _block.cache_clear()


def fill_normal(tensor: torch.Tensor, std: float, seed: int) -> None:
    """Fill a contiguous floating-point tensor in place with values of mean 0 and standard deviation ``std``."""
    flat = tensor.view(-1)
    noise = _block(tensor.dtype, tensor.device)
    offset = seed * 1_000_003 % BLOCK
    for start in range(0, flat.numel(), BLOCK):
        piece = flat[start : start + BLOCK]
        torch.mul(noise[offset : offset + piece.numel()], std, out=piece)
        offset = (offset + 611_953) % BLOCK


def tile(target: torch.Tensor, pattern: torch.Tensor) -> None:
    """Repeat ``pattern`` over a flat tensor of the same dtype, in place."""
    length = pattern.numel()
    for start in range(0, target.numel(), length):
        piece = target[start : start + length]
        piece.copy_(pattern[: piece.numel()])


def deltas(count: int, random: torch.Generator | None = None) -> torch.Tensor:
    """Δ of ``count`` heads: ``[count]``, in fp32 on the CPU."""
    low, high = (math.log(end) for end in DELTA)
    return (low + (high - low) * torch.rand(count, generator=random)).exp()


def biases(count: int, random: torch.Generator) -> torch.Tensor:
    """The ``dt_bias [count]`` of ``count`` heads: softplus of it is Δ."""
    return deltas(count, random).expm1().log()


def log_decays(count: int) -> torch.Tensor:
    """log γ of ``count`` heads: ``[count]``, in fp32 on the CPU."""
    return -MAX_A * torch.rand(count) * deltas(count)


def attention_of(config: PretrainedConfig) -> str:
    """The attention implementation: PyTorch's, or transformers' own for families that do not support that."""
    model = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    return "sdpa" if getattr(model, "_supports_sdpa", True) else "eager"


def build(
    config: PretrainedConfig, dtype: torch.dtype, device: torch.device, quant: Quant, seed: int, beat: Beat
) -> PreTrainedModel:
    """A model of this text config with seeded random weights, in evaluation mode.

    Raises ProfileError for a quantization without synthetic weights.
    """
    if quant.no_synthetic_weights is not None:
        raise ProfileError(quant.no_synthetic_weights)
    quantization = quant.load_config(CHECKPOINT_DTYPES[str(dtype).removeprefix("torch.")])
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            config, dtype=dtype, attn_implementation=attention_of(config)
        )
    if quantization is not None:
        quantizer = AutoHfQuantizer.from_config(quantization, pre_quantized=False)
        quantizer.preprocess_model(model=model, device_map={"": device})
        quantizer.postprocess_model(model)
    model.tie_weights()  # a tied output head is the same parameter, so it is created only once
    std = float(getattr(config, "initializer_range", None) or 0.02)
    maker = _Maker(device, dtype, std, seed, quant.modules)
    modules = list(model.named_modules())
    for number, (name, module) in enumerate(modules):
        beat(f"load weights {number}/{len(modules)} {name}")
        maker.materialize(module)
    model.tie_weights()
    model.initialize_weights()
    _like_trained(model, seed)
    for number, parameter in enumerate(model.parameters()):
        if parameter.is_floating_point() and parameter.dim() <= 1:
            noise = torch.empty_like(parameter)
            fill_normal(noise, VECTOR_NOISE, seed + number)
            parameter.data.add_(noise)
    forget()
    return model.eval().requires_grad_(False)


def _like_trained(model: PreTrainedModel, seed: int) -> None:
    """Set the values that speed depends on: how fast recurrent states decay, and outlier features, which LLM.int8
    computes in 16 bits.

    SmolLM2-135M has one or two outlier features before attention and almost none elsewhere; Gemma 3 270M has 10 to
    120.
    """
    random = torch.Generator().manual_seed(seed)
    for name, module in model.named_modules():
        if isinstance(bias := getattr(module, "dt_bias", None), nn.Parameter):
            bias.data.copy_(biases(bias.numel(), random))
        if name.endswith(BEFORE_ATTENTION) and isinstance(weight := getattr(module, "weight", None), nn.Parameter):
            weight.data[torch.randint(weight.numel(), (OUTLIERS,), generator=random)] = OUTLIER_WEIGHT


class _Maker:
    """Allocates and fills parameters, module by module. It is the ``RandomValues`` of packed weights."""

    def __init__(
        self, device: torch.device, dtype: torch.dtype, std: float, seed: int, packed: PackedModules | None
    ) -> None:
        self.device, self.dtype, self.std, self.seed, self.packed = device, dtype, std, seed, packed
        self.patterns: dict[Any, Any] = {}
        self.made: dict[nn.Parameter, nn.Parameter] = {}

    def materialize(self, module: nn.Module) -> None:
        """Allocate the module's own parameters and buffers, and fill those with two or more dimensions."""
        if self.packed is not None and self.packed.weight is not None and type(module).__name__ in self.packed.names:
            weight = module.weight = self.packed.weight(module, self)
            weight._is_hf_initialized = True  # read by initialize_weights
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.is_meta:
                if parameter not in self.made:
                    self.made[parameter] = self._plain(parameter)
                setattr(module, name, self.made[parameter])
        for name, buffer in list(module.named_buffers(recurse=False)):
            if buffer.is_meta:
                module._buffers[name] = torch.empty_like(buffer, device=self.device)

    def _plain(self, parameter: nn.Parameter) -> nn.Parameter:
        filled = nn.Parameter(torch.empty_like(parameter, device=self.device), requires_grad=False)
        if parameter.dim() >= 2:
            fill_normal(filled.data, self.std, self._next_seed())
            filled._is_hf_initialized = True  # type: ignore[attr-defined]  # read by initialize_weights
        return filled

    def normal(self, tensor: torch.Tensor, std: float, seed: int | None = None) -> None:
        """Like the function ``fill_normal``. Without a ``seed``, each call takes the next one."""
        fill_normal(tensor, std, self._next_seed() if seed is None else seed)

    def tile(self, target: torch.Tensor, pattern: torch.Tensor, shift: int = 0) -> None:
        """Like the function ``tile``. Each call starts at another multiple of ``shift`` elements of the pattern."""
        tile(target, pattern.roll(self._next_seed() * shift) if shift else pattern)

    def _next_seed(self) -> int:
        self.seed += 1
        return self.seed
