"""What people type after --on."""

from __future__ import annotations

import pytest

from profiler.devices.base import DeviceInfo
from profiler.devices.target import find, of
from profiler.errors import NotFound, ProfileError
from profiler.units import GIB


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("rtx 4090", "RTX 4090"),
        ("RTX4090", "RTX 4090"),
        ("4090", "RTX 4090"),
        ("rtx-3090-ti", "RTX 3090 Ti"),
        ("3090", "RTX 3090"),
        ("m4 pro", "Apple M4 Pro (20c)"),
        ("h100", "H100 SXM"),
        ("h100 pcie", "H100 PCIe"),
        ("t4", "T4"),
        ("strix halo", "Strix Halo (Ryzen AI Max+ 395, Radeon 8060S)"),
        ("7900 xtx", "RX 7900 XTX"),
        ("spark", "DGX Spark (GB10)"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),  # as nvidia-smi prints it
        ("rtx4090", "RTX 4090"),
    ],
)
def test_a_name_is_matched_by_its_words(typed: str, name: str) -> None:
    assert find(typed).name == name


@pytest.mark.parametrize("typed", ['2x"rtx 3090"', "2x rtx 3090", "2×3090", "2X3090"])
def test_several_equal_devices(typed: str) -> None:
    target = find(typed)
    assert (target.count, target.name, target.title) == (2, "RTX 3090", "2x RTX 3090")


def test_a_device_in_figures() -> None:
    target = find("vram=24,bandwidth=1008,bf16=165,watts=450,link=32")
    assert target.memory_bytes == 24 * GIB
    assert target.bandwidth_bytes_s == 1008e9
    assert target.flops == {"bf16": 165e12}
    assert (target.tdp_w, target.link_bytes_s) == (450, 32e9)


@pytest.mark.parametrize(
    "typed",
    ["vram=24", "bandwidth=5", "vram=x,bandwidth=1", "vram=0,bandwidth=1", "vram=nan,bandwidth=1", "weight=3",
     "999x4090", "0x4090", "", "geforce 1", "2x", "radeon 780m", "vram=-1,bandwidth=3", "=", ",", "\x1b[31m",
     "2xcpu", "2x2x3090", "vram=24,vram=8,bandwidth=900"],
)  # fmt: skip
def test_an_invalid_device_is_one_clear_line(typed: str) -> None:
    with pytest.raises(ProfileError) as caught:
        find(typed)
    assert "\n" not in caught.value.message
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize("typed", ["rtx", "a", "Apple", "jetson"])
def test_a_word_that_matches_many_devices_is_ambiguous(typed: str) -> None:
    with pytest.raises(NotFound, match="devices of the catalog") as raised:
        find(typed)
    assert (raised.value.hint or "").startswith("Name one: ")


@pytest.mark.parametrize("typed", ["rtx 40", "rtx 409", "7900x0", "306"])
def test_a_part_of_a_number_does_not_match(typed: str) -> None:
    with pytest.raises(NotFound, match="unknown device"):
        find(typed)


def test_a_variant_is_another_device() -> None:
    assert find("rtx 3060").name == "RTX 3060 12GB"
    with pytest.raises(NotFound, match="only as a variant") as raised:
        find("rtx 2070")
    assert "RTX 2070 SUPER" in str(raised.value)


def test_an_unknown_device_lists_the_nearest() -> None:
    with pytest.raises(NotFound) as caught:
        find("rtx 5009")
    assert "RTX 5090" in str(caught.value)


def test_a_local_card_has_its_actual_memory() -> None:
    info = DeviceInfo("cuda:0", "cuda", "NVIDIA GeForce RTX 4090", 23 * GIB, 20 * GIB, "bf16")
    target = of(info)
    assert (target.name, target.local, target.memory_bytes) == ("RTX 4090", "cuda:0", 23 * GIB)


def test_a_local_card_outside_the_catalog_is_a_guess_that_says_so() -> None:
    info = DeviceInfo("cuda:0", "cuda", "NVIDIA Something", 8 * GIB, 8 * GIB, "bf16")
    assert of(info).source == "a guess"


def test_no_name_is_this_machine() -> None:
    assert find(None).local is not None
