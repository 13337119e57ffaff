"""Which processes are the server, and what they take: real processes, a scripted driver, an invented ``/proc``."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from fakes.nvml import FakeNvml
from fakes.nvml.bench import Bench
from fakes.nvml.control import HANG, UNKNOWN_ERROR

from profiler.backends.endpoint import contention, processes
from profiler.backends.endpoint.contention import ServerCpu
from profiler.backends.endpoint.processes import ELSEWHERE, ServerUse, ServerWatch, Untold, server_processes
from profiler.devices import nvml
from profiler.devices.base import Pressure
from profiler.devices.cpu import Rapl
from profiler.units import GIB

Driver = Callable[..., FakeNvml]
MIB = 1 << 20
CHILD = "import sys, time; held = b'x' * {size}; print(flush=True); time.sleep(60)"
SERVER = """
import socket, subprocess, sys
held = [b"x" * (64 << 20)]
child = subprocess.Popen([sys.executable, "-c", {child!r}], stdout=subprocess.PIPE)
child.stdout.readline()
listener = socket.create_server(("127.0.0.1", 0))
opened = [open(path) for path in {opened!r}]
print(listener.getsockname()[1], child.pid, flush=True)
for line in sys.stdin:
    held = held[:1] + [b"x" * int(line)]
    print(flush=True)
child.kill()
child.wait()
"""


class RealServer:
    """A process of 64 MiB that listens, with a child of as many; ``hold`` makes it take so many bytes more."""

    def __init__(self, opened: tuple[str, ...] = ()) -> None:
        program = SERVER.format(child=CHILD.format(size=64 * MIB), opened=opened)
        self.process = subprocess.Popen(
            [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        self.port, self.child = map(int, self.process.stdout.readline().split())
        self.pid, self.url = self.process.pid, f"http://127.0.0.1:{self.port}"

    def hold(self, size: int) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        print(size, file=self.process.stdin, flush=True)
        self.process.stdout.readline()

    def end(self) -> None:
        self.process.communicate()


@pytest.fixture
def server() -> Iterator[Callable[..., RealServer]]:
    made: list[RealServer] = []

    def start(*opened: str) -> RealServer:
        made.append(RealServer(opened))
        return made[-1]

    yield start
    for each in made:
        each.end()


@pytest.fixture(autouse=True)
def no_devices(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine without GPU files; what lies in the folder is one."""
    (tmp_path / "dev").mkdir()
    monkeypatch.setattr(processes, "DEV", tmp_path / "dev")
    return tmp_path / "dev"


def use(url: str, meanwhile: Callable[[], Any] = lambda: None, model_bytes: int | None = None) -> ServerUse:
    """What a case of one second, whose requests had 100 tokens of answer, is said to have taken."""
    watch = ServerWatch(url)
    watch.begin()
    meanwhile()
    try:
        return watch.end((time.perf_counter() - 1, time.perf_counter()), 2, 100, model_bytes)
    finally:
        watch.close()


# Whose memory


def test_memory_is_of_the_process_that_listens_and_of_its_children(server: Callable[..., RealServer]) -> None:
    real = server()
    program, pids = server_processes(real.url)
    assert (program, pids) == (Path(f"/proc/{real.pid}/comm").read_text().strip(), {real.pid, real.child})
    found = use(real.url)
    assert found.host_peak_bytes is not None and 128 * MIB < found.host_peak_bytes < 250 * MIB
    assert found.gpu_peak_bytes == 0


def test_the_peak_is_that_of_the_case_and_the_highest_since_the_start(server: Callable[..., RealServer]) -> None:
    real = server()
    real.hold(200 * MIB)
    real.hold(0)

    def meanwhile() -> None:
        real.hold(100 * MIB)
        time.sleep(2 * processes.SAMPLE_S)
        real.hold(0)

    found = use(real.url, meanwhile)
    assert found.host_peak_bytes is not None and found.host_highest_bytes is not None
    assert 228 * MIB < found.host_peak_bytes < 300 * MIB
    assert 328 * MIB < found.host_highest_bytes < 400 * MIB


