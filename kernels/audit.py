"""May a decode step be captured as a CUDA graph? Answered without a GPU, by what the step does.

Each gate finds what the others miss: tags find operators that synchronise; the trace difference finds host numbers
that change; the twin finds all that is semantic, data-dependent shapes inside opaque operators too; compilation finds
Python that depends on state; the denylist holds what only C++ knows. What stays for a real GPU: kernels launched
on a stream of their own, allocations inside libraries, races, the true size of the pool.

**The twin** records the operators of a step, then replays them on the same memory. A captured graph repeats kernels
with the addresses and scalars it saw; no Python runs. The twin does the same with recorded operators: arguments are
those of the recording, results are written where the recorded results lay, and what was computed last time is
poisoned with NaN first. Whatever a step takes from the host (a position, a length, a buffer that was swapped) is
therefore stale here exactly as it would be there.

**The model** that is audited has the architecture in question with small numbers: every kind of layer once or twice,
so that it takes seconds. What decides whether a step can be captured is which operators run and what they depend on,
not how wide they are.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from transformers import PreTrainedModel

from profiler.units import printable

from .patches import Patches
from .runner import StaticRunner, decode_step

Step = Callable[[], torch.Tensor]
Host = Callable[[Any], int]
TOLERANCE = 1e-3  # of logits, relative to their largest; a stale position or buffer is off by far more
FAST_GROUPED_MM = ("sm90", "sm100")  # elsewhere, and in other dtypes than bf16, it reads its offsets on the host

WINDOW = 16
CAPS = {
    "vocab_size": 256,
    "vocab_size_per_layer_input": 256,
    "hidden_size": 128,
    "intermediate_size": 128,
    "intermediate_size_mlp": 128,
    "moe_intermediate_size": 64,
    "shared_expert_intermediate_size": 64,
    "hidden_size_per_layer_input": 64,
    "num_experts": 8,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "top_k_experts": 2,
    "sliding_window": WINDOW,
    "attention_chunk_size": WINDOW,
}
HEADS = ("num_attention_heads", "num_key_value_heads")
LINEAR_HEADS = ("linear_num_value_heads", "linear_num_key_heads")
PER_LAYER = ("layer_types", "no_rope_layers", "mlp_layer_types")
TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")

CONTEXT = 5
SMALLEST_BUCKET = 16  # so that some dozen steps pass through several
DEFAULT_WINDOW = 16
WINDOWS = 3


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


class OperatorRecorder(TorchDispatchMode):
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
        with OperatorRecorder() as recorder, torch.inference_mode():
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
    with OperatorRecorder() as recorder, torch.inference_mode():
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


def miniature(config: Mapping[str, Any]) -> dict[str, Any]:
    """The raw ``config.json`` of a text tower made small. Head sizes, rotary settings and switches are kept."""
    small = {name: value for name, value in config.items() if name not in TOKENS}
    for name, cap in CAPS.items():
        if small.get(name):
            small[name] = min(small[name], cap)
    for many, few in (HEADS, LINEAR_HEADS):
        if small.get(many):
            shared = max(1, small[many] // (small.get(few) or small[many]))
            small[few] = 1 if small.get(few) == 1 else 2
            small[many] = small[few] * min(shared, 4)
    if small.get("num_global_key_value_heads"):
        small["num_global_key_value_heads"] = 1
    return small | _layers(small)


def _layers(config: Mapping[str, Any]) -> dict[str, Any]:
    """The first layers that show every type; twice as many where later layers share the keys of earlier ones."""
    total = config["num_hidden_layers"]
    types = list(config.get("layer_types") or [])
    period = max((types.index(kind) for kind in set(types)), default=1) + 1
    shared = bool(config.get("num_kv_shared_layers"))
    count = min(total, 2 * period if shared else max(2, period))
    cut: dict[str, Any] = {"num_hidden_layers": count}
    if shared:
        cut["num_kv_shared_layers"] = count - period
    for name in PER_LAYER:
        if isinstance(config.get(name), list):
            values = config[name][:period]
            cut[name] = (values * 2)[:count] if shared else config[name][:count]
    exceptions = config.get("per_layer_config")
    if exceptions and types:  # layer → its differences; they follow the layer's type
        of_type = {types[int(layer)]: values for layer, values in exceptions.items()}
        kept = enumerate(cut["layer_types"])
        cut["per_layer_config"] = {str(layer): of_type[kind] for layer, kind in kept if kind in of_type}
    return cut


class StaticStep:
    """A fresh state of ``model`` after a short prompt; calling it is one decode step."""

    def __init__(self, model: PreTrainedModel, steps: int) -> None:
        vocabulary = model.config.get_text_config().vocab_size
        ids = torch.randint(vocabulary, (1, CONTEXT), generator=torch.Generator().manual_seed(0))
        runner = StaticRunner(model)
        runner.prefill(ids.to(model.device))
        runner.prepare(steps)
        self.model, self.state = model, runner.state
        self.state.exact, self.state.smallest_bucket = False, SMALLEST_BUCKET
        self.state.set_bucket(self.state.bucket)

    def __call__(self) -> torch.Tensor:
        return decode_step(self.model, self.state)

    @staticmethod
    def host(step: StaticStep) -> int:
        """Choose the bucket and count the step, as every runner does."""
        bucket = step.state.bucket
        step.state.set_bucket(bucket)
        step.state.claim(1)
        return bucket


def away_findings(model: PreTrainedModel, make: Callable[[PreTrainedModel], Step]) -> tuple[Finding, ...]:
    """What a step takes from the host, seen by running it on the ``meta`` device: there every host tensor is foreign,
    and reading a value raises. Quantized models are left out, since bitsandbytes has no kernels there.
    """
    if getattr(model, "quantization_method", None) or any("bit" in type(m).__name__ for m in model.modules()):
        return ()
    away = copy.deepcopy(model).to("meta")
    with Patches(away, loops=False):
        try:
            step = make(away)
        except Exception as error:
            return (Finding("step", " ".join(str(error).split())),)
        return tuple(replace(finding, gate="device") for finding in step_findings(step))


def audit(model: PreTrainedModel) -> AuditReport:
    """Audit the static decode step of a (small) model, round its window and through several buckets."""
    window = getattr(model.config.get_text_config(), "sliding_window", None) or DEFAULT_WINDOW
    steps = WINDOWS * min(window, 4 * DEFAULT_WINDOW)
    listed = (*model_findings(model), *away_findings(model, lambda copied: StaticStep(copied, 1)))
    if listed:  # refused already; a recording would only find the same again
        return AuditReport(listed, 0, 0)
    with Patches(model, loops=False):
        try:
            report = audit_step(lambda: StaticStep(model, steps), steps, StaticStep.host)
        except Exception as error:  # a model that the static step refuses or that raises inside it
            return AuditReport((*listed, Finding("step", " ".join(str(error).split()))), 0, 0)
    return report
