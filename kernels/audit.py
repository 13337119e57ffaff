"""Checks without a GPU whether a decode step can be captured as a CUDA graph.

Each check finds what the others miss. *operators* finds operators that synchronize. *trace* finds host numbers that
change between steps. *twin* finds every difference in results, including data-dependent shapes inside opaque
operators. *compile* finds Python code that depends on the state. *model* is a list of problems that only C++ knows
about. What remains for a real GPU: kernels launched on other streams, allocations inside libraries, races, the true
pool size.

**The twin** records the operators of a step and then replays them on the same memory. A captured graph repeats
kernels with the addresses and scalars that it saw, without running any Python. The twin does the same with recorded
operators: it uses the recorded arguments, writes results to where the recorded ones are, and first poisons all
intermediate results with NaN. Anything that a step takes from the host (a position, a length, a replaced buffer) is
therefore exactly as stale as it would be in the graph.

**The audited model** has the architecture in question with small sizes and each kind of layer once or twice, so that
the audit takes seconds. Whether a step can be captured depends on which operators run and on their inputs, not on
their width.
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
TOLERANCE = 1e-3  # of logits, relative to the largest; a stale position or buffer is off by far more
FAST_GROUPED_MM = ("sm90", "sm100")  # where, in bf16, grouped_mm does not read its offsets on the host

WINDOW = 16
CAPS = {  # sizes of the audited model
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

CONTEXT = 5  # tokens of the prompt
SMALLEST_BUCKET = 16  # so that a few dozen steps pass through several buckets
DEFAULT_WINDOW = 16  # for models without a window
WINDOWS = 3  # an audit runs this many times the window's steps


class ReplayFailed(Exception):
    """An operator cannot be replayed: its result changed shape, or it refuses its old arguments."""


@dataclass(frozen=True, slots=True)
class Op:
    """One recorded operator call. ``fresh`` are the results in new memory, neither views nor in-place results."""

    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    fresh: tuple[torch.Tensor | None, ...]

    @property
    def is_view(self) -> bool:
        """Whether it computes nothing, so that a GPU runs no kernel."""
        return not self.func._schema.is_mutable and not any(tensor is not None for tensor in self.fresh)

    def tensors(self) -> list[torch.Tensor]:
        """The tensor arguments, in order."""
        return [leaf for leaf in tree_flatten((self.args, self.kwargs))[0] if isinstance(leaf, torch.Tensor)]


class OperatorRecorder(TorchDispatchMode):
    """Records every operator that reaches the device. Keeps all tensors alive, so that no address is reused."""

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
    """One recorded step. Creating it runs the step once; ``replay`` stands for every later step."""

    def __init__(self, step: Any) -> None:
        with OperatorRecorder() as recorder, torch.inference_mode():
            self.result: torch.Tensor = step()
        self.ops = recorder.ops

    @property
    def kernels(self) -> int:
        """Operators that compute something: roughly the nodes of the captured graph."""
        return sum(not op.is_view for op in self.ops)

    @property
    def pool_bytes(self) -> int:
        """Memory of all intermediate results if none reused another's memory: an upper bound for the pool."""
        return sum(tensor.untyped_storage().nbytes() for tensor in self._intermediates())

    @torch.inference_mode()
    def replay(self) -> torch.Tensor:
        """Run the recorded operators again; returns the recorded result tensor with its new values.

        Raises ReplayFailed.
        """
        for tensor in self._intermediates():
            if tensor.is_floating_point():
                tensor.fill_(torch.nan)
        for op in self.ops:
            if not op.is_view:
                _rerun(op)
        return self.result

    def _intermediates(self) -> Iterator[torch.Tensor]:
        return (tensor for op in self.ops for tensor in op.fresh if tensor is not None)


def _rerun(op: Op) -> None:
    try:
        results = tree_flatten(op.func(*op.args, **op.kwargs))[0]
    except (RuntimeError, IndexError) as error:
        raise ReplayFailed(f"{op.func} refuses its recorded arguments: {str(error).splitlines()[0]}") from error
    for old, new in zip(op.fresh, results, strict=True):
        if old is None:
            continue
        if old.shape != new.shape:
            raise ReplayFailed(f"the result of {op.func} changed shape: {tuple(old.shape)} to {tuple(new.shape)}")
        old.copy_(new)