def test_nothing_of_a_servers_command_line_is_kept() -> None:
    """It may hold the API key."""
    program = SERVER.format(child=CHILD.format(size=1), opened=()) + "\n# sk-canary-4f9d0c7b2a"
    words = [sys.executable, "-c", program, "--api-key", "sk-canary-4f9d0c7b2a"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        result = use(f"http://127.0.0.1:{process.stdout.readline().split()[0]}")
        process.communicate()
    assert result.host_peak_bytes is not None
    assert "canary" not in repr(result)


def test_a_server_elsewhere_is_not_looked_for() -> None:
    assert use("http://192.0.2.1:8080").unknown == dict.fromkeys(processes.FIGURES, ELSEWHERE)
    assert not processes.is_here("http://localhost.example.com")
    assert processes.is_here("https://[::1]:8080/v1")


def own_address() -> str | None:
    """An address of this machine other than the loopback's, found without sending anything."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as towards:
        try:
            towards.connect(("192.0.2.1", 9))
        except OSError:
            return None
        return str(towards.getsockname()[0])


@pytest.mark.parametrize("host", ["0.0.0.0", "[::]", "127.1.2.3", socket.gethostname()])
def test_this_machine_has_more_names_than_localhost(host: str) -> None:
    """vLLM prints http://0.0.0.0:8000, which people paste."""
    assert processes.is_here(f"http://{host}:8000")
    assert not processes.is_here("http://999.1.1.1:8000")


def test_a_server_that_listens_on_an_address_of_this_machine_is_here() -> None:
    address = own_address()
    if address is None or address.startswith("127."):
        pytest.skip("this machine has no address other than the loopback's")
    with socket.create_server((address, 0)) as listener:
        url = f"http://{address}:{listener.getsockname()[1]}"
        assert processes.is_here(url)
        _, pids = server_processes(url)
        assert os.getpid() in pids
        with pytest.raises(Untold, match="listens on port"):  # for the loopback it does not listen
            server_processes(url.replace(address, "127.0.0.1"))


def test_two_servers_on_one_port_are_not_taken_for_one() -> None:
    """llama-server sets SO_REUSEPORT, so one that was forgotten goes on answering some of the requests."""
    script = "import socket, sys; s = socket.create_server(('127.0.0.1', {}), reuse_port=True)\n"
    script += "print(s.getsockname()[1], flush=True); sys.stdin.read()"
    started: list[subprocess.Popen[str]] = []
    port = "0"
    try:
        for _ in range(2):
            command = [sys.executable, "-c", script.format(port)]
            started.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
            assert started[-1].stdout is not None
            port = started[-1].stdout.readline().strip()
        with pytest.raises(Untold, match=f"2 servers listen on port {port}, each of which gets some"):
            server_processes(f"http://127.0.0.1:{port}")
    finally:
        for process in started:
            process.communicate("")


def test_where_there_is_no_proc_nothing_is_said_of_ports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "PROC", tmp_path)
    with pytest.raises(Untold, match="only Linux"):
        server_processes("http://127.0.0.1:1234")


def test_a_process_that_holds_less_than_the_model_only_forwards(server: Callable[..., RealServer]) -> None:
    real = server()
    assert use(real.url, model_bytes=256 * MIB).host_peak_bytes is not None
    found = use(real.url, model_bytes=8 * GIB)
    assert found.host_peak_bytes is None
    assert found.unknown["host_peak_bytes"].endswith("holds less than the model: it forwards the port")


def test_a_server_that_ended_has_no_figures(server: Callable[..., RealServer]) -> None:
    real = server()
    found = use(real.url, real.end)
    assert found.host_peak_bytes is not None  # that of the moments when it was there
    with pytest.raises(Untold, match=f"no process of this machine or container listens on port {real.port}"):
        server_processes(real.url)


