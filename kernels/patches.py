"""Patches: replacements for parts of a transformers module during a decode step only. Prefill runs unpatched.

The modules stay those of transformers. The patches replace the functions that transformers lets us register
(attention, experts), the forward of ``nn.Linear`` for a few rows, the one-token rule of gated-delta layers and, on a
CPU, their convolution. On CUDA they also replace the forward of RMS norms.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers.activations import ACT2FN
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS, batched_mm_experts_forward
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from . import cuda, native
from .state import StaticLayer

MAX_ROWS = 8  # rows that one pass over the weights serves; for more, a matrix product is faster
NAME = "hwprofile"  # under which our attention and experts are registered with transformers
DELTA_RULE = "torch_recurrent_gated_delta_rule"
CONVOLUTION = "causal_conv1d_update"
DTYPES = (torch.float32, torch.bfloat16)
PARALLEL_FROM = 32768  # elements from which torch's operators use OpenMP threads (at::internal::GRAIN_SIZE)
AGREE = 0.03  # relative difference that bf16 rounding may cause, where transformers rounds twice
_NOTHING = object()


class Patches:
    """``with Patches(model): …`` runs decode steps and then restores everything.

    The replacements are determined once, so that entering takes microseconds. With ``loops=False`` the C++ loops are
    not used, so that a CPU runs the operators that CUDA would.
    """

    def __init__(self, model: PreTrainedModel, loops: bool = True) -> None:
        self._swaps = list(_swaps(model, loops))
        self._before: list[Any] = []

    def __enter__(self) -> None:
        self._before = [space.get(name, _NOTHING) for space, name, _ in self._swaps]
        for space, name, value in self._swaps:
            space[name] = value

    def __exit__(self, *error: object) -> None:
        for (space, name, _), before in zip(self._swaps, self._before, strict=True):
            if before is _NOTHING:
                del space[name]
            else:
                space[name] = before


def native_reason(model: PreTrainedModel) -> str | None:
    """Why our C++ loops cannot run this model; ``None`` if they can."""
    if model.device.type != "cpu":
        return "not a CPU"
    if model.dtype not in DTYPES:
        return f"no loops for {model.dtype}"
    return native.missing()


def cuda_reason(model: PreTrainedModel) -> str | None:
    """Why our CUDA kernels cannot run this model; ``None`` if they can."""
    if model.device.type != "cuda":
        return "not a CUDA device"
    if model.dtype not in cuda.DTYPES:
        return f"no kernels for {model.dtype}"
    return cuda.missing(model.device.index or 0)


def fallback(model: PreTrainedModel) -> tuple[str, bool] | None:
    """Why a decode step runs on plain torch, and whether the machine is the reason and not the model.

    ``None`` if our own loops or kernels run.
    """
    on_cpu = model.device.type == "cpu"
    reason = native_reason(model) if on_cpu else cuda_reason(model)
    served: Any = DTYPES if on_cpu else cuda.DTYPES
    return None if reason is None else (reason, model.dtype in served)


def skips_empty_slots(model: PreTrainedModel, layers: Iterable[Any]) -> bool:
    """Whether attention over these static layers reads only the filled slots."""
    if model.config.get_text_config()._attn_implementation != "sdpa":
        return False
    static = [layer for layer in layers if isinstance(layer, StaticLayer)]
    fits = all(layer.keys.shape == layer.values.shape and layer.keys.shape[-1] in cuda.WIDTHS for layer in static)
    return native_reason(model) is None or (fits and cuda_reason(model) is None)


def _swaps(model: PreTrainedModel, loops: bool) -> Iterator[tuple[dict[str, Any], str, Any]]:
    """Each replacement: a namespace (attributes of an object or module), a name in it, and the new value."""
    config = model.config.get_text_config()
    with_loops, with_kernels = (loops and reason(model) is None for reason in (native_reason, cuda_reason))
    if getattr(config, "_experts_implementation", None) is not None:
        # the defaults read offsets on the host (grouped_mm) or loop over experts (eager), which cannot be captured
        by_ours = with_loops or (with_kernels and _experts_agree(model))
        yield vars(config), "_experts_implementation_internal", NAME if by_ours else "batched_mm"
    if not (with_loops or with_kernels):
        return
    ours: dict[str, Callable[..., Any]] = {DELTA_RULE: _delta_rule}
    if with_loops:
        ours[CONVOLUTION] = _convolution
    for home in {sys.modules[type(module).__module__] for module in model.modules()}:
        yield from ((vars(home), name, make(vars(home)[name])) for name, make in ours.items() if name in vars(home))
    if config._attn_implementation == "sdpa":
        yield vars(config), "_attn_implementation_internal", NAME
    makers = (_linear_forward,) if with_loops else (NormForward(), _small_linear_forward)
    for module in model.modules():
        for make in makers:
            forward = make(module)
            if forward is not None:
                yield vars(module), "forward", forward


def _linear_forward(module: Any) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """A forward for few rows on our C++ loops; ``None`` for modules without one."""
    if type(module) is nn.Linear and module.weight.dtype in DTYPES and module.weight.is_contiguous():
        weight, bias, scale = module.weight, module.bias, None
        original: Callable[[torch.Tensor], torch.Tensor] = lambda x: F.linear(x, weight, bias)  # noqa: E731
    elif type(module).__name__ == "Linear8bitLt" and not module.state.has_fp16_weights:
        weight, rows = _int8_rows(module)
        bias, scale, original = module.bias, rows.float() / 127, type(module).forward.__get__(module)
    else:
        return None

    def forward(x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(-1, x.shape[-1])
        if rows.shape[0] > MAX_ROWS:
            return original(x)
        y = torch.ops.hwprofile.matvec(rows.contiguous(), weight, scale).view(*x.shape[:-1], weight.shape[0])
        return y if bias is None else y + bias

    return forward


def _small_linear_forward(module: Any) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """A forward on our CUDA kernel for matrices so small that a library call takes longer to start than they take to
    read; ``None`` for other modules.
    """
    if type(module) is not nn.Linear or not module.weight.is_contiguous():
        return None
    weight, bias = module.weight, module.bias
    if not cuda.serves_matvec(weight[:1], weight) or weight.data_ptr() % cuda.VECTOR_BYTES or _hooked(module):
        return None

    def forward(x: torch.Tensor) -> torch.Tensor:
        if not cuda.serves_matvec(x, weight):
            return F.linear(x, weight, bias)
        return torch.ops.hwprofile_cuda.matvec(x.contiguous(), weight, bias)

    return forward


def _hooked(module: Any) -> bool:
    """Whether accelerate wraps this module's forward to move its weights."""
    return hasattr(module, "_hf_hook")


