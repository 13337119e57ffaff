"""Is the interval of a quality honest, and what does a quality pass cost? Aims: 93 to 97%, 1.3 times, 1.5 GiB.

    python benchmarks/quality.py interval [--sets 500]
    python benchmarks/quality.py cost FOLDER [--tokens 8192] [--dtype bf16] [--against head] [--pairs 3]

``interval`` simulates sets of documents: four kinds with 3 to 10 blocks each, whose levels of KL differ, and tokens
that differ more than a hundredfold. It counts the intervals that contain the true mean.

``cost`` reads the same tokens by the scoring pass and by a prefill, in turns, and compares their CPU time and the
peak of the process above the loaded model. ``--against head``, the default, is a prefill that computes the logits of
every token, as scoring needs them; ``last`` computes those of the last token only, as generation does. The difference
between the two is the output head, which is two thirds of Gemma 3 270M.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from profiler.results import quality
from profiler.results.quality import Block

KINDS = {"prose": (0.01, 4), "code": (0.02, 5), "scripts": (0.08, 10), "long": (0.012, 5), "html": (0.02, 3)}
PAIRS = 3
LOWEST, HIGHEST = 0.93, 0.97
MAX_RATIO, MAX_BYTES = 1.3, 1.5 * 1024**3


def main() -> int:
    """Exit code 1 if an aim is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("interval").add_argument("--sets", type=int, default=500)
    cost_parser = commands.add_parser("cost")
    cost_parser.add_argument("folder", type=Path)
    cost_parser.add_argument("--tokens", type=int, default=8192)
    cost_parser.add_argument("--dtype", default="bf16", choices=["fp32", "bf16", "fp16"])
    cost_parser.add_argument("--against", default="head", choices=["head", "last"])
    cost_parser.add_argument("--pairs", type=int, default=PAIRS)
    options = parser.parse_args()
    return interval(options.sets) if options.command == "interval" else cost(options)


def interval(sets: int) -> int:
    """The share of simulated sets whose interval contains the truth."""
    chance, hits = random.Random(1), 0
    truth = sum(mean * count for mean, count in KINDS.values()) / sum(count for _, count in KINDS.values())
    for _ in range(sets):
        found = quality.mean_kl([block for kind in KINDS for block in simulated(kind, chance)])
        assert found.low is not None and found.high is not None
        hits += found.low <= truth <= found.high
    print(f"{hits} of {sets} intervals contain the truth: {hits / sets:.1%}")
    return int(not LOWEST <= hits / sets <= HIGHEST)


def simulated(kind: str, chance: random.Random) -> list[Block]:
    """The blocks of one kind: of random length, each with a level of its own."""
    mean, count = KINDS[kind]
    found = []
    for _ in range(count):
        tokens = int(chance.lognormvariate(5, 0.5)) + 20
        level = mean * chance.lognormvariate(-0.08, 0.4)
        kl = math.fsum(level * chance.lognormvariate(-0.5, 1) for _ in range(tokens))
        found.append(Block(kind, "document", tokens, kl, tokens, 0.0, 0.0))
    return found


def cost(options: argparse.Namespace) -> int:
    """CPU seconds and peak bytes of both passes."""
    import torch
    from transformers import AutoModelForCausalLM

    from profiler.backends.hf import comparison, text_pass
    from profiler.kernels.versions import with_cache
    from profiler.quality.texts import TextWindow

    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[options.dtype]
    model = AutoModelForCausalLM.from_pretrained(options.folder, dtype=dtype, attn_implementation="sdpa").eval()
    vocabulary = model.config.get_text_config().vocab_size
    random_ids = torch.randint(vocabulary, (options.tokens,), generator=torch.Generator().manual_seed(0))
    window = TextWindow("random", "tokens", tuple(random_ids.tolist()), 1)
    keeper = comparison.Keeper(window)

    def quiet(text: str) -> None:
        pass

    text_pass.read_window(model, window.tokens[:8], lambda at, logits: None, quiet)  # mapped weights become resident
    keep_s, keep_bytes = timed(lambda: text_pass.read_window(model, window.tokens, keeper, quiet))
    print(f"the reference: {keep_s:.1f} CPU s, {keep_bytes / 1024**2:.0f} MiB above the model", flush=True)
    kept = keeper.arrays({})

    def score() -> Any:
        return text_pass.read_window(model, window.tokens, comparison.Scorer(window, kept, model.device), quiet)

    @torch.inference_mode()
    def prefill() -> None:
        cache = text_pass.new_cache(model)
        for part in random_ids[None].split(text_pass.CHUNK, dim=1):
            model(input_ids=part, **with_cache(cache), logits_to_keep=int(options.against == "last"))

    ratios, peaks = [], [keep_bytes]
    for pair in range(options.pairs):
        first, second = (score, prefill) if pair % 2 else (prefill, score)
        found = {function: timed(function) for function in (first, second)}
        ratios.append(found[score][0] / found[prefill][0])
        peaks.append(found[score][1])
        print(
            f"scoring {found[score][0]:.1f} CPU s, prefill {found[prefill][0]:.1f} CPU s: {ratios[-1]:.2f}",
            flush=True,
        )
    ratio, peak = statistics.median(ratios), max(peaks)
    what = f"{options.tokens} tokens in {options.dtype}"
    print(f"{what}: {ratio:.2f} × the prefill, {peak / 1024**2:.0f} MiB above the model")
    return int(ratio > MAX_RATIO or peak > MAX_BYTES)


def timed(run: Callable[[], Any]) -> tuple[float, int]:
    """CPU seconds of this process, and its highest resident size above that at the start, in bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    before, start = status("VmRSS"), time.process_time()
    run()
    return time.process_time() - start, status("VmHWM") - before


def status(field: str) -> int:
    """A size in /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(f"{field}:")).split()[1])


if __name__ == "__main__":
    raise SystemExit(main())
