"""A CUDA graph's semantics on any device: record the operators of a step, then replay them on the same memory.

A captured graph repeats kernels with the addresses and scalars it saw; no Python runs. The twin does the same with
recorded operators: arguments are those of the recording, results are written where the recorded results lay, and what
was computed last time is poisoned with NaN first. Whatever a step takes from the host (a position, a length, a buffer
that was swapped) is therefore stale here exactly as it would be there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten


class ReplayFailed(Exception):
    """An operator cannot be replayed: its result changed shape, or it refuses its old arguments."""


@dataclass(frozen=True, slots=True)
class Op:
    """One recorded operator call. ``fresh`` are its results that own new memory, not views or in-place results."""

    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    fresh: tuple[torch.Tensor | None, ...]

    @property
    def is_view(self) -> bool:
        """Computes nothing: no kernel on a GPU."""
        return not self.func._schema.is_mutable and not any(tensor is not None for tensor in self.fresh)

    def tensors(self) -> list[torch.Tensor]:
        """Tensor arguments, in order."""
        return [leaf for leaf in tree_flatten((self.args, self.kwargs))[0] if isinstance(leaf, torch.Tensor)]


class Recorder(TorchDispatchMode):
    """Records every operator that reaches the device. Keeps all tensors alive, so that addresses stay distinct."""

    def __init__(self) -> None:
        super().__init__()
        self.ops: list[Op] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        taken = {_address(leaf) for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, torch.Tensor)}
        fresh = tuple(
            leaf if isinstance(leaf, torch.Tensor) and _address(leaf) not in taken else None
            for leaf in tree_flatten(result)[0]
        )
        self.ops.append(Op(func, args, kwargs, fresh))
        return result


class TwinGraph:
    """One recorded step. Recording runs the step once, for real; ``replay`` is every later one."""

    def __init__(self, step: Any) -> None:
        with Recorder() as recorder, torch.inference_mode():
            self.result: torch.Tensor = step()
        self.ops = recorder.ops

    @property
    def kernels(self) -> int:
        """Operators that compute something: about the nodes of the captured graph."""
        return sum(not op.is_view for op in self.ops)

    @property
    def pool_bytes(self) -> int:
        """Memory of all intermediate results, if none shared another's place: an upper bound for the pool."""
        return sum(tensor.untyped_storage().nbytes() for tensor in self._intermediates())

    @torch.inference_mode()
    def replay(self) -> torch.Tensor:
        """Run the recorded operators again; gives the recorded result tensor with its new values.

        Raises ReplayFailed.
        """
        for tensor in self._intermediates():
            if tensor.is_floating_point():
                tensor.fill_(torch.nan)
        for op in self.ops:
            if not op.is_view:
                _again(op)
        return self.result

    def _intermediates(self) -> Iterator[torch.Tensor]:
        return (tensor for op in self.ops for tensor in op.fresh if tensor is not None)


def _again(op: Op) -> None:
    try:
        results = tree_flatten(op.func(*op.args, **op.kwargs))[0]
    except (RuntimeError, IndexError) as error:
        raise ReplayFailed(f"{op.func} refuses its recorded arguments: {str(error).splitlines()[0]}") from error
    for old, new in zip(op.fresh, results, strict=True):
        if old is None:
            continue
        if old.shape != new.shape:
            raise ReplayFailed(f"{op.func} changed its shape from {tuple(old.shape)} to {tuple(new.shape)}")
        old.copy_(new)


def _address(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata
