"""What a gate tells people to do next, in the options of the front end that says it."""

from __future__ import annotations

from dataclasses import dataclass

from profiler.gate.block import threads_of
from profiler.measure.supervisor import Job
from profiler.paths import EAGER
from profiler.shell import Command, command

SETTLE = "measure both sides in turns, where REV is a revision, an environment or a command to compare with"


@dataclass(frozen=True, slots=True)
class FrontEnd:
    """One of the two ways to a stored baseline."""

    accept: str  # the option that writes what is measured now

    @property
    def if_meant(self) -> str:
        """What to do about a change that is no mistake."""
        return f"if it is meant: add {self.accept}"


COMMAND = FrontEnd("--accept")
PYTEST = FrontEnd("--profile-gate-accept")


def settle(job: Job) -> Command:
    """The gate of two sides that settles what a stored time cannot. REV is for a person to fill in."""
    case, source = job.case, job.source
    model = case.model if source.kind == "catalog" else source.argument()
    sizes = ("-c", str(case.context), "-b", str(case.batch), "-n", str(case.steps))
    options = {
        "--device": (case.device, None),
        "--backend": (case.backend, "hf"),
        "--path": (case.path, EAGER),
        "--fill": (case.fill, "prefill"),
        "--weights": (case.weights, "synthetic" if source.kind == "catalog" else "real"),
        "--threads": (case.threads, threads_of(case.device, None)),
    }
    others = {name: str(value) for name, (value, usual) in options.items() if value not in (None, usual)}
    return command(
        ("profile", "gate", "--base", "REV", "-m", model, "-q", case.quant),
        sizes,
        *others.items(),
        REV="a revision, an environment or a command",
    )