class NormForward:
    """Gives an RMS norm a forward on our CUDA kernel: one launch instead of eight.

    Some families add one to the weights and some do not. A comparison of results shows what a class does; one that
    does neither keeps its own forward.
    """

    def __init__(self) -> None:
        self._offsets: dict[type, float | None] = {}

    def __call__(self, module: Any) -> Callable[..., torch.Tensor] | None:
        kind = type(module)
        eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
        weight = getattr(module, "weight", None)
        if "RMSNorm" not in kind.__name__ or eps is None or _hooked(module):
            return None
        if weight is not None and (weight.dim() != 1 or weight.dtype not in cuda.DTYPES):
            return None
        if kind not in self._offsets and weight is not None:
            self._offsets[kind] = _norm_offset(module, weight, eps)
        offset = 0.0 if weight is None else self._offsets[kind]
        return None if offset is None else _norm_forward(module, weight, offset, eps)


def _norm_forward(module: Any, weight: torch.Tensor | None, offset: float, eps: float) -> Callable[..., torch.Tensor]:
    original = type(module).forward.__get__(module)
    gated = type(module).__name__.endswith("Gated")

    def forward(hidden_states: torch.Tensor, gate: torch.Tensor | None = None) -> torch.Tensor:
        dtypes = {each.dtype for each in (hidden_states, weight, gate) if each is not None}
        if len(dtypes) > 1 or not dtypes <= cuda.DTYPES.keys() or gated != (gate is not None):
            return original(hidden_states, gate) if gated else original(hidden_states)
        contiguous_gate = None if gate is None else gate.contiguous()
        return torch.ops.hwprofile_cuda.rms_norm(hidden_states.contiguous(), weight, contiguous_gate, offset, eps)

    return forward


