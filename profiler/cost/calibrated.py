"""Rates of a device that `profile calibrate` measured: its own curves for linear layers, attention and launches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

from profiler.cost.rates import OWN_FORMATS, OWN_ROWS, PLAIN, SCHEMES, UNPACKED, DataSheetRates, shares
from profiler.cost.roofline import FEW_TOKENS, Ahead, Convolution, Cost, InTurn, Rates, Roofline
from profiler.cost.work import Item, PhaseWork
from profiler.decode_path import GRAPH
from profiler.devices.calibration import Ceilings, rows_of
from profiler.devices.target import Target


@dataclass(frozen=True, slots=True)
class OwnKernels:
    """Which linear layers our matvec kernels multiply: those kernels were timed separately."""

    tokens: int  # at most
    matrix_bytes: float  # at most

    def serve(self, item: Item) -> bool:
        """Whether they multiply the matrices of ``item``."""
        return item.rows <= self.tokens and item.nbytes <= self.matrix_bytes * item.count


LIBRARY = OwnKernels(0, 0.0)  # PyTorch and bitsandbytes multiply everything


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibratedRates(Rates):
    """What PyTorch, or our own decode step, makes of a device that was measured."""

    ceilings: Ceilings
    own_kernels: OwnKernels = LIBRARY

    def cost(self, item: Item, work: PhaseWork) -> Cost:
        """Linear layers by their measured curves; everything else by measured seconds per byte and FLOP."""
        fresh = item.fresh * self.ceilings.fresh_byte_s
        if item.kind == "weights" and (found := self._layers(item)) is not None:
            return found._replace(extra=fresh) if item.scheme in UNPACKED else found
        if item.kind == "convolution":
            return Cost(0.0, self.convolution.seconds(item), fresh) if self.convolution else Cost()
        if item.kind == "activations":
            if work.tokens <= FEW_TOKENS:
                return Cost()  # part of what an operator was measured to take
            return Cost(self.roofline.reading(item), self.roofline.computing(item, work.tokens), fresh)
        return Cost(self.roofline.reading(item), self.roofline.computing(item, work.tokens))

    def _layers(self, item: Item) -> Cost | None:
        """Linear layers by their curve; ``None`` for a format that was not measured.

        What one token takes counts as reading, what more tokens add to that as computing.
        """
        scheme, what = item.scheme, (item.nbytes, item.outputs, item.count, item.part == "head")
        if rows_of(scheme) in self.ceilings.points and self.own_kernels.serve(item):
            scheme = rows_of(scheme)
        found = self.ceilings.product_s(scheme, item.rows, *what)
        if found is None:
            return None
        least = min(found, self.ceilings.product_s(scheme, 1.0, *what) or found)
        return Cost(least, 0.0 if item.scheme in PLAIN and found <= least else found)

    def over(self, count: int) -> Self:
        return replace(self, roofline=self.roofline.over(count))

    def own_step(self, target: Target, dtype: str, path: str) -> Self:
        rule, on_cpu = shares()["step"], target.vendor == "CPU"
        roofline, attention = self.roofline, self.ceilings.attention.get(dtype)
        if attention:
            roofline = roofline.reads(cache=attention.get("own_byte_s", attention["step_byte_s"]))
        elif on_cpu:
            own = {scheme: roofline.read_s[scheme] * rule["reads"] for scheme in OWN_FORMATS}
            roofline = roofline.reads(**own, cache=own["fp32"])
        tokens, matrix_bytes = OWN_ROWS["CPU" if on_cpu else "other"]
        return replace(
            self,
            roofline=roofline,
            launches=self._own_launches(path, None if on_cpu else rule["device_call_s"]),
            convolution=None if on_cpu else self.convolution,
            own_kernels=OwnKernels(tokens, matrix_bytes),
        )

    def _own_launches(self, path: str, otherwise_s: float | None) -> InTurn | Ahead:
        call_s = 0.0 if path == GRAPH else self.launches.call_s
        device_call_s = self.ceilings.graph_call_s
        if device_call_s is None:
            device_call_s = otherwise_s
        if device_call_s is None:
            return InTurn(call_s)
        known = self.ceilings.host_s
        start_s = {name: known.get(rows_of(name), seconds) for name, seconds in known.items()}
        return Ahead(call_s, device_call_s, {} if path == GRAPH else start_s, layers_timed=True)


def calibrated(
    base: DataSheetRates,
    ceilings: Ceilings,
    dtype: str,
    touches: float = 1.0,
    content: Mapping[str, Any] | None = None,
) -> CalibratedRates:
    """Rates of PyTorch's own engine on a device with ``ceilings``; ``base``: what its data sheet says.

    ``touches``: how often the engine counts a step's way over its cache, which was measured as a whole.
    """
    found = (shares() if content is None else content)["calibrated"]
    convolution = ceilings.convolutions.get(dtype)
    call_s = ceilings.call(dtype)
    return CalibratedRates(
        roofline=_roofline(base.roofline, ceilings, dtype, touches),
        convolution=Convolution(**convolution) if convolution else None,
        launches=InTurn(call_s)
        if ceilings.graph_call_s is None
        else Ahead(call_s, ceilings.graph_call_s, ceilings.host_s, layers_timed=True),
        layer_s=base.layer_s,
        expert_layers=base.expert_layers,
        decode=tuple(found["decode"]),
        prefill=tuple(found["prefill"]),
        basis="calibrated",
        ceilings=ceilings,
    )


def _roofline(base: Roofline, ceilings: Ceilings, dtype: str, touches: float) -> Roofline:
    """The ceilings, except for attention, the gated delta rule and element-wise operators, which were timed."""
    flops = max(ceilings.flops.values(), default=0.0)
    ceiling = dict.fromkeys(SCHEMES, 1 / flops) if flops else dict(base.many_flop_s)
    read_s = dict.fromkeys(SCHEMES, 1 / ceilings.read_bytes_s) | {"copy": ceilings.activation(dtype)}
    many, few = ceiling | {"state": ceilings.delta_flop_s}, dict(ceiling)
    if attention := ceilings.attention.get(dtype):
        read_s["cache"] = attention["step_byte_s"] / touches
        many["cache"], few["cache"] = attention["pass_flop_s"], 0.0
    return Roofline(read_s, many, few, base.expert_flops)
