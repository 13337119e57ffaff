"""Simulates how often the gate's rule errs, and writes ``benchmarks/gate.md``.

    python benchmarks/gate_calibration.py [--trials 4000] [--write]

A pair is a draw of ln(candidate ÷ base): normal with standard deviation s, or *heavy*: one pair in twenty has three
times that s, as on a busy machine. Each trial is a whole gate: looks at 6, 10 and 16 pairs, and ten more pairs to
confirm a FAIL. The seed is fixed, so the table is the same on every machine.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from profiler.gate.rule import CONFIRM_PAIRS, RegressionRule, decide, evidence, supports

PAGE = Path(__file__).parent / "gate.md"
NOISES = (0.015, 0.03, 0.05)
DELTAS = (0.03, 0.05, 0.10)
SLOWDOWNS = (0.0, 0.5, 1.0, 2.0)  # in units of δ
HEAVY_SHARE, HEAVY = 0.05, 3.0

HEAD = """# How often `profile gate` errs

Simulated by `python benchmarks/gate_calibration.py --write` ({trials:,} gates per line, fixed seed). `s` is the
standard deviation of a pair, δ the slowdown that counts as a regression; *heavy*: one pair in twenty has three times
that s. *FAIL first* is the rate before the confirmation. A line is omitted if the gate would refuse δ at that noise.
`tests/unit/gate/test_simulation.py` tests the promised rates.

| noise | s | δ | true slowdown | FAIL first | FAIL | PASS | inconclusive | pairs (mean) |
|---|---|---|---|---|---|---|---|---|
"""


@dataclass(frozen=True)
class Line:
    """One line of the table."""

    heavy: bool
    sd: float
    delta: float
    slowdown: float  # in units of δ


def main() -> int:
    """Print the table, or write it."""
    parser = argparse.ArgumentParser(description="python benchmarks/gate_calibration.py: how often the gate errs")
    parser.add_argument("--trials", type=int, default=4000)
    parser.add_argument("--write", action="store_true", help=f"into {PAGE.name}")
    options = parser.parse_args()
    lines = [
        Line(heavy, sd, delta, slowdown)
        for heavy in (False, True)
        for sd in NOISES
        for delta in DELTAS
        for slowdown in SLOWDOWNS
        if supports(sd, RegressionRule(delta))
    ]
    page = HEAD.format(trials=options.trials) + "".join(row(line, options.trials) for line in lines)
    if options.write:
        PAGE.write_text(page, encoding="utf-8")
    else:
        print(page, end="")
    return 0


def row(line: Line, trials: int) -> str:
    """Simulate one line."""
    draw = random.Random(f"{line}")
    found: Counter[str] = Counter()
    pairs = 0
    for _ in range(trials):
        word, first, used = trial(line, draw)
        found[word] += 1
        found["first"] += first
        pairs += used
    shares = " | ".join(f"{100 * found[word] / trials:.2f}%" for word in ("first", "fail", "pass", "go on"))
    noise, true = ("heavy" if line.heavy else "normal"), f"{100 * line.slowdown * line.delta:.3g}%"
    return (
        f"| {noise} | {100 * line.sd:.3g}% | {100 * line.delta:.3g}% | {true} | {shares} | {pairs / trials:.1f} |\n"
    )


def trial(line: Line, draw: random.Random) -> tuple[str, bool, int]:
    """The verdict of one gate, whether it was FAIL before the confirmation, and its number of pairs."""
    rule, logs = RegressionRule(line.delta), []
    for look in rule.looks:
        while len(logs) < look:
            logs.append(pair(line, draw))
        word = decide(evidence(logs, rule.level), rule)
        if word == "pass":
            return word, False, look
        if word == "fail":
            again = evidence([pair(line, draw) for _ in range(CONFIRM_PAIRS)], rule.level)
            confirmed = decide(again, rule) == "fail"
            return ("fail" if confirmed else "go on"), True, look + CONFIRM_PAIRS
    return "go on", False, rule.looks[-1]


def pair(line: Line, draw: random.Random) -> float:
    """A draw of ln(candidate ÷ base)."""
    wide = HEAVY if line.heavy and draw.random() < HEAVY_SHARE else 1.0
    return draw.gauss(math.log1p(line.slowdown * line.delta), wide * line.sd)


if __name__ == "__main__":
    sys.exit(main())