@torch.inference_mode()
def _norm_offset(module: Any, weight: torch.Tensor, eps: float) -> float | None:
    """The number that the module adds to its weights, 0 or 1; ``None`` if it computes something else."""
    x = torch.linspace(-2, 3, weight.shape[0], dtype=weight.dtype, device=weight.device)[None]
    inputs = (x, x.flip(-1)) if type(module).__name__.endswith("Gated") else (x,)
    expected = type(module).forward(module, *inputs)
    off = {
        offset: float((_norm_forward(module, weight, offset, eps)(*inputs) - expected).abs().max())
        for offset in (0.0, 1.0)
    }
    nearest = min(off, key=lambda offset: off[offset])
    return nearest if off[nearest] <= AGREE * max(1.0, float(expected.abs().max())) else None


def _int8_rows(module: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The int8 rows of a weight and their absolute maxima, which bitsandbytes moves in the first forward pass."""
    holder = module.weight if module.weight.CB is not None else module.state
    return holder.CB, holder.SCB


def attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of one query token over the cache; unsupported cases go to SDPA.

    ``query [batch, heads, 1, head_dim]``, ``key`` and ``value [batch, kv_heads, slots, head_dim]``; returns ``[batch,
    1, heads, head_dim]``, and no attention weights.
    """
    other = attention_mask is None or attention_mask.dtype != torch.bool or key.dtype not in DTYPES
    other = other or query.shape[2] != 1
    other = other or kwargs.get("softcap") is not None or kwargs.get("position_bias") is not None
    on_gpu = key.device.type == "cuda"
    if other or (on_gpu and not cuda.serves_attention(query, key, value, attention_mask)):  # type: ignore[arg-type]
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    mask = attention_mask.view(-1)  # type: ignore[union-attr]
    space = torch.ops.hwprofile_cuda if on_gpu else torch.ops.hwprofile
    return space.decode_attention(query.contiguous(), key, value, mask, scale), None


def experts(
    module: Any, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """Apply the chosen experts, reading the weights of each once; ``batched_mm`` would copy them first and so move
    them three times.

    ``hidden_states [tokens, hidden]``, ``top_k_index`` and ``top_k_weights [tokens, choices]``; returns ``[tokens,
    hidden]``.
    """
    plain = module.has_gate and not (module.has_bias or module.is_transposed or module.has_post_expert_norm)
    if not plain or module._is_expert_parallel:
        return batched_mm_experts_forward(module, hidden_states, top_k_index, top_k_weights)
    multiply = torch.ops.hwprofile.expert_matvec
    if hidden_states.device.type == "cuda":
        if not all(cuda.serves_experts(hidden_states, each) for each in (module.gate_up_proj, module.down_proj)):
            return batched_mm_experts_forward(module, hidden_states, top_k_index, top_k_weights)
        multiply = torch.ops.hwprofile_cuda.expert_matvec
    tokens, choices = top_k_index.shape
    ids = top_k_index.reshape(-1).contiguous()
    rows = hidden_states.repeat_interleave(choices, dim=0)
    inner = module._apply_gate(multiply(rows, module.gate_up_proj, ids))
    outer = multiply(inner.contiguous(), module.down_proj, ids)
    weighted = outer * top_k_weights.reshape(-1, 1)
    return weighted.view(tokens, choices, -1).sum(dim=1).to(hidden_states.dtype)


@torch.inference_mode()
def _experts_agree(model: PreTrainedModel) -> bool:
    """Whether our kernel agrees with torch on two experts of the model; it is not tested on every kind of GPU."""
    weight = next((p for n, p in model.named_parameters() if n.endswith("gate_up_proj") and p.dim() == 3), None)
    if weight is None or not cuda.serves_experts(weight[0], weight):
        return False
    x = torch.linspace(-1, 1, 2 * weight.shape[-1], dtype=weight.dtype, device=weight.device).view(2, -1)
    ids = torch.tensor([weight.shape[0] - 1, 0], device=weight.device)
    expected = torch.einsum("tk,trk->tr", x.float(), weight[ids].float())
    try:
        given = torch.ops.hwprofile_cuda.expert_matvec(x, weight, ids).float()
    except cuda.KernelFailed:
        return False
    return bool(((given - expected).abs().max() <= AGREE * expected.abs().max()).item())


def _delta_rule(original: Callable[..., Any]) -> Callable[..., Any]:
    """The one-token gated delta rule, which updates its state in place; longer inputs go to ``original``."""

    def step(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        g: torch.Tensor,
        beta: torch.Tensor,
        initial_state: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        fits = query.shape[1] == 1 and kwargs.get("use_qk_l2norm_in_kernel") and kwargs.get("output_final_state")
        if initial_state is None or initial_state.dtype != torch.float32 or not fits:
            return original(query, key, value, g=g, beta=beta, initial_state=initial_state, **kwargs)
        q, k, v, decay, rate = (tensor.contiguous() for tensor in (query, key, value, g, beta))
        if query.device.type == "cuda":
            if not cuda.serves_delta(query, value, initial_state):
                return original(query, key, value, g=g, beta=beta, initial_state=initial_state, **kwargs)
            return torch.ops.hwprofile_cuda.gated_delta_step(q, k, v, decay, rate, initial_state), initial_state
        return torch.ops.hwprofile.gated_delta_step(q, k, v, decay, rate, initial_state).to(
            query.dtype
        ), initial_state

    return step


def _convolution(original: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """A causal depthwise convolution of one token, as a sum of products; longer inputs go to ``original``.

    In bf16 ``conv1d`` processes channels one by one and takes a second per step. In fp32 it leaves OpenMP threads
    spinning that slow ours down, as does every operator over ``PARALLEL_FROM`` elements; so channels are split.
    """

    def step(
        hidden_states: torch.Tensor,
        conv_state: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None = None,
        activation: str | None = None,
    ) -> torch.Tensor:
        if hidden_states.shape[-1] != 1:
            return original(hidden_states, conv_state, weight, bias, activation)
        channels = hidden_states.shape[1]
        size = max(1, (PARALLEL_FROM - 1) // (hidden_states.shape[0] * (conv_state.shape[-1] + 1)))
        parts = [slice(start, start + size) for start in range(0, channels, size)]
        of = [(hidden_states[:, p], conv_state[:, p], weight[p], None if bias is None else bias[p]) for p in parts]
        convolved = [_convolved(*each) for each in of]
        out = convolved[0] if len(convolved) == 1 else torch.cat(convolved, dim=1)
        return (out if activation is None else ACT2FN[activation](out)).to(hidden_states.dtype)

    return step


def _convolved(
    hidden_states: torch.Tensor, conv_state: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    held = torch.cat([conv_state, hidden_states], dim=-1).to(weight.dtype)
    conv_state.copy_(held[:, :, -conv_state.shape[-1] :])
    out = (held[:, :, -weight.shape[-1] :].float() * weight.float()).sum(dim=-1, keepdim=True)
    return (out if bias is None else out + bias.float()[:, None]).to(weight.dtype)


ALL_ATTENTION_FUNCTIONS.register(NAME, attention)

ALL_EXPERTS_FUNCTIONS.register(NAME, experts)
