"""A real browser: headless Chromium, driven through its own debugging protocol, on loopback only."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import functools
import http.server
import json
import re
import shutil
import subprocess
import threading
from pathlib import Path

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--remote-debugging-port=0"),
]
KEYS = {"Enter": 13, "Tab": 9, " ": 32, "ArrowRight": 39}


class Browser:
    """One page of Chromium, by the DevTools protocol.

    Attributes:
        complaints: what the page's console has said of errors, and of addresses that its policy forbids.
        requests: every address that was asked for, by the page and its workers.
    """

    def __init__(self, connection):
        self.complaints = []
        self.requests = []
        self._connection = connection
        self._number = 0

    async def call(self, method, **parameters):
        self._number += 1
        await self._connection.send_json({"id": self._number, "method": method, "params": parameters})
        while True:
            message = await self._connection.receive_json(timeout=60)
            if message.get("id") == self._number:
                assert "error" not in message, message
                return message["result"]
            self._hear(message)

    def _hear(self, message):
        said = message.get("params", {})
        if message.get("method") == "Log.entryAdded" and said["entry"]["level"] == "error":
            self.complaints.append(said["entry"]["text"])
        if message.get("method") == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(said["exceptionDetails"]))
        if message.get("method") == "Network.requestWillBeSent":
            self.requests.append(said["request"]["url"])

    async def open(self, address):
        for domain in ("Log", "Runtime", "Network", "Page", "DOM"):
            await self.call(f"{domain}.enable")
        await self.call("Page.navigate", url=address)

    async def value(self, script):
        done = await self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    async def text(self, selector):
        return await self.value(f"(document.querySelector({json.dumps(selector)})?.innerText ?? '')")

    async def until(self, script):
        for _ in range(600):
            if await self.value(script):
                return
            await asyncio.sleep(0.1)
        pytest.fail(f"never true: {script}; the page shows: {await self.text('body')}; {self.complaints}")

    async def until_status(self, start):
        await self.until(f"document.querySelector('#status')?.innerText.startsWith({json.dumps(start)})")

    async def choose(self, *paths):
        root = (await self.call("DOM.getDocument"))["root"]["nodeId"]
        node = (await self.call("DOM.querySelector", nodeId=root, selector="#files"))["nodeId"]
        await self.call("DOM.setFileInputFiles", nodeId=node, files=[str(path) for path in paths])

    async def press(self, key):
        text = {"Enter": "\r"}.get(key, key if len(key) == 1 else "")
        described = {"key": key, "windowsVirtualKeyCode": KEYS.get(key, ord(key[0].upper())), "code": key}
        await self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **described)
        await self.call("Input.dispatchKeyEvent", type="keyUp", **described)

    async def look(self, *, width=1200, height=900, dark=False):
        """Show the page on a screen of this size, in this colour scheme."""
        phone = width < 600
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": phone}
        await self.call("Emulation.setDeviceMetricsOverride", **size)
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        await self.call("Emulation.setEmulatedMedia", features=scheme)

    async def picture(self, path, *, whole=True):
        shot = await self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        Path(path).write_bytes(base64.b64decode(shot["data"]))


@contextlib.contextmanager
def chromium(profile):
    """Start Chromium and yield a function that runs a coroutine function with it on an address."""
    aiohttp = pytest.importorskip("aiohttp", reason="needs aiohttp, which comes with tritonclient[http]")
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    port = None
    for line in process.stderr:
        if found := re.search(r"ws://127\.0\.0\.1:(\d+)/", line):
            port = found[1]
            break

    async def drive(address, visit):
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://127.0.0.1:{port}/json") as reply:
                target = next(each for each in json.loads(await reply.text()) if each["type"] == "page")
            async with session.ws_connect(target["webSocketDebuggerUrl"], max_msg_size=0) as connection:
                browser = Browser(connection)
                await browser.open(address)
                await visit(browser)

    try:
        assert port, "Chromium did not start"
        yield lambda address, visit: asyncio.run(drive(address, visit))
    finally:
        process.kill()
        process.communicate()


@contextlib.contextmanager
def file_server(folder):
    """Serve a folder as ``python -m http.server`` does, and yield its address."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def browse(tmp_path):
    """Return a function that runs a coroutine function with a browser on an address."""
    if CHROMIUM is None:
        pytest.skip("needs Chromium")
    with chromium(tmp_path / "profile") as drive:
        yield drive


@pytest.fixture
def serve_folder():
    """Return :func:`file_server`."""
    return file_server