@pytest.fixture
def proc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """Adds a process to an invented ``/proc``, in which user 777 owns the socket 4711 on port 8080."""
    root = tmp_path / "proc"
    (root / "net").mkdir(parents=True)
    row = (
        "   0: {address}:1F90 00000000:0000 {state} 00000000:00000000 00:00000000 00000000   777        0 {inode} 1\n"
    )
    rows = [("0100007F", "0A", 4711), ("0100007F", "01", 4712), ("0101A8C0", "0A", 4713)]  # the last: 192.168.1.1
    lines = [row.format(address=address, state=state, inode=inode) for address, state, inode in rows]
    (root / "net" / "tcp").write_text("heads\n" + "".join(lines))
    monkeypatch.setattr(processes, "PROC", root)
    users: dict[int, int] = {}
    stat = Path.stat

    def owned(path: Path, **more: Any) -> Any:
        found = stat(path, **more)
        user = users.get(int(path.name)) if path.parent == root and path.name.isdigit() else None
        return os.stat_result((*found[:4], user, *found[5:10])) if user is not None else found

    monkeypatch.setattr(Path, "stat", owned)

    def add(pid: int, name: str, parent: int = 1, inode: int | None = None, user: int = 0) -> None:
        folder = root / str(pid)
        (folder / "fd").mkdir(parents=True)
        (folder / "comm").write_text(f"{name}\n")
        (folder / "stat").write_text(f"{pid} ({name} :-) {parent}) S {parent} 1 1\n")
        users[pid] = user
        if inode is not None:
            (folder / "fd" / "3").symlink_to(f"socket:[{inode}]")

    return add


def found(url: str = "http://localhost:8080") -> tuple[str, frozenset[int]]:
    return server_processes(url)


def test_only_the_socket_that_listens_on_the_loopback_counts(proc: Callable[..., None]) -> None:
    proc(1, "init", 0)
    proc(20, "llama-server", inode=4711)
    proc(21, "client", inode=4712)
    proc(22, "other", inode=4713)
    proc(23, "worker", parent=20)
    proc(24, "worker", parent=23)
    assert found() == ("llama-server", {20, 23, 24})
    with pytest.raises(Untold, match="listens on port 8081"):
        found("http://localhost:8081")


def test_another_users_server_is_known_if_all_that_user_runs_descends_from_one_process(
    proc: Callable[..., None],
) -> None:
    proc(1, "systemd", 0)
    proc(30, "ollama", user=777)
    proc(31, "ollama", parent=30, user=777)
    assert found() == ("ollama", {30, 31})
    proc(40, "bash", user=777)
    with pytest.raises(Untold, match="only root may see which process listens on port 8080"):
        found()


@pytest.mark.parametrize("name", ["ssh", "docker-proxy"])
def test_a_program_that_forwards_ports_is_no_server(proc: Callable[..., None], name: str) -> None:
    proc(20, name, inode=4711)
    with pytest.raises(Untold, match=f"port 8080 is held by {name}, which forwards it"):
        found()


def test_systemd_holds_the_socket_too_that_it_opened_for_a_service(proc: Callable[..., None]) -> None:
    proc(1, "systemd", 0, inode=4711)
    proc(20, "ollama", inode=4711)
    proc(21, "cron")
    assert found() == ("ollama", {20})


def test_several_programs_on_one_port_are_told_apart_by_nobody(proc: Callable[..., None]) -> None:
    proc(20, "one", inode=4711)
    proc(21, "two", inode=4711)
    with pytest.raises(Untold, match="several programs listen on port 8080"):
        found()


# GPUs


def test_memory_on_gpus_is_that_of_the_servers_processes(server: Callable[..., RealServer], driver: Driver) -> None:
    real, machine = server(), driver()
    first = machine.card(processes={real.pid: GIB, 1: 9 * GIB})
    machine.card("GPU-bbbb", processes={real.child: 2 * GIB})
    machine.card("GPU-cccc", processes={1: GIB})
    first.at(5.0, processes={real.pid: 4 * GIB}).at(6.0, processes={real.pid: GIB})

    def meanwhile() -> None:
        for machine.now_s in (5.5, 6.5):
            time.sleep(2 * processes.SAMPLE_S)

    assert use(real.url, meanwhile).gpu_peak_bytes == 6 * GIB


