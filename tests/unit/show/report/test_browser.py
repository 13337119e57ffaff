"""The page in a real Chromium: it sorts, filters, hovers and zooms without network, and fits every screen."""

from __future__ import annotations

import asyncio

import pytest
from fakes import browser
from fakes.browser import Tab
from fakes.reported import ended, measured, scored

from profiler.results.measurement import Measurement
from profiler.show.writers import html

HOSTILE = """</script><img src=x onerror="document.title='run'">"""
SIZES = (390, 1280, 1920)
TABLE = "#speed table:not(.map)"
CELLS = "[...document.querySelectorAll('{} tbody tr:not([hidden])')].map(row => row.cells[{}].textContent)"
PLACES = "[...document.querySelectorAll('#speed svg .mark')].map(mark => mark.getAttribute('transform')).join()"

pytestmark = pytest.mark.skipif(browser.program() is None, reason="no Chromium is installed")


def rows(name: str = "b") -> list[Measurement]:
    at = {"ceiling_s": {"prefill": 1.0, "step": 0.005}, "decode_bound": "bandwidth"}
    lost = {"bf16": 0.001, "nf4": 0.2}
    return [
        scored(
            measured(model=model, quant=quant, context=context, decode=(rate, rate * 1.01, rate * 0.99), expected=at),
            lost[quant],
            reference=model,
        )
        for model, fast in (("a", 1), (name, 3))
        for quant, slow in (("bf16", 1), ("nf4", 2))
        for context in (512, 1024, 4096)
        for rate in [100.0 * fast / slow / (1 + context / 4096)]
    ] + [ended("oom", "3 GiB of 2 GiB", model="a", context=8192)]


async def sorts(tab: Tab) -> None:
    before = await tab.value(CELLS.format(TABLE, 5))
    assert len(before) == 12
    await tab.click(f"{TABLE} th:nth-child(6) button")
    largest = await tab.value(CELLS.format(TABLE, 5))
    assert largest == sorted(before, key=lambda text: -float(text.split()[0].replace(",", "")))
    await tab.click(f"{TABLE} th:nth-child(6) button")
    assert await tab.value(CELLS.format(TABLE, 5)) == largest[::-1]
    await tab.click(f"{TABLE} th:nth-child(1) button")
    assert await tab.value(CELLS.format(TABLE, 0)) == ["a"] * 6 + ["b"] * 6
    assert await tab.value(f"document.querySelectorAll('{TABLE} [aria-sort]').length") == 1


async def filters(tab: Tab) -> None:
    shown = "document.querySelectorAll('{}:not([hidden])').length"
    assert await tab.value("document.querySelectorAll('#filter button').length") == 4
    marks, maps = await tab.value(shown.format("#speed .mark")), await tab.value(shown.format(".map tbody tr"))
    await tab.click("#filter div:nth-child(2) button:nth-of-type(2)")  # nf4 alone
    assert set(await tab.value(CELLS.format(TABLE, 1))) == {"nf4"}
    assert await tab.value(shown.format("#speed .mark")) == marks / 2
    assert await tab.value(shown.format(".map tbody tr")) == maps / 2
    await tab.click("#filter div:nth-child(1) button:nth-of-type(1)")  # and of those a alone
    assert await tab.value(CELLS.format(TABLE, 0)) == ["a"] * 3
    assert await tab.value(shown.format("figure[data-model=b]")) == 0
    for group in (1, 2):  # the last one that is shown cannot be taken away: all are back
        await tab.click(f"#filter div:nth-child({group}) button[aria-pressed=true]")
    assert await tab.value(shown.format("#speed .mark")) == marks
    assert len(await tab.value(CELLS.format(TABLE, 0))) == 12


async def hovers(tab: Tab) -> None:
    assert await tab.value("document.querySelector('#tip').hidden")
    x, y = await tab.middle("#speed svg .mark")
    await tab.mouse("Moved", x + 9, y + 5)  # near is enough
    assert "bf16, context 512: " in await tab.value("document.querySelector('#tip').textContent")
    assert await tab.value("!document.querySelector('#tip').hidden && document.querySelectorAll('.lit').length") == 1
    await tab.mouse("Moved", 2, 2)
    assert await tab.value("document.querySelector('#tip').hidden")


async def zooms(tab: Tab) -> None:
    x, y = await tab.middle("#speed svg .plot")
    whole = await tab.value(PLACES)
    labels = "[...document.querySelector('#speed svg .up').querySelectorAll('text')].map(each => each.textContent)"
    round_figures = await tab.value(labels)
    for kind, at in (("Pressed", (x - 50, y - 40)), ("Moved", (x, y)), ("Released", (x + 60, y + 30))):
        await tab.mouse(kind, *at)
    assert await tab.value(PLACES) != whole
    assert await tab.value("document.querySelector('#speed svg .plot').getAttribute('overflow')") == "hidden"
    closer = await tab.value(labels)
    assert len(closer) >= 2 and closer != round_figures
    await tab.click("#speed svg .plot", times=2)
    assert await tab.value(PLACES) == whole and await tab.value(labels) == round_figures
    for number in (1, 2, 3):  # in, out, all
        await tab.click(f"#speed .tools button:nth-child({number})")
        assert (await tab.value(PLACES) == whole) is (number > 1)


