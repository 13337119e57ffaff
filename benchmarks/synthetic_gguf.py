"""Is a GGUF file of random weights as large and as fast as the published file?

    python benchmarks/synthetic_gguf.py --llama-bench PROGRAM FILE.gguf MODEL QUANT [--pairs 8] [-t 2]

llama-bench runs a copy of FILE.gguf and our file of MODEL in QUANT in turns. The copy is written here, in pieces of
the same size as our file: from pieces of 2 MiB, the page cache makes huge pages, in which decode is faster.
``--mmap 0`` reads both into memory instead. Printed are the ratios ours ÷ published of the best repetition of each
run, and of all.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from figures import in_turn, ratio_text

from profiler.backends.llama_cpp.synthetic import PIECE_BYTES, synthetic_gguf
from profiler.models.resolve import resolve


def main() -> None:
    options = arguments()
    model = resolve(options.model)
    ours = synthetic_gguf(model.source, model.geometry, options.quant, 0, lambda said: print(said, file=sys.stderr))
    with tempfile.TemporaryDirectory(dir=ours.parent, prefix="published-") as folder:
        theirs = Path(folder, options.file.name)
        with options.file.open("rb") as source, theirs.open("wb") as copy:
            shutil.copyfileobj(source, copy, PIECE_BYTES)
        print(f"size: {ours.stat().st_size / theirs.stat().st_size:.4f} of {theirs.stat().st_size:,} bytes")
        rates: dict[tuple[Path, str], list[float]] = {}

        def run(path: Path) -> None:
            for phase, best in bench(path, options).items():
                rates.setdefault((path, phase), []).append(best)

        in_turn(options.pairs, lambda: run(ours), lambda: run(theirs))
        for phase in ("prefill", "decode"):
            best = max(rates[ours, phase]), max(rates[theirs, phase])
            whole = f"best of all {best[0]:.1f} and {best[1]:.1f} t/s, {best[0] / best[1]:.3f}"
            print(f"{phase}: {ratio_text(rates[ours, phase], rates[theirs, phase])}; {whole}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, metavar="FILE.gguf", help="the published file")
    parser.add_argument("model", metavar="MODEL", help="the same model in the catalog, or a folder with its config")
    parser.add_argument("quant", metavar="QUANT", help="the mix of the file, such as q4_k_m")
    parser.add_argument("--llama-bench", default="llama-bench", metavar="PROGRAM")
    parser.add_argument("--pairs", type=int, default=8, help="[default: %(default)s]")
    parser.add_argument("-t", dest="threads", default="2", help="[default: %(default)s]")
    parser.add_argument("--mmap", choices=("0", "1"), default="1", help="[default: %(default)s]")
    return parser.parse_args()


def bench(path: Path, options: argparse.Namespace) -> dict[str, float]:
    """Tokens per second of the best of five repetitions of each phase."""
    command = [options.llama_bench, "-m", str(path), "-p", "128", "-n", "32", "-r", "5", "-o", "json"]
    command += ["-t", options.threads, "-mmp", options.mmap]
    rows = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return {"prefill" if row["n_prompt"] else "decode": max(row["samples_ts"]) for row in rows}


if __name__ == "__main__":
    main()
