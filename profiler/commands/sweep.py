"""``profile sweep``: measure a grid of model × quantization × context × batch on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from profiler import devices
from profiler.case import Case
from profiler.commands import closing, options, page_files
from profiler.commands import dry_run as preview
from profiler.commands.habits import MeasuringCommand
from profiler.commands.progress import Progress, say, tell
from profiler.commands.queue import Find, Queue
from profiler.commands.recorder import Recorder
from profiler.devices.base import DeviceInfo
from profiler.measure import supervisor
from profiler.measure.watch import Limits
from profiler.plan import budget, order, refusal, resume, scenario
from profiler.plan.request import Request, Work, work
from profiler.results import environment
from profiler.results.leases import Leases
from profiler.results.measurement import Measurement
from profiler.results.store import Store, StoredRow, existing

WEIGHTS = ("auto", "real", "synthetic")
MAX_THREADS = 4096  # the OpenMP runtime crashes on a million
MAX_SEED = 2**63 - 1  # what a random generator takes

Kept = Mapping[Case, StoredRow]


@click.command("sweep", cls=MeasuringCommand)
@options.many("-m", "--model", "models", metavar="MODEL", help="Catalog names, folders, .gguf files or hub ids.")
@options.many(
    "-q",
    "--quant",
    "quants",
    metavar="QUANT",
    help="Quantizations: bf16, nf4 … [default: the model's own]",
)
@options.many("-c", "--context", "contexts", metavar="TOKENS", help="Tokens in cache before decode. [default: 512]")
@options.many("-b", "--batch", "batches", metavar="N", help="Sequences at once. [default: 1]")
@options.many("-n", "--steps", "steps", metavar="N", help="Decode steps. [default: 32]")
@options.count("-r", "--reps", help="Repetitions of each phase. [default: as many as --precision takes]")
@options.share("--precision", help="Repeat until repetitions tell the rate within this, 5 to 20 times. [default: 2%]")
@click.option("--energy", is_flag=True, help="Measure energy as well: ten seconds more for a short phase.")
@click.option("--scenario", metavar="NAME|FILE", help="A named grid: see profile scenarios. Options above go first.")
@options.device()
@options.chosen("--backend", folder="backends", default="hf", help="What runs the models.")
@options.many(
    "--path",
    "paths",
    metavar="PATH",
    help="Decode steps: eager (as shipped), static, graph. [default: graph on a GPU, static on a CPU]",
)
@options.choice("--weights", WEIGHTS, default="auto", help="auto: real where they are here, else synthetic.")
@options.choice("--fill", scenario.FILLS, help="What gives the cache its depth. [default: prefill]")
@options.count("--ubatch", help="Tokens per prefill chunk. [default: 512 on a CPU, 2048 on a GPU]")
@options.count("--threads", most=MAX_THREADS, help="CPU threads. [default: the backend's choice]")
@click.option("--seed", type=click.IntRange(0, MAX_SEED), default=0, metavar="N", help="Seed of weights and tokens.")
@options.duration("--max-phase", "max_phase_s", help="No repetition of a phase starts after this. [default: 60s]")
@options.duration("--budget", "budget_s", help="Choose cases that fit this time: 10m.")
@options.duration("--timeout", "timeout_s", default="1h", help="End a case that takes longer.")
@options.size("--max-memory", help="Host memory that a worker may take: 8GiB.")
@click.option("--dry-run", is_flag=True, help="Print the plan with reasons, sizes and estimates; measure nothing.")
@click.option("--resume/--fresh", "resumed", default=True, help="Take stored rows of equal cases, or measure again.")
@options.html()
@options.store()
@options.output()
def sweep(
    device: str | None,
    timeout_s: float,
    max_memory: int | None,
    dry_run: bool,
    resumed: bool,
    html: Path | None,
    store: Path | None,
    output: str,
    **asked: Any,
) -> int:
    """Measure a grid of model × quantization × context × batch.

    Without a model it measures the largest Gemma 4 and Qwen 3.5 that this machine can in five minutes. Lists are
    comma-separated or repeated: -c 512,4k -b 1 -b 4; ranges are 1k-128k*2 and 1-8+1. Every row is stored when it is
    measured, so an interrupted sweep goes on where it stopped. Sweeps that run on one store at the same time share
    the work: a case that another one is measuring is left to it, and its row is taken.

    Exit code: 0 fine, 1 a case failed or a model was refused, 2 usage, 130 interrupted.
    """
    page_files.check(html)
    found = devices.find(device)
    available = available_bytes(found, max_memory)
    task = work(Request(**asked), found, available, say)
    for line in refusal.lines(task.refused):  # before the rows, so that nobody waits for them
        say(line)
    snapshot = environment.snapshot(found)
    if dry_run:
        kept = stored(task, snapshot, max_memory, store) if resumed else {}
        plan = make_plan(task, kept, found, available)
        click.echo(preview.render(plan, kept, available, output, task.subjects), nl=False)
        for line in (*found.limits, *preview.about(task.subjects)):
            say(line)
        tell(resume.fallbacks(kept.values()))
        say(preview.summary(plan))
        return refusal.REFUSED if task.refused else 0
    with Store.open(store) as opened:
        since = opened.newest_id()  # rows of other sweeps that come after it are as fresh as our own
        kept = resume.stored(task.points, opened, snapshot, task.effort, max_memory) if resumed else {}
        with Recorder(opened, snapshot, task, output, found) as recorder:
            recorder.adopt(kept)
            plan = make_plan(task, kept, found, available)
            recorder.skip(plan.skipped)
            tell(closing.warning(plan, task.budget_s))

            def find(planned: order.Planned) -> StoredRow | None:
                if not opened.has_newer(planned.case.key, since):
                    return None
                found = resume.stored([planned.point], opened, snapshot, task.effort, max_memory)
                row = found.get(planned.case)
                return row if row is not None and row.id > since else None

            limits = Limits(max_memory_bytes=max_memory, case_s=timeout_s)
            ending = measure(plan, task, limits, recorder, find, opened.path)
            code = recorder.finish(ending)
            if html is not None:
                page_files.write_rows(html, opened, recorder.run)
            tell(closing.ending(recorder.rows, len(task.points), ending.interrupted, resumed))
            tell(closing.refused(task.refused))
            return code or (refusal.REFUSED if task.refused else 0)


def stored(task: Work, snapshot: dict[str, Any], max_memory: int | None, store: Path | None) -> Kept:
    """What the store holds already, without making one where there is none."""
    if existing(store) is None:
        return {}
    with Store.open(store, create=False) as opened:
        return resume.stored(task.points, opened, snapshot, task.effort, max_memory)


def available_bytes(device: DeviceInfo, max_memory: int | None) -> int:
    """Memory a case may take on the device; ``--max-memory`` bounds host memory."""
    return min(device.free_bytes, max_memory) if max_memory and device.kind == "cpu" else device.free_bytes


def make_plan(task: Work, kept: Kept, device: DeviceInfo, available: int) -> order.Plan:
    """The plan for what is not stored yet, within the budget if there is one."""
    missing = [point for point in task.points if point.case not in kept]
    plan = order.make(missing, device, task.effort, available)
    return plan if task.budget_s is None else budget.choose(plan, task.budget_s)


def measure(
    plan: order.Plan, task: Work, limits: Limits, recorder: Recorder, find: Find, store: Path
) -> supervisor.Ending:
    """Run the plan; every case gives the recorder a row, measured here or by another sweep of the same store."""
    pace = budget.Pace(plan.cases, task.budget_s)

    def take(row: Measurement) -> None:
        recorder.append(row)  # before anything that could go wrong
        prepare_s = row.decode_path.prepare_s if row.decode_path else 0.0
        pace.note(row.case, row.load_s, row.outcome == "ok", prepare_s)
        progress.row(row)

    def beat(case: Case, phase: str) -> None:
        leases.renew()
        progress.beat(case, phase)

    with (
        Leases(store, recorder.run, environment.environment_key(recorder.environment)) as leases,
        Progress(len(plan.cases), pace.remaining_s, Progress.wanted(recorder.streams)) as progress,
    ):
        queue = Queue(plan.cases, pace, leases, find, recorder, progress)
        return supervisor.run(queue.jobs(), task.effort, limits, recorder.environment, take, beat)
