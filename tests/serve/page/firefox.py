"""A second browser: headless Firefox, driven by WebDriver BiDi, on loopback only and without any other network."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import re
import shutil
import subprocess
from pathlib import Path

from tests.serve.page.conftest import Browser

FIREFOX = shutil.which("firefox-esr") or shutil.which("firefox")
# Every connection, of the page and of Firefox itself, goes to a proxy that does not exist.
SETTINGS = {
    "network.proxy.type": 1,
    "network.proxy.no_proxies_on": "",
    **{f"network.proxy.{kind}": "127.0.0.1" for kind in ("http", "ssl", "socks")},
    **{f"network.proxy.{kind}_port": 9 for kind in ("http", "ssl", "socks")},
    "browser.shell.checkDefaultBrowser": False,
}


class Firefox(Browser):
    """One page of Firefox, with the methods of the page of Chromium."""

    def _hear(self, message):
        said = message.get("params", {})
        if message.get("method") == "log.entryAdded" and said["level"] == "error":
            self.complaints.append(said["text"])
        if message.get("method") == "network.beforeRequestSent":
            self.requests.append(said["request"]["url"])

    async def open(self, address):
        await self.call("session.new", capabilities={})
        await self.call("session.subscribe", events=["log.entryAdded", "network.beforeRequestSent"])
        self.context = (await self.call("browsingContext.getTree"))["contexts"][0]["context"]
        await self.call("browsingContext.navigate", context=self.context, url=address, wait="complete")

    async def value(self, script):
        expression = f"(async () => JSON.stringify(await ({script})))()"
        target = {"context": self.context}
        done = await self.call("script.evaluate", expression=expression, target=target, awaitPromise=True)
        assert done["type"] == "success", done
        return json.loads(done["result"].get("value", "null"))

    async def choose(self, *paths):
        found = await self.call(
            "browsingContext.locateNodes", context=self.context, locator={"type": "css", "value": "#files"}
        )
        element = {"sharedId": found["nodes"][0]["sharedId"]}
        await self.call("input.setFiles", context=self.context, element=element, files=[str(path) for path in paths])

    async def picture(self, path, *, whole=True):
        origin = "document" if whole else "viewport"
        shot = await self.call("browsingContext.captureScreenshot", context=self.context, origin=origin)
        Path(path).write_bytes(base64.b64decode(shot["data"]))


@contextlib.contextmanager
def firefox(profile, further=None):
    """Start Firefox and yield a function that runs a coroutine function with its page on an address."""
    import aiohttp

    settings = (
        f"user_pref({json.dumps(name)}, {json.dumps(value)});\n" for name, value in (SETTINGS | (further or {})).items()
    )
    (profile / "user.js").write_text("".join(settings))
    command = [
        FIREFOX,
        "--headless",
        "--no-remote",
        "--remote-debugging-port=0",
        "--profile",
        str(profile),
        "about:blank",
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    found = next(filter(None, (re.search(r"BiDi listening on ws://[\w.]+:(\d+)", line) for line in process.stderr)))

    protocol = f"ws://127.0.0.1:{found[1]}/session"

    async def drive(address, visit):
        async with aiohttp.ClientSession() as session, session.ws_connect(protocol, max_msg_size=0) as line:
            page = Firefox(line)
            await page.open(address)
            await visit(page)
            await page.call("session.end")

    try:
        yield lambda address, visit: asyncio.run(drive(address, visit))
    finally:
        process.kill()
        process.communicate()
