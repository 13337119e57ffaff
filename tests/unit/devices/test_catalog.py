"""The catalog of devices by data sheet."""

from __future__ import annotations

import pytest

from profiler.devices import target
from profiler.units import GIB

DEVICES = {device.name: device for device in target.data_sheets()}


def test_names_and_titles_are_unique() -> None:
    assert len(DEVICES) == len(target.data_sheets()) > 60
    titles = [(title, device.memory_bytes) for device in DEVICES.values() for title in device.titles]
    assert len(titles) == len(set(titles))


@pytest.mark.parametrize("name", DEVICES)
def test_figures_are_plausible_and_have_a_source(name: str) -> None:
    device = DEVICES[name]
    assert 40e9 <= device.bandwidth_bytes_s <= 10e12
    assert device.memory_bytes is None or 2 * GIB <= device.memory_bytes <= 1024 * GIB
    assert device.flops
    assert all(1e12 <= value <= 2e16 for value in device.flops.values())
    assert device.flops.get("fp16", 1e18) >= device.flops.get("bf16", 0)
    assert device.sources and device.standing
    sources = set(device.sources) - {"matmul"}
    assert sources == {"all"} or {"bandwidth", "power", "tensor"} == sources
    assert ("matmul" in device.sources) == (device.matmul_flops is not None)


def reached(name: str) -> float:
    return target.of_catalog(DEVICES[name]).reached


@pytest.mark.parametrize("name", [name for name, device in DEVICES.items() if device.memory_bytes])
def test_a_device_reaches_a_plausible_share_of_its_data_sheet(name: str) -> None:
    """Power limits some cards to half of their peak, and laptops may get more power than the data sheet assumes."""
    assert 0.25 <= reached(name) <= 1.2


def test_a_measured_share_is_used() -> None:
    assert reached("L4") == pytest.approx(70.89 / 121)  # limited to 72 W
    assert reached("DGX Spark (GB10)") == pytest.approx(92.3 / 125)
    assert reached("RTX 2080 Ti") == pytest.approx(58.58 / 53.8)  # sums in fp32, at half the rate of the data sheet
    assert reached("RTX 3050 Ti Laptop") == 1.2  # 1.8 times, with more power than the data sheet assumes


def test_a_device_without_a_measurement_reaches_what_similar_ones_do() -> None:
    ada = sorted(map(reached, ("RTX 4060", "RTX 4060 Ti 16GB", "RTX 4070 SUPER", "RTX 4090")))
    assert ada[0] <= reached("RTX 4080") <= ada[-1]
    assert reached("RTX 6000 Ada") < 0.9, "a workstation's card is limited by power, unlike a GeForce"
    assert 0.64 <= reached("Radeon AI PRO R9700") <= 0.67, (
        "of its generation, since no workstation's card of AMD is known"
    )
    assert reached("Radeon PRO W7900") > 0.7, "a chip that shares its power with a CPU says nothing about a card"


@pytest.mark.parametrize("name", ["GTX 1660", "GTX 1080", "P40", "Apple M3 Max (40c)", "Arc B580"])
def test_cards_with_matrix_units_say_nothing_about_others(name: str) -> None:
    assert reached(name) == (pytest.approx(85.14 / 137.6) if name == "Arc B580" else 1.0)


def test_several_cards_reach_what_they_do_together() -> None:
    fast, slow = (max(DEVICES[name].flops.values()) for name in ("RTX 5090", "L4"))
    together = fast * reached("RTX 5090") + slow * reached("L4")
    assert target.find("RTX 5090, L4").reached == pytest.approx(together / (fast + slow))


def test_a_known_card_has_its_data_sheets_figures() -> None:
    card = DEVICES["RTX 4090"]
    assert (card.memory_bytes, card.bandwidth_bytes_s, card.tdp_w) == (24 * GIB, 1008e9, 450)
    assert card.flops["bf16"] == pytest.approx(165.2e12)


@pytest.mark.parametrize(
    ("title", "gib", "name"),
    [
        ("NVIDIA GeForce RTX 4090", 23.99, "RTX 4090"),
        ("NVIDIA H100 80GB HBM3", 79.6, "H100 SXM"),
        ("Tesla T4", 15.0, "T4"),
        ("NVIDIA GeForce RTX 4060 Ti", 16.0, "RTX 4060 Ti 16GB"),
        ("NVIDIA GeForce RTX 4060 Ti", 8.0, "RTX 4060 Ti 8GB"),  # the same name on another card
        ("NVIDIA GeForce RTX 3060", 6.0, None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", 16.0, "RTX 4090 Laptop"),
        ("NVIDIA GeForce RTX 2060 Laptop GPU", 6.0, None),
        ("NVIDIA Something New", 24.0, None),
    ],
)
def test_a_card_is_matched_by_its_exact_name_and_memory(title: str, gib: float, name: str | None) -> None:
    found = target.match(title, round(gib * GIB))
    assert (found.name if found else None) == name
