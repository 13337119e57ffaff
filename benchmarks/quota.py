"""Whether a sweep under a CPU quota is as fast as it could be, and what the profiler reports about the quota.

    sudo python benchmarks/quota.py [--quotas 0.5,1,1.5] [--threads 1,2] [--model gemma-3-270m] [--rounds 5]

Creates a control group for each quota (cgroup v1 or v2, which requires root). In it, ``profile sweep`` runs in turns
with the default threads and with each number of ``--threads``, each time in a process that loads the model and
measures prefill and decode. For each quota this prints the cores that ``profile devices`` shows, the default number
of threads, the measured and predicted rates, and the ratio of the default's rate to the best rate. Aim: this ratio is
1 within its interval. Exit code 1 if it is below ``1 − TOLERANCE`` beyond doubt, or if the cores shown are not those
of the quota.

``--calibrate`` first measures the ceilings under each quota (a minute or two each) into a separate store. Other work
on the machine changes the rates, so run this on an idle machine.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from figures import certainly_above, ratio_text

from profiler.devices import cgroup

TOLERANCE = 0.05  # of a rate: smaller differences count as equal
PERIOD_US = 100_000
PHASES = ("prefill", "decode")
GONE_S = 2.0  # time for the last process of a group to disappear
ENTER = 'echo $$ > "$0" && exec "$@"'  # for a shell: the program is in the group from its first instruction


@dataclass
class ThreadSetting:
    """``--threads N``, or the default (None): the rates of its turns, and the last row."""

    threads: int | None
    rates: dict[str, list[float]] = field(default_factory=lambda: {phase: [] for phase in PHASES})
    row: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return "default" if self.threads is None else f"--threads {self.threads}"

    def median(self, phase: str) -> float:
        return statistics.median(self.rates[phase])


def main() -> int:
    """Print a block for each quota; 1 if one misses the aim."""
    options = parse()
    failed = False
    with tempfile.TemporaryDirectory(prefix="profile-quota-") as folder:
        environ = os.environ | {"PROFILER_STORE": str(Path(folder) / "store.sqlite")}
        for quota in options.quotas:
            with group(quota) as processes:
                failed |= not one_quota(quota, processes, options, environ)
    return int(failed)


def one_quota(quota: float, processes: Path, options: argparse.Namespace, environ: dict[str, str]) -> bool:
    """Measure all numbers of threads in turns and print them; return whether the aim was met."""
    if options.calibrate:
        profile(processes, environ, "calibrate", "--device", "cpu", "-o", "json")
    shown = next(row for row in profile(processes, environ, "devices", "-o", "json") if row["device"] == "cpu")
    settings = [ThreadSetting(None), *map(ThreadSetting, options.threads)]
    for number in range(options.rounds):
        for setting in settings if number % 2 == 0 else reversed(settings):
            turn(setting, processes, options, environ)
    expected = min(quota, shown["cores_installed"])
    print(f"\nquota of {quota:g} cores: devices shows {shown['cores']:g} of {shown['cores_installed']} cores, "
          f"threads by default: {shown['threads']}")  # fmt: skip
    for setting in settings:
        print(f"  {setting.name:12} with {setting.row['threads']}: " + ", ".join(map(setting_text(setting), PHASES)))
    for caution in settings[0].row["cautions"]:
        print(f"  {caution['code']}: {caution['text']}")
    met = [as_good_as_the_best(settings, phase) for phase in PHASES]
    return all(met) and abs(shown["cores"] - expected) < 1e-3


def setting_text(setting: ThreadSetting) -> Any:
    """The rate of a phase, with its prediction."""

    def text(phase: str) -> str:
        predicted = (setting.row.get("predicted") or {}).get(f"{phase}_tps")
        expected = ""
        if predicted:
            expected = f" (predicted {predicted['value']:.3g}, {predicted['low']:.3g} to {predicted['high']:.3g})"
        return f"{phase} {setting.median(phase):.1f} t/s{expected}"

    return text


def as_good_as_the_best(settings: Sequence[ThreadSetting], phase: str) -> bool:
    """Print the ratio of the default's rate to the best one; False if it is lower beyond doubt."""
    usual, *others = settings
    best = max(others, key=lambda setting: setting.median(phase))
    ours, theirs = usual.rates[phase], best.rates[phase]
    print(f"  {phase}: default ÷ {best.name} {ratio_text(ours, theirs)}")
    return not certainly_above(theirs, ours, 1 / (1 - TOLERANCE))