def _address(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


@dataclass(frozen=True, slots=True)
class Finding:
    """A reason not to capture."""

    check: str  # operators | device | trace | twin | compile | model | step
    text: str


@dataclass(frozen=True, slots=True)
class AuditReport:
    """The findings, and the size of the graph."""

    findings: tuple[Finding, ...]
    kernels: int  # operators of one step that compute something
    pool_bytes: int  # upper bound

    @property
    def passed(self) -> bool:
        return not self.findings


def audit_step(make: Callable[[], Step], steps: int, host: Host = lambda step: 0) -> AuditReport:
    """Audit a step. ``make`` creates identical, independent steps; each call of one returns logits and advances it.

    ``steps`` should pass through the smallest window at least twice and through two buckets. ``host(step)`` is what
    the host does before each call, whether replayed or not; it returns the number of the graph that the call belongs
    to.
    """
    findings = [*step_findings(make()), *_trace_findings(make(), steps, host), *_compile_findings(make())]
    twin_findings, first = _twin(make(), make(), steps, host)
    findings += twin_findings
    return AuditReport(tuple(dict.fromkeys(findings)), first.kernels, first.pool_bytes)


def capture_reason(model: PreTrainedModel) -> str | None:
    """Why this loaded model must not be captured, as far as configuration and module types tell; otherwise
    ``None``.
    """
    return next((finding.text for finding in model_findings(model)), None)


def model_findings(model: PreTrainedModel) -> Iterator[Finding]:
    """Known problems of modules and configs: synchronizations that no dispatcher sees."""
    for name, module in model.named_modules():
        threshold = getattr(getattr(module, "state", None), "threshold", 0)
        if type(module).__name__ == "Linear8bitLt" and threshold > 0:
            text = f"LLM.int8() with threshold {threshold:g} finds outliers on the host (load with threshold 0)"
            yield Finding("model", f"{text}: {name} and others")
            break
    config = model.config.get_text_config()
    ropes = getattr(config, "rope_parameters", None) or {}
    kinds = {rope.get("rope_type") for rope in (ropes, *ropes.values()) if isinstance(rope, dict)}
    if "dynamic" in kinds:
        yield Finding("model", "dynamic rotary positions read the sequence length on the host")


def op_findings(ops: list[Op]) -> Iterator[Finding]:
    """Operators that wait for the device, copy from or to the host, or have results of unknown shape."""
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
        return "copies data from the host"
    results = [tensor for tensor in op.fresh if tensor is not None]
    if len({tensor.device.type for tensor in (*op.tensors(), *results)}) > 1:
        return "moves data between devices"
    if "_grouped_mm" in name:
        return f"reads its offsets on the host except on {' and '.join(FAST_GROUPED_MM)} in bf16 (use batched_mm)"
    if name.startswith("bitsandbytes.quantize"):
        return "launches on the default stream"
    return None


def _record(step: Step) -> list[Op]:
    with OperatorRecorder() as recorder, torch.inference_mode():
        step()
    return recorder.ops


def step_findings(step: Step) -> list[Finding]:
    """Operators of one step that prevent a capture, or the error that the step raises."""
    try:
        return list(dict.fromkeys(op_findings(_record(step))))
    except Exception as error:
        return [Finding("operators", f"the step raises {_words(error)}")]


def _trace_findings(step: Step, steps: int, host: Host) -> list[Finding]:
    """Consecutive steps of one bucket must run the same operators on the same memory with the same numbers."""
    before: tuple[int, list[str]] | None = None
    kept: list[list[Op]] = []  # kept alive, so that no address is reused
    for number in range(steps):
        graph = host(step)
        if not _is_compared(number, steps):
            with torch.inference_mode():
                step()
            before = None
            continue
        kept.append(_record(step))
        lines = _lines(kept[-1])
        if before is not None and before[0] == graph and before[1] != lines:
            return [Finding("trace", f"step {number} differs from the previous one: {_difference(before[1], lines)}")]
        before = graph, lines
    return []


def _is_compared(number: int, steps: int) -> bool:
    """A few steps at the start, in the middle and at the end, so before and after a ring wraps."""
    return number < 3 or abs(number - steps // 2) < 2 or number >= steps - 3


def _lines(ops: list[Op]) -> list[str]:
    """One line per operator: name, numbers, shapes, and the addresses of memory from outside the step."""
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
    """Replay one recorded step per bucket next to a real run; the logits must agree."""
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
        if not off <= TOLERANCE:  # also true for NaN
            text = f"step {number}: replayed logits are off by {off:.2g} of the largest"
            return [Finding("twin", text)], first
    assert first is not None, "an audit needs steps"
    return [], first


def _compile_findings(step: Step) -> list[Finding]:
    """The step must compile into one graph without breaks that also serves the following steps."""
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
    """A small version of a text tower's raw ``config.json``, with its head sizes, rotary settings and switches."""
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
    """The first layers that include every type; twice as many if later layers share the K/V of earlier ones."""
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
    if exceptions and types:  # layer → its deviations, which depend on the layer's type
        of_type = {types[int(layer)]: values for layer, values in exceptions.items()}
        kept = enumerate(cut["layer_types"])
        cut["per_layer_config"] = {str(layer): of_type[kind] for layer, kind in kept if kind in of_type}
    return cut


class StaticStep:
    """A decode step of ``model`` with its own state after a short prompt; calling it runs one step."""

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


def meta_findings(model: PreTrainedModel, make: Callable[[PreTrainedModel], Step]) -> tuple[Finding, ...]:
    """What a step takes from the host: on the ``meta`` device, using a host tensor or reading a value raises.

    Empty for quantized models, because bitsandbytes has no kernels for that device.
    """
    if getattr(model, "quantization_method", None) or any("bit" in type(m).__name__ for m in model.modules()):
        return ()
    moved = copy.deepcopy(model).to("meta")
    with Patches(moved, loops=False):
        try:
            step = make(moved)
        except Exception as error:
            return (Finding("step", " ".join(str(error).split())),)
        return tuple(replace(finding, check="device") for finding in step_findings(step))


def audit(model: PreTrainedModel) -> AuditReport:
    """Audit the static decode step of a (small) model over several windows and buckets."""
    window = getattr(model.config.get_text_config(), "sliding_window", None) or DEFAULT_WINDOW
    steps = WINDOWS * min(window, 4 * DEFAULT_WINDOW)
    found = (*model_findings(model), *meta_findings(model, lambda moved: StaticStep(moved, 1)))
    if found:  # a recording would only repeat the findings
        return AuditReport(found, 0, 0)
    with Patches(model, loops=False):
        try:
            report = audit_step(lambda: StaticStep(model, steps), steps, StaticStep.host)
        except Exception as error:  # the static step does not support the model, or raises
            return AuditReport((Finding("step", " ".join(str(error).split())),), 0, 0)
    return report
