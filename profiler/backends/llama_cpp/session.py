"""A model in llama.cpp, and the runs of its programs that measure a case.

Each case is first loaded once with the verbose log, up to the moment at which llama.cpp has reserved all its memory.
That gives the load time, the buffers, the device that is really used, and the whole reason if it fails. The timed
runs follow without the verbose log, because they must be as fast as those that a user starts.

llama-bench times one phase per run, llama-batched-bench both phases in each line, so its prefills serve the decode
phase as well.
"""

from __future__ import annotations

import re
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import pairwise
from math import ceil
from pathlib import Path
from typing import Any, Literal, NamedTuple

from profiler import devices
from profiler.backends.base import Beat, ModelInfo, ShapeMismatch
from profiler.backends.llama_cpp import build as builds
from profiler.backends.llama_cpp.build import Build
from profiler.backends.llama_cpp.program import OutputLine, Program, ProgramFailed, ProgramMeter
from profiler.backends.llama_cpp.synthetic import synthetic_gguf
from profiler.case import Case, Source, options_of
from profiler.devices import allowance, cpu, cuda
from profiler.devices.base import DeviceInfo, Watcher, kind_of
from profiler.devices.sampler import Sampler
from profiler.errors import ProfileError
from profiler.foreign import BadContent, json_value
from profiler.models import families
from profiler.results.measurement import PHASES, Caution, DecodePath, Memory, Phase, Sample
from profiler.units import MIB, bytes_text, printable

# "CPU_Mapped model buffer size =   235.16 MiB"; before 2024-12 without the word "model".
BUFFER = re.compile(
    r"(?P<device>[A-Za-z]\w*) +(?:(?P<kind>model|KV|RS|compute|output) +)?buffer size *= *(?P<mib>[\d.]+) MiB"
)
RESERVED = re.compile(r"graph splits *=")  # the last thing that a context logs before it computes
STARTS = re.compile(
    r": benchmark \d+/\d+: (?P<warmup>warmup )?(?P<phase>prompt|generation|depth) run"
    r"(?: (?P<number>\d+)/\d+)?(?P<cached> \(cached\))?"
)
ON_HOST = re.compile(r"CPU|.*_Host$|BLAS|AMX")  # buffers in the host's memory
TABLE = ("pp", "tg", "pl", "n_kv", "t_pp", "speed_pp", "t_tg", "speed_tg")  # columns of llama-batched-bench's table
MAX_HOST_SHARE = 0.25  # of the weights: embeddings always stay there
MAX_LINES = 4  # a run prints at most so many lines: four of five repetitions are the most of a phase


@dataclass
class Reserved:
    """What llama.cpp logs while it loads a model and makes a context."""

    seconds: float = 0.0  # from the start of the program
    peak_bytes: int | None = None
    buffers: dict[tuple[str, str], float] = field(default_factory=dict)  # (device, kind) → MiB

    def note(self, text: str) -> None:
        """Take a line of the log."""
        for match in BUFFER.finditer(text):
            place, mib = (match["device"], match["kind"] or "model"), float(match["mib"])
            adds = place[1] in ("model", "KV", "RS")  # one line for each of several caches; others are reserved anew
            self.buffers[place] = mib + (self.buffers.get(place, 0.0) if adds else 0.0)

    def nbytes(self, *kinds: str, host: bool) -> int | None:
        """Bytes of the buffers of these kinds, on the host or on other devices. ``None`` if none was logged."""
        found = [mib for (device, kind), mib in self.buffers.items() if kind in kinds and _on_host(device) == host]
        return round(sum(found) * MIB) if found else None

    @property
    def loaded(self) -> bool:
        """Whether the weights were loaded."""
        return any(kind == "model" for _, kind in self.buffers)

    @property
    def computes_on(self) -> str:
        """The devices that hold weights: ``CUDA0 CPU``."""
        names = {device for device, kind in self.buffers if kind == "model"}
        short = {"CPU" if _on_host(name) else name for name in names}
        return " ".join(sorted(short, key=lambda name: (name == "CPU", name)))


