"""The page in a real browser: headless Chromium, driven through its own debugging protocol, on loopback only."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess

import pytest

from serve.app import Door
from serve.predictor import Predictor

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--remote-debugging-port=0"),
]
AUDIT = {"audited": True, "passed": False, "failures": ["patients are in two splits"], "warnings": []}

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")


class Browser:
    """One page of Chromium, by the DevTools protocol."""

    def __init__(self, connection):
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

    async def value(self, script):
        done = await self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    async def until(self, script):
        for _ in range(600):
            if await self.value(script):
                return
            await asyncio.sleep(0.1)
        pytest.fail(f"never true: {script}")

    async def choose(self, *paths):
        await self.call("DOM.enable")
        root = (await self.call("DOM.getDocument"))["root"]["nodeId"]
        node = (await self.call("DOM.querySelector", nodeId=root, selector="#files"))["nodeId"]
        await self.call("DOM.setFileInputFiles", nodeId=node, files=[str(path) for path in paths])


@pytest.fixture
def browse(tmp_path):
    """Return a function that runs a coroutine function with a browser on an address."""
    aiohttp = pytest.importorskip("aiohttp", reason="needs aiohttp, which comes with tritonclient[http]")
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", "about:blank"]
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
                await browser.call("Page.navigate", url=address)
                await visit(browser)

    try:
        assert port, "Chromium did not start"
        yield lambda address, visit: asyncio.run(drive(address, visit))
    finally:
        process.kill()
        process.communicate()


def text_of(selector):
    return f"(document.querySelector({json.dumps(selector)})?.innerText ?? '')"


def test_images_are_answered_on_the_page_with_heatmap_warning_table_and_reasons(
    write_model, serve_model, tiny, tmp_path, browse
):
    predictor = Predictor.open(write_model(ood=True, ood_threshold=0.5, heatmap=True, audit=AUDIT), device="cpu")
    colours = {"dark.png": (0, 90, 0), "bright.png": (255, 200, 250)}
    for name, colour in colours.items():
        (tmp_path / name).write_bytes(tiny.draw(colour))
    (tmp_path / "text.png").write_bytes(b"text")

    async def visit(browser):
        await browser.until(f"{text_of('#facts')}.includes('93.8 % of 16 images')")
        assert "patients are in two splits" in await browser.value(text_of("#audit"))
        await browser.choose(*(tmp_path / name for name in (*colours, "text.png")))
        await browser.until(f"{text_of('#status')}.startsWith('3 images:')")
        assert await browser.value(text_of("#status")) == (
            "3 images: 1 normal, 1 pneumonia, 1 without an answer, 1 unlike the training images"
        )
        dark, bright, broken = [await browser.value(text_of(f".card:nth-child({at})")) for at in (1, 2, 3)]
        assert "Resembles the training images" in dark
        assert "Do not rely on this answer" in bright
        assert "No answer: not a JPEG" in broken
        await browser.until("document.querySelector('.card .heat').naturalWidth === 32")
        assert await browser.value("getComputedStyle(document.querySelector('.card .heat')).opacity") == "0.5"
        await browser.value("document.body.dispatchEvent(new KeyboardEvent('keydown', {key: 'h', bubbles: true}))")
        assert await browser.value("getComputedStyle(document.querySelector('.card .heat')).opacity") == "0"
        await browser.value("document.getElementById('view').click()")
        names = "[...document.querySelectorAll('#table td:first-child')].map((cell) => cell.textContent)"
        assert await browser.value(names) == ["bright.png", "dark.png", "text.png"]
        await browser.value("document.querySelector('#table th:nth-child(4) button').click()")
        assert await browser.value(names) == ["dark.png", "bright.png", "text.png"]
        sort = "document.querySelector('#table th:nth-child(4)').getAttribute('aria-sort')"
        assert await browser.value(sort) == "descending"
        csv = "import('./table.js').then((m) => m.asCsv([{file: {name: '=1+1.png'}, problem: 'a, b'}], ['x']))"
        assert await browser.value(csv) == 'File,Decision,x,Problem\r\n\'=1+1.png,,,"a, b"\r\n'

    with serve_model(predictor) as client:
        browse(str(client.base_url), visit)


def test_the_page_asks_for_the_key_until_it_is_right(predictor, serve_model, browse):
    def give(key):
        return (
            "(() => { const form = document.getElementById('key-form');"
            f"form.elements.key.value = '{key}'; form.requestSubmit(); }})()"
        )

    async def visit(browser):
        shown = "document.getElementById('key-form')?.hidden === false"
        await browser.until(shown)
        await browser.value(give("wrong"))
        await browser.until(shown)
        await browser.value(give("right"))
        await browser.until(f"{text_of('#classes')} === 'covid, normal or pneumonia'")

    with serve_model(predictor, door=Door(api_key="right")) as client:
        browse(str(client.base_url), visit)
