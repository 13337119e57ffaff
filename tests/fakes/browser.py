"""A real headless Chromium, driven over its debugging protocol, and a server that notes whoever connects to it."""

from __future__ import annotations

import asyncio
import base64
import itertools
import shutil
import socket
import subprocess
import tempfile
import threading
from collections.abc import Sequence
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


async def _visit(
    url: str, clicks: Sequence[str], size: tuple[int, int], seconds: float, picture: Path | None
) -> None:
    found = program()
    assert found is not None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
        process = subprocess.Popen(
            [found, *FLAGS, f"--user-data-dir={home}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            await asyncio.wait_for(_drive(Path(home), url, clicks, size, seconds, picture), START_S + seconds)
        finally:
            process.kill()
            process.wait()


async def _drive(
    home: Path, url: str, clicks: Sequence[str], size: tuple[int, int], seconds: float, picture: Path | None
) -> None:
    port = home / "DevToolsActivePort"
    while not (port.exists() and "\n" in port.read_text()):
        await asyncio.sleep(0.05)
    async with aiohttp.ClientSession() as session:
        base = f"http://127.0.0.1:{port.read_text().splitlines()[0]}"
        async with session.get(f"{base}/json/list") as listed:
            tabs = await listed.json()
        tab = next(each for each in tabs if each["type"] == "page")
        async with session.ws_connect(tab["webSocketDebuggerUrl"], max_msg_size=0) as link:
            numbers = itertools.count(1)

            async def call(method: str, **params: Any) -> Any:
                number = next(numbers)
                await link.send_json({"id": number, "method": method, "params": params})
                while True:
                    answer = await link.receive_json()
                    if answer.get("id") == number:
                        assert "error" not in answer, answer
                        return answer["result"]

            metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": False}
            await call("Emulation.setDeviceMetricsOverride", **metrics)
            await call("Emulation.setScrollbarsHidden", hidden=True)
            await call("Page.navigate", url=url)
            await asyncio.sleep(seconds / 2)
            for selector in clicks:
                where = (
                    f"(r => [r.x + r.width / 2, r.y + r.height / 2])({_element(selector)}.getBoundingClientRect())"
                )
                found = await call("Runtime.evaluate", expression=where, returnByValue=True)
                x, y = found["result"]["value"]
                for kind in ("mousePressed", "mouseReleased"):
                    await call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)
            await asyncio.sleep(seconds / 2)
            if picture is not None:
                taken = await call("Page.captureScreenshot", format="png")
                picture.write_bytes(base64.b64decode(taken["data"]))


def _element(selector: str) -> str:
    return f"document.querySelector({selector!r})"


def visit(
    url: str,
    clicks: Sequence[str] = (),
    size: tuple[int, int] = (1200, 2000),
    seconds: float = 2.0,
    picture: Path | None = None,
) -> None:
    """Show ``url`` for some seconds, and click in the middle of these elements after half of them."""
    asyncio.run(_visit(url, clicks, size, seconds, picture))


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
