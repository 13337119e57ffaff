"""By how much do predictions of correct and of faulty code differ? Where the limits of the gate's KL come from.

    python benchmarks/gate_numerics.py FOLDER [-q bf16,nf4,int8] [--path static]

Each line compares predictions with those of the unchanged code over the texts of the gate
(``profiler/backends/hf/agreement.py``), as the gate does: in the case's dtype and computed in fp32. *Threads* has two
instead of one, *other attention* is transformers' own instead of torch's fused one, and *other kernels* is
torch without vector instructions beyond SSE. Faults multiply by 1.02 in the layer in the middle: its first norm, its
gate projection, or the weights or scales of all its linear layers. The noise is the divergence between both dtypes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from profiler.case import Case, Source
from profiler.gate import numerics
from profiler.quants.base import DTYPE_BYTES
from profiler.results.measurement import PHASES

FACTOR = 1.02
OTHER_KERNELS = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"}
FAULTS = {"norm": ("input_layernorm",), "gate": ("mlp.gate_proj",), "linear": ("self_attn", "mlp")}


def main() -> int:
    """Print the lines of each quantization."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("-q", default="bf16,nf4,int8")
    parser.add_argument("--path", default="static")
    parser.add_argument("--against", type=Path, help=argparse.SUPPRESS)  # of a process with other kernels
    options = parser.parse_args()
    if options.against is not None:
        asked = json.loads(options.against.read_text())
        found = Loaded(options.folder, asked["quant"], asked["dtype"], options.path).compared(asked["kept"])
        print("\n" + json.dumps(found))
        return 0
    for quant in options.q.split(","):
        own = quant if quant in DTYPE_BYTES else "bf16"
        kept = None
        for dtype in dict.fromkeys((own, "fp32")):
            kept = lines(options.folder, quant, dtype, options.path, kept)
    return 0


def lines(folder: Path, quant: str, dtype: str, path: str, other: Any) -> Any:
    """The lines of one dtype; ``other`` are the predictions in the other one. Returns the unchanged predictions."""
    name = f"{folder.name} {quant} in {dtype}"
    loaded = Loaded(folder, dtype if quant in DTYPE_BYTES else quant, dtype, path)
    first = loaded.compared(other)
    if other is not None:
        print(f"{name}: noise: {shown(first)}", flush=True)
    kept = first["kept"]
    for line, change in loaded.changes().items():
        with change():
            print(f"{name}: {line}: {shown(loaded.compared(kept))}", flush=True)
    asked = Path(f"{os.environ.get('TMPDIR', '/tmp')}/gate-numerics-{os.getpid()}.json")
    asked.write_text(json.dumps({"quant": loaded.case.quant, "dtype": dtype, "kept": kept}))
    command = [sys.executable, __file__, str(folder), "--path", path, "--against", str(asked)]
    done = subprocess.run(command, env=os.environ | OTHER_KERNELS, capture_output=True, text=True, check=True)
    asked.unlink()
    print(f"{name}: other kernels: {shown(json.loads(done.stdout.splitlines()[-1]))}", flush=True)
    return kept


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


class Loaded:
    """A loaded model, with the changes that can be made to it and undone."""

    def __init__(self, folder: Path, quant: str, dtype: str, path: str) -> None:
        from profiler.backends.hf.session import open_session

        self.case = Case("m", folder.name, "real", quant, dtype, "cpu", "hf", path, 64, 1, 4, threads=1)
        self.source = Source("folder", str(folder), None, json.loads((folder / "config.json").read_text()))
        self.session = open_session(self.case, self.source, lambda text: None)

    def compared(self, against: Any) -> dict[str, Any]:
        """The predictions, and their divergence from ``against``."""
        from profiler.backends.hf import agreement

        return agreement.measure(self.session, self.case, self.source, {"against": against}, lambda text: None)

    def changes(self) -> dict[str, Callable[[], Any]]:
        """A context manager for each line."""
        faults = {f"fault: {name}": lambda parts=parts: self._fault(parts) for name, parts in FAULTS.items()}
        return {**faults, "other attention": self._attention, "threads": self._threads}

    @contextmanager
    def _threads(self) -> Iterator[None]:
        import torch

        torch.set_num_threads(2)
        yield
        torch.set_num_threads(1)

    @contextmanager
    def _attention(self) -> Iterator[None]:
        self.session.model.set_attn_implementation("eager")
        yield
        self.session.model.set_attn_implementation("sdpa")

    @contextmanager
    def _fault(self, parts: tuple[str, ...]) -> Iterator[None]:
        layers = self.session.model.model.layers
        layer = layers[len(layers) // 2]
        found = [module for name, module in layer.named_modules() if name.startswith(parts)]
        tensors = [tensor for module in found if (tensor := scale_of(module)) is not None]
        saved = [tensor.clone() for tensor in tensors]
        offset = 1.0 if "gemma" in self.session.model.config.model_type else 0.0  # its norms multiply by 1 + weight
        for tensor in tensors:
            shift = offset if tensor.dim() == 1 and tensor.is_floating_point() and "layernorm" in parts[0] else 0.0
            tensor.copy_((tensor + shift) * FACTOR - shift)
        yield
        for tensor, before in zip(tensors, saved, strict=True):
            tensor.copy_(before)


def scale_of(module: Any) -> Any:
    """What to multiply to scale a layer: the scales of a packed weight, or the weight; None for other modules."""
    weight = getattr(module, "weight", None)
    if weight is None or not (hasattr(module, "in_features") or weight.dim() == 1):
        return None
    state = getattr(weight, "quant_state", None)
    packed = state.absmax if state is not None else getattr(weight, "SCB", None)
    return weight.data if packed is None else packed


if __name__ == "__main__":
    raise SystemExit(main())
