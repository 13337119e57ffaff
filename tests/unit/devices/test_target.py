"""What people type after --on."""

from __future__ import annotations

from dataclasses import replace

import pytest

from profiler.devices import naming
from profiler.devices.base import DeviceInfo
from profiler.devices.target import data_sheets, find, memory_sizes, of
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
        ("h100 sxm5 80gb", "H100 SXM"),
        ("a100-sxm4-80gb", "A100 80GB SXM"),
        ("4060 ti 16", "RTX 4060 Ti 16GB"),
        ("rtx 6000 pro", "RTX PRO 6000 Blackwell"),
        ("rtx pro 6000 server", "RTX PRO 6000 Blackwell"),
        ("w7900", "Radeon PRO W7900"),
        ("r9700", "Radeon AI PRO R9700"),
        ("rtx 3060 laptop gpu", "RTX 3060 Laptop"),
    ],
)
def test_a_name_is_matched_by_its_words(typed: str, name: str) -> None:
    assert find(typed).name == name


@pytest.mark.parametrize(
    ("typed", "name", "gib"),
    [
        ("macbook m4 pro", "Apple M4 Pro (20c)", 64),
        ("MacBook Pro M4", "Apple M4 (10c)", 32),  # the Pro is the computer
        ("nvidia geforce rtx 3090", "RTX 3090", 24),
        ("rtx 3090 24gb", "RTX 3090", 24),
        ("m4 pro 24gb", "Apple M4 Pro (20c) 24GB", 24),
        ("mac studio m2 ultra 64 GB", "Apple M2 Ultra (76c) 64GB", 64),
        ("m4 max 128gb", "Apple M4 Max (40c)", 128),
        ("m4 max 36gb", "Apple M4 Max (32c) 36GB", 36),
        ("rx 7900 xtx", "RX 7900 XTX", 24),
        ("amd rx 7900 xtx", "RX 7900 XTX", 24),
        ("780m 32gb", "Radeon 780M (Ryzen 7 8745H) 32GB", 32),
        ("m2 16gb", "Apple M2 (10c) 16GB", 16),  # not the P100 SXM2 16GB
        ("m4 max 128", "Apple M4 Max (40c)", 128),
    ],
)
def test_names_as_people_say_them(typed: str, name: str, gib: int) -> None:
    target = find(typed)
    assert (target.name, target.memory_bytes) == (name, gib * GIB)
    assert "GB, also" not in " ".join(target.limits) or "gb" not in typed.casefold()


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("m4 max", 'taken with 128 GB, also sold with 36, 48 and 64 GB; say --on "m4 max 64gb"'),
        ("a100", "taken as A100 80GB SXM; the catalog also has A100 40GB PCIe, A100 80GB PCIe and A100 40GB SXM"),
        ("m4 max", "taken as Apple M4 Max (40c); the catalog also has Apple M4 Max (32c)"),
        ("a100 40gb", "taken as A100 40GB SXM; the catalog also has A100 40GB PCIe"),
        ("h100", "taken as H100 SXM; the catalog also has H100 PCIe"),
        ("v100", "taken with 32 GB; the form with 16 GB is not in the catalog"),
        ("2x m4 max", "taken with 128 GB"),
        ("h100 80gb", "taken as H100 SXM; the catalog also has H100 PCIe"),
        ("m4 pro 48gb", "taken as Apple M4 Pro (20c); the catalog also has Apple M4 Pro (16c)"),
    ],
)
def test_what_a_name_left_open_is_said(typed: str, words: str) -> None:
    assert words in " ".join(find(typed).limits)
    assert (
        not find("rtx 4090").limits
        and not find("4090").limits
        and not find("a100 40gb pcie").limits
        and not find("m4 max 64gb").limits
    )


def test_a_form_of_a_card_beside_the_one_in_the_catalog_is_said() -> None:
    (card,) = [each for each in data_sheets() if each.name == "RTX 4060 Ti 16GB"]
    device, cautions = naming.choose("rtx 4060 ti", [card], memory_sizes())
    assert device == card and "the form with 8 GB is not in the catalog" in cautions[0]
    small = replace(card, name="RTX 4060 Ti 8GB", memory_bytes=8 * GIB)
    _, (caution,) = naming.choose("rtx 4060 ti", [card, small], memory_sizes())
    assert caution.endswith('the catalog also has RTX 4060 Ti 16GB: --on "RTX 4060 Ti 16GB"')


def test_the_form_that_is_sold_with_the_size_is_taken() -> None:
    (fast,) = [each for each in data_sheets() if each.name == "Apple M4 Max (40c)"]
    slow = replace(fast, name="Apple M4 Max (32c)", bandwidth_bytes_s=410e9)
    for size, name in ((36, "Apple M4 Max (32c) 36GB"), (64, "Apple M4 Max (40c) 64GB")):
        device, cautions = naming.choose(f"m4 max {size}gb", [fast, slow], memory_sizes())
        assert (device.name, device.memory_bytes, cautions) == (name, size * GIB, ())


@pytest.mark.parametrize("typed", ["rtx 3060 8gb", "v100 16gb", "m4 max 65gb", "nvidia m4 max", "jetson orin 32gb"])
def test_what_the_catalog_does_not_have_is_refused(typed: str) -> None:
    with pytest.raises(NotFound):
        find(typed)


@pytest.mark.parametrize(
    ("typed", "near"),
    [("gb200", "B200 SXM and GH200 96GB"), ("a2", ""), ("a16", ""), ("l4s", "L40S"), ("h100 cnx", "H100 PCIe")],
)  # fmt: skip
def test_a_chip_that_the_catalog_lacks_is_never_taken_for_another(typed: str, near: str) -> None:
    with pytest.raises(NotFound, match="unknown device") as raised:
        find(typed)
    assert near in (raised.value.hint or "")


def test_a_gpu_without_bf16_is_known_by_its_generation() -> None:
    """Not by a data sheet that leaves the figure out, as those of Jetsons do."""
    assert {find(name).default_dtype for name in ("t4", "v100", "p40", "rtx 2080")} == {"fp16"}
    for name in ("jetson orin", "thor", "rtx 3060", "mi50", "m1"):
        assert (find(name).default_dtype, find(name).unsupported_dtypes) == ("bf16", ())


def test_memory_that_ecc_takes_is_not_usable() -> None:
    """As nvidia-smi reports it; the catalog lists what is sold."""
    assert [find(name).memory_bytes // 2**20 for name in ("t4", "l4", "a10g", "l40s")] == [15360, 23034, 23028, 46068]
    assert find("a100 40gb").memory_bytes == 40 * GIB


def test_a_laptops_chip_is_not_the_desktops() -> None:
    assert find("4070 laptop").name == "RTX 4070 Laptop"
    with pytest.raises(NotFound, match=r"The catalog has RTX 2060 SUPER and RTX 2060, whose figures differ"):
        find("2060 laptop")


@pytest.mark.parametrize(
    "typed", ['2x"rtx 3090"', "2x rtx 3090", "2×3090", "2X3090", "2*3090", "rtx 3090 x2", "3090x2"]
)
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


@pytest.mark.parametrize("typed", ["rtx", "arc", "Apple", "jetson"])
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
        find("rtx 3050 ti")
    assert "RTX 3050 Ti Laptop" in str(raised.value)


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