def open_session(case: Case, source: Source, beat: Beat) -> LlamaSession:
    """Load the model of ``case`` once; synthetic weights are first written to a file if there is none yet.

    Raises OutOfMemory, ProfileError.
    """
    build, file = builds.find(), Path(source.location)
    if case.weights == "synthetic":
        file = synthetic_gguf(source, families.geometry(source.config), case.quant, case.seed, beat)
    return LlamaSession(build, file, case, beat)


class LlamaSession:
    """A GGUF file, and the build that runs it. Nothing stays loaded between cases."""

    def __init__(self, build: Build, file: Path, case: Case, beat: Beat) -> None:
        self._build, self._file, self._beat = build, file, beat
        self._device = devices.find(case.device)
        self.meter = ProgramMeter(self._device)
        self.watcher = _watcher(self._device)
        self._threads = case.threads or _confined()
        self._first: tuple[Case, Reserved | Exception] | None = None
        self.scored: dict[int, dict[str, Any]] = {}  # the quality at each context (``quality.measure``)
        try:
            reserved = self._reserve(case)
        except _NotReserved as error:
            if not error.loaded:
                raise error.reason from None
            self._first = case, error.reason  # the model loads, so only this case fails
            reserved = error.reserved
        else:
            self._first = case, reserved
        weights = reserved.nbytes("model", host=self._device.name == "cpu")
        self.info = ModelInfo(weights or file.stat().st_size, 0, self._threads, ())

    def begin(self, case: Case) -> LlamaCase:
        """Reserve the memory of a case. Raises OutOfMemory, ProfileError."""
        first, self._first = self._first, None
        if first is not None and first[0] == case:
            reserved = first[1]
        else:
            try:
                reserved = self._reserve(case)
            except _NotReserved as error:
                reserved = error.reason
        if isinstance(reserved, Exception):
            raise reserved
        self._check_device(reserved, case)
        return LlamaCase(self, case, reserved)

    def close(self) -> None:
        self.watcher.close()

    def start(self, command: Sequence[str]) -> Program:
        """Start a program on the device of the session. Raises ProfileError."""
        environ = self._build.environment(self._device.name)
        if self._device.uuid is not None and "-ts" not in command:
            environ["CUDA_VISIBLE_DEVICES"] = self._device.uuid
        self.meter.reset_peak()
        return Program(command, environ, self.meter.look)

    def command(self, case: Case, phase: Phase, repetitions: int, rounds: int, cold: bool = False) -> list[str]:
        """The command for a phase of ``case``; a case of several sequences has one for both phases."""
        asked = replace(case, threads=self._threads)
        if self.alone(case):
            return self._build.phase(asked, self._file, phase, repetitions, rounds, cold)
        return self._build.both_phases(asked, self._file, rounds)

    def alone(self, case: Case) -> bool:
        """Whether llama-bench measures the case."""
        return self._build.alone(case)

    @property
    def library(self) -> str:
        """What computes: llama.cpp, or llama-cpp-python."""
        return self._build.title

    @property
    def beat(self) -> Beat:
        """Called at every sign of progress."""
        return self._beat

    def _reserve(self, case: Case) -> Reserved:
        """Load the model and make the context of ``case``, with the verbose log. Raises _NotReserved."""
        self._beat("load")
        found = Reserved()
        try:
            # decode needs the longest context, and its depth the largest prefill pass
            program = self.start([*self.command(case, "decode", 1, 1), "-v"])
        except ProfileError as error:
            raise _NotReserved(error, found, loaded=True) from None
        done = False
        try:
            for line in program.lines():
                found.note(line.text)
                if done := bool(RESERVED.search(line.text)):
                    break
            failure = None if done or not program.failed else program.failure()
        finally:
            program.stop()
        found.seconds = time.perf_counter() - program.started_s
        self.meter.add(program.peak_bytes)
        found.peak_bytes = self.meter.peak().process_bytes
        if failure is not None:
            raise _NotReserved(failure, found, found.loaded)
        return found

    def _check_device(self, reserved: Reserved, case: Case) -> None:
        """Raise ProfileError if the build computes on the host although a GPU was asked for."""
        layers = options_of(case.options).get("gpu-layers")
        if self._device.name == "cpu" or layers == "0" or reserved.nbytes("model", host=False) is not None:
            return
        raise ProfileError(
            f"this build of llama.cpp does not use {self._device.name}: all weights are in the host's memory",
            f"Build it with support for {self._device.title}, or measure it with --device cpu.",
        )


