"""May a decode step be captured as a CUDA graph? Answered without a GPU, by what it does rather than what it says.

Each gate finds what the others miss: tags find operators that synchronise; the trace difference finds host numbers
that change; the twin finds all that is semantic, data-dependent shapes inside opaque operators too; compilation finds
Python that depends on state; the denylist holds what only C++ knows. What stays for a real GPU: kernels launched
on a stream of their own, allocations inside libraries, races, the true size of the pool.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._pytree import tree_flatten
from transformers import PreTrainedModel

from profiler.units import printable

from .twin import Op, Recorder, ReplayFailed, TwinGraph

Step = Callable[[], torch.Tensor]
Host = Callable[[Any], int]
TOLERANCE = 1e-3  # of logits, relative to their largest; a stale position or buffer is off by far more
FAST_GROUPED_MM = ("sm90", "sm100")  # elsewhere, and in other dtypes than bf16, it reads its offsets on the host


@dataclass(frozen=True, slots=True)
class Finding:
    """A reason not to capture."""

    gate: str  # operators | device | trace | twin | compile | model | step
    text: str


@dataclass(frozen=True, slots=True)
class AuditReport:
    """What was found, and how large the graph would be."""

    findings: tuple[Finding, ...]
    kernels: int  # operators of one step that compute something
    pool_bytes: int  # upper bound

    @property
    def passed(self) -> bool:
        return not self.findings


def audit_step(make: Callable[[], Step], steps: int, host: Host = lambda step: 0) -> AuditReport:
    """Audit a step. ``make`` gives equal, independent steps; each call of one returns its logits and moves it on.

    ``steps`` should lead round the smallest window at least twice and through two buckets. ``host(step)`` is what the
    host does before each call, replayed or not; it names the graph that the call belongs to.
    """
    findings = [*step_findings(make()), *_trace_findings(make(), steps, host), *_compile_findings(make())]
    twin_findings, first = _twin(make(), make(), steps, host)
    findings += twin_findings
    return AuditReport(tuple(dict.fromkeys(findings)), first.kernels, first.pool_bytes)


def capture_reason(model: PreTrainedModel) -> str | None:
    """Why this loaded model must not be captured, from what only C++ and configuration know; ``None`` if nothing."""
    return next((finding.text for finding in model_findings(model)), None)


def model_findings(model: PreTrainedModel) -> Iterator[Finding]:
    """The denylist: synchronisations that no dispatcher sees."""
    for name, module in model.named_modules():
        threshold = getattr(getattr(module, "state", None), "threshold", 0)
        if type(module).__name__ == "Linear8bitLt" and threshold > 0:
            text = f"LLM.int8() with threshold {threshold:g} looks for outliers on the host (load with threshold 0)"
            yield Finding("model", f"{text}: {name} and others")
            break
    config = model.config.get_text_config()
    ropes = getattr(config, "rope_parameters", None) or {}
    kinds = {rope.get("rope_type") for rope in (ropes, *ropes.values()) if isinstance(rope, dict)}
    if "dynamic" in kinds:
        yield Finding("model", "dynamic rotary positions read the sequence length on the host")


def op_findings(ops: list[Op]) -> Iterator[Finding]:
    """Operators that wait for the device, move data from or to the host, or have results of unknown shape."""
    for op in ops:
        reason = _reason(op)
        if reason:
            yield Finding("operators", f"{op.func}: {reason}")


def _reason(op: Op) -> str | None:
    func, tags, name = op.func, op.func.tags, str(op.func)
    if torch.Tag.data_dependent_output in tags:
        return "reads a value on the host"
    boolean = any(tensor.dtype in (torch.bool, torch.uint8) for tensor in op.tensors()[1:])
    if torch.Tag.dynamic_output_shape in tags and (func is not torch.ops.aten.index.Tensor or boolean):
        return "has a result whose shape depends on data"
    if "lift_fresh" in name or "_pin_memory" in name:
        return "brings data from the host"
    results = [tensor for tensor in op.fresh if tensor is not None]
    if len({tensor.device.type for tensor in (*op.tensors(), *results)}) > 1:
        return "moves data between devices"
    if "_grouped_mm" in name:
        return f"reads its offsets on the host but on {' and '.join(FAST_GROUPED_MM)} in bf16 (use batched_mm)"
    if name.startswith("bitsandbytes.quantize"):
        return "launches on the default stream"
    return None


def _record(step: Step) -> list[Op]:
    with Recorder() as recorder, torch.inference_mode():
        step()
    return recorder.ops


def step_findings(step: Step) -> list[Finding]:
    """Operators of one step that capture forbids, or the error that the step raises."""
    try:
        return list(dict.fromkeys(op_findings(_record(step))))
    except Exception as error:
        return [Finding("operators", f"the step raises {_words(error)}")]


def _trace_findings(step: Step, steps: int, host: Host) -> list[Finding]:
    """Neighbouring steps of one bucket must be the same operators on the same memory with the same numbers."""
    before: tuple[int, list[str]] | None = None
    kept: list[list[Op]] = []  # alive, so that no address is given out twice
    for number in range(steps):
        graph = host(step)
        if not _looked_at(number, steps):
            with torch.inference_mode():
                step()
            before = None
            continue
        kept.append(_record(step))
        lines = _lines(kept[-1])
        if before is not None and before[0] == graph and before[1] != lines:
            return [Finding("trace", f"step {number} differs from the one before: {_difference(before[1], lines)}")]
        before = graph, lines
    return []


def _looked_at(number: int, steps: int) -> bool:
    """Three steps at the start, in the middle and at the end: on both sides of a ring's wrap."""
    return number < 3 or abs(number - steps // 2) < 2 or number >= steps - 3


def _lines(ops: list[Op]) -> list[str]:
    """One line an operator: name, numbers, shapes, and where outside memory lies."""
    made: dict[int, str] = {}
    lines = []
    for number, op in enumerate(ops):
        leaves = tree_flatten((op.args, op.kwargs))[0]
        lines.append(f"{op.func} {' '.join(_leaf(leaf, made) for leaf in leaves)}")
        for place, tensor in enumerate(op.fresh):
            if tensor is not None:
                made[tensor.untyped_storage()._cdata] = f"%{number}.{place}"
    return lines


def _leaf(leaf: Any, made: dict[int, str]) -> str:
    if not isinstance(leaf, torch.Tensor):
        return repr(leaf)
    address = leaf.untyped_storage()._cdata
    return f"{made.get(address, hex(address))}{list(leaf.shape)}+{leaf.storage_offset()}"


def _difference(before: list[str], after: list[str]) -> str:
    pairs = zip(before, after, strict=False)
    first = next((f"{old} became {new}" for old, new in pairs if old != new), None)
    return printable(first or f"{len(before)} operators became {len(after)}")


def _twin(real: Step, twin: Step, steps: int, host: Host) -> tuple[list[Finding], TwinGraph]:
    """Replay one recorded step per bucket beside a real run; their logits must stay the same."""
    graphs: dict[int, TwinGraph] = {}
    first: TwinGraph | None = None
    for number in range(steps):
        key = host(twin)
        host(real)
        with torch.inference_mode():
            expected = real()
        try:
            if key in graphs:
                given = graphs[key].replay()
            else:
                graphs[key] = TwinGraph(twin)
                given = graphs[key].result
        except ReplayFailed as error:
            return [Finding("twin", f"step {number}: {printable(error)}")], first or graphs[key]
        first = first or graphs[key]
        off = float((given - expected).abs().max() / expected.abs().max())
        if not off <= TOLERANCE:  # NaN is not
            text = f"step {number}: replayed logits are off by {off:.2g} of the largest"
            return [Finding("twin", text)], first
    assert first is not None, "an audit needs steps"
    return [], first


def _compile_findings(step: Step) -> list[Finding]:
    """One graph without breaks that serves the following steps as well."""
    torch._dynamo.reset()
    compiled = torch.compile(step, backend="eager", fullgraph=True, dynamic=False)
    try:
        with torch.inference_mode(), torch._dynamo.config.patch(error_on_recompile=True):
            for _ in range(3):
                compiled()
    except Exception as error:
        return [Finding("compile", _words(error))]
    finally:
        torch._dynamo.reset()
    return []


def _words(error: Exception) -> str:
    text = " ".join(str(error).split())
    return printable(f"{type(error).__name__}: {text}" if text else type(error).__name__)
