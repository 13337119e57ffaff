"""The energy counters of CPU packages (RAPL), as Linux shows them under ``/sys/class/powercap``.

Since CVE-2020-8694 most kernels let only root read them, and virtual machines have none. Either is a reason.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from profiler.devices.snapshot import Snapshot, Unknown

POWERCAP = Path("/sys/class/powercap")
PACKAGES = "intel-rapl:[0-9]*"  # also AMD's; a domain inside a package is intel-rapl:0:0


@dataclass(slots=True)
class Package:
    """One counter. It starts again from 0 above ``range_uj``, after minutes on a large machine."""

    path: Path
    range_uj: int
    last_uj: int
    total_uj: int = 0

    def joules(self) -> float:
        """Since the package was found. Raises OSError, ValueError."""
        now = int(self.path.read_text())
        self.total_uj += now - self.last_uj if now >= self.last_uj else now - self.last_uj + self.range_uj
        self.last_uj = now
        return self.total_uj / 1e6


class Rapl:
    """Energy of all CPU packages together. Memory is a domain of its own and is not in it."""

    name = "rapl"
    scope = "cpu-package"
    coarse = False  # every millisecond
    guards = False

    def __init__(self, folder: Path = POWERCAP) -> None:
        self.unknown: dict[str, str] = {}
        self._folder = folder
        self._packages: list[Package] = []

    def open(self) -> None:
        domains = [path for path in sorted(self._folder.glob(PACKAGES)) if path.name.count(":") == 1]
        try:
            self._packages = [_package(path) for path in domains if (path / "name").read_text().startswith("package")]
        except PermissionError:
            where = self._folder / "intel-rapl:*/energy_uj"
            raise Unknown(f"only root may read the energy counters of this CPU ({where})") from None
        except (OSError, ValueError) as error:
            raise Unknown(f"the energy counters of this CPU cannot be read ({error})") from None
        if not self._packages:
            raise Unknown("this machine shows no energy counters of its CPU (RAPL)")

    def begin(self) -> None:
        """Nothing was given up."""

    def read(self, at_s: float) -> Snapshot:
        try:
            return Snapshot(at_s, energy_j=sum(package.joules() for package in self._packages))
        except (OSError, ValueError) as error:
            raise Unknown(f"the energy counters of this CPU can no longer be read ({error})") from None

    def others(self) -> int | None:
        return None

    def close(self) -> None:
        """Nothing is open."""


def _package(folder: Path) -> Package:
    now, range_uj = (int((folder / name).read_text()) for name in ("energy_uj", "max_energy_range_uj"))
    return Package(folder / "energy_uj", range_uj, now)