class _NotReserved(Exception):
    """The context could not be made. ``loaded``: whether the model itself could be loaded, or was not tried."""

    def __init__(self, reason: Exception, reserved: Reserved, loaded: bool) -> None:
        super().__init__(str(reason))
        self.reason, self.reserved, self.loaded = reason, reserved, loaded


class Started(NamedTuple):
    """Something that llama-bench has begun, by its ``--progress``."""

    at_s: float
    cpu_s: float | None
    what: Literal["warmup", "depth", "cached depth", "repetition"]

    @classmethod
    def of(cls, line: OutputLine, found: re.Match[str]) -> Started:
        """From a line and its match of ``STARTS``."""
        if found["phase"] == "depth":
            return cls(line.at_s, line.cpu_s, "cached depth" if found["cached"] else "depth")
        return cls(line.at_s, line.cpu_s, "warmup" if found["warmup"] else "repetition")


class LlamaCase:
    """One case, measured by runs of llama-bench or llama-batched-bench."""

    def __init__(self, session: LlamaSession, case: Case, reserved: Reserved) -> None:
        self._session, self._case, self._reserved = session, case, reserved
        self._alone = session.alone(case)
        self._waiting: list[Sample] = []  # decode samples that came with the prefills
        self._slow = False  # whether the last prefill took all the time of a phase
        self._peaks: dict[Phase, int | None] = {}
        self._row: dict[str, Any] = {}  # the last line of the program

    def repeat(self, phase: Phase, count: int, most_s: float) -> Iterator[Sequence[Sample]]:
        """See ``TimedCase``."""
        if self._alone:
            yield from self._repeat_alone(phase, count, most_s)
            return
        if phase == "decode" and self._waiting:
            waiting, self._waiting = self._waiting, []
            yield waiting
            if self._slow:
                return
        spent = 0.0
        for prefill, decode in self._lines_of_both(phase, count):
            spent += prefill.seconds + decode.seconds
            if phase == "decode":
                yield [decode]
                if spent >= most_s:  # each decode costs a prefill
                    return
            else:
                self._waiting.append(decode)
                self._slow = prefill.seconds >= most_s
                yield [prefill]

    def _repeat_alone(self, phase: Phase, count: int, most_s: float) -> Iterator[Sequence[Sample]]:
        """llama-bench prints a line after all its repetitions, so a phase that turns out to be slow starts again with
        fewer of them; with a single one, without a warm-up.
        """
        slow = yield from self._run(phase, count, most_s)
        if slow is not None:
            yield from self._run(phase, max(1, ceil(most_s / slow)), None)

    def _run(self, phase: Phase, count: int, most_s: float | None) -> Generator[Sequence[Sample], None, float | None]:
        """The samples of each line. Returns the seconds of a repetition if ``count`` of them would take more than
        ``most_s`` seconds; otherwise None.
        """
        cold = most_s is None and count == 1
        program = self._session.start(self._session.command(self._case, phase, count, MAX_LINES, cold))
        starts: list[Started] = []
        printed = 0
        try:
            for line in program.lines():
                if line.is_result and line.text.startswith("{"):
                    printed += 1
                    yield self._samples(phase, line, starts)
                    starts = []
                elif found := STARTS.search(line.text):
                    starts.append(Started.of(line, found))
                    self._session.beat(f"{phase} {found['number']}/{count}" if found["number"] else phase)
                    if most_s is not None and count > 1 and _once_s(phase, starts) * count > most_s:
                        return _once_s(phase, starts)
            program.end()
        finally:
            program.stop()
            self._note_peak(phase, program)
        if not printed:
            raise program.failure()
        return None

    def _samples(self, phase: Phase, line: OutputLine, starts: Sequence[Started]) -> list[Sample]:
        row = _content(line)
        shape = (row.get("n_prompt"), row.get("n_gen"), row.get("n_depth", 0))
        case, self._row = self._case, row
        asked = (case.context, 0, 0) if phase == "prefill" else (0, case.steps, case.context)
        if shape != asked:
            raise ShapeMismatch(
                f"{builds.BENCH} measured {shape} tokens of prompt, generation and depth, not {asked}"
            )
        seconds = [nanoseconds / 1e9 for nanoseconds in row["samples_ns"]]
        ends: Sequence[Started | OutputLine] = [*starts[1:], line]
        timed = [(start, end) for start, end in zip(starts, ends, strict=False) if start.what == "repetition"]
        known: Sequence[tuple[Started, Started | OutputLine] | None] = timed
        if len(timed) != len(seconds):
            known = [None] * len(seconds)
        tokens = case.context if phase == "prefill" else case.steps
        return [
            Sample(phase, took, tokens, cpu_s=each and _cpu_s(*each), ended_s=each and each[1].at_s)
            for took, each in zip(seconds, known, strict=True)
        ]

    def _lines_of_both(self, phase: Phase, count: int) -> Iterator[tuple[Sample, Sample]]:
        """The prefill and the decode of each line; the first pair is a warm-up."""
        case, rounds = self._case, 1 + max(count, MAX_LINES * 5)
        program = self._session.start(self._session.command(case, phase, 1, rounds))
        done, before = 0, None
        try:
            for line in program.lines():
                if not line.is_result or (row := _batched_row(line.text)) is None:
                    before = line if done == 0 else before
                    continue
                cores, before = _cores(before, line), line
                self._row = row
                if (row["pp"], row["tg"], row["pl"]) != (case.context, case.steps, case.batch):
                    raise ShapeMismatch(f"{builds.BATCHED} measured {row}")
                self._session.beat(f"{phase} {done}")
                prefill = Sample("prefill", row["t_pp"], case.batch * case.context, ended_s=line.at_s - row["t_tg"])
                decode = Sample("decode", row["t_tg"], case.batch * case.steps, ended_s=line.at_s)
                prefill, decode = (
                    replace(sample, warmup=done == 0, cpu_s=cores and cores * sample.seconds)
                    for sample in (prefill, decode)
                )
                yield prefill, decode
                done += 1
            program.end()
        finally:
            program.stop()
            self._note_peak("prefill", program)
            self._note_peak("decode", program)
        if not done:
            raise program.failure()

    def _note_peak(self, phase: Phase, program: Program) -> None:
        self._session.meter.add(program.peak_bytes)
        highest = self._session.meter.peak().process_bytes
        self._peaks[phase] = max(filter(None, (self._peaks.get(phase), highest)), default=None)

    def memory(self) -> Memory:
        """Peaks of the processes, and the buffers as llama.cpp reports them. It reserves them for both phases."""
        host = kind_of(self._case.device).is_host
        cache = self._reserved.nbytes("KV", "RS", host=host)
        buffers = self._reserved.nbytes("compute", "output", host=host)
        prefill, decode = (self._peaks.get(phase) for phase in PHASES)
        peak = max(filter(None, (prefill, decode, self._reserved.peak_bytes)), default=None)
        return Memory(
            weights_bytes=self._reserved.nbytes("model", host=host),
            cache_bytes=cache,
            prefill_cache_bytes=cache,
            prefill_peak_bytes=prefill,
            decode_peak_bytes=decode,
            prefill_activation_bytes=buffers,
            decode_activation_bytes=buffers,
            process_peak_bytes=peak,
            phases_process_bytes=max(filter(None, (prefill, decode)), default=None),
        )

    @property
    def threads(self) -> int | None:
        """CPU threads that the program says it used, or those that the case asks for if it does not say."""
        found = self._row.get("n_threads")
        return found if isinstance(found, int) else self._case.threads

    @property
    def together(self) -> bool:
        """Whether llama-batched-bench measures the case: its lines have both phases."""
        return not self._alone

    def path(self) -> DecodePath:
        """What computed: the devices that hold weights."""
        return DecodePath(
            "eager", kernels=f"{self._session.library} on {self._reserved.computes_on or 'an unknown device'}"
        )

    def cautions(self) -> tuple[Caution, ...]:
        if kind_of(self._case.device).is_host:
            return ()
        host, device = (self._reserved.nbytes("model", host=host) or 0 for host in (True, False))
        if host <= MAX_HOST_SHARE * (host + device):
            return ()
        text = f"{bytes_text(host)} of {bytes_text(host + device)} of weights are in the host's memory"
        return (Caution("weights-on-host", text),)


