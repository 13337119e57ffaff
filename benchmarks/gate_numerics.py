"""By how much do predictions of correct and of faulty code differ? Where the limits of the gate's KL come from.

    python benchmarks/gate_numerics.py FOLDER [-q bf16,fp32,int8,nf4] [--path static]

Each line is a process that loads the model and compares its predictions with those of an unchanged one, over the
texts of the gate (``profiler/backends/hf/agreement.py``), as the gate does: in the case's dtype and in fp32.
*Threads* computes with two instead of one; *other kernels* is torch without vector instructions beyond SSE; *other
attention* is transformers' own instead of torch's fused one. Faults multiply by 1.02 in one layer in the middle: its
first norm, its gate projection, or the weights or scales of all its linear layers.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from profiler.case import Case, Source
from profiler.gate import numerics
from profiler.quants.base import DTYPE_BYTES
from profiler.results.measurement import PHASES

FACTOR = 1.02
OTHER_KERNELS = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"}
LINES: dict[str, dict[str, Any]] = {
    "none": {},
    "threads": {"threads": 2},
    "other kernels": {"environ": OTHER_KERNELS},
    "other attention": {"change": "attention"},
    "fault: norm": {"change": "norm"},
    "fault: gate": {"change": "gate"},
    "fault: linear": {"change": "linear"},
}


def main() -> int:
    """Print a table for each quantization."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("-q", default="bf16,fp32,int8,nf4")
    parser.add_argument("--path", default="static")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        return child(options.folder, json.loads(options.child))
    for quant in options.q.split(","):
        table(options.folder, quant, options.path)
    return 0


def table(folder: Path, quant: str, path: str) -> None:
    """The lines of one quantization, in its own dtype and in fp32."""
    dtypes = [quant if quant in DTYPE_BYTES else "bf16", *(["fp32"] if quant != "fp32" else [])]
    bases = {dtype: run(folder, {"quant": quant, "dtype": dtype, "path": path})["kept"] for dtype in dtypes}
    if len(dtypes) == 2:
        noise = run(folder, {"quant": quant, "dtype": "fp32", "path": path}, bases[dtypes[0]])
        print(f"{folder.name} {quant}: noise {shown(noise)}", flush=True)
    for name, changes in LINES.items():
        for dtype in dtypes:
            found = run(folder, {"quant": quant, "dtype": dtype, "path": path, **changes}, bases[dtype])
            print(f"{folder.name} {quant} in {dtype}: {name}: {shown(found)}", flush=True)


def shown(found: dict[str, Any]) -> str:
    """The mean of each phase, and the kind of text with most of it."""
    if found["identical"]:
        return "equal"
    parts = []
    for phase in PHASES:
        kinds = numerics.by_kind(found, phase)
        worst = next(iter(kinds))
        parts.append(f"{phase} {numerics.mean(found, phase):.1e} (most in {worst}: {kinds[worst]:.1e})")
    return ", ".join(parts)


def run(folder: Path, asked: dict[str, Any], against: Any = None) -> dict[str, Any]:
    """The answer of a process of its own."""
    command = [sys.executable, __file__, str(folder), "--child", json.dumps(asked)]
    environ = os.environ | asked.get("environ", {})
    done = subprocess.run(
        command, input=json.dumps(against), env=environ, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def child(folder: Path, asked: dict[str, Any]) -> int:
    """Load, change, compare, and print the answer."""
    from profiler.backends.hf import agreement
    from profiler.backends.hf.session import open_session

    dtype = asked["dtype"]
    quant = dtype if asked["quant"] in DTYPE_BYTES else asked["quant"]
    case = Case(
        folder.name, folder.name, "real", quant, dtype, "cpu", "hf", asked["path"], 64, 1, 4,
        threads=asked.get("threads", 1),
    )  # fmt: skip
    config = json.loads((folder / "config.json").read_text())
    source = Source("folder", str(folder), None, config)
    session = open_session(case, source, lambda text: None)
    change(session.model, asked.get("change"))
    found = agreement.measure(session, case, source, {"against": json.load(sys.stdin)}, lambda text: None)
    print("\n" + json.dumps(found))
    return 0


def change(model: Any, what: str | None) -> None:
    """Make the change that a line of the table is about."""
    if what == "attention":
        model.set_attn_implementation("eager")
    layer = model.model.layers[len(model.model.layers) // 2]
    if what == "norm":
        weight = layer.input_layernorm.weight
        offset = 1.0 if "gemma" in model.config.model_type else 0.0  # Gemma multiplies by 1 + weight
        weight.data.copy_((weight + offset) * FACTOR - offset)
    linear = {"linear": ("self_attn", "mlp"), "gate": ("mlp.gate_proj",)}.get(what or "", ())
    for name, module in layer.named_modules():
        if name.startswith(linear) and hasattr(module, "in_features") and linear:
            scale(module)


def scale(module: Any) -> None:
    """Multiply the weight of a linear layer, or its scales, by ``FACTOR``."""
    weight = module.weight
    state = getattr(weight, "quant_state", None)
    if state is not None:
        state.absmax.mul_(FACTOR)
    elif getattr(weight, "SCB", None) is not None:
        weight.SCB.mul_(FACTOR)
    else:
        weight.data.mul_(FACTOR)


if __name__ == "__main__":
    raise SystemExit(main())
