"""A real headless Chromium, driven over its debugging protocol, and a server that notes whoever connects to it."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import shutil
import socket
import subprocess
import tempfile
import threading
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import aiohttp

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless=new",
    "--no-sandbox",  # a test may run as root
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--no-first-run",
    "--remote-debugging-port=0",
    "--remote-allow-origins=*",
)
START_S = 30.0


def program() -> str | None:
    """The path of a Chromium, if one is installed."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Tab:
    """A tab of the browser. ``problems``: exceptions of scripts, and what the content security policy refused;
    ``requests``: the addresses of everything that was asked for.
    """

    def __init__(self, link: aiohttp.ClientWebSocketResponse) -> None:
        self._link, self._numbers = link, itertools.count(1)
        self.problems: list[str] = []
        self.requests: list[str] = []

    async def call(self, method: str, **params: Any) -> Any:
        """Call a method of the protocol, and note the events that come before its answer."""
        number = next(self._numbers)
        await self._link.send_json({"id": number, "method": method, "params": params})
        while True:
            answer = await self._link.receive_json()
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]
            if answer.get("method") == "Runtime.exceptionThrown":
                self.problems.append(str(answer["params"]["exceptionDetails"]))
            elif answer.get("method") == "Log.entryAdded":
                self.problems.append(str(answer["params"]["entry"]["text"]))
            elif answer.get("method") == "Network.requestWillBeSent":
                self.requests.append(answer["params"]["request"]["url"])

    async def value(self, expression: str) -> Any:
        """The value of an expression in the page."""
        found = await self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    async def middle(self, selector: str) -> tuple[float, float]:
        """The middle of an element, which is scrolled into view."""
        element = f"document.querySelector({json.dumps(selector)})"
        await self.value(f"{element}.scrollIntoView({{block: 'center', behavior: 'instant'}})")
        return await self.value(f"(r => [r.x + r.width / 2, r.y + r.height / 2])({element}.getBoundingClientRect())")

    async def mouse(self, kind: str, x: float, y: float, clicks: int = 1) -> None:
        """``kind``: Moved, Pressed or Released."""
        button = {} if kind == "Moved" else {"button": "left", "clickCount": clicks}
        await self.call("Input.dispatchMouseEvent", type=f"mouse{kind}", x=x, y=y, **button)

    async def click(self, selector: str, times: int = 1) -> None:
        x, y = await self.middle(selector)
        for count in range(1, times + 1):
            for kind in ("Pressed", "Released"):
                await self.mouse(kind, x, y, count)

    async def size(self, width: int, height: int) -> None:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        await self.call("Emulation.setDeviceMetricsOverride", **metrics)

    async def dark(self, dark: bool = True) -> None:
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.call("Emulation.setEmulatedMedia", features=[scheme])

    async def picture(self, path: Path) -> None:
        taken = await self.call("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(taken["data"]))


Steps = Callable[[Tab], Awaitable[None]]


async def _explore(url: str, steps: Steps, size: tuple[int, int], seconds: float, scripts: bool) -> None:
    found = program()
    assert found is not None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
        process = subprocess.Popen(
            [found, *FLAGS, f"--user-data-dir={home}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            await asyncio.wait_for(_drive(Path(home), url, steps, size, scripts), START_S + seconds)
        finally:
            process.kill()
            process.wait()


async def _drive(home: Path, url: str, steps: Steps, size: tuple[int, int], scripts: bool) -> None:
    port = home / "DevToolsActivePort"
    while not (port.exists() and "\n" in port.read_text()):
        await asyncio.sleep(0.05)
    async with aiohttp.ClientSession() as session:
        base = f"http://127.0.0.1:{port.read_text().splitlines()[0]}"
        async with session.get(f"{base}/json/list") as listed:
            tabs = await listed.json()
        tab = next(each for each in tabs if each["type"] == "page")
        async with session.ws_connect(tab["webSocketDebuggerUrl"], max_msg_size=0) as link:
            tab = Tab(link)
            await tab.size(*size)
            await tab.call("Emulation.setScrollbarsHidden", hidden=True)
            await tab.call("Emulation.setScriptExecutionDisabled", value=not scripts)
            for domain in ("Page", "Runtime", "Log", "Network"):
                await tab.call(f"{domain}.enable")
            await tab.call("Page.navigate", url=url)
            await steps(tab)


def explore(
    url: str, steps: Steps, size: tuple[int, int] = (1200, 2000), seconds: float = 60.0, scripts: bool = True
) -> None:
    """Show ``url`` in a tab and take ``steps`` in it, for at most some seconds."""
    asyncio.run(_explore(url, steps, size, seconds, scripts))


async def loaded(tab: Tab) -> None:
    """Wait until the page is complete."""
    while await tab.value("document.readyState + location.protocol") != "completefile:":
        await asyncio.sleep(0.02)


def visit(url: str, clicks: Sequence[str] = (), size: tuple[int, int] = (1200, 2000), seconds: float = 2.0) -> None:
    """Show ``url`` for some seconds, and click in the middle of these elements after half of them."""

    async def steps(tab: Tab) -> None:
        await asyncio.sleep(seconds / 2)
        for selector in clicks:
            await tab.click(selector)
        await asyncio.sleep(seconds / 2)

    explore(url, steps, size, seconds)


class Listener:
    """A port of the loopback. ``seen`` has the first line of each request; "" for a connection without one."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._listen, daemon=True)

    def __enter__(self) -> Listener:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join()

    def _listen(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(0.3)
                said = b""
                with suppress(OSError):
                    said = connection.recv(4096)
                self.seen.append(said.split(b"\r\n")[0].decode(errors="replace"))
                with suppress(OSError):
                    connection.sendall(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
