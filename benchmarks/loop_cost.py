"""The overhead of our measuring loop. Aim: at most 1%.

    python benchmarks/loop_cost.py [--model gemma-3-270m]

A is ``profiler.run.loop.measure`` on a loaded model, B a simple loop over the same model object: prefill and decode,
``reps`` times after one warm-up, timed as a whole. They take turns (AB, BA, …), and each pair gives ratios A ÷ B:

    prefill, decode   the reported figures: the median repetition of A divided by that of B
    whole             wall time from the start of the first repetition to the end of the last, per repetition; A has
                      more of them, because it warms up until the phase is steady, and it also runs one extra step
                      for the memory peak and restores the saved cache
    cpu               the CPU time of the same, which other work on the machine disturbs less

``control`` is B ÷ B, two runs of the simple loop, which shows the machine's own noise. Weights are synthetic, so
nothing is downloaded.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from figures import certainly_above, in_turn, ratio_text

from profiler.backends.base import Session
from profiler.case import Case
from profiler.models.resolve import resolve
from profiler.run.loop import measure
from profiler.run.repetitions import Effort, Repeater

AIM = 1.01  # A/B of a reported figure


Turn = tuple[list[float], list[float], float]
"""Seconds of each prefill and decode that counts, and of all including warm-ups, divided by their number."""


@dataclass
class Timings:
    """One of the two loops, with its times."""

    prefill: list[float] = field(default_factory=list)
    decode: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def turn(self, run: Callable[[], Turn]) -> None:
        """Run once and keep the median repetition of each phase."""
        start, cpu = time.perf_counter(), time.process_time()
        prefills, decodes, weight = run()
        self.whole.append((time.perf_counter() - start) / weight)
        self.cpu.append((time.process_time() - cpu) / weight)
        self.prefill.append(statistics.median(prefills))
        self.decode.append(statistics.median(decodes))


def main() -> int:
    """Print the ratios; exit code 1 if a reported figure exceeds the aim beyond doubt."""
    options = parse()
    case, session = load(options)
    effort = Effort(reps=options.reps)

    def ours() -> Turn:
        samples = measure(session, case, Repeater(effort)).samples
        prefills, decodes = (
            [s.seconds for s in samples if s.phase == phase and not s.warmup] for phase in ("prefill", "decode")
        )
        one_of_each = statistics.median(prefills) + statistics.median(decodes)
        return prefills, decodes, sum(s.seconds for s in samples) / one_of_each

    def bare() -> Turn:
        prefills, decodes = by_hand(session, case, options.reps)
        one_of_each = statistics.median(prefills[1:]) + statistics.median(decodes[1:])
        return prefills[1:], decodes[1:], sum(prefills + decodes) / one_of_each

    a, b, again = Timings(), Timings(), Timings()
    bare()  # once untimed, so that neither loop pays for the first use of the model
    in_turn(options.pairs, lambda: a.turn(ours), lambda: b.turn(bare), lambda: again.turn(bare))
    print(f"{case.label} {case.dtype} {case.device}, {case.steps} steps, {options.reps} reps, A = ours, B = by hand")
    for what in ("prefill", "decode", "whole", "cpu"):
        print(f"{what:8} A/B {ratio_text(getattr(a, what), getattr(b, what))}")
        print(f"{'control':8} B/B {ratio_text(getattr(again, what), getattr(b, what))}")
    dear = [what for what in ("prefill", "decode") if certainly_above(getattr(a, what), getattr(b, what), AIM)]
    print(f"aim {AIM - 1:.0%}: {'exceeded by ' + ' and '.join(dear) if dear else 'not exceeded beyond doubt'}")
    return 1 if dear else 0


def by_hand(session: Session, case: Case, reps: int) -> tuple[list[float], list[float]]:
    """Seconds of each prefill and decode, warm-up first, in the simplest loop over the model."""
    import torch
    from transformers import DynamicCache

    from profiler.kernels.versions import with_cache

    model: Any = session.model  # type: ignore[attr-defined]
    ids = torch.randint(
        model.config.vocab_size, (case.batch, case.context), generator=torch.Generator().manual_seed(0)
    )
    prefills, decodes = [], []
    with torch.inference_mode():
        for _ in range(1 + reps):
            cache = DynamicCache(config=model.config)
            start = time.perf_counter()
            token = model(ids, **with_cache(cache), logits_to_keep=1).logits[:, -1:].argmax(-1)
            prefills.append(time.perf_counter() - start)
            start = time.perf_counter()
            for _ in range(case.steps):
                token = model(token, **with_cache(cache), logits_to_keep=1).logits[:, -1:].argmax(-1)
            decodes.append(time.perf_counter() - start)
    return prefills, decodes


def load(options: argparse.Namespace) -> tuple[Case, Session]:
    """The case, and a session of the hf backend with its model loaded."""
    from profiler.backends.hf.session import open_session

    found = resolve(options.model, offline=True)
    case = Case(
        model=found.name,
        model_id=found.model_id,
        weights="synthetic",
        quant=options.quant,
        dtype="fp32" if options.quant == "fp32" else "bf16",
        device="cpu",
        backend="hf",
        path="eager",
        context=options.context,
        batch=1,
        steps=options.steps,
        threads=options.threads,
    )
    return case, open_session(case, found.source, lambda text: None)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="gemma-3-270m", help="a name from profile models [default: %(default)s]")
    parser.add_argument("--quant", default="fp32", help="[default: %(default)s]")
    parser.add_argument("--context", type=int, default=128, help="tokens [default: %(default)s]")
    parser.add_argument("--steps", type=int, default=16, help="decode steps [default: %(default)s]")
    parser.add_argument("--reps", type=int, default=3, help="repetitions of each phase [default: %(default)s]")
    parser.add_argument("--pairs", type=int, default=12, help="pairs of A and B [default: %(default)s]")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads [default: %(default)s]")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
