"""How much two correct builds of llama.cpp differ in what they compute, and how much a planted fault does.

    python benchmarks/gate_builds.py --build DIR [--other DIR] FILE.gguf…

Prints a line per change: the verdicts that ``profile gate --backend llama.cpp`` would give on tokens and KL
divergence. A fault scales one norm of a copied file; Gemma 3's other norms cancel that of attn_norm. ``--other`` is a
build with other kernels, such as one without vector instructions. The limits in ``profiler/gate/agreement.py`` come
from these lines.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from profiler.backends.base import Completion
from profiler.backends.llama_cpp import build, completion
from profiler.case import Case, Source
from profiler.gate.agreement import KL_LIMIT, KL_LIMIT_F32, agreement
from profiler.models import gguf

CASE = Case(
    "m", "m", "real", "m", "bf16", "cpu", "llama.cpp", "eager", context=64, batch=1, steps=16, ubatch=64, threads=1
)
LAYER = 5
FAULTS = (("attn_norm", 1.02), ("ffn_norm", 1.02), ("ffn_norm", 1.2), ("ffn_norm", 2.0))


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description="python benchmarks/gate_builds.py: what correct builds differ by")
    parser.add_argument("--build", required=True, help="the folder of a build")
    parser.add_argument("--other", help="the folder of a build with other kernels")
    parser.add_argument("files", nargs="+", type=Path)
    options = parser.parse_args()
    print("| file | change | same tokens | KL divergence | verdict |\n|---|---|--:|---|---|")
    for file in options.files:
        base = completed(options.build, file)
        limit = KL_LIMIT_F32 if gguf.header(file).tensors[f"blk.{LAYER}.ffn_up.weight"].type_id == 0 else KL_LIMIT
        for what, candidate in changes(options, file):
            tokens, kl = agreement("m", base, candidate, limit)
            same = f"{tokens.now:.0f} of {tokens.before:.0f}"
            print(f"| {file.stem} | {what} | {same} | {kl.reason} | {kl.word} |", flush=True)
    return 0


def changes(options: argparse.Namespace, file: Path) -> Iterator[tuple[str, Sequence[Completion]]]:
    """Completions after each change, the correct ones first."""
    yield "none", completed(options.build, file)
    yield "flash attention off", completed(options.build, file, options="flash-attn=off")
    if options.other:
        yield "other kernels", completed(options.other, file)
    for norm, factor in FAULTS:
        with tempfile.TemporaryDirectory() as folder:
            faulty = scaled(file, f"blk.{LAYER}.{norm}.weight", factor, Path(folder))
            yield f"fault: {norm} of layer {LAYER} × {factor:g}", completed(options.build, faulty)


def completed(folder: str, file: Path, **changed: object) -> list[Completion]:
    """Greedy completions of a file by a build."""
    case = replace(CASE, **changed)  # type: ignore[arg-type]
    return completion.complete(case, Source("gguf", str(file), None, {}), build.named(folder))


def scaled(file: Path, name: str, factor: float, folder: Path) -> Path:
    """A copy of ``file`` whose f32 tensor ``name`` is multiplied by ``factor``."""
    import numpy as np

    content = bytearray(file.read_bytes())
    header = gguf.header(file)
    tensor = header.tensors[name]
    count, start = (tensor.nbytes or 0) // 4, header.data + tensor.offset
    values = np.frombuffer(content, dtype="<f4", count=count, offset=start)
    values *= np.float32(factor)
    faulty = folder / file.name
    faulty.write_bytes(content)
    return faulty


if __name__ == "__main__":
    sys.exit(main())