def _watcher(device: DeviceInfo) -> Watcher:
    """The telemetry of a device, without PyTorch, which the worker does not need."""
    return cpu.watcher("cpu") if device.uuid is None else Sampler(cuda.Board(device.uuid))


def _confined() -> int | None:
    """Threads if fewer CPUs than the machine's may be used, which llama.cpp does not notice; else its own default."""
    allowed = allowance.at_start()
    limited = allowed.quota is not None or allowed.cpus < allowed.installed or allowed.threads_from is not None
    return allowed.threads if limited else None


def _cpu_s(start: Started, end: Started | OutputLine) -> float | None:
    """CPU seconds between two lines."""
    return None if start.cpu_s is None or end.cpu_s is None else end.cpu_s - start.cpu_s


def _cores(before: OutputLine | None, line: OutputLine) -> float | None:
    """Cores that the program used on average between two lines of llama-batched-bench.

    It does not say where decode begins, so the CPU time is divided between the phases by their seconds.
    """
    if before is None or before.cpu_s is None or line.cpu_s is None or line.at_s <= before.at_s:
        return None
    return (line.cpu_s - before.cpu_s) / (line.at_s - before.at_s)


def _once_s(phase: Phase, starts: Sequence[Started]) -> float:
    """Seconds of the first repetition, with its depth if that is computed each time; 0 if not known, or long known.

    The warm-up of a prefill is a prefill.
    """
    took = [(start.what, end.at_s - start.at_s) for start, end in pairwise(starts)]
    repetitions = [seconds for what, seconds in took if what == "repetition"]
    if not repetitions:
        return next((seconds for what, seconds in took if what == "warmup"), 0.0) if phase == "prefill" else 0.0
    depth = next((seconds for what, seconds in took if what == "depth"), 0.0) if starts[-1].what == "depth" else 0.0
    return repetitions[0] + depth if len(repetitions) == 1 else 0.0


