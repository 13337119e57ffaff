"""The processes of a server on this machine: the memory they take, and the energy of the devices they use.

The server is whatever listens on the port, with all of its child processes: Ollama, LM Studio and vLLM run the model
in one of those. The kernel tells which process holds a listening socket (``/proc/net/tcp`` has its inode,
``/proc/PID/fd`` its holders), but shows the open files of another user's process to root only. A process that merely
forwards the port, such as ``ssh -L`` or Docker's proxy, is not the server; then nothing is claimed.
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath
from threading import Event, Thread
from typing import Any
from urllib.parse import urlsplit

from profiler.backends.endpoint import contention
from profiler.devices import nvml
from profiler.devices.base import Disturbance
from profiler.devices.cpu import Rapl, process_bytes
from profiler.devices.cuda import Board
from profiler.devices.sampler import Sampler
from profiler.devices.telemetry import TelemetrySource, TimeSpan, Unknown
from profiler.results import energy
from profiler.results.energy import Consumption
from profiler.results.measurement import Energy, PhaseEnergy
from profiler.units import printable

PROC, DEV = Path("/proc"), Path("/dev")
SAMPLE_S = 0.25  # between two looks at the memory: a look takes this program 0.1 ms, and caches are allocated early
LISTENING = "0A"  # the state in /proc/net/tcp
# Addresses in /proc/net/tcp and tcp6 that a connection to the loopback may end at, in the byte order of the host:
# 0.0.0.0 and ::, 127.0.0.0/8, ::1, and 127.0.0.0/8 as an IPv6 address.
REACHED = re.compile(r"0+|[0-9A-F]{6}7F|0{24}01000000|0{16}FFFF0000[0-9A-F]{6}7F")
LOOPBACK = re.compile(r"localhost|127\.[\d.]+|::1|0\.0\.0\.0|::")  # the last two: servers print them as theirs
FORWARDERS = {
    *(
        "docker-proxy",
        "rootlessport",
        "rootlessport-ch",
        "slirp4netns",
        "pasta",
        "passt",
        "gvproxy",
        "kubectl",
        "ssh",
    ),
    *("sshd", "autossh", "socat", "nginx", "caddy", "haproxy", "traefik", "envoy", "litellm", "systemd-socket-"),
}
HOLDS = 0.25  # of the model's file: a process tree with less memory than this does not run the model
GPU_FILES = ("nvidia[0-9]*", "kfd", "dri/renderD*", "dxg")  # in /dev: NVIDIA, AMD, any by DRM, and WSL
ELSEWHERE = "the server is not on this machine"
SHARE = "servers listen on port"
OTHER_GPU = "it uses a GPU that is not NVIDIA's"
FIGURES = ("host_peak_bytes", "gpu_peak_bytes", "energy")


class Untold(Exception):
    """The processes of a server cannot be told; the message says why."""


class Elsewhere(Untold):
    """The processes of a server are not on this machine."""


@dataclass(frozen=True, slots=True)
class ServerUse:
    """What the server took while a case ran. Bytes; ``unknown`` has the reason for each figure that is ``None``."""

    program: str | None = None  # of the process that listens
    host_peak_bytes: int | None = None  # the largest VmRSS of all its processes together, read every ``SAMPLE_S``
    host_highest_bytes: int | None = None  # the sum of their VmHWM: since they started, so loading is included
    gpu_peak_bytes: int | None = None  # the most that its processes took on all GPUs together; 0: it uses none
    energy_source: str | None = None  # nvml-counter | nvml-power | rapl-counter
    energy_scope: str | None = None  # gpu-board | cpu-package: all that ran there, idle power included
    elsewhere: bool = False  # whether the server is known to be on another machine
    energy: PhaseEnergy | None = None  # of all requests, prefill and decode together; its tokens are output tokens
    unknown: Mapping[str, str] = field(default_factory=dict)
    disturbance: Disturbance | None = None  # by other processes that held the CPU, if there was any

    @property
    def consumption(self) -> Consumption | None:
        """Joules per request and per output token, and mean power; None if they are unknown."""
        return None if self.energy is None else energy.of_part(self._how, self.energy)

    @property
    def energy_unknown(self) -> str | None:
        """Why ``consumption`` is None."""
        return self.unknown.get("energy") if self.energy is None else energy.why_unknown(self._how, self.energy)

    @property
    def on_other_gpu(self) -> bool:
        """Whether it runs on a GPU of which we know nothing."""
        return self.unknown.get("gpu_peak_bytes", "").startswith(OTHER_GPU)

    def without_energy(self, reason: str) -> ServerUse:
        """This use of the machine, with its energy unknown for that reason."""
        return replace(self, energy=None, unknown={**self.unknown, "energy": reason})

    @property
    def _how(self) -> Energy:
        return Energy(self.energy_source, self.energy_scope)


def nothing_known(reason: str, elsewhere: bool = False) -> ServerUse:
    """Without any figure, for the same reason."""
    return ServerUse(elsewhere=elsewhere, unknown=dict.fromkeys(FIGURES, reason))


def is_here(root: str) -> bool:
    """Whether the URL of a server leads to this machine: to its loopback, its name, or an address of its own."""
    host = urlsplit(root).hostname or ""
    if LOOPBACK.fullmatch(host) or host in (name := socket.gethostname().lower(), f"{name}.local"):
        return True
    with suppress(OSError, ValueError):  # an address of another machine, or a name
        family = socket.AF_INET if ipaddress.ip_address(host).version == 4 else socket.AF_INET6
        with socket.socket(family) as own:
            own.bind((host, 0))
            return True
    return False


def server_processes(root: str) -> tuple[str, frozenset[int]]:
    """The name of the program that listens where ``root`` leads, and its processes with all of their children.

    Raises Untold.
    """
    parts = urlsplit(root)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    if not (PROC / "net").is_dir():
        raise Untold("only Linux tells which process listens on a port")
    inodes, users = _listeners(port, parts.hostname or "")
    if not inodes:
        raise Untold(f"no process of this machine or container listens on port {port}")
    parents = _parents()
    holders = {pid for pid in parents if _open_files(pid) & {f"socket:[{inode}]" for inode in inodes}}
    names = {pid: _name(pid) for pid in holders}
    if set(names.values()) - {"systemd"}:  # which also holds the sockets that it opens for a service
        holders -= {pid for pid, name in names.items() if name == "systemd"}
    holders = holders or _all_of_one_user(users, parents, port)
    tops = {pid for pid in holders if not _ancestors(pid, parents) & holders}
    name = _name(min(tops))
    if len({_name(pid) for pid in tops}) > 1:
        raise Untold(f"several programs listen on port {port}")
    if name in FORWARDERS or name == "systemd":
        raise Elsewhere(f"port {port} is held by {name}, which forwards it to a server elsewhere")
    if len(tops) > 1 and len(inodes) > 1:  # SO_REUSEPORT, which llama-server sets
        raise Untold(f"{len(tops)} {SHARE} {port}, each of which gets some of the requests")
    found = _with_children(holders, parents)
    ours = _with_children({os.getpid()} & found - holders, parents)  # as where the server is a container's first
    return name, found - ours


def _listeners(port: int, host: str) -> tuple[set[str], set[int]]:
    """Inodes of the sockets that listen on a port for connections to ``host``, and the users who own them."""
    inodes, users = set(), set()
    own = set() if LOOPBACK.fullmatch(host) else set(map(_as_listed, _addresses(host)))
    for name in ("tcp", "tcp6"):
        with suppress(OSError):
            for line in (PROC / "net" / name).read_text().splitlines()[1:]:
                columns = line.split()
                address, _, at = columns[1].partition(":")
                if columns[3] == LISTENING and int(at, 16) == port and (REACHED.fullmatch(address) or address in own):
                    inodes.add(columns[9])
                    users.add(int(columns[7]))
    return inodes, users


def _addresses(host: str) -> set[str]:
    with suppress(OSError):
        return {str(found[4][0]).partition("%")[0] for found in socket.getaddrinfo(host, None)}
    return set()


def _as_listed(address: str) -> str:
    """An IP address as ``/proc/net/tcp`` has it: words of 32 bits in the byte order of the host."""
    packed = ipaddress.ip_address(address).packed
    words = (packed[at : at + 4] for at in range(0, len(packed), 4))
    return "".join(f"{int.from_bytes(word, sys.byteorder):08X}" for word in words)


def _parents() -> dict[int, int]:
    """The parent of every process that shows itself."""
    found = {}
    for folder in PROC.iterdir():
        if folder.name.isdigit():
            with suppress(OSError, ValueError, IndexError):  # it may end meanwhile
                found[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    return found


def _ancestors(pid: int, parents: Mapping[int, int]) -> set[int]:
    found: set[int] = set()
    while (pid := parents.get(pid, 0)) and pid not in found:
        found.add(pid)
    return found


def _with_children(pids: set[int], parents: Mapping[int, int]) -> frozenset[int]:
    return frozenset(pid for pid in parents if pids & (_ancestors(pid, parents) | {pid}))


def _open_files(pid: int) -> set[str]:
    """What the descriptors of a process lead to; nothing if we may not see it."""
    found = set()
    with suppress(OSError), os.scandir(PROC / str(pid) / "fd") as entries:
        for entry in entries:
            with suppress(OSError):
                found.add(os.readlink(entry.path))
    return found


def _all_of_one_user(users: set[int], parents: Mapping[int, int], port: int) -> set[int]:
    """The processes of the user who owns the socket, where all descend from one, as those of a service do.

    Raises Untold.
    """
    hidden = f"only root may see which process listens on port {port}"
    if len(users) != 1 or users <= {0, os.getuid()}:
        raise Untold(hidden)
    theirs = set()
    for pid in parents:
        with suppress(OSError):
            if (PROC / str(pid)).stat().st_uid in users:
                theirs.add(pid)
    if len([pid for pid in theirs if parents[pid] not in theirs]) != 1:
        raise Untold(hidden)
    return theirs


def _name(pid: int) -> str:
    try:
        return printable((PROC / str(pid) / "comm").read_text().strip(), 40)
    except OSError:
        return "a process that has ended"


def _host_bytes(pids: Iterable[int], figure: str) -> int | None:
    """The sum of a figure of ``/proc/PID/status``; processes that have ended count as nothing."""
    found = []
    for pid in pids:
        with suppress(OSError):
            found.append(process_bytes(figure, pid))
    return sum(found) if found else None


class _Memory:
    """A thread that looks at the memory of some processes until ``stop``."""

    def __init__(self, pids: frozenset[int]) -> None:
        self.pids = pids
        self.host_bytes: int | None = None  # the most at a time
        self.gpu_bytes: int | None = None  # the most at a time on all GPUs together; None: NVML lists no process
        self.boards: set[str] = set()  # the GPUs that list one
        self.no_nvml: str | None = None  # why NVML tells nothing
        self._looked, self._over = Event(), Event()
        self._thread = Thread(target=self._run, name="server-memory", daemon=True)
        self._thread.start()
        if not self._looked.wait(nvml.PATIENCE_S):
            self.no_nvml = f"the NVIDIA driver did not answer for {nvml.PATIENCE_S:g} s"

    def stop(self) -> None:
        """Take a last look. A driver that hangs is left alone."""
        self._over.set()
        self._thread.join(nvml.PATIENCE_S)

    def _run(self) -> None:
        self._look_at_host()
        try:
            with nvml.library() as library:
                self._look_until_over(library)
        except Exception as error:  # whatever a driver does, the memory of the host is known
            self.no_nvml = str(error) if isinstance(error, nvml.Missing) else f"NVML failed: {printable(error)}"
            self._look_until_over()

    def _look_until_over(self, library: Any = None) -> None:
        while True:
            self._look_at_host()
            if library is not None:
                self._look_at_gpus(library)
            self._looked.set()
            if self._over.is_set():
                return
            self._over.wait(SAMPLE_S)  # and look once more

    def _look_at_host(self) -> None:
        now = _host_bytes(self.pids, "VmRSS")
        self.host_bytes = max(filter(None, (now, self.host_bytes)), default=None)

    def _look_at_gpus(self, library: Any) -> None:
        taken = nvml.processes_bytes(library, self.pids)
        self.boards |= taken.keys()
        if None in taken.values():
            self.no_nvml = "the NVIDIA driver does not tell how much memory a process takes"
        elif taken:
            self.gpu_bytes = max(sum(filter(None, taken.values())), self.gpu_bytes or 0)


def _gpu_bytes(memory: _Memory) -> tuple[int | None, str | None]:
    """What the processes took on GPUs at most, or the reason why it is unknown."""
    if memory.boards:
        return (memory.gpu_bytes, None) if memory.no_nvml is None else (None, memory.no_nvml)
    if not any(path for pattern in GPU_FILES for path in DEV.glob(pattern)):
        return 0, None
    files = [_open_files(pid) for pid in memory.pids if (PROC / str(pid)).exists()]
    if not all(files):
        return None, "only root may see whether another user's process uses a GPU"
    opened = [path for paths in files for path in paths if any(map(PurePath(path).match, GPU_FILES))]
    if not opened:
        return 0, None
    if not any("nvidia" in path for path in opened):
        return None, f"{OTHER_GPU} ({opened[0]})"
    return None, memory.no_nvml or "the NVIDIA driver lists no process of this container by its number here"


class ServerWatch:
    """Watches a server on this machine from ``begin`` to ``end`` of each case. Its calls block for up to seconds."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._program: str | None = None
        self._memory: _Memory | None = None
        self._cpu: contention.ServerCpu | None = None
        self._reason, self._elsewhere = ELSEWHERE, True
        self._no_energy: str | None = None
        self._samplers: dict[str, Sampler] = {}
        self._used: list[Sampler] = []

    def begin(self) -> None:
        """A case is about to start, with its model loaded."""
        self._used, self._memory = [], None
        if not is_here(self._root):
            return
        try:
            self._program, pids = server_processes(self._root)
        except Untold as reason:
            self._reason, self._elsewhere = str(reason), isinstance(reason, Elsewhere)
            return
        self._memory = _Memory(pids)
        self._watch_energy(self._memory)
        self._cpu = contention.read(pids)

    def end(self, span: TimeSpan, requests: int, tokens: int | None, model_bytes: int | None) -> ServerUse:
        """What the server took in a case whose requests filled ``span``, on the clock of ``time.perf_counter``.

        ``tokens``: of all answers; ``model_bytes``: size of the model's file, where the server tells it.
        """
        memory, before = self._memory, self._cpu
        if memory is None or before is None:
            return nothing_known(self._reason, self._elsewhere)
        after = contention.read(memory.pids)
        memory.stop()
        host, (gpu, no_gpu) = memory.host_bytes, _gpu_bytes(memory)
        if host is None:
            return nothing_known("the server has ended")
        if model_bytes is not None and gpu is not None and host + gpu < HOLDS * model_bytes:
            return nothing_known(
                f"{self._program}, which listens, holds less than the model: it forwards the port", True
            )
        use = ServerUse(
            program=self._program,
            host_peak_bytes=host,
            host_highest_bytes=max(host, _host_bytes(memory.pids, "VmHWM") or 0),  # the kernel counts in batches
            gpu_peak_bytes=gpu,
            unknown={} if no_gpu is None else {"gpu_peak_bytes": no_gpu},
            disturbance=contention.found_between(before, after, os.cpu_count() or 1, on_host=gpu == 0),
        )
        return self._with_energy(use, span, requests, tokens)

    def close(self) -> None:
        """End the processes that watch devices."""
        for sampler in self._samplers.values():
            sampler.close()
        self._samplers.clear()

    def _watch_energy(self, memory: _Memory) -> None:
        """Watch the GPUs that the server uses, or the CPU if it uses none."""
        self._no_energy = None
        sources: dict[str, TelemetrySource] = {uuid: Board(uuid) for uuid in sorted(memory.boards)}
        if not sources:
            taken, why = _gpu_bytes(memory)
            if taken is None:
                self._no_energy = f"it is not known which device the server uses: {why}"
                return
            sources = {"cpu": Rapl()}
            try:  # a process that would see nothing need not start
                sources["cpu"].open()
            except Unknown as reason:
                self._no_energy = str(reason)
                return
        for name, source in sources.items():
            sampler = self._samplers.setdefault(name, Sampler(source))
            sampler.begin(energy=True)
            self._used.append(sampler)

    def _with_energy(self, use: ServerUse, span: TimeSpan, requests: int, tokens: int | None) -> ServerUse:
        """``use`` with the joules of all devices in ``span``, or the reason why they are unknown."""
        uncounted = "the server sent no token counts" if requests else "no request succeeded"
        reason = self._no_energy or (None if tokens else uncounted)
        found = [] if reason else [taken for each in self._used if (taken := each.consumed([span])) is not None]
        if not found:
            return use.without_energy(reason or "no device was watched")
        seconds = span[1] - span[0]
        counter, power = _sum([each.counter for each in found]), _sum([each.power for each in found])
        part = PhaseEnergy(requests, seconds, seconds, tokens or 0, *counter, *power)
        return replace(use, energy=part, energy_source=found[0].source, energy_scope=found[0].scope)


def _sum(figures: Sequence[tuple[float | None, str | None]]) -> tuple[float | None, str | None]:
    """The sum of several devices, or the first reason why one is unknown."""
    reason = next((why for value, why in figures if value is None), None)
    return (None, reason) if reason is not None else (sum(value or 0.0 for value, _ in figures), None)