def test_what_a_driver_does_not_tell_of_a_process_is_unknown(
    server: Callable[..., RealServer], driver: Driver
) -> None:
    real, machine = server(), driver()
    machine.card(processes={real.pid: None})
    result = use(real.url)
    assert result.gpu_peak_bytes is None
    assert result.unknown["gpu_peak_bytes"] == "the NVIDIA driver does not tell how much memory a process takes"


def test_a_container_whose_process_numbers_are_not_the_hosts(
    server: Callable[..., RealServer], driver: Driver, no_devices: Path
) -> None:
    (no_devices / "nvidia0").touch()
    driver().card(processes={1: GIB})
    assert use(server().url).gpu_peak_bytes == 0  # it has no GPU open
    result = use(server(str(no_devices / "nvidia0")).url)
    assert result.gpu_peak_bytes is None
    why = "the NVIDIA driver lists no process of this container by its number here"
    assert result.unknown["gpu_peak_bytes"] == why
    assert result.energy_unknown == f"it is not known which device the server uses: {why}"


def test_a_gpu_of_another_maker_is_unknown(server: Callable[..., RealServer], no_devices: Path) -> None:
    (no_devices / "kfd").touch()
    result = use(server(str(no_devices / "kfd")).url)
    assert result.gpu_peak_bytes is None
    assert "it uses a GPU that is not NVIDIA's" in result.unknown["gpu_peak_bytes"]


@pytest.mark.parametrize("code", [HANG, UNKNOWN_ERROR])
def test_a_driver_that_fails_costs_no_figure_of_the_host(
    server: Callable[..., RealServer],
    driver: Driver,
    no_devices: Path,
    monkeypatch: pytest.MonkeyPatch,
    code: int,
) -> None:
    monkeypatch.setattr(nvml, "PATIENCE_S", 0.1)
    (no_devices / "nvidia0").touch()
    machine = driver()
    machine.card()
    machine.fault("nvmlDeviceGetComputeRunningProcesses_v3", code)
    start = time.perf_counter()
    result = use(server(str(no_devices / "nvidia0")).url)
    assert time.perf_counter() - start < 5
    assert result.host_peak_bytes is not None and result.gpu_peak_bytes is None
    assert "the NVIDIA driver" in result.unknown["gpu_peak_bytes"]
    machine.let_go()
    for thread in threading.enumerate():
        if thread.name == "server-memory":
            thread.join()


# Energy