def turn(setting: ThreadSetting, processes: Path, options: argparse.Namespace, environ: dict[str, str]) -> None:
    """Run one process; return the rates of both phases."""
    threads = [] if setting.threads is None else ["--threads", str(setting.threads)]
    command = ["sweep", "--fresh", "--device", "cpu", "-m", options.model, "-q", options.quant, "-o", "json"]
    command += ["-c", str(options.context), "-n", str(options.steps), "-r", str(options.reps)]
    command += ["--weights", options.weights, *threads]
    (setting.row,) = profile(processes, environ, *command)
    if setting.row["outcome"] != "ok":
        raise SystemExit(f"{setting.name}: {setting.row['outcome']}: {setting.row['reason']}")
    for phase in PHASES:
        setting.rates[phase].append(setting.row[phase]["tps"])


def profile(processes: Path, environ: dict[str, str], *arguments: str) -> list[dict[str, Any]]:
    """The rows that one of our commands prints inside the group."""
    command = ["sh", "-c", ENTER, str(processes), sys.executable, "-m", "profiler", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environ)
    if done.returncode:
        raise SystemExit(f"profile {' '.join(arguments)} failed: {done.stderr.strip()}")
    content = json.loads(done.stdout)
    rows: list[dict[str, Any]] = content if isinstance(content, list) else [content]
    return rows


@contextmanager
def group(cores: float) -> Iterator[Path]:
    """A control group with the CPU time of so many cores: yields the file that adds processes, then removes the
    group.
    """
    quota_us, tried = round(cores * PERIOD_US), []
    for parent in reversed(cgroup.folders("cpu")):  # the root first: with version 2, inner groups hold processes
        folder = parent / f"profile-quota-{os.getpid()}"
        try:
            folder.mkdir()
            try:
                if (folder / "cpu.cfs_quota_us").exists():
                    (folder / "cpu.cfs_period_us").write_text(str(PERIOD_US))
                    (folder / "cpu.cfs_quota_us").write_text(str(quota_us))
                else:
                    (folder / "cpu.max").write_text(f"{quota_us} {PERIOD_US}")
                yield folder / "cgroup.procs"
                return
            finally:
                remove(folder)
        except OSError as error:
            tried.append(f"{parent}: {error.strerror}")
    raise SystemExit(f"cannot create a control group with a CPU quota: {'; '.join(tried) or 'none is mounted'}")


def remove(folder: Path) -> None:
    """Remove the group as soon as it is empty."""
    end = time.monotonic() + GONE_S
    while folder.exists() and time.monotonic() < end:
        with suppress(OSError):
            folder.rmdir()
            return
        time.sleep(0.05)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    numbers = {"metavar": "N,N", "help": "[default: %(default)s]"}
    parser.add_argument(
        "--quotas", type=lambda text: [float(n) for n in text.split(",")], default="0.5,1,1.5", **numbers
    )
    parser.add_argument("--threads", type=lambda text: [int(n) for n in text.split(",")], default="1,2", **numbers)
    parser.add_argument("--model", default="gemma-3-270m", help="a name from profile models [default: %(default)s]")
    parser.add_argument("--quant", default="bf16", help="[default: %(default)s]")
    parser.add_argument("--weights", default="synthetic", choices=("auto", "real", "synthetic"))
    parser.add_argument("--context", type=int, default=256, help="tokens [default: %(default)s]")
    parser.add_argument("--steps", type=int, default=32, help="decode steps [default: %(default)s]")
    parser.add_argument("--reps", type=int, default=5, help="repetitions of each phase [default: %(default)s]")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of all thread counts [default: %(default)s]")
    parser.add_argument("--calibrate", action="store_true", help="measure the ceilings under each quota first")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