def _content(line: OutputLine) -> dict[str, Any]:
    """A line of llama-bench. Raises ProgramFailed if it is not one."""
    with suppress(BadContent, KeyError, TypeError):
        row = json_value(line.text)
        if row["samples_ns"] and all(type(each) is int and each > 0 for each in row["samples_ns"]):
            return dict(row)
    raise ProgramFailed(f"{builds.BENCH} printed a line that is not its result: {printable(line.text, 120)}")


def _batched_row(text: str) -> dict[str, Any] | None:
    """A line of llama-batched-bench: JSON, or a row of its table in builds that have no JSON. ``None`` for others."""
    with suppress(BadContent, ValueError, KeyError, TypeError):
        row = json_value(text) if text.startswith("{") else _table_row(text)
        if all(row[name] > 0 for name in ("pp", "tg", "pl", "t_pp", "t_tg")):
            return dict(row)
    return None


def _table_row(text: str) -> dict[str, float]:
    """Seconds have three decimals there and rates two, so of a short phase the rate says more. Raises ValueError."""
    row = dict(zip(TABLE, map(float, text.split("|")[1 : 1 + len(TABLE)]), strict=True))
    for phase, tokens in (("pp", row["pp"] * row["pl"]), ("tg", row["tg"] * row["pl"])):
        if row[f"speed_{phase}"] > 10 * row[f"t_{phase}"]:
            row[f"t_{phase}"] = tokens / row[f"speed_{phase}"]
    return row


def _on_host(device: str) -> bool:
    return ON_HOST.match(device) is not None
