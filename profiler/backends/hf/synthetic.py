"""A model with random weights, written straight into the storage format of its quantization.

The module tree is built on ``meta``, the quantizer of transformers replaces the modules it would replace, and each
weight is then allocated and filled on the target device, one after another: no tensor of the unquantized model ever
exists. Norms, positions and other small things are set by the model's own initialisation.

**Noise.** ``torch.Tensor.normal_`` makes some 100 million values a second on one core: minutes for a large model.
Timing does not depend on the values, only on their being neither constant nor extreme, so a block of noise is drawn
once and laid over a tensor piece by piece, each piece from another offset.

**Decay of gated-delta layers.** Drawn as their authors initialise them, γ = exp(−A · Δ) per token.
A is uniform between 0 and 16, Δ log-uniform between 0.001 and 0.1 (Mamba-2, Gated DeltaNet; ``gated_deltanet.py`` of
flash-linear-attention). transformers' own initialisation sets every Δ near 1.3, for checkpoints to overwrite: states
then shrink by e^−10 a token, products over a chunk run into denormal numbers, and a chunk takes an Intel CPU twice
as long as with these, or six times with Δ near 0.2. Timing depends on the values here.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.quantizers.auto import AutoHfQuantizer

from profiler.backends.base import Beat
from profiler.errors import ProfileError
from profiler.quants.base import PackedModules, Quant
from profiler.quants.checkpoint import CHECKPOINT_DTYPES

BLOCK = 4_194_301  # elements; prime, so that rows of no width line up with it

A_MOST = 16.0
DELTA = (0.001, 0.1)

BEFORE_ATTENTION = "input_layernorm"
OUTLYING, LARGE = 2, 16.0  # features, and their weight: most of their values exceed the threshold of 6
VECTOR_NOISE = 0.02  # spread laid over norms and biases, so that none is one repeated constant


@lru_cache(maxsize=4)
def _block(dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Standard normal values, twice in a row so that a piece can start anywhere."""
    noise = torch.randn(BLOCK, generator=torch.Generator().manual_seed(0)).to(device=device, dtype=dtype)
    return torch.cat([noise, noise])


def forget() -> None:
    """Give the blocks' memory back: it must not be in the peak of what is measured next."""
    _block.cache_clear()


def fill_normal(tensor: torch.Tensor, std: float, seed: int) -> None:
    """Fill a contiguous floating tensor in place with values of mean 0 and standard deviation ``std``."""
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
    """Δ of ``count`` heads, in fp32 on the CPU."""
    low, high = (math.log(end) for end in DELTA)
    return (low + (high - low) * torch.rand(count, generator=random)).exp()


def biases(count: int, random: torch.Generator) -> torch.Tensor:
    """What softplus makes into Δ: the ``dt_bias`` of ``count`` heads."""
    return deltas(count, random).expm1().log()


def log_decays(count: int) -> torch.Tensor:
    """log γ of ``count`` heads."""
    return -A_MOST * torch.rand(count) * deltas(count)


def build(
    config: PretrainedConfig, dtype: torch.dtype, device: torch.device, quant: Quant, seed: int, beat: Beat
) -> PreTrainedModel:
    """A model of this text config with seeded random weights, in evaluation mode.

    Raises ProfileError for a quantization that makes none.
    """
    if quant.unmade is not None:
        raise ProfileError(quant.unmade)
    quantization = quant.load_config(CHECKPOINT_DTYPES[str(dtype).removeprefix("torch.")])
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    if quantization is not None:
        quantizer = AutoHfQuantizer.from_config(quantization, pre_quantized=False)
        quantizer.preprocess_model(model=model, device_map={"": device})
        quantizer.postprocess_model(model)
    model.tie_weights()  # a tied head is the same parameter, so it is made once
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
            spread = torch.empty_like(parameter)
            fill_normal(spread, VECTOR_NOISE, seed + number)
            parameter.data.add_(spread)
    forget()
    return model.eval().requires_grad_(False)


def _like_trained(model: PreTrainedModel, seed: int) -> None:
    """What speed depends on beside shapes: how fast states shrink, and features that LLM.int8 keeps in 16 bits.

    SmolLM2-135M has one or two such features before attention and next to none elsewhere, Gemma 3 270M 10 to 120.
    """
    random = torch.Generator().manual_seed(seed)
    for name, module in model.named_modules():
        if isinstance(bias := getattr(module, "dt_bias", None), nn.Parameter):
            bias.data.copy_(biases(bias.numel(), random))
        if name.endswith(BEFORE_ATTENTION) and isinstance(weight := getattr(module, "weight", None), nn.Parameter):
            weight.data[torch.randint(weight.numel(), (OUTLYING,), generator=random)] = LARGE


class _Maker:
    """Allocates and fills the parameters of one module after another; ``RandomValues`` for those that are packed."""

    def __init__(
        self, device: torch.device, dtype: torch.dtype, std: float, seed: int, packed: PackedModules | None
    ) -> None:
        self.device, self.dtype, self.std, self.seed, self.packed = device, dtype, std, seed, packed
        self.patterns: dict[Any, Any] = {}
        self.made: dict[nn.Parameter, nn.Parameter] = {}

    def materialize(self, module: nn.Module) -> None:
        """Give every own parameter and buffer of ``module`` memory; fill the large ones."""
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
        """As ``fill_normal``; None: from another seed each time."""
        fill_normal(tensor, std, self._next_seed() if seed is None else seed)

    def tile(self, target: torch.Tensor, pattern: torch.Tensor, shift: int = 0) -> None:
        """As ``tile``, from another place of the pattern each time: a multiple of ``shift`` elements."""
        tile(target, pattern.roll(self._next_seed() * shift) if shift else pattern)

    def _next_seed(self) -> int:
        self.seed += 1
        return self.seed