async def labels_belong_to_their_marks(tab: Tab) -> None:
    place = "document.querySelector('#quality svg .mark').getAttribute('transform')"
    whole = await tab.value(place)
    x, y = await tab.middle("#quality svg .mark text")
    await tab.mouse("Moved", x, y)
    assert "nats, peak " in await tab.value("document.querySelector('#tip').textContent")
    await tab.click("#quality .tools button:nth-child(1)")
    assert await tab.value(place) != whole
    await tab.click("#quality .tools button:nth-child(3)")
    assert await tab.value(place) == whole
    joins = "document.querySelectorAll('#frontier svg [data-joins]:not([hidden])').length"
    assert await tab.value(joins) > 0
    await tab.click("#filter div:nth-child(2) button:nth-of-type(2)")  # nf4 alone
    assert await tab.value(joins) == 0
    shown = "[...document.querySelectorAll('#quality svg .mark:not([hidden]) text')].map(each => each.textContent)"
    assert set(await tab.value(shown)) == {"nf4"}


async def fits(tab: Tab) -> None:
    for width in SIZES:
        await tab.size(width, 900)
        assert await tab.value("document.documentElement.scrollWidth") <= width
        right = (
            "Math.max(...[...document.querySelectorAll('.map td')].map(each => each.getBoundingClientRect().right))"
        )
        assert await tab.value(right) <= width, f"the map is cut off at {width}"
        used = await tab.value("document.querySelector('main').getBoundingClientRect().width")
        assert used >= 0.9 * width
    first = "[...document.querySelectorAll('.lead, .bars, .map')].map(each => each.getBoundingClientRect().top)"
    await tab.size(1280, 800)
    assert max(await tab.value(first)) < 800  # verdict, picture and map begin on the first screen


async def shows_everything_without_scripts(tab: Tab) -> None:
    assert await tab.value("document.querySelector('#filter')") is None
    assert len(await tab.value(CELLS.format(TABLE, 0))) == 12
    assert await tab.value("document.querySelectorAll('.mark > title').length") > 20


async def takes_hostile_names_for_text(tab: Tab) -> None:
    assert await tab.value("document.querySelector('#filter button:nth-of-type(2)').textContent") == HOSTILE
    await tab.click("#filter button:nth-of-type(2)")
    x, y = await tab.middle("#speed figure:not([hidden]) svg .mark")
    await tab.mouse("Moved", x, y)
    assert await tab.value("!document.querySelector('#tip').hidden")
    assert (await tab.value("document.title")).startswith("Hardware fit")
    assert await tab.value("document.querySelectorAll('img').length") == 0


CLAIMS = (
    sorts,
    filters,
    hovers,
    zooms,
    labels_belong_to_their_marks,
    fits,
    shows_everything_without_scripts,
    takes_hostile_names_for_text,
)


@pytest.fixture(scope="module")
def failures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, AssertionError]:
    """What failed of each claim. One browser tries all of them, because starting it takes longest."""
    folder = tmp_path_factory.mktemp("pages")
    pages = {"usual": rows(), "hostile": rows(HOSTILE)}
    for name, found in pages.items():
        (folder / f"{name}.html").write_text(html.render(None, found), encoding="utf-8")
    failed = {}

    async def steps(tab: Tab) -> None:
        for claim in CLAIMS:
            page = (folder / f"{'hostile' if claim is takes_hostile_names_for_text else 'usual'}.html").as_uri()
            disabled = claim is shows_everything_without_scripts
            await tab.size(1280, 900)
            await tab.call("Emulation.setScriptExecutionDisabled", value=disabled)
            await tab.call("Page.navigate", url=page)
            await asyncio.sleep(0.1)
            await browser.loaded(tab)
            try:
                await claim(tab)
                assert tab.problems == []
                assert {each for each in tab.requests if each not in ("about:blank", "data:,")} <= {page}
            except AssertionError as error:
                failed[claim.__name__] = error
            tab.problems.clear()
            tab.requests.clear()

    browser.explore("about:blank", steps, (1280, 900))
    return failed


@pytest.mark.parametrize("claim", [claim.__name__ for claim in CLAIMS])
def test_the_page_in_a_browser(claim: str, failures: dict[str, AssertionError]) -> None:
    if claim in failures:
        raise failures[claim]
