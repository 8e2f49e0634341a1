"""A headless Chromium, driven over its DevTools protocol: to test the page and to picture it."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import os
import shutil
import signal
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

_START_S = 60.0  # on a busy machine
_ANSWER_S = 30.0
_LARGEST = 64 << 20  # bytes of a message: a screenshot is one
_FLAGS = (
    "--headless=new",
    "--no-sandbox",  # it has none where it runs as root, in a container
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--no-first-run",
    "--no-default-browser-check",
    "--disable-background-networking",
    "--disable-component-update",
    "--remote-debugging-port=0",
)


def chromium() -> str | None:
    """The browser's program; None where there is none."""
    return shutil.which("chromium") or shutil.which("chromium-browser")


class Tab:
    """One tab. `complaints` holds every uncaught error and everything written to the console."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self.complaints: list[str] = []

    async def open(self, url: str) -> None:
        """Goes to `url`; `until` tells when what is wanted is there."""
        for domain in ("Page", "Runtime", "Log"):
            await self._ask(f"{domain}.enable")
        await self._ask("Page.navigate", url=url)

    async def shape(self, *, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """Sets the window's size in CSS pixels, and the theme that the user prefers."""
        await self._ask(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        theme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self._ask("Emulation.setEmulatedMedia", features=[theme])

    async def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression. Raises RuntimeError if it throws."""
        answer = await self._ask("Runtime.evaluate", expression=expression, returnByValue=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{expression}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    async def until(self, expression: str, patience_s: float = _ANSWER_S) -> None:
        """Waits until a JavaScript expression holds. Raises TimeoutError with the page's text."""
        deadline = asyncio.get_running_loop().time() + patience_s
        # Before the page is there its elements are null, which is no more than "not yet".
        holds = f"(() => {{ try {{ return Boolean({expression}) }} catch {{ return false }} }})()"
        while not await self.evaluate(holds):
            if asyncio.get_running_loop().time() > deadline:
                text = await self.evaluate("document.body?.innerText")
                raise TimeoutError(
                    f"never: {expression}; {self.complaints}; the page says:\n{text}"
                )
            await asyncio.sleep(0.05)

    async def picture(self, *, whole: bool = True) -> bytes:
        """A PNG of the whole page, or of what the window shows of it."""
        answer = await self._ask("Page.captureScreenshot", captureBeyondViewport=whole)
        return base64.b64decode(answer["data"])

    async def _ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        self._waiting[number] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        answer = await asyncio.wait_for(self._waiting[number], _ANSWER_S)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return dict(answer["result"])

    async def listen(self) -> None:
        """Takes the browser's messages until it is cancelled or the browser is gone."""
        async for message in self._socket:
            said = message.json()
            if "id" in said:
                self._waiting.pop(said["id"]).set_result(said)
            else:
                self._note(said["method"], said["params"])

    def _note(self, event: str, facts: dict[str, Any]) -> None:
        if event == "Runtime.exceptionThrown":
            self.complaints.append(str(facts["exceptionDetails"]))
        elif event == "Runtime.consoleAPICalled":
            self.complaints.append(str(facts["args"]))
        elif event == "Log.entryAdded":
            self.complaints.append(str(facts["entry"]))


@asynccontextmanager
async def tab() -> AsyncIterator[Tab]:
    """A new browser's only tab; the browser ends with the block."""
    async with _browser() as port, aiohttp.ClientSession() as http:
        async with http.get(f"http://127.0.0.1:{port}/json/list") as answer:
            pages = [page for page in await answer.json() if page["type"] == "page"]
        url = pages[0]["webSocketDebuggerUrl"]
        async with http.ws_connect(url, max_msg_size=_LARGEST) as socket:
            opened = Tab(socket)
            listening = asyncio.create_task(opened.listen())
            try:
                yield opened
            finally:
                listening.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await listening


@asynccontextmanager
async def _browser() -> AsyncIterator[int]:
    """A Chromium with a profile of its own; yields the port of its DevTools."""
    program = chromium()
    if program is None:
        raise FileNotFoundError("there is no chromium on PATH")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = await asyncio.create_subprocess_exec(
            program,
            *_FLAGS,
            f"--user-data-dir={profile}",
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            yield await asyncio.to_thread(_port, Path(profile) / "DevToolsActivePort")
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()


def _port(file: Path) -> int:
    deadline = time.monotonic() + _START_S
    while not (file.exists() and file.read_text().count("\n")):
        if time.monotonic() > deadline:
            raise TimeoutError(f"Chromium has not begun within {_START_S:.0f} s")
        time.sleep(0.05)
    return int(file.read_text().splitlines()[0])
