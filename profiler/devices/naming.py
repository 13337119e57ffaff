"""Which device of the catalog a name means, as people say it, and what the name left open.

    m4 max · macbook pro m4 max 64gb · nvidia geforce rtx 3090 · rtx 3090 24gb · rtx 4060 ti

Many chips are sold with several sizes of memory, or in several forms such as SXM and PCIe. If a name fits more than
one, a caution says which was taken and what else there is. A size in the name chooses the memory of a device that
shares it with the processor. A card must be in the catalog with that size, since its other figures differ too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from profiler.errors import NotFound
from profiler.registry import listed, unknown
from profiler.units import GIB, printable

if TYPE_CHECKING:
    from profiler.devices.target import CatalogDevice

# Words in a name that mean another chip. ``RTX 4060`` does not mean the RTX 4060 Ti.
OTHER_CHIP = frozenset({"ti", "super", "max", "pro", "ultra", "laptop", "xt", "xtx"})
MAKERS = {"nvidia": "NVIDIA", "geforce": "NVIDIA", "amd": "AMD", "radeon": "AMD", "intel": "Intel", "apple": "Apple"}
FILLERS = frozenset({"gpu", "graphics"})
SHARED = ("desktop-soc", "edge", "igpu")  # kinds that share the memory of their host
MAX_NAMED = 8  # devices that a message lists
_WORD = re.compile(r"[a-z0-9]+")
_PART = re.compile(r"[a-z]+|\d+")
_GENERATION = re.compile(r"sxm\d")  # NVML says SXM2, SXM4 and SXM5; the chip decides which one it is
_FORM = re.compile(r"\s*\(.*\)")  # how many cores, in a name
_SIZE = re.compile(r"(?<![\d.])(\d{1,4})\s*gi?b\b")
_BARE_SIZE = re.compile(r"(?<=\d)[^\d]*\s(\d{1,4})$")  # m4 max 128
_COMPUTER = re.compile(r"\b(macbook( pro| air)?|mac (mini|studio|pro)|imac)\b")  # "MacBook Pro M4" has no M4 Pro


def choose(
    text: str, known: Sequence[CatalogDevice], sizes: Mapping[str, Sequence[int]]
) -> tuple[CatalogDevice, tuple[str, ...]]:
    """The device that ``text`` means, and cautions about what it left open.

    ``sizes``: memory in GiB with which a chip is sold, by name without size and form, and with the form
    where that decides. Raises NotFound for a name that
    means none or too many, and for a size that was not sold.
    """
    said = text.casefold()
    asked = _SIZE.search(said)
    found = _named(said, known)
    if found:
        return _taken(text, found, {} if asked else sizes, known)
    asked = asked or _BARE_SIZE.search(said.rstrip())
    if asked and (found := _named(f"{said[: asked.start(1)]} {said[asked.end() :]}", known)):
        return _sized(text, found, int(asked[1]), sizes)
    if found := _named(said, known, in_titles=True):
        return _taken(text, found, {} if asked else sizes, known)
    raise _missing(text, known)


def _named(said: str, known: Sequence[CatalogDevice], *, in_titles: bool = False) -> list[CatalogDevice]:
    """The devices that a name may mean, with and without the words for the computer and the maker."""
    for spelled in dict.fromkeys((said, _COMPUTER.sub(" ", said))):
        words = _words(spelled)
        makers = {MAKERS[word] for word in words if word in MAKERS}
        of_maker = [device for device in known if makers <= {device.vendor}]
        bare = _bare(words)
        alone = re.fullmatch(r"\d{,2}", "".join(bare))  # geforce 1
        if found := _matches(words, of_maker, in_titles) or ([] if alone else _matches(bare, of_maker, in_titles)):
            return found
    return []


def _taken(
    text: str,
    found: Sequence[CatalogDevice],
    sizes: Mapping[str, Sequence[int]],
    known: Sequence[CatalogDevice],
) -> tuple[CatalogDevice, tuple[str, ...]]:
    """One of the devices that a name may mean; the one with the shortest name."""
    if len(found) > 1 and not any(map(str.isdigit, text)):
        rest = f" and {len(found) - MAX_NAMED} more" if len(found) > MAX_NAMED else ""
        some = ", ".join(device.name for device in found[:MAX_NAMED])
        raise NotFound(f"{printable(text)} matches {len(found)} devices of the catalog", f"Name one: {some}{rest}.")
    device = min(found, key=lambda each: len(_FORM.sub("", each.name)))  # the first in the catalog among equals
    name = printable(text.strip())
    cautions = []
    others = [each.name for each in found if each is not device][:MAX_NAMED]
    if others:
        cautions.append(_also(name, device, others))
    if device.memory_bytes is not None:
        taken = round(device.memory_bytes / GIB)
        more = [size for size in _chip_sold(device, sizes) if size != taken and not _has(device, size, known)]
        also = listed([str(size) for size in more])
        if more and device.kind in SHARED:
            other = f'--on "{name} {more[-1]}gb"'
            cautions.append(f"{name}: taken with {taken} GB, also sold with {also} GB; say {other} for another")
        elif more:
            cautions.append(f"{name}: taken with {taken} GB; the form with {also} GB is not in the catalog")
    return device, tuple(cautions)


def _also(name: str, device: CatalogDevice, others: Sequence[str]) -> str:
    return f'{name}: taken as {device.name}; the catalog also has {listed(others)}: --on "{others[0]}"'


def _sized(
    text: str, found: Sequence[CatalogDevice], size: int, sizes: Mapping[str, Sequence[int]]
) -> tuple[CatalogDevice, tuple[str, ...]]:
    """A device with the memory that its name has after it; of several forms, the one that is sold with it."""

    def gib(device: CatalogDevice) -> int | None:
        return None if device.memory_bytes is None else round(device.memory_bytes / GIB)

    def rank(device: CatalogDevice) -> bool:
        return size not in sizes[device.name] if device.name in sizes else size != gib(device)

    found = sorted(found, key=lambda each: (rank(each), len(each.name)))
    device = found[0]
    has = gib(device)
    sold = sorted({*_chip_sold(device, sizes), *([has] if has else [])})
    free = device.kind in SHARED and not _SIZE.search(device.name.casefold())
    if size != has and not (free and (size in sold or (len(sold) < 2 and size < (has or size + 1)))):
        listing = listed([str(each) for each in (sold if free else [has])])
        raise NotFound(
            f"{printable(text)}: the catalog has {device.name} with {listing} GB, not with {size} GB",
            f"Leave the size out, or describe it by its data sheet: --on vram={size},bandwidth=GB/S,bf16=TFLOPS",
        )
    name = printable(text.strip())
    others = [each.name for each in found[1:] if rank(each) == rank(device) and each.flops != device.flops]
    cautions: tuple[str, ...] = (_also(name, device, others),) if others else ()
    own = sizes.get(device.name)
    if own and size not in own:
        cautions = (f"{name}: the catalog lacks the form with {size} GB; taken with the speed of {device.name}",)
    if size != has:
        device = replace(device, name=f"{device.name} {size}GB", memory_bytes=size * GIB)
    return device, cautions


def _chip_sold(device: CatalogDevice, sizes: Mapping[str, Sequence[int]]) -> Sequence[int]:
    """Sizes of memory that the chip is sold with in any form; empty: unknown."""
    return sizes.get(re.sub(r"\s+(\d+GB|\(.*\))", "", device.name), ())


def _has(device: CatalogDevice, size: int, known: Sequence[CatalogDevice]) -> bool:
    """Whether another entry of the catalog is this chip with that size."""
    chip = re.sub(r"\s+\d+GB", "", device.name)
    return any(f"{chip} {size}GB" == each.name for each in known)


def _matches(words: Sequence[str], known: Sequence[CatalogDevice], in_titles: bool) -> list[CatalogDevice]:
    """The devices that NVML calls so, that are named so, or whose names hold all the words; or those in NVML."""
    said = "".join(words)
    if not said:
        return []
    titles = {device.name: [_words(title) for title in device.titles] for device in known}
    bare = _bare(words)
    titled = [
        device
        for device in known
        if any(title == words or (bare != words and bare == _bare(title)) for title in titles[device.name])
    ]
    exact = [device for device in known if _without_series(words) == _without_series(_words(device.name))]
    if titled or exact:
        return titled or exact
    holding = [
        device
        for device in known
        if any(_consists_of(said, name) for name in (titles[device.name] if in_titles else [_words(device.name)]))
    ]
    plain = [device for device in holding if not OTHER_CHIP & _unsaid(device, said)]
    if holding and not plain:
        variants = ", ".join(device.name for device in holding)
        raise NotFound(f"the catalog has {printable(' '.join(words))} only as a variant", f"Name one: {variants}.")
    return plain


def _consists_of(said: str, words: Sequence[str]) -> bool:
    """Whether ``said`` is some of the words in any order, however it is spaced: rtx4090, a100 sxm 80gb.

    Only whole words count: an L40 is no L40S, a GB200 no GH200 96GB, and an M2 with 16 GB no P100 SXM2 16GB.
    """
    return not said or any(
        _consists_of(said[len(word) :], [*words[:index], *words[index + 1 :]])
        for index, word in enumerate(words)
        if said.startswith(word)
    )


def _unsaid(device: CatalogDevice, said: str) -> set[str]:
    """The parts of a device's name that ``said`` leaves out and that may tell its chip from another.

    What comes before a number with a letter does not: there is no W7900 but the Radeon PRO W7900.
    """
    words = _words(device.name.partition("(")[0])
    of_chip = [at for at, word in enumerate(words) if re.fullmatch(r"[a-z]\d{2,}", word) and word in said]
    return {
        part for word in words[of_chip[0] if of_chip else 0 :] if word not in said for part in _PART.findall(word)
    }


def _without_series(words: Sequence[str]) -> str:
    """The name as one word. People leave the series out: a 4090 is an RTX 4090."""
    return re.sub("^(rtx|gtx|rx)", "", "".join(words))


def _bare(words: Sequence[str]) -> list[str]:
    """The words without the maker."""
    return [word for word in words if word not in MAKERS and word not in FILLERS]


def _words(name: str) -> list[str]:
    return _WORD.findall(_GENERATION.sub("sxm", name.casefold()))


def _missing(text: str, known: Sequence[CatalogDevice]) -> NotFound:
    """The error for a name that means none. Names that share its number are near, otherwise those spelled alike."""
    words = _words(_SIZE.sub(" ", text.casefold()))
    chips = {word for word in words if any(map(str.isdigit, word)) and any(map(str.isalpha, word))}
    numbers = {part for word in words for part in _PART.findall(word) if part.isdigit() and len(part) > 2}
    near = [device.name for device in known if chips & set(_words(device.name))][:MAX_NAMED]
    near = (
        near or [device.name for device in known if numbers & set(_PART.findall(device.name.casefold()))][:MAX_NAMED]
    )
    if near:
        hint = f"The catalog has {listed(near)}, whose figures differ. "
    else:
        names = {device.name.casefold(): device.name for device in known}
        hint = f"{(unknown('device', text.casefold(), names).hint or '').split('Known:')[0].strip()} "
        for lower in sorted(names, key=len, reverse=True):
            hint = hint.replace(lower, names[lower])
    every = "profile devices --catalog lists all; or describe it: --on vram=24,bandwidth=1008,bf16=165"
    return NotFound(f"unknown device: {printable(text)}", f"{hint}{every}".strip())
