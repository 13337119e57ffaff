"""The regression gate on a real model: identical versions must not fail, and a slower candidate must.

    python benchmarks/gate_real.py MODEL [--equal 20] [--slower 10] [--by 15%] [--context 32] [--steps 4] [--reps 5]

Runs ``profile gate`` with identical versions (aim: no FAIL) and with a candidate whose model does ``--by`` more work
(aim: nine of ten FAIL), in CPU time. Prints each verdict and the machine's load.

The slowdown is injected into the candidate's process: a ``sitecustomize`` on its PYTHONPATH makes the model's forward
spin for that share of its CPU time. A sleep would not show in CPU time. Gates of one kind share one calibration of
the noise, as all gates within a week do.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from profiler.units import parse_percent

FOUND = 0.9  # share of slower candidates that must fail

SPIN = '''
import sys, time
from importlib.machinery import PathFinder

class Spinning:
    """Wraps the forward of every ...ForCausalLM as its module is imported."""

    def find_spec(self, name, path=None, target=None):
        if not (name.startswith("transformers.models.") and ".modeling_" in name):
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is None:
            return None
        run = spec.loader.exec_module
        def exec_module(module):
            run(module)
            for thing in list(vars(module).values()):
                mine = isinstance(thing, type) and thing.__module__ == name and "forward" in vars(thing)
                if mine and thing.__name__.endswith("ForCausalLM"):
                    thing.forward = slower(thing.forward)
        spec.loader.exec_module = exec_module
        return spec

def slower(forward):
    from functools import wraps
    @wraps(forward)
    def spin(*args, **kwargs):
        start = time.process_time()
        result = forward(*args, **kwargs)
        until = start + (time.process_time() - start) * (1 + SHARE)
        while time.process_time() < until:
            pass
        return result
    return spin

sys.meta_path.insert(0, Spinning())
'''


def main() -> int:
    """Exit code 1 if an aim is missed."""
    options = parse()
    with tempfile.TemporaryDirectory(prefix="gate-real-") as folder:
        (Path(folder) / "sitecustomize.py").write_text(SPIN.replace("SHARE", str(parse_percent(options.by))))
        slow = f"cmd:env {shlex.quote(f'PYTHONPATH={folder}')} {shlex.quote(sys.executable)}"
        equal = series("identical versions", None, options.equal, options)
        slower = series(f"slower by {options.by}", slow, options.slower, options)
    missed = equal["FAIL"] + equal["INCOMPARABLE"] > 0 or slower["FAIL"] < FOUND * options.slower
    print("an aim is missed" if missed else "both aims are met")
    return int(missed)


def series(what: str, candidate: str | None, count: int, options: argparse.Namespace) -> Counter[str]:
    """Run ``count`` gates; return the worst verdict of the prefill and decode times of each gate."""
    words: Counter[str] = Counter()
    for number in range(1, count + 1):
        start = time.monotonic()
        content = gate(candidate, options, seed=number)
        timed = [v for v in content["verdicts"] if v["metric"].endswith("_s") or v["metric"] == "machine"]
        word = max((v["word"] for v in timed), key=("PASS", "INCONCLUSIVE", "INCOMPARABLE", "FAIL").index)
        words[word] += 1
        summary = "; ".join(f"{v['metric']} {shown(v)}" for v in timed)
        load = os.getloadavg()[0]
        print(
            f"{what} {number}/{count}: {word} ({summary}), {time.monotonic() - start:.0f} s, load {load:.1f}",
            flush=True,
        )
    print(f"{what}: {', '.join(f'{n} {word}' for word, n in words.items()) or 'none'}", flush=True)
    return words


def shown(verdict: dict[str, Any]) -> str:
    """``1.002 (0.991 to 1.013), 6 pairs, s 1.2%``, or the reason if there are no pairs."""
    if verdict["ratio"] is None:
        return str(verdict["reason"])
    ends = f"{verdict['low']:.3f} to {verdict['high']:.3f}"
    return f"{verdict['ratio']:.3f} ({ends}), {verdict['pairs']} pairs, s {verdict['noise']:.1%}"


def gate(candidate: str | None, options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Gate this installation against itself, or against a slower candidate; returns the output of ``-o json``."""
    command = [sys.executable, "-m", "profiler", "gate", "--base", f"cmd:{shlex.quote(sys.executable)}"]
    command += ["--candidate", candidate] if candidate else []
    command += ["-m", options.model, "-c", str(options.context), "-n", str(options.steps), "-r", str(options.reps)]
    command += ["--device", "cpu", "--delta", options.delta, "--seed", str(seed), "-o", "json"]
    command += ["--threads", str(options.threads)] if options.threads else []
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        content: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        raise SystemExit(f"the gate ended with {done.returncode}: {done.stderr}") from None
    return content


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="python benchmarks/gate_real.py MODEL: gates of identical versions, and of a slower one"
    )
    parser.add_argument("model", help="a folder with a checkpoint, or any model name for profile gate")
    parser.add_argument("--equal", type=int, default=20, help="gates of identical versions")
    parser.add_argument("--slower", type=int, default=10, help="gates of a slower candidate")
    parser.add_argument("--by", default="15%", help="injected slowdown")
    parser.add_argument("--delta", default="5%", help="the smallest slowdown that counts as a regression")
    parser.add_argument("--context", type=int, default=32)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--reps", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