def test_energy_is_that_of_the_gpus_that_the_server_uses(
    server: Callable[..., RealServer], driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, machine = server(), driver()
    bench = Bench(machine, processes={real.pid: GIB})
    bench.card.at(10.0, power_w=300.0).at(30.0, power_w=20.0)
    machine.card("GPU-bbbb", processes={1: GIB}, power_w=400.0)
    watched: list[Any] = []

    def sampler(source: Any) -> Any:
        watched.append(source._uuid)
        return bench.telemetry

    monkeypatch.setattr(processes, "Sampler", sampler)
    watch = ServerWatch(real.url)
    watch.begin()
    bench.run(31.0)
    result = watch.end((10.0, 30.0), 4, 600, None)
    short = watch.end((10.0, 15.0), 1, 150, None)
    watch.close()
    assert watched == ["GPU-aaaa"]
    assert (result.energy_source, result.energy_scope) == ("nvml-counter", "gpu-board")
    assert result.consumption is not None and result.energy_unknown is None
    assert result.consumption.watts == pytest.approx(300, rel=0.01)
    assert result.consumption.per_token_j == pytest.approx(10, rel=0.01)
    assert result.consumption.joules == pytest.approx(1500, rel=0.01)
    assert short.consumption is None
    assert short.energy_unknown == "the window of 5.00 s is shorter than the 10 s that counters need"


def test_without_a_gpu_energy_is_that_of_the_cpu_where_the_machine_tells_it(
    server: Callable[..., RealServer], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    real = server()
    package = tmp_path / "powercap" / "intel-rapl:0"
    package.mkdir(parents=True)
    monkeypatch.setattr(processes, "Rapl", lambda: Rapl(tmp_path / "powercap"))
    (package / "name").write_text("package-0\n")
    (package / "energy_uj").write_text("1000000\n")
    (package / "max_energy_range_uj").write_text("262143328850\n")
    watch = ServerWatch(real.url)
    watch.begin()
    start = time.perf_counter()
    time.sleep(0.2)
    (tmp_path / "later").write_text("3000000\n")
    (tmp_path / "later").replace(package / "energy_uj")  # in one step, because the counter may be read meanwhile
    result = watch.end((start, time.perf_counter()), 1, 10, None)
    assert watch.end((start, time.perf_counter()), 1, None, None).energy_unknown == "the server sent no token counts"
    watch.close()
    assert result.energy is not None and result.energy.counter_j is not None
    assert 0.2 < result.energy.counter_j < 2.2  # its share of the time between the readings
    assert (result.energy_source, result.energy_scope) == ("rapl-counter", "cpu-package")
    assert result.energy_unknown is not None and "shorter than the 10 s" in result.energy_unknown


def test_a_machine_without_counters_says_so(
    server: Callable[..., RealServer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "Rapl", lambda: Rapl(tmp_path))
    assert use(server().url).energy_unknown == "this machine has no energy counters of its CPU (RAPL)"


# Other work on the CPU


@pytest.mark.parametrize(
    ("spent_s", "busy_s", "on_host", "lacked"),
    [
        ((3.0, 3.0, 0.1), 20.0, True, 0.7),  # two threads on two cores, and one that waits for requests
        ((10.0, 9.5, 0.0), 20.0, True, None),  # all work was the server's
        ((3.0, 3.0, 0.1), 12.0, True, None),  # a core was free: the server waited for something else
        ((0.1, 0.1, 0.1), 20.0, True, None),  # it hardly computes: another machine does
        ((3.0, 3.0, 0.1), 20.0, False, None),  # of a GPU, threads wait without spinning
    ],
)
def test_a_server_that_spins_lacks_the_cpu_time_that_others_took(
    spent_s: Sequence[float], busy_s: float, on_host: bool, lacked: float | None
) -> None:
    before = ServerCpu(Pressure(0.0, busy_s=0.0, own_s=0.0), {(1, n): 5.0 for n in range(3)})
    after = ServerCpu(
        Pressure(10.0, busy_s=busy_s, own_s=0.1), {(1, n): 5.0 + spent for n, spent in enumerate(spent_s)}
    )
    found = contention.found_between(before, after, 2, on_host)
    assert (found and found.lacked) == (None if lacked is None else pytest.approx(lacked, abs=0.01))
    assert found is None or found.text.endswith("70% of the CPU time the server needed")


def test_a_kernel_that_counts_waits_is_believed_of_every_server() -> None:
    before = ServerCpu(Pressure(0.0, busy_s=0.0, own_s=0.0), {(1, 1): 0.0}, {(1, 1): 1.0})
    after = ServerCpu(Pressure(10.0, busy_s=15.0, own_s=0.0), {(1, 1): 6.0}, {(1, 1): 5.0})
    found = contention.found_between(before, after, 2, on_host=False)
    assert found is not None and found.lacked == pytest.approx(0.4)


def test_the_threads_of_a_server_are_read_with_their_cpu_time(server: Callable[..., RealServer]) -> None:
    real = server()
    found = contention.read({real.pid, real.child, 2**22})  # the last one is no process
    assert {pid for pid, _ in found.threads} == {real.pid, real.child}
    assert found.pressure.own_s is not None
