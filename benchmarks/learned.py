"""Do rows of this machine make predictions of llama.cpp better?

    python benchmarks/learned.py --llama-cpp DIR --store FILE FILE.gguf ...  [-c 128,256,512,1024,2048] [-b 1,4]

It calibrates once, sweeps the files, and judges the rows in the store, which is kept: the same command measures only
what is missing, and ``--judge`` measures nothing. The file should be a new one, because calibrations lie beside it.

- after one calibration, each case predicted from the others: decode within 15%, prefill within 25%, peak within 5%
- half of the rows teach and the others judge, each half in turn: the mean error falls by a third
- the same with two bad rows among those that teach, ten times as fast and ten times as slow: no worse than plain

``--models`` adds a sweep of our own PyTorch path, whose plain predictions rest on the calibration.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, median

from profiler import backends, devices
from profiler.commands.accuracy import PHASES, disturbed, measured_value
from profiler.cost import learned
from profiler.cost.cases import host_of
from profiler.cost.interval import Interval
from profiler.cost.learned import Learned, LearnedCase
from profiler.results.measurement import Measurement, Repetitions
from profiler.results.store import Store

AIMS = {"decode_tps": 0.15, "prefill_tps": 0.25, "peak_bytes": 0.05}
FALL = 2 / 3  # of the error that may be left
LITTLE = 0.05  # two processes that measure the same case differ by as much
BAD = (10.0, 0.1)
SPLITS = 20  # random halves
SHOWN = 5  # worst cases


@dataclass(frozen=True)
class JudgedFigure:
    """One figure of a row, predicted without it."""

    row: Measurement
    plain: float  # predicted ÷ measured − 1
    learned: float
    covered: bool
    taught: bool  # whether rows corrected it

    @property
    def name(self) -> str:
        """The case in words."""
        case = self.row.case
        return f"{case.model} {case.quant} c={case.context} b={case.batch}"


def main() -> None:
    options = arguments()
    os.environ["PROFILER_STORE"] = str(options.store)  # calibrations lie beside it
    if not options.judge:
        measure(options)
    for backend in ("llama.cpp", "hf"):
        with Store.read_only(options.store) as store:
            rows = [row for row in store.newest_per_environment() if usable(row, backend, options.threads)]
            if rows:
                judge(backend, rows, options.threads)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        prog="python benchmarks/learned.py",
    )
    parser.add_argument("files", nargs="*", metavar="FILE.gguf")
    parser.add_argument("--llama-cpp")
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--models", help="for our own path, as for profile sweep -m")
    parser.add_argument("-q", dest="quants", default="bf16,nf4")
    parser.add_argument("-c", dest="contexts", default="128,256,512,1024,2048")
    parser.add_argument("-b", dest="batches", default="1,4")
    parser.add_argument("-n", dest="steps", default="32")
    parser.add_argument("-r", dest="reps", default="5")
    parser.add_argument("--max-phase", default="15s")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--judge", action="store_true", help="judge the rows that are there")
    return parser.parse_args()


def measure(options: argparse.Namespace) -> None:
    grid = ["-c", options.contexts, "-b", options.batches, "-n", options.steps, "-r", options.reps]
    grid += ["--max-phase", options.max_phase, "--device", "cpu", "--no-learned"]
    grid += ["--threads", str(options.threads)] if options.threads else []
    own = ["--backend", "llama.cpp", *(["--llama-cpp", options.llama_cpp] if options.llama_cpp else [])]
    commands = [["calibrate", "--device", "cpu"]] if not list(options.store.parent.glob("ceilings/*")) else []
    commands += [["sweep", *own, "-m", ",".join(options.files), *grid]] if options.files else []
    commands += [["sweep", "-m", options.models, "-q", options.quants, *grid]] if options.models else []
    for command in commands:
        subprocess.run([sys.executable, "-m", "profiler", *command], stdout=sys.stderr, check=False)


def usable(row: Measurement, backend: str, threads: int | None) -> bool:
    return (
        row.outcome == "ok"
        and backends.find(row.case.backend) is backends.find(backend)
        and (row.case.threads == threads and "plain" in row.expected)
    )


def judge(backend: str, rows: Sequence[Measurement], threads: int | None) -> None:
    device = devices.find(rows[0].case.device)
    target = host_of(device, threads)
    rows = sorted(rows, key=lambda row: (row.case.model, row.case.quant, row.case.batch, row.case.context))

    def teach(some: Sequence[Measurement]) -> Learned:
        return learned.from_rows(some, device, target)

    print(f"\n## {backend}, {len(rows)} cases on {device.title}, {device.at_once} threads\n")
    for figure, aim in AIMS.items():
        others = [each for row in rows for each in judged([row], teach([r for r in rows if r is not row]), figure)]
        if not others:
            print(f"- {figure}: every row was disturbed")
            continue
        print(f"- {figure}: {told(others)}")
        within = fmean(abs(each.learned) <= aim for each in others)
        mean = fmean(abs(each.learned) for each in others)
        print(
            f"  - {verdict(mean <= aim)}: aim {aim:.0%} on average, {mean:.1%} found; {within:.0%} of cases within it"
        )
        halves = [each for some, rest in alternating(rows) for each in judged(rest, teach(some), figure)]
        chance = [each for some, rest in at_random(rows) for each in judged(rest, teach(some), figure)]
        before, after = (fmean(abs(getattr(each, name)) for each in halves) for name in ("plain", "learned"))
        good = after <= FALL * before
        how = "nothing to learn" if not good and before <= LITTLE and after <= LITTLE else verdict(good)
        print(f"  - {how}: every other row teaches, the rest judges: {told(halves)}")
        print(f"  - {SPLITS} random halves: {told(chance)}")
        bad = [each for some, rest in alternating(rows) for each in judged(rest, teach(spoilt(some)), figure)]
        harmless = fmean(abs(each.learned) for each in bad) <= max(before, LITTLE)
        print(f"  - {verdict(harmless)}: with two bad rows among those that teach: {told(bad)}")
        for each in sorted(others, key=lambda each: -abs(each.learned))[:SHOWN]:
            print(f"    - {each.name}: plain {each.plain:+.0%}, learned {each.learned:+.0%}")


def verdict(good: bool) -> str:
    return "PASS" if good else "FAIL"


def judged(rows: Sequence[Measurement], taught: Learned, figure: str) -> Iterator[JudgedFigure]:
    """One figure of each row that was not disturbed."""
    for row in rows:
        value, plain = measured_value(row, figure), row.expected["plain"]
        if value is None or figure not in plain or disturbed(row, figure):
            continue
        case = LearnedCase(row.case.quant, plain["parameters"], row.case.context, row.case.batch)
        engine, path = backends.find(row.case.backend).engine, row.expected.get("path") or row.case.path
        correction = taught.correction(engine, path, PHASES[figure], case)
        found = Interval(*(plain[figure][name] for name in ("value", "low", "high", "basis")))
        error = found.value / value - 1
        if correction is not None:
            found = learned.corrected(plain, figure, correction)
        covered = found.low <= value <= found.high
        yield JudgedFigure(row, error, found.value / value - 1, covered, correction is not None)


def told(found: Sequence[JudgedFigure]) -> str:
    plain, after = ([abs(getattr(each, name)) for each in found] for name in ("plain", "learned"))
    covered, taught = fmean(each.covered for each in found), sum(each.taught for each in found)
    return (
        f"{len(found)} figures, {taught} learned: plain {fmean(plain):.1%} (median {median(plain):.1%}) → learned "
        f"{fmean(after):.1%} (median {median(after):.1%}, worst {max(after):.0%}), {covered:.0%} within the range"
    )


Halves = Iterator[tuple[list[Measurement], list[Measurement]]]


def alternating(rows: Sequence[Measurement]) -> Halves:
    """Every other row in the order of model, quantization, batch and context; then the other way round."""
    yield list(rows[::2]), list(rows[1::2])
    yield list(rows[1::2]), list(rows[::2])


def at_random(rows: Sequence[Measurement]) -> Halves:
    numbers = random.Random(0)
    for _ in range(SPLITS):
        order = numbers.sample(list(rows), len(rows))
        yield order[: len(rows) // 2], order[len(rows) // 2 :]


def spoilt(rows: Sequence[Measurement]) -> list[Measurement]:
    """``rows``, two of them with wrong times and a wrong peak."""
    factors = dict(zip(random.Random(1).sample(range(len(rows)), len(BAD)), BAD, strict=True))
    return [slower(row, factors[n]) if n in factors else row for n, row in enumerate(rows)]


def slower(row: Measurement, factor: float) -> Measurement:
    peak = row.memory.phases_peak_bytes
    memory = replace(row.memory, prefill_peak_bytes=None, decode_peak_bytes=peak and round(peak * max(1.0, factor)))
    samples = Repetitions(replace(sample, seconds=sample.seconds * factor) for sample in row.samples)
    return replace(row, samples=samples, memory=memory)


if __name__ == "__main__":
    main()
