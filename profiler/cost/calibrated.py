"""Rates of a device that `profile calibrate` measured: its timings of linear layers, attention and launches."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

from profiler import quants
from profiler.cost.rates import OWN_ROWS, PLAIN, DataSheetRates, own_quants, schemes, shares
from profiler.cost.roofline import Ahead, Convolution, Cost, InTurn, Rates, Roofline
from profiler.cost.work import Item, PhaseWork
from profiler.decode_path import GRAPH
from profiler.devices.calibration import DELTA, DELTA_TOKENS, STEP_PRODUCTS, Ceilings, LinearLayer
from profiler.devices.target import Target
from profiler.models.layers import IDEAL

TIMED_TOKENS = 8.0  # what an operator on so few tokens reads and writes takes less time than launching it


@dataclass(frozen=True, slots=True)
class OperatorCounts:
    """How many operators and bytes an engine has in the small models that `profile calibrate` times.

    A calibration stores seconds as measured. Dividing them by these counts gives rates, so a corrected count also
    applies to calibrations that are already stored.
    """

    step_operators: float  # operators that a decode step of the small Llama model launches from Python
    elementwise: float  # tensors of the hidden width that the operators of one layer read and write in a prefill
    cache_touches: float  # how often a decode step reads or writes K and V

    def call_s(self, ceilings: Ceilings, dtype: str) -> float:
        """Seconds of one operator launched from Python."""
        return ceilings.step(dtype) / self.step_operators

    def device_call_s(self, ceilings: Ceilings) -> float | None:
        """Seconds that a GPU needs for one small operator, however launched. Linear layers are timed separately."""
        if ceilings.graph_step_s is None:
            return None
        return ceilings.graph_step_s / (self.step_operators - STEP_PRODUCTS)

    def activation_s(self, ceilings: Ceilings, dtype: str) -> float:
        """Seconds per byte that the element-wise operators of a prefill read and write."""
        return ceilings.elementwise(dtype) / self.elementwise


@dataclass(frozen=True, slots=True)
class OwnKernels:
    """The linear layers that our matvec kernels serve. Those kernels are timed separately."""

    tokens: int  # the most tokens that they serve
    matrix_bytes: float  # the largest matrix that they serve

    def serve(self, item: Item) -> bool:
        """Whether our kernels serve the matrices of ``item``."""
        return item.rows <= self.tokens and item.nbytes <= self.matrix_bytes * item.count


LIBRARY = OwnKernels(0, 0.0)  # PyTorch and bitsandbytes serve every layer


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibratedRates(Rates):
    """Rates of PyTorch, or of our own decode step, on a calibrated device."""

    ceilings: Ceilings
    own_kernels: OwnKernels = LIBRARY
    devices: int = 1  # devices that split every linear layer evenly

    def cost(self, item: Item, work: PhaseWork) -> Cost:
        """Time linear layers by their measured curves, and everything else by measured seconds per byte and FLOP."""
        page_faults_s = item.page_fault_bytes * self.ceilings.fresh_byte_s
        if item.kind == "weights" and (found := self._layers(item)) is not None:
            quant = quants.find(item.scheme)
            return found._replace(extra=page_faults_s) if quant is not None and quant.kernels.unpacks else found
        if item.kind == "convolution":
            return Cost(0.0, self.convolution.seconds(item), page_faults_s) if self.convolution else Cost()
        if item.kind == "activations":  # for few tokens, its time is already part of a timed operator
            more = max(0.0, 1 - TIMED_TOKENS / work.tokens)
            return Cost(more * self.roofline.reading(item), 0.0, more * page_faults_s)
        return Cost(self.roofline.reading(item), self.roofline.computing(item))

    def _layers(self, item: Item) -> Cost | None:
        """Time linear layers by their measured curve; ``None`` for a quantization that was not measured.

        The time of one token counts as reading; what more tokens add to it counts as computing.
        """
        if self.devices > 1:
            item = replace(item, nbytes=item.nbytes / self.devices, outputs=item.outputs / self.devices)
        own = timed_layer(self.ceilings, item.scheme, own=True) if self.own_kernels.serve(item) else None
        layer = own or timed_layer(self.ceilings, item.scheme)
        if layer is None:
            return None
        what = (item.nbytes, item.outputs, item.count, item.part == "head")
        found = layer.seconds(item.rows, *what)
        least = min(found, layer.seconds(1.0, *what) or found)
        return Cost(least, 0.0 if item.scheme in PLAIN and found <= least else found)

    def over(self, count: int) -> Self:
        return replace(self, roofline=self.roofline.over(count), devices=self.devices * count)

    def own_step(self, target: Target, dtype: str, path: str) -> Self:
        rule, on_cpu = shares()["step"], target.vendor == "CPU"
        roofline, attention = self.roofline, self.ceilings.attention.get(dtype)
        if attention:
            roofline = roofline.reads(cache=attention.get("own_byte_s", attention["step_byte_s"]))
        elif on_cpu:
            own = {scheme: roofline.read_s[scheme] * rule["reads"] for scheme in own_quants("cpu")}
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
        device_call_s = self.launches.device_call_s if isinstance(self.launches, Ahead) else otherwise_s
        if device_call_s is None:
            return InTurn(call_s)
        start_s = _starts(self.ceilings, own=False) | _starts(self.ceilings, own=True)
        return Ahead(call_s, device_call_s, {} if path == GRAPH else start_s, layers_timed=True)


def timed_layer(ceilings: Ceilings, scheme: str, own: bool = False) -> LinearLayer | None:
    """The timed linear layer of a quantization, with its usual kernel or our ``own``; ``None`` if not timed."""
    quant = quants.find(scheme)
    return ceilings.linear(quant.timed_as if quant is not None else scheme, own)


def _starts(ceilings: Ceilings, own: bool) -> dict[str, float]:
    """Seconds to launch a linear layer from Python, by quantization."""
    known = {scheme: timed_layer(ceilings, scheme, own) for scheme in schemes()}
    return {scheme: layer.start_s for scheme, layer in known.items() if layer and layer.start_s is not None}


def calibrated(base: DataSheetRates, ceilings: Ceilings, dtype: str, counts: OperatorCounts) -> CalibratedRates:
    """Rates of an engine that uses PyTorch's kernels, on a device with ``ceilings``; ``base`` is its data sheet."""
    bounds = shares()["calibrated"]
    convolution = ceilings.convolutions.get(dtype)
    call_s, device_call_s = counts.call_s(ceilings, dtype), counts.device_call_s(ceilings)
    return CalibratedRates(
        roofline=_roofline(base.roofline, ceilings, dtype, counts),
        convolution=Convolution(**convolution) if convolution else None,
        launches=InTurn(call_s)
        if device_call_s is None
        else Ahead(call_s, device_call_s, _starts(ceilings, own=False), layers_timed=True),
        layer_s=base.layer_s,
        expert_layers=base.expert_layers,
        decode=tuple(bounds["decode"]),
        prefill=tuple(bounds["prefill"]),
        basis="calibrated",
        ceilings=ceilings,
    )


def _roofline(base: Roofline, ceilings: Ceilings, dtype: str, counts: OperatorCounts) -> Roofline:
    """The measured ceilings, with the timed rates of attention, the gated delta rule and element-wise operators."""
    flops, known = max(ceilings.flops.values(), default=0.0), schemes()
    flop_s = dict.fromkeys(known, 1 / flops) if flops else dict(base.flop_s)
    read_s = dict.fromkeys(known, 1 / ceilings.read_bytes_s) | {"copy": counts.activation_s(ceilings, dtype)}
    flop_s["state"] = ceilings.delta_s / DELTA.prefill_flops(DELTA_TOKENS, DELTA_TOKENS, IDEAL)
    if attention := ceilings.attention.get(dtype):
        read_s["cache"] = attention["step_byte_s"] / counts.cache_touches
        flop_s["cache"] = attention["pass_flop_s"]
    return Roofline(read_s, flop_s)
