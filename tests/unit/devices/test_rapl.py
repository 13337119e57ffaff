"""The energy counters of CPU packages, in a folder that looks like the kernel's."""

from __future__ import annotations

from pathlib import Path

import pytest

from profiler.devices.cpu import Rapl
from profiler.devices.telemetry import Telemetry, Unknown

RANGE_UJ = 262_143_328_850  # a desktop's: 26 minutes at 165 W


def domain(folder: Path, name: str, called: str, energy_uj: int = 0, range_uj: int = RANGE_UJ) -> Path:
    place = folder / name
    place.mkdir()
    (place / "name").write_text(f"{called}\n")
    (place / "energy_uj").write_text(f"{energy_uj}\n")
    (place / "max_energy_range_uj").write_text(f"{range_uj}\n")
    return place / "energy_uj"


class Clock:
    """A clock that the test advances, and packages that draw so many watts each."""

    def __init__(self, *counters: Path, watts: float = 100.0) -> None:
        self.now, self.counters, self.watts = 0.0, counters, watts

    def __call__(self) -> float:
        return self.now

    def pause(self, seconds: float) -> None:
        self.now += seconds
        for counter in self.counters:
            counter.write_text(str((int(counter.read_text()) + round(self.watts * seconds * 1e6)) % RANGE_UJ))


def test_all_packages_count_and_nothing_inside_or_beside_them(tmp_path: Path) -> None:
    counters = [domain(tmp_path, f"intel-rapl:{n}", f"package-{n}") for n in range(2)]
    domain(tmp_path, "intel-rapl:0:0", "core", 5)
    domain(tmp_path, "intel-rapl:2", "psys", 5)
    clock = Clock(*counters)
    telemetry = Telemetry(Rapl(tmp_path), clock, clock.pause).open()
    clock.pause(10.0)
    assert telemetry.counted_j([(0.0, 10.0)]) == (pytest.approx(2000), None)
    assert telemetry.integrated_j([(0.0, 10.0)]) == (None, "power was not read")
    assert telemetry.stop(5.0).invalid is None
    telemetry.close()


def test_a_counter_that_wraps_around_is_continued(tmp_path: Path) -> None:
    counter = domain(tmp_path, "intel-rapl:0", "package-0", RANGE_UJ - 300_000_000)
    clock = Clock(counter)
    telemetry = Telemetry(Rapl(tmp_path), clock, clock.pause).open()
    for _ in range(10):
        clock.pause(1.0)
        telemetry.look()
    assert int(counter.read_text()) < RANGE_UJ // 2
    assert telemetry.counted_j([(0.0, 10.0)])[0] == pytest.approx(1000)


def test_a_counter_that_goes_backwards_has_not_wrapped_around(tmp_path: Path) -> None:
    counter = domain(tmp_path, "intel-rapl:0", "package-0", 10**9)
    clock = Clock(counter)
    telemetry = Telemetry(Rapl(tmp_path), clock, clock.pause).open()
    clock.pause(1.0)
    telemetry.look()
    counter.write_text("5")
    clock.now = 2.0
    assert telemetry.counted_j([(0.0, 2.0)]) == (None, "the energy counter jumped")


def test_a_counter_that_stands_still_is_unknown(tmp_path: Path) -> None:
    domain(tmp_path, "intel-rapl:0", "package-0", 7)
    clock = Clock()
    telemetry = Telemetry(Rapl(tmp_path), clock, clock.pause).open()
    clock.pause(3.0)
    assert telemetry.counted_j([(0.0, 3.0)]) == (None, "the energy counter stood still for 3.00 s")


def test_idle_power_is_measured_once(tmp_path: Path) -> None:
    clock = Clock(domain(tmp_path, "intel-rapl:0", "package-0"), watts=12.0)
    telemetry = Telemetry(Rapl(tmp_path), clock, clock.pause).open()
    assert telemetry.idle_w() == (pytest.approx(12.0), None)
    before = clock.now
    assert telemetry.idle_w()[0] == pytest.approx(12.0) and clock.now == before


def test_a_machine_without_counters_says_so(tmp_path: Path) -> None:
    words = "this machine has no energy counters of its CPU (RAPL)"
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(Unknown, match=r"no energy counters of its CPU \(RAPL\)"):
            Rapl(folder).open()
    assert Telemetry(Rapl(tmp_path)).open().idle_w() == (None, words)


def test_a_counter_for_root_only_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counter = domain(tmp_path, "intel-rapl:0", "package-0")
    read = Path.read_text

    def refused(path: Path, *about: str, **more: str) -> str:
        if path == counter:
            raise PermissionError
        return read(path, *about, **more)

    monkeypatch.setattr(Path, "read_text", refused)  # root, who may run this, is refused nothing
    with pytest.raises(Unknown, match="only root may read the energy counters of this CPU"):
        Rapl(tmp_path).open()


@pytest.mark.parametrize("content", ["", "nonsense", "-1\n5"])
def test_a_counter_that_is_no_number_says_so(tmp_path: Path, content: str) -> None:
    domain(tmp_path, "intel-rapl:0", "package-0").write_text(content)
    with pytest.raises(Unknown, match="cannot be read"):
        Rapl(tmp_path).open()


def test_a_counter_that_vanishes_ends_the_telemetry(tmp_path: Path) -> None:
    counter = domain(tmp_path, "intel-rapl:0", "package-0")
    clock = Clock()
    telemetry = Telemetry(Rapl(tmp_path), clock, clock.pause).open()
    counter.unlink()
    clock.now = 1.0
    joules, reason = telemetry.counted_j([(0.0, 1.0)])
    assert joules is None and reason is not None and "can no longer be read" in reason
